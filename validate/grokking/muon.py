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


@partial(jax.jit, static_argnums=(1, 2))
def _train(w: Float[Array, "runs nodes 2 order"], steps: int, muon: bool) -> Float[Array, "runs nodes 2 order"]:
    """All nodes of each run at once, `w_j ← unit(w_j + 0.05 unit(d_j))`: d_j is the gradient of the energy of node j,
    or with Muon column j of the polar factor of the matrix, 2M × K, of all K gradients."""
    slope = jax.vmap(jax.grad(lambda w: convolution_energy(w, GROUP)))
    unit = lambda w: w / jnp.linalg.norm(w, axis=(1, 2), keepdims=True)

    def update(w, _):
        d = slope(w)
        if muon:
            d = race.polar(d.reshape(len(w), -1).T).T.reshape(w.shape)
        return unit(w + STEP * unit(d)), None

    # Run after run: the nodes of one fit into the cache.
    return jax.lax.map(lambda w: jax.lax.scan(update, w, length=steps)[0], w)


def _learned(w: Float[Array, "runs nodes 2 order"]) -> tuple[np.ndarray, np.ndarray]:
    """How many frequencies the nodes up to each have, shape `(runs, nodes)`; of a node in its frequency which fraction,
    the mean, shape `(runs,)`."""
    power = np.sum(np.abs(np.fft.rfft(np.asarray(w))) ** 2, axis=2)[..., 1:]
    new = [[k not in run[:j] for j, k in enumerate(run)] for run in power.argmax(axis=2).tolist()]
    return np.cumsum(new, axis=1), np.mean(power.max(axis=2) / power.sum(axis=2), axis=1)


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
    rng, dtype, runs = setting.rng, setting.dtype, setting.pick(smoke=100, laptop=200, paper=1000)
    more = 4 * runs  # of gradient ascent, which costs little
    steps = setting.pick(smoke=80, laptop=100, paper=300)  # no frequency changes after 60
    both = {22: 0.4, 33: 0.25}
    parts, fractions, panels, remarks = [], [], [], []
    for nodes, gap in setting.pick(smoke={22: 0.4}, laptop=both, paper=both).items():
        starts = random_nodes(rng, more * nodes, GROUP.order).reshape(more, nodes, 2, GROUP.order).astype(dtype)
        alone, of_alone = _learned(_train(starts, steps, False))
        joint, of_joint = _learned(_train(starts[:runs], steps, True))
        count, p = np.arange(1, nodes + 1), jnp.full(FREQUENCIES, 1 / FREQUENCIES, dtype)
        coupons = np.asarray(jax.jit(jax.vmap(partial(race.distinct, p)))(count.astype(dtype)))
        by_gradient, by_muon = alone[:, -1], joint[:, -1]
        wrong = {"by gradient from other starts": by_gradient[2 * runs :] - by_gradient[: 2 * runs]}
        off, wrong_off = (standard_errors(found, coupons[-1:]) for found in (by_gradient, by_muon))
        less, name = by_muon - by_gradient[:runs], "by gradient, less independent draws, in standard errors"
        parts += [
            mean(f"{nodes} nodes: frequencies by Muon, less by gradient", less, wrong, at_least=gap),
            vanishes(f"{nodes} nodes: {name}", off, {"Muon": wrong_off}, within=SIGMAS),
        ]
        title, law = f"{nodes} nodes: what the first so many have learned", {"independent draws": coupons}
        seen, y = {"gradient": alone.mean(axis=0), "Muon": joint.mean(axis=0)}, "distinct frequencies"
        panels.append(panel(title, ("nodes", count), y=y, predicted=law, observed=seen))
        remarks.append(
            f"{nodes} nodes: {by_gradient.mean():.2f} of {FREQUENCIES} frequencies by gradient, {coupons[-1]:.2f} by"
            f" independent draws, {by_muon.mean():.2f} by Muon."
        )
        fractions += [of_alone, of_joint]
    parts.append(mean("fraction of a node in its frequency", np.concatenate(fractions), at_least=0.99))
    return evidence(*parts, panels=panels, remarks=remarks)
