"""Theorem 5 and the paths between optima: zero loss all the way, and when the shorter solution is the lighter one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import composing
from ...dynamics.composing import Solution, cyclic
from ...dynamics.groups import Abelian
from ..checks import agrees, at_least, evidence, relative, rounding, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ._shared import ALL_PAIRS, measure, no_loss, random_unit

OCCAM = "Z_d, z' = z_F6 or z_M, potentials of z' all 0 or 1 (z_F4/6 needs y real and constant in k)"
POINTS = np.linspace(0, 4, 81)  # 21 a piece


@partial(jax.jit, static_argnums=2)
def _along_occam(y, other, group: Abelian):
    """Loss, ‖z‖² and the number of live nodes of y(t) * z' along the path."""

    def at(t):
        z = composing.occam_path(Solution(y, group), t) * Solution(other, group)
        return z.loss(), z.norm(), jnp.sum(jnp.max(jnp.abs(z.z), axis=(0, 1)) > 1e-6)

    return jax.lax.map(at, jnp.asarray(POINTS, other.real.dtype))


def _occam(y: Solution, other: Solution) -> tuple[np.ndarray, ...]:
    """Filled up to three nodes, all y share one compilation."""
    filled = np.pad(np.asarray(y.z), ((0, 0), (0, 0), (0, 3 - y.nodes)))
    return tuple(map(np.asarray, _along_occam(filled, other.z, other.group)))


@claim(
    "From y * z' a path of zero loss leads to e * z', which has the nodes and the norm of z' alone. It holds for every "
    "z' whose potentials are 0 or 1 and every y with r_kkk(y) = 1.",
    source="Theorem 5; the explicit path of four straight pieces is derived here",
    assumptions=(ALL_PAIRS, OCCAM),
    tex=r"\ell(y(t) * z') = 0,\quad y(0) = y,\quad y(4) = e",
)
def occam_path(setting: Setting) -> Evidence:
    rng, orders = setting.rng, setting.pick(smoke=(7,), laptop=(5, 7, 11), paper=(5, 7, 11, 23))
    makes = (composing.f6, composing.memorisation)
    others = [make(cyclic(d)) for d in orders for make in makes for _ in (2, 3)]
    runs = [_occam(random_unit(rng, z.group, 2 + i % 2), z) for i, z in enumerate(others)]
    loss, norm, live = (np.stack(x, axis=1) for x in zip(*runs, strict=True))  # (points, runs)
    own, nodes = np.array([float(z.norm()) for z in others]), np.array([z.nodes for z in others])
    group, mixed = others[-1].group, composing.f4_6(others[-1].group)
    anyhow = min((_occam(random_unit(rng, group, 3), mixed)[0] for _ in range(3)), key=np.max)
    flat = np.ones((3, group.order, 1)) * np.array([[1.0, 0.5], [0.5, 1.0], [1.2, 0.8]])[:, None]  # Σ abc = 1
    constant, axis, shown = _occam(Solution(flat, group), mixed)[0], ("t", POINTS), norm[:, -3]
    wrong, six = {"z' = z_F4/6, any y": anyhow}, np.full(len(POINTS), own[-3])
    more, heavier = {"those of y * z'": live[0]}, {"that of y * z'": norm[0]}
    return evidence(
        vanishes("loss on the path", loss, wrong, within=no_loss(), x=axis, y="loss", log="y"),
        agrees("nodes alive at the end", None, live[-1], nodes, more, within=0.0),
        agrees("norm at the end", None, norm[-1], own, heavier, within=rounding(80), measure=relative),
        vanishes("loss for z' = z_F4/6, y real and constant in k", constant, {"any y": anyhow}, within=no_loss()),
        panels=[panel("‖z‖² along the path", axis, observed={"z' = z_F6": shown}, predicted={"z_F6": six})],
        remarks=[
            f"The norm is not monotone: it rises to {np.max(norm / norm[:1]):.2f} times its start at most, "
            f"and falls from {shown[0]:.1f} to {shown[-1]:.1f} in the figure."
        ],
    )


@claim(
    "‖e * z'‖ ≤ ‖y * z'‖ for every y with r_kkk(y) = 1, if z' is balanced: ‖z'_ak‖ = ‖z'_bk‖ = ‖z'_ck‖.",
    source="Theorem 5's remark on regularisation; the condition and the counterexample are derived here",
    assumptions=("Z_11, z' of the constructions of equal rows", "random y with one to four nodes, and y = (⅓, 3, 1)"),
    tex=r"\|z'_{ak}\| = \|z'_{bk}\| = \|z'_{ck}\| \;\Rightarrow\; \|e * z'\| \leq \|y * z'\|",
)
def occam_norm(setting: Setting) -> Evidence:
    rng, group = setting.rng, cyclic(11)
    draws, f6 = setting.pick(smoke=100, laptop=1000, paper=10_000), composing.f6(group)
    scaled = lambda z, *abc: Solution(np.asarray(z) * np.array(abc)[:, None, None], group)
    stretch, unbalanced = scaled(np.ones((3, 11, 1)), 1 / 3, 3, 1), scaled(f6.z, 3, 1 / 3, 1)
    balanced = {"z_F6": f6, "z_3c * z_syn": composing.f9(group), "z_M": composing.memorisation(group)}
    # `‖z_pk‖²`, which multiply under `*`, without the frequency zero, which no potential needs.
    rows = lambda z: np.sum(np.abs(np.asarray(z.z)) ** 2, axis=2)[:, 1:]
    ys = np.array([rows(y) for y in (*(random_unit(rng, group, 1 + draw % 4) for draw in range(draws)), stretch)])
    gain = lambda z: np.sort(np.sum(ys * rows(z), axis=(1, 2)) / np.sum(rows(z)))  # ‖y * z‖²/‖z‖²
    gains = {name: gain(z) for name, z in balanced.items()}
    least, lost = min(x[0] for x in gains.values()), gain(unbalanced)
    axis, wrong = ("y, sorted", np.arange(draws + 1)), {"z_F6 with 3a and b/3, out of balance": lost}
    optima = [unbalanced, stretch * unbalanced]
    weight, lighter = (float(z.norm()) for z in optima)
    falls = f"by how much ‖y * z'‖² falls below ‖z'‖², relative, over {draws + 1} y"
    printed, corrected = "‖e * z'‖ ≤ ‖y * z'‖ for any optimum z'", "for a balanced z', ‖z'_ak‖ = ‖z'_bk‖ = ‖z'_ck‖"
    errors = max(0.0, 1 - least), 1 - lost[0]
    return evidence(
        at_least("‖y * z'‖²/‖z'‖²", gains, 1 - rounding(800), wrong, x=axis, y="ratio", log="y"),
        vanishes("loss of the counterexample's two optima", measure(optima)[:, 1], within=no_loss()),
        remarks=[f"Both of zero loss: ‖z'‖² = {weight:.1f}, but ‖y * z'‖² = {lighter:.1f} with y = (⅓, 3, 1)."],
        errata=[Erratum("Theorem 5, the norm inequality", printed, corrected, *errors, falls)],
    )


@partial(jax.jit, static_argnums=3)
def _between(first, second, ts, group: Abelian):
    """Loss and norm along the path, and the loss of straight interpolation."""

    def at(t):
        z = composing.optimum_path(Solution(first, group), Solution(second, group), t)
        parts = [(1 - t).astype(first.dtype) * first, t.astype(first.dtype) * second]
        return z.loss(), z.norm(), composing.loss(jnp.concatenate(parts, axis=2), group)

    return jax.lax.map(at, ts)


@claim(
    "Any two optima are joined by (1−t)^⅓ z1 + t^⅓ z2 at zero loss, over a barrier in the norm.",
    source="derived here; the paper joins y * z' and z' only",
    assumptions=(ALL_PAIRS, "nodes of both networks side by side"),
    tex=r"z(t) = (1-t)^{1/3} z_1 + t^{1/3} z_2,\quad \|z(t)\|^2 = (1-t)^{2/3} N_1 + t^{2/3} N_2",
)
def optimum_path(setting: Setting) -> Evidence:
    group, ts = cyclic(setting.pick(smoke=5, laptop=7, paper=11)), np.linspace(0, 1, 41)
    six, mixed, memory = (make(group) for make in (composing.f6, composing.f4_6, composing.memorisation))
    pairs = ((six, mixed), (memory, mixed), (memory, six))
    found = [_between(a.z, b.z, jnp.asarray(ts, a.z.real.dtype), group) for a, b in pairs]
    loss, norm, straight = (np.stack(x, axis=1) for x in zip(*found, strict=True))  # (points, pairs)
    ends, t = np.array([[float(a.norm()), float(b.norm())] for a, b in pairs]).T, ts[:, None]
    along = lambda power: (1 - t) ** power * ends[0] + t**power * ends[1]
    wrong = {"straight, (1−t) z1 + t z2": straight[:, straight.max(axis=0).argmin()]}
    flat, axis = {"without a barrier, (1−t) N1 + t N2": along(1)}, ("t", ts)
    return evidence(
        vanishes("loss on the paths F6–F4/6, M–F4/6, M–F6", loss, wrong, within=no_loss(), x=axis, y="loss", log="y"),
        agrees("‖z‖² on the paths", axis, norm, along(2 / 3), flat, within=rounding(800), measure=relative),
    )
