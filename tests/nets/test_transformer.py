"""The transformer against its equations written out position by position, its loss, and its windows of text."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn.nets import train
from traindyn.nets.transformer import Sequences, Transformer, Windows, next_token_loss, sinusoids

# Compiled once for each kind of model, rather than operation by operation.
_forward = eqx.filter_jit(lambda model, tokens, key=None: model.with_attention(tokens, key=key))
_loss = eqx.filter_jit(next_token_loss)

VOCABULARY, LENGTH, WIDTH, HIDDEN = 7, 5, 6, 9
TOKENS = jnp.array([3, 0, 6, 6, 2])


def _model(key, **options):
    """A small model away from its initial values, where biases and the gains of the norms are all alike."""
    options = {"layers": 2, "width": WIDTH, "heads": 2, "hidden": HIDDEN, "length": LENGTH, "key": key} | options
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape)), Transformer(VOCABULARY, **options))


def _layer_norm(x, norm):
    scaled = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return np.asarray(norm.weight) * scaled + np.asarray(norm.bias)


def _linear(x, layer):
    return np.asarray(layer.weight) @ x + (0 if layer.bias is None else np.asarray(layer.bias))


def _by_hand(model, tokens, *, heads, post, drop=lambda x: x):
    """Logits and attention, one position at a time. `drop` sees the arrays in the order of the forward pass."""
    rows = range(len(tokens))
    each = lambda f, x: np.stack([f(row) for row in x])
    x = np.asarray(model.embedding.weight)[np.asarray(tokens)] * (np.sqrt(WIDTH) if post else 1.0)
    if model.sinusoidal:
        x = x + [[(np.sin, np.cos)[j % 2](i / 10_000 ** (j // 2 * 2 / WIDTH)) for j in range(WIDTH)] for i in rows]
    if model.positions is not None:
        x = x + np.asarray(model.positions.weight)[: len(tokens)]
    x, attention, size = drop(x), [], WIDTH // heads
    for block in model.blocks:
        norm = lambda y, block=block: _layer_norm(y, block.attention_norm)
        last = lambda y, block=block: _layer_norm(y, block.hidden_norm)
        y = each(lambda row, block=block: _linear(row, block.project_in), x if post else each(norm, x))
        weights = np.zeros((heads, len(tokens), len(tokens)))
        for h in range(heads):
            q, k = (y[:, WIDTH * part + size * h :][:, :size] for part in (0, 1))
            for i in rows:
                scores = np.array([np.exp(q[i] @ k[j] / np.sqrt(size)) for j in range(i + 1)])
                weights[h, i, : i + 1] = scores / scores.sum()
        dropped = drop(weights)
        mixed = np.concatenate([dropped[h] @ y[:, 2 * WIDTH + size * h :][:, :size] for h in range(heads)], axis=1)
        x = x + drop(each(lambda row, block=block: _linear(row, block.project_out), mixed))
        x = each(norm, x) if post else x
        y = np.maximum(each(lambda row, block=block: _linear(row, block.hidden_in), x if post else each(last, x)), 0)
        x = x + drop(each(lambda row, block=block: _linear(row, block.hidden_out), drop(y) if post else y))
        x = each(last, x) if post else x
        attention.append(weights)
    if not post:
        x = each(lambda row: _layer_norm(row, model.last_norm), x)
    tied = np.asarray(model.embedding.weight)
    return each(lambda row: tied @ row if model.decoder is None else _linear(row, model.decoder), x), np.stack(
        attention
    )


@pytest.mark.parametrize(("positions", "tied"), (("sinusoidal", False), ("learned", True), (None, False)))
@pytest.mark.parametrize("norm", ("post", "pre"))
def test_output_and_attention_are_those_of_the_equations(key, norm, positions, tied):
    model = _model(key, norm=norm, positions=positions, tied=tied)
    expected = _by_hand(model, TOKENS, heads=2, post=norm == "post")
    for ours, by_hand in zip(_forward(model, TOKENS), expected, strict=True):
        np.testing.assert_allclose(ours, by_hand, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(eqx.filter_jit(model)(TOKENS), _forward(model, TOKENS)[0])


@pytest.mark.parametrize("norm", ("post", "pre"))
def test_a_token_changes_nothing_before_it_and_a_prefix_gives_the_same(key, norm):
    model = _model(key, norm=norm)
    logits, attention = _forward(model, TOKENS)
    assert attention.shape == (2, 2, LENGTH, LENGTH)
    np.testing.assert_array_equal(np.triu(attention, 1), 0)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-14)
    other = _forward(model, TOKENS.at[3].set(1))[0]
    np.testing.assert_array_equal(other[:3], logits[:3])
    assert jnp.all(jnp.any(other[3:] != logits[3:], axis=1))
    np.testing.assert_allclose(_forward(model, TOKENS[:2])[0], logits[:2], rtol=1e-12, atol=1e-14)


def test_sinusoids_are_those_of_the_original_transformer_also_for_odd_widths():
    rows = sinusoids(50, 6)
    np.testing.assert_array_equal(rows[0], [0, 1, 0, 1, 0, 1])
    angle = 37 / 10_000 ** (4 / 6)
    np.testing.assert_allclose(rows[37, 4:], [np.sin(angle), np.cos(angle)], rtol=1e-14)
    assert sinusoids(4, 5).shape == (4, 5)
    np.testing.assert_array_equal(sinusoids(4, 1)[:, 0], np.sin(np.arange(4)))


# Initial values


def test_initial_values_post_are_uniform_in_the_ranges_stated(key):
    model = Transformer(60, layers=2, width=50, hidden=80, length=40, positions="learned", key=key)
    block = model.blocks[1]
    ranges = (
        (model.embedding.weight, 0.1),
        (model.positions.weight, 0.1),
        (model.decoder.weight, 0.1),
        (block.project_in.weight, np.sqrt(6 / 200)),
        (block.project_out.weight, 1 / np.sqrt(50)),
        (block.hidden_in.weight, 1 / np.sqrt(50)),
        (block.hidden_out.weight, 1 / np.sqrt(80)),
    )
    for numbers, half_width in ranges:
        # At least 2000 numbers: the largest of them falls short by 1/1000 of the range, the mean square by 2 %.
        assert 0.99 * half_width < jnp.max(jnp.abs(numbers)) <= half_width
        assert float(jnp.mean(numbers**2)) == pytest.approx(half_width**2 / 3, rel=0.1)
        assert abs(float(jnp.mean(numbers))) < 0.06 * half_width
    for numbers, half_width in ((block.hidden_in.bias, 1 / np.sqrt(50)), (block.hidden_out.bias, 1 / np.sqrt(80))):
        assert 0.8 * half_width < jnp.max(jnp.abs(numbers)) <= half_width
    for bias in (model.decoder.bias, block.project_in.bias, block.project_out.bias):
        np.testing.assert_array_equal(bias, 0)
    assert model.last_norm is None


def test_initial_values_pre_are_normal_and_smaller_for_what_writes_to_the_residual_stream(key):
    model = Transformer(60, layers=2, width=50, length=40, norm="pre", positions="learned", key=key)
    block = model.blocks[1]
    for numbers, scale in (
        (model.embedding.weight, 0.02),
        (model.positions.weight, 0.02),
        (model.decoder.weight, 0.02),
        (block.project_in.weight, 0.02),
        (block.project_out.weight, 0.01),
        (block.hidden_in.weight, 0.02),
        (block.hidden_out.weight, 0.01),
    ):
        assert float(jnp.std(numbers)) == pytest.approx(scale, rel=0.08)  # 2000 numbers: 1.6 %
        assert float(jnp.max(jnp.abs(numbers))) > 2.5 * scale  # as no uniform distribution of this width has it
    assert block.hidden_in.weight.shape == (200, 50)
    assert model.decoder.bias is None
    for layer in (block.project_in, block.project_out, block.hidden_in, block.hidden_out):
        np.testing.assert_array_equal(layer.bias, 0)


@pytest.mark.parametrize(("positions", "tied"), (("sinusoidal", True), ("learned", False)))
@pytest.mark.parametrize("norm", ("post", "pre"))
def test_no_two_weights_are_the_same_draw(key, norm, positions, tied):
    model = Transformer(7, layers=2, width=6, length=5, norm=norm, positions=positions, tied=tied, key=key)
    # Ratios of neighbours, for two weights of one draw may differ in scale.
    numbers = np.concatenate([np.ravel(x) for x in jax.tree.leaves(model) if x.ndim == 2])
    ratios = np.concatenate([np.ravel(x)[1:] / np.ravel(x)[:-1] for x in jax.tree.leaves(model) if x.ndim == 2])
    assert len(np.unique(numbers)) == len(numbers)
    assert len(np.unique(np.round(ratios, 9))) == len(ratios)


def test_models_of_many_keys_come_from_one_vmap(key):
    keys = jax.random.split(key, 3)
    make = lambda key: Transformer(7, width=6, length=5, dropout=0.3, key=key)
    models = jax.jit(jax.vmap(make))(keys)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(models))  # no number among them that is not trained
    losses = jax.jit(jax.vmap(next_token_loss, (0, None)))(models, TOKENS[None])
    np.testing.assert_allclose(losses, [_loss(make(k), TOKENS[None]) for k in keys], rtol=1e-12)


@pytest.mark.parametrize("norm", ("post", "pre"))
def test_float32_model_computes_in_float32(key, norm):
    model = Transformer(7, width=6, length=5, norm=norm, positions="learned", dropout=0.2, dtype=jnp.float32, key=key)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    batch = Sequences(TOKENS[None], key[None])
    loss, slope = eqx.filter_jit(eqx.filter_value_and_grad(next_token_loss))(model, batch)
    assert loss.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(slope)} == {jnp.dtype("float32")}


# Dropout


@pytest.mark.parametrize("norm", ("post", "pre"))
def test_dropout_is_at_its_places_with_a_draw_of_its_own_each(key, norm):
    model, seen = _model(key, norm=norm, dropout=0.3), []
    each = 2 * LENGTH**2 + 2 * LENGTH * WIDTH + (LENGTH * HIDDEN if norm == "post" else 0)
    kept = np.asarray(jax.random.bernoulli(key, 0.7, (LENGTH * WIDTH + 2 * each,)))

    def drop(x):
        start = sum(seen)
        seen.append(x.size)
        return np.where(kept[start : start + x.size].reshape(x.shape), x / 0.7, 0.0)

    expected, attention = _by_hand(model, TOKENS, heads=2, post=norm == "post", drop=drop)
    logits, weights = _forward(model, TOKENS, key)
    assert sum(seen) == kept.size
    np.testing.assert_allclose(logits, expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(weights, attention, rtol=1e-11, atol=1e-13)
    assert jnp.all(logits != _forward(model, TOKENS)[0])


def test_without_dropout_a_key_changes_nothing(key):
    model = _model(key)
    np.testing.assert_array_equal(_forward(model, TOKENS, key)[0], _forward(model, TOKENS)[0])


# The loss


def test_loss_is_the_mean_over_sequences_and_positions_in_nats(key):
    model, tokens = _model(key), jax.random.randint(key, (4, LENGTH + 1), 0, VOCABULARY)
    p = np.stack([jax.nn.softmax(_forward(model, row[:-1])[0]) for row in tokens])
    each = -np.log(np.take_along_axis(p, np.asarray(tokens)[:, 1:, None], axis=2)[..., 0])
    assert float(_loss(model, tokens)) == pytest.approx(each.mean(), rel=1e-13)
    assert float(_loss(model, Sequences(tokens))) == pytest.approx(each.mean(), rel=1e-13)
    assert float(_loss(model, tokens, last_only=True)) == pytest.approx(each[:, -1].mean(), rel=1e-13)


def test_loss_draws_dropout_anew_for_each_sequence(key):
    model = _model(key, dropout=0.3)
    tokens = jnp.stack([jnp.append(TOKENS, 1)] * 2)
    keys = jax.random.split(key, 2)
    expected = [-jnp.mean(_picked(_forward(model, TOKENS, k)[0])) for k in keys]
    assert expected[0] != expected[1]
    assert float(_loss(model, Sequences(tokens, keys))) == pytest.approx(float(sum(expected)) / 2, rel=1e-12)


def _picked(logits):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.append(TOKENS[1:], 1)[:, None], axis=1)


def test_gradient_is_that_of_finite_differences(key):
    # An activation without a kink, which a difference might straddle.
    model, tokens = _model(key, activation=jax.nn.gelu), jnp.append(TOKENS, 1)[None]
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), model)
    along = lambda s: next_token_loss(jax.tree.map(lambda x, d: x + s * d, model, direction), tokens)
    h, value = 1e-5, jax.jit(along)
    difference = float(value(h) - value(-h)) / (2 * h)
    # Errors of order h² and eps/h.
    assert float(jax.jit(jax.grad(along))(0.0)) == pytest.approx(difference, rel=1e-6)


def test_a_token_beyond_the_vocabulary_makes_the_loss_nan(key):
    assert jnp.isnan(_loss(_model(key), jnp.array([[0, 1, VOCABULARY]])))


# Training


def test_windows_are_pieces_of_the_text_and_start_everywhere_alike(key):
    sampler = Windows(np.arange(100, 112), length=3, batch=9000)
    batch = sampler(key)
    assert batch.tokens.shape == (9000, 4)
    np.testing.assert_array_equal(jnp.diff(batch.tokens, axis=1), 1)
    # Nine starts, 1000 each, with a standard deviation of 30.
    np.testing.assert_allclose(np.bincount(batch.tokens[:, 0] - 100), 1000, atol=120)
    again, other = sampler(key), sampler(jax.random.key(1))
    np.testing.assert_array_equal(again.tokens, batch.tokens)
    assert jnp.any(other.tokens != batch.tokens)
    every_key = jax.random.key_data(jnp.concatenate([batch.keys, other.keys]))
    assert len(np.unique(every_key, axis=0)) == 18_000


@pytest.mark.parametrize("norm", ("post", "pre"))
def test_training_learns_a_text_that_needs_attention(key, norm):
    # 0 1 1 0 2 2 …: one token leaves two alternatives, between which the token before it decides.
    ids = np.tile([0, 1, 1, 0, 2, 2], 20)
    start = lambda key: Transformer(
        3, width=16, hidden=16, length=6, norm=norm, dropout=0.1, dtype=jnp.float32, key=key
    )
    run = jax.jit(
        jax.vmap(lambda k: train(start(k), next_token_loss, Windows(ids, 6, 16), optax.adam(0.01), 200, key=k).model)
    )
    trained = run(jax.random.split(key, 2))
    fixed = jnp.stack([jnp.asarray(ids[i : i + 7]) for i in range(6)])
    losses = jax.jit(jax.vmap(lambda m: next_token_loss(m, fixed, last_only=True)))(trained)
    assert jnp.all(losses < math.log(2) / 4)  # without attention: ln 2


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"layers": 0}, "layers must be an integer of at least 1, got 0"),
        ({"width": 0}, "width must be an integer of at least 1, got 0"),
        ({"heads": 0}, "heads must be an integer of at least 1, got 0"),
        ({"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"heads": 4}, "width must be a multiple of heads, got width=6, heads=4"),
        ({"norm": "rms"}, "norm must be one of 'post', 'pre', got 'rms'"),
        ({"positions": "rotary"}, "positions must be one of 'sinusoidal', 'learned', got 'rotary'"),
        ({"activation": jnp.sum}, r"activation must keep the shape \(2, 9\)"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1, got 1\.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_options_are_refused(key, options, message):
    with pytest.raises(ValueError, match=message):
        _model(key, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda key: Transformer(0, length=3, key=key), "vocabulary must be an integer of at least 1, got 0"),
        (
            lambda key: _model(key)(jnp.zeros(6, int)),
            "tokens must be at least 1 and at most 5, the model's length, got 6",
        ),
        (lambda key: Windows(np.arange(5), length=5), "ids must hold at least length \\+ 1 = 6 tokens, got 5"),
        (lambda key: Windows(np.arange(5), length=0), "length must be an integer of at least 1"),
        (lambda key: Windows(np.arange(5), length=2, batch=0), "batch must be an integer of at least 1"),
        (lambda key: Windows(np.arange(5.0), length=2), "ids must be integers"),
        (lambda key: Windows(np.zeros((9, 2), int), length=2), r"ids must have shape \(tokens,\), got \(9, 2\)"),
        (lambda key: Windows(np.array([0, -1, 2]), length=2), "ids must lie from 0 to .*, got -1"),
        (lambda key: _model(key)(jnp.array([1, 9])), "tokens must lie from 0 to 6, got 9"),
        (lambda key: _model(key)(jnp.array([1, -1])), "tokens must lie from 0 to 6, got -1"),
        (lambda key: _model(key)(jnp.zeros(0, int)), "tokens must be at least 1"),
        (lambda key: _model(key)(jnp.zeros(3)), "tokens must be integers"),
        (lambda key: next_token_loss(_model(key), jnp.array([[1, 2, -1]])), "tokens must lie from 0 to 6, got -1"),
        (lambda key: next_token_loss(_model(key), jnp.array([[9, 2, 1]])), "tokens must lie from 0 to 6, got 9"),
        (lambda key: next_token_loss(_model(key), jnp.array([[1]])), "at least one sequence of at least 2 tokens"),
        (lambda key: next_token_loss(_model(key), jnp.zeros((0, 3), int)), "at least one sequence"),
        *(
            (
                lambda key, shape=shape: next_token_loss(lambda t, key: jnp.zeros(shape), jnp.array([[0, 3, 6]])),
                r"model must return logits of shape \(2, vocabulary\), got float64",
            )
            for shape in ((1, 7), (3, 7), (7,), ())
        ),
        *(
            (
                lambda key, make=make: next_token_loss(_model(key), Sequences(jnp.zeros((2, 4), int), make(key))),
                r"batch\.keys must be 2, one a sequence, or None",
            )
            for make in (lambda key: key, lambda key: jax.random.split(key, 3), jax.random.key_data)
        ),
        (lambda key: _model(key).blocks[0](jnp.zeros((0, WIDTH)), lambda x: x), "x must hold at least one position"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_calls_are_refused(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(key)


@pytest.mark.parametrize("last_only", (False, True))
def test_token_beyond_the_vocabulary_makes_the_loss_nan_inside_jit(key, last_only):
    model = _model(key)
    loss = jax.jit(lambda tokens: next_token_loss(model, tokens, last_only=last_only))
    assert jnp.isfinite(loss(jnp.array([[1, 2, 6]])))
    for wrong in ([-1, 2, 6], [1, 7, 6], [1, 2, -1], [1, 2, 9]):
        assert jnp.isnan(loss(jnp.array([[1, 2, 6], wrong])))
