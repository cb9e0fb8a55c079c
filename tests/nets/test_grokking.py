"""What theory says of hidden nodes, each by its definition."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.nets import grokking, pairs


def _cyclic(order):
    return np.add.outer(np.arange(order), np.arange(order)) % order


# The symmetries of a triangle, not Abelian.
_TRIANGLE = np.array([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 3], [2, 0, 1, 5, 3, 4]])
_TRIANGLE = np.vstack([_TRIANGLE, [[3, 5, 4, 0, 2, 1], [4, 3, 5, 1, 0, 2], [5, 4, 3, 2, 1, 0]]])


def _model(order, nodes=5, *, seed=1, dtype=float, activation=jnp.square):
    a, b, c = np.random.default_rng(seed).uniform(-0.4, 0.4, (3, order, nodes)).astype(dtype)
    return pairs.TwoLayer(a, b, c, 0.7, activation)


def _dense(model, sample):
    """X, Y and F without padding, and P1, as the definitions have them."""
    order, n = model.order, int(sample.used.sum())
    hot = np.eye(order)
    g1, g2, label = (np.asarray(x)[:n] for x in sample[:3])
    x = np.concatenate([hot[g1], hot[g2]], axis=1)
    w = np.concatenate([model.a, model.b])
    return x, hot[label], np.asarray(model.activation(x @ w)), np.eye(n) - 1 / n


def _projectors(order):
    """Those of the real irreps of Z_order, order odd."""
    gap = np.subtract.outer(np.arange(order), np.arange(order))
    each = [2 * np.cos(2 * np.pi * k * gap / order) / order for k in range(1, order // 2 + 1)]
    return np.stack([np.full((order, order), 1 / order), *each])


def _setting(padded=True, table=_TRIANGLE, **options):
    sample = pairs.split_pairs(table, fraction=0.6, seed=2)[0]
    if padded:
        sample = jax.tree.map(lambda x: x[0], pairs.stacked([sample, pairs.pairs(table)]))
    return _model(len(table), **options), sample


@pytest.mark.parametrize("quantity", (grokking.alignment, grokking.energies, grokking.backpropagated))
def test_padding_changes_nothing(quantity):
    (model, plain), (_, padded) = _setting(False), _setting()
    x, y = np.asarray(quantity(model, plain)), np.asarray(quantity(model, padded))
    if quantity is grokking.backpropagated:
        assert not y[len(x) :].any()
        y = y[: len(x)]
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


# What theory speaks of


@pytest.mark.parametrize("activation", (jnp.square, jnp.tanh))
def test_features_and_what_comes_back_to_them_are_those_of_the_definition(activation):
    model, sample = _setting(activation=activation)
    _, y, f, centre = _dense(model, sample)
    n = len(y)
    np.testing.assert_allclose(grokking.features(model, sample)[:n], f, rtol=1e-12)
    assert not np.any(grokking.features(model, sample)[n:])
    v = 0.7 * model.c.T
    slope = jax.grad(lambda f: jnp.sum((centre @ (y - f @ v)) ** 2) / 2)(jnp.asarray(f))
    np.testing.assert_allclose(grokking.backpropagated(model, sample)[:n], -slope, rtol=1e-11, atol=1e-13)


def test_label_correlation_and_alignment_are_those_of_the_definition():
    model, sample = _setting()
    _, y, f, centre = _dense(model, sample)
    expected = (centre @ y) @ (centre @ y).T @ (centre @ f)
    found = np.asarray(grokking.label_correlation(model, sample))
    np.testing.assert_allclose(found[: len(y)], expected, rtol=1e-11, atol=1e-14)
    assert not found[len(y) :].any()
    gradient = centre @ (y - 0.7 * f @ np.asarray(model.c).T) @ np.asarray(model.c) * 0.7
    cosine = np.sum(gradient * expected) / np.sqrt(np.sum(gradient**2) * np.sum(expected**2))
    assert float(grokking.alignment(model, sample)) == pytest.approx(cosine, rel=1e-11)
    silent = pairs.TwoLayer(model.a, model.b, 0 * model.c)
    assert float(grokking.alignment(silent, sample)) == 0  # no output, nothing comes back


def test_an_output_layer_just_begun_is_aligned():
    # Proposition 1: from V = 0 the first step of gradient flow makes it a multiple of Ỹᵀ F̃.
    model, sample = _setting()
    _, y, f, centre = _dense(model, sample)
    begun = pairs.TwoLayer(model.a, model.b, 1e-9 * (centre @ y).T @ f)
    assert float(grokking.alignment(begun, sample)) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(("dtype", "size"), (("float32", 1e-20), ("float64", 1e-170), ("float64", 1e170)))
def test_what_is_free_of_scale_stays_so_for_small_and_large_nodes(dtype, size):
    model, sample = _setting(table=_cyclic(5), dtype=dtype)
    size = jnp.asarray(size, dtype)
    other = eqx.tree_at(lambda m: (m.a, m.b), model, (size * model.a, size * model.b))
    rtol = 30 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(grokking.energies(other, sample), grokking.energies(model, sample), rtol=rtol)
    fractions = (grokking.contents(m, _projectors(5)) for m in (other, model))
    np.testing.assert_allclose(*fractions, rtol=rtol, atol=rtol)


def test_alignment_and_norm_of_a_small_output_layer_are_their_limits():
    # To first order in c what comes back is proportional to c.
    model, sample = _setting(table=_cyclic(5))
    seen = [
        grokking.stages(_projectors(5))(eqx.tree_at(lambda m: m.c, model, size * model.c), sample)
        for size in (1e-9, 1e-200)
    ]
    assert float(seen[1].alignment) == pytest.approx(float(seen[0].alignment), rel=1e-6)
    assert float(seen[1].gradient_norm) * 1e191 == pytest.approx(float(seen[0].gradient_norm), rel=1e-6)


@pytest.mark.parametrize("activation", (jnp.square, jnp.tanh))
def test_energies_are_those_of_nodes_of_norm_one(activation):
    model, sample = _setting(activation=activation)
    x, y, _, centre = _dense(model, sample)
    w = np.concatenate([model.a, model.b])
    unit = np.asarray(activation(x @ (w / np.linalg.norm(w, axis=0))))
    expected = np.sum(((centre @ y).T @ unit) ** 2, axis=0) / 2
    np.testing.assert_allclose(grokking.energies(model, sample), expected, rtol=1e-11)
    dead = jax.tree.map(lambda w: w.at[:, 1].set(0.0) if w.ndim == 2 else w, model)
    assert float(grokking.energies(dead, sample)[1]) == pytest.approx(0, abs=1e-28)


def test_contents_are_fractions_of_both_halves():
    projectors, model = _projectors(7), _model(7)
    contents = jax.jit(grokking.contents)
    found = contents(model, projectors)
    assert found.shape == (5, 4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    a, b = (np.asarray(projectors[2] @ half) for half in (model.a, model.b))
    size = np.sum(np.asarray(model.a) ** 2 + np.asarray(model.b) ** 2, axis=0)
    np.testing.assert_allclose(found[:, 2], (np.sum(a**2, axis=0) + np.sum(b**2, axis=0)) / size, rtol=1e-12)
    wave = np.cos(2 * np.pi * 3 * np.arange(7) / 7)[:, None]
    pure = pairs.TwoLayer(np.hstack([wave, 0 * wave]), np.hstack([2 * wave, 0 * wave]), np.ones((7, 2)))
    np.testing.assert_allclose(contents(pure, projectors), [[0, 0, 0, 1], [0, 0, 0, 0]], atol=1e-14)


def test_a_stage_is_its_parts_and_new_projectors_compile_nothing():
    model, sample = _setting(table=_cyclic(7), dtype=jnp.float32)
    compiled = jax.jit(eqx.debug.assert_max_traces(lambda watch, model: watch(model, sample), max_traces=1))
    stage = compiled(grokking.stages(_projectors(7)), model)
    parts = lambda model: (
        jnp.linalg.norm(grokking.backpropagated(model, sample)),
        grokking.alignment(model, sample),
        grokking.energies(model, sample),
        grokking.contents(model, _projectors(7)),
    )
    expected = jax.jit(parts)(model)
    for x, y in zip(stage, expected, strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    compiled(grokking.stages(_projectors(7)[::-1]), model)
    with pytest.raises(RuntimeError, match="traced"):  # another number of projectors does: the counter works
        compiled(grokking.stages(_projectors(7)[1:]), model)


def _whole(order):
    return pairs.pairs(_cyclic(order))


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: grokking.contents(_model(5), np.ones((2, 4, 4))), r"shape \(classes, 5, 5\), got \(2, 4, 4\)"),
        (
            lambda: grokking.contents(_model(5), 7 * np.eye(5)[None]),
            "projectors must be symmetric and their own squares",
        ),
        (lambda: grokking.stages(7 * np.eye(5)[None]), "projectors must be symmetric and their own squares"),
        *(
            (
                lambda f=f: f(_model(5), _whole(5)._replace(used=jnp.zeros(25, bool))),
                "used must leave at least one",
            )
            for f in (grokking.features, grokking.alignment, grokking.energies)
        ),
        (lambda: grokking.energies(_model(7), _whole(5)), r"pairs.table must have shape \(7, 7\), got \(5, 5\)"),
        (lambda: jax.jit(grokking.energies)(_model(3), _whole(5)), r"pairs.table must have shape \(3, 3\)"),
    ),
)
def test_bad_arguments_are_named(as_users, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_weights_that_are_nan_are_seen_in_all_that_is_recorded():
    sample, model = _whole(5), _model(5)
    sick = eqx.tree_at(lambda m: m.c, model, model.c.at[0, 0].set(jnp.nan))
    assert all(jnp.isnan(f(sick, sample)) for f in (pairs.loss, pairs.accuracy, grokking.alignment))
    sick = eqx.tree_at(lambda m: m.a, model, model.a.at[0, 0].set(jnp.nan))
    assert jnp.isnan(grokking.energies(sick, sample)[0]) and jnp.isnan(grokking.contents(sick, _projectors(5))[0, 0])
