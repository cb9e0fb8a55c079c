"""The outputs of the two-layer network for all pairs at once, and their mean squared error."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def outputs(model: Any, c: Float[Array, "order nodes"]) -> Float[Array, "order order order"]:
    """The outputs for all pairs with c for the output layer and its scale."""
    order, nodes = c.shape
    hidden = model.activation(model.a[:, None] + model.b[None])  # rows of embeddings: no product with one-hot vectors
    return (hidden.reshape(order**2, nodes) @ c.T).reshape(order, order, order)


def centred(model: Any) -> Float[Array, "order nodes"]:
    """P c: the outputs of these weights have mean zero."""
    return model.scale * (model.c - jnp.mean(model.c, axis=0, keepdims=True))


def mean_square(centred: Float[Array, "order order order"], pairs: Any) -> Float[Array, ""]:
    """Of these outputs, less their means, against the labels of the pairs that are used."""
    order = centred.shape[0]
    hot = pairs.label[..., None] == jnp.arange(order, dtype=pairs.label.dtype)[None, None]
    gap = jnp.where(pairs.mask[..., None], centred - (hot.astype(centred.dtype) - 1 / order), 0)
    return jnp.vdot(gap, gap) / jnp.sum(pairs.mask, dtype=gap.dtype)
