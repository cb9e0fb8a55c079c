"""Calls of `traindyn.sweeps.sweep` and of subjects that work, and what they rightly accept."""

import functools

import jax
import jax.numpy as jnp

from traindyn import sweeps

from .kinds import Call


@functools.wraps(sweeps.sweep)
def sweep(fn, axes, **options):
    found = sweeps.sweep(fn, axes, **options)
    return {str(name): variable.values for name, variable in found.data_vars.items()}


def double(point):
    return 2 * point["a"] * jnp.ones(2)


RATES = jnp.array([0.1, 0.2])
SUBJECT = sweeps.Subject("x", "words", double, {"a": 1.0, "seed": 0}, {"a": [1.0, 2.0]})
GRID = jax.sharding.Mesh(jax.devices()[:1], ("lanes",))

CALLS = {
    "sweeps.sweep": Call(
        sweep,
        {
            "fn": double,
            "axes": {"a": RATES},
            "batch_size": 2,
            "mesh": GRID,
            "cost": lambda point: point["a"],
            "dims": {"value": ("side",)},
            "coords": {"side": [0.0, 1.0]},
            "progress": False,
        },
        accepts={"axes": "leaf 0 complex"},  # the values of an axis are the caller's own
        bad={
            "fn": [dict],
            "axes": [
                {},
                {"a": []},
                {"a": ["x", "y"]},
                {"a": [[1], [2, 3]]},
                {1: [1.0]},
                {"status": [1.0]},
                {("a",): RATES},
            ],
            "batch_size": [0, True],
            "dims": [{"value": ["a"]}, {"value": ["one", "two"]}, {"velue": ["side"]}, {"value": [3]}],
            "coords": [{"a": [0.0, 1.0]}, {"side": [0.0]}, {"time": [0.0]}],
        },
    ),
    "sweeps.Subject": Call(
        sweeps.Subject,
        {
            "name": "x",
            "statement": "words",
            "fn": double,
            "defaults": {"a": 1.0, "seed": 0},
            "axes": {"a": [1.0, 2.0]},
            "cost": double,
            "dims": {"value": ("side",)},
            "coords": {"side": [0.0, 1.0]},
            "labels": {"value": "words"},
            "bounds": {"value": 0.1},
            "source": "a paper",
            "domains": {"a": {"above": 0}},
        },
        accepts=dict.fromkeys(("name", "statement", "source"), "text"),  # any words
        bad={
            "defaults": [{"a": float("nan")}, {"a": -1.0}, {"a": "x"}, {"a": [1.0]}, {"a": True}],
            "axes": [{"b": [1.0]}, {"a": [0.0]}, {"a": 1.0}, {"a": [float("inf")]}],
            "domains": [{"b": {"least": 0}}, {"a": {"lest": 0}}, {"a": 3}],
        },
    ),
    "sweeps.Subject.values": Call(
        SUBJECT.values,
        {"name": "seed", "given": jnp.array([0, 1])},
        accepts={"given": "too large"},  # a seed may be
        bad={"given": [[0.5], [-1], ["x"], [[1], [2, 3]], [2**70]], "name": ["seeds"]},
    ),
}
