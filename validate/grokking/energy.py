"""Stage II: the energy in all its forms, its maxima as they are and as printed, and how flat they are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import grokking
from ...dynamics.grokking import Energy, ScaledAscent
from ...dynamics.representations import Irrep, irreps
from ..checks import absolute, agrees, evidence, relative, rounding, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..pair_networks import SQUARE
from ._shared import ALL_PAIRS, entries, nontrivial, random_nodes, same_shape, short, some_groups, widened

# σ in JAX and in NumPy, and σ′
_SQUARE = (jnp.square, np.square, lambda x: 2 * x)
_TANH = (jnp.tanh, np.tanh, lambda x: 1 / np.cosh(x) ** 2)


def _written_out(groups, nodes, activation, masks, mean: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """`½‖Ỹᵀσ(Xw)‖²` with X and Y written out at all nodes of all groups, and Theorem 1's field
    `Xᵀ diag σ′(Xw) Ỹ Ỹᵀ σ(Xw)`; `mean`: how often the mean is taken from the labels, once to centre them."""
    (_, value, slope), values, fields = activation, [], []
    for group, w, used in zip(groups, nodes, masks, strict=True):
        pairs, eye = grokking.pairs(group.table, used), np.eye(group.order)
        x = np.concatenate([eye[pairs.first], eye[pairs.second]], axis=1)
        y = eye[pairs.label] - mean * eye[pairs.label].mean(axis=0)
        inside = w.reshape(len(w), -1) @ x.T
        told = value(inside) @ y
        values.append(np.sum(told**2, axis=1) / 2)
        fields.append(widened((slope(inside) * (told @ y.T) @ x).reshape(w.shape)))
    return np.array(values), np.array(fields)


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
    rng, groups, tight, loose = setting.rng, some_groups(setting.scale), rounding(450), rounding(4500)
    nodes = [random_nodes(rng, 4, group.order) for group in groups]
    half = [np.random.default_rng(setting.seed).random((group.order,) * 2) < 0.5 for group in groups]
    cast = lambda x: jnp.asarray(x, setting.dtype)
    wide, everything = cast(np.stack([widened(w) for w in nodes])), [None] * len(groups)
    value_and_slope = jax.jit(jax.vmap(lambda energy, w: jax.vmap(jax.value_and_grad(energy))(w)))

    def found(activation, masks):
        made = [Energy(g, mask, activation=activation[0]) for g, mask in zip(groups, masks, strict=True)]
        return map(np.asarray, value_and_slope(same_shape(made), wide))

    (values, slopes), (some, some_slopes) = found(_SQUARE, everything), found(_TANH, half)
    law, field = _written_out(groups, nodes, _SQUARE, everything)
    some_law, some_field = _written_out(groups, nodes, _TANH, half)
    raw, raw_field = ({"Y for Ỹ": x} for x in _written_out(groups, nodes, _TANH, half, mean=0.0))
    per_node = lambda seen, law: (seen - law) / np.max(np.abs(law), axis=(2, 3), keepdims=True)

    def forms(group, w):
        """By sums, by real and by complex representations, and equation 20 as printed, `(M/2) Σ (1/d) |Σ_r tr S_kr|²`,
        `S = u vᵀ`: in the transform used here `Σ_r S_kr` is `(d/M) û ŵ₂`."""
        order, sums = group.order, np.einsum("nh,nhg->ng", w[:, 0], w[:, 1][:, group.table[group.inverse]])
        hat = lambda half, r: np.tensordot(w[:, half], r.matrices, axes=1)
        products = lambda all_: [(r, hat(0, r) @ hat(1, r)) for r in nontrivial(all_)]
        real, complex_ = products(irreps(group)), products(irreps(group, over="complex"))
        norms = lambda own: sum(r.multiplicity * np.sum(np.abs(x) ** 2, axis=(1, 2)) for r, x in own)
        traces = sum(r.dim * np.abs(np.trace(x, axis1=1, axis2=2)) ** 2 for r, x in complex_)
        by_irreps = (2 / order * norms(own) for own in (real, complex_))
        return 2 * order * np.var(sums, axis=1), *by_irreps, traces / 2 / order

    *right, printed = np.stack([forms(group, w) for group, w in zip(groups, nodes, strict=True)], axis=1)
    closed: dict[str, Any] = dict(zip(("2‖u∗w₂ − mean‖²", "real", "complex representations"), right, strict=True))
    wrong, axis = {"printed": printed, "4 × printed": 4 * printed}, ("group", np.arange(len(groups)))
    simple = lambda w: [Energy(groups[-1], activation=f)(w) for f in (lambda x: x, lambda x: 0.7 * x + 1.3 * x**2)]
    linear, mixed = map(float, jax.jit(simple)(cast(nodes[-1][0])))
    off = np.max(np.abs(printed / values - 1), axis=1)
    worst = max(np.abs(form / values - 1).max() for form in closed.values())
    form = "(2/M) Σ d ‖û ŵ₂‖_F²: a Frobenius norm, and four times as much for x²"
    return evidence(
        agrees("E by closed forms", axis, values, closed, wrong, within=tight, measure=relative, y="E", log="y"),
        agrees("E, definition written out", None, values, law, within=tight, measure=relative),
        agrees("∇E, field of Theorem 1", None, slopes, field, within=loose, measure=per_node),
        agrees("E, tanh, half of the pairs", None, some, some_law, raw, within=loose, measure=relative),
        agrees("∇E, the same", None, some_slopes, some_field, raw_field, within=loose, measure=per_node),
        agrees("0.7x + 1.3x²: E over that of x²", None, mixed / values[-1, 0], 1.3**2, within=tight),
        vanishes("E of a linear activation", linear, within=tight),
        remarks=[f"In each group equation 20 as printed is off by {off.min():.2g} or more."],
        errata=[Erratum("Equation 20", "E = (M/2) Σ (1/d) |Σ_r tr S_kr|²", form, worst, off.max())],
    )


def _nodes(rng: np.random.Generator, r: Irrep, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in one representation: u = aᵀRx beside w₂ = xᵀRb and beside w₂ = Pu, and any u of its isotypic space beside
    w₂ = Pu. Of the last Σσ⁴/(Σσ²)², σ the singular values of û."""
    a, x, b = (rng.normal(size=(draws, r.dim)) for _ in range(3))
    loose = rng.normal(size=(draws, r.group.order)) @ r.projector
    u = entries(r, a, x)
    halves = [(u, entries(r, x, b)), (u, entries(r, x, a)), (loose, loose[:, r.group.inverse])]
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
    each = jax.jit(jax.vmap(lambda energy, w: jax.vmap(jax.vmap(energy))(w)))
    values = np.asarray(each(same_shape([Energy(r.group) for r in kinds]), jnp.asarray(nodes, setting.dtype)))
    law = np.array([[grokking.peak(r)] for r in kinds])
    # M/8d for real, M/16d for a pair of complex ones; nothing is printed for quaternionic ones.
    printed = np.array([[r.group.order / (8 * r.dim)] for r in kinds])
    generic = np.array([r.multiplicity > 1 for r in kinds])
    share, fraction = values[generic, 2] / law[generic], {"Σσ⁴/(Σσ²)²": spread[generic]}
    axis = ("representation, by E*", np.arange(len(law)))
    some = ("representation with m ≥ 2, by E*", np.arange(len(share)))
    theorem, wrong = {"M/(2D)": law}, {"M/(8d), M/(16d), as printed": printed}
    off = lambda law: np.max(np.abs(values[:, 0] / law - 1))
    printed_form = "E* = M/(8d), M/(16d); w = [u; ±Pu], u anything in the isotypic space"
    form = "M/(2D) for x², D the real dimension; u = aᵀRx, w₂ = xᵀRb"
    labels = [f"{r.group.name} {short(r)}" for r in kinds if r.multiplicity > 1]
    told = (f"{label} {one.min():.2f} to {one.max():.2f}" for label, one in zip(labels, share, strict=True))
    up_to, of_one = {"within": tight, "measure": relative}, {"within": tight, "measure": absolute, "y": "E 2D/M"}
    return evidence(
        agrees("E for u = aᵀRx, w₂ = xᵀRb", axis, values[:, 0], theorem, wrong, **up_to, y="E", log="y"),
        agrees("E for u = aᵀRx, w₂ = Pu", None, values[:, 1], law, **up_to),
        agrees("E over M/(2D) for generic u, w₂ = Pu", some, share, fraction, {"1, as printed": 1.0}, **of_one),
        remarks=[f"Least and largest E/E* of generic u in its isotypic space: {', '.join(told)}."],
        errata=[Erratum("Theorem 2, Corollary 2", printed_form, form, off(law), off(printed))],
    )


@claim(
    "At a maximum the Hessian on the sphere has the eigenvalues 0, −4E* and −8E* and no others. Zero comes"
    " 3(D − 1) − (δ − 1) times, and −8E* 1 + δ(m − 1) times.",
    source="derived here; Corollary 1 has all maxima flat",
    assumptions=(ALL_PAIRS, SQUARE),
    tex=r"\mathrm{spec}\, \nabla^2 E \subset \{0, -4E^*, -8E^*\},\ \dim\ker = 3(D-1) - (\delta-1)",
    flow=ScaledAscent,
)
def curvature(setting: Setting) -> Evidence:
    rng, all_ = setting.rng, [r for group in some_groups(setting.scale) for r in nontrivial(irreps(group))]
    kinds = sorted(all_, key=lambda r: grokking.spectrum(r).flat)
    nodes = jnp.asarray(np.array([_nodes(rng, r, 1)[0][0, 0] for r in kinds]), setting.dtype)
    found = jax.jit(jax.vmap(grokking.curvatures))(same_shape([Energy(r.group) for r in kinds]), nodes)
    scaled = np.asarray(found) / (4 * np.array([[grokking.peak(r)] for r in kinds]))
    flats, steep = np.array([(grokking.spectrum(r).flat, grokking.spectrum(r).steep) for r in kinds]).T

    def spectra(flats):
        # Directions of the elements that fill up the shape add −4E*.
        each = np.stack([steep, scaled.shape[1] - steep - flats, flats], axis=1)
        return np.stack([np.repeat([-2.0, -1.0, 0.0], one) for one in each])

    of_u = np.array([r.dim - 1 for r in kinds])
    wrong = {"at least one flat direction (Corollary 1)": np.maximum(flats, 1), "D − 1, those of u alone": of_u}
    axis, nullity = ("representation, by flat directions", np.arange(len(kinds))), np.sum(np.abs(scaled) < 1e-3, axis=1)
    law, laws = {"0, −1, −2 as often as predicted": spectra(flats)}, {label: spectra(x) for label, x in wrong.items()}
    up_to = {"within": rounding(4500), "measure": absolute}
    table = {f"{short(r)} (m = {r.multiplicity}) {n}" for r, n in zip(kinds, nullity, strict=True)}
    printed = "for M > 2 every local maximum has at least one flat direction"
    form = "3(D−1) − (δ−1) of them: none at representations of real dimension one"
    counts, none = "kinds of maxima for which it is wrong", np.sum(nullity == 0)
    return evidence(
        agrees("eigenvalues over 4E*", axis, scaled, law, laws, **up_to),
        remarks=[f"Flat directions: {', '.join(sorted(table))}. Of {len(kinds)} maxima {none} have none."],
        errata=[Erratum("Corollary 1", printed, form, np.sum(nullity != flats), none, counts)],
    )
