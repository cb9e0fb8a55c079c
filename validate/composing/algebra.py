"""Theorems 1 to 3: the loss as a function of potentials, the transform that it needs, the semi-ring."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import composing
from ...dynamics.composing import Solution, Weights
from ...dynamics.groups import Abelian, cyclic, product
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import heatmap
from ..rows import identity
from ._shared import ALL_PAIRS, FINITE, random_element, some_groups


def _random_weights(rng: np.random.Generator, setting: Setting, draws: int, order: int, nodes: int) -> Weights:
    a, b, c = (jnp.asarray(rng.normal(size=(draws, order, nodes)), setting.dtype) for _ in range(3))
    return Weights(a, b, c)


def _zero_mean(weights: Weights) -> Weights:
    a, b = (w - jnp.mean(w, axis=-2, keepdims=True) for w in weights[:2])
    return Weights(a, b, weights.c)


@partial(jax.jit, static_argnums=1)
def _losses(weights: Weights, group: Abelian):
    """Direct, general, printed; of each draw, as drawn and with zero means."""

    def of(w):
        z = composing.from_weights(w.a, w.b, w.c, group).z
        three = composing.direct_loss(w, group), composing.loss(z, group), composing.printed_loss(z, group)
        return jnp.stack(three)

    return jax.lax.map(lambda w: jnp.stack([of(w), of(_zero_mean(w))]), weights)


# CONTROL: the printed formula on weights whose means are not zero
@claim(
    "The loss is a sum over frequencies of squares of potentials. As printed this is exact where W_a and W_b"
    " have zero mean over the group; with A^p moved into the squares at (m, 0) and (0, m) for any real weights.",
    source="Theorem 1; the general form is derived here",
    assumptions=(ALL_PAIRS, FINITE, "real weights"),
)
def loss_decomposition(setting: Setting) -> Evidence:
    rng, groups = setting.rng, some_groups(setting.scale)
    error = []  # (groups, draws, as drawn or zero mean, general or printed)
    for group in groups:
        weights = _random_weights(rng, setting, 6, group.order, 12)
        losses = np.asarray(_losses(weights, group))
        error.append(np.abs(losses[..., 1:] / losses[..., :1] - 1))
    error = np.array(error)
    tolerance = setting.bound(1e-12, 1e-4)
    typical = np.median(error[:, :, 0, 1], axis=1)  # over draws, per group
    worst = np.max(error, axis=1)
    cells = np.stack([worst[:, 1, 1], worst[:, 1, 0], worst[:, 0, 0], worst[:, 0, 1]])
    kinds = ("printed, zero mean", "general, zero mean", "general", "printed")
    return Evidence(
        rows={
            "printed formula, zero means, relative": identity(error[:, :, 1, 1], tolerance),
            "general formula, any means, relative": identity(error[:, :, 0, 0], tolerance),
            "general formula, zero means, relative": identity(error[:, :, 1, 0], tolerance),
        },
        control={"printed formula with means, median of draws, least over groups": identity(typical.min(), 0.01)},
        panels=[
            heatmap(
                "relative error of the loss",
                ("group", [g.name for g in groups]),
                ("formula", kinds),
                np.maximum(cells, np.finfo(setting.dtype).eps / 4),
                z_label="worst of 6 draws",
                log="z",
            )
        ],
        errata=[
            Erratum(
                "Theorem 1",
                "ℓ = 1 − 1/d + (1/d) Σ_{k≠0} ℓ_k for all weights",
                "where W_a and W_b have zero mean over the group; else ½A^p belongs into the squares at (m, 0), (0, m)",
                f"relative error {np.max(error[:, :, 0, 0]):.1g}",
                f"relative error {typical.min():.2g} to {error[:, :, 0, 1].max():.2g}",
            )
        ],
    )


def _transform(weights: Weights, *, turn: float = 2 * np.pi, divide: bool = True, sign: int = 1) -> jax.Array:
    """As on the slides, on request: 1 for 2π, no division by d, one sign for a, b and c (−1)."""
    d = weights.a.shape[0]
    m = np.arange(d)
    phi = np.exp(-1j * turn * np.outer(m, m) / d) / (d if divide else 1)
    phi = jnp.asarray(np.stack([phi, phi, phi if sign < 0 else phi.conj()]))
    phi = phi.astype(np.result_type(weights.a.dtype, np.complex64))
    return phi @ jnp.stack(weights).astype(phi.dtype)


SLIPS = {"2π": {"turn": 1.0}, "1/d": {"divide": False}, "the sign of c": {"sign": -1}}


# CONTROL: 2π, 1/d or the sign of c left out, one at a time, as on the slides
@claim(
    "z_akj = (1/d) Σ_m w_amj e^{−2πi mk/d}, b alike and c with the opposite sign is the transform in which"
    " the decomposition holds: it inverts, ‖W‖² = d‖z‖², and z is Hermitian for real weights.",
    source="Section 3; the slides leave out 2π, 1/d and the sign of c",
    assumptions=("Z_d (for products the characters take the place of e^{2πi mk/d})", "real weights"),
)
def transform(setting: Setting) -> Evidence:
    rng, group = setting.rng, cyclic(7)
    weights = Weights(*(w[0] for w in _random_weights(rng, setting, 1, 7, 12)))
    f6 = composing.f6(group).to_weights()

    @jax.jit
    def run(weights, f6):
        z = composing.from_weights(weights.a, weights.b, weights.c, group).z
        # Numpy's FFT divides in its inverse only: fft/d for a and b, ifft for c.
        fast = jnp.concatenate([jnp.fft.fft(jnp.stack(weights[:2]), axis=1) / 7, jnp.fft.ifft(weights.c, axis=0)[None]])
        back = composing.to_weights(z, group)
        direct = composing.direct_loss(weights, group)
        wrong = [composing.loss(_transform(weights, **slip), group) for slip in SLIPS.values()]
        parseval = 7 * jnp.sum(jnp.abs(z) ** 2) / jnp.sum(jnp.stack(weights) ** 2)
        mirrored = Weights(f6.a, f6.b, f6.c[group.inverse])  # what to_weights would give with one sign for all
        outputs = [jnp.einsum("mnj,gj->mng", (w.a[:, None] + w.b[None]) ** 2, w.c) for w in (f6, mirrored)]
        return {
            "inverse": jnp.stack(back) - jnp.stack(weights),
            "fft": jnp.abs(z - fast),
            "hermitian": jnp.abs(z[:, group.inverse] - jnp.conj(z)),
            "parseval": parseval - 1,
            "loss": composing.loss(z, group) / direct - 1,
            "wrong": jnp.stack(wrong) / direct - 1,
            "answers": jnp.argmax(jnp.stack(outputs), axis=-1),
        }

    out = {name: np.asarray(value) for name, value in run(weights, f6).items()}
    tolerance = setting.bound(1e-12, 1e-4)
    right = (out["answers"] == group.table).mean(axis=(1, 2))
    negated = (out["answers"][1] == group.inverse[group.table]).mean()
    numbers = ("g1", np.arange(7)), ("g2", np.arange(7))
    return Evidence(
        rows={
            "loss by the decomposition, relative": identity(out["loss"], tolerance),
            "to_weights(from_weights(W)) − W": identity(out["inverse"], tolerance),
            "fft/d for a and b, ifft for c": identity(out["fft"], tolerance),
            "z_{−k} − conj z_k": identity(out["hermitian"], tolerance),
            "d‖z‖²/‖W‖² − 1": identity(out["parseval"], tolerance),
            "z_F6 answers g1 + g2: share wrong": identity(1 - right[0], 0.0),
        },
        control={
            **{f"loss without {n}, relative": identity(e, 0.01) for n, e in zip(SLIPS, out["wrong"], strict=True)},
            "z_F6 with the sign of c wrong: share wrong": identity(1 - right[1], 0.0),
        },
        panels=[
            heatmap(title, *numbers, answers, z_label="answer", limits=(0, 6))
            for title, answers in zip(
                ("z_F6, Z7", "the same, one sign for all: −(g1 + g2)"), out["answers"], strict=True
            )
        ],
        remarks=[f"With one sign for a, b and c z_F6 answers −(g1 + g2) to {negated:.0%} of the pairs."],
        errata=[
            Erratum(
                "section 3, the scaled Fourier transform",
                "w_pmj = Σ_k z_pkj e^{imk/d} for p = a, b, c",
                "e^{2πi mk/d} for a and b, e^{−2πi mk/d} for c, and 1/d in the inverse",
                f"relative error of the loss {abs(out['loss']):.1g}",
                "; ".join(f"{abs(e):.2g} without {name}" for name, e in zip(SLIPS, out["wrong"], strict=True)),
            )
        ],
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


# CONTROL: weights added instead of nodes; node j multiplied with node j only
@claim(
    "Networks with + (nodes side by side) and * (each node with each, frequency by frequency) are a"
    " commutative semi-ring up to the order of nodes, each potential is a homomorphism into ℂ, and"
    " ‖(y*z)_pk‖ = ‖y_pk‖ ‖z_pk‖.",
    source="Theorems 2 and 3; the norm identity is derived here",
    assumptions=(FINITE, "real weights, all potentials of order three"),
)
def semi_ring(setting: Setting) -> Evidence:
    rng = setting.rng
    found = [_laws(rng, group) for group in (cyclic(7), product(2, 3))]
    error = {name: max(f[name] for f in found) for name in found[0]}
    wrong = {name: min(f[name] for f in found) for name in found[0]}
    tolerance = setting.bound(1e-12, 1e-4)
    controls = ("weights added", "node by node")
    return Evidence(
        rows={name: identity(value, tolerance) for name, value in error.items() if name not in controls},
        control={f"r, {name}, relative": identity(wrong[name], 0.01) for name in controls},
        panels=[
            heatmap(
                "relative errors",
                ("group", ("Z7", "Z2×Z3")),
                ("law", tuple(found[0])),
                np.maximum([[f[name] for f in found] for name in found[0]], np.finfo(setting.dtype).eps / 4),
                z_label="error",
                log="z",
            )
        ],
    )


def _laws(rng: np.random.Generator, group: Abelian) -> dict[str, float]:
    x, y, w = (random_element(rng, group, 4) for _ in range(3))
    one, zero, third = composing.one(group), composing.zero(group), 2.7 ** (1 / 3)
    r = jax.jit(composing.potentials)

    def same(first: Solution, second: Solution) -> float:
        return _relative(_sorted_nodes(first.z), _sorted_nodes(second.z))

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
        "node by node": _relative(products, r(x.z * y.z)),
    }
