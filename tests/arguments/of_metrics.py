"""Calls of `traindyn.validate.metrics` that work, and what they rightly accept."""

import jax.numpy as jnp

from traindyn.validate import metrics

from .kinds import Call

P = jnp.array([0.2, 0.3, 0.5])
NAN = float("nan")
TIMES = jnp.array([0.0, 1.0, 2.0])
CURVE = jnp.array([3.0, 1.0, 2.0])

CALLS = {
    "validate.metrics.normalised_correlation": Call(metrics.normalised_correlation, {"a": P, "b": CURVE}),
    "validate.metrics.relative_error": Call(metrics.relative_error, {"observed": P, "predicted": CURVE}),
    "validate.metrics.stable_rank": Call(metrics.stable_rank, {"x": jnp.array([[1.0, 2.0], [0.5, 3.0]])}),
    "validate.metrics.entropy": Call(metrics.entropy, {"p": P}, bad={"p": [jnp.array([-0.5, 1.5]), 2 * P]}),
    "validate.metrics.attention_entropy": Call(metrics.attention_entropy, {"logits": CURVE, "x": P}),
    "validate.metrics.rebound": Call(metrics.rebound, {"curve": CURVE}),
    "validate.metrics.largest_rise": Call(metrics.largest_rise, {"curve": CURVE}),
    "validate.metrics.crossing_time": Call(
        metrics.crossing_time,
        {"t": TIMES, "curve": CURVE, "level": 1.5},
        accepts={"curve": "NaN"},  # after the crossing
        bad={"t": [TIMES[::-1], TIMES * NAN], "level": [NAN, jnp.inf, jnp.ones(2)]},
    ),
    "validate.metrics.escape_time": Call(
        metrics.escape_time,
        {"t": TIMES, "curve": CURVE, "fraction": 0.5},
        bad={"t": [TIMES[::-1]], "fraction": [0.0, 1.0, NAN]},
    ),
    "validate.metrics.fit_order": Call(
        metrics.fit_order, {"parameter": jnp.array([1.0, 2.0, 4.0, 8.0]), "error": jnp.array([1.0, 2.1, 4.0, 8.1])}
    ),
}
