"""Checks of the layers that language models are made of."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import as_float, check_shape, describe, indices


def check_tokens(tokens: Int[Array, " tokens"], most: int, embedding: eqx.nn.Embedding) -> None:
    """**Raises** `ValueError` unless there is a token, no more than `most`, and each has an embedding."""
    if not 1 <= len(tokens) <= most:
        raise ValueError(f"tokens must be at least 1 and at most {most}, the model's length, got {len(tokens)}.")
    indices("tokens", tokens, embedding.weight.shape[0])


def check_positions(x: Array) -> None:
    """**Raises** `ValueError` for a sequence of nothing."""
    if not x.shape[0]:
        raise ValueError(f"x must hold at least one position, got shape {x.shape}.")


def check_norm(name: str, layer: eqx.nn.LayerNorm | eqx.nn.RMSNorm, width: int) -> None:
    """**Raises** `ValueError` unless a norm's gains, and its biases if it has some, are real and `width` many."""
    if not isinstance(layer, eqx.nn.LayerNorm | eqx.nn.RMSNorm):
        raise ValueError(f"{name} must be a norm of equinox, got {describe(layer)}.")
    for part in ("weight", "bias"):
        if getattr(layer, part) is not None:
            check_shape(f"{name}.{part}", as_float(getattr(layer, part), f"{name}.{part}"), (width,))


def rows(name: str, layer: eqx.nn.Linear) -> int:
    """How many outputs a layer has. **Raises** `ValueError` unless it is a linear one."""
    if not isinstance(layer, eqx.nn.Linear) or jnp.ndim(layer.weight) != 2:
        raise ValueError(f"{name} must be a linear layer of equinox, got {describe(layer)}.")
    return layer.weight.shape[0]


def check_linear(name: str, layer: eqx.nn.Linear, shape: tuple[int, int]) -> None:
    """**Raises** `ValueError` unless a layer's matrix, and its bias if it has one, are real and of this shape."""
    rows(name, layer)
    for part, x, wanted in (("weight", layer.weight, shape), ("bias", layer.bias, shape[:1])):
        if x is not None:
            check_shape(f"{name}.{part}", as_float(x, f"{name}.{part}"), wanted)
