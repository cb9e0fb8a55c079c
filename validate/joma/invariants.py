"""Theorem 1: what the joint flow of hidden nodes and attention logits conserves, held against the real block."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...dynamics.joma import Attention, Joint, invariants, predicted_logits
from ...nets import joma as nets
from ...nets import train
from ...nets.descent import at_common_time, halving_rates
from ..checks import absolute, agrees, at_most, converges, evidence, mean, rounding, scales, solver, vanishes
from ..claim import Evidence, Setting, claim
from ..metrics import normalised_correlation, relative_error
from ..panels import panel
from ._shared import FLOW, TIME, along_flow, four_activations, random_task
from .assumptions import (
    ALIKE,
    CONSTANT_B,
    EXPONENTIAL,
    LINEAR_ATTENTION,
    ONE_QUERY,
    ORTHONORMAL,
    SOFTMAX,
    STATIONARY,
    UNNORMALISED,
)

RATIOS = np.array([1.0, 0.3, 2.0])[:, None]
TIMES = np.linspace(0, 20, 21)


def _block(setting: Setting, attention: str, queries: int = 1) -> nets.JomaBlock:
    options = {"activation": four_activations, "init_scale": 0.3, "key": setting.key}
    return nets.JomaBlock(12, 4, classes=5, queries=queries, attention=attention, **options)


def _logits_and_squares(setting: Setting, attention: str) -> tuple[np.ndarray, np.ndarray]:
    """`z` and `Σ_k v_k²` of the real block along its gradient flow at each of `RATIOS`, `(times, ratios, tokens)`."""
    data, model = random_task(setting.rng), _block(setting, attention)
    paths = [along_flow(data, model, TIMES, eta_z=float(ratio)) for ratio in RATIOS.flat]
    return np.stack([z[:, 0] for _, z in paths], 1), np.stack([np.sum(v**2, axis=-1) for v, _ in paths], 1)


def _theorem_1(name: str, z: np.ndarray, law: np.ndarray, wrong: dict[str, np.ndarray]) -> Evidence:
    """The law at all ratios, with the picture of the last: what changed, as the starts differ by more."""
    moved = lambda path: (path - path[0])[:, -1]
    label, first = next(iter(wrong.items()))
    seen, law_moves, wrong_moves = {"block": moved(z)}, {"Theorem 1": moved(law)}, {label: moved(first)}
    title, y = f"12 tokens, η_Z/η_W = {RATIOS[-1, 0]:g}", f"{name} − its start"
    picture = panel(title, (TIME, TIMES), y=y, observed=seen, predicted=law_moves, control=wrong_moves)
    check = agrees(f"{name}, four activations", None, z, law, wrong, within=solver(1), measure=absolute)
    return evidence(check, panels=[picture])


@claim(
    "With linear attention z² = (η_Z/η_W) Σ_k v_k² + c along gradient flow, for any activation and data.",
    source="Theorem 1, linear attention; the factor η_Z/η_W is what the slides' “any learning rates” needs",
    assumptions=(FLOW, ONE_QUERY, ORTHONORMAL, LINEAR_ATTENTION),
    tex=r"z^2 = \frac{\eta_Z}{\eta_W} \sum_k v_k^2 + c",
    flow=Joint,
)
def linear_invariant(setting: Setting) -> Evidence:
    z, squares = _logits_and_squares(setting, "linear")
    grown = squares - squares[0]
    wrong = {"η_Z/η_W left out": z[0] ** 2 + grown, "c = 0": RATIOS * squares}
    data, model = random_task(setting.rng), _block(setting, "linear")
    slope_of_z = eqx.filter_jit(lambda m: eqx.filter_grad(nets.cross_entropy)(m, data).z)
    still = slope_of_z(eqx.tree_at(lambda m: (m.w, m.z), model, replace_fn=jnp.zeros_like))
    return evidence(
        _theorem_1("z²", z**2, z[0] ** 2 + RATIOS * grown, wrong),
        vanishes("gradient of z at a zero start", still, {"at a random start": slope_of_z(model)}, within=0.0),
        remarks=["A zero start is a fixed point of linear attention, so that “zero init, hence c = 0” says nothing."],
    )


@claim(
    "With exponential attention z = ½ (η_Z/η_W) Σ_k v_k² + c along gradient flow, for any activation and data.",
    source="Theorem 1, exponential attention",
    assumptions=(FLOW, ONE_QUERY, ORTHONORMAL, EXPONENTIAL),
    tex=r"z = \frac{\eta_Z}{2\eta_W} \sum_k v_k^2 + c",
    flow=Joint,
)
def exp_invariant(setting: Setting) -> Evidence:
    z, squares = _logits_and_squares(setting, "exp")
    grown = (squares - squares[0]) / 2
    wrong = {"½ left out": z[0] + 2 * RATIOS * grown, "η_Z/η_W left out": z[0] + grown}
    return _theorem_1("z", z, z[0] + RATIOS * grown, wrong)


@claim(
    "Under gradient descent the invariants drift at first order in the learning rate. They hold in the limit of the "
    "flow.",
    source="Theorem 1 and the Euler method's order",
    assumptions=("full-batch gradient descent", ONE_QUERY, ORTHONORMAL, UNNORMALISED),
    tex=r"z_n - \frac{1}{2} \sum_k v_{k,n}^2 - c = O(\eta)",
    flow=Joint,
)
def gd_invariant(setting: Setting) -> Evidence:
    data, rates, steps = random_task(setting.rng), halving_rates(0.01, 5), 2000

    def checks(attention: Attention):
        options = {"attention": attention, "activation": jnp.tanh, "init_scale": 0.3, "key": setting.key}
        model = nets.JomaBlock(12, 3, classes=5, **options)

        def observe(m):
            law = lambda m, factor: invariants(attention, m.v, m.z, rate_ratio=factor)
            return [jnp.max(jnp.abs(law(m, factor) - law(model, factor))) for factor in (1.0, 2.0)]

        seen = jax.jit(lambda data: at_common_time(rates, steps, model, nets.cross_entropy, data, observe))(data)
        drift, twice = map(np.asarray, seen)
        name, wrong = f"{attention}: largest drift at t = 20", {"Σ v² counted twice": twice}
        smallest = {label: drifts[0] for label, drifts in wrong.items()}
        return (
            scales(name + ", order in the learning rate", ("learning rate", rates), drift, wrong, order=1),
            at_most(name + ", learning rate 0.01", drift[0], 2e-3, smallest),
        )

    return evidence(*checks("exp"), *checks("linear"))


@claim(
    "Several queries that share their hidden nodes obey Theorem 1 only summed: Σ_m z_m² = Σ_k v_k² + c (linear), "
    "Σ_m z_m = ½ Σ_k v_k² + c (exponential).",
    source="Theorem 1's derivation; the slides state it for a single query only",
    assumptions=(FLOW, "three queries share the hidden nodes", ORTHONORMAL, UNNORMALISED),
    tex=r"\sum_m z_m^2 = \sum_k v_k^2 + c, \quad \sum_m z_m = \frac{1}{2} \sum_k v_k^2 + c",
    flow=Joint,
)
def query_sum(setting: Setting) -> Evidence:
    data = random_task(setting.rng, queries=3)

    def check(attention: Attention):
        v, z = along_flow(data, _block(setting, attention, queries=3), TIMES)
        law = jax.jit(jax.vmap(lambda v, z: invariants(attention, v, z)))
        summed, alone = (np.asarray(law(v, one)) for one in (z, z[:, :1]))
        name, wrong = f"{attention}: drift of the sum over queries", {"one query alone": alone - alone[0]}
        return vanishes(name, summed - summed[0], wrong, within=solver(1), x=(TIME, TIMES), y="drift, by token")

    both: tuple[Attention, ...] = ("exp", "linear")
    return evidence(*map(check, setting.pick(smoke=both[:1], laptop=both, paper=both)))


@claim(
    "With softmax attention Σ_l z_l is conserved exactly, under the flow and under gradient descent.",
    source="shift invariance of softmax; the corrected form of Theorem 1 respects it, the printed one does not",
    assumptions=(ONE_QUERY, SOFTMAX),
    tex=r"\sum_l z_l = \mathrm{const}",
    flow=Joint,
)
def softmax_sum(setting: Setting) -> Evidence:
    data, model = random_task(setting.rng), _block(setting, "softmax")
    b_bar = np.mean(jax.jit(jax.vmap(model.attend))(data.x), axis=0)
    observe = lambda m: (m.v, m.z)
    descent = train(model, nets.cross_entropy, data, optax.sgd(0.01), 2000, observe=observe, every=100).observed

    paths = {"flow": along_flow(data, model, TIMES), "gradient descent, 2000 steps": tuple(map(np.asarray, descent))}
    printed = lambda v: 0.5 * np.sum(v**2, -1) - np.sum(v**2, (-2, -1))[:, None] * b_bar
    drift = lambda z: np.sum(z - z[0], axis=-1)
    conserved = {label: drift(z[:, 0]) for label, (_, z) in paths.items()}
    wrong = {f"{label}, as printed": drift(printed(v)) for label, (v, _) in paths.items()}
    name, y = "drift of Σ_l z_l", "|Σ_l z_l − its start|"
    return evidence(vanishes(name, conserved, wrong, within=rounding(100), x=(TIME, TIMES), y=y))


@claim(
    "z = ½ [Σ_k v_k² − (Σ_k ‖v_k‖²) b̄] is the leading order of softmax attention from a zero start. On one sample, "
    "where E[b bᵀ] = b̄ b̄ᵀ, its relative error falls as t².",
    source="Theorem 1, softmax attention, with the ½ and the Σ_k in front of b̄ that the slides lack",
    assumptions=(
        FLOW,
        STATIONARY,
        "one sample, zero start",
        CONSTANT_B.said("b̄ is the initial attention"),
        ALIKE,
        SOFTMAX,
    ),
    tex=r"z = \frac{1}{2} \left[\sum_k v_k^2 - \sum_k \|v_k\|^2 \, \bar b\right] (1 + O(t^2))",
    flow=Joint,
)
def softmax_half(setting: Setting) -> Evidence:
    rng, dtype = setting.rng, setting.dtype
    x, g = jnp.asarray(rng.dirichlet(np.full(10, 2.0), 1), dtype), jnp.asarray(rng.standard_normal((1, 3)), dtype)
    model = nets.JomaBlock(10, 3, attention="softmax", init_scale=0.0, key=setting.key)
    ts = 0.05 * 2.0 ** np.arange(setting.pick(smoke=5, laptop=6, paper=6))
    # z ~ t² is as small as 1e-4 of what it becomes: its error must be, too.
    rtol, atol = setting.bound(1e-10, 1e-6), setting.bound(1e-15, 1e-12)
    v, z = along_flow((x, g), model, ts, loss=nets.stationary_loss, rtol=rtol, atol=atol)
    law = jax.vmap(lambda v: predicted_logits("softmax", v, v0=model.v, z0=model.z[0], b_bar=x[0]))
    printed = 0.5 * np.sum(v**2, -1) - np.sum(v**2, (-2, -1))[:, None] * np.asarray(x[0])
    return evidence(
        converges("z", ("time t", ts), z[:, 0], jax.jit(law)(v), {"without ½ before b̄, as printed": printed}, order=2)
    )


KINDS = ("gaussian", "random")
STEPS = np.arange(0, 2001, 50)


def _figure_2(data: nets.Contexts, model: nets.JomaBlock):
    """The run of Fig. 2 and 3: correlation of predicted and real logits with and without b̄, and the relative error."""
    run = train(model, nets.cross_entropy, data, optax.sgd(0.1), 2000, observe=lambda m: (m.v, m.z[0]), every=50)
    (v, z), b_bar = run.observed, jnp.mean(data.x, axis=0)
    law = lambda attention, b_bar: jax.vmap(
        lambda v: predicted_logits(attention, v, v0=model.v, z0=model.z[0], temperature=0.5, b_bar=b_bar)
    )(v)
    predicted, nodes_only = law("softmax", b_bar), law("exp", None) - model.z[0]
    correlations = normalised_correlation(predicted, z), normalised_correlation(nodes_only, z)
    return *correlations, relative_error(z, predicted)


def _figure_2_runs(setting: Setting, seeds: int):
    """What `_figure_2` measures, each `(kinds, seeds, records)`."""

    def start(key):
        model_key, *data_keys = jax.random.split(key, 3)
        model = nets.JomaBlock(20, 20, temperature=0.5, embeddings=jnp.eye(30, 21), key=model_key)
        data = [nets.class_tokens(kind, key=k) for kind, k in zip(KINDS, data_keys, strict=True)]
        return jax.tree.map(lambda *xs: jnp.stack(xs), *data), model

    data, models = jax.jit(jax.vmap(start))(jax.random.split(setting.key, seeds))
    return tuple(map(np.asarray, jax.jit(jax.vmap(jax.vmap(_figure_2), (1, None)))(data, models)))


@claim(
    "In the protocol of Fig. 2 and 3 the softmax law's logits correlate with the real ones from step 100 on. Their "
    "seed-averaged NC is at least 0.95 (gaussian) and 0.80 (random).",
    source="Theorem 1, softmax attention; Fig. 2 and 3",
    assumptions=(
        SOFTMAX.said("softmax attention of temperature ½, identity activation, cross-entropy"),
        CONSTANT_B.said("b̄ = E[x] stays constant"),
        ALIKE,
        ONE_QUERY,
        ORTHONORMAL,
    ),
    tex=r"\mathrm{NC}\left(\sum_k v_k^2 - \sum_k \|v_k\|^2 \, \bar b, \; z\right) \geq 0.95",
    flow=Joint,
)
def softmax_law(setting: Setting) -> Evidence:
    seeds, checks, remarks = setting.pick(smoke=4, laptop=10, paper=20), [], []
    with_b, without_b, error = _figure_2_runs(setting, seeds)
    lowest = lambda nc: np.min(nc[:, 2:], axis=1)
    for i, (kind, floor) in enumerate(zip(KINDS, (0.95, 0.80), strict=True)):
        name, without = f"{kind}: lowest NC from step 100 on, {seeds} seeds", {"without b̄": lowest(without_b[i])}
        early, with_it = f"{kind}: NC without b̄ at step 50, mean of seeds", {"with b̄": np.mean(with_b[i, :, 1])}
        checks += [mean(name, lowest(with_b[i]), without, at_least=floor)]
        checks += [vanishes(early, np.mean(without_b[i, :, 1]), with_it, within=0.4)]
        figures = ", ".join(f"{error[i, :, s // 50].mean():.2g} (step {s})" for s in (50, 100, 500, 1000, 2000))
        remarks.append(
            f"{kind}: the lowest NC of any seed from step 100 on is {np.min(with_b[i, :, 2:]):.3f}. NC is blind to "
            f"scale: the relative error of the same prediction is {figures}."
        )
    averaged = lambda values, word="": {kind + word: values[i].mean(0)[1:] for i, kind in enumerate(KINDS)}
    worst = {f"{kind}, worst seed": with_b[i].min(0)[1:] for i, kind in enumerate(KINDS)}
    title, axis = f"Normalised correlation, {seeds} seeds", ("step", STEPS[1:])
    panels = [
        panel(
            title,
            axis,
            y="NC of predicted and real z",
            observed=averaged(with_b) | worst,
            control=averaged(without_b, " without b̄"),
        ),
        panel("What NC hides", axis, y="‖predicted z − z‖ / ‖z‖", observed=averaged(error), log="y"),
    ]
    return evidence(*checks, panels=panels, remarks=remarks)
