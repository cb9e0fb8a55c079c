"""Which keys a cache keeps when it has room for fewer than there are."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Int, Real

from .._checked import checked
from .._checks import concrete, describe, integer


@checked
def keep(
    scores: Real[Array, "*batch positions"] | Bool[Array, "*batch positions"],
    budget: Int[ArrayLike, ""],
    *,
    recent: int = 0,
) -> Bool[Array, "*batch positions"]:
    """Which positions stay: the last `recent` ones, then those of the highest scores, `budget` in all.

    | policy | call |
    |---|---|
    | attention score (heavy hitters) | `keep(scores, budget)`, or half of the budget `recent` |
    | recency | `keep(scores, budget, recent=budget)`, or with the position as score |
    | random | `keep(jax.random.uniform(key, scores.shape), budget)` |
    | lowest score | `keep(-scores, budget)` |

    Equal scores keep the earlier position. A budget of all positions or more keeps them all. It may be traced, for a
    `vmap` over budgets. **Raises** `ValueError` for a budget below one, `recent` outside `0 … budget`, and scores that
    are NaN, where known. Inside `jit` NaN is the lowest score.

    Source: the policy of H2O (arXiv 2306.14048), for one query.
    """
    positions = scores.shape[-1]
    room = positions if isinstance(budget, Tracer) else integer("budget", budget, least=1)
    if not 0 <= recent <= room:
        raise ValueError(f"recent must lie between 0 and budget = {budget}, got {recent}.")
    if concrete(scores) and np.isnan(np.asarray(scores)).any():
        raise ValueError(f"scores must be numbers, none NaN, got {describe(scores)}.")
    last = jnp.broadcast_to(jnp.arange(positions) >= positions - recent, scores.shape)
    # By place rather than by threshold, so that equal scores do not break the budget. Of integers the complement turns
    # the order round: the negative wraps.
    falling = -scores if jnp.issubdtype(scores.dtype, jnp.floating) else ~scores
    by_score = jnp.argsort(falling, axis=-1, stable=True)
    first = jnp.take_along_axis(last, by_score, axis=-1)
    order = jnp.take_along_axis(by_score, jnp.argsort(~first, axis=-1, stable=True), axis=-1)
    place = jnp.argsort(order, axis=-1)
    return place < budget
