"""What GaLore does with each parameter, what that costs in memory, and which parameters it is for."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..._checked import checked
from ..quantise import Quantised
from .layout import Layout, Ranks, check_leaves, choices
from .names import Where, chooser, path_name
from .refresh import GaLoreState
from .transform import scale_by_galore


class StateBytes(NamedTuple):
    """Bytes of a `GaLoreState`: the bases, the arrays of the base optimiser, and counters and bookkeeping."""

    bases: int
    inner: int
    counters: int

    @property
    def total(self) -> int:
        return sum(self)


class LeafSummary(NamedTuple):
    """What GaLore makes of one parameter.

    - `stack`, `rows`, `columns`: axes of `shape`; all empty for a parameter that is left whole.
    - `side`, `rank`: the sides that are projected, and to how many directions. `None` where it is left whole.
    - `bytes`: of its bases and of what the base optimiser keeps of it.
    - `whole`: why it is left whole; empty for one that is projected.
    """

    name: str
    shape: tuple[int, ...]
    stack: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    side: Literal["left", "right", "both"] | None
    rank: int | None
    bytes: int
    whole: str

    @property
    def matrix(self) -> str:
        """In words: `3 of 512 × 256`."""
        return Layout(self.shape, self.rows, self.columns).matrix if self.rows else ""


class GaLoreSummary(NamedTuple):
    """What GaLore makes of every parameter, and the bytes of its state; printed, a table."""

    leaves: tuple[LeafSummary, ...]
    state: StateBytes

    def __str__(self) -> str:
        head = ("leaf", "shape", "axes", "matrices", "side", "rank", "bytes", "")
        lines = [head, *map(_cells, self.leaves)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
        numbers = (5, 6)
        pad = lambda i, cell, width: cell.rjust(width) if i in numbers else cell.ljust(width)
        table = [
            "  ".join([*(pad(i, line[i], width) for i, width in enumerate(widths)), line[-1]]).rstrip()
            for line in lines
        ]
        projected = sum(not leaf.whole for leaf in self.leaves)
        bases, inner, counters = (f"{n:,}" for n in self.state)
        total = f"{projected} of {len(self.leaves)} leaves projected; state {self.state.total:,} bytes: "
        return "\n".join([*table, f"{total}bases {bases}, base optimiser {inner}, counters {counters}"])

    __repr__ = __str__


@checked
def galore_state_bytes(params: PyTree, rank: Ranks = 128, **options: Any) -> StateBytes:
    """The bytes of the state of `scale_by_galore(rank=rank, **options)` for `params`, arrays or their shapes
    (`jax.eval_shape`), exactly and without allocating any: `Σ batch·r·(k·sizeof P + 2·o·sizeof moment)` for what is
    projected with Adam, twice the size of what is not, and a few counters.

    **Raises** `ValueError` as `scale_by_galore` and its `init` do.
    """
    return _bytes(_state(params, rank, options))


@checked
def galore_summary(params: PyTree, rank: Ranks = 128, **options: Any) -> GaLoreSummary:
    """What `galore(..., rank, **options)` will make of each of `params`, arrays or their shapes: `print` shows a table
    of leaf, shape, axes (`stack | rows × columns`), the matrices that these make, side, rank, bytes, or why a leaf is
    left whole. `options` are those of `scale_by_galore`. Nothing is allocated.

    **Raises** `ValueError` as `scale_by_galore` and its `init` do.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of stacks that stay whole: the table says it
        state = _state(params, rank, options)
    given = {"side": "short", "weight_dimension_numbers": None, "min_dim": None} | options
    plan = choices(params, rank, given["side"], given["weight_dimension_numbers"], given["min_dim"] or 2)
    leaves, structure = jax.tree.flatten_with_path(params)
    sizes = _sizes(state.inner_state, [tuple(path) for path, _ in leaves])
    bases = zip(structure.flatten_up_to(state.left), structure.flatten_up_to(state.right), strict=True)
    rows = []
    for (path, leaf), (layout, whole, _), inner, base in zip(leaves, plan, sizes, bases, strict=True):
        axes = ((), (), ()) if layout is None else (layout.batch, layout.rows, layout.columns)
        size = inner + _size(jax.tree.leaves(base))
        rows.append(LeafSummary(path_name(path), tuple(leaf.shape), *axes, *_side(layout), size, whole))
    return GaLoreSummary(tuple(rows), _bytes(state))


@checked
def galore_labels(params: PyTree, where: Where) -> PyTree:
    """Labels for `optax.partition`: `"galore"` for the matrices that `where` chooses; `"full"` for everything else.

        optax.partition({"galore": galore(0.01), "full": optax.adam(0.01)}, lambda p: galore_labels(p, "attn|mlp"))

    `where` is a regular expression, searched in names such as `blocks.0.query.weight`; several, of which one must be
    found; or a function `(name, value) -> bool`. Any leaf of two axes counts as a matrix here.

    **Raises** `ValueError` for a pattern, or an alternative of plain words, that no matrix has in its name, and for a
    function that chooses none.
    """
    names = [path_name(path) for path, leaf in jax.tree.leaves_with_path(params) if jnp.ndim(leaf) >= 2]
    chosen = chooser(where, names, "matrix") if jax.tree.leaves(params) or callable(where) else lambda *_: False
    label = lambda path, leaf: "galore" if jnp.ndim(leaf) >= 2 and chosen(path_name(path), leaf) else "full"
    labels = jax.tree.map_with_path(label, params)
    if names and "galore" not in jax.tree.leaves(labels):
        raise ValueError(f"where must choose at least one matrix, got none of {len(names)}, such as {names[:3]}.")
    return labels


def _state(params: PyTree, rank: Ranks, options: dict[str, Any]) -> GaLoreState:
    check_leaves(jax.tree.leaves_with_path(params))
    state = jax.eval_shape(scale_by_galore(rank=rank, **options).init, params)
    assert isinstance(state, GaLoreState)
    return state


def _bytes(state: GaLoreState) -> StateBytes:
    inner = _size(x for x in jax.tree.leaves(state.inner_state) if x.ndim)
    bases, everything = _size(jax.tree.leaves((state.left, state.right))), _size(jax.tree.leaves(state))
    return StateBytes(bases, inner, everything - bases - inner)


def _size(arrays: Any) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays)


def _sizes(inner: PyTree, paths: Sequence[tuple]) -> list[int]:
    """The bytes of the arrays of a state that belong to each parameter: those whose path ends in the parameter's."""
    sizes = dict.fromkeys(paths, 0)
    for path, held in jax.tree.leaves_with_path(inner, is_leaf=lambda x: isinstance(x, Quantised)):
        ends = (tuple(path[i:]) for i in range(len(path) + 1))
        owner = next((end for end in ends if end in sizes), None)
        if owner is not None:
            sizes[owner] += _size(x for x in jax.tree.leaves(held) if x.ndim)
    return [sizes[path] for path in paths]


def _side(layout: Layout | None) -> tuple[Any, int | None]:
    if layout is None:
        return None, None
    side = "both" if layout.left and layout.right else "left" if layout.left else "right"
    return side, layout.left or layout.right


def _cells(leaf: LeafSummary) -> tuple[str, ...]:
    join = lambda axes: ",".join(map(str, axes))
    stack = f"{join(leaf.stack)} | " if leaf.stack else ""
    axes = f"{stack}{join(leaf.rows)} × {join(leaf.columns)}" if leaf.rows else ""
    rank = "" if leaf.rank is None else str(leaf.rank)
    why = f"whole: {leaf.whole}" if leaf.whole else ""
    return (leaf.name, str(leaf.shape), axes, leaf.matrix, leaf.side or "", rank, f"{leaf.bytes:,}", why)
