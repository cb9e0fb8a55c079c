"""Bases of a gradient: which `r` directions of its rows' space are kept.

Each factory returns a projector `(g, previous, key, r) -> basis`: from a matrix `g`, shape `(k, o)`, and the basis in
use, shape `(k, r)` and zero before the first, a new basis of shape `(k, r)` with orthonormal columns. Any function of
that signature may take their place. They see one matrix at a time; `scale_by_galore` maps them over stacks.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ..._checked import checked
from ..._checks import integer
from ..train import AnyKey
from .layout import adjoint

Matrix = Inexact[Array, "k o"]
Basis = Inexact[Array, "k r"]
Projector = Callable[[Matrix, Basis, AnyKey, int], Basis]


def exact_svd() -> Projector:
    """The first `r` left singular vectors, as in the paper: a full decomposition, `O(k² o)` and a large constant.

    Source: GaLore (arXiv 2403.03507), equation 12.
    """
    # of the tall matrix, which takes half the time
    return lambda g, previous, key, r: adjoint(jnp.linalg.svd(adjoint(g), full_matrices=False)[2])[:, :r]


def gram_eigh() -> Projector:
    """The same vectors from the eigenvectors of `g gᴴ`, shape `(k, k)`: exact to the square root of rounding, several
    times cheaper. Meant for a small `k`; a `g` sharded along `k` is gathered."""
    return lambda g, previous, key, r: jnp.linalg.eigh(g @ adjoint(g))[1][:, ::-1][:, :r]


@checked
def randomized_range(oversample: int = 8, power_iters: int = 1) -> Projector:
    """An approximate basis from `r + oversample` random combinations of the columns of `g`, sharpened by `power_iters`
    products with `g gᴴ`, then cut to the best `r` of them.

    **Raises** `ValueError` for negative numbers. Source: Halko, Martinsson, Tropp (arXiv 0909.4061), algorithm 4.4.
    """
    integer("oversample", oversample, least=0)
    integer("power_iters", power_iters, least=0)

    def basis(g: Matrix, previous: Basis, key: AnyKey, r: int) -> Basis:
        width = min(r + oversample, *g.shape)
        q = _sketch(g, key, max(width, r))
        for _ in range(power_iters):
            q = _power(g, q)
        if q.shape[1] == r:
            return q
        inside = adjoint(q) @ g
        return q @ jnp.linalg.eigh(inside @ adjoint(inside))[1][:, ::-1][:, :r]

    return basis


@checked
def subspace_iteration(iters: int = 1) -> Projector:
    """`iters` products with `g gᴴ`, each made orthonormal, from the basis in use; at first from a random sketch.

    Gradients change slowly, so that the last basis is a good start and one product comes close to the singular vectors.
    It needs products with `g` and a QR of `(k, r)` only: a sharded `g` is not gathered.

    **Raises** `ValueError` for less than one iteration.
    """
    integer("iters", iters, least=1)

    def basis(g: Matrix, previous: Basis, key: AnyKey, r: int) -> Basis:
        warm = jnp.any(previous != 0)
        q = jax.lax.cond(warm, lambda: previous, lambda: _sketch(g, key, r))
        for _ in range(iters):
            q = _power(g, q)
        return q

    return basis


def random_orthonormal() -> Projector:
    """Directions drawn uniformly, blind to the gradient. Unlike singular vectors they give a descent that converges
    under gradient noise (GoLore, arXiv 2410.11289)."""

    def basis(g: Matrix, previous: Basis, key: AnyKey, r: int) -> Basis:
        return jnp.linalg.qr(jax.random.normal(key, (g.shape[0], r), g.dtype))[0]

    return basis


def _sketch(g: Matrix, key: AnyKey, r: int) -> Basis:
    return jnp.linalg.qr(g @ jax.random.normal(key, (g.shape[1], r), g.dtype))[0]


def _power(g: Matrix, q: Basis) -> Basis:
    return jnp.linalg.qr(g @ (adjoint(g) @ q))[0]
