"""The one-layer transformer on sentences of three tokens: closed forms at all times."""

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
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ..rows import identity
from ._shared import TIME

VISITED = "η_Y t/N, updates a sentence"
VOCABULARY, ETA_Y, ETA_Z = 120, 0.5, 0.7  # M, and the two multipliers of the learning rate
RECORDS = 26


class _Along(NamedTuple):
    """The one-layer network at the times `ts`, `updates = η_Y ts/N`."""

    updates: np.ndarray
    ts: np.ndarray
    p: np.ndarray  # of the last entity of each sentence, trained ones first: `(times, sentences)`
    missing: np.ndarray  # 1 − p, as the sum of all other probabilities
    z: np.ndarray


@jax.jit
def _logits(models: YZTransformer, batch: Contexts) -> Float[Array, "models samples outputs"]:
    return jax.vmap(lambda model: jax.vmap(model)(batch.x, batch.query))(models)


def _probabilities(models: YZTransformer, data: nets.Sentences) -> tuple[np.ndarray, np.ndarray]:
    """`p` of the last entity of each sentence, and `1 − p`, which the subtraction would lose as p → 1."""
    sentences = jnp.concatenate([data.train, data.test])
    p = special.softmax(np.asarray(_logits(models, nets.contexts(sentences, data.vocabulary))), axis=-1)
    own = np.arange(data.vocabulary) == np.asarray(sentences[:, 2:])
    return np.where(own, p, 0).sum(axis=-1), np.where(own, 0, p).sum(axis=-1)


def _along_flow(data: nets.Sentences, second: int | None = None) -> _Along:
    """Trains the real network by the gradient flow of its loss, through autodiff. `second`: a token that stands in the
    context of every training sentence beside its first entity."""
    updates = np.geomspace(0.1, 1e4, RECORDS)
    ts = updates * len(data.train) / ETA_Y
    model = YZTransformer(data.vocabulary, 2, data.vocabulary)
    batch = nets.contexts(data.train, data.vocabulary)
    batch = batch if second is None else batch._replace(x=batch.x.at[:, second].add(1.0))
    flow = GradientFlow(jax.tree_util.Partial(cross_entropy, batch=batch), model.rates(eta_y=ETA_Y, eta_z=ETA_Z))
    models: Any = solve(flow, model, ts).ys
    return _Along(updates, ts, *_probabilities(models, data), np.asarray(models.z))


class _Theory(NamedTuple):
    """Probabilities in a row of the decoder at the times of `_Along`, each `(times, 1)`."""

    seen: np.ndarray  # of a row's only target
    unseen: np.ndarray  # of each other token
    shared: np.ndarray  # of each of two targets
    wrong: np.ndarray  # `unseen` with M for M − 1 in the equation


@jax.jit
def _closed_forms(one: OneLayer, two: OneLayer, ts: Float[Array, " times"]) -> tuple[Array, ...]:
    gap, m = one.exact(ts), one.outputs
    wrong = logit_gap(m * one.eta * ts / one.sentences, m)
    return one.seen(gap), one.unseen(gap), two.seen(two.exact(ts)), one.unseen(wrong)


def _theory(data: nets.Sentences, ts: np.ndarray) -> _Theory:
    one, two = (OneLayer(data.vocabulary, len(data.train), ETA_Y, targets=k) for k in (1, 2))
    return _Theory(*(np.asarray(x)[:, None] for x in _closed_forms(one, two, jnp.asarray(ts))))


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
    steps, number = (RECORDS - 1) * every, len(data.train)
    batch = nets.contexts(data.train, data.vocabulary)
    draw, row = minibatch(batch, 1), OneLayer(data.vocabulary, 1, ETA_Y)
    model = YZTransformer(data.vocabulary, 2, data.vocabulary)

    @jax.jit
    def run(model, key):
        models = train(model, cross_entropy, draw, optax.sgd(ETA_Y), steps, key=key, observe=lambda m: m, every=every)
        first = jax.vmap(lambda n: draw(jax.random.fold_in(key, n)).x[0])(jnp.arange(steps))  # what the loop drew
        return models.observed, first @ batch.x.T, row.seen(row.visits(steps))

    models, drawn, after = run(model, setting.key)
    recorded = every * np.arange(RECORDS)
    visits = np.concatenate([np.zeros((1, number)), np.cumsum(np.asarray(drawn), axis=0)])[recorded].astype(int)
    p, equally = _probabilities(models, data)[0][:, :number], np.round(recorded / number).astype(int)
    after = np.asarray(after)
    return _Descent(recorded, p, after[visits], after[equally][:, None], np.asarray(models.z), visits)


def _bounds(setting: Setting) -> tuple[float, float, float]:
    """For p along the flow; for small probabilities, relative, which have the absolute error of a logit: in float32 the
    tolerance 1e-5 of logits up to 13 at each of some 40 steps; for what is exact."""
    return setting.bound(1e-6, 1e-3), setting.bound(1e-6, 5e-3), setting.bound(1e-12, 1e-6)


def _relative(observed: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return observed / predicted - 1


# CONTROL: M for M−1 in the equation; visits taken as equal; a reversal that was trained; a context of two
# tokens
@claim(
    "In the one-layer transformer a trained sentence has p = e^x/(M−1+e^x), e^x + (M−1)x = Mη_Y t/N + 1, and "
    "its reversal p = 1/M, at all times; Z stays zero. Under SGD with one sentence a step x = M h*, by the visits.",
    source="Theorem 3, which says p → 1 and p ≤ 1/M in the limit; in closed form here",
    assumptions=("sentences of three tokens, the relation is the query", "zero start", f"gradient flow, {TIME}; SGD"),
)
def one_layer(setting: Setting) -> Evidence:
    data = nets.reversal(9, 6, vocabulary=VOCABULARY)
    number, flow, descent = len(data.train), _along_flow(data), _descend(setting, data)
    theory = _theory(data, flow.ts)
    missing, wrong = (VOCABULARY - 1) * theory.unseen, (VOCABULARY - 1) * theory.wrong
    trained, reverse = flow.p[:, :number], flow.p[:, number:]
    two_tokens = _along_flow(data, second=VOCABULARY - 1)
    flow_bound, relative_bound, exact = _bounds(setting)
    return Evidence(
        rows={
            "p of trained sentences": identity(trained - theory.seen, flow_bound),
            "1 − p of trained sentences, relative": identity(
                _relative(flow.missing[:, :number], missing), relative_bound
            ),
            "M p − 1 of their reversals": identity(VOCABULARY * reverse - 1, exact),
            "Z": identity(flow.z, 0.0),
            "SGD, p by the visits h*(N_i)": identity(descent.p - descent.predicted, setting.bound(1e-12, 1e-4)),
            "SGD, Z": identity(descent.z, 0.0),
        },
        control={
            "1 − p with M for M − 1": identity(_relative(flow.missing[:, :number], wrong), relative_bound),
            "M p − 1 of reversals that were trained": identity(VOCABULARY * trained[:, :6] - 1, exact),
            "SGD, visits n/N": identity(descent.p - descent.mean_visits, setting.bound(1e-12, 1e-4)),
            "Z, two tokens of context": identity(two_tokens.z, 0.0),
        },
        panels=[
            panel(
                f"gradient flow of the network, M = {VOCABULARY}",
                (VISITED, flow.updates),
                y="probability of the last entity",
                observed={"trained": trained.mean(1), "reversal": reverse.mean(1)},
                predicted={"closed forms": np.hstack([theory.seen, np.full_like(theory.seen, 1 / VOCABULARY)])},
                log="xy",
            ),
            panel(
                "what is missing of a trained sentence",
                (VISITED, flow.updates),
                y="1 − p",
                observed={"network": flow.missing[:, 0]},
                predicted={"closed form": missing[:, 0]},
                control={"M for M − 1": wrong[:, 0]},
                log="xy",
            ),
            panel(
                "SGD, one sentence a step: three sentences",
                ("step", descent.steps[1:]),
                y="probability of the last entity",
                observed={"network": descent.p[1:, :3]},
                predicted={"h* of its visits": descent.predicted[1:, :3]},
                control={"visits n/N": descent.mean_visits[1:, 0]},
            ),
        ],
        remarks=[
            f"After {descent.steps[-1]} steps the rows had been visited {descent.visits[-1].min()} to "
            f"{descent.visits[-1].max()} times."
        ],
    )


# CONTROL: p(C|A⇝) → 1 where it is trained; its closed form as if C were A's only target
@claim(
    "With A→B and B→C trained, p(C|A⇝) = 1/(M−1+e^x) falls below 1/M while two steps succeed. Where A⇝C is "
    "trained as well, B and C share the row of A and p → ½ each, never 1.",
    source="Theorem 4, which bounds the limits; in closed form here, with the limit ½ that the theorem does not state",
    assumptions=("sentences of three tokens, the relation is the query", "zero start", f"gradient flow, {TIME}"),
)
def chain_of_thought(setting: Setting) -> Evidence:
    n, direct = 6, 3
    data = nets.chain_of_thought(n, direct, vocabulary=VOCABULARY)
    flow = _along_flow(data)
    seen, unseen, shared, _ = _theory(data, flow.ts)
    first, second = flow.p[:, :n], flow.p[:, n : 2 * n]
    taught, untaught = flow.p[:, 2 * n : 2 * n + direct], flow.p[:, 2 * n + direct :]
    two_steps = (first * second)[:, direct:]
    bound, relative_bound, _ = _bounds(setting)
    return Evidence(
        rows={
            "test A: p(B|A→) and p(C|B→)": identity(np.hstack([first[:, direct:], second]) - seen, bound),
            "test A: p(C|A⇝), relative": identity(_relative(untaught, unseen), relative_bound),
            "test A: largest M p(C|A⇝)": identity(VOCABULARY * untaught, 1.0),
            "test A: 1 − p of two steps, last": identity(1 - two_steps[-1], 1e-2),
            "trained A: p(B|A→) and p(C|A⇝)": identity(np.hstack([first[:, :direct], taught]) - shared, bound),
            "trained A: ½ − p(C|A⇝), last": identity(0.5 - taught[-1], 1e-2),
        },
        control={
            "trained A: 1 − p(C|A⇝), last": identity(1 - taught[-1], 1e-2),
            "trained A: p(C|A⇝) with one target": identity(taught - seen, bound),
            "trained A: largest M p(C|A⇝)": identity(VOCABULARY * taught, 1.0),
        },
        panels=[
            panel(
                "A whose A⇝C is the test",
                (VISITED, flow.updates),
                y="probability of C",
                observed={"in two steps, A→B→C": two_steps.mean(1), "directly, A⇝C": untaught.mean(1)},
                predicted={"closed forms": np.hstack([seen**2, unseen])},
                log="xy",
            ),
            panel(
                "A whose A⇝C is trained",
                (VISITED, flow.updates),
                y="probability",
                observed={"p(C|A⇝), equal to p(B|A→)": taught.mean(1)},
                predicted={"closed form": shared[:, 0]},
                control={"as if the only target": seen[:, 0]},
                log="x",
            ),
        ],
        remarks=[
            "The one-layer model sees the first entity alone, whatever the relation asks for: it cannot tell A→ from "
            f"A⇝. p(C|A⇝) ends at {taught[-1].mean():.4f} where it was trained."
        ],
    )
