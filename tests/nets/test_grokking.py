"""Samples and their loss, what theory speaks of, each by its definition; the optimisers; many runs in one program."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn import nets
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


def _setting(padding=4, table=_TRIANGLE, **options):
    mask = pairs.split(len(table), train=0.6, seed=2)
    return _model(len(table), **options), grokking.sample(table, mask, int(mask.sum()) + padding), mask


# Samples, loss and accuracy


def test_samples_are_those_of_the_split_and_padding_is_marked():
    trained, rest = grokking.samples(_TRIANGLE, 0.6, 2, capacity=30)
    mask = pairs.split(6, train=0.6, seed=2)
    for sample, used in ((trained, mask), (rest, ~mask)):
        assert sample.g1.shape == (30,)
        g1, g2, label = (np.asarray(x)[np.asarray(sample.used)] for x in sample[:3])
        np.testing.assert_array_equal(np.stack([g1, g2]), np.nonzero(used))
        np.testing.assert_array_equal(label, _TRIANGLE[used])
    assert grokking.sample(_TRIANGLE, mask).used.shape == (mask.sum(),)


@pytest.mark.parametrize("activation", (jnp.square, jax.nn.relu))
@pytest.mark.parametrize("padding", (0, 4))
def test_loss_has_value_and_gradient_of_the_masked_loss(activation, padding):
    model, sample, mask = _setting(padding, activation=activation)
    expected = jax.jit(jax.value_and_grad(pairs.masked_loss))(model, pairs.pairs(_TRIANGLE, mask))
    found = jax.jit(jax.value_and_grad(grokking.loss))(model, sample)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)


def test_accuracy_counts_the_pairs_used():
    # Outputs that are right at two pairs; the padding repeats the first of all pairs, which is one of them.
    model, sample, mask = _setting(padding=9)
    assert float(grokking.accuracy(model, sample)) == float(pairs.accuracy(model, pairs.pairs(_TRIANGLE, mask)))
    right = jax.tree.map(jnp.zeros_like, model)
    right = pairs.TwoLayer(right.a.at[0, 0].set(1.0), right.b, right.c.at[0, 0].set(1.0))  # g1 = 0 says 0
    everywhere = grokking.sample(_TRIANGLE, np.ones((6, 6), bool), 50)
    assert float(grokking.accuracy(right, everywhere)) == pytest.approx(6 / 36)  # argmax of equal outputs is 0


@pytest.mark.parametrize(
    "quantity", (grokking.loss, grokking.accuracy, grokking.alignment, grokking.energies, grokking.backpropagated)
)
def test_padding_changes_nothing(quantity):
    (model, plain, _), (_, padded, _) = _setting(0), _setting(7)
    x, y = np.asarray(quantity(model, plain)), np.asarray(quantity(model, padded))
    if quantity is grokking.backpropagated:
        assert not y[len(x) :].any()
        y = y[: len(x)]
    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


# What theory speaks of


@pytest.mark.parametrize("activation", (jnp.square, jnp.tanh))
def test_features_and_what_comes_back_to_them_are_those_of_the_definition(activation):
    model, sample, _ = _setting(activation=activation)
    _, y, f, centre = _dense(model, sample)
    n = len(y)
    np.testing.assert_allclose(grokking.features(model, sample)[:n], f, rtol=1e-12)
    assert not np.any(grokking.features(model, sample)[n:])
    v = 0.7 * model.c.T
    slope = jax.grad(lambda f: jnp.sum((centre @ (y - f @ v)) ** 2) / 2)(jnp.asarray(f))
    np.testing.assert_allclose(grokking.backpropagated(model, sample)[:n], -slope, rtol=1e-11, atol=1e-13)


def test_label_correlation_and_alignment_are_those_of_the_definition():
    model, sample, _ = _setting()
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
    model, sample, _ = _setting()
    _, y, f, centre = _dense(model, sample)
    begun = pairs.TwoLayer(model.a, model.b, 1e-9 * (centre @ y).T @ f)
    assert float(grokking.alignment(begun, sample)) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(("dtype", "size"), (("float32", 1e-20), ("float64", 1e-170), ("float64", 1e170)))
def test_what_is_free_of_scale_stays_so_for_small_and_large_nodes(dtype, size):
    model, sample, _ = _setting(table=_cyclic(5), dtype=dtype)
    size = jnp.asarray(size, dtype)
    other = eqx.tree_at(lambda m: (m.a, m.b), model, (size * model.a, size * model.b))
    rtol = 30 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(grokking.energies(other, sample), grokking.energies(model, sample), rtol=rtol)
    shares = (grokking.contents(m, _projectors(5)) for m in (other, model))
    np.testing.assert_allclose(*shares, rtol=rtol, atol=rtol)


def test_alignment_and_norm_of_a_small_output_layer_are_their_limits():
    # To first order in c what comes back is proportional to c.
    model, sample, _ = _setting(table=_cyclic(5))
    seen = [
        grokking.stages(_projectors(5))(eqx.tree_at(lambda m: m.c, model, size * model.c), sample)
        for size in (1e-9, 1e-200)
    ]
    assert float(seen[1].alignment) == pytest.approx(float(seen[0].alignment), rel=1e-6)
    assert float(seen[1].gradient_norm) * 1e191 == pytest.approx(float(seen[0].gradient_norm), rel=1e-6)


@pytest.mark.parametrize("activation", (jnp.square, jnp.tanh))
def test_energies_are_those_of_nodes_of_norm_one(activation):
    model, sample, _ = _setting(activation=activation)
    x, y, _, centre = _dense(model, sample)
    w = np.concatenate([model.a, model.b])
    unit = np.asarray(activation(x @ (w / np.linalg.norm(w, axis=0))))
    expected = np.sum(((centre @ y).T @ unit) ** 2, axis=0) / 2
    np.testing.assert_allclose(grokking.energies(model, sample), expected, rtol=1e-11)
    dead = jax.tree.map(lambda w: w.at[:, 1].set(0.0) if w.ndim == 2 else w, model)
    assert float(grokking.energies(dead, sample)[1]) == pytest.approx(0, abs=1e-28)


def test_contents_are_shares_of_both_halves():
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


# Optimisers


def test_muon_makes_both_halves_orthogonal_as_one_matrix():
    rate, decay, model, gradient = 0.1, 0.3, _model(5, nodes=8), _model(5, nodes=8, seed=2)
    optimiser = grokking.muon(jnp.asarray(rate), jnp.asarray(decay))
    step = lambda o, g, m: jax.jit(lambda g, m: o.update(g, o.init(m), m)[0])(g, m)
    with jax.numpy_dtype_promotion("standard"):
        update = step(optimiser, gradient, model)
        of_c = step(grokking.coupled_adam(rate, decay), gradient.c, model.c)
        alone = [step(optax.contrib.muon(rate), g, m) for g, m in ((gradient.a, model.a), (gradient.b, model.b))]
    stacked = lambda m: np.concatenate([m.a, m.b])
    moved = -stacked(update) / rate - decay * stacked(model)  # less the decoupled decay
    left, size, right = np.linalg.svd(moved, full_matrices=False)
    assert 0.6 < size.min() < size.max() < 1.3  # five steps of Newton and Schulz
    polar = lambda g: np.linalg.svd(g, full_matrices=False)[0] @ np.linalg.svd(g, full_matrices=False)[2]
    assert np.abs(left @ right - polar(stacked(gradient))).max() < 1e-6
    apart = np.linalg.svd(np.concatenate(alone) / rate, compute_uv=False)
    assert apart.max() > 1.3  # the halves are orthogonal, together they are not
    np.testing.assert_allclose(update.c, of_c, rtol=1e-12)


def test_muon_keeps_a_moving_mean_of_gradients():
    rate, model = 0.1, _model(5, nodes=8)
    first, second = (_model(5, nodes=8, seed=seed) for seed in (2, 3))
    optimiser = grokking.muon(rate, 0.0, beta=0.6)
    move = jax.jit(optimiser.update)
    with jax.numpy_dtype_promotion("standard"):
        begin = optimiser.init(model)
        _, state = move(first, begin, model)
        update, _ = move(second, state, model)
        mean = jax.tree.map(lambda x, y: 0.6 * 0.4 * x + 0.4 * y, first, second)
        expected, _ = move(mean, begin, model)
    np.testing.assert_allclose(np.stack([update.a, update.b]), np.stack([expected.a, expected.b]), atol=1e-9)
    with pytest.raises(ValueError, match="params must be given"):
        optimiser.update(first, state)


def test_decay_goes_through_the_momentum_of_sgd():
    # By hand, as torch.optim.SGD(momentum=0.9, weight_decay=0.5) takes two steps.
    w, gradient, rate, decay, m = 2.0, 0.3, 0.1, 0.5, 0.0
    optimiser, x = grokking.coupled_sgd(jnp.asarray(rate), jnp.asarray(decay)), jnp.asarray(w)
    state = optimiser.init(x)
    for _ in range(2):
        m = 0.9 * m + gradient + decay * w
        w -= rate * m
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimiser.update(jnp.asarray(gradient), state, x)
            x = optax.apply_updates(x, update)
        assert float(x) == pytest.approx(w, rel=1e-12)


# Training

_OPTIONS = {
    "fractions": (0.5, 0.8),
    "seeds": (1, 2),
    "learning_rates": (1e-2, 3e-3),
    "weight_decays": (1e-4, 1e-2, 1e-1),
    "nodes": 8,
    "steps": 15,
    "every": 5,
}


def _total(model, sample):
    return jnp.sum(model.a), jnp.sum(sample.used)


def _run(**options):
    return grokking.train_runs(_cyclic(5), **(_OPTIONS | options))


@pytest.mark.parametrize(
    ("optimiser", "batch_size", "lane"),
    ((grokking.muon, 1, (0, 1, 0, 1)), ("sgd", 6, (1, 0, 2, 0))),
)
def test_lanes_are_single_runs(optimiser, batch_size, lane):
    runs = _run(optimiser=optimiser, batch_size=batch_size, dtype=jnp.float64, observe=_total)
    np.testing.assert_array_equal(runs.steps, [0, 5, 10, 15])
    assert runs.train_loss.shape == (2, 2, 3, 2, 4) and (np.asarray(runs.diverged_at) == -1).all()
    names = ("fractions", "learning_rates", "weight_decays", "seeds")
    fraction, rate, decay, seed = (_OPTIONS[name][i] for name, i in zip(names, lane, strict=True))
    trained, rest = grokking.samples(_cyclic(5), fraction, seed)
    model = pairs.initial(5, 8, fan_in=10, key=jax.random.key(seed))
    scores = lambda m: [f(m, s) for f in (grokking.loss, grokking.accuracy) for s in (trained, rest)]
    watch = lambda m: [*scores(m), *_total(m, trained)]
    make = (grokking.coupled_sgd if optimiser == "sgd" else optimiser)(rate, decay)
    kept = model.trainable()
    one = nets.train(model, grokking.loss, trained, make, 15, trainable=kept, observe=watch, every=5)
    mine = jax.tree.map(lambda x: x[lane], runs._replace(steps=None))
    for name in ("a", "b", "c", "scale"):
        np.testing.assert_allclose(getattr(mine.model, name), getattr(one.model, name), rtol=1e-8, atol=1e-11)
    seen = (mine.train_loss, mine.test_loss, mine.train_accuracy, mine.test_accuracy, *mine.observed)
    for x, y in zip(seen, one.observed, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-8)


def test_a_run_that_diverges_says_when_and_leaves_the_others_alone():
    runs = _run(learning_rates=(1e-2, 1e300), optimiser="sgd", batch_size=6, dtype=jnp.float64, observe=_total)
    at = np.asarray(runs.diverged_at)
    assert (at[:, 0] == -1).all() and (at[:, 1] >= 0).all()
    assert np.isfinite(runs.train_loss[:, 0]).all() and np.isnan(runs.train_loss[:, 1, ..., -1]).all()


def test_a_stage_is_its_parts_and_new_projectors_compile_nothing():
    model, sample, _ = _setting(table=_cyclic(7), dtype=jnp.float32)
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


def test_the_output_layer_may_start_at_zero_and_the_activation_is_the_one_given():
    runs = _run(steps=0, every=None, output_scale=0.0, activation=jax.nn.relu)
    assert not np.any(runs.model.c) and runs.model.activation is jax.nn.relu
    np.testing.assert_allclose(runs.train_loss, 0.8, rtol=1e-6)


def test_pairs_left_out_are_learned_later_and_other_rates_and_seeds_compile_nothing():
    traces = []

    def observe(model, sample):
        traces.append(1)
        return grokking.stages(_projectors(11))(model, sample)

    train = lambda seeds, rate, decay, **options: grokking.train_runs(
        _cyclic(11), fractions=(0.7,), seeds=seeds, learning_rates=(rate,), weight_decays=(decay,), nodes=96,
        steps=600, every=5, observe=observe, **options,
    )  # fmt: skip
    runs = train((1, 2), 5e-3, 1e-3)
    first = lambda curve: np.asarray(runs.steps)[np.argmax(np.asarray(curve)[0, 0, 0] > 0.99, axis=1)]
    assert (np.asarray(runs.test_accuracy)[..., -1] > 0.99).all()
    assert (first(runs.test_accuracy) > 2 * first(runs.train_accuracy)).all() and (first(runs.train_accuracy) > 0).all()
    assert grokking.OPTIMISERS["adam"] is pairs.coupled_adam  # the default
    assert {x.dtype for x in jax.tree.leaves((runs.model, runs[2:6], runs.observed))} == {jnp.dtype("float32")}
    assert runs.observed.gradient_norm.shape == (1, 1, 1, 2, 121)
    assert runs.observed.content.shape == (1, 1, 1, 2, 121, 96, 6)
    before = len(traces)
    train((3, 4), 1e-3, 0.0, output_scale=0.5)
    assert before == len(traces) > 0


_NONE = np.zeros((5, 5), bool)


def _whole(order):
    return grokking.sample(_cyclic(order), np.ones((order, order), int))


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (
            lambda: grokking.samples(np.zeros((2, 3), int), 0.5, 0),
            r"table must have shape \(order, order\), got \(2, 3\)",
        ),
        (lambda: grokking.samples(_cyclic(2), 0.5, 0), "at least 3 elements, got 2"),
        (lambda: grokking.samples(_cyclic(5) + 1, 0.5, 0), "table must lie from 0 to 4, got 5"),
        (lambda: grokking.samples(_cyclic(5) / 2, 0.5, 0), "table must be integers, got"),
        (lambda: grokking.samples(_cyclic(5), 0.01, 0), "leave one of 25 pairs at least on each side, got 0.01"),
        (lambda: grokking.samples(_cyclic(5), 1 - 1e-12, 0), "leave one of 25 pairs at least on each side"),
        (lambda: grokking.samples(_cyclic(5), 0.5, 0, capacity=3), "capacity must be an integer of at least 12, got 3"),
        (lambda: grokking.sample(_cyclic(5), np.ones((4, 4), bool)), r"mask must have shape \(5, 5\), got \(4, 4\)"),
        (lambda: grokking.sample(_cyclic(5), _NONE), "mask must leave at least one pair"),
        (lambda: grokking.contents(_model(5), np.ones((2, 4, 4))), r"shape \(classes, 5, 5\), got \(2, 4, 4\)"),
        (lambda: _run(fractions=(0.5, 1.0)), "fractions must be above 0 and below 1, got 1.0"),
        (lambda: _run(fractions=(0.0,)), "fractions must be above 0 and below 1, got 0.0"),
        (lambda: _run(fractions=0.5), "fractions must have shape"),
        (lambda: _run(seeds=()), "seeds must be a sequence of at least one integer"),
        (lambda: _run(seeds=(-1,)), "seeds must be an integer of at least 0 and at most 4294967295, got -1"),
        (lambda: _run(seeds=(1.5,)), "seeds must be an integer .*, got 1.5"),
        (lambda: _run(learning_rates=1e-3), "learning_rates must have shape"),
        (lambda: _run(weight_decays=()), "weight_decays must be a sequence of at least one entry"),
        (lambda: _run(learning_rates=(float("nan"),)), "learning_rates must be finite, got nan"),
        (lambda: _run(weight_decays=(-1.0,)), "weight_decays must be at least 0, got -1.0"),
        (lambda: _run(activation="relu"), "activation must be callable, got 'relu'"),
        (lambda: _run(activation=jnp.sum), "activation must keep the shape"),
        (lambda: _run(dtype=jnp.float16), "dtype must have the range of float32"),
        (lambda: grokking.muon(0.1, 0.1).init({"w": jnp.ones((3, 3))}), "params must have the fields a, b, c"),
        *(
            (
                lambda f=f: f(_model(5), _whole(5)._replace(used=jnp.zeros(25, bool))),
                "sample.used must leave at least one pair, got none",
            )
            for f in (grokking.loss, grokking.accuracy)
        ),
        (lambda: _run(observe="x"), "observe must be callable, got 'x'"),
        (lambda: grokking.sample(_cyclic(5), np.full((5, 5), 2)), "mask must be boolean, or 0 and 1"),
        (
            lambda: grokking.contents(_model(5), 7 * np.eye(5)[None]),
            "projectors must be symmetric and their own squares",
        ),
        (lambda: grokking.stages(7 * np.eye(5)[None]), "projectors must be symmetric and their own squares"),
        (lambda: grokking.loss(_model(7), _whole(5)), r"sample.elements must have shape \(7,\), got \(5,\)"),
        (lambda: grokking.loss(_model(3), _whole(5)), r"sample.elements must have shape \(3,\), got \(5,\)"),
        (lambda: jax.jit(grokking.loss)(_model(3), _whole(5)), r"sample.elements must have shape \(3,\)"),
        (lambda: _run(nodes=0), "nodes must be an integer of at least 1, got 0"),
        (lambda: _run(steps=-1), "steps must be an integer of at least 0, got -1"),
        (lambda: _run(every=0), "every must be an integer of at least 1, got 0"),
        (lambda: _run(batch_size=0), "batch_size must be an integer of at least 1, got 0"),
        (lambda: _run(optimiser="lion"), "optimiser must be one of 'adam', 'sgd', 'muon', got 'lion'"),
    ),
)
def test_bad_arguments_are_named(as_users, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sample_of_zeros_and_ones_is_that_of_truth_values():
    used = pairs.split(5, train=0.5, seed=1)
    for x, y in zip(grokking.sample(_cyclic(5), used), grokking.sample(_cyclic(5), used.astype(int)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_weights_that_are_nan_are_seen_in_all_that_is_recorded():
    sample, model = _whole(5), _model(5)
    sick = eqx.tree_at(lambda m: m.c, model, model.c.at[0, 0].set(jnp.nan))
    assert all(jnp.isnan(f(sick, sample)) for f in (grokking.loss, grokking.accuracy, grokking.alignment))
    assert jnp.isnan(pairs.accuracy(sick, pairs.pairs(_cyclic(5))))
    sick = eqx.tree_at(lambda m: m.a, model, model.a.at[0, 0].set(jnp.nan))
    assert jnp.isnan(grokking.energies(sick, sample)[0]) and jnp.isnan(grokking.contents(sick, _projectors(5))[0, 0])
