"""Groups as tables: the axioms, the characters, and what is refused."""

import jax
import numpy as np
import pytest

from traindyn.dynamics.groups import (
    Group,
    alternating,
    cyclic,
    dicyclic,
    dihedral,
    direct,
    from_table,
    metacyclic,
    product,
    require_abelian,
    symmetric,
)

ABELIAN = [cyclic(2), cyclic(7), product(2, 2), product(2, 3, 4)]


@pytest.mark.parametrize(
    "group",
    [
        *ABELIAN,
        dihedral(1),
        dihedral(4),
        symmetric(1),
        symmetric(4),
        dicyclic(2),
        dicyclic(3),
        metacyclic(7, 3, 2),
        alternating(4),
        direct(symmetric(3), cyclic(2)),
    ],
    ids=lambda g: g.name,
)
def test_axioms(group):
    t, n = group.table, group.order
    assert (t[0] == np.arange(n)).all() and (t[:, 0] == np.arange(n)).all()
    assert (t[np.arange(n), group.inverse] == 0).all() and (t[group.inverse, np.arange(n)] == 0).all()
    assert (t[t] == t[:, t]).all()  # (g h) k and g (h k), for all g, h, k
    assert from_table(t).rows == group.rows


@pytest.mark.parametrize("group", ABELIAN, ids=lambda g: g.name)
def test_characters_are_homomorphisms_and_orthogonal(group):
    phi = group.characters
    np.testing.assert_allclose(phi[:, group.table], phi[:, :, None] * phi[:, None], rtol=0, atol=1e-14)
    np.testing.assert_allclose(phi @ phi.conj().T, group.order * np.eye(group.order), rtol=0, atol=1e-12)
    np.testing.assert_allclose(phi[group.inverse], phi.conj(), rtol=0, atol=1e-14)


def test_characters_keep_all_digits_of_large_orders():
    phi = cyclic(127).characters
    np.testing.assert_allclose(phi[cyclic(127).inverse], phi.conj(), rtol=0, atol=3e-15)


def test_frequencies_hold_one_of_each_pair():
    assert cyclic(7).frequencies == (1, 2, 3)
    assert cyclic(6).frequencies == (1, 2, 3)  # 3 is its own conjugate
    for group in ABELIAN:
        both = set(group.frequencies) | {int(group.inverse[k]) for k in group.frequencies}
        assert both == set(range(1, group.order))


def test_orders_and_names():
    assert [g.order for g in (dihedral(5), symmetric(4), product(2, 3, 4))] == [10, 24, 24]
    assert (product(2, 3).name, dihedral(5).name, symmetric(3).name) == ("Z2×Z3", "D5", "S3")
    assert product(2, 3).is_abelian and not dihedral(3).is_abelian and dihedral(2).is_abelian
    assert (product(2, 3).coordinates == [[0, 0], [1, 0], [0, 1], [1, 1], [0, 2], [1, 2]]).all()


def _orders(group):
    """How many elements have each order."""
    found = []
    for g in range(group.order):
        power, n = g, 1
        while power:
            power, n = int(group.table[power, g]), n + 1
        found.append(n)
    return dict(zip(*np.unique(found, return_counts=True), strict=True))


def test_non_abelian_families_are_the_ones_they_say():
    # Orders of elements tell these apart from all other groups of their order.
    assert _orders(dicyclic(2)) == {1: 1, 2: 1, 4: 6} and dicyclic(2).name == "Q8"
    assert _orders(dicyclic(3)) == {1: 1, 2: 1, 3: 2, 4: 6, 6: 2}
    assert _orders(metacyclic(7, 3, 2)) == {1: 1, 3: 14, 7: 6}
    assert _orders(alternating(4)) == {1: 1, 2: 3, 3: 8}
    assert _orders(direct(symmetric(3), cyclic(2))) == _orders(dihedral(6))
    assert not any(g.is_abelian for g in (dicyclic(2), metacyclic(7, 3, 2), alternating(4)))
    assert metacyclic(5, 3, 1).is_abelian
    assert _orders(metacyclic(5, 2, 4)) == _orders(dihedral(5))


def test_groups_compare_and_hash_by_value():
    assert cyclic(5) == cyclic(5) != cyclic(6)
    assert hash(product(2, 3)) == hash(product(2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cyclic(1), "d must be an integer of at least 2, got 1"),
        (lambda: cyclic(2.5), "d must be an integer.*, got 2.5"),
        (lambda: cyclic("7"), "d must be an integer.*, got '7'"),
        (lambda: cyclic(None), "d must be an integer.*, got None"),
        (lambda: product(3, 1), "factors must be an integer of at least 2, got 1"),
        (lambda: product(3, 2.7), "factors must be an integer of at least 2, got 2.7"),
        (lambda: product(), "factors must be a sequence of integers"),
        (lambda: dihedral(0), "n must be an integer of at least 1, got 0"),
        (lambda: symmetric(7), "n must be an integer of at least 1 and at most 6, got 7"),
        (lambda: cyclic(10**6), "factors must make a group of at most 2048 elements, got 1000000"),
        (lambda: product(1000, 1000, 1000), "factors must make a group of at most 2048 elements, got 1000000000"),
        (lambda: dihedral(10**6), "n must make a group of at most 2048 elements, got 2000000"),
        (lambda: dicyclic(10**6), "n must make a group of at most 2048 elements, got 4000000"),
        (lambda: metacyclic(10**6 + 3, 2, -1), "n and m must make a group of at most 2048 elements, got 2000006"),
        (lambda: direct(cyclic(50), dihedral(50)), "first and second must make a group of at most 2048 .* got 5000"),
        (lambda: alternating(2), "n must be an integer of at least 3 and at most 6, got 2"),
        (lambda: dicyclic(1), "n must be an integer of at least 2, got 1"),
        (lambda: metacyclic(7, 3, 3), r"got 3\^3 = 6 modulo 7"),
        (lambda: metacyclic(1, 3, 1), "n must be an integer of at least 2, got 1"),
        (lambda: Group("pair", ((0, 1), (1, 1))), "table must have an inverse of each element, got none of 1"),
        (lambda: from_table(np.array([[0.0, 1.0], [1.0, 0.0]])), "table must be integers"),
        (lambda: from_table([[0, 1], [1]]), "table must be a number or an array of numbers"),
    ],
)
def test_refused(as_users, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_groups_are_made_inside_jit_too():
    jax.jit(lambda x: (symmetric(3), from_table(cyclic(4).table)) and x)(1.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[0, 1, 2]], "shape"),
        ([[0, 1], [1, 2]], "must be closed"),
        ([[1, 0], [0, 1]], "identity as element 0"),
        ([[0, 1, 2], [1, 1, 1], [2, 1, 0]], "an inverse of each element, got none of 1"),
        ([[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]], "must be associative"),
    ],
)
def test_tables_that_are_no_group_are_refused(table, message, as_users):
    with pytest.raises(ValueError, match=message):
        from_table(np.array(table))


def test_who_needs_an_abelian_group_says_so():
    with pytest.raises(ValueError, match="others are not supported"):
        require_abelian(dihedral(3), "f6")
    with pytest.raises(ValueError, match="made by cyclic or product"):
        require_abelian(from_table(cyclic(4).table), "f6")
