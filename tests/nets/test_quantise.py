"""States in 8 bits: how far off an entry is, that slow averages still move, and what optimisers make of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from traindyn.nets.galore import exact_svd, scale_by_galore
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


ROWS, COLUMNS, LN_CODE = 16, 64, {False: np.log(10) * 7 / 254, True: np.log(10) * 5 / 126}  # by whether signed


@pytest.mark.parametrize("signed", (False, True))
def test_rounding_averages_out(signed):
    """Codes have the ratio ρ. The mean of N roundings is off by at most (ln ρ)²/8 + ln ρ (1 + ln N)/N, a single one by
    more."""
    x, number = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)), 1000
    x = x if signed else x**2
    rounded = jax.jit(lambda x: jax.lax.map(lambda t: dequantise(quantise(x, step=t)), jnp.arange(number)))(x)
    on_the_scale = np.abs(x) > 10 ** (0.1 - (5 if signed else 7)) * np.abs(x).max(axis=1, keepdims=True)
    off_by = lambda y: np.abs(y / x - 1)[on_the_scale].max()
    bound = LN_CODE[signed] ** 2 / 8 + LN_CODE[signed] * (1 + np.log(number)) / number
    assert off_by(rounded.mean(0)) <= bound < off_by(rounded[0])


def _held(tx):
    """`quantize_state` with a dither that does not move: its count is held."""
    still = lambda state: state._replace(count=jnp.zeros_like(state.count))
    return optax.GradientTransformation(tx.init, lambda g, state, params=None: tx.update(g, still(state), params))


def test_averages_follow_a_change_of_the_gradients():
    """At every later step the mean of |ν₈/ν − 1| is within a code, and that of ln(ν₈/ν) within half of one: a move of ν
    upwards is that much too large. They stay where they are if the dither does."""
    before, after = 10 ** np.random.default_rng(0).uniform(-1, 0, (2, ROWS, COLUMNS))

    @functools.partial(jax.jit, static_argnums=0)
    def run(tx):
        def step(carry, t):
            state, exact = carry
            g = jnp.where(t < 100, before, after)
            state, exact = tx.update(g, state)[1], 0.999 * exact + 0.001 * g**2
            nu = dequantise(state.inner_state.nu)
            return (state, exact), jnp.stack([jnp.mean(jnp.abs(nu / exact - 1)), jnp.mean(jnp.log(nu / exact))])

        return jax.lax.scan(step, (tx.init(before), jnp.zeros_like(before)), jnp.arange(1500))[1]

    eight = quantize_state(optax.scale_by_adam(), min_size=1)
    off_by, log_bias = np.asarray(run(eight))[100:].T
    assert off_by.max() <= np.expm1(LN_CODE[False]) < run(_held(eight))[-1, 0]
    assert np.abs(log_bias).max() <= LN_CODE[False] / 2


def _linear(tx):
    """A transform with its state rounded to 8 bits a row on a linear scale, where small second moments become zero."""

    def rounded(x):
        if jnp.ndim(x) < 2:
            return x
        largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
        unit = jnp.where(largest > 0, largest, jnp.ones_like(largest)) / 127
        return jnp.round(x / unit) * unit

    def update(updates, state, params=None):
        updates, state = tx.update(updates, state, params)
        return updates, jax.tree.map(rounded, state)

    return optax.GradientTransformation(tx.init, update)


def _excess_losses(tx, steps):
    """In the end, for 8 seeds: of least squares on noisy linear data with a rate that falls linearly to zero."""
    rng, scale = np.random.default_rng(0), np.geomspace(1, 0.03, COLUMNS)
    target, inputs = rng.standard_normal((8, ROWS, COLUMNS)), rng.standard_normal((8, steps, 8, COLUMNS)) * scale
    noise = rng.standard_normal((8, steps, ROWS, 8))
    tx = optax.chain(tx, optax.scale_by_learning_rate(optax.linear_schedule(0.02, 0.0, steps)))

    @jax.jit
    @jax.vmap
    def run(target, inputs, noise):
        def step(carry, batch):
            (w, state), (x, e) = carry, batch
            updates, state = tx.update(((w - target) @ x.T - e) @ x / 8, state, w)
            return (optax.apply_updates(w, updates), state), None

        start = jnp.zeros_like(target)
        end, _ = jax.lax.scan(step, (start, tx.init(start)), (inputs, noise))[0]
        return 0.5 * jnp.sum((end - target) ** 2 * scale[None] ** 2)

    return np.asarray(run(target, inputs, noise))


@pytest.mark.parametrize(
    ("wrap", "steps"),
    (
        (lambda adam: adam, 300),
        pytest.param(lambda adam: adam, 1000, marks=pytest.mark.slow),
        pytest.param(lambda base: scale_by_galore(base, 4, 50, projector=exact_svd()), 1000, marks=pytest.mark.slow),
    ),
    ids=("Adam", "Adam, longer", "GaLore"),
)
def test_excess_loss_ends_within_2_percent(wrap, steps):
    """By the 95 % interval of the mean of its logarithm over seeds; not so on a linear scale."""
    adam = optax.scale_by_adam()
    exact = _excess_losses(wrap(adam), steps)

    def interval(tx):
        ratio = np.log(_excess_losses(wrap(tx), steps) / exact)
        return ratio.mean() + stats.t.ppf([0.025, 0.975], 7) * ratio.std(ddof=1) / np.sqrt(8)

    assert interval(quantize_state(adam, min_size=1))[1] <= np.log(1.02) < interval(_linear(adam))[0]


def test_bytes_are_those_of_codes_and_scales():
    """Three blocks a row, the last of them shorter."""
    state = jax.eval_shape(quantize_state(optax.scale_by_adam(), min_size=1).init, jnp.zeros((40, 600), jnp.float32))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)
    assert size == 2 * 40 * 600 + 2 * 40 * 3 * 4


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
