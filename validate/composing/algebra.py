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
from ..panels import heatmap
from ._shared import ALL_PAIRS, FINITE, random_element, some_groups

UNITS = 800  # of rounding


def _random_weights(rng: np.random.Generator, setting: Setting, draws: int, order: int, nodes: int) -> Weights:
    a, b, c = (jnp.asarray(rng.normal(size=(draws, order, nodes)), setting.dtype) for _ in range(3))
    return Weights(a, b, c)


@partial(jax.jit, static_argnums=1)
def _losses(weights: Weights, group: Abelian):
    """Relative errors of the general and the printed formula, `(draws, as drawn or of zero means, 2)`."""

    def of(w):
        z = composing.from_weights(w.a, w.b, w.c, group).z
        formulas = jnp.stack([composing.loss(z, group), composing.printed_loss(z, group)])
        return formulas / composing.direct_loss(w, group) - 1

    centred = lambda w: w - jnp.mean(w, axis=-2, keepdims=True)
    return jax.lax.map(lambda w: jnp.stack([of(w), of(Weights(centred(w.a), centred(w.b), w.c))]), weights)


@claim(
    "The loss is a sum over frequencies of squares of potentials. As printed this is exact where W_a and W_b have zero "
    "mean over the group. With A^p moved into the squares at (m, 0) and (0, m) it is exact for any real weights.",
    source="Theorem 1; the general form is derived here",
    assumptions=(ALL_PAIRS, FINITE, "real weights"),
    tex=r"\ell = 1 - \frac{1}{d} + \frac{1}{d} \sum_{k \neq 0} \ell_k(r)",
)
def loss_decomposition(setting: Setting) -> Evidence:
    rng, groups = setting.rng, some_groups(setting.scale)
    found = [_losses(_random_weights(rng, setting, 6, group.order, 12), group) for group in groups]
    (general, printed), (centred, printed_centred) = np.abs(np.array(found)).transpose(2, 3, 0, 1)
    typical = np.median(printed, axis=1).min()
    cells = {"printed, zero means": printed_centred, "zero means": centred, "general": general, "printed": printed}
    worst = [np.maximum(x.max(axis=1), np.finfo(setting.dtype).eps / 4) for x in cells.values()]
    axes = ("group", [g.name for g in groups]), ("formula", list(cells))
    control = {"as printed, median of draws, least over groups": typical}
    return evidence(
        vanishes("printed formula, zero means, relative", printed_centred, within=rounding(UNITS)),
        vanishes("general formula, any means, relative", general, control, within=rounding(UNITS)),
        vanishes("general formula, zero means, relative", centred, within=rounding(UNITS)),
        panels=[heatmap("relative error of the loss", *axes, worst, z_label="worst of 6 draws", log="z")],
        remarks=[f"The loss as printed errs by up to {printed.max():.2g} of it where means are not zero."],
        errata=[
            Erratum(
                "Theorem 1",
                "ℓ = 1 − 1/d + (1/d) Σ_{k≠0} ℓ_k for all weights",
                "where W_a and W_b have zero mean over the group; else ½A^p belongs into the squares at (m, 0), (0, m)",
                float(general.max()),
                float(typical),
                "relative error of the loss",
            )
        ],
    )


SLIPS = {"2π": {"turn": 1.0}, "1/d": {"divide": False}, "the sign of c": {"sign": -1}}
LAWS = {  # each with how many of the slips break it
    "loss by the decomposition, relative": 3,
    "to_weights(from_weights(W)) − W": 3,
    "z less fft/d for a and b, ifft for c": 3,
    "z_{−k} − conj z_k": 1,
    "d‖z‖²/‖W‖² − 1": 2,
}


def _slipped(weights: Weights, *, turn: float = 2 * np.pi, divide: bool = True, sign: int = 1) -> jax.Array:
    """As on the slides, on request: 1 for 2π, no division by d, one sign for a, b and c (−1)."""
    d = weights.a.shape[0]
    m = np.arange(d)
    phi = np.exp(-1j * turn * np.outer(m, m) / d) / (d if divide else 1)
    phi = jnp.asarray(np.stack([phi, phi, phi if sign < 0 else phi.conj()]))
    phi = phi.astype(np.result_type(weights.a.dtype, np.complex64))
    return phi @ jnp.stack(weights).astype(phi.dtype)


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

    right = composing.from_weights(weights.a, weights.b, weights.c, group).z
    return jax.lax.map(of, jnp.stack([right, *(_slipped(weights, **slip) for slip in SLIPS.values())]))


@claim(
    "z_akj = (1/d) Σ_m w_amj e^{−2πi mk/d}, b alike and c with the opposite sign, is the transform in which the "
    "decomposition holds. It inverts, ‖W‖² = d‖z‖², and z is Hermitian for real weights.",
    source="Section 3; the slides leave out 2π, 1/d and the sign of c",
    assumptions=("Z_d (for products the characters take the place of e^{2πi mk/d})", "real weights"),
    tex=r"z_{akj} = \frac{1}{d} \sum_m w_{amj} e^{-2\pi i mk/d},\quad \|W\|^2 = d\, \|z\|^2",
)
def transform(setting: Setting) -> Evidence:
    group = cyclic(7)
    weights = Weights(*(w[0] for w in _random_weights(setting.rng, setting, 1, 7, 12)))
    errors = dict(zip(LAWS, map(np.asarray, _transformed(weights)), strict=True))
    loss, *slipped = np.abs(errors["loss by the decomposition, relative"])
    a, b, c = map(np.asarray, composing.f6(group).to_weights())
    outputs = np.einsum("mnj,sgj->smng", (a[:, None] + b[None]) ** 2, [c, c[group.inverse]])  # one sign for all: −g
    answers = np.argmax(outputs, axis=-1)
    wrong, mirrored = (answers != group.table).mean(axis=(1, 2))
    axes, titles = (("g1", np.arange(7)), ("g2", np.arange(7))), ("z_F6, Z7", "one sign for a, b, c: −(g1 + g2)")
    slips = lambda name: dict(zip([f"without {slip}" for slip in SLIPS][: LAWS[name]], errors[name][1:], strict=False))
    return evidence(
        *(vanishes(name, x[0], slips(name), within=rounding(UNITS)) for name, x in errors.items()),
        at_most("z_F6 answers g1 + g2: fraction wrong", wrong, 0.0, {"without the sign of c": mirrored}),
        panels=[heatmap(t, *axes, x, z_label="answer", limits=(0, 6)) for t, x in zip(titles, answers, strict=True)],
        remarks=[
            f"With one sign for a, b and c z_F6 answers −(g1 + g2) to "
            f"{(answers[1] == group.inverse[group.table]).mean():.0%} of the pairs.",
        ],
        errata=[
            Erratum(
                "section 3, the scaled Fourier transform",
                "w_pmj = Σ_k z_pkj e^{imk/d} for p = a, b, c",
                "e^{2πi mk/d} for a and b, e^{−2πi mk/d} for c, and 1/d in the inverse",
                float(loss),
                float(min(slipped)),
                "relative error of the loss, the least over the three slips",
            )
        ],
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
    first, second = (_laws(rng, group) for group in (cyclic(7), product(2, 3)))
    errors = {name: [first[name], second[name]] for name in first}
    wrong = {name: {label: min(errors.pop(label))} for name, label in WRONG.items()}
    cells, axes = np.maximum([*errors.values()], np.finfo(setting.dtype).eps / 4), ("group", ("Z7", "Z2×Z3"))
    return evidence(
        *(vanishes(name, x, wrong.get(name, {}), within=rounding(UNITS)) for name, x in errors.items()),
        panels=[heatmap("relative errors", axes, ("law", tuple(errors)), cells, z_label="error", log="z")],
    )


def _sorted_nodes(z: jax.Array) -> np.ndarray:
    """The nodes in an order of their own, by a fixed random projection."""
    nodes = np.asarray(z).reshape(-1, z.shape[-1])
    probe = np.random.default_rng(0).normal(size=len(nodes))
    return nodes[:, np.argsort((probe @ nodes).real)]


def _relative(x, y) -> float:
    """The distance of two trees of arrays, relative to the size of the first."""
    pairs = list(zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))
    size = max(np.max(np.abs(a)) for a, _ in pairs)
    return float(max(np.max(np.abs(np.asarray(a) - np.asarray(b))) for a, b in pairs) / size)


def _laws(rng: np.random.Generator, group: Abelian) -> dict[str, float]:
    """By how much each law is missed, and `WRONG` ones."""
    x, y, w = (random_element(rng, group, 4) for _ in range(3))
    one, zero, third = composing.one(group), composing.zero(group), 2.7 ** (1 / 3)
    r = jax.jit(composing.potentials)
    same = lambda first, second: _relative(_sorted_nodes(first.z), _sorted_nodes(second.z))
    rx, ry = (jax.tree.map(np.asarray, r(s.z)) for s in (x, y))
    total, products = (jax.tree.map(f, rx, ry) for f in (np.add, np.multiply))
    sizes = lambda s: np.sum(np.abs(np.asarray(s.z)) ** 2, axis=2)
    return {
        "r(y * z) = r(y) r(z)": _relative(products, r((x * y).z)),
        "r(y + z) = r(y) + r(z)": _relative(total, r((x + y).z)),
        "r(1) = 1": _relative(jax.tree.map(np.ones_like, rx), r(one.z)),
        "r(t^⅓ z) = t r(z)": _relative(jax.tree.map(lambda v: 2.7 * v, rx), r((x * third).z)),
        "‖(y*z)_pk‖² = ‖y_pk‖² ‖z_pk‖²": _relative(sizes(x) * sizes(y), sizes(x * y)),
        "y + z = z + y": same(x + y, y + x),
        "y * z = z * y": same(x * y, y * x),
        "(x + y) + z = x + (y + z)": same((x + y) + w, x + (y + w)),
        "(x * y) * z = x * (y * z)": same((x * y) * w, x * (y * w)),
        "x * (y + z) = x * y + x * z": same(x * (y + w), x * y + x * w),
        "1 * z = z": same(one * x, x),
        "0 + z = z": same(zero + x, x),
        "weights added": _relative(total, r(x.z + y.z)),
        "node j with node j only": _relative(products, r(x.z * y.z)),
    }
