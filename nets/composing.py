"""Training the two-layer network on all pairs of a group, many seeds at once, and the compaction of dead nodes.

Source: Composing Global Optimizers (Tian, arXiv 2410.01779), sections 3 and 6 and the settings of its experiments.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Real

from .._checked import checked
from .._checks import real
from ._accuracy import right
from ._arguments import check_rates, check_sizes, elements_of, schedule, seed_numbers, training_dtype
from ._pair_outputs import centred, mean_square, outputs
from .engine import State, advance, check_end, init, record
from .pairs import Pairs as Pairs
from .pairs import TwoLayer as TwoLayer
from .pairs import accuracy as accuracy
from .pairs import coupled_adam as coupled_adam
from .pairs import initial as initial
from .pairs import masked_loss as masked_loss
from .pairs import pairs as pairs
from .pairs import split as split
from .pairs import training_loss as training_loss
from .train import train


class SeedRuns(NamedTuple):
    """What `train_seeds` returns; everything but `steps` has a leading axis `seeds`.

    The losses are `masked_loss` at `steps`, on the pairs trained on and on those left out. `diverged_at`: as in `Run`.
    """

    model: TwoLayer
    steps: Int[Array, " records"]
    train_loss: Float[Array, "seeds records"]
    test_loss: Float[Array, "seeds records"]
    train_accuracy: Float[Array, "seeds records"]
    test_accuracy: Float[Array, "seeds records"]
    observed: PyTree
    diverged_at: Int[Array, " seeds"]


@checked
def train_seeds(
    table: Int[ArrayLike, "order order"],
    *,
    nodes: int = 512,
    weight_decay: Real[ArrayLike, ""],
    learning_rate: Real[ArrayLike, ""] = 0.01,
    steps: int = 10_000,
    train: float = 0.9,
    seeds: Sequence[int],
    every: int | None = None,
    observe: Callable[[TwoLayer], PyTree] = lambda model: None,
    compact: bool = False,
    threshold: float | None = None,
    dtype: Any = jnp.float32,
) -> SeedRuns:
    """Trains one network a seed on the table of a group, as the paper does: full batches, Adam with coupled L2.

    Seed s splits the pairs by `split(order, train=train, seed=s)` and draws `initial` weights by `jax.random.key(s)`.
    One compiled program, seed after seed: 0.6 of the time that `vmap` takes on a CPU.

    - `every`: the steps between records, by default `steps`: the start and the end.
    - `observe`: maps the model to any PyTree of arrays, recorded as well.
    - `compact`: every 250 steps from 1000 on, keep no more nodes than one of the seeds has alive, rounded up to a
      multiple of 32, moments of Adam included. Dead is a node of which the product of the root mean squares of its rows
      of a, b and c, times `scale`, lies below `threshold³`, by default 0.02³; the largest are kept. Most die
      within 1000 steps. With it `observe` must return arrays whose shape does not depend on the number of nodes.

    **Raises** `ValueError` for bad arguments, a `dtype` of float16 among them.
    """
    order, (steps, every), dtype = len(elements_of(table)), schedule(steps, every), training_dtype(dtype)
    check_sizes(nodes=nodes)
    seeds = seed_numbers(seeds)
    check_rates(learning_rate, weight_decay)
    if threshold is not None and not compact:
        raise ValueError(f"threshold would be ignored: no node is dropped without compact, got {threshold}.")
    threshold = 0.02 if threshold is None else float(real("threshold", threshold, (), least=0))
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    models = stack([initial(order, nodes, dtype=dtype, key=jax.random.key(s)) for s in seeds])
    data = stack([pairs(table, split(order, train=train, seed=s)) for s in seeds])
    rates = (jnp.asarray(learning_rate, dtype), jnp.asarray(weight_decay, dtype))
    if compact:
        return _compacting(models, data, rates, observe, steps, every, threshold)
    run = _run_lanes(models, data, rates, observe, steps, every)
    return SeedRuns(run.model, run.steps[0], *run.observed, diverged_at=run.diverged_at)


def _watch(observe: Callable, data: Pairs) -> Callable[[TwoLayer], PyTree]:
    """What is recorded: losses and accuracies from the outputs formed once, and what the caller asks for."""
    rest = data._replace(mask=~data.mask)

    def watch(model):
        seen = outputs(model, centred(model))
        return (
            *(mean_square(seen, p) for p in (data, rest)),
            *(right(seen, p.label, p.mask) for p in (data, rest)),
            observe(model),
        )

    return watch


@eqx.filter_jit
def _run_lanes(models, data, rates, observe, steps, every):
    def lane(at):
        model, data = at
        kept = model.trainable()
        watch = _watch(observe, data)
        return train(
            model, training_loss, data, coupled_adam(*rates), steps, trainable=kept, observe=watch, every=every
        )

    return jax.lax.map(lane, (models, data))


# Compaction

_FIRST, _BETWEEN, _MULTIPLE = 1000, 250, 32


def _compacting(models, data, rates, observe, steps, every, threshold) -> SeedRuns:
    """The same run in pieces, between which nodes are dropped."""
    start = lambda model: init(model, coupled_adam(*rates), trainable=model.trainable())
    state = jax.vmap(start)(models)
    records = range(0, steps + 1, every)
    drops = range(_FIRST, steps + 1, _BETWEEN)
    seen, now = [], 0
    for stop in sorted({*records, *drops, steps}):
        if stop > now:
            state = _advance(state, data, rates, stop - now)
        now = stop
        if now in records:
            seen.append(_record(state, data, observe))
        if now in drops:
            state = _compacted(state, threshold)
    state = jax.vmap(check_end)(state)
    observed = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *seen)
    return SeedRuns(state.model, jnp.asarray(records), *observed, diverged_at=state.diverged_at)


@eqx.filter_jit
def _advance(state, data, rates, number):
    def lane(at):
        state, data = at
        update = lambda _, state: advance(state, training_loss, data, coupled_adam(*rates))[0]
        return jax.lax.fori_loop(0, number, update, state)

    return jax.lax.map(lane, (state, data))


@eqx.filter_jit
def _record(state, data, observe):
    return jax.lax.map(lambda at: record(at[0], _watch(observe, at[1])), (state, data))


def _compacted(state: State, threshold: float) -> State:
    """The nodes alive, of the seed that has most; of the others as many, the largest, in the order that they had."""
    model = state.model
    rows = [np.sqrt(np.mean(np.square(x), axis=1)) for x in map(np.asarray, (model.a, model.b, model.c))]
    size = np.asarray(model.scale)[:, None] * np.prod(rows, axis=0)
    alive = int((size > threshold**3).sum(axis=1).max())
    nodes = max(-(-alive // _MULTIPLE), 1) * _MULTIPLE
    if nodes >= size.shape[1]:
        return state
    keep = np.sort(np.argsort(-size, axis=1, kind="stable")[:, :nodes], axis=1)[:, None]
    pick = lambda x: jnp.asarray(np.take_along_axis(np.asarray(x), keep, axis=2)) if x.ndim == 3 else x
    return jax.tree.map(pick, state)  # on the host: nothing to compile for each new number of nodes
