"""The one-layer transformer of Scan and Snap, in its own parameters and in (Y, Z), and its sequence classes.

A sequence is `length − 1` contextual tokens and a query, its last token; the next token is to be predicted. A class n
is one next token: its query ψ(n), and how often each contextual token occurs, `P(l|n)`. A token that occurs in one
class only is *distinct*, the others are *common*.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Real

from .._checked import checked
from .._checks import concrete, describe, indices, integer, real
from ._arguments import check_contexts, check_fields, check_sizes, check_some, floating, inside
from ._attention import softmax_attention
from ._precision import at_least_float32
from .contexts import Contexts as Contexts
from .contexts import cross_entropy as cross_entropy
from .train import AnyKey


@checked
class YZTransformer(eqx.Module):
    """One attention layer and a decoder, as two matrices that are trained independently:

        c = softmax over the context of z_q + ln x,   f = c/‖c‖₂,   logits = Yᵀ f

    **Trained:** `y`, shape `(tokens, outputs)`, and `z`, shape `(queries, tokens)`, the attention logits of each query.
    Only rows and columns of contextual tokens are kept: the others are never read. `normalise=False` leaves the ℓ2
    normalisation out, `f = c`. A context without tokens has no attention: c = f = 0. Frequencies below zero are
    refused, and inside `jit` count as absent.

    Source: Scan and Snap (arXiv 2305.16380), section 3; `Y = U W_Vᵀ Uᵀ` and `Z = U W_Q W_Kᵀ Uᵀ/√d`, whose √d the
    slides leave out.
    """

    y: Float[Array, "tokens outputs"]
    z: Float[Array, "queries tokens"]
    normalise: bool = eqx.field(static=True, default=True)

    def __init__(
        self,
        tokens: int,
        queries: int,
        outputs: int,
        *,
        init_scale: Real[ArrayLike, ""] = 0.0,
        normalise: bool = True,
        dtype: Any = None,
        key: AnyKey | None = None,
    ):
        """Initial values uniform on `[−init_scale, init_scale]`, by default zero, as the theory starts.

        **Raises** `ValueError` for a size below one, and for an `init_scale` without a key.
        """
        check_sizes(tokens=tokens, queries=queries, outputs=outputs)
        dtype = floating(dtype)
        real("init_scale", init_scale, ())
        if key is None:
            if not concrete(init_scale) or init_scale != 0:
                raise ValueError(f"key must be given for random initial values, init_scale={init_scale}.")
            self.y, self.z = jnp.zeros((tokens, outputs), dtype), jnp.zeros((queries, tokens), dtype)
        else:
            draw = jax.random.uniform(key, (tokens * (outputs + queries),), dtype, -1, 1)
            draw = draw * jnp.asarray(init_scale, dtype)
            self.y = draw[: tokens * outputs].reshape(tokens, outputs)
            self.z = draw[tokens * outputs :].reshape(queries, tokens)
        self.normalise = normalise

    @checked
    def attend(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""] = 0) -> Float[Array, " tokens"]:
        """The attention c that `query` pays to all positions of each token, for frequencies or counts `x`."""
        check_contexts(x, query, self.z, counts=True)
        return softmax_attention(self.z[query], x)

    @checked
    def features(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""] = 0) -> Float[Array, " tokens"]:
        """What the decoder sees: `f = c/‖c‖`, and zero where c is."""
        c = self.attend(x, query)
        if not self.normalise:
            return c
        squares = jnp.sum(c**2)
        return c / jnp.sqrt(jnp.where(squares > 0, squares, 1))

    @checked
    def __call__(self, x: Float[Array, " tokens"], query: Int[ArrayLike, ""] = 0) -> Float[Array, " outputs"]:
        """The logits of the next token, for one context: frequencies or counts `x` and the number of its query."""
        return self.features(x, query) @ self.y

    @checked
    def rates(self, *, eta_y: Real[ArrayLike, ""] = 1.0, eta_z: Real[ArrayLike, ""] = 1.0) -> "YZTransformer":
        """The same module with the learning-rate multiplier of each matrix, as `GradientFlow(loss, rates)` takes it."""
        real("eta_y", eta_y, (), least=0), real("eta_z", eta_z, (), least=0)
        return eqx.tree_at(lambda m: (m.y, m.z), self, (eta_y, eta_z))


@checked
class OneLayerTransformer(eqx.Module):
    """The same network in its original parameters, on sequences of tokens whose last one is the query:

        b = softmax_t(u_qᵀ W_Q W_Kᵀ u_t / √d),   logits = U W_V Uᵀ LN(Xᵀ b)

    with `LN(v) = v/‖v‖₂`, no residual, no positions, and the query not among its own keys.

    **Fields:** `u` the embeddings, shape `(vocabulary, embed)`; `w_q`, `w_k`, `w_v`, shape `(embed, embed)`.

    With orthonormal embeddings that stay fixed, training W_V is training Y. Training W_Q and W_K both is *not* training
    Z: their product moves along another flow.

    Source: Scan and Snap, section 3.
    """

    u: Float[Array, "vocabulary embed"]
    w_q: Float[Array, "embed embed"]
    w_k: Float[Array, "embed embed"]
    w_v: Float[Array, "embed embed"]

    @classmethod
    @checked
    def orthonormal(
        cls, vocabulary: int, *, init_scale: Real[ArrayLike, ""] = 1.0, dtype: Any = None, key: AnyKey
    ) -> "OneLayerTransformer":
        """Random orthonormal embeddings of the least dimension, `vocabulary`, and normal weights of standard deviation
        `init_scale/√vocabulary`. **Raises** `ValueError` for a vocabulary below two."""
        integer("vocabulary", vocabulary, least=2)
        real("init_scale", init_scale, ())
        dtype = floating(dtype)
        normal = jax.random.normal(key, (4, vocabulary, vocabulary), dtype)
        weights = normal[1:] * jnp.asarray(init_scale, dtype) / vocabulary**0.5
        return cls(jnp.linalg.qr(normal[0].astype(at_least_float32(dtype)))[0].astype(dtype), *weights)

    @checked
    def __call__(self, sequence: Int[Array, " length"]) -> Float[Array, " vocabulary"]:
        """The logits of the token after `sequence`, which must have two tokens at least, all of the vocabulary. Inside
        `jit` one beyond it is taken for the last."""
        indices("sequence", sequence, self.u.shape[0])
        if sequence.shape[0] < 2:
            raise ValueError(f"sequence must have at least 2 tokens (context and query), got {sequence.shape[0]}.")
        context = self.u[sequence[:-1]]
        scores = context @ (self.w_k @ (self.w_q.T @ self.u[sequence[-1]])) / self.u.shape[1] ** 0.5
        x = jnp.zeros(self.u.shape[0], context.dtype).at[sequence[:-1]].add(jax.nn.softmax(scores))
        return self.u @ (self.w_v @ (self.u.T @ (x / jnp.sqrt(jnp.sum(x**2)))))

    def yz(self) -> tuple[Float[Array, "vocabulary vocabulary"], Float[Array, "vocabulary vocabulary"]]:
        """`Y = U W_Vᵀ Uᵀ` and `Z = U W_Q W_Kᵀ Uᵀ/√d`."""
        return self.u @ self.w_v.T @ self.u.T, self.u @ self.w_q @ self.w_k.T @ self.u.T / self.u.shape[1] ** 0.5


@checked
def sequence_loss(
    model: OneLayerTransformer, batch: tuple[Int[Array, "batch length"], Int[Array, " batch"]]
) -> Float[Array, ""]:
    """Mean cross-entropy of the next token on `(sequences, next tokens)`, in nats, as `SequenceClasses.sequences` draws
    them. The embeddings are trained unless the optimiser leaves them out.

    **Raises** `ValueError` for no sequences and for tokens that are not of the vocabulary. Inside `jit` such a next
    token makes it NaN.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch must be a pair (sequences, next tokens), got {describe(batch)}.")
    vocabulary = model.u.shape[0]
    sequences = indices("sequences", batch[0], vocabulary, ("batch", "length"))
    check_some("sequences", sequences.shape[0])
    following = indices("next tokens", batch[1], vocabulary, (sequences.shape[0],))
    logits = jax.vmap(model)(sequences)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, inside(following, vocabulary)))


@checked
def sgd(
    learning_rate: Real[ArrayLike, ""],
    *,
    eta_y: Real[ArrayLike, ""] = 1.0,
    eta_z: Real[ArrayLike, ""] = 1.0,
    momentum: Real[ArrayLike, ""] | None = None,
) -> optax.GradientTransformation:
    """Gradient descent on a `YZTransformer` with `eta_y` and `eta_z` times the learning rate for Y and Z; with
    `momentum` β as a heavy ball, whose effective rate is `1/(1−β)` times larger."""
    real("learning_rate", learning_rate, ())
    real("eta_y", eta_y, (), least=0), real("eta_z", eta_z, (), least=0)
    if momentum is not None:
        real("momentum", momentum, (), least=0, below=1)
    descent = optax.sgd(learning_rate, momentum)  # pyright: ignore[reportArgumentType]

    def init(params):
        check_fields(params, ("y", "z"), "a YZTransformer")
        return descent.init(params)

    def update(updates, state, params=None):
        updates, state = descent.update(updates, state, params)
        scale = lambda eta: lambda x: x * jnp.asarray(eta, x.dtype)
        updates = eqx.tree_at(lambda m: m.y, updates, replace_fn=scale(eta_y))
        return eqx.tree_at(lambda m: m.z, updates, replace_fn=scale(eta_z)), state

    return optax.GradientTransformation(init, update)


@checked
def precondition(contexts: Contexts) -> optax.GradientTransformation:
    """Turns the gradient of Y, `F R` for the features F of `contexts`, one a class, into `F (FᵀF)⁻¹ R`: chained before
    `sgd`, it trains the decoder that the paper's theory assumes, in which classes do not mix.

    **Raises** `ValueError` for frequencies below zero and for contexts whose features have no inverse: two equal ones,
    a sum of others with the same query, and, in `init`, features that depend on each other at the model's start.
    """
    real("contexts.x", contexts.x, least=0), indices("contexts.query", contexts.query, 2**31)
    if concrete(contexts):
        rows = np.column_stack([np.asarray(contexts.x), np.asarray(contexts.query)])
        if len(np.unique(rows, axis=0)) < len(rows):
            raise ValueError("contexts must all differ, got two that are equal.")
        for query in np.unique(rows[:, -1]):
            _check_independent(np.asarray(contexts.x)[rows[:, -1] == query], f"contexts.x of query {int(query)}")

    def init(params):
        if not isinstance(params, YZTransformer):
            raise ValueError(f"params must be a YZTransformer, got {describe(params)}.")
        if concrete((contexts, params)):
            _check_independent(np.asarray(jax.vmap(params.features)(contexts.x, contexts.query)), "features")
        return optax.EmptyState()

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params must be given: precondition takes the features from them.")
        f = jax.vmap(params.features)(contexts.x, contexts.query)
        gram = f @ f.T
        y = f.T @ jnp.linalg.solve(gram, jnp.linalg.solve(gram, f @ updates.y))
        return eqx.tree_at(lambda m: m.y, updates, y), state

    return optax.GradientTransformation(init, update)


def _check_independent(rows: np.ndarray, name: str) -> None:
    values = np.linalg.svd(rows.astype(float), compute_uv=False)
    rank = int(np.sum(values > max(rows.shape) * float(jnp.finfo(rows.dtype).eps) * np.max(values, initial=0)))
    if rank < len(rows):
        raise ValueError(f"{name} must be linearly independent, got {len(rows)} rows of rank {rank}.")


@checked
class SequenceClasses(eqx.Module):
    """The paper's data: for each class a next token, its query ψ(n), and the distribution `P(l|n)` of its context.

    **Fields:** `probability`, shape `(classes, vocabulary)`; `query` and `next_token`, token numbers, shape
    `(classes,)`, classes being equally frequent. Made from them: `keys`, the tokens that occur in a context, and
    `table`, `P(l|n)` over these alone; `queries`, the tokens that are a query, and `query_number`, the place of each
    class's query among them; `support` and `cumulative`, each class's own tokens and their distribution function.
    Contexts (`expected`, `contexts`) are written in these smaller numberings, with the class as label; sequences in
    token numbers.

    **Raises** `ValueError` for a table with negative entries or rows that do not sum to one (a class without tokens
    among them), numbers outside the vocabulary, more classes than tokens, a next token shared by two classes, and a
    query among its own keys. The values must be known: build it outside `jit`.

    Source: Scan and Snap (arXiv 2305.16380), section 3.
    """

    probability: Float[Array, "classes vocabulary"]
    query: Int[Array, " classes"]
    next_token: Int[Array, " classes"]
    keys: Int[Array, " tokens"]
    queries: Int[Array, " queries"]
    query_number: Int[Array, " classes"]
    table: Float[Array, "classes tokens"]
    support: Int[Array, "classes most"]
    cumulative: Float[Array, "classes most"]

    def __init__(
        self,
        probability: Float[ArrayLike, "classes vocabulary"],
        query: Int[ArrayLike, " classes"],
        next_token: Int[ArrayLike, " classes"] | None = None,
    ):
        """`next_token` is by default the first tokens of the vocabulary, as in the paper."""
        if not concrete((probability, query, next_token)):
            raise ValueError("probability, query and next_token must be known: build the classes outside jit and vmap.")
        p, psi = np.asarray(probability), np.asarray(query)
        if 0 in p.shape:
            raise ValueError(f"probability must have shape (classes, vocabulary), none of them zero, got {p.shape}.")
        classes, vocabulary = p.shape
        if classes > vocabulary:
            raise ValueError(f"probability has more next tokens ({classes} classes) than tokens ({vocabulary}).")
        _check_distributions(p)
        following = np.arange(classes) if next_token is None else np.asarray(next_token)
        for name, numbers in {"query": psi, "next_token": following}.items():
            indices(name, numbers, vocabulary, (classes,))
        if len(set(following.tolist())) < classes:
            raise ValueError("next_token must differ from class to class.")
        own = np.flatnonzero(p[np.arange(classes), psi] > 0)
        if own.size:
            raise ValueError(
                f"query must not be among its own keys: token {psi[own[0]]} is the query of class {own[0]} and has "
                f"probability {p[own[0], psi[own[0]]]:.3g} in its context."
            )
        keys = np.flatnonzero((p > 0).any(axis=0))
        queries, number = np.unique(psi, return_inverse=True)
        table = p[:, keys]
        support = np.argsort(table == 0, axis=1, kind="stable")[:, : np.max(np.sum(table > 0, axis=1))]
        cumulative = np.cumsum(np.take_along_axis(table, support, axis=1), axis=1)
        cumulative[cumulative >= cumulative[:, -1:]] = 1  # rounding must not leave a gap below one
        self.probability, self.table, self.cumulative = (jnp.asarray(x) for x in (p, table, cumulative))
        self.query, self.next_token, self.keys = (jnp.asarray(x) for x in (psi, following, keys))
        self.queries, self.query_number, self.support = (jnp.asarray(x) for x in (queries, number, support))

    def expected(self) -> Contexts:
        """The limit of long sequences, exactly: one context a class, its frequencies being the probabilities."""
        return Contexts(self.table, jnp.arange(self.query.shape[0]), self.query_number)

    @checked
    def contexts(self, batch: int, length: int) -> "ContextSampler":
        """A sampler for `train` of `batch` sequences of `length` tokens (the query is one), as frequencies."""
        return ContextSampler(self, batch, length)

    @checked
    def sequences(self, batch: int, length: int) -> "SequenceSampler":
        """A sampler of `(sequence, next token)`, shapes `(batch, length)` and `(batch,)`, in token numbers."""
        return SequenceSampler(self, batch, length)

    @checked
    def network(self, *, outputs: int | None = None, **options: Any) -> YZTransformer:
        """A `YZTransformer` of matching sizes; by default its softmax is over the whole vocabulary."""
        classes, vocabulary = self.probability.shape
        outputs = vocabulary if outputs is None else integer("outputs", outputs, least=classes)
        options.setdefault("dtype", self.probability.dtype)
        return YZTransformer(self.keys.shape[0], self.queries.shape[0], outputs, **options)


class _Sampler(eqx.Module):
    """Classes drawn uniformly, then tokens by inverting the class's distribution function on its own tokens, so that
    the cost does not depend on the size of the vocabulary."""

    classes: SequenceClasses
    batch: int = eqx.field(static=True)
    length: int = eqx.field(static=True)

    def __check_init__(self):
        integer("length", self.length, least=2)  # a context and the query
        check_sizes(batch=self.batch)

    def _draw(self, key: AnyKey) -> tuple[Int[Array, " batch"], Float[Array, "batch context"]]:
        label_key, token_key = jax.random.split(key)
        cumulative = self.classes.cumulative
        label = jax.random.randint(label_key, (self.batch,), 0, cumulative.shape[0])
        return label, jax.random.uniform(token_key, (self.batch, self.length - 1), cumulative.dtype)


@checked
class ContextSampler(_Sampler):
    """`(key) -> Contexts`: made by `SequenceClasses.contexts`."""

    @checked
    def __call__(self, key: AnyKey) -> Contexts:
        label, u = self._draw(key)
        below = jnp.sum(u[:, :, None] < self.classes.cumulative[label][:, None, :], axis=1)
        counts = jnp.diff(below, axis=1, prepend=0)
        x = jnp.zeros((self.batch, self.classes.keys.shape[0]), u.dtype)
        rows = jnp.arange(self.batch)[:, None]
        x = x.at[rows, self.classes.support[label]].add(counts.astype(u.dtype) / (self.length - 1))
        return Contexts(x, label, self.classes.query_number[label])


@checked
class SequenceSampler(_Sampler):
    """`(key) -> (sequence, next token)`: made by `SequenceClasses.sequences`."""

    @checked
    def __call__(self, key: AnyKey) -> tuple[Int[Array, "batch length"], Int[Array, " batch"]]:
        label, u = self._draw(key)
        place = jnp.sum(u[:, :, None] >= self.classes.cumulative[label][:, None, :], axis=2)
        context = self.classes.keys[jnp.take_along_axis(self.classes.support[label], place, axis=1)]
        sequence = jnp.concatenate([context, self.classes.query[label][:, None]], axis=1)
        return sequence, self.classes.next_token[label]


@checked
def distinct_and_common(
    classes: int,
    queries: int = 1,
    *,
    distinct: Float[ArrayLike, " distinct"] | Sequence[float] | None = None,
    common: Float[ArrayLike, " common"] | Sequence[float] | None = None,
    dtype: Any = None,
) -> SequenceClasses:
    """The paper's generator: every class has the same common tokens and distinct tokens of its own.

    `distinct`, `common`: their weights, by default `linspace(0.1, 1, 10)` and ten ones; a class draws each token in
    proportion to its weight. ψ gives each query the same number of consecutive classes. The vocabulary is the common
    tokens, the distinct ones class by class, the queries, and the next tokens.

    **Raises** `ValueError` for sizes below one, classes that the queries do not divide, and weights that are not
    positive.
    """
    check_sizes(classes=classes, queries=queries)
    if classes % queries:
        raise ValueError(f"classes must be a multiple of queries, got {classes} and {queries}.")
    distinct = np.linspace(0.1, 1, 10) if distinct is None else distinct
    common = np.ones(10) if common is None else common
    real("distinct", distinct, ("distinct",), above=0), real("common", common, ("common",), above=0)
    distinct, common = np.asarray(distinct, float), np.asarray(common, float)
    if distinct.size + common.size == 0:
        raise ValueError("distinct and common must not both be empty: a class needs tokens.")
    c, d = common.size, distinct.size
    contextual = c + classes * d
    p = np.zeros((classes, contextual + queries + classes))
    p[:, :c] = common
    for n in range(classes):
        p[n, c + n * d : c + (n + 1) * d] = distinct
    p = (p / p.sum(axis=1, keepdims=True)).astype(floating(dtype))
    psi = contextual + np.arange(classes) // (classes // queries)
    return SequenceClasses(p, psi, contextual + queries + np.arange(classes))


def _check_distributions(p: np.ndarray) -> None:
    if not np.all(p >= 0):
        n, token = np.argwhere(~(p >= 0))[0]
        raise ValueError(f"probability must not be negative or NaN, got {p[n, token]} for class {n}, token {token}.")
    sums = p.sum(axis=1)
    if np.any(sums == 0):
        raise ValueError(f"probability must leave each class a token, got zeros alone for class {np.argmin(sums)}.")
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > 1e-5:
        raise ValueError(f"each row of probability must sum to one, got {sums[worst]:.6g} for class {worst}.")
