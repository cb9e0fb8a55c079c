"""A start and its times, as `solve` and `map_lanes` take them: checked, with NumPy's arrays as JAX's."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._checks import as_array, as_float, concrete, describe, require


def split_state(y0: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves of `y0` that evolve, and the rest."""
    y0 = numpy_as_jax("y0", y0)
    if not isinstance(y0, eqx.Module):
        y0 = _numbers_as_arrays(y0)
    state, static = eqx.partition(y0, eqx.is_inexact_array)
    leaves = jax.tree.leaves(state)
    if not sum(leaf.size for leaf in leaves):
        raise ValueError("y0 must hold at least one floating-point number, got none.")
    for path, leaf in jax.tree.leaves_with_path(state):
        name, precision = f"y0{jax.tree_util.keystr(path)}", _precision(leaf)
        if precision.itemsize < 4:
            raise ValueError(
                f"{name} must be float32 or float64, got {describe(leaf)}: steps need more digits. Cast it."
            )
        if precision != _precision(leaves[0]):
            raise ValueError(
                f"{name} must be of the precision of y0's first leaf, {leaves[0].dtype}, got {leaf.dtype}."
            )

    def finite(path, leaf):
        xp, name = np if concrete(leaf) else jnp, jax.tree_util.keystr(path)
        return require(leaf, xp.all(xp.isfinite(leaf)), f"y0{name} must be finite, got NaN or infinity.")

    return jax.tree_util.tree_map_with_path(finite, state), static


def numpy_as_jax(name: str, tree: PyTree) -> PyTree:
    """The tree with NumPy's arrays as JAX's. Raises `ValueError` for objects, strings and longdouble."""

    def convert(path, x):
        return as_array(f"{name}{jax.tree_util.keystr(path)}", x) if isinstance(x, np.ndarray | np.generic) else x

    return jax.tree_util.tree_map_with_path(convert, tree)


def _numbers_as_arrays(y0: PyTree) -> PyTree:
    """Python's numbers as arrays, of the precision that the arrays beside them have."""
    for path, leaf in jax.tree.leaves_with_path(y0):
        if not (isinstance(leaf, float | complex) or eqx.is_inexact_array(leaf)):
            raise ValueError(
                f"y0{jax.tree_util.keystr(path)} must be a floating-point array, got {describe(leaf)}. "
                "Cast it, or keep what does not evolve outside the state."
            )
    leaves = jax.tree.leaves(y0)
    if type(y0) in (list, tuple) and leaves and not any(eqx.is_array(leaf) for leaf in leaves):
        raise ValueError(f"y0 must be an array or a PyTree of arrays, got {describe(y0)}: write jax.numpy.array(y0).")
    dtype = next((_precision(leaf) for leaf in leaves if eqx.is_array(leaf)), jnp.result_type(float))

    def as_its_kind(leaf):
        if eqx.is_array(leaf):
            return leaf
        return jnp.asarray(leaf, jnp.result_type(dtype, jnp.complex64) if isinstance(leaf, complex) else dtype)

    return jax.tree.map(as_its_kind, y0)


def _precision(x: Array) -> np.dtype:
    return jnp.finfo(x.dtype).dtype


def check_times(ts: ArrayLike | Sequence[float], state: PyTree) -> Float[Array, " times"]:
    ts = as_array("ts", ts)
    if ts.dtype == jnp.bool_:
        raise ValueError(f"ts must be real numbers, got {describe(ts)}.")
    dtype = _precision(jax.tree.leaves(state)[0])
    ts = as_float(ts, "ts").astype(dtype)
    if ts.ndim != 1 or ts.size == 0:
        raise ValueError(f"ts must have shape (times,) with at least one time, got {ts.shape}.")
    values, xp = (np.asarray(ts), np) if concrete(ts) else (ts, jnp)  # numpy compiles nothing
    ts = require(ts, xp.all(xp.isfinite(values)), "ts must be finite, got NaN or infinity.")
    ts = require(ts, values[0] >= 0, "ts must start at zero or later: y0 is the state at t = 0.")
    return require(ts, xp.all(values[1:] > values[:-1]), f"ts must be strictly increasing (in the state's {dtype}).")


def extreme(tree: PyTree, values: PyTree = None) -> tuple[str, Any]:
    """Where the largest entry of a PyTree stands, as in `['v'][3]`, and what `values` has there.

    A NaN counts as the largest.
    """
    best, found = -np.inf, ("", np.nan)
    leaves = jax.tree.leaves_with_path(tree)
    for (path, leaf), value in zip(leaves, jax.tree.leaves(tree if values is None else values), strict=True):
        leaf = np.asarray(leaf)
        if leaf.size:
            index = np.unravel_index(np.argmax(leaf), leaf.shape)
            if not leaf[index] <= best:
                best = leaf[index]
                name = jax.tree_util.keystr(path) + "".join(f"[{i}]" for i in index)
                found = name, np.asarray(value)[index].item()
    return found
