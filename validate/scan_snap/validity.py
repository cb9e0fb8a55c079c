"""Where the theorems of Scan and Snap stop holding: their error against training as the learning rate grows and as the
assumption of each is given up by degrees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ...dynamics.scan_snap import Decoder, PhaseTransition, SymmetricAttention, SymmetricDecoder, backprop_coefficients
from ...nets import scan_snap as nets
from ...nets.descent import descend, steps_to
from ...sweeps import Point
from ..cheap import end_of, uniforms
from ..validity import gap, validity_map
from . import PAPER
from .assumptions import unlike

TIME = 20.0  # to which all train: past the end of scanning, K ln M
LEAST = 1e-6  # a rate of attention so small that what it moves is of first order in it
CLASSES, DISTINCT, OUTPUTS = 3, 2, 8  # next tokens, distinct tokens of each, and the softmax of tiers A and C
OWN = slice(0, 1 + DISTINCT)  # the tokens of the first class: the common one, then its distinct ones

ENTRIES = {  # a theorem, and what becomes of its assumption from strength 0 to 1; then the claims that it stands for
    "decoder": ("Lemma 7, decoder: no common token → one", "decoder_law"),
    "theorem_1": ("Theorem 1: preconditioned decoder → plain", "backprop", "three_tiers"),
    "symmetric_decoder": ("tier B's decoder: classes alike → random", "symmetric_decoder"),
    "lemma_4": ("Lemma 4, tier A: η_Z/η_Y = strength", "lemma_4"),
    "theorem_4": ("Theorem 4, C₀ of the start: η_Z/η_Y = strength", "phase_transition"),
    "law": ("tier B's law of attention: η_Z/η_Y = strength", "law"),
    "finite_length": ("tier B's law: contexts of 1/strength tokens", "finite_length"),
    "theorem_3": ("Theorem 3: top distinct token → common", "relative_gain"),
}
LABELS = {name: label for name, (label, *_) in ENTRIES.items()}
CLAIMS_COVERED = {name: tuple(f"scan_snap.{claim}" for claim in claims) for name, (_, *claims) in ENTRIES.items()}
NOT_COVERED = {
    "scan_snap.gradients": "an identity of two gradients: no learning rate in it",
    "scan_snap.population_flow": "an identity of two flows: no learning rate in it",
    "scan_snap.decoder_sgd": "one sample a step has a recursion of its own, exact at any learning rate",
    "scan_snap.fates": "signs, which have no relative error; their sizes are lemma_4's",
    "scan_snap.phase_diagram": "a map over both learning rates already, of a time without a closed form",
    "scan_snap.figure_4": "a published experiment: no theorem predicts its values",
    "scan_snap.figure_6": "a published experiment: no theorem predicts its values",
    "scan_snap.eviction": "which tokens a cache keeps, with no prediction of a value",
    "scan_snap.text_attention": "a finding on text, beyond the assumptions of every theorem",
}

Errors = dict[str, tuple[Array, Array]]  # by theorem: its error, and how far `assumptions` measures to be given up


def validity(point: Point) -> dict[str, Array]:
    """The relative error of each theorem against the network trained at `learning_rate` to t = 20 times `time`, on the
    random table of `seed`, with the theorem's assumption given up by `strength`, from 0 (it holds) to 1. NaN or
    infinite where descent has diverged."""
    return {name: error for name, (error, _) in beside_assumptions(point).items()}


def beside_assumptions(point: Point) -> Errors:
    """`validity`, each error beside the number that the assumption given up measures on the same network."""
    point = point | {name: jnp.asarray(point[name], float) for name in ("learning_rate", "strength", "time")}
    draw = uniforms(jax.random.key(point["seed"]), common=(), distinct=(DISTINCT,))
    # How often a class draws the common token and its distinct ones, but for a factor; the last one most often.
    weights = 0.6 + 0.2 * draw["common"], jnp.linspace(0.5, 1.0, DISTINCT) + 0.1 * draw["distinct"]
    theorems = orthogonal_decoder, back_propagated, symmetric_decoder, slow_attention, plain_attention, relative_gain
    return {name: error for theorem in theorems for name, error in theorem(point, *weights).items()}


def orthogonal_decoder(point: Point, common: Array, distinct: Array) -> Errors:
    """Lemmas 5 to 7: the logits `(M−1) h ζ_n` of classes that share no token; at strength 1 all of them share
    one as frequent as the most frequent of their own."""
    data = _contexts(point["strength"] * distinct[-1], distinct)
    end, reached = _trained(point, OUTPUTS, data)
    h = Decoder(OUTPUTS, CLASSES, 1.0).exact(0.0, reached)
    zeta = OUTPUTS / (OUTPUTS - 1) * (jnp.eye(CLASSES, OUTPUTS) - 1 / OUTPUTS)
    x = data.x / jnp.linalg.norm(data.x, axis=1, keepdims=True)
    return {"decoder": (gap(jax.vmap(end)(data.x), (OUTPUTS - 1) * h * zeta), x[0] @ x[1])}


def back_propagated(point: Point, common: Array, distinct: Array) -> Errors:
    """Theorem 1: of the gradient `γ(ι_n f_n − Σ β_nn' f_n')` that comes back to attention at rest, what moves it: the
    part across f_n. It assumes a decoder whose classes do not mix, which takes preconditioned descent; at strength 1 it
    is descent on the real network."""
    data, s = _contexts(common, distinct), point["strength"]
    transform = nets.precondition(data)

    def mix(updates, state, params=None):
        new, state = transform.update(updates, state, params)
        return jax.tree.map(lambda a, b: (1 - s) * a + s * b, new, updates), state

    mixing = optax.GradientTransformation(transform.init, mix)
    end, reached = _trained(point, OUTPUTS, data, eta_z=0.0, transform=mixing)
    f = jax.vmap(end.features)(data.x)
    back = (jnp.eye(CLASSES, OUTPUTS) - jax.nn.softmax(f @ end.y, axis=1)) @ end.y.T
    iota, beta = backprop_coefficients(f, OUTPUTS)
    gamma = Decoder(OUTPUTS, CLASSES, 1.0).gamma(reached)
    across = lambda g: g - f * jnp.sum(f * g, axis=1, keepdims=True)
    return {"theorem_1": (gap(across(back), across(gamma * (iota[:, None] * f - beta @ f))), s)}


def symmetric_decoder(point: Point, common: Array, distinct: Array) -> Errors:
    """Tier B's closed form `a_n = (K−1) h_ρ/(1−ρ) ζ_n` for the logits of classes that are alike; at strength 1 their
    tokens are of random frequencies and the classes of other frequencies, attention standing still."""
    s = point["strength"]
    uneven = uniforms(jax.random.key(point["seed"]), by_class=(CLASSES, 1 + DISTINCT), share=(CLASSES,))
    share = jax.nn.softmax(s * uneven["share"])

    def loss(model, data):
        logits = jax.vmap(model)(data.x, data.query)
        return jnp.sum(share * optax.softmax_cross_entropy_with_integer_labels(logits, data.label))

    data = _contexts(common, distinct, jnp.exp(s * uneven["by_class"]))
    end, reached = _trained(point, CLASSES, data, loss, eta_z=0.0)
    f = jax.vmap(end.features)(data.x)
    gram, eye = f @ f.T, jnp.eye(CLASSES, dtype=f.dtype)
    rho = (jnp.sum(gram) - jnp.trace(gram)) / (CLASSES * (CLASSES - 1))
    own, other = SymmetricDecoder(rho, CLASSES, CLASSES).from_zero(reached)
    law = ((1 - rho) * eye + rho) @ ((own - other) * eye + other)
    return {"symmetric_decoder": (gap(f @ end.y, law), unlike(gram, share))}


def slow_attention(point: Point, common: Array, distinct: Array) -> Errors:
    """Tier A: Lemma 4, and Theorem 4's `¼ ln(1 + 4Γ/C₀)` with the C₀ of attention's first speed. Both assume
    η_Z ≪ η_Y: their ratio is `strength`."""
    data, eta_z = _contexts(common, distinct), jnp.maximum(point["strength"], LEAST)
    end, reached = _trained(point, OUTPUTS, data, eta_z=eta_z, transform=nets.precondition(data))
    flow = SymmetricAttention(common[None], distinct, CLASSES, outputs=OUTPUTS, eta_z=eta_z)
    z, zero, decoder = end.z[0, OWN], jnp.zeros(1 + DISTINCT), Decoder(OUTPUTS, CLASSES, 1.0)
    speed = -flow(reached, zero)[0] / decoder.gamma(reached)
    snap = PhaseTransition(decoder, eta_z, eta_z / speed)
    errors = {"lemma_4": gap(z, end_of(flow, zero, reached)), "theorem_4": gap(z[0], snap.exact(0.0, reached))}
    return {name: (error, point["strength"]) for name, error in errors.items()}


def plain_attention(point: Point, common: Array, distinct: Array) -> Errors:
    """Tier B's law of the common token, `½ ln(1 + (η_Z/η_Y) K²(K−1) h² ρ₀/(1−ρ₀))`. It assumes η_Z ≪ η_Y, and their
    ratio is `strength`; and sequences without end, whose length is 1/`strength` in the second entry."""
    expected, s = _contexts(common, distinct), point["strength"]

    def loss(model, inverse_length):
        """Contexts with the mean and the covariance of `P(l|n)` counted over so many tokens: with probability P(l|n)
        the mixture of P and of token l alone, in which token l weighs 1/√length. From ten tokens on the error is that
        of drawn contexts to 0.003, and at one token exactly; between two and five it is rougher."""
        part = jnp.sqrt(inverse_length)
        eye = jnp.eye(expected.x.shape[1], dtype=part.dtype)
        logits = jax.vmap(lambda p: jax.vmap(lambda token: model((1 - part) * p + part * token))(eye))(expected.x)
        label = jnp.broadcast_to(expected.label[:, None], logits.shape[:2])
        return jnp.sum(expected.x * optax.softmax_cross_entropy_with_integer_labels(logits, label)) / CLASSES

    def error(eta_z, inverse_length):
        end, reached = _trained(point, CLASSES, inverse_length, loss, eta_z=eta_z)
        return gap(end.z[0, 0], -SymmetricAttention(common[None], distinct, CLASSES, eta_z=eta_z).law(reached))

    zero = jnp.zeros_like(s)
    by_ratio, by_length = jax.vmap(error)(jnp.stack([jnp.maximum(s, LEAST), zero + LEAST]), jnp.stack([zero, s]))
    return {"law": (by_ratio, s), "finite_length": (by_length, s)}


def relative_gain(point: Point, common: Array, distinct: Array) -> Errors:
    """Theorem 3 in the real network: `r(t) = r(0) e^{2z}` of the most frequent distinct token against the other; at
    strength 1 the token is as frequent in the other classes, and so not distinct."""
    data = _contexts(common, distinct, overlap=point["strength"])
    z = _trained(point, OUTPUTS, data, eta_z=LEAST)[0].z[0, OWN]  # the theorem holds for η_Z ≪ η_Y
    ratio = (distinct[1] / distinct[0]) ** 2
    gain = jnp.log1p(ratio * jnp.expm1(2 * (z[2] - z[1])) / (ratio - 1))  # ln r(t)/r(0)
    return {"theorem_3": (gap(2 * z[2], gain), jnp.minimum(point["strength"], 1 - point["strength"]))}


def _contexts(
    common: Array, distinct: Array, by_class: Array | float = 1.0, overlap: Array | float = 0.0
) -> nets.Contexts:
    """One context a class, its frequencies being `P(l|n)`: the common token, then the distinct tokens class by class.
    `by_class` multiplies a class's own tokens; `overlap` is the share of each most frequent token in other classes."""
    eye = jnp.eye(CLASSES, dtype=distinct.dtype)
    own = jnp.broadcast_to(jnp.append(common, distinct), (CLASSES, 1 + DISTINCT)) * by_class
    spread = (eye[:, :, None] * own[:, None, 1:]).at[:, :, -1].add(overlap * (1 - eye) * distinct[-1])
    x = jnp.concatenate([own[:, :1], spread.reshape(CLASSES, -1)], axis=1)
    return nets.Contexts(x / jnp.sum(x, axis=1, keepdims=True), jnp.arange(CLASSES), jnp.zeros(CLASSES, int))


def _trained(point: Point, outputs: int, data, loss=nets.cross_entropy, *, eta_z: Any = 1.0, transform=None):
    """The network at the end of descent, and the time that it reached. `transform` comes before the learning rates."""
    steps, reached = steps_to(TIME * point["time"], point["learning_rate"])
    descent = nets.sgd(point["learning_rate"], eta_z=eta_z)
    optimiser = descent if transform is None else optax.chain(transform, descent)
    return descend(nets.YZTransformer(1 + CLASSES * DISTINCT, 1, outputs), loss, data, optimiser, steps), reached


RATES, THEOREMS = np.geomspace(0.02, 10.0, 12), "the theorems of Scan and Snap"
VALIDITY = validity_map("scan_snap.validity", THEOREMS, validity, LABELS, rate=0.1, rates=RATES, paper=PAPER)
