"""Theorem 4 and the entropy of attention: nonlinear activation near a critical point, and the real block beside it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy

from ...dynamics import solve
from ...dynamics.joma import LinearActivation, LogGap, ManyNodes, NonlinearActivation
from ...nets import joma as nets
from ...nets import train
from ..checks import absolute, agrees, at_most, evidence, mean, quantile, solver, vanishes
from ..claim import Evidence, Setting, claim
from ..metrics import attention_entropy, largest_rise, rebound
from ..panels import panel
from ._shared import TIME

MODEL = (
    "the critical-point model v̇ = (μ − v)∘exp(v²/2), proportional to the flow near a critical point",
    "one node, one aligned cluster",
)
MU = np.linspace(1.0, 4.0, 7)
SPEED = np.exp(MU**2 / 2)


@claim(
    "v̇ = (μ − v)∘exp(v²/2) has the implicit solution e^{μ²/2} t = ln 1/δ + R(δ; μ), δ = 1 − v/μ, for all times.",
    source="Theorem 4; the remainder R makes its leading term exact",
    assumptions=MODEL,
    tex=r"e^{\mu^2/2} \, t = \ln(1/\delta) + R(\delta; \mu), \quad \delta = 1 - v/\mu",
    flow=NonlinearActivation,
)
def implicit_law(setting: Setting) -> Evidence:
    flow, zero = NonlinearActivation(MU), jnp.zeros(7)
    log = flow.log_form()
    ts = np.concatenate([np.linspace(0.02, 1, 50), [1.5, 2, 3, 5, 10, 20, 50, 100]])
    rtol, atol, t = setting.bound(1e-11, 1e-6), setting.bound(1e-13, 1e-8), ts[:, None]
    y = np.asarray(solve(log, zero, ts, rtol=rtol, atol=atol).ys)
    elapsed = np.asarray(jax.jit(jax.vmap(log.time_to, (None, 0)))(zero, y))
    exact = jax.jit(lambda ts: flow.exact(zero, ts))(jnp.asarray(ts, setting.dtype))
    v, leading = solve(flow, zero, ts).ys, {"without R": MU * -np.expm1(-SPEED * t)}
    name, error, wrong = "implicit time of the log-form solution", elapsed / t - 1, {"without R": y / SPEED / t - 1}
    axis = (TIME, ts)
    return evidence(
        vanishes(name, error, wrong, within=solver(100), x=axis, y="relative error, by μ", log="xy"),
        agrees("v by solve, all t", axis, v, exact, leading, within=solver(100), measure=absolute, log="x"),
    )


@claim(
    "ln(1/δ_j)/ln(1/δ_k) tends to e^{μ_j²/2}/e^{μ_k²/2}. The lag τ of ln 1/δ_j = e^{μ_j²/2} (t − τ(μ_j)), which the "
    "theorem leaves open, depends on μ_j.",
    source="Theorem 4: the ratio holds as t → ∞ only",
    assumptions=(*MODEL, "late times, zero start"),
    tex=r"\ln(1/\delta_j) / \ln(1/\delta_k) \to e^{\mu_j^2/2} / e^{\mu_k^2/2}",
    flow=NonlinearActivation,
)
def lag_law(setting: Setting) -> Evidence:
    ts = np.array([1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0])
    gap = jax.jit(lambda ts: LogGap(MU).exact(jnp.zeros(7), ts))(jnp.asarray(ts, setting.dtype))
    scaled, lag = np.asarray(gap) / SPEED, np.asarray(jax.jit(lambda mu: NonlinearActivation(mu).lag())(MU))
    pairs = lambda values: values[:, :, None] / values[:, None, :] - 1
    off, no_attention = pairs(scaled), {"the same rate for all, as without attention": pairs(scaled * SPEED)[-1]}
    wrong = {"at t = 1, too early": off[0], **no_attention}
    late, t = ts[:, None], 10.0  # ts[3]
    largest = lambda seen, law: (seen - law) * SPEED / (t * SPEED.max())  # the error of ln 1/δ over its largest
    ratios = {"Theorem 4": np.ones(7), "with the lag": (late - lag) / (late - lag[0])}
    observed, y = {"closed form, μ = 1 … 4": scaled / scaled[:, :1]}, "(y_j/y_1) / (e^{μ_j²/2}/e^{μ_1²/2})"
    picture = panel("ratio of ln 1/δ to the prediction", (TIME, ts), y=y, observed=observed, predicted=ratios, log="x")
    name, axis, options = "lag t − e^{−μ²/2} ln 1/δ at t = 10", ("μ", MU), {"within": solver(3), "measure": largest}
    of_others = {"no lag": 0.0, "the lag of μ = 1": lag[0]}
    return evidence(
        vanishes("ratio over its prediction − 1 at t = 100, all pairs μ ∈ [1, 4]", off[-1], wrong, within=0.01),
        agrees(name, axis, t - scaled[3], {"τ(μ)": lag}, of_others, **options),
        panels=[picture],
        remarks=[f"At t = 1 the ratio is off by up to {abs(off[0]).max():.2f}, at t = 10 by {abs(off[3]).max():.3f}."],
    )


@claim(
    "Without attention every token approaches at the same rate: 1 − v/μ = e^{−t}.",
    source="Theorem 4's comparison",
    assumptions=("v̇ = μ − v, zero start",),
    tex=r"1 - v/\mu = e^{-t}",
    flow=NonlinearActivation,
)
def no_attention(setting: Setting) -> Evidence:
    zero, ts = jnp.zeros(7), np.linspace(0, 10, 41)
    v = solve(NonlinearActivation(MU, attention=False), zero, ts).ys
    attended = jax.jit(lambda ts: NonlinearActivation(MU).exact(zero, ts))(jnp.asarray(ts, setting.dtype))
    law, wrong = {"e^{−t}": np.exp(-ts)[:, None]}, {"with attention": 1 - np.asarray(attended) / MU}
    return evidence(
        agrees("1 − v/μ", (TIME, ts), 1 - np.asarray(v) / MU, law, wrong, within=solver(1), measure=absolute)
    )


TIMES = np.concatenate([np.linspace(0, 2, 81), np.linspace(2, 10, 41)[1:]])
FRACTIONS = np.linspace(0, 0.99, 100)


@jax.jit
def _entropies(mus, deltas):
    """Entropy of attention along the closed forms, `(times, draws)`: nonlinear with attention and without it, and
    linear; and that of `softmax(μ²/2)`, and of `softmax(μ²)`."""
    zero = jnp.zeros(10)
    over = lambda flow, ts: attention_entropy(flow.exact(zero, ts) ** 2 / 2)
    on = lambda mu: over(NonlinearActivation(mu), jnp.asarray(TIMES))
    off = lambda mu: over(NonlinearActivation(mu, attention=False), jnp.asarray(TIMES))
    first = lambda delta: jnp.min(LinearActivation(delta).blow_up_time(zero))
    linear = lambda delta: over(LinearActivation(delta), jnp.asarray(FRACTIONS) * first(delta))
    paths = (jax.vmap(on, out_axes=1)(mus), jax.vmap(off, out_axes=1)(mus), jax.vmap(linear, out_axes=1)(deltas))
    return *paths, attention_entropy(mus**2 / 2), attention_entropy(mus**2)


@claim(
    "With nonlinear activation the entropy of attention falls and bounces back. Without attention, and with linear "
    "activation under a stationary gradient, it never rises.",
    source="Theorem 4's consequence and the paper's Fig. 4",
    assumptions=(*MODEL, "μ ~ U(1, 4)^10", "attention softmax(v²/2): exponential attention, uniform tokens, c = 0"),
    tex=r"H(\mathrm{softmax}(v^2/2)) \; \mathrm{falls, \; then \; rises \; to} \; H(\mathrm{softmax}(\mu^2/2))",
    flow=NonlinearActivation,
)
def entropy_bounce(setting: Setting) -> Evidence:
    draws, rng = setting.pick(smoke=40, laptop=300, paper=1000), setting.rng
    mus, deltas = rng.uniform(1, 4, (draws, 10)), rng.standard_normal((draws, 10))
    on, off, linear, final, doubled = _entropies(jnp.asarray(mus, setting.dtype), jnp.asarray(deltas, setting.dtype))
    without, wrong = {"without attention": rebound(off)}, {"½ left out": doubled}
    rises = {"without attention": largest_rise(off), "linear activation, stationary gradient": largest_rise(linear)}
    attended = {"nonlinear, with attention, in the median draw": jnp.median(largest_rise(on))}
    y, six, bounces = "entropy of attention (nats)", slice(6), "nonlinear activation, six draws of μ"
    predicted, control = {"with attention": on[:, six]}, {"without attention": off[:, six]}
    linearly, falls = {"closed form": linear[:, six]}, "linear activation, stationary gradient"
    return evidence(
        quantile(f"median rebound with attention, {draws} draws", rebound(on), 0.5, without, at_least=0.5),
        at_most("largest rise", rises, solver(1), attended),
        agrees("end against softmax(μ²/2)", None, on[-1], final, wrong, within=solver(10_000), measure=absolute),
        panels=[
            panel(bounces, (TIME, TIMES), y=y, predicted=predicted, control=control),
            panel(falls, ("t/t*", FRACTIONS), y=y, predicted=linearly),
        ],
    )


SAMPLES, CLASSES, TOKENS = 200, 10, 20


def _class_mixtures(setting: Setting, seeds: int) -> nets.Contexts:
    rng = setting.rng

    def task():
        probability = scipy.special.softmax(2.0 * rng.standard_normal((CLASSES, TOKENS)), axis=1)
        label = rng.integers(CLASSES, size=SAMPLES)
        return rng.multinomial(4, probability[label]) / 4, label

    x, label = map(np.stack, zip(*(task() for _ in range(seeds)), strict=True))
    return nets.Contexts(jnp.asarray(x, setting.dtype), jnp.asarray(label), jnp.zeros(label.shape, int))


def _trained_entropies(keys, data: nets.Contexts, steps: int) -> dict[str, np.ndarray]:
    """The entropy of attention as the block trains on each of the tasks, `(records, tasks)`."""

    def start(key, attention, activation=lambda h: h):
        options = {"activation": activation, "embeddings": "identity", "key": key}
        model = nets.JomaBlock(TOKENS, 20, classes=CLASSES, attention=attention, **options)
        return eqx.tree_at(lambda m: m.z, model, replace_fn=jnp.zeros_like)

    def run(model, loss, data, rate):
        observe = lambda m: attention_entropy(m.z[0])
        return train(model, loss, data, optax.sgd(rate), steps, observe=observe, every=steps // 100).observed

    def cross_entropy(slope):
        activation = lambda h: jnp.where(h > 0, h, slope * h)
        one = lambda key, data: run(start(key, "softmax", activation), nets.cross_entropy, data, 1.0)
        return jax.vmap(one, out_axes=1)(keys, data)

    def stationary(attention, times):
        def one(key, data):
            """Keeps the gradient at a uniform output, `D (1[y=k] − 1/K)`, for so many times 0.95 of the blow-up time
            that Theorem 2 gives for exponential attention."""
            model = start(key, attention)
            assert model.decoder is not None
            g = (jax.nn.one_hot(data.label, CLASSES) - 1 / CLASSES) @ model.decoder.T
            flow = ManyNodes(data.x.T @ g / SAMPLES)
            end = 0.95 * times * jnp.min(flow.blow_up_time(jnp.zeros_like(flow.delta)))
            return run(model, nets.stationary_loss, (data.x, g), end / steps)

        return np.asarray(jax.jit(jax.vmap(one, out_axes=1))(keys, data))

    linear, relu = np.asarray(jax.jit(jax.vmap(cross_entropy))(jnp.asarray([1.0, 0.0])))
    return {
        "linear activation, cross-entropy": linear,
        "ReLU, cross-entropy": relu,
        "linear, stationary gradient, softmax attention": stationary("softmax", 20.0),
        "linear, stationary gradient, exp attention": stationary("exp", 1.0),
    }


@claim(
    "Under cross-entropy the attention entropy of the real block bounces back with linear activation, too: the bounce "
    "is no signature of nonlinearity. (Bounce: after a fall it rises by 0.01 nats or more.)",
    source="measured here; the paper ascribes the bounce to nonlinear activation",
    assumptions=("softmax attention, gradient descent on class-token mixtures, fixed random decoder",),
    tex=r"\max_{s<t} \, [H(\mathrm{softmax}(z(t))) - H(\mathrm{softmax}(z(s)))] \geq 0.01",
)
def entropy_bounce_ce(setting: Setting) -> Evidence:
    seeds, floor = setting.pick(smoke=12, laptop=24, paper=100), 0.01
    steps = setting.pick(smoke=1000, laptop=2000, paper=20000)
    curves = _trained_entropies(jax.random.split(setting.key, seeds), _class_mixtures(setting, seeds), steps)
    linear, relu, soft, still = (np.asarray(largest_rise(jnp.asarray(curve))) for curve in curves.values())
    wrong = {"linear activation, stationary gradient": still}
    *trained, (label, last) = curves.items()
    axis, y = ("fraction of the run", np.linspace(0, 1, len(last))), "entropy of softmax(z) (nats)"
    title, control = f"{min(12, seeds)} of {seeds} tasks", {label: last[:, :12]}
    pictures = [
        panel(title, axis, y=y, observed={name: curve[:, :12]}, control=control if i == 0 else None)
        for i, (name, curve) in enumerate(trained)
    ]
    return evidence(
        mean(f"rise, linear activation, mean of {seeds} tasks", linear, wrong, at_least=floor),
        mean("rise, ReLU", relu, wrong, at_least=floor),
        panels=pictures,
        remarks=[
            f"With linear activation {np.mean(linear > floor):.0%} of the tasks bounce by more than {floor} nats, by "
            f"up to {linear.max():.2f}. JoMA's slides tell the bounce as a consequence of nonlinear activation; "
            "what it needs is a gradient that is not stationary.",
            "That a stationary gradient forbids it is a theorem for exponential attention only. With softmax attention "
            f"{np.mean(soft > floor):.0%} of the tasks rise by more than {floor} nats within 19 such blow-up times.",
        ],
    )
