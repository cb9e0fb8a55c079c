"""Stage II: the energy in all its forms, its maxima as they are and as printed, and how flat they are."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...dynamics import grokking
from ...dynamics.grokking import Energy
from ...dynamics.groups import Group
from ...dynamics.representations import Irrep, irreps
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import heatmap, panel
from ..rows import identity
from ._shared import (
    ALL_PAIRS,
    SQUARE,
    nontrivial,
    random_nodes,
    same_shape,
    short,
    some_groups,
    widened,
)


def _by_definition(w, group: Group, activation, used=None) -> tuple[float, np.ndarray]:
    """`½‖Ỹᵀσ(Xw)‖²` with X and Y written out, and Theorem 1's field `Xᵀ diag σ′(Xw) Ỹ Ỹᵀ σ(Xw)`."""
    pairs = grokking.task(group, used)
    eye = np.eye(group.order)
    x = np.concatenate([eye[pairs.first], eye[pairs.second]], axis=1)
    y = eye[pairs.label] - eye[pairs.label].mean(axis=0)
    value, slope = activation
    inside = x @ w.ravel()
    back = y @ (y.T @ value(inside))
    return 0.5 * float(np.sum((y.T @ value(inside)) ** 2)), (x.T @ (slope(inside) * back)).reshape(w.shape)


def _numpy_fourier(f: np.ndarray, irrep: Irrep) -> np.ndarray:
    return np.tensordot(f, irrep.matrices, axes=1)


def _norm_form(w: np.ndarray, all_: tuple[Irrep, ...]) -> float:
    """`(2/M) Σ m ‖û ŵ₂‖_F²`."""
    products = [(r.multiplicity, _numpy_fourier(w[0], r) @ _numpy_fourier(w[1], r)) for r in nontrivial(all_)]
    return 2 / w.shape[1] * sum(m * np.sum(np.abs(product) ** 2) for m, product in products)


def _trace_form(w: np.ndarray, over_c: tuple[Irrep, ...]) -> float:
    """Equation 20 as printed: `(M/2) Σ (1/d) |Σ_r tr S_kr|²`, `S = u vᵀ`; in the transform used here `Σ_r S_kr` is
    `(d/M) û ŵ₂`."""
    order = w.shape[1]
    traces = [np.trace(_numpy_fourier(w[0], r) @ _numpy_fourier(w[1], r)) for r in nontrivial(over_c)]
    return sum(r.dim / (2 * order) * abs(t) ** 2 for r, t in zip(nontrivial(over_c), traces, strict=True))


_SQUARE = (np.square, lambda x: 2 * x)
_TANH = (np.tanh, lambda x: 1 / np.cosh(x) ** 2)


# CONTROL: equation 20 as printed, which has |tr û ŵ₂|², and its fourfold
@claim(
    "A node that climbs Ỹ Ỹᵀ F climbs E(w) = ½‖Ỹᵀσ(Xw)‖². For x² and all pairs this is 2‖u∗w₂ − mean‖²,"
    " and by representations (2/M) Σ m‖û ŵ₂‖_F², real or complex.",
    source="Theorem 1; the two closed forms are derived here and correct equation 20",
    assumptions=(ALL_PAIRS, "x² in the closed forms; any activation and any pairs in Theorem 1"),
)
def energy(setting: Setting) -> Evidence:
    rng, groups, draws = setting.rng, some_groups(setting.scale), 4
    nodes = [random_nodes(rng, draws, group.order) for group in groups]
    both = [(irreps(group), irreps(group, over="complex")) for group in groups]
    used = [np.random.default_rng(setting.seed).random((group.order,) * 2) < 0.5 for group in groups]
    wide = jnp.asarray(np.stack([widened(w) for w in nodes]), setting.dtype)

    @jax.jit
    def evaluate(energies, w):
        return jax.vmap(lambda e, w: jax.vmap(jax.value_and_grad(e))(w))(energies, w)

    def compare(activation, own, masks):
        energies = same_shape([Energy(g, m, activation=own) for g, m in zip(groups, masks, strict=True)])
        values, slopes = map(np.asarray, evaluate(energies, wide))
        worst = []
        for i, (group, mask) in enumerate(zip(groups, masks, strict=True)):
            for j in range(draws):
                value, field = _by_definition(nodes[i][j], group, activation, mask)
                gap = slopes[i, j][:, : group.order] - field
                worst.append([values[i, j] / value - 1, np.max(np.abs(gap)) / np.max(np.abs(field))])
        return np.array(worst), values

    everything = [None] * len(groups)
    whole, values = compare(_SQUARE, jnp.square, everything)
    part, _ = compare(_TANH, jnp.tanh, used)
    forms = np.empty((len(groups), draws, 5))
    for i, (group, (over_r, over_c)) in enumerate(zip(groups, both, strict=True)):
        for j, w in enumerate(nodes[i]):
            sums = w[0] @ w[1][group.table[group.inverse]]
            by_sums, trace = 2 * np.sum((sums - sums.mean()) ** 2), _trace_form(w, over_c)
            forms[i, j] = by_sums, _norm_form(w, over_r), _norm_form(w, over_c), trace, 4 * trace
    off = np.abs(forms / values[..., None] - 1)
    few = slice(-2, None)  # each is compiled for itself
    own = [
        np.asarray(jax.jit(partial(_own_forms, group, pair))(jnp.asarray(w[0], setting.dtype)))
        for w, group, pair in zip(nodes[few], groups[few], both[few], strict=True)
    ]
    polynomial = _polynomial(groups, nodes, setting)
    tolerance = setting.bound(1e-13, 1e-5)
    higher = [i for i, (_, over_c) in enumerate(both) if max(r.dim for r in over_c) > 1]
    names = ("2‖u∗w₂ − mean‖²", "real representations", "complex", "printed", "4 × printed")
    return Evidence(
        rows={
            "closed forms against the definition, relative": identity(off[..., :3], tolerance),
            "the library's own": identity(np.array(own) / values[few, :1] - 1, tolerance),
            "definition written out, relative": identity(whole[:, 0], tolerance),
            "∇E against the field of Theorem 1, relative": identity(whole[:, 1], setting.bound(1e-12, 1e-4)),
            "the same, half of the pairs, tanh": identity(part, setting.bound(1e-12, 1e-4)),
            "ax + bx²: E over b² times that of x², less one; linear: E": identity(
                polynomial, setting.bound(1e-13, 1e-4)
            ),
        },
        control={
            "printed, least over groups and draws": identity(off[..., 3].min(), 0.1),
            "4 × printed, d ≥ 2, median of draws": identity(np.median(off[higher][..., 4], axis=1).min(), 0.01),
        },
        panels=[
            heatmap(
                "relative error of the energy",
                ("group", [g.name for g in groups]),
                ("form", names),
                np.maximum(off.max(axis=1).T, np.finfo(setting.dtype).eps / 4),
                z_label=f"worst of {draws} nodes",
                log="z",
            )
        ],
        errata=[
            Erratum(
                "Equation 20",
                "E = (M/2) Σ (1/d) |Σ_r tr S_kr|²",
                "(2/M) Σ d ‖û ŵ₂‖_F²: a Frobenius norm, and four times as much for x²",
                f"relative error {off[..., :3].max():.1g}",
                f"{off[..., 3].min():.2g} to {off[..., 3].max():.2g}",
            )
        ],
    )  # fmt: skip


def _own_forms(group: Group, both: tuple[tuple[Irrep, ...], ...], w: jax.Array) -> jax.Array:
    by_irreps = [grokking.plancherel_energy(w, all_) for all_ in both]
    return jnp.stack([grokking.convolution_energy(w, group), *by_irreps])


def _polynomial(groups, nodes, setting: Setting) -> np.ndarray:
    """How far `ax + bx²` is from b² times x², and what a linear activation is worth."""
    group, w = groups[-1], jnp.asarray(nodes[-1][0], setting.dtype)
    a, b = 0.7, 1.3
    mixed, square, linear = (
        float(eqx.filter_jit(Energy(group, activation=f))(w))
        for f in (lambda x: a * x + b * x**2, jnp.square, lambda x: x)
    )
    return np.array([mixed / (b**2 * square) - 1, linear])


def _printed_peak(irrep: Irrep) -> float:
    """M/8d for real, M/16d for a pair of complex representations; nothing is printed for quaternionic ones."""
    return irrep.group.order / (8 * irrep.dim)


# CONTROL: M/8d, M/16d as printed; generic u in the isotypic space, as printed
@claim(
    "With u ∝ aᵀRx and w₂ ∝ xᵀRb in a non-trivial real representation of dimension D the energy is M/(2D),"
    " for any a, x, b; other u in its isotypic space with w₂ = Pu have Σσ⁴/(Σσ²)² of that, σ the singular values of û.",
    source="Theorem 2 and Corollary 2, corrected here: phases are free, quaternionic representations too",
    assumptions=(ALL_PAIRS, SQUARE, "norm one"),
)
def maxima(setting: Setting) -> Evidence:
    rng, groups, draws = setting.rng, some_groups(setting.scale), 5
    energies, nodes, law, printed, generic, spread, labels = [], [], [], [], [], [], []
    for group in groups:
        for r in nontrivial(irreps(group)):
            a, x, b = (rng.normal(size=(draws, r.dim)) for _ in range(3))
            u = np.einsum("ni,hij,nj->nh", a, r.matrices, x)
            v = np.einsum("ni,hij,nj->nh", x, r.matrices, b)
            mirrored = np.einsum("ni,hij,nj->nh", x, r.matrices, a)  # w₂ = Pu, for a = b
            loose = rng.normal(size=(draws, group.order)) @ r.projector
            halves = [(u, v), (u, mirrored), (loose, loose[:, group.inverse])]
            unit = lambda f: f / np.linalg.norm(f, axis=1, keepdims=True) / np.sqrt(2)
            nodes.append([widened(np.stack([unit(p), unit(q)], axis=1)) for p, q in halves])
            energies.append(Energy(group))
            law.append(grokking.peak(r))
            printed.append(_printed_peak(r))
            generic.append(r.multiplicity > 1)
            squares = np.linalg.svd(_numpy_fourier(loose, r), compute_uv=False) ** 2  # each as often as there are units
            spread.append(r.units * np.sum(squares**2, axis=1) / np.sum(squares, axis=1) ** 2)
            labels.append(f"{group.name} {short(r)}")
    w = jnp.asarray(np.array(nodes), setting.dtype)
    values = np.asarray(jax.jit(jax.vmap(lambda e, w: jax.vmap(jax.vmap(e))(w)))(same_shape(energies), w))
    law, printed, generic = np.array(law), np.array(printed), np.array(generic)
    relative = values / law[:, None, None] - 1
    own = _constructed(rng, groups, setting)
    below = -relative[generic, 2]  # how far generic nodes stay below
    singular = np.array(spread)[generic]
    return Evidence(
        rows={
            "E − M/(2D), u = aᵀRx, w₂ = xᵀRb, relative": identity(relative[:, 0], setting.bound(1e-12, 1e-5)),
            "the same, w₂ = Pu, rank one": identity(relative[:, 1], setting.bound(1e-12, 1e-5)),
            "the library's own maximum, its share and rank": identity(own, setting.bound(1e-12, 1e-5)),
            "generic u, w₂ = Pu: E/E* − Σσ⁴/(Σσ²)², σ those of û": identity(
                1 - below - singular, setting.bound(1e-12, 1e-5)
            ),
        },
        control={
            "printed values": identity(np.abs(values[:, 0] / printed[:, None] - 1).min(), 0.1),
            "generic u in the isotypic space, m ≥ 2": identity(np.median(below, axis=1).min(), 1e-3),
        },
        panels=[
            panel(
                "energy of nodes in one representation",
                ("representation, by E*", np.arange(len(law))),
                y="E",
                observed={
                    "aᵀRx, xᵀRb": values[np.argsort(law), 0].mean(axis=1),
                    "generic u, w₂ = Pu": values[np.argsort(law), 2].mean(axis=1),
                },
                predicted={"M/(2D)": np.sort(law)},
                control={"printed": printed[np.argsort(law)]},
                log="y",
            )
        ],
        remarks=[
            "Least and largest E/E* of generic u in its isotypic space: "
            + ", ".join(
                f"{labels[i]} {1 - below[k].max():.2f} to {1 - below[k].min():.2f}"
                for k, i in enumerate(np.flatnonzero(generic))
            )
            + "."
        ],
        errata=[
            Erratum(
                "Theorem 2, Corollary 2",
                "E* = M/(8d), M/(16d); w = [u; ±Pu], u anything in the isotypic space",
                "M/(2D) for x², D the real dimension; u = aᵀRx, w₂ = xᵀRb",
                f"relative error {np.abs(relative[:, 0]).max():.1g}",
                f"values off by a factor of 4; generic u up to {below.max():.0%} below",
            )
        ],
    )


def _constructed(rng: np.random.Generator, groups, setting: Setting) -> np.ndarray:
    """`maximum` and `content` on the last representation of two groups: E, share, rank, each less what it must be."""
    gaps = []
    for group in (groups[0], groups[-1]):
        all_ = irreps(group)
        w = grokking.maximum(all_[-1], *(jnp.asarray(rng.normal(size=all_[-1].dim), setting.dtype) for _ in range(3)))
        found = jax.jit(lambda w, all_=all_: grokking.content(w, all_))(w)
        gaps += [float(Energy(group)(w)) / grokking.peak(all_[-1]) - 1, float(found.share[-1]) - 1]
        gaps += np.asarray(found.rank)[-1].tolist()
    return np.array(gaps)


# CONTROL: Corollary 1, at representations of real dimension one; D − 1 flat directions, those of u alone
@claim(
    "At a maximum the Hessian on the sphere has the eigenvalues 0, −4E* and −8E* and no others:"
    " 3(D − 1) − (δ − 1) times zero and 1 + δ(m − 1) times −8E*.",
    source="derived here; Corollary 1 has all maxima flat",
    assumptions=(ALL_PAIRS, SQUARE),
)
def curvature(setting: Setting) -> Evidence:
    rng, groups = setting.rng, some_groups(setting.scale)
    cases = [(group, r) for group in groups for r in nontrivial(irreps(group))]
    nodes = []
    for _, r in cases:
        a, x, b = (rng.normal(size=r.dim) for _ in range(3))
        u, v = (np.einsum("i,hij,j->h", p, r.matrices, q) for p, q in ((a, x), (x, b)))
        nodes.append(widened(np.stack([u / np.linalg.norm(u), v / np.linalg.norm(v)]) / np.sqrt(2)))
    energies = same_shape([Energy(group) for group, _ in cases])
    found = jax.jit(jax.vmap(grokking.curvatures))(energies, jnp.asarray(np.array(nodes), setting.dtype))
    peaks = np.array([grokking.peak(r) for _, r in cases])
    scaled = np.asarray(found) / (4 * peaks[:, None])
    expected, flats = [], []
    for _, r in cases:
        s = grokking.spectrum(r)
        # Directions of the elements that fill up the shape add −4E*.
        middle = scaled.shape[1] - s.flat - s.steep
        expected.append(np.repeat([-2.0, -1.0, 0.0], [s.steep, middle, s.flat]))
        flats.append(s.flat)
    expected, flats = np.array(expected), np.array(flats)
    nullity = np.sum(np.abs(scaled) < 1e-3, axis=1)
    printed = np.array([r.dim - 1 for _, r in cases])  # a choice of u in one copy
    alone = np.array([r.dim == 1 for _, r in cases])
    order = np.argsort(flats, kind="stable")
    return Evidence(
        rows={
            "eigenvalues/4E* against 0, −1, −2 as often as predicted": identity(
                scaled - expected, setting.bound(1e-9, 1e-3)
            ),
            "flat directions less the prediction": identity(nullity - flats, 0),
        },
        control={
            "Corollary 1: flat directions missing to one, D = 1": identity(np.maximum(1 - nullity[alone], 0).min(), 0),
            "D − 1 flat directions, D ≥ 2": identity(np.abs(nullity - printed)[~alone].min(), 0),
        },
        panels=[
            panel(
                "spectrum of the Hessian at each kind of maximum",
                ("eigenvalue, ascending", np.arange(scaled.shape[1])),
                y="over 4E*",
                observed={"found": scaled[order[:: max(len(order) // 6, 1)]].T},
                predicted={"predicted": expected[order[:: max(len(order) // 6, 1)]].T},
            ),
            panel(
                "flat directions",
                ("representation, by prediction", np.arange(len(order))),
                y="number",
                observed={"found": nullity[order]},
                predicted={"3(D−1) − (δ−1)": flats[order]},
                control={"D − 1": printed[order]},
            ),
        ],
        remarks=["Flat directions: " + ", ".join(_flat_table(cases, nullity)) + "."],
        errata=[
            Erratum(
                "Corollary 1",
                "for M > 2 every local maximum has at least one flat direction",
                "3(D−1) − (δ−1) of them: none at representations of real dimension one",
                f"{len(cases)} of {len(cases)} maxima",
                f"{int(np.sum(alone))} maxima have none",
            )
        ],
    )  # fmt: skip


def _flat_table(cases: list[tuple[Group, Irrep]], nullity: Float[np.ndarray, " cases"]) -> list[str]:
    table: dict[str, int] = {}
    for (_, r), n in zip(cases, nullity, strict=True):
        table[f"{short(r)} (m = {r.multiplicity})"] = int(n)
    return [f"{name} {n}" for name, n in sorted(table.items())]
