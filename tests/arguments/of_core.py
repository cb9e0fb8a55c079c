"""Calls of `solve`, `GradientFlow` and `map_lanes` that work, and what they rightly accept."""

import functools

import diffrax as dfx
import jax.numpy as jnp
from jax.tree_util import Partial

from traindyn.dynamics import (
    GradientFlow,
    crossing_time,
    default_tolerances,
    escape_time,
    flows,
    map_lanes,
    solve,
)

from .kinds import Call

NAN = float("nan")
Y = jnp.array([1.0, 2.0])


def _distance(target, y):
    return jnp.sum(jnp.abs(y - target) ** 2) / 2


@functools.wraps(solve)
def _solved(**arguments):
    return solve(**arguments).ys


def _decay(t, y, args):
    return -y


def _first(y):
    return y[0].real


EVENT = {"flow": _decay, "y0": Y, "quantity": _first, "until": 1.0, "rtol": 1e-3, "atol": 1e-3, "max_steps": 64}
OF_EVENT = {
    "flow": [GradientFlow, lambda y: y],
    "y0": [jnp.ones(2, jnp.float16), jnp.zeros(0), jnp.ones(2, int)],
    "quantity": [lambda y: y, lambda y: 1j * y[0], lambda y: None, lambda y: y[0] / 0],
    "until": [0.0, -1.0, NAN, jnp.inf],
    "rtol": [0.0, 1.0, NAN],
    "atol": [0.0, NAN],
    "max_steps": [0],
}

CALLS = {
    "dynamics.crossing_time": Call(
        crossing_time, {**EVENT, "level": 0.5}, accepts={"y0": "complex"}, bad={**OF_EVENT, "level": [NAN, jnp.inf]}
    ),
    "dynamics.escape_time": Call(
        escape_time, {**EVENT, "fraction": 0.5}, accepts={"y0": "complex"}, bad={**OF_EVENT, "fraction": [0.0, 1.0]}
    ),
    "dynamics.flows": Call(flows, {}),
    "dynamics.default_tolerances": Call(default_tolerances, {"dtype": jnp.float64}, bad={"dtype": [int, jnp.float16]}),
    "dynamics.GradientFlow": Call(
        GradientFlow,
        {"loss": Partial(_distance, Y), "rates": jnp.array([1.0, 2.0])},
        # The leaves of a loss are its own. No rates are rates of one.
        accepts={"loss": ("leaf 0 NaN", "leaf 0 complex", "leaf 0 longer"), "rates": "nothing"},
        bad={"loss": [GradientFlow], "rates": [{"a": NAN}, {"a": "fast"}, [1j]]},
    ),
    "dynamics.GradientFlow.__call__": Call(
        GradientFlow(Partial(_distance, 1.0)),
        {"t": 0.0, "y": Y},
        # The same at all times. Complex parameters descend as well.
        accepts={"t": "NaN", "y": "complex"},
        bad={"y": [{"a": jnp.arange(3)}, {}, jnp.array([True])]},
    ),
    "dynamics.solve": Call(
        _solved,
        {
            "flow": _decay,
            "y0": Y,
            "ts": jnp.array([0.1, 1.0]),
            "rtol": 1e-3,
            "atol": 1e-3,
            "max_steps": 64,
            "throw": True,
            "progress": False,
            "solver": dfx.Tsit5(),
            "adjoint": dfx.RecursiveCheckpointAdjoint(checkpoints=8),
            "stepsize_controller": None,
        },
        accepts={"y0": "complex"},  # solved as pairs of real numbers
        bad={
            "flow": [GradientFlow, lambda y: y],
            "y0": [[1.0, 2.0], jnp.ones(2, jnp.float16), jnp.array([jnp.inf]), jnp.zeros(0)],
            "ts": [[-1.0, 1.0], [1.0, 0.5], [0.5, 0.5], [], 1.0, ["a"], [jnp.inf]],
            "rtol": [0.0, -1.0, 1.0],
            "atol": [0.0, -1.0],
            "max_steps": [0],
            "solver": [dfx.Tsit5, dfx.Euler(), 3],
            "adjoint": [dfx.ForwardMode, 3],
            "stepsize_controller": [
                dfx.PIDController,
                dfx.ConstantStepSize(),
                dfx.PIDController(rtol=1e-3, atol=1e-3),
                3,
            ],
        },
    ),
    "dynamics.map_lanes": Call(
        map_lanes,
        {"fn": Partial(_distance, 1.0), "lanes": Y, "batch_size": 2, "mesh": None},
        accepts={"lanes": "complex"},  # whatever `fn` takes
        bad={"lanes": [1.0, [1.0, 2.0], {}, jnp.zeros((0, 2))], "batch_size": [0, True], "mesh": ["2x1", 2]},
    ),
}
