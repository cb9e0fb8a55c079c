"""What Muon has over gradient ascent: the conclusion of Theorem 8, in training that the theorem does not assume."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics.grokking import race
from ...dynamics.grokking.energy import convolution_energy
from ...dynamics.groups import cyclic
from ..checks import evidence, mean, vanishes
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ._shared import ALL_PAIRS, SIGMAS, SQUARE, random_nodes, standard_errors

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
    each have; `fraction`, shape `(runs,)`: of a node in its frequency, the mean."""

    def __init__(self, w: Float[Array, "runs nodes 2 order"]):
        power = np.sum(np.abs(np.fft.rfft(np.asarray(w))) ** 2, axis=2)[..., 1:]
        which = power.argmax(axis=2)
        new = [[k not in run[:j] for j, k in enumerate(run)] for run in which.tolist()]
        self.distinct = np.cumsum(new, axis=1)
        self.fraction = np.mean(power.max(axis=2) / power.sum(axis=2), axis=1)
        self.total = self.distinct[:, -1]


def _compared(nodes: int, gap: float, rng: np.random.Generator, setting: Setting) -> tuple[Evidence, np.ndarray]:
    """Muon beside gradient ascent from the same starts, and how much of each node is in its frequency."""
    runs = setting.pick(smoke=100, laptop=200, paper=1000)
    more = 4 * runs  # of gradient ascent, which costs little
    steps = setting.pick(smoke=80, laptop=100, paper=300)  # no frequency changes after 60
    starts = random_nodes(rng, more * nodes, GROUP.order).reshape(more, nodes, 2, GROUP.order).astype(setting.dtype)
    alone, joint = _Learned(_train(starts, steps, False)), _Learned(_train(starts[:runs], steps, True))
    count, p = np.arange(1, nodes + 1), jnp.full(FREQUENCIES, 1 / FREQUENCIES, setting.dtype)
    coupons = np.asarray(jax.jit(jax.vmap(partial(race.distinct, p)))(count.astype(setting.dtype)))
    off = lambda learned: standard_errors(learned.total, coupons[-1:])
    found = evidence(
        mean(
            f"{nodes} nodes: frequencies by Muon, less by gradient",
            joint.total - alone.total[:runs],
            {"by gradient from other starts": alone.total[2 * runs :] - alone.total[: 2 * runs]},
            at_least=gap,
        ),
        vanishes(
            f"{nodes} nodes: by gradient, less independent draws, in standard errors",
            off(alone),
            {"Muon": off(joint)},
            within=SIGMAS,
        ),
        panels=[
            panel(
                f"{nodes} nodes: what the first so many have learned",
                ("nodes", count),
                y="distinct frequencies",
                predicted={"independent draws": coupons},
                observed={"gradient": alone.distinct.mean(axis=0), "Muon": joint.distinct.mean(axis=0)},
            )
        ],
        remarks=[
            f"{nodes} nodes: {alone.total.mean():.2f} of {FREQUENCIES} frequencies by gradient, {coupons[-1]:.2f} by"
            f" independent draws, {joint.total.mean():.2f} by Muon."
        ],
    )
    return found, np.concatenate([alone.fraction, joint.fraction])


@claim(
    "Nodes that climb Σ E(w_j) along the polar factor of all gradients (Muon) learn more distinct frequencies than"
    " nodes that follow their own gradient. The latter find as many as independent draws do.",
    source="Theorem 8's conclusion, in a setting that it does not assume: nodes at once and normal starts",
    assumptions=(
        f"{ALL_PAIRS}, here Z_{GROUP.order}, whose {FREQUENCIES} frequencies are equally probable",
        SQUARE,
        "nodes of norm one, steps of 0.05 for each node, no momentum",
    ),
    tex=r"W \leftarrow W + \epsilon\, G (G^\top G)^{-1/2}\ \mathrm{finds\ more\ than}\ W \leftarrow W + \epsilon\, G",
)
def muon(setting: Setting) -> Evidence:
    gaps = setting.pick(smoke={22: 0.4}, laptop={22: 0.4, 33: 0.25}, paper={22: 0.4, 33: 0.25})
    rng = setting.rng
    found, fractions = zip(*(_compared(nodes, gap, rng, setting) for nodes, gap in gaps.items()), strict=True)
    return evidence(*found, mean("fraction of a node in its frequency", np.concatenate(fractions), at_least=0.99))
