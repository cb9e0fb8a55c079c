"""Global optimisers built by hand: blocks, polynomials of a generator, and zero-loss paths between optima.

Source: Composing Global Optimisers (arXiv 2410.01779), Theorem 4, Theorem 5 and the solutions z_F6, z_F4/6, z_M. The
explicit ŝ of Theorem 4, the hat of z_F4/6, the solution with a bias node, even orders and the paths are derived here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Complex, Float

from ..._checked import checked
from ..._checks import check_shape, concrete, describe, integer, real
from ..groups import Abelian, Group, require_abelian
from .ring import Solution, leftover, one, zero

OMEGA = np.exp(2j * np.pi / 3)
Columns = Complex[np.ndarray, "3 nodes"]
Number = complex | float | int


@checked
def at_frequency(group: Group, k: int, columns: Complex[ArrayLike, "3 nodes"]) -> Solution:
    """The element with these entries of a, b, c at the frequency k, their conjugates at −k, and zero elsewhere.

    **Raises** `ValueError` for k = 0 or outside the dual group, and where 2k = 0 for entries that are not real.
    """
    group = require_abelian(group, "at_frequency")
    integer("k", k, least=1, most=group.order - 1)
    columns = _known("columns", columns)
    minus = group.inverse[k]
    if minus == k and np.abs(np.imag(columns)).max(initial=0) > 1e-12:
        raise ValueError(f"columns must be real where k is its own conjugate, got complex ones at {k} in {group.name}.")
    z = np.zeros((3, group.order, columns.shape[1]), complex)
    z[:, minus], z[:, k] = columns.conj(), columns
    return Solution(z, group)


def _columns(*nodes: Sequence[Number]) -> Columns:
    return np.array(nodes, complex).T


def _known(name: str, x: Any) -> Complex[np.ndarray, "..."]:
    """`x` as finite complex numbers on the host, in double precision where JAX has single."""
    if not concrete(x):
        raise ValueError(f"{name} must be known outside jit and vmap, got {describe(x)}.")
    try:
        x = np.asarray(x, complex)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, got {describe(x)}.") from error
    if not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite, got {describe(x)}.")
    return x


def _unit(name: str, x: Any) -> complex:
    """A complex number of modulus one, to 1e-6."""
    x = _known(name, x)
    if x.shape or abs(abs(x) - 1) > 1e-6:
        raise ValueError(f"{name} must be a number of modulus one, got {describe(x)}.")
    return complex(x)


# Building blocks: the columns (a, b, c) of each node, entries of modulus one.


@checked
def syn(alpha: Number = 1.0, beta: Number = 1.0) -> Columns:
    """`1 + u + u²` with u = (ω, ω, ω); with α, β of modulus one `z_syn,αβ`."""
    w, alpha, beta = OMEGA, _unit("alpha", alpha), _unit("beta", beta)
    first = (alpha * w, np.conj(alpha) * w, w)
    return _columns((1, 1, 1), first, (beta * w**2, np.conj(beta) * w**2, w**2))


@checked
def nu(value: Number) -> Columns:
    """`1 + (ν, −ν, −ν̄²)`, |ν| = 1; `nu(1j)` is z_{ν=i}."""
    value = _unit("value", value)
    return _columns((1, 1, 1), (value, -value, -(np.conj(value) ** 2)))


@checked
def xi(value: Number) -> Columns:
    """`1 + (ξ, −iξ̄, i)`, |ξ| = 1."""
    value = _unit("value", value)
    return _columns((1, 1, 1), (value, -1j * np.conj(value), 1j))


def cube() -> Columns:
    """`z_3c = 1 + u + u²` with u = (ω, ω̄, 1)."""
    w = OMEGA
    return _columns((1, 1, 1), (w, w**2, 1), (w**2, w, 1))


@checked
def phase(theta1: float = 0.0, theta2: float = 0.0) -> Columns:
    """`y`: one node that turns the phases and keeps abc = 1."""
    theta1, theta2 = (float(real(name, x, ())) for name, x in (("theta1", theta1), ("theta2", theta2)))
    return _columns((np.exp(1j * theta1), np.exp(1j * theta2), np.exp(-1j * (theta1 + theta2))))


def times(*blocks: Complex[np.ndarray, "3 _"]) -> Columns:
    """The product of blocks of one frequency."""
    result = np.ones((3, 1), complex)
    for block in blocks:
        block = _known("blocks", block)
        check_shape("blocks", block, (3, "nodes"))
        result = (result[:, :, None] * block[:, None, :]).reshape(3, -1)
    return result


def real_pair() -> Columns:
    """For a frequency that is its own conjugate: `(1, 1, 1) + (1, −1, −1)`, two nodes."""
    return _columns((1, 1, 1), (1, -1, -1))


def polynomial(u: Complex[ArrayLike, "3"]) -> Columns:
    """Theorem 4, `ρ(u) = Π_{s∈S} (u + ŝ)`: S holds the values of the eight potentials of one frequency at the generator
    u, which must be of abc = 1; `ŝ = (1, 1, −s)`. **Raises** `ValueError` if abc ≠ 1, or if 1 is among S."""
    u = _known("u", u)
    check_shape("u", u, (3,))
    a, b, c = u
    if abs(a * b * c - 1) > 1e-12:
        raise ValueError(f"u must have a·b·c = 1, got {a * b * c:.6g}.")
    ca, cb = np.conj(a), np.conj(b)
    values = (a * cb * c, ca * b * c, ca * cb * c, a * ca * c, a * a * c, b * b * c, ca * ca * c, cb * cb * c)
    distinct = []
    for s in (*values, b * cb * c):
        if all(abs(s - other) > 1e-9 for other in distinct):
            distinct.append(s)
    if any(abs(s - 1) < 1e-9 for s in distinct):
        raise ValueError(f"u must not give 1 to a potential that is to vanish, for then r_kkk = 0, got {describe(u)}.")
    coefficients = np.poly(distinct)[::-1]  # of x^0, x^1, …, of Π (x − s)
    powers = np.arange(len(coefficients))
    return np.stack([a**powers, b**powers, c**powers * coefficients])


# Solutions


@checked
def from_blocks(group: Group, block: Callable[[int], Columns], only: Sequence[int] | None = None) -> Solution:
    """The sum over the frequencies k (one of each k, −k; by default all) of `block(k)`, scaled to `r_kkk = 1`. A
    frequency that is its own conjugate gets `real_pair` instead.

    **Raises** `ValueError` for frequencies outside the dual group or twice in `only`, as themselves or as −k, and for a
    block whose nodes sum to `abc = 0`.
    """
    group = require_abelian(group, "from_blocks")
    parts = [zero(group)]
    for k in _once(group, group.frequencies if only is None else only):
        columns = real_pair() if group.inverse[k] == k else _known("block(k)", block(k))
        check_shape("block(k)", columns, (3, "nodes"))
        value = np.prod(columns, axis=0).sum()
        if abs(value) < 1e-12:
            raise ValueError(f"block(k) must have Σ abc ≠ 0 for r_kkk = 1, got {value:.3g} at k = {k}.")
        size, turn = abs(value) ** (1 / 3), value / abs(value)
        columns = columns / size * np.array([1, 1, np.conj(turn)])[:, None]
        parts.append(at_frequency(group, k, columns))
    # At once and on the host: each number of nodes on the way would compile anew.
    return Solution(np.concatenate([np.asarray(part.z) for part in parts], axis=2), group)


def _once(group: Abelian, only: Sequence[int]) -> list[int]:
    """Frequencies, none of which stands there twice."""
    found: list[int] = []
    for k in only:
        k = integer("only", k, least=1, most=group.order - 1)
        if k in found or group.inverse[k] in found:
            raise ValueError(
                f"only must hold one of each k, −k, got {k} after {k if k in found else group.inverse[k]}."
            )
        found.append(k)
    return found


@checked
def f6(
    group: Group,
    *,
    nus: Sequence[Number] | None = None,
    phases: Sequence[tuple[float, float]] | None = None,
) -> Solution:
    """`z_F6 = 6^{-1/3} Σ_k z_syn * z_ν * y`: six nodes a frequency. `nus`, of modulus one (by default i), and `phases`
    (θ1, θ2) in the order of `group.frequencies`."""
    number, nus = _numbering(group, nus=nus, phases=phases), _units("nus", nus)
    return from_blocks(
        group, lambda k: times(syn(), nu(1j if nus is None else nus[number[k]]), _turn(phases, number[k]))
    )


@checked
def f6_variant(
    group: Group,
    *,
    alphas: Sequence[Number] | None = None,
    betas: Sequence[Number] | None = None,
    phases: Sequence[tuple[float, float]] | None = None,
) -> Solution:
    """`z_syn,αβ * z_{ν=i} * y`: any α, β of modulus one, but ν = i only."""
    number = _numbering(group, alphas=alphas, betas=betas, phases=phases)
    alphas, betas = _units("alphas", alphas), _units("betas", betas)

    def block(k):
        alpha, beta = (1.0 if x is None else x[number[k]] for x in (alphas, betas))
        return times(syn(alpha, beta), nu(1j), _turn(phases, number[k]))

    return from_blocks(group, block)


@checked
def f4_6(
    group: Group,
    k0: int | None = None,
    *,
    xis: Sequence[Number] | None = None,
    phases: Sequence[tuple[float, float]] | None = None,
) -> Solution:
    """`z_F4/6`: four nodes a frequency, `z_{ν=i} * z_ξ`, but for six at `k0` (by default the first), whose nodes carry
    in row c a constant for each other frequency that cancels what order 4 leaves of `Σ_p r_{p,k',−k',k}`.

    **Raises** `ValueError` for a group without, or a `k0` that is not among, those `group.frequencies` that are not
    their own conjugates.
    """
    group = require_abelian(group, "f4_6")
    pairs = [k for k in group.frequencies if group.inverse[k] != k]
    if not pairs:
        raise ValueError(f"group must have a frequency that is not its own conjugate, got {group.name}.")
    k0 = pairs[0] if k0 is None else k0
    if k0 not in pairs:
        raise ValueError(f"k0 must be one of {pairs}, got {k0}.")
    number, xis = _numbering(group, xis=xis, phases=phases), _units("xis", xis)
    block = lambda k: times(nu(1j), xi(1.0 if xis is None else xis[number[k]]), _turn(phases, number[k]))
    four = from_blocks(group, block, [k for k in group.frequencies if k != k0])
    six = from_blocks(group, lambda k: times(syn(), nu(1j), _turn(phases, number[k0])), [k0])
    z = np.array(six.z)  # what is left over is zero at 0 and ±k0, where `four` has no entries
    z[2] -= (leftover(np.asarray(four.z), group) / np.sum(np.abs(z[:2]) ** 2))[:, None]
    return Solution(z, group) + four


@checked
def f4_biased(group: Group, *, sigma: float | None = None) -> Solution:
    """Order 4 at every frequency and one more node, a bias: `a_0 = b_0 = σ`, `c_k = −R_k/(2σ)²`, R_k being what order 4
    leaves. `σ = n^{1/6}` for n frequencies has the least norm. Not in the paper."""
    group = require_abelian(group, "f4_biased")
    four = from_blocks(group, lambda k: times(nu(1j), xi(1.0)))
    size = len(group.frequencies) ** (1 / 6) if sigma is None else float(real("sigma", sigma, (), above=0))
    bias = np.zeros((3, group.order, 1), four.z.dtype)
    bias[:2, 0], bias[2, 1:, 0] = size, -leftover(np.asarray(four.z), group)[1:] / (2 * size) ** 2
    return four + Solution(bias, group)


@checked
def f9(group: Group) -> Solution:
    """`z_3c * z_syn`: nine nodes a frequency. Exists, and is not seen in training."""
    return from_blocks(group, lambda k: times(cube(), syn()))


@checked
def memorisation(group: Group) -> Solution:
    """Perfect memorisation, `z_M = d^{-2/3} z_a * z_b` with d² nodes: `z_a = Σ_j u_a^j`, `u_a = (φ_k(1), 1, φ̄_k(1))`.
    z_b is the same with a and b exchanged. In products of cyclic groups j runs over all elements."""
    group = require_abelian(group, "memorisation")
    phi = group.characters
    ones = np.ones_like(phi)
    first = Solution(np.stack([phi, ones, phi.conj()]), group)
    second = Solution(np.stack([ones, phi, phi.conj()]), group)
    return first * second * group.order ** (-2 / 3)


def _numbering(group: Group, **options: Sequence | None) -> dict[int, int]:
    frequencies = require_abelian(group, "this solution").frequencies
    for name, values in options.items():
        if values is not None and (isinstance(values, str) or np.shape(values)[:1] != (len(frequencies),)):
            raise ValueError(
                f"{name} must have an entry for each of {len(frequencies)} frequencies, got {describe(values)}."
            )
    return {k: i for i, k in enumerate(frequencies)}


def _units(name: str, values: Sequence[Number] | None) -> list[complex] | None:
    return None if values is None else [_unit(name, value) for value in values]


def _turn(phases: Sequence[tuple[float, float]] | None, i: int) -> Columns:
    if phases is None:
        return phase()
    check_shape("phases", phases, (len(phases), 2))
    return phase(*phases[i])


# Paths


@checked
def pseudo_identity(group: Group, nodes: int) -> Solution:
    """`e = (1, 0, …, 0)`: `e * z` is z with nodes that are dead."""
    integer("nodes", nodes, least=1)
    first = one(group)
    return Solution(jnp.concatenate([first.z, jnp.zeros((3, group.order, nodes - 1), first.z.dtype)], axis=2), group)


@checked
def occam_path(y: Solution, t: Float[ArrayLike, ""]) -> Solution:
    """Theorem 5: `y(t)` from y at t = 0 to the pseudo-identity at t = 4, along which `r_kkk(y) = 1` for all k, so that
    the loss of `y(t) * z'` stays zero for each z' whose potentials are all 1 or 0. y must have `r_kkk(y) = 1`.

    Four straight pieces: c to one other node j; a and b to that node and to the first; c to the first; a and b too. The
    norm may rise on the way. The theorem's `‖e*z'‖ ≤ ‖y*z'‖` needs a z' with rows a, b and c of equal length.

    **Raises** `ValueError` for a t outside 0 … 4, which inside `jit` is clipped, for fewer than two nodes, and for a y
    whose r_kkk are not 1. Also for a y where at some k no node besides the first has `a·b ≠ 0`.
    """
    a, b, c = y.z
    q, t = y.nodes, real("t", t, (), least=0, most=4)
    if q < 2:
        raise ValueError(f"y must have at least 2 nodes, got {q}.")
    if concrete(y.z):
        found = np.sum(np.prod(np.asarray(y.z), axis=0), axis=1)
        worst = int(np.argmax(np.abs(found - 1)))
        if not abs(found[worst] - 1) <= 1e-3:
            raise ValueError(f"y must have r_kkk = 1 at every k, got {found[worst]:.3g} at k = {worst}.")
    j = 1 + jnp.argmax(jnp.abs(a * b)[:, 1:], axis=1)
    other = jnp.arange(q)[None] == j[:, None]
    first = jnp.broadcast_to(jnp.arange(q)[None] == 0, other.shape).astype(y.z.dtype)
    alone = lambda x: jnp.where(other, x, 0)
    ab = jnp.sum(alone(a * b), axis=1, keepdims=True)
    if concrete(ab) and not np.all(ab):
        lacking = int(np.argmin(np.abs(ab)))
        raise ValueError(f"y must have a node besides the first with a·b ≠ 0 at every k, got none at k = {lacking}.")
    stops = [
        (a, b, c),
        (a, b, alone(jnp.ones_like(c)) / ab),
        (alone(a) + first, alone(b) + first, alone(jnp.ones_like(c)) / ab),
        (alone(a) + first, alone(b) + first, first),
        (first, first, first),
    ]
    points = jnp.stack([jnp.stack(stop) for stop in stops])
    t = jnp.clip(jnp.asarray(t, points.real.dtype), 0, 4)
    piece = jnp.minimum(jnp.floor(t), 3).astype(int)
    part = (t - piece.astype(t.dtype)).astype(points.dtype)
    return Solution((1 - part) * points[piece] + part * points[piece + 1], y.group)


@checked
def optimum_path(first: Solution, second: Solution, t: Float[ArrayLike, ""]) -> Solution:
    """`(1−t)^{1/3} z1 + t^{1/3} z2`: zero loss all the way between any two zero-loss solutions, for potentials, and so
    the output, interpolate linearly, also beyond t = 0 and 1. Not in the paper."""
    t = jnp.asarray(real("t", t, ()), first.z.real.dtype)
    return first * jnp.cbrt(1 - t) + second * jnp.cbrt(t)


@checked
def least_norm(order4: float | int, order6: float | int) -> float:
    """The predicted `‖z‖²` of n4 order-4 and n6 order-6 frequencies, biases spread over all of order 6:
    `N = 6·6^{1/3} n6 + 6·4^{1/3} n4 + 6^{1/3} n4/n6`. Not in the paper. **Raises** `ValueError` unless `n4 ≥ 0` and
    `n6 ≥ 1`."""
    for name, order, least in (("order4", order4, 0), ("order6", order6, 1)):
        real(name, order, (), least=least)
    order4, order6 = float(np.asarray(order4)), float(np.asarray(order6))  # on the host, inside jit too
    return 6 * math.cbrt(6) * order6 + 6 * math.cbrt(4) * order4 + math.cbrt(6) * order4 / order6
