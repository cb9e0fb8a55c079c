"""The axes of a sweep: the point of each lane, the labels of the axes, and the order in which lanes run."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import ArrayLike, Int, PyTree

from .._checks import as_array, describe
from ..dynamics.sweep import map_lanes
from ._chunks import fingerprint

Point = dict[str, Any]
Axes = Mapping[Any, Any]  # from a name, or a tuple of names, to values
MOST_LANES = 2**31 - 1  # lanes are counted in 32 bits


class _Keys(eqx.Module):
    """Typed random keys as plain numbers, which travel between processes."""

    data: np.ndarray
    impl: str = eqx.field(static=True)

    def __getitem__(self, index):
        return jax.random.wrap_key_data(jnp.asarray(self.data)[index], impl=self.impl)


class Grid(eqx.Module):
    """The axes: for each, its names, how many values, and the values themselves, on the host."""

    values: dict[str, PyTree]
    groups: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, axes: Axes):
        if not isinstance(axes, Mapping):
            raise ValueError(f"axes must be a dictionary from names to values, got {describe(axes)}.")
        groups, sizes, values = [], [], {}
        for names, given in axes.items():
            names, given = (names, given) if isinstance(names, tuple) else ((names,), (given,))
            if not names or not isinstance(given, tuple | list | np.ndarray | jax.Array) or len(given) != len(names):
                raise ValueError(f"axes: {names} must come with one set of values each, got {describe(given)}.")
            lengths = {}
            for name, value in zip(names, given, strict=True):
                if not isinstance(name, str) or not name or name in values or name == "status":
                    raise ValueError(f"axes: each name must be another string, and not 'status', got {name!r}.")
                values[name], lengths[name] = _axis_values(name, value)
            if len(set(lengths.values())) > 1:
                raise ValueError(f"axes: {names} move together and must have as many values, got {lengths}.")
            groups.append(tuple(names))
            sizes.append(lengths[names[0]])
        if not groups:
            raise ValueError("axes must name at least one axis, got none.")
        if math.prod(sizes) > MOST_LANES:
            raise ValueError(f"axes must have at most {MOST_LANES:,} points together, got {math.prod(sizes):,}.")
        self.values, self.groups, self.sizes = values, tuple(groups), tuple(sizes)

    @property
    def number(self) -> int:
        return math.prod(self.sizes)

    def point(self, index: Int[ArrayLike, ""]) -> Point:
        """The point of a lane: lanes count through the last axis first."""
        point = {}
        for names, i in zip(self.groups, jnp.unravel_index(index, self.sizes), strict=True):
            for name in names:
                at = lambda x, i=i: x[i] if isinstance(x, _Keys) else jnp.asarray(x)[i]
                point[name] = jax.tree.map(at, self.values[name], is_leaf=lambda x: isinstance(x, _Keys))
        return point

    def coordinates(self) -> dict[str, tuple[str, np.ndarray]]:
        """For each name its axis and its values, or where these are no numbers, their index."""
        found = {}
        for names, size in zip(self.groups, self.sizes, strict=True):
            for name in names:
                value = self.values[name]
                plain = isinstance(value, np.ndarray) and value.ndim == 1
                found[name] = (names[0], on_host(value) if plain else np.arange(size))
        return found

    def fingerprints(self) -> dict[str, str]:
        arrays = lambda value: [np.asarray(x) for x in jax.tree.leaves(value)]
        return {f"axis {name}": fingerprint(arrays(value)) for name, value in self.values.items()}


def _axis_values(name: str, value: Any) -> tuple[PyTree, int]:
    """The values of an axis on the host, in the precision of the moment, and how many they are."""
    if isinstance(value, list | range):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"axes: {name} must be a list of numbers, got {describe(value)}.") from error

    def on_host(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return _Keys(np.asarray(jax.random.key_data(x)), str(jax.random.key_impl(x)))
        if isinstance(x, str) or (isinstance(x, np.ndarray) and x.dtype.kind not in "biufcV"):
            raise ValueError(f"axes: {name} must be numbers, keys or trees of them, got {describe(x)}.")
        given = np.asarray(x)
        kept = np.asarray(as_array(f"axes: {name}", x))
        if given.dtype.kind in "fc" and (np.isfinite(given) & ~np.isfinite(kept)).any():
            raise ValueError(f"axes: {name} must fit {kept.dtype}, the precision of the moment, got {describe(given)}.")
        return kept

    lengths = {np.shape(x)[:1] for x in jax.tree.leaves(value)}
    if len(lengths) != 1 or not next(iter(lengths)):
        raise ValueError(
            f"axes: {name} must be arrays with a common leading axis, one entry a value, got leading axes "
            f"{sorted(lengths)}."
        )
    ((length,),) = lengths
    if length == 0:
        raise ValueError(f"axes: {name} must have at least one value, got none.")
    return jax.tree.map(on_host, value), length


class _Cost(eqx.Module):
    fn: Callable[[Point], ArrayLike]
    grid: Grid

    def __call__(self, index: Int[ArrayLike, ""]):
        found = as_array("cost", self.fn(self.grid.point(index)))
        if found.shape or jnp.iscomplexobj(found):
            raise ValueError(f"cost must return one real number for each point, got {describe(found)}.")
        return found.astype(float)


def in_order(grid: Grid, cost: Callable[[Point], ArrayLike] | None) -> np.ndarray:
    """The lanes in the order in which they run: the dearest first, so that the last chunk is a cheap one."""
    lanes = np.arange(grid.number, dtype=np.int32)
    if cost is None:
        return lanes
    costs = np.asarray(map_lanes(_Cost(cost, grid), jnp.asarray(lanes), batch_size=4096))
    order = np.argsort(-costs, kind="stable").astype(np.int32)
    return multihost_utils.broadcast_one_to_all(order) if jax.process_count() > 1 else order


def on_host(x: Any) -> np.ndarray:
    """An array of the device as NumPy's; random keys as numbers, and what files do not know widened."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = np.asarray(x)
    if x.dtype.kind != "V" and (
        x.dtype.kind != "f" or np.issubdtype(x.dtype, np.floating)
    ):  # float8_e5m2 says it is "f"
        return x
    return x.astype(np.int8 if jnp.issubdtype(x.dtype, jnp.integer) else np.float32)  # files know no others so narrow
