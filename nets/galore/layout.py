"""How each parameter is seen as a stack of matrices, and which of their sides are projected."""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree
from optax.contrib import GaLoreDimensionNumbers

Side = Literal["short", "long", "left", "right", "both"]
Rank = int | float | None
Ranks = Rank | PyTree | Callable[[str, tuple[int, ...]], Rank]
SIDES = ("short", "long", "left", "right", "both")
_LAST_TWO = GaLoreDimensionNumbers(-2, -1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One parameter of shape `shape` as a stack of matrices `(*batch, m, n)`: `rows` are the axes that make `m`,
    `columns` those that make `n`. The others are the batch.

    `left` and `right` are the ranks to which the rows and the columns are projected, `None` where they are not:
    `R = Pᴴ G Q`, with `P` of shape `(*batch, m, left)` and `Q` of shape `(*batch, n, right)`.
    """

    shape: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    left: int | None = None
    right: int | None = None

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(len(self.shape)) if axis not in (*self.rows, *self.columns))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.batch)

    @property
    def m(self) -> int:
        return math.prod(self.shape[axis] for axis in self.rows)

    @property
    def n(self) -> int:
        return math.prod(self.shape[axis] for axis in self.columns)

    @property
    def order(self) -> tuple[int, ...]:
        return (*self.batch, *self.rows, *self.columns)

    @property
    def reduced_shape(self) -> tuple[int, ...]:
        """The shape of `R`."""
        return (*self.batch_shape, self.left or self.m, self.right or self.n)

    def matrices(self, x: Array) -> Array:
        if self.order != tuple(range(x.ndim)):
            x = x.transpose(self.order)
        shape = (*self.batch_shape, self.m, self.n)
        return x if x.shape == shape else x.reshape(shape)

    def parameter(self, x: Array) -> Array:
        """The inverse of `matrices`."""
        shape = tuple(self.shape[axis] for axis in self.order)
        x = x if x.shape == shape else x.reshape(shape)
        if self.order == tuple(range(x.ndim)):
            return x
        return x.transpose(sorted(range(x.ndim), key=self.order.__getitem__))

    def project(self, x: Array, p: Array | None, q: Array | None, dtype: Any) -> Array:
        """`R = Pᴴ X Q` of a parameter or its gradient: factors in the dtype of `x`, sums in `dtype`."""
        matrices = self.matrices(x)
        product = lambda a, b: jnp.matmul(a.astype(x.dtype), b.astype(x.dtype), preferred_element_type=dtype)
        r = matrices if p is None else product(adjoint(p), matrices)
        return (r if q is None else product(r, q)).astype(dtype)

    def project_back(self, r: Array, p: Array | None, q: Array | None) -> Array:
        """`P R Qᴴ` in the parameter's shape and the dtype of `r`."""
        r = r if p is None else p.astype(r.dtype) @ r
        return self.parameter(r if q is None else r @ adjoint(q).astype(r.dtype))

    def specs(self, sharding: NamedSharding) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec, PartitionSpec]:
        """Given how the parameter is sharded: the specs of `P`, of `Q`, of `R` and of one number for each matrix."""
        spec = (*sharding.spec, *(None,) * (len(self.shape) - len(sharding.spec)))
        one = lambda axes: spec[axes[0]] if len(axes) == 1 else None
        batch, m, n = tuple(spec[axis] for axis in self.batch), one(self.rows), one(self.columns)
        reduced = (None if self.left else m, None if self.right else n)
        wrap = lambda *axes: PartitionSpec(*batch, *axes)
        return wrap(m, None), wrap(n, None), wrap(*reduced), wrap()


def layouts(
    params: PyTree, rank: Ranks, side: Side, dimension_numbers: PyTree | Callable, min_dim: int
) -> list[Layout | None]:
    """The layout of every leaf, `None` for those that are not projected, in the order of `jax.tree.leaves`.

    **Raises** `ValueError`, naming the parameter, for a rank below 1 or above the short side, overlapping axes, and
    trees of options that do not match the parameters.
    """
    if isinstance(rank, Tracer):
        raise ValueError(
            "rank must be known when compiling, got a traced number. Inside jit, inject_hyperparams needs "
            "static_args=('rank',) for its init."
        )
    leaves = jax.tree.leaves_with_path(params)
    found = [
        _matrices(path_name(path), leaf, dims, min_dim)
        for (path, leaf), dims in zip(leaves, _dimension_numbers(dimension_numbers, params, leaves), strict=True)
    ]
    if isinstance(rank, np.ndarray | jax.Array):  # as inject_hyperparams passes it
        rank = rank.item()
    shared = isinstance(rank, float) or _is_int(rank)
    if shared:
        ranks = [rank] * len(leaves)
        check_rank("rank", rank)
    elif callable(rank):
        named = zip(leaves, found, strict=True)
        ranks = [rank(path_name(path), x.shape) if layout else None for (path, x), layout in named]
    else:
        ranks = _matched("rank", rank, leaves, is_leaf=lambda x: x is None)
    result = []
    for (path, _), layout, each in zip(leaves, found, ranks, strict=True):
        if layout is not None and each is not None:
            result.append(_ranked(path_name(path), layout, each, side, shared))
        elif each is None or shared:
            result.append(None)
        else:
            raise ValueError(f"rank for {path_name(path)!r} must be None, since it is no matrix, got {each!r}.")
    short = [min(layout.m, layout.n) for layout in found if layout is not None]
    if shared and short and not any(result):
        raise ValueError(f"rank must be at most the short side of some matrix, {max(short)} at the most, got {rank}.")
    return result


def state_layouts(updates: PyTree, left: PyTree, right: PyTree, dimension_numbers: Any) -> list[Layout | None]:
    """As `layouts`, with sides and ranks read off the bases of a state."""
    leaves = jax.tree.leaves_with_path(updates)
    structure = jax.tree.structure(updates)
    found = []
    bases = zip(structure.flatten_up_to(left), structure.flatten_up_to(right), strict=True)
    dims = _dimension_numbers(dimension_numbers, updates, leaves)
    for (path, leaf), each, (p, q) in zip(leaves, dims, bases, strict=True):
        if is_masked(p) and is_masked(q):
            found.append(None)
            continue
        layout = _matrices(path_name(path), leaf, each, 2)
        assert layout is not None
        rank = lambda basis: None if is_masked(basis) else basis.shape[-1]
        found.append(dataclasses.replace(layout, left=rank(p), right=rank(q)))
    return found


def path_name(path: Sequence[Any]) -> str:
    """A parameter's name, as in `blocks.0.query.weight`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def adjoint(x: Array) -> Array:
    return jnp.conj(jnp.swapaxes(x, -1, -2))


def check_rank(name: str, rank: Any) -> None:
    if isinstance(rank, float):
        if not 0 < rank <= 1:
            raise ValueError(f"{name} must, as a fraction of the short side, be above 0 and at most 1, got {rank}.")
    elif not _is_int(rank):
        raise ValueError(f"{name} must be an int, a fraction of the short side or None, got {rank!r}.")
    elif operator.index(rank) < 1:
        raise ValueError(f"{name} must be at least 1, got {rank}.")


def _is_int(x: Any) -> bool:
    try:
        return not isinstance(x, bool) and operator.index(x) is not None
    except TypeError:
        return False


def _ranked(name: str, layout: Layout, rank: Any, side: Side, shared: bool) -> Layout | None:
    """The layout with its rank. A rank shared by all leaves those whole that are too small for it, as vectors are."""
    short = min(layout.m, layout.n)
    if not shared:
        check_rank(f"rank for {name!r}", rank)
    r = max(1, round(rank * short)) if isinstance(rank, float) else operator.index(rank)
    if r > short:
        if shared:
            return None
        raise ValueError(f"rank for {name!r} must be at most {short}, the short side of {layout.shape}, got {r}.")
    if side in ("short", "long"):
        left = (layout.m <= layout.n) == (side == "short")
    else:
        left = side != "right"
    both = side == "both"
    return dataclasses.replace(layout, left=r if left else None, right=r if both or not left else None)


def _matrices(name: str, leaf: Any, dims: GaLoreDimensionNumbers | None, min_dim: int) -> Layout | None:
    ndim = jnp.ndim(leaf)
    if dims is None or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return None
    if dims is _LAST_TWO and ndim < min_dim:
        return None
    tuples = [(axes,) if isinstance(axes, int) else tuple(axes) for axes in dims]
    for axis in (*tuples[0], *tuples[1]):
        if not -ndim <= axis < ndim:
            raise ValueError(f"weight_dimension_numbers for {name!r} name axis {axis}, but its shape is {leaf.shape}.")
    rows, columns = (tuple(axis % ndim for axis in axes) for axes in tuples)
    if len({*rows, *columns}) < len(rows) + len(columns) or not rows or not columns:
        raise ValueError(
            f"weight_dimension_numbers for {name!r} must name each axis once, and at least one axis for each side, "
            f"got reduction_axis={dims.reduction_axis}, output_axis={dims.output_axis} for shape {leaf.shape}."
        )
    return Layout(leaf.shape, rows, columns)


def _dimension_numbers(dims: Any, params: PyTree, leaves: list) -> list[GaLoreDimensionNumbers | None]:
    """By default the last two axes. One for all: for the leaves that have its axes, the last two of the others. A tree:
    `None` for what is not projected."""
    if dims is None:
        return [_LAST_TWO] * len(leaves)
    if isinstance(dims, GaLoreDimensionNumbers):
        axes = jax.tree.leaves(tuple(dims))
        needed = max(2, *(axis + 1 if axis >= 0 else -axis for axis in axes))
        return [dims if jnp.ndim(leaf) >= needed else _LAST_TWO for _, leaf in leaves]
    tree = dims(params) if callable(dims) else dims
    is_leaf = lambda x: x is None or isinstance(x, GaLoreDimensionNumbers)
    return _matched("weight_dimension_numbers", tree, leaves, is_leaf=is_leaf, missing=_LAST_TWO)


def _matched(option: str, tree: PyTree, leaves: list, is_leaf: Callable[[Any], bool], missing: Any = None) -> list:
    """The entry of `tree` for each leaf, by path; `missing` where it has none."""
    given = {path_name(path): value for path, value in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)}
    names = [path_name(path) for path, _ in leaves]
    unknown = [name for name, value in given.items() if value is not None and name not in names]
    if unknown:
        raise ValueError(f"{option} has an entry for {unknown[0]!r}, but there is no such parameter; there is {names}.")
    return [given.get(name, missing) for name in names]
