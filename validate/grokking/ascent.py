"""Stage II: where ascents from random starts end, and what is left of the maxima on a part of the pairs."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics import grokking
from ...dynamics.grokking import Energy, ScaledAscent
from ...dynamics.groups import Group, cyclic
from ...dynamics.representations import Irrep, irreps
from ...nets.pairs import split
from ..claim import Evidence, Setting, claim
from ..descent import end_of
from ..panels import heatmap, panel
from ..rows import identity, statistic
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

# The time of an ascent: pieces after which it is recorded, by two steps each, and the rest.
PIECES, PIECE, REST = 24, 0.5, 60.0


@partial(jax.jit, static_argnums=2)
def _climb(energies: Energy, starts: Float[Array, "groups starts 2 order"], steps: int = 240):
    """The ends, by that many steps in the rest of the time; the energy after each piece and at the end, with the start;
    the speed at the end."""

    def lane(energy, w):
        flow = ScaledAscent(energy)
        value = lambda w: energy(w / jnp.linalg.norm(w))
        pieces = jax.lax.scan(lambda w, _: (end_of(flow, w, PIECE, 2), value(w)), w, length=PIECES)
        end = end_of(flow, pieces[0], REST, steps)
        values = jnp.concatenate([pieces[1], jnp.stack([value(pieces[0]), value(end)])])
        return end, (values, jnp.max(jnp.abs(flow(0.0, end))))

    return jax.vmap(lambda energy, w: jax.vmap(partial(lane, energy))(w))(energies, starts)


class _Ends:
    """What the ends of one group hold, by real representations."""

    def __init__(self, group: Group, w: Float[np.ndarray, "starts 2 order"]):
        self.irreps = nontrivial(irreps(group))
        norm = np.sum(w**2, axis=(1, 2))
        share = np.stack([np.sum((w @ r.projector) ** 2, axis=(1, 2)) / norm for r in self.irreps], axis=1)
        self.winner, self.share = share.argmax(axis=1), share.max(axis=1)
        self.kinds = [short(self.irreps[i]) for i in self.winner]
        self.dims = np.array([self.irreps[i].dim for i in self.winner])
        self.peaks = np.array([grokking.peak(self.irreps[i]) for i in self.winner])
        self.halves = np.linalg.norm(w, axis=2) / np.sqrt(norm)[:, None] - np.sqrt(0.5)
        self.rank = np.array([_beyond_rank_one(one, self.irreps[i]) for one, i in zip(w, self.winner, strict=True)])
        # How far w₂ is from ±Pu, relative to either.
        mirrored = w[:, 0][:, group.inverse]
        gaps = [np.linalg.norm(w[:, 1] - sign * mirrored, axis=1) for sign in (1, -1)]
        self.mirror = np.min(gaps, axis=0) / np.linalg.norm(w[:, 1], axis=1)


def _beyond_rank_one(w: Float[np.ndarray, "2 order"], irrep: Irrep) -> float:
    values = np.linalg.svd(np.tensordot(w, irrep.matrices, axes=1), compute_uv=False)
    return float(np.max(values[:, irrep.units] / values[:, 0])) if irrep.multiplicity > 1 else 0.0


# CONTROL: the printed values; w₂ = ±Pu
@claim(
    "From random starts every ascent ends at one of the predicted maxima: one real representation, of"
    " dimension D, energy M/(2D), halves of equal norm and of rank one.",
    source="Theorem 2, corrected",
    assumptions=(ALL_PAIRS, SQUARE, "norm one; ẇ = ∇E/(w·∇E) − w, which has the paths of ascent on the sphere"),
)
def ascent(setting: Setting) -> Evidence:
    rng, groups = setting.rng, some_groups(setting.scale)
    starts = setting.pick(smoke=100, laptop=100, paper=400)
    drawn = np.stack([widened(random_nodes(rng, starts, group.order)) for group in groups])
    ends, (values, speeds) = map(
        lambda x: jax.tree.map(np.asarray, x),
        _climb(same_shape([Energy(group) for group in groups]), jnp.asarray(drawn, setting.dtype)),
    )
    found = [_Ends(group, ends[i, :, :, : group.order]) for i, group in enumerate(groups)]
    join = lambda name: np.concatenate([getattr(one, name) for one in found])
    peaks, dims = join("peaks"), join("dims")
    last = values[:, :, -1].ravel()
    rises = np.diff(values, axis=2) / peaks.reshape(*values.shape[:2], 1)
    tables = [Counter(one.kinds) for one in found]
    kinds = sorted({kind for table in tables for kind in table})
    counts = np.array([[table[kind] for kind in kinds] for table in tables])
    pick = {"S4", "A4"} & {group.name for group in groups}
    shown = next(i for i, group in enumerate(groups) if group.name in pick)
    times = PIECE * np.arange(PIECES + 1)
    tight = setting.bound(1e-8, 1e-4)
    return Evidence(
        rows={
            "E/E* − 1 at the end": identity(last / peaks - 1, tight),
            "mass outside the winner": identity(1 - join("share"), tight),
            "‖u‖ and ‖w₂‖ less 1/√2": identity(join("halves"), setting.bound(1e-6, 1e-3)),
            "second over first singular value": identity(join("rank"), setting.bound(1e-5, 1e-2)),
            "falls of E on the way, over E*": identity(np.minimum(rises, 0), setting.bound(1e-12, 1e-5)),
            "speed at the end": identity(speeds, setting.bound(1e-6, 1e-3)),
        },
        control={
            "printed values M/8d, M/16d": identity(np.abs(4 * last / peaks - 1).min(), tight),
            "w₂ = ±Pu, median distance, D ≥ 2": identity(np.median(join("mirror")[dims > 1]), 0.05),
        },
        panels=[
            heatmap(
                f"where {starts} ascents end",
                ("representation", kinds),
                ("group", [group.name for group in groups]),
                counts.astype(float),
                z_label="ends",
            ),
            panel(
                f"ascents on {groups[shown].name}",
                ("time", times),
                y="E",
                observed={"random starts": values[shown, :24, :-1].T},
                predicted={
                    f"M/(2D), {kind}": np.full(len(times), value)
                    for kind, value in {short(r): grokking.peak(r) for r in found[shown].irreps}.items()
                },
                control={
                    f"printed, {kind}": np.full(len(times), value / 4)
                    for kind, value in {short(r): grokking.peak(r) for r in found[shown].irreps}.items()
                },
            ),
        ],
        remarks=[
            "Ends by representation: "
            + "; ".join(
                f"{group.name} " + ", ".join(f"{kind} {n}" for kind, n in sorted(table.items()))
                for group, table in zip(groups, tables, strict=True)
            )
            + "."
        ],
    )


# A part of the pairs


def _kept(w: Float[np.ndarray, "starts 2 order"]) -> Float[np.ndarray, " starts"]:
    """The share of a node's mass, without its means, at its largest frequency."""
    power = np.sum(np.abs(np.fft.rfft(w, axis=2)) ** 2, axis=1)[:, 1:]
    return power.max(axis=1) / power.sum(axis=1)


def _starts(rng: np.random.Generator, order: int, number: int) -> Float[np.ndarray, "number 2 order"]:
    """Maxima on all pairs of Z_order, order odd: one frequency, any two phases."""
    k = rng.integers(1, (order + 1) // 2, size=(number, 1, 1))
    angle = 2 * np.pi * (k * np.arange(order) / order + rng.random((number, 2, 1)))
    return np.cos(angle) / np.sqrt(order / 2) / np.sqrt(2)


# CONTROL: the energy of Theorem 1 as it is, Ê = ½‖Ỹᵀ(Xw)²‖², in place of the interaction
@claim(
    "On 40 % of the pairs of Z_41 maxima at one frequency last if what both halves do together is all that"
    " counts; with the squares of x² whole they do not: a single element is worth Mp(1−p)/2, more than p²M/4 if p < ⅔.",
    source="Theorem 4, whose M log M pairs are measured on the interaction here; the values are derived here",
    assumptions=("Z_M, pairs drawn at random, labels centred over them", SQUARE, "starts at maxima of all pairs"),
)
def partial_data(setting: Setting) -> Evidence:
    p, order = 0.4, 41
    orders = setting.pick(smoke=(order,), laptop=(11, 23, order), paper=(11, 23, order, 61, 127))
    shares = np.array(setting.pick(smoke=(p,), laptop=(0.2, 0.3, p, 0.5, 0.6, 0.7), paper=tuple(np.arange(2, 17) / 20)))
    subsets, starts = setting.pick(smoke=6, laptop=6, paper=12), 6
    last = {m: _lasting(m, shares, subsets, starts, setting) for m in orders}  # (energies, shares, subsets)
    at = int(np.argmin(np.abs(shares - p)))
    bare, interaction = last[order][0][:, at], last[order][1][:, at]
    single, fourier = _values(order, p, subsets, setting)
    half = lambda curve: float(np.interp(0.5, curve, shares)) if curve[0] < 0.5 < curve[-1] else np.nan
    rates = {m: np.log(m) / m for m in orders}
    return Evidence(
        rows={
            "share of starts that last, interaction": statistic(interaction, at_least=0.8),
            "single element: Ê over Mp(1−p)/2, its own share (1−1/M)², less one": identity(
                single.mean() / (1 - 1 / order) ** 2 - 1, 0.02
            ),
            "single element less one frequency, in p²M/4": statistic(_gap(single, fourier, p), at_least=0),
        },
        control={"share of starts that last, x² whole": statistic(bare, at_least=0.8)},
        panels=[
            panel(
                f"maxima that last, Z{m}",
                ("share of the pairs p", shares),
                y="share of starts",
                observed={"interaction": last[m][1].mean(axis=0), "x² whole": last[m][0].mean(axis=0)},
            )
            for m in orders
        ],
        remarks=[
            "p at which half last, and that over ln M/M: "
            + "; ".join(
                f"Z{m}: x² whole {half(last[m][0].mean(axis=0)):.2f}, interaction {half(last[m][1].mean(axis=0)):.2f} "
                f"({half(last[m][1].mean(axis=0)) / rates[m]:.1f})"
                for m in orders
            )
            + "."
        ],
    )


def _gap(single: np.ndarray, fourier: np.ndarray, p: float) -> np.ndarray:
    """Single elements less single frequencies, over p²M/4; both come over their own predictions."""
    return single * 2 * (1 - p) / p - fourier


def _lasting(order: int, shares: np.ndarray, subsets: int, starts: int, setting: Setting) -> np.ndarray:
    group, rng = cyclic(order), np.random.default_rng([setting.seed, order])
    found = np.empty((2, subsets, len(shares)))
    masks = [[split(order, train=p, seed=1000 * setting.seed + s) for p in shares] for s in range(subsets)]
    w = jnp.asarray(_starts(rng, order, starts), setting.dtype)
    for kind, interaction in enumerate((False, True)):
        energies = [Energy(group, mask, interaction=interaction) for row in masks for mask in row]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *energies)
        ends, _ = _climb(stacked, jnp.broadcast_to(w, (len(energies), *w.shape)), 120)
        kept = np.array([_kept(np.asarray(e)) > 0.8 for e in ends])
        found[kind] = kept.mean(axis=1).reshape(subsets, len(shares))
    return found


def _values(order: int, p: float, subsets: int, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Of each subset: the mean energy of nodes that know one element, over Mp(1−p)/2, and of single frequencies, over
    p²M/4."""
    rng = np.random.default_rng([setting.seed, 1])
    element = np.zeros((order, 2, order))
    element[np.arange(order), 0, np.arange(order)] = 1
    nodes = jnp.asarray(np.concatenate([element, _starts(rng, order, order)]), setting.dtype)
    masks = [split(order, train=p, seed=1000 * setting.seed + s) for s in range(subsets)]
    energies = jax.tree.map(lambda *x: jnp.stack(x), *[Energy(cyclic(order), mask) for mask in masks])
    values = np.asarray(jax.jit(jax.vmap(lambda e: jax.vmap(e)(nodes)))(energies))
    single, fourier = values[:, :order].mean(axis=1), values[:, order:].mean(axis=1)
    return single / (order * p * (1 - p) / 2), fourier / (p**2 * order / 4)
