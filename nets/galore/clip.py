"""Clipping that does not wait for all gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from ..._checks import real
from .._precision import at_least_float32
from .layout import short_range


class PreviousNormState(NamedTuple):
    """The global norm of the last gradient, not clipped; −1 before the first."""

    norm: Float[Array, ""]


def clip_by_previous_norm(max_norm: ArrayLike) -> optax.GradientTransformationExtraArgs:
    """As `optax.clip_by_global_norm`, but with the norm of the step before: `g × min(1, max_norm / ‖g_before‖)`.

    The norm of this step is known only when all gradients are, so that clipping by it keeps them all in memory. By the
    last one each gradient is consumed as it is made. In the first step each of `n` leaves is clipped to
    `max_norm / √n` by itself, so that the whole is at most `max_norm`. A norm that is not finite is not taken over.
    Leaves that are not of floating point stay as they are, and are not counted.

    **Raises** `ValueError` unless `max_norm` is above zero.
    """
    real("max_norm", max_norm, (), above=0, finite=False)
    is_float = lambda x: jnp.issubdtype(getattr(x, "dtype", int), jnp.inexact)

    def init(params: PyTree) -> PreviousNormState:
        dtypes = [at_least_float32(jnp.finfo(x.dtype).dtype) for x in jax.tree.leaves(params) if is_float(x)]
        widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits, default=jnp.float32)
        return PreviousNormState(jnp.full((), -1, widest))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any):
        before, most = state.norm, jnp.asarray(max_norm).astype(state.norm.dtype)
        leaves = list(filter(is_float, jax.tree.leaves(updates)))
        each = most / jnp.sqrt(jnp.asarray(max(len(leaves), 1)).astype(most.dtype))
        norm_of = lambda g: _norm(g, before.dtype)
        factor = lambda most, norm: jnp.minimum(1, most / jnp.where(norm > 0, norm, 1))

        def clipped(g: Array) -> Array:
            if not is_float(g):
                return g
            first = factor(each, norm_of(g))
            least = jnp.where(before < 0, first, factor(most, before))
            return (
                (g.astype(least.dtype) * least).astype(g.dtype) if short_range(g.dtype) else g * least.astype(g.dtype)
            )

        norm = _norm(jnp.stack(list(map(norm_of, leaves))), before.dtype) if leaves else jnp.zeros((), before.dtype)
        return jax.tree.map(clipped, updates), PreviousNormState(jnp.where(jnp.isfinite(norm), norm, before))

    return optax.GradientTransformationExtraArgs(init, update)


def _norm(x: Array, dtype: Any) -> Array:
    """In this dtype, and relative to the largest entry where squares overflow or vanish, which takes twice the time."""
    sizes = lambda: jnp.abs(x).astype(dtype)  # anew for each use, rather than held

    def relative() -> Array:
        largest = jnp.max(sizes(), initial=0)
        unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        return unit * jnp.sqrt(jnp.sum(jnp.square(sizes() / unit)))

    norm = jnp.sqrt(jnp.sum(jnp.square(sizes())))
    return jax.lax.cond(jnp.isfinite(norm) & (norm > 0), lambda: norm, relative)
