"""Theorem 1: what the joint flow of hidden nodes and attention logits conserves, held against the real block."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...dynamics.joma import Attention, invariants, predicted_logits
from ...nets import joma as nets
from ...nets import train
from ..claim import Evidence, Setting, claim
from ..descent import at_common_time, halving_rates
from ..metrics import normalised_correlation, relative_error
from ..panels import panel
from ..rows import identity, limit, statistic
from ._shared import (
    FLOW,
    ONE_QUERY,
    STATIONARY,
    TIME,
    along_flow,
    four_activations,
    random_task,
)

RATIOS = np.array([1.0, 0.3, 2.0])


def _block(setting: Setting, attention: str, queries: int = 1) -> nets.JomaBlock:
    return nets.JomaBlock(
        12,
        4,
        classes=5,
        queries=queries,
        attention=attention,
        activation=four_activations,
        init_scale=0.3,
        key=setting.key,
    )


def _along_flow(setting: Setting, attention: str):
    """The real block along its gradient flow at each of `RATIOS`: times, nodes `(ratios, times, tokens, nodes)`, logits
    `(ratios, times, tokens)`, and the model at the start."""
    data, model, ts = random_task(setting.rng), _block(setting, attention), np.linspace(0, 20, 21)
    v, z = map(np.stack, zip(*(along_flow(data, model, ts, eta_z=ratio) for ratio in RATIOS), strict=True))
    return ts, v, z[:, :, 0], model


def _drift(attention: Attention, v, z, ratios) -> np.ndarray:
    """How far the invariant moves from its start, shape `(ratios, times, tokens)`."""

    @jax.jit
    @jax.vmap
    def law(v, z, ratio):
        return jax.vmap(lambda v, z: invariants(attention, v, z[None], rate_ratio=ratio))(v, z)

    values = np.asarray(law(v, z, jnp.asarray(ratios)))
    return values - values[:, :1]


def _predictions(attention: Attention, v, model, ratios) -> np.ndarray:
    """The logits that Theorem 1 reads off the nodes, at the given ratios of learning rates."""

    @jax.jit
    @jax.vmap
    def law(v, ratio):
        return jax.vmap(lambda v: predicted_logits(attention, v, v0=model.v, z0=model.z[0], rate_ratio=ratio))(v)

    return np.asarray(law(v, jnp.asarray(ratios)))


def _law_panels(attention: str, y: str, ts, left, right, wrong: str, wrong_right):
    """The two sides of the law as they change along the flow."""
    return [
        panel(
            f"{attention} attention, η_Z/η_W = {ratio:g}",
            (TIME, ts),
            y=f"{y} − its start, six of the tokens",
            observed={"block": (left - left[:, :1])[i, :, :6]},
            predicted={"Theorem 1": (right - right[:, :1])[i, :, :6]},
            control={wrong: (wrong_right - wrong_right[:, :1])[i, :, :6]},
        )
        for i, ratio in enumerate(RATIOS)
    ]


# CONTROL: the factor η_Z/η_W left out; c = 0, as for a zero start
@claim(
    "With linear attention z² = (η_Z/η_W) Σ_k v_k² + c along gradient flow, for any activation and data.",
    source="Theorem 1, linear attention; the factor η_Z/η_W is what the slides' “any learning rates” needs",
    assumptions=(FLOW, ONE_QUERY),
)
def linear_invariant(setting: Setting) -> Evidence:
    ts, v, z, model = _along_flow(setting, "linear")
    at_zero = eqx.tree_at(lambda m: (m.w, m.z), model, replace_fn=jnp.zeros_like)
    still = eqx.filter_jit(eqx.filter_grad(nets.cross_entropy))(at_zero, random_task(setting.rng)).z
    ones, squares = np.ones(len(RATIOS)), np.sum(v**2, axis=-1)
    return Evidence(
        rows={
            "drift of z² − (η_Z/η_W) Σ v², four activations": identity(
                _drift("linear", v, z, RATIOS), setting.bound(1e-10, 2e-5)
            ),
            "gradient of z at a zero start": identity(still, 0.0),
        },
        control={
            "drift without η_Z/η_W (0.3 and 2)": identity(_drift("linear", v, z, ones)[1:], 1e-3),
            "z² − (η_Z/η_W) Σ v², c = 0": identity(z**2 - RATIOS[:, None, None] * squares, 1e-3),
        },
        panels=_law_panels("linear", "z²", ts, z**2, RATIOS[:, None, None] * squares, "η_Z/η_W left out", squares),
        remarks=["A zero start is a fixed point of linear attention, so that “zero init, hence c = 0” says nothing."],
    )


# CONTROL: the factor ½ left out; the factor η_Z/η_W left out
@claim(
    "With exponential attention z = ½ (η_Z/η_W) Σ_k v_k² + c along gradient flow, for any activation and data.",
    source="Theorem 1, exponential attention",
    assumptions=(FLOW, ONE_QUERY),
)
def exp_invariant(setting: Setting) -> Evidence:
    ts, v, z, model = _along_flow(setting, "exp")
    return Evidence(
        rows={
            "drift of z − ½ (η_Z/η_W) Σ v², four activations": identity(
                _drift("exp", v, z, RATIOS), setting.bound(1e-10, 2e-5)
            )
        },
        control={
            "drift without the ½": identity(_drift("exp", v, z, 2 * RATIOS), 1e-3),
            "drift without η_Z/η_W (0.3 and 2)": identity(_drift("exp", v, z, np.ones(len(RATIOS)))[1:], 1e-3),
        },
        panels=_law_panels(
            "exp",
            "z",
            ts,
            z,
            _predictions("exp", v, model, RATIOS),
            "½ left out",
            _predictions("exp", v, model, 2 * RATIOS),
        ),
    )


# CONTROL: Σ_k v_k² counted twice (for exponential attention: the ½ left out)
@claim(
    "Under gradient descent the invariants drift at first order in the learning rate, so that they hold in "
    "the limit of the flow.",
    source="Theorem 1 and the Euler method's order",
    assumptions=("full-batch gradient descent", ONE_QUERY),
)
def gd_invariant(setting: Setting) -> Evidence:
    data, rates, steps = random_task(setting.rng), halving_rates(0.01, 5), 2000

    def drifts(attention):
        model = nets.JomaBlock(
            12, 3, classes=5, attention=attention, activation=jnp.tanh, init_scale=0.3, key=setting.key
        )

        def observe(m):
            law = lambda m, factor: invariants(attention, m.v, m.z, rate_ratio=factor)
            moved = lambda factor: jnp.max(jnp.abs(law(m, factor) - law(model, factor)))
            return moved(1.0), moved(2.0)

        seen = jax.jit(lambda data: at_common_time(rates, steps, model, nets.cross_entropy, data, observe))(data)
        return tuple(map(np.asarray, seen))

    rows, control, panels = {}, {}, []
    for name, (drift, wrong) in {name: drifts(name) for name in ("exp", "linear")}.items():
        rows[f"{name}: order of the drift in the learning rate"] = limit(rates, drift, 1.0)
        rows[f"{name}: drift at learning rate 0.01, t = 20"] = identity(drift[0], 2e-3)
        control[f"{name}, Σ v² counted twice: order"] = limit(rates, wrong, 1.0)
        panels.append(
            panel(
                f"{name} attention, gradient descent to t = 20",
                ("learning rate", rates),
                y="largest drift over tokens",
                observed={"drift of the invariant": drift},
                predicted={"order 1": drift[0] * rates / rates[0]},
                control={"Σ v² counted twice": wrong},
                log="xy",
            )
        )
    return Evidence(rows, control, panels)


# CONTROL: the law of a single query, applied to each query alone
@claim(
    "Several queries that share their hidden nodes obey Theorem 1 only summed: Σ_m z_m² = Σ_k v_k² + c "
    "(linear) and Σ_m z_m = ½ Σ_k v_k² + c (exponential).",
    source="Theorem 1's derivation; the slides state it for a single query only",
    assumptions=(FLOW, "three queries share the hidden nodes"),
)
def query_sum(setting: Setting) -> Evidence:
    data, ts = random_task(setting.rng, queries=3), np.linspace(0, 20, 21)
    attentions = setting.pick(smoke=("exp",), laptop=("exp", "linear"), paper=("exp", "linear"))

    def drifts(attention):
        model = _block(setting, attention, queries=3)

        v, z = along_flow(data, model, ts)
        law = jax.jit(jax.vmap(lambda v, z: invariants(attention, v, z)))
        return tuple(path - path[0] for path in (np.asarray(law(v, z)), np.asarray(law(v, z[:, :1]))))

    rows, control, panels = {}, {}, []
    for name, (summed, alone) in {name: drifts(name) for name in attentions}.items():
        rows[f"{name}: drift of the sum over queries"] = identity(summed, setting.bound(1e-10, 2e-5))
        control[f"{name}: drift of one query alone"] = identity(alone, 1e-2)
        panels.append(
            panel(
                f"{name} attention, three queries",
                (TIME, ts),
                y="drift of the invariant, five of the tokens",
                observed={"sum over queries": summed[:, :5]},
                control={"one query alone": alone[:, :5]},
            )
        )
    return Evidence(rows, control, panels)


# CONTROL: the sum of the logits that the printed form ½Σv_k² − ‖v_k‖² b̄ predicts
@claim(
    "With softmax attention Σ_l z_l is conserved exactly, under the flow and under gradient descent.",
    source="shift invariance of softmax; the corrected form of Theorem 1 respects it, the printed one does not",
    assumptions=(ONE_QUERY,),
)
def softmax_sum(setting: Setting) -> Evidence:
    data, model, ts = random_task(setting.rng), _block(setting, "softmax"), np.linspace(0, 20, 21)
    v, z = along_flow(data, model, ts)
    z, b_bar = z[:, 0], np.mean(jax.jit(jax.vmap(model.attend))(data.x), axis=0)
    descent = train(model, nets.cross_entropy, data, optax.sgd(0.01), 2000, observe=lambda m: m.z[0], every=100)
    gd_z = np.asarray(descent.observed)
    printed = 0.5 * np.sum(v**2, -1) - np.sum(v**2, (-2, -1))[:, None] * b_bar
    drift = lambda z: np.sum(z - z[0], axis=-1)
    return Evidence(
        rows={
            "drift of Σ_l z_l, flow": identity(drift(z), setting.bound(1e-12, 2e-5)),
            "drift of Σ_l z_l, gradient descent, 2000 steps": identity(drift(gd_z), setting.bound(1e-12, 2e-5)),
        },
        control={"drift of Σ_l z_l as printed": identity(drift(printed), 1e-2)},
        panels=[
            panel(
                "softmax attention",
                (TIME, ts),
                y="Σ_l z_l − its start",
                observed={"flow": drift(z), "gradient descent": drift(gd_z)},
                predicted={"conserved": np.zeros_like(ts)},
                control={"as printed": drift(printed)},
            ),
            panel(
                "the logits themselves",
                (TIME, ts),
                y="z, six of the tokens",
                predicted={"flow": z[:, :6]},
                observed={"gradient descent": gd_z[:, :6]},
            ),
        ],
    )


# CONTROL: the printed form, without the ½ in front of b̄
@claim(
    "z = ½ [Σ_k v_k² − (Σ_k ‖v_k‖²) b̄] is the leading order of softmax attention from a zero start: on one "
    "sample, where E[b bᵀ] = b̄ b̄ᵀ, its relative error falls as t².",
    source="Theorem 1, softmax attention, with the ½ and the Σ_k in front of b̄ that the slides lack",
    assumptions=(FLOW, STATIONARY, "one sample, zero start", "b̄ is the initial attention"),
)
def softmax_half(setting: Setting) -> Evidence:
    rng, dtype = setting.rng, setting.dtype
    x, g = jnp.asarray(rng.dirichlet(np.full(10, 2.0), 1), dtype), jnp.asarray(rng.standard_normal((1, 3)), dtype)
    model = nets.JomaBlock(10, 3, attention="softmax", init_scale=0.0, key=setting.key)
    ts = 0.05 * 2.0 ** np.arange(setting.pick(smoke=5, laptop=6, paper=6))
    rtol, atol = setting.bound(1e-10, 1e-6), setting.bound(1e-15, 1e-12)
    v, z = along_flow((x, g), model, ts, loss=nets.stationary_loss, rtol=rtol, atol=atol)

    @jax.jit
    def errors(v, z):
        predict = jax.vmap(lambda v: predicted_logits("softmax", v, v0=model.v, z0=model.z[0], b_bar=x[0]))
        printed = 0.5 * jnp.sum(v**2, -1) - jnp.sum(v**2, (-2, -1))[:, None] * x[0]
        return relative_error(z, predict(v)), relative_error(z, printed)

    error, wrong = map(np.asarray, errors(v, z[:, 0]))
    return Evidence(
        rows={"order in t of the relative error of z": limit(ts, error, 2.0)},
        control={"printed form: order in t": limit(ts, wrong, 2.0)},
        panels=[
            panel(
                "softmax attention from a zero start",
                (TIME, ts),
                y="relative error of the predicted z",
                observed={"with ½ (corrected)": error},
                predicted={"order 2": error[0] * (ts / ts[0]) ** 2},
                control={"without ½ (printed)": wrong},
                log="xy",
            )
        ],
    )


def _figure_2(data: nets.Contexts, model: nets.JomaBlock):
    """The run of Fig. 2 and 3: correlation of predicted and real logits with and without b̄, the relative error, and
    four components of the first node."""
    run = train(model, nets.cross_entropy, data, optax.sgd(0.1), 2000, observe=lambda m: (m.v, m.z[0]), every=50)
    (v, z), b_bar = run.observed, jnp.mean(data.x, axis=0)
    law = lambda attention, b_bar: jax.vmap(
        lambda v: predicted_logits(attention, v, v0=model.v, z0=model.z[0], temperature=0.5, b_bar=b_bar)
    )(v)
    predicted, nodes_only = law("softmax", b_bar), law("exp", None) - model.z[0]
    correlations = normalised_correlation(predicted, z), normalised_correlation(nodes_only, z)
    return *correlations, relative_error(z, predicted), v[:, :4, 0]


# CONTROL: the prediction without the b̄ term, at step 50
@claim(
    "In the protocol of the paper's Fig. 2 and 3 the logits predicted by the softmax law correlate with the "
    "real ones over training: NC ≥ 0.95 (gaussian), ≥ 0.80 (random) from step 100 on, in the mean over seeds.",
    source="Theorem 1, softmax attention; Fig. 2 and 3",
    assumptions=("softmax attention of temperature ½, identity activation, cross-entropy", "b̄ = E[x] stays constant"),
)
def softmax_law(setting: Setting) -> Evidence:
    seeds = setting.pick(smoke=4, laptop=10, paper=20)
    rows, control, panels, remarks, step = {}, {}, [], [], np.arange(0, 2001, 50)

    def start(key):
        model_key, *data_keys = jax.random.split(key, 3)
        model = nets.JomaBlock(20, 20, temperature=0.5, embeddings=jnp.eye(30, 21), key=model_key)
        data = [nets.class_tokens(kind, key=k) for kind, k in zip(("gaussian", "random"), data_keys, strict=True)]
        return jax.tree.map(lambda *xs: jnp.stack(xs), *data), model

    data, models = jax.jit(jax.vmap(start))(jax.random.split(setting.key, seeds))
    runs = jax.jit(jax.vmap(jax.vmap(_figure_2), (1, None)))(data, models)  # kinds, seeds, records
    for kind, floor, with_b, without_b, error, node in zip(
        ("gaussian", "random"), (0.95, 0.80), *map(np.asarray, runs), strict=True
    ):
        worst = np.min(with_b[:, 2:], axis=1)
        rows[f"{kind}: lowest NC from step 100 on, mean over {seeds} seeds"] = statistic(worst, at_least=floor)
        rows[f"{kind}: NC without b̄ at step 50, mean over seeds"] = identity(np.mean(without_b[:, 1]), 0.4)
        control[f"{kind}: NC without b̄ at step 50"] = statistic(without_b[:, 1], at_least=floor)
        panels += [
            panel(
                f"{kind}: normalised correlation, {seeds} seeds",
                ("step", step[1:]),
                y="NC of predicted and real z",
                observed={"with b̄, mean": with_b.mean(0)[1:], "with b̄, worst seed": with_b.min(0)[1:]},
                control={"without b̄, mean": without_b.mean(0)[1:]},
            ),
            panel(
                f"{kind}: what NC hides",
                ("step", step[1:]),
                y="‖predicted z − z‖ / ‖z‖",
                observed={"relative error, mean": error.mean(0)[1:]},
                log="y",
            ),
            panel(
                f"{kind}: first node (Fig. 3), one seed",
                ("step", step[1:]),
                y="v, components 0 to 3",
                observed={"trained block": node[0, 1:]},
            ),
        ]
        figures = ", ".join(f"{error[:, s // 50].mean():.2g} (step {s})" for s in (50, 100, 500, 1000, 2000))
        remarks.append(
            f"{kind}: the lowest NC of any seed from step 100 on is {np.min(worst):.3f}. NC is blind to scale: the "
            f"relative error of the same prediction is {figures}."
        )
    return Evidence(rows, control, panels, remarks)
