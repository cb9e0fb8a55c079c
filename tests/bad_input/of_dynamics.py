import math

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
from traindyn.dynamics import (
    GradientFlow,
    composing,
    crossing_time,
    escape_time,
    galore,
    grokking,
    groups,
    joma,
    map_lanes,
    representations,
    reversal,
    scan_snap,
    solve,
)

from .cases import C

k = jax.random.key(0)
nan, inf = float("nan"), float("inf")
flow = joma.LinearActivation(jnp.array([1.0, 0.8, -0.3]))
z3 = jnp.zeros(3)
# ---- solve
G = "solve"
decay = GradientFlow(lambda w: 0.5 * jnp.sum(w**2))
C(G, "ts decreasing", lambda: solve(decay, jnp.ones(2), [1.0, 0.5]).ys)
C(G, "ts equal", lambda: solve(decay, jnp.ones(2), [0.5, 0.5]).ys)
C(G, "ts negative", lambda: solve(decay, jnp.ones(2), [-1.0, 0.5]).ys)
C(G, "ts empty", lambda: solve(decay, jnp.ones(2), []).ys)
C(G, "ts NaN", lambda: solve(decay, jnp.ones(2), [0.0, nan]).ys)
C(G, "ts inf", lambda: solve(decay, jnp.ones(2), [0.0, inf]).ys)
C(G, "ts 2-d", lambda: solve(decay, jnp.ones(2), jnp.ones((2, 2))).ys)
C(G, "ts scalar", lambda: solve(decay, jnp.ones(2), 1.0).ys)
C(G, "ts strings", lambda: solve(decay, jnp.ones(2), ["a", "b"]).ys)
C(G, "ts None", lambda: solve(decay, jnp.ones(2), None).ys)
C(G, "ts complex", lambda: solve(decay, jnp.ones(2), jnp.array([0, 1 + 1j])).ys)
C(G, "ts bool", lambda: solve(decay, jnp.ones(2), jnp.array([False, True])).ys)
C(G, "ts only zero", lambda: solve(decay, jnp.ones(2), [0.0]).ys, "ok")
C(G, "ts decreasing under jit", lambda: jax.jit(lambda ts: solve(decay, jnp.ones(2), ts).ys)(jnp.array([1.0, 0.5])))
C(
    G,
    "ts decreasing under jit, throw=False",
    lambda: jax.jit(lambda ts: solve(decay, jnp.ones(2), ts, throw=False).ys)(jnp.array([1.0, 0.5])),
)
C(
    G,
    "ts decreasing under filter_jit",
    lambda: eqx.filter_jit(lambda ts: solve(decay, jnp.ones(2), ts).ys)(jnp.array([1.0, 0.5])),
)
C(
    G,
    "ts NaN under vmap",
    lambda: jax.vmap(lambda t: solve(decay, jnp.ones(2), jnp.stack([0.0 * t, t])).ys)(jnp.array([1.0, nan])),
)
C(G, "y0 int array", lambda: solve(decay, jnp.arange(3), [0.0, 1.0]).ys)
C(G, "y0 int scalar", lambda: solve(decay, 1, [0.0, 1.0]).ys)
C(G, "y0 bool", lambda: solve(decay, jnp.array([True]), [0.0, 1.0]).ys)
C(G, "y0 NaN", lambda: solve(decay, jnp.array([nan, 1.0]), [0.0, 1.0]).ys)
C(G, "y0 inf", lambda: solve(decay, jnp.array([inf, 1.0]), [0.0, 1.0]).ys)
C(G, "y0 empty array", lambda: solve(decay, jnp.zeros(0), [0.0, 1.0]).ys)
C(G, "y0 empty dict", lambda: solve(decay, {}, [0.0, 1.0]).ys)
C(G, "y0 None", lambda: solve(decay, None, [0.0, 1.0]).ys)
C(G, "y0 string", lambda: solve(decay, "abc", [0.0, 1.0]).ys)
C(G, "y0 complex", lambda: solve(decay, jnp.array([1 + 1j]), [0.0, 1.0]).ys)
C(G, "y0 float16", lambda: solve(decay, jnp.ones(2, jnp.float16), [0.0, 1.0]).ys)
C(G, "y0 bfloat16", lambda: solve(decay, jnp.ones(2, jnp.bfloat16), [0.0, 1.0]).ys)
C(G, "y0 list of floats", lambda: solve(decay, [1.0, 2.0], [0.0, 1.0]).ys)
C(G, "y0 wrong shape for the flow", lambda: solve(flow, jnp.zeros(4), [0.0, 0.1]).ys)
C(G, "y0 float32 with float64 flow", lambda: solve(flow, jnp.zeros(3, jnp.float32), [0.0, 0.1]).ys, "ok")
C(G, "flow is None", lambda: solve(None, jnp.ones(2), [0.0, 1.0]).ys)
C(G, "flow is a class", lambda: solve(joma.LinearActivation, jnp.ones(2), [0.0, 1.0]).ys)
C(G, "flow with wrong signature", lambda: solve(lambda y: -y, jnp.ones(2), [0.0, 1.0]).ys)
C(G, "flow returns another shape", lambda: solve(lambda t, y, a: jnp.ones(3), jnp.ones(2), [0.0, 1.0]).ys)
C(G, "flow returns another structure", lambda: solve(lambda t, y, a: {"v": y}, jnp.ones(2), [0.0, 1.0]).ys)
C(G, "flow returns None", lambda: solve(lambda t, y, a: None, jnp.ones(2), [0.0, 1.0]).ys)
C(G, "flow returns NaN", lambda: solve(lambda t, y, a: y * jnp.nan, jnp.ones(2), [0.0, 1.0]).ys)
C(G, "flow returns int", lambda: solve(lambda t, y, a: jnp.ones(2, int), jnp.ones(2), [0.0, 1.0]).ys)
C(G, "rtol negative", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], rtol=-1e-3).ys)
C(G, "rtol zero, atol zero", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], rtol=0.0, atol=0.0, max_steps=500).ys)
C(G, "rtol NaN", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], rtol=nan, max_steps=500).ys)
C(G, "rtol 10 (>1)", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], rtol=10.0).ys)
C(G, "rtol string", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], rtol="1e-3").ys)
C(G, "max_steps 0", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], max_steps=0).ys)
C(G, "max_steps -1", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], max_steps=-1).ys)
C(G, "max_steps None", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], max_steps=None).ys)
C(G, "max_steps 1.5", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], max_steps=1.5).ys)
C(G, "max_steps 3 (too few)", lambda: solve(decay, jnp.ones(2), [0.0, 100.0], max_steps=3).ys)
C(G, "solver a string", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], solver="Tsit5").ys)
C(G, "solver a class", lambda: solve(decay, jnp.ones(2), [0.0, 1.0], solver=dfx.Tsit5).ys)
C(
    G,
    "controller ConstantStepSize",
    lambda: solve(decay, jnp.ones(2), [0.0, 1.0], stepsize_controller=dfx.ConstantStepSize()).ys,
)
C(G, "past the blow-up", lambda: solve(flow, z3, [0.0, 5.0]).ys)
C(G, "past the blow-up under jit", lambda: jax.jit(lambda t: solve(flow, z3, jnp.stack([0 * t, t])).ys)(5.0))
C(G, "past the blow-up, throw=False", lambda: solve(flow, z3, [0.0, 5.0], throw=False).ys, "ok")
C(G, "jit with traced y0 NaN", lambda: jax.jit(lambda y: solve(decay, y, [0.0, 1.0]).ys)(jnp.array([nan])))
C(G, "grad through y0", lambda: jax.grad(lambda y: solve(decay, y, [0.0, 1.0]).ys[-1].sum())(jnp.ones(2)), "ok")
C(
    G,
    "x64 requested off: float64 numpy y0 in x32 is silently float32",
    lambda: solve(decay, np.ones(2, np.float64), [0.0, 1.0]).ys,
    "ok",
)
C("GradientFlow", "loss returns a vector", lambda: solve(GradientFlow(lambda w: w**2), jnp.ones(2), [0.0, 1.0]).ys)
C("GradientFlow", "loss NaN", lambda: solve(GradientFlow(lambda w: jnp.sum(jnp.log(w))), -jnp.ones(2), [0.0, 0.1]).ys)
C(
    "GradientFlow",
    "rates of another tree",
    lambda: solve(GradientFlow(lambda w: jnp.sum(w["a"] ** 2), {"b": 1.0}), {"a": jnp.ones(2)}, [0.0, 1.0]).ys,
)
C("GradientFlow", "rates NaN", lambda: solve(GradientFlow(lambda w: jnp.sum(w**2), nan), jnp.ones(2), [0.0, 1.0]).ys)
C("GradientFlow", "rates string", lambda: GradientFlow(lambda w: jnp.sum(w**2), "fast"))
C(
    "GradientFlow",
    "rates of a shape that broadcasts the state up",
    lambda: solve(GradientFlow(lambda w: jnp.sum(w**2), jnp.ones((3, 2))), jnp.ones(2), [0.0, 1.0]).ys,
)
C("GradientFlow", "loss None", lambda: solve(GradientFlow(None), jnp.ones(2), [0.0, 1.0]).ys)
# ---- map_lanes
G = "crossing_time"
event = lambda **o: crossing_time(
    **({"flow": lambda t, y, a: -y, "y0": jnp.ones(()), "quantity": lambda y: y, "level": 0.5, "until": 2.0} | o)
)
C(G, "at ln 2", lambda: event(), "0.6931")
C(G, "never", lambda: event(level=2.0), "inf")
C(G, "level NaN", lambda: event(level=nan))
C(G, "level a vector", lambda: event(level=jnp.ones(2)))
C(G, "until 0", lambda: event(until=0))
C(G, "quantity a vector", lambda: event(quantity=lambda y: jnp.stack([y, y])))
C(G, "flow blows up before", lambda: event(flow=lambda t, y, a: y**2))
C(G, "flow of another shape", lambda: event(flow=lambda t, y, a: jnp.ones(2)))
C(G, "escape at rest", lambda: escape_time(lambda t, y, a: 0 * y, jnp.ones(()), lambda y: y, 1.0), "inf")
C(G, "escape fraction 1", lambda: escape_time(lambda t, y, a: -y, jnp.ones(()), lambda y: y, 1.0, fraction=1))
G = "map_lanes"
C(G, "no lanes", lambda: map_lanes(lambda x: x, jnp.zeros((0,))))
C(G, "lanes of unlike length", lambda: map_lanes(lambda x: x[0] + x[1], (jnp.ones(2), jnp.ones(3))))
C(G, "scalar lanes", lambda: map_lanes(lambda x: x, 1.0))
C(G, "batch_size 0", lambda: map_lanes(lambda x: x, jnp.ones(3), batch_size=0))
C(G, "batch_size 1.5", lambda: map_lanes(lambda x: x, jnp.ones(3), batch_size=1.5))
C(G, "lanes None", lambda: map_lanes(lambda x: x, None))
C(G, "lanes a list of strings", lambda: map_lanes(lambda x: x, ["a", "b"]))
C(G, "mesh a string", lambda: map_lanes(lambda x: x, jnp.ones(3), mesh="2x1"))
C(G, "fn returns static that differs per lane", lambda: map_lanes(lambda x: (x, "s"), jnp.ones(3)), "ok")
# ---- joma
G = "joma"
C(G, "LinearActivation delta 2-d", lambda: joma.LinearActivation(jnp.ones((2, 2))))
C(
    G,
    "LinearActivation delta NaN",
    lambda: solve(joma.LinearActivation(jnp.array([nan, 1.0])), jnp.zeros(2), [0.0, 0.1]).ys,
)
C(G, "LinearActivation delta NaN, exact", lambda: joma.LinearActivation(jnp.array([nan, 1.0])).exact(jnp.zeros(2), 0.1))
C(
    G,
    "LinearActivation normaliser 0",
    lambda: solve(joma.LinearActivation(jnp.ones(2), 0.0), jnp.zeros(2), [0.0, 0.1]).ys,
)
C(G, "LinearActivation normaliser -1", lambda: joma.LinearActivation(jnp.ones(2), -1.0).exact(jnp.zeros(2), 0.1))
C(G, "LinearActivation normaliser vector", lambda: joma.LinearActivation(jnp.ones(2), jnp.ones(2)))
C(G, "LinearActivation delta strings", lambda: joma.LinearActivation(["a", "b"]))
C(
    G,
    "LinearActivation delta complex",
    lambda: solve(joma.LinearActivation(jnp.array([1 + 1j])), jnp.zeros(1), [0.0, 0.1]).ys,
)
C(G, "LinearActivation delta list", lambda: joma.LinearActivation([1.0, 2.0]).delta, "ok")
C(G, "LinearActivation.exact t negative", lambda: flow.exact(z3, -0.5))
C(G, "LinearActivation.exact past blow-up", lambda: flow.exact(z3, 5.0))
C(G, "LinearActivation.exact past blow-up, jit", lambda: jax.jit(flow.exact)(z3, 5.0))
C(G, "LinearActivation.exact ts matrix", lambda: flow.exact(z3, jnp.ones((2, 2))))
C(G, "LinearActivation.exact v0 wrong", lambda: flow.exact(jnp.zeros(2), 0.1))
C(G, "LinearActivation.exact int v0", lambda: flow.exact(jnp.zeros(3, int), 0.1))
C(G, "LinearActivation.exact list v0", lambda: flow.exact([0.0, 0.0, 0.0], 0.1))
C(G, "ManyNodes delta 1-d", lambda: joma.ManyNodes(jnp.ones(3)))
C(G, "ManyNodes V0 wrong", lambda: joma.ManyNodes(jnp.ones((3, 2))).exact(jnp.zeros((3, 3)), 0.1))
C(G, "ManyNodes normaliser 0", lambda: joma.ManyNodes(jnp.ones((3, 2)), 0.0).exact(jnp.zeros((3, 2)), 0.1))
C(
    G,
    "LinearAttention z of other length",
    lambda: joma.LinearAttention(jnp.ones((3, 2)))(0.0, joma.LinearAttentionState(jnp.ones((3, 2)), jnp.ones(1))),
)
C(
    G,
    "LinearAttention state as tuple",
    lambda: solve(joma.LinearAttention(jnp.ones((3, 2))), (jnp.ones((3, 2)), jnp.ones(3)), [0.0, 0.1]).ys,
)
C(G, "Mixture strength of other length", lambda: joma.Mixture(jnp.ones((3, 2)), jnp.ones(2)))
C(
    G,
    "Mixture sigma negative",
    lambda: joma.Mixture(jnp.ones((3, 2)), jnp.ones(3), -1.0)(0.0, joma.MixtureState(jnp.ones(2), jnp.zeros(()))),
)
C(G, "Mixture activation unknown", lambda: joma.Mixture(jnp.ones((3, 2)), jnp.ones(3), activation="gelu"))
C(
    G,
    "Mixture relu, v = 0",
    lambda: joma.Mixture(jnp.ones((3, 2)), jnp.ones(3))(0.0, joma.MixtureState(jnp.zeros(2), jnp.zeros(()))),
)
C(G, "NonlinearActivation mu 2-d", lambda: joma.NonlinearActivation(jnp.ones((2, 2))))
C(G, "NonlinearActivation.exact t<0", lambda: joma.NonlinearActivation(jnp.ones(2)).exact(jnp.zeros(2), -1.0))
C(
    G,
    "NonlinearActivation.exact t<0, jit",
    lambda: jax.jit(joma.NonlinearActivation(jnp.ones(2)).exact)(jnp.zeros(2), -1.0),
)
C(G, "NonlinearActivation.exact mu 40", lambda: joma.NonlinearActivation(jnp.array([40.0])).exact(jnp.zeros(1), 1.0))
C(G, "NonlinearActivation.exact mu NaN", lambda: joma.NonlinearActivation(jnp.array([nan])).exact(jnp.zeros(1), 1.0))
C(
    G,
    "NonlinearActivation.time_to beyond mu",
    lambda: joma.NonlinearActivation(jnp.array([1.0])).time_to(jnp.zeros(1), jnp.array([2.0])),
)
C(
    G,
    "NonlinearActivation.time_to before start",
    lambda: joma.NonlinearActivation(jnp.array([1.0])).time_to(jnp.zeros(1), jnp.array([-0.5])),
)
C(G, "LogGap.to_log v=mu", lambda: joma.LogGap(jnp.array([1.0])).to_log(jnp.array([1.0])))
C(G, "LogGap mu=0", lambda: joma.LogGap(jnp.array([0.0])).to_log(jnp.array([0.0])))
C(G, "LogGap.time_to y<y0", lambda: joma.LogGap(jnp.array([1.0])).time_to(jnp.array([1.0]), jnp.array([0.0])))
C(
    G,
    "Joint query out of range",
    lambda: joma.Joint(jnp.ones((4, 3)), jnp.ones((4, 2)), query=jnp.array([0, 1, 5, 0]))(
        0.0, joma.JointState(jnp.ones((3, 2)), jnp.zeros((2, 3)), jnp.zeros((2, 2)))
    ),
)
C(
    G,
    "Joint query negative",
    lambda: joma.Joint(jnp.ones((4, 3)), jnp.ones((4, 2)), query=jnp.array([0, -1, 1, 0]))(
        0.0, joma.JointState(jnp.ones((3, 2)), jnp.zeros((2, 3)), jnp.zeros((2, 2)))
    ),
)
C(
    G,
    "Joint query floats",
    lambda: joma.Joint(jnp.ones((4, 3)), jnp.ones((4, 2)), query=jnp.array([0.0, 1, 0, 1]))(
        0.0, joma.JointState(jnp.ones((3, 2)), jnp.zeros((2, 3)), jnp.zeros((2, 2)))
    ),
)
C(G, "Joint attention unknown", lambda: joma.Joint(jnp.ones((4, 3)), jnp.ones((4, 2)), attention="relu"))
C(G, "Joint g of other samples", lambda: joma.Joint(jnp.ones((4, 3)), jnp.ones((5, 2))))
C(
    G,
    "Joint temperature 0",
    lambda: joma.Joint(jnp.ones((4, 3)), jnp.ones((4, 2)), temperature=0.0)(
        0.0, joma.JointState(jnp.ones((3, 2)), jnp.zeros((1, 3)), jnp.zeros((1, 2)))
    ),
)
C(
    G,
    "Joint eta_w 0 -> invariants",
    lambda: joma.Joint(jnp.ones((4, 3)), jnp.ones((4, 2)), eta_w=0.0).invariants(
        joma.JointState(jnp.ones((3, 2)), jnp.zeros((1, 3)), jnp.zeros((1, 2)))
    ),
)
C(
    G,
    "Joint x negative frequencies",
    lambda: joma.Joint(-jnp.ones((4, 3)), jnp.ones((4, 2)), attention="softmax").attend(jnp.zeros((1, 3))),
)
C(
    G,
    "Joint state of another size (z tokens)",
    lambda: joma.Joint(jnp.ones((4, 3)), jnp.ones((4, 2)))(
        0.0, joma.JointState(jnp.ones((3, 2)), jnp.zeros((1, 1)), jnp.zeros((1, 2)))
    ),
)
C(
    G,
    "Joint state beta broadcast",
    lambda: joma.Joint(jnp.ones((4, 3)), jnp.ones((4, 2)))(
        0.0, joma.JointState(jnp.ones((3, 2)), jnp.zeros((1, 3)), jnp.zeros((1, 1)))
    ),
)
C(
    G,
    "Joint x without tokens for softmax (row of zeros)",
    lambda: joma.Joint(jnp.zeros((4, 3)), jnp.ones((4, 2)), attention="softmax").attend(jnp.zeros((1, 3))),
)
C(G, "invariants shapes", lambda: joma.invariants("exp", jnp.ones((3, 2)), jnp.ones((1, 4))))
C(G, "invariants v 1-d", lambda: joma.invariants("exp", jnp.ones(3), jnp.ones((1, 3))))
C(G, "invariants attention None", lambda: joma.invariants(None, jnp.ones((3, 2)), jnp.ones((1, 3))))
C(G, "invariants numpy int v", lambda: joma.invariants("exp", np.ones((3, 2), int), np.ones((1, 3), int)))
C(
    G,
    "predicted_logits softmax without b_bar",
    lambda: joma.predicted_logits("softmax", jnp.ones((3, 2)), v0=jnp.ones((3, 2)), z0=jnp.ones(3)),
)
C(
    G,
    "predicted_logits linear with impossible",
    lambda: joma.predicted_logits("linear", jnp.zeros((3, 2)), v0=2 * jnp.ones((3, 2)), z0=jnp.ones(3)),
)
# ---- scan_snap
G = "scan_snap"
P = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
C(G, "ScanSnap rows not one", lambda: scan_snap.ScanSnap(jnp.ones((2, 3))))
C(
    G,
    "ScanSnap rows not one, jit",
    lambda: jax.jit(lambda p: scan_snap.ScanSnap(p)(0.0, scan_snap.YZ(jnp.zeros((3, 2)), jnp.zeros((2, 3)))))(
        jnp.ones((2, 3))
    ),
)
C(G, "ScanSnap negative", lambda: scan_snap.ScanSnap(jnp.array([[1.5, -0.5], [0.5, 0.5]])))
C(G, "ScanSnap NaN", lambda: scan_snap.ScanSnap(jnp.array([[nan, 1.0], [0.5, 0.5]])))
C(G, "ScanSnap query out of range", lambda: scan_snap.ScanSnap(P, jnp.array([0, 3]), queries=2))
C(G, "ScanSnap query negative", lambda: scan_snap.ScanSnap(P, jnp.array([0, -1])))
C(
    G,
    "ScanSnap query floats",
    lambda: scan_snap.ScanSnap(P, jnp.array([0.0, 1.0]))(0.0, scan_snap.YZ(jnp.zeros((3, 2)), jnp.zeros((2, 3)))),
)
C(G, "ScanSnap outputs too few", lambda: scan_snap.ScanSnap(P, outputs=1))
C(G, "ScanSnap outputs float", lambda: scan_snap.ScanSnap(P, outputs=2.5).zero())
C(G, "ScanSnap empty", lambda: scan_snap.ScanSnap(jnp.zeros((0, 3))))
C(G, "ScanSnap 1-d", lambda: scan_snap.ScanSnap(jnp.ones(3) / 3))
C(G, "ScanSnap queries 0", lambda: scan_snap.ScanSnap(P, queries=0))
C(G, "ScanSnap state wrong y", lambda: scan_snap.ScanSnap(P)(0.0, scan_snap.YZ(jnp.zeros((3, 5)), jnp.zeros((1, 3)))))
C(
    G,
    "ScanSnap state z too few queries (clamped gather)",
    lambda: scan_snap.ScanSnap(P, jnp.array([0, 1]))(0.0, scan_snap.YZ(jnp.zeros((3, 2)), jnp.zeros((1, 3)))),
)
C(
    G,
    "ScanSnap tier A with equal classes (singular)",
    lambda: scan_snap.ScanSnap(jnp.array([[0.5, 0.5], [0.5, 0.5]]), preconditioned=True)(
        0.0, scan_snap.YZ(jnp.zeros((2, 2)), jnp.zeros((1, 2)))
    ),
)
C(G, "Decoder outputs 1", lambda: scan_snap.Decoder(1))
C(G, "Decoder outputs 1, jit", lambda: jax.jit(lambda m: scan_snap.Decoder(m).exact(0.0, 1.0))(1.0))
C(G, "Decoder classes 0", lambda: scan_snap.Decoder(10, 0).exact(0.0, 1.0))
C(G, "Decoder classes -2", lambda: scan_snap.Decoder(10, -2).exact(0.0, 1.0))
C(G, "Decoder eta negative", lambda: scan_snap.Decoder(10, 1, -1.0).exact(0.0, 1.0))
C(G, "Decoder.exact t<0", lambda: scan_snap.Decoder(10).exact(0.0, -1.0))
C(G, "Decoder.exact t NaN", lambda: scan_snap.Decoder(10).exact(0.0, nan))
C(G, "Decoder outputs complex", lambda: scan_snap.Decoder(3 + 1j))
C(G, "Decoder outputs string", lambda: scan_snap.Decoder("ten"))
C(G, "Decoder.visits negative", lambda: scan_snap.Decoder(10).visits(-1))
C(G, "Decoder.visits float", lambda: scan_snap.Decoder(10).visits(2.5))
C(G, "logit_gap others 0", lambda: scan_snap.logit_gap(1.0, 0.0))
C(G, "logit_gap others negative", lambda: scan_snap.logit_gap(1.0, -2.0))
C(G, "logit_gap k=-inf", lambda: scan_snap.logit_gap(-inf, 1.0))
C(G, "SymmetricDecoder classes 1", lambda: scan_snap.SymmetricDecoder(0.1, 1, 5))
C(G, "SymmetricDecoder rho 1", lambda: scan_snap.SymmetricDecoder(1.0, 3, 3).from_zero(1.0))
C(G, "SymmetricDecoder rho 2", lambda: scan_snap.SymmetricDecoder(2.0, 3, 3).from_zero(1.0))
C(G, "SymmetricDecoder rho -1", lambda: scan_snap.SymmetricDecoder(-1.0, 3, 3).from_zero(1.0))
C(G, "SymmetricAttention classes 1", lambda: scan_snap.SymmetricAttention(jnp.ones(1), jnp.ones(2), 1))
C(
    G,
    "SymmetricAttention negative weights",
    lambda: scan_snap.SymmetricAttention(-jnp.ones(1), jnp.ones(2), 3).rho(jnp.zeros(3)),
)
C(
    G,
    "SymmetricAttention no common",
    lambda: scan_snap.SymmetricAttention(jnp.ones(0), jnp.ones(2), 3)(1.0, jnp.zeros(2)),
)
C(
    G,
    "SymmetricAttention no distinct",
    lambda: scan_snap.SymmetricAttention(jnp.ones(1), jnp.ones(0), 3)(1.0, jnp.zeros(1)),
)
C(
    G,
    "SymmetricAttention state too long",
    lambda: scan_snap.SymmetricAttention(jnp.ones(1), jnp.ones(2), 3)(1.0, jnp.zeros(5)),
)
C(G, "SymmetricAttention.law tier A", lambda: scan_snap.SymmetricAttention(jnp.ones(1), jnp.ones(2), 3, 7).law(1.0))
C(G, "PhaseTransition c0 0", lambda: scan_snap.PhaseTransition(scan_snap.Decoder(10), 0.1, 0.0).exact(0.0, 1.0))
C(
    G,
    "PhaseTransition c0 negative",
    lambda: scan_snap.PhaseTransition(scan_snap.Decoder(10), 0.1, -1.0).exact(0.0, 100.0),
)
C(G, "PhaseTransition.late at t small", lambda: scan_snap.PhaseTransition(scan_snap.Decoder(10), 0.1, 1.0).late(0.0))
C(G, "backprop_coefficients outputs 1", lambda: scan_snap.backprop_coefficients(jnp.eye(2), 1))
C(G, "backprop_coefficients singular", lambda: scan_snap.backprop_coefficients(jnp.ones((2, 2)) / math.sqrt(2), 5))
# ---- reversal
G = "reversal"
C(G, "Bilinear gram not square", lambda: reversal.Bilinear(jnp.ones((3, 2)), jnp.array([[0, 1]])))
C(G, "Bilinear gram 0-d", lambda: reversal.Bilinear(jnp.ones(()), jnp.array([[0, 1]])))
C(G, "Bilinear pair out of range", lambda: reversal.Bilinear(jnp.eye(3), jnp.array([[0, 3]])))
C(G, "Bilinear pair negative", lambda: reversal.Bilinear(jnp.eye(3), jnp.array([[0, -1]])))
C(
    G,
    "Bilinear pair out of range, jit",
    lambda: jax.jit(lambda p: reversal.Bilinear(jnp.eye(3), p)(0.0, jnp.zeros((3, 3))))(jnp.array([[0, 3]])),
)
C(G, "Bilinear pairs floats", lambda: reversal.Bilinear(jnp.eye(3), jnp.array([[0.0, 1.5]]))(0.0, jnp.zeros((3, 3))))
C(
    G,
    "Bilinear.loss pairs out of range",
    lambda: reversal.Bilinear(jnp.eye(3), jnp.array([[0, 1]])).loss(jnp.zeros((3, 3)), jnp.array([[5, 7]])),
)
C(G, "Bilinear no pairs", lambda: reversal.Bilinear(jnp.eye(3), jnp.zeros((0, 2), int)))
C(G, "Bilinear gram not symmetric", lambda: reversal.Bilinear(jnp.array([[1.0, 2], [0, 1]]), jnp.array([[0, 1]])))
C(G, "Bilinear start list", lambda: reversal.Bilinear(jnp.eye(3), jnp.array([[0, 1]]), [[0.0] * 3] * 3))
C(G, "Bilinear state wrong", lambda: reversal.Bilinear(jnp.eye(3), jnp.array([[0, 1]]))(0.0, jnp.zeros((2, 2))))
C(G, "Bilinear.of theta wrong", lambda: reversal.Bilinear.of(jnp.ones((3, 4)), jnp.array([[0, 1]]), jnp.ones((3, 3))))
C(G, "OneLayer targets 0", lambda: reversal.OneLayer(10, 3, targets=0))
C(G, "OneLayer outputs <= targets", lambda: reversal.OneLayer(2, 3, targets=2))
C(G, "OneLayer outputs 1, jit", lambda: jax.jit(lambda m: reversal.OneLayer(m, 3).exact(0.0, 1.0))(1.0))
C(G, "OneLayer sentences 0", lambda: reversal.OneLayer(10, 0).exact(0.0, 1.0))
C(G, "OneLayer sentences -1", lambda: reversal.OneLayer(10, -1).exact(0.0, 1.0))
C(G, "OneLayer.visits two targets", lambda: reversal.OneLayer(10, 3, targets=2).visits(4))
C(
    G,
    "separation_exponent first loss zero",
    lambda: reversal.separation_exponent(jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0])),
)
C(
    G,
    "separation_exponent rising loss",
    lambda: reversal.separation_exponent(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.5])),
)
C(
    G,
    "separation_exponent negative loss",
    lambda: reversal.separation_exponent(jnp.array([1.0, -2.0]), jnp.array([1.0, 0.5])),
)
# ---- galore theory
G = "dynamics.galore"
A = jnp.ones((2, 3, 4))
B = jnp.tile(jnp.eye(3), (2, 1, 1))
CC = jnp.tile(jnp.eye(4), (2, 1, 1))
C(G, "ReversibleGradient b wrong", lambda: galore.ReversibleGradient(A, CC, CC))
C(G, "ReversibleGradient b asymmetric", lambda: galore.ReversibleGradient(A, B.at[0, 0, 1].set(1.0), CC))
C(
    G,
    "ReversibleGradient b asymmetric, jit",
    lambda: jax.jit(lambda b: galore.ReversibleGradient(A, b, CC)(0.0, jnp.zeros((3, 4))))(B.at[0, 0, 1].set(1.0)),
)
C(G, "ReversibleGradient b indefinite", lambda: galore.ReversibleGradient(A, -B, CC))
C(G, "ReversibleGradient b NaN", lambda: galore.ReversibleGradient(A, B.at[0, 0, 0].set(nan), CC))
C(G, "ReversibleGradient no samples", lambda: galore.ReversibleGradient(A[:0], B[:0], CC[:0])(0.0, jnp.zeros((3, 4))))
C(G, "ReversibleGradient.exact huge t", lambda: galore.ReversibleGradient(A, B, CC).exact(jnp.zeros((3, 4)), 1e30))
C(G, "ReversibleGradient.exact t<0", lambda: galore.ReversibleGradient(A, B, CC).exact(jnp.zeros((3, 4)), -1.0))
C(
    G,
    "within p not orthonormal",
    lambda: galore.ReversibleGradient(A, B, CC).within(jnp.ones((3, 2)), jnp.ones((4, 2)), jnp.zeros((3, 4))).a,
)
C(G, "split gradient wrong shape", lambda: galore.ReversibleGradient(A, B, CC).split(jnp.ones((4, 3))))
C(
    G,
    "stable_rank_bound lr too large",
    lambda: galore.stable_rank_bound(
        galore.ReversibleGradient(A, B, CC).split(jnp.ones((3, 4))), 100.0, jnp.array([1, 2])
    ),
)
C(
    G,
    "stable_rank_bound steps negative",
    lambda: galore.stable_rank_bound(
        galore.ReversibleGradient(A, 2 * B.at[0, 0, 0].set(5.0), CC).split(jnp.ones((3, 4))), 0.01, jnp.array([-5])
    ),
)
# ---- groups
G = "groups"
for bad in (0, 1, -3, 2.5, "7", None, True, nan):
    C(G, f"cyclic({bad!r})", lambda bad=bad: groups.cyclic(bad))
C(G, "product()", lambda: groups.product())
C(G, "product(3, 2.7)", lambda: groups.product(3, 2.7).factors)
C(G, "product(3, 1)", lambda: groups.product(3, 1))
C(G, "symmetric(7)", lambda: groups.symmetric(7))
C(G, "symmetric(0)", lambda: groups.symmetric(0))
C(G, "symmetric(2.0)", lambda: groups.symmetric(2.0))
C(G, "alternating(2)", lambda: groups.alternating(2))
C(G, "dihedral(0)", lambda: groups.dihedral(0))
C(G, "dihedral(2.5)", lambda: groups.dihedral(2.5))
C(G, "dicyclic(1)", lambda: groups.dicyclic(1))
C(G, "metacyclic r^m != 1", lambda: groups.metacyclic(5, 2, 2))
C(G, "metacyclic r=0", lambda: groups.metacyclic(5, 2, 0))
C(G, "from_table not closed", lambda: groups.from_table([[0, 1], [1, 2]]))
C(G, "from_table identity not 0", lambda: groups.from_table([[1, 0], [0, 1]]))
C(
    G,
    "from_table not associative",
    lambda: groups.from_table([[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]),
)
C(G, "from_table ragged", lambda: groups.from_table([[0, 1], [1]]))
C(G, "from_table empty", lambda: groups.from_table([]))
C(G, "from_table floats", lambda: groups.from_table(np.array([[0.0, 1.0], [1.0, 0.0]])).table)
C(G, "from_table floats 0.5", lambda: groups.from_table(np.array([[0.0, 1.0], [1.0, 0.5]])).table)
C(G, "from_table strings", lambda: groups.from_table([["0", "1"], ["1", "0"]]))
C(G, "from_table bool", lambda: groups.from_table(np.array([[False, True], [True, False]])).table)
C(G, "from_table 1-d", lambda: groups.from_table([0, 1]))
C(G, "from_table no inverse", lambda: groups.from_table([[0, 1], [1, 1]]))


def mutated():
    g = groups.cyclic(5)
    t = g.table
    t[1, 1] = 4
    return g.table[1, 1]


C(G, "mutating group.table leaves the group alone", mutated, "ok")
C(G, "Group made directly with a wrong table", lambda: groups.Group("x", ((0, 1), (1, 1))).inverse)
C(G, "direct(group, None)", lambda: groups.direct(groups.cyclic(2), None))
# ---- representations
G = "representations"
C(G, "irreps over quaternions", lambda: representations.irreps(groups.cyclic(3), over="quaternions"))
C(G, "irreps of a table", lambda: representations.irreps(groups.cyclic(3).table))
C(
    G,
    "irreps of a non-group Group",
    lambda: representations.irreps(groups.Group("x", ((0, 1, 2), (1, 1, 1), (2, 2, 2)))),
)
C(
    G,
    "fourier f of other length",
    lambda: representations.fourier(jnp.ones(4), representations.irreps(groups.cyclic(3))[0]),
)
C(G, "fourier f int", lambda: representations.fourier(jnp.ones(3, int), representations.irreps(groups.cyclic(3))[1]))
# ---- composing
G = "composing"
Z5 = groups.cyclic(5)
C(G, "Solution z wrong shape", lambda: composing.Solution(jnp.ones((2, 5, 1)), Z5))
C(
    G,
    "Solution not Hermitian",
    lambda: composing.Solution(
        jnp.ones((3, 5, 1)).at[0, 1].set(1j) if False else (np.ones((3, 5, 1)) + 1j * np.arange(5)[None, :, None]), Z5
    ),
)
C(
    G,
    "Solution not Hermitian, jit",
    lambda: jax.jit(lambda z: composing.Solution(z, Z5).loss())(np.ones((3, 5, 1)) + 1j * np.arange(5)[None, :, None]),
)
C(G, "Solution NaN", lambda: composing.Solution(np.full((3, 5, 1), nan), Z5).loss())
C(G, "Solution non-Abelian", lambda: composing.Solution(jnp.ones((3, 6, 1)), groups.symmetric(3)))
C(G, "Solution sum of different groups", lambda: composing.one(Z5) + composing.one(groups.cyclic(7)))
C(G, "Solution + 1", lambda: composing.one(Z5) + 1)
C(G, "Solution * complex", lambda: (composing.one(Z5) * 1j).z)
C(G, "Solution * array (3 scales)", lambda: (composing.one(Z5) * np.array([1.0, 2.0])).z)
C(G, "at_frequency k=0", lambda: composing.at_frequency(Z5, 0, np.ones((3, 1))))
C(G, "at_frequency k=9", lambda: composing.at_frequency(Z5, 9, np.ones((3, 1))))
C(G, "at_frequency columns 2 rows", lambda: composing.at_frequency(Z5, 1, np.ones((2, 1))))
C(G, "at_frequency columns 1-d", lambda: composing.at_frequency(Z5, 1, np.ones(3)))
C(G, "f6 nus too few", lambda: composing.f6(Z5, nus=[1j]))
C(G, "f6 nus not of modulus one", lambda: composing.f6(Z5, nus=[2j, 3j]).loss())
C(G, "f6 phases NaN", lambda: composing.f6(Z5, phases=[(nan, 0), (0, 0)]).loss())
C(G, "f4_6 k0 bad", lambda: composing.f4_6(Z5, 4))
C(G, "f4_6 Z2", lambda: composing.f4_6(groups.cyclic(2)))
C(G, "f4_6 xis of modulus 2", lambda: composing.f4_6(Z5, xis=[2.0, 2.0]).loss())
C(G, "polynomial abc != 1", lambda: composing.polynomial([1, 2, 3]))
C(G, "polynomial zero", lambda: composing.polynomial([0, 1, 1]))
C(G, "polynomial of 2 numbers", lambda: composing.polynomial([1, 1]))
C(G, "polynomial (1,1,1)", lambda: composing.polynomial([1, 1, 1]))
C(G, "from_blocks block with r=0", lambda: composing.from_blocks(Z5, lambda k: np.zeros((3, 2), complex)).loss())
C(G, "from_blocks only=[7]", lambda: composing.from_blocks(Z5, lambda k: composing.syn(), [7]))
C(G, "from_blocks only=[-1] (python index)", lambda: composing.from_blocks(Z5, lambda k: composing.syn(), [-1]))
C(G, "pseudo_identity nodes 0", lambda: composing.pseudo_identity(Z5, 0))
C(G, "pseudo_identity nodes -1", lambda: composing.pseudo_identity(Z5, -1))
C(G, "occam_path one node", lambda: composing.occam_path(composing.one(Z5), 1.0))
C(G, "occam_path t=9 (clipped)", lambda: composing.occam_path(composing.f6(Z5), 9.0).loss())
C(G, "occam_path t=NaN", lambda: composing.occam_path(composing.f6(Z5), nan).loss())
C(
    G,
    "occam_path y with r_kkk = 0 (zero node)",
    lambda: composing.occam_path(composing.Solution(np.zeros((3, 5, 2)), Z5), 1.5).z,
)
C(G, "optimum_path t=2", lambda: composing.optimum_path(composing.f6(Z5), composing.f6(Z5), 2.0).loss())
C(
    G,
    "optimum_path different groups",
    lambda: composing.optimum_path(composing.f6(Z5), composing.f6(groups.cyclic(7)), 0.5),
)
C(G, "least_norm(1, 0)", lambda: composing.least_norm(1, 0))
C(G, "least_norm(-1, -1)", lambda: composing.least_norm(-1, -1))
C(G, "loss z of another group order", lambda: composing.loss(jnp.ones((3, 4, 1), complex), Z5))
C(G, "potentials z 2 rows", lambda: composing.potentials(jnp.ones((2, 5, 1), complex)))
C(
    G,
    "from_weights shapes",
    lambda: composing.from_weights(jnp.ones((5, 2)), jnp.ones((5, 2)), jnp.ones((4, 2)), Z5),
)
C(
    G,
    "from_weights non-Abelian",
    lambda: composing.from_weights(*[jnp.ones((6, 2))] * 3, groups.symmetric(3)),
)
C(G, "TruncatedFlow order 1", lambda: composing.TruncatedFlow(1)(0.0, jnp.zeros((2, 3, 0, 2))))
C(G, "TruncatedFlow state wrong", lambda: composing.TruncatedFlow(5)(0.0, jnp.zeros((2, 3, 5, 2))))
C(G, "InfiniteWidth rate negative", lambda: composing.InfiniteWidth(5, -1.0).exact(jnp.zeros((4, 4, 4)), 1.0))
C(G, "InfiniteWidth.exact wrong shape", lambda: composing.InfiniteWidth(5, 1.0).exact(jnp.zeros((1, 4)), 1.0))
C(G, "InfiniteWidth.of order 0", lambda: composing.InfiniteWidth.of(0, 10, 1.0).rate)
C(G, "target(-1)", lambda: composing.target(-1))
# ---- grokking
G = "grokking"
S3 = groups.symmetric(3)
C(G, "Energy order 2", lambda: grokking.Energy(groups.cyclic(2)))
C(G, "Energy used wrong shape", lambda: grokking.Energy(Z5, np.ones((4, 4), bool)))
C(G, "Energy used none", lambda: grokking.Energy(Z5, np.zeros((5, 5), bool)))
C(G, "Energy used NaN floats", lambda: grokking.Energy(Z5, np.full((5, 5), nan))(jnp.ones((2, 5))))
C(G, "Energy used fractions 0.5", lambda: grokking.Energy(Z5, np.full((5, 5), 0.5))(jnp.ones((2, 5)) * jnp.arange(5)))
C(G, "Energy w wrong", lambda: grokking.Energy(Z5)(jnp.ones((2, 4))))
C(G, "Energy activation a string", lambda: grokking.Energy(Z5, activation="relu")(jnp.ones((2, 5))))
C(G, "Energy group a table", lambda: grokking.Energy(Z5.table))
C(
    G,
    "ScaledAscent from zero",
    lambda: solve(grokking.ScaledAscent(grokking.Energy(Z5)), jnp.zeros((2, 5)), [0.0, 1.0]).ys,
)
C(
    G,
    "SphereAscent not of norm one",
    lambda: (
        solve(
            grokking.SphereAscent(grokking.Energy(Z5)),
            5 * jnp.ones((2, 5)) * jnp.arange(5),
            [0.0, 0.01],
            max_steps=4000,
        ).ys
    ),
)
C(G, "OutputLayer labels of other pairs", lambda: grokking.OutputLayer(jnp.ones((6, 2)), jnp.ones((5, 3)), 0.1))
C(G, "OutputLayer decay negative", lambda: grokking.OutputLayer(jnp.ones((6, 2)), jnp.ones((6, 3)), -0.1))
C(
    G,
    "OutputLayer decay negative, jit",
    lambda: jax.jit(lambda d: grokking.OutputLayer(jnp.ones((6, 2)), jnp.ones((6, 3)), d).limit())(-0.1),
)
C(G, "OutputLayer decay NaN", lambda: grokking.OutputLayer(jnp.ones((6, 2)), jnp.ones((6, 3)), nan))
C(G, "OutputLayer ints", lambda: grokking.OutputLayer(jnp.ones((6, 2), int), jnp.ones((6, 3), int), 0.5).decay)
C(G, "OutputLayer lists", lambda: grokking.OutputLayer([[1.0]], [[1.0]], 0.5))
C(G, "OutputLayer no pairs", lambda: grokking.OutputLayer(jnp.ones((0, 2)), jnp.ones((0, 3)), 0.5).limit())
C(
    G,
    "OutputLayer.exact t<0",
    lambda: grokking.OutputLayer(jnp.ones((6, 2)), jnp.ones((6, 3)), 0.1).exact(jnp.ones((2, 3)), -1e3),
)
C(
    G,
    "OutputLayer.limit_gradient decay 0",
    lambda: grokking.OutputLayer(jax.random.normal(k, (6, 2)), jnp.eye(6), 0.0).limit_gradient(),
)
C(G, "SingleTarget target 5", lambda: grokking.SingleTarget(Z5, 5, jnp.ones(5) / 5, "relu"))
C(G, "SingleTarget target -1", lambda: grokking.SingleTarget(Z5, -1, jnp.ones(5) / 5, "relu"))
C(G, "SingleTarget target 1.5", lambda: grokking.SingleTarget(Z5, 1.5, jnp.ones(5) / 5, "relu"))
C(G, "SingleTarget p sums to two", lambda: grokking.SingleTarget(Z5, 1, 2 * jnp.ones(5) / 5, "relu"))
C(G, "SingleTarget p tie for focused", lambda: grokking.SingleTarget(Z5, 1, jnp.ones(5) / 5, "square"))
C(
    G,
    "SingleTarget p tie for focused, jit",
    lambda: jax.jit(lambda p: grokking.SingleTarget(Z5, 1, p, "square").profile())(jnp.ones(5) / 5),
)
C(G, "SingleTarget activation gelu", lambda: grokking.SingleTarget(Z5, 1, jnp.ones(5) / 5, "gelu"))
C(G, "ModeRace mu 2-d", lambda: grokking.ModeRace(jnp.ones((2, 2))))
C(G, "ModeRace past blow-up", lambda: grokking.ModeRace(jnp.ones(2)).exact(jnp.ones(2), 5.0))
C(G, "ModeRace past blow-up, jit", lambda: jax.jit(grokking.ModeRace(jnp.ones(2)).exact)(jnp.ones(2), 5.0))
C(G, "coupon_time p sums to 2", lambda: grokking.coupon_time([1.0, 1.0]))
C(G, "coupon_time p zero", lambda: grokking.coupon_time([1.0, 0.0]))
C(G, "coupon_time p zero, jit", lambda: jax.jit(grokking.coupon_time)(jnp.array([1.0, 0.0])))
C(G, "coupon_time empty", lambda: grokking.coupon_time(jnp.zeros(0)))
C(G, "coupon_time ints", lambda: grokking.coupon_time([1]))
C(G, "coupon_time NaN", lambda: grokking.coupon_time([nan, 1.0]))
C(G, "distinct draws negative", lambda: grokking.distinct([0.5, 0.5], -1))
C(G, "distinct draws NaN", lambda: grokking.distinct([0.5, 0.5], nan))
C(G, "winner_probabilities mu negative", lambda: grokking.winner_probabilities([-1.0, 1.0], 2))
C(G, "winner_probabilities exponent 0", lambda: grokking.winner_probabilities([1.0, 1.0], 0))
C(G, "frechet exponent -1", lambda: grokking.frechet(k, (3,), -1))
C(G, "frechet key int", lambda: grokking.frechet(0, (3,), 1))
C(G, "frechet key uint32 legacy", lambda: grokking.frechet(jax.random.PRNGKey(0), (3,), 1.0), "ok")
C(G, "frechet shape negative", lambda: grokking.frechet(k, (-3,), 1.0))
C(G, "polar 1-d", lambda: grokking.polar(jnp.ones(3)))
C(G, "polar NaN", lambda: grokking.polar(jnp.full((2, 2), nan)))
C(G, "polar zero matrix", lambda: grokking.polar(jnp.zeros((2, 2))))
C(G, "polar_last_column q not orthonormal", lambda: grokking.polar_last_column(jnp.ones((3, 2)), jnp.ones(3)))
C(G, "polar_last_column v in the span", lambda: grokking.polar_last_column(jnp.eye(3)[:, :2], jnp.array([1.0, 0, 0])))
C(G, "repulsion same node", lambda: grokking.repulsion(jnp.ones((4, 3)), 0.1, 1, 1))
C(G, "repulsion node out of range", lambda: grokking.repulsion(jax.random.normal(k, (4, 3)), 0.1, 1, 7))
C(G, "repulsion node negative", lambda: grokking.repulsion(jax.random.normal(k, (4, 3)), 0.1, 1, -1))
C(
    G,
    "repulsion node traced same",
    lambda: jax.jit(lambda j: grokking.repulsion(jax.random.normal(k, (4, 3)), 0.1, j, j))(1),
)
C(G, "inverse_gram decay 0 singular", lambda: grokking.inverse_gram(jnp.ones((4, 3)), 0.0))
C(G, "missing learned 99", lambda: grokking.missing(representations.irreps(S3), [99]))
C(G, "missing learned -1", lambda: grokking.missing(representations.irreps(S3), [-1]))
C(
    G,
    "remaining_energy learned 99 (no check)",
    lambda: grokking.remaining_energy(jnp.ones((2, 6)) * jnp.arange(6), representations.irreps(S3), [99]),
)
C(G, "missing learned '1'", lambda: grokking.missing(representations.irreps(S3), ["1"]))
C(G, "maximum a wrong", lambda: grokking.maximum(representations.irreps(S3)[2], jnp.ones(3), jnp.ones(2), jnp.ones(2)))
C(G, "maximum zeros", lambda: grokking.maximum(representations.irreps(S3)[2], jnp.zeros(2), jnp.ones(2), jnp.ones(2)))
C(
    G,
    "maximum of a complex irrep",
    lambda: grokking.maximum(representations.irreps(Z5, over="complex")[1], jnp.ones(1), jnp.ones(1), jnp.ones(1)),
)
C(G, "spectrum of a complex irrep", lambda: grokking.spectrum(representations.irreps(Z5, over="complex")[1]))
C(G, "peak of a complex irrep", lambda: grokking.peak(representations.irreps(Z5, over="complex")[1]))
C(G, "real_nodes of complex irreps", lambda: grokking.real_nodes(representations.irreps(Z5, over="complex")))
C(G, "complex_nodes of real irreps", lambda: grokking.residual(grokking.complex_nodes(representations.irreps(S3)), S3))
C(G, "real_nodes of none", lambda: grokking.real_nodes([]))
C(G, "content zero node", lambda: grokking.content(jnp.zeros((2, 6)), representations.irreps(S3)))
C(G, "content no irreps", lambda: grokking.content(jnp.ones((2, 6)), []))
C(
    G,
    "residual nodes of other group",
    lambda: grokking.residual(grokking.real_nodes(representations.irreps(S3)), groups.cyclic(4)),
)
C(
    G,
    "plancherel_energy irreps of another group",
    lambda: grokking.plancherel_energy(jnp.ones((2, 6)), representations.irreps(Z5)),
)
C(G, "convolution lengths", lambda: grokking.convolution(jnp.ones(4), jnp.ones(5), Z5))
C(G, "convolution v too short (clamped gather?)", lambda: grokking.convolution(jnp.ones(5), jnp.arange(3.0), Z5))
C(G, "convolution v too long", lambda: grokking.convolution(jnp.ones(5), jnp.arange(9.0), Z5))
C(
    G,
    "convolution_energy w of another order",
    lambda: grokking.convolution_energy(jnp.ones((2, 5)) * jnp.arange(5.0), groups.cyclic(7)),
)
C(G, "pairs used complex", lambda: grokking.pairs(Z5.table, np.ones((5, 5), complex)))
C(G, "wide_kernel of a tuple", lambda: grokking.wide_kernel((1, 2, 3)))
C(
    G,
    "curvatures at a node that is no maximum",
    lambda: grokking.curvatures(grokking.Energy(Z5), jnp.ones((2, 5)) * jnp.arange(5)),
    "ok",
)
