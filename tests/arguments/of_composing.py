"""Calls of `traindyn.dynamics.composing` that work, and what they rightly accept."""

import jax.numpy as jnp
import numpy as np

from traindyn.dynamics import composing as cg
from traindyn.dynamics import groups

from .kinds import Call

Z3, Z5, S3 = groups.cyclic(3), groups.cyclic(5), groups.symmetric(3)
SIX = cg.f6(Z3)
WEIGHTS = SIX.to_weights()
Z, RAW = SIX.z, SIX.z[:, 1:]
FLOW, WIDE = cg.TruncatedFlow(3), cg.InfiniteWidth(3, 0.5)
STATE, R = FLOW.pack(RAW), jnp.ones((2, 2, 2))
PAIR = cg.Solution(np.full((3, 3, 2), 0.5 ** (1 / 3)), Z3)
TIMES = {"t": ("text", "nothing", "NaN", "complex")}  # the flow does not depend on time
ARGS = {"t": 0.0}
# A solution whose leaves are exchanged has passed by its constructor, which looks at them.
LEAVES = ("leaf 0 complex", "leaf 0 longer")

CALLS = {
    "dynamics.composing.InfiniteWidth": Call(
        cg.InfiniteWidth, {"order": 3, "rate": 0.5}, bad={"order": [1], "rate": [-1.0, jnp.ones(2)]}
    ),
    "dynamics.composing.InfiniteWidth.of": Call(
        cg.InfiniteWidth.of,
        {"order": 3, "nodes": 4, "variance": 1.0},
        bad={"order": [0], "nodes": [0], "variance": [-1.0]},
    ),
    "dynamics.composing.InfiniteWidth.__call__": Call(WIDE, {**ARGS, "y": R}, accepts=TIMES),
    "dynamics.composing.InfiniteWidth.exact": Call(WIDE.exact, {"y0": R, "ts": 0.5}, bad={"ts": [jnp.ones((2, 2))]}),
    "dynamics.composing.TruncatedFlow": Call(cg.TruncatedFlow, {"order": 3}, bad={"order": [1]}),
    "dynamics.composing.TruncatedFlow.__call__": Call(FLOW, {**ARGS, "y": STATE}, accepts=TIMES),
    "dynamics.composing.TruncatedFlow.pack": Call(FLOW.pack, {"z": RAW}),
    "dynamics.composing.TruncatedFlow.unpack": Call(FLOW.unpack, {"y": STATE}),
    "dynamics.composing.TruncatedFlow.potentials": Call(FLOW.potentials, {"z": RAW}),
    "dynamics.composing.TruncatedFlow.descent": Call(FLOW.descent, {"z": RAW}),
    "dynamics.composing.TruncatedFlow.velocity": Call(FLOW.velocity, {"z": RAW}),
    "dynamics.composing.TruncatedFlow.gram": Call(FLOW.gram, {"z": RAW}),
    "dynamics.composing.Solution": Call(
        cg.Solution, {"z": Z, "group": Z3}, bad={"z": [Z.at[0, 1].multiply(2j), Z[:2]], "group": [S3, Z5]}
    ),
    "dynamics.composing.direct_loss": Call(
        cg.direct_loss, {"weights": WEIGHTS, "group": Z3}, bad={"group": [Z5], "weights": [tuple(WEIGHTS)]}
    ),
    "dynamics.composing.from_weights": Call(
        cg.from_weights,
        {"a": WEIGHTS.a, "b": WEIGHTS.b, "c": WEIGHTS.c, "group": Z3},
        bad={"c": [WEIGHTS.c[:2]], "group": [S3, Z5]},
    ),
    "dynamics.composing.loss": Call(cg.loss, {"z": Z, "group": Z3}, bad={"group": [Z5], "z": [1j * Z]}),
    "dynamics.composing.loss_terms": Call(cg.loss_terms, {"z": Z, "group": Z3}, bad={"group": [Z5], "z": [1j * Z]}),
    "dynamics.composing.printed_loss": Call(cg.printed_loss, {"z": Z, "group": Z3}, bad={"group": [Z5], "z": [1j * Z]}),
    "dynamics.composing.to_weights": Call(cg.to_weights, {"z": Z, "group": Z3}, bad={"group": [Z5], "z": [1j * Z]}),
    "dynamics.composing.one": Call(cg.one, {"group": Z3}, bad={"group": [S3]}),
    "dynamics.composing.zero": Call(cg.zero, {"group": Z3}, bad={"group": [S3]}),
    "dynamics.composing.potentials": Call(cg.potentials, {"z": Z}, bad={"z": [Z[:2]]}),
    "dynamics.composing.target": Call(cg.target, {"order": 3}, bad={"order": [0]}),
    "dynamics.composing.at_frequency": Call(
        cg.at_frequency,
        {"group": Z3, "k": 1, "columns": cg.syn()},
        bad={"k": [0, 3], "group": [S3], "columns": [np.ones((2, 1)), np.ones(3)]},
    ),
    "dynamics.composing.cube": Call(cg.cube, {}),
    "dynamics.composing.f4_6": Call(
        cg.f4_6,
        {"group": Z3, "k0": 1, "xis": [1j], "phases": [(0.1, 0.2)]},
        bad={"group": [groups.cyclic(2), S3], "k0": [2], "xis": [[2.0], []], "phases": [[(0.1,)], [(np.nan, 0.0)]]},
    ),
    "dynamics.composing.f4_biased": Call(cg.f4_biased, {"group": Z3, "sigma": 1.0}, bad={"sigma": [0.0]}),
    "dynamics.composing.f6": Call(
        cg.f6,
        {"group": Z3, "nus": [1j], "phases": [(0.1, 0.2)]},
        bad={"nus": [[2j], [1j, 1j], 3], "phases": [[(np.nan, 0.0)], [0.1], "ab"]},
    ),
    "dynamics.composing.f6_variant": Call(
        cg.f6_variant,
        {"group": Z3, "alphas": [1j], "betas": [-1], "phases": [(0.1, 0.2)]},
        bad={"alphas": [[2.0]], "betas": [[0.5]]},
    ),
    "dynamics.composing.f9": Call(cg.f9, {"group": Z3}, bad={"group": [S3]}),
    "dynamics.composing.from_blocks": Call(
        cg.from_blocks,
        {"group": Z5, "block": lambda k: cg.syn(), "only": [1, 2]},
        bad={
            "block": [lambda k: np.zeros((3, 2)), lambda k: np.ones((2, 2)), lambda k: None, lambda k: np.ones(3)],
            "only": [[7], [-1], [1, 4], [1, 1], [1.5], ["1"]],
        },
    ),
    "dynamics.composing.least_norm": Call(
        cg.least_norm, {"order4": 1, "order6": 2}, accepts={"order4": "fraction", "order6": "fraction"}
    ),  # a real function
    "dynamics.composing.memorisation": Call(cg.memorisation, {"group": Z3}, bad={"group": [S3]}),
    "dynamics.composing.nu": Call(cg.nu, {"value": 1j}, bad={"value": [2.0, [1.0], np.nan]}),
    "dynamics.composing.xi": Call(cg.xi, {"value": 1j}, bad={"value": [2.0, [1.0], np.nan]}),
    "dynamics.composing.syn": Call(cg.syn, {"alpha": 1j, "beta": -1.0}, bad={"alpha": [2.0], "beta": [0.5]}),
    "dynamics.composing.phase": Call(cg.phase, {"theta1": 0.1, "theta2": 0.2}, bad={"theta1": [np.inf]}),
    "dynamics.composing.times": Call(
        cg.times,
        {"first": cg.syn(), "second": cg.cube()},
        accepts={"first": "longer 1", "second": "longer 1"},
        positional=("first", "second"),
    ),
    "dynamics.composing.polynomial": Call(
        cg.polynomial,
        {"u": np.exp(1j * np.array([0.3, 0.4, -0.7]))},
        bad={"u": [[1, 2, 3], [0, 1, 1], [1, 1], [1, 1, 1]]},
    ),
    "dynamics.composing.pseudo_identity": Call(cg.pseudo_identity, {"group": Z3, "nodes": 2}, bad={"nodes": [0]}),
    "dynamics.composing.occam_path": Call(
        cg.occam_path,
        {"y": PAIR, "t": 1.5},
        accepts={"y": LEAVES},
        bad={"y": [cg.one(Z3), SIX], "t": [9.0, -1.0, np.nan]},
    ),
    "dynamics.composing.optimum_path": Call(
        cg.optimum_path,
        {"first": SIX, "second": SIX, "t": 0.5},
        accepts={"first": LEAVES, "second": LEAVES},
        bad={"second": [cg.one(Z5)]},
    ),
}
