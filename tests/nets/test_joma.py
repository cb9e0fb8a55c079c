"""The block against its equations written out, and the distributions of its data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.nets import joma

TOKENS, NODES, CLASSES, QUERIES = 5, 3, 4, 2


def _block(key, **options):
    options = {"classes": CLASSES, "queries": QUERIES, "init_scale": 1.0} | options
    return joma.JomaBlock(TOKENS, NODES, key=key, **options)


@pytest.mark.parametrize("attention", ("linear", "exp", "softmax"))
@pytest.mark.parametrize(
    ("activation", "phi"),
    (("identity", lambda h: h), ("relu", lambda h: np.maximum(h, 0)), ("quadratic", np.square), (jnp.tanh, np.tanh)),
)
@pytest.mark.parametrize("queries", (1, QUERIES))  # a single query has its own order of the products
def test_output_is_that_of_the_equations(key, attention, activation, phi, queries):
    block = _block(key, attention=attention, activation=activation, queries=queries, temperature=0.7, normaliser=1.3)
    x = np.array([0.1, 0.2, 0.0, 0.3, 0.4])
    u_c, u_q, w, d = (np.asarray(a) for a in (block.u_c, block.u_q, block.w, block.decoder))
    for query in range(queries):
        z = np.asarray(block.z)[query]
        b = {
            "linear": z * x,
            "exp": np.exp(z / 0.7) * x / 1.3,
            "softmax": np.exp(z / 0.7) * x / np.sum(np.exp(z / 0.7) * x),
        }[attention]
        expected = d.T @ phi(w.T @ (u_c @ b + u_q[:, query]))
        np.testing.assert_allclose(block(jnp.asarray(x), query), expected, rtol=1e-12, atol=1e-14)


def test_default_embeddings_are_orthonormal_and_v_and_beta_are_w_in_them(key):
    block = _block(key)
    u = jnp.concatenate([block.u_c, block.u_q], axis=1)
    assert u.shape == (TOKENS + QUERIES, TOKENS + QUERIES)
    np.testing.assert_allclose(u.T @ u, np.eye(TOKENS + QUERIES), atol=1e-14)
    np.testing.assert_allclose(u @ jnp.concatenate([block.v, block.beta]), block.w, atol=1e-14)


@pytest.mark.parametrize("dtype", (jnp.float16, jnp.bfloat16))
def test_narrow_embeddings_are_orthonormal_to_rounding(key, dtype):
    u = _block(key, dtype=dtype).u_c
    assert u.dtype == dtype
    np.testing.assert_allclose(u.T.astype(float) @ u.astype(float), np.eye(u.shape[1]), atol=4 * jnp.finfo(dtype).eps)


def test_given_embeddings_are_those_of_the_tokens_and_then_of_the_queries(key):
    u = jnp.arange(70.0).reshape(10, 7)
    block = _block(key, embeddings=u)
    np.testing.assert_array_equal(block.u_c, u[:, :5])
    np.testing.assert_array_equal(block.u_q, u[:, 5:])
    assert block.w.shape == (10, NODES)


@pytest.mark.parametrize("queries", (1, QUERIES))
def test_identity_embeddings_are_the_unit_matrix_without_its_products(key, queries):
    unit = jnp.eye(TOKENS + queries)
    plain, written = (_block(key, queries=queries, embeddings=embeddings) for embeddings in ("identity", unit))
    assert plain.u_c is None and plain.u_q is None
    for name in ("w", "v", "beta", "z", "decoder"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(written, name))
    data = joma.class_tokens("random", TOKENS, CLASSES, key=key)
    slopes = [jax.grad(joma.cross_entropy)(block, data) for block in (plain, written)]
    for name in ("w", "z"):
        np.testing.assert_allclose(*(getattr(slope, name) for slope in slopes), rtol=1e-12, atol=1e-15)
    assert jax.tree.leaves(plain.trainable()).count(True) == 2


def test_without_classes_the_output_is_the_hidden_layer(key):
    block, x = _block(key, classes=None), jnp.full(TOKENS, 0.2)
    np.testing.assert_array_equal(block(x, 1), block.hidden(x, 1))
    assert block(x).shape == (NODES,)


def test_softmax_attention_survives_large_logits_and_an_empty_context(key):
    x = jnp.full(TOKENS, 0.2)
    block = _block(key)
    large = eqx.tree_at(lambda b: b.z, block, block.z + 1e4)  # exp(1e4) overflows
    np.testing.assert_allclose(large.attend(x), block.attend(x), rtol=1e-11)  # 1e4 eps
    np.testing.assert_array_equal(block.attend(jnp.zeros(TOKENS)), jnp.zeros(TOKENS))
    for of in (block, _block(key, queries=1)):
        slope = jax.grad(lambda b: jnp.sum(b(jnp.zeros(TOKENS))))(of)
        assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("attention", ("linear", "exp", "softmax"))
def test_only_what_is_trainable_has_a_gradient(key, attention):
    for train_decoder in (False, True):
        block = _block(key, attention=attention, train_decoder=train_decoder)
        data = joma.class_tokens("random", TOKENS, CLASSES, key=key)
        slope = jax.grad(joma.cross_entropy)(block, data)
        moved = {name: bool(jnp.any(getattr(slope, name) != 0)) for name in ("w", "z", "decoder", "u_c", "u_q")}
        moved |= {name: bool(getattr(slope, name) != 0) for name in ("temperature", "normaliser")}
        mask = block.trainable()
        assert moved == {name: getattr(mask, name) for name in moved}
        assert moved["w"] and moved["z"] and moved["decoder"] == train_decoder


def test_initial_scale_and_decoder_have_the_variances_stated(key):
    block = joma.JomaBlock(100, 100, classes=100, queries=100, init_scale=0.3, key=key)
    # 10^4 numbers: the standard error of a standard deviation is 0.7 %.
    for numbers, scale in ((block.w, 0.3), (block.z, 0.3), (block.decoder, 0.1)):
        assert float(jnp.std(numbers)) == pytest.approx(scale, rel=0.035)
        assert abs(float(jnp.mean(numbers))) < 0.05 * scale


def test_float32_block_computes_in_float32(key):
    block = _block(key, dtype=jnp.float32, attention="exp", temperature=0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(block)} == {jnp.dtype("float32")}
    data = joma.class_tokens("gaussian", TOKENS, CLASSES, dtype=jnp.float32, key=key)
    assert data.x.dtype == joma.cross_entropy(block, data).dtype == jnp.float32


def test_cross_entropy_is_the_mean_over_samples_in_nats(key):
    block, data = _block(key), joma.class_tokens("random", TOKENS, CLASSES, key=key)
    p = jax.nn.softmax(jnp.stack([block(x, q) for x, q in zip(data.x, data.query, strict=True)]), axis=1)
    expected = -np.mean(np.log(np.asarray(p)[np.arange(CLASSES), np.asarray(data.label)]))
    assert float(joma.cross_entropy(block, data)) == pytest.approx(float(expected), rel=1e-13)


def test_stationary_loss_sends_back_g(key):
    # −∂loss/∂h = g/samples, whatever the weights: for identity activation V̇ = E[b gᵀ].
    block = _block(key, classes=None, attention="exp", queries=1)
    x, g = jax.random.uniform(key, (6, TOKENS)), jax.random.normal(key, (6, NODES))
    slope = jax.grad(joma.stationary_loss)(block, (x, g))
    b = jax.vmap(block.attend)(x)
    np.testing.assert_allclose(block.u_c.T @ -slope.w, b.T @ g / 6, rtol=1e-12)
    np.testing.assert_allclose(block.u_q.T @ -slope.w, jnp.mean(g, axis=0)[None], rtol=1e-12)


def test_unknown_embeddings_are_refused(key):
    with pytest.raises(ValueError, match="embeddings must be one of 'identity', got 'unit'"):
        _block(key, embeddings="unit")


# Data


def test_class_tokens_are_normalised_and_gaussian_tokens_lie_where_the_paper_has_them(key):
    data = joma.class_tokens("gaussian", 20, 20, key=key)
    np.testing.assert_allclose(jnp.sum(data.x, axis=1), 1, rtol=1e-14)
    np.testing.assert_array_equal(data.label, np.arange(20))
    place = np.arange(10)[None] - np.arange(20)[:, None] / 2
    shape = np.exp(-(place**2) / 30)
    np.testing.assert_allclose(data.x[:, 1:10] / data.x[:, :1], shape[:, 1:] / shape[:, :1], rtol=1e-12)
    random = joma.class_tokens("random", 20, 20, key=key)
    # The common tokens of both kinds are the same draws, U(0, ½) up to the normalisation.
    np.testing.assert_allclose(data.x[:, 10:] / data.x[:, 10:11], random.x[:, 10:] / random.x[:, 10:11], rtol=1e-12)


def test_minibatches_are_rows_of_the_data_all_equally_likely(key):
    data = (jnp.arange(5), jnp.arange(5.0) * 10)
    rows, tens = joma.minibatch(data, 10_000)(key)
    np.testing.assert_array_equal(rows * 10, tens)
    # 2000 each, with a standard deviation of 40.
    np.testing.assert_allclose(np.bincount(rows, minlength=5), 2000, atol=200)


def test_class_mixture_draws_the_tokens_of_its_classes(key):
    probability = jnp.array([[0.7, 0.3, 0.0], [0.0, 0.25, 0.75]])
    batch = joma.ClassMixture(probability, length=8, batch=4000)(key)
    np.testing.assert_allclose(jnp.sum(batch.x, axis=1), 1, rtol=1e-14)
    np.testing.assert_array_equal(batch.x * 8, jnp.round(batch.x * 8))
    for label in (0, 1):
        mine = np.asarray(batch.x)[np.asarray(batch.label) == label]
        assert abs(len(mine) - 2000) < 5 * np.sqrt(1000)
        # The standard error of a mean frequency is at most 0.5/√(8·2000).
        np.testing.assert_allclose(mine.mean(axis=0), probability[label], atol=5 * 0.5 / np.sqrt(8 * len(mine)))
    assert jnp.all(batch.x[:, 0][batch.label == 1] == 0)


def test_gaussian_clusters_have_their_centres_and_width(key):
    centres = jnp.array([[1.0, -2.0], [0.0, 5.0], [3.0, 3.0]])
    x, cluster = joma.gaussian_clusters(centres, 0.5, 2000, key=key)
    np.testing.assert_array_equal(cluster, np.repeat(np.arange(3), 2000))
    for c in range(3):
        mine = np.asarray(x)[np.asarray(cluster) == c]
        np.testing.assert_allclose(mine.mean(axis=0), centres[c], atol=5 * 0.5 / np.sqrt(2000))
        np.testing.assert_allclose(np.cov(mine.T), 0.25 * np.eye(2), atol=5 * 0.25 * np.sqrt(2 / 2000))


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"attention": "sparse"}, "attention must be one of 'linear', 'exp', 'softmax', got 'sparse'"),
        ({"activation": "swish"}, "activation must be one of .*, got 'swish'"),
        ({"tokens": 0}, "tokens must be an integer of at least 1, got 0"),
        ({"nodes": -1}, "nodes must be an integer of at least 1, got -1"),
        ({"queries": 0}, "queries must be an integer of at least 1, got 0"),
        ({"classes": 0}, "classes must be an integer of at least 1, got 0"),
        ({"embeddings": jnp.ones((9, 4))}, r"embeddings must have shape \(embed, 6\), got \(9, 4\)"),
        ({"embeddings": jnp.ones(6)}, r"embeddings must have shape \(embed, tokens_and_queries\), got \(6,\)"),
        ({"activation": jnp.sum}, r"activation must keep the shape \(3,\)"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"train_decoder": True}, "train_decoder would be ignored"),
        ({"dtype": int}, "dtype must be a floating-point dtype"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_arguments_of_a_block_are_refused(key, options, message):
    with pytest.raises(ValueError, match=message):
        joma.JomaBlock(**({"tokens": 5, "nodes": 3} | options), key=key)


def test_unknown_kind_of_class_tokens_is_refused(key, as_users):
    with pytest.raises(ValueError, match="kind must be one of 'gaussian', 'random', got 'uniform'"):
        joma.class_tokens("uniform", key=key)


# Tokens that are absent, and data out of range


@pytest.mark.parametrize("queries", (1, 2))
@pytest.mark.parametrize(
    ("z", "temperature", "dtype"),
    (
        ((0.0, 0.0, 120.0), 1.0, jnp.float32),
        ((0.0, 0.0, 1.04), 0.01, jnp.float32),
        ((0.0, 0.0, 800.0), 1.0, jnp.float64),
    ),
)
def test_softmax_is_over_the_tokens_present_whatever_the_logits_of_others(key, z, temperature, dtype, queries):
    options = {"temperature": temperature, "classes": 2, "queries": queries, "dtype": dtype}
    block = joma.JomaBlock(3, 2, **options, key=key)
    block = eqx.tree_at(lambda b: b.z, block, jnp.tile(jnp.asarray(z, dtype), (queries, 1)))
    x = jnp.array([0.5, 0.5, 0.0], dtype)
    np.testing.assert_array_equal(block.attend(x), [0.5, 0.5, 0.0])
    hidden = jnp.asarray([0.5, 0.5, 0.0], dtype) @ block.v + block.beta[0]
    np.testing.assert_allclose(block.hidden(x), hidden, rtol=1e-6)
    # It goes on learning: ∂b₀/∂z₀ = b₀ (1 − b₀)/T.
    slope = jax.jacobian(lambda m: m.attend(x))(block).z[:, 0]
    np.testing.assert_allclose(slope[0, 0], 0.25 / temperature, rtol=1e-6)


@pytest.mark.parametrize("queries", (1, 2))
@pytest.mark.parametrize("attention", ("linear", "exp", "softmax"))
def test_context_without_tokens_has_no_attention_and_a_finite_loss_and_gradient(key, attention, queries):
    block = joma.JomaBlock(3, 2, classes=2, attention=attention, queries=queries, key=key)
    np.testing.assert_array_equal(block.attend(jnp.zeros(3)), 0)
    batch = joma.Contexts(jnp.array([[0.2, 0.8, 0.0], [0, 0, 0]]), jnp.array([0, 1]), jnp.zeros(2, int))
    value, slope = eqx.filter_value_and_grad(joma.cross_entropy)(block, batch)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((value, slope)))


def test_labels_out_of_range_are_nan_inside_jit(key):
    block = joma.JomaBlock(3, 2, classes=2, key=key)
    loss = jax.jit(
        lambda label: joma.cross_entropy(block, joma.Contexts(jnp.ones((1, 3)) / 3, label, jnp.zeros(1, int)))
    )
    assert jnp.isfinite(loss(jnp.array([1])))
    for label in (-1, 2, 9):
        assert jnp.isnan(loss(jnp.array([label])))


def _contexts(**changes):
    return joma.Contexts(jnp.ones((2, 4)) / 4, jnp.array([0, 1]), jnp.array([0, 1]))._replace(**changes)


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda b: joma.cross_entropy(b, _contexts(label=jnp.array([0, -1]))), "label must lie from 0 to 2, got -1"),
        (lambda b: joma.cross_entropy(b, _contexts(query=jnp.array([0, 5]))), "query must lie from 0 to 1, got 5"),
        (lambda b: b(jnp.ones(4) / 4, 5), "query must lie from 0 to 1, got 5"),
        (lambda b: b.attend(jnp.ones(1)), r"x must have shape \(4,\), got \(1,\)"),
        (lambda b: b.attend(-jnp.ones(4)), "x must be frequencies"),
        (lambda b: joma.stationary_loss(b, (jnp.ones((2, 4)), jnp.ones((2, 1)))), r"g must have shape \(2, 3\)"),
        (lambda b: joma.minibatch((jnp.arange(8.0), jnp.arange(2.0)), 6), "data must be arrays of one common length"),
        (
            lambda b: joma.cross_entropy(lambda x, query: jnp.sum(x), _contexts()),
            r"model must return logits of shape \(classes,\), got float64\[\]",
        ),
        (lambda b: joma.cross_entropy(b, jax.tree.map(lambda x: x[:0], _contexts())), "batch must hold at least one"),
        (lambda b: joma.stationary_loss(b, (jnp.ones((0, 4)), jnp.ones((0, 3)))), "x must hold at least one sample"),
        (lambda b: joma.ClassMixture(jnp.ones((0, 3))), "probability must hold at least one class"),
        (lambda b: joma.minibatch(_contexts(), 2)(None), "key must be one key"),
        (lambda b: joma.minibatch({}, 6), "data must be arrays of one common length"),
        (lambda b: joma.ClassMixture(jnp.zeros((2, 3))), "probability must leave each class a token"),
        (lambda b: joma.ClassMixture(jnp.array([[1.5, -0.5]])), "probability must be at least 0, got -0.5"),
        (lambda b: joma.ClassMixture(jnp.array([[jnp.nan, 0.5]])), "probability must be at least 0, got nan"),
        (lambda b: joma.class_tokens("random", 0, key=jax.random.key(0)), "tokens must be an integer of at least 1"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_data_out_of_range_are_refused(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(joma.JomaBlock(4, 3, classes=3, queries=2, key=key))
