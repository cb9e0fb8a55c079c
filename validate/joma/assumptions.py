"""What JoMA's theorems assume of a block and its data, as numbers that are 0 where it holds exactly."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...nets.contexts import Contexts
from ...nets.joma import JomaBlock
from ..assumptions import Assumption, Seen, relative
from ..curves import CURVES
from ..networks import JOMA


def kind(sentence: str, name: str, holds, word: str = "") -> Assumption:
    """What a theorem is about: networks for which `holds(model)` is false are none of its business."""
    is_one = lambda seen: 0.0 if all(map(holds, seen.models)) else None
    return Assumption(sentence, name=name, network=JOMA, measure=is_one, regime=(word, ""))


def other_queries(seen: Seen) -> float:
    """The fraction of the samples whose query is not the most frequent one. Pairs `(x, g)` have one query."""
    if not isinstance(seen.data, Contexts):
        return 0.0
    counts = np.bincount(np.asarray(seen.data.query))
    return float(1 - counts.max() / counts.sum())


def off_orthonormal(model: JomaBlock) -> float:
    """`‖UᵀU − I‖_F / √n` over the n embeddings of tokens and queries."""
    if model.u_c is None:
        return 0.0
    u = np.concatenate([np.asarray(model.u_c), np.asarray(model.u_q)], axis=1)
    return relative(u.T @ u - np.eye(u.shape[1]), np.eye(u.shape[1]))


def frequencies(data: tuple[Array, ...]) -> tuple[Float[Array, "samples tokens"], Array]:
    """Of `Contexts` or of pairs `(x, g)`: the token frequencies, and the number of each sample's query."""
    x = jnp.asarray(data[0])
    return x, (data.query if isinstance(data, Contexts) else jnp.zeros(x.shape[0], int))


def back_propagated(model: JomaBlock, data: tuple[Array, ...]) -> Float[Array, "samples nodes"]:
    """g, the negative gradient of a sample's loss with respect to the hidden nodes."""
    if not isinstance(data, Contexts):
        return jnp.asarray(data[1])
    logits = jax.vmap(model)(data.x, data.query)
    gap = jax.nn.one_hot(data.label, logits.shape[1], dtype=logits.dtype) - jax.nn.softmax(logits, axis=1)
    return gap if model.decoder is None else gap @ model.decoder.T


def drive(model: JomaBlock, data: tuple[Array, ...]) -> Float[Array, "tokens nodes"]:
    """`Δ = E[x gᵀ]`, which drives the nodes: `v̇ = Δ∘exp(v²/2)/A` for one node at a stationary gradient."""
    x, _ = frequencies(data)
    return x.T @ back_propagated(model, data) / x.shape[0]


def mean_attention(model: JomaBlock, data: tuple[Array, ...]) -> Float[Array, " tokens"]:
    """b̄, the attention averaged over the samples."""
    return jnp.mean(jax.vmap(model.attend)(*frequencies(data)), axis=0)


def unlike(g: Float[Array, "samples nodes"], b: Float[Array, "samples tokens"]) -> Float[Array, ""]:
    """How far `E[g b bᵀ] = b̄ E[g b]ᵀ` is off, over all nodes: ‖difference‖ / ‖E[g b bᵀ]‖. Traced or not."""
    both = jnp.einsum("sk,sl,sm->klm", g, b, b) / b.shape[0]
    apart = jnp.einsum("l,km->klm", jnp.mean(b, axis=0), g.T @ b / b.shape[0])
    return jnp.linalg.norm((both - apart).ravel()) / jnp.linalg.norm(both.ravel())


def bent(before: Float[Array, "..."], after: Float[Array, "..."]) -> Float[Array, ""]:
    """How far an activation is from the identity on `before`: ‖after − before‖ / ‖before‖. Traced or not."""
    return jnp.linalg.norm((after - before).ravel()) / jnp.linalg.norm(before.ravel())


def _activated(seen: Seen) -> float:
    def off(model: JomaBlock) -> float:
        x, query = frequencies(seen.data)
        before = jax.vmap(model.attend)(x, query) @ model.v + model.beta[query]
        return float(bent(before, jax.vmap(model.activation)(before))) if jnp.any(before != 0) else 0.0

    return seen.largest(off)


def _softmax(model: JomaBlock) -> bool:
    return model.attention == "softmax"


def _even(model: JomaBlock) -> bool:
    """Uniform attention is linear attention with equal logits."""
    spread = jnp.max(model.z) - jnp.min(model.z)
    return model.attention == "linear" and bool(spread <= 0.5 * jnp.max(jnp.abs(model.z)))


LINEAR_ATTENTION = kind("linear attention", "linear attention", lambda m: m.attention == "linear", "linear attention")
EXPONENTIAL = kind(
    "exponential attention", "exponential attention", lambda m: m.attention == "exp", "exponential attention"
)
SOFTMAX = kind("softmax attention", "softmax attention", _softmax, "softmax attention")
UNNORMALISED = kind("linear or exponential attention", "attention without softmax", lambda m: not _softmax(m))
ONE_NODE_EXP = kind("one node, exponential attention", "one node", lambda m: m.attention == "exp" and m.w.shape[1] == 1)
UNIFORM = kind("uniform attention", "uniform attention", _even)
AT_REST = Assumption(
    "attention stays at rest",
    name="attention at rest",
    network=JOMA,
    measure=lambda seen: seen.change(lambda m: m.z) if all(map(_even, seen.models)) else None,
    curves=CURVES["joma: attention at rest"],
    regime=("attention at rest", "moving attention"),
    over_time=True,
)
ONE_QUERY = Assumption(
    "all samples share one query",
    name="one query",
    network=JOMA,
    measure=other_queries,
    curves=CURVES["joma: one query"],
)
ORTHONORMAL = Assumption(
    "orthonormal embeddings",
    name="orthonormal embeddings",
    network=JOMA,
    measure=lambda seen: seen.largest(off_orthonormal),
    curves=CURVES["joma: orthonormal embeddings"],
)
STATIONARY = Assumption(
    "the back-propagated gradient g is stationary",
    name="stationary gradient",
    network=JOMA,
    measure=lambda seen: seen.change(lambda m: drive(m, seen.data)),
    curves=CURVES["joma: stationary gradient"],
    regime=("stationary gradient", "moving gradient"),
    over_time=True,
)
CONSTANT_B = Assumption(
    "b̄ stays constant",
    name="constant b̄",
    network=JOMA,
    measure=lambda seen: seen.change(lambda m: mean_attention(m, seen.data)) if _softmax(seen.last) else None,
    curves=CURVES["joma: constant b̄"],
    regime=("constant b̄", "moving b̄"),
    over_time=True,
)
ALIKE = Assumption(
    "samples so alike that E[g b bᵀ] = b̄ E[g b]ᵀ",
    name="samples alike",
    network=JOMA,
    measure=lambda seen: (
        seen.largest(lambda m: unlike(back_propagated(m, seen.data), jax.vmap(m.attend)(*frequencies(seen.data))))
        if _softmax(seen.last)
        else None
    ),
    curves=CURVES["joma: samples alike"],
)
LINEAR = Assumption(
    "identity activation",
    name="identity activation",
    network=JOMA,
    measure=_activated,
    curves=CURVES["joma: identity activation"],
)
