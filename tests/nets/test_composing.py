"""The quadratic network, its loss in both forms, the paper's split and decay, and runs with and without compaction."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn import nets
from traindyn.nets import composing


def _cyclic(order):
    return np.add.outer(np.arange(order), np.arange(order)) % order


# The symmetries of a triangle, not Abelian; and a table that is no group's, with labels that come twice in a row.
_TRIANGLE = np.array([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3], [2, 0, 1, 5, 3, 4]])
_TRIANGLE = np.vstack([_TRIANGLE, [[3, 5, 4, 0, 2, 1], [4, 3, 5, 1, 0, 2], [5, 4, 3, 2, 1, 0]]])
_LARGER = np.maximum.outer(np.arange(5), np.arange(5))
TABLES = {"cyclic": _cyclic(7), "triangle": _TRIANGLE, "no group": _LARGER}


def _model(order, nodes=4, scale=0.7):
    return composing.initial(order, nodes, scale=scale, key=jax.random.key(1))


def _direct(model, table, mask):
    """The definition, with the projection and one-hot labels written out."""
    order = len(table)
    project = jnp.eye(order) - 1 / order
    hidden = (model.a[:, None, :] + model.b[None, :, :]) ** 2
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
    mask = composing.split(order, train=0.7, seed=3) if masked else np.ones((order, order), bool)
    data = composing.pairs(table, mask)
    expected = jax.jit(lambda model: jax.value_and_grad(_direct)(model, table, mask))(model)
    forms = [composing.masked_loss, composing.training_loss if data.unused is None else composing._closed_loss]
    assert (data.unused is None) == (table is _LARGER)  # the closed form needs permutations
    for form in forms:
        found = jax.jit(jax.value_and_grad(form))(model, data)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)


def test_closed_form_has_the_second_derivatives_of_the_definition():
    # Its slopes are written by hand: forward over reverse goes through them twice.
    model, data = _model(4, nodes=2), composing.pairs(_cyclic(4), composing.split(4, train=0.8, seed=0))
    along = _model(4, nodes=2, scale=0.3)
    push = lambda form: jax.jit(lambda m, v: jax.jvp(jax.grad(form), (m,), (v,))[1])(model, along)
    found, expected = (push(lambda m, f=f: f(m, data)) for f in (composing._closed_loss, composing.masked_loss))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-14)


def test_training_loss_takes_the_closed_form_for_many_pairs_and_few_nodes():
    products = lambda order, nodes: str(
        jax.make_jaxpr(composing.training_loss)(_model(order, nodes), composing.pairs(_cyclic(order)))
    ).count("custom_jvp_call")
    assert products(23, 512) == 0 and products(71, 512) > 0 and products(23, 32) > 0


def test_no_output_costs_one_less_one_over_order():
    model = jax.tree.map(jnp.zeros_like, _model(6))
    for form in (composing.masked_loss, composing._closed_loss):
        assert float(form(model, composing.pairs(_TRIANGLE))) == pytest.approx(5 / 6, rel=1e-14)


def test_perfect_memorisation_is_exact_inside_the_network():
    # Two nodes for each pair: (a + b)² − (a − b)² = 4ab is 4 at that pair and 0 at the others.
    order = 3
    m, n = np.divmod(np.arange(order**2), order)
    hot = np.eye(order)
    both, single = hot[:, m], hot[:, n]
    a = np.concatenate([both, both], axis=1)
    b = np.concatenate([single, -single], axis=1)
    c = np.concatenate([hot[:, (m + n) % order], -hot[:, (m + n) % order]], axis=1) / 4
    model, data = composing.QuadraticNetwork(a, b, c), composing.pairs(_cyclic(order))
    assert float(composing.masked_loss(model, data)) < 1e-30
    assert float(composing.accuracy(model, data)) == 1


def test_accuracy_counts_the_pairs_used():
    model, table = _model(7), _cyclic(7)
    right = np.argmax(np.asarray(model.outputs()), axis=2) == table
    mask = composing.split(7, train=0.6, seed=2)
    assert float(composing.accuracy(model, composing.pairs(table))) == pytest.approx(right.mean())
    assert float(composing.accuracy(model, composing.pairs(table, mask))) == pytest.approx(right[mask].mean())


@pytest.mark.parametrize(("order", "left_out"), ((23, 53), (71, 505), (127, 1613), (10, 10)))
def test_split_is_the_papers(order, left_out):
    mask = composing.split(order, seed=5)
    assert (~mask).sum() == left_out
    expected = np.random.RandomState(5).permutation(order**2)[:left_out]
    np.testing.assert_array_equal(np.flatnonzero(~mask), np.sort(expected))


def test_initial_weights_are_uniform_within_their_bounds():
    model = composing.initial(25, 400, dtype=jnp.float32, key=jax.random.key(0))
    for x, bound in ((model.a, 0.2), (model.b, 0.2), (model.c, 0.05)):
        assert x.dtype == jnp.float32 and 0.999 * bound < float(jnp.max(jnp.abs(x))) <= bound
        assert float(jnp.std(x)) == pytest.approx(bound / 3**0.5, rel=0.03)  # 10^4 draws


def test_decay_goes_through_the_moments_of_adam():
    # By hand, two steps at decay 0.5, as torch.optim.Adam(weight_decay=0.5) takes them.
    w, gradient, rate, decay, m, v = 2.0, 0.3, 0.1, 0.5, 0.0, 0.0
    optimiser = composing.coupled_adam(jnp.asarray(rate), jnp.asarray(decay))
    x = jnp.asarray(w)
    state = optimiser.init(x)
    for step in (1, 2):
        g = gradient + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimiser.update(jnp.asarray(gradient), state, x)
            x = optax.apply_updates(x, update)
        assert float(x) == pytest.approx(w, rel=1e-12)


def _train(**options):
    options = {"nodes": 8, "weight_decay": 1e-4, "steps": 30, "every": 10, "seeds": (1, 2)} | options
    return composing.train_seeds(_cyclic(5), **options)


def test_train_seeds_is_train_seed_by_seed_and_leaves_the_scale_alone():
    runs = _train(dtype=jnp.float64, observe=lambda model: jnp.sum(model.a))
    np.testing.assert_array_equal(runs.steps, [0, 10, 20, 30])
    for i, seed in ((1, 2),):  # the second lane
        mask = composing.split(5, seed=seed)
        data, rest = (composing.pairs(_cyclic(5), m) for m in (mask, ~mask))
        model = composing.initial(5, 8, key=jax.random.key(seed))
        watch = lambda m, data=data, rest=rest: [
            f(m, p) for f in (composing.masked_loss, composing.accuracy) for p in (data, rest)
        ]
        optimiser, kept = composing.coupled_adam(0.01, 1e-4), model.trainable()
        one = nets.train(model, composing.masked_loss, data, optimiser, 30, trainable=kept, observe=watch, every=10)
        mine = jax.tree.map(lambda x, i=i: x[i], runs)
        for name in ("a", "b", "c"):
            np.testing.assert_allclose(getattr(mine.model, name), getattr(one.model, name), rtol=1e-9, atol=1e-12)
        seen = (mine.train_loss, mine.test_loss, mine.train_accuracy, mine.test_accuracy)
        for x, y in zip(seen, one.observed, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9)
        assert float(mine.model.scale) == 1
        assert float(mine.observed[-1]) == pytest.approx(float(jnp.sum(mine.model.a)), rel=1e-12)
    assert (np.asarray(runs.diverged_at) == -1).all()


def test_rates_compile_nothing_and_training_is_float32():
    traces = []
    first = _train(seeds=(1,), observe=(observe := lambda model: traces.append(1)))
    assert first.model.a.dtype == first.train_loss.dtype == jnp.float32
    before = len(traces)
    _train(seeds=(3,), weight_decay=1e-2, learning_rate=0.02, observe=observe)
    assert before == len(traces) > 0


# Compaction


def test_compaction_without_dead_nodes_changes_nothing():
    # Nothing is below a threshold of zero, and 40 nodes are no more than two multiples of 32.
    plain, pieces = (
        _train(steps=1010, every=1010, seeds=(1,), nodes=40, dtype=jnp.float64, compact=c, threshold=0.0)
        for c in (False, True)
    )
    assert pieces.model.a.shape == (1, 5, 40)
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


def test_compaction_keeps_the_live_nodes_and_their_moments_to_the_bit():
    order, nodes = 5, 100
    rng = np.random.default_rng(0)
    live = np.stack([np.sort(rng.permutation(nodes)[:40]), np.sort(rng.permutation(nodes)[:10])[[*range(10)] * 4]])
    w = np.full((2, 3, order, nodes), 1e-4)
    for lane in range(2):
        w[lane, :, :, live[lane]] = 0.5 + rng.random((len(live[lane]), 3, order))
    params = jax.vmap(lambda w: composing.QuadraticNetwork(w[0], w[1], w[2]))(jnp.asarray(w))
    params, static = eqx.partition(params, params.trainable())
    state = jax.vmap(composing.coupled_adam(0.1, 0.1).init)(params)
    state = jax.tree.map(lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), state)
    carry = composing._Carry(params, state, jnp.zeros(2, int), jnp.full(2, -1))
    found = composing._compacted(carry, static, 0.02)
    assert found.params.a.shape == (2, order, 64)  # 40 alive in one of the lanes, rounded up to a multiple of 32
    moments = lambda c: [x for x in jax.tree.leaves(c.state) if x.ndim == 3]
    assert len(moments(found)) == 6
    for lane in range(2):
        kept = [int(np.flatnonzero((w[lane, 0] == column[:, None]).all(0))[0]) for column in
                np.asarray(found.params.a[lane]).T if column[0] > 0.1]  # fmt: skip
        assert kept == sorted(set(live[lane].tolist()))
        for old, new in zip(moments(carry), moments(found), strict=True):
            columns = {tuple(c) for c in np.asarray(new[lane]).T}
            assert {tuple(c) for c in np.asarray(old[lane])[:, kept].T} <= columns


def test_a_node_of_zero_weights_and_moments_stays_as_it_is():
    # Its slope is a product with its own weights; decay and Adam add nothing to zero.
    model = _model(5, nodes=6)
    dead = jax.tree.map(lambda x: x.at[:, 2].set(0.0) if x.ndim == 2 else x, model)
    data = composing.pairs(_cyclic(5))
    optimiser = composing.coupled_adam(0.01, 1e-3)
    run = nets.train(dead, composing._closed_loss, data, optimiser, 5, trainable=dead.trainable())
    for x, at_first in ((run.model.a, dead.a), (run.model.b, dead.b), (run.model.c, dead.c)):
        np.testing.assert_array_equal(x[:, 2], 0)
        assert (x[:, :2] != at_first[:, :2]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: composing.split(5, train=1.0, seed=0), "train must lie between 0 and 1, got 1.0"),
        (lambda: composing.split(5, train=0.0, seed=0), "train must lie between 0 and 1, got 0.0"),
        (lambda: composing.split(2, train=0.1, seed=0), "train must leave at least one of 4 pairs"),
        (lambda: composing.initial(0, 4, key=jax.random.key(0)), "order must be at least 1, got 0"),
        (lambda: composing.initial(4, 0, key=jax.random.key(0)), "nodes must be at least 1, got 0"),
        (lambda: composing.pairs(np.zeros((2, 3), int)), r"must have shape \(order, order\), got \(2, 3\)"),
        (lambda: composing.pairs(np.full((2, 2), 2)), "numbers from 0 to 1, got 2 to 2"),
        (lambda: composing.pairs(_cyclic(2), np.zeros((2, 2), bool)), "mask must leave at least one pair"),
        (lambda: composing.QuadraticNetwork(np.ones((2, 3)), np.ones((2, 3)), np.ones((3, 3))), "must have one shape"),
        (lambda: _train(seeds=()), "seeds must have at least one entry"),
        (lambda: _train(every=0), "every at least 1, got steps=30, every=0"),
        (lambda: _train(steps=-1), "steps must be at least 0"),
        (lambda: _train(nodes=0), "nodes must be at least 1, got 0"),
        (lambda: _train(train=1.5), "train must lie between 0 and 1, got 1.5"),
        (lambda: _train(threshold=-1.0), "threshold must be at least 0"),
    ),
)
def test_bad_arguments_are_named(as_users, call, message):
    with pytest.raises(ValueError, match=message):
        call()
