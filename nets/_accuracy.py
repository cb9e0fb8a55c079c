"""How many labels are right."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def right(
    outputs: Float[Array, "*pairs order"], label: Int[Array, "*pairs"], used: Bool[Array, "*pairs"]
) -> Float[Array, ""]:
    """The part of the pairs used of which the largest output is that of the label. NaN if an output there is, which
    would count as the largest."""
    hit = (jnp.argmax(outputs, axis=-1).astype(label.dtype) == label) & used
    part = jnp.sum(hit, dtype=outputs.dtype) / jnp.sum(used, dtype=outputs.dtype)
    return jnp.where(jnp.any(jnp.isnan(jnp.max(outputs, axis=-1)) & used), jnp.nan, part)
