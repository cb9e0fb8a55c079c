"""Training at many learning rates at once, each read off at the same time `t = learning rate × step`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from .engine import init, step
from .train import train


def halving_rates(smallest: float, number: int) -> np.ndarray:
    """`number` learning rates, each twice the one before."""
    return smallest * 2.0 ** np.arange(number)


def at_common_time(
    rates: np.ndarray,
    steps: int,
    model: Any,
    loss: Callable,
    data: PyTree,
    observe: Callable,
    *,
    optimiser: Callable[[Any], optax.GradientTransformation] = optax.sgd,
    key: Key[Array, ""] | None = None,
) -> PyTree:
    """Trains at all `rates` (see `halving_rates`) at once, and observes each at the time `t = rates[0] × steps`.

    All lanes take `steps` steps, so that one compilation serves them, and each is read off at its own step number.
    """
    every = steps // 2 ** (len(rates) - 1)
    if every * 2 ** (len(rates) - 1) != steps:
        raise ValueError(f"steps must be a multiple of 2^(rates − 1) = {2 ** (len(rates) - 1)}, got {steps}.")

    def lane(rate):
        return train(model, loss, data, optimiser(rate), steps, key=key, observe=observe, every=every).observed

    seen = jax.vmap(lane)(jnp.asarray(rates))
    record = jnp.asarray([2 ** (len(rates) - 1 - i) for i in range(len(rates))])
    return jax.tree.map(lambda x: x[jnp.arange(len(rates)), record], seen)


def steps_to(time: ArrayLike, rate: Float[ArrayLike, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """How many steps of learning rate `rate` come nearest to `time`, at least one, and the time they reach."""
    rate = jnp.asarray(rate)
    number = jnp.maximum(jnp.round(jnp.asarray(time, rate.dtype) / rate), 1)
    return number.astype(int), number * rate


def descend(
    model: Any,
    loss: Callable[[Any, PyTree], Float[Array, ""]],
    data: PyTree,
    optimiser: optax.GradientTransformation,
    steps: Int[ArrayLike, ""],
) -> Any:
    """The model after `steps` updates on all of `data`. Unlike with `train` the number of steps may be traced, so that
    one compilation serves all learning rates up to a common time. A loss that is not finite ends the run there and
    leaves a model of NaN."""
    unfinished = lambda state: (state.diverged_at < 0) & (state.step < steps)
    # The model's other leaves stay outside the loop, which carries arrays alone.
    start = init(model, optimiser)
    update = lambda state: step(state._replace(kept=start.kept), loss, data, optimiser)._replace(kept=None)
    end = jax.lax.while_loop(unfinished, update, start._replace(kept=None))
    params = jax.tree.map(lambda p: jnp.where(end.diverged_at < 0, p, jnp.nan), end.params)
    return eqx.combine(params, start.kept)
