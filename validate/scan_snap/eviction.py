"""What Scan and Snap means for cache eviction: keep B keys of a trained model and see what it loses."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ...dynamics import solve
from ...dynamics.scan_snap import ScanSnap
from ...nets import scan_snap as nets
from ...nets import train
from ...nets.eviction import keep
from ..checks import absolute, agrees, at_least, at_most, evidence, rounding, vanishes
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ._shared import ASSUMED, TIME

CLASSES, QUERIES, CONTEXT = 16, 8, 127
DISTINCT = np.linspace(0.1, 1.0, 6)
BUDGETS = (8, 16, 32, 64, CONTEXT)
POLICIES = ("highest score", "recent", "random", "lowest score")
SETTINGS = {"η_Y = 10, η_Z = 1": (10.0, 1.0), "η_Y = η_Z = 10": (10.0, 10.0), "η_Y = 1, η_Z = 10": (1.0, 10.0)}
RATE, TIMES = 0.05, np.array([0, 10, 30, 100, 300, 1000])


@jax.jit
def _train_all(data: nets.SequenceClasses, etas):
    """The models at `TIMES`, for each pair of learning rates."""

    def run(eta):
        optimiser, expected = nets.sgd(RATE, eta_y=eta[0], eta_z=eta[1]), data.expected()
        steps, every, model = round(TIMES[-1] / RATE), round(TIMES[1] / RATE), data.network(outputs=CLASSES)
        kept = train(model, nets.cross_entropy, expected, optimiser, steps, observe=lambda m: m, every=every)
        return jax.tree.map(lambda x: x[TIMES // TIMES[1]], kept.observed)

    return jax.vmap(run)(etas)


@jax.jit
def _evaluate(models, data: nets.SequenceClasses, key, noise):
    """For each model, on contexts drawn with `key`: the loss under each policy and budget, `(policies, budgets)`, and
    of the highest scores at the second budget the attention they keep and how far the others' removal is from 2δ."""
    sequence, following = data.sequences(len(noise), CONTEXT + 1)(key)
    tokens, label = sequence[:, :-1], following - data.next_token[0]
    query = data.query_number[label]
    position = jnp.broadcast_to(jnp.arange(CONTEXT, dtype=noise.dtype), noise.shape)

    def one(model):
        scores = model.z[query[:, None], tokens]

        def loss(by, budget):
            none = jnp.zeros((len(tokens), model.z.shape[1]), scores.dtype)
            x = none.at[jnp.arange(len(tokens))[:, None], tokens].add(keep(by, budget).astype(scores.dtype))
            return nets.cross_entropy(model, nets.Contexts(x, label, query))

        by_policy = jnp.stack([scores, position, noise, -scores])
        losses = jax.vmap(jax.vmap(loss, (None, 0)), (0, None))(by_policy, jnp.array(BUDGETS))
        p = jax.nn.softmax(scores, axis=1)
        kept = jnp.where(keep(scores, BUDGETS[1]), p, 0)
        mass = jnp.sum(kept, axis=1)
        moved = jnp.sum(jnp.abs(kept / mass[:, None] - p), axis=1) - 2 * (1 - mass)
        return losses, jnp.mean(mass), jnp.max(jnp.abs(moved))

    return jax.lax.map(lambda of_setting: jax.lax.map(one, of_setting), models)


@claim(
    "Once trained, keeping the quarter of the keys with the highest attention scores costs less than 0.01 nats. "
    "Recency costs more than that even at an eighth, and keeping the lowest scores leaves a loss above 2 nats. "
    "Ranking is what works: the kept keys hold less than half of the attention.",
    source="the ranking of Theorem 3 as an eviction policy, after H2O (arXiv 2306.14048); measured here",
    assumptions=(
        ASSUMED,
        "independent context tokens, so that recent is as good as random and nothing favours early tokens",
        "16 classes, 8 queries, 127 context tokens, softmax over the next tokens, t = 1000, η_Y = 10, η_Z = 1",
    ),
    tex=r"L_{\mathrm{top}\,B} - L < 0.01,\quad \sum_{\mathrm{top}\,B} b_l < \frac{1}{2}",
    flow=ScanSnap,
)
def eviction(setting: Setting) -> Evidence:
    # Sixteen common tokens with 70 % of the mass, and six distinct ones for each of sixteen classes.
    common = np.full(16, 0.7 / 0.3 * DISTINCT.sum() / 16)
    data = nets.distinct_and_common(CLASSES, QUERIES, distinct=DISTINCT, common=common, dtype=setting.dtype)
    models = _train_all(data, jnp.asarray(list(SETTINGS.values()), setting.dtype))
    noise = setting.rng.random((setting.pick(smoke=256, laptop=1024, paper=8192), CONTEXT))
    losses, mass, moved = map(np.asarray, _evaluate(models, data, setting.key, jnp.asarray(noise)))
    dense, loss, (eighth, quarter) = losses[:, :, 0, -1], losses[0, -1], (1, 2)  # dense: no key is evicted
    score, recent, *_ = loss - dense[0, -1]
    own = np.asarray(models.z)[0, -1][np.repeat(np.arange(QUERIES), 2), 16:].reshape(CLASSES, CLASSES, -1)
    ranks = [stats.spearmanr(own[n, n], DISTINCT).statistic for n in range(CLASSES)]  # pyright: ignore
    title, axis = "loss against budget, η_Y = 10, η_Z = 1, t = 1000", ("keys kept of 127", np.array(BUDGETS))
    observed = dict(zip(POLICIES, np.maximum(loss, 1e-4), strict=True))
    held, trained = "attention kept by the top 16, trained, three settings", (TIME, TIMES[2:])
    ends = np.array([20.0, 100.0])

    def path(rate, times):
        """The same equation in another clock: (c η, t/c)."""
        flow = ScanSnap(data.table, data.query_number, eta_y=rate, eta_z=rate)
        return np.concatenate([np.reshape(x, (2, -1)) for x in solve(flow, flow.zero(), times).ys], axis=1)

    clock, wrong = "Y and Z of (η, t) against (10 η, t/10)", {"t/5": path(10.0, ends / 5)}
    # Both solves err by their tolerance times the length of the way.
    options = {"within": setting.bound(1e-6, 1e-2), "measure": absolute}
    remarks = [
        f"{name}, t = {TIMES[-1]}: without eviction {dense[i, -1]:.4f}; B = 16 by score, recency, lowest "
        f"{losses[i, -1, 0, 1]:.4f}, {losses[i, -1, 1, 1]:.3f}, {losses[i, -1, 3, 1]:.2f}; B = 64 by score "
        f"{losses[i, -1, 0, 3]:.4f}; kept mass of the top 16 {mass[i, -1]:.2f}."
        for i, name in enumerate(SETTINGS)
    ]
    return evidence(
        at_most("excess loss, highest scores, B = 32 (nats)", score[quarter], 0.01, {"recency": recent[quarter]}),
        at_least("excess loss of recency, B = 16 (nats)", recent[eighth], 0.01, {"highest scores": score[eighth]}),
        at_least("loss of the lowest scores, B = 16", loss[-1, eighth], 2.0, {"recency": loss[1, eighth]}),
        at_most(held, mass[:, 2:].T, 0.5, x=trained, log="x"),
        at_least("rank correlation of score and P(l|n)", ranks, 1 - 1e-9),
        vanishes("L1 distance of renormalised attention − 2δ", moved, within=rounding(4000)),
        agrees(clock, None, path(1.0, ends), path(10.0, ends / 10), wrong, **options),
        panels=[panel(title, axis, y="cross-entropy (nats)", observed=observed, log="xy")],
        remarks=[*remarks, "Where evicting lowers the loss, it is common tokens that go."],
    )
