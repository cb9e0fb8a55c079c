"""One lane of a sweep: from its number to its variables and its status."""

from collections.abc import Callable, Iterator
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import ArrayLike, Int, PyTree

from .._checks import describe
from ..nets.train import Run
from ._chunks import fingerprint, text_fingerprint
from ._grid import Grid, Point, on_host
from ._labels import STATUS, Own

_HARMLESS = ("equinox._errors.", "equinox.debug.", "equinox.internal.", "diffrax.")  # modules of callbacks


class Lane(eqx.Module):
    """From the number of a lane to its variables, by `(name, name of the leading axis)`, and its status."""

    fn: Callable[[Point], PyTree]
    grid: Grid
    own: Own

    def __call__(self, index: Int[ArrayLike, ""]):
        found, stopped, diverged = [], jnp.zeros((), bool), jnp.zeros((), bool)
        special = lambda x: isinstance(x, dfx.Solution | Run)
        result = self.fn(self.grid.point(index))
        try:
            leaves = jax.tree.leaves_with_path(result, is_leaf=special)
        except ValueError as error:  # which JAX raises for keys that can't be sorted
            raise ValueError(f"fn must return dictionaries with keys of one type, got {describe(result)}.") from error
        for path, x in leaves:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if isinstance(x, dfx.Solution):
                stopped |= x.result != dfx.RESULTS.successful
                time = _join(name, "time")
                found += [*_named(x.ys, name, "y", time), ((time, time), x.ts)]
                if "num_steps" in x.stats:
                    found += [((_join(name, "num_steps"), ""), x.stats["num_steps"])]
            elif isinstance(x, Run):
                diverged |= x.diverged_at >= 0
                step = _join(name, "step")
                found += [*_named(x.observed, name, "observed", step), ((step, step), x.steps)]
                found += _named(x.model, _join(name, "model"), "", "")
                found += [((_join(name, "diverged_at"), ""), x.diverged_at)]
            elif eqx.is_array_like(x):
                found += [((name or "value", ""), jnp.asarray(x))]
        variables = dict(found)
        if not variables:
            raise ValueError("fn must return at least one array, got none.")
        names = [name for (name, _), _ in found]
        if len(set(names)) < len(names):
            raise ValueError(f"fn must return one variable of a name, got two: {max(names, key=names.count)!r}.")
        self.own.check(variables, [*self.grid.values])
        floats = [x for x in variables.values() if eqx.is_inexact_array(x)]
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]).all() if floats else True
        status = jnp.where(finite, STATUS["ok"], STATUS["not_finite"])
        status = jnp.where(diverged, STATUS["training_diverged"], status)
        return variables, jnp.where(stopped, STATUS["solve_stopped_early"], status).astype(jnp.int8)


def traced(lane: Lane) -> tuple[Callable, dict[str, str]]:
    """The lane, traced once and for all, and digests of its program and of the arrays that this takes from `fn`: those
    of a `Partial` or a module, and those that a closure holds."""
    index, is_array = jnp.zeros((), jnp.int32), lambda x: isinstance(x, jax.Array | np.ndarray)
    arrays, rest = eqx.partition(lane, is_array)  # the values of the axes stay out of the text
    program, shapes = jax.make_jaxpr(lambda a, i: eqx.combine(a, rest)(i), return_shape=True)(arrays, index)
    for name in _callbacks(program.jaxpr):
        raise ValueError(
            f"out must be None for a fn that calls back to Python, as it does with {name}: what that returns may have "
            "changed when the sweep goes on."
        )
    run, tree = jaxpr_as_fun(program), jax.tree.structure(shapes)
    text = jax.jit(lambda a, i: run(*jax.tree.leaves(a), i)).lower(arrays, index).as_text()
    held = [on_host(x) for x in [*jax.tree.leaves(arrays.fn), *program.consts]]
    same = {"fn": text_fingerprint(text), "arrays of fn": fingerprint(held)}
    return lambda index: jax.tree.unflatten(tree, run(*jax.tree.leaves(arrays), index)), same


def _callbacks(program: Jaxpr) -> Iterator[str]:
    """The callbacks that bring numbers into a program, but for those that raise errors or show progress."""
    for equation in program.eqns:
        if "callback" in equation.primitive.name and equation.outvars:
            called = getattr(equation.params.get("callback"), "callback_func", None)
            module = getattr(called, "__module__", None) or ""
            if not f"{module}.".startswith(_HARMLESS):
                yield f"{equation.primitive.name} of {getattr(called, '__name__', describe(called))}"
        inner = [
            x for value in equation.params.values() for x in (value if isinstance(value, tuple | list) else [value])
        ]
        for x in inner:
            if isinstance(x, Jaxpr | ClosedJaxpr):
                yield from _callbacks(x.jaxpr if isinstance(x, ClosedJaxpr) else x)


def _named(tree: PyTree, prefix: str, bare: str, dim: str) -> list[tuple[tuple[str, str], Any]]:
    """The arrays of a tree by their paths."""
    found = []
    for path, x in jax.tree.leaves_with_path(tree):
        if eqx.is_array(x):
            name = _join(prefix, jax.tree_util.keystr(path, simple=True, separator="."))
            found.append(((name or bare, dim), x))
    return found


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
