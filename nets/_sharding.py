"""What an optimiser must know of how an array is spread over devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes
from jaxtyping import Array, PyTree


def explicit_sharding(x: Array) -> NamedSharding | None:
    """How `x` is sharded, where its mesh has explicit axes: there every operation must be told about it."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def known_sharding(x: Array) -> NamedSharding | None:
    """How `x` is sharded, as far as can be known: inside `jit`, only in a mesh with explicit axes."""
    sharding = explicit_sharding(x) if isinstance(x, Tracer) else getattr(x, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def with_specs(function: Callable, specs: Callable[[NamedSharding], PyTree], like: Array, *args: Any) -> Any:
    """`function(*args)`; in a mesh with explicit axes the compiler chooses the shardings inside, and `specs`, of the
    sharding of `like`, are those of the result."""
    sharding = explicit_sharding(like)
    if sharding is None:
        return function(*args)
    return auto_axes(function, out_sharding=specs(sharding))(*args)


def full(
    shape: tuple[int, ...], value: Any, dtype: Any, like: NamedSharding | None, spec: PartitionSpec | None
) -> Array:
    """`jnp.full` on the mesh of `like`."""
    placed = None if like is None or spec is None else NamedSharding(like.mesh, spec)
    return jnp.full(shape, value, dtype, device=placed)
