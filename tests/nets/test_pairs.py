"""The two-layer network, its loss in both forms, the papers' split, initial weights and decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn import nets
from traindyn.nets import pair_optimisers, pairs


def _cyclic(order):
    return np.add.outer(np.arange(order), np.arange(order)) % order


# The symmetries of a triangle, not Abelian; and a table that is no group's, with labels that come twice in a row.
_TRIANGLE = np.array([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3], [2, 0, 1, 5, 3, 4]])
_TRIANGLE = np.vstack([_TRIANGLE, [[3, 5, 4, 0, 2, 1], [4, 3, 5, 1, 0, 2], [5, 4, 3, 2, 1, 0]]])
_LARGER = np.maximum.outer(np.arange(5), np.arange(5))
TABLES = {"cyclic": _cyclic(7), "triangle": _TRIANGLE, "no group": _LARGER}


def _model(order, nodes=4, scale=0.7, **options):
    return pairs.initial(order, nodes, scale=scale, key=jax.random.key(1), **options)


def _direct(model, table, mask):
    """The definition, with the projection and one-hot labels written out."""
    order = len(table)
    project = jnp.eye(order) - 1 / order
    hidden = model.activation(model.a[:, None, :] + model.b[None, :, :])
    out = model.scale * jnp.einsum("gj,mnj->mng", model.c, hidden)
    gap = jnp.einsum("hg,mng->mnh", project, out - jax.nn.one_hot(table, order))
    return jnp.sum(gap**2, axis=2)[mask].mean()


def test_outputs_are_those_of_the_definition():
    model = _model(5)
    a, b, c = (np.asarray(x) for x in (model.a, model.b, model.c))
    expected = 0.7 * np.einsum("gj,mnj->mng", c, (a[:, None] + b[None]) ** 2)
    np.testing.assert_allclose(model.outputs(), expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(model(2, 3), expected[2, 3], rtol=1e-13, atol=1e-15)
    assert (model.order, model.nodes) == (5, 4)


@pytest.mark.parametrize(
    ("name", "masked"), (("cyclic", True), ("triangle", False), ("triangle", True), ("no group", True))
)
def test_each_form_of_the_loss_has_value_and_gradient_of_the_definition(name, masked):
    table = TABLES[name]
    order = len(table)
    model = _model(order)
    mask = pairs.split(order, fraction=0.7, seed=3) if masked else np.ones((order, order), bool)
    data = pairs.pairs(table, mask)
    expected = jax.jit(lambda model: jax.value_and_grad(_direct)(model, table, mask))(model)
    forms = [pairs.loss, pairs.training_loss if data.held_out is None else pairs._closed_loss]
    assert (data.held_out is None) == (table is _LARGER)  # the closed form needs permutations
    for form in forms:
        found = jax.jit(jax.value_and_grad(form))(model, data)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)


def test_closed_form_has_the_second_derivatives_of_the_definition():
    # Its slopes are written by hand: forward over reverse goes through them twice.
    model, data = _model(4, nodes=2), pairs.pairs(_cyclic(4), pairs.split(4, fraction=0.8, seed=0))
    along = _model(4, nodes=2, scale=0.3)
    push = lambda form: jax.jit(lambda m, v: jax.jvp(jax.grad(form), (m,), (v,))[1])(model, along)
    found, expected = (push(lambda m, f=f: f(m, data)) for f in (pairs._closed_loss, pairs.loss))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-14)


def test_training_loss_takes_the_closed_form_for_squares_of_many_pairs_and_few_nodes():
    products = lambda order, nodes, **options: str(
        jax.make_jaxpr(pairs.training_loss)(_model(order, nodes, **options), pairs.pairs(_cyclic(order)))
    ).count("_gram")
    assert products(23, 512) == 0 and products(71, 512) > 0 and products(23, 32) > 0
    assert products(23, 32, activation=jax.nn.relu) == 0


@pytest.mark.parametrize("activation", (jax.nn.relu, jnp.tanh))
def test_another_activation_has_outputs_loss_and_gradient_of_the_definition(activation):
    model, mask = _model(7, activation=activation), pairs.split(7, fraction=0.7, seed=3)
    hidden = np.asarray(activation(np.asarray(model.a)[2] + np.asarray(model.b)[3]))
    expected = 0.7 * np.asarray(model.c) @ hidden
    np.testing.assert_allclose(model(2, 3), expected, rtol=1e-13)
    np.testing.assert_allclose(model.outputs()[2, 3], expected, rtol=1e-13)
    found = jax.value_and_grad(pairs.training_loss)(model, pairs.pairs(_cyclic(7), mask))
    for x, y in zip(*map(jax.tree.leaves, (found, jax.value_and_grad(_direct)(model, _cyclic(7), mask))), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)


def test_no_output_costs_one_less_one_over_order():
    model = jax.tree.map(jnp.zeros_like, _model(6))
    for form in (pairs.loss, pairs._closed_loss):
        assert float(form(model, pairs.pairs(_TRIANGLE))) == pytest.approx(5 / 6, rel=1e-14)


def test_perfect_memorisation_is_exact_inside_the_network():
    # Two nodes for each pair: (a + b)² − (a − b)² = 4ab is 4 at that pair and 0 at the others.
    order = 3
    m, n = np.divmod(np.arange(order**2), order)
    hot = np.eye(order)
    both, single = hot[:, m], hot[:, n]
    a = np.concatenate([both, both], axis=1)
    b = np.concatenate([single, -single], axis=1)
    c = np.concatenate([hot[:, (m + n) % order], -hot[:, (m + n) % order]], axis=1) / 4
    model, data = pairs.TwoLayer(a, b, c), pairs.pairs(_cyclic(order))
    assert float(pairs.loss(model, data)) < 1e-30
    assert float(pairs.accuracy(model, data)) == 1


def test_accuracy_counts_the_pairs_used():
    model, table = _model(7), _cyclic(7)
    right = np.argmax(np.asarray(model.outputs()), axis=2) == table
    mask = pairs.split(7, fraction=0.6, seed=2)
    assert float(pairs.accuracy(model, pairs.pairs(table))) == pytest.approx(right.mean())
    assert float(pairs.accuracy(model, pairs.pairs(table, mask))) == pytest.approx(right[mask].mean())


@pytest.mark.parametrize(("order", "left_out"), ((23, 53), (71, 505), (127, 1613), (10, 10)))
def test_split_is_the_papers(order, left_out):
    mask = pairs.split(order, seed=5)
    assert (~mask).sum() == left_out
    expected = np.random.RandomState(5).permutation(order**2)[:left_out]
    np.testing.assert_array_equal(np.flatnonzero(~mask), np.sort(expected))


def test_initial_weights_are_uniform_within_their_bounds():
    model = pairs.initial(25, 400, dtype=jnp.float32, key=jax.random.key(0))
    for x, bound in ((model.a, 0.2), (model.b, 0.2), (model.c, 0.05)):
        assert x.dtype == jnp.float32 and 0.999 * bound < float(jnp.max(jnp.abs(x))) <= bound
        assert float(jnp.std(x)) == pytest.approx(bound / 3**0.5, rel=0.03)  # 10^4 draws


def test_fan_in_and_output_scale_change_their_layer_only():
    plain, other = _model(5), _model(5, fan_in=20, output_scale=0.25)
    for x, y, factor in zip(jax.tree.leaves(other), jax.tree.leaves(plain), (0.5, 0.5, 0.25, 1), strict=True):
        np.testing.assert_allclose(x, factor * y, rtol=1e-15)
    assert not np.any(_model(5, output_scale=0.0).c)


def test_a_node_of_zero_weights_and_moments_stays_as_it_is():
    # Its slope is a product with its own weights; decay and Adam add nothing to zero.
    model = _model(5, nodes=6)
    dead = jax.tree.map(lambda x: x.at[:, 2].set(0.0) if x.ndim == 2 else x, model)
    data = pairs.pairs(_cyclic(5))
    optimiser = pair_optimisers.coupled_adam(0.01, 1e-3)
    run = nets.train(dead, pairs._closed_loss, data, optimiser, 5, trainable=dead.trainable())
    for x, at_first in ((run.model.a, dead.a), (run.model.b, dead.b), (run.model.c, dead.c)):
        np.testing.assert_array_equal(x[:, 2], 0)
        assert (x[:, :2] != at_first[:, :2]).all()


def _stale(change):
    data = pairs.pairs(_cyclic(23), pairs.split(23, seed=0))
    return data._replace(**change(data))


def _empty():
    return pairs.pairs(_cyclic(5))._replace(used=jnp.zeros(25, bool))


# Samples


def test_pairs_are_those_used_row_by_row():
    used = pairs.split(6, fraction=0.6, seed=2)
    data = pairs.pairs(_TRIANGLE, used)
    np.testing.assert_array_equal(np.stack([data.first, data.second]), np.nonzero(used))
    np.testing.assert_array_equal(data.label, _TRIANGLE[used])
    np.testing.assert_array_equal(data.held_out, np.flatnonzero(~used))
    assert data.used.all() and data.used.shape == (used.sum(),)
    trained, rest = pairs.split_pairs(_TRIANGLE, fraction=0.6, seed=2)
    for x, y in zip((*trained, *rest), (*data, *pairs.pairs(_TRIANGLE, ~used)), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("order", (5, 23))
@pytest.mark.parametrize("fraction", (0.5, 0.9))
def test_padding_changes_neither_loss_nor_its_gradient(order, fraction):
    model = _model(order)
    alone = [pairs.split_pairs(_cyclic(order), fraction=p, seed=1)[0] for p in (fraction, 0.95)]
    together = pairs.stacked(alone)
    assert together.first.shape == (2, len(alone[1].first)) and together.held_out.shape == (2, len(alone[0].held_out))
    for i in range(2):
        padded = jax.tree.map(lambda x, i=i: x[i], together)
        assert float(pairs.accuracy(model, padded)) == float(pairs.accuracy(model, alone[i]))
        for form in (pairs.loss, pairs.training_loss, pairs._closed_loss):
            slopes = [jax.value_and_grad(form)(model, data) for data in (padded, alone[i])]
            for x, y in zip(*map(jax.tree.leaves, slopes), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-14)


def test_samples_of_a_table_that_is_no_group_stack_without_their_other_pairs():
    assert pairs.stacked([pairs.pairs(_LARGER)]).held_out is None


def test_loss_of_labels_that_are_not_the_tables_is_by_the_labels():
    # Wrong labels of all pairs, for which the outputs are formed for the whole table.
    model, data = _model(5), pairs.pairs(_cyclic(5))
    shifted = pairs.pairs((_cyclic(5) + 1) % 5)
    assert float(pairs.loss(model, data._replace(label=shifted.label))) == float(pairs.loss(model, shifted))


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: pairs.split(5, fraction=1.0, seed=0), "fraction must be above 0 and below 1, got 1.0"),
        (lambda: pairs.split(5, fraction=0.0, seed=0), "fraction must be above 0 and below 1, got 0.0"),
        (
            lambda: pairs.split(2, fraction=0.1, seed=0),
            "fraction must leave one of 4 pairs at least on each side",
        ),
        (lambda: pairs.initial(0, 4, key=jax.random.key(0)), "order must be an integer of at least 1, got 0"),
        (lambda: pairs.initial(4, 0, key=jax.random.key(0)), "nodes must be an integer of at least 1, got 0"),
        (
            lambda: pairs.initial(4, 1, fan_in=0, key=jax.random.key(0)),
            "fan_in must be an integer of at least 1, got 0",
        ),
        (lambda: pairs.pairs(np.zeros((2, 3), int)), r"must have shape \(order, order\), got \(2, 3\)"),
        (lambda: pairs.pairs(np.full((3, 3), 3)), "table must lie from 0 to 2, got 3"),
        (lambda: pairs.pairs(_cyclic(2)), "table must be that of at least 3 elements, got 2"),
        (lambda: pairs.pairs(_cyclic(5), np.zeros((5, 5), bool)), "used must leave at least one pair"),
        (lambda: pairs.TwoLayer(np.ones((2, 3)), np.ones((2, 3)), np.ones((3, 3))), "must have shape"),
        (lambda: pairs.pairs(_cyclic(5) + 0.4), "table must be integers"),
        (lambda: pairs.pairs(_cyclic(5), np.full((5, 5), 2)), "used must be boolean, or 0 and 1"),
        (lambda: pairs.pairs(_cyclic(5), np.full((5, 5), 0.5)), "used must be boolean, or 0 and 1"),
        (lambda: pairs.loss(_model(7), pairs.pairs(_cyclic(5))), r"pairs.table must have shape \(7, 7\)"),
        (lambda: pairs.loss(_model(3), pairs.pairs(_cyclic(5))), r"pairs.table must have shape \(3, 3\)"),
        *(
            (
                lambda change=change: pairs.training_loss(_model(23), _stale(change)),
                "held_out must be the table's pairs",
            )
            for change in (
                lambda p: {"used": p.used.at[0].set(False)},
                lambda p: {"held_out": jnp.tile(p.held_out, 2)},
                lambda p: {"label": jnp.zeros_like(p.label)},
            )
        ),
        (lambda: pairs.loss(_model(5), _empty()), "pairs.used must leave at least one pair, got none"),
        (lambda: pairs.accuracy(_model(5), _empty()), "pairs.used must leave at least one pair, got none"),
        (lambda: pairs.stacked([]), r"samples must be a sequence of at least one Pairs, got"),
        (lambda: pairs.stacked([pairs.pairs(_cyclic(5)), pairs.pairs(_cyclic(3))]), r"of one order, got \[5, 3\]"),
        (lambda: _model(5, activation=jnp.sum), r"activation must keep the shape \(5, 4\)"),
        (lambda: _model(5)(9, 0), "first must lie from 0 to 4, got 9"),
        (lambda: _model(5)(0, -1), "second must lie from 0 to 4, got -1"),
        (lambda: pairs.split(5, seed=-1), "seed must be an integer of at least 0 and at most 4294967295"),
        (lambda: pairs.split(5, fraction=float("nan"), seed=0), "fraction must be above 0 and below 1, got nan"),
    ),
)
def test_bad_arguments_are_named(as_users, call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("order", (5, 23))
def test_zeros_and_ones_are_truth_values(order):
    model, used = _model(order, nodes=6), pairs.split(order, fraction=0.7, seed=3)
    expected = pairs.pairs(_cyclic(order), used)
    for numbers in (used.astype(int), jnp.asarray(used, jnp.int32), used.tolist()):
        found = pairs.pairs(_cyclic(order), numbers)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_array_equal(x, y)
    by_hand = expected._replace(used=jnp.asarray(expected.used, int))
    assert float(pairs.loss(model, by_hand)) == float(pairs.loss(model, expected))


def test_integer_weights_are_floats():
    model = pairs.TwoLayer(jnp.ones((5, 2), int), jnp.ones((5, 2), int), jnp.ones((5, 2), int), 0.5)
    assert float(model.scale) == 0.5 and model.a.dtype == jnp.float64
