"""What the theorems of the reversal curse assume of a network and its sentences: numbers that are 0 where it holds."""

import numpy as np

from ...nets.reversal import Bilinear
from ..assumptions import Assumption, Seen
from ..curves import CURVES
from ..networks import SCAN_SNAP, TOKENS


def beside_first(seen: Seen) -> float | None:
    """The largest weight of a context beside its most frequent token. Contexts of many tokens are no sentences."""
    x = np.asarray(seen.data.x, float)
    largest = x.max(axis=1) / np.maximum(x.sum(axis=1), 1e-300)
    return float(1 - largest.min()) if np.median(largest) > 0.6 else None


def coherence(model: Bilinear) -> float:
    """The root mean square of the cosines between the vectors of two tokens: 1/√width for random ones."""
    v = np.asarray(model.vectors, float)
    v = v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300)
    cosines = (v @ v.T)[~np.eye(len(v), dtype=bool)]
    return float(np.sqrt(np.mean(cosines**2))) if cosines.size else 0.0


SENTENCE = Assumption(
    "sentences of three tokens, the relation is the query",
    name="sentences of three tokens",
    network=SCAN_SNAP,
    measure=beside_first,
    curves=CURVES["reversal: sentences of three tokens"],
    regime=("sentences of three tokens", ""),
)
ORTHOGONAL = Assumption(
    "tokens nearly orthogonal: wide vectors",
    name="orthogonal tokens",
    network=TOKENS,
    measure=lambda seen: seen.largest(coherence),
    curves=CURVES["reversal: orthogonal tokens"],
    regime=("nearly orthogonal tokens", "overlapping tokens"),
)
FREE = Assumption(
    "Θ is free, not symmetric",
    name="free Θ",
    network=TOKENS,
    measure=lambda seen: float(np.asarray(seen.last.symmetric)),
    regime=("reversal curse", "no reversal curse"),
)
FIXED = Assumption(
    "the vectors of tokens stay fixed",
    name="fixed vectors",
    network=TOKENS,
    measure=lambda seen: seen.change(lambda model: model.vectors),
    over_time=True,
)
