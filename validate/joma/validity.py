"""Where JoMA's theorems stop holding: their error against training as the learning rate grows and as the assumption of
each is given up by degrees."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics.joma import (
    Attention,
    LinearActivation,
    LinearAttention,
    LinearAttentionState,
    ManyNodes,
    Mixture,
    MixtureState,
    NonlinearActivation,
    predicted_logits,
)
from ...nets import joma as nets
from ...nets.descent import descend, steps_to
from ...sweeps import Point
from ..cheap import end_of, uniforms
from ..validity import gap, validity_map
from . import PAPER
from ._shared import sgd
from .assumptions import bent, unlike

TIME = 2.0  # to which all train
SHARE = 0.74  # of the blow-up time, where there is one: whole steps reach at most 4/3 of the time asked for
LEAST = 1e-6  # a rate of the logits so small that what they move is of first order in it
TOKENS, NODES, CLASSES = 6, 3, 3
_ABSCISSAE, _WEIGHTS = np.polynomial.hermite_e.hermegauss(12)
_WEIGHTS = _WEIGHTS / math.sqrt(2 * math.pi)

LABELS = {  # a theorem, and what becomes of its assumption from strength 0 to 1
    "theorem_1_linear": "Theorem 1, linear: one query → two, as frequent",
    "theorem_1_exp": "Theorem 1, exp: A constant → A(x) of softmax",
    "theorem_1_softmax": "Theorem 1, softmax: samples alike → random",
    "theorem_1_b_bar": "Theorem 1, softmax, b̄ constant: η_Z/η_W = strength",
    "theorem_2": "Theorem 2: stationary gradient → squared loss",
    "many_nodes": "several nodes: stationary gradient → cross-entropy",
    "linear_attention": "linear attention: identity activation → tanh",
    "theorem_3": "Theorem 3, uniform attention: η_Z/η_W = strength",
    "theorem_4": "Theorem 4: critical point at rest → squared loss",
    "no_attention": "1 − v/μ = e^{−t} without attention: η_Z/η_W = strength",
}

CLAIMS_COVERED = {  # by each entry, the claims that it stands for
    "theorem_1_linear": ("joma.linear_invariant",),
    "theorem_1_exp": ("joma.exp_invariant", "joma.gd_invariant"),
    "theorem_1_softmax": ("joma.softmax_law",),
    "theorem_1_b_bar": ("joma.softmax_half",),
    "theorem_2": ("joma.erf_law", "joma.sgd_erf_law"),
    "many_nodes": ("joma.many_nodes",),
    "linear_attention": ("joma.linear_attention",),
    "theorem_3": ("joma.mixture_training",),
    "theorem_4": ("joma.implicit_law",),
    "no_attention": ("joma.no_attention",),
}
NOT_COVERED = {
    "joma.query_sum": "Theorem 1 again, summed over the queries whose number theorem_1_linear gives up",
    "joma.softmax_sum": "holds to rounding under descent, at any learning rate",
    "joma.gd_to_flow": "compares two trainings; the theorems' own limit is strength 0",
    "joma.adam_breaks": "says that a theorem fails, under another optimiser",
    "joma.text_invariant": "theorem_1_exp on text, which a sweep does not bring along",
    "joma.blow_up": "a time at which descent cannot be read: any learning rate steps over it",
    "joma.low_rank": "a limit at the blow-up, of the closed form that many_nodes has up to there",
    "joma.theta": "integrals, with no learning rate in them; theorem_3 uses them",
    "joma.lag_law": "late times of theorem_4's closed form, at which v has reached μ to rounding",
    "joma.entropy_bounce": "a rise or none, of entropies of theorem_4's and theorem_2's closed forms",
    "joma.entropy_bounce_ce": "a finding about training alone: no theory predicts a value",
}

Errors = dict[str, tuple[Array, Array]]  # by theorem: its error, and how far `assumptions` measures to be given up


def validity(point: Point) -> dict[str, Array]:
    """The relative error of each theorem against the block trained at `learning_rate` to t = 2 times `time`, on the
    random task of `seed`, with the theorem's assumption given up by `strength`, from 0 (it holds) to 1. NaN or infinite
    where descent has diverged."""
    return {name: error for name, (error, _) in beside_assumptions(point).items()}


def beside_assumptions(point: Point) -> Errors:
    """`validity`, each error beside the number that the assumption given up measures on the same network."""
    point = point | {name: jnp.asarray(point[name], float) for name in ("learning_rate", "strength", "time")}
    return {
        **invariants(point),
        **softmax_law(point),
        **one_node(point),
        **many_nodes(point),
        **linear_attention(point),
        **mixture(point),
        **critical_point(point),
    }


def invariants(point: Point) -> Errors:
    """Theorem 1, linear attention, on samples of one query, a second query growing as frequent; and exponential
    attention, whose normaliser is a constant, that of softmax attention coming in as `A(x)^strength`."""
    steps, _ = _steps(point)
    rate, s = point["learning_rate"], point["strength"]
    draw = _draw(point, x=(16, TOKENS), v=(TOKENS, NODES), z=(2, TOKENS), decoder=(NODES, CLASSES))
    x, query = (1 + draw["x"]) / 2, jnp.arange(16) // 8
    data = nets.Contexts(x, jnp.arange(16) % CLASSES, query)

    def by_query(model, data):
        """The second query makes up half of the samples at strength 1."""
        weight = jnp.where(data.query == 0, 2 - s, s)
        each = lambda x, label, query: nets.cross_entropy(model, nets.Contexts(x[None], label[None], query[None]))
        return jnp.mean(weight * jax.vmap(each)(*data))

    def normalised(model, data):
        total = data.x @ jnp.exp(model.z[0])  # exponential attention is linear in x
        return nets.cross_entropy(model, nets.Contexts(data.x / total[:, None] ** s, data.label, data.query))

    v, decoder = draw["v"] / 2, 2 * draw["decoder"]
    linear = _block("linear", v, 1.25 + draw["z"] / 4, decoder, activation=jnp.tanh)
    exp = _block("exp", v, draw["z"][:1] / 4, decoder, activation=jnp.tanh)
    one_query = nets.Contexts(x, data.label, jnp.zeros(16, int))
    errors = {}
    for start, loss, samples in ((linear, by_query, data), (exp, normalised, one_query)):
        end = descend(start, loss, samples, sgd(rate), steps)
        law: Attention = start.attention  # pyright: ignore[reportAssignmentType]
        predicted = predicted_logits(law, end.v, v0=start.v, z0=start.z[0])
        errors[f"theorem_1_{law}"] = gap(end.z[0], predicted, start.z[0]), s / 2  # of the samples have another query
    return errors


def softmax_law(point: Point) -> Errors:
    """Theorem 1, softmax attention. It assumes `E[g b bᵀ] = b̄ E[g b]ᵀ`, exact where all samples are alike, and given up
    as they become random; and a constant b̄, exact as η_Z/η_W goes to zero, given up as it goes to `strength`."""
    steps, _ = _steps(point)
    draw = _draw(point, x=(8, TOKENS), v=(TOKENS, NODES), g=(8, NODES))
    x, g = (1 + draw["x"]) / 2, 8 * draw["g"]
    mean = jnp.broadcast_to(jnp.mean(x, axis=0, keepdims=True), x.shape)
    start = _block("softmax", draw["v"] / 2)

    def error(spread, eta_z):
        x_i = mean + spread * (x - mean)
        end = descend(start, nets.stationary_loss, (x_i, g), sgd(point["learning_rate"], eta_z), steps)
        b_bar = jnp.mean(jax.vmap(start.attend)(x_i), axis=0)
        law = predicted_logits("softmax", end.v, v0=start.v, z0=start.z[0], rate_ratio=eta_z, b_bar=b_bar)
        first, last = (jax.vmap(model.attend)(x_i) for model in (start, end))
        return gap(end.z[0], law, start.z[0]), unlike(g, first), gap(jnp.mean(last, axis=0), b_bar)

    s = point["strength"]
    zero = jnp.zeros_like(s)
    both = jax.vmap(error)(jnp.stack([s, zero]), jnp.stack([zero + LEAST, jnp.maximum(s, LEAST)]))
    errors, different, moved = both
    return {"theorem_1_softmax": (errors[0], different[0]), "theorem_1_b_bar": (errors[1], moved[1])}


def one_node(point: Point) -> Errors:
    """Theorem 2: one node whose back-propagated gradient is stationary, and at strength 1 that of the squared loss,
    `g − h`."""
    steps, reached = _steps(point)
    draw = _draw(point, x=(8, TOKENS), g=(8, 1))
    x, s = (1 + draw["x"]) / 2, point["strength"]
    g = draw["g"] * _blow_up_scale(x.T @ draw["g"] / 8)

    def loss(model, data):
        return nets.stationary_loss(model, data) + s * jnp.mean(jax.vmap(model.hidden)(data[0]) ** 2) / 2

    end = descend(_block("exp", jnp.zeros((TOKENS, 1))), loss, (x, g), sgd(point["learning_rate"]), steps)
    law = LinearActivation((x.T @ g / 8)[:, 0]).exact(jnp.zeros(TOKENS), reached)
    change = gap(x.T @ (g - s * jax.vmap(end.hidden)(x)), x.T @ g)
    return {"theorem_2": (gap(end.v[:, 0], law), change)}


def many_nodes(point: Point) -> Errors:
    """Theorem 2 for several nodes: the gradient of the cross-entropy as it is at the start, and at strength 1 as
    it goes on."""
    steps, reached = _steps(point)
    draw = _draw(point, x=(9, TOKENS), decoder=(NODES, CLASSES))
    x, label, s = (1 + draw["x"]) / 2, jnp.arange(9) % CLASSES, point["strength"]
    back = (jax.nn.one_hot(label, CLASSES, dtype=x.dtype) - 1 / CLASSES) @ draw["decoder"].T
    scale = _blow_up_scale(x.T @ back / 9)
    data = (x, back * scale), nets.Contexts(x, label, jnp.zeros(9, int))

    def loss(model, data):
        return (1 - s) * nets.stationary_loss(model, data[0]) + s * nets.cross_entropy(model, data[1])

    start = _block("exp", jnp.zeros((TOKENS, NODES)), decoder=draw["decoder"] * scale)
    end = descend(start, loss, data, sgd(point["learning_rate"]), steps)
    law = ManyNodes(x.T @ back / 9 * scale).exact(jnp.zeros((TOKENS, NODES)), reached)
    gap_of_labels = jax.nn.one_hot(label, CLASSES, dtype=x.dtype) - jax.nn.softmax(jax.vmap(end)(x), axis=1)
    change = s * gap(x.T @ (gap_of_labels @ draw["decoder"].T), x.T @ back)
    return {"many_nodes": (gap(end.v, law), change)}


def linear_attention(point: Point) -> Errors:
    """The law `z₀ sinh ‖μ‖t` of linear attention, its activation going from the identity to tanh."""
    steps, reached = _steps(point)
    draw, s = _draw(point, x=(8, TOKENS), g=(8, NODES)), point["strength"]
    x = (1 + draw["x"]) / 2
    g = draw["g"] * (2 / TIME / _longest(x.T @ draw["g"] / 8))  # up to sinh 2

    def loss(model, data):
        x, g = data
        h = jax.vmap(model.hidden)(x)
        return -jnp.mean(jnp.sum(g * ((1 - s) * h + s * jnp.tanh(h)), axis=1))

    start = LinearAttentionState(jnp.zeros((TOKENS, NODES)), jnp.full(TOKENS, 0.5))
    end = descend(_block("linear", start.v, start.z[None]), loss, (x, g), sgd(point["learning_rate"]), steps)
    h = jax.vmap(end.hidden)(x)
    error = gap(end.v, LinearAttention(x.T @ g / 8).exact(start, reached).v)
    return {"linear_attention": (error, bent(h, (1 - s) * h + s * jnp.tanh(h)))}


def mixture(point: Point) -> Errors:
    """Theorem 3: an erf node under uniform attention on two Gaussian clusters, by quadrature, so that no sampling error
    is left; at strength 1 attention is trained at the rate of the node."""
    steps, reached = _steps(point)
    draw = _draw(point, centre=(2, 2), v=(2,))
    centres, start, sigma = 1.5 * draw["centre"], draw["v"] / 2, 0.5
    grid = np.stack(np.meshgrid(_ABSCISSAE, _ABSCISSAE), axis=-1).reshape(-1, 2)
    weight = jnp.asarray(np.outer(_WEIGHTS, _WEIGHTS).ravel(), centres.dtype)
    x = (centres[:, None] + sigma * jnp.asarray(grid, centres.dtype)[None]).reshape(-1, 2)
    strength = jnp.asarray([2.0, -1.2], centres.dtype)
    g = x.shape[0] * (strength[:, None] * weight[None]).reshape(-1, 1)
    block = _block("linear", start[:, None], jnp.ones((1, 2)), activation=jax.scipy.special.erf)
    end = descend(block, nets.stationary_loss, (x, g), sgd(point["learning_rate"], point["strength"]), steps)
    flow = Mixture(centres, strength, sigma, activation="erf")
    start = MixtureState(start, jnp.zeros((), start.dtype))
    law = end_of(flow, start, reached)
    return {"theorem_3": (gap(end.v[:, 0], law.v, start.v), gap(end.z[0], block.z[0]))}


def critical_point(point: Point) -> Errors:
    """Theorem 4's model `v̇ = (μ − v)∘exp(v²/2)` on samples of one token each, where the squared loss of the block
    without attention is `v̇ = μ − v`. The model lets attention amplify the gradient but not the response `h`, so that
    the critical point stays; at strength 1 the response is that of the block, and the loss the squared loss. And
    without attention: the same loss, whose logits are trained at the rate `strength`."""
    steps, reached = _steps(point)
    mu = 1.5 + 0.75 * _draw(point, mu=(4,))["mu"]
    x = jnp.eye(4, dtype=mu.dtype)  # 2 E[x xᵀ] = I/2, a rate of its own

    def trained(strength, eta_z):
        def loss(model, data):
            x, target = data
            h = jax.vmap(model.hidden)(x)
            seen = (1 - strength) * x @ model.v + strength * h
            return -2 * jnp.mean(jax.lax.stop_gradient(target - seen) * h)

        block = _block("exp", jnp.zeros((4, 1)), residual=False)
        end = descend(block, loss, (x, mu[:, None]), sgd(point["learning_rate"], eta_z), steps)
        return end.v[:, 0]

    s = point["strength"]
    one = jnp.ones_like(s)
    with_attention, without = jax.vmap(trained)(jnp.stack([s, one]), jnp.stack([one, s]))
    return {
        "theorem_4": (gap(with_attention, NonlinearActivation(mu).exact(jnp.zeros_like(mu), reached / 2)), s),
        "no_attention": (gap(without, -mu * jnp.expm1(-reached / 2)), s),
    }


def _steps(point: Point) -> tuple[Array, Array]:
    return steps_to(TIME * point["time"], point["learning_rate"])


def _draw(point: Point, **shapes: tuple[int, ...]) -> dict[str, Array]:
    return uniforms(jax.random.key(point["seed"]), **shapes)


def _block(
    attention: str,
    v: Float[Array, "tokens nodes"],
    z: Float[Array, "queries tokens"] | None = None,
    decoder: Float[Array, "nodes classes"] | None = None,
    *,
    residual: bool = True,
    **options: Any,
) -> nets.JomaBlock:
    """The block from nodes and logits (by default zero), its residual biases being zero."""
    (tokens, nodes), queries = v.shape, 1 if z is None else z.shape[0]
    embeddings = jnp.eye(tokens + (queries if residual else 0), tokens + queries, dtype=v.dtype)
    model = nets.JomaBlock(
        tokens,
        nodes,
        classes=None if decoder is None else decoder.shape[1],
        queries=queries,
        attention=attention,
        embeddings=embeddings,
        key=jax.random.key(0),
        **options,
    )
    w = jnp.zeros((embeddings.shape[0], nodes), v.dtype).at[:tokens].set(v)
    model = eqx.tree_at(lambda m: (m.w, m.z), model, (w, jnp.zeros((1, tokens), v.dtype) if z is None else z))
    return model if decoder is None else eqx.tree_at(lambda m: m.decoder, model, decoder)


def _longest(delta: Float[Array, "tokens nodes"]) -> Float[Array, ""]:
    return jnp.max(jnp.linalg.norm(delta, axis=1))


def _blow_up_scale(delta: Float[Array, "tokens nodes"]) -> Float[Array, ""]:
    """What a gradient must be multiplied by for Theorem 2's blow-up to come at `TIME/SHARE`."""
    return math.sqrt(math.pi / 2) * SHARE / TIME / _longest(delta)


VALIDITY = validity_map(
    "joma.validity", "JoMA's theorems", validity, LABELS, rate=0.01, rates=np.geomspace(2e-3, 1.0, 12), paper=PAPER
)
