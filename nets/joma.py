"""The block that JoMA studies, and the synthetic token distributions it is trained on."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Real

from .._checked import checked
from .._checks import as_float, check_range, check_shape, choice, concrete, describe, real
from ._arguments import check_activation, check_contexts, check_sizes, check_some, floating
from ._attention import softmax_attention
from ._precision import at_least_float32
from .contexts import Contexts as Contexts
from .contexts import cross_entropy as cross_entropy
from .train import AnyKey

_ATTENTIONS = ("linear", "exp", "softmax")
_ACTIVATIONS = {"identity": lambda h: h, "relu": jax.nn.relu, "quadratic": jnp.square}


@checked
class JomaBlock(eqx.Module):
    """One block as JoMA sets it up: attention of a query over context tokens, and a hidden layer above it.

        h = φ(Wᵀ f),   f = U_C b + u_q,   logits = Dᵀ h
        linear: b = z_q∘x      exp: b = exp(z_q/T)∘x / A      softmax: b = exp(z_q/T)∘x / Σ_l exp(z_ql/T) x_l

    **Trained:** `w` W, shape `(embed, nodes)`, and `z`, shape `(queries, tokens)`, the attention logits of each query,
    into which key and query matrices are absorbed. With `train_decoder` also `decoder` D, shape `(nodes, classes)`;
    a decoder of `None` gives `h` itself. **Fixed:** the embeddings `u_c` of the tokens, shape `(embed, tokens)`, and
    `u_q` of the queries, shape `(embed, queries)`. Fixed leaves have a gradient of zero; weight decay
    reaches them all the same, so give it the mask `trainable()`.

    A context without tokens, `x = 0`, has no attention: `b = 0`. Softmax attention is over the tokens present, those
    with `x > 0`; frequencies below zero are refused there, and inside `jit` count as absent.

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
        temperature: Real[ArrayLike, ""] = 1.0,
        normaliser: Real[ArrayLike, ""] = 1.0,
        embeddings: Float[Array, "embed tokens_and_queries"] | str | None = None,
        init_scale: Real[ArrayLike, ""] = 0.01,
        train_decoder: bool = False,
        dtype: Any = None,
        key: AnyKey,
    ):
        """Normal initial weights and logits of standard deviation `init_scale`; for `classes`, a normal decoder of
        variance `1/nodes`; `embeddings`, by default random and orthonormal of the least dimension,
        `tokens + queries`, the columns of the queries last. With `"identity"` the rows of W are V and β themselves: the
        same flow and the same gradient descent in V as any orthonormal ones give, without their products.

        **Raises** `ValueError` for sizes below one, an unknown attention or activation, an activation that changes
        the shape of its argument, embeddings of another shape, a temperature or normaliser that is not positive, and
        `train_decoder` without `classes`. Where the formula above has no temperature or normaliser, it plays no part:
        one set of options serves all attentions.
        """
        check_sizes(tokens=tokens, nodes=nodes, queries=queries)
        if classes is not None:
            check_sizes(classes=classes)
        elif train_decoder:
            raise ValueError("train_decoder would be ignored: without classes there is no decoder.")
        choice("attention", attention, _ATTENTIONS)
        if isinstance(activation, str):
            choice("activation", activation, tuple(_ACTIVATIONS))
        real("temperature", temperature, (), above=0), real("normaliser", normaliser, (), above=0)
        real("init_scale", init_scale, ())
        dtype = floating(dtype)
        embed, self.u_c, self.u_q = tokens + queries, None, None
        if isinstance(embeddings, str):
            choice("embeddings", embeddings, ("identity",))
        else:
            if embeddings is None:
                key, embed_key = jax.random.split(key)
                normal = jax.random.normal(embed_key, (embed, embed), dtype)
                embeddings = jnp.linalg.qr(normal.astype(at_least_float32(dtype)))[0]
            check_shape("embeddings", embeddings, ("embed", tokens + queries))
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
        check_activation(self.activation, (nodes,), dtype)

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

    @checked
    def attend(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""] = 0) -> Float[Array, " tokens"]:
        """The attention `b` of `query` over token frequencies `x`. A context without tokens gets none."""
        self._check(x, query)
        return self._attend(x, query)

    @checked
    def hidden(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""] = 0) -> Float[Array, " nodes"]:
        """The hidden layer `h` for one context."""
        self._check(x, query)
        # Wᵀ f = Vᵀ b + Wᵀ u_q: V is common to a batch, so that the embedding is multiplied once, not once a sample.
        if self.attention == "softmax" or self.z.shape[0] > 1:
            return self.activation(self._attend(x, query) @ self.v + _row(self.beta, query))
        # So are the weights of a single query: they go to V instead of to each sample, and what is left is a product
        # with x, which lanes share. Training takes two large products instead of three small ones. With x on the
        # right the lanes come out first, in the order in which they are stored: 0.6 of the time. Softmax can't: its
        # weights depend on which tokens a sample has.
        h = (self._weights(query)[:, None] * self.v).T @ x
        return self.activation(h + _row(self.beta, query))

    def _check(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""]) -> None:
        check_contexts(x, query, self.z, counts=self.attention == "softmax")

    def _attend(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""]) -> Float[Array, " tokens"]:
        if self.attention == "softmax":
            return softmax_attention(_row(self.z, query) / jax.lax.stop_gradient(self.temperature), x)
        return x * self._weights(query)

    def _weights(self, query: Int[ArrayLike, ""]) -> Float[Array, " tokens"]:
        """By what each token's frequency is multiplied in linear and exponential attention."""
        z = _row(self.z, query)
        if self.attention == "linear":
            return z
        return jnp.exp(z / jax.lax.stop_gradient(self.temperature)) / jax.lax.stop_gradient(self.normaliser)

    @checked
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

    @checked
    def rates(self, *, eta_w: Real[ArrayLike, ""] = 1.0, eta_z: Real[ArrayLike, ""] = 1.0) -> "JomaBlock":
        """The same module with the learning-rate multiplier of each leaf, as `GradientFlow(loss, rates)` takes it:
        `eta_z` for the logits, `eta_w` for the rest of what is trained, zero for what is fixed."""
        real("eta_w", eta_w, (), least=0), real("eta_z", eta_z, (), least=0)
        rates = jax.tree.map(lambda trained: eta_w if trained else 0.0, self.trainable())
        return eqx.tree_at(lambda m: m.z, rates, eta_z)


def _row(table: Float[Array, "queries n"], query: Int[ArrayLike, ""]) -> Float[Array, " n"]:
    """`table[query]`. For a batch that is a gather, and its gradient a scatter: dear, and idle with a single query."""
    return table[0] if table.shape[0] == 1 else table[query]


@checked
def stationary_loss(model: JomaBlock, batch: Sequence[Any]) -> Float[Array, ""]:
    """`−E[Σ_k g_k h_k]` on `(x, g)`, shapes `(samples, tokens)` and `(samples, nodes)`: the loss whose back-propagated
    gradient is g at all times (Assumption 1). **Raises** `ValueError` for no samples."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch must be a pair (x, g), got {describe(batch)}.")
    x, g = as_float(batch[0], "x"), as_float(batch[1], "g")
    check_shape("x", x, ("samples", model.z.shape[1]))
    check_some("x", x.shape[0])
    check_shape("g", g, (x.shape[0], model.w.shape[1]))
    return -jnp.mean(jnp.sum(g * jax.vmap(model.hidden)(x), axis=1))


@checked
def minibatch(data: Any, size: int) -> Callable[[AnyKey], Any]:
    """A sampler for `train`: `size` samples of `data`, arrays of a common leading axis, drawn with replacement.

    **Raises** `ValueError` for arrays of unlike lengths or without samples.
    """
    check_sizes(size=size)
    lengths = {}
    for path, leaf in jax.tree.leaves_with_path(data):
        if not eqx.is_array(leaf) or not leaf.ndim:
            raise ValueError(f"data{jax.tree_util.keystr(path)} must be an array of samples, got {describe(leaf)}.")
        lengths[f"data{jax.tree_util.keystr(path)}"] = leaf.shape[0]
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"data must be arrays of one common length of at least 1, got {lengths}.")
    total = next(iter(lengths.values()))

    @checked
    def draw(key: AnyKey) -> Any:
        rows = jax.random.randint(key, (size,), 0, total)
        return jax.tree.map(lambda x: jnp.asarray(x)[rows], data)

    return draw


@checked
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
    check_sizes(tokens=tokens, classes=classes)
    dtype = floating(dtype)
    x = jax.random.uniform(key, (classes, tokens), dtype, 0, 0.5)
    if kind == "gaussian":
        distinct = tokens // 2
        place = jnp.arange(distinct, dtype=dtype)[None, :] - jnp.arange(classes, dtype=dtype)[:, None] / 2
        x = x.at[:, :distinct].set(jnp.exp(-(place**2) / 30))
    return Contexts(x / jnp.sum(x, axis=1, keepdims=True), jnp.arange(classes), jnp.zeros(classes, int))


@checked
class ClassMixture(eqx.Module):
    """A sampler of contexts: a class, then `length` tokens drawn from that class's distribution, and their frequencies.

    `probability`, shape `(classes, tokens)`: how each class draws its tokens, each row up to a factor.

    **Raises** `ValueError` for negative or non-finite probabilities, a row of zeros, and no classes.
    """

    probability: Float[Array, "classes tokens"]
    length: int = eqx.field(static=True, default=16)
    batch: int = eqx.field(static=True, default=64)

    def __check_init__(self):
        check_sizes(length=self.length, batch=self.batch)
        check_shape("probability", self.probability, ("classes", "tokens"))
        if not self.probability.shape[0]:
            raise ValueError(f"probability must hold at least one class, got shape {self.probability.shape}.")
        if concrete(self.probability):
            check_range("probability", self.probability, least=0)
            total = np.sum(np.asarray(self.probability), axis=1)
            if not np.all(total > 0):
                raise ValueError(f"probability must leave each class a token, got zeros in row {np.argmin(total)}.")

    @checked
    def __call__(self, key: AnyKey) -> Contexts:
        class_key, token_key = jax.random.split(key)
        classes, tokens = self.probability.shape
        label = jax.random.randint(class_key, (self.batch,), 0, classes)
        logits = jnp.log(self.probability)[label][:, None, :]
        drawn = jax.random.categorical(token_key, logits, shape=(self.batch, self.length))
        counts = jax.vmap(lambda d: jnp.bincount(d, length=tokens))(drawn)
        return Contexts(counts.astype(self.probability.dtype) / self.length, label, jnp.zeros(self.batch, int))


@checked
def gaussian_clusters(
    centres: Float[Array, "clusters tokens"], sigma: Real[ArrayLike, ""], samples: int, *, key: AnyKey
) -> tuple[Float[Array, "samples_in_all tokens"], Int[Array, " samples_in_all"]]:
    """`samples` draws from each cluster `N(x̄_c, σ² I)`, and the number of their cluster."""
    check_sizes(samples=samples)
    real("sigma", sigma, (), least=0)
    clusters, tokens = centres.shape
    noise = jax.random.normal(key, (clusters, samples, tokens), centres.dtype)
    x = centres[:, None] + jnp.asarray(sigma, centres.dtype) * noise
    return x.reshape(-1, tokens), jnp.repeat(jnp.arange(clusters), samples)
