"""Clipping that does not wait for all gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .._precision import at_least_float32


class PreviousNormState(NamedTuple):
    """The global norm of the last gradient, not clipped; −1 before the first."""

    norm: Float[Array, ""]


def clip_by_previous_norm(max_norm: float | Array) -> optax.GradientTransformationExtraArgs:
    """As `optax.clip_by_global_norm`, but with the norm of the step before: `g × min(1, max_norm / ‖g_before‖)`.

    The norm of this step is known only when all gradients are, so that clipping by it keeps them all in memory. By the
    last one each gradient is consumed as it is made. In the first step each of `n` leaves is clipped to
    `max_norm / √n` by itself, so that the whole is at most `max_norm`. A norm that is not finite is not taken over.

    **Raises** `ValueError` unless `max_norm` is positive.
    """
    if not isinstance(max_norm, Tracer) and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}.")

    def init(params: PyTree) -> PreviousNormState:
        floats = [x.dtype for x in jax.tree.leaves(params)]
        dtype = at_least_float32(jnp.finfo(floats[0]).dtype) if floats else jnp.float32
        return PreviousNormState(jnp.full((), -1, dtype))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any):
        before, most = state.norm, jnp.asarray(max_norm).astype(state.norm.dtype)
        leaves = jax.tree.leaves(updates)
        each = most / jnp.sqrt(jnp.asarray(max(len(leaves), 1)).astype(most.dtype))
        squares = lambda g: jnp.sum(jnp.square(jnp.abs(g)).astype(before.dtype))
        factor = lambda most, norm: jnp.minimum(1, most / jnp.where(norm > 0, norm, 1))

        def clipped(g: Array) -> Array:
            first = factor(each, jnp.sqrt(squares(g)))
            return g * jnp.where(before < 0, first, factor(most, before)).astype(g.dtype)

        norm = jnp.sqrt(sum(map(squares, leaves), jnp.zeros((), before.dtype)))
        return jax.tree.map(clipped, updates), PreviousNormState(jnp.where(jnp.isfinite(norm), norm, before))

    return optax.GradientTransformationExtraArgs(init, update)
