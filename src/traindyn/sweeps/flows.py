"""What the command line can sweep by name: every flow beside gradient descent on it, and the papers' validity maps."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from .. import _catalogue
from ..dynamics import Flow, flows, solve
from ..nets.descent import steps_to
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
    step = lambda n, y: jax.tree.map(lambda y, dy: y + rate.astype(y.dtype) * dy, y, flow(n * rate, y, None))
    return jax.lax.fori_loop(0, steps, step, y0)


def of_flow(name: str, kind: type[Flow]) -> Subject:
    """The sweep of a flow: its parameters are those of its `example`, a `learning_rate` and a `seed`."""
    parameters = inspect.signature(kind.example).parameters
    own = {each.name: each.default for each in parameters.values() if each.name != "key"}

    def make(point: Point) -> tuple[Flow, PyTree]:
        flow, y0, _ = kind.example(jax.random.key(point["seed"]), **{key: point[key] for key in own})
        return flow, y0

    doc, about = inspect.getdoc(kind) or "", inspect.getdoc(inspect.getmodule(kind)) or ""
    switches = [key for key, value in own.items() if isinstance(value, bool)]
    return Subject(
        name,
        " ".join(doc.partition("\n\n")[0].split()).rstrip(":,"),
        beside_descent(make),
        {"learning_rate": 0.01, "seed": 0} | own | {key: 0 for key in switches},
        {"learning_rate": np.geomspace(1e-3, 1.0, 13)},
        cost=lambda point: point["time"] / point["learning_rate"],
        labels={"error": "distance of descent from the flow, over the way of the flow"},
        source=(_after(doc) or _after(about)).replace("\n", " "),
        domains={key: {"least": 0, "most": 1} for key in switches},
        check=make,
    )


def _after(doc: str) -> str:
    return doc.partition("Source: ")[2].partition("\n\n")[0]


def subjects() -> tuple[Subject, ...]:
    """All that has a name: the `VALIDITY` map of each paper that has one, and every flow."""
    room = f"{__name__.partition('.')[0]}.validate"
    papers = [paper for paper in _catalogue.papers() if (_catalogue.VALIDATE / paper / "validity.py").is_file()]
    maps = [importlib.import_module(f"{room}.{paper}.validity").VALIDITY for paper in papers]
    return *maps, *(of_flow(name, kind) for name, kind in flows().items())
