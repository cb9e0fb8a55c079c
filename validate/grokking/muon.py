"""What Muon has over gradient ascent: the conclusion of Theorem 8, in training that the theorem does not assume."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics.grokking import race
from ...dynamics.grokking.energy import convolution_energy
from ...dynamics.groups import cyclic
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ..rows import identity, statistic
from ._shared import ALL_PAIRS, SQUARE, random_nodes
from .coupons import SIGMAS

STEP = 0.05
FREQUENCIES = 11
GROUP = cyclic(2 * FREQUENCIES + 1)


def _unit(w: Float[Array, "nodes 2 order"]) -> Float[Array, "nodes 2 order"]:
    return w / jnp.linalg.norm(w, axis=(1, 2), keepdims=True)


@partial(jax.jit, static_argnums=(1, 2))
def _train(w: Float[Array, "runs nodes 2 order"], steps: int, muon: bool) -> Float[Array, "runs nodes 2 order"]:
    """All nodes of each run at once, `w_j ← unit(w_j + 0.05 unit(d_j))`: d_j is the gradient of the energy of node j,
    or with Muon column j of the polar factor of the matrix, 2M × K, of all K gradients."""
    slope = jax.vmap(jax.grad(lambda w: convolution_energy(w, GROUP)))

    def update(w, _):
        d = slope(w)
        if muon:
            d = race.polar(d.reshape(len(w), -1).T).T.reshape(w.shape)
        return _unit(w + STEP * _unit(d)), None

    # Run after run: the nodes of one fit into the cache.
    return jax.lax.map(lambda w: jax.lax.scan(update, w, length=steps)[0], w)


class _Learned:
    """What the nodes of many runs have learned. `distinct`, shape `(runs, nodes)`: how many frequencies the nodes up to
    each have; `share`, shape `(runs,)`: of a node in its frequency, the mean."""

    def __init__(self, w: Float[Array, "runs nodes 2 order"]):
        power = np.sum(np.abs(np.fft.rfft(np.asarray(w))) ** 2, axis=2)[..., 1:]
        which = power.argmax(axis=2)
        new = [[k not in run[:j] for j, k in enumerate(run)] for run in which.tolist()]
        self.distinct = np.cumsum(new, axis=1)
        self.share = np.mean(power.max(axis=2) / power.sum(axis=2), axis=1)
        self.total = self.distinct[:, -1]

    def shares(self) -> Float[np.ndarray, " frequencies"]:
        """How often a run has learned 1, 2, … frequencies."""
        return np.bincount(self.total, minlength=FREQUENCIES + 1)[1:] / len(self.total)


def _occupancy(draws: int) -> Float[np.ndarray, " frequencies"]:
    """How probable it is that so many draws from equally probable frequencies hold 1, 2, … distinct ones."""
    seen = np.arange(FREQUENCIES + 1)
    chance = np.eye(FREQUENCIES + 1)[0]
    for _ in range(draws):
        chance = chance * seen / FREQUENCIES + np.append(0.0, (chance * (1 - seen / FREQUENCIES))[:-1])
    return chance[1:]


# CONTROL: Muon's nodes taken for independent draws
@claim(
    "On the joint energy Σ E(w_j) nodes that move along the polar factor of all gradients (Muon) learn more"
    " distinct frequencies than nodes from the same starts that follow their own: those find as many as independent"
    " draws do.",
    source="Theorem 8's conclusion, in a setting that it does not assume: nodes at once and normal starts",
    assumptions=(
        f"{ALL_PAIRS}, here Z_{GROUP.order}, whose {FREQUENCIES} frequencies are equally probable",
        SQUARE,
        "nodes of norm one, steps of 0.05 for each node, no momentum",
    ),
)
def muon(setting: Setting) -> Evidence:
    runs = setting.pick(smoke=100, laptop=200, paper=1000)
    more = 4 * runs  # of gradient ascent, which costs little
    steps = setting.pick(smoke=80, laptop=100, paper=300)  # no frequency changes after 60
    gaps = setting.pick(smoke={22: 0.4}, laptop={22: 0.4, 33: 0.25}, paper={22: 0.4, 33: 0.25})
    rng, p = setting.rng, jnp.full(FREQUENCIES, 1 / FREQUENCIES, setting.dtype)
    expected = jax.jit(jax.vmap(partial(race.distinct, p)))
    rows, control, panels, remarks, shares = {}, {}, [], [], []
    for nodes, gap in gaps.items():
        starts = random_nodes(rng, more * nodes, GROUP.order).reshape(more, nodes, 2, GROUP.order)
        starts = starts.astype(setting.dtype)
        alone, joint = _Learned(_train(starts, steps, False)), _Learned(_train(starts[:runs], steps, True))
        paired = joint.total - alone.total[:runs]
        count = np.arange(1, nodes + 1)
        coupons = np.asarray(expected(count.astype(setting.dtype)))
        chance, number = _occupancy(nodes), np.arange(1, FREQUENCIES + 1)
        error = np.sqrt(chance @ (number - coupons[-1]) ** 2)  # of one run
        off = lambda learned, error=error, mean=coupons[-1]: identity(
            (learned.total.mean() - mean) / error * np.sqrt(len(learned.total)), SIGMAS
        )
        shares += [alone.share, joint.share]
        rows |= {
            f"{nodes} nodes: frequencies by Muon, less by gradient": statistic(paired, at_least=gap),
            f"{nodes} nodes: gradient, less independent draws, in standard errors": off(alone),
        }
        control[f"{nodes} nodes: Muon, less independent draws, in standard errors"] = off(joint)
        remarks.append(
            f"{nodes} nodes: {alone.total.mean():.2f} of {FREQUENCIES} frequencies by gradient, {coupons[-1]:.2f} by"
            f" independent draws, {joint.total.mean():.2f} by Muon."
        )
        panels += [
            panel(
                f"{nodes} nodes: what the first so many have learned",
                ("nodes", count),
                y="distinct frequencies",
                predicted={"independent draws": coupons},
                observed={"gradient": alone.distinct.mean(axis=0), "Muon": joint.distinct.mean(axis=0)},
            ),
            panel(
                f"{nodes} nodes: what a run has learned",
                ("distinct frequencies", number),
                y="share of the runs",
                predicted={"independent draws": chance},
                observed={"gradient": alone.shares(), "Muon": joint.shares()},
            ),
        ]
    rows["share of a node in its frequency"] = statistic(np.concatenate(shares), at_least=0.99)
    return Evidence(rows, control, panels, remarks)
