"""Training the two-layer network on some pairs of a group, many runs in one program, with or without its dead nodes.

Sources: Composing Global Optimizers (Tian, arXiv 2410.01779), the settings of its experiments; Li2 (Tian, arXiv
2509.21519), sections 3 to 6, and its authors' code for what the text leaves open.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Real

from .._checked import checked
from .._checks import choice, describe, real
from .._pairs import Pairs, elements_of
from ._arguments import check_sizes, schedule, seed_numbers, training_dtype
from .engine import State, advance, check_end, init, record
from .pair_optimisers import OPTIMISERS, Optimiser
from .pairs import TwoLayer, accuracy, initial, loss, split_pairs, stacked, training_loss
from .train import train


class PairRuns(NamedTuple):
    """What `train_pairs` returns. All but `steps` has leading axes (fractions, learning_rates, weight_decays, seeds),
    what is recorded has `records` after them.

    The losses are `pairs.loss` at `steps`, on the pairs trained on and on those held out. `diverged_at`: as in `Run`.
    """

    model: TwoLayer
    steps: Int[Array, " records"]
    train_loss: Float[Array, "fractions learning_rates weight_decays seeds records"]
    test_loss: Float[Array, "fractions learning_rates weight_decays seeds records"]
    train_accuracy: Float[Array, "fractions learning_rates weight_decays seeds records"]
    test_accuracy: Float[Array, "fractions learning_rates weight_decays seeds records"]
    observed: PyTree
    diverged_at: Int[Array, "fractions learning_rates weight_decays seeds"]


@checked
def train_pairs(
    table: Int[ArrayLike, "order order"],
    *,
    fractions: Sequence[float],
    seeds: Sequence[int],
    learning_rates: Float[ArrayLike, " learning_rates"] | Sequence[float],
    weight_decays: Float[ArrayLike, " weight_decays"] | Sequence[float],
    nodes: int,
    steps: int,
    every: int | None = None,
    activation: Callable[[Array], Array] = jnp.square,
    fan_in: int | None = None,
    output_scale: Real[ArrayLike, ""] = 1.0,
    optimiser: str | Optimiser = "adam",
    observe: Callable[[TwoLayer, Pairs], PyTree] | None = None,
    batch_size: int | None = None,
    compact: bool = False,
    threshold: float | None = None,
    dtype: Any = jnp.float32,
) -> PairRuns:
    """Trains one network for each fraction, learning rate, weight decay and seed, as the papers do: full batches.

    Seed s splits the pairs by `split_pairs(table, fraction=…, seed=s)` and draws `initial` weights by
    `jax.random.key(s)`. The mean squared error of `training_loss` with weight decay λ is Li2's ridge problem at
    `η = nλ/2`, for n pairs. In flow time, step m stands at `t = learning rate × m`.

    One compiled program; other rates and seeds compile nothing. All samples are padded to the largest: fractions far
    apart are cheaper in calls of their own.

    - `every`: the steps between records, by default `steps`: the start and the end. Held-out pairs are looked at then
      and only then.
    - `activation`, `fan_in`, `output_scale`: as in `initial`. Composing's code has a `fan_in` of the order, Li2's of
      twice the order.
    - `optimiser`: a name in `OPTIMISERS`, or `(learning_rate, weight_decay) -> optax.GradientTransformation`.
    - `observe`: maps the model and the pairs trained on to any PyTree of arrays, recorded as well; see
      `grokking.stages`.
    - `batch_size`: how many runs go side by side. Default on CPU: 1 (0.8× the time of 12 at once for order ≥ 23, 512
      nodes; 1.4× for order 7, 32 nodes). Other devices: all at once (not measured).
    - `compact`: from step 1000, every 250 steps, drop dead nodes: those with `scale·rms(a)·rms(b)·rms(c) < threshold³`,
      by default 0.02³. All runs keep as many as the run with most, rounded up to a multiple of 32, the largest ones,
      with what the optimiser remembers of them. `observe` must then return arrays whose shape does not depend on the
      number of nodes.

    **Raises** `ValueError` for bad arguments, a `dtype` of float16 among them.
    """
    order, (steps, every), dtype = len(elements_of(table)), schedule(steps, every), training_dtype(dtype)
    check_sizes(nodes=nodes)
    seeds = seed_numbers(seeds)
    real("fractions", fractions, ("fractions",), above=0, below=1)
    real("learning_rates", learning_rates, ("learning_rates",))
    real("weight_decays", weight_decays, ("weight_decays",), least=0)
    rates, decays = (jnp.asarray(x, dtype) for x in (learning_rates, weight_decays))
    axes = {"fractions": fractions, "learning_rates": rates, "weight_decays": decays, "seeds": seeds}
    for name, axis in axes.items():
        if len(axis) < 1:
            raise ValueError(f"{name} must be a sequence of at least one entry, got {describe(axis)}.")
    if isinstance(optimiser, str):
        choice("optimiser", optimiser, tuple(OPTIMISERS))
    if batch_size is not None:
        check_sizes(batch_size=batch_size)
    if threshold is not None and not compact:
        raise ValueError(f"threshold would be ignored: no node is dropped without compact, got {threshold}.")
    threshold = 0.02 if threshold is None else float(real("threshold", threshold, (), least=0))

    sides = zip(*(split_pairs(table, fraction=p, seed=s) for p in fractions for s in seeds), strict=True)
    trained, held_out = map(stacked, sides)
    options = {"activation": activation, "fan_in": fan_in, "output_scale": output_scale, "dtype": dtype}
    models = [initial(order, nodes, **options, key=jax.random.key(s)) for s in seeds]
    shape = tuple(len(axis) for axis in axes.values())
    fraction, rate, decay, seed = np.indices(shape).reshape(4, -1)
    if batch_size is None:
        batch_size = 1 if jax.default_backend() == "cpu" else len(seed)
    make = OPTIMISERS[optimiser] if isinstance(optimiser, str) else optimiser
    which = jnp.asarray(fraction * len(seeds) + seed)
    runs = _Runs(trained, held_out, which, rates[rate], decays[decay], make, observe, batch_size)
    models = jax.tree.map(lambda *x: jnp.stack(x)[seed], *models)
    found = _in_pieces(runs, models, steps, every, threshold) if compact else _whole(runs, models, steps, every)
    model, seen, diverged_at = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)
    return PairRuns(model, jnp.arange(0, steps + 1, every), *seen, diverged_at=diverged_at)


class _Runs(eqx.Module):
    """What all runs share: their samples, and for each run which sample is its own, its rate and decay."""

    trained: Pairs
    held_out: Pairs
    which: Int[Array, " runs"]
    rate: Float[Array, " runs"]
    decay: Float[Array, " runs"]
    make: Optimiser
    observe: Callable[[TwoLayer, Pairs], PyTree] | None
    batch_size: int

    def each(self, f: Callable, of_run: PyTree) -> Any:
        """`f(of_run, optimiser, trained, held_out)` of each run, stacked."""

        def one(at):
            of_run, which, *rates = at
            sides = jax.tree.map(lambda x: x[which], (self.trained, self.held_out))
            return f(of_run, self.make(*rates), *sides)

        size = None if self.batch_size == 1 else self.batch_size
        return jax.lax.map(one, (of_run, self.which, self.rate, self.decay), batch_size=size)

    def watch(self, trained: Pairs, held_out: Pairs) -> Callable[[TwoLayer], PyTree]:
        def watch(model):
            scores = (f(model, side) for f in (loss, accuracy) for side in (trained, held_out))
            return *scores, None if self.observe is None else self.observe(model, trained)

        return watch


@eqx.filter_jit
def _whole(runs: _Runs, models: TwoLayer, steps: int, every: int) -> tuple[TwoLayer, PyTree, Array]:
    def one(model, optimiser, trained, held_out):
        options = {"trainable": model.trainable(), "observe": runs.watch(trained, held_out), "every": every}
        run = train(model, training_loss, trained, optimiser, steps, **options)
        return run.model, run.observed, run.diverged_at

    return runs.each(one, models)


# Compaction

_FIRST, _BETWEEN, _MULTIPLE = 1000, 250, 32


def _in_pieces(
    runs: _Runs, models: TwoLayer, steps: int, every: int, threshold: float
) -> tuple[TwoLayer, PyTree, Array]:
    """The same runs in pieces, between which nodes are dropped."""
    states = _start(runs, models)
    records = range(0, steps + 1, every)
    drops = range(_FIRST, steps + 1, _BETWEEN)
    seen, now = [], 0
    for stop in sorted({*records, *drops, steps}):
        if stop > now:
            states = _advance(runs, states, jnp.asarray(stop - now))
        now = stop
        if now in records:
            seen.append(_record(runs, states))
        if now in drops:
            states = _compacted(states, threshold)
    states = jax.vmap(check_end)(states)
    return states.model, jax.tree.map(lambda *x: jnp.stack(x, axis=1), *seen), states.diverged_at


@eqx.filter_jit
def _start(runs: _Runs, models: TwoLayer) -> State:
    return runs.each(lambda model, optimiser, *_: init(model, optimiser, trainable=model.trainable()), models)


@eqx.filter_jit
def _advance(runs: _Runs, states: State, number: Int[Array, ""]) -> State:
    def one(state, optimiser, trained, _):
        update = lambda _, state: advance(state, training_loss, trained, optimiser)[0]
        return jax.lax.fori_loop(0, number, update, state)

    return runs.each(one, states)


@eqx.filter_jit
def _record(runs: _Runs, states: State) -> PyTree:
    return runs.each(lambda state, _, *sides: record(state, runs.watch(*sides)), states)


def _compacted(states: State, threshold: float) -> State:
    """Keeps the n largest nodes of every run, in order; n is the largest number alive in any run, rounded up."""
    model = states.model
    rows = [np.sqrt(np.mean(np.square(x), axis=1)) for x in map(np.asarray, (model.a, model.b, model.c))]
    size = np.asarray(model.scale)[:, None] * np.prod(rows, axis=0)
    alive = int((size > threshold**3).sum(axis=1).max())
    nodes = max(-(-alive // _MULTIPLE), 1) * _MULTIPLE
    if nodes >= size.shape[1]:
        return states
    keep = np.sort(np.argsort(-size, axis=1, kind="stable")[:, :nodes], axis=1)[:, None]
    pick = lambda x: jnp.asarray(np.take_along_axis(np.asarray(x), keep, axis=2)) if x.ndim == 3 else x
    return jax.tree.map(pick, states)  # on the host: nothing to compile for each new number of nodes
