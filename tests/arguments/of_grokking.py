"""Calls of `traindyn.dynamics.grokking` that work, and what they rightly accept."""

import jax
import jax.numpy as jnp
import numpy as np

from traindyn.dynamics import grokking as gk
from traindyn.dynamics import groups
from traindyn.dynamics.representations import irreps

from .kinds import Call

Z2, Z3, Z4 = groups.cyclic(2), groups.cyclic(3), groups.cyclic(4)
REAL, COMPLEX = irreps(Z3), irreps(Z3, over="complex")
PLANE = REAL[1]
E = jnp.array([1.0, 2.0])
W = jnp.array([[1.0, 2.0, 4.0], [3.0, 1.0, 0.5]])
USED = np.array([[True, False, True], [True, True, True], [False, True, True]])
ENERGY = gk.Energy(Z3)
FEATURES = jnp.array([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0], [2.0, 1.0]])
LABELS = jnp.eye(4, 3)
LAYER, V = gk.OutputLayer(FEATURES, LABELS, 0.5), jnp.ones((2, 3))
P = jnp.array([0.2, 0.5, 0.3])
TARGET, RACE = gk.SingleTarget(Z3, 1, P, "relu"), gk.ModeRace(jnp.array([1.0, 2.0]))
NODES = gk.real_nodes(REAL)
PAIRS = gk.pairs(Z3.table)
TIMES = {"t": ("text", "nothing", "NaN", "complex")}  # the flow does not depend on time
# Only whether numbers are alike counts, not which they are.
ALIKE = ("leaf 0 NaN", "leaf 1 NaN", "leaf 2 NaN")
# Leaves that are exchanged pass by the constructor of an irrep, which checks them.
LEAVES = tuple(f"leaf {i} {kind}" for i in (0, 1) for kind in ("complex", "longer"))
OTHERS = {"irreps": LEAVES}


CALLS = {
    "dynamics.grokking.Energy": Call(
        gk.Energy,
        {"group": Z3, "used": USED, "activation": jnp.square, "interaction": False},
        bad={"group": [Z2, Z3.table], "used": [0 * USED, USED / 2, USED * np.nan, USED[:2]], "activation": ["relu"]},
    ),
    "dynamics.grokking.Energy.__call__": Call(ENERGY, {"w": W}, bad={"w": [jnp.ones((2, 4))]}),
    "dynamics.grokking.ScaledAscent": Call(gk.ScaledAscent, {"energy": ENERGY}),
    "dynamics.grokking.ScaledAscent.__call__": Call(gk.ScaledAscent(ENERGY), {"t": 0.0, "y": W}, accepts=TIMES),
    "dynamics.grokking.SphereAscent": Call(gk.SphereAscent, {"energy": ENERGY}),
    "dynamics.grokking.SphereAscent.__call__": Call(gk.SphereAscent(ENERGY), {"t": 0.0, "y": W}, accepts=TIMES),
    "dynamics.grokking.SphereAscent.invariants": Call(gk.SphereAscent(ENERGY).invariants, {"y": W}),
    "dynamics.grokking.convolution": Call(
        gk.convolution, {"u": W[0], "v": W[1], "group": Z3}, bad={"v": [jnp.ones(2), jnp.ones(5)], "group": [Z4]}
    ),
    "dynamics.grokking.convolution_energy": Call(gk.convolution_energy, {"w": W, "group": Z3}, bad={"group": [Z4]}),
    "dynamics.grokking.plancherel_energy": Call(
        gk.plancherel_energy,
        {"w": W, "irreps": REAL},
        accepts=OTHERS,
        bad={"irreps": [irreps(Z4), (*REAL, *irreps(Z4)), REAL[0]]},
    ),
    "dynamics.grokking.pairs": Call(
        gk.pairs,
        {"table": Z3.table, "used": USED},
        bad={"table": [Z2.table, Z3.table + 1, "x"], "used": [0 * USED, USED / 2, USED[:2]]},
    ),
    "dynamics.grokking.inverse_gram": Call(
        gk.inverse_gram, {"features": FEATURES, "decay": 0.5}, bad={"decay": [-1.0]}
    ),
    "dynamics.grokking.missing": Call(
        gk.missing,
        {"irreps": REAL, "learned": [1]},
        accepts={"irreps": (*LEAVES, "leaf 1 NaN")},  # what is learned is left out
        bad={"irreps": [[], REAL[:1]], "learned": [[99], [-1], ["1"], "1", 1, [1.0]]},
    ),
    "dynamics.grokking.remaining_energy": Call(
        gk.remaining_energy,
        {"w": W, "irreps": REAL, "learned": [0]},
        accepts={"irreps": (*LEAVES, "leaf 0 NaN")},  # what is learned is left out
        bad={"irreps": [irreps(Z4)], "learned": [[99], [-1], ["1"], "1", 1, [1.0]]},
    ),
    "dynamics.grokking.repulsion": Call(
        gk.repulsion,
        {"features": FEATURES, "decay": 0.5, "j": 0, "k": 1},
        bad={"decay": [-1.0], "j": [1, 7, -1], "k": [0, 7, -1]},
    ),
    "dynamics.grokking.OutputLayer": Call(
        gk.OutputLayer,
        {"features": FEATURES, "labels": LABELS, "decay": 0.5},
        bad={"labels": [LABELS[:3]], "decay": [-1.0, np.inf, jnp.ones(2)], "features": [FEATURES[:0]]},
    ),
    "dynamics.grokking.OutputLayer.__call__": Call(LAYER, {"t": 0.0, "y": V}, accepts=TIMES),
    "dynamics.grokking.OutputLayer.exact": Call(LAYER.exact, {"y0": V, "ts": 0.5}, bad={"ts": [jnp.ones((2, 2))]}),
    "dynamics.grokking.OutputLayer.backpropagated": Call(LAYER.backpropagated, {"y": V}),
    "dynamics.grokking.centred": Call(gk.centred, {"x": FEATURES}),
    "dynamics.grokking.wide_kernel": Call(
        gk.wide_kernel, {"pairs": PAIRS}, accepts={"pairs": ALIKE}, bad={"pairs": [(1, 2, 3)]}
    ),
    "dynamics.grokking.complex_nodes": Call(
        gk.complex_nodes, {"irreps": COMPLEX, "seed": 0}, accepts=OTHERS, bad={"irreps": [[], COMPLEX[:1], COMPLEX[1]]}
    ),
    "dynamics.grokking.content": Call(
        gk.content,
        {"w": W, "irreps": REAL},
        bad={"w": [0 * W, jnp.ones((2, 4))], "irreps": [[], COMPLEX, irreps(Z4)]},
        accepts=OTHERS,
    ),
    "dynamics.grokking.curvatures": Call(gk.curvatures, {"energy": ENERGY, "w": W}, bad={"w": [0 * W]}),
    "dynamics.grokking.left_over": Call(
        gk.left_over, {"nodes": NODES, "group": Z3}, accepts={"nodes": "complex"}, bad={"nodes": [NODES[:, :, :0]]}
    ),
    "dynamics.grokking.residual": Call(
        gk.residual, {"nodes": NODES, "group": Z3}, accepts={"nodes": "complex"}, bad={"group": [Z4]}
    ),
    "dynamics.grokking.maximum": Call(
        gk.maximum,
        {"irrep": PLANE, "a": E, "x": E, "b": E},
        accepts={"irrep": ("leaf 0 longer",)},
        bad={"irrep": [COMPLEX[1], REAL[0]], "x": [0 * E]},
    ),
    # The value and the counts are of the representation's dimension and kind alone, not of its matrices' entries.
    "dynamics.grokking.peak": Call(
        gk.peak,
        {"irrep": PLANE},
        accepts={"irrep": ("leaf 0 NaN", "leaf 0 longer")},
        bad={"irrep": [*COMPLEX, REAL[0]]},
    ),
    "dynamics.grokking.spectrum": Call(
        gk.spectrum,
        {"irrep": PLANE},
        accepts={"irrep": ("leaf 0 NaN", "leaf 0 longer")},
        bad={"irrep": [*COMPLEX, REAL[0]]},
    ),
    "dynamics.grokking.real_nodes": Call(
        gk.real_nodes, {"irreps": REAL}, accepts=OTHERS, bad={"irreps": [[], REAL[:1], COMPLEX, REAL[1]]}
    ),
    "dynamics.grokking.SingleTarget": Call(
        gk.SingleTarget,
        {"group": Z3, "target": 1, "probabilities": P, "activation": "relu"},
        bad={"group": [Z2, Z4], "target": [3, -1], "probabilities": [2 * P, P - 0.3], "activation": ["gelu"]},
    ),
    "dynamics.grokking.SingleTarget.__call__": Call(TARGET, {"w": W}),
    "dynamics.grokking.SingleTarget.sums": Call(TARGET.sums, {"w": W}),
    "dynamics.grokking.SingleTarget.node": Call(TARGET.node, {"s": W[0]}),
    "dynamics.grokking.ModeRace": Call(gk.ModeRace, {"mu": P}, bad={"mu": [jnp.ones((2, 2)), [np.inf]]}),
    "dynamics.grokking.ModeRace.__call__": Call(RACE, {"t": 0.0, "y": E}, accepts=TIMES),
    "dynamics.grokking.ModeRace.exact": Call(RACE.exact, {"y0": E, "ts": 0.1}, bad={"ts": [jnp.ones((2, 2))]}),
    "dynamics.grokking.ModeRace.blow_up_time": Call(RACE.blow_up_time, {"y0": E}),
    "dynamics.grokking.ModeRace.winner": Call(RACE.winner, {"y0": E}),
    "dynamics.grokking.coupon_bound": Call(gk.coupon_bound, {"p": P}, bad={"p": [2 * P, P - 0.3, []]}),
    "dynamics.grokking.coupon_time": Call(gk.coupon_time, {"p": P}, bad={"p": [2 * P, [1.0, 0.0], []]}),
    "dynamics.grokking.distinct": Call(
        gk.distinct, {"p": P, "draws": 2.0}, bad={"p": [2 * P], "draws": [-1, jnp.ones(2)]}
    ),
    "dynamics.grokking.frechet": Call(
        gk.frechet,
        {"key": jax.random.key(0), "shape": (2,), "exponent": 1.0},
        bad={"shape": [3, (-3,), (2.5,), "a"], "exponent": [0, -1, np.inf]},
    ),
    "dynamics.grokking.polar": Call(gk.polar, {"a": FEATURES}, bad={"a": [E]}),
    "dynamics.grokking.polar_last_column": Call(
        gk.polar_last_column,
        {"q": jnp.eye(3, 2), "v": jnp.ones(3)},
        bad={"q": [jnp.ones((3, 2))], "v": [jnp.array([1.0, 2.0, 0.0]), jnp.zeros(3)]},
    ),
    "dynamics.grokking.sequential_coupon_time": Call(
        gk.sequential_coupon_time, {"p": P, "exponent": 1.0}, bad={"p": [2 * P], "exponent": [0, -1]}
    ),
    "dynamics.grokking.winner_probabilities": Call(
        gk.winner_probabilities,
        {"mu": P, "exponent": 2.0},
        bad={"mu": [P - 0.3, jnp.ones((1, 2))], "exponent": [0, -1, np.inf]},
    ),
}
