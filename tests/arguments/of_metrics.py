"""Calls of `traindyn.validate.metrics` that work, and what they rightly accept."""

import jax.numpy as jnp

from traindyn.validate import metrics

from .kinds import Call

P = jnp.array([0.2, 0.3, 0.5])
CURVE = jnp.array([3.0, 1.0, 2.0])

CALLS = {
    "validate.metrics.normalised_correlation": Call(metrics.normalised_correlation, {"a": P, "b": CURVE}),
    "validate.metrics.relative_error": Call(metrics.relative_error, {"observed": P, "predicted": CURVE}),
    "validate.metrics.stable_rank": Call(metrics.stable_rank, {"x": jnp.array([[1.0, 2.0], [0.5, 3.0]])}),
    "validate.metrics.entropy": Call(metrics.entropy, {"p": P}, bad={"p": [jnp.array([-0.5, 1.5]), 2 * P]}),
    "validate.metrics.attention_entropy": Call(metrics.attention_entropy, {"logits": CURVE, "x": P}),
    "validate.metrics.rebound": Call(metrics.rebound, {"curve": CURVE}),
    "validate.metrics.largest_rise": Call(metrics.largest_rise, {"curve": CURVE}),
    "validate.metrics.fit_order": Call(
        metrics.fit_order, {"parameter": jnp.array([1.0, 2.0, 4.0, 8.0]), "error": jnp.array([1.0, 2.1, 4.0, 8.1])}
    ),
}
