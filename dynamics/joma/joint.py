"""Theorem 1 of JoMA: the joint flow of hidden nodes and attention logits, its invariants, and what they predict."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from ..._checked import checked
from ..._checks import as_float
from ..flow import Flow

Attention = Literal["linear", "exp", "softmax"]


@checked
def check_attention(attention: str) -> None:
    """Raises `ValueError` for an attention that JoMA does not define."""
    if attention not in get_args(Attention):
        raise ValueError(f"attention must be one of {', '.join(get_args(Attention))}, got {attention!r}.")


class JointState(NamedTuple):
    """`v`: hidden nodes in token space, `v_k = U_Cᵀ w_k`. `z`: attention logits, one row a query.
    `beta`: the nodes' residual biases `u_qᵀ w_k`, one row a query."""

    v: Float[Array, "tokens nodes"]
    z: Float[Array, "queries tokens"]
    beta: Float[Array, "queries nodes"]


@checked
class Joint(Flow):
    """The joint flow of hidden nodes and attention logits of one block, from which Theorem 1 follows.

    With `b_i` the attention of sample `i`, `h = φ(b_iᵀ V + β_q)` and `g = −∂loss/∂h` the gradient sent back to it,

        V̇ = η_W E[b (g∘φ')ᵀ],   β̇_m = η_W E[1(q=m) g∘φ'],   ż_m = η_Z E[1(q=m) (∂b/∂z_m)ᵀ V (g∘φ')]

        linear: b = z∘x        exp: b = exp(z/T)∘x / A        softmax: b = exp(z/T)∘x / Σ_l exp(z_l/T) x_l

    **Fields:** `x`, shape `(samples, tokens)`, the token frequencies; `query`, shape `(samples,)`, each sample's query
    (by default one query for all); `g`, either an array of shape `(samples, nodes)`, which stays as it is (the
    paper's Assumption 1), or a function from `h` to such an array (`jax.tree_util.Partial`, to keep data as leaves);
    `activation` φ; `attention`; learning rates `eta_w`, `eta_z`; `temperature` T; the constant `normaliser` A.

    **State:** a `JointState`.

    **What must happen:** `invariants` stays constant, with exponential and linear attention for every activation, loss
    and data, with several queries too, and with any learning rates. With exponential attention and `g` that stays as
    it is, the solution blows up in finite time.

    Source: JoMA (arXiv 2310.00535), section 3 and Theorem 1; the learning rates, several queries and the temperature
    are consequences of the same derivation.
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

    def __init__(
        self,
        x: Float[ArrayLike, "samples tokens"],
        g: Float[ArrayLike, "samples nodes"] | Callable[[Array], Array],
        *,
        query: Int[ArrayLike, " samples"] | None = None,
        attention: str = "exp",
        activation: Callable[[Array], Array] = lambda h: h,
        eta_w: ArrayLike = 1.0,
        eta_z: ArrayLike = 1.0,
        temperature: ArrayLike = 1.0,
        normaliser: ArrayLike = 1.0,
    ):
        check_attention(attention)
        self.x = as_float(x)
        samples = self.x.shape[0]
        self.query = jnp.zeros(samples, int) if query is None else jnp.asarray(query)
        self.g = g if callable(g) else as_float(g)
        self.eta_w, self.eta_z = as_float(eta_w), as_float(eta_z)
        self.temperature, self.normaliser = as_float(temperature), as_float(normaliser)
        self.attention, self.activation = attention, activation  # pyright: ignore[reportAttributeAccessIssue]

    @checked
    def __call__(self, t: ArrayLike, y: JointState, args: Any = None) -> JointState:
        b = self.attend(y.z)
        h, pull = jax.vjp(self.activation, b @ y.v + y.beta[self.query])
        g = self.g(h) if callable(self.g) else self.g
        (g,) = pull(g)
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
        z = z[self.query]
        if self.attention == "linear":
            return z * self.x
        if self.attention == "exp":
            return jnp.exp(z / self.temperature) * self.x / self.normaliser
        return _softmax(z / self.temperature, self.x)

    @checked
    def invariants(self, y: JointState) -> Float[Array, " tokens"] | Float[Array, " queries"]:
        """What the flow conserves: see the function `invariants`."""
        return invariants(self.attention, y.v, y.z, rate_ratio=self.eta_z / self.eta_w, temperature=self.temperature)


@checked
def invariants(
    attention: str,
    v: Float[Array, "tokens nodes"],
    z: Float[Array, "queries tokens"],
    *,
    rate_ratio: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
) -> Float[Array, " tokens"] | Float[Array, " queries"]:
    """What Theorem 1 conserves, with `rate_ratio` r = η_Z/η_W; for one query or several that share the nodes.

        linear   Σ_m z_m² − r Σ_k v_k²,       shape (tokens,)
        exp      Σ_m z_m − r/2T Σ_k v_k²,     shape (tokens,)
        softmax  Σ_l z_ml,                     shape (queries,)

    The first two hold along gradient flow for any activation, loss and data, the third under gradient descent too.
    Source: JoMA, Theorem 1; of softmax only what is exact.
    """
    check_attention(attention)
    nodes = jnp.asarray(rate_ratio, v.dtype) * jnp.sum(v**2, axis=1)
    if attention == "linear":
        return jnp.sum(z**2, axis=0) - nodes
    if attention == "exp":
        return jnp.sum(z, axis=0) - nodes / (2 * jnp.asarray(temperature, v.dtype))
    return jnp.sum(z, axis=1)


def _softmax(z: Float[Array, "samples tokens"], x: Float[Array, "samples tokens"]) -> Float[Array, "samples tokens"]:
    """Softmax in which token `l` counts `x_l` times."""
    weights = x * jnp.exp(z - jnp.max(z, axis=1, keepdims=True))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


@checked
def predicted_logits(
    attention: str,
    v: Float[Array, "tokens nodes"],
    *,
    v0: Float[Array, "tokens nodes"],
    z0: Float[Array, " tokens"],
    rate_ratio: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    b_bar: Float[Array, " tokens"] | None = None,
) -> Float[Array, " tokens"]:
    """The attention logits that Theorem 1 reads off the hidden nodes `v`, having started from `v0` and `z0`.

        linear   z² = z₀² + r (Σ_k v_k² − Σ_k v₀_k²), with the sign of z₀
        exp      z = z₀ + r/2T (Σ_k v_k² − Σ_k v₀_k²)
        softmax  z = z₀ + r/2T [Σ_k v_k² − (Σ_k ‖v_k‖²) b̄] − (the same at v₀)

    with `rate_ratio` r = η_Z/η_W and `b_bar` b̄ = E[b] (softmax only). A linear logit that crosses zero, as it can where
    `r Σ v₀² > z₀²`, keeps its sign here and so is right in size only. Several queries that share their nodes obey the
    linear and the exponential law only summed, `Σ_m z_m²` and `Σ_m z_m`. The softmax law also assumes that b̄ is
    constant and that `E[g_k b bᵀ] = b̄ E[g_k b]ᵀ` for each node; it holds in direction more than in size.

    Source: JoMA, Theorem 1. The published softmax form lacks the ½ and the sum over nodes in front of b̄, and so breaks
    the exact conservation of `Σ_l z_l`.
    """
    check_attention(attention)
    if (attention == "softmax") != (b_bar is not None):
        raise ValueError("b_bar must be given for softmax attention, and for no other.")
    grown = jnp.asarray(rate_ratio, v.dtype) * (jnp.sum(v**2, axis=1) - jnp.sum(v0**2, axis=1))
    if attention == "linear":
        return jnp.sign(z0) * jnp.sqrt(z0**2 + grown)
    if b_bar is not None:
        grown = grown - jnp.sum(grown) * b_bar
    return z0 + grown / (2 * jnp.asarray(temperature, z0.dtype))
