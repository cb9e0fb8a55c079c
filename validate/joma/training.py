"""Theorem 1 in training as people do it: small learning rates, real text, and the optimisers that break it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...dynamics import solve
from ...dynamics.joma import invariants, predicted_logits
from ...nets import joma as nets
from ...nets import text, train
from ..claim import Evidence, Setting, claim, limit, panel, statistic
from ._shared import ONE_QUERY, PAPER, at_common_time, four_activations, halving_rates, loss_flow, random_task, sgd


@claim(
    "joma.gd_to_flow",
    paper=PAPER,
    kind="limit",
    statement="Gradient descent on the block approaches its gradient flow at first order in the learning rate, at η_Z ≠ η_Y.",
    source="the flow in which every theorem of the paper is stated",
    assumptions=("fixed data, full batch", "exponential attention, four activations", "t = learning rate × step"),
    control="the flow with η_Z = η_Y",
)
def gd_to_flow(setting: Setting) -> Evidence:
    steps, end, eta_z = setting.pick(smoke=512, laptop=1024, paper=8192), 8.0, 0.3
    data_key, model_key = jax.random.split(setting.key)
    data = random_task(data_key)
    model = nets.JomaBlock(
        12, 4, classes=5, attention="exp", activation=four_activations, init_scale=0.3, key=model_key
    )
    rates = halving_rates(end / steps, 5)
    trained = at_common_time(
        rates, steps, model, nets.cross_entropy, data, lambda m: (m.w, m.z), optimiser=lambda rate: sgd(rate, eta_z)
    )
    ts = jnp.asarray([end / 2, end])
    ends = jax.jit(jax.vmap(lambda eta: solve(loss_flow(data, model, eta_z=eta), model, ts).ys))(
        jnp.asarray([eta_z, 1.0])
    )
    moved = lambda leaf, start: jnp.linalg.norm(jnp.ravel(leaf - start))
    error = lambda i: sum(
        jnp.linalg.norm(leaf - law[i, -1], axis=(1, 2)) / moved(law[i, -1], start)
        for leaf, law, start in zip(trained, (ends.w, ends.z), (model.w, model.z), strict=True)
    )
    return Evidence(
        rows={"order in the learning rate of the error of W and z": limit(rates, error(0), 1.0)},
        control={"flow with η_Z = η_Y: order": limit(rates, error(1), 1.0)},
        panels=[
            panel(
                f"gradient descent to t = {end:g}, η_Z/η_Y = {eta_z}",
                ("learning rate", rates),
                y="error over distance moved, W plus z",
                observed={"against the flow": error(0)},
                predicted={"order 1": error(0)[0] * rates / rates[0]},
                control={"against the flow with η_Z = η_Y": error(1)},
                log="xy",
            )
        ],
    )


OPTIMISERS = {
    "gradient descent": optax.sgd,
    "heavy ball 0.9": lambda rate: optax.sgd(0.1 * rate, momentum=0.9),  # (1 − β) times the rate: the same flow time
    "L2 0.01": lambda rate: optax.chain(optax.add_decayed_weights(0.01, mask=lambda m: m.trainable()), optax.sgd(rate)),
    "Adam": optax.adam,
}


@claim(
    "joma.adam_breaks",
    paper=PAPER,
    kind="statistic",
    statement="Adam breaks the exponential invariant: at learning rate 1e-3, t = 20, it is off by more than one nat of logit.",
    source="Theorem 1 is a law of gradient flow, not of other optimisers",
    assumptions=("exponential attention, full batch", ONE_QUERY),
    control="gradient descent at the same learning rate and number of steps",
)
def adam_breaks(setting: Setting) -> Evidence:
    seeds, steps = setting.pick(smoke=4, laptop=10, paper=20), 20_000
    every = steps // 50

    def lane(key, optimiser):
        data_key, model_key = jax.random.split(key)
        eye = jnp.eye(13)
        model = nets.JomaBlock(
            12, 3, classes=5, attention="exp", activation=jnp.tanh, init_scale=0.3, embeddings=eye, key=model_key
        )
        drift = lambda m: jnp.max(jnp.abs(m.z[0] - predicted_logits("exp", m.v, v0=model.v, z0=model.z[0])))
        data = random_task(data_key)
        return train(model, nets.cross_entropy, data, optimiser, steps, observe=drift, every=every).observed

    keys = jax.random.split(setting.key, seeds)
    drifts = {
        name: jax.jit(jax.vmap(lambda key, make=make: lane(key, make(1e-3))))(keys) for name, make in OPTIMISERS.items()
    }
    ends = {name: drift[:, -1] for name, drift in drifts.items()}
    means = ", ".join(f"{name} {float(jnp.mean(end)):.1e}" for name, end in ends.items())
    return Evidence(
        rows={f"Adam: drift of the invariant, {seeds} seeds": statistic(ends["Adam"], at_least=1.0)},
        control={"gradient descent: drift": statistic(ends["gradient descent"], at_least=1.0)},
        panels=[
            panel(
                f"mean over {seeds} seeds",
                ("t = learning rate × step", 1e-3 * every * np.arange(1, 51)),
                y="largest |z − ½Σv² − c|",
                observed={name: jnp.mean(drift, axis=0)[1:] for name, drift in drifts.items()},
                log="y",
            )
        ],
        remarks=[f"Drift at t = 20, learning rate 1e-3: {means}."],
    )


@claim(
    "joma.text_invariant",
    paper=PAPER,
    kind="limit",
    statement="On real text, for each of the most frequent query words, the exponential and the linear invariant drift at first order "
    "in the learning rate under minibatch SGD; heavy ball keeps that order, weight decay and Adam do not.",
    source="Theorem 1, on text",
    assumptions=("minibatches of one query", "windows of 16 words", "exponential attention for the other optimisers"),
    control="the exponential law without the ½",
)
def text_invariant(setting: Setting) -> Evidence:
    size = setting.pick(smoke=64, laptop=200, paper=1000)
    words, nodes = setting.pick(smoke=2, laptop=3, paper=5), setting.pick(smoke=4, laptop=8, paper=16)
    steps, end, batch = setting.pick(smoke=2048, laptop=4096, paper=16384), 8.0, 32
    rates = halving_rates(end / steps, 5)
    tokens = text.tokenise(setting.corpus, size)
    queries = text.frequent_queries(tokens, words)
    each = [text.contexts(tokens, (query,)) for query in queries]
    windows = min(4096, *(len(data.label) for data in each))
    data = jax.tree.map(lambda *xs: jnp.stack([x[:windows] for x in xs]), *each)
    key, model_key = jax.random.split(setting.key)

    def drift(data, attention, make):
        model = nets.JomaBlock(
            size,
            nodes,
            classes=size,
            attention=attention,
            activation=jnp.tanh,
            init_scale=0.3,
            embeddings=jnp.eye(size + 1),
            key=model_key,
        )
        sampler, observe = nets.minibatch(data, batch), lambda m: (m.v, m.z[0])
        v, z = at_common_time(rates, steps, model, nets.cross_entropy, sampler, observe, optimiser=make, key=key)
        law = jax.vmap(lambda v, z: invariants(attention, v, z[None]))
        missing_half = jax.vmap(lambda v, z: z - jnp.sum(v**2, axis=1))
        drift_of = lambda law: jnp.max(jnp.abs(law(v, z) - law(model.v[None], model.z)), axis=1)
        return drift_of(law), drift_of(missing_half)

    by_query = lambda attention: jax.jit(jax.vmap(lambda data: drift(data, attention, optax.sgd)))(data)
    (exp, printed), (linear, _) = by_query("exp"), by_query("linear")
    first = jax.tree.map(lambda x: x[0], data)
    others = {
        name: jax.jit(lambda data, make=make: drift(data, "exp", make)[0])(first)
        for name, make in OPTIMISERS.items()
        if name != "gradient descent"
    }
    rows = {
        f"“{query}”, {attention}: order of the drift in the learning rate": limit(rates, drifts[i], 1.0)
        for attention, drifts in (("exp", exp), ("linear", linear))
        for i, query in enumerate(queries)
    }
    rows["heavy ball 0.9: order"] = limit(rates, others["heavy ball 0.9"], 1.0)
    rows["L2 0.01: order"] = limit(rates, others["L2 0.01"], 0.0)
    return Evidence(
        rows,
        control={f"“{q}”, exp without the ½: order": limit(rates, printed[i], 1.0) for i, q in enumerate(queries)},
        panels=[
            panel(
                f"minibatch SGD on {setting.corpus_name} to t = {end:g}",
                ("learning rate", rates),
                y="largest drift over tokens",
                observed={f"“{q}”, exp": exp[i] for i, q in enumerate(queries)}
                | {f"“{q}”, linear": linear[i] for i, q in enumerate(queries)},
                control={"exp without the ½": printed[0]},
                log="xy",
            ),
            panel(
                f"other optimisers, query “{queries[0]}”",
                ("learning rate", rates),
                y="largest drift over tokens",
                observed={"SGD": exp[0], **others},
                log="xy",
            ),
        ],
        remarks=[
            f"{windows} windows a query. With Adam the drift at the smallest rate is {float(others['Adam'][0]):.2g} and does "
            f"not fall (SGD: {float(exp[0, 0]):.1g}): its limit is another flow, which conserves something else."
        ],
    )
