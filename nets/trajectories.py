"""Training at several learning rates and from several keys in one program, recorded at common times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ._arguments import check_data
from .engine import State, advance, check_end, init, record

Optimiser = Callable[[Any], optax.GradientTransformation]


class Trajectories(NamedTuple):
    """What `trajectories` returns.

    - `observed`: what `observe` returned, with leading axes `(rates, seeds, 1 + records)`; NaN after a divergence.
    - `diverged_at`, shape `(rates, seeds)`: the step whose loss was not finite, or −1.
    """

    observed: PyTree
    diverged_at: Int[Array, "rates seeds"]


def trajectories(
    model: Any,
    loss: Callable[[Any, PyTree], Float[Array, ""]],
    data: Callable[[Any], PyTree] | PyTree,
    optimiser: Optimiser,
    rates: Float[np.ndarray, " rates"],
    between: Int[np.ndarray, " rates"],
    records: int,
    *,
    observe: Callable[[Any], PyTree],
    keys: Key[Array, " seeds"] | None = None,
    trainable: PyTree = True,
    batch_size: int | None = None,
) -> Trajectories:
    """Trains `model` by `optimiser(rate)` at each of `rates`, and observes it at the start and `records` times
    more, each `between` steps after the last.

    One compiled program. Rates run one after another, each for as many steps as it needs; the seeds of a rate run side
    by side, `batch_size` at a time. `keys` draws the batches, one key a seed; without it `data` is fixed and there is
    one run a rate.

    Step n of a rate draws with the number `⌊n max(between)/between⌋`, so that at one time all rates see the same batch.
    This leaves each run's batches independent, and makes differences between rates less noisy. **Raises** `ValueError`
    for data that are neither a sampler nor arrays.
    """
    check_data(data, None if keys is None else keys[0])
    dtype = next(x.dtype for x in jax.tree.leaves(model) if eqx.is_inexact_array(x))
    dtype = jnp.finfo(dtype).dtype  # of complex parameters
    whole, part = np.divmod(between.max() / between, 1.0)
    if batch_size is None:
        batch_size = 32 if jax.default_backend() == "cpu" else 4096
    lanes = jnp.asarray(rates, dtype), jnp.asarray(whole, int), jnp.asarray(part), jnp.asarray(between)
    return Trajectories(*_run(model, loss, data, optimiser, lanes, records, keys, observe, trainable, batch_size))


@eqx.filter_jit
def _run(model, loss, data, optimiser, lanes, records, keys, observe, trainable, batch_size) -> tuple[PyTree, Array]:
    def at_rate(lane):
        rate, stride, part, number = lane
        make = optimiser(rate)
        start = init(model, make, trainable=trainable)
        whole = lambda state: state._replace(kept=start.kept)  # leaves that are no arrays stay outside the loop

        def run(key):
            def update(_, state: State) -> State:
                if key is None:
                    batch = data
                else:
                    # In two parts, so that no rounding makes two steps draw the same.
                    drawn = state.step * stride + jnp.floor(state.step.astype(part.dtype) * part).astype(int)
                    batch = data(jax.random.fold_in(key, drawn))
                return advance(whole(state), loss, batch, make)[0]._replace(kept=None)

            def block(state: State, _) -> tuple[State, PyTree]:
                state = jax.lax.fori_loop(0, number, update, state)
                return state, record(whole(check_end(state)), observe)

            first = start._replace(kept=None)
            end, seen = jax.lax.scan(block, first, length=records)
            seen = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), record(start, observe), seen)
            return seen, check_end(end).diverged_at

        if keys is None:
            return jax.tree.map(lambda x: x[None], run(None))
        return jax.lax.map(run, keys, batch_size=min(batch_size, len(keys)))

    return jax.lax.map(at_rate, lanes)
