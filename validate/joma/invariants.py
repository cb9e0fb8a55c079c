"""Theorem 1: what the joint flow of hidden nodes and attention logits conserves, held against the real block."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...dynamics import solve
from ...dynamics.joma import predicted_logits
from ...nets import joma as nets
from ...nets import train
from ..claim import Evidence, Setting, claim, identity, limit, panel, statistic
from ..metrics import normalised_correlation, relative_error
from ._shared import (
    FLOW,
    ONE_QUERY,
    PAPER,
    STATIONARY,
    at_common_time,
    four_activations,
    halving_rates,
    loss_flow,
    random_task,
    sgd,
)


def _along_flow(setting: Setting, attention: str, ratios: np.ndarray):
    """Logits of the real block along its gradient flow, those predicted from its nodes, and those predicted with the
    learning rates left out: each of shape `(ratios, times, tokens)`."""
    data_key, model_key = jax.random.split(setting.key)
    data = random_task(data_key)
    model = nets.JomaBlock(
        12, 4, classes=5, attention=attention, activation=four_activations, init_scale=0.3, key=model_key
    )
    ts = jnp.linspace(0, 20, 21)

    def lane(ratio):
        models = solve(loss_flow(data, model, eta_z=ratio), model, ts).ys
        v, z = jax.vmap(lambda m: (m.v, m.z[0]))(models)
        predict = lambda r: jax.vmap(lambda v: predicted_logits(attention, v, v0=model.v, z0=model.z[0], rate_ratio=r))
        return z, predict(ratio)(v), predict(1.0)(v), v

    return ts, *jax.vmap(lane)(jnp.asarray(ratios)), model


@claim(
    "joma.linear_invariant",
    paper=PAPER,
    kind="identity",
    statement="With linear attention z² = (η_Z/η_W) Σ_k v_k² + c along gradient flow, for any activation, loss and data.",
    source="Theorem 1, linear attention; the factor η_Z/η_W is what the slides' “any learning rates” needs",
    assumptions=(FLOW, ONE_QUERY),
    control="the factor η_Z/η_W left out, and c = 0 as for a zero start",
)
def linear_invariant(setting: Setting) -> Evidence:
    ratios = np.array([1.0, 0.3, 2.0])
    ts, z, predicted, without_rates, v, model = _along_flow(setting, "linear", ratios)
    square, nodes = z**2, jnp.asarray(ratios)[:, None, None] * jnp.sum(v**2, axis=-1)
    constant = (square - nodes)[:, :1]
    still = jax.tree.map(jnp.zeros_like, (model.w, model.z))
    data = random_task(setting.key)
    at_zero = jax.grad(lambda p: nets.cross_entropy(_with(model, *p), data))(still)
    return Evidence(
        rows={
            "drift of z² − (η_Z/η_W) Σ v², four activations": identity(
                square - nodes - constant, setting.bound(1e-10, 2e-5)
            ),
            "gradient of z at a zero start: a fixed point of the attention": identity(at_zero[1], 0.0),
        },
        control={
            "drift without η_Z/η_W (0.3 and 2)": identity(
                (square - jnp.sum(v**2, axis=-1) - (square - jnp.sum(v**2, axis=-1))[:, :1])[1:], 1e-3
            ),
            "z² = (η_Z/η_W) Σ v², c = 0": identity(square - nodes, 1e-3),
        },
        panels=[
            panel(
                f"linear attention, η_Z/η_W = {ratio}",
                ("t = learning rate × step", ts),
                y="z",
                observed={"block": z[i, :, :6]},
                predicted={"Theorem 1": predicted[i, :, :6]},
                control={"without η_Z/η_W": without_rates[i, :, :6]} if ratio != 1 else None,
            )
            for i, ratio in enumerate(ratios)
        ],
        remarks=["A zero start is a fixed point for linear attention, so “zero init gives c = 0” has nothing to say."],
    )


def _with(model: nets.JomaBlock, w, z) -> nets.JomaBlock:
    return eqx.tree_at(lambda m: (m.w, m.z), model, (w, z))


@claim(
    "joma.exp_invariant",
    paper=PAPER,
    kind="identity",
    statement="With exponential attention z = ½ (η_Z/η_W) Σ_k v_k² + c along gradient flow, for any activation, loss and "
    "data.",
    source="Theorem 1, exponential attention",
    assumptions=(FLOW, ONE_QUERY),
    control="the factor ½ left out; the factor η_Z/η_W left out",
)
def exp_invariant(setting: Setting) -> Evidence:
    ratios = np.array([1.0, 0.3, 2.0])
    ts, z, predicted, without_rates, v, _ = _along_flow(setting, "exp", ratios)
    doubled = z[:, :1] + 2 * (predicted - z[:, :1])
    return Evidence(
        rows={"drift of z − ½ (η_Z/η_W) Σ v², four activations": identity(z - predicted, setting.bound(1e-10, 2e-5))},
        control={
            "drift without the ½": identity(z - doubled, 1e-3),
            "drift without η_Z/η_W (0.3 and 2)": identity((z - without_rates)[1:], 1e-3),
        },
        panels=[
            panel(
                f"exponential attention, η_Z/η_W = {ratio}",
                ("t = learning rate × step", ts),
                y="z",
                observed={"block": z[i, :, :6]},
                predicted={"Theorem 1": predicted[i, :, :6]},
                control={"without the ½": doubled[i, :, :6]},
            )
            for i, ratio in enumerate(ratios)
        ],
    )


@claim(
    "joma.gd_invariant",
    paper=PAPER,
    kind="limit",
    statement="Under gradient descent the invariants drift at first order in the learning rate, so that they hold in the "
    "limit of the flow.",
    source="Theorem 1 and the Euler method's order",
    assumptions=("full-batch gradient descent", ONE_QUERY),
    control="exponential law without the ½: its error does not fall with the learning rate",
)
def gd_invariant(setting: Setting) -> Evidence:
    data_key, model_key = jax.random.split(setting.key)
    data, rates = random_task(data_key), halving_rates(0.01, 5)
    rows, control, panels = {}, {}, []
    for attention in ("exp", "linear"):
        model = nets.JomaBlock(
            12, 3, classes=5, attention=attention, activation=jnp.tanh, init_scale=0.3, key=model_key
        )
        v, z = at_common_time(rates, 2000, model, nets.cross_entropy, data, lambda m: (m.v, m.z[0]))
        law = jax.vmap(lambda v: predicted_logits(attention, v, v0=model.v, z0=model.z[0]))(v)
        exact = (z, law) if attention == "exp" else (z**2, law**2)
        drift = jnp.max(jnp.abs(exact[0] - exact[1]), axis=1)
        rows[f"{attention}: order of the drift in the learning rate"] = limit(rates, drift, 1.0)
        rows[f"{attention}: drift at learning rate 0.01, t = 20"] = identity(drift[0], 2e-3)
        curves = {"drift of the invariant": drift}
        if attention == "exp":
            wrong = jnp.max(jnp.abs(z - model.z[0] - 2 * (law - model.z[0])), axis=1)
            control["exp without the ½: order in the learning rate"] = limit(rates, wrong, 1.0)
        panels.append(
            panel(
                f"{attention} attention, gradient descent to t = 20",
                ("learning rate", rates),
                y="largest error over tokens",
                observed=curves,
                predicted={"order 1": drift[0] * rates / rates[0]},
                control={"without the ½": wrong} if attention == "exp" else None,
                log="xy",
            )
        )
    return Evidence(rows, control, panels)


@claim(
    "joma.query_sum",
    paper=PAPER,
    kind="identity",
    statement="Several queries that share their hidden nodes obey Theorem 1 only summed: Σ_m z_m² = Σ_k v_k² + c (linear) and "
    "Σ_m z_m = ½ Σ_k v_k² + c (exponential).",
    source="Theorem 1's derivation; the slides state it for a single query only",
    assumptions=(FLOW, "three queries share the hidden nodes"),
    control="the law of a single query, applied to each query alone",
)
def query_sum(setting: Setting) -> Evidence:
    data_key, model_key = jax.random.split(setting.key)
    data, ts = random_task(data_key, queries=3), jnp.linspace(0, 20, 21)
    rows, control, panels = {}, {}, []
    for attention in ("exp", "linear"):
        model = nets.JomaBlock(
            12, 4, classes=5, queries=3, attention=attention, activation=four_activations, init_scale=0.3, key=model_key
        )
        models = solve(loss_flow(data, model), model, ts).ys
        v, z = jax.vmap(lambda m: (m.v, m.z))(models)
        left = z if attention == "exp" else z**2
        right = (0.5 if attention == "exp" else 1.0) * jnp.sum(v**2, axis=-1)
        right = right - right[0]
        summed, single = jnp.sum(left - left[0], axis=1), (left - left[0])[:, 0]
        rows[f"{attention}: drift of the sum over queries"] = identity(summed - right, setting.bound(1e-10, 2e-5))
        control[f"{attention}: drift of one query alone"] = identity(single - right, 1e-2)
        panels.append(
            panel(
                f"{attention} attention, three queries",
                ("t = learning rate × step", ts),
                y="change of z" if attention == "exp" else "change of z²",
                observed={"sum over queries": summed[:, :5]},
                predicted={"from the nodes": right[:, :5]},
                control={"one query alone": single[:, :5]},
            )
        )
    return Evidence(rows, control, panels)


@claim(
    "joma.softmax_sum",
    paper=PAPER,
    kind="identity",
    statement="With softmax attention Σ_l z_l is conserved exactly, under the flow and under gradient descent.",
    source="shift invariance of softmax; the corrected form of Theorem 1 respects it, the printed one does not",
    assumptions=(ONE_QUERY,),
    control="the sum of the logits that the printed form ½Σv_k² − ‖v_k‖² b̄ predicts",
)
def softmax_sum(setting: Setting) -> Evidence:
    data_key, model_key = jax.random.split(setting.key)
    data, ts = random_task(data_key), jnp.linspace(0, 20, 21)
    model = nets.JomaBlock(
        12, 4, classes=5, attention="softmax", activation=four_activations, init_scale=0.3, key=model_key
    )
    observe = lambda m: (m.v, m.z[0])
    v, z = jax.vmap(observe)(solve(loss_flow(data, model), model, ts).ys)
    gd_v, gd_z = train(model, nets.cross_entropy, data, sgd(0.01), 2000, observe=observe, every=100).observed
    b_bar = jnp.mean(jax.vmap(model.attend)(data.x), axis=0)
    printed = z[0] + 0.5 * jnp.sum(v**2, -1) - jnp.sum(v**2, (-2, -1))[:, None] * b_bar
    printed = printed - printed[0] + z[0]
    drift = lambda z: jnp.sum(z, axis=-1) - jnp.sum(z[0])
    return Evidence(
        rows={
            "drift of Σ_l z_l, flow": identity(drift(z), setting.bound(1e-12, 2e-5)),
            "drift of Σ_l z_l, gradient descent, 2000 steps": identity(drift(gd_z), setting.bound(1e-12, 2e-5)),
        },
        control={"drift of Σ_l z_l as printed": identity(drift(printed), 1e-2)},
        panels=[
            panel(
                "softmax attention",
                ("t = learning rate × step", ts),
                y="Σ_l z_l − its start",
                observed={"flow": drift(z), "gradient descent": drift(gd_z)},
                predicted={"conserved": jnp.zeros_like(ts)},
                control={"as printed": drift(printed)},
            ),
            panel(
                "the logits themselves",
                ("t = learning rate × step", ts),
                y="z_l",
                observed={"flow": z[:, :6], "gradient descent": gd_z[:, :6]},
            ),
        ],
    )


@claim(
    "joma.softmax_half",
    paper=PAPER,
    kind="limit",
    statement="z = ½ [Σ_k v_k² − (Σ_k ‖v_k‖²) b̄] is the leading order of softmax attention from a zero start: on one sample, "
    "where b̄ b̄ᵀ = E[b bᵀ], its relative error falls as t².",
    source="Theorem 1, softmax attention, with the ½ and the Σ_k in front of b̄ that the slides lack",
    assumptions=(FLOW, STATIONARY, "one sample, zero start", "b̄ is the initial attention"),
    control="the printed form, without the ½ in front of b̄",
)
def softmax_half(setting: Setting) -> Evidence:
    x_key, g_key, model_key = jax.random.split(setting.key, 3)
    x = jax.random.dirichlet(x_key, jnp.full(10, 2.0))[None]
    g = jax.random.normal(g_key, (1, 3))
    model = nets.JomaBlock(10, 3, attention="softmax", init_scale=0.0, key=model_key)
    ts = jnp.asarray(0.05 * 2.0 ** np.arange(setting.pick(smoke=5, laptop=6, paper=6)))
    flow = loss_flow((x, g), model, loss=nets.stationary_loss)
    tight = dict(rtol=setting.bound(1e-10, 1e-6), atol=setting.bound(1e-15, 1e-12))
    v, z = jax.vmap(lambda m: (m.v, m.z[0]))(solve(flow, model, ts, **tight).ys)
    predict = jax.vmap(lambda v: predicted_logits("softmax", v, v0=model.v, z0=model.z[0], b_bar=x[0]))
    printed = 0.5 * jnp.sum(v**2, -1) - jnp.sum(v**2, (-2, -1))[:, None] * x[0]
    error, wrong = relative_error(z, predict(v)), relative_error(z, printed)
    return Evidence(
        rows={"order in t of the relative error of z": limit(ts, error, 2.0)},
        control={"printed form: order in t": limit(ts, wrong, 2.0)},
        panels=[
            panel(
                "softmax attention from a zero start",
                ("t = learning rate × step", ts),
                y="relative error of the predicted z",
                observed={"with ½ (corrected)": error},
                predicted={"order 2": error[0] * (ts / ts[0]) ** 2},
                control={"without ½ (printed)": wrong},
                log="xy",
            )
        ],
    )


@claim(
    "joma.softmax_law",
    paper=PAPER,
    kind="statistic",
    statement="In the protocol of the paper's Fig. 2 and 3 the logits predicted by the softmax law correlate with the real "
    "ones over training: NC ≥ 0.95 (gaussian), ≥ 0.80 (random) from step 100 on.",
    source="Theorem 1, softmax attention; Fig. 2 and 3",
    assumptions=("softmax attention of temperature ½, identity activation, cross-entropy", "b̄ = E[x] stays constant"),
    control="the prediction without the b̄ term, at step 50",
)
def softmax_law(setting: Setting) -> Evidence:
    seeds = setting.pick(smoke=4, laptop=10, paper=20)
    steps = np.array([50, 100, 500, 1200, 2000])
    rows, control, panels, remarks = {}, {}, [], []
    for kind, floor in (("gaussian", 0.95), ("random", 0.80)):

        def lane(key, kind=kind):
            data_key, model_key = jax.random.split(key)
            data = nets.class_tokens(kind, key=data_key)
            eye = jnp.eye(30, 21)
            model = nets.JomaBlock(20, 20, temperature=0.5, embeddings=eye, key=model_key)
            run = train(
                model, nets.cross_entropy, data, optax.sgd(0.1), 2000, observe=lambda m: (m.v, m.z[0]), every=50
            )
            (v, z), b_bar = run.observed, jnp.mean(data.x, axis=0)
            law = lambda v: predicted_logits("softmax", v, v0=model.v, z0=model.z[0], temperature=0.5, b_bar=b_bar)
            nodes_only = lambda v: predicted_logits("exp", v, v0=model.v, z0=model.z[0], temperature=0.5) - model.z[0]
            predicted = jax.vmap(law)(v)
            return (
                normalised_correlation(predicted, z),
                normalised_correlation(jax.vmap(nodes_only)(v), z),
                relative_error(z, predicted),
            )

        with_b, without_b, error = jax.vmap(lane)(jax.random.split(setting.key, seeds))
        worst = jnp.min(with_b[:, 2:], axis=1)
        rows[f"{kind}: lowest NC from step 100 on, mean over {seeds} seeds"] = statistic(worst, at_least=floor)
        rows[f"{kind}: 1 − NC, worst seed and step from 100 on"] = identity(1 - jnp.min(worst), 1 - floor)
        rows[f"{kind}: NC without b̄ at step 50, mean over seeds"] = identity(jnp.mean(without_b[:, 1]), 0.4)
        control[f"{kind}: NC without b̄ at step 50"] = statistic(without_b[:, 1], at_least=floor)
        at = np.arange(0, 2001, 50)
        panels.append(
            panel(
                f"{kind}: normalised correlation, mean over {seeds} seeds",
                ("step", at[1:]),
                y="NC of predicted and real z",
                observed={"with b̄": jnp.mean(with_b, axis=0)[1:], "worst seed": jnp.min(with_b, axis=0)[1:]},
                control={"without b̄": jnp.mean(without_b, axis=0)[1:]},
            )
        )
        panels.append(
            panel(
                f"{kind}: what NC hides",
                ("step", at[1:]),
                y="‖predicted z − z‖ / ‖z‖",
                observed={"relative error, mean": jnp.mean(error, axis=0)[1:]},
                log="y",
            )
        )
        figures = ", ".join(f"{float(jnp.mean(error[:, s // 50])):.2g} (step {s})" for s in steps)
        remarks.append(f"{kind}: NC is blind to scale. The relative error of the same prediction is {figures}.")
    return Evidence(rows, control, panels, remarks)
