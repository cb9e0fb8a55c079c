"""Stage III, interaction: alike nodes repel each other, and what is learned already leaves the energy.

Source: Tian, Li2 (arXiv 2509.21519), Theorems 6 and 7; Theorem 7 with projectors, derived here: the paper's form by
characters holds for representations of dimension one alone.
"""

from collections.abc import Collection, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ..._checked import checked
from ..._checks import check_precision, concrete, describe, indices, integer, real
from ..representations import Irrep
from .energy import check_irreps, plancherel_energy
from .spectral import gram_inverse, ridge


@checked
def inverse_gram(features: Float[Array, "pairs nodes"], decay: Float[ArrayLike, ""]) -> Float[Array, "nodes nodes"]:
    """`B = (F̃ᵀF̃ + ηI)⁻¹` of centred features: a node is pushed along `Σ_k b_jk f_k`. Differentiable once, for alike
    nodes too. **Raises** `ValueError` for a negative decay, and without one for features whose rank is below the number
    of nodes; inside `jit` the result is NaN then."""
    return gram_inverse(features, _check_decay(features, decay))


def _check_decay(features: Float[Array, "pairs nodes"], decay: Float[ArrayLike, ""]) -> Float[Array, ""]:
    check_precision("features", features)
    nodes, decay = features.shape[1], real("decay", decay, (), least=0)
    if concrete((features, decay)) and np.asarray(decay) == 0:  # by numpy, lest it be traced
        values = np.linalg.svd(np.asarray(features), compute_uv=False)
        rank = int(np.sum(values > max(features.shape) * jnp.finfo(features.dtype).eps * values.max(initial=0)))
        if rank < nodes and np.isfinite(values).all():
            raise ValueError(f"decay must be above 0 for {nodes} nodes whose features have rank {rank}, got 0.")
    return jnp.asarray(decay, features.dtype)


@checked
def repulsion(
    features: Float[Array, "pairs nodes"], decay: Float[ArrayLike, ""], j: Int[ArrayLike, ""], k: Int[ArrayLike, ""]
) -> Float[Array, ""]:
    """`b_jk = −β/(αγ − β²)`, with `α = η + f_jᵀPf_j`, `γ = η + f_kᵀPf_k`, `β = f_jᵀPf_k` and
    `P = I − F_r(F_rᵀF_r + ηI)⁻¹F_rᵀ`, F_r the other nodes: alike nodes (β > 0), once the others are accounted for, push
    each other away. `features` are centred. Differentiable once. Theorem 6. **Raises** `ValueError` as `inverse_gram`,
    for the same node twice, and for nodes that do not exist; for traced j and k the result is NaN then."""
    count = features.shape[1]
    j, k = indices("j", j, count, ()), indices("k", k, count, ())
    if concrete((j, k)) and np.array_equal(j, k):  # by numpy, lest it be traced
        raise ValueError(f"j and k must be two nodes, got {j} for both.")
    decay = _check_decay(features, decay)
    nodes, both = jnp.arange(count), jnp.stack([j, k])
    two = features[:, both]
    rest = jnp.where(jnp.isin(nodes, both)[None], 0.0, features)  # columns of zeros count for nothing in P
    solution, left_over = ridge(rest, two, decay)
    inner = lambda x, y: jnp.sum(x[0] * y[0]) + decay * jnp.sum(x[1] * y[1])  # fᵀPf for ridge's left over and solution
    first, second = ((left_over[:, i], solution[:, i]) for i in (0, 1))
    a, b, c = inner(first, first), inner(first, second), inner(second, second)
    share = jnp.where(a > 0, b / jnp.where(a > 0, a, 1.0), 0.0)
    apart = [y - share * x for x, y in zip(first, second, strict=True)]  # what the second lacks of the first
    there = (j != k) & jnp.all((both >= 0) & (both < count))
    # αγ − β² without its cancellation, which for alike nodes leaves nothing
    return jnp.where(there, -b / (decay**2 + decay * (a + c) + a * inner(apart, apart)), jnp.nan)


@checked
def missing(irreps: Sequence[Irrep], learned: Collection[int]) -> Float[np.ndarray, "order order"]:
    """`Π_miss`, onto the non-trivial representations, all `irreps` of a group, whose number is not among the `learned`:
    what hidden nodes that know those leave of the labels, `Ỹ − Ŷ` at a pair with product h is the row h of it.

    Theorem 7. **Raises** `ValueError` for a number that is none of them, for a representation given twice, and unless
    they are all of a group's.
    """
    known = _known(irreps, learned)
    if not irreps or sum(r.dim * r.multiplicity for r in irreps) != irreps[0].group.order:
        raise ValueError("irreps must be all representations of a group, as from irreps(group), got fewer or more.")
    left = [np.real(r.projector) for i, r in enumerate(irreps) if i not in known and not r.trivial]
    return sum(left, np.zeros((irreps[0].group.order,) * 2))


@checked
def remaining_energy(w: Float[Array, "2 order"], irreps: Sequence[Irrep], learned: Collection[int]) -> Float[Array, ""]:
    """`E_S(w) = ½ ‖Π_miss z‖² = (2/M) Σ_missing m ‖û ŵ₂‖_F²`: for new nodes the energy has maxima at the missing
    representations, and no others. x² and all pairs; Theorem 7. **Raises** `ValueError` as `missing`."""
    known = _known(irreps, learned)
    return plancherel_energy(w, [r for i, r in enumerate(irreps) if i not in known])


def _known(irreps: Sequence[Irrep], learned: Collection[int]) -> set[int]:
    check_irreps(irreps)
    if not isinstance(learned, Collection):
        raise ValueError(f"learned must hold numbers of irreps, got {describe(learned)}.")
    return {integer("learned", number, least=0, most=len(irreps) - 1) for number in learned}
