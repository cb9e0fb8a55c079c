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
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ..rows import identity
from ._shared import ASSUMED, TIME

CLASSES, QUERIES, CONTEXT = 16, 8, 127
DISTINCT = np.linspace(0.1, 1.0, 6)
BUDGETS = (8, 16, 32, 64, CONTEXT)
POLICIES = ("highest score", "recent", "random", "lowest score")
SETTINGS = {"η_Y = 10, η_Z = 1": (10.0, 1.0), "η_Y = η_Z = 10": (10.0, 10.0), "η_Y = 1, η_Z = 10": (1.0, 10.0)}
RATE, TIMES = 0.05, (0, 10, 30, 100, 300, 1000)


def _data(dtype) -> nets.SequenceClasses:
    """Sixteen common tokens with 70 % of the mass, and six distinct ones for each of sixteen classes."""
    common = np.full(16, 0.7 / 0.3 * DISTINCT.sum() / 16)
    return nets.distinct_and_common(CLASSES, QUERIES, distinct=DISTINCT, common=common, dtype=dtype)


@jax.jit
def _evaluate(models, tokens, query, label, noise):
    """For each model: the loss under each policy and budget, `(policies, budgets)`, and of the highest scores at the
    second budget the attention they keep and the errors of the two statements about evicted mass."""

    def one(model):
        rows = jnp.arange(tokens.shape[0])[:, None]
        scores = model.z[query[:, None], tokens]

        def loss(kept):
            none = jnp.zeros((tokens.shape[0], model.z.shape[1]), scores.dtype)
            x = none.at[rows, tokens].add(kept.astype(scores.dtype))
            return nets.cross_entropy(model, nets.Contexts(x, label, query))

        position = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=scores.dtype), scores.shape)
        by_policy = jnp.stack([scores, position, noise, -scores])
        of_budget = jax.vmap(lambda by, budget: loss(keep(by, budget)), (None, 0))
        losses = jax.vmap(of_budget, (0, None))(by_policy, jnp.array(BUDGETS))
        p = jax.nn.softmax(scores, axis=1)
        kept = keep(scores, BUDGETS[1])
        mass = jnp.sum(jnp.where(kept, p, 0), axis=1)
        renormalised = jnp.where(kept, p, 0) / mass[:, None]
        moved = jnp.sum(jnp.abs(renormalised - p), axis=1)
        values = model.y[tokens]
        output = jnp.linalg.norm(jnp.einsum("np,npo->no", renormalised - p, values), axis=1)
        bound = 2 * (1 - mass) * jnp.max(jnp.linalg.norm(values, axis=2), axis=1)
        dense = loss(jnp.ones_like(tokens, bool))
        errors = jnp.max(jnp.abs(moved - 2 * (1 - mass))), jnp.max(output - bound)
        return losses, dense, jnp.mean(mass), *errors

    return jax.lax.map(one, models)


# CONTROL: recency at the same budget as the scores
@claim(
    "Once trained, keeping the quarter of the keys with the highest attention scores costs less than 0.01 "
    "nats, recency at an eighth more, and the lowest scores over 2 nats: ranking is what works, for the kept keys hold "
    "less than half of the attention.",
    source="the ranking of Theorem 3 as an eviction policy, after H2O (arXiv 2306.14048); measured here",
    assumptions=(
        ASSUMED,
        "independent context tokens, so that recent is as good as random and nothing favours early tokens",
        "16 classes, 8 queries, 127 context tokens, softmax over the next tokens, t = 1000, η_Y = 10, η_Z = 1",
    ),
)
def eviction(setting: Setting) -> Evidence:
    data, contexts = _data(setting.dtype), setting.pick(smoke=256, laptop=1024, paper=8192)
    steps = round(TIMES[-1] / RATE)
    every = round(TIMES[1] / RATE)

    @jax.jit
    def train_all(data, etas):
        model = data.network(outputs=CLASSES)

        def run(eta):
            optimiser = nets.sgd(RATE, eta_y=eta[0], eta_z=eta[1])
            expected = data.expected()
            run = train(model, nets.cross_entropy, expected, optimiser, steps, observe=lambda m: m, every=every)
            return jax.tree.map(lambda x: x[np.array(TIMES) // TIMES[1]], run.observed)

        return jax.vmap(run)(etas)

    models = train_all(data, jnp.asarray(list(SETTINGS.values()), setting.dtype))
    draw = jax.jit(lambda data, key: data.sequences(contexts, CONTEXT + 1)(key))
    sequence, following = draw(data, setting.key)
    tokens = jnp.asarray(np.searchsorted(np.asarray(data.keys), np.asarray(sequence)[:, :-1]))
    label = jnp.asarray(np.asarray(following) - int(data.next_token[0]))
    query = jnp.asarray(np.asarray(data.query_number)[np.asarray(label)])
    noise = jnp.asarray(setting.rng.random(tokens.shape), setting.dtype)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), models)
    shaped = lambda x: np.asarray(x, float).reshape(len(SETTINGS), len(TIMES), *x.shape[1:])
    losses, dense, mass, moved, over = map(shaped, _evaluate(flat, tokens, query, label, noise))
    excess = losses - dense[:, :, None, None]
    of = {name: i for i, name in enumerate(POLICIES)}
    at = {budget: i for i, budget in enumerate(BUDGETS)}
    final, lowest = excess[0, -1], losses[0, -1, of["lowest score"], at[16]]

    # The same equation in another clock: (c η, t/c).
    ends = np.array([20.0, 100.0])
    paths = [
        solve(flow, flow.zero(), ends / c).ys
        for c, flow in ((c, ScanSnap(data.table, data.query_number, eta_y=c, eta_z=c)) for c in (1.0, 10.0))
    ]
    clock = max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(*paths, strict=True))

    z = np.asarray(models.z)[0, -1]
    own = 16 + 6 * np.arange(CLASSES)[:, None] + np.arange(6)
    ranks = [stats.spearmanr(z[n // 2, own[n]], DISTINCT).statistic for n in range(CLASSES)]  # pyright: ignore
    times = np.array(TIMES[1:])
    exact = setting.bound(1e-12, 1e-5)
    return Evidence(
        rows={
            "excess loss, highest scores, B = 32 (nats)": identity(max(final[of["highest score"], at[32]], 0), 0.01),
            "0.01 over the excess of recency, B = 16": identity(0.01 / final[of["recent"], at[16]], 1.0),
            "2 over the loss of the lowest scores, B = 16": identity(2 / lowest, 1.0),
            "attention kept by the top 16, trained, three settings": identity(mass[:, 2:], 0.5),
            "rank correlation of score and P(l|n), short of 1": identity(1 - np.min(ranks), 1e-9),
            "L1 distance of renormalised attention − 2δ": identity(moved, exact),
            "output moved beyond 2δ max‖v‖": identity(np.maximum(over, 0), exact),
            "budget of all keys against no eviction": identity(excess[..., at[CONTEXT]], exact),
            "Y, Z of (η, t) against (10 η, t/10)": identity(clock, setting.bound(1e-6, 1e-2)),
        },
        control={"excess loss of recency, B = 32 (nats)": identity(final[of["recent"], at[32]], 0.01)},
        panels=[
            panel(
                "loss against budget, η_Y = 10, η_Z = 1, t = 1000",
                ("keys kept of 127", np.array(BUDGETS)),
                y="cross-entropy (nats)",
                observed={name: np.maximum(losses[0, -1, i], 1e-4) for name, i in of.items()},
                log="xy",
            ),
            panel(
                "excess loss at B = 16 while training",
                (TIME, times),
                y="nats (0.0001 stands for less)",
                observed={name: np.maximum(excess[0, 1:, i, at[16]], 1e-4) for name, i in of.items()},
                log="xy",
            ),
            panel(
                "attention that the top 16 keys hold",
                (TIME, times),
                y="kept mass",
                observed={name: mass[i, 1:] for i, name in enumerate(SETTINGS)},
                control={"uniform, 16/127": np.full(len(times), 16 / CONTEXT)},
                log="x",
            ),
        ],
        remarks=[
            f"{name}, t = {TIMES[-1]}: without eviction {dense[i, -1]:.4f}; B = 16 by score, recency, lowest "
            f"{losses[i, -1, 0, 1]:.4f}, {losses[i, -1, 1, 1]:.3f}, {losses[i, -1, 3, 1]:.2f}; B = 64 by score "
            f"{losses[i, -1, 0, 3]:.4f}; kept mass of the top 16 {mass[i, -1]:.2f}."
            for i, name in enumerate(SETTINGS)
        ]
        + ["Where evicting lowers the loss, it is common tokens that go."],
    )
