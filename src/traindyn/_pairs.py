"""Pairs of a group's elements and their products: the samples that theory and networks share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int

from ._checked import checked
from ._checks import concrete, indices, mask


class Pairs(NamedTuple):
    """Pairs of elements of a group, one an entry.

    - `first`, `second`, shape `(pairs,)`: the numbers of the two elements.
    - `label`, shape `(pairs,)`: the number of their product.
    - `used`, shape `(pairs,)`: false at padding, with which samples of different sizes stack. Padding counts nowhere.
    - `table`, shape `(order, order)`: the products of all pairs of the group.
    - `held_out`: the numbers `first·order + second` of the group's other pairs, with `order²` for padding; `None` where
      a row or column of the table has an element twice.
    """

    first: Int[Array, " pairs"]
    second: Int[Array, " pairs"]
    label: Int[Array, " pairs"]
    used: Bool[Array, " pairs"]
    table: Int[Array, "order order"]
    held_out: Int[Array, " held_out"] | None = None


@checked
def pairs(table: Int[ArrayLike, "order order"], used: Bool[ArrayLike, "order order"] | None = None) -> Pairs:
    """The pairs of a group's table where `used` is true, or 1, row by row; by default all of them.

    **Raises** `ValueError` for other shapes, fewer than three elements, labels that are no elements, a `used` of other
    numbers than 0 and 1, and one that leaves nothing.
    """
    label = elements_of(table)
    used = used_pairs(used, len(label))
    first, second = np.nonzero(used)
    columns = (first, second, label[used])
    with jax.ensure_compile_time_eval():  # values stay known inside jit
        first, second, label_of, of_all = (jnp.asarray(x, int) for x in (*columns, label))
        held_out = jnp.asarray(np.flatnonzero(~used), int) if is_latin(label) else None
        return Pairs(first, second, label_of, jnp.asarray(np.ones(first.shape, bool)), of_all, held_out)


def elements_of(table: Any) -> Int[np.ndarray, "order order"]:
    """A group's table. **Raises** `ValueError` unless it is square, holds elements, and three of them at least: labels
    of fewer don't differ enough for the theory."""
    if not concrete(table):
        raise ValueError("table must be known outside jit and vmap, got a traced value.")
    order = np.shape(table)[0] if np.ndim(table) else 0
    label = np.asarray(indices("table", table, order, ("order", "order"), {"order": order}))
    if order < 3:
        raise ValueError(f"table must be that of at least 3 elements, got {order}.")
    return label


def used_pairs(used: Any, order: int) -> Bool[np.ndarray, "order order"]:
    """Which pairs are used, as truth values, by default all. **Raises** `ValueError` for numbers other than 0 and 1,
    another shape, and where none is."""
    if used is None:
        return np.ones((order, order), bool)
    if not concrete(used):
        raise ValueError("used must be known outside jit and vmap, got a traced value.")
    used = np.asarray(mask("used", used, ("order", "order"), {"order": order}))
    if not used.any():
        raise ValueError("used must leave at least one pair, got none.")
    return used


def is_latin(table: Int[np.ndarray, "order order"]) -> bool:
    """Whether each row and each column has every element once."""
    counts = np.arange(len(table))
    return bool((np.sort(table, axis=0) == counts[:, None]).all() and (np.sort(table, axis=1) == counts).all())
