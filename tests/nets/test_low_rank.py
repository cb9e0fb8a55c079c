"""Factors and LoRA: where they begin, what of them moves, and the dense weights that they stand for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn.nets import train
from traindyn.nets.llama import Llama, LlamaConfig
from traindyn.nets.low_rank import Factorised, LoRA, factorise, lora, merge, trainable
from traindyn.nets.transformer import next_token_loss

CONFIG = LlamaConfig(vocabulary=7, width=8, hidden=9, layers=2, heads=2, length=5)
BATCH = jnp.array([[3, 0, 6, 6, 2, 1], [1, 1, 4, 5, 0, 2]])
_logits = eqx.filter_jit(lambda model: jax.vmap(model)(BATCH[:, :-1]))


@pytest.fixture
def model(key):
    return Llama(CONFIG, key=key)


def _drawn(model):
    """With all arrays away from their initial values: `B` of LoRA is zero there."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape)), model)


def _moved(model, optimiser=None):
    """Which leaves three steps of training move, by name."""
    optimiser = optax.adam(0.1) if optimiser is None else optimiser
    after = train(model, next_token_loss, BATCH, optimiser, 3).model
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    pairs = zip(jax.tree.leaves_with_path(model), jax.tree.leaves(after), strict=True)
    return {name(path): bool(jnp.any(x != y)) for (path, x), y in pairs}


def test_one_layer_by_hand(key):
    layer = eqx.nn.Linear(3, 4, key=key)
    x = jnp.array([0.5, -1.0, 2.0])
    two, beside = _drawn(factorise(layer, 2, ["weight"], key=key)), _drawn(lora(layer, 2, ["weight"], 5.0, key=key))
    assert isinstance(two, Factorised) and isinstance(beside, LoRA)
    a, b, bias = (np.asarray(y) for y in (two.a, two.b, two.layer.bias))
    np.testing.assert_allclose(two(x), b @ a @ np.asarray(x) + bias, rtol=1e-14)
    a, b, w, bias = (np.asarray(y) for y in (beside.a, beside.b, beside.layer.weight, beside.layer.bias))
    np.testing.assert_allclose(beside(x), (w + 5 / 2 * b @ a) @ np.asarray(x) + bias, rtol=1e-14)
    np.testing.assert_allclose(merge(beside).weight, w + 5 / 2 * b @ a, rtol=1e-14)


def test_lora_begins_at_the_model(model, key):
    adapted = lora(model, 2, ["blocks"], key=key)
    np.testing.assert_array_equal(_logits(adapted), _logits(model))
    a = np.concatenate([np.asarray(block.down.a).ravel() for block in adapted.blocks])
    assert 0.6 / np.sqrt(CONFIG.hidden) < np.abs(a).max() <= 1 / np.sqrt(CONFIG.hidden)


def test_factors_begin_at_the_size_of_the_weight(key):
    layer = eqx.nn.Linear(300, 200, use_bias=False, key=key)
    for rank in (3, 50):
        new = factorise(layer, rank, ["weight"], key=key)
        assert new.a.shape == (rank, 300) and new.b.shape == (200, rank)
        ratio = jnp.mean(jnp.square(new.weight)) / jnp.mean(jnp.square(layer.weight))
        np.testing.assert_allclose(ratio, 1, atol=5 * np.sqrt(2 / (200 * rank)))


@pytest.mark.parametrize("make", [factorise, lora])
def test_merge_gives_equal_outputs(model, key, make):
    new = _drawn(make(model, 2, ["query", "down"], key=key))
    dense = merge(new)
    assert jax.tree.structure(dense) == jax.tree.structure(model)
    np.testing.assert_allclose(_logits(dense), _logits(new), rtol=1e-12, atol=1e-13)
    products = [x for x in jax.tree.leaves(new, is_leaf=lambda x: hasattr(x, "a")) if hasattr(x, "a")]
    assert len(products) == 2 * CONFIG.layers
    assert np.linalg.matrix_rank(products[0].b @ products[0].a) == 2


def test_only_factors_and_what_was_not_chosen_move(model, key):
    adapted = lora(model, 2, ["blocks"], key=key)
    moved = _moved(adapted)
    assert {name for name, moves in moved.items() if not moves} == {n for n in moved if n.endswith("layer.weight")}
    assert jax.tree.leaves(trainable(adapted)) == list(moved.values())
    assert all(_moved(factorise(model, 2, ["blocks"], key=key)).values())


def test_weight_decay_under_the_mask_leaves_frozen_weights(model, key):
    adapted = lora(model, 2, ["blocks"], key=key)
    decays = _moved(adapted, optax.adamw(0.1, weight_decay=0.1))
    masked = _moved(adapted, optax.masked(optax.adamw(0.1, weight_decay=0.1), trainable(adapted)))
    assert all(decays.values())
    assert {name for name, moves in masked.items() if not moves} == {n for n in masked if n.endswith("layer.weight")}


def test_gradient_of_lora_is_that_of_the_dense_weight(model, key):
    """With `W = W₀ + s B A`: `∂A = s Bᵀ ∂W`, `∂B = s ∂W Aᵀ`."""
    adapted = _drawn(lora(model, 2, ["query"], 6.0, key=key))
    grad = eqx.filter_jit(eqx.filter_grad(next_token_loss))
    of_factors, of_dense = grad(adapted, BATCH).blocks[1].query, grad(merge(adapted), BATCH).blocks[1].query.weight
    layer = adapted.blocks[1].query
    np.testing.assert_allclose(of_factors.a, 3 * layer.b.T @ of_dense, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(of_factors.b, 3 * of_dense @ layer.a.T, rtol=1e-10, atol=1e-14)
    assert not np.any(of_factors.layer.weight)


@pytest.mark.parametrize("make", [factorise, lora])
def test_stacked_layers(key, make):
    new = _drawn(make(Llama(CONFIG, stacked=True, key=key), 2, ["blocks"], key=key))
    assert new.blocks.gate.a.shape == (2, 2, 8) and new.blocks.gate.b.shape == (2, 9, 2)
    np.testing.assert_allclose(_logits(merge(new)), _logits(new), rtol=1e-12, atol=1e-13)


def test_dtype_is_that_of_the_layer(key):
    layer = eqx.nn.Linear(4, 4, dtype=jnp.bfloat16, key=key)
    for new in (factorise(layer, 2, ["weight"], key=key), lora(layer, 2, ["weight"], key=key)):
        assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype(jnp.bfloat16)}
        assert new(jnp.ones(4, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, ["blocks"]), "rank must be an integer of at least 1, got 0"),
        (
            (9, ["blocks"]),
            r"rank must be at most 8, the short side of 'blocks.0.query.weight', of shape \(8, 8\), got 9",
        ),
        ((2, ["blocks", "ffn"]), "where names 'ffn', which is in the name of no linear layer"),
        ((2, lambda name, weight: False), "where must choose at least one linear layer"),
        ((2, ["embedding"]), "where names 'embedding'"),
    ],
)
def test_bad_input(model, key, as_users, arguments, message):
    with pytest.raises(ValueError, match=message):
        factorise(model, *arguments, key=key)
    with pytest.raises(ValueError, match=message):
        lora(model, *arguments, key=key)


def test_alpha_must_be_positive(model, key, as_users):
    with pytest.raises(ValueError, match=r"alpha must be above 0, got 0\.0"):
        lora(model, 2, ["blocks"], 0.0, key=key)


@pytest.mark.parametrize("make", [factorise, lora])
def test_one_string_is_one_pattern(model, key, make, as_users):
    """Not its letters, which are in every name."""
    count = lambda where: sum(isinstance(x, Factorised | LoRA) for x in jax.tree.leaves(
        make(model, 2, where, key=key), is_leaf=lambda x: isinstance(x, Factorised | LoRA)
    ))  # fmt: skip
    assert count("query") == count(["query"]) == CONFIG.layers
    assert count("query|down") == 2 * CONFIG.layers
    assert count(r"blocks\.0\.(query|down)") == 2
    with pytest.raises(ValueError, match=r"where names 'quary'.*such as \['blocks.0.query.weight'"):
        make(model, 2, "quary", key=key)
    with pytest.raises(ValueError, match="where names 'nope'"):
        make(model, 2, "query|nope", key=key)
    with pytest.raises(ValueError, match=r"model must have layers of eqx\.nn\.Linear that are no products yet"):
        make(make(eqx.nn.MLP(3, 3, 3, 1, key=key), 2, "layers", key=key), 2, "layers", key=key)


def test_layers_of_other_sizes_are_refused(key, as_users):
    layer = eqx.nn.Linear(3, 4, key=key)
    with pytest.raises(ValueError, match="layer must have 4 outputs and 2 inputs"):
        Factorised(jnp.ones((2, 2)), jnp.ones((4, 2)), layer)
    with pytest.raises(ValueError, match=r"b must have shape"):
        LoRA(jnp.ones((2, 3)), jnp.ones((4, 1)), layer, 1.0)
    with pytest.raises(ValueError, match=r"layer must be an eqx\.nn\.Linear"):
        LoRA(jnp.ones((2, 3)), jnp.ones((4, 2)), "layer", 1.0)


@pytest.mark.parametrize("sizes", ((3, "scalar"), ("scalar", 3), ("scalar", "scalar")))
def test_layers_of_numbers_take_and_give_numbers(key, sizes, as_users):
    layer, x = eqx.nn.Linear(*sizes, key=key), jnp.array(0.7) if sizes[0] == "scalar" else jnp.arange(3.0)
    np.testing.assert_array_equal(lora(layer, 1, "weight", key=key)(x), layer(x))
    factors = factorise(layer, 1, "weight", key=key)
    np.testing.assert_allclose(factors(x), merge(factors)(x), rtol=1e-13, strict=True)
    with pytest.raises(ValueError, match="x must have shape"):
        factors(jnp.ones(4))
