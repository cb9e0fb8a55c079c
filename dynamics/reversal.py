"""The reversal curse: two models whose weights from A to B say nothing of those from B to A, and their closed forms.

A sentence is (first entity, relation, last entity); the last entity is to be predicted. Time is
`t = learning_rate × step`, and the loss is a mean over N training sentences.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, Real

from .._checked import checked
from .._checks import as_float, check_positive_semidefinite, check_range, concrete, indices, integer, or_nan, real
from .flow import ClosedForm, Example, Flow, Number, Times, at_each
from .gap import check_broadcast, gap_after, visits


@checked
class Bilinear(Flow):
    """The bilinear model `p(y|x) ∝ exp(v_xᵀ Θ v_y)`, over all m tokens y, in the only directions that it moves in:

        Θ = Θ₀ + Vᵀ C V,   Ċ = (1/N) Σ_pairs e_x (e_y − p(·|x))ᵀ,   logits = V Θ₀ Vᵀ + G C G,   G = V Vᵀ

    Gradient flow `Θ̇ = −∇L` of the mean cross-entropy of N pairs, exactly, for any fixed vectors V, shape `(m, width)`.
    `symmetric` keeps Θ symmetric, `Θ̇ = −(∇L + ∇Lᵀ)/2`: the control that has no reversal curse. (A leaf, so that both
    share a compilation.)

    **Fields:** `gram` G, shape `(m, m)`; `pairs`, shape `(N, 2)`, the trained (x, y); `start` V Θ₀ Vᵀ, shape `(m, m)`,
    zero by default. **State:** C, shape `(m, m)`, zero at time zero.

    **Closed form** where the vectors are orthonormal, G = I (random ones as width → ∞), from zero: each row is a
    `OneLayer` of M = m outputs, and a row that no pair begins with stays uniform.

    **What must happen:** for v ~ N(0, I/width) and (y, x) untrained, `L_rev(t)/L_rev(0) ≥ (L(t)/L(0))^ε` for any ε
    once the width is large enough (`separation_exponent`); with `symmetric`, L_rev falls as L does.

    Source: Zhu et al. (arXiv 2405.04669), section 3, Theorems 1 and 2. **Raises** `ValueError` for bad shapes, for no
    pairs, for a pair of tokens that do not exist, and for a `gram` that is not symmetric and positive semidefinite.
    Inside `jit` only shapes are checked: a token that does not exist is none of the m there.
    """

    gram: Float[Array, "tokens tokens"] = eqx.field(converter=as_float)
    pairs: Int[Array, "pairs 2"] = eqx.field(converter=jnp.asarray)
    start: Float[Array, "tokens tokens"] | None = None
    symmetric: Bool[Array, ""] = eqx.field(converter=jnp.asarray, default=False)

    def __check_init__(self):
        if self.pairs.shape[0] == 0:
            raise ValueError("pairs must hold at least one pair, got none.")
        indices("pairs", self.pairs, self.gram.shape[0])
        check_positive_semidefinite("gram", self.gram)
        if self.start is not None:
            real("start", self.start)

    @classmethod
    @checked
    def of(
        cls,
        vectors: Float[ArrayLike, "tokens width"],
        pairs: Int[ArrayLike, "pairs 2"],
        theta: Float[ArrayLike, "width width"] | None = None,
        *,
        symmetric: Bool[ArrayLike, ""] = False,
    ) -> "Bilinear":
        """The flow for the tokens' `vectors` V and the initial weights `theta` Θ₀, by default zero."""
        v = as_float(vectors)
        start = None if theta is None else v @ jnp.asarray(theta, v.dtype) @ v.T
        start = None if start is None else jnp.where(symmetric, (start + start.T) / 2, start)
        return cls(v @ v.T, jnp.asarray(pairs), start, jnp.asarray(symmetric))

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, symmetric: Number = False, time: Number = 30.0) -> Example:
        """Eight tokens in 16 dimensions, four disjoint pairs, from zero."""
        flow = cls.of(jax.random.normal(key, (8, 16)) / 4, jnp.arange(8).reshape(4, 2), symmetric=symmetric)
        return flow, jnp.zeros((8, 8)), jnp.linspace(0.0, time, 9)

    @checked
    def logits(self, c: Float[Array, "tokens tokens"]) -> Float[Array, "tokens tokens"]:
        """The logits of every token (columns) after every token (rows)."""
        logits = self.gram @ c @ self.gram
        return logits if self.start is None else logits + self.start

    @checked
    def loss(self, c: Float[Array, "tokens tokens"], pairs: Int[Array, "n 2"] | None = None) -> Float[Array, ""]:
        """The mean `−ln p(y|x)` of the trained pairs, or of others: the reversal loss is that of the untrained
        reversals. **Raises** `ValueError` for no pairs, and for tokens that do not exist."""
        pairs = self.pairs if pairs is None else indices("pairs", pairs, self.gram.shape[0])
        if not len(pairs):
            raise ValueError("pairs must hold at least one pair, got none.")
        logits = self.logits(c)[pairs[:, 0]]
        own = jnp.take_along_axis(logits, pairs[:, 1:], axis=1)
        others = jnp.where(jnp.arange(logits.shape[1])[None] == pairs[:, 1:], -jnp.inf, logits - own)
        return jnp.mean(jax.nn.softplus(jax.nn.logsumexp(others, axis=1)))  # keeps its digits as p → 1

    @checked
    def __call__(
        self, t: Real[ArrayLike, ""], y: Float[Array, "tokens tokens"], args: Any = None
    ) -> Float[Array, "tokens tokens"]:
        x, target = (jax.nn.one_hot(self.pairs[:, i], self.gram.shape[0], dtype=y.dtype) for i in (0, 1))
        logits = (x @ self.gram) @ y @ self.gram
        p = jax.nn.softmax(logits if self.start is None else logits + x @ self.start, axis=1)
        p = p * (1 - target)  # 1 − p(y|x) as the sum of the others, which rounding does not eat
        push = x.T @ (target * jnp.sum(p, axis=1, keepdims=True) - p) / self.pairs.shape[0]
        return jnp.where(self.symmetric, (push + push.T) / 2, push)


@checked
def separation_exponent(
    loss: Float[Array, "times *batch"], reversal_loss: Float[Array, "times *batch"]
) -> Float[Array, "*batch"]:
    """The least ε ≥ 0 at which `L_rev(t)/L_rev(0) ≥ (L(t)/L(0))^ε` at all times recorded, the first being zero.

    About zero where the reversal is not learned, one where it is learned as the rest is.

    Source: Zhu et al. (arXiv 2405.04669), Theorem 1, which bounds this number. By it, as L reaches c,
    `L_rev ≥ L_rev(0) (c/L(0))^ε` (Theorem 2). NaN for a run with NaN in it.

    **Raises** `ValueError` for no times, and for losses that are negative, or zero or infinite at the start. So it does
    for a training loss that rises above its start, which no gradient flow does. Inside `jit` such losses give NaN.
    """
    if not len(loss):
        raise ValueError("loss must hold at least one time, got none.")
    for name, x in (("loss", loss), ("reversal_loss", reversal_loss)):
        if concrete(x):
            values = np.where(np.isnan(x), 1.0, np.asarray(x))
            check_range(name, values, least=0, finite=False)
            check_range(f"the first {name}", values[:1], above=0)
    fallen, risen = jnp.log(loss / loss[:1]), jnp.log(reversal_loss / reversal_loss[:1])
    fallen = or_nan(fallen, ~(fallen > 0), "loss must not rise above its start.")
    ratio = risen / jnp.where(fallen < 0, fallen, 1)
    least = jnp.where(fallen < 0, jnp.maximum(ratio, 0), 0)
    return jnp.max(jnp.where(jnp.isnan(fallen) | jnp.isnan(risen), jnp.nan, least), axis=0)


@checked
class OneLayer(ClosedForm):
    """The one-layer transformer of Scan and Snap on sentences of three tokens: one row of its decoder,

        Ḋ = (η M/N) / (k e^D + M − k)

    where D is the logit of each of the k `targets` that training sentences complete the row's first entity with, less
    that of the other M − k tokens.

    The context is the first entity alone, so that its attention is 1 whatever Z is: Z never moves, the relation is
    ignored, and row A of Y sees only sentences that begin with A. One gap describes each row:

    - reversal: A→B trained, k = 1: `seen` → 1. Row B, if no sentence begins with B, stays zero: `p(A|B←) = 1/M` always.
    - chain of thought, A→B and B→C trained, A⇝C not: k = 1. `p(C|A⇝)` is `unseen` and falls below 1/M, while two steps,
      A→B→C, succeed with `seen²`.
    - chain of thought, A⇝C trained as well: k = 2, for row A has the targets B and C. `seen` → ½ each and no more.

    **Fields:** `outputs` M, `sentences` N in training, `eta` η_Y, `targets` k. **State:** D, any shape.

    **Closed form:** `k (e^D − 1) + (M − k) D = M η t/N` from zero.

    Source: Zhu et al. (arXiv 2405.04669), section 4, Theorems 3 and 4, which bound these probabilities as t → ∞; in
    closed form for all t here. **Raises** `ValueError` unless `outputs > targets ≥ 1`, `sentences` and `eta` are
    positive, where they are known: inside `jit` only `targets` is checked. Also for shapes that do not broadcast.
    """

    outputs: Float[Array, "..."] = eqx.field(converter=as_float)
    sentences: Float[Array, "..."] = eqx.field(converter=as_float)
    eta: Float[Array, "..."] = eqx.field(converter=as_float, default=1.0)
    targets: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        integer("targets", self.targets, least=1)
        self._check_broadcast()
        real("outputs", self.outputs, above=self.targets)
        real("sentences", self.sentences, above=0)
        real("eta", self.eta, above=0)

    @classmethod
    @checked
    def example(
        cls,
        key: Key[Array, ""],
        *,
        outputs: Number = 20.0,
        sentences: Number = 4.0,
        eta: Number = 1.0,
        time: Number = 30.0,
    ) -> Example:
        """One row of the decoder from zero. Nothing is drawn."""
        return cls(outputs, sentences, eta), jnp.zeros(()), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, "..."], y: Float[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        self._check_broadcast(y=y)
        k = self.targets
        return self.eta * self.outputs / self.sentences / (k * jnp.exp(y) + self.outputs - k)

    @checked
    def exact(self, y0: Real[ArrayLike, "..."], ts: Times) -> Float[Array, "..."]:
        """The gap at the times `ts`, which come first in its shape."""
        self._check_broadcast(y0=y0)
        m, k = self.outputs, self.targets
        rate, start = m * self.eta / self.sentences / k, jnp.asarray(y0, m.dtype)
        return at_each(ts, lambda t: gap_after(rate * jnp.asarray(t, m.dtype), (m - k) / k, start))

    @checked
    def visits(self, number: int) -> Float[Array, " number_and_one"]:
        """The gap after 0, 1, …, `number` visits by stochastic gradient descent at the learning rate η, one sentence a
        step: `M h*`, exactly. For scalar fields and one target; with two the gap depends on their order.

        **Raises** `ValueError` for more than one target."""
        if self.targets != 1:
            raise ValueError(f"targets must be 1 for visits, got {self.targets}.")
        integer("number", number, least=0)
        return self.outputs * visits(self.outputs, self.eta, number)

    @checked
    def seen(self, gap: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The probability of each target, `e^D/(k e^D + M − k)`. What it lacks to 1/k is `(M − k)/k` times `unseen`."""
        return self._shares(gap)[0]

    @checked
    def unseen(self, gap: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The probability of each other token, `1/(k e^D + M − k)`."""
        return self._shares(gap)[1]

    def _shares(self, gap: Real[ArrayLike, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Of a target and of another token. Neither e^D nor e^{−D} overflows in it."""
        self._check_broadcast(gap=gap)
        gap = jnp.asarray(gap, self.outputs.dtype)
        own, other = jnp.exp(jnp.minimum(gap, 0)), jnp.exp(-jnp.maximum(gap, 0))
        total = self.targets * own + (self.outputs - self.targets) * other
        return own / total, other / total

    def _check_broadcast(self, **arrays: Any) -> None:
        check_broadcast(**arrays, outputs=self.outputs, sentences=self.sentences, eta=self.eta)
