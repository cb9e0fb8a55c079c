"""Training at many learning rates at once, each read off at the same time `t = learning rate × step`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from ..nets import train


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
