"""What a trained network is made of: the paper's procedure on the nodes of each frequency, and a test by potentials.

Source: the code of Composing Global Optimizers (arXiv 2410.01779), which makes its table of solutions. Thresholds are
for weights in the code's scale, `scale = 1`. One frequency's nodes are the columns (a, b, c) of an array of shape
`(3, nodes)`, at +k.
"""

import functools
import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Int

from ...dynamics.groups import Abelian

Columns = Complex[np.ndarray, "3 _"]

LIVE = 0.05  # of |z_a|: below it a node is dead
OMEGA = np.exp(2j * np.pi / 3)
FAMILIES = ("ν=i·ξ", "ν=i·syn,αβ", "ν·syn", "others")


class Factors(NamedTuple):
    """One frequency's nodes as a product `C1 * C2`: the relative misfit, the labels of both factors, and the free
    parameters of the label by name (ν, ξ, α, β)."""

    error: float
    factorable: bool
    labels: tuple[str, str]
    parameters: dict[str, complex]

    @property
    def family(self) -> str:
        """One of `FAMILIES`."""
        if self.labels == ("ν=i", "ξ"):
            return "ν=i·ξ"
        if self.labels in (("ν=i", "syn,αβ"), ("ν=i", "syn")):
            return "ν=i·syn,αβ"
        return "ν·syn" if self.labels == ("ν", "syn") else "others"


def nodes_by_frequency(
    z: Complex[np.ndarray, "3 order nodes"], group: Abelian, *, live: float = LIVE
) -> dict[int, Columns]:
    """The nodes whose largest `|z_ak|` is at k and above `live`, for each k of `group.frequencies`; none: dead."""
    z = np.asarray(z)
    kept = (0, *group.frequencies)
    size = np.abs(z[0, list(kept)])
    largest, alive = np.array(kept)[np.argmax(size, axis=0)], np.max(size, axis=0) > live
    return {k: z[:, k, (largest == k) & alive] for k in group.frequencies}


def orders(z: Complex[np.ndarray, "3 order nodes"], group: Abelian, *, live: float = LIVE) -> Int[np.ndarray, " k"]:
    """How many nodes have `|z_ak|` above `live`, at each of `group.frequencies`."""
    return np.sum(np.abs(np.asarray(z)[0, list(group.frequencies)]) > live, axis=1)


@functools.cache
def _permutations(n: int) -> Int[np.ndarray, "permutations n"]:
    return np.array(list(itertools.permutations(range(n))))


def factorise(columns: Columns, *, threshold: float = 0.1) -> Factors:
    """Four or six nodes as `C1 * C2` with C1 of order two, by the paper's procedure.

    1. Of all orders of the nodes, the one in which the ratio of the first half's c to the second's varies least.
    2. (a, b, c) and (−a, −b, c) are the same function: signs of the first half so that the ratios of a agree.
    3. C1 = [1, mean ratio], C2 = the first half over its first column; `error` is how much ratios vary.

    Many orders tie up to rounding, and which is taken decides ν among ν, νω, νω̄ and signs. **Raises** `ValueError` for
    another number of nodes.
    """
    n = columns.shape[1]
    if n not in (4, 6):
        raise ValueError(f"columns must have 4 or 6 nodes, got {n}.")
    tried = _permutations(n)
    ratio = columns[2][tried[:, : n // 2]] / columns[2][tried[:, n // 2 :]]
    spread = np.linalg.norm(ratio - ratio.mean(axis=1, keepdims=True), axis=1)
    arranged = columns[:, tried[np.argmin(spread)]]
    first, second = arranged[:, : n // 2].copy(), arranged[:, n // 2 :]
    turn = second[0] / first[0]
    first[:2, np.abs(turn - turn[0]) > 0.2] *= -1
    ratio = second / first
    mean = ratio.mean(axis=1)
    error = float(np.linalg.norm(ratio - mean[:, None]))
    if error > 0.1 * np.sqrt(3 * n):
        return Factors(error, False, ("", ""), {})
    two, more = _unit(mean[:, None])[:, 0], _unit(first / first[:, :1])
    one, own = _label_two(two, threshold)
    other, further = _label_two(more[:, 1], threshold) if n == 4 else _label_three(more, threshold)
    # With four nodes either factor may come first.
    labels = (other, one) if n == 4 and one == "ξ" and other == "ν=i" else (one, other)
    return Factors(error, True, labels, own | further)


def _unit(columns: np.ndarray) -> np.ndarray:
    """Each column over the principal cube root of a·b·c."""
    return columns / np.prod(columns, axis=0) ** (1 / 3)


def _label_two(column: np.ndarray, threshold: float) -> tuple[str, dict[str, complex]]:
    """The second column of a factor of order two, whose first is 1."""
    a, b, c = column
    if min(abs(c - 1j), abs(c + 1j)) < threshold:
        return "ξ", {"ξ": a}
    if abs(c - 1) < threshold and min(abs(a - 1j), abs(a + 1j)) < threshold:
        return "ν=i", {}
    return ("ν", {"ν": a}) if abs(a + b) < threshold else ("", {})


def _label_three(columns: np.ndarray, threshold: float) -> tuple[str, dict[str, complex]]:
    """The last two columns of a factor of order three, whose first is 1."""
    columns = columns.copy()
    for j in (1, 2):
        if columns[0, j].real > 0:
            columns[:2, j] *= -1
    if columns[2, 1].imag < 0:
        columns = columns.conj()
    near = lambda j, w: np.linalg.norm(columns[:, j] - w) < threshold * np.sqrt(3)
    if near(1, OMEGA) and near(2, OMEGA.conj()):
        return "syn", {}
    if abs(columns[2, 1] - OMEGA) < threshold and abs(columns[2, 2] - OMEGA.conj()) < threshold:
        # The released code divides by ω for β too.
        return "syn,αβ", {"α": columns[0, 1] / OMEGA, "β": columns[0, 2] / OMEGA.conj()}
    return "", {}


def potential_order(columns: Columns, *, threshold: float = 0.05) -> int | None:
    """Four or six by the potentials of one frequency relative to `r_kkk`, without permutations, labels or a count of
    nodes. Those of R_c and R_* vanish in both; `|r_{p,k,−k,k}|` is 1/√2 with order 4 and 0 with order 6, where it is
    the last to vanish in training: up to ½ counts. Neither: `None`. Derived here.
    """
    a, b, c = columns
    target = abs(np.sum(a * b * c))
    conj = np.conj
    vanishing = (a * conj(b) * c, conj(a) * b * c, conj(a) * conj(b) * c, a * a * c, b * b * c)
    vanishing = (*vanishing, conj(a) ** 2 * c, conj(b) ** 2 * c)
    if target == 0 or max(abs(np.sum(v)) for v in vanishing) > threshold * target:
        return None
    left = max(abs(np.sum(np.abs(p) ** 2 * c)) for p in (a, b)) / target
    if abs(left - np.sqrt(0.5)) < threshold:
        return 4
    return 6 if left < 0.5 else None


class Table(NamedTuple):
    """The paper's table for one network. Shares in per cent: `other_order` and `dead` of all frequencies, `unfactored`
    of those of order 4 and of 6, `families` (as `FAMILIES`) of those factored. `error`: mean misfits ×100 of orders 4
    and 6. `count`: frequencies by order, of the paper's procedure and by potentials. NaN where there are none."""

    other_order: float
    dead: float
    unfactored: tuple[float, ...]
    error: tuple[float, ...]
    families: tuple[float, ...]
    count: Counter
    by_potentials: Counter
    parameters: dict[str, list[complex]]


def table(z: Complex[np.ndarray, "3 order nodes"], group: Abelian, *, live: float = LIVE) -> Table:
    """All frequencies of one network: see `Table`."""
    nodes = nodes_by_frequency(z, group, live=live)
    count = Counter(columns.shape[1] for columns in nodes.values())
    found = {n: [factorise(c) for c in nodes.values() if c.shape[1] == n] for n in (4, 6)}
    good = [f for n in (4, 6) for f in found[n] if f.factorable]
    families = Counter(f.family for f in good)
    parameters = {name: [f.parameters[name] for f in good if name in f.parameters] for name in "νξαβ"}
    mean = lambda values: float(np.mean(values)) if len(values) else float("nan")
    total = len(nodes)
    return Table(
        other_order=100 * (total - count[4] - count[6] - count[0]) / total,
        dead=100 * count[0] / total,
        unfactored=tuple(100 * mean([not f.factorable for f in found[n]]) for n in (4, 6)),
        error=tuple(100 * mean([f.error for f in found[n] if f.factorable]) for n in (4, 6)),
        families=tuple(100 * families[name] / len(good) if good else float("nan") for name in FAMILIES),
        count=count,
        by_potentials=Counter(potential_order(columns) for columns in nodes.values()),
        parameters=parameters,
    )
