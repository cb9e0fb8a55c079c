"""When attention snaps and how sparse it ends, over both learning rates: theory and descent in one compiled call."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics import solve
from ...dynamics.scan_snap import YZ, ScanSnap
from ...nets import scan_snap as nets
from ...nets import train
from ..checks import absolute, agrees, evidence, relative, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..metrics import entropy
from ..panels import heatmap
from ._shared import CLASSES, FLOW, TIME, reference


def _peak_time(ts: Float[Array, " times"], values: Float[Array, " times"]) -> Float[Array, ""]:
    """When a curve is largest: the top of the parabola in ln t through its three highest neighbours."""
    middle = jnp.clip(jnp.argmax(values), 1, values.shape[0] - 2)
    x = jax.lax.dynamic_slice(jnp.log(ts), (middle - 1,), (3,))
    y = jax.lax.dynamic_slice(values, (middle - 1,), (3,))
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    top = (x[0] + x[1]) / 2 - left / jnp.where(curvature < 0, 2 * curvature, -1)
    return jnp.exp(jnp.where(curvature < 0, jnp.clip(top, x[0], x[2]), x[1]))


@partial(jax.jit, static_argnums=3)
def _diagram(data: nets.SequenceClasses, eta_y, eta_z, steps: int):
    """For every pair of learning rates, by theory and by descent, each of shape `(2, η_Y, η_Z)`: when the gradient
    that reaches attention is largest, when attention moves fastest, and the final entropy."""
    ts = jnp.asarray(np.geomspace(0.02, steps, 120), data.table.dtype)

    def cell(eta_y, eta_z):
        flow = ScanSnap(data.table, outputs=data.probability.shape[1], eta_y=eta_y, eta_z=eta_z)
        gradient = lambda y: jnp.linalg.norm(flow.residual(y) @ y.y.T)
        end = lambda z: jnp.mean(entropy(flow.attention(z[-1])))
        ys = solve(flow, flow.zero(), ts, rtol=1e-5, atol=1e-7, throw=False).ys
        assert isinstance(ys, YZ)
        speed = jax.vmap(lambda y: jnp.linalg.norm(flow(0.0, y).z))(ys)
        theory = _peak_time(ts, jax.vmap(gradient)(ys)), _peak_time(ts, speed), end(ys.z)

        optimiser, expected = nets.sgd(1.0, eta_y=eta_y, eta_z=eta_z), data.expected()
        observe = lambda m: (m.z, gradient(YZ(m.y, m.z)))
        run = train(data.network(), nets.cross_entropy, expected, optimiser, steps, observe=observe, every=1)
        (z, size), at = run.observed, jnp.arange(1, steps + 1, dtype=ts.dtype)
        moved = jnp.linalg.norm(jnp.diff(z, axis=0).reshape(steps, -1), axis=1)
        practice = _peak_time(at, size[1:]), _peak_time(at - 0.5, moved), end(z)
        return [jnp.stack(both) for both in zip(theory, practice, strict=True)]

    return jax.vmap(jax.vmap(cell, (None, 0), 1), (0, None), 1)(eta_y, eta_z)


def _exponents(rates: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of times in η_Y and in η_Z, by least squares over the grid."""
    y, z = np.meshgrid(np.log(rates), np.log(rates), indexing="ij")
    design = np.stack([np.ones(y.size), y.ravel(), z.ravel()], axis=1)
    return np.linalg.lstsq(design, np.log(times).ravel(), rcond=None)[0][1:]


@claim(
    "Attention snaps when the gradient that reaches it is largest. The time of this is set by η_Y: it goes as η_Y^−1 "
    "and η_Z^0 over two decades of each, in theory and in descent alike.",
    source="Theorem 4's t₀ = 2K ln M/η_Y, for tier C, which has no closed form; the diagram is measured here",
    assumptions=(*FLOW, "five classes, ten common and ten distinct tokens each", "descent at learning rate 1"),
    tex=r"t_{\mathrm{snap}} \propto \eta_Y^{-1} \eta_Z^0",
    flow=ScanSnap,
)
def phase_diagram(setting: Setting) -> Evidence:
    number, steps = setting.pick(smoke=(4, 300), laptop=(9, 1000), paper=(25, 10_000))
    rates = np.geomspace(setting.pick(smoke=0.3, laptop=0.1, paper=0.1), 10.0, number)
    data = reference() if setting.scale == "smoke" else nets.distinct_and_common(CLASSES, dtype=setting.dtype)
    grid = jnp.asarray(rates, setting.dtype)
    snap, fastest, dense = (np.asarray(x, float) for x in _diagram(data, grid, grid, steps))
    slow, of_z = rates <= 1.01, ("η_Z", rates)  # slow: where descent is close to its flow
    by_snap, by_speed = ([_exponents(rates, when) for when in times] for times in (snap, fastest))
    wrong, relatively = "attention's fastest moment", {"within": 0.05, "measure": relative}

    def exponents(i, word):
        off, of_wrong = (by[i] - np.array([-1.0, 0.0]) for by in (by_snap, by_speed))
        name = f"exponents of the snap time in η_Y, η_Z, from −1, 0: {word}"
        return vanishes(name, off, {wrong: of_wrong}, within=0.1)

    clock = lambda times: (rates[:, None] * times)[slow].T
    scaled, y = "η_Y × snap time, theory and descent, η_Y ≤ 1", "η_Y t, a line for each η_Y"
    words, span = [f"{rate:.3g}" for rate in rates], lambda values: f"{values.min():.3g} … {values.max():.3g}"
    axes, (snaps, moves) = (("η_Z", words), ("η_Y", words)), (by_snap[0][1], by_speed[0][1])
    printed, corrected = "larger η_Z leads to a faster phase transition", "η_Y sets its time; η_Z sets its height"
    measure = "error of the exponent of η_Z: 0, and that of attention's fastest moment"
    return evidence(
        exponents(0, "theory"),
        exponents(1, "descent"),
        agrees(scaled, of_z, clock(snap[1]), clock(snap[0]), {wrong: clock(fastest[0])}, y=y, log="xy", **relatively),
        agrees("final entropy, η_Y ≤ 1 (nats)", None, dense[1][slow], dense[0][slow], within=0.01, measure=absolute),
        panels=[
            heatmap("descent: time of snapping", *axes, snap[1], z_label=TIME, log="z"),
            heatmap("descent: final entropy", *axes, dense[1], z_label="nats"),
        ],
        remarks=[
            f"η_Y × snap time lies in {span(snap[0] * rates[:, None])} over the whole grid in theory, η_Y × "
            f"attention's fastest moment in {span(fastest[0] * rates[:, None])} (exponent in η_Z {moves:.2f}): for a "
            "large η_Z attention has done most of its moving before the snap.",
            f"Descent at η_Y = {rates[-1]:g} snaps at {span((snap[1] / snap[0])[-1])} of the flow's time. The "
            f"largest η_Y leaves the entropy {dense[0, -1, 0] - dense[0, 0, 0]:.3f} higher at η_Z = {rates[0]:g}.",
            f"The snap time goes as η_Z^{snaps:.2f}. The slides' statement is true of attention's fastest moment only, "
            f"η_Z^{moves:.2f}.",
        ],
        errata=[Erratum("slides", printed, corrected, float(abs(snaps)), float(abs(moves - snaps)), measure)],
    )
