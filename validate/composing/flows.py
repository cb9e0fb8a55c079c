"""How potentials move under gradient flow, and Theorem 6: at infinite width each follows an equation of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import composing, solve
from ...dynamics.composing import InfiniteWidth, TruncatedFlow, cyclic
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ..rows import identity, limit
from ._shared import hermitian

TRUNCATED = "the truncated loss ℓ̃, without the potentials that have a or b twice"


# CONTROL: J Jᵀ without the conjugate; 2/d for 2/d²
@claim(
    "Under gradient flow of the real weights potentials move as ṙ = (2/d²) J J* (δ − r), J = ∂r/∂z: always downhill.",
    source="what Theorem 6 rests on; written out here",
    assumptions=(TRUNCATED, "Z_7, real weights"),
)
def potential_flow(setting: Setting) -> Evidence:
    group, rng = cyclic(7), setting.rng
    flow = TruncatedFlow(7)
    weights = jnp.asarray(rng.normal(size=(3, 7, 10)), setting.dtype)

    @jax.jit
    def run(weights):
        element = lambda w: composing.from_weights(w[0], w[1], w[2], group).z[:, 1:]

        def truncated(w):
            r = flow.potentials(element(w))
            k = jnp.arange(6)
            return (jnp.sum(jnp.abs(r) ** 2) - 2 * jnp.sum(r[k, k, k].real)) / 7

        w_dot = -jax.grad(truncated)(weights)
        z, z_dot = jax.jvp(element, (weights,), (w_dot,))
        r, r_dot = jax.jvp(flow.potentials, (z,), (z_dot,))
        gap = composing.target(6).astype(r.dtype) - r
        # J Jᵀ: the derivative of r along what the conjugate in J* would have made of z.
        _, back = jax.vjp(flow.potentials, z)
        unconjugated = jax.jvp(flow.potentials, (z,), (2 / 49 * back(gap)[0],))[1]
        rate = jnp.vdot(gap, r_dot).real  # −(d/2) dℓ̃/dt
        gram = flow.gram(z) @ gap.reshape(-1) * (2 / 49)
        return z_dot, flow.descent(z), r_dot, flow.velocity(z), gram.reshape(r.shape), unconjugated, rate

    z_dot, descent, r_dot, velocity, gram, unconjugated, rate = map(np.asarray, run(weights))
    relative = lambda x, y: np.max(np.abs(x - y)) / np.max(np.abs(x))
    tolerance = setting.bound(1e-12, 1e-4)
    order = np.argsort(np.real(r_dot).ravel())
    sorted_by = lambda x: np.real(x).ravel()[order]
    return Evidence(
        rows={
            "ṙ against autodiff of the weights' flow, relative": identity(relative(r_dot, velocity), tolerance),
            "the matrix JJ* likewise": identity(relative(r_dot, gram), tolerance),
            "ż likewise": identity(relative(z_dot, descent), tolerance),
            "−dℓ̃/dt below zero": identity(min(0.0, float(rate)), 0.0),
        },
        control={
            "without the conjugate": identity(relative(r_dot, unconjugated), 0.01),
            "2/d for 2/d²": identity(relative(r_dot, 7 * velocity), 0.01),
        },
        panels=[
            panel(
                "speeds of all potentials, Z7",
                ("potential, by speed", np.arange(len(order))),
                y="Re ṙ",
                observed={"autodiff of the weights' flow": sorted_by(r_dot)},
                predicted={"(2/d²) JJ* (δ − r)": sorted_by(velocity)},
                control={"without the conjugate": sorted_by(unconjugated)},
            )
        ],
    )


# CONTROL: 2I for 3I; an off-diagonal part of order 1/q
@claim(
    "JJ*/(qσ⁴) tends to 3I for wide networks, its off-diagonal part as q^{−1/2}: at the start each potential"
    " follows its own equation, ṙ = (6qσ⁴/d²)(δ − r).",
    source="Theorem 6; its rate in q is measured here",
    assumptions=(
        TRUNCATED,
        "i.i.d. weights of mean zero and small variance",
        "the initial instant",
        "means over up to 64 draws",
    ),
)
def infinite_width(setting: Setting) -> Evidence:
    d, variance, all_nodes = 7, 1e-4, 2**15  # at widths from 512 on, in one draw or in many
    sigma2 = variance / d
    widths = 4 ** np.arange(3, setting.pick(smoke=7, laptop=8, paper=9))
    flow = TruncatedFlow(d)
    group, rng = cyclic(d), setting.rng
    fourier = group.characters.conj()[1:] / d

    def element(q):
        w = rng.normal(scale=np.sqrt(variance), size=(3, d, q))
        return hermitian(np.pad(fourier @ w, ((0, 0), (1, 0), (0, 0))), group)[:, 1:]

    @jax.jit
    def sums(z):  # over blocks of nodes, for JJ* takes all pairs of potentials of each
        blocks = jnp.moveaxis(z.reshape(3, d - 1, -1, min(z.shape[2], 1024)), 2, 0)
        return jax.lax.map(flow.gram, blocks).sum(axis=0)

    found = []
    for q in map(int, widths):
        law, draws = InfiniteWidth.of(d, q, variance), []
        for _ in range(min(max(1, all_nodes // q), 64)):
            z = element(q)
            gram = np.asarray(sums(jnp.asarray(z / np.sqrt(sigma2), complex))) / q
            draws.append(_summary(gram, z, law, q, sigma2, d))
        found.append(np.mean(draws, axis=0))
    mean, spread, off, deviation = np.array(found).T
    wide, wider = widths >= 64, widths >= 1024
    return Evidence(
        rows={
            "order of the off-diagonal part in 1/q": limit(1 / widths[-4:], off[-4:], 0.5),
            "off-diagonal rms·√q off 0.85 … 1.1, q ≥ 64": identity(off[wide] * np.sqrt(widths[wide]) - 0.975, 0.125),
            "mean of the diagonal − 3, q ≥ 1024": identity(mean[wider] - 3, 0.05),
            "ṙ_kkk over its law − 1, rms, q ≥ 1024": identity(deviation[wider], 0.06),
        },
        control={
            "mean of the diagonal − 2": identity(np.min(np.abs(mean[wider] - 2)), 0.05),
            "an off-diagonal part of order 1": limit(1 / widths[-4:], off[-4:], 1.0),
        },
        panels=[
            panel(
                "JJ*/(qσ⁴), Z7",
                ("hidden nodes q", widths),
                y="size",
                observed={"diagonal, mean": mean, "diagonal, spread": spread, "off-diagonal, rms": off},
                predicted={"3": np.full(len(widths), 3.0), "1/√q": 1 / np.sqrt(widths)},
                log="xy",
            ),
            _departure(setting),
        ],
    )


def _summary(gram, z, law: InfiniteWidth, q, sigma2, d) -> tuple[float, float, float, float]:
    """Mean and spread of the diagonal, rms of the rest, and by how much ṙ_kkk is off its law, relative."""
    diagonal = np.real(np.diagonal(gram))
    rest = gram - np.diag(np.diagonal(gram))
    off = np.sqrt(np.sum(np.abs(rest) ** 2) / (rest.size - len(rest)))
    k = np.arange(d - 1)
    gap = np.asarray(composing.target(d - 1)) - np.einsum("ij,kj,lj->ikl", *z)
    speed = (2 / d**2) * q * sigma2**2 * (gram @ gap.reshape(-1)).reshape(gap.shape)
    predicted = float(law.rate) * gap
    ratio = np.abs(speed[k, k, k] / predicted[k, k, k] - 1)
    return diagonal.mean(), diagonal.std(), off, float(np.sqrt(np.mean(ratio**2)))


def _departure(setting: Setting):
    """The finite flow against the law that holds at its start: r_kkk over time at two widths."""
    d, variance, group, rng = 5, 0.02, cyclic(5), setting.rng
    ts = np.linspace(0, 3, 31)
    curves = []
    for q in (64, 1024):
        law, flow = InfiniteWidth.of(d, q, variance), TruncatedFlow(d)
        w = np.zeros((3, d, 1024))  # dead nodes, so that both share one compilation
        w[:, :, :q] = rng.normal(scale=np.sqrt(variance), size=(3, d, q))
        z = jnp.asarray((group.characters.conj()[1:] / d) @ w, complex)
        # In units of the law's own time.
        states = solve(flow, flow.pack(z), ts / float(law.rate)).ys
        r = jax.jit(jax.vmap(lambda y, flow=flow: flow.potentials(flow.unpack(y))))(states)
        k = np.arange(d - 1)
        curves.append(np.real(np.asarray(r)[:, k, k, k]).mean(axis=1))
    exact = 1 - np.exp(-ts)
    return panel(
        "beyond the start the law fails (Z5)",
        ("6qσ⁴/d² · t", ts),
        y="mean of r_kkk",
        observed={"64 nodes": curves[0], "1024 nodes": curves[1]},
        predicted={"1 − exp(−6qσ⁴/d² t)": exact},
    )
