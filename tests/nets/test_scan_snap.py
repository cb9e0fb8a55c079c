"""The one-layer transformer against its equations written out, and its sequence classes against their distributions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn.nets import scan_snap as nets
from traindyn.nets import train


def _model(key, **options):
    return nets.YZTransformer(6, 2, 4, init_scale=1.0, key=key, **options)


@pytest.mark.parametrize("normalise", (True, False))
def test_output_is_that_of_the_equations(key, normalise):
    model, x = _model(key, normalise=normalise), np.array([3.0, 0.0, 1.0, 2.0, 0.0, 1.0])
    y, z = np.asarray(model.y), np.asarray(model.z)
    for query in range(2):
        c = x * np.exp(z[query]) / np.sum(x * np.exp(z[query]))
        f = c / np.linalg.norm(c) if normalise else c
        np.testing.assert_allclose(model.attend(jnp.asarray(x), query), c, rtol=1e-13)
        np.testing.assert_allclose(model(jnp.asarray(x), query), y.T @ f, rtol=1e-12)
        # Counts and frequencies say the same.
        np.testing.assert_allclose(model(jnp.asarray(x / 7), query), y.T @ f, rtol=1e-12)


def test_logits_of_absent_tokens_neither_matter_nor_overflow(key):
    model = eqx.tree_at(lambda m: m.z, _model(key), jnp.zeros((2, 6)).at[0, 1].set(1e4))
    x = jnp.array([0.5, 0.0, 0.5, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(model.attend(x), [0.5, 0, 0.5, 0, 0, 0])
    slope = jax.grad(lambda m: m(x).sum())(model)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(slope)) and slope.z[0, 1] == 0
    assert jnp.all(model.attend(jnp.zeros(6)) == 0)  # an empty context


def test_original_parameters_and_yz_are_the_same_network(key):
    rng = np.random.default_rng(0)
    classes = nets.distinct_and_common(3, distinct=[0.5, 1.0], common=[1.0, 1.0])
    vocabulary = classes.probability.shape[1]
    normal = lambda: jnp.asarray(rng.standard_normal((vocabulary, vocabulary)))
    u = jnp.asarray(np.linalg.qr(rng.standard_normal((vocabulary, vocabulary)))[0])
    full = nets.OneLayerTransformer(u, normal(), normal(), normal())
    y, z = full.yz()
    sequences, following = classes.sequences(5, 9)(key)
    small = eqx.tree_at(lambda m: (m.y, m.z), classes.network(), (y[classes.keys], z[classes.queries][:, classes.keys]))
    for sequence, label in zip(sequences, following, strict=True):
        counts = jnp.asarray(np.bincount(sequence[:-1], minlength=vocabulary)[np.asarray(classes.keys)], float)
        n = int(np.flatnonzero(np.asarray(classes.next_token) == int(label))[0])
        np.testing.assert_allclose(full(sequence), small(counts, classes.query_number[n]), rtol=1e-10)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        full(sequences[0, :1])


def test_original_network_learns_sampled_sequences(key):
    classes = nets.distinct_and_common(2, distinct=[0.5, 1.0], common=[1.0])
    model = nets.OneLayerTransformer.orthonormal(8, key=key, dtype=jnp.float32)
    np.testing.assert_allclose(model.u.T @ model.u, np.eye(8), atol=1e-6)
    sampler = classes.sequences(32, 9)
    test = sampler(jax.random.key(1))
    run = train(
        model, nets.sequence_loss, sampler, optax.sgd(0.5), 200, key=key, observe=lambda m: nets.sequence_loss(m, test)
    )
    assert run.observed.dtype == jnp.float32 and run.observed[-1] < 0.3 * run.observed[0]
    with pytest.raises(ValueError, match="vocabulary must be an integer of at least 2"):
        nets.OneLayerTransformer.orthonormal(1, key=key)


def test_float32_stays_float32(key):
    classes = nets.distinct_and_common(2, dtype=jnp.float32)
    batch = classes.contexts(4, 5)(key)
    loss, slope = jax.value_and_grad(nets.cross_entropy)(classes.network(), batch)
    assert {x.dtype for x in (loss, batch.x, *jax.tree.leaves(slope))} == {jnp.dtype("float32")}


def test_generator_has_the_paper_s_layout():
    classes = nets.distinct_and_common(4, 2)
    assert classes.probability.shape == (4, 10 + 40 + 2 + 4)
    np.testing.assert_array_equal(classes.query, [50, 50, 51, 51])
    np.testing.assert_array_equal(classes.next_token, [52, 53, 54, 55])
    np.testing.assert_array_equal(classes.query_number, [0, 0, 1, 1])
    np.testing.assert_allclose(classes.probability[:, :10], 1 / 15.5)
    np.testing.assert_allclose(classes.probability[2, 30:40], np.linspace(0.1, 1, 10) / 15.5)
    assert classes.table.shape == (4, 50) and classes.network().y.shape == (50, 56)


def test_samples_follow_the_distributions(key):
    classes = nets.distinct_and_common(3, 3, distinct=[0.3, 1.0], common=[0.7])
    batch = jax.jit(lambda key: classes.contexts(4000, 26)(key))(key)
    assert batch.x.shape == (4000, 7)
    np.testing.assert_allclose(batch.x.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(batch.x * 25, np.round(batch.x * 25), atol=1e-9)
    np.testing.assert_array_equal(batch.query, batch.label)
    for n in range(3):
        rows = np.asarray(batch.x)[np.asarray(batch.label) == n]
        assert abs(len(rows) - 4000 / 3) < 5 * np.sqrt(4000 * 2 / 9)
        p = np.asarray(classes.table)[n]
        # Five standard errors of a frequency over 25 tokens and as many sequences.
        assert np.all(np.abs(rows.mean(axis=0) - p) <= 5 * np.sqrt(p * (1 - p) / 25 / len(rows)))
        assert np.all(rows[:, p == 0] == 0)


def test_sequences_are_the_same_draws_as_contexts(key):
    classes = nets.distinct_and_common(4, 2, distinct=[0.3, 1.0], common=[0.7])
    contexts, (sequences, following) = classes.contexts(50, 12)(key), classes.sequences(50, 12)(key)
    np.testing.assert_array_equal(following, classes.next_token[contexts.label])
    np.testing.assert_array_equal(sequences[:, -1], classes.query[contexts.label])
    counts = np.stack([np.bincount(s, minlength=15) for s in np.asarray(sequences[:, :-1])])
    np.testing.assert_allclose(counts[:, np.asarray(classes.keys)] / 11, contexts.x, atol=1e-12)


def test_expected_contexts_are_the_limit_of_long_ones(key):
    classes = nets.distinct_and_common(2, distinct=[0.3, 1.0], common=[0.7])
    expected = classes.expected()
    np.testing.assert_array_equal(expected.x, classes.table)
    long = classes.contexts(2, 200_001)(key)
    np.testing.assert_allclose(long.x, expected.x[long.label], atol=0.006)


def test_rates_of_y_and_z_and_momentum(key):
    model = _model(key)
    ones = jax.tree.map(jnp.ones_like, model)
    for options, y, z in (
        ({"eta_y": 2.0, "eta_z": 3.0}, -0.2, -0.3),
        ({"eta_z": 0.0, "momentum": 0.9}, -0.1, 0.0),
    ):
        optimiser = nets.sgd(0.1, **options)
        updates, state = optimiser.update(ones, optimiser.init(model), model)
        np.testing.assert_allclose(updates.y, y)
        np.testing.assert_allclose(updates.z, z)
    second, _ = optimiser.update(ones, state, model)
    np.testing.assert_allclose(second.y, -0.19)
    assert (model.rates(eta_y=2.0, eta_z=3.0).y, model.rates(eta_z=3.0).z) == (2.0, 3.0)


def test_preconditioned_descent_moves_each_class_alone(key):
    classes = nets.distinct_and_common(3, distinct=[0.4, 1.0], common=[2.0])
    model = classes.network(init_scale=0.5, key=key)
    optimiser = optax.chain(nets.precondition(classes.expected()), nets.sgd(1.0))
    expected = classes.expected()
    slope = jax.grad(nets.cross_entropy)(model, expected)
    updates, _ = optimiser.update(slope, optimiser.init(model), model)
    f = jax.vmap(model.features)(expected.x, expected.query)
    alpha = jax.nn.softmax(f @ model.y, axis=1)
    np.testing.assert_allclose(f @ updates.y, (jnp.eye(*alpha.shape) - alpha) / 3, atol=1e-12)
    np.testing.assert_allclose(updates.z, -slope.z, atol=1e-14)


HALF = np.full((2, 6), 0.25) * np.array([0, 0, 1, 1, 1, 1])
BAD = {
    "sum to one, got 0.9": (HALF * 0.9, [0, 1], None),
    "negative or NaN, got -0.25 for class 0, token 2": (HALF * np.array([1, 1, -1, 1, 1, 1]), [0, 1], None),
    "leave each class a token, got zeros alone for class 1": (HALF * np.array([[1], [0]]), [0, 1], None),
    "query must lie from 0 to 5, got 6": (HALF, [0, 6], None),
    "next_token must lie from 0 to 5, got -1": (HALF, [0, 1], [0, -1]),
    r"more next tokens \(7 classes\) than tokens \(6\)": (np.full((7, 6), 1 / 6), np.zeros(7, int), None),
    "own keys: token 2 is the query of class 1": (HALF, [0, 2], None),
    "query must have shape": (HALF, [0], None),
    "differ from class to class": (HALF, [0, 1], [3, 3]),
    "none of them zero": (np.zeros((0, 6)), np.zeros(0, int), None),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_classes_are_refused(message, as_users):
    table, query, following = BAD[message]
    with pytest.raises(ValueError, match=message):
        nets.SequenceClasses(table, np.asarray(query), None if following is None else np.asarray(following))


def test_other_bad_arguments_are_refused(as_users):
    classes = nets.SequenceClasses(HALF, np.array([0, 1]))
    for call, message in (
        (lambda: classes.contexts(4, 1), "length must be an integer of at least 2"),
        (lambda: classes.sequences(4, 1), "length must be an integer of at least 2"),
        (lambda: classes.contexts(0, 5), "batch must be an integer of at least 1"),
        (lambda: classes.network(outputs=1), "outputs must be an integer of at least 2, got 1"),
        (lambda: nets.YZTransformer(0, 1, 2), "tokens must be an integer of at least 1"),
        (lambda: nets.YZTransformer(2, 1, 2, init_scale=0.1), "key must be given"),
        (lambda: nets.distinct_and_common(3, 2), "multiple of queries"),
        (lambda: nets.distinct_and_common(2, distinct=[1.0, 0.0]), r"distinct must be above 0, got 0.0 at \[1\]"),
        (lambda: nets.distinct_and_common(2, distinct=[], common=[]), "must not both be empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("normalise", (True, False))
def test_context_without_tokens_has_no_attention_and_a_finite_loss_and_gradient(key, normalise):
    model = _model(key, normalise=normalise)
    np.testing.assert_array_equal(model(jnp.zeros(6)), 0)
    x = jnp.stack([jnp.eye(6)[0], jnp.zeros(6)])
    batch = nets.Contexts(x, jnp.array([0, 1]), jnp.array([0, 1]))
    value, slope = jax.value_and_grad(nets.cross_entropy)(model, batch)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((value, slope)))


def _precondition(x, query):
    x = jnp.asarray(x, float)
    return nets.precondition(nets.Contexts(x, jnp.arange(len(x)), jnp.asarray(query)))


@pytest.mark.parametrize("dtype", (jnp.float16, jnp.bfloat16))
def test_narrow_embeddings_are_orthonormal_to_rounding(key, dtype):
    u = nets.OneLayerTransformer.orthonormal(6, dtype=dtype, key=key).u
    assert u.dtype == dtype
    np.testing.assert_allclose(u.T.astype(float) @ u.astype(float), np.eye(6), atol=4 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda m, s: m(jnp.ones(6), 7), "query must lie from 0 to 1, got 7"),
        (lambda m, s: m(-jnp.ones(6)), "x must be frequencies, none negative or NaN"),
        (lambda m, s: s(jnp.array([1, 9, 2])), "sequence must lie from 0 to 3, got 9"),
        (lambda m, s: s(jnp.array([1, -1, 2])), "sequence must lie from 0 to 3, got -1"),
        (lambda m, s: s(jnp.array([1.0, 2.0])), "sequence must be integers"),
        (lambda m, s: nets.sequence_loss(s, (jnp.array([[1, 2]]), jnp.array([9]))), "next tokens must lie from 0 to 3"),
        (lambda m, s: nets.SequenceClasses(HALF, [0.0, 1.0]), "query must be integers"),
        (lambda m, s: jax.jit(lambda p: nets.SequenceClasses(p, [0, 1]).table)(HALF), "must be known"),
        (lambda m, s: nets.YZTransformer(2, 1, 2, init_scale=jnp.float32(0.1)), "key must be given"),
        (
            lambda m, s: nets.sequence_loss(s, (jnp.zeros((0, 3), int), jnp.zeros(0, int))),
            "sequences must hold at least one sample",
        ),
        (lambda m, s: nets.sgd(0.1).init({"w": jnp.ones(3)}), "params must have the fields y, z"),
        (lambda m, s: _precondition([[1, 0]], [0]).init({"w": jnp.ones(3)}), "params must be a YZTransformer"),
        (lambda m, s: _precondition([[1, 0]], [0]).update(m, optax.EmptyState()), "params must be given"),
        (
            lambda m, s: _precondition([[1, 0], [0, 1], [0.5, 0.5]], [0, 0, 0]),
            "contexts.x of query 0 must be linearly independent, got 3 rows of rank 2",
        ),
        (lambda m, s: _precondition([[1, 0], [2, 0]], [0, 0]), "got 2 rows of rank 1"),
        (
            lambda m, s: _precondition([[1, 1], [1, 1]], [0, 1]).init(nets.YZTransformer(2, 2, 2)),
            "features must be linearly independent, got 2 rows of rank 1",
        ),
        (lambda m, s: nets.sgd(0.1, momentum=2.0), "momentum must be at least 0 and below 1, got 2.0"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_what_is_out_of_range_is_refused(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(_model(key), nets.OneLayerTransformer.orthonormal(4, key=key))


def test_next_token_out_of_range_is_nan_inside_jit(key):
    model = nets.OneLayerTransformer.orthonormal(4, key=key)
    loss = jax.jit(lambda following: nets.sequence_loss(model, (jnp.array([[1, 2]]), following)))
    assert jnp.isfinite(loss(jnp.array([3]))) and jnp.isnan(loss(jnp.array([-1]))) and jnp.isnan(loss(jnp.array([4])))
