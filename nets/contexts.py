"""Contexts of one query, the samples of every one-block task, and the loss of networks that read them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._checked import checked
from .._checks import indices
from ._arguments import check_contexts, check_logits, check_some, inside


class Contexts(NamedTuple):
    """Samples of one block's task: token frequencies `x`, the `label` to predict, and the number of the `query`."""

    x: Float[Array, "samples tokens"]
    label: Int[Array, " samples"]
    query: Int[Array, " samples"]


@checked
def cross_entropy(model: Callable[[Array, Array], Array], batch: Contexts) -> Float[Array, ""]:
    """Mean cross-entropy of `model(x, query)` against the labels, in nats: of the block, or any network of contexts.

    **Raises** `ValueError` for no samples, outputs that are no vector, labels that the model has no output for, queries
    that it has no logits `z` of, and, for softmax attention, frequencies below zero.
    Inside `jit` such a label makes it NaN, and such a query is taken for the nearest there is.
    """
    check_some("batch", batch.x.shape[0])
    z = getattr(model, "z", None)
    if z is not None and jnp.ndim(z) == 2:
        counts = getattr(model, "attention", "softmax") == "softmax"
        check_contexts(batch.x, batch.query, z, counts=counts, of="batch.")
    logits = jax.vmap(lambda x, query: check_logits(model(x, query)))(batch.x, batch.query)
    indices("batch.label", batch.label, logits.shape[-1])
    label = inside(batch.label, logits.shape[-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))
