"""The flows that the command line can sweep by name, each beside plain gradient descent on it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from ..dynamics import Flow, galore, grokking, groups, joma, reversal, scan_snap, solve
from ..validate.descent import steps_to
from .engine import Point
from .subject import Subject

TIMES = 33


def beside_descent(make: Callable[[Point], tuple[Flow, PyTree]]) -> Callable[[Point], dict[str, Any]]:
    """From a flow and its start at a point, to what `traindyn sweep` shows of it:

    - `flow`: its solution at 33 times, from zero to the multiple of `learning_rate` that is nearest to `time`;
    - `descent`: the state that as many steps of `learning_rate` along the field lead to;
    - `error`: the distance of the two, over the distance that the flow went.
    """

    def fn(point: Point) -> dict[str, Any]:
        flow, y0 = make(point)
        rate = jnp.asarray(point["learning_rate"], float)
        steps, reached = steps_to(point["time"], rate)
        solution = solve(flow, y0, jnp.linspace(0.0, 1.0, TIMES) * reached, throw=False)
        descent = _descend(flow, y0, rate, steps)
        flat = lambda tree: ravel_pytree(tree)[0]
        end = flat(jax.tree.map(lambda y: y[-1], solution.ys))
        error = jnp.linalg.norm(flat(descent) - end) / jnp.linalg.norm(end - flat(y0))
        return {"flow": solution, "descent": descent, "error": error}

    return fn


def _descend(flow: Flow, y0: PyTree, rate: Float[Array, ""], steps: Int[Array, ""]) -> PyTree:
    step = lambda _, y: jax.tree.map(lambda y, dy: y + rate.astype(y.dtype) * dy, y, flow(0.0, y, None))
    return jax.lax.fori_loop(0, steps, step, y0)


def _subject(
    make: Callable[[Point], tuple[Flow, PyTree]],
    of: type[Flow],
    time: float,
    parameters: Mapping[str, float | int],
    **domains: Mapping[str, float | int],
) -> Subject:
    module, doc = of.__module__.split(".")[2], inspect.getdoc(of) or ""
    return Subject(
        f"{module}.{of.__name__}",
        doc.splitlines()[0],
        beside_descent(make),
        {"learning_rate": 0.01, "seed": 0, "time": time, **parameters},
        {"learning_rate": np.geomspace(1e-3, 1.0, 13)},
        cost=lambda p: p["time"] / p["learning_rate"],
        labels={"error": "distance of descent from the flow, over the way of the flow"},
        source=doc.partition("Source: ")[2].partition("\n\n")[0].replace("\n", " "),
        domains=domains,
    )


def _normal(point: Point, *shape: int) -> Float[Array, "..."]:
    return jax.random.normal(jax.random.key(point["seed"]), shape)


def _delta(point: Point, *shape: int) -> Float[Array, "..."]:
    """Saliencies of which the largest row has the length `delta`, so that times compare from seed to seed."""
    drawn = _normal(point, *shape)
    return point["delta"] * drawn / jnp.max(jnp.linalg.norm(drawn.reshape(shape[0], -1), axis=1))


def _linear_activation(p: Point):
    return joma.LinearActivation(_delta(p, 6), p["normaliser"]), jnp.zeros(6)


def _many_nodes(p: Point):
    return joma.ManyNodes(_delta(p, 6, 3), p["normaliser"]), jnp.zeros((6, 3))


def _linear_attention(p: Point):
    start = joma.LinearAttentionState(jnp.zeros((6, 3)), p["z0"] * jnp.ones(6))
    return joma.LinearAttention(_delta(p, 6, 3)), start


def _log_gap(p: Point):
    return joma.LogGap(p["mu"] * jax.random.uniform(jax.random.key(p["seed"]), (6,))), jnp.zeros(6)


def _mixture(p: Point):
    drawn = _normal(p, 4, 7)
    return joma.Mixture(drawn[:, :6], drawn[:, 6], p["sigma"]), joma.MixtureState(0.1 * jnp.ones(6), jnp.zeros(()))


def _joint(p: Point):
    x, g = jnp.split(jax.random.uniform(jax.random.key(p["seed"]), (16, 10)), [6], axis=1)
    flow = joma.Joint(x / 6, g - 0.5, eta_z=p["eta_z"], temperature=p["temperature"])
    return flow, joma.JointState(0.1 * _normal(p, 6, 4), jnp.zeros((1, 6)), jnp.zeros((1, 4)))


def _scan_snap(p: Point):
    table = jax.random.dirichlet(jax.random.key(p["seed"]), jnp.ones(8), (4,))
    flow = scan_snap.ScanSnap(table, eta_y=p["eta_y"], eta_z=p["eta_z"])
    return flow, flow.zero()


def _decoder(p: Point):
    return scan_snap.Decoder(p["outputs"], p["classes"], p["eta"]), jnp.zeros(())


def _bilinear(p: Point):
    pairs = jnp.arange(8).reshape(4, 2)
    return reversal.Bilinear.of(_normal(p, 8, 16) / 4, pairs, symmetric=p["symmetric"] > 0), jnp.zeros((8, 8))


def _one_layer(p: Point):
    return reversal.OneLayer(p["outputs"], p["sentences"], p["eta"]), jnp.zeros(())


def _reversible(p: Point):
    drawn = _normal(p, 8, 4, 11)
    f, y, j = jnp.split(drawn, [4, 7], axis=2)
    b = jnp.einsum("nij,nkj->nik", j, j) / 4
    c = jnp.einsum("nij,nkj->nik", f, f) / 4
    return galore.ReversibleGradient(jnp.einsum("nij,nkj->nik", y, f[:, :, :3]), b, c), jnp.zeros((4, 4))


def _scaled_ascent(p: Point):
    start = _normal(p, 2, 6)
    return grokking.ScaledAscent(grokking.Energy(groups.symmetric(3))), start / jnp.linalg.norm(start)


def _output_layer(p: Point):
    pairs, w = grokking.task(groups.cyclic(5)), _normal(p, 2, 5, 8)
    features = (w[0][pairs.first] + w[1][pairs.second]) ** 2
    return grokking.OutputLayer(features, jnp.eye(5)[pairs.label], p["decay"]), jnp.zeros((8, 5))


_ABOVE_ZERO, _ZERO_OR_MORE, _OUTPUTS = {"above": 0}, {"least": 0}, {"least": 2}

SUBJECTS = (
    _subject(
        _linear_activation,
        joma.LinearActivation,
        1.0,
        {"delta": 1.0, "normaliser": 1.0},
        delta=_ZERO_OR_MORE,
        normaliser=_ABOVE_ZERO,
    ),
    _subject(
        _many_nodes,
        joma.ManyNodes,
        1.0,
        {"delta": 1.0, "normaliser": 1.0},
        delta=_ZERO_OR_MORE,
        normaliser=_ABOVE_ZERO,
    ),
    _subject(_linear_attention, joma.LinearAttention, 2.0, {"delta": 1.0, "z0": 0.1}, delta=_ZERO_OR_MORE),
    _subject(_log_gap, joma.LogGap, 2.0, {"mu": 2.0}),
    _subject(_mixture, joma.Mixture, 2.0, {"sigma": 1.0}, sigma=_ZERO_OR_MORE),
    _subject(
        _joint,
        joma.Joint,
        8.0,
        {"eta_z": 1.0, "temperature": 1.0},
        eta_z=_ZERO_OR_MORE,
        temperature=_ABOVE_ZERO,
    ),
    _subject(
        _scan_snap,
        scan_snap.ScanSnap,
        30.0,
        {"eta_y": 1.0, "eta_z": 0.1},
        eta_y=_ZERO_OR_MORE,
        eta_z=_ZERO_OR_MORE,
    ),
    _subject(
        _decoder,
        scan_snap.Decoder,
        30.0,
        {"outputs": 20.0, "classes": 4.0, "eta": 1.0},
        outputs=_OUTPUTS,
        classes=_ABOVE_ZERO,
        eta=_ZERO_OR_MORE,
    ),
    _subject(_bilinear, reversal.Bilinear, 30.0, {"symmetric": 0}, symmetric={"least": 0, "most": 1}),
    _subject(
        _one_layer,
        reversal.OneLayer,
        30.0,
        {"outputs": 20.0, "sentences": 4.0, "eta": 1.0},
        outputs=_OUTPUTS,
        sentences=_ABOVE_ZERO,
        eta=_ZERO_OR_MORE,
    ),
    _subject(_reversible, galore.ReversibleGradient, 2.0, {}),
    _subject(_scaled_ascent, grokking.ScaledAscent, 10.0, {}),
    _subject(_output_layer, grokking.OutputLayer, 0.1, {"decay": 1.0}, decay=_ZERO_OR_MORE),
)


def subjects() -> tuple[Subject, ...]:
    """All that has a name: the validity maps, and the flows."""
    from ..validate.joma import validity as joma_map
    from ..validate.scan_snap import validity as scan_snap_map

    return joma_map.VALIDITY, scan_snap_map.VALIDITY, *SUBJECTS
