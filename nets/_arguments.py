"""Checks of arguments that several of these modules share."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import concrete, describe, indices, integer


def floating(dtype: Any) -> Any:
    """`dtype`, by default JAX's. **Raises** `ValueError` unless it is one of real floating-point numbers."""
    if dtype is None:
        return jnp.result_type(float)
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"dtype must be a floating-point dtype, as jnp.float32, got {describe(dtype)}.")
    return found


def check_sizes(**sizes: int) -> None:
    """**Raises** `ValueError` unless each is an integer of at least 1."""
    for name, size in sizes.items():
        integer(name, size, least=1)


def schedule(steps: int, every: int | None) -> tuple[int, int]:
    """The number of steps and how many lie between records: by default all, so that the start and the end are seen."""
    steps = integer("steps", steps, least=0)
    return steps, max(steps, 1) if every is None else integer("every", every, least=1)


def seed_numbers(seeds: Sequence[int]) -> list[int]:
    """The seeds as Python integers. **Raises** `ValueError` unless NumPy's generator takes each."""
    if isinstance(seeds, str) or not np.ndim(seeds) == 1 or len(seeds) < 1:
        raise ValueError(f"seeds must be a sequence of at least one integer, got {describe(seeds)}.")
    return [integer("seeds", seed, least=0, most=2**32 - 1) for seed in seeds]


def elements_of(table: Any, least: int = 1) -> Int[np.ndarray, "order order"]:
    """A group's table. **Raises** `ValueError` unless it is square and holds elements, of which there are `least`."""
    if not concrete(table):
        raise ValueError("table must be known outside jit and vmap, got a traced value.")
    order = np.shape(table)[0] if np.ndim(table) else 0
    label = np.asarray(indices("table", table, order, ("order", "order"), {"order": order}))
    if order < least:
        raise ValueError(f"table must be that of at least {least} elements, got {order}.")
    return label


def inside(label: Int[Array, "*batch"], classes: int) -> Int[Array, "*batch"]:
    """Labels for a look-up in `classes` columns, which gives NaN beyond the last: negative ones are put there too, for
    JAX would count them from the end."""
    return jnp.where(label < 0, jnp.asarray(classes, label.dtype), label)


def context(x: Float[Array, " tokens"], query: Any, z: Float[Array, "queries tokens"], *, counts: bool) -> None:
    """**Raises** `ValueError` for a query without logits, and with `counts` for frequencies below zero, where known."""
    indices("query", query, z.shape[0])
    if counts and concrete(x) and not np.all(np.asarray(x) >= 0):
        raise ValueError(f"x must be frequencies, none negative or NaN, got {describe(x)}.")
