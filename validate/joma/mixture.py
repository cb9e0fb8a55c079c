"""Theorem 3: one nonlinear node on a mixture of clusters, its coefficients and its flow against a trained node."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import Flow, solve
from ...dynamics.joma import Mixture, MixtureState
from ...nets import joma as nets
from ...nets import train
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ..rows import identity, limit
from ._shared import FLOW, ONE_QUERY, STATIONARY, TIME, sgd

CLUSTERS = ("uniform attention", "isotropic Gaussian clusters", "one node")
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


# CONTROL: θ as a function of r alone, taken at ‖v‖ = 1
@claim(
    "θ₁ = ‖v‖ E[φ'(r+s)] and θ₂ = ‖v‖ E[s φ'(r+s)], in closed form for identity, ReLU, leaky ReLU, "
    "square and erf and by quadrature for smooth activations, agree with Monte Carlo within five standard errors.",
    source="Theorem 3's coefficients; printed as functions of r alone",
    assumptions=("isotropic Gaussian clusters",),
)
def theta(setting: Setting) -> Evidence:
    samples = setting.pick(smoke=100_000, laptop=1_000_000, paper=4_000_000)
    draws = np.random.default_rng(setting.seed).standard_normal(samples)
    levels, norms, sigma = np.linspace(-1.5, 1.5, 7), (0.4, 2.0), 0.7
    r = jnp.asarray(levels, setting.dtype)
    scores, controls, panels = {}, {}, []
    for name, phi in ACTIVATIONS.items():
        flow = Mixture(jnp.zeros((1, 1)), jnp.ones(1), sigma, activation=name if name in CLOSED else phi)
        slope = jax.jit(jax.vmap(jax.grad(phi)))
        theory = jax.jit(lambda norm, flow=flow: jnp.stack([flow.theta1(r, norm), flow.theta2(r, norm)], axis=1))
        law, at_one = np.stack([theory(norm) for norm in norms]), np.asarray(theory(1.0))  # norms, levels, 2
        mean, error = np.empty_like(law), np.empty_like(law)
        for i, norm in enumerate(norms):
            s = sigma * norm * draws
            for j, level in enumerate(levels):
                rate = np.asarray(slope(jnp.asarray(level + s, setting.dtype)), float)
                weighted = np.stack([norm * rate, norm * s * rate])
                mean[i, j] = weighted.mean(axis=1)
                # Never below what one sample adds: in a tail that no draw has reached the spread is zero.
                error[i, j] = np.maximum(
                    weighted.std(axis=1) / np.sqrt(samples), norm * max(1.0, np.abs(s).max()) / samples
                )
        scores[name], controls[name] = np.abs(law - mean) / error, np.abs(at_one - mean) / error
        if name in ("relu", "erf", "tanh"):
            panels.append(
                panel(
                    f"{name}, ‖v‖ = {norms[1]:g}",
                    ("r", levels),
                    y="θ₁ and θ₂",
                    predicted={"theory": law[1]},
                    observed={"Monte Carlo": mean[1]},
                    control={"taken at ‖v‖ = 1": at_one},
                )
            )
    return Evidence(
        rows={f"{name}: largest deviation in standard errors": identity(score, 5.0) for name, score in scores.items()},
        control={f"{name} at ‖v‖ = 1": identity(score, 5.0) for name, score in controls.items()},
        panels=panels,
        remarks=[f"{samples} samples, ‖v‖ ∈ {{0.4, 2}}, σ = {sigma}, {len(levels)} values of r."],
    )


# CONTROL: the flow without its θ₂ term
@claim(
    "A real node trained on N samples of the mixture approaches the flow of Theorem 3 at order ½ in 1/N.",
    source="Theorem 3 against the network itself",
    assumptions=(FLOW, STATIONARY, ONE_QUERY, *CLUSTERS),
)
def mixture_training(setting: Setting) -> Evidence:
    seeds = setting.pick(smoke=20, laptop=40, paper=96)
    sizes = [
        3 * n
        for n in setting.pick(
            smoke=(32, 128, 512, 2048), laptop=(64, 256, 1024, 4096), paper=(256, 1024, 4096, 16384, 65536)
        )
    ]
    centres = jnp.asarray([[1.0, 0.2, -0.3, 0.1], [-0.4, 0.8, 0.5, 0.0], [0.1, -0.2, 0.3, -0.9]])
    gradient, start, sigma = jnp.asarray([1.0, 0.6, -0.5]), jnp.asarray([0.3, 0.1, 0.2, -0.2]), 0.8
    end, steps = 2.0, 100
    times = jnp.linspace(0, end, steps + 1)

    model = nets.JomaBlock(
        4, 1, attention="linear", activation=jax.scipy.special.erf, embeddings=jnp.eye(5), key=setting.key
    )
    # Uniform attention is linear attention whose logits stay at one.
    model = eqx.tree_at(lambda m: (m.w, m.z), model, (jnp.append(start, 0.0)[:, None], jnp.ones((1, 4))))

    def trained(noise):
        cluster = jnp.arange(noise.shape[0]) % 3
        x = centres[cluster] + sigma * noise
        data = (x, gradient[cluster][:, None])
        descent = sgd(end / steps, eta_z=0.0)
        return train(model, nets.stationary_loss, data, descent, steps, observe=lambda m: m.v[:, 0], every=10).observed

    rng, over_seeds = setting.rng, jax.jit(jax.vmap(trained))
    paths = [over_seeds(jnp.asarray(rng.standard_normal((seeds, size, 4)), setting.dtype)) for size in sizes]

    # The flow is read at the same learning rate (Euler), so that what is left is the sampling error alone.
    flow, y0 = Mixture(centres, gradient / 3, sigma, activation="erf"), MixtureState(start, jnp.zeros(()))
    each_step = dfx.StepTo(ts=times)
    euler = solve(flow, y0, times[::10], solver=dfx.Euler(), stepsize_controller=each_step).ys.v
    wrong = solve(_WithoutTheta2(flow), y0, times[::10], solver=dfx.Euler(), stepsize_controller=each_step).ys.v
    exact = solve(flow, y0, times[::10]).ys.v
    size_of = jnp.linalg.norm(exact[-1])
    error = lambda law: (
        jnp.asarray([jnp.sqrt(jnp.mean(jnp.sum((v[:, -1] - law[-1]) ** 2, -1))) for v in paths]) / size_of
    )
    right, without = error(euler), error(wrong)
    inverse = 1 / np.asarray(sizes)
    budget = jnp.linalg.norm(euler[-1] - exact[-1]) / size_of
    return Evidence(
        rows={"order in 1/N of the relative error of v": limit(inverse, right, 0.5)},
        control={"without θ₂: order in 1/N": limit(inverse, without, 0.5)},
        panels=[
            panel(
                f"erf, 3 clusters, {seeds} seeds",
                ("samples", np.asarray(sizes)),
                y="relative error of v at t = 2 (root mean square)",
                observed={"trained node against the flow": right},
                predicted={"order ½": right[0] * np.sqrt(inverse / inverse[0])},
                control={"against the flow without θ₂": without},
                log="xy",
            ),
            panel(
                f"one node, {sizes[-1]} samples",
                (TIME, times[::10]),
                y="v",
                observed={"trained node": paths[-1][0]},
                predicted={"Theorem 3": exact},
                control={"without θ₂": wrong},
            ),
        ],
        remarks=[
            f"Error budget at t = {end:g}: sampling {float(right[-1]):.1e} at {sizes[-1]} samples, discretisation "
            f"{float(budget):.1e} at learning rate {end / steps:g} (taken out of the fit)."
        ],
    )


class _WithoutTheta2(Flow):
    """Theorem 3 without its second term."""

    flow: Mixture

    def __call__(self, t, y, args=None):
        norm = jnp.linalg.norm(y.v)
        slope = self.flow.strength * self.flow.theta1(self.flow.centres @ y.v + y.beta, norm) / norm
        return MixtureState(slope @ self.flow.centres, jnp.sum(slope))
