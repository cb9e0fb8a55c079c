"""Stage II: where ascents from random starts end, and which maxima last on a subset of the pairs."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics.grokking import Energy, ScaledAscent, peak
from ...dynamics.groups import cyclic
from ...dynamics.representations import Irrep, irreps
from ...nets.pairs import split
from ..cheap import end_of
from ..checks import agrees, at_least, at_most, evidence, mean, relative, rounding, solver, vanishes
from ..claim import Evidence, Setting, claim
from ..pair_networks import ALONG_LABELS, SQUARE
from ..panels import panel
from ._shared import ALL_PAIRS, nontrivial, random_nodes, same_shape, short, some_groups, widened

# The time of an ascent: pieces after which it is recorded, by two steps each, and the rest.
PIECES, PIECE, REST = 24, 0.5, 60.0


@partial(jax.jit, static_argnums=2)
def _climb(energies: Energy, starts: Float[Array, "groups starts 2 order"], steps: int = 240):
    """The ends, by so many steps in the rest; the energy at the start, after each piece, at the end; the last speed."""

    def lane(energy, w):
        flow = ScaledAscent(energy)
        value = lambda w: energy(w / jnp.linalg.norm(w))
        pieces = jax.lax.scan(lambda w, _: (end_of(flow, w, PIECE, 2), value(w)), w, length=PIECES)
        end = end_of(flow, pieces[0], REST, steps)
        values = jnp.concatenate([pieces[1], jnp.stack([value(pieces[0]), value(end)])])
        return end, values, jnp.max(jnp.abs(flow(0.0, end)))

    return jax.vmap(lambda energy, w: jax.vmap(partial(lane, energy))(w))(energies, starts)


def _end(w: Float[np.ndarray, "2 order"], all_: Sequence[Irrep]) -> tuple[Irrep, tuple[float, ...]]:
    """The real representation that holds most of a node, and: 1 − what it holds; the second over the first singular
    value of the halves; of ŵ₂ what lies across the x of û = axᵀ, relative; how far w₂ is from ±Pu, relative."""
    holds = [np.sum((w @ r.projector) ** 2) / np.sum(w**2) for r in all_]
    r = all_[int(np.argmax(holds))]
    u, v = hats = np.tensordot(w, r.matrices, axes=1)
    values = np.linalg.svd(hats, compute_uv=False)
    beyond = np.max(values[:, r.units] / values[:, 0]) if r.multiplicity > 1 else 0.0
    x = np.linalg.svd(u)[2][: r.units]
    mirrored = [np.linalg.norm(w[1] - sign * w[0][r.group.inverse]) for sign in (1, -1)]
    across = np.linalg.norm(v - x.T @ (x @ v)) / np.linalg.norm(v)
    return r, (1 - max(holds), float(beyond), float(across), float(min(mirrored) / np.linalg.norm(w[1])))


@claim(
    "From random starts every ascent ends at one of the predicted maxima. It lies in one real representation, of"
    " dimension D, with energy M/(2D) and halves of equal norm, u ∝ aᵀRx and w₂ ∝ xᵀRb.",
    source="Theorem 2, corrected",
    assumptions=(
        ALL_PAIRS,
        SQUARE,
        ALONG_LABELS,
        "norm one; ẇ = ∇E/(w·∇E) − w, which has the paths of ascent on the sphere",
    ),
    tex=r"\dot w = \frac{\nabla E}{w \cdot \nabla E} - w:\ E(w(\infty)) = \frac{M}{2D}",
    flow=ScaledAscent,
)
def ascent(setting: Setting) -> Evidence:
    rng, groups = setting.rng, some_groups(setting.scale)
    starts = setting.pick(smoke=100, laptop=100, paper=400)
    drawn = np.stack([widened(random_nodes(rng, starts, group.order)) for group in groups])
    energies = same_shape([Energy(group) for group in groups])
    ends, values, speeds = map(np.asarray, _climb(energies, jnp.asarray(drawn, setting.dtype)))
    kinds = {group.name: nontrivial(irreps(group)) for group in groups}
    each = [_end(w[:, : g.order], kinds[g.name]) for g, own in zip(groups, ends, strict=True) for w in own]
    winners, measured = zip(*each, strict=True)
    outside, beyond, across, mirrored = np.array(measured).T
    peaks = np.array([peak(r) for r in winners])
    halves = np.linalg.norm(ends, axis=3) / np.linalg.norm(ends, axis=(2, 3))[..., None]
    rises = np.diff(values, axis=2) / peaks.reshape(*values.shape[:2], 1)
    shown = next(i for i, group in enumerate(groups) if group.name in ("S4", "A4"))
    levels = {short(r): np.full(PIECES + 1, peak(r)) for r in kinds[groups[shown].name]}
    title, axis = f"ascents on {groups[shown].name}", ("time", PIECE * np.arange(PIECES + 1))
    theory = {f"M/(2D), {name}": level for name, level in levels.items()}
    too_low = {f"printed, {name}": level / 4 for name, level in levels.items()}
    paths = {"random starts": values[shown, :24, :-1].T}
    counts = sorted(Counter(f"{r.group.name} {short(r)}" for r in winners).items())
    told = f"Ends by representation: {', '.join(f'{name} {number}' for name, number in counts)}."
    laws, printed, near = {"M/(2D)": peaks}, {"M/(8d), M/(16d), printed": peaks / 4}, solver(100)
    as_printed = {"w₂ less ±Pu, as printed": mirrored}
    return evidence(
        agrees("E at the end", None, values[..., -1].ravel(), laws, printed, within=near, measure=relative),
        at_most("fraction of ‖w‖² outside its representation", outside, near),
        vanishes("‖u‖ and ‖w₂‖ less 1/√2", halves - np.sqrt(0.5), within=solver(1e3)),
        at_most("second over first singular value", beyond, solver(1e4)),
        vanishes("of w₂ what is no xᵀRb with the x of u", across, as_printed, within=solver(1e4)),
        at_least("change of E between records, over E*", rises, -rounding(4500)),
        vanishes("speed at the end", speeds, within=solver(1e4)),
        panels=[panel(title, axis, y="E", observed=paths, predicted=theory, control=too_low)],
        remarks=[f"{told} The median distance of w₂ from ±Pu, over ‖w₂‖, is {np.median(mirrored):.2g}."],
    )


# A subset of the pairs


def _starts(rng: np.random.Generator, order: int, number: int) -> Float[np.ndarray, "number 2 order"]:
    """Maxima on all pairs of Z_order, order odd: one frequency, any two phases."""
    k = rng.integers(1, (order + 1) // 2, size=(number, 1, 1))
    angle = 2 * np.pi * (k * np.arange(order) / order + rng.random((number, 2, 1)))
    return np.cos(angle) / np.sqrt(order / 2) / np.sqrt(2)


@claim(
    "On 40 % of the pairs of Z_41 maxima at one frequency last if only the interaction of both halves counts. With the"
    " squares of x² whole they do not: a single element is worth Mp(1−p)/2, more than p²M/4 if p < ⅔.",
    source="Theorem 4, whose M log M pairs are measured on the interaction here; the values are derived here",
    assumptions=("Z_M, pairs drawn at random, labels centred over them", SQUARE, "starts at maxima of all pairs"),
    tex=r"E(e_h) = \frac{M p (1-p)}{2} > \frac{p^2 M}{4} = E(\cos)\ \mathrm{for}\ p < \frac{2}{3}",
    flow=ScaledAscent,
)
def partial_data(setting: Setting) -> Evidence:
    p, order = 0.4, 41
    orders = setting.pick(smoke=(order,), laptop=(11, 23, order), paper=(11, 23, order, 61, 127))
    some, many = (0.2, 0.3, p, 0.5, 0.6, 0.7), tuple(np.arange(2, 17) / 20)
    fractions = setting.pick(smoke=(p,), laptop=some, paper=many)
    subsets = setting.pick(smoke=6, laptop=6, paper=12)

    def energies(order, fractions, interaction=False):
        """On so many random subsets of the pairs for each fraction."""
        masks = [split(order, fraction=p, seed=1000 * setting.seed + s) for s in range(subsets) for p in fractions]
        each = [Energy(cyclic(order), mask, interaction=interaction) for mask in masks]
        return jax.tree.map(lambda *x: jnp.stack(x), *each)

    def lasting(order, interaction):
        """Which fraction of six maxima keep 0.8 of their mass at one frequency, shape `(subsets, fractions)`."""
        w = jnp.asarray(_starts(np.random.default_rng([setting.seed, order]), order, 6), setting.dtype)
        starts = jnp.broadcast_to(w, (subsets * len(fractions), *w.shape))
        ends = np.asarray(_climb(energies(order, fractions, interaction), starts, 120)[0])
        power = np.sum(np.abs(np.fft.rfft(ends)) ** 2, axis=2)[..., 1:]
        kept = power.max(axis=2) > 0.8 * power.sum(axis=2)
        return kept.mean(axis=1).reshape(subsets, len(fractions))

    last = {m: {"x² whole": lasting(m, False), "interaction": lasting(m, True)} for m in orders}
    whole, alone = (kept[:, fractions.index(p)] for kept in last[order].values())
    elements = np.stack([np.eye(order), np.zeros((order, order))], axis=1)
    waves = _starts(np.random.default_rng([setting.seed, 1]), order, order)
    nodes = jnp.asarray(np.concatenate([elements, waves]), setting.dtype)
    worth = jax.jit(jax.vmap(lambda energy: jax.vmap(energy)(nodes)))(energies(order, (p, 0.8)))
    (single, above), (fourier, below) = np.asarray(worth).reshape(subsets, 2, 2, order).mean(axis=3).T
    law = {"(1−1/M)² Mp(1−p)/2": (1 - 1 / order) ** 2 * order * p * (1 - p) / 2}
    wrong, more = {"p²M/4, of one frequency": p**2 * order / 4}, {"p = 0.8": (above - below) / order}
    name, excess = "E of a single element less that of one frequency, over M", (single - fourier) / order
    curves = {m: {word: kept.mean(axis=0) for word, kept in both.items()} for m, both in last.items()}
    axis, y = ("fraction of the pairs p", fractions), "fraction of starts"
    half = lambda curve: float(np.interp(0.5, curve, fractions)) if curve[0] < 0.5 < curve[-1] else np.nan
    halves = [(m, half(both["x² whole"]), half(both["interaction"])) for m, both in curves.items()]
    told = (f"Z{m}: x² whole {bare:.2f}, interaction {own:.2f} ({own * m / np.log(m):.1f})" for m, bare, own in halves)
    return evidence(
        mean("fraction of maxima that last, interaction alone", alone, {"x² whole": whole}, at_least=0.8),
        agrees("E of a single element", None, single.mean(), law, wrong, within=0.02),
        mean(name, excess, more, at_least=0),
        panels=[panel(f"maxima that last, Z{m}", axis, y=y, observed=both) for m, both in curves.items()],
        remarks=[f"p at which half last, and that over ln M/M: {'; '.join(told)}."] if len(fractions) > 1 else [],
    )
