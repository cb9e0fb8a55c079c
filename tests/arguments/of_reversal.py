"""Calls of `traindyn.dynamics.reversal` and of `traindyn.dynamics.galore` that work, and what they rightly accept."""

import jax.numpy as jnp

from traindyn.dynamics import galore, reversal

from .kinds import Call

GRAM, PAIRS = jnp.array([[1.0, 0.2, 0.1], [0.2, 1.0, 0.3], [0.1, 0.3, 1.0]]), jnp.array([[0, 1], [1, 2]])
C = jnp.array([[0.0, 1.0, 0.5], [0.2, 0.0, 0.3], [0.0, 0.1, 0.4]])
VECTORS, THETA = jnp.array([[1.0, 0.0], [0.5, 1.0], [-1.0, 0.3]]), jnp.array([[0.1, 0.2], [0.3, 0.4]])
BILINEAR, ROW = reversal.Bilinear(GRAM, PAIRS), reversal.OneLayer(10.0, 3.0)
LOSS = jnp.array([2.0, 1.0, 0.5])
A, EYE2, EYE3 = jnp.array([[[1.0, 2.0, 0.5], [0.3, 0.1, -1.0]]]), jnp.eye(2)[None], jnp.eye(3)[None]
GRADIENT = galore.ReversibleGradient(A, jnp.diag(jnp.array([1.0, 2.0]))[None], EYE3)
W = jnp.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
SPLIT = GRADIENT.split(W)

# The flows are autonomous: a field does not read the time, which Diffrax passes to it at every stage of every step.
FIELD = {"t": "NaN"}

CALLS = {
    "dynamics.reversal.Bilinear": Call(
        reversal.Bilinear,
        {"gram": GRAM, "pairs": PAIRS, "start": C, "symmetric": jnp.array(True)},
        bad={
            "gram": [GRAM.at[0, 1].set(0.7), -GRAM, GRAM[:2], jnp.ones(())],
            "pairs": [PAIRS[:0], PAIRS + 1],
            "start": [C[:2]],
            "symmetric": [2, "yes", None],
        },
    ),
    "dynamics.reversal.Bilinear.of": Call(
        reversal.Bilinear.of,
        {"vectors": VECTORS, "pairs": PAIRS, "theta": THETA, "symmetric": False},
        bad={"theta": [jnp.eye(3)], "pairs": [PAIRS + 1]},
    ),
    "dynamics.reversal.Bilinear.logits": Call(BILINEAR.logits, {"c": C}),
    "dynamics.reversal.Bilinear.loss": Call(BILINEAR.loss, {"c": C, "pairs": PAIRS}, bad={"pairs": [PAIRS + 1]}),
    "dynamics.reversal.Bilinear.__call__": Call(BILINEAR, {"t": 0.0, "y": C}, accepts=FIELD, bad={"y": [jnp.eye(2)]}),
    # NaN in a loss is a diverged run, whose exponent is NaN.
    "dynamics.reversal.separation_exponent": Call(
        reversal.separation_exponent,
        {"loss": LOSS, "reversal_loss": LOSS + 1},
        bad={"loss": [-LOSS, LOSS.at[0].set(0.0)], "reversal_loss": [-LOSS, LOSS.at[0].set(0.0)]},
    ),
    "dynamics.reversal.OneLayer": Call(
        reversal.OneLayer,
        {"outputs": 10.0, "sentences": 3.0, "eta": 0.5, "targets": 2},
        bad={"outputs": [2.0, 1.0], "sentences": [0.0, -1.0], "eta": [0.0, -1.0], "targets": [0, 10]},
    ),
    "dynamics.reversal.OneLayer.__call__": Call(ROW, {"t": 0.0, "y": jnp.array(0.5)}, accepts=FIELD),
    "dynamics.reversal.OneLayer.exact": Call(ROW.exact, {"y0": 0.3, "ts": 2.0}),
    "dynamics.reversal.OneLayer.visits": Call(ROW.visits, {"number": 3}),
    "dynamics.reversal.OneLayer.seen": Call(ROW.seen, {"gap": 0.3}),
    "dynamics.reversal.OneLayer.unseen": Call(ROW.unseen, {"gap": 0.3}),
    "dynamics.galore.ReversibleGradient": Call(
        galore.ReversibleGradient,
        {"a": A, "b": EYE2, "c": EYE3},
        bad={"a": [A[:0], A[0]], "b": [-EYE2, EYE3, EYE2.at[0, 0, 1].set(1.0)], "c": [-EYE3, EYE2]},
    ),
    "dynamics.galore.ReversibleGradient.__call__": Call(GRADIENT, {"t": 0.0, "y": W}, accepts=FIELD),
    "dynamics.galore.ReversibleGradient.exact": Call(GRADIENT.exact, {"y0": W, "ts": 0.5}, bad={"ts": [1e30, jnp.inf]}),
    "dynamics.galore.ReversibleGradient.split": Call(
        GRADIENT.split, {"gradient": W, "tolerance": 1e-6}, bad={"tolerance": [-1.0]}
    ),
    "dynamics.galore.ReversibleGradient.within": Call(
        GRADIENT.within,
        {"p": jnp.eye(2), "q": jnp.eye(3)[:, :2], "y0": W},
        bad={"p": [2 * jnp.eye(2), jnp.ones((2, 2)), jnp.eye(3)], "q": [jnp.ones((3, 2))]},
    ),
    "dynamics.galore.stable_rank_bound": Call(
        galore.stable_rank_bound,
        {"split": SPLIT, "learning_rate": 0.1, "steps": jnp.array([0.0, 1.0, 2.0])},
        bad={"learning_rate": [0.5, 2.0, -0.1], "steps": [jnp.array([-1.0])], "split": [tuple(SPLIT), W]},
    ),
}
