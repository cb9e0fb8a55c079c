"""What a trained network is made of: the paper's procedure on the nodes of each frequency, and a test by potentials.

Source: the code of Composing Global Optimizers (arXiv 2410.01779), which makes its table of solutions. Thresholds are
for weights in the code's scale, `scale = 1`. One frequency's nodes are the columns (a, b, c) of an array of shape
`(3, nodes)`, at +k.
"""

import itertools
import operator
from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Int

from ...dynamics.groups import Abelian

Columns = Complex[np.ndarray, "3 _"]

LIVE = 0.05  # of |z_a|: below it a node is dead
NEAR = 0.1  # how close entries come to those of a label
PERMUTATIONS = {n: np.array(list(itertools.permutations(range(n)))) for n in (4, 6)}
OMEGA = np.exp(2j * np.pi / 3)
# By the labels of both factors; all else: others.
FAMILIES = {("ν=i", "ξ"): "ν=i·ξ", ("ν=i", "syn,αβ"): "ν=i·syn,αβ", ("ν=i", "syn"): "ν=i·syn,αβ", ("ν", "syn"): "ν·syn"}


class Factors(NamedTuple):
    """One frequency's nodes as a product `C1 * C2`: the relative misfit, the family (`FAMILIES`), and the free
    parameters of the label by name (ν, ξ, α, β)."""

    error: float
    factorable: bool
    family: str
    parameters: dict[str, complex]


def nodes_by_frequency(z: Complex[np.ndarray, "3 order nodes"], group: Abelian) -> dict[int, Columns]:
    """The nodes alive whose largest `|z_ak|` is at k, for each k of `group.frequencies`; none: dead."""
    z, kept = np.asarray(z), np.array([0, *group.frequencies])
    size = np.abs(z[0, kept])
    largest, alive = kept[np.argmax(size, axis=0)], np.max(size, axis=0) > LIVE
    return {k: z[:, k, (largest == k) & alive] for k in group.frequencies}


def orders(z: Complex[np.ndarray, "3 order nodes"], group: Abelian) -> Int[np.ndarray, " k"]:
    """How many nodes are alive at each of `group.frequencies`."""
    return np.sum(np.abs(np.asarray(z)[0, list(group.frequencies)]) > LIVE, axis=1)


def factorise(columns: Columns) -> Factors:
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
    tried = PERMUTATIONS[n]
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
        return Factors(error, False, "others", {})
    two, more = _unit(mean[:, None])[:, 0], _unit(first / first[:, :1])
    one, own = _label_two(two)
    other, further = _label_two(more[:, 1]) if n == 4 else _label_three(more)
    # With four nodes either factor may come first.
    labels = (other, one) if n == 4 and one == "ξ" and other == "ν=i" else (one, other)
    return Factors(error, True, FAMILIES.get(labels, "others"), own | further)


def _unit(columns: np.ndarray) -> np.ndarray:
    """Each column over the principal cube root of a·b·c."""
    return columns / np.prod(columns, axis=0) ** (1 / 3)


def _label_two(column: np.ndarray) -> tuple[str, dict[str, complex]]:
    """The second column of a factor of order two, whose first is 1."""
    a, b, c = column
    if min(abs(c - 1j), abs(c + 1j)) < NEAR:
        return "ξ", {"ξ": a}
    if abs(c - 1) < NEAR and min(abs(a - 1j), abs(a + 1j)) < NEAR:
        return "ν=i", {}
    return ("ν", {"ν": a}) if abs(a + b) < NEAR else ("", {})


def _label_three(columns: np.ndarray) -> tuple[str, dict[str, complex]]:
    """The last two columns of a factor of order three, whose first is 1."""
    columns, synthetic = columns[:, 1:].copy(), np.array([OMEGA, OMEGA.conj()])
    columns[:2, columns[0].real > 0] *= -1
    columns = columns.conj() if columns[2, 0].imag < 0 else columns
    if (np.linalg.norm(columns - synthetic, axis=0) < NEAR * np.sqrt(3)).all():
        return "syn", {}
    if (np.abs(columns[2] - synthetic) < NEAR).all():
        # The released code divides by ω for β too.
        return "syn,αβ", dict(zip("αβ", columns[0] / synthetic, strict=True))
    return "", {}


def potential_order(columns: Columns) -> int | None:
    """Four or six by the potentials of one frequency relative to `r_kkk`, without permutations, labels or a count of
    nodes. Those of R_c and R_* vanish in both; `|r_{p,k,−k,k}|` is 1/√2 with order 4 and 0 with order 6, where it is
    the last to vanish in training: up to ½ counts. Neither: `None`. Derived here.
    """
    (a, b, c), threshold = columns, 0.05
    target, (a_, b_) = abs(np.sum(a * b * c)), columns[:2].conj()
    vanishing = (a * b_ * c, a_ * b * c, a_ * b_ * c, a * a * c, b * b * c, a_**2 * c, b_**2 * c)
    if target == 0 or max(abs(np.sum(v)) for v in vanishing) > threshold * target:
        return None
    left = max(abs(np.sum(np.abs(p) ** 2 * c)) for p in (a, b)) / target
    if abs(left - np.sqrt(0.5)) < threshold:
        return 4
    return 6 if left < 0.5 else None


class Table(NamedTuple):
    """The paper's table for one network. In per cent: `other_order` and `dead` of all frequencies, `in_families` of
    those alive, `order_4` of orders 4 and 6, `unfactored` of each of these, `families` (as `FAMILIES`, then others) of
    those factored. `error`: mean misfits ×100 of orders 4 and 6. `count`: frequencies by order, of the paper's
    procedure and by potentials, and how many `agree`. NaN where there are none."""

    other_order: float
    dead: float
    unfactored: tuple[float, ...]
    error: tuple[float, ...]
    families: tuple[float, ...]
    in_families: float
    order_4: float
    count: Counter
    by_potentials: Counter
    agree: int
    parameters: dict[str, list[complex]]


def table(z: Complex[np.ndarray, "3 order nodes"], group: Abelian) -> Table:
    """All frequencies of one network: see `Table`."""
    nodes = list(nodes_by_frequency(z, group).values())
    order, by_potentials = [columns.shape[1] for columns in nodes], [potential_order(columns) for columns in nodes]
    found = {n: [factorise(columns) for columns in nodes if columns.shape[1] == n] for n in (4, 6)}
    count, good = Counter(order), [f for several in found.values() for f in several if f.factorable]
    names = (*dict.fromkeys(FAMILIES.values()), "others")
    percent = lambda values: 100 * float(np.mean(values)) if len(values) else float("nan")
    return Table(
        other_order=percent([n not in (0, 4, 6) for n in order]),
        dead=percent([n == 0 for n in order]),
        unfactored=tuple(percent([not f.factorable for f in several]) for several in found.values()),
        error=tuple(percent([f.error for f in several if f.factorable]) for several in found.values()),
        families=tuple(percent([f.family == name for f in good]) for name in names),
        in_families=100 * sum(f.family != "others" for f in good) / max(len(nodes) - count[0], 1),
        order_4=100 * count[4] / max(count[4] + count[6], 1),
        count=count,
        by_potentials=Counter(by_potentials),
        agree=sum(map(operator.eq, order, by_potentials)),
        parameters={name: [f.parameters[name] for f in good if name in f.parameters] for name in "νξαβ"},
    )
