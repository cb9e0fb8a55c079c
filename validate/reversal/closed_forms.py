"""The one-layer transformer on sentences of three tokens: closed forms at all times."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from ...dynamics import GradientFlow, solve
from ...dynamics.gap import logit_gap
from ...dynamics.reversal import OneLayer
from ...nets import reversal as nets
from ...nets import train
from ...nets.joma import minibatch
from ...nets.scan_snap import YZTransformer, cross_entropy
from ..checks import absolute, agrees, at_least, at_most, evidence, relative, rounding, solver, vanishes
from ..claim import Evidence, Setting, claim
from .assumptions import SENTENCE

M, ETA_Y, ETA_Z = 120, 0.5, 0.7  # the vocabulary, and the two multipliers of the learning rate
RECORDS = 26
UPDATES = np.geomspace(0.1, 1e4, RECORDS)  # η_Y t/N
AXIS = ("η_Y t/N, updates a sentence", UPDATES)
SENTENCES = (SENTENCE, "zero start")


@jax.jit
def _probabilities(models: YZTransformer, sentences: Int[Array, "sentences 3"]) -> tuple[Array, Array]:
    """`p` of the last entity of each sentence, and `1 − p`, which the subtraction would lose as p → 1: each
    `(times, sentences)`."""
    batch = nets.contexts(sentences, M)
    p = jax.nn.softmax(jax.vmap(lambda model: jax.vmap(model)(batch.x, batch.query))(models), axis=-1)
    own = jnp.arange(M) == sentences[:, 2:]
    return jnp.where(own, p, 0).sum(axis=-1), jnp.where(own, 0, p).sum(axis=-1)


def _along_flow(data: nets.Sentences, second: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, 1 − p and Z of the real network along the gradient flow of its loss, trained sentences first. `second`: a
    token that stands in the context of every training sentence beside its first entity."""
    model, batch = YZTransformer(M, 2, M), nets.contexts(data.train, M)
    batch = batch if second is None else batch._replace(x=batch.x.at[:, second].add(1.0))
    flow = GradientFlow(jax.tree_util.Partial(cross_entropy, batch=batch), model.rates(eta_y=ETA_Y, eta_z=ETA_Z))
    models: Any = solve(flow, model, UPDATES * len(data.train) / ETA_Y).ys
    p, missing = map(np.asarray, _probabilities(models, jnp.concatenate([data.train, data.test])))
    return p, missing, np.asarray(models.z)


@jax.jit
def _closed_forms(number: int) -> tuple[Array, ...]:
    """Probabilities in a row of the decoder at the times of `_along_flow`, each `(times, 1)`: of its only target, of
    each other token, of each of two targets, and of each other token with M for M − 1 in the equation."""
    one, two = (OneLayer(M, number, ETA_Y, targets=k) for k in (1, 2))
    ts = jnp.asarray(UPDATES) * number / ETA_Y
    gap, wrong = one.exact(jnp.zeros(1), ts), logit_gap(M * ETA_Y * ts[:, None] / number, one.outputs)
    return one.seen(gap), one.unseen(gap), two.seen(two.exact(jnp.zeros(1), ts)), one.unseen(wrong)


def _descend(setting: Setting, data: nets.Sentences) -> tuple[np.ndarray, ...]:
    """Stochastic gradient descent with one sentence a step: p and Z, `(records, …)`; p by the visits to each row, and
    as if all had been visited equally often; the visits; the steps recorded."""
    every = setting.pick(smoke=500, laptop=2000, paper=20_000) // (RECORDS - 1)
    steps, number, batch = (RECORDS - 1) * every, len(data.train), nets.contexts(data.train, M)
    draw, row = minibatch(batch, 1), OneLayer(M, 1, ETA_Y)

    @jax.jit
    def run(model, key):
        models = train(model, cross_entropy, draw, optax.sgd(ETA_Y), steps, key=key, observe=lambda m: m, every=every)
        first = jax.vmap(lambda n: draw(jax.random.fold_in(key, n)).x[0])(jnp.arange(steps))  # what the loop drew
        return models.observed, first @ batch.x.T, row.seen(row.visits(steps))

    models, drawn, after = run(YZTransformer(M, 2, M), setting.key)
    recorded, after = every * np.arange(RECORDS), np.asarray(after)
    visits = np.concatenate([np.zeros((1, number)), np.cumsum(np.asarray(drawn), axis=0)])[recorded].astype(int)
    equally = np.round(recorded[:, None] / number).astype(int)
    p = np.asarray(_probabilities(models, data.train)[0])
    return p, np.asarray(models.z), after[visits], after[equally], visits, recorded


@claim(
    "In the one-layer transformer a trained sentence has p = e^x/(M−1+e^x) with e^x + (M−1)x = Mη_Y t/N + 1. Its "
    "reversal has p = 1/M at all times, and Z stays zero. Under SGD with one sentence a step x = M h*, by the visits.",
    source="Theorem 3, which says p → 1 and p ≤ 1/M in the limit; in closed form here",
    assumptions=(*SENTENCES, "gradient flow, t = learning rate × step; SGD"),
    tex=r"p(B|A) = \frac{e^x}{M-1+e^x},\quad e^x + (M-1)x = \frac{M\eta_Y t}{N} + 1,\quad p(A|B) = \frac{1}{M}",
    flow=OneLayer,
)
def one_layer(setting: Setting) -> Evidence:
    data = nets.reversal(9, 6, vocabulary=M)
    number = len(data.train)
    p, missing, z = _along_flow(data)
    seen, unseen, _, wrong = map(np.asarray, _closed_forms(number))
    trained, reverse, missing = p[:, :number], M * p[:, number:] - 1, missing[:, :number]
    law, printed = (M - 1) * unseen, {"M for M − 1": (M - 1) * wrong}
    known, beside = {"reversals that were trained": M * p[:, 6:12] - 1}, _along_flow(data, second=M - 1)[2]
    descended, still, by_visits, equally, visits, steps = _descend(setting, data)
    flow = {"within": solver(100), "measure": absolute}
    small = {"within": solver(500), "measure": relative}  # the absolute error of a logit, up to 13, after some 40 steps
    sgd = {"within": rounding(800), "measure": absolute}
    return evidence(
        agrees("p of trained sentences", AXIS, trained, seen, **flow, y="p", log="xy"),
        agrees("1 − p of trained sentences, relative", AXIS, missing, law, printed, **small, y="1 − p", log="xy"),
        vanishes("M p − 1 of their reversals", reverse, known, within=rounding(8), x=AXIS, y="M p − 1", log="x"),
        vanishes("Z", z, {"two tokens of context": beside}, within=0.0),
        agrees("SGD, p by the visits h*(N_i)", ("step", steps), descended, by_visits, {"visits n/N": equally}, **sgd),
        vanishes("SGD, Z", still, within=0.0),
        remarks=[f"After {steps[-1]} steps the rows had been visited {visits[-1].min()} to {visits[-1].max()} times."],
    )


@claim(
    "With A→B and B→C trained, p(C|A⇝) = 1/(M−1+e^x) falls below 1/M while two steps succeed. Where A⇝C is "
    "trained as well, B and C share the row of A and p → ½ each, never 1.",
    source="Theorem 4, which bounds the limits; in closed form here, with the limit ½ that the theorem does not state",
    assumptions=(*SENTENCES, "gradient flow, t = learning rate × step"),
    tex=r"p(C|A) = \frac{1}{M-1+e^x} < \frac{1}{M};\quad \mathrm{trained:}\ p(B|A) = p(C|A) \to \frac{1}{2}",
    flow=OneLayer,
)
def chain_of_thought(setting: Setting) -> Evidence:
    n, direct = 6, 3
    data = nets.chain_of_thought(n, direct, vocabulary=M)
    p, _, _ = _along_flow(data)
    seen, unseen, shared, _ = map(np.asarray, _closed_forms(len(data.train)))
    first, second, taught, untaught = np.split(p, [n, 2 * n, 2 * n + direct], axis=1)
    trained, test = np.hstack([first[:, :direct], taught]), np.hstack([first[:, direct:], second])
    two_steps, stays, alone = (first * second)[:, direct:], {"1/M": 1 / M}, {"as if the only target": seen}
    flow, small = {"within": solver(100), "measure": absolute}, {"within": solver(500), "measure": relative}
    return evidence(
        agrees("test A: p(B|A→) and p(C|B→)", None, test, seen, **flow),
        agrees("test A: p(C|A⇝), relative", AXIS, untaught, unseen, stays, **small, y="p(C|A⇝)", log="xy"),
        at_most("test A: largest M p(C|A⇝)", M * untaught, 1.0, {"A⇝C trained": M * taught}),
        at_least("test A: p(C|B→) p(B|A→), last", two_steps[-1], 0.99, {"p(C|A⇝)": untaught[-1]}),
        agrees("trained A: p(B|A→) and p(C|A⇝)", AXIS, trained, shared, alone, **flow, y="p", log="x"),
        agrees("trained A: p(C|A⇝), last", None, taught[-1], 0.5, {"1": 1.0}, within=1e-2, measure=absolute),
        remarks=["The one-layer model sees the first entity alone: it cannot tell A→ from A⇝."],
    )
