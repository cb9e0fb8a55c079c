"""GaLore on Flax, NNX and linen: heads are axes of one matrix, scanned layers a stack, and what is unclear is said."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from traindyn.nets.galore import (
    GaLoreDimensionNumbers,
    exact_svd,
    galore,
    galore_labels,
    galore_refresh,
    galore_state_bytes,
    galore_summary,
    scale_by_galore,
)
from traindyn.nets.quantise import quantize_state

HEADS, WIDTH, FEATURES, LAYERS = 4, 8, 32, 3
INWARDS, OUTWARDS = ((0,), (1, 2)), ((0, 1), (2,))  # rows and columns


@pytest.fixture(autouse=True)
def _flax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _nnx(**options):
    module = nnx.MultiHeadAttention(HEADS, FEATURES, rngs=nnx.Rngs(0), decode=False, **options)
    return nnx.state(module, nnx.Param)


def _linen(module, *shape):
    """The shapes of its parameters."""
    return jax.eval_shape(module.init, jax.random.key(0), jnp.ones(shape))["params"]


class _Block(nn.Module):
    bias: bool = True

    @nn.compact
    def __call__(self, x, _):
        x = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(HEADS, use_bias=self.bias, name="attn")(x)
        return x + nn.Dense(FEATURES, use_bias=self.bias, name="down")(
            nn.Dense(64, use_bias=self.bias, name="up")(x)
        ), None


class _Scanned(nn.Module):
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": LAYERS}
        return nn.scan(_Block, **options)(self.bias, name="layers")(x, None)[0]


def _read(params, rank=8, **options):
    """By name: stack, rows and columns of what is projected."""
    leaves = galore_summary(params, rank, **options).leaves
    return {leaf.name: (leaf.stack, leaf.rows, leaf.columns) for leaf in leaves if not leaf.whole}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_attention_is_four_matrices(kind, bias):
    """Of 32 × 32, also at a rank above heads and their width, where stacks would be left whole."""
    module = nn.MultiHeadDotProductAttention(HEADS, use_bias=bias)
    params = _nnx(use_bias=bias) if kind == "nnx" else _linen(module, 2, 5, FEATURES)
    end = ".value" if kind == "nnx" else ""
    expected = {f"{name}.kernel{end}": ((), *INWARDS) for name in ("query", "key", "value")}
    for rank in (4, 16):
        assert _read(params, rank) == expected | {f"out.kernel{end}": ((), *OUTWARDS)}
    state = jax.eval_shape(scale_by_galore(rank=16).init, params)
    assert sorted(x.shape for x in jax.tree.leaves(state.left)) == [(32, 16)] * 4
    mu = jax.tree.leaves(state.inner_state.mu)
    assert sum(x.size for x in mu) == 4 * 16 * 32 + (4 * 32 if bias else 0)


@pytest.mark.parametrize("layout", ["NNX", "linen", "NNX module"])
def test_attention_is_updated_as_its_matrices(layout):
    """Bit by bit what the same matrices of two axes get."""
    rng = np.random.default_rng(0)
    params = _nnx() if layout == "NNX" else nnx.to_pure_dict(_nnx())
    if layout == "NNX module":
        params = nnx.MultiHeadAttention(HEADS, FEATURES, rngs=nnx.Rngs(0), decode=False)
        params = nnx.split(params, nnx.Param, ...)[1]
    flat = lambda tree: [x.reshape(32, 32) if x.ndim == 3 else x.reshape(-1) for x in jax.tree.leaves(tree)]
    grads = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params) for _ in range(4)]
    tx = galore(0.1, 16, 2, projector=exact_svd(), stagger=False)

    def run(params, grads):
        state, step = tx.init(params), jax.jit(tx.update)
        for g in grads:
            updates, state = step(g, state, params)
            params = optax.apply_updates(params, updates)
        return params

    ours = run(params, grads)
    assert jax.tree.structure(ours) == jax.tree.structure(params)
    for x, y in zip(flat(ours), run(flat(params), list(map(flat, grads))), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_dense_general_convolutions_and_einsum():
    """Read by their biases; Dense as ever."""
    cases = [
        (nn.Dense(16), (2, 32), {"kernel": ((), (0,), (1,))}),
        (nn.Conv(16, (3,)), (2, 9, 32), {"kernel": ((), (0, 1), (2,))}),
        (nn.Conv(16, (3, 3)), (2, 9, 9, 32), {"kernel": ((), (0, 1, 2), (3,))}),
        (nn.DenseGeneral((2, 16), axis=(-2, -1)), (2, 4, 8), {"kernel": ((), (0, 1), (2, 3))}),
        (nn.DenseGeneral(16, axis=-1, batch_dims=(0,)), (2, 32), {"kernel": ((0,), (1,), (2,))}),
    ]
    for module, shape, expected in cases:
        assert _read(_linen(module, *shape)) == expected, module
    layers = nnx.vmap(lambda rngs: nnx.Linear(16, 24, rngs=rngs))(nnx.Rngs(0).split(LAYERS))
    assert _read(nnx.state(layers, nnx.Param)) == {"kernel.value": ((0,), (1,), (2,))}
    assert _read(nnx.state(nnx.Conv(8, 16, (3, 3), rngs=nnx.Rngs(0)), nnx.Param)) == {
        "kernel.value": ((), (0, 1, 2), (3,))
    }


def test_scanned_layers_are_stacks():
    params = _linen(_Scanned(), 2, 5, FEATURES)
    inwards, outwards, dense = ((0,), (1,), (2, 3)), ((0,), (1, 2), (3,)), ((0,), (1,), (2,))
    expected = {f"layers.attn.{name}.kernel": inwards for name in ("key", "query", "value")}
    expected |= {"layers.attn.out.kernel": outwards, "layers.up.kernel": dense, "layers.down.kernel": dense}
    assert _read(params) == expected
    why = {leaf.name: leaf.whole for leaf in galore_summary(params, 0.25).leaves}
    assert why["layers.LayerNorm_0.scale"] == "no matrix but a scale"
    assert why["layers.attn.query.bias"] == "no matrix but a bias"


def test_what_is_unclear_is_refused_by_name():
    params = _linen(_Scanned(bias=False), 2, 5, FEATURES)
    message = (
        r"weight_dimension_numbers must have an entry for 'layers.down.kernel', and for 'layers.up.kernel': no bias "
        r"nor other kernel tells whether shape \(3, 64, 32\) is 192 × 32 by GaLoreDimensionNumbers\(\(0, 1\), 2\) or "
        r"3 × 2048 by GaLoreDimensionNumbers\(0, \(1, 2\)\) or 3 of 64 × 32 by GaLoreDimensionNumbers\(1, 2\)"
    )
    for make in (scale_by_galore(rank=8).init, lambda p: galore_summary(p, 8), lambda p: galore_state_bytes(p, 8)):
        with pytest.raises(ValueError, match=message):
            make(params)
    stack = GaLoreDimensionNumbers(1, 2)
    said = {"layers.down.kernel": stack, "layers.up.kernel": stack}
    assert _read(params, weight_dimension_numbers=said)["layers.up.kernel"] == ((0,), (1,), (2,))
    assert "layers.attn.query.kernel" in _read(params, weight_dimension_numbers=said)  # known by the others
    for whole in (
        {"rank": lambda name, shape: 8 if "attn" in name else None},
        {"rank": 8, "weight_dimension_numbers": dict.fromkeys(said)},
    ):
        assert not {*said} & {*_read(params, **whole)}
    assert {*said} <= {*_read(params, weight_dimension_numbers=GaLoreDimensionNumbers(-2, -1))}
    small = {"conv": {"kernel": jnp.zeros((3, 2, 4))}, "dense": {"kernel": jnp.zeros((64, 64))}}
    assert {*_read(small, 32)} == {"dense.kernel"}  # whichever it is, it is too small
    twice = {"kernel": jnp.zeros((8, 8, 16)), "bias": jnp.zeros((8, 16))}
    with pytest.raises(ValueError, match="must have an entry for 'kernel'"):
        scale_by_galore(rank=4).init(twice)  # 8 → 8 × 16, or eight of 8 → 16


def test_an_equinox_field_named_kernel_is_a_stack_as_ever():
    class Layer(eqx.Module):
        kernel: jax.Array

    assert _read(Layer(jnp.zeros((3, 16, 16)))) == {"kernel": ((0,), (1,), (2,))}


def test_stacks_that_stay_whole_are_warned_about():
    """Outside Flax, where names don't tell."""
    params = {"wq": jnp.zeros((256, 8, 32)), "w": jnp.zeros((64, 64))}
    with pytest.warns(UserWarning, match=r"'wq' of shape \(256, 8, 32\), are left whole.*weight_dimension_numbers"):
        scale_by_galore(rank=64).init(params)
    assert _read(params, 64, weight_dimension_numbers={"wq": GaLoreDimensionNumbers(0, (1, 2))})["wq"] == ((), *INWARDS)


def test_inside_a_partition_axes_are_the_same():
    """Where biases of one axis are hidden; and entries for what is hidden have no effect."""
    params = _linen(_Scanned(), 2, 5, FEATURES)
    alone = galore_state_bytes(params, 8)
    for where in ("attn|up|down", "layers"):
        tx = optax.partition(
            {"galore": scale_by_galore(rank=8), "full": optax.scale_by_adam()}, lambda p, w=where: galore_labels(p, w)
        )
        state = jax.eval_shape(tx.init, params)
        assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim > 1) >= alone.bases
        bases = optax.tree.get(state, "left"), optax.tree.get(state, "right")
        assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(bases)) == alone.bases
    attention, entries = _nnx(), {"out.kernel": GaLoreDimensionNumbers((0, 1), 2)}
    entries |= dict.fromkeys(["query.kernel", "key.kernel", "value.kernel"], GaLoreDimensionNumbers(0, (1, 2)))
    only = optax.partition(
        {"galore": scale_by_galore(rank=8, weight_dimension_numbers=entries), "full": optax.identity()},
        lambda p: galore_labels(p, r"query\.kernel"),
    )
    assert [x.shape for x in jax.tree.leaves(optax.tree.get(jax.eval_shape(only.init, attention), "left"))] == [(32, 8)]


def test_nnx_optimizer_trains_and_is_refreshed():
    """As Flax's users do: `nnx.Optimizer`, and an external refresh of its state."""
    module = nnx.MultiHeadAttention(HEADS, FEATURES, rngs=nnx.Rngs(0), decode=False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, FEATURES)), jnp.float32)
    loss = lambda module: jnp.mean((module(x) - x) ** 2)
    optimizer = nnx.Optimizer(module, galore(0.01, 16, 2), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        value, grads = nnx.value_and_grad(loss)(module)
        optimizer.update(module, grads)
        return value

    losses = [step(module, optimizer) for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]
    params, grads = nnx.state(module, nnx.Param), nnx.grad(loss)(module)
    tx = galore(0.01, 16, "external", projector=exact_svd())
    state = galore_refresh(tx.init(params), grads, projector=exact_svd())
    ours, _ = tx.update(grads, state, params)
    usual = galore(0.01, 16, projector=exact_svd())
    expected, _ = usual.update(grads, usual.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, expected)


@pytest.mark.parametrize("options", [
    {}, {"side": "both"}, {"side": "long", "projector_dtype": "bfloat16"}, {"accumulate": 2},
    {"base_optimizer": quantize_state(optax.scale_by_adam(), min_size=64)},
    {"base_optimizer": optax.chain(optax.trace(0.9), optax.scale_by_rms()), "transport": "keep"},
    {"min_dim": 3},
])  # fmt: skip
@pytest.mark.parametrize("kind", ["nnx", "scanned", "equinox"])
def test_summary_agrees_with_the_state(kind, options):
    """Its bytes are those of the real state, leaf by leaf and in all."""
    params = {
        "nnx": _nnx,
        "scanned": lambda: _linen(_Scanned(), 2, 5, FEATURES),
        "equinox": lambda: eqx.filter(eqx.nn.MLP(16, 12, 32, 2, key=jax.random.key(0)), eqx.is_inexact_array),
    }[kind]()
    if kind == "equinox":
        options = {key: value for key, value in options.items() if key != "min_dim"}
    summary = galore_summary(params, 8, **options)
    state = jax.eval_shape(scale_by_galore(rank=8, **options).init, params)
    real = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert summary.state == galore_state_bytes(params, 8, **options) and summary.state.total == real
    assert sum(leaf.bytes for leaf in summary.leaves) + summary.state.counters == real
    structure = jax.tree.structure(params)
    for leaf, p, q in zip(summary.leaves, *map(structure.flatten_up_to, (state.left, state.right)), strict=True):
        held = [not isinstance(x, optax.MaskedNode) for x in (p, q)]
        assert {None: [0, 0], "left": [1, 0], "right": [0, 1], "both": [1, 1]}[leaf.side] == held
        assert all(x.shape[-1] == leaf.rank for x, has in zip((p, q), held, strict=True) if has)
        assert bool(leaf.whole) == (not any(held))


def test_summary_prints_a_table():
    text = str(galore_summary(_nnx(), 16))
    first, *lines, last = text.splitlines()
    assert first.split() == ["leaf", "shape", "axes", "matrices", "side", "rank", "bytes"]
    assert "query.kernel.value  (32, 4, 8)  0 × 1,2  32 × 32   left    16  6,144" in lines
    assert any(line.startswith("query.bias.value") and line.endswith("whole: no matrix but a bias") for line in lines)
    total = galore_state_bytes(_nnx(), 16).total
    assert last.startswith(f"4 of 8 leaves projected; state {total:,} bytes: ")
