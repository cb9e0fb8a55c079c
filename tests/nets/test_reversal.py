"""Which sentences are trained and which are left for the test, and the two small models of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn.nets import reversal as nets
from traindyn.nets import train
from traindyn.nets.scan_snap import YZTransformer, cross_entropy


def _rows(sentences):
    return {tuple(row) for row in np.asarray(sentences).tolist()}


def test_reversal_withholds_one_direction_of_some_pairs():
    data = nets.reversal(5, 2)
    # A is 2 to 6, B is 7 to 11; 0 is → and 1 is ←.
    assert _rows(data.train) == {(2, 0, 7), (3, 0, 8), (7, 1, 2), (8, 1, 3), (4, 0, 9), (10, 1, 5), (6, 0, 11)}
    assert data.test.tolist() == [[9, 1, 4], [5, 0, 10], [11, 1, 6]]
    assert data.vocabulary == 12
    np.testing.assert_array_equal(data.train[-3:, ::-2], data.test[:, ::2])  # row by row


def test_chain_of_thought_withholds_the_conclusion_of_some_triples():
    data = nets.chain_of_thought(3, 1, vocabulary=20)
    first, second = {(2, 0, 5), (3, 0, 6), (4, 0, 7)}, {(5, 0, 8), (6, 0, 9), (7, 0, 10)}
    assert _rows(data.train) == first | second | {(2, 1, 8)}
    assert data.test.tolist() == [[3, 1, 9], [4, 1, 10]]
    assert data.vocabulary == 20


@pytest.mark.parametrize(
    ("data", "sizes"), ((nets.reversal(200, 140), (340, 60)), (nets.chain_of_thought(200, 140), (540, 60)))
)
def test_the_paper_s_numbers_and_nothing_twice(data, sizes):
    assert (len(data.train), len(data.test)) == sizes
    assert len(_rows(data.train) | _rows(data.test)) == sum(sizes)
    assert int(jnp.max(data.train)) < data.vocabulary


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: nets.reversal(5, 5), "both must be at least 0 and below pairs=5"),
        (lambda: nets.reversal(0, 0), "pairs must be an integer of at least 1, got 0"),
        (lambda: nets.reversal(5, -1), "got -1"),
        (lambda: nets.reversal(5, 2, vocabulary=11), "vocabulary must be at least 12 .* got 11"),
        (lambda: nets.chain_of_thought(5, 7), "direct must be at least 0 and below triples=5"),
        (lambda: nets.chain_of_thought(5, 2, vocabulary=16), "vocabulary must be at least 17"),
        (
            lambda: nets.recall(lambda tokens: jnp.zeros((1, 8)), jnp.array([[2, 0, 4]])),
            r"model must return logits of shape \(2, vocabulary\), got float64\[1, 8\]",
        ),
        (
            lambda: nets.pair_loss(nets.Bilinear(jnp.ones((5, 3))), jnp.zeros((0, 2), int)),
            "pairs must hold at least one sample",
        ),
        (lambda: nets.Bilinear(jnp.ones(3)), r"vectors must have shape \(tokens, width\), got \(3,\)"),
        (lambda: nets.Bilinear(jnp.ones((5, 3)), jnp.ones((3, 2))), r"theta must have shape \(3, 3\)"),
    ),
)
def test_bad_input_is_named(as_users, make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_layer_transformer_learns_a_sentence_and_leaves_z_and_the_reversal_alone():
    data = nets.reversal(3, 2)
    batch = nets.contexts(data.train, data.vocabulary)
    assert batch.x.shape == (5, 8) and batch.x.dtype == jnp.float64
    np.testing.assert_array_equal(jnp.argmax(batch.x, axis=1), data.train[:, 0])
    np.testing.assert_array_equal(batch.query, data.train[:, 1])
    np.testing.assert_array_equal(batch.label, data.train[:, 2])
    model = train(YZTransformer(8, 2, 8), cross_entropy, batch, optax.sgd(1.0), 200).model
    test = nets.contexts(data.test, data.vocabulary)
    p = lambda batch: jax.nn.softmax(jax.vmap(model)(batch.x, batch.query))[jnp.arange(len(batch.x)), batch.label]
    assert jnp.all(p(batch) > 0.9)
    np.testing.assert_array_equal(p(test), 1 / 8)
    np.testing.assert_array_equal(model.z, 0)


def test_contexts_in_float32():
    assert nets.contexts(jnp.array([[2, 0, 3]]), 5, dtype=jnp.float32).x.dtype == jnp.float32


def test_recall_reads_the_last_entity_and_what_the_first_alone_stores():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)))
    model = lambda tokens: jnp.cumsum(table[tokens], axis=0)  # causal: a sum over the tokens so far
    sentences = jnp.array([[2, 0, 4], [5, 1, 3]])
    seen = nets.recall(model, sentences)
    for i, (a, r, b) in enumerate(sentences.tolist()):
        assert float(seen.loss[i]) == pytest.approx(-float(jax.nn.log_softmax(table[a] + table[r])[b]), rel=1e-12)
        np.testing.assert_array_equal(seen.weights[i], table[a])


@pytest.mark.parametrize("symmetric", (False, True))
def test_bilinear_network_is_its_formula_and_keeps_its_vectors(symmetric):
    rng = np.random.default_rng(0)
    vectors, theta = rng.normal(size=(5, 3)), rng.normal(size=(3, 3))
    model = nets.Bilinear(jnp.asarray(vectors), jnp.asarray(theta), symmetric=symmetric)
    used = (theta + theta.T) / 2 if symmetric else theta
    logits = vectors @ used @ vectors.T
    np.testing.assert_allclose(jax.vmap(model)(jnp.arange(5)), logits, rtol=1e-12)
    pairs = jnp.array([[0, 1], [4, 2]])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert float(nets.pair_loss(model, pairs)) == pytest.approx(-(log_p[0, 1] + log_p[4, 2]) / 2, rel=1e-12)
    run = train(model, nets.pair_loss, pairs, optax.sgd(0.1), 3)
    np.testing.assert_array_equal(run.model.vectors, vectors)
    moved = run.model.theta - theta
    assert jnp.max(jnp.abs(moved)) > 0.01
    if symmetric:
        np.testing.assert_allclose(moved, moved.T, atol=1e-15)


def test_bilinear_network_starts_from_zero_in_the_dtype_of_its_vectors():
    model = nets.Bilinear(jnp.ones((5, 3), jnp.float32))
    assert model.theta.dtype == model(jnp.asarray(2)).dtype == jnp.float32
    np.testing.assert_array_equal(model.theta, 0)
