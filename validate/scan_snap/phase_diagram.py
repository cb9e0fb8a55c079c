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
from ..claim import Erratum, Evidence, Setting, claim
from ..metrics import entropy
from ..panels import heatmap, panel
from ..rows import identity
from ._shared import ASSUMED, CLASSES, LONG, TIME, reference

QUANTITIES = ("gradient", "attention", "entropy")  # the time each of two is largest, and the final entropy


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
    """For every pair of learning rates, theory and descent: shapes `(2, η_Y, η_Z)`, one array a quantity."""
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


# CONTROL: the moment at which attention itself moves fastest
@claim(
    "Snapping, the moment when the gradient that reaches attention is largest, comes at a time set by η_Y: "
    "it goes as η_Y^−1 and η_Z^0 over two decades of each, in theory and in descent alike.",
    source="Theorem 4's t₀ = 2K ln M/η_Y, for tier C, which has no closed form; the diagram is measured here",
    assumptions=(ASSUMED, LONG, "five classes, ten common and ten distinct tokens each", "descent at learning rate 1"),
)
def phase_diagram(setting: Setting) -> Evidence:
    number, steps = setting.pick(smoke=(4, 300), laptop=(9, 1000), paper=(25, 10_000))
    low = setting.pick(smoke=0.3, laptop=0.1, paper=0.1)
    rates = np.geomspace(low, 10.0, number)
    data = nets.distinct_and_common(CLASSES, dtype=setting.dtype)
    data = setting.pick(smoke=reference(), laptop=data, paper=data)
    grid = jnp.asarray(rates, setting.dtype)
    found = dict(zip(QUANTITIES, (np.asarray(x, float) for x in diagram(data, grid, grid, steps)), strict=True))
    slow = rates <= 1.01  # where descent is close to its flow

    def exponents(times):
        """Of t in η_Y and in η_Z, by least squares over the grid."""
        y, z = np.meshgrid(np.log(rates), np.log(rates), indexing="ij")
        design = np.stack([np.ones(y.size), y.ravel(), z.ravel()], axis=1)
        return np.linalg.lstsq(design, np.log(times).ravel(), rcond=None)[0][1:]

    powers = {name: [exponents(found[name][i]) for i in (0, 1)] for name in ("gradient", "attention")}
    gap = {name: (found[name][1] / found[name][0] - 1)[slow] for name in ("gradient", "attention")}
    level = np.abs(found["entropy"][1] - found["entropy"][0])[slow]
    denser = found["entropy"][0, -1, 0] - found["entropy"][0, 0, 0]
    words = [f"{rate:.3g}" for rate in rates]
    target = np.array([-1.0, 0.0])
    maps = [
        heatmap(
            f"{name}: {what}",
            ("η_Z", words),
            ("η_Y", words),
            values,
            z_label=label,
            limits=(float(both.min()), float(both.max())),
            log=log,
        )
        for what, both, label, log in (
            ("time of snapping", found["gradient"], TIME, "z"),
            ("final entropy", found["entropy"], "nats", ""),
        )
        for name, values in zip(("theory", "descent"), both, strict=True)
    ]
    return Evidence(
        rows={
            "exponents of the snap time in η_Y and η_Z, theory": identity(powers["gradient"][0] - target, 0.1),
            "the same in descent": identity(powers["gradient"][1] - target, 0.1),
            "snap time, descent over theory − 1, η_Y ≤ 1": identity(gap["gradient"], 0.05),
            "final entropy, descent − theory, η_Y ≤ 1 (nats)": identity(level, 0.01),
        },
        control={"exponents of the fastest moment of attention": identity(powers["attention"][0] - target, 0.1)},
        panels=[
            *maps[:2],
            panel(
                "two moments, η_Y = " + words[0],
                ("η_Z/η_Y", rates / rates[0]),
                y="η_Y t",
                observed={"gradient largest, descent": rates[0] * found["gradient"][1, 0]},
                predicted={"gradient largest, theory": rates[0] * found["gradient"][0, 0]},
                control={"attention fastest, theory": rates[0] * found["attention"][0, 0]},
                log="xy",
            ),
            *maps[2:],
        ],
        remarks=[
            f"η_Y × snap time lies in {_range(found['gradient'][0] * rates[:, None])} over the whole grid in theory, "
            f"η_Y × attention's fastest moment in {_range(found['attention'][0] * rates[:, None])} (exponent in η_Z "
            f"{powers['attention'][0][1]:.2f}): for a large η_Z attention has done most of its moving before the snap.",
            f"Descent at η_Y = {rates[-1]:g} snaps at {_range((found['gradient'][1] / found['gradient'][0])[-1])} of "
            f"the flow's time. At η_Z = {rates[0]:g} the final entropy is {denser:.3f} higher for the largest η_Y.",
        ],
        errata=[
            Erratum(
                "slides",
                "larger η_Z leads to a faster phase transition",
                "η_Y sets its time; η_Z sets its height",
                f"t_snap ∝ η_Z^{powers['gradient'][0][1]:.2f}",
                f"true of attention's fastest moment only, ∝ η_Z^{powers['attention'][0][1]:.2f}",
            )
        ],
    )


def _range(values: np.ndarray) -> str:
    return f"{values.min():.3g} … {values.max():.3g}"
