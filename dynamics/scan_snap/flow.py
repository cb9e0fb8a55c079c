"""The joint flow of decoder and attention in the one-layer transformer of Scan and Snap, in its three tiers."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Real

from ..._checked import checked
from ..._checks import as_float, check_precision, check_shape, concrete, integer, real, require
from ..flow import Example, Flow, Number
from .frozen import check_independent


class YZ(NamedTuple):
    """`y`, shape `(tokens, outputs)`, and `z`, shape `(queries, tokens)`, for contextual tokens only."""

    y: Float[Array, "tokens outputs"]
    z: Float[Array, "queries tokens"]


@checked
class ScanSnap(Flow):
    """The population flow of Y and Z, for K equally frequent classes and long sequences:

        Ẏ = (η_Y/K) Σ_n f_n (e_n − α_n)ᵀ                                          α_n = softmax(Yᵀ f_n)
        ż_m = (η_Z/K) Σ_{ψ(n)=m} f_n ∘ (g_n − f_n (f_n·g_n)),   g_n = Y (e_n − α_n)
        f_n = c_n/‖c_n‖,   c_nl ∝ P(l|n) e^{z_{ψ(n) l}}

    | tier | is | `outputs` | `preconditioned` |
    |---|---|---|---|
    | A | the paper's theory: `F (FᵀF)⁻¹ e_n` in place of `f_n` in Ẏ, so that classes do not mix | M | `True` |
    | B | gradient flow, softmax over the K next tokens: has a closed form | K | `False` |
    | C | gradient flow, softmax over all M tokens: the real network | M | `False` |

    **Fields:** `probability` P(l|n), shape `(classes, tokens)`; `query` ψ, shape `(classes,)`, numbers below `queries`;
    `outputs`, the width of the softmax, whose first K entries are the next tokens; `eta_y`, `eta_z`, multipliers of
    the learning rate; `normalise=False` leaves ℓ2 normalisation out (then `c_n` for `f_n`, and `g_n − (c_n·g_n) 1` in
    the bracket). **State:** a `YZ`. `zero()` is the start of the theorems.

    **Assumptions:** independent Y and Z, no positions, no residual, infinite sequences. **What must happen:** rows of Y
    and Z keep their sums; distinct tokens gain attention, the more the more frequent they are, a single common token
    loses it; past `Decoder.logarithmic_from` all of that slows to a logarithm of a logarithm. Not stiff.

    Source: Scan and Snap (arXiv 2305.16380), Lemmas 1 to 3, for plain gradient flow and with the factor 1/K that the
    paper leaves out of ż.
    """

    probability: Float[Array, "classes tokens"]
    query: Int[Array, " classes"]
    outputs: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    eta_y: Float[Array, ""]
    eta_z: Float[Array, ""]
    preconditioned: bool = eqx.field(static=True)
    normalise: bool = eqx.field(static=True)

    def __init__(
        self,
        probability: Float[ArrayLike, "classes tokens"],
        query: Int[ArrayLike, " classes"] | None = None,
        *,
        outputs: int | None = None,
        queries: int | None = None,
        eta_y: Real[ArrayLike, ""] = 1.0,
        eta_z: Real[ArrayLike, ""] = 1.0,
        preconditioned: bool = False,
        normalise: bool = True,
    ):
        """By default one query for all classes, and as many outputs as classes (tier B).

        **Raises** `ValueError` for a table with negative entries or rows that do not sum to one, fewer outputs than
        classes, a query outside `0 … queries−1`, a negative rate; and in tier A for classes that are linearly
        dependent, where the table is known.
        """
        p = as_float(probability)
        check_precision("probability", p)
        if 0 in p.shape:
            raise ValueError(f"probability must have shape (classes, tokens), none of them zero, got {p.shape}.")
        classes = p.shape[0]
        xp = np if concrete(p) else jnp
        p = require(p, xp.all(xp.asarray(p) >= 0), "probability must not be negative or NaN.")
        sums = xp.sum(xp.asarray(p), axis=1)
        p = require(p, xp.all(xp.abs(sums - 1) < 1e-5), f"each row of probability must sum to one, got {sums}.")
        self.query = jnp.asarray(np.zeros(classes, int) if query is None else query)
        xp = np if concrete(self.query) else jnp
        numbers = xp.asarray(self.query)
        if queries is None:
            known = 1 if query is None else classes  # inside `jit` even the default is traced
            queries = int(numbers.max()) + 1 if concrete(self.query) else known
        inside = (numbers >= 0) & (numbers < queries)
        p = require(p, xp.all(inside), f"query must be below queries = {queries} and not negative, got {numbers}.")
        self.outputs, self.queries = classes if outputs is None else outputs, integer("queries", queries, least=1)
        if self.outputs < max(classes, 2):
            raise ValueError(f"outputs must be at least 2 and the number of classes, {classes}, got {self.outputs}.")
        self.probability, self.preconditioned, self.normalise = p, preconditioned, normalise
        self.eta_y = jnp.asarray(real("eta_y", eta_y, least=0), p.dtype)
        self.eta_z = jnp.asarray(real("eta_z", eta_z, least=0), p.dtype)
        if preconditioned:
            check_independent("probability", p)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, eta_y: Number = 1.0, eta_z: Number = 0.1, time: Number = 30.0) -> Example:
        """Tier B, four classes over eight tokens, from zero."""
        flow = cls(jax.random.dirichlet(key, jnp.ones(8), (4,)), eta_y=eta_y, eta_z=eta_z)
        return flow, flow.zero(), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: YZ, args: Any = None) -> YZ:
        f, residual = self.features(y.z), self.residual(y)
        classes = f.shape[0]
        direction = f
        if self.preconditioned:
            direction = jnp.linalg.solve(f @ f.T, f)
        gain = f * (residual @ y.y.T)  # f_n ∘ g_n
        lost = f**2 if self.normalise else f
        gain = gain - lost * jnp.sum(gain, axis=1, keepdims=True)
        z = jax.ops.segment_sum(gain, self.query, self.queries)
        return YZ(self.eta_y / classes * direction.T @ residual, self.eta_z / classes * z)

    @checked
    def attention(self, z: Float[Array, "queries tokens"]) -> Float[Array, "classes tokens"]:
        """`c_n`: the attention that each class's query pays to each token in all."""
        check_shape("z", z, (self.queries, self.probability.shape[1]))
        scores = jnp.where(self.probability > 0, z[self.query], -jnp.inf)
        weights = self.probability * jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
        return weights / jnp.sum(weights, axis=1, keepdims=True)

    @checked
    def features(self, z: Float[Array, "queries tokens"]) -> Float[Array, "classes tokens"]:
        """`f_n = c_n/‖c_n‖`, the input of the decoder."""
        c = self.attention(z)
        return c / jnp.linalg.norm(c, axis=1, keepdims=True) if self.normalise else c

    @checked
    def residual(self, y: YZ) -> Float[Array, "classes outputs"]:
        """`e_n − α_n`, exact to rounding however close α comes to one: the right entry is the sum of the others."""
        alpha = jax.nn.softmax(self._logits(y), axis=1)
        own = jnp.eye(*alpha.shape, dtype=bool)
        others = jnp.where(own, 0, alpha)
        return jnp.where(own, jnp.sum(others, axis=1, keepdims=True), -others)

    @checked
    def loss(self, y: YZ) -> Float[Array, ""]:
        """The expected cross-entropy, in nats. Tiers B and C descend it."""
        logits = self._logits(y)
        n = jnp.arange(logits.shape[0])
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[n, n])

    def _logits(self, y: YZ) -> Float[Array, "classes outputs"]:
        check_shape("y.y", y.y, (self.probability.shape[1], self.outputs))
        return self.features(y.z) @ y.y

    def zero(self) -> YZ:
        """The start of the theorems, `Y = Z = 0`."""
        tokens = self.probability.shape[1]
        like = lambda *shape: jnp.zeros(shape, self.probability.dtype)
        return YZ(like(tokens, self.outputs), like(self.queries, tokens))
