"""Finite groups, as tables of numbers: elements are 0 … order − 1, and 0 is the identity."""

import itertools
import math
from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import ArrayLike, Complex, Int

from .._checked import checked
from .._checks import concrete, describe, integer

MOST = 2048  # elements: the table has their number squared, and its axioms take the third power
"""The largest order of a group."""


def _check_order(name: str, order: int) -> None:
    if order > MOST:
        raise ValueError(f"{name} must make a group of at most {MOST} elements, got {order}.")


class Group(eqx.Module):
    """A finite group by its multiplication table, `rows[g][h] = g·h`. Nothing in it is traced.

    Made by `from_table`, `dihedral`, `dicyclic`, `metacyclic`, `symmetric`, `alternating`, `direct`, and for Abelian
    groups `cyclic` and `product`. All of them **raise** `ValueError` for more than `MOST` = 2048 elements, and `Group`
    for a table that is no group, as `from_table`.
    """

    name: str = eqx.field(static=True)
    rows: tuple[tuple[int, ...], ...] = eqx.field(static=True, repr=False)

    def __init__(self, name: str, rows: Int[ArrayLike, "order order"]):
        if not concrete(rows):
            raise ValueError(f"rows must be known outside jit and vmap, got {describe(rows)}.")
        if not isinstance(name, str):
            raise ValueError(f"name must be a string, got {describe(name)}.")
        try:
            table = np.asarray(rows)  # not JAX's, or it would start when claims on groups are imported
        except ValueError as error:
            raise ValueError(f"table must be a number or an array of numbers, got {describe(rows)}.") from error
        if table.dtype.kind not in "iu":
            raise ValueError(f"table must be integers, got {describe(rows)}.")
        if table.ndim != 2 or len(table) != table.shape[1]:
            raise ValueError(f"table must have shape (order, order), got {table.shape}.")
        _check_order("table", len(table))
        _check_axioms(table)
        self.name, self.rows = name, tuple(map(tuple, table.tolist()))

    @property
    def order(self) -> int:
        return len(self.rows)

    @property
    def table(self) -> Int[np.ndarray, "order order"]:
        """The number of the product of each two elements."""
        return np.array(self.rows)

    @property
    def inverse(self) -> Int[np.ndarray, " order"]:
        """The number of the inverse of each element."""
        return np.argmin(self.table, axis=1)  # where the product is the identity, 0

    @property
    def is_abelian(self) -> bool:
        return bool((self.table == self.table.T).all())


@checked
class Abelian(Group):
    """`Z_n1 × Z_n2 × …`, whose dual group has the same numbers: element `x0 + n0·x1 + n0·n1·x2 + …`."""

    factors: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, factors: Sequence[int]):
        if isinstance(factors, str) or not isinstance(factors, Sequence) or not factors:
            raise ValueError(f"factors must be a sequence of integers of at least 2, got {describe(factors)}.")
        self.factors = tuple(integer("factors", n, least=2) for n in factors)
        _check_order("factors", math.prod(self.factors))
        self.name = "×".join(f"Z{n}" for n in self.factors)
        x = self.coordinates
        place = np.cumprod([1, *self.factors[:-1]])
        sums = (x[:, None] + x[None]) % np.array(self.factors)
        self.rows = tuple(map(tuple, (sums @ place).tolist()))

    @property
    def coordinates(self) -> Int[np.ndarray, "order factors"]:
        """The components of each element."""
        number = np.arange(math.prod(self.factors))
        return np.stack(np.unravel_index(number, self.factors[::-1])[::-1], axis=1)

    @property
    def characters(self) -> Complex[np.ndarray, "order order"]:
        """`φ_k(g) = exp(2πi Σ k_i g_i/n_i)`, a row for each k of the dual group."""
        x, n = self.coordinates, np.array(self.factors)
        turns = np.sum(x[:, None] * x[None] % n / n, axis=2)  # whole turns go first, for they would cost digits
        return np.exp(2j * np.pi * turns)

    @property
    def frequencies(self) -> tuple[int, ...]:
        """One of each pair {k, −k} of the dual group without zero; those with 2k = 0 (even orders) stand alone."""
        return tuple(k for k in range(1, self.order) if k <= self.inverse[k])


@checked
def cyclic(d: int) -> Abelian:
    """`Z_d`. **Raises** `ValueError` for `d` below two."""
    return Abelian((integer("d", d, least=2),))


def product(*factors: int) -> Abelian:
    """`Z_n1 × Z_n2 × …`. **Raises** `ValueError` for a factor below two."""
    return Abelian(factors)


def from_table(table: Int[ArrayLike, "order order"], name: str = "group") -> Group:
    """A group from the numbers of the products of each two elements. **Raises** `ValueError` for a table that is no
    group, saying which axiom fails and where; the identity must be element 0."""
    return Group(name, table)


def _check_axioms(t: Int[np.ndarray, "order order"]) -> None:
    n = len(t)
    if not n:
        raise ValueError("table must have at least one element, got none.")
    if t.min() < 0 or t.max() >= n:
        g, h = np.argwhere((t < 0) | (t >= n))[0]
        raise ValueError(f"table must be closed: the product of {g} and {h} must lie from 0 to {n - 1}, got {t[g, h]}.")
    if (t[0] != np.arange(n)).any() or (t[:, 0] != np.arange(n)).any():
        raise ValueError("table must have the identity as element 0: its first row and column must count 0, 1, 2, ….")
    for g in range(n):
        if 0 not in t[g] or 0 not in t[:, g]:
            raise ValueError(f"table must have an inverse of each element, got none of {g}.")
    for g in range(n):  # (g h) k against g (h k), one g at a time
        wrong = np.argwhere(t[t[g]] != t[g][t])
        if wrong.size:
            h, k = wrong[0]
            left, right = t[t[g, h], k], t[g, t[h, k]]
            raise ValueError(f"table must be associative, got ({g}·{h})·{k} = {left} and {g}·({h}·{k}) = {right}.")


@checked
def dihedral(n: int) -> Group:
    """The symmetries of a regular n-gon, of order 2n: rotations 0 … n−1, then reflections. **Raises** `ValueError`
    for `n` below one."""
    _check_order("n", 2 * integer("n", n, least=1))
    flip, turn = np.divmod(np.arange(2 * n), n)
    turns = (turn[:, None] + np.where(flip[:, None] == 1, -1, 1) * turn[None]) % n
    return from_table((flip[:, None] ^ flip[None]) * n + turns, f"D{n}")


@checked
def dicyclic(n: int) -> Group:
    """`⟨a, x : a²ⁿ = 1, x² = aⁿ, x a x⁻¹ = a⁻¹⟩`, of order 4n; the quaternion group for n = 2. **Raises** `ValueError`
    for `n` below two."""
    _check_order("n", 4 * integer("n", n, least=2))
    flip, turn = np.divmod(np.arange(4 * n), 2 * n)
    both = flip[:, None] & flip[None]
    turns = (turn[:, None] + np.where(flip[:, None] == 1, -1, 1) * turn[None] + n * both) % (2 * n)
    return from_table((flip[:, None] ^ flip[None]) * 2 * n + turns, "Q8" if n == 2 else f"Dic{n}")


@checked
def metacyclic(n: int, m: int, r: int) -> Group:
    """`Z_n ⋊ Z_m`, where the generator of Z_m multiplies Z_n by r: of order nm, and not Abelian unless r = 1.
    **Raises** `ValueError` for sizes below two, or unless `r^m = 1` modulo n."""
    _check_order("n and m", integer("n", n, least=2) * integer("m", m, least=2))
    if pow(r, m, n) != 1:
        raise ValueError(f"r^m must be 1 modulo n for Z_m to act on Z_n, got {r}^{m} = {pow(r, m, n)} modulo {n}.")
    y, x = np.divmod(np.arange(n * m), n)
    powers = np.array([pow(r, i, n) for i in range(m)])
    turned = (x[:, None] + powers[y][:, None] * x[None]) % n
    return from_table((y[:, None] + y[None]) % m * n + turned, f"Z{n}:Z{m}")


@checked
def direct(first: Group, second: Group) -> Group:
    """The direct product of any two groups: element `x + order(first)·y`."""
    _check_order("first and second", first.order * second.order)
    y, x = np.divmod(np.arange(first.order * second.order), first.order)
    table = first.table[x[:, None], x[None]] + first.order * second.table[y[:, None], y[None]]
    return from_table(table, f"{first.name}×{second.name}")


@checked
def symmetric(n: int) -> Group:
    """All permutations of n things, of order n!. **Raises** `ValueError` for `n` outside 1 … 6."""
    integer("n", n, least=1, most=6)  # the table has (n!)² entries
    return _of_permutations(list(itertools.permutations(range(n))), f"S{n}")


@checked
def alternating(n: int) -> Group:
    """The even permutations of n things, of order n!/2. **Raises** `ValueError` for `n` outside 3 … 6."""
    integer("n", n, least=3, most=6)
    inversions = lambda p: sum(p[i] > p[j] for i, j in itertools.combinations(range(n), 2))
    return _of_permutations([p for p in itertools.permutations(range(n)) if inversions(p) % 2 == 0], f"A{n}")


def _of_permutations(permutations: list[tuple[int, ...]], name: str) -> Group:
    number = {p: i for i, p in enumerate(permutations)}
    return from_table(np.array([[number[tuple(p[i] for i in q)] for q in permutations] for p in permutations]), name)


@checked
def require_abelian(group: Group, by: str) -> Abelian:
    """The group, if its characters are known. **Raises** `ValueError` otherwise."""
    if not isinstance(group, Abelian):
        which = "made by cyclic or product" if group.is_abelian else "that is Abelian (others are not supported)"
        raise ValueError(f"{by} needs a group {which}, got {group.name}.")
    return group
