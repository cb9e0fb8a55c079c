"""Optimiser states in 8 bits: each block of a state's last axis is kept as codes and one scale."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt

from .._checked import checked
from .._checks import describe, integer
from ._precision import at_least_float32
from ._sharding import with_specs

DECADES = {
    True: 5.0,
    False: 7.0,
}  # spanned by a block with values of both signs, and of one: second moments are squares
_WEYL = (0x9E3779B9, 0xC13FA9A9, 0x91E10DA5)  # steps of the dither in time, along the last axis and over rows, over 2³²


@checked
class Quantised(eqx.Module):
    """An array in few bits, each block of its last axis relative to its largest entry, on a logarithmic scale.

    `codes` has the array's shape; 0 stands for zero. In a block of one sign the codes from 1 are magnitudes from
    10⁻⁷ to 1 times the block's `scale`; a negative scale says that the block has both signs: there the highest bit is
    the sign and the magnitudes begin at 10⁻⁵.
    """

    codes: UInt[Array, "*batch n"]
    scale: Float[Array, "*batch blocks"]
    block: int = eqx.field(static=True)

    def __check_init__(self):
        _check(8 * self.codes.dtype.itemsize, self.block)
        blocks = -(-self.codes.shape[-1] // self.block)
        if self.scale.shape[-1] != blocks:
            raise ValueError(f"scale must have {blocks} blocks, got shape {self.scale.shape}.")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape


@checked
def quantise(
    x: Float[Array, "*batch n"], bits: int = 8, block: int = 256, *, step: Int[Array, ""] | int = 0
) -> Quantised:
    """`x` in `bits` bits an entry, 8 or 16, and a scale of its own dtype for each `block` entries of the last axis.

    Rounding is dithered by a sequence that `step` moves on, so that an average that moves by less than one code at a
    time moves all the same; the error of an entry is at most one code, 6.6 % at 8 bits for one sign and 9.6 % for both,
    and averages out over steps. What is not zero does not become zero, for second moments are divided by. A block with
    an entry that is not finite becomes NaN.

    **Raises** `ValueError` for other `bits`, a `block` below 1, a negative `step`, and arrays that are not real.
    """
    _check(bits, block)
    if not isinstance(step, jax.Array):
        integer("step", step, least=0)
    encode = lambda x, step: _encoded(x, step, bits, block)
    return with_specs(encode, lambda sharding: quantised_specs(sharding, x.shape, block), x, x, step)


def dequantise(x: Any) -> Any:
    """The array that a `Quantised` stands for. Anything else is returned as it is, so that it maps over states."""
    if not isinstance(x, Quantised):
        return x
    return with_specs(_decoded, lambda sharding: sharding.spec, x.codes, x)


def _encoded(x: Array, step: Any, bits: int, block: int) -> Quantised:
    blocked = _blocks(x, block)
    largest, signed = jnp.max(jnp.abs(blocked), axis=-1), jnp.any(blocked < 0, axis=-1)
    scale, both = _along(largest, block, x.shape), _along(signed, block, x.shape)
    wide = at_least_float32(x.dtype)
    magnitude = jnp.abs(x).astype(wide) / jnp.where(scale > 0, scale, 1).astype(wide)
    span, levels = _span(both, bits, wide)
    # The quotient may underflow where x is not zero: it gets the least code.
    exact = levels * (1 + jnp.log10(jnp.maximum(magnitude, jnp.finfo(wide).tiny)) / span)
    level = 1 + jnp.clip(jnp.floor(exact + _dither(x.shape, step).astype(exact.dtype)), 0, levels)
    code = jnp.where((x != 0) & jnp.isfinite(scale), level + jnp.where(x < 0, 2.0 ** (bits - 1), 0), 0)
    return Quantised(code.astype(_dtype(bits)), jnp.where(signed, -largest, largest), block)


def _decoded(x: Quantised) -> Array:
    bits = 8 * x.codes.dtype.itemsize
    dtype = x.scale.dtype
    scale = _along(x.scale, x.block, x.shape).astype(at_least_float32(dtype))
    both = scale < 0
    code = x.codes.astype(scale.dtype)
    negative = both & (code >= 2.0 ** (bits - 1))
    level = jnp.where(negative, code - 2.0 ** (bits - 1), code)
    span, levels = _span(both, bits, scale.dtype)
    magnitude = jnp.abs(scale) * jnp.exp(math.log(10) * span * ((level - 1) / levels - 1))
    magnitude = jnp.maximum(magnitude, jnp.finfo(scale.dtype).tiny)  # or the least of a small block would be zero
    nothing = 0 * scale  # NaN in a block that was not finite, which must show
    return jnp.where(code > 0, jnp.where(negative, -magnitude, magnitude), nothing).astype(dtype)


class QuantisedState(NamedTuple):
    """The inner transform's state, in which large arrays are `Quantised`, and the number of updates so far."""

    count: Int[Array, ""]
    inner_state: PyTree


@checked
def quantize_state(
    inner: optax.GradientTransformation, bits: int = 8, block: int = 256, *, min_size: int = 4096
) -> optax.GradientTransformationExtraArgs:
    """Keeps the state of any optax transform in 8 bits: `quantize_state(optax.scale_by_adam())`, alone, in a chain, or
    as the base optimiser of GaLore.

    Floating-point arrays of at least `min_size` entries are quantised after each update and restored before the next
    (see `quantise`); smaller ones, norms and biases, are kept as they are.

    **Raises** `ValueError` for `bits` other than 8 and 16, a `block` below 1, and a negative `min_size`. Source: 8-bit
    optimizers with blockwise quantization (Dettmers et al., arXiv 2110.02861); codes and dither are ours.
    """
    _check(bits, block)
    integer("min_size", min_size, least=0)
    inner = optax.with_extra_args_support(inner)

    def quantised(state: PyTree, count: Int[Array, ""]) -> PyTree:
        large = lambda x: eqx.is_array(x) and jnp.issubdtype(x.dtype, jnp.floating) and x.ndim and x.size >= min_size
        return jax.tree.map(lambda x: quantise(x, bits, block, step=count) if large(x) else x, state)

    def init(params: PyTree) -> QuantisedState:
        count = jnp.zeros((), jnp.int32)
        return QuantisedState(count, quantised(inner.init(params), count))

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any):
        restored = jax.tree.map(dequantise, state.inner_state, is_leaf=lambda x: isinstance(x, Quantised))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes inside, whatever the caller's mode
            updates, new = inner.update(updates, restored, params, **extra_args)
        count = state.count + 1
        return updates, QuantisedState(count, quantised(new, count))

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def quantised_specs(sharding: NamedSharding, shape: tuple[int, ...], block: int) -> Quantised:
    """How the parts of a `Quantised` are sharded if its array is so: scales as the array, where that divides them."""
    if not isinstance(sharding, NamedSharding):
        raise ValueError(f"sharding must be a NamedSharding, got {describe(sharding)}.")
    integer("block", block, least=1)
    *batch, last = *sharding.spec, *(None,) * (len(shape) - len(sharding.spec))
    names = () if last is None else last if isinstance(last, tuple) else (last,)
    even = -(-shape[-1] // block) % math.prod(sharding.mesh.shape[name] for name in names) == 0
    scale = PartitionSpec(*batch, last if even else None)
    form = jax.tree.structure(Quantised(jnp.zeros(1, jnp.uint8), jnp.zeros(1), block))
    return jax.tree.unflatten(form, [sharding.spec, scale])


def _check(bits: int, block: int) -> None:
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, got {bits!r}.")
    integer("block", block, least=1)


def _dtype(bits: int) -> Any:
    return {8: jnp.uint8, 16: jnp.uint16}[bits]


def _dither(shape: tuple[int, ...], step: Int[Array, ""] | int) -> Float[Array, "..."]:
    """Numbers in [0, 1), evenly spread over any run of steps and over neighbouring entries, in exact arithmetic."""
    last = len(shape) - 1
    turns = jnp.full(shape, jnp.asarray(step).astype(jnp.uint32) * np.uint32(_WEYL[0]))
    for axis in range(len(shape)):
        turns += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(_WEYL[1 if axis == last else 2])
    return (turns >> 8).astype(jnp.float32) / 2**24


def _span(both: Array, bits: int, dtype: Any) -> tuple[Array, Array]:
    """The decades from the least magnitude to the largest, and the number of steps between them."""
    constant = lambda signed, one: jnp.where(both, jnp.asarray(signed, dtype), jnp.asarray(one, dtype))
    return constant(DECADES[True], DECADES[False]), constant(2 ** (bits - 1) - 2, 2**bits - 2)


def _blocks(x: Array, block: int) -> Array:
    """`(*batch, blocks, block)`, the last block filled up with zeros."""
    pad = -x.shape[-1] % block
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, pad)]) if pad else x
    return x.reshape(*x.shape[:-1], x.shape[-1] // block, block)


def _along(scale: Array, block: int, shape: tuple[int, ...]) -> Array:
    """One number a block, spread over the entries of the block."""
    return jnp.repeat(scale, block, axis=-1)[..., : shape[-1]]
