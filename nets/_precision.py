"""The precision that optimiser arithmetic needs."""

from typing import Any

import jax.numpy as jnp


def at_least_float32(dtype: Any) -> Any:
    """`dtype`, or float32 for a narrower one."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
