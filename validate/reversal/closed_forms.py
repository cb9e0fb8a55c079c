"""The one-layer transformer on sentences of three tokens: closed forms at all times."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from scipy import special

from ...dynamics import GradientFlow, solve
from ...dynamics.reversal import OneLayer
from ...dynamics.scan_snap import logit_gap
from ...nets import reversal as nets
from ...nets import train
from ...nets.joma import Contexts, minibatch
from ...nets.scan_snap import YZTransformer, cross_entropy
from ..checks import absolute, agrees, at_least, at_most, evidence, relative, rounding, solver, vanishes
from ..claim import Evidence, Setting, claim
from ..panels import panel

M, ETA_Y, ETA_Z = 120, 0.5, 0.7  # the vocabulary, and the two multipliers of the learning rate
RECORDS = 26
UPDATES = np.geomspace(0.1, 1e4, RECORDS)  # η_Y t/N
AXIS = ("η_Y t/N, updates a sentence", UPDATES)
SENTENCES = ("sentences of three tokens, the relation is the query", "zero start")


@jax.jit
def _logits(models: YZTransformer, batch: Contexts) -> Float[Array, "models samples outputs"]:
    return jax.vmap(lambda model: jax.vmap(model)(batch.x, batch.query))(models)


def _probabilities(models: YZTransformer, data: nets.Sentences) -> tuple[np.ndarray, np.ndarray]:
    """`p` of the last entity of each sentence, trained ones first, and `1 − p`, which the subtraction would lose as
    p → 1: each `(times, sentences)`."""
    sentences = jnp.concatenate([data.train, data.test])
    p = special.softmax(np.asarray(_logits(models, nets.contexts(sentences, M))), axis=-1)
    own = np.arange(M) == np.asarray(sentences[:, 2:])
    return np.where(own, p, 0).sum(axis=-1), np.where(own, 0, p).sum(axis=-1)


def _along_flow(data: nets.Sentences, second: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, 1 − p and Z of the real network along the gradient flow of its loss, through autodiff. `second`: a token that
    stands in the context of every training sentence beside its first entity."""
    model, batch = YZTransformer(M, 2, M), nets.contexts(data.train, M)
    batch = batch if second is None else batch._replace(x=batch.x.at[:, second].add(1.0))
    flow = GradientFlow(jax.tree_util.Partial(cross_entropy, batch=batch), model.rates(eta_y=ETA_Y, eta_z=ETA_Z))
    models: Any = solve(flow, model, UPDATES * len(data.train) / ETA_Y).ys
    return *_probabilities(models, data), np.asarray(models.z)


@jax.jit
def _closed_forms(number: int) -> tuple[Array, ...]:
    """Probabilities in a row of the decoder at the times of `_along_flow`, each `(times, 1)`: of its only target, of
    each other token, of each of two targets, and of each other token with M for M − 1 in the equation."""
    one, two = (OneLayer(M, number, ETA_Y, targets=k) for k in (1, 2))
    ts = jnp.asarray(UPDATES) * number / ETA_Y
    gap, wrong = one.exact(jnp.zeros(1), ts), logit_gap(M * ETA_Y * ts[:, None] / number, one.outputs)
    return one.seen(gap), one.unseen(gap), two.seen(two.exact(jnp.zeros(1), ts)), one.unseen(wrong)


class _Descent(NamedTuple):
    """Stochastic gradient descent with one sentence a step, at the `steps` recorded."""

    steps: np.ndarray
    p: np.ndarray  # (records, sentences)
    predicted: np.ndarray  # from the visits to each row
    mean_visits: np.ndarray  # the same as if each row had been visited equally often
    z: np.ndarray
    visits: np.ndarray


def _descend(setting: Setting, data: nets.Sentences) -> _Descent:
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
    p, equally = _probabilities(models, data)[0][:, :number], np.round(recorded / number).astype(int)
    return _Descent(recorded, p, after[visits], after[equally][:, None], np.asarray(models.z), visits)


def _checks() -> tuple[Any, Any]:
    """For p along the flow; and for small probabilities, relative: these have the absolute error of a logit, up to 13,
    after some 40 steps."""
    return partial(agrees, within=solver(100), measure=absolute), partial(agrees, within=solver(500), measure=relative)


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
    number, descent = len(data.train), _descend(setting, data)
    p, missing, z = _along_flow(data)
    seen, unseen, _, wrong = map(np.asarray, _closed_forms(number))
    trained, reverse, observed = p[:, :number], p[:, number:], missing[:, :number]
    law, printed = (M - 1) * unseen, {"M for M − 1": (M - 1) * wrong}
    both, lines = {"trained": trained.mean(1), "reversal": reverse.mean(1)}, np.hstack([seen, 0 * seen + 1 / M])
    by_visits = partial(agrees, "SGD, p by the visits h*(N_i)", within=rounding(800), measure=absolute)
    along, small = _checks()
    return evidence(
        along("p of trained sentences", None, trained, seen),
        small("1 − p of trained sentences, relative", AXIS, observed, law, printed, y="1 − p", log="xy"),
        vanishes(
            "M p − 1 of their reversals",
            M * reverse - 1,
            {"reversals that were trained": M * trained[:, 6:12] - 1},
            within=rounding(8),
        ),
        vanishes("Z", z, {"two tokens of context": _along_flow(data, second=M - 1)[2]}, within=0.0),
        by_visits(("step", descent.steps), descent.p, descent.predicted, {"visits n/N": descent.mean_visits}, y="p"),
        vanishes("SGD, Z", descent.z, within=0.0),
        panels=[panel("p of the last entity", AXIS, observed=both, predicted={"closed forms": lines}, log="xy")],
        remarks=[
            f"After {descent.steps[-1]} steps the rows had been visited {descent.visits[-1].min()} to "
            f"{descent.visits[-1].max()} times."
        ],
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
    along, small = _checks()
    return evidence(
        along("test A: p(B|A→) and p(C|B→)", None, test, seen),
        small("test A: p(C|A⇝), relative", AXIS, untaught, unseen, stays, y="p(C|A⇝)", log="xy"),
        at_most("test A: largest M p(C|A⇝)", M * untaught, 1.0, {"A⇝C trained": M * taught}),
        at_least("test A: p(C|B→) p(B|A→), last", two_steps[-1], 0.99, {"p(C|A⇝)": untaught[-1]}),
        along("trained A: p(B|A→) and p(C|A⇝)", AXIS, trained, shared, alone, y="p", log="x"),
        agrees("trained A: p(C|A⇝), last", None, taught[-1], 0.5, {"1": 1.0}, within=1e-2, measure=absolute),
        remarks=[
            "The one-layer model sees the first entity alone, whatever the relation asks for: it cannot tell A→ from "
            f"A⇝. p(C|A⇝) ends at {taught[-1].mean():.4f} where it was trained."
        ],
    )
