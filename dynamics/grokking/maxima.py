"""Stage II: where the ascent ends. The maxima of the energy are pairs of functions of rank one in a single irreducible
representation; what they are worth, how flat they are, and how many nodes at maxima reconstruct all labels.

All of it for x² and all pairs. Real representations R of real dimension D, m copies in the regular representation, over
the real, complex or quaternionic numbers, of dimension δ, with D = δm.

Source: corrects Theorem 2 and Corollaries 1 and 2 of Li2 (arXiv 2509.21519), as derived here; Theorem 3.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact

from ..._checked import checked
from ..._checks import check_precision, check_shape, concrete, describe, integer
from ..._pairs import pairs
from ..groups import Group
from ..representations import Irrep, fourier
from .energy import check_irreps, check_real


def _check_climbed(irrep: Irrep) -> None:
    check_real(irrep)
    if irrep.trivial:
        raise ValueError("irrep must not be trivial: of constants the energy is zero.")


def _check_some(irreps: Sequence[Irrep], *, real: bool = True, besides_trivial: bool = False) -> None:
    check_irreps(irreps, real=real)
    if all(besides_trivial and r.trivial for r in irreps):
        raise ValueError(f"irreps must hold a representation{' besides the trivial one' * besides_trivial}, got none.")


@checked
def peak(irrep: Irrep) -> float:
    """`E* = M/(2D)`, the value of the maxima in a real representation. The paper's M/8d, M/16d are those for x²/2.
    **Raises** `ValueError` for a complex representation, and for the trivial one, which has no maxima."""
    _check_climbed(irrep)
    return irrep.group.order / (2 * irrep.dim)


@checked
def maximum(
    irrep: Irrep, a: Float[Array, " dim"], x: Float[Array, " dim"], b: Float[Array, " dim"]
) -> Float[Array, "2 order"]:
    """A maximum: `u(h) ∝ aᵀ R(h) x`, `w₂(h) ∝ xᵀ R(h) b`, each of norm 1/√2. Every maximum in this representation is
    one of these; a and b are free, so that `w₂ = ±Pu` (the paper's) is a slice. **Raises** `ValueError` as `peak`, and
    for vectors of zeros."""
    _check_climbed(irrep)
    for name, vector in {"a": a, "x": x, "b": b}.items():
        check_shape(name, vector, (irrep.dim,))
        if concrete(vector) and not np.any(np.asarray(vector)):
            raise ValueError(f"{name} must not be zero, got {describe(vector)}.")
    a, x, b = _scaled(a), _scaled(x), _scaled(b)
    matrices = jnp.asarray(irrep.matrices, a.dtype)
    w = jnp.stack([jnp.einsum("i,hij,j->h", a, matrices, x), jnp.einsum("i,hij,j->h", x, matrices, b)])
    return w / (jnp.sqrt(2.0).astype(w.dtype) * jnp.linalg.norm(w, axis=1, keepdims=True))


def _scaled(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x over its largest entry, of what depends on its direction only: squares of x may be no numbers."""
    most = jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=0.0))
    return x / jnp.where(most > 0, most, 1.0)


class Spectrum(NamedTuple):
    """How many eigenvalues 0, −4E* and −8E* the Hessian of E on the sphere has at a maximum: no others."""

    flat: int
    middle: int
    steep: int


@checked
def spectrum(irrep: Irrep) -> Spectrum:
    """`flat = 3(D − 1) − (δ − 1)`: the directions of a, x and b less the units that they share; `1 + δ(m − 1)` are
    steep. Corollary 1 (all maxima are flat) fails where D = 1, which has none. **Raises** `ValueError` as `peak`."""
    _check_climbed(irrep)
    flat = 3 * (irrep.dim - 1) - (irrep.units - 1)
    steep = 1 + irrep.units * (irrep.multiplicity - 1)
    return Spectrum(flat, 2 * irrep.group.order - 1 - flat - steep, steep)


@checked
def curvatures(energy: Callable[[Array], Array], w: Float[Array, "2 order"]) -> Float[Array, " tangents"]:
    """The eigenvalues, ascending, of the Hessian of an energy on the sphere through `w`, shape `(2 order − 1,)`: the
    unit sphere for a w of norm one. Not differentiable. **Raises** `ValueError` for w = 0."""
    check_precision("w", w)
    if concrete(w) and not np.any(np.asarray(w)):
        raise ValueError("w must not be zero, which lies on no sphere.")
    flat = w.ravel()
    slope = jax.grad(energy)(w).ravel()
    hessian = jax.hessian(lambda v: energy(v.reshape(w.shape)))(flat)
    tangents = jnp.linalg.svd(flat[None])[2][1:]  # orthonormal, across w
    eye = jnp.eye(len(tangents), dtype=w.dtype)
    return jnp.linalg.eigvalsh(tangents @ hessian @ tangents.T - jnp.vdot(flat, slope) / jnp.vdot(flat, flat) * eye)


class Content(NamedTuple):
    """What a node holds of each representation.

    - `fraction`, shape `(irreps,)`: of ‖w‖², both halves.
    - `rank`, shape `(irreps, 2)`: for each half the largest singular value beyond rank one (over the numbers of its
      kind), over the first. NaN where a half holds nothing of a representation but rounding, `order eps` of itself.
    """

    fraction: Float[Array, " irreps"]
    rank: Float[Array, "irreps 2"]


@checked
def content(w: Float[Array, "2 order"], irreps: Sequence[Irrep]) -> Content:
    """The content of a node by real representations. Fractions sum to one over all of them. **Raises** `ValueError` for
    complex ones, none, one given twice, those of another group, and a node of zeros."""
    _check_some(irreps)
    check_shape("w", w, (2, irreps[0].group.order))
    if concrete(w) and not np.any(np.asarray(w)):
        raise ValueError("w must not be zero, which holds no representation.")
    check_precision("w", w)
    w = _scaled(w)
    rounding = w.shape[1] * jnp.finfo(w.dtype).eps * jnp.linalg.norm(jax.lax.stop_gradient(w), axis=1)
    fractions, ranks = [], []
    for r in irreps:
        values = jnp.linalg.svd(fourier(w, r), compute_uv=False)  # each as often as there are units
        fractions.append(r.multiplicity / w.shape[1] * jnp.sum(values**2) / jnp.sum(w**2))
        beyond = values[:, r.units] if r.multiplicity > 1 else jnp.zeros(2, w.dtype)
        some = values[:, 0] > rounding
        ranks.append(jnp.where(some, beyond / jnp.where(some, values[:, 0], 1.0), jnp.nan))
    return Content(jnp.stack(fractions), jnp.stack(ranks))


# Theorem 3: nodes that reconstruct all labels


@checked
def real_nodes(irreps: Sequence[Irrep]) -> Float[np.ndarray, "2 order nodes"]:
    """Nodes at maxima, real, whose least squares gives all labels: `Σ 2mD²` of them over the non-trivial real
    representations, 4(M−1) for Z_M of odd order.

    For each: `[u; ±w₂]` with `u = aᵀRx`, `w₂ = xᵀRb`, a from a basis over the numbers of its kind, x and b from the
    standard one. The difference of the two signs is `4 u(h₁) w₂(h₂)`, and the sum over x of that `4 aᵀR(h₁h₂)b`.
    Derived here: the paper's real pairs `[u; ±Pu]` do not suffice, however many. **Raises** `ValueError` for complex
    representations and unless there is one that is not trivial.
    """
    _check_some(irreps, besides_trivial=True)
    nodes = []
    for r in irreps:
        if not r.trivial:
            u = np.einsum("ai,hix->hax", _basis(r), r.matrices)
            shape = (r.group.order, r.multiplicity, r.dim, r.dim)
            u, v = np.broadcast_to(u[..., None], shape), np.broadcast_to(r.matrices[:, None], shape)
            u, v = u.reshape(r.group.order, -1), v.reshape(r.group.order, -1)
            nodes += [np.stack([u, v]), np.stack([u, -v])]
    return np.concatenate(nodes, axis=2)


def _basis(irrep: Irrep) -> Float[np.ndarray, "multiplicity dim"]:
    """Vectors whose multiples by the numbers that commute with R span the space, orthonormal."""
    rng, r = np.random.default_rng(0), irrep.matrices
    draws = rng.normal(size=(irrep.units, irrep.dim, irrep.dim))
    commuting = np.mean(r[None] @ draws[:, None] @ r[None].swapaxes(2, 3), axis=1)
    left, basis = np.eye(irrep.dim), []
    for _ in range(irrep.multiplicity):
        vector = left[:, np.argmax(np.linalg.norm(left, axis=0))]
        basis.append(vector / np.linalg.norm(vector))
        span = np.linalg.qr((commuting @ basis[-1]).T)[0]
        left = left - span @ (span.T @ left)
    return np.array(basis)


@checked
def complex_nodes(irreps: Sequence[Irrep], seed: int = 0) -> Complex[np.ndarray, "2 order nodes"]:
    """The nodes of Theorem 3: for each non-trivial complex representation `m²d²` pairs `[u; ±Pū]`, u random in its
    isotypic space and `(Pf)(h) = f(h⁻¹)`: `2 Σ m²d²` nodes, 2M − 2 for an Abelian group. Their activation is the square
    of a complex number, without a modulus. **Raises** `ValueError` unless a representation is not trivial."""
    _check_some(irreps, real=False, besides_trivial=True)
    integer("seed", seed, least=0)
    rng, nodes = np.random.default_rng(seed), []
    for r in irreps:
        if not r.trivial:
            size = (r.group.order, (r.multiplicity * r.dim) ** 2)
            u = r.projector @ (rng.normal(size=size) + 1j * rng.normal(size=size))
            u = u / np.linalg.norm(u, axis=0)
            mirrored = u.conj()[r.group.inverse]
            nodes += [np.stack([u, mirrored]), np.stack([u, -mirrored])]
    return np.concatenate(nodes, axis=2)


@checked
def left_over(nodes: Inexact[np.ndarray, "2 order nodes"], group: Group) -> Inexact[np.ndarray, "pairs order"]:
    """What least squares on these nodes leaves of the centred labels of all pairs, `Ỹ − F̃V`. **Raises** `ValueError`
    for nodes of another group, none, or NaN among them."""
    check_shape("nodes", nodes, (2, group.order, "nodes"))
    if not nodes.size or not np.isfinite(nodes).all():
        raise ValueError(f"nodes must be at least one, and finite, got {describe(nodes)}.")
    first, second, label = map(np.asarray, pairs(group.table)[:3])
    features = (nodes[0][first] + nodes[1][second]) ** 2
    features = features - features.mean(axis=0)
    labels = np.eye(group.order)[label] - 1 / group.order
    basis, values, _ = np.linalg.svd(features, full_matrices=False)
    basis = basis[:, values > 1e-10 * values[0]]
    return labels - basis @ (basis.conj().T @ labels)


@checked
def residual(nodes: Inexact[np.ndarray, "2 order nodes"], group: Group) -> float:
    """The same as one number, `‖Ỹ − F̃V‖²/‖Ỹ‖²`: zero where the nodes reconstruct every label."""
    return float(np.sum(np.abs(left_over(nodes, group)) ** 2) / (group.order * (group.order - 1)))
