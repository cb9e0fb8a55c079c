"""What nodes at maxima can represent together, and how nodes interact: Theorems 3, 6 and 7."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...dynamics import grokking
from ...dynamics.groups import alternating, cyclic, dihedral, symmetric
from ...dynamics.representations import Irrep, irreps
from ..cheap import end_of
from ..checks import absolute, agrees, at_most, evidence, scaled, solver, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..pair_networks import SQUARE
from ..panels import heatmap, panel
from ._shared import ALL_PAIRS, entries, nontrivial, random_nodes, short, some_groups

EXACT = 1e-20  # of a squared residual: least squares on the host, in float64


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

    def mirrored_nodes(all_):
        """Real [u; ±Pu], u random in each isotypic space: far more than the count."""
        u = np.concatenate([r.projector @ rng.normal(size=(r.group.order, 40)) for r in nontrivial(all_)], axis=1)
        mirror = u[all_[0].group.inverse]
        return np.concatenate([np.stack([u, mirror]), np.stack([u, -mirror])], axis=2)

    kinds = [(irreps(group), irreps(group, over="complex")) for group in groups]
    nodes = [
        (grokking.real_nodes(over_r), grokking.complex_nodes(over_c, setting.seed), mirrored_nodes(over_r))
        for over_r, over_c in kinds
    ]
    left = [[grokking.residual(each, g) for each in own] for g, own in zip(groups, nodes, strict=True)]
    real, complex_, mirrored = np.array(left).T
    counts = np.array([[each.shape[2] for each in own[:2]] for own in nodes])
    orders, abelian = np.array([g.order for g in groups]), np.array([g.is_abelian for g in groups])
    memorising, exactly = lambda of: {"M², memorising": orders[of] ** 2}, {"within": 0, "measure": absolute}
    numbers = ("real nodes, M odd", 0, 4, abelian & (orders % 2 == 1)), ("complex nodes", 1, 2, abelian)
    counted = [
        agrees(f"{name}, Abelian", None, counts[of, i], times * (orders[of] - 1), memorising(of), **exactly)
        for name, i, times, of in numbers
        if of.any()
    ]

    def of_random_maxima(number, seed):
        drawn = np.random.default_rng([setting.seed, seed])
        each = [(r, *drawn.normal(size=(3, number, r.dim))) for r in nontrivial(irreps(z7))]
        nodes = [np.stack([entries(r, a, x).T, entries(r, x, b).T]) for r, a, x, b in each]
        return grokking.residual(np.concatenate(nodes, axis=2), z7)

    six, seven, eight = ([of_random_maxima(number, seed) for seed in range(5)] for number in (6, 7, 8))
    pairs = grokking.residual(mirrored_nodes(irreps(z7)), z7)
    seen = {"real maxima": counts[:, 0], "complex (Theorem 3)": counts[:, 1]}
    axis, theory = ("group, by order", np.arange(len(groups))), {"memorisation, M²": orders**2}
    title, several = "nodes that reconstruct all labels", {"real maxima": real, "complex nodes": complex_}
    told = (f"{g.name} {a}, {b}, {g.order**2}" for g, (a, b) in zip(groups, counts, strict=True))
    residuals = (f"{g.name} {off:.3f}" for g, off in zip(groups, mirrored, strict=True))
    return evidence(
        at_most("residual", several, EXACT, {"real [u; ±Pu], the least": mirrored[orders > 4].min()}),
        *counted,
        at_most("Z_7, 8 random real maxima a frequency: residual", eight, EXACT, {"7, the least": min(seven)}),
        agrees("Z_7, real [u; ±Pu]: residual", None, pairs, 0.5, {"0, as printed": 0.0}, within=1e-6, measure=absolute),
        panels=[panel(title, axis, y="nodes", observed=seen, predicted=theory, log="y")],
        remarks=[
            f"Nodes, real and complex, and M²: {'; '.join(told)}. Where they exceed M², memorising is cheaper.",
            f"Residual of real [u; ±Pu]: {', '.join(residuals)}."
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
    found = np.asarray(jax.jit(jax.vmap(partial(grokking.repulsion, features, eta)))(first, second))
    entries, alike = exact[first, second], np.asarray(features.T @ features)[first, second]
    without = entries * (1 - entries**2 / (exact[first, first] * exact[second, second]))  # −β/αγ in terms of B
    signs = lambda x: int(np.sum(np.sign(x) != np.sign(entries)))
    axis, law, wrong = ("pair of nodes, by b", np.arange(len(entries))), {"−β/(αγ − β²)": found}, {"−β/(αγ)": without}
    return evidence(
        agrees("b_jk", axis, entries, law, wrong, within=solver(10), measure=scaled, y="b_jk"),
        at_most("signs that differ, of 190", signs(found), 0, {"signs by −f_jᵀf_k": signs(-alike)}),
    )


def _by_characters(all_: Sequence[Irrep], known: int) -> Float[np.ndarray, "order order"]:
    """`Φ_S Φ_S*` as printed, for representations of real kind, the first so many besides the trivial one known."""
    return np.sum([r.dim / r.group.order * np.outer(r.character, r.character) for r in all_[known + 1 :]], axis=0)


def _beside(rng, all_: Sequence[Irrep], known: int, setting: Setting) -> list[tuple[Any, ...]]:
    """For Π_miss beside nodes that know so many representations, and for its printed form if the group is not Abelian:
    the error of Ỹ − Ŷ; and of the gradient that reaches a new small node, predicted as `(1/η) Π(h, h′) f`, the cosine
    and the norm over the predicted one."""
    group, eta, size = all_[0].group, setting.bound(1e-5, 1e-2), np.linalg.norm
    pairs, nodes = grokking.pairs(group.table), grokking.real_nodes(all_[: known + 1])
    left = grokking.left_over(nodes, group)
    both = np.concatenate([nodes, eta * rng.normal(size=(2, group.order, 1))], axis=2)
    features = (both[0][pairs.first] + both[1][pairs.second]) ** 2
    layer = grokking.OutputLayer(jnp.asarray(features), jnp.asarray(np.eye(group.order)[pairs.label]), eta)
    found, f = np.asarray(layer.backpropagated(layer.limit()))[:, -1], np.asarray(layer.features)[:, -1]

    def against(rows):
        law = rows @ (rows.T @ f) / eta
        return np.abs(left - rows).max(), found @ law / size(found) / size(law), size(found) / size(law)

    laws = grokking.missing(all_, range(1, known + 1)), _by_characters(all_, known)
    return [against(law[pairs.label]) for law in laws[: 1 if group.is_abelian else 2]]


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
    groups = (cyclic(7), symmetric(3), dihedral(5), alternating(4))[: setting.pick(smoke=2, laptop=4, paper=4)]
    rng, kinds = setting.rng, [irreps(group) for group in groups]
    # The first is trivial, and some are missing.
    each = [_beside(rng, all_, known, setting) for all_ in kinds for known in range(1, len(all_) - 1)]
    gaps, cosine, ratio = np.array([own[0] for own in each]).T
    printed, printed_cosine, _ = np.array([own[1] for own in each if len(own) > 1]).T

    def ends(all_):
        """Of ascents of E_S, all but the last known, E over that of the last; the mass outside it, and that of E's."""
        last, climbed = all_[-1], (range(1, len(all_) - 1), ())
        energies = [partial(grokking.remaining_energy, irreps=all_, learned=known) for known in climbed]
        end = lambda w: [end_of(grokking.ScaledAscent(energy), w, 60.0, 240) for energy in energies]
        starts = jnp.asarray(random_nodes(rng, 30, last.group.order), setting.dtype)
        aware, unaware = jax.jit(jax.vmap(end))(starts)
        share = jax.jit(jax.vmap(energies[0]))(aware) / grokking.peak(last)
        outside = lambda w: 1 - np.sum((w @ last.projector) ** 2, axis=(1, 2)) / np.sum(w**2, axis=(1, 2))
        return share, outside(aware), outside(unaware)

    # each ascent is compiled for itself
    energies, outside, unaware = map(np.concatenate, zip(*map(ends, kinds[:2]), strict=True))
    by_characters, shown = "characters, as printed, groups that are not Abelian", kinds[1]
    elements = list(map(str, range(groups[1].order)))
    laws = {"Π_miss": grokking.missing(shown, [1]), "Φ_S Φ_S*, as printed": _by_characters(shown, 1)}
    title = f"residual of the labels of {groups[1].name}, the sign known"
    axes = ("column h′", elements), ("label h", elements)
    told = (f"{g.name} {', '.join(short(r) for r in nontrivial(own))}" for g, own in zip(groups, kinds, strict=True))
    form, error = "Π_miss, of rank Σ d²: all matrix entries as columns, not their trace alone", "largest error of Ỹ − Ŷ"
    # Both are of order |f|²/η, which float32 does not have as small.
    close, size = setting.bound((1e-5, 0.01), (1e-3, 0.05))
    name = "G_F of a new node against Π_miss(h, h′)/η: 1 − cosine"
    return evidence(
        # of 1 on the host, in float64
        vanishes("Ỹ − Ŷ less Π_miss", gaps, {by_characters: printed}, within=1e-12),
        at_most(name, 1 - cosine, close, {by_characters: 1 - printed_cosine}),
        agrees("its norm over the predicted one", None, ratio, 1.0, within=size),
        agrees("ascents of E_S: E over M/(2D) of the missing one", None, energies, 1.0, within=solver(100)),
        at_most("their mass outside the missing one", outside, solver(100), {"ascents of E": unaware}),
        panels=[heatmap(title, *axes, law, z_label=label) for label, law in laws.items()],
        remarks=[
            f"Known one after another: {'; '.join(told)}. Ascents of E_S with all but the last known end at the last."
        ],
        errata=[Erratum("Theorem 7", "Φ_S = [√(d/M) χ_k], k missing", form, max(gaps), max(printed), error)],
    )
