"""What nodes at maxima can represent together, and how nodes interact: Theorems 3, 6 and 7."""

from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...dynamics import grokking
from ...dynamics.groups import Group, alternating, cyclic, dihedral, symmetric
from ...dynamics.representations import Irrep, irreps
from ..checks import absolute, agrees, at_most, evidence, scaled, solver, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..descent import end_of
from ..panels import heatmap, panel
from ._shared import ALL_PAIRS, SQUARE, nontrivial, random_nodes, short, some_groups

EXACT = 1e-20  # of a squared residual: least squares on the host, in float64


def _mirrored(rng: np.random.Generator, all_: Sequence[Irrep]) -> Float[np.ndarray, "2 order nodes"]:
    """Real [u; ±Pu], u random in each isotypic space: far more than the count."""
    nodes = []
    for r in nontrivial(all_):
        u = r.projector @ rng.normal(size=(r.group.order, 40))
        mirror = u[r.group.inverse]
        nodes += [np.stack([u, mirror]), np.stack([u, -mirror])]
    return np.concatenate(nodes, axis=2)


def _random_maxima(rng: np.random.Generator, all_: Sequence[Irrep], number: int) -> Float[np.ndarray, "2 order nodes"]:
    nodes = []
    for r in nontrivial(all_):
        a, x, b = rng.normal(size=(3, number, r.dim))
        nodes.append(np.stack([np.einsum("ni,hij,nj->hn", p, r.matrices, q) for p, q in ((a, x), (x, b))]))
    return np.concatenate(nodes, axis=2)


@claim(
    "Nodes at maxima reconstruct every label. It takes 2 Σ m²d² complex ones (2M − 2 for Abelian groups), or 2 Σ mD²"
    " real ones (4(M − 1) for Abelian groups of odd order). Real pairs [u; ±Pu], 40 for each representation, do not.",
    source="Theorem 3; the real count, for each kind of representation, is derived here",
    assumptions=(ALL_PAIRS, SQUARE, "least squares output layer, η = 0"),
    tex=r"2 \sum_R m_R D_R^2\ \mathrm{real\ nodes}:\ \min_V \Vert \tilde Y - \tilde F V \Vert = 0",
)
def reconstruction(setting: Setting) -> Evidence:
    rng, z7 = setting.rng, cyclic(7)
    groups = [g for g in some_groups(setting.scale) if g.order <= setting.pick(smoke=12, laptop=21, paper=24)]
    kinds = [(irreps(group), irreps(group, over="complex")) for group in groups]
    nodes = [
        (grokking.real_nodes(real), grokking.complex_nodes(over_c, setting.seed), _mirrored(rng, real))
        for real, over_c in kinds
    ]
    left = [[grokking.residual(each, g) for each in three] for g, three in zip(groups, nodes, strict=True)]
    real, complex_, mirrored = np.array(left).T
    counts = np.array([[each.shape[2] for each in three[:2]] for three in nodes])
    orders, names = np.array([g.order for g in groups]), [g.name for g in groups]
    abelian = np.array([g.is_abelian for g in groups])
    draw = lambda n, i: _random_maxima(np.random.default_rng([setting.seed, i]), irreps(z7), n)
    six, seven, eight = ([grokking.residual(draw(n, i), z7) for i in range(5)] for n in (6, 7, 8))
    pairs = grokking.residual(_mirrored(rng, irreps(z7)), z7)
    wrong = {"real [u; ±Pu], the least": min(mirrored[orders > 4])}
    number = {"within": 0, "measure": absolute}
    return evidence(
        at_most("residual", {"real maxima": real, "complex nodes": complex_}, EXACT, wrong),
        *[
            agrees(
                f"{name}, Abelian", None, counts[which, i], law[which], {"M², memorising": orders[which] ** 2}, **number
            )
            for i, name, which, law in (
                (0, "real nodes, M odd", abelian & (orders % 2 == 1), 4 * (orders - 1)),
                (1, "complex nodes", abelian, 2 * (orders - 1)),
            )
            if which.any()
        ],
        at_most("Z_7, 8 random real maxima a frequency: residual", eight, EXACT, {"7, the least": min(seven)}),
        agrees("Z_7, real [u; ±Pu]: residual", None, pairs, 0.5, {"0, as printed": 0.0}, within=1e-6, measure=absolute),
        panels=[
            panel(
                "nodes that reconstruct all labels",
                ("group, by order", np.arange(len(groups))),
                y="nodes",
                observed={"real maxima": counts[:, 0], "complex (Theorem 3)": counts[:, 1]},
                predicted={"memorisation, M²": orders**2},
                log="y",
            ),
            heatmap(
                "residual of the labels",
                ("group", names),
                ("nodes", ["real maxima", "complex", "real [u; ±Pu]"]),
                np.maximum(np.array(left).T, 1e-32),
                z_label="residual",
                log="z",
            ),
        ],
        remarks=[
            "Nodes, real and complex, and M²: "
            + "; ".join(f"{n} {a}, {b}, {m**2}" for n, (a, b), m in zip(names, counts, orders, strict=True))
            + ". Where they exceed M², memorising is cheaper.",
            f"Residual of real [u; ±Pu]: {', '.join(f'{n} {m:.3f}' for n, m in zip(names, mirrored, strict=True))}."
            f" Z_7 with 6 and 7 random maxima a frequency: {min(six):.2g}, {min(seven):.2g} at least.",
        ],
    )


@claim(
    "The output layer's inverse Gram matrix has b_jk = −β/(αγ − β²): nodes that are alike, once the others"
    " are accounted for, push each other away.",
    source="Theorem 6 (its sum forgets k ≠ j)",
    assumptions=("M = 7, 20 nodes of normal weights, all pairs", SQUARE),
    tex=r"b_{jk} = -\frac{\beta}{\alpha\gamma - \beta^2}",
    flow=grokking.OutputLayer,
)
def repulsion(setting: Setting) -> Evidence:
    pairs, nodes, eta = grokking.pairs(cyclic(7).table), 20, 0.5
    w = jnp.asarray(setting.rng.normal(size=(2, 7, nodes)), setting.dtype)
    features = grokking.centred(jnp.square(w[0][pairs.first] + w[1][pairs.second]))
    exact = np.asarray(grokking.inverse_gram(features, eta))
    first, second = np.triu_indices(nodes, 1)
    order = np.argsort(exact[first, second])
    first, second = first[order], second[order]
    rule = lambda at: grokking.repulsion(features, eta, *at)
    found = np.asarray(jax.jit(lambda *at: jax.lax.map(rule, at))(first, second))
    entries, alike = exact[first, second], np.asarray(features.T @ features)[first, second]
    without = entries * (1 - entries**2 / (exact[first, first] * exact[second, second]))  # −β/αγ in terms of B
    signs = lambda x: int(np.sum(np.sign(x) != np.sign(entries)))
    return evidence(
        agrees(
            "b_jk",
            ("pair of nodes, by b", np.arange(len(entries))),
            entries,
            {"−β/(αγ − β²)": found},
            {"−β/(αγ)": without},
            within=solver(10),
            measure=scaled,
            y="b_jk",
        ),
        at_most("signs that differ, of 190", signs(found), 0, {"signs by −f_jᵀf_k": signs(-alike)}),
    )


def _by_characters(group: Group, all_: Sequence[Irrep], learned: Collection[int]) -> Float[np.ndarray, "order order"]:
    """`Φ_S Φ_S*` as printed, for representations of real kind."""
    left = [r for i, r in enumerate(all_) if i not in learned and not r.trivial]
    return sum((r.dim / group.order * np.outer(r.character, r.character) for r in left), np.zeros((group.order,) * 2))


def _tiny_node(rng, group: Group, nodes: np.ndarray, laws: Sequence[np.ndarray], setting: Setting) -> np.ndarray:
    """The gradient that reaches a new small node beside these, against `(1/η) Π(h, h′) f` for some Π: for each the
    cosine and the norm over the predicted one."""
    pairs, eta = grokking.pairs(group.table), setting.bound(1e-5, 1e-2)
    both = np.concatenate([nodes, eta * rng.normal(size=(2, group.order, 1))], axis=2)
    features = (both[0][pairs.first] + both[1][pairs.second]) ** 2
    layer = grokking.OutputLayer(jnp.asarray(features), jnp.asarray(np.eye(group.order)[pairs.label]), eta)
    found, f = np.asarray(layer.backpropagated(layer.limit()))[:, -1], np.asarray(layer.features)[:, -1]
    each = [law[pairs.label] @ (law[pairs.label].T @ f) / eta for law in laws]
    size = np.linalg.norm
    return np.array([[found @ one / size(found) / size(one), size(found) / size(one)] for one in each])


def _ends(rng, all_: Sequence[Irrep], setting: Setting) -> tuple[np.ndarray, ...]:
    """Ascents of E_S, with all but the last representation known, and of E: where the first end, E over that of the
    last; of both the mass outside it."""
    last, climbed = all_[-1], (range(1, len(all_) - 1), ())
    flows = [
        grokking.ScaledAscent(lambda w, known=known: grokking.remaining_energy(w, all_, known)) for known in climbed
    ]

    def end(w):
        aware, unaware = (end_of(flow, w, 60.0, 240) for flow in flows)
        return aware, unaware, flows[0].energy(aware)

    starts = jnp.asarray(random_nodes(rng, 30, last.group.order), setting.dtype)
    aware, unaware, values = map(np.asarray, jax.jit(jax.vmap(end))(starts))
    outside = lambda w: 1 - np.sum((w @ last.projector) ** 2, axis=(1, 2)) / np.sum(w**2, axis=(1, 2))
    return values / grokking.peak(last), outside(aware), outside(unaware)


@claim(
    "Nodes that know the representations S leave Ỹ − Ŷ = Π_miss, row by row. A new node climbs"
    " E_S = (2/M) Σ_missing m‖û ŵ₂‖_F² and ends at a missing representation.",
    source="Theorem 7, with projectors in place of characters",
    assumptions=(ALL_PAIRS, SQUARE, "the nodes of S are complete (Theorem 3)", "the new node small: |f|² ≪ η ≪ 1"),
    tex=r"\tilde Y - \hat Y = \Pi_{\mathrm{miss}},"
    r"\ E_S = \frac{2}{M} \sum_{R \notin S} m_R \Vert \hat u_R \hat w_{2,R} \Vert_F^2",
    flow=grokking.ScaledAscent,
)
def top_down(setting: Setting) -> Evidence:
    rng = setting.rng
    groups = (cyclic(7), symmetric(3), dihedral(5), alternating(4))[: setting.pick(smoke=2, laptop=4, paper=4)]
    gaps, printed, tiny, tiny_printed = [], [], [], []
    for group in groups:
        all_, pairs = irreps(group), grokking.pairs(group.table)
        for known in range(1, len(all_) - 1):  # the first is trivial; some are missing
            learned = range(1, known + 1)
            laws = [grokking.missing(all_, learned), _by_characters(group, all_, learned)][
                : 1 if group.is_abelian else 2
            ]
            nodes = grokking.real_nodes(all_[: known + 1])
            off = [np.abs(grokking.left_over(nodes, group) - law[pairs.label]).max() for law in laws]
            found = _tiny_node(rng, group, nodes, laws, setting)
            gaps, printed = [*gaps, off[0]], [*printed, *off[1:]]
            tiny, tiny_printed = [*tiny, found[0]], [*tiny_printed, *found[1:]]
    cosine, ratio = np.array(tiny).T
    # each ascent is compiled for itself
    energies, outside, unaware = map(
        np.concatenate, zip(*(_ends(rng, irreps(g), setting) for g in groups[:2]), strict=True)
    )
    shown = groups[1]
    axes = ("column h′", list(map(str, range(shown.order)))), ("label h", list(map(str, range(shown.order))))
    by_characters = "characters, as printed, groups that are not Abelian"
    return evidence(
        # of 1 on the host, in float64
        vanishes("Ỹ − Ŷ less Π_miss", gaps, {by_characters: printed}, within=1e-12),
        # Both are of order |f|²/η, which float32 does not have as small.
        at_most(
            "G_F of a new node against Π_miss(h, h′)/η: 1 − cosine", 1 - cosine, setting.bound(1e-5, 1e-3),
            {by_characters: [1 - c for c, _ in tiny_printed]},
        ),
        agrees("its norm over the predicted one", None, ratio, 1.0, within=setting.bound(0.01, 0.05)),
        agrees("ascents of E_S: E over M/(2D) of the missing one", None, energies, 1.0, within=solver(100)),
        at_most("their mass outside the missing one", outside, solver(100), {"ascents of E": unaware}),
        panels=[
            heatmap(f"residual of the labels of {shown.name}, the sign known", *axes, law, z_label=label)
            for label, law in (
                ("Π_miss", grokking.missing(irreps(shown), [1])),
                ("Φ_S Φ_S*, as printed", _by_characters(shown, irreps(shown), [1])),
            )
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
                float(max(gaps)),
                float(max(printed)),
                "largest error of Ỹ − Ŷ",
            )
        ],
    )  # fmt: skip
