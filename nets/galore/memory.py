"""What GaLore costs in memory, and which parameters it is for."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .layout import Ranks, path_name
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


def galore_state_bytes(params: PyTree, rank: Ranks = 128, **options: Any) -> StateBytes:
    """The bytes of the state of `scale_by_galore(rank=rank, **options)` for `params`, arrays or their shapes
    (`jax.eval_shape`), exactly and without allocating any: `Σ batch·r·(k·sizeof P + 2·o·sizeof moment)` for what is
    projected with Adam, twice the size of what is not, and a few counters."""
    state = jax.eval_shape(scale_by_galore(rank=rank, **options).init, params)
    assert isinstance(state, GaLoreState)
    size = lambda leaves: sum(x.size * jnp.dtype(x.dtype).itemsize for x in leaves)
    inner = jax.tree.leaves(state.inner_state)
    arrays = [x for x in inner if x.ndim]
    bases, everything = jax.tree.leaves((state.left, state.right)), jax.tree.leaves(state)
    return StateBytes(size(bases), size(arrays), size(everything) - size(bases) - size(arrays))


def galore_labels(params: PyTree, predicate: Callable[[str, Any], bool] | Sequence[str]) -> PyTree:
    """Labels for `optax.partition`: `"galore"` for the matrices that `predicate` chooses by name and value, or whose
    name contains one of the given words; `"full"` for everything else.

        optax.partition({"galore": galore(0.01), "full": optax.adam(0.01)}, lambda p: galore_labels(p, ["blocks"]))

    **Raises** `ValueError` for a word that no matrix has in its name, and for a predicate that chooses none.
    """
    leaves = jax.tree.leaves_with_path(params)
    names = [path_name(path) for path, leaf in leaves if jnp.ndim(leaf) >= 2]
    words = () if callable(predicate) else tuple(predicate)
    for word in words:
        if leaves and not any(word in name for name in names):
            raise ValueError(f"predicate names {word!r}, which is in the name of no matrix; there is {names}.")
    chosen = predicate if callable(predicate) else (lambda name, leaf: any(word in name for word in words))
    label = lambda path, leaf: "galore" if jnp.ndim(leaf) >= 2 and chosen(path_name(path), leaf) else "full"
    labels = jax.tree.map_with_path(label, params)
    if names and "galore" not in jax.tree.leaves(labels):
        raise ValueError(f"predicate must choose at least one matrix, got none of {names}.")
    return labels
