"""The folder of a run of `train`: which run it is, and its newest states with all that was recorded before."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jaxtyping import PyTree

from .._checks import concrete, describe
from .._files import check_writable, clear_parts, folder, locked, write
from ._checkpoints import Checkpoints, Damaged

Same = Mapping[str, list[str]]  # by argument, the form of its arrays and a digest of their values


class SavedRun:
    """The newest states of a run, each with its record so far. `save` and `newest` count steps from the start."""

    def __init__(self, checkpoints: Checkpoints, same: Same, first: int):
        self.checkpoints, self.first = checkpoints, first
        self.seal = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).digest()

    def save(self, done: int, state: PyTree, observed: PyTree) -> None:
        """**Raises** `OSError` where it can't be written."""
        self.checkpoints.save(self.first + done, _named(state, observed), [self.seal])

    def newest(self, steps: int, every: int, state: PyTree, observed: PyTree) -> tuple[int, PyTree, PyTree] | None:
        """How many steps the newest whole checkpoint has done, its state and its record; none if there is none.

        `state` and `observed`, one record, have their shapes. A checkpoint between two records serves a run that ends
        there and no longer one. A damaged one is set aside with a warning.

        **Raises** `ValueError` for a run that is longer than `steps`.
        """
        there = [step - self.first for step in self.checkpoints.steps()]
        if there and there[0] > steps:
            raise ValueError(f"steps must be at least {there[0]}, which the run in out has taken, got {steps}.")
        for done in there:
            if done != steps and done % every:
                continue
            records = 1 + done // every
            stacked = jax.tree.map(lambda x, n=records: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), observed)
            like = {name: _form(x) for name, x in _named(state, stacked).items()}
            try:
                found, (seal,) = self.checkpoints.load(self.first + done, like, seals=1)
                if seal != self.seal:
                    raise Damaged("it is of a run with other arguments")
            except Damaged as error:
                place = self.checkpoints.set_aside(self.first + done)
                warnings.warn(
                    f"The checkpoint of step {self.first + done} can't be used: {error}. It is now {place}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            return done, _filled(state, found, "state"), _filled(stacked, found, "observed")
        return None


@contextlib.contextmanager
def saved_run(out: Any, same: Same, first: int) -> Iterator[SavedRun]:
    """Holds the folder `out` for the run with these arguments, which starts at the step `first`.

    **Raises** `ValueError` for a folder that can't be written, is in use, or holds another run.
    """
    place = folder("out", out)
    file = place / "run.json"
    check_writable(place, file.name)
    with locked(place):
        clear_parts(place)
        checkpoints = Checkpoints(place / "checkpoints")
        try:
            if checkpoints.steps():
                _compare(file, same)
            else:
                write(file, json.dumps(same, indent=2) + "\n")
            yield SavedRun(checkpoints, same, first)
        finally:
            checkpoints.close()


def arguments(arrays: Mapping[str, PyTree], function: Callable, *given: PyTree) -> Same:
    """What tells one run from another: the arrays of its arguments by name, and `function(*given)` as a program."""
    same = {name: _told(tree) for name, tree in arrays.items()}
    return same | {"loss, data, optimiser and observe": ["", _program(function, *given)]}


def _compare(file: Path, same: Same) -> None:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError("it holds no arguments")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"out must hold a run of train or none, got checkpoints without {file}: {error}.") from error
    for name, new in same.items():
        old = before.get(name, ["", ""])
        if old != new:
            told = "got others" if old[0] == new[0] else f"{_short(old[0])}, got {_short(new[0])}"
            raise ValueError(f"{name} must be as in the run that {file.parent} holds, {told}: name another folder.")


def _short(text: str) -> str:
    return (text if len(text) <= 120 else f"{text[:117]}...") or "none"


def _told(tree: PyTree) -> list[str]:
    arrays = [(path, _bare(x)) for path, x in jax.tree.leaves_with_path(tree) if eqx.is_array_like(x)]
    forms = [f"{jax.tree_util.keystr(path)} {describe(x)}".strip() for path, x in arrays]
    return [", ".join(forms), _digest([x for _, x in arrays])]


def _program(function: Callable, *given: PyTree) -> str:
    """A digest of a function's program and of the arrays that closures in it hold."""
    arrays, rest = eqx.partition(given, eqx.is_array)
    outputs = lambda arrays: eqx.filter(function(*eqx.combine(arrays, rest)), eqx.is_array)
    program = jax.make_jaxpr(outputs)(arrays)
    if not concrete(program.consts):
        raise ValueError("out must be None under jit and vmap, where no state is known, got traced values.")
    text = jax.jit(jaxpr_as_fun(program)).lower(*jax.tree.leaves(arrays)).as_text()
    return _digest([np.frombuffer(text.encode(), np.uint8), *map(_bare, program.consts)])


def _digest(arrays: list[np.ndarray]) -> str:
    found = hashlib.sha256()
    for x in arrays:
        x = np.ascontiguousarray(x)
        found.update(f"{x.dtype} {x.shape} ".encode())
        found.update(x.reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:32]


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _bare(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if _is_key(x) else x)


def _named(state: PyTree, observed: PyTree) -> dict[str, Any]:
    """Arrays under names that any file system takes, keys as their numbers; those without entries are not written."""
    trees = {"state": eqx.filter(state, eqx.is_array), "observed": observed}
    return {
        f"{name}{i}": jax.random.key_data(x) if _is_key(x) else x
        for name, tree in trees.items()
        for i, x in enumerate(jax.tree.leaves(tree))
        if x.size
    }


def _form(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _filled(tree: PyTree, found: Mapping[str, Any], name: str) -> PyTree:
    """The tree with the arrays that were found in place of its own."""
    is_ours = lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)
    arrays, rest = eqx.partition(tree, is_ours)
    leaves, structure = jax.tree.flatten(arrays)

    def new(i: int, old: Any) -> Any:
        x = found[f"{name}{i}"] if old.size else jnp.zeros(old.shape, old.dtype)
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(old)) if _is_key(old) else x

    return eqx.combine(structure.unflatten([new(i, x) for i, x in enumerate(leaves)]), rest)
