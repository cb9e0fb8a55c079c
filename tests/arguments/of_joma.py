"""Calls of `traindyn.dynamics.joma` that work, and what they rightly accept."""

import jax.numpy as jnp

from traindyn.dynamics import joma

from .kinds import Call

NAN = float("nan")
DELTA, V = jnp.array([1.0, -0.5]), jnp.array([0.2, 0.3])
MU = jnp.array([1.0, 2.0])
ROWS, STATE_ROWS = jnp.array([[1.0, 0.5], [-0.3, 0.2], [0.4, 0.1]]), 0.1 * jnp.ones((3, 2))
X, G, QUERY = jnp.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]), jnp.array([[1.0, -1.0], [0.5, 0.3]]), jnp.array([0, 1])
JOINT = joma.Joint(X, G, query=QUERY, activation=jnp.tanh)
STATE = joma.JointState(ROWS, jnp.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]), jnp.array([[0.1, 0.2], [0.3, 0.4]]))
LINEAR, NODES, ATTENTION = joma.LinearActivation(DELTA), joma.ManyNodes(ROWS), joma.LinearAttention(ROWS)
CLOCK = joma.ClockState(V, jnp.array(0.0))
PAIR = joma.LinearAttentionState(STATE_ROWS, jnp.array([1.0, 2.0, 3.0]))
MIXTURE, NODE = joma.Mixture(ROWS, jnp.ones(3), 0.7), joma.MixtureState(jnp.array([1.0, 2.0]), jnp.array(0.3))
NONLINEAR, LOG = joma.NonlinearActivation(MU), joma.LogGap(MU)

# The flows are autonomous: a field does not read the time, which Diffrax passes to it at every stage of every step.
FIELD = {"t": "NaN"}
LAW = {"v0": 0.5 * ROWS, "z0": jnp.array([1.0, 2.0, 3.0]), "rate_ratio": 0.5, "temperature": 2.0}

CALLS = {
    "dynamics.joma.Joint": Call(
        joma.Joint,
        {
            "x": X,
            "g": G,
            "query": QUERY,
            "attention": "softmax",
            "activation": jnp.tanh,
            "eta_w": 0.5,
            "eta_z": 0.7,
            "temperature": 2.0,
            "normaliser": 3.0,
            "queries": 2,
        },
        bad={
            "x": [-X, jnp.inf * X],
            "query": [jnp.array([0, 2])],
            "temperature": [0.0, -1.0],
            "normaliser": [0.0],
            "eta_w": [-1.0],
            "eta_z": [-1.0],
            "attention": ["linear ", None],
            "g": [3, "push"],
            "queries": [0],
        },
    ),
    "dynamics.joma.Joint.__call__": Call(JOINT, {"t": 0.0, "y": STATE}, accepts=FIELD, bad={"y": [(ROWS, V, V), PAIR]}),
    "dynamics.joma.Joint.attend": Call(JOINT.attend, {"z": STATE.z}, bad={"z": [STATE.z[:1], STATE.z[:, :2]]}),
    # β plays no part in what is conserved.
    "dynamics.joma.Joint.invariants": Call(JOINT.invariants, {"y": STATE}, accepts={"y": "leaf 2 NaN"}),
    "dynamics.joma.invariants": Call(
        joma.invariants,
        {"attention": "exp", "v": ROWS, "z": STATE.z, "rate_ratio": 0.5, "temperature": 2.0},
        bad={"attention": ["relu"], "temperature": [0.0], "z": [STATE.z[:, :2]]},
    ),
    "dynamics.joma.predicted_logits": Call(
        joma.predicted_logits,
        {"attention": "softmax", "v": ROWS, "b_bar": jnp.array([0.2, 0.3, 0.5]), **LAW},
        bad={"attention": ["relu", "exp"], "temperature": [0.0], "b_bar": [None, V]},
    ),
    "dynamics.joma.LinearActivation": Call(
        joma.LinearActivation, {"delta": DELTA, "normaliser": 2.0}, bad={"normaliser": [0.0, -1.0, V], "delta": [1.0]}
    ),
    "dynamics.joma.LinearActivation.__call__": Call(LINEAR, {"t": 0.0, "y": V}, accepts=FIELD),
    "dynamics.joma.LinearActivation.exact": Call(LINEAR.exact, {"y0": V, "ts": 0.1}, bad={"ts": [V[None]]}),
    "dynamics.joma.LinearActivation.blow_up_time": Call(LINEAR.blow_up_time, {"y0": V}),
    "dynamics.joma.LinearActivation.winner": Call(LINEAR.winner, {"y0": V}),
    "dynamics.joma.RegularisedClock": Call(joma.RegularisedClock, {"flow": LINEAR}, bad={"flow": [NODES, DELTA]}),
    # The clock does not read the time of the original flow, which is a part of its state.
    "dynamics.joma.RegularisedClock.__call__": Call(
        LINEAR.regularised(), {"t": 0.0, "y": CLOCK}, accepts={**FIELD, "y": "leaf 1 NaN"}
    ),
    "dynamics.joma.ManyNodes": Call(
        joma.ManyNodes, {"delta": ROWS, "normaliser": 2.0}, bad={"normaliser": [0.0, -1.0], "delta": [V]}
    ),
    "dynamics.joma.ManyNodes.__call__": Call(NODES, {"t": 0.0, "y": STATE_ROWS}, accepts=FIELD),
    "dynamics.joma.ManyNodes.exact": Call(NODES.exact, {"y0": STATE_ROWS, "ts": 0.1}, bad={"ts": [V[None]]}),
    "dynamics.joma.ManyNodes.blow_up_time": Call(NODES.blow_up_time, {"y0": STATE_ROWS}),
    "dynamics.joma.LinearAttention": Call(joma.LinearAttention, {"delta": ROWS}, bad={"delta": [V]}),
    "dynamics.joma.LinearAttention.__call__": Call(
        ATTENTION, {"t": 0.0, "y": PAIR}, accepts=FIELD, bad={"y": [tuple(PAIR)]}
    ),
    "dynamics.joma.LinearAttention.exact": Call(ATTENTION.exact, {"y0": PAIR, "ts": 0.1}, bad={"y0": [tuple(PAIR)]}),
    "dynamics.joma.LinearAttention.invariants": Call(ATTENTION.invariants, {"y": PAIR}),
    "dynamics.joma.Mixture": Call(
        joma.Mixture,
        {"centres": ROWS, "strength": jnp.ones(3), "sigma": 0.7, "activation": "leaky_relu", "slope": 0.1},
        bad={"sigma": [-1.0], "activation": ["gelu", "relu", jnp.tanh, None], "slope": [V]},
    ),
    "dynamics.joma.Mixture.__call__": Call(MIXTURE, {"t": 0.0, "y": NODE}, accepts=FIELD, bad={"y": [tuple(NODE)]}),
    "dynamics.joma.Mixture.theta1": Call(MIXTURE.theta1, {"r": V, "norm": 1.5}, bad={"norm": [-1.0, V]}),
    "dynamics.joma.Mixture.theta2": Call(MIXTURE.theta2, {"r": V, "norm": 1.5}, bad={"norm": [-1.0, V]}),
    "dynamics.joma.NonlinearActivation": Call(
        joma.NonlinearActivation, {"mu": MU, "attention": False}, bad={"attention": [1, "yes", None]}
    ),
    "dynamics.joma.NonlinearActivation.__call__": Call(NONLINEAR, {"t": 0.0, "y": V}, accepts=FIELD),
    "dynamics.joma.NonlinearActivation.exact": Call(
        NONLINEAR.exact, {"y0": V, "ts": 0.1}, bad={"ts": [-1.0, V[None]], "y0": [50 * V]}
    ),
    "dynamics.joma.NonlinearActivation.time_to": Call(
        NONLINEAR.time_to, {"v": 2 * V, "y0": V}, bad={"v": [-V, 3 * MU], "y0": [50 * V]}
    ),
    "dynamics.joma.LogGap": Call(joma.LogGap, {"mu": MU, "attention": False}, bad={"attention": [1, None]}),
    "dynamics.joma.LogGap.__call__": Call(LOG, {"t": 0.0, "y": V}, accepts=FIELD),
    "dynamics.joma.LogGap.exact": Call(LOG.exact, {"y0": V, "ts": 0.1}, bad={"ts": [-1.0]}),
    "dynamics.joma.LogGap.time_to": Call(LOG.time_to, {"y": 2 * V, "y0": V}, bad={"y": [-V]}),
    "dynamics.joma.LogGap.to_log": Call(LOG.to_log, {"v": V}, bad={"v": [MU]}),
    "dynamics.joma.LogGap.to_v": Call(LOG.to_v, {"y": V}),
}
