"""What the claims of Scan and Snap share: assumptions in words, the reference data, and solves that compile once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike

from ...dynamics import GradientFlow, solve
from ...dynamics.scan_snap import ScanSnap
from ...nets import scan_snap as nets

TIME = "t = learning rate × step"
ASSUMED = "Y and Z trained independently, from zero; no positions, no residual"
LONG = "sequences so long that frequencies are probabilities"
SYMMETRIC = "one query, one common token, classes alike"

CLASSES, OUTPUTS, TIMES = 5, 100, 61  # the same in all claims: equal shapes share a compilation
COMMON, DISTINCT = 0.6, (0.4, 0.6, 0.8, 1.0)
OWN = np.arange(1 + len(DISTINCT))  # the tokens of the first class: the common one, then its distinct ones
TIERS = {"A": (OUTPUTS, True), "B": (CLASSES, False), "C": (OUTPUTS, False)}  # outputs, preconditioned


def reference(common: float = COMMON, distinct: Sequence[float] = DISTINCT) -> nets.SequenceClasses:
    """Five classes, one query, one common token and four distinct tokens a class; ρ₀ = 0.143."""
    return nets.distinct_and_common(CLASSES, distinct=np.asarray(distinct), common=np.asarray([common]))


def scan_flow(tier: str, *, eta_y: ArrayLike = 1.0, eta_z: ArrayLike = 1.0, table=None) -> ScanSnap:
    """The full flow of a tier on the reference data, or on another table of its shape."""
    outputs, preconditioned = TIERS[tier]
    table = reference().table if table is None else table
    return ScanSnap(table, outputs=outputs, preconditioned=preconditioned, eta_y=eta_y, eta_z=eta_z)


def log_times(first: float, last: float) -> np.ndarray:
    return np.geomspace(first, last, TIMES)


class Path(NamedTuple):
    """Y, shape `(times, tokens, outputs)`, and Z, shape `(times, queries, tokens)`."""

    y: np.ndarray
    z: np.ndarray


def follow(flow: ScanSnap, ts: np.ndarray) -> Path:
    """The flow from zero."""
    ys = solve(flow, flow.zero(), ts).ys
    return Path(np.asarray(ys.y), np.asarray(ys.z))


def loss_flow(data: nets.SequenceClasses, model: nets.YZTransformer, *, eta_z: ArrayLike = 1.0) -> GradientFlow:
    """The gradient flow of the real network's expected loss, through autodiff."""
    loss = jax.tree_util.Partial(nets.cross_entropy, batch=data.expected())
    return GradientFlow(loss, model.rates(eta_z=eta_z))
