"""Theorem 3: one nonlinear node on a mixture of clusters, its coefficients and its flow against a trained node."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import Flow, solve
from ...dynamics.joma import Mixture, MixtureState
from ...nets import joma as nets
from ...nets import train
from ..checks import agrees, converges, evidence, norms
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ._shared import FLOW, TIME, sgd
from .assumptions import AT_REST, ONE_QUERY, STATIONARY, UNIFORM

CLUSTERS = (UNIFORM, AT_REST, "isotropic Gaussian clusters", "one node")
CLOSED = ("identity", "relu", "leaky_relu", "square", "erf")
ACTIVATIONS = {
    "identity": lambda h: h,
    "relu": jax.nn.relu,
    "leaky_relu": lambda h: jax.nn.leaky_relu(h, 0.01),
    "square": jnp.square,
    "erf": jax.scipy.special.erf,
    "tanh": jnp.tanh,
    "gelu": lambda h: jax.nn.gelu(h, approximate=False),
    "silu": jax.nn.silu,
}
LEVELS, NORMS, SIGMA = np.linspace(-1.5, 1.5, 7), (0.4, 2.0), 0.7


def _monte_carlo(phi, draws: np.ndarray, dtype) -> tuple[np.ndarray, np.ndarray]:
    """θ₁ and θ₂ at `LEVELS` and `NORMS`, and their standard errors, both `(levels, norms, 2)`."""
    slope, samples = jax.jit(jax.vmap(jax.grad(phi))), len(draws)
    mean, error = np.empty((2, len(LEVELS), len(NORMS), 2))
    for i, j in np.ndindex(mean.shape[:2]):
        s = SIGMA * NORMS[j] * draws
        rate = np.asarray(slope(jnp.asarray(LEVELS[i] + s, dtype)), float)
        weighted = NORMS[j] * np.stack([rate, s * rate])
        mean[i, j] = weighted.mean(axis=1)
        # Never below what one sample adds: in a tail that no draw has reached the spread is zero.
        least = NORMS[j] * max(1.0, np.abs(s).max()) / samples
        error[i, j] = np.maximum(weighted.std(axis=1) / np.sqrt(samples), least)
    return mean, error


@claim(
    "θ₁ = ‖v‖ E[φ'(r+s)] and θ₂ = ‖v‖ E[s φ'(r+s)] agree with Monte Carlo within five standard errors. Identity, ReLU, "
    "leaky ReLU, square and erf have closed forms; other smooth activations go by quadrature.",
    source="Theorem 3's coefficients; printed as functions of r alone",
    assumptions=("isotropic Gaussian clusters",),
    tex=r"\theta_1 = \|v\| \, E[\varphi'(r + s)], \quad \theta_2 = \|v\| \, E[s \, \varphi'(r + s)]",
    flow=Mixture,
)
def theta(setting: Setting) -> Evidence:
    samples = setting.pick(smoke=100_000, laptop=1_000_000, paper=4_000_000)
    draws = setting.rng.standard_normal(samples)
    r, checks = jnp.asarray(LEVELS, setting.dtype), []
    for name, phi in ACTIVATIONS.items():
        flow = Mixture(jnp.zeros((1, 1)), jnp.ones(1), SIGMA, activation=name if name in CLOSED else phi)
        theory = jax.jit(lambda norm, flow=flow: jnp.stack([flow.theta1(r, norm), flow.theta2(r, norm)], axis=1))
        law = np.stack([theory(norm) for norm in NORMS], axis=1)
        (mean, error), wrong = _monte_carlo(phi, draws, setting.dtype), {"taken at ‖v‖ = 1": theory(1.0)[:, None]}
        deviation = lambda seen, law, error=error: (seen - law) / error
        axis = ("r", LEVELS) if name in ("relu", "tanh") else None
        title, y = f"{name}: θ₁ and θ₂, error in standard errors", "θ₁ and θ₂, ‖v‖ = 0.4 and 2"
        checks.append(agrees(title, axis, mean, law, wrong, within=5.0, measure=deviation, y=y))
    return evidence(*checks, remarks=[f"{samples} samples, ‖v‖ ∈ {{0.4, 2}}, σ = {SIGMA}, {len(LEVELS)} values of r."])


CENTRES = np.array([[1.0, 0.2, -0.3, 0.1], [-0.4, 0.8, 0.5, 0.0], [0.1, -0.2, 0.3, -0.9]])
GRADIENT, START, SPREAD = np.array([1.0, 0.6, -0.5]), np.array([0.3, 0.1, 0.2, -0.2]), 0.8
END, STEPS, EVERY = 2.0, 100, 10


def _trained_nodes(setting: Setting, sizes: list[int], seeds: int) -> list[np.ndarray]:
    """The node along training, for each number of samples, `(seeds, records, 4)`."""
    options = {"activation": jax.scipy.special.erf, "embeddings": "identity", "key": setting.key}
    model = nets.JomaBlock(4, 1, attention="linear", **options)
    # Uniform attention is linear attention whose logits stay at one.
    w = jnp.asarray(np.append(START, 0.0)[:, None], setting.dtype)
    model, descent = eqx.tree_at(lambda m: (m.w, m.z), model, (w, jnp.ones((1, 4)))), sgd(END / STEPS, eta_z=0.0)

    def trained(noise):
        cluster = jnp.arange(noise.shape[0]) % 3
        x = jnp.asarray(CENTRES, noise.dtype)[cluster] + SPREAD * noise
        data = (x, jnp.asarray(GRADIENT, noise.dtype)[cluster][:, None])
        node = lambda m: m.v[:, 0]
        return train(model, nets.stationary_loss, data, descent, STEPS, observe=node, every=EVERY).observed

    rng, over_seeds = setting.rng, jax.jit(jax.vmap(trained))
    noise = (jnp.asarray(rng.standard_normal((seeds, size, 4)), setting.dtype) for size in sizes)
    return [np.asarray(over_seeds(one)) for one in noise]


def _euler(flow: Flow, start: MixtureState) -> np.ndarray:
    """The node along the flow, read at the learning rate of training: what is left is the sampling error alone."""

    def step(y, _):
        y = jax.tree.map(lambda a, slope: a + END / STEPS * slope, y, flow(0.0, y, None))
        return y, y.v

    path = jax.jit(lambda y: jax.lax.scan(step, y, None, length=STEPS)[1])(start)
    return np.concatenate([start.v[None], path[EVERY - 1 :: EVERY]])


@claim(
    "A real node trained on N samples of the mixture approaches the flow of Theorem 3 at order ½ in 1/N.",
    source="Theorem 3 against the network itself",
    assumptions=(FLOW, STATIONARY, ONE_QUERY, *CLUSTERS),
    tex=r"\|v_N(t) - v(t)\| = O(N^{-1/2})",
    flow=Mixture,
)
def mixture_training(setting: Setting) -> Evidence:
    seeds = setting.pick(smoke=20, laptop=40, paper=96)
    laptop, paper = (64, 256, 1024, 4096), (256, 1024, 4096, 16384, 65536)
    sizes = [3 * n for n in setting.pick(smoke=(32, 128, 512, 2048), laptop=laptop, paper=paper)]
    paths = _trained_nodes(setting, sizes, seeds)
    ends = np.stack([path[:, -1] for path in paths])
    centres, strength, start = (jnp.asarray(a, setting.dtype) for a in (CENTRES, GRADIENT / 3, START))
    flow, y0 = Mixture(centres, strength, SPREAD, activation="erf"), MixtureState(start, jnp.zeros(()))
    law, without = _euler(flow, y0), _euler(_WithoutTheta2(flow), y0)
    times = np.linspace(0, END, STEPS // EVERY + 1)
    exact = np.asarray(solve(flow, y0, times).ys.v)
    sampling = norms(ends, np.broadcast_to(law[-1], ends.shape))[-1]
    discretisation = np.linalg.norm(law[-1] - exact[-1]) / np.linalg.norm(exact[-1])
    wrong, x = {"without θ₂": without[-1]}, ("inverse sample size 1/N", 1 / np.array(sizes))
    observed, predicted, control = {"trained node": paths[-1][0]}, {"Theorem 3": exact}, {"without θ₂": without}
    title, axis = f"one node, {sizes[-1]} samples", (TIME, times)
    picture = panel(title, axis, y="v", observed=observed, predicted=predicted, control=control)
    return evidence(
        converges(f"v at t = 2, {seeds} seeds", x, ends, law[-1], wrong, order=0.5),
        panels=[picture],
        remarks=[
            f"Error budget at t = {END:g}: sampling {sampling:.1e} at {sizes[-1]} samples, discretisation "
            f"{discretisation:.1e} at learning rate {END / STEPS:g} (taken out of the fit)."
        ],
    )


class _WithoutTheta2(Flow):
    """Theorem 3 without its second term."""

    flow: Mixture

    def __call__(self, t, y, args=None):
        norm = jnp.linalg.norm(y.v)
        slope = self.flow.strength * self.flow.theta1(self.flow.centres @ y.v + y.beta, norm) / norm
        return MixtureState(slope @ self.flow.centres, jnp.sum(slope))
