"""LLaMA-style language models at the sizes of the GaLore paper, with layers as separate leaves or stacked."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checked import checked
from .._checks import check_shape
from ._arguments import check_sizes, floating
from ._layers import check_linear, check_norm, check_positions, check_tokens, rows
from ._precision import at_least_float32
from .train import AnyKey

_EPSILON, _BASE, _SCALE = 1e-6, 10_000.0, 0.02  # of the norms, of the rotary angles, of the initial weights
_PORTION = 2**26  # numbers drawn at a time


@checked
@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The sizes of a `Llama`.

    - `vocabulary`: number of tokens; `width`: of the residual stream; `hidden`: of the SwiGLU layer; `layers`.
    - `heads`: of the queries, each `width/heads` wide; `kv_heads`: of keys and values, by default as many. Fewer are
      shared by groups of `heads/kv_heads` queries (grouped-query attention).
    - `tied`: decode with the embeddings, rather than with a head of their own; `length`: of the longest context.

    **Raises** `ValueError` for sizes below one, a width that `heads` does not divide into parts of even size (rotary
    positions turn pairs), and heads that `kv_heads` does not divide.
    """

    vocabulary: int = 32_000
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int | None = None
    tied: bool = False
    length: int = 256

    def __post_init__(self):
        names = ("vocabulary", "width", "hidden", "layers", "heads", "length")
        check_sizes(**{name: getattr(self, name) for name in names})
        if self.kv_heads is not None:
            check_sizes(kv_heads=self.kv_heads)
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 × heads, got width={self.width}, heads={self.heads}.")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got heads={self.heads}, kv_heads={self.kv_heads}.")


CONFIGS = {
    "60M": LlamaConfig(width=512, hidden=1376, layers=8, heads=8),
    "130M": LlamaConfig(width=768, hidden=2048, layers=12, heads=12),
    "350M": LlamaConfig(width=1024, hidden=2736, layers=24, heads=16),
    "1B": LlamaConfig(width=2048, hidden=5461, layers=24, heads=32),
    "7B": LlamaConfig(width=4096, hidden=11_008, layers=32, heads=32),
}
"""Table 5 of arXiv 2403.03507, with 32 heads and 24 layers for 1B: print has these two columns swapped there."""


@checked
class Block(eqx.Module):
    """One layer of a `Llama`: `x ← x + attention(norm(x))`, then `x ← x + down(silu(gate(z)) ∘ up(z))`, `z = norm(x)`.

    Weights have shape `(outputs, inputs)` and no biases; those of a stacked block have a leading axis `layers`.
    """

    attention_norm: eqx.nn.RMSNorm
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    output: eqx.nn.Linear
    hidden_norm: eqx.nn.RMSNorm
    gate: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    head_width: int = eqx.field(static=True)

    def __check_init__(self):
        check_sizes(head_width=self.head_width)
        width, hidden, shared = (rows(name, getattr(self, name)) for name in ("output", "gate", "key"))
        if width % self.head_width or shared % self.head_width:
            raise ValueError(
                f"head_width must divide the widths of queries and keys, {width} and {shared}, got {self.head_width}."
            )
        narrow, wide = ("query", "output"), ("gate", "up")
        shapes = dict.fromkeys(narrow, (width, width)) | dict.fromkeys(wide, (hidden, width))
        for name, shape in (
            shapes | {"key": (shared, width), "value": (shared, width), "down": (width, hidden)}
        ).items():
            check_linear(name, getattr(self, name), shape)
        check_norm("attention_norm", self.attention_norm, width)
        check_norm("hidden_norm", self.hidden_norm, width)

    @checked
    def __call__(self, x: Float[Array, "length width"]) -> Float[Array, "length width"]:
        """The layer's output at each position, which sees those up to its own. **Raises** `ValueError` for a stacked
        block, which is several layers, and for no position."""
        if self.output.weight.ndim != 2:
            raise ValueError(
                f"block must be one layer, got a stack of {len(self.output.weight)}: scan over it, or take layer i by "
                "jax.tree.map(lambda x: x[i], block)."
            )
        check_shape("x", x, ("length", *self.attention_norm.shape))
        check_positions(x)
        y = jax.vmap(self.attention_norm)(x)
        q, k, v = (
            jax.vmap(part)(y).reshape(len(x), -1, self.head_width) for part in (self.query, self.key, self.value)
        )
        y = _attention(rotate(q), rotate(k), v)
        x = x + jax.vmap(self.output)(y.reshape(len(x), -1))
        z = jax.vmap(self.hidden_norm)(x)
        return x + jax.vmap(self.down)(jax.nn.silu(jax.vmap(self.gate)(z)) * jax.vmap(self.up)(z))


@checked
class Llama(eqx.Module):
    """A decoder in the style of LLaMA over tokens `0 … vocabulary − 1`. It returns the next token's logits everywhere.

    Embeddings; in each layer causal attention with rotary positions and a SwiGLU layer, each after an RMSNorm and
    added to the stream (see `Block`); a last RMSNorm; a linear head, or the embeddings where tied. No biases, no
    dropout.

    **Initial values:** matrices `N(0, 0.02²)`, norms one. A stacked model holds the same numbers as a separate one.

    **Dtypes:** the model computes in that of its weights; norms, rotations, softmax and logits in float32 at least.

    Source: Touvron et al., arXiv 2302.13971; sizes from Zhao et al., arXiv 2403.03507, Table 5 (`CONFIGS`).
    """

    embedding: eqx.nn.Embedding
    blocks: tuple[Block, ...] | Block
    last_norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear | None
    length: int = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self, config: LlamaConfig, *, stacked: bool = False, remat: bool = False, dtype: Any = None, key: AnyKey
    ):
        """`stacked`: the layers in one block with a leading axis, scanned, which compiles in a time that does not grow
        with their number; otherwise each layer has leaves of its own, so that a step that donates them can use up each
        gradient as it comes. `remat`: recompute each layer on the way back rather than keep what is inside it."""
        dtype = jnp.dtype(floating(dtype))
        parts = _filled(eqx.filter_eval_shape(_parts, config, dtype, key), key)
        self.embedding, self.last_norm, self.head = parts["embedding"], parts["last_norm"], parts["head"]
        self.blocks = parts["blocks"] if stacked else _unstacked(parts["blocks"])
        self.length, self.remat = config.length, remat

    @checked
    def __call__(
        self, tokens: Int[Array, " length"], *, key: AnyKey | None = None
    ) -> Float[Array, "length vocabulary"]:
        """The logits of the next token after each of `tokens`. `key` has no effect: there is no dropout.

        **Raises** `ValueError` for more tokens than the model's `length`, none, or tokens that are not of its
        vocabulary. Inside `jit` one beyond it is taken for the last.
        """
        check_tokens(tokens, self.length, self.embedding)
        x = jax.vmap(self.embedding)(tokens)

        step = lambda x, block: (block(x), None)
        if self.remat:  # inside a scan nothing can merge the second computation with the first
            step = jax.checkpoint(step, prevent_cse=not isinstance(self.blocks, Block))
        if isinstance(self.blocks, Block):
            x, _ = jax.lax.scan(step, x, self.blocks)
        else:
            for block in self.blocks:
                x, _ = step(x, block)
        x = jax.vmap(self.last_norm)(x)
        decoder = self.embedding.weight if self.head is None else self.head.weight
        return (x @ decoder.T).astype(at_least_float32(x.dtype))


@checked
def rotate(x: Float[Array, "length heads width"]) -> Float[Array, "length heads width"]:
    """Rotary positions: the pair `(x_i, x_{i + width/2})` at position `p` turns by the angle `p · 10000^(−2i/width)`.

    The dot product of two rotated vectors depends on their positions by the difference alone. Angles are exact in
    float64 on the host; the turn is made in float32 at least.

    Source: Su et al., arXiv 2104.09864, with the pairs half a head apart as in the published LLaMA weights.
    """
    length, _, width = x.shape
    if width % 2:
        raise ValueError(f"x must have an even width, whose halves turn in pairs, got shape {x.shape}.")
    angle = np.arange(length)[:, None, None] * _BASE ** (-np.arange(0, width, 2) / width)
    dtype = at_least_float32(x.dtype)
    cos, sin = jnp.asarray(np.cos(angle), dtype), jnp.asarray(np.sin(angle), dtype)
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _attention(
    q: Float[Array, "length heads width"],
    k: Float[Array, "length kv_heads width"],
    v: Float[Array, "length kv_heads width"],
) -> Float[Array, "length heads width"]:
    """Each position's mean of `v` up to its own, weighted by `softmax(q kᵀ/√width)`; neighbouring heads share `k, v`.

    In einsums of our own: `jax.nn.dot_product_attention` cannot be differentiated in bfloat16 under strict dtypes.
    """
    length, heads, width = q.shape
    q = q.reshape(length, k.shape[1], -1, width)
    logits = jnp.einsum("qkgc,skc->kgqs", q, k).astype(at_least_float32(q.dtype)) / math.sqrt(width)
    causal = np.tril(np.ones((1, 1, length, length), bool))
    weights = jax.nn.softmax(jnp.where(causal, logits, -jnp.inf)).astype(v.dtype)
    return jnp.einsum("kgqs,skc->qkgc", weights, v).reshape(length, heads, width)


def _parts(config: LlamaConfig, dtype: Any, key: AnyKey) -> dict[str, Any]:
    """A model's parts with the layers stacked. Only their shapes are used."""
    width, hidden, head_width = config.width, config.hidden, config.width // config.heads
    shared = head_width * (config.heads if config.kv_heads is None else config.kv_heads)
    linear = lambda inputs, outputs: eqx.nn.Linear(inputs, outputs, use_bias=False, dtype=dtype, key=key)
    norm = lambda: eqx.nn.RMSNorm(width, _EPSILON, use_bias=False, dtype=dtype)

    def block(key: AnyKey) -> Block:
        attention = (linear(width, width), linear(width, shared), linear(width, shared), linear(width, width))
        swiglu = (linear(width, hidden), linear(width, hidden), linear(hidden, width))
        return Block(norm(), *attention, norm(), *swiglu, head_width=head_width)

    return {
        "embedding": eqx.nn.Embedding(config.vocabulary, width, dtype=dtype, key=key),
        "blocks": eqx.filter_vmap(block)(jax.random.split(key, config.layers)),
        "last_norm": norm(),
        "head": None if config.tied else linear(width, config.vocabulary),
    }


def _filled(shapes: dict[str, Any], key: AnyKey) -> dict[str, Any]:
    """The parts with gains of one, which the names of the norms mark, and random matrices."""
    leaves, tree = jax.tree.flatten_with_path(shapes)
    is_gain = ["norm" in jax.tree_util.keystr(path) for path, _ in leaves]
    matrices = _draws(key, [x for (_, x), gain in zip(leaves, is_gain, strict=True) if not gain])
    fill = lambda x, gain: jnp.ones(x.shape, x.dtype) if gain else next(matrices)
    return jax.tree.unflatten(tree, [fill(x, gain) for (_, x), gain in zip(leaves, is_gain, strict=True)])


def _draws(key: AnyKey, leaves: list[jax.ShapeDtypeStruct]) -> Iterator[Array]:
    """One draw handed out piece by piece compiles fastest; in portions, so that little is held beside the model."""
    while leaves:
        number = max(1, int(np.searchsorted(np.cumsum([x.size for x in leaves]), _PORTION, side="right")))
        key, part = jax.random.split(key)
        yield from _draw(part, tuple(x.shape for x in leaves[:number]), leaves[0].dtype)
        leaves = leaves[number:]


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: AnyKey, shapes: tuple[tuple[int, ...], ...], dtype: Any) -> list[Array]:
    """In float32 at least: numbers drawn in bfloat16 would have no tails."""
    wide, ends = at_least_float32(dtype), np.cumsum([math.prod(shape) for shape in shapes])
    numbers = (jax.random.normal(key, (int(ends[-1]),), wide) * jnp.asarray(_SCALE, wide)).astype(dtype)
    return [part.reshape(shape) for part, shape in zip(jnp.split(numbers, ends[:-1]), shapes, strict=True)]


def _unstacked(blocks: Block) -> tuple[Block, ...]:
    leaves, tree = jax.tree.flatten(blocks)
    return tuple(jax.tree.unflatten(tree, each) for each in zip(*(jnp.unstack(x) for x in leaves), strict=True))
