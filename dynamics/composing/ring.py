"""The semi-ring of two-layer networks with quadratic activation on a finite Abelian group, and its potentials.

The network `o_g(g1, g2) = (1/2d) Σ_j w_cgj (w_ag1j + w_bg2j)²` learns `g1 + g2`. In Fourier space it is an array z of
shape `(3, d, q)`, `w_amj = Σ_k z_akj φ_k(m)`, the same for b, and with conjugate characters for c. The loss is a
function of cubic sums over nodes, the potentials, which turn sums and products of networks into sums and products.

Source: Composing Global Optimisers (Tian, arXiv 2410.01779), Theorems 1 to 3. The published transform leaves out the
2π, the 1/d and the opposite sign for c; the loss as printed holds for `z_a0 = z_b0 = 0`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float, Inexact

from ..._checked import checked
from ..._checks import check_shape, concrete, describe, integer, real
from ..groups import Abelian, Group, require_abelian


class Weights(NamedTuple):
    """The real matrices of the network, each of shape `(order, nodes)`."""

    a: Float[Array, "order nodes"]
    b: Float[Array, "order nodes"]
    c: Float[Array, "order nodes"]


class Potentials(NamedTuple):
    """`r[k1, k2, k] = Σ_j z_ak1j z_bk2j z_ckj`, and `a`, `b`: the same with a twice, and with b twice."""

    r: Complex[Array, "order order order"]
    a: Complex[Array, "order order order"]
    b: Complex[Array, "order order order"]


@checked
class Solution(eqx.Module):
    """An element of the semi-ring: a network of q hidden nodes in Fourier space, `z_{−k} = conj z_k`.

    `y + z` puts the nodes side by side, `y * z` multiplies each node of one with each node of the other, frequency by
    frequency: orders add and multiply. Both are commutative up to the order of the nodes, `*` is distributive over `+`
    (Theorem 2), and each potential is a homomorphism into the complex numbers (Theorem 3). A number times a solution
    scales all of z: potentials are cubic.

    **Fields:** `z`, shape `(3, order, nodes)`: the rows of a, b and c; `group`.
    **Raises** `ValueError` for another shape, for a group that is not Abelian, for weights that would not be real
    (no Hermitian symmetry; inside `jit` z is NaN then), and in `+` and `*` for different groups and for factors that
    are not real numbers.
    """

    z: Complex[Array, "3 order nodes"]
    group: Abelian = eqx.field(static=True)

    def __init__(self, z: Inexact[ArrayLike, "3 order nodes"], group: Group):
        self.group = require_abelian(group, "Solution")
        z = jnp.asarray(z)
        z = z if jnp.iscomplexobj(z) else z.astype(np.result_type(z.dtype, np.complex64))
        check_hermitian(z, self.group)
        if not concrete(z):
            off, allowed = _asymmetry(z, self.group, jnp)
            z = jnp.where(off <= allowed, z, jnp.nan)
        self.z = z

    @property
    def nodes(self) -> int:
        """ord(z), the number of hidden nodes q."""
        return self.z.shape[2]

    def __add__(self, other: "Solution") -> "Solution":
        both = self.z, self._like(other, "+").z
        return Solution(_where_known(both).concatenate(both, axis=2), self.group)

    def __mul__(self, other: "Solution | ArrayLike") -> "Solution":
        if not isinstance(other, Solution):
            return Solution(self.z * real("factor", other, ()).astype(self.z.dtype), self.group)
        both = self.z, self._like(other, "*").z
        y, z = map(_where_known(both).asarray, both)
        return Solution((y[:, :, :, None] * z[:, :, None, :]).reshape(3, self.group.order, -1), self.group)

    __rmul__ = __mul__

    def _like(self, other: "Solution", operation: str) -> "Solution":
        if not isinstance(other, Solution):
            raise ValueError(f"z1 {operation} z2 needs two solutions, got {describe(other)}.")
        if other.group != self.group:
            raise ValueError(f"z1 {operation} z2 needs one group, got {self.group.name} and {other.group.name}.")
        return other

    def potentials(self) -> Potentials:
        return potentials(self.z)

    def loss(self) -> Float[Array, ""]:
        """The mean squared error over all pairs, exactly: see `loss`."""
        return loss(self.z, self.group)

    def norm(self) -> Float[Array, ""]:
        """`‖z‖²`; the weights have d times that."""
        return jnp.sum(jnp.abs(self.z) ** 2)

    def leftover(self) -> Complex[Array, " order"]:
        """`R_k = Σ_p Σ_k' r_{p,k',−k',k}`, which the loss wants zero."""
        return leftover(self.z, self.group)

    def to_weights(self) -> Weights:
        """The real matrices of the network."""
        return to_weights(self.z, self.group)


def _where_known(z: Any) -> Any:
    """NumPy where values are known, else JAX: each new number of nodes would compile."""
    return np if concrete(z) else jnp


def check_hermitian(z: Complex[Array, "3 order nodes"], group: Abelian) -> None:
    """Raises `ValueError` unless z is of the group's order, and if its values are known finite and Hermitian."""
    check_shape("z", z, (3, group.order, "nodes"))
    if concrete(z):
        off, allowed = _asymmetry(np.asarray(z), group, np)
        if not off <= allowed:
            raise ValueError(
                f"z must be finite and Hermitian, z[:, −k] = conj z[:, k], for its weights to be real, got a difference"
                f" of {off:.3g}."
            )


def _asymmetry(z: Any, group: Abelian, xp: Any) -> tuple[Any, Any]:
    """By how much z fails to be Hermitian, and what rounding may make of it."""
    off = xp.max(xp.abs(z[:, group.inverse] - z.conj()), initial=0.0)
    return off, 100 * jnp.finfo(z.dtype).eps * xp.maximum(xp.max(xp.abs(z), initial=0.0), 1.0)


@checked
def one(group: Group) -> Solution:
    """The identity of `*`: one node, all entries one."""
    return Solution(np.ones((3, group.order, 1), complex), group)


@checked
def zero(group: Group) -> Solution:
    """The identity of `+`: no node."""
    return Solution(np.zeros((3, group.order, 0), complex), group)


@checked
def from_weights(
    a: Float[ArrayLike, "order nodes"],
    b: Float[ArrayLike, "order nodes"],
    c: Float[ArrayLike, "order nodes"],
    group: Group,
) -> Solution:
    """The Fourier transform of real weights: `z_akj = (1/d) Σ_m w_amj conj φ_k(m)`, b alike, c with `φ_k(m)`."""
    group = require_abelian(group, "from_weights")
    check_shape("a", a, (group.order, "nodes"))
    w = jnp.stack([jnp.asarray(x) for x in (a, b, c)])
    phi = jnp.asarray(group.characters, np.result_type(w.dtype, np.complex64)) / group.order
    z = jnp.concatenate([jnp.conj(phi)[None] @ w[:2].astype(phi.dtype), phi[None] @ w[2:].astype(phi.dtype)])
    return Solution((z + jnp.conj(z[:, group.inverse])) / 2, group)


@checked
def to_weights(z: Complex[Array, "3 order nodes"], group: Abelian) -> Weights:
    """The inverse of `from_weights`. **Raises** `ValueError` for a z that is not Hermitian; inside `jit` only the real
    part of its weights is returned then."""
    check_hermitian(z, group)
    phi = jnp.asarray(group.characters, z.dtype)
    w = jnp.real(jnp.concatenate([phi.T[None] @ z[:2], jnp.conj(phi.T)[None] @ z[2:]]))
    return Weights(w[0], w[1], w[2])


@checked
def potentials(z: Complex[Array, "3 order nodes"]) -> Potentials:
    """All potentials of order three, one matrix product each."""
    d = z.shape[1]

    def of(p, q):
        pairs = (p[:, None] * q[None]).reshape(d * d, -1)
        return (pairs @ z[2].T).reshape(d, d, d)

    return Potentials(of(z[0], z[1]), of(z[0], z[0]), of(z[1], z[1]))


@checked
def loss_terms(z: Complex[Array, "3 order nodes"], group: Abelian) -> Float[Array, " order"]:
    """What each frequency k ≠ 0 contributes to the loss, `ℓ = Σ_k terms[k]`, for any real weights; `terms[0] = 0`.

        terms[k] = (1/d) ‖M_k‖_F²,   M_k = r_{··k} − 1 at (k, k), + ½ A^a_{mk} at (m, 0), + ½ A^b_{mk} at (0, m),
        A^p_{mk} = Σ_{k'} r_{p, k', m−k', k}

    The general form of Theorem 1: `z_a0` and `z_b0` need not vanish. **Raises** `ValueError` for a z that is not
    Hermitian, which inside `jit` is not looked at.
    """
    check_hermitian(z, group)
    r, a, b = potentials(z)
    m = r - target(group.order).astype(r.dtype)
    m = m.at[:, 0].add(_sums(a, group) / 2).at[0, :].add(_sums(b, group) / 2)
    return jnp.sum(jnp.abs(m) ** 2, axis=(0, 1)).at[0].set(0.0) / group.order


@checked
def target(order: int) -> Float[Array, "order order order"]:
    """δ: one at (k, k, k), zero elsewhere. **Raises** `ValueError` for an order outside 1 … 1024."""
    integer("order", order, least=1, most=1024)  # 8 GiB
    k = jnp.arange(order)
    return jnp.zeros((order, order, order)).at[k, k, k].set(1.0)


def _sums(p: Complex[Array, "order order order"], group: Abelian) -> Complex[Array, "order order"]:
    """`A^p_{mk} = Σ_{k'} r_{p, k', m−k', k}`."""
    other = group.table[:, group.inverse].T  # other[k', m] = m − k'
    return jnp.sum(p[jnp.arange(group.order)[:, None], other], axis=0)


def leftover(z: Complex[Array | np.ndarray, "3 order nodes"], group: Abelian) -> Any:
    """`R_k = Σ_p Σ_k' r_{p,k',−k',k}`, shape `(order,)`. Of an array of NumPy it is one too, known inside `jit`."""
    return z[2] @ (z[:2] * z[:2, group.inverse]).sum(axis=(0, 1))


@checked
def loss(z: Complex[Array, "3 order nodes"], group: Abelian) -> Float[Array, ""]:
    """The mean over all pairs of `‖P (o − onehot)‖²`, with P the projection onto zero mean: `Σ_k loss_terms`."""
    return jnp.sum(loss_terms(z, group))


@checked
def printed_loss(z: Complex[Array, "3 order nodes"], group: Abelian) -> Float[Array, ""]:
    """Theorem 1 as published (with Re r_kkk), which holds for `z_a0 = z_b0 = 0`:

    ℓ = 1 − 1/d + (1/d) Σ_{k≠0} ℓ_k,
    ℓ_k = −2 r_kkk + Σ |r_{k1k2k}|² + ¼ |A^a_0k + A^b_0k|² + ¼ Σ_{m≠0} |A^a_mk|² + |A^b_mk|²
    """
    check_hermitian(z, group)
    d = group.order
    r, a, b = potentials(z)
    sum_a, sum_b = _sums(a, group), _sums(b, group)
    diagonal = jnp.real(r[jnp.arange(d), jnp.arange(d), jnp.arange(d)])
    crossed = jnp.sum(jnp.abs(sum_a[1:]) ** 2 + jnp.abs(sum_b[1:]) ** 2, axis=0)
    each = -2 * diagonal + jnp.sum(jnp.abs(r) ** 2, axis=(0, 1)) + (jnp.abs(sum_a[0] + sum_b[0]) ** 2 + crossed) / 4
    return 1 - 1 / d + jnp.sum(each[1:]) / d


@checked
def direct_loss(weights: Weights, group: Group) -> Float[Array, ""]:
    """The same loss by its definition, from the real matrices: the network at all d² pairs. For checks."""
    d = group.order
    check_shape("weights.a", weights.a, (d, "nodes"))
    h = (weights.a[:, None] + weights.b[None]) ** 2
    o = h @ weights.c.T / (2 * d)
    error = o - jax.nn.one_hot(jnp.asarray(group.table), d, dtype=o.dtype)
    error = error - jnp.mean(error, axis=2, keepdims=True)
    return jnp.sum(error**2) / d**2
