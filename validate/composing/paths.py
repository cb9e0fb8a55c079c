"""Theorem 5 and the paths between optima: zero loss all the way, and when the shorter solution is the lighter one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import composing
from ...dynamics.composing import Solution, cyclic
from ...dynamics.groups import Abelian
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ..rows import identity
from ._shared import ALL_PAIRS, measure, random_unit

POINTS = np.linspace(0, 4, 81)  # 21 a piece


@partial(jax.jit, static_argnums=2)
def _along_occam(y, other, group: Abelian):
    """Loss, ‖z‖² and the number of live nodes of y(t) * z' along the path."""

    def at(t):
        z = composing.occam_path(Solution(y, group), t) * Solution(other, group)
        return z.loss(), z.norm(), jnp.sum(jnp.max(jnp.abs(z.z), axis=(0, 1)) > 1e-6)

    return jax.lax.map(at, jnp.asarray(POINTS, other.real.dtype))


def _occam(y: Solution, other: Solution) -> tuple[np.ndarray, np.ndarray, int]:
    """Loss, norm, and how many nodes live at the end. Filled up to three nodes, all y share one compilation."""
    loss, norm, live = map(
        np.asarray, _along_occam(np.pad(np.asarray(y.z), ((0, 0), (0, 0), (0, 3 - y.nodes))), other.z, other.group)
    )
    return loss, norm, int(live[-1])


# CONTROL: the same path with z' = z_F4/6, whose potentials cancel in sums only
@claim(
    "From y * z' a path of zero loss leads to e * z', which has the nodes and the norm of z' alone, for every"
    " z' whose potentials are 0 or 1 and every y with r_kkk(y) = 1.",
    source="Theorem 5; the explicit path of four straight pieces is derived here",
    assumptions=(
        ALL_PAIRS,
        "Z_d, z' = z_F6 or z_M, potentials of z' all 0 or 1 (z_F4/6 needs y real and constant in k)",
    ),
)
def occam_path(setting: Setting) -> Evidence:
    rng = setting.rng
    runs = []
    for d in setting.pick(smoke=(7,), laptop=(5, 7, 11), paper=(5, 7, 11, 23)):
        for other in (composing.f6(cyclic(d)), composing.memorisation(cyclic(d))):
            for order in (2, 3):
                runs.append((_occam(random_unit(rng, cyclic(d), order), other), other))
    loss = np.array([run[0] for run, _ in runs])
    norm = np.array([run[1] for run, _ in runs])
    own = np.array([float(other.norm()) for _, other in runs])
    extra = [run[2] - other.nodes for run, other in runs]
    group = runs[-1][1].group
    mixed = composing.f4_6(group)
    control = np.array([_occam(random_unit(rng, group, 3), mixed)[0] for _ in range(3)])
    flat = np.ones((3, group.order, 1)) * np.array([[1.0, 0.5], [0.5, 1.0], [1.2, 0.8]])[:, None]  # Σ abc = 1
    constant = _occam(Solution(flat, group), mixed)[0]
    zero = setting.bound(1e-24, 1e-8)
    return Evidence(
        rows={
            "largest loss on the path": identity(loss, zero),
            "nodes alive at the end, less those of z'": identity(np.array(extra), 0),
            "norm at the end over that of z' − 1": identity(norm[:, -1] / own - 1, setting.bound(1e-12, 1e-5)),
            "z' = z_F4/6 with y real and constant in k": identity(constant, zero),
        },
        control={"largest loss with z' = z_F4/6 and any y": identity(control.max(axis=1).min(), 1e-3)},
        panels=[
            panel(
                "loss along the Occam path",
                ("t", POINTS),
                y="loss",
                observed={"z' = z_F6, z_M": np.maximum(loss.T, 1e-33)},
                control={"z' = z_F4/6": np.maximum(control.T, 1e-33)},
                log="y",
            ),
            panel(
                f"norm along it, {group.name}",
                ("t", POINTS),
                y="‖z‖²",
                observed={"z' = z_F6": norm[-3]},
                predicted={"z_F6": np.full(len(POINTS), own[-3])},
            ),
        ],
        remarks=[
            f"The norm is not monotone: it rises to {np.max(norm / norm[:, :1]):.2f} times its start at most, "
            f"and falls from {norm[-3, 0]:.1f} to {norm[-3, -1]:.1f} in the figure."
        ],
    )


# CONTROL: z' = z_F6 with a times 3 and b over 3, which loses to y * z' with y = (1/3, 3, 1)
@claim(
    "‖e * z'‖ ≤ ‖y * z'‖ for every y with r_kkk(y) = 1, if z' is balanced: ‖z'_ak‖ = ‖z'_bk‖ = ‖z'_ck‖.",
    source="Theorem 5's remark on regularisation; the condition and the counterexample are derived here",
    assumptions=("Z_11, z' of the constructions of equal rows", "random y with one to four nodes"),
)
def occam_norm(setting: Setting) -> Evidence:
    rng, group = setting.rng, cyclic(11)
    draws = setting.pick(smoke=100, laptop=1000, paper=10_000)
    others = {"z_F6": composing.f6(group), "z_3c * z_syn": composing.f9(group), "z_M": composing.memorisation(group)}
    gain = {name: [] for name in others}
    for draw in range(draws):
        y = _rows(random_unit(rng, group, 1 + draw % 4))
        for name, other in others.items():
            rows = _rows(other)[:, 1:]  # without the frequency zero, which no potential needs
            gain[name].append(np.sum(y[:, 1:] * rows) / np.sum(rows))
    least = {name: min(values) for name, values in gain.items()}
    stretch = np.linspace(1, 3, 21)
    scaled = lambda s: Solution(np.asarray(others["z_F6"].z) * np.array([s, 1 / s, 1.0])[:, None, None], group)
    by_unit = lambda s: Solution(np.ones((3, 11, 1)) * np.array([1 / s, s, 1.0])[:, None, None], group)
    unbalanced = scaled(3.0)
    both = [unbalanced, by_unit(3.0) * unbalanced]
    losses = measure(both)[:, 1]
    weight, better = (float(z.norm()) for z in both)
    own = np.array([float(scaled(s).norm()) for s in stretch])
    turned = np.array([float((by_unit(s) * scaled(s)).norm()) for s in stretch])
    return Evidence(
        rows={
            "by how much y * z' is lighter, relative": identity(
                max(0.0, 1 - min(least.values())), setting.bound(1e-12, 1e-5)
            ),
            "loss of the counterexample's two optima": identity(losses, setting.bound(1e-24, 1e-8)),
        },
        control={"by how much, for z' out of balance": identity(1 - better / weight, 0.01)},
        panels=[
            panel(
                "z' = z_F6 with a·s, b/s, and y = (1/s, s, 1)",
                ("s", stretch),
                y="‖z‖²",
                predicted={"e * z', which should be the least": own},
                observed={"y * z'": turned},
            ),
            panel(
                "random y, balanced z', sorted",
                ("draw", np.arange(draws)),
                y="‖y * z'‖² / ‖z'‖²",
                observed={name: np.sort(values) for name, values in gain.items()},
                predicted={"e * z'": np.ones(draws)},
                log="y",
            ),
        ],
        errata=[
            Erratum(
                "Theorem 5, the norm inequality",
                "‖e * z'‖ ≤ ‖y * z'‖ for any optimum z'",
                "for a balanced z', ‖z'_ak‖ = ‖z'_bk‖ = ‖z'_ck‖",
                f"‖y * z'‖²/‖z'‖² ≥ {min(least.values()):.3g} over {draws} random y",
                f"‖z'‖² = {weight:.1f} against ‖y * z'‖² = {better:.1f} at s = 3, both of zero loss",
            )
        ],
    )


def _rows(z: Solution) -> np.ndarray:
    """`‖z_pk‖²`, which multiply under `*`."""
    return np.sum(np.abs(np.asarray(z.z)) ** 2, axis=2)


@partial(jax.jit, static_argnums=2)
def _between(first, second, group: Abelian):
    def at(t, straight):
        z = composing.optimum_path(Solution(first, group), Solution(second, group), t)
        naive = Solution(
            jnp.concatenate([(1 - t).astype(first.dtype) * first, t.astype(first.dtype) * second], 2), group
        )
        z = naive if straight else z
        return z.loss(), z.norm()

    ts = jnp.linspace(0, 1, 41, dtype=first.real.dtype)
    return ts, jax.lax.map(lambda t: at(t, False), ts), jax.lax.map(lambda t: at(t, True), ts)


# CONTROL: straight interpolation, (1−t) z1 + t z2
@claim(
    "Any two optima are joined by (1−t)^⅓ z1 + t^⅓ z2 at zero loss, over a barrier in the norm.",
    source="derived here; the paper joins y * z' and z' only",
    assumptions=(ALL_PAIRS, "nodes of both networks side by side"),
)
def optimum_path(setting: Setting) -> Evidence:
    group = cyclic(setting.pick(smoke=5, laptop=7, paper=11))
    made = {"F6": composing.f6(group), "F4/6": composing.f4_6(group), "M": composing.memorisation(group)}
    pairs = (("F6", "F4/6"), ("M", "F4/6"), ("M", "F6"))
    found = [jax.tree.map(np.asarray, _between(made[a].z, made[b].z, group)) for a, b in pairs]
    ts = found[0][0]
    (loss, norm), (straight, _) = (tuple(np.stack([f[i][j] for f in found], axis=1) for j in (0, 1)) for i in (1, 2))
    ends = np.array([[float(made[a].norm()), float(made[b].norm())] for a, b in pairs])
    law = (1 - ts[:, None]) ** (2 / 3) * ends[:, 0] + ts[:, None] ** (2 / 3) * ends[:, 1]
    return Evidence(
        rows={
            "largest loss on the paths": identity(loss, setting.bound(1e-24, 1e-8)),
            "norm over (1−t)^⅔ N1 + t^⅔ N2 − 1": identity(norm / law - 1, setting.bound(1e-12, 1e-5)),
        },
        control={"largest loss of straight interpolation": identity(straight.max(axis=0).min(), 0.01)},
        panels=[
            panel(
                f"loss between optima of {group.name}",
                ("t", ts),
                y="loss",
                observed={"F6–F4/6, M–F4/6, M–F6": np.maximum(loss, 1e-33)},
                control={"straight": np.maximum(straight, 1e-33)},
                log="y",
            ),
            panel(
                "the barrier in the norm", ("t", ts), y="‖z‖²", observed={"F6–F4/6, …": norm}, predicted={"law": law}
            ),
        ],
    )
