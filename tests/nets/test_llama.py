"""The LLaMA-style model against its equations written out in numpy, its two layouts, and the sizes of the paper."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.nets.llama import CONFIGS, Llama, LlamaConfig, rotate
from traindyn.nets.transformer import Windows, next_token_loss

# Compiled once for each kind of model, rather than operation by operation.
_forward = eqx.filter_jit(lambda model, tokens: model(tokens))
_grad = eqx.filter_jit(
    eqx.filter_value_and_grad(lambda model, tokens, c: jnp.sum(c * jax.nn.log_softmax(model(tokens))))
)

CONFIG = LlamaConfig(vocabulary=7, width=8, hidden=9, layers=2, heads=2, length=5)
GROUPED = LlamaConfig(vocabulary=7, width=16, hidden=9, layers=2, heads=4, kv_heads=2, tied=True, length=5)
TOKENS = jnp.array([3, 0, 6, 6, 2])


def _model(key, config=CONFIG, **options):
    """A model away from its initial values, where gains are all alike and attention is nearly uniform."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + jnp.asarray(0.4 * rng.normal(size=x.shape)), Llama(config, key=key, **options))


def _same_tree(like, model):
    """`model`'s leaves in the tree of `like`, whose static fields differ."""
    return like, jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(model))


def _norm(x, layer):
    return np.asarray(layer.weight) * x / np.sqrt((x**2).mean() + 1e-6)


def _turned(x, position):
    """As complex numbers: the two halves are real and imaginary parts."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position / 10_000.0 ** (np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def _by_hand(model, tokens, config):
    """The logits, one position and head at a time."""
    size, group = config.width // config.heads, config.heads // (config.kv_heads or config.heads)
    weight = lambda layer: np.asarray(layer.weight)
    stream = [weight(model.embedding)[t] for t in np.asarray(tokens)]
    for block in model.blocks:
        normed = [_norm(x, block.attention_norm) for x in stream]
        q, k, v = ([weight(part) @ y for y in normed] for part in (block.query, block.key, block.value))
        for i in range(len(tokens)):
            heads = []
            for h in range(config.heads):
                mine, shared = slice(size * h, size * (h + 1)), slice(size * (h // group), size * (h // group + 1))
                scores = [_turned(q[i][mine], i) @ _turned(k[j][shared], j) / np.sqrt(size) for j in range(i + 1)]
                share = np.exp(scores) / np.exp(scores).sum()
                heads.append(sum(a * v[j][shared] for j, a in enumerate(share)))
            x = stream[i] + weight(block.output) @ np.concatenate(heads)
            z = _norm(x, block.hidden_norm)
            gate = weight(block.gate) @ z
            stream[i] = x + weight(block.down) @ (gate / (1 + np.exp(-gate)) * (weight(block.up) @ z))
    decoder = weight(model.embedding if config.tied else model.head)
    return np.stack([decoder @ _norm(x, model.last_norm) for x in stream])


@pytest.mark.parametrize("config", (CONFIG, GROUPED), ids=("separate heads", "grouped and tied"))
def test_logits_are_those_of_the_equations(key, config):
    model = _model(key, config)
    assert (model.head is None) == config.tied
    np.testing.assert_allclose(_forward(model, TOKENS), _by_hand(model, TOKENS, config), rtol=1e-11, atol=1e-12)


def test_grouped_attention_is_full_attention_whose_neighbours_have_the_same_keys_and_values(key):
    model = _model(key, GROUPED)
    again = lambda w: jnp.repeat(w.reshape(2, 4, 16), 2, axis=0).reshape(16, 16)
    full = eqx.filter_eval_shape(Llama, dataclasses.replace(GROUPED, kv_heads=4), key=key)
    full = jax.tree.map(lambda x, w: w if w.shape == x.shape else again(w), *_same_tree(full, model))
    np.testing.assert_allclose(_forward(full, TOKENS), _forward(model, TOKENS), rtol=1e-12, atol=1e-13)


def test_layouts_and_recomputation_change_neither_values_nor_gradients(key):
    c = jnp.asarray(np.random.default_rng(1).normal(size=(5, 7)))
    separate = _model(key)
    stack = lambda m: jax.tree.map(lambda *x: jnp.stack(x), *m.blocks)
    # The two layouts draw the same numbers.
    draws = Llama(CONFIG, key=key), Llama(CONFIG, stacked=True, key=key)
    jax.tree.map(np.testing.assert_array_equal, stack(draws[0]), draws[1].blocks)
    value, grad = _grad(separate, TOKENS, c)
    for stacked, remat in ((True, False), (True, True), (False, True)):
        model = eqx.tree_at(lambda m: m.blocks, separate, stack(separate)) if stacked else separate
        like = eqx.filter_eval_shape(Llama, CONFIG, stacked=stacked, remat=remat, key=key)
        model = _same_tree(like, model)[1]
        other_value, other = _grad(model, TOKENS, c)
        np.testing.assert_allclose(other_value, value, rtol=1e-13)
        blocks = other.blocks if stacked else stack(other)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
            (other.embedding, blocks, other.last_norm, other.head),
            (grad.embedding, stack(grad), grad.last_norm, grad.head),
        )
    step = 1e-7 * np.asarray(grad.blocks[0].query.weight)
    move = lambda sign: eqx.tree_at(lambda m: m.blocks[0].query.weight, separate, replace_fn=lambda w: w + sign * step)
    slope = (_grad(move(1.0), TOKENS, c)[0] - _grad(move(-1.0), TOKENS, c)[0]) / 2e-7
    np.testing.assert_allclose(slope, jnp.sum(grad.blocks[0].query.weight ** 2), rtol=1e-7)


def test_a_token_changes_nothing_before_it_and_a_prefix_gives_the_same(key):
    model = _model(key)
    logits = _forward(model, TOKENS)
    other = _forward(model, TOKENS.at[3].set(1))
    np.testing.assert_array_equal(other[:3], logits[:3])
    assert jnp.all(jnp.any(other[3:] != logits[3:], axis=1))
    np.testing.assert_allclose(_forward(model, TOKENS[:2]), logits[:2], rtol=1e-12, atol=1e-14)


def test_products_of_rotated_vectors_depend_on_the_difference_of_positions_alone():
    rng = np.random.default_rng(2)
    q, k = (jnp.asarray(np.tile(rng.normal(size=(1, 3, 6)), (12, 1, 1))) for _ in "qk")
    products = np.einsum("phc,shc->hps", rotate(q), rotate(k))
    for difference in (-7, 0, 1, 5):
        along = np.diagonal(products, difference, axis1=1, axis2=2)
        np.testing.assert_allclose(along, np.tile(along[:, :1], (1, along.shape[1])), rtol=1e-12)
    assert np.ptp(products[0, 0]) > 0.1
    # A single pair turns by one radian a position.
    turned = rotate(jnp.tile(jnp.array([[[1.0, 0.0]]]), (4, 1, 1)))[:, 0]
    np.testing.assert_allclose(turned, np.stack([np.cos(np.arange(4)), np.sin(np.arange(4))], 1), atol=1e-15)


COUNTS = {"60M": 58_073_600, "130M": 134_105_856, "350M": 367_969_280, "1B": 1_339_082_752, "7B": 6_738_415_616}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_the_paper(key, name):
    config = CONFIGS[name]
    each = 4 * config.width**2 + 3 * config.width * config.hidden + 2 * config.width
    assert COUNTS[name] == config.layers * each + (2 * config.vocabulary + 1) * config.width
    for stacked in (False, True):
        shapes = eqx.filter_eval_shape(Llama, config, stacked=stacked, dtype=jnp.bfloat16, key=key)
        assert sum(x.size for x in jax.tree.leaves(shapes)) == COUNTS[name]
        assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}


def test_initial_values(key):
    config = LlamaConfig(vocabulary=300, width=64, hidden=100, layers=3, heads=4, kv_heads=2)
    for dtype in (jnp.float64, jnp.bfloat16):
        model = Llama(config, dtype=dtype, key=key)
        block = model.blocks[2]
        for x in (model.embedding.weight, model.head.weight, block.query.weight, block.value.weight, block.down.weight):
            x = np.asarray(x, float)
            assert abs(x.std() / 0.02 - 1) < 5 / np.sqrt(2 * x.size)
            assert abs(x.mean()) < 0.1 / np.sqrt(x.size)
        assert np.abs(np.asarray(model.embedding.weight, float)).max() > 0.02 * 3.5  # of 19200 normal numbers: near 4
        assert block.value.weight.shape == (32, 64) and block.down.weight.shape == (64, 100)
        for norm in (block.attention_norm, block.hidden_norm, model.last_norm):
            np.testing.assert_array_equal(np.asarray(norm.weight, float), 1)
    matrices = [np.asarray(x, float).ravel()[:100] for x in jax.tree.leaves(model) if x.ndim > 1]
    assert len({x.tobytes() for x in matrices}) == len(matrices) == 2 + 3 * 7


def test_bfloat16_computes_in_bfloat16_and_returns_float32(key):
    c = jnp.asarray(np.random.default_rng(1).normal(size=(5, 7)), jnp.float32)
    single = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), _model(key))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), single)
    assert _forward(half, TOKENS).dtype == jnp.float32
    (value, grad), (half_value, half_grad) = _grad(single, TOKENS, c), _grad(half, TOKENS, c)
    assert {x.dtype for x in jax.tree.leaves(half_grad)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(half_value, value, rtol=0.05)
    for a, b in zip(jax.tree.leaves(half_grad), jax.tree.leaves(grad), strict=True):
        a, b = np.asarray(a, float), np.asarray(b, float)
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)


def test_it_works_with_the_loss_and_the_windows_of_the_transformer(key):
    model = _model(key)
    batch = Windows(np.arange(50) % 7, length=5, batch=3)(key)
    logits = [_forward(model, row[:-1]) for row in batch.tokens]
    picked = [
        jax.nn.log_softmax(x)[i, t] for x, row in zip(logits, batch.tokens, strict=True) for i, t in enumerate(row[1:])
    ]
    np.testing.assert_allclose(eqx.filter_jit(next_token_loss)(model, batch), -np.mean(picked), rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"layers": 0}, "layers must be an integer of at least 1, got 0."),
        ({"kv_heads": 0}, "kv_heads must be an integer of at least 1, got 0."),
        ({"heads": 3}, "width must be a multiple of 2 × heads, got width=8, heads=3."),
        ({"heads": 8}, "width must be a multiple of 2 × heads, got width=8, heads=8."),
        ({"width": 8.0}, "width must be an integer, got 8.0."),
        ({"layers": 1.5}, "layers must be an integer, got 1.5."),
        ({"heads": "2"}, "heads must be an integer, got '2'."),
        ({"tied": "no"}, "tied must be True or False, got 'no'."),
        ({"heads": 4, "kv_heads": 3}, "heads must be a multiple of kv_heads, got heads=4, kv_heads=3."),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(CONFIG, **change)
    assert str(caught.value) == message


def test_more_tokens_than_the_length_are_refused(key):
    with pytest.raises(ValueError, match=r"tokens must be at least 1 and at most 5, the model's length, got 6\."):
        eqx.filter_eval_shape(_model(key), jnp.zeros(6, int))


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda key: _model(key)(jnp.array([1, 99])), "tokens must lie from 0 to .*, got 99"),
        (lambda key: _model(key)(jnp.array([1, -1])), "tokens must lie from 0 to .*, got -1"),
        (lambda key: _model(key)(jnp.array([1.0, 2.0])), "tokens must be integers"),
        (lambda key: Llama("60M", key=key), "config must be a LlamaConfig, got '60M'"),
        (lambda key: Llama(CONFIG, key=None), "key must be one key"),
        (lambda key: Llama(CONFIG, dtype=int, key=key), "dtype must be a floating-point dtype"),
        (
            lambda key: Llama(CONFIG, stacked=True, key=key).blocks(jnp.ones((3, 8))),
            "block must be one layer, got a stack",
        ),
        (lambda key: _model(key).blocks[0](jnp.ones((0, 8))), "x must hold at least one position"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_calls_are_named(key, call, message):
    with pytest.raises(ValueError, match=message):
        call(key)
