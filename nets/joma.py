"""The block that JoMA studies, and the synthetic token distributions it is trained on."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from .train import AnyKey

_ATTENTIONS = ("linear", "exp", "softmax")
_ACTIVATIONS = {"identity": lambda h: h, "relu": jax.nn.relu, "quadratic": jnp.square}


class JomaBlock(eqx.Module):
    """One block as JoMA sets it up: attention of a query over context tokens, and a hidden layer above it.

        h = φ(Wᵀ f),   f = U_C b + u_q,   logits = Dᵀ h
        linear: b = z_q∘x      exp: b = exp(z_q/T)∘x / A      softmax: b = exp(z_q/T)∘x / Σ_l exp(z_ql/T) x_l

    **Trained:** `w` W, shape `(embed, nodes)`, and `z`, shape `(queries, tokens)`, the attention logits of each query,
    into which key and query matrices are absorbed. With `train_decoder` also `decoder` D, shape `(nodes, classes)`;
    a decoder of `None` gives `h` itself. **Fixed:** the embeddings `u_c` of the tokens, shape `(embed, tokens)`, and
    `u_q` of the queries, shape `(embed, queries)`. Fixed leaves have a gradient of zero; weight decay
    reaches them all the same, so give it the mask `trainable()`.

    Source: JoMA (arXiv 2310.00535), section 3.
    """

    w: Float[Array, "embed nodes"]
    z: Float[Array, "queries tokens"]
    u_c: Float[Array, "embed tokens"] | None
    u_q: Float[Array, "embed queries"] | None
    decoder: Float[Array, "nodes classes"] | None
    temperature: Float[Array, ""]
    normaliser: Float[Array, ""]
    attention: str = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)
    train_decoder: bool = eqx.field(static=True)

    def __init__(
        self,
        tokens: int,
        nodes: int,
        *,
        classes: int | None = None,
        queries: int = 1,
        attention: str = "softmax",
        activation: str | Callable[[Array], Array] = "identity",
        temperature: ArrayLike = 1.0,
        normaliser: ArrayLike = 1.0,
        embeddings: Float[Array, "embed tokens_and_queries"] | str | None = None,
        init_scale: ArrayLike = 0.01,
        train_decoder: bool = False,
        dtype: Any = None,
        key: AnyKey,
    ):
        """Normal initial weights and logits of standard deviation `init_scale`; for `classes`, a normal decoder of
        variance `1/nodes`; `embeddings`, by default random and orthonormal of the least dimension,
        `tokens + queries`, the columns of the queries last. With `"identity"` the rows of W are V and β themselves: the
        same flow and the same gradient descent in V as any orthonormal ones give, without their products.

        **Raises** `ValueError` for sizes below one, an unknown attention or activation, or embeddings of another shape.
        """
        for name, size in {
            "tokens": tokens,
            "nodes": nodes,
            "queries": queries,
            "classes": 1 if classes is None else classes,
        }.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        if attention not in _ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(_ATTENTIONS)}, got {attention!r}.")
        if isinstance(activation, str) and activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be a function or one of {', '.join(_ACTIVATIONS)}, got {activation!r}.")
        dtype = jnp.result_type(float) if dtype is None else dtype
        embed, self.u_c, self.u_q = tokens + queries, None, None
        if isinstance(embeddings, str):
            if embeddings != "identity":
                raise ValueError(f"embeddings must be an array, None or 'identity', got {embeddings!r}.")
        else:
            if embeddings is None:
                key, embed_key = jax.random.split(key)
                embeddings = jnp.linalg.qr(jax.random.normal(embed_key, (embed, embed), dtype))[0]
            elif embeddings.ndim != 2 or embeddings.shape[1] != tokens + queries:
                raise ValueError(f"embeddings must have shape (embed, {tokens + queries}), got {embeddings.shape}.")
            embeddings = jnp.asarray(embeddings, dtype)
            embed, self.u_c, self.u_q = embeddings.shape[0], embeddings[:, :tokens], embeddings[:, tokens:]
        # One draw for all: a random draw takes longer to compile than anything else here.
        in_w, in_z = embed * nodes, queries * tokens
        normal = jax.random.normal(key, (in_w + in_z + nodes * (classes or 0),), dtype)
        scale = jnp.asarray(init_scale, dtype)
        self.w = scale * normal[:in_w].reshape(-1, nodes)
        self.z = scale * normal[in_w : in_w + in_z].reshape(queries, tokens)
        self.decoder = None if classes is None else normal[in_w + in_z :].reshape(nodes, classes) / nodes**0.5
        self.temperature, self.normaliser = jnp.asarray(temperature, dtype), jnp.asarray(normaliser, dtype)
        self.attention, self.train_decoder = attention, train_decoder
        self.activation = _ACTIVATIONS[activation] if isinstance(activation, str) else activation

    @property
    def v(self) -> Float[Array, "tokens nodes"]:
        """The hidden nodes in token space, `V = U_Cᵀ W`."""
        if self.u_c is None:
            return self.w[: self.z.shape[1]]
        return jax.lax.stop_gradient(self.u_c).T @ self.w

    @property
    def beta(self) -> Float[Array, "queries nodes"]:
        """The residual bias of each node for each query, `u_qᵀ W`."""
        if self.u_q is None:
            return self.w[self.z.shape[1] :]
        return jax.lax.stop_gradient(self.u_q).T @ self.w

    def attend(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""] = 0) -> Float[Array, " tokens"]:
        """The attention `b` of `query` over token frequencies `x`. A context without tokens gets none."""
        b = x * self._weights(query)
        return b / _nonzero(jnp.sum(b)) if self.attention == "softmax" else b

    def hidden(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""] = 0) -> Float[Array, " nodes"]:
        """The hidden layer `h` for one context."""
        # Wᵀ f = Vᵀ b + Wᵀ u_q: V is common to a batch, so that the embedding is multiplied once, not once a sample.
        if self.z.shape[0] > 1:
            return self.activation(self.attend(x, query) @ self.v + _row(self.beta, query))
        # So are the weights of a single query: they go to V instead of to each sample, and what is left is a product
        # with x, which lanes share. Training takes two large products instead of three small ones. With x on the
        # right the lanes come out first, in the order in which they are stored: 0.6 of the time.
        weights = self._weights(query)
        h = (weights[:, None] * self.v).T @ x
        h = h / _nonzero(x @ weights) if self.attention == "softmax" else h
        return self.activation(h + _row(self.beta, query))

    def _weights(self, query: Int[ArrayLike, ""]) -> Float[Array, " tokens"]:
        """By what each token's frequency is multiplied, for softmax up to a factor."""
        z = _row(self.z, query)
        if self.attention == "linear":
            return z
        z = z / jax.lax.stop_gradient(self.temperature)
        if self.attention == "exp":
            return jnp.exp(z) / jax.lax.stop_gradient(self.normaliser)
        return jnp.exp(z - jax.lax.stop_gradient(jnp.max(z)))

    def __call__(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""] = 0) -> Float[Array, " classes"]:
        """The output for one context: token frequencies `x`, shape `(tokens,)`, and the number of the query."""
        h = self.hidden(x, query)
        if self.decoder is None:
            return h
        return h @ (self.decoder if self.train_decoder else jax.lax.stop_gradient(self.decoder))

    def trainable(self) -> "JomaBlock":
        """The same module with `True` at the leaves that are trained and `False` elsewhere: a mask for optax."""
        mask = jax.tree.map(lambda _: False, self)
        mask = eqx.tree_at(lambda m: (m.w, m.z), mask, (True, True))
        if self.decoder is not None:
            mask = eqx.tree_at(lambda m: m.decoder, mask, self.train_decoder)
        return mask

    def rates(self, *, eta_w: ArrayLike = 1.0, eta_z: ArrayLike = 1.0) -> "JomaBlock":
        """The same module with the learning-rate multiplier of each leaf, as `GradientFlow(loss, rates)` takes it:
        `eta_z` for the logits, `eta_w` for the rest of what is trained, zero for what is fixed."""
        rates = jax.tree.map(lambda trained: eta_w if trained else 0.0, self.trainable())
        return eqx.tree_at(lambda m: m.z, rates, eta_z)


def _row(table: Float[Array, "queries n"], query: Int[ArrayLike, ""]) -> Float[Array, " n"]:
    """`table[query]`. For a batch that is a gather, and its gradient a scatter: dear, and idle with a single query."""
    return table[0] if table.shape[0] == 1 else table[query]


def _nonzero(total: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(total > 0, total, 1.0)


class Contexts(NamedTuple):
    """Samples of one block's task: token frequencies `x`, the `label` to predict, and the number of the `query`."""

    x: Float[Array, "samples tokens"]
    label: Int[Array, " samples"]
    query: Int[Array, " samples"]


def cross_entropy(model: Callable[[Array, Array], Array], batch: Contexts) -> Float[Array, ""]:
    """Mean cross-entropy of `model(x, query)` against the labels, in nats: of the block, or any network of contexts."""
    logits = jax.vmap(model)(batch.x, batch.query)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.label))


def stationary_loss(
    model: JomaBlock, batch: tuple[Float[Array, "samples tokens"], Float[Array, "samples nodes"]]
) -> Float[Array, ""]:
    """`−E[Σ_k g_k h_k]` on `(x, g)`: the loss whose back-propagated gradient is g at all times (Assumption 1)."""
    x, g = batch
    return -jnp.mean(jnp.sum(g * jax.vmap(model.hidden)(x), axis=1))


def minibatch(data: Any, size: int) -> Callable[[AnyKey], Any]:
    """A sampler for `train`: `size` samples of `data`, arrays of a common leading axis, drawn with replacement."""
    total = jax.tree.leaves(data)[0].shape[0]

    def draw(key):
        rows = jax.random.randint(key, (size,), 0, total)
        return jax.tree.map(lambda x: x[rows], data)

    return draw


def class_tokens(
    kind: Literal["gaussian", "random"],
    tokens: int = 20,
    classes: int = 20,
    *,
    dtype: Any = None,
    key: AnyKey,
) -> Contexts:
    """The data of the paper's Fig. 2 and 3: one sample a class, half of the tokens distinct and half common.

    Common tokens come with frequencies drawn from U(0, ½). Distinct tokens with `exp(−(l − i/2)²/30)` for class `i`
    (`"gaussian"`) or also from U(0, ½) (`"random"`). Each sample is normalised to sum to one.
    """
    if kind not in ("gaussian", "random"):
        raise ValueError(f"kind must be gaussian or random, got {kind!r}.")
    dtype = jnp.result_type(float) if dtype is None else dtype
    x = jax.random.uniform(key, (classes, tokens), dtype, 0, 0.5)
    if kind == "gaussian":
        distinct = tokens // 2
        place = jnp.arange(distinct, dtype=dtype)[None, :] - jnp.arange(classes, dtype=dtype)[:, None] / 2
        x = x.at[:, :distinct].set(jnp.exp(-(place**2) / 30))
    return Contexts(x / jnp.sum(x, axis=1, keepdims=True), jnp.arange(classes), jnp.zeros(classes, int))


class ClassMixture(eqx.Module):
    """A sampler of contexts: a class, then `length` tokens drawn from that class's distribution, and their frequencies.

    `probability`, shape `(classes, tokens)`: how each class draws its tokens.
    """

    probability: Float[Array, "classes tokens"]
    length: int = eqx.field(static=True, default=16)
    batch: int = eqx.field(static=True, default=64)

    def __call__(self, key: AnyKey) -> Contexts:
        class_key, token_key = jax.random.split(key)
        classes, tokens = self.probability.shape
        label = jax.random.randint(class_key, (self.batch,), 0, classes)
        logits = jnp.log(self.probability)[label][:, None, :]
        drawn = jax.random.categorical(token_key, logits, shape=(self.batch, self.length))
        counts = jax.vmap(lambda d: jnp.bincount(d, length=tokens))(drawn)
        return Contexts(counts.astype(self.probability.dtype) / self.length, label, jnp.zeros(self.batch, int))


def gaussian_clusters(
    centres: Float[Array, "clusters tokens"], sigma: ArrayLike, samples: int, *, key: AnyKey
) -> tuple[Float[Array, "samples_in_all tokens"], Int[Array, " samples_in_all"]]:
    """`samples` draws from each cluster `N(x̄_c, σ² I)`, and the number of their cluster."""
    clusters, tokens = centres.shape
    noise = jax.random.normal(key, (clusters, samples, tokens), centres.dtype)
    x = centres[:, None] + jnp.asarray(sigma, centres.dtype) * noise
    return x.reshape(-1, tokens), jnp.repeat(jnp.arange(clusters), samples)
