"""Which axes of a Flax kernel are inputs and which outputs.

Flax's layers, NNX and linen alike, name their weight `kernel` and keep it as `(*stack, *inputs, *outputs)`: `stack` are
the axes that a scan or a batch of layers adds, and attention and convolutions have inputs or outputs of several axes.
The shape alone doesn't tell them apart: (8, 32, 256) may be eight matrices, or heads of one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.tree_util import DictKey

from .names import plain_name


class Reading(NamedTuple):
    """How many of a kernel's first axes are a stack, and how many of its last are outputs."""

    stack: int
    outputs: int


def is_kernel(path: Sequence[Any]) -> bool:
    """Whether a leaf is a kernel of Flax: the entry `kernel` of a dictionary, or of a module whose leaves are variables
    (of which `value` is the last key)."""
    variable = getattr(path[-1], "name", None) == "value" if path else False
    last = path[-2] if variable and len(path) > 1 else path[-1] if path else None
    named = getattr(last, "key", getattr(last, "name", None))
    return named == "kernel" and (variable or isinstance(last, DictKey))


def kernel_readings(path: Sequence[Any], shapes: Mapping[str, tuple[int, ...]]) -> list[Reading]:
    """The readings of a kernel that agree with the other parameters, by `plain_name` their shapes: with its bias, of
    shape `(*stack, *outputs)`, or else with the other kernels of an attention layer."""
    name = plain_name(path)
    shape, layer = shapes[name], name.rpartition(".")[0]
    bias = shapes.get(f"{layer}.bias" if layer else "bias")
    every = [Reading(s, f) for s in range(len(shape) - 1) for f in range(1, len(shape) - s)]
    if bias is not None:
        return [x for x in every if bias == (*shape[: x.stack], *shape[len(shape) - x.outputs :])] or every
    attention = _of_attention(layer, shape, shapes)
    return every if attention is None else [attention]


def _of_attention(layer: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> Reading | None:
    """`(inputs, heads, width)` of `query`, `key` and `value` and `(heads, width, outputs)` of `out` share the heads.
    Not so where all might be equal stacks."""
    parent, _, role = layer.rpartition(".")
    other = lambda name: shapes.get(f"{parent}.{name}.kernel" if parent else f"{name}.kernel")
    stack = len(shape) - 3
    if role in ("query", "key", "value") and (out := other("out")):
        one = out[:stack] == shape[:stack] and out[stack:-1] == shape[-2:] and out[:-2] != shape[:-2]
        return Reading(stack, 2) if one else None
    for inwards in filter(None, map(other, ("query", "key", "value") if role == "out" else ())):
        if inwards[:stack] == shape[:stack] and shape[stack:-1] == inwards[-2:] and inwards[:-2] != shape[:-2]:
            return Reading(stack, 1)
    return None
