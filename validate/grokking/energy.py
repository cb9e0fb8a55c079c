"""Stage II: the energy in all its forms, its maxima as they are and as printed, and how flat they are."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics import grokking
from ...dynamics.grokking import Energy, ScaledAscent
from ...dynamics.groups import Group
from ...dynamics.representations import Irrep, irreps
from ..checks import absolute, agrees, evidence, relative, rounding, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import heatmap
from ._shared import ALL_PAIRS, SQUARE, nontrivial, random_nodes, same_shape, short, some_groups, widened

# σ in JAX and in NumPy, and σ′
_SQUARE = (jnp.square, np.square, lambda x: 2 * x)
_TANH = (jnp.tanh, np.tanh, lambda x: 1 / np.cosh(x) ** 2)


def _by_definition(w, group: Group, activation, used, mean: float) -> tuple[float, np.ndarray]:
    """`½‖Ỹᵀσ(Xw)‖²` with X and Y written out, and Theorem 1's field `Xᵀ diag σ′(Xw) Ỹ Ỹᵀ σ(Xw)`; `mean`: how often the
    mean is taken from the labels, once to centre them."""
    pairs, eye = grokking.pairs(group.table, used), np.eye(group.order)
    x = np.concatenate([eye[pairs.first], eye[pairs.second]], axis=1)
    y = eye[pairs.label] - mean * eye[pairs.label].mean(axis=0)
    _, value, slope = activation
    inside = x @ w.ravel()
    told = y.T @ value(inside)
    return 0.5 * float(np.sum(told**2)), widened((x.T @ (slope(inside) * (y @ told))).reshape(w.shape))


def _written_out(groups, nodes, activation, masks, mean: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The definition at all nodes of all groups: values and fields."""
    each = [
        [_by_definition(w, group, activation, mask, mean) for w in own]
        for group, own, mask in zip(groups, nodes, masks, strict=True)
    ]
    return np.array([[value for value, _ in one] for one in each]), np.array(
        [[field for _, field in one] for one in each]
    )


@jax.jit
def _energies(energies: Energy, w: Float[Array, "groups draws 2 order"]):
    """Values and gradients."""
    return jax.vmap(lambda energy, w: jax.vmap(jax.value_and_grad(energy))(w))(energies, w)


def _by_irreps(w: np.ndarray, irreps: Sequence[Irrep]) -> tuple[float, float]:
    """`(2/M) Σ m ‖û ŵ₂‖_F²`, and equation 20 as printed: `(M/2) Σ (1/d) |Σ_r tr S_kr|²`, `S = u vᵀ`; in the transform
    used here `Σ_r S_kr` is `(d/M) û ŵ₂`."""
    fourier = lambda f, r: np.tensordot(f, r.matrices, axes=1)
    products = [(r, fourier(w[0], r) @ fourier(w[1], r)) for r in nontrivial(irreps)]
    norms = sum(r.multiplicity * np.sum(np.abs(product) ** 2) for r, product in products)
    return 2 / w.shape[1] * norms, sum(r.dim * abs(np.trace(product)) ** 2 for r, product in products) / 2 / w.shape[1]


def _forms(w: np.ndarray, group: Group, over_r: Sequence[Irrep], over_c: Sequence[Irrep]) -> tuple[float, ...]:
    """By sums, by real and by complex representations, and as printed."""
    sums = w[0] @ w[1][group.table[group.inverse]]
    return 2 * float(np.sum((sums - sums.mean()) ** 2)), _by_irreps(w, over_r)[0], *_by_irreps(w, over_c)


def _own_forms(group: Group, both: Sequence[tuple[Irrep, ...]], w: Float[Array, "2 order"]) -> Float[Array, " forms"]:
    return jnp.stack([grokking.convolution_energy(w, group), *(grokking.plancherel_energy(w, one) for one in both)])


@claim(
    "A node that climbs Ỹ Ỹᵀ F climbs E(w) = ½‖Ỹᵀσ(Xw)‖². For x² and all pairs this is 2‖u∗w₂ − mean‖²,"
    " and by representations (2/M) Σ m‖û ŵ₂‖_F², real or complex.",
    source="Theorem 1; the two closed forms are derived here and correct equation 20",
    assumptions=(ALL_PAIRS, "x² in the closed forms; x², and tanh on half of the pairs, in Theorem 1"),
    tex=r"E(w) = \frac{1}{2} \Vert \tilde Y^\top \sigma(Xw) \Vert^2"
    r" = \frac{2}{M} \sum_{R \neq 1} m_R \Vert \hat u_R \hat w_{2,R} \Vert_F^2",
    flow=ScaledAscent,
)
def energy(setting: Setting) -> Evidence:
    rng, groups, draws, tight, loose = setting.rng, some_groups(setting.scale), 4, rounding(450), rounding(4500)
    nodes = [random_nodes(rng, draws, group.order) for group in groups]
    both = [(irreps(group), irreps(group, over="complex")) for group in groups]
    half = [np.random.default_rng(setting.seed).random((group.order,) * 2) < 0.5 for group in groups]
    cast = lambda x: jnp.asarray(x, setting.dtype)
    wide, everything = cast(np.stack([widened(w) for w in nodes])), [None] * len(groups)

    def found(activation, masks):
        made = [Energy(g, mask, activation=activation[0]) for g, mask in zip(groups, masks, strict=True)]
        return map(np.asarray, _energies(same_shape(made), wide))

    (values, slopes), (some, some_slopes) = found(_SQUARE, everything), found(_TANH, half)
    law, field = _written_out(groups, nodes, _SQUARE, everything)
    some_law, some_field = _written_out(groups, nodes, _TANH, half)
    raw, raw_field = _written_out(groups, nodes, _TANH, half, mean=0.0)
    per_node = lambda seen, law: (seen - law) / np.max(np.abs(law), axis=(2, 3), keepdims=True)
    forms = [[_forms(w, group, *two) for w in own] for group, own, two in zip(groups, nodes, both, strict=True)]
    *right, printed = np.moveaxis(np.array(forms), 2, 0)
    closed: dict[str, Any] = dict(zip(("2‖u∗w₂ − mean‖²", "real", "complex representations"), right, strict=True))
    wrong = {"printed": printed, "4 × printed": 4 * printed}
    gaps = {name: np.max(np.abs(form / values - 1), axis=1) for name, form in (closed | wrong).items()}
    last = zip(groups[-2:], both[-2:], nodes[-2:], strict=True)  # each is compiled for itself
    own = np.array([jax.jit(partial(_own_forms, group, two))(cast(w[0])) for group, two, w in last])
    simple = lambda w: [Energy(groups[-1], activation=f)(w) for f in (lambda x: x, lambda x: 0.7 * x + 1.3 * x**2)]
    linear, mixed = map(float, jax.jit(simple)(cast(nodes[-1][0])))
    return evidence(
        agrees("E by closed forms", None, values, closed, wrong, within=tight, measure=relative),
        agrees("E by the library's own", None, own, values[-2:, :1], within=tight, measure=relative),
        agrees("E, definition written out", None, values, law, within=tight, measure=relative),
        agrees("∇E, field of Theorem 1", None, slopes, field, within=loose, measure=per_node),
        agrees("E, tanh, half of the pairs", None, some, some_law, {"Y for Ỹ": raw}, within=loose, measure=relative),
        agrees("∇E, the same", None, some_slopes, some_field, {"Y for Ỹ": raw_field}, within=loose, measure=per_node),
        agrees("0.7x + 1.3x²: E over that of x²", None, mixed / values[-1, 0], 1.3**2, within=tight),
        vanishes("E of a linear activation", linear, within=tight),
        panels=[
            heatmap(
                "relative error of the energy",
                ("group", [g.name for g in groups]),
                ("form", list(gaps)),
                np.maximum(list(gaps.values()), np.finfo(setting.dtype).eps / 4),
                z_label=f"worst of {draws} nodes",
                log="z",
            )
        ],
        remarks=[f"In each group equation 20 as printed is off by {gaps['printed'].min():.2g} or more."],
        errata=[
            Erratum(
                "Equation 20",
                "E = (M/2) Σ (1/d) |Σ_r tr S_kr|²",
                "(2/M) Σ d ‖û ŵ₂‖_F²: a Frobenius norm, and four times as much for x²",
                float(max(gaps[name].max() for name in closed)),
                float(gaps["printed"].max()),
            )
        ],
    )


def _nodes(rng: np.random.Generator, r: Irrep, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in one representation: u = aᵀRx beside w₂ = xᵀRb and beside w₂ = Pu, and any u of its isotypic space beside
    w₂ = Pu. Of the last Σσ⁴/(Σσ²)², σ the singular values of û."""
    a, x, b = (rng.normal(size=(draws, r.dim)) for _ in range(3))
    entry = lambda p, q: np.einsum("ni,hij,nj->nh", p, r.matrices, q)
    loose = rng.normal(size=(draws, r.group.order)) @ r.projector
    halves = [(entry(a, x), entry(x, b)), (entry(a, x), entry(x, a)), (loose, loose[:, r.group.inverse])]
    unit = lambda f: f / np.linalg.norm(f, axis=1, keepdims=True) / np.sqrt(2)
    squares = np.linalg.svd(np.tensordot(loose, r.matrices, axes=1), compute_uv=False) ** 2  # each as often as units
    spread = r.units * np.sum(squares**2, axis=1) / np.sum(squares, axis=1) ** 2
    return widened(np.stack([np.stack([unit(f) for f in pair], axis=1) for pair in halves])), spread


@claim(
    "With u ∝ aᵀRx and w₂ ∝ xᵀRb in a non-trivial real representation of dimension D the energy is M/(2D),"
    " for any a, x, b. Any other u of its isotypic space with w₂ = Pu has Σσ⁴/(Σσ²)² of that, σ the singular values"
    " of û.",
    source="Theorem 2 and Corollary 2, corrected here: phases are free, quaternionic representations too",
    assumptions=(ALL_PAIRS, SQUARE, "norm one"),
    tex=r"u \propto a^\top R x,\ w_2 \propto x^\top R b \ \Rightarrow\ E = \frac{M}{2D}",
    flow=ScaledAscent,
)
def maxima(setting: Setting) -> Evidence:
    rng, groups, tight = setting.rng, some_groups(setting.scale), rounding(4500)
    kinds = sorted((r for group in groups for r in nontrivial(irreps(group))), key=grokking.peak)
    nodes, spread = map(np.array, zip(*(_nodes(rng, r, 5) for r in kinds), strict=True))
    energies = same_shape([Energy(r.group) for r in kinds])
    each = jax.jit(jax.vmap(lambda energy, w: jax.vmap(jax.vmap(energy))(w)))
    values = np.asarray(each(energies, jnp.asarray(nodes, setting.dtype)))
    law = np.array([[grokking.peak(r)] for r in kinds])
    # M/8d for real, M/16d for a pair of complex ones; nothing is printed for quaternionic ones.
    printed = np.array([[r.group.order / (8 * r.dim)] for r in kinds])
    generic = np.array([r.multiplicity > 1 for r in kinds])
    share = values[generic, 2] / law[generic]
    labels = [f"{r.group.name} {short(r)}" for r in kinds if r.multiplicity > 1]
    gap = np.max(np.abs(values[:, 0] / law - 1))
    return evidence(
        agrees(
            "E for u = aᵀRx, w₂ = xᵀRb",
            ("representation, by E*", np.arange(len(law))),
            values[:, 0],
            {"M/(2D)": law},
            {"M/(8d), M/(16d), as printed": printed},
            within=tight,
            measure=relative,
            y="E",
            log="y",
        ),
        agrees("E for u = aᵀRx, w₂ = Pu", None, values[:, 1], law, within=tight, measure=relative),
        vanishes("the library's own maximum: E/E* − 1, 1 − its share, its rank", _own(rng, setting), within=tight),
        agrees(
            "E over M/(2D) for generic u, w₂ = Pu",
            ("representation with m ≥ 2, by E*", np.arange(len(share))),
            share,
            {"Σσ⁴/(Σσ²)²": spread[generic]},
            {"1, as printed": 1.0},
            within=tight,
            measure=absolute,
            y="E 2D/M",
        ),
        remarks=[
            "Least and largest E/E* of generic u in its isotypic space: "
            + ", ".join(f"{label} {one.min():.2f} to {one.max():.2f}" for label, one in zip(labels, share, strict=True))
            + "."
        ],
        errata=[
            Erratum(
                "Theorem 2, Corollary 2",
                "E* = M/(8d), M/(16d); w = [u; ±Pu], u anything in the isotypic space",
                "M/(2D) for x², D the real dimension; u = aᵀRx, w₂ = xᵀRb",
                float(gap),
                float(np.max(np.abs(values[:, 0] / printed - 1))),
            )
        ],
    )  # fmt: skip


def _own(rng: np.random.Generator, setting: Setting) -> np.ndarray:
    """`maximum` and `content` on the last representation of two groups: E, share, rank, each less what it must be."""
    gaps = []
    for group in (some_groups(setting.scale)[i] for i in (0, -1)):
        all_ = irreps(group)
        w = grokking.maximum(all_[-1], *(jnp.asarray(rng.normal(size=all_[-1].dim), setting.dtype) for _ in range(3)))
        found = jax.jit(lambda w, all_=all_: grokking.content(w, all_))(w)
        gaps += [float(Energy(group)(w)) / grokking.peak(all_[-1]) - 1, float(found.fraction[-1]) - 1]
        gaps += np.asarray(found.rank)[-1].tolist()
    return np.array(gaps)


@claim(
    "At a maximum the Hessian on the sphere has the eigenvalues 0, −4E* and −8E* and no others. Zero comes"
    " 3(D − 1) − (δ − 1) times, and −8E* 1 + δ(m − 1) times.",
    source="derived here; Corollary 1 has all maxima flat",
    assumptions=(ALL_PAIRS, SQUARE),
    tex=r"\mathrm{spec}\, \nabla^2 E \subset \{0, -4E^*, -8E^*\},\ \dim\ker = 3(D-1) - (\delta-1)",
    flow=ScaledAscent,
)
def curvature(setting: Setting) -> Evidence:
    rng = setting.rng
    kinds = [r for group in some_groups(setting.scale) for r in nontrivial(irreps(group))]
    kinds = sorted(kinds, key=lambda r: grokking.spectrum(r).flat)
    nodes = jnp.asarray(np.array([_nodes(rng, r, 1)[0][0, 0] for r in kinds]), setting.dtype)
    found = jax.jit(jax.vmap(grokking.curvatures))(same_shape([Energy(r.group) for r in kinds]), nodes)
    scaled = np.asarray(found) / (4 * np.array([[grokking.peak(r)] for r in kinds]))
    flats = np.array([grokking.spectrum(r).flat for r in kinds])
    steep = [grokking.spectrum(r).steep for r in kinds]

    def spectra(flats):
        # Directions of the elements that fill up the shape add −4E*.
        each = [[s, scaled.shape[1] - s - f, f] for s, f in zip(steep, flats, strict=True)]
        return np.array([np.repeat([-2.0, -1.0, 0.0], one) for one in each])

    wrong = {
        "at least one flat direction (Corollary 1)": np.maximum(flats, 1),
        "D − 1, those of u alone": np.array([r.dim - 1 for r in kinds]),
    }
    nullity = np.sum(np.abs(scaled) < 1e-3, axis=1)
    table = {f"{short(r)} (m = {r.multiplicity})": n for r, n in zip(kinds, nullity, strict=True)}
    none = int(np.sum(nullity == 0))
    return evidence(
        agrees(
            "eigenvalues over 4E*",
            None,
            scaled,
            {"0, −1, −2 as often as predicted": spectra(flats)},
            {label: spectra(each) for label, each in wrong.items()},
            within=rounding(4500),
            measure=absolute,
        ),
        agrees(
            "flat directions",
            ("representation, by their number", np.arange(len(kinds))),
            nullity,
            {"3(D−1) − (δ−1)": flats},
            wrong,
            within=0,
            measure=absolute,
            y="number",
        ),
        remarks=[
            f"Flat directions: {', '.join(f'{name} {n}' for name, n in sorted(table.items()))}. Of {len(kinds)} maxima"
            f" {none} have none."
        ],
        errata=[
            Erratum(
                "Corollary 1",
                "for M > 2 every local maximum has at least one flat direction",
                "3(D−1) − (δ−1) of them: none at representations of real dimension one",
                float(np.sum(nullity != flats)),
                float(none),
                "kinds of maxima for which it is wrong",
            )
        ],
    )
