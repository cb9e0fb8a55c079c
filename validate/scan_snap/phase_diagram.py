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
from ._shared import ASSUMED, CLASSES, LONG, TIME, reference


def peak_time(ts: Float[Array, " times"], values: Float[Array, " times"]) -> Float[Array, ""]:
    """When a curve is largest: the top of the parabola in ln t through its three highest neighbours."""
    middle = jnp.clip(jnp.argmax(values), 1, values.shape[0] - 2)
    x = jax.lax.dynamic_slice(jnp.log(ts), (middle - 1,), (3,))
    y = jax.lax.dynamic_slice(values, (middle - 1,), (3,))
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    top = (x[0] + x[1]) / 2 - left / jnp.where(curvature < 0, 2 * curvature, -1)
    return jnp.exp(jnp.where(curvature < 0, jnp.clip(top, x[0], x[2]), x[1]))


@partial(jax.jit, static_argnums=3)
def diagram(data: nets.SequenceClasses, eta_y, eta_z, steps: int):
    """For every pair of learning rates, by theory and by descent, each of shape `(2, η_Y, η_Z)`: when the gradient
    that reaches attention is largest, when attention moves fastest, and the final entropy."""
    outputs = data.probability.shape[1]
    ts = np.geomspace(0.02, steps, 120)

    def cell(eta_y, eta_z):
        flow = ScanSnap(data.table, outputs=outputs, eta_y=eta_y, eta_z=eta_z)
        gradient = lambda y: jnp.linalg.norm(flow.residual(y) @ y.y.T)
        times = jnp.asarray(ts, data.table.dtype)
        ys = solve(flow, flow.zero(), times, rtol=1e-5, atol=1e-7, throw=False).ys
        assert isinstance(ys, YZ)
        speed = jax.vmap(lambda y: jnp.linalg.norm(flow(0.0, y).z))(ys)
        theory = peak_time(times, jax.vmap(gradient)(ys)), peak_time(times, speed), ys.z[-1]

        optimiser = nets.sgd(1.0, eta_y=eta_y, eta_z=eta_z)
        observe = lambda m: (m.z, gradient(YZ(m.y, m.z)))
        model, expected = data.network(), data.expected()
        z, size = train(model, nets.cross_entropy, expected, optimiser, steps, observe=observe, every=1).observed
        at = jnp.arange(1, steps + 1, dtype=times.dtype)
        moved = jnp.linalg.norm(jnp.diff(z, axis=0).reshape(steps, -1), axis=1)
        practice = peak_time(at, size[1:]), peak_time(at - 0.5, moved), z[-1]
        end = lambda z: jnp.mean(entropy(flow.attention(z)))
        return [jnp.stack([f(theory), f(practice)]) for f in (lambda r: r[0], lambda r: r[1], lambda r: end(r[2]))]

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
    assumptions=(ASSUMED, LONG, "five classes, ten common and ten distinct tokens each", "descent at learning rate 1"),
    tex=r"t_{\mathrm{snap}} \propto \eta_Y^{-1} \eta_Z^0",
    flow=ScanSnap,
)
def phase_diagram(setting: Setting) -> Evidence:
    number, steps = setting.pick(smoke=(4, 300), laptop=(9, 1000), paper=(25, 10_000))
    rates = np.geomspace(setting.pick(smoke=0.3, laptop=0.1, paper=0.1), 10.0, number)
    data = reference() if setting.scale == "smoke" else nets.distinct_and_common(CLASSES, dtype=setting.dtype)
    grid = jnp.asarray(rates, setting.dtype)
    snap, fastest, dense = (np.asarray(x, float) for x in diagram(data, grid, grid, steps))
    slow = rates <= 1.01  # where descent is close to its flow
    by_snap, by_speed = ([_exponents(rates, when) for when in times] for times in (snap, fastest))
    target, wrong = np.array([-1.0, 0.0]), "attention's fastest moment"
    clock, words = lambda times: (rates[:, None] * times)[slow].T, [f"{rate:.3g}" for rate in rates]
    maps = [
        heatmap(title, ("η_Z", words), ("η_Y", words), values, z_label=label, log=log)
        for title, values, label, log in (
            ("descent: time of snapping", snap[1], TIME, "z"),
            ("descent: final entropy", dense[1], "nats", ""),
        )
    ]
    exponents = [
        vanishes(
            f"exponents of the snap time in η_Y, η_Z, from −1, 0: {word}", p - target, {wrong: q - target}, within=0.1
        )
        for word, p, q in zip(("theory", "descent"), by_snap, by_speed, strict=True)
    ]
    return evidence(
        *exponents,
        agrees(
            "η_Y × snap time, theory and descent, η_Y ≤ 1",
            ("η_Z", rates),
            clock(snap[1]),
            clock(snap[0]),
            {wrong: clock(fastest[0])},
            within=0.05,
            measure=relative,
            y="η_Y t, a line for each η_Y",
            log="xy",
        ),
        agrees("final entropy, η_Y ≤ 1 (nats)", None, dense[1][slow], dense[0][slow], within=0.01, measure=absolute),
        panels=maps,
        remarks=[
            f"η_Y × snap time lies in {_range(snap[0] * rates[:, None])} over the whole grid in theory, η_Y × "
            f"attention's fastest moment in {_range(fastest[0] * rates[:, None])} (exponent in η_Z "
            f"{by_speed[0][1]:.2f}): for a large η_Z attention has done most of its moving before the snap.",
            f"Descent at η_Y = {rates[-1]:g} snaps at {_range((snap[1] / snap[0])[-1])} of the flow's time. The "
            f"largest η_Y leaves the entropy {dense[0, -1, 0] - dense[0, 0, 0]:.3f} higher at η_Z = {rates[0]:g}.",
            f"The snap time goes as η_Z^{by_snap[0][1]:.2f}. The slides' statement is true of attention's fastest "
            f"moment only, η_Z^{by_speed[0][1]:.2f}.",
        ],
        errata=[
            Erratum(
                "slides",
                "larger η_Z leads to a faster phase transition",
                "η_Y sets its time; η_Z sets its height",
                float(abs(by_snap[0][1])),
                float(abs(by_speed[0][1] - by_snap[0][1])),
                "error of the exponent of η_Z: 0, and that of attention's fastest moment",
            )
        ],
    )


def _range(values: np.ndarray) -> str:
    return f"{values.min():.3g} … {values.max():.3g}"
