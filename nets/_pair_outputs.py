"""What the two-layer network makes of pairs of elements: hidden nodes and outputs, of some pairs or of all at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_shape, concrete, indices
from .._pairs import Pairs

NEARLY_ALL = 0.85  # of the pairs of a group


def check_pairs(model: Any, pairs: Pairs) -> None:
    """**Raises** `ValueError` for pairs of a group of another order, elements outside it, where known, and no pair."""
    check_shape("pairs.table", pairs.table, (model.order, model.order))
    for name in ("first", "second", "label", "table"):
        indices(f"pairs.{name}", getattr(pairs, name), model.order)
    if pairs.held_out is not None:
        indices("pairs.held_out", pairs.held_out, model.order**2 + 1)
    if concrete(pairs.used) and not np.any(np.asarray(pairs.used)):
        raise ValueError("pairs.used must leave at least one pair, got none.")


def centred(model: Any) -> Float[Array, "order nodes"]:
    """P c, with the scale: the outputs of these weights have mean zero."""
    return model.scale * (model.c - jnp.mean(model.c, axis=0, keepdims=True))


def of_all(model: Any, c: Float[Array, "order nodes"]) -> Float[Array, "order order order"]:
    """The outputs for all pairs of the group, with c for the output layer and its scale."""
    order, nodes = c.shape
    hidden = model.activation(model.a[:, None] + model.b[None])  # rows of embeddings: no product with one-hot vectors
    return (hidden.reshape(order**2, nodes) @ c.T).reshape(order, order, order)


def hidden(model: Any, pairs: Pairs) -> Float[Array, "pairs nodes"]:
    """`σ(a_first + b_second)`.

    Rows are gathered, and recomputed in the backward pass: a step takes 0.80–0.95 of the time, because less memory is
    moved. With a one-hot product in place of the gradient's scatter it took 1.2 times as long, in place of both 1.5.
    """
    rows = jax.checkpoint(lambda a, b: model.activation(a[pairs.first] + b[pairs.second]))
    return rows(model.a, model.b)


def outputs(model: Any, pairs: Pairs) -> Float[Array, "pairs order"]:
    """The outputs less their mean, which changes neither loss nor accuracy. Of nearly all pairs they are formed for
    all, without a gather of hidden nodes."""
    c, order, number = centred(model), model.order, pairs.first.shape[0]
    if number < NEARLY_ALL * order**2:
        return hidden(model, pairs) @ c.T
    return of_all(model, c).reshape(order**2, order)[pairs.first * order + pairs.second]


def one_hot(model: Any, pairs: Pairs) -> Float[Array, "pairs order"]:
    """Y, zero at the padding."""
    hot = pairs.label[:, None] == jnp.arange(model.order, dtype=pairs.label.dtype)[None]
    return (hot & pairs.used[:, None]).astype(model.a.dtype)
