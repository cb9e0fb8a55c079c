"""Theorem 1 of JoMA: the joint flow of hidden nodes and attention logits, its invariants, and what they predict."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Real

from ..._checked import checked
from ..._checks import check_shape, concrete, indices, integer, or_nan, real
from ..flow import Conserving, Example, Number

Attention = Literal["linear", "exp", "softmax"]


class JointState(NamedTuple):
    """`v`: hidden nodes in token space, `v_k = U_Cᵀ w_k`. `z`: attention logits, one row a query.
    `beta`: the nodes' residual biases `u_qᵀ w_k`, one row a query."""

    v: Float[Array, "tokens nodes"]
    z: Float[Array, "queries tokens"]
    beta: Float[Array, "queries nodes"]


@checked
class Joint(Conserving):
    """The joint flow of hidden nodes and attention logits of one block, from which Theorem 1 follows.

    With `b_i` the attention of sample `i`, `h = φ(b_iᵀ V + β_q)` and `g = −∂loss/∂h` the gradient sent back to it,

        V̇ = η_W E[b (g∘φ')ᵀ],   β̇_m = η_W E[1(q=m) g∘φ'],   ż_m = η_Z E[1(q=m) (∂b/∂z_m)ᵀ V (g∘φ')]

        linear: b = z∘x        exp: b = exp(z/T)∘x / A        softmax: b = exp(z/T)∘x / Σ_l exp(z_l/T) x_l

    **Fields:** `x`, shape `(samples, tokens)`, the token frequencies; `query`, shape `(samples,)`, each sample's query
    (by default one query for all); `g`, either an array of shape `(samples, nodes)`, which stays as it is (the
    paper's Assumption 1), or a function from `h` to such an array (`jax.tree_util.Partial`, to keep data as leaves);
    `activation` φ; `attention`; learning rates `eta_w`, `eta_z`; `temperature` T; the constant `normaliser` A. Where
    the formula above has no T or A, the one given plays no part, so that one set of options serves all attentions.
    `queries`, how many rows the state must have at least: by default what `query` asks for.

    **State:** a `JointState`.

    **Raises** `ValueError` for frequencies that are negative, a temperature or normaliser that is not positive, a
    negative learning rate, a query below zero, no samples, and a state that does not fit. The same for an activation
    whose value has another shape than h. Inside `jit` only shapes are checked.

    **What must happen:** `invariants` stays constant, with exponential and linear attention for every activation, loss
    and data, with several queries too, and with any learning rates. With exponential attention and `g` that stays as
    it is, the solution blows up in finite time.

    Source: JoMA (arXiv 2310.00535), section 3 and Theorem 1; the learning rates, several queries and the temperature
    are consequences of the same derivation. A token that a sample lacks gets no attention, however large its logit; a
    sample without tokens gives none to any.
    """

    x: Float[Array, "samples tokens"]
    g: Float[Array, "samples nodes"] | Callable[[Array], Array]
    query: Int[Array, " samples"]
    eta_w: Float[Array, ""]
    eta_z: Float[Array, ""]
    temperature: Float[Array, ""]
    normaliser: Float[Array, ""]
    attention: Attention = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)
    queries: int = eqx.field(static=True)

    def __init__(
        self,
        x: Float[ArrayLike, "samples tokens"],
        g: Float[ArrayLike, "samples nodes"] | Callable[[Array], Array],
        *,
        query: Int[ArrayLike, " samples"] | None = None,
        attention: Attention = "exp",
        activation: Callable[[Array], Array] = lambda h: h,
        eta_w: Real[ArrayLike, ""] = 1.0,
        eta_z: Real[ArrayLike, ""] = 1.0,
        temperature: Real[ArrayLike, ""] = 1.0,
        normaliser: Real[ArrayLike, ""] = 1.0,
        queries: int | None = None,
    ):
        self.x = real("x", x, least=0)
        if not len(self.x):
            raise ValueError("x must hold at least one sample, got none.")
        if queries is not None:
            integer("queries", queries, least=1)
        query = jnp.zeros(len(self.x), int) if query is None else query
        self.query = indices("query", query, 2**31 if queries is None else queries)
        asked = int(np.max(np.asarray(self.query), initial=-1)) + 1 if concrete(self.query) else 0
        self.queries = asked if queries is None else queries
        self.g = g if callable(g) else real("g", g)
        self.eta_w, self.eta_z = real("eta_w", eta_w, least=0), real("eta_z", eta_z, least=0)
        self.temperature = real("temperature", temperature, above=0)
        self.normaliser = real("normaliser", normaliser, above=0)
        self.attention, self.activation = attention, activation

    @classmethod
    @checked
    def example(
        cls, key: Key[Array, ""], *, eta_z: Number = 1.0, temperature: Number = 1.0, time: Number = 8.0
    ) -> Example:
        """Sixteen samples of six tokens, four nodes, exponential attention, a gradient that stays as it is."""
        data, start = jax.random.split(key)
        x, g = jnp.split(jax.random.uniform(data, (16, 10)), [6], axis=1)
        y0 = JointState(0.1 * jax.random.normal(start, (6, 4)), jnp.zeros((1, 6)), jnp.zeros((1, 4)))
        return cls(x / 6, g - 0.5, eta_z=eta_z, temperature=temperature), y0, jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: JointState, args: Any = None) -> JointState:
        b = self.attend(y.z)
        before = b @ y.v + y.beta[self.query]
        h, pull = jax.vjp(self.activation, before)
        check_shape("the value of activation", h, before.shape)
        g = self.g(h) if callable(self.g) else self.g
        check_shape("g", g, h.shape)
        (g,) = pull(jnp.asarray(g, h.dtype))
        back = g @ y.v.T  # ∂(−loss)/∂b
        if self.attention == "linear":
            dz = self.x * back
        elif self.attention == "exp":
            dz = b * back / self.temperature
        else:
            dz = b * (back - jnp.sum(b * back, axis=1, keepdims=True)) / self.temperature
        by_query = lambda s: jax.ops.segment_sum(s, self.query, num_segments=y.z.shape[0]) / s.shape[0]
        return JointState(self.eta_w * b.T @ g / b.shape[0], self.eta_z * by_query(dz), self.eta_w * by_query(g))

    @checked
    def attend(self, z: Float[Array, "queries tokens"]) -> Float[Array, "samples tokens"]:
        """The attention `b` of each sample over the tokens."""
        if len(z) < self.queries:
            raise ValueError(f"z must have a row for each of {self.queries} queries, got {len(z)}.")
        z = z[self.query]
        if self.attention == "linear":
            return z * self.x
        z = z / self.temperature
        if self.attention == "exp":
            return _weights(z, self.x) / self.normaliser
        return _softmax(z, self.x)

    @checked
    def invariants(self, y: JointState) -> Float[Array, " tokens"] | Float[Array, " queries"]:
        """What the flow conserves: see the function `invariants`. Without a learning rate `eta_w` that is V itself."""
        if concrete(self.eta_w) and np.asarray(self.eta_w) == 0:
            raise ValueError("eta_w must be above 0 for the invariants, which hold η_Z/η_W, got 0.")
        return invariants(self.attention, y.v, y.z, rate_ratio=self.eta_z / self.eta_w, temperature=self.temperature)


@checked
def invariants(
    attention: Attention,
    v: Float[Array, "tokens nodes"],
    z: Float[Array, "queries tokens"],
    *,
    rate_ratio: Real[ArrayLike, ""] = 1.0,
    temperature: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " tokens"] | Float[Array, " queries"]:
    """What Theorem 1 conserves, with `rate_ratio` r = η_Z/η_W; for one query or several that share the nodes.

        linear   Σ_m z_m² − r Σ_k v_k²,       shape (tokens,)
        exp      Σ_m z_m − r/2T Σ_k v_k²,     shape (tokens,)
        softmax  Σ_l z_ml,                     shape (queries,)

    The first two hold along gradient flow for any activation, loss and data, the third under gradient descent too.
    Source: JoMA, Theorem 1; of softmax only what is exact.
    """
    rate_ratio, temperature = real("rate_ratio", rate_ratio), real("temperature", temperature, above=0)
    nodes = jnp.asarray(rate_ratio, v.dtype) * jnp.sum(v**2, axis=1)
    if attention == "linear":
        return jnp.sum(z**2, axis=0) - nodes
    if attention == "exp":
        return jnp.sum(z, axis=0) - nodes / (2 * jnp.asarray(temperature, v.dtype))
    return jnp.sum(z, axis=1)


def _weights(z: Float[Array, "samples tokens"], x: Float[Array, "samples tokens"]) -> Float[Array, "samples tokens"]:
    """`exp(z)∘x`, where a token that is absent, x = 0, gives 0 and not 0·∞."""
    largest = math.log(float(jnp.finfo(z.dtype).max)) / 2
    return jnp.exp(jnp.where(x > 0, z, jnp.minimum(z, largest))) * x


def _softmax(z: Float[Array, "samples tokens"], x: Float[Array, "samples tokens"]) -> Float[Array, "samples tokens"]:
    """Softmax in which token `l` counts `x_l` times; zeros in a row without tokens.

    The maximum is taken among the tokens present: an absent one, were it far above them, would leave them nothing."""
    top = jnp.max(jnp.where(x > 0, z, -jnp.inf), axis=1, keepdims=True, initial=-jnp.inf)
    weights = _weights(z - jax.lax.stop_gradient(jnp.where(top > -jnp.inf, top, z)), x)
    total = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


@checked
def predicted_logits(
    attention: Attention,
    v: Float[Array, "tokens nodes"],
    *,
    v0: Float[Array, "tokens nodes"],
    z0: Float[Array, " tokens"],
    rate_ratio: Real[ArrayLike, ""] = 1.0,
    temperature: Real[ArrayLike, ""] = 1.0,
    b_bar: Float[Array, " tokens"] | None = None,
) -> Float[Array, " tokens"]:
    """The attention logits that Theorem 1 reads off the hidden nodes `v`, having started from `v0` and `z0`.

        linear   z² = z₀² + r (Σ_k v_k² − Σ_k v₀_k²), with the sign of z₀
        exp      z = z₀ + r/2T (Σ_k v_k² − Σ_k v₀_k²)
        softmax  z = z₀ + r/2T [Σ_k v_k² − (Σ_k ‖v_k‖²) b̄] − (the same at v₀)

    with `rate_ratio` r = η_Z/η_W and `b_bar` b̄ = E[b] (softmax only). A linear logit that crosses zero, as it can
    where `r Σ v₀² > z₀²`, keeps its sign here and so is right in size only, as is one from zero, which is positive.
    Several queries that share their nodes obey the linear and the exponential law only summed, `Σ_m z_m²` and `Σ_m
    z_m`. The softmax law also assumes that b̄ is constant and that `E[g_k b bᵀ] = b̄ E[g_k b]ᵀ` for each node; it holds
    in direction more than in size.

    Source: JoMA, Theorem 1. The published softmax form lacks the ½ and the sum over nodes in front of b̄, and so breaks
    the exact conservation of `Σ_l z_l`.

    **Raises** `ValueError` for a `v` that linear attention can't reach, because z² would be negative; inside `jit` such
    logits are NaN.
    """
    rate_ratio, temperature = real("rate_ratio", rate_ratio), real("temperature", temperature, above=0)
    if (attention == "softmax") != (b_bar is not None):
        raise ValueError("b_bar must be given for softmax attention, and for no other.")
    grown = jnp.asarray(rate_ratio, v.dtype) * (jnp.sum(v**2, axis=1) - jnp.sum(v0**2, axis=1))
    if attention == "linear":
        square = z0**2 + grown
        square = or_nan(
            square, ~(square < 0), "v must be such that z0² + r (Σ v² − Σ v0²) is at least 0 in each token."
        )
        return jnp.where(z0 < 0, -1, 1) * jnp.sqrt(square)
    if b_bar is not None:
        grown = grown - jnp.sum(grown) * b_bar
    return z0 + grown / (2 * jnp.asarray(temperature, z0.dtype))
