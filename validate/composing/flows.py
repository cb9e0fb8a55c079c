"""How potentials move under gradient flow, and Theorem 6: at infinite width each follows an equation of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ...dynamics import composing, solve
from ...dynamics.composing import InfiniteWidth, TruncatedFlow, cyclic
from ..checks import agrees, at_least, at_most, evidence, rounding, scales, vanishes
from ..claim import Evidence, Setting, claim
from ..pair_networks import LAZY, SQUARE, WIDE
from ..panels import panel

TRUNCATED = "the truncated loss ℓ̃, without the potentials that have a or b twice"
IID = "i.i.d. weights of mean zero and small variance"


@jax.jit
def _speeds(weights: jax.Array) -> tuple[jax.Array, ...]:
    """ż and ṙ by autodiff of the weights' flow, ż, ṙ and JJ*(δ − r) by the laws, ṙ without the conjugate, and
    −(d/2) dℓ̃/dt."""
    group, flow = cyclic(7), TruncatedFlow(7)
    element = lambda w: composing.from_weights(*w, group=group).z[:, 1:]

    def truncated(w):
        r, k = flow.potentials(element(w)), jnp.arange(6)
        return (jnp.sum(jnp.abs(r) ** 2) - 2 * jnp.sum(r[k, k, k].real)) / 7

    z, z_dot = jax.jvp(element, (weights,), (-jax.grad(truncated)(weights),))
    r, r_dot = jax.jvp(flow.potentials, (z,), (z_dot,))
    gap = composing.target(6).astype(r.dtype) - r
    # J Jᵀ: the derivative of r along what the conjugate in J* would have made of z.
    _, back = jax.vjp(flow.potentials, z)
    unconjugated = jax.jvp(flow.potentials, (z,), (2 / 49 * back(gap)[0],))[1]
    gram = (flow.gram(z) @ gap.reshape(-1) * (2 / 49)).reshape(r.shape)
    return z_dot, r_dot, flow.descent(z), flow.velocity(z), gram, unconjugated, jnp.vdot(gap, r_dot).real


@claim(
    "Under gradient flow of real weights potentials move as ṙ = (2/d²) J J* (δ − r), J = ∂r/∂z, and the loss falls.",
    source="what Theorem 6 rests on; written out here",
    assumptions=(TRUNCATED, "Z_7, real weights"),
    tex=r"\dot r = \frac{2}{d^2} J J^* (\delta - r),\quad J = \frac{\partial r}{\partial z}",
    flow=TruncatedFlow,
)
def potential_flow(setting: Setting) -> Evidence:
    weights = jnp.asarray(setting.rng.normal(size=(3, 7, 10)), setting.dtype)
    z_dot, r_dot, descent, velocity, gram, unconjugated, rate = map(np.asarray, _speeds(weights))
    order = np.argsort(np.real(r_dot).ravel())
    laws = {"(2/d²) J J* (δ − r)": velocity, "with the matrix JJ*": gram}
    wrong = {"without the conjugate": unconjugated, "2/d for 2/d²": 7 * velocity}
    name, axis = "ṙ by autodiff of the weights' flow", ("potential, by speed", np.arange(len(order)))
    by_speed: Any = lambda curves: {label: np.real(x).ravel()[order] for label, x in curves.items()}
    curves = {"observed": by_speed({name: r_dot}), "predicted": by_speed(laws), "control": by_speed(wrong)}
    return evidence(
        agrees(name, None, r_dot, laws, wrong, within=rounding(800)),
        agrees("ż likewise", None, z_dot, descent, {"2/d for 2/d²": 7 * descent}, within=rounding(800)),
        at_least("−(d/2) dℓ̃/dt", rate, 0.0),
        panels=[panel("speeds of all potentials, Z7", axis, y="Re ṙ", **curves)],
    )


@claim(
    "JJ*/(qσ⁴) tends to 3I for wide networks, its off-diagonal part as q^{−1/2}. At the start each potential follows "
    "its own equation, ṙ = (6qσ⁴/d²)(δ − r).",
    source="Theorem 6; its rate in q is measured here",
    assumptions=(TRUNCATED, IID, WIDE, SQUARE, LAZY.said("the initial instant"), "means over up to 64 draws"),
    tex=r"\frac{J J^*}{q \sigma^4} \to 3 I,\quad \dot r = \frac{6 q \sigma^4}{d^2} (\delta - r)",
    flow=InfiniteWidth,
)
def infinite_width(setting: Setting) -> Evidence:
    widths, rng = 4 ** np.arange(3, setting.pick(smoke=7, laptop=8, paper=9)), setting.rng
    mean, off, deviation = at_start(rng, widths).T
    mean_tied, off_tied, deviation_tied = at_start(rng, widths, tied=True).T
    wide, tied = widths >= 1024, "b = a, which is not independent"
    axis, scaled = ("1/q", 1 / widths[-4:]), lambda off: off * np.sqrt(widths) - 0.975
    return evidence(
        scales("off-diagonal part of JJ*/(qσ⁴), rms", axis, off[-4:], {tied: off_tied[-4:]}, order=0.5, y="rms"),
        vanishes("off-diagonal rms·√q off 0.85 … 1.1", scaled(off), {tied: scaled(off_tied)}, within=0.125),
        vanishes("mean of the diagonal − 3, q ≥ 1024", mean[wide] - 3, {tied: mean_tied[wide] - 3}, within=0.05),
        at_most("ṙ_kkk over its law − 1, rms, q ≥ 1024", deviation[wide], 0.06, {tied: deviation_tied[wide].min()}),
        panels=[_departure(setting)],
    )


@jax.jit
def _gram(z: jax.Array) -> jax.Array:
    """JJ*, summed over blocks of nodes, because it takes all pairs of potentials of each."""
    blocks = jnp.moveaxis(z.reshape(*z.shape[:2], -1, min(z.shape[2], 1024)), 2, 0)
    return jax.lax.map(TruncatedFlow(z.shape[1] + 1).gram, blocks).sum(axis=0)


def at_start(rng: np.random.Generator, widths: np.ndarray, tied: bool = False) -> np.ndarray:
    """Of JJ*/(qσ⁴) at the start, for each width: the mean of the diagonal, the rms of the rest, and by how much ṙ_kkk
    is off its law, relative; means over draws. `tied`: with b = a."""
    d, variance, all_nodes = 7, 1e-4, 2**15  # at widths from 512 on, in one draw or in many
    fourier, sigma2 = cyclic(d).characters.conj()[1:] / d, variance / d

    def one(q):
        w = rng.normal(scale=np.sqrt(variance), size=(3, d, q))
        z = fourier @ (w[[0, 0, 2]] if tied else w)
        gram = np.asarray(_gram(jnp.asarray(z / np.sqrt(sigma2), complex))) / q
        diagonal, k = np.diagonal(gram), np.arange(d - 1)
        off = np.sqrt(np.mean(np.abs(gram[~np.eye(len(gram), dtype=bool)]) ** 2))
        gap = np.asarray(composing.target(d - 1)) - np.einsum("ij,kj,lj->ikl", *z)
        speed = (2 / d**2) * q * sigma2**2 * (gram @ gap.reshape(-1)).reshape(gap.shape)
        predicted = float(InfiniteWidth.of(d, q, variance).rate) * gap
        ratio = np.abs(speed[k, k, k] / predicted[k, k, k] - 1)
        return np.real(diagonal).mean(), off, np.sqrt(np.mean(ratio**2))

    draws = lambda q: min(max(1, all_nodes // q), 8 if tied else 64)
    return np.array([np.mean([one(q) for _ in range(draws(q))], axis=0) for q in map(int, widths)])


def _departure(setting: Setting) -> xr.Dataset:
    """The finite flow against the law that holds at its start: r_kkk over time at two widths."""
    d, variance, rng = 5, 0.02, setting.rng
    ts, flow, k = np.linspace(0, 3, 31), TruncatedFlow(d), np.arange(d - 1)
    potentials = jax.jit(jax.vmap(lambda y: flow.potentials(flow.unpack(y))))

    def curve(q):
        w = np.zeros((3, d, 1024))  # dead nodes, so that both share one compilation
        w[:, :, :q] = rng.normal(scale=np.sqrt(variance), size=(3, d, q))
        z = jnp.asarray((cyclic(d).characters.conj()[1:] / d) @ w, complex)
        states = solve(flow, flow.pack(z), ts / float(InfiniteWidth.of(d, q, variance).rate)).ys
        return np.real(np.asarray(potentials(states))[:, k, k, k]).mean(axis=1)

    observed, law = {f"{q} nodes": curve(q) for q in (64, 1024)}, {"1 − exp(−6qσ⁴/d² t)": 1 - np.exp(-ts)}
    title, axis = "beyond the start the law fails (Z5)", ("6qσ⁴/d² · t", ts)
    return panel(title, axis, y="mean of r_kkk", observed=observed, predicted=law)
