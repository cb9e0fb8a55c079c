"""Sentences of two entities and a relation, and what is trained on them to see what is learned in reverse.

Tokens 0 and 1 are the two relations; entities follow: A_i is `2 + i`, B_i comes after all A, C_i after all B. What is
left of the vocabulary never occurs. Networks of random initial weights know no order among tokens, so that fixed
numbers lose nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .._checked import checked
from .._checks import indices
from ._arguments import check_logits, check_sizes, check_some, floating, inside
from .contexts import Contexts


class Sentences(NamedTuple):
    """Sentences (first entity, relation, last entity), of which the last entity is to be predicted."""

    train: Int[Array, "train 3"]
    test: Int[Array, "test 3"]
    vocabulary: int


@checked
def reversal(pairs: int, both: int, *, vocabulary: int | None = None) -> Sentences:
    """`A_i → B_i` and `B_i ← A_i` for the first `both` of `pairs`. Of the others one direction is trained, forward and
    backward in turn, and the other is the test. Relation 0 is →, 1 is ←.

    In this order: `train` is A→B, B←A, then the single directions; `test` their reversals, row by row.

    **Raises** `ValueError` unless `0 ≤ both < pairs`, and for a `vocabulary` that cannot hold all tokens (by default
    it just does).
    """
    _check("pairs", pairs, "both", both)
    vocabulary = _vocabulary(vocabulary, 2 * pairs + 2)
    a, b = 2 + np.arange(pairs), 2 + pairs + np.arange(pairs)
    forward, backward = _sentences(a, 0, b), _sentences(b, 1, a)
    turn = np.arange(pairs - both)[:, None] % 2 == 0
    known, test = np.where(turn, forward[both:], backward[both:]), np.where(turn, backward[both:], forward[both:])
    train = np.concatenate([forward[:both], backward[:both], known])
    return Sentences(jnp.asarray(train), jnp.asarray(test), vocabulary)


@checked
def chain_of_thought(triples: int, direct: int, *, vocabulary: int | None = None) -> Sentences:
    """`A_i → B_i` and `B_i → C_i` for all of `triples`, `A_i ⇝ C_i` for the first `direct`; the test is `A_i ⇝ C_i` for
    the others. Relation 0 is →, 1 is ⇝.

    In this order: `train` is A→B, B→C, A⇝C.

    **Raises** `ValueError` unless `0 ≤ direct < triples`, and for a `vocabulary` that cannot hold all tokens.
    """
    _check("triples", triples, "direct", direct)
    vocabulary = _vocabulary(vocabulary, 3 * triples + 2)
    a, b, c = (2 + i * triples + np.arange(triples) for i in range(3))
    first, second, both = _sentences(a, 0, b), _sentences(b, 0, c), _sentences(a, 1, c)
    train = np.concatenate([first, second, both[:direct]])
    return Sentences(jnp.asarray(train), jnp.asarray(both[direct:]), vocabulary)


def _check(name: str, number: int, part: str, trained: int) -> None:
    check_sizes(**{name: number})
    if not 0 <= trained < number:
        raise ValueError(
            f"{part} must be at least 0 and below {name}={number}, or nothing is left to test, got {trained}."
        )


def _vocabulary(given: int | None, needed: int) -> int:
    if given is not None and given < needed:
        raise ValueError(f"vocabulary must be at least {needed} (all entities and two relations), got {given}.")
    return needed if given is None else given


def _sentences(first: np.ndarray, relation: int, last: np.ndarray) -> np.ndarray:
    return np.stack([first, np.full_like(first, relation), last], axis=1)


@checked
def contexts(sentences: Int[Array, "samples 3"], vocabulary: int, *, dtype: Any = None) -> Contexts:
    """The sentences for the one-layer transformer: the first entity is the context, the relation the query, the last
    entity the label. **Raises** `ValueError` for tokens that are not of the vocabulary; inside `jit` such a first
    entity leaves the context empty."""
    check_sizes(vocabulary=vocabulary)
    indices("sentences", sentences, vocabulary)
    x = jax.nn.one_hot(sentences[:, 0], vocabulary, dtype=floating(dtype))
    return Contexts(x, sentences[:, 2], sentences[:, 1])


class Recall(NamedTuple):
    """What a causal model makes of sentences.

    `loss`: the cross-entropy of each last entity after the first entity and the relation, in nats. `weights`: the
    logits of every token after the first entity alone, whatever relation comes next; at `[:, last]`, the logits of the
    sentences' last entities, a bright diagonal means that the pairs are stored.
    """

    loss: Float[Array, " samples"]
    weights: Float[Array, "samples vocabulary"]


@checked
def recall(
    model: Callable[[Int[Array, " two"]], Float[Array, "two vocabulary"]], sentences: Int[Array, "samples 3"]
) -> Recall:
    """Feeds the first two tokens of each sentence to a causal `model`, which gives logits of each next token.

    **Raises** `ValueError` for logits of another shape than `(2, vocabulary)`, and for tokens that the model has no
    logits of. Inside `jit` such a last entity has loss NaN.
    """
    logits = jax.vmap(lambda tokens: check_logits(model(tokens), 2))(sentences[:, :2])
    indices("sentences", sentences, logits.shape[-1])
    label = inside(sentences[:, 2], logits.shape[-1])
    return Recall(optax.softmax_cross_entropy_with_integer_labels(logits[:, 1], label), logits[:, 0])


@checked
class Bilinear(eqx.Module):
    """`p(y|x) ∝ exp(v_xᵀ Θ v_y)` over all tokens y: next-token prediction with one square matrix.

    **Trained:** `theta` Θ, shape `(width, width)`, by default from zero. **Fixed:** `vectors`, shape
    `(tokens, width)`, one a token (in the paper normal, of variance 1/width); weight decay would reach them. With
    `symmetric` the model uses `(Θ + Θᵀ)/2` in place of Θ.

    Source: Zhu et al. (arXiv 2405.04669), section 3. **Raises** `ValueError` for shapes that do not fit.
    """

    vectors: Float[Array, "tokens width"]
    theta: Float[Array, "width width"]
    symmetric: Bool[Array, ""]

    def __init__(
        self,
        vectors: Float[Array, "tokens width"],
        theta: Float[Array, "width width"] | None = None,
        *,
        symmetric: Bool[ArrayLike, ""] = False,
    ):
        width = vectors.shape[1]
        self.vectors = vectors
        self.theta = jnp.zeros((width, width), vectors.dtype) if theta is None else theta
        self.symmetric = jnp.asarray(symmetric)

    @checked
    def __call__(self, token: Int[Array, ""]) -> Float[Array, " tokens"]:
        """The logits of the token after `token`. Inside `jit` one beyond the last is taken for it."""
        indices("token", token, self.vectors.shape[0])
        vectors = jax.lax.stop_gradient(self.vectors)
        theta = jnp.where(self.symmetric, (self.theta + self.theta.T) / 2, self.theta)
        return vectors[token] @ theta @ vectors.T


@checked
def pair_loss(model: Bilinear, pairs: Int[Array, "pairs 2"]) -> Float[Array, ""]:
    """Mean cross-entropy of the second token of each pair after the first, in nats. The pairs of sentences are
    `sentences[:, ::2]`. **Raises** `ValueError` for no pairs and for tokens without a vector; inside `jit` such a
    second one makes it NaN."""
    check_some("pairs", pairs.shape[0])
    tokens = model.vectors.shape[0]
    indices("pairs", pairs, tokens)
    logits = jax.vmap(model)(pairs[:, 0])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, inside(pairs[:, 1], tokens)))
