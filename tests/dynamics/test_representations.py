"""Representations of groups of every kind, against what theory says of them and against known characters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.dynamics import groups, representations
from traindyn.dynamics.representations import fourier, irreps, regular

A5 = groups.alternating(5)
KNOWN = {  # over the reals: kind and real dimension, without the trivial one
    groups.cyclic(7): "C2 C2 C2",
    groups.cyclic(8): "R1 C2 C2 C2",
    groups.product(2, 2): "R1 R1 R1",
    groups.symmetric(3): "R1 R2",
    groups.dihedral(5): "R1 R2 R2",
    groups.dicyclic(2): "R1 R1 R1 H4",
    groups.dicyclic(3): "R1 R2 C2 H4",
    groups.alternating(4): "C2 R3",
    groups.metacyclic(7, 3, 2): "C2 C6",
    groups.symmetric(4): "R1 R2 R3 R3",
    groups.direct(groups.symmetric(3), groups.cyclic(3)): "R1 R2 C2 C2 C4",
    A5: "R3 R3 R4 R5",
}
every_group = pytest.mark.parametrize("group", KNOWN, ids=lambda g: g.name)


def _short(irrep):
    return f"{ {'real': 'R', 'complex': 'C', 'quaternionic': 'H'}[irrep.kind] }{irrep.dim}"


@every_group
def test_kinds_and_dimensions_are_the_known_ones(group):
    first, *others = irreps(group)
    assert first.trivial and (first.dim, first.multiplicity) == (1, 1)
    assert sorted(map(_short, others)) == sorted(KNOWN[group].split())


@pytest.mark.parametrize("over", ("reals", "complex"))
@every_group
def test_they_are_orthogonal_homomorphisms_and_complete(group, over):
    found, order = irreps(group, over=over), group.order
    assert sum(r.dim * r.multiplicity for r in found) == order
    if over == "complex":
        assert sum(r.dim**2 for r in found) == order  # Σ d² = M
        squares = [np.mean(r.character[np.diag(group.table)]).real for r in found]
        assert [{"real": 1, "complex": 0, "quaternionic": -1}[r.kind] for r in found] == [round(s) for s in squares]
    for r in found:
        products = np.einsum("gij,hjk->ghik", r.matrices, r.matrices)
        np.testing.assert_allclose(products, r.matrices[group.table], atol=1e-12)
        back = r.matrices.conj().swapaxes(1, 2)
        np.testing.assert_allclose(back, r.matrices[group.inverse], atol=1e-12)
        assert r.dim == r.multiplicity * (r.units if over == "reals" else 1)
    # Characters of different ones are orthogonal; projectors are projectors, and sum to one.
    table = np.array([r.character for r in found])
    norms = [1 if over == "complex" else r.units for r in found]
    np.testing.assert_allclose(table @ table.conj().T / order, np.diag(norms), atol=1e-12)
    projectors = np.array([r.projector for r in found])
    np.testing.assert_allclose(projectors @ projectors, projectors, atol=1e-12)
    np.testing.assert_allclose(projectors.sum(axis=0), np.eye(order), atol=1e-12)
    np.testing.assert_allclose([np.trace(p).real for p in projectors], [r.dim * r.multiplicity for r in found])


def test_characters_of_a5_are_the_golden_ones():
    threes = [r.character.max(initial=-9, where=np.abs(r.character - 3) > 1e-9) for r in irreps(A5) if r.dim == 3]
    np.testing.assert_allclose(threes, (1 + 5**0.5) / 2, atol=1e-12)


def test_regular_representation_is_one_of_permutations_that_they_diagonalise():
    group = groups.dicyclic(3)
    left = regular(group)
    np.testing.assert_array_equal(np.einsum("gij,hjk->ghik", left, left), left[group.table])
    for r in irreps(group):  # isotypic spaces are invariant
        np.testing.assert_allclose(left @ r.projector, r.projector @ left, atol=1e-12)


@pytest.mark.parametrize("over", ("reals", "complex"))
def test_fourier_turns_convolutions_into_products_and_keeps_norms(over):
    group = groups.direct(groups.dicyclic(2), groups.cyclic(3))  # all three kinds
    all_ = irreps(group, over=over)
    u, v = jnp.asarray(np.random.default_rng(0).normal(size=(2, group.order)))
    both = u @ v[representations.quotients(group)]
    hats = jax.jit(lambda f: [fourier(f, r) for r in all_])
    for r, a, b, c in zip(all_, hats(u), hats(v), hats(both), strict=True):
        np.testing.assert_allclose(a @ b, c, atol=1e-11)
        assert a.shape == (r.dim, r.dim)
    energy = sum(r.multiplicity * float(jnp.sum(jnp.abs(a) ** 2)) for r, a in zip(all_, hats(u), strict=True))
    np.testing.assert_allclose(energy / group.order, float(u @ u), rtol=1e-12)
    assert fourier(u.astype(jnp.float32), all_[-1]).dtype in (jnp.float32, jnp.complex64)


def test_quotient_is_the_inverse_times():
    group = groups.symmetric(3)
    for g in range(6):
        np.testing.assert_array_equal(group.table[g, representations.quotients(group)[g]], np.arange(6))


def test_another_field_is_refused(as_users):
    with pytest.raises(ValueError, match="over must be one of 'reals', 'complex', got 'rationals'"):
        irreps(groups.cyclic(3), over="rationals")


SIGNS, PLANE = np.array([1.0, -1, 1, 1, -1]).reshape(5, 1, 1), irreps(groups.symmetric(3))[2].matrices


@pytest.mark.parametrize(
    ("group", "matrices", "multiplicity", "kind", "message"),
    (
        (groups.cyclic(5), SIGNS, 1, "real", r"matrices must obey R\(g\) R\(h\) = R\(gh\), got some that are 2 off"),
        (groups.cyclic(5), np.tile(np.eye(2), (5, 1, 1)), 2, "real", "matrices must be irreducible"),
        (groups.symmetric(3), PLANE, 7, "real", "multiplicity must be 2 for these matrices, got 7"),
        (groups.symmetric(3), PLANE, 2, "complex", "kind must be 'real' for these matrices, got 'complex'"),
        (groups.symmetric(3), 2 * PLANE, 2, "real", "matrices must be orthogonal"),
    ),
)
def test_what_is_no_irreducible_representation_is_refused(group, matrices, multiplicity, kind, message, as_users):
    with pytest.raises(ValueError, match=message):
        representations.Irrep(group, matrices, multiplicity, kind)


def test_representations_made_by_hand_are_taken():
    for matrices in (PLANE, PLANE.astype(np.float32), PLANE.astype(complex)):
        assert representations.Irrep(groups.symmetric(3), matrices, 2, "real").dim == 2
