"""Softmax attention over the tokens that a context has."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def softmax_attention(z: Float[Array, " tokens"], x: Float[Array, " tokens"]) -> Float[Array, " tokens"]:
    """`x∘exp(z)/Σ_l x_l exp(z_l)` for frequencies or counts `x`; zero for a context without tokens.

    The largest logit is taken among the tokens present, those with `x > 0`: an absent one, were it far above them,
    would leave them with nothing.
    """
    present = jnp.where(x > 0, z, -jnp.inf)
    top = jnp.max(present, initial=jnp.finfo(z.dtype).min)
    weights = x * jnp.exp(present - jax.lax.stop_gradient(top))
    total = jnp.sum(weights)
    return weights / jnp.where(total > 0, total, 1)
