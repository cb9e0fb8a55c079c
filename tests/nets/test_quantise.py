"""States in 8 bits: how far off an entry is, that slow averages still move, and what optimisers make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn.nets.quantise import Quantised, dequantise, quantise, quantize_state


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


_there_and_back = jax.jit(
    lambda x, bits, block, step: dequantise(quantise(x, bits, block, step=step)), static_argnums=(1, 2)
)


def _values(signed, shape=(5, 700)):
    """Magnitudes over four decades."""
    rng = np.random.default_rng(0)
    return jnp.asarray(10 ** rng.uniform(-4, 0, shape) * (rng.choice([-1, 1], shape) if signed else 1))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(("bits", "signed", "code"), [(8, False, 254), (8, True, 126), (16, False, 65534)])
def test_an_entry_is_off_by_at_most_one_code(dtype, bits, signed, code):
    x = _values(signed).astype(dtype)
    y = _there_and_back(x, bits, 256, 3)
    ratio = 10 ** ((5 if signed else 7) / code) - 1
    rounding = {"bfloat16": 0.01, "float32": 2e-5, "float64": 1e-9}[dtype]
    assert y.dtype == x.dtype and y.shape == x.shape
    assert jnp.max(jnp.abs(y / x - 1)) <= ratio + rounding
    if bits == 8:
        assert jnp.max(jnp.abs(y / x - 1)) > 0.7 * ratio  # the bound is no looser than it says
    several = jnp.stack([_there_and_back(x, bits, 256, step) for step in range(64)])
    assert jnp.max(jnp.abs(several.astype(float).mean(0) / x.astype(float) - 1)) < 0.1 * ratio + rounding


def test_zero_stays_zero_and_nothing_else_becomes_it():
    x = jnp.zeros((3, 300)).at[0, 7].set(1.0).at[0, 8].set(1e-30).at[1, 299].set(-2.0)
    y = _there_and_back(x, 8, 256, 5)
    np.testing.assert_array_equal(y != 0, x != 0)
    np.testing.assert_allclose([y[0, 7], y[0, 8], y[1, 299]], [1.0, 1e-7, -2.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "x", "expected"),
    (
        ("float16", [6e4, 6e-5], [6e4, 6e-3]),
        ("float32", [1e30, 1e-30], [1e30, 1e23]),
        ("float32", [1e8, -1.2e-38], [1e8, -1e3]),
        ("float32", [1e-37, 1.2e-38], [1e-37, 1.2e-38]),
    ),
)
def test_what_is_far_below_the_largest_gets_the_least_magnitude(dtype, x, expected):
    y = _there_and_back(jnp.asarray(x, dtype), 8, 256, 0)
    np.testing.assert_allclose(y.astype(float), expected, rtol=0.07)


@pytest.mark.parametrize("shape", ((0, 5), (5, 0)))
def test_nothing_stays_nothing(shape):
    assert dequantise(quantise(jnp.ones(shape))).shape == shape


def test_blocks_have_scales_of_their_own():
    x = jnp.concatenate([jnp.full((2, 256), 1e-20), jnp.full((2, 44), 1e20)], axis=1)
    q = quantise(x)
    assert q.codes.dtype == jnp.uint8 and q.shape == (2, 300) and q.scale.shape == (2, 2)
    np.testing.assert_allclose(dequantise(q), x, rtol=1e-12)
    assert dequantise("not quantised") == "not quantised"


def test_an_average_that_moves_by_less_than_a_code_still_moves():
    """A second moment under unit gradients moves by 0.1 % a step, a code is 6.6 %."""
    tx = quantize_state(optax.scale_by_adam(), min_size=1)
    ones = jnp.ones((1, 256)) * jnp.linspace(0.5, 1.0, 256)[None]

    @jax.jit
    def run():
        return jax.lax.scan(lambda state, _: (tx.update(ones, state)[1], None), tx.init(ones), length=3000)[0]

    reached = dequantise(run().inner_state.nu) / ones**2 / (1 - 0.999**3000)
    np.testing.assert_allclose(reached, 1, rtol=0.066)
    np.testing.assert_allclose(reached.mean(), 1, rtol=0.01)


def test_training_is_as_with_whole_states():
    """Least squares: Adam with 8-bit moments ends where Adam does, at an eighth of the bytes and a little."""
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(200, 64))), jnp.asarray(rng.normal(size=(64, 128)))
    loss = lambda v: jnp.mean((x @ (v - w)) ** 2)

    def end(inner):
        tx = optax.chain(inner, optax.scale(-0.02))

        def step(carry, _):
            updates, state = tx.update(jax.grad(loss)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), loss(carry[0])

        start = jnp.zeros((64, 128))
        (_, state), losses = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=300))()
        return losses, sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)

    (plain, whole), (ours, small) = end(optax.scale_by_adam()), end(quantize_state(optax.scale_by_adam()))
    assert plain[-1] < 1e-3 * plain[0] and ours[-1] < 1e-3 * plain[0]
    np.testing.assert_allclose(ours[100], plain[100], rtol=0.05)
    assert small == 2 * (64 * 128 + 64 * 8) and whole == 2 * 64 * 128 * 8


def test_small_leaves_counters_and_nothing_stay_as_they_are():
    params = {"w": jnp.zeros((64, 64)), "b": jnp.zeros(64), "none": None}
    state = quantize_state(optax.scale_by_adam()).init(params)
    assert isinstance(state.inner_state.mu["w"], Quantised) and state.inner_state.mu["b"].dtype == float
    assert state.inner_state.count.dtype == jnp.int32 and state.inner_state.nu["none"] is None


def test_bad_input(as_users):
    for bits, block, message in (
        (4, 256, "bits must be 8 or 16, got 4"),
        (8, 0, "block must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            quantize_state(optax.identity(), bits, block)
        with pytest.raises(ValueError, match=message):
            quantise(jnp.ones(3), bits, block)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_block_that_is_not_finite_shows(value, bits):
    """It was zero where the entry stood, so that a moment forgot that it had diverged."""
    x = jnp.ones((2, 512)).at[0, 300].set(value)
    y = dequantise(quantise(x, bits))
    assert jnp.all(jnp.isnan(y[0, 256:])) and jnp.all(jnp.isfinite(y[0, :256])) and jnp.all(jnp.isfinite(y[1]))
    assert jnp.isnan(dequantise(quantise(jnp.array([value]), bits)))[0]


def test_more_bad_input(as_users):
    cases = {
        "bits must be an integer, got '8'": lambda: quantise(jnp.ones(3), "8"),
        "bits must be an integer, got 8.0": lambda: quantise(jnp.ones(3), 8.0),
        "block must be an integer, got 2.5": lambda: quantise(jnp.ones(3), 8, 2.5),
        r"x must have shape \(\*batch, n\), got \(\)": lambda: quantise(jnp.array(1.0)),
        "x must be real": lambda: quantise(jnp.ones(3, complex)),
        "step must be an integer of at least 0": lambda: quantise(jnp.ones(3), step=-1),
        "inner must be a GradientTransformation, got None": lambda: quantize_state(None),
        "inner must be a GradientTransformation, got <function": lambda: quantize_state(optax.scale_by_adam),
        "min_size must be an integer of at least 0": lambda: quantize_state(optax.identity(), min_size=-1),
        "scale must have 1 blocks": lambda: Quantised(jnp.zeros(3, jnp.uint8), jnp.ones(2), 4),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
    np.testing.assert_array_equal(dequantise(quantise(jnp.arange(3))), dequantise(quantise(jnp.arange(3.0))))
