"""What the claims of Scan and Snap share: assumptions in words, the reference data, and solves that compile once."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import ArrayLike

from ...dynamics import solve
from ...dynamics.scan_snap import YZ, ScanSnap
from ...nets import scan_snap as nets
from .assumptions import CLASSES_ALIKE, LONG

TIME = "t = learning rate × step"
ASSUMED = "Y and Z trained independently, from zero; no positions, no residual"
FLOW = (ASSUMED, LONG)
ALIKE = (*FLOW, CLASSES_ALIKE)

CLASSES, OUTPUTS, TIMES = 5, 100, 61  # the same in all claims: equal shapes share a compilation
COMMON, DISTINCT = 0.6, (0.4, 0.6, 0.8, 1.0)
OWN = np.arange(1 + len(DISTINCT))  # the tokens of the first class: the common one, then its distinct ones


def reference(common: float | Sequence[float] = COMMON, classes: int = CLASSES) -> nets.SequenceClasses:
    """Classes with one query, one common token (or several) and four distinct tokens each; by default ρ₀ = 0.143."""
    return nets.distinct_and_common(classes, distinct=np.asarray(DISTINCT), common=np.atleast_1d(common))


def scan_flow(tier: str, *, eta_z: ArrayLike = 1.0, table=None) -> ScanSnap:
    """The full flow of a tier on the reference data, or on another table of its shape."""
    table, outputs = reference().table if table is None else table, CLASSES if tier == "B" else OUTPUTS
    return ScanSnap(table, outputs=outputs, preconditioned=tier == "A", eta_z=eta_z)


def log_times(first: float, last: float) -> np.ndarray:
    return np.geomspace(first, last, TIMES)


def follow(flow: ScanSnap, ts: np.ndarray) -> YZ:
    """The flow from zero: Y, shape `(times, tokens, outputs)`, and Z, shape `(times, queries, tokens)`."""
    return jax.tree.map(np.asarray, solve(flow, flow.zero(), ts).ys)


def logits(flow: ScanSnap, ts: np.ndarray) -> np.ndarray:
    """The attention logits of one class's tokens along the flow from zero, shape `(times, tokens)`."""
    return np.asarray(follow(flow, ts).z)[:, 0, OWN]
