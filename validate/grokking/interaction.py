"""What nodes at maxima can represent together, and how nodes interact: Theorems 3, 6 and 7."""

import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import grokking
from ...dynamics.groups import Group, alternating, cyclic, dihedral, symmetric
from ...dynamics.representations import Irrep, irreps
from ..claim import Erratum, Evidence, Setting, claim
from ..descent import end_of
from ..panels import heatmap, panel
from ..rows import identity
from ._shared import ALL_PAIRS, SQUARE, nontrivial, random_nodes, short, some_groups


# CONTROL: real [u; ±Pu], 40 pairs a representation; 7 random real maxima in place of 8
@claim(
    "Nodes at maxima reconstruct every label: 2 Σ m²d² complex ones (2M − 2 for Abelian groups), 2 Σ mD² real"
    " ones (4(M − 1) for Z_M, M odd). Real pairs [u; ±Pu] do not, however many.",
    source="Theorem 3; the real count, for each kind of representation, is derived here",
    assumptions=(ALL_PAIRS, SQUARE, "least squares output layer, η = 0"),
)
def reconstruction(setting: Setting) -> Evidence:
    rng = setting.rng
    groups = [g for g in some_groups(setting.scale) if g.order <= setting.pick(smoke=12, laptop=21, paper=24)]
    left, counts, mirrored = [], [], []
    for group in groups:
        over_r, over_c = irreps(group), irreps(group, over="complex")
        real, complex_ = grokking.real_nodes(over_r), grokking.complex_nodes(over_c, setting.seed)
        left.append([grokking.residual(real, group), grokking.residual(complex_, group)])
        counts.append([real.shape[2], complex_.shape[2], group.order**2])
        mirrored.append(grokking.residual(_mirrored(rng, over_r), group))
    z7 = irreps(cyclic(7))
    draw = lambda n, i: _random_maxima(np.random.default_rng([setting.seed, i]), z7, n)
    few = np.array([[grokking.residual(draw(n, i), cyclic(7)) for i in range(5)] for n in (6, 7, 8)])
    abelian = [i for i, g in enumerate(groups) if g.is_abelian and g.name.startswith("Z") and g.order % 2]
    off = [counts[i][0] - 4 * (groups[i].order - 1) for i in abelian]
    off += [counts[i][1] - 2 * (groups[i].order - 1) for i in range(len(groups)) if groups[i].is_abelian]
    hard = [m for g, m in zip(groups, mirrored, strict=True) if g.order > 4]
    names = [group.name for group in groups]
    seven = grokking.residual(_mirrored(rng, z7), cyclic(7))
    return Evidence(
        rows={
            "residual, real and complex": identity(np.array(left), 1e-20),
            "counts off 4(M−1) real (M odd) and 2M − 2 complex, Abelian": identity(np.array(off), 0),
            "Z_7, 8 random real maxima a frequency: residual": identity(few[2], 1e-20),
            "Z_7, real [u; ±Pu]: residual less ½": identity(seven - 0.5, 1e-6),
        },
        control={
            "real [u; ±Pu], least residual over groups": identity(np.min(hard), 0.01),
            "Z_7, 7 random real maxima a frequency: least residual": identity(np.min(few[1]), 1e-3),
        },
        panels=[
            panel(
                "nodes that reconstruct all labels",
                ("group, by order", np.arange(len(groups))),
                y="nodes",
                observed={"real maxima": np.array(counts)[:, 0], "complex (Theorem 3)": np.array(counts)[:, 1]},
                predicted={"memorisation, M²": np.array(counts)[:, 2]},
                log="y",
            ),
            heatmap(
                "what is left of the labels",
                ("group", names),
                ("nodes", ["real maxima", "complex", "real [u; ±Pu]"]),
                np.maximum(np.concatenate([np.array(left).T, [mirrored]]), 1e-32),
                z_label="residual",
                log="z",
            ),
        ],
        remarks=[
            "Nodes, real and complex, and M²: "
            + "; ".join(f"{name} {a}, {b}, {c}" for name, (a, b, c) in zip(names, counts, strict=True))
            + ". Where they exceed M², memorising is cheaper.",
            "Least residual of real [u; ±Pu]: "
            + ", ".join(f"{n} {m:.3f}" for n, m in zip(names, mirrored, strict=True))
            + f". Z_7 with 6 and 7 random maxima a frequency: {np.min(few[0]):.2g}, {np.min(few[1]):.2g}.",
        ],
    )


def _mirrored(rng: np.random.Generator, all_: tuple[Irrep, ...]) -> np.ndarray:
    """Real [u; ±Pu], u random in each isotypic space: far more than the count."""
    nodes = []
    for r in nontrivial(all_):
        u = r.projector @ rng.normal(size=(r.group.order, 40))
        mirror = u[r.group.inverse]
        nodes += [np.stack([u, mirror]), np.stack([u, -mirror])]
    return np.concatenate(nodes, axis=2)


def _random_maxima(rng: np.random.Generator, all_: tuple[Irrep, ...], number: int) -> np.ndarray:
    nodes = []
    for r in nontrivial(all_):
        a, x, b = rng.normal(size=(3, number, r.dim))
        nodes.append(np.stack([np.einsum("ni,hij,nj->hn", p, r.matrices, q) for p, q in ((a, x), (x, b))]))
    return np.concatenate(nodes, axis=2)


# CONTROL: the sign by raw similarity f_jᵀf_k; b_jk = −β/(αγ)
@claim(
    "The output layer's inverse Gram matrix has b_jk = −β/(αγ − β²): nodes that are alike, once the others"
    " are accounted for, push each other away.",
    source="Theorem 6 (its sum forgets k ≠ j)",
    assumptions=("M = 7, 20 nodes of normal weights, all pairs", SQUARE),
)
def repulsion(setting: Setting) -> Evidence:
    pairs, nodes, eta = grokking.task(cyclic(7)), 20, 0.5
    w = jnp.asarray(setting.rng.normal(size=(2, 7, nodes)), setting.dtype)
    features = grokking.centred(jnp.square(w[0][pairs.first] + w[1][pairs.second]))
    exact = np.asarray(grokking.inverse_gram(features, eta))
    first, second = np.triu_indices(nodes, 1)
    rule = lambda j, k: grokking.repulsion(features, eta, j, k)
    found = np.asarray(jax.jit(lambda j, k: jax.lax.map(lambda at: rule(*at), (j, k)))(first, second))
    entries = exact[first, second]
    raw = np.asarray(features.T @ features)
    without = entries * (1 - entries**2 / (exact[first, first] * exact[second, second]))  # −β/αγ in terms of B
    scale = np.abs(entries).max()
    order = np.argsort(entries)
    return Evidence(
        rows={
            "b_jk against its closed form, over the largest": identity(
                (found - entries) / scale, setting.bound(1e-9, 1e-3)
            ),
            "signs that differ, of 190": identity(int(np.sum(np.sign(found) != np.sign(entries))), 0),
        },
        control={
            "signs by raw similarity that differ, of 190": identity(
                int(np.sum(np.sign(-raw[first, second]) != np.sign(entries))), 0
            ),
            "−β/(αγ), over the largest": identity(np.abs((without - entries) / scale).max(), setting.bound(1e-9, 1e-3)),
        },
        panels=[
            panel(
                "entries of the inverse Gram matrix",
                ("pair of nodes, by b", np.arange(len(entries))),
                y="b_jk",
                observed={"inverse": entries[order]},
                predicted={"−β/(αγ − β²)": found[order]},
            )
        ],
    )


# CONTROL: Φ_S of characters, as printed, on groups that are not Abelian; the whole E in place of E_S
@claim(
    "Nodes that know the representations S leave Ỹ − Ŷ = Π_miss, row by row: a new node climbs"
    " E_S = (2/M) Σ_missing m‖û ŵ₂‖_F² and ends at a missing representation.",
    source="Theorem 7, with projectors in place of characters",
    assumptions=(ALL_PAIRS, SQUARE, "the nodes of S are complete (Theorem 3)", "the new node small: |f|² ≪ η ≪ 1"),
)
def top_down(setting: Setting) -> Evidence:
    rng = setting.rng
    groups = (cyclic(7), symmetric(3), dihedral(5), alternating(4))[: setting.pick(smoke=2, laptop=4, paper=4)]
    gaps, printed, tiny, energies, outside, unaware = [], [], [], [], [], []
    for group in groups:
        all_ = irreps(group)
        pairs = grokking.task(group)
        for known in range(1, len(all_) - 1):  # the first is trivial; some are missing
            learned = range(1, known + 1)
            projector = grokking.missing(all_, learned)
            nodes = grokking.real_nodes(all_[: known + 1])
            left = grokking.left_over(nodes, group)
            gaps.append(np.abs(left - projector[pairs.label]).max())
            if not group.is_abelian:
                printed.append(np.abs(left - _by_characters(group, all_, learned)[pairs.label]).max())
            tiny.append(_tiny_node(rng, group, nodes, projector, setting))
        if group in groups[:2]:  # each ascent is compiled for itself
            ends = _ends(rng, all_, range(1, len(all_) - 1), setting)
            energies.append(ends[0])
            outside.append(ends[1])
            unaware.append(_ends(rng, all_, (), setting)[1])
    cosine, ratio = np.array(tiny).T
    return Evidence(
        rows={
            "Ỹ − Ŷ against Π_miss": identity(np.array(gaps), 1e-12),
            "G_F of a new node against Π_miss(h, h′)/η: 1 − cosine": identity(1 - cosine, setting.bound(1e-5, 1e-3)),
            "its norm over the prediction, less one": identity(ratio - 1, setting.bound(0.01, 0.05)),
            "ascents of E_S: E over M/(2D) of the missing one, less one": identity(
                np.concatenate(energies), setting.bound(1e-8, 1e-4)
            ),
            "their mass outside the missing one": identity(np.concatenate(outside), setting.bound(1e-8, 1e-4)),
        },
        control={
            "characters as printed, not Abelian": identity(np.min(printed), 1e-3),
            "ascents of E: mean mass outside the missing one": identity(np.mean(np.concatenate(unaware)), 0.01),
        },
        panels=[
            heatmap(
                f"what is left of the labels of {groups[1].name} when the sign is known",
                ("column h′", list(map(str, range(groups[1].order)))),
                ("label h", list(map(str, range(groups[1].order)))),
                grokking.missing(irreps(groups[1]), [1]),
                z_label="Π_miss",
            ),
            heatmap(
                "the same by characters, as printed",
                ("column h′", list(map(str, range(groups[1].order)))),
                ("label h", list(map(str, range(groups[1].order)))),
                _by_characters(groups[1], irreps(groups[1]), [1]),
                z_label="Φ_S Φ_S*",
            ),
        ],
        remarks=[
            "Known one after another: "
            + "; ".join(f"{g.name} " + ", ".join(short(r) for r in nontrivial(irreps(g))) for g in groups)
            + ". Ascents of E_S with all but the last known end at the last."
        ],
        errata=[
            Erratum(
                "Theorem 7",
                "Φ_S = [√(d/M) χ_k], k missing",
                "Π_miss, of rank Σ d²: all matrix entries as columns, not their trace alone",
                f"{max(gaps):.1g}",
                f"off by {min(printed):.2g} to {max(printed):.2g}",
            )
        ],
    )


def _by_characters(group: Group, all_: tuple[Irrep, ...], learned) -> np.ndarray:
    """`Φ_S Φ_S*` as printed, for representations of real kind."""
    left = [r for i, r in enumerate(all_) if i not in learned and not r.trivial]
    return sum((r.dim / group.order * np.outer(r.character, r.character) for r in left), np.zeros((group.order,) * 2))


def _tiny_node(rng, group: Group, nodes: np.ndarray, projector: np.ndarray, setting: Setting) -> tuple[float, ...]:
    """The gradient that reaches a new small node beside these, against `(1/η) Π_miss(h, h′) f`: cosine and norms."""
    pairs, eta = grokking.task(group), setting.bound(1e-5, 1e-2)
    both = np.concatenate([nodes, eta * rng.normal(size=(2, group.order, 1))], axis=2)
    features = (both[0][pairs.first] + both[1][pairs.second]) ** 2
    layer = grokking.OutputLayer(jnp.asarray(features), jnp.asarray(np.eye(group.order)[pairs.label]), eta)
    found = np.asarray(layer.backpropagated(layer.limit()))[:, -1]
    law = (projector[pairs.label] @ (projector[pairs.label].T @ np.asarray(layer.features)[:, -1])) / eta
    ratio = float(np.linalg.norm(found) / np.linalg.norm(law))
    return float(found @ law) / float(np.linalg.norm(law)) ** 2 / ratio, ratio


def _ends(rng, all_: tuple[Irrep, ...], learned, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Ascents of the energy that knows of `learned`: E over that of the last representation, mass outside it."""
    order, last = all_[0].group.order, all_[-1]
    flow = grokking.ScaledAscent(lambda w: grokking.remaining_energy(w, all_, learned))
    starts = jnp.asarray(random_nodes(rng, 30, order), setting.dtype)
    ends = jax.jit(jax.vmap(lambda w: end_of(flow, w, 60.0, 240)))(starts)
    mass = lambda w: np.sum(np.asarray(w) ** 2, axis=(1, 2))
    values = np.asarray(jax.jit(jax.vmap(flow.energy))(ends))
    return values / grokking.peak(last) - 1, 1 - mass(ends @ last.projector) / mass(ends)
