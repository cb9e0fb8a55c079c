"""Theorem 2 and its companions: linear activation under a stationary back-propagated gradient."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy

from ...dynamics import Flow, solve
from ...dynamics.joma import (
    ClockState,
    Joint,
    JointState,
    LinearActivation,
    LinearAttention,
    LinearAttentionState,
    ManyNodes,
)
from ...nets import joma as nets
from ...nets.descent import halving_rates
from ..checks import absolute, agrees, at_most, evidence, norms, relative, solver, vanishes
from ..claim import Evidence, Setting, claim
from ..comparing import compare
from ..metrics import stable_rank
from ..panels import panel
from ._shared import FLOW, TIME, along_flow
from .assumptions import EXPONENTIAL, LINEAR, LINEAR_ATTENTION, ONE_NODE_EXP, ONE_QUERY, ORTHONORMAL, STATIONARY

DELTA = np.array([1.0, 0.8, 0.5, 0.1, -0.3, -0.9])
SQRT2 = math.sqrt(2)
PRINTED = "erf(v/2), as printed"
ONE_NODE = (FLOW, STATIONARY, ONE_QUERY, LINEAR, ORTHONORMAL, ONE_NODE_EXP)
MANY_NODES = (FLOW, STATIONARY, ONE_QUERY, LINEAR, ORTHONORMAL, EXPONENTIAL.said("exponential attention, zero start"))


def _stationary_task(setting: Setting, samples: int, tokens: int, nodes: int):
    """Random token frequencies and a random gradient that stays."""
    rng = setting.rng
    x, g = rng.random((samples, tokens)), rng.standard_normal((samples, nodes))
    return jnp.asarray(x, setting.dtype), jnp.asarray(g, setting.dtype)


def _as_printed(delta, t) -> np.ndarray:
    """The node from zero by Theorem 2 as printed, `erf(v/2)/Δ` equal for all tokens."""
    return 2 * scipy.special.erfinv(np.asarray(delta) * np.asarray(t) / math.sqrt(math.pi))


@claim(
    "v̇ = Δ∘exp(v²/2)/A keeps erf(v_l/√2)/Δ_l equal for all tokens, up to the blow-up.",
    source="Theorem 2, whose printed erf(v/2) is the law of exp(v²/4)",
    assumptions=(*ONE_NODE, "zero start"),
    tex=r"\mathrm{erf}(v_l/\sqrt{2}) / \Delta_l = \mathrm{erf}(v_m/\sqrt{2}) / \Delta_m",
    flow=LinearActivation,
)
def erf_law(setting: Setting) -> Evidence:
    flow, zero = LinearActivation(DELTA), jnp.zeros(6)
    early, closest = np.append(np.linspace(0, 0.9, 19)[1:], 0.99), setting.bound(1e-6, 1e-3)
    fractions = np.append(early, 1 - np.geomspace(5e-3, closest, 5))
    ts = jnp.asarray(fractions * float(flow.blow_up_time(zero)[0]), setting.dtype)
    v, until = np.asarray(solve(flow, zero, ts).ys), ts[: len(early)]
    exact = jax.jit(lambda ts: flow.exact(zero, ts))(until)
    spread = lambda law: np.ptp(law / DELTA, axis=1) / np.max(np.abs(law / DELTA), axis=1)
    x, y = ("1 − t/t*", 1 - fractions), "(max − min)/max"
    right, wrong = spread(scipy.special.erf(v / SQRT2)), {PRINTED: spread(scipy.special.erf(v / 2))}
    printed = {PRINTED: _as_printed(DELTA, until[:, None])}
    return evidence(
        vanishes("spread of erf(v/√2)/Δ over tokens", right, wrong, within=solver(10), x=x, y=y, log="xy"),
        agrees("v to 0.99 t*", ("t/t*", early), v[: len(early)], exact, printed, within=solver(100), measure=relative),
    )


def _to_blow_up(deltas, starts):
    """The ends of runs in the regularised clock, and what the theory says: blow-up times of the tokens, and winners."""

    @jax.jit
    @jax.vmap
    def run(delta, start):
        flow = LinearActivation(delta)
        # To t* at the pace of the largest start, then to 20 at the winner's own.
        first = jnp.min(flow.blow_up_time(start)) * jnp.exp(jnp.max(start**2) / 2)
        tau = first + 20 / jnp.abs(delta[flow.winner(start)])
        end = solve(flow.regularised(), ClockState(start, jnp.zeros(())), tau[None], throw=False).ys
        return jax.tree.map(lambda y: y[0], end), flow.blow_up_time(start), flow.winner(start)

    return jax.tree.map(np.asarray, run(deltas, starts))


@claim(
    "The first token to diverge has the least A√(π/2)(1 − sgn(Δ) erf(v(0)/√2))/|Δ|, and goes to sgn(Δ)·∞. From a zero "
    "start the others stop at √2 erf⁻¹(Δ_l/|Δ_max|).",
    source="Theorem 2; the winner for a nonzero start and its sign are not in the paper",
    assumptions=ONE_NODE,
    tex=r"t^* = \min_l A \sqrt{\pi/2} \, (1 - \mathrm{sgn}(\Delta_l) \, \mathrm{erf}(v_l(0)/\sqrt{2})) / |\Delta_l|",
    flow=LinearActivation,
)
def blow_up(setting: Setting) -> Evidence:
    draws, rng = setting.pick(smoke=32, laptop=128, paper=512), setting.rng
    deltas = np.concatenate([DELTA[None], rng.standard_normal((draws, 6))])
    starts = np.concatenate([np.zeros((1, 6)), rng.standard_normal((draws, 6))])
    end, times, winner = _to_blow_up(jnp.asarray(deltas, setting.dtype), jnp.asarray(starts, setting.dtype))
    others, at_end = "values of the others at t*, zero start", SQRT2 * scipy.special.erfinv(DELTA[1:])
    runs, observed, largest = np.arange(draws + 1), np.argmax(np.abs(end.v), axis=1), np.argmax(np.abs(deltas), axis=1)
    side, first = np.sign(end.v[runs, observed]), times.min(axis=1)
    stopped = solve(LinearActivation(DELTA), jnp.zeros(6), np.array([0.5, 2.0]), throw=False)
    order = np.argsort(first)
    axis, of_largest = ("predicted blow-up time", first[order]), {"that of argmax|Δ|": times[runs, largest][order]}
    time, options = f"blow-up time, {draws} random starts", {"within": solver(10), "measure": relative, "log": "xy"}
    plain, event = "time of the event in the plain clock", np.asarray(stopped.stats["t_stop"])
    winners, signs = np.mean(observed != winner), np.mean(side != np.sign(deltas[runs, observed]))
    return evidence(
        agrees(others, None, end.v[0, 1:], at_end, {PRINTED: SQRT2 * at_end}, within=solver(10), measure=absolute),
        agrees(time, axis, end.t[order], first[order], of_largest, **options),
        at_most("wrong winners, fraction", winners, 0.0, {"argmax|Δ|": np.mean(observed != largest)}),
        at_most("wrong signs, fraction", signs, 0.0, {"always +∞": np.mean(side < 0)}),
        agrees(plain, None, event, first[0], {PRINTED: SQRT2 * first[0]}, within=solver(100), measure=relative),
    )


class _SumOutside(Flow):
    """`V̇ = (factor/A) diag(exp(V∘V/2) 1) Δ`: the printed form, with the sum over nodes outside of the exponential."""

    delta: jax.Array
    normaliser: jax.Array
    factor: jax.Array

    def __call__(self, t, y, args=None):
        return self.factor * jnp.sum(jnp.exp(y**2 / 2), axis=1, keepdims=True) * self.delta / self.normaliser


@claim(
    "With several nodes the joint flow of nodes and logits is V̇ = (1/A) diag(exp(½ (V∘V) 1)) Δ, the sum over nodes "
    "inside the exponential. Row by row erf(‖u_l‖/√2) = √(2/π) ‖μ_l‖ t/A.",
    source="from Theorem 1; the slides and GaLore's Lemma B.6 print the sum outside",
    assumptions=MANY_NODES,
    tex=r"\dot V = \frac{1}{A} \mathrm{diag}(\exp(\frac{1}{2} (V \circ V) \mathbf{1})) \, \Delta",
    flow=ManyNodes,
)
def many_nodes(setting: Setting) -> Evidence:
    tokens, nodes, samples, scale = 16, 6, 24, 2.0
    x, g = _stationary_task(setting, samples, tokens, nodes)
    reduced, zero = ManyNodes(x.T @ g / samples, scale), jnp.zeros((tokens, nodes))
    fractions = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
    ts = jnp.asarray(fractions * float(np.min(reduced.blow_up_time(zero))), setting.dtype)
    start = JointState(zero, jnp.zeros((1, tokens)), jnp.zeros((1, nodes)))
    joint = solve(Joint(x, g, normaliser=scale), start, ts).ys.v
    exact = jax.jit(lambda ts: reduced.exact(zero, ts))(ts)

    def outside(factor):
        return solve(_SumOutside(reduced.delta, reduced.normaliser, jnp.asarray(factor)), zero, ts, throw=False).ys

    wrong = {"sum outside, as printed": outside(1.0), "sum outside / K": outside(1.0 / nodes)}
    # Over what was observed: the printed form has blown up, and its own size is infinite.
    options = {"within": solver(10), "measure": lambda seen, law: norms(law, seen)}
    lengths = lambda paths: {label: np.linalg.norm(v, axis=2) for label, v in paths.items()}
    title, axis, y = f"{nodes} nodes, {tokens} tokens", ("t/t*", fractions), "length of each row, ‖u_l‖"
    observed, predicted = lengths({"joint flow": joint}), lengths({"closed form": exact})
    picture = panel(title, axis, y=y, observed=observed, predicted=predicted, control=lengths(wrong))
    return evidence(
        agrees("V of the joint flow, t ≤ 0.99 t*", None, joint, exact, wrong, **options),
        agrees("V of the reduced flow", None, solve(reduced, zero, ts).ys, exact, wrong, **options),
        panels=[picture],
        remarks=["The printed form has blown up before half of the true blow-up time: infinite values are not drawn."],
    )


@claim(
    "Gradient descent on the real block follows the closed form of Theorem 2 at first order in the learning rate, at "
    "0.9 of the blow-up time.",
    source="Theorem 2 against the network itself",
    assumptions=(*ONE_NODE, "zero start"),
    tex=r"v_l(t) = \sqrt{2} \, \mathrm{erf}^{-1}(\sqrt{2/\pi} \, \Delta_l t / A) + O(\eta)",
    flow=LinearActivation,
)
def sgd_erf_law(setting: Setting) -> Evidence:
    steps = setting.pick(smoke=4096, laptop=10240, paper=102400)
    x, g = _stationary_task(setting, 16, 6, 1)
    flow, zero = LinearActivation((x.T @ g / 16)[:, 0]), jnp.zeros(6)
    end = 0.9 * float(np.min(flow.blow_up_time(zero)))
    model = nets.JomaBlock(6, 1, attention="exp", init_scale=0.0, key=setting.key)
    rates = halving_rates(end / steps, 5)
    within = 1e-3 * max(1.0, 10000 / steps)  # at first order in the learning rate
    found = compare(
        flow,
        zero,
        model,
        nets.stationary_loss,
        (x, g),
        learning_rates=rates,
        time=end,
        observe=lambda m: m.v[:, 0],
        within=within,
        wrong={PRINTED: lambda t, v, args: flow.delta * jnp.exp(v**2 / 4)},
    )
    v, law, printed = found.observed["y"].values[0, 0, -1], flow.exact(zero, end), _as_printed(flow.delta, end)
    whole = lambda seen, law: norms(seen[None], law[None])  # over all tokens
    axis, closed = ("token", np.arange(6)), f"v after {steps} steps beside the closed form"
    return evidence(
        found.evidence("v to 0.9 t*", order=1),
        agrees(closed, axis, v, law, {PRINTED: printed}, within=within, measure=whole),
    )


def _with_top(delta: np.ndarray, count: int) -> np.ndarray:
    """`delta` with its `count` longest rows made 2 % longer than the longest was."""
    lengths = np.linalg.norm(delta, axis=1)
    order, target = np.argsort(-lengths), lengths.copy()
    target[order[:count]] = 1.02 * lengths[order[0]]
    return delta * (target / lengths)[:, None]


@claim(
    "Where one row ‖μ_l‖ is largest, V̇ comes within 5 % of rank one by 1 − t/t* = 1e-4, ahead of V. The stable rank of "
    "V falls, too.",
    source="from the closed form for several nodes; GaLore's motivation for low-rank gradients",
    assumptions=(*MANY_NODES, "a unique largest row, by 2 %"),
    tex=r"1 - t/t^* = 10^{-4} \Rightarrow \mathrm{sr}(\dot V) \leq 1.05, \; \mathrm{sr}(\dot V) \leq \mathrm{sr}(V)",
    flow=ManyNodes,
)
def low_rank(setting: Setting) -> Evidence:
    draws = setting.pick(smoke=4, laptop=20, paper=100)
    decades = int(setting.bound(8, 5))  # as close to the blow-up as the precision resolves
    left = np.concatenate([[0.9, 0.5, 0.2, 0.1], 10.0 ** -np.arange(2, decades + 1)])

    @jax.jit
    @jax.vmap
    def ranks(delta):
        zero = jnp.zeros_like(delta)
        flow = ManyNodes(delta)
        v = flow.exact(zero, (1 - left) * jnp.min(flow.blow_up_time(zero)))
        return stable_rank(v), stable_rank(jax.vmap(lambda v: flow(0.0, v))(v))

    deltas = setting.rng.standard_normal((draws, 64, 32))
    measured = lambda count: ranks(jnp.asarray([_with_top(delta, count) for delta in deltas], setting.dtype))
    (of_v, of_rate), (_, tied) = (map(np.asarray, measured(count)) for count in (1, 2))
    at, mean = int(np.flatnonzero(np.isclose(left, 1e-4))[0]), lambda s: np.mean(s, axis=0)
    title, observed = f"64 tokens, 32 nodes, mean of {draws} draws", {"V": mean(of_v), "V̇": mean(of_rate)}
    control = {"V̇, two equal rows": mean(tied)}
    picture = panel(title, ("1 − t/t*", left), y="stable rank", observed=observed, control=control, log="xy")
    every = {"two equal rows, in every draw": np.min(tied[:, at])}
    return evidence(
        at_most("sr(V̇) at 1 − t/t* = 1e-4, in every draw", of_rate[:, at], 1.05, every),
        at_most("sr(V̇)/sr(V) there", of_rate[:, at] / of_v[:, at], 1.0),
        at_most("sr(V) at the end over that at the start", of_v[:, -1] / of_v[:, 0], 1.0),
        panels=[picture],
        remarks=[
            f"sr(V) falls only logarithmically: it is still {mean(of_v)[at]:.2f} at 1e-4 and {mean(of_v)[-1]:.2f} at "
            f"1e-{decades}. It need not fall at all times: on the way it rises by up to "
            f"{max(np.diff(of_v, axis=1).max(), 0):.2g} in these draws."
        ],
    )


@claim(
    "Under linear attention from V = 0, z = z₀: u_l = μ̂_l z₀ sinh(‖μ_l‖ t), z_l = z₀ cosh(‖μ_l‖ t), without a blow-up.",
    source="the linear-attention analogue of Theorem 2",
    assumptions=(FLOW, STATIONARY, ONE_QUERY, LINEAR, ORTHONORMAL, LINEAR_ATTENTION),
    tex=r"u_l = \hat\mu_l z_0 \sinh(\|\mu_l\| t), \quad z_l = z_0 \cosh(\|\mu_l\| t)",
    flow=LinearAttention,
)
def linear_attention(setting: Setting) -> Evidence:
    x, g = _stationary_task(setting, 24, 8, 3)
    theory = LinearAttention(x.T @ g / 24)
    model = nets.JomaBlock(8, 3, attention="linear", init_scale=0.0, key=setting.key)
    start = LinearAttentionState(jnp.zeros((8, 3)), jnp.full(8, 0.5))
    model = eqx.tree_at(lambda m: m.z, model, start.z[None])
    ts, tight = np.linspace(0, 20, 21)[1:], {"rtol": setting.bound(1e-12, 1e-6), "atol": setting.bound(1e-14, 1e-8)}
    v, z = along_flow((x, g), model, ts, loss=nets.stationary_loss, **tight)
    law = jax.jit(lambda ts: theory.exact(start, ts))(jnp.asarray(ts, setting.dtype))
    alone = 0.5 * np.sinh(np.asarray(theory.delta) * ts[:, None, None])
    own = "each node at its own rate"
    of_v, of_z = {own: alone}, {own: np.sqrt(0.25 + np.sum(alone**2, axis=-1))}
    y, by_sinh, by_cosh = "z, 3 nodes", {"z₀ sinh ‖μ‖t": law.v}, {"z₀ cosh ‖μ‖t": law.z}
    return evidence(
        agrees("V of the block along its flow", None, v, by_sinh, of_v, within=solver(1), measure=norms),
        agrees("z", (TIME, ts), z[:, 0], by_cosh, of_z, within=solver(1), measure=relative, y=y, log="y"),
    )
