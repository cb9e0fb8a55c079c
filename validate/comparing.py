"""A theory of your own against training, in one call: does the flow meet descent as the learning rate goes to zero?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial, keystr
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from .._checked import checked
from .._checks import check_callable, concrete, describe, integer, real
from ..dynamics import SolveError, default_tolerances, solve
from ..nets.trajectories import trajectories
from .comparison import Comparison
from .decide import Leaf, Measured, Predicted, decide

Number = Real[ArrayLike, ""]


@checked
def compare(
    flow: Callable[..., PyTree],
    y0: PyTree,
    model: Any,
    loss: Callable[[Any, Any], Float[Array, ""]],
    data: PyTree,
    *,
    learning_rates: Real[ArrayLike, " rates"] | Sequence[float],
    time: Number,
    observe: Callable[[Any], PyTree] = lambda model: model,
    image: Callable[[Any], PyTree] = lambda y: y,
    optimiser: Callable[[Any], optax.GradientTransformation] = optax.sgd,
    seeds: int = 1,
    key: Any = None,
    points: int = 8,
    within: Number = 0.02,
    wrong: Mapping[str, Callable[..., PyTree]] = {},
    sizes: Mapping[Any, tuple[Any, PyTree]] | None = None,
    size_order: Number = 1.0,
    trainable: PyTree = True,
    rtol: Number | None = None,
    atol: Number | None = None,
    batch_size: int | None = None,
) -> Comparison:
    """Solves `flow` from `y0`, trains `model` at several learning rates, and says whether the two agree at rate zero.

    At each learning rate η the signed difference `d = observe(model) − image(y)` is measured at common times
    `t = η × step`. It is `a + bη + cη² + …`: the finite rate causes b and c, and `a` is the theory's own error. What is
    reported is `max ‖a(t)‖ / D` with a 95 % interval, where D is the largest distance that the theory moves. The theory
    *holds* if the interval ends at `within` or below, is *refuted* if it begins above, and is else *undecided*.

    Source: the mean of SGD is smooth in the learning rate, so that several rates give its value at zero (Dieuleveut,
    Durmus and Bach, arXiv 1707.06386). The intervals are derived here and checked by the claims `richardson`.

    One program trains all rates and seeds. Memory holds `batch_size` models at a time, and all that `observe` returns.

    **Arguments:** `flow`, any `(t, y, args)`; `y0`, its state at time zero; `model`, `loss(model, batch)` and `data` as
    `train` takes them: the data are a fixed batch, or a sampler `key -> batch`.

    - `learning_rates`: three or more; with four, noisy differences are fitted to second order. Those that do not divide
      `time/points` are rounded to the nearest that do, and those that then are equal count once: `remarks` says so.
    - `time`: how long, as learning rate × steps. `points`: at how many times the two are compared.
    - `observe`, `image`: from the model and from the flow's state to one PyTree of the same structure and shapes. By
      default the model is the state: `compare(GradientFlow(f), model, model, …)`.
    - `optimiser`: learning rate → transformation, as `lambda rate: optax.sgd((1 − β) * rate, momentum=β)`.
    - `seeds`, `key`: how many runs a rate, with batches drawn from `key`. The interval is Student's over them. A fixed
      batch takes neither.
    - `wrong`: flows by label, from the same start, that must be refuted. One that blows up is.
    - `sizes`: `{size: (model, data)}`, three or more, with `model` and `data` None: what is left at rate zero is then
      extrapolated in `size^−size_order`. Sizes may be widths, lengths, numbers of samples.
    - `trainable`: as in `train`. `rtol`, `atol`: as in `solve`. `batch_size`: how many runs go side by side, by default
      32 on a CPU and 4096 elsewhere.

    **Raises** `ValueError` for bad arguments: fewer than three rates, observables of another structure than the flow's,
    a flow that does not move; `SolveError` for a flow that blows up before `time`. A rate at which a run diverges is
    left out, and `Comparison.remarks` says so.
    """
    check_callable("flow", flow)
    if not concrete((y0, model, data, sizes, key, learning_rates, time)):
        raise ValueError("compare must be called outside jit, vmap and grad: what it says depends on values.")
    horizon, within = (float(real(name, x, (), above=0)) for name, x in (("time", time), ("within", within)))
    points = integer("points", points, least=1)
    if not isinstance(wrong, Mapping):
        raise ValueError(f"wrong must map labels to flows, got {describe(wrong)}.")
    for label, other in wrong.items():
        check_callable(f"wrong[{label!r}]", other)
    entries = _entries(model, data, sizes)
    inverse = np.array([float(size) for size in entries]) ** -float(real("size_order", size_order, (), above=0))
    keys = _keys(entries, seeds, key)
    dtype = _precision(next(iter(entries.values()))[0])
    asked = np.sort(np.asarray(real("learning_rates", learning_rates, ("rates",), above=0), float))
    every = _steps_between(asked, horizon / points)
    between = np.unique(every)[::-1]  # those that are rounded to one are one
    if len(between) < 3:
        raise ValueError(
            f"learning_rates must have at least three rates to extrapolate from, got {asked.tolist()}, which "
            f"steps that divide time/points = {horizon / points:.4g} make {(horizon / points / between).tolist()}."
        )
    rates, times = horizon / points / between, horizon * np.arange(points + 1) / points
    for one, _ in entries.values():
        _check_observed(observe, one, image, y0)

    solved = _Solver(y0, image, times, rtol, atol)
    theory, *others = [solved(flow), *(solved(other, throw=False) for other in wrong.values())]
    if not theory.moved > 0:
        raise ValueError(f"flow must move by time = {horizon:.6g}, got a solution that stays at y0.")

    options = {"observe": Partial(_numbers, observe), "keys": keys, "trainable": trainable, "batch_size": batch_size}
    train = lambda one, batch: trajectories(one, loss, batch, optimiser, rates, between, points, **options)
    runs = [train(one, batch) for one, batch in entries.values()]
    seen = np.stack([_flat(run.observed, 3) for run in runs])
    paths = jax.tree.leaves_with_path(runs[0].observed)
    leaves = [Leaf(_name(path), x.shape[3:], jnp.iscomplexobj(x)) for path, x in paths]
    eps = float(jnp.finfo(dtype).eps)
    rounded = {a: horizon / points / n for a, n in zip(asked.tolist(), every.tolist(), strict=True)}
    measured = Measured(rounded, rates, times, seen, list(entries), inverse, keys is not None, leaves, eps)
    return decide(measured, theory, dict(zip(wrong, others, strict=True)), within)


def _entries(model: Any, data: PyTree, sizes: Any) -> dict[Any, tuple[Any, PyTree]]:
    """Models and data by size, largest first."""
    if sizes is None:
        if model is None:
            raise ValueError("model must be given, or sizes, which holds one for each size, got None.")
        return {1.0: (model, data)}
    if not isinstance(sizes, Mapping) or len(sizes) < 3:
        raise ValueError(f"sizes must map three sizes or more to (model, data), got {describe(sizes)}.")
    if model is not None or data is not None:
        raise ValueError("model and data must be None where sizes holds one of each for each size.")
    for size, pair in sizes.items():
        real("sizes", size, (), above=0)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f"sizes[{size}] must be (model, data), got {describe(pair)}.")
    return dict(sorted(sizes.items(), reverse=True))


def _keys(entries: Mapping[Any, tuple[Any, PyTree]], seeds: Any, key: Any) -> Any:
    seeds = integer("seeds", seeds, least=1)
    drawn = {callable(data) for _, data in entries.values()}
    if len(drawn) > 1:
        raise ValueError("sizes must have samplers for all sizes or for none.")
    if drawn == {False}:
        if seeds > 1 or key is not None:
            raise ValueError("seeds and key would be ignored: data is fixed, so that nothing is drawn.")
        return None
    if key is None:
        raise ValueError("key must be given: data is a sampler, which draws with it.")
    return jax.random.split(key, seeds)


def _precision(model: Any) -> Any:
    for leaf in jax.tree.leaves(model):
        if eqx.is_inexact_array(leaf):
            return jnp.finfo(leaf.dtype).dtype
    raise ValueError(f"model must hold at least one floating-point array, got {describe(model)}.")


def _steps_between(rates: np.ndarray, interval: float) -> np.ndarray:
    """How many steps of each rate lie between two times, to the nearest."""
    between = np.rint(interval / rates).astype(int)
    if between.min() < 1:
        raise ValueError(
            f"learning_rates must be at most time/points = {interval:.4g}, one step between two times, "
            f"got {rates[-1]:.4g}."
        )
    return between


def _arrays(tree: PyTree) -> PyTree:
    """The tree with its numbers and NumPy's arrays as JAX's."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float | complex | np.ndarray) else x, tree)


def _numbers(observe: Callable[[Any], PyTree], model: Any) -> PyTree:
    """What is compared of what `observe` or `image` returns: its floating-point arrays."""
    return eqx.filter(_arrays(observe(model)), eqx.is_inexact_array)


def _check_observed(observe: Callable, model: Any, image: Callable, y0: PyTree) -> None:
    check_callable("observe", observe)
    check_callable("image", image)
    seen, said = eqx.filter_eval_shape(_numbers, observe, model), eqx.filter_eval_shape(_numbers, image, _arrays(y0))
    kind = lambda x: "complex" if jnp.issubdtype(x.dtype, jnp.complexfloating) else "real"
    shapes = lambda tree: {keystr(path) or "it": (kind(x), x.shape) for path, x in jax.tree.leaves_with_path(tree)}
    if shapes(seen) != shapes(said) or jax.tree.structure(seen) != jax.tree.structure(said):
        raise ValueError(
            "observe must return what image returns for the flow's state, in structure, shapes and kind, "
            f"got {shapes(seen) or jax.tree.structure(seen)} from the model and {shapes(said)} from the flow."
        )
    if not shapes(seen):
        raise ValueError("observe must return at least one floating-point array, got none.")


def _name(path: Any) -> str:
    return keystr(path, simple=True, separator=".") or "y"


def _flat(tree: PyTree, leading: int) -> np.ndarray:
    """All numbers of a tree as real ones along one last axis, after the leading ones."""
    rows = []
    for leaf in jax.tree.leaves(tree):
        x: Any = np.asarray(leaf)
        x = x.reshape(*x.shape[:leading], -1).astype(np.result_type(x.dtype, float))
        rows += [x.real, x.imag] if np.iscomplexobj(x) else [x]
    return np.concatenate(rows, axis=-1)


class _Solver:
    """Solves flows from one start at the same times."""

    def __init__(self, y0: PyTree, image: Callable, times: np.ndarray, rtol: Any, atol: Any):
        self.y0, self.image = _arrays(y0), image
        leaf = next((x for x in jax.tree.leaves(self.y0) if eqx.is_inexact_array(x)), None)
        if leaf is None:
            raise ValueError(f"y0 must hold at least one floating-point array, got {describe(y0)}.")
        dtype = jnp.finfo(leaf.dtype).dtype
        usual = default_tolerances(dtype)
        self.rtol = jnp.asarray(usual[0] if rtol is None else real("rtol", rtol, (), above=0, below=1), dtype)
        self.atol = None if atol is None else jnp.asarray(real("atol", atol, (), least=0), dtype)
        self.times = jnp.asarray(times, dtype)

    def __call__(self, flow: Callable, throw: bool = True) -> Predicted:
        try:
            fine = solve(flow, self.y0, self.times, rtol=self.rtol, atol=self.atol, throw=throw)
        except SolveError as error:
            raise SolveError(f"flow must reach time = {float(self.times[-1]):.6g}: {error}", error.solution) from error
        coarse = solve(flow, self.y0, self.times, rtol=10 * self.rtol, atol=10 * fine.atol, throw=False)
        values, other = self._image(fine.ys), self._image(coarse.ys)
        with np.errstate(invalid="ignore"):  # both are infinite after a blow-up
            return Predicted(values, np.linalg.norm(values - other, axis=-1))

    def _image(self, ys: PyTree) -> np.ndarray:
        moving, rest = eqx.partition(ys, eqx.is_inexact_array)
        return _flat(_images(self.image, moving, rest), 1)


@eqx.filter_jit
def _images(image: Callable, moving: PyTree, rest: PyTree) -> PyTree:
    return jax.vmap(lambda one: _numbers(image, eqx.combine(one, rest)))(moving)
