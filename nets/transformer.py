"""A small causal transformer that shows its attention, the loss on next tokens, and windows of text to train it on."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from .._checked import checked
from .._checks import check_shape, concrete, describe, indices, real
from ._arguments import check_activation, check_logits, check_sizes, floating
from ._layers import check_linear, check_norm, check_positions, check_tokens, rows
from .train import AnyKey


@checked
class Block(eqx.Module):
    """Causal attention and a hidden layer, each with a residual connection: one layer of a `Transformer`."""

    project_in: eqx.nn.Linear
    project_out: eqx.nn.Linear
    attention_norm: eqx.nn.LayerNorm
    hidden_in: eqx.nn.Linear
    hidden_out: eqx.nn.Linear
    hidden_norm: eqx.nn.LayerNorm
    heads: int = eqx.field(static=True)
    post_norm: bool = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __check_init__(self):
        width, hidden = (rows(name, getattr(self, name)) for name in ("project_out", "hidden_in"))
        check_sizes(heads=self.heads)
        if width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width={width}, heads={self.heads}.")
        shapes = {
            "project_in": (3 * width, width),
            "project_out": (width, width),
            "hidden_in": (hidden, width),
            "hidden_out": (width, hidden),
        }
        for name, shape in shapes.items():
            check_linear(name, getattr(self, name), shape)
        for name in ("attention_norm", "hidden_norm"):
            check_norm(name, getattr(self, name), width)
        check_activation(self.activation, (2, hidden), self.hidden_in.weight.dtype)

    @checked
    def __call__(
        self, x: Float[Array, "length width"], drop: Callable[[Array], Array]
    ) -> tuple[Float[Array, "length width"], Float[Array, "heads length length"]]:
        """`drop` applies dropout, or nothing."""
        check_shape("x", x, ("length", *self.attention_norm.shape))
        check_positions(x)
        y = x if self.post_norm else jax.vmap(self.attention_norm)(x)
        q, k, v = jnp.moveaxis(jax.vmap(self.project_in)(y).reshape(len(x), 3, self.heads, -1), 1, 0)
        logits = jnp.einsum("qhc,khc->hqk", q, k) / math.sqrt(q.shape[-1])
        causal = np.tril(np.ones((1, len(x), len(x)), bool))
        weights = jax.nn.softmax(jnp.where(causal, logits, -jnp.inf))
        y = jnp.einsum("hqk,khc->qhc", drop(weights), v).reshape(x.shape)
        x = x + drop(jax.vmap(self.project_out)(y))
        x = jax.vmap(self.attention_norm)(x) if self.post_norm else x

        y = x if self.post_norm else jax.vmap(self.hidden_norm)(x)
        y = self.activation(jax.vmap(self.hidden_in)(y))
        y = drop(y) if self.post_norm else y
        x = x + drop(jax.vmap(self.hidden_out)(y))
        x = jax.vmap(self.hidden_norm)(x) if self.post_norm else x
        return x, weights


@checked
class Transformer(eqx.Module):
    """A causal transformer over tokens `0 … vocabulary − 1`. It returns logits of the next token at every position.

    `norm="post"`: embeddings times `√width`, plus positions; in each layer `x ← LN(x + attention(x))`,
    `x ← LN(x + hidden(x))`; a linear decoder with bias. This is PyTorch's `TransformerEncoderLayer` in its
    `word_language_model` example, which Scan and Snap's Fig. 7 uses (arXiv 2305.16380).
    `norm="pre"`: embeddings plus positions; in each layer `x ← x + attention(LN(x))`, `x ← x + hidden(LN(x))`; a last
    LayerNorm; a decoder without bias. This is GPT-2, whose activation is `jax.nn.gelu`.

    Attention is `softmax(q kᵀ / √(width/heads))` over the positions up to one's own. Dropout is where these two have
    it: on the embeddings, the attention weights, the output of attention and that of the hidden layer, and for
    `norm="post"` also on the hidden layer itself.

    **Initial values**, post: embeddings, learned positions and decoder `U(−0.1, 0.1)`; the joint projection to
    `q, k, v` `U(±√(6/(4 width)))` (Xavier), that of the output `U(±1/√width)`; weights and biases of the hidden layer
    `U(±1/√inputs)`; other biases zero. Pre: weights `N(0, 0.02²)`, those of the two linear maps that write to the
    residual stream divided by `√(2 layers)`; biases zero.
    """

    embedding: eqx.nn.Embedding
    positions: eqx.nn.Embedding | None
    blocks: tuple[Block, ...]
    last_norm: eqx.nn.LayerNorm | None
    decoder: eqx.nn.Linear | None
    sinusoidal: bool = eqx.field(static=True)
    length: int = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        vocabulary: int,
        *,
        layers: int = 1,
        width: int = 200,
        heads: int = 1,
        hidden: int | None = None,
        norm: Literal["post", "pre"] = "post",
        positions: Literal["sinusoidal", "learned"] | None = "sinusoidal",
        length: int,
        activation: Callable[[Array], Array] = jax.nn.relu,
        tied: bool = False,
        dropout: float = 0.0,
        dtype: Any = None,
        key: AnyKey,
    ):
        """`hidden`: nodes of the hidden layer, by default `4 × width`; `positions`: what is added to the embeddings,
        `None` for nothing; `length`: of the longest sequence; `tied`: decode with the embeddings, without a bias;
        `dropout`: the probability, in effect where a call gets a key.

        **Raises** `ValueError` for sizes below one, a width that `heads` does not divide, a dropout outside [0, 1), an
        unknown norm or positions, and an activation that does not keep the shape of its argument.
        """
        hidden = 4 * width if hidden is None else hidden
        check_sizes(vocabulary=vocabulary, layers=layers, width=width, heads=heads, hidden=hidden, length=length)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got width={width}, heads={heads}.")
        real("dropout", dropout, (), least=0, below=1)
        if not concrete(dropout):
            raise ValueError("dropout must be known outside jit and vmap, got a traced value.")
        dtype, post = floating(dtype), norm == "post"
        embeddings = vocabulary * (1 if tied else 2) + (length if positions == "learned" else 0)
        each = 4 * width**2 + 2 * width * hidden + (width + hidden if post else 0)
        shape = (embeddings * width + layers * each,)
        uniform = lambda: jax.random.uniform(key, shape, dtype, -1, 1)
        numbers = _Numbers(uniform() if post else jax.random.normal(key, shape, dtype))

        def draw(shape: tuple[int, ...], scale: float) -> Array:
            """Numbers of that scale: the half-width of the uniform distribution, or the standard deviation."""
            return numbers.take(shape) * jnp.asarray(scale, dtype)

        def linear(inputs: int, outputs: int, scale: float, bias: float | None = 0.0) -> eqx.nn.Linear:
            weight = draw((outputs, inputs), scale)
            layer = eqx.filter_eval_shape(eqx.nn.Linear, inputs, outputs, use_bias=bias is not None, key=key)
            if bias is None:
                return eqx.tree_at(lambda m: m.weight, layer, weight)
            start = draw((outputs,), bias) if bias else jnp.zeros(outputs, dtype)
            return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, start))

        def block() -> Block:
            if post:
                xavier, wide, narrow = math.sqrt(6 / (4 * width)), 1 / math.sqrt(hidden), 1 / math.sqrt(width)
                scales = ((xavier,), (narrow,), (narrow, narrow), (wide, wide))
            else:
                scales = ((0.02,), (0.02 / math.sqrt(2 * layers),)) * 2
            return Block(
                linear(width, 3 * width, *scales[0]),
                linear(width, width, *scales[1]),
                eqx.nn.LayerNorm(width, dtype=dtype),
                linear(width, hidden, *scales[2]),
                linear(hidden, width, *scales[3]),
                eqx.nn.LayerNorm(width, dtype=dtype),
                heads=heads,
                post_norm=post,
                activation=activation,
            )

        scale = 0.1 if post else 0.02
        self.embedding = eqx.nn.Embedding(weight=draw((vocabulary, width), scale))
        self.positions = eqx.nn.Embedding(weight=draw((length, width), scale)) if positions == "learned" else None
        self.blocks = tuple(block() for _ in range(layers))
        self.last_norm = None if post else eqx.nn.LayerNorm(width, dtype=dtype)
        self.decoder = None if tied else linear(width, vocabulary, scale, 0.0 if post else None)
        self.sinusoidal, self.length, self.dropout = positions == "sinusoidal", length, float(dropout)

    @checked
    def __call__(
        self, tokens: Int[Array, " length"], *, key: AnyKey | None = None
    ) -> Float[Array, "length vocabulary"]:
        """The logits of the next token after each of `tokens`; with a key, under dropout.

        **Raises** `ValueError` for more tokens than the model's `length`, none, or tokens that are not of its
        vocabulary. Inside `jit` one beyond it is taken for the last.
        """
        return self.with_attention(tokens, key=key)[0]

    @checked
    def with_attention(
        self, tokens: Int[Array, " length"], *, key: AnyKey | None = None
    ) -> tuple[Float[Array, "length vocabulary"], Float[Array, "layers heads length length"]]:
        """The logits, and the attention weights of each layer and head: row `i` is what position `i` attends to, before
        dropout."""
        check_tokens(tokens, self.length, self.embedding)
        x = jax.vmap(self.embedding)(tokens)
        if self.last_norm is None:
            x = x * math.sqrt(x.shape[1])
        if self.positions is not None:
            x = x + self.positions.weight[: len(tokens)]
        if self.sinusoidal:
            x = x + sinusoids(*x.shape).astype(x.dtype)
        drop, attention = self._drop(key, x), []
        x = drop(x)
        for block in self.blocks:
            x, weights = block(x, drop)
            attention.append(weights)
        x = x if self.last_norm is None else jax.vmap(self.last_norm)(x)
        logits = x @ self.embedding.weight.T if self.decoder is None else jax.vmap(self.decoder)(x)
        return logits, jnp.stack(attention)

    def _drop(self, key: AnyKey | None, x: Float[Array, "length width"]) -> Callable[[Array], Array]:
        """Dropout for one pass through the model; without a key, none."""
        if key is None or self.dropout == 0:
            return lambda x: x
        block = self.blocks[0]
        length, (hidden, width) = len(x), block.hidden_in.weight.shape
        each = block.heads * length**2 + 2 * length * width + (length * hidden if block.post_norm else 0)
        keep = jnp.asarray(1 - self.dropout, x.dtype)  # random numbers of the dtype of x, not of the default one
        kept = _Numbers(jax.random.bernoulli(key, keep, (length * width + len(self.blocks) * each,)))
        return lambda x: jnp.where(kept.take(x.shape), x / keep, 0)


class _Numbers:
    """Hands out one random draw piece by piece: many draws would take longer to compile than anything else here."""

    def __init__(self, numbers: Array):
        self.numbers, self.used = numbers, 0

    def take(self, shape: tuple[int, ...]) -> Array:
        part = self.numbers[self.used : self.used + math.prod(shape)]
        self.used += part.size
        return part.reshape(shape)


@checked
def sinusoids(length: int, width: int) -> Float[np.ndarray, "length width"]:
    """The positions of the original transformer: `sin(p/10000^(2i/width))` at `2i`, the cosine at `2i + 1`.

    Source: Vaswani et al., arXiv 1706.03762, section 3.5.
    """
    check_sizes(length=length, width=width)
    angle = np.arange(length)[:, None] / 10_000.0 ** (np.arange(0, width, 2) / width)[None]
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, -1)[:, :width]


class Sequences(NamedTuple):
    """A batch of token sequences, shape `(batch, length + 1)`, and a key for the dropout of each, `None` for none."""

    tokens: Int[Array, "batch length_and_one"]
    keys: Key[Array, "*keys"] | UInt32[Array, "*keys"] | None = None


@checked
def next_token_loss(
    model: Callable[..., Array], batch: Sequences | Int[Array, "batch length_and_one"], *, last_only: bool = False
) -> Float[Array, ""]:
    """The mean cross-entropy, in nats, of each token given those before it; with `last_only`, of the last token alone.

    `model(tokens, key=key)` gives the logits of the next token at every position, as a `Transformer` or a `Llama` does.

    **Raises** `ValueError` for tokens that are not of the model's vocabulary, sequences of fewer than two, none of
    them, keys that are not one a sequence, and logits of another shape. Inside `jit` a token beyond the vocabulary
    makes it NaN.
    """
    tokens, keys = batch if isinstance(batch, Sequences) else (batch, None)
    if tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise ValueError(f"batch must hold at least one sequence of at least 2 tokens, got shape {tokens.shape}.")
    _check_keys(keys, tokens.shape[0])
    logits = jax.vmap(lambda t, k: check_logits(model(t, key=k), len(t)))(tokens[:, :-1], keys)
    vocabulary = logits.shape[-1]
    indices("tokens", tokens, vocabulary)
    known = jnp.all((tokens >= 0) & (tokens < vocabulary), axis=1, keepdims=True)
    labels = jnp.where(known, tokens[:, 1:], jnp.asarray(vocabulary, tokens.dtype))  # where the look-up gives NaN
    if last_only:
        logits, labels = logits[:, -1:], labels[:, -1:]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1))


def _check_keys(keys: Any, batch: int) -> None:
    typed = keys is not None and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if keys is not None and (keys.ndim != (1 if typed else 2) or keys.shape[0] != batch):
        raise ValueError(f"batch.keys must be {batch}, one a sequence, or None, got {describe(keys)}.")


@checked
class Windows(eqx.Module):
    """A sampler of text for `train`: `batch` windows of `length + 1` tokens that start anywhere, all equally likely,
    and a key for the dropout of each."""

    ids: Int[Array, " tokens"]
    length: int = eqx.field(static=True, default=35)
    batch: int = eqx.field(static=True, default=20)

    def __check_init__(self):
        check_sizes(length=self.length, batch=self.batch)
        if len(self.ids) <= self.length:
            raise ValueError(f"ids must hold at least length + 1 = {self.length + 1} tokens, got {len(self.ids)}.")
        indices("ids", self.ids, jnp.iinfo(self.ids.dtype).max)

    @checked
    def __call__(self, key: AnyKey) -> Sequences:
        keys = jax.random.split(key, self.batch + 1)
        # Remainders favour the first starts by less than their number over 2³², far below what a text resolves.
        start = jax.random.bits(keys[0], (self.batch,), jnp.uint32) % np.uint32(len(self.ids) - self.length)
        places = start.astype(jnp.int32)[:, None] + jnp.arange(self.length + 1, dtype=jnp.int32)[None]
        return Sequences(self.ids[places], keys[1:])
