"""Checks of arguments, at the door where their values are known and at run time inside `jit`."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Inexact, PyTree

T = TypeVar("T")


def concrete(tree: PyTree) -> bool:
    """Whether every array of a PyTree has values here and now, rather than being traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def require(x: T, ok: Bool[ArrayLike, ""], message: str) -> T:
    """Returns `x`. Raises `ValueError(message)` unless `ok`; where `ok` is traced, an Equinox runtime error."""
    if isinstance(ok, Tracer):
        return eqx.error_if(x, jnp.logical_not(ok), message)
    if not np.all(ok):
        raise ValueError(message)
    return x


def or_nan(x: Inexact[Array, "..."], ok: Bool[ArrayLike, "..."], message: str) -> Inexact[Array, "..."]:
    """Returns `x`. Raises `ValueError(message)` unless `ok`; where `ok` is traced, `x` is NaN instead: no check at run
    time, which would keep what calls it out of JAX's compilation cache."""
    return jnp.where(ok, x, jnp.nan) if isinstance(ok, Tracer) else require(x, ok, message)


def as_float(x: Any) -> Inexact[Array, "..."]:
    """`x` as an array; numbers and integer arrays become floating point."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))


def check_shape(name: str, x: Array, shape: tuple[int | str, ...], sizes: dict[str, int] | None = None) -> None:
    """Raises `ValueError` unless `x` has the shape. Letters stand for sizes: those in `sizes`, or any size at all."""
    sizes = sizes or {}
    wanted = tuple(sizes.get(s, s) if isinstance(s, str) else s for s in shape)
    if x.ndim != len(wanted) or any(isinstance(w, int) and w != n for w, n in zip(wanted, x.shape, strict=True)):
        form = ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "")
        raise ValueError(f"{name} must have shape ({form}), got {x.shape}.")
