"""The maps of where a paper's theorems stop holding: what all papers' maps share."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..sweeps import Point, Subject
from .paper import Paper


def validity_map(
    name: str,
    theorems: str,
    fn: Callable[[Point], dict[str, Array]],
    labels: Mapping[str, str],
    *,
    rate: float,
    rates: np.ndarray,
    paper: Paper,
) -> Subject:
    """The sweep of the errors `fn` of some theorems over learning rates (by default `rate`) and over `strength`, how
    far the assumption of each is given up. `labels`: by error, which theorem, and what becomes of its assumption."""
    return Subject(
        name=name,
        statement=f"The relative error of {theorems} against training, over the learning rate and how far the "
        "assumption of each is given up.",
        fn=fn,
        defaults={"learning_rate": rate, "strength": 0.0, "time": 1.0, "seed": 0},
        axes={"learning_rate": rates, "strength": np.array([0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0])},
        cost=lambda point: point["time"] / point["learning_rate"],
        labels=labels,
        bounds=dict.fromkeys(labels, 0.1),
        source=str(paper),
        domains={"strength": {"least": 0, "most": 1}},
    )


def gap(observed: Array, predicted: Array, start: Array | float = 0.0) -> Float[Array, ""]:
    """The error of a prediction over the distance that it has moved."""
    return jnp.linalg.norm(observed - predicted) / jnp.linalg.norm(predicted - start)
