"""Calls of `traindyn.dynamics.scan_snap` that work, and what they rightly accept."""

import jax.numpy as jnp

from traindyn.dynamics import scan_snap

from .kinds import Call

TABLE = jnp.array([[0.5, 0.5, 0.0, 0.0], [0.2, 0.0, 0.5, 0.3]])
SAME = jnp.full((2, 4), 0.25)
SCAN = scan_snap.ScanSnap(TABLE, outputs=3)
Z = jnp.array([[0.1, 0.2, 0.3, 0.4]])
STATE = scan_snap.YZ(0.1 * jnp.arange(12.0).reshape(4, 3), Z)
SLOW = scan_snap.SlowAttention(SCAN)
SYMMETRIC, OWN = scan_snap.SymmetricAttention(jnp.array([0.6]), jnp.array([0.4, 0.7]), 3), jnp.array([0.1, 0.2, 0.3])
DECODER = scan_snap.Decoder(10.0, 3.0, 0.5)
PHASE = scan_snap.PhaseTransition(DECODER, 0.5, 2.0)
PLAIN = scan_snap.SymmetricDecoder(0.3, 3, 3)
LOGITS = scan_snap.SymmetricLogits(jnp.array(0.5), jnp.array(-0.25))
F = jnp.array([[0.8, 0.6, 0.0], [0.0, 0.6, 0.8]])

# Where the field does not read the time: Diffrax passes it at every stage of every step.
FIELD = {"t": "NaN"}

CALLS = {
    "dynamics.scan_snap.logit_gap": Call(
        scan_snap.logit_gap, {"k": 2.0, "others": 3.0}, bad={"others": [0.0, -2.0, jnp.array([1.0, -1.0])]}
    ),
    "dynamics.scan_snap.Decoder": Call(
        scan_snap.Decoder,
        {"outputs": 10.0, "classes": 3.0, "eta": 0.5},
        bad={"outputs": [1.0, -3.0], "classes": [0.0, -2.0], "eta": [0.0, -1.0]},
    ),
    "dynamics.scan_snap.Decoder.__call__": Call(DECODER, {"t": 0.0, "y": jnp.array(0.1)}, accepts=FIELD),
    "dynamics.scan_snap.Decoder.exact": Call(DECODER.exact, {"y0": 0.1, "ts": 2.0}),
    "dynamics.scan_snap.Decoder.visits": Call(DECODER.visits, {"number": 3}),
    "dynamics.scan_snap.Decoder.gamma": Call(DECODER.gamma, {"t": 2.0}),
    "dynamics.scan_snap.Decoder.gamma_integral": Call(DECODER.gamma_integral, {"t": 2.0}),
    "dynamics.scan_snap.ScanSnap": Call(
        scan_snap.ScanSnap,
        {
            "probability": TABLE,
            "query": jnp.array([0, 1]),
            "outputs": 3,
            "queries": 2,
            "eta_y": 0.5,
            "eta_z": 0.5,
            "preconditioned": True,
            "normalise": True,
        },
        bad={
            "probability": [2 * TABLE, -TABLE, SAME, TABLE[:0], TABLE[0]],
            "outputs": [1],
            "queries": [0, 1],
            "eta_y": [-1.0],
            "eta_z": [-1.0],
            "normalise": [None, 1],
            "preconditioned": ["yes"],
        },
    ),
    "dynamics.scan_snap.ScanSnap.__call__": Call(
        SCAN, {"t": 0.0, "y": STATE}, accepts=FIELD, bad={"y": [tuple(STATE)]}
    ),
    "dynamics.scan_snap.ScanSnap.attention": Call(SCAN.attention, {"z": Z}, bad={"z": [Z[:, :3], Z[:0]]}),
    "dynamics.scan_snap.ScanSnap.features": Call(SCAN.features, {"z": Z}, bad={"z": [Z[:, :3]]}),
    "dynamics.scan_snap.ScanSnap.residual": Call(
        SCAN.residual, {"y": STATE}, bad={"y": [STATE._replace(y=jnp.ones((4, 5)))]}
    ),
    "dynamics.scan_snap.ScanSnap.loss": Call(SCAN.loss, {"y": STATE}, bad={"y": [STATE._replace(y=jnp.ones((4, 5)))]}),
    "dynamics.scan_snap.backprop_coefficients": Call(
        scan_snap.backprop_coefficients, {"f": F, "outputs": 5}, bad={"outputs": [1, 0], "f": [F[:1] + 0 * F]}
    ),
    "dynamics.scan_snap.SlowAttention": Call(
        scan_snap.SlowAttention, {"scan": SCAN}, bad={"scan": [TABLE, DECODER, scan_snap.ScanSnap(SAME)]}
    ),
    "dynamics.scan_snap.SlowAttention.__call__": Call(SLOW, {"t": 2.0, "y": Z}),
    "dynamics.scan_snap.SlowAttention.xi": Call(SLOW.xi, {"t": 2.0, "z": Z}),
    "dynamics.scan_snap.SymmetricAttention": Call(
        scan_snap.SymmetricAttention,
        {
            "common": jnp.array([0.6]),
            "distinct": jnp.array([0.4, 0.7]),
            "classes": 3,
            "outputs": 5,
            "eta_y": 0.5,
            "eta_z": 0.5,
        },
        bad={
            "common": [jnp.array([-1.0])],
            "distinct": [jnp.zeros(2), jnp.zeros(0)],
            "classes": [1, 5],
            "outputs": [3, 2.5],
            "eta_y": [0.0, -1.0],
            "eta_z": [-1.0],
        },
    ),
    "dynamics.scan_snap.SymmetricAttention.__call__": Call(SYMMETRIC, {"t": 2.0, "y": OWN}),
    "dynamics.scan_snap.SymmetricAttention.features": Call(SYMMETRIC.features, {"z": OWN}),
    "dynamics.scan_snap.SymmetricAttention.rho": Call(SYMMETRIC.rho, {"z": OWN}),
    "dynamics.scan_snap.SymmetricAttention.law": Call(SYMMETRIC.law, {"t": 2.0}),
    "dynamics.scan_snap.PhaseTransition": Call(
        scan_snap.PhaseTransition,
        {"decoder": DECODER, "eta_z": 0.5, "c0": 2.0},
        bad={"decoder": [10, SCAN], "eta_z": [-1.0], "c0": [0.0, -1.0]},
    ),
    "dynamics.scan_snap.PhaseTransition.__call__": Call(PHASE, {"t": 2.0, "y": jnp.array(-0.1)}),
    "dynamics.scan_snap.PhaseTransition.exact": Call(PHASE.exact, {"y0": -0.1, "ts": 2.0}),
    "dynamics.scan_snap.PhaseTransition.early": Call(PHASE.early, {"t": 2.0}),
    "dynamics.scan_snap.PhaseTransition.late": Call(PHASE.late, {"t": 2.0}, bad={"t": [0.0, 0.1]}),
    "dynamics.scan_snap.SymmetricDecoder": Call(
        scan_snap.SymmetricDecoder,
        {"rho": 0.3, "classes": 3, "outputs": 5, "eta": 0.5},
        bad={"rho": [1.0, 2.0, -1.0], "classes": [1, 6], "outputs": [2], "eta": [0.0, -1.0]},
    ),
    "dynamics.scan_snap.SymmetricDecoder.__call__": Call(PLAIN, {"t": 0.0, "y": LOGITS}, accepts=FIELD),
    "dynamics.scan_snap.SymmetricDecoder.from_zero": Call(PLAIN.from_zero, {"t": 2.0}),
    "dynamics.scan_snap.SymmetricDecoder.separation": Call(PLAIN.separation, {"y": LOGITS}, bad={"y": [tuple(LOGITS)]}),
}
