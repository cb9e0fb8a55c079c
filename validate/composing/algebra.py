"""Theorems 1 to 3: the loss as a function of potentials, the transform that it needs, the semi-ring."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import composing
from ...dynamics.composing import Weights
from ...dynamics.groups import Abelian, cyclic, product
from ..checks import at_most, evidence, rounding, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..pair_networks import SQUARE
from ..panels import heatmap
from ._shared import ALL_PAIRS, FINITE, random_element, some_groups

UNITS = 800  # of rounding


def _random_weights(setting: Setting, rng: np.random.Generator, *shape: int) -> Weights:
    return Weights(*(jnp.asarray(rng.normal(size=shape), setting.dtype) for _ in range(3)))


@partial(jax.jit, static_argnums=1)
def _losses(weights: Weights, group: Abelian):
    """Relative errors of the general and the printed formula, `(draws, as drawn or of zero means, 2)`."""

    def of(w):
        z = composing.from_weights(*w, group=group).z
        formulas = jnp.stack([composing.loss(z, group), composing.printed_loss(z, group)])
        return formulas / composing.direct_loss(w, group) - 1

    centred = lambda w: w - jnp.mean(w, axis=-2, keepdims=True)
    return jax.lax.map(lambda w: jnp.stack([of(w), of(Weights(centred(w.a), centred(w.b), w.c))]), weights)


@claim(
    "The loss is a sum over frequencies of squares of potentials. As printed this is exact where W_a and W_b have zero "
    "mean over the group. With A^p moved into the squares at (m, 0) and (0, m) it is exact for any real weights.",
    source="Theorem 1; the general form is derived here",
    assumptions=(ALL_PAIRS, FINITE, SQUARE, "real weights"),
    tex=r"\ell = 1 - \frac{1}{d} + \frac{1}{d} \sum_{k \neq 0} \ell_k(r)",
)
def loss_decomposition(setting: Setting) -> Evidence:
    rng, groups = setting.rng, some_groups(setting.scale)
    found = [_losses(_random_weights(setting, rng, 6, group.order, 12), group) for group in groups]
    (general, printed), (centred, printed_centred) = np.abs(np.array(found)).transpose(2, 3, 0, 1)
    typical, bound = np.median(printed, axis=1).min(), rounding(UNITS)
    cells = {"printed, zero means": printed_centred, "zero means": centred, "general": general, "printed": printed}
    worst = np.maximum(np.max([*cells.values()], axis=2), np.finfo(setting.dtype).eps / 4)
    axes = ("group", [g.name for g in groups]), ("formula", list(cells))
    control, errors = {"as printed, median of draws, least over groups": typical}, (general.max(), typical)
    as_printed = "ℓ = 1 − 1/d + (1/d) Σ_{k≠0} ℓ_k for all weights"
    corrected = "where W_a and W_b have zero mean over the group; else ½A^p belongs into the squares at (m, 0), (0, m)"
    return evidence(
        vanishes("printed formula, zero means, relative", printed_centred, within=bound),
        vanishes("general formula, any means, relative", general, control, within=bound),
        vanishes("general formula, zero means, relative", centred, within=bound),
        panels=[heatmap("relative error of the loss", *axes, worst, z_label="worst of 6 draws", log="z")],
        remarks=[f"The loss as printed errs by up to {printed.max():.2g} of it where means are not zero."],
        errata=[Erratum("Theorem 1", as_printed, corrected, *errors, "relative error of the loss")],
    )


# (turn, factor, sign of c): 1 for 2π, no division by d, one sign for a, b and c
SLIPS = {"2π": (1.0, 1 / 7, 1), "1/d": (2 * np.pi, 1.0, 1), "the sign of c": (2 * np.pi, 1 / 7, -1)}
LAWS = {  # each with how many of the slips break it
    "loss by the decomposition, relative": 3,
    "to_weights(from_weights(W)) − W": 3,
    "z less fft/d for a and b, ifft for c": 3,
    "z_{−k} − conj z_k": 1,
    "d‖z‖²/‖W‖² − 1": 2,
}


def _slipped(w: jax.Array, turn: float, factor: float, sign: int) -> jax.Array:
    """The transform as on the slides, with one of the `SLIPS`."""
    phase, signs = turn / 7 * np.outer(np.arange(7), np.arange(7)), np.array([-1, -1, sign])
    phi = jnp.asarray(factor * np.exp(1j * signs[:, None, None] * phase))
    phi = phi.astype(np.result_type(w.dtype, np.complex64))
    return phi @ w.astype(phi.dtype)


@jax.jit
def _transformed(weights: Weights) -> tuple[jax.Array, ...]:
    """By how much weights of Z_7 miss each of `LAWS`: with the right transform, then with each of the slips."""
    group, w = cyclic(7), jnp.stack(weights)
    # Numpy's FFT divides in its inverse only: fft/d for a and b, ifft for c.
    fast = jnp.concatenate([jnp.fft.fft(w[:2], axis=1) / 7, jnp.fft.ifft(w[2:], axis=1)])
    direct = composing.direct_loss(weights, group)

    def of(z):
        error = composing.loss(z, group) / direct - 1
        back, mirrored = jnp.stack(composing.to_weights(z, group)) - w, z[:, group.inverse] - jnp.conj(z)
        return error, back, jnp.abs(z - fast), jnp.abs(mirrored), 7 * jnp.sum(jnp.abs(z) ** 2) / jnp.sum(w**2) - 1

    right = composing.from_weights(*weights, group).z
    return jax.lax.map(of, jnp.stack([right, *(_slipped(w, *slip) for slip in SLIPS.values())]))


@claim(
    "z_akj = (1/d) Σ_m w_amj e^{−2πi mk/d}, b alike and c with the opposite sign, is the transform in which the "
    "decomposition holds. It inverts, ‖W‖² = d‖z‖², and z is Hermitian for real weights.",
    source="Section 3; the slides leave out 2π, 1/d and the sign of c",
    assumptions=("Z_d (for products the characters take the place of e^{2πi mk/d})", "real weights"),
    tex=r"z_{akj} = \frac{1}{d} \sum_m w_{amj} e^{-2\pi i mk/d},\quad \|W\|^2 = d\, \|z\|^2",
)
def transform(setting: Setting) -> Evidence:
    group = cyclic(7)
    weights = _random_weights(setting, setting.rng, 7, 12)
    errors = dict(zip(LAWS, map(np.asarray, _transformed(weights)), strict=True))
    loss, *slipped = np.abs(errors["loss by the decomposition, relative"])
    a, b, c = map(np.asarray, composing.f6(group).to_weights())
    outputs = np.einsum("mnj,sgj->smng", (a[:, None] + b[None]) ** 2, [c, c[group.inverse]])  # one sign for all: −g
    answers = np.argmax(outputs, axis=-1)
    wrong, mirrored = (answers != group.table).mean(axis=(1, 2))
    printed = "w_pmj = Σ_k z_pkj e^{imk/d} for p = a, b, c"
    measure = "relative error of the loss, the least over the three slips"
    corrected = "e^{2πi mk/d} for a and b, e^{−2πi mk/d} for c, and 1/d in the inverse"
    negated = (answers[1] == group.inverse[group.table]).mean()
    axes, titles = (("g1", np.arange(7)), ("g2", np.arange(7))), ("z_F6, Z7", "one sign for a, b, c: −(g1 + g2)")
    slips = lambda name: dict(zip([f"without {slip}" for slip in SLIPS][: LAWS[name]], errors[name][1:], strict=False))
    return evidence(
        *(vanishes(name, x[0], slips(name), within=rounding(UNITS)) for name, x in errors.items()),
        at_most("z_F6 answers g1 + g2: fraction wrong", wrong, 0.0, {"without the sign of c": mirrored}),
        panels=[heatmap(t, *axes, x, z_label="answer", limits=(0, 6)) for t, x in zip(titles, answers, strict=True)],
        remarks=[f"With one sign for a, b and c z_F6 answers −(g1 + g2) to {negated:.0%} of the pairs."],
        errata=[Erratum("section 3, the scaled Fourier transform", printed, corrected, loss, min(slipped), measure)],
    )


WRONG = {"r(y * z) = r(y) r(z)": "node j with node j only", "r(y + z) = r(y) + r(z)": "weights added"}


@claim(
    "Networks with + (nodes side by side) and * (each node with each, by frequency) are a commutative semi-ring, up to "
    "the order of nodes. Each potential is a homomorphism into ℂ, and ‖(y*z)_pk‖ = ‖y_pk‖ ‖z_pk‖.",
    source="Theorems 2 and 3; the norm identity is derived here",
    assumptions=(FINITE, "real weights, all potentials of order three"),
    tex=r"r(y + z) = r(y) + r(z),\quad r(y * z) = r(y)\, r(z)",
)
def semi_ring(setting: Setting) -> Evidence:
    rng = setting.rng
    first, second = (_errors(rng, group) for group in (cyclic(7), product(2, 3)))
    errors = {name: [first[name], second[name]] for name in first}
    wrong = {name: {label: min(errors.pop(label))} for name, label in WRONG.items()}
    cells, axes = np.maximum([*errors.values()], np.finfo(setting.dtype).eps / 4), ("group", ("Z7", "Z2×Z3"))
    return evidence(
        *(vanishes(name, x, wrong.get(name, {}), within=rounding(UNITS)) for name, x in errors.items()),
        panels=[heatmap("relative errors", axes, ("law", tuple(errors)), cells, z_label="error", log="z")],
    )


def _errors(rng: np.random.Generator, group: Abelian) -> dict[str, float]:
    """By how much each law is missed, and `WRONG` ones, relative to the size of its left side."""
    x, y, w = (random_element(rng, group, 4) for _ in range(3))
    one, zero, third = composing.one(group), composing.zero(group), 2.7 ** (1 / 3)
    potentials = jax.jit(lambda z: jnp.stack(composing.potentials(z)))
    r, sizes = lambda z: np.asarray(potentials(z)), lambda s: np.sum(np.abs(np.asarray(s.z)) ** 2, axis=2)
    rx, ry, probe = r(x.z), r(y.z), np.random.default_rng(0).normal(size=3 * group.order)

    def nodes(s):
        """In an order of their own, by a fixed random projection."""
        z = np.asarray(s.z).reshape(len(probe), -1)
        return z[:, np.argsort((probe @ z).real)]

    laws = {
        "r(y * z) = r(y) r(z)": (rx * ry, r((x * y).z)),
        "r(y + z) = r(y) + r(z)": (rx + ry, r((x + y).z)),
        "r(1) = 1": (np.ones_like(rx), r(one.z)),
        "r(t^⅓ z) = t r(z)": (2.7 * rx, r((x * third).z)),
        "‖(y*z)_pk‖² = ‖y_pk‖² ‖z_pk‖²": (sizes(x) * sizes(y), sizes(x * y)),
        "y + z = z + y": (nodes(x + y), nodes(y + x)),
        "y * z = z * y": (nodes(x * y), nodes(y * x)),
        "(x + y) + z = x + (y + z)": (nodes((x + y) + w), nodes(x + (y + w))),
        "(x * y) * z = x * (y * z)": (nodes((x * y) * w), nodes(x * (y * w))),
        "x * (y + z) = x * y + x * z": (nodes(x * (y + w)), nodes(x * y + x * w)),
        "1 * z = z": (nodes(one * x), nodes(x)),
        "0 + z = z": (nodes(zero + x), nodes(x)),
        "weights added": (rx + ry, r(x.z + y.z)),
        "node j with node j only": (rx * ry, r(x.z * y.z)),
    }
    return {name: float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for name, (a, b) in laws.items()}
