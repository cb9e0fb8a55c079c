"""How each parameter is seen as a stack of matrices, and which of their sides are projected."""

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree
from optax.contrib import GaLoreDimensionNumbers

from ..._checks import describe
from .flax import is_kernel, kernel_readings
from .names import is_function, is_masked, matched, path_name, plain_name

Side = Literal["short", "long", "left", "right", "both"]
Rank = int | float | None
Ranks = Rank | PyTree | Callable[[str, tuple[int, ...]], Rank]
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
    def short(self) -> int:
        return min(self.m, self.n)

    @property
    def matrix(self) -> str:
        """In words: `3 of 512 × 256`."""
        stack = "×".join(map(str, self.batch_shape))
        return f"{stack} of {self.m} × {self.n}" if stack else f"{self.m} × {self.n}"

    @property
    def order(self) -> tuple[int, ...]:
        return (*self.batch, *self.rows, *self.columns)

    @property
    def basis_shapes(self) -> list[tuple[int, ...] | None]:
        """The shapes of `P` and of `Q`."""
        sides = ((self.m, self.left), (self.n, self.right))
        return [None if rank is None else (*self.batch_shape, size, rank) for size, rank in sides]

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
        """`R = Pᴴ X Q` of a parameter or its gradient: factors in the dtype of `x`, or `dtype` where `Pᴴ X` may not fit
        it, sums in `dtype`."""
        matrices = self.matrices(x)
        product = lambda a, b, factors: jnp.matmul(a.astype(factors), b.astype(factors), preferred_element_type=dtype)
        r = matrices if p is None else product(adjoint(p), matrices, x.dtype)
        last = dtype if p is not None and short_range(x.dtype) else x.dtype
        return (r if q is None else product(r, q, last)).astype(dtype)

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


class Choice(NamedTuple):
    """What becomes of one parameter: its layout, or why it is left whole; `inert`: other axes would make a matrix that
    is large enough for the rank."""

    layout: Layout | None
    whole: str = ""
    inert: bool = False


class Unclear(NamedTuple):
    """A parameter whose axes can be read in several ways."""

    name: str
    readings: list[Layout]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.readings[0].shape

    @property
    def short(self) -> int:
        return max(x.short for x in self.readings)


def layouts(
    params: PyTree, rank: Ranks, side: Side, dimension_numbers: PyTree | Callable, min_dim: int
) -> list[Layout | None]:
    """The layout of every leaf, `None` for those that are not projected, in the order of `jax.tree.leaves`.

    **Raises** `ValueError` as `choices` does.
    """
    return [choice.layout for choice in choices(params, rank, side, dimension_numbers, min_dim)]


def choices(
    params: PyTree, rank: Ranks, side: Side, dimension_numbers: PyTree | Callable, min_dim: int
) -> list[Choice]:
    """What becomes of every leaf, in the order of `jax.tree.leaves`.

    **Raises** `ValueError`, naming the parameter, for a rank below 1 or above the short side, overlapping axes, trees
    of options that do not match the parameters, leaves that are no floating-point arrays, and kernels of Flax whose
    axes are not known.
    """
    leaves = jax.tree.leaves_with_path(params)
    check_leaves(leaves)
    if isinstance(dimension_numbers, GaLoreDimensionNumbers):
        _check_used(dimension_numbers, leaves)
    axes = _axes(dimension_numbers, params, leaves, min_dim, leaves)
    ranks, shared = _ranks(rank, params, leaves, axes)
    found, unclear, short = [], [], []
    for (path, _), each, r in zip(leaves, axes, ranks, strict=True):
        choice = _choice(path_name(path), each, r, side, shared)
        unclear += [each] if choice is None and isinstance(each, Unclear) else []
        short += [] if isinstance(each, str) else [each.short]
        found.append(choice)
    if unclear:
        raise ValueError(_unclear_message(unclear))
    if shared and short and not any(choice.layout for choice in found):
        raise ValueError(f"rank must be at most the short side of some matrix, {max(short)} at the most, got {rank}.")
    return found


def state_layouts(
    updates: PyTree, left: PyTree, right: PyTree, dimension_numbers: Any, everything: PyTree | None = None
) -> list[Layout | None]:
    """As `layouts`, with sides and ranks read off the bases of a state. `everything` is a tree of more leaves, by which
    the axes of those in `updates` may be known.

    **Raises** `ValueError` where updates and bases do not belong together.
    """
    leaves = jax.tree.leaves_with_path(updates)
    structure = jax.tree.structure(updates)
    try:
        bases = zip(structure.flatten_up_to(left), structure.flatten_up_to(right), strict=True)
    except ValueError as error:
        raise ValueError(f"updates must have the structure of the parameters at init: {error}") from error
    found = []
    axes = _axes(dimension_numbers, updates, leaves, 2, jax.tree.leaves_with_path(everything) or leaves)
    for (path, leaf), layout, (p, q) in zip(leaves, axes, bases, strict=True):
        if is_masked(p) and is_masked(q):
            found.append(None)
            continue
        if isinstance(layout, Unclear):
            raise ValueError(_unclear_message([layout]))
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(f"updates must be of floating point, got {describe(leaf)} for {path_name(path)!r}.")
        held = [basis for basis in (p, q) if not is_masked(basis)]
        if jnp.iscomplexobj(leaf) and not any(map(jnp.iscomplexobj, held)):
            raise ValueError(f"updates must be real, as parameters are, got {describe(leaf)} for {path_name(path)!r}.")
        shapes = [None if is_masked(basis) else basis.shape for basis in (p, q)]
        ranks = [None if shape is None else shape[-1] for shape in shapes]
        ranked = None if isinstance(layout, str) else dataclasses.replace(layout, left=ranks[0], right=ranks[1])
        if ranked is None or shapes != ranked.basis_shapes:
            raise ValueError(
                f"updates must have the shapes of the parameters at init, and options as there, got {describe(leaf)} "
                f"for {path_name(path)!r}, whose bases have the shapes {shapes}."
            )
        found.append(ranked)
    return found


def check_leaves(leaves: Sequence[tuple[Any, Any]]) -> None:
    """Raises `ValueError` unless all leaves are floating-point arrays, or their shapes."""
    for path, leaf in leaves:
        if not hasattr(leaf, "shape") or not jnp.issubdtype(getattr(leaf, "dtype", int), jnp.inexact):
            raise ValueError(
                f"params must hold floating-point arrays alone, got {describe(leaf)} at {path_name(path)!r}. Of an "
                "Equinox model take eqx.filter(model, eqx.is_inexact_array), of a Flax one nnx.state(model, nnx.Param)."
            )


def short_range(dtype: Any) -> bool:
    """Whether sums of large numbers leave the range of a dtype, as in float16, so that float32 must hold them."""
    return jnp.finfo(dtype).maxexp < jnp.finfo(jnp.float32).maxexp


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


def check_shared_rank(rank: Any) -> None:
    """Raises `ValueError` for one rank that can't be that of all leaves. Functions, trees and traced numbers pass."""
    rank = _number(rank)
    if rank is None or isinstance(rank, bool | str | complex):
        raise ValueError(f"rank must be an int, a fraction of the short side, a function or a tree, got {rank!r}.")
    if isinstance(rank, float) or _is_int(rank):
        check_rank("rank", rank)


def _ranks(rank: Any, params: PyTree, leaves: list, axes: list) -> tuple[list[Rank], bool]:
    """The rank of every leaf, and whether it is one for all."""
    if isinstance(rank, Tracer):
        raise ValueError(
            "rank must be known when compiling, got a traced number. Inside jit, inject_hyperparams needs "
            "static_args=('rank',) for its init."
        )
    rank = _number(rank)
    check_shared_rank(rank)
    if isinstance(rank, float) or _is_int(rank):
        return [rank] * len(leaves), True
    if is_function(rank, params):
        named = zip(leaves, axes, strict=True)
        return [None if isinstance(each, str) else rank(path_name(path), x.shape) for (path, x), each in named], False
    return matched("rank", rank, params, is_leaf=lambda x: x is None), False


def _number(rank: Any) -> Any:
    """As a Python number, where it is an array of one, as inject_hyperparams passes it."""
    is_one = isinstance(rank, np.generic | np.ndarray | jax.Array) and not isinstance(rank, Tracer) and rank.ndim == 0
    return rank.item() if is_one else rank


def _is_int(x: Any) -> bool:
    try:
        return not isinstance(x, bool) and operator.index(x) is not None
    except TypeError:
        return False


def _choice(name: str, matrices: "Layout | Unclear | str", rank: Any, side: Side, shared: bool) -> Choice | None:
    """`None` where it must be known which axes are meant."""
    if isinstance(matrices, str):
        if rank is not None and not shared:
            raise ValueError(f"rank for {name!r} must be None, since it is {matrices}, got {rank!r}.")
        return Choice(None, matrices)
    if rank is None:
        return Choice(None, "its rank is None")
    if not shared:
        check_rank(f"rank for {name!r}", rank)
    short = matrices.short
    if not isinstance(rank, float) and rank > short:
        if not shared:
            raise ValueError(
                f"rank for {name!r} must be at most {short}, the short side of {matrices.shape}, got {rank}."
            )
        size = matrices.matrix if isinstance(matrices, Layout) else matrices.shape
        return Choice(None, f"rank {rank} is above the short side of {size}", _would_fit(matrices.shape, rank))
    return _ranked(matrices, rank, side) if isinstance(matrices, Layout) else None


def _ranked(layout: Layout, rank: int | float, side: Side) -> Choice:
    r = max(1, round(rank * layout.short)) if isinstance(rank, float) else operator.index(rank)
    if side in ("short", "long"):
        left = (layout.m <= layout.n) == (side == "short")
    else:
        left = side != "right"
    both = side == "both"
    return Choice(dataclasses.replace(layout, left=r if left else None, right=r if both or not left else None))


def _would_fit(shape: tuple[int, ...], rank: int) -> bool:
    """Whether some way to make one matrix of all axes gives a short side of at least this rank."""
    return any(min(math.prod(shape[:i]), math.prod(shape[i:])) >= rank for i in range(1, len(shape)))


def _needed(dims: GaLoreDimensionNumbers) -> int:
    """How many axes a leaf must have."""
    return max(2, *(axis + 1 if axis >= 0 else -axis for side in _sides(dims) for axis in side))


def _sides(dims: GaLoreDimensionNumbers) -> list[tuple[int, ...]]:
    """The axes of the rows and of the columns. **Raises** `ValueError` unless they are integers."""
    sides: Any = [(axes,) if _is_int(axes) or not isinstance(axes, Iterable) else tuple(axes) for axes in dims]
    for axis in (*sides[0], *sides[1]):
        if not _is_int(axis):
            raise ValueError(f"weight_dimension_numbers must be integers or tuples of them, got {axis!r}.")
    return sides


def _check_used(dims: GaLoreDimensionNumbers, leaves: list) -> None:
    if leaves and all(jnp.ndim(leaf) < _needed(dims) for _, leaf in leaves):
        raise ValueError(f"weight_dimension_numbers would be ignored: {dims} name axes that no parameter has.")


def _axes(dims: Any, params: PyTree, leaves: list, min_dim: int, everything: list) -> list[Layout | Unclear | str]:
    """The matrices of every leaf, without ranks; a text where there are none, which says why.

    A tree says it for the leaves that it names. Of the others biases and norms are left whole, one for all holds for
    those that have its axes, kernels of Flax are read by what is beside them, and the last two axes make the rest.
    """
    one = dims if isinstance(dims, GaLoreDimensionNumbers) else None
    given: list[Any] = [_LAST_TWO] * len(leaves)
    if not (dims is None or isinstance(dims, GaLoreDimensionNumbers)):
        tree = dims(params) if is_function(dims, params) else dims
        is_leaf = lambda x: x is None or isinstance(x, GaLoreDimensionNumbers)
        given = matched("weight_dimension_numbers", tree, params, is_leaf=is_leaf, missing=_LAST_TWO)
    shapes = {plain_name(path): jnp.shape(x) for path, x in everything}

    def read(path: Sequence[Any], leaf: Any, each: Any) -> Layout | Unclear | str:
        name, role, ndim = path_name(path), plain_name(path).rpartition(".")[2], jnp.ndim(leaf)
        if each is None:
            return "left whole by weight_dimension_numbers"
        if not isinstance(each, GaLoreDimensionNumbers):
            raise ValueError(f"weight_dimension_numbers for {name!r} must be GaLoreDimensionNumbers, got {each!r}.")
        if each is not _LAST_TWO:
            return _matrices(name, leaf.shape, each)
        if ndim < 2 or role in ("bias", "scale"):
            return "no matrix" if ndim < 2 else f"no matrix but a {role}"
        if one is not None and ndim >= _needed(one):
            return _matrices(name, leaf.shape, one)
        if ndim < min_dim:
            return f"of {ndim} axes, and min_dim is {min_dim}"
        if ndim > 2 and is_kernel(path):
            return _kernel(path, leaf.shape, shapes)
        return _matrices(name, leaf.shape, _LAST_TWO)

    return [read(path, leaf, each) for (path, leaf), each in zip(leaves, given, strict=True)]


def _kernel(path: Sequence[Any], shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> Layout | Unclear:
    axes = tuple(range(len(shape)))
    readings = [
        Layout(shape, axes[stack : len(shape) - outputs], axes[len(shape) - outputs :])
        for stack, outputs in kernel_readings(path, shapes)
    ]
    return readings[0] if len(readings) == 1 else Unclear(path_name(path), readings)


def _unclear_message(unclear: list[Unclear]) -> str:
    first = unclear[0]
    forms = " or ".join(f"{x.matrix} by {_dimension_numbers(x)}" for x in first.readings)
    others = f", and for {', '.join(repr(x.name) for x in unclear[1:])}" if len(unclear) > 1 else ""
    return (
        f"weight_dimension_numbers must have an entry for {first.name!r}{others}: no bias nor other kernel tells "
        f"whether shape {first.shape} is {forms}. Pass {{{first.name!r}: one of these}}, or None to leave it whole."
    )


def _dimension_numbers(layout: Layout) -> str:
    axes = lambda x: x[0] if len(x) == 1 else x
    return f"GaLoreDimensionNumbers({axes(layout.rows)}, {axes(layout.columns)})"


def _matrices(name: str, shape: tuple[int, ...], dims: GaLoreDimensionNumbers) -> Layout:
    ndim = len(shape)
    tuples = _sides(dims)
    for axis in (*tuples[0], *tuples[1]):
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"weight_dimension_numbers for {name!r} name axis {axis}, but its shape is {shape}: they must lie from "
                f"{-ndim} to {ndim - 1}."
            )
    rows, columns = (tuple(axis % ndim for axis in axes) for axes in tuples)
    if len({*rows, *columns}) < len(rows) + len(columns) or not rows or not columns:
        raise ValueError(
            f"weight_dimension_numbers for {name!r} must name each axis once, and at least one axis for each side, "
            f"got reduction_axis={dims.reduction_axis}, output_axis={dims.output_axis} for shape {shape}."
        )
    return Layout(shape, rows, columns)
