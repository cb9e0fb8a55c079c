import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from traindyn.validate import metrics


def test_normalised_correlation_is_pearsons(key):
    a, b = jax.random.normal(key, (2, 5, 30))
    expected = [stats.pearsonr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.normalised_correlation(a, b), expected, atol=1e-14)


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_normalised_correlation_is_blind_to_scale_and_offset(scale, offset):
    a = jnp.asarray([0.3, -1.0, 2.0, 0.7])
    assert metrics.normalised_correlation(a, scale * a + offset) == pytest.approx(1.0, abs=1e-12)
    assert metrics.normalised_correlation(a, -scale * a + offset) == pytest.approx(-1.0, abs=1e-12)


SCALES = [
    (1e-35, "float32"),
    (1e-23, "float32"),
    (2e38, "float32"),
    (1e-300, "float64"),
    (1e200, "float64"),
    (1.7e308, "float64"),
]


@pytest.mark.parametrize(("scale", "dtype"), SCALES)
def test_squares_neither_overflow_nor_vanish(scale, dtype):
    a = jnp.asarray(np.array([0, 0.5, 1]) * scale, dtype)
    b, one = jnp.arange(3).astype(dtype), jnp.ones((), dtype)
    for found in (
        metrics.normalised_correlation(a, b),
        metrics.relative_error(a, 0 * a),
        metrics.relative_error(a, -a) / 2,
        metrics.stable_rank(jnp.diag(a + a[::-1])) / 3,
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, one, rtol=1e-5)
    slope = jax.grad(lambda x: metrics.relative_error(x, a) * scale)(a * 0.75)
    assert np.isfinite(slope).all() and (slope != 0).any()


def test_small_errors_beside_large_entries_count():
    assert metrics.relative_error(jnp.array([1.0, 0.0]), jnp.array([1.0, 1e-200])) == 1e-200
    assert metrics.relative_error(jnp.array([1.0]), jnp.array([jnp.inf])) == jnp.inf
    assert metrics.relative_error(jnp.zeros(2), jnp.ones(2)) == jnp.inf
    assert np.isnan(metrics.stable_rank(jnp.zeros((2, 2))))


@pytest.mark.parametrize("constant", [np.full(10, 0.1), np.full(7, 1 / 3), np.full(7, 1e-200), np.zeros(3)])
def test_a_constant_correlates_with_nothing(constant):
    line = jnp.arange(float(len(constant)))
    assert np.isnan(metrics.normalised_correlation(jnp.asarray(constant), line))
    assert np.isnan(metrics.normalised_correlation(line, jnp.asarray(constant)))
    assert metrics.normalised_correlation(1 + 1e-12 * line, line) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: metrics.entropy(jnp.zeros(0)),
            r"p must have at least one entry along the last axis, got shape \(0,\)",
        ),
        (lambda: metrics.attention_entropy(jnp.zeros((2, 0))), "logits must have at least one entry"),
        (
            lambda: metrics.attention_entropy(jnp.zeros(2), jnp.array([2.0, -1.0])),
            "x must hold frequencies of at least",
        ),
        (lambda: metrics.attention_entropy(jnp.zeros(2), -jnp.ones(2)), "x must hold frequencies of at least 0, got"),
        (lambda: metrics.stable_rank(jnp.zeros((0, 3))), "x must have at least one row and one column"),
        (
            lambda: metrics.fit_order([1.0, 2.0, 3.0], [1.0, 2.0, -np.inf]),
            r"error must be at least 0, got -inf at \[2\]",
        ),
    ],
)
def test_what_has_no_value_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_negative_frequencies_inside_jit():
    assert np.isnan(jax.jit(metrics.attention_entropy)(jnp.zeros(2), jnp.array([2.0, -1.0])))
    assert np.isnan(jax.jit(metrics.attention_entropy)(jnp.zeros(2), -jnp.ones(2)))


def test_stable_rank_of_known_matrices():
    assert metrics.stable_rank(jnp.eye(5)) == pytest.approx(5)
    assert metrics.stable_rank(jnp.outer(jnp.arange(1.0, 4), jnp.arange(1.0, 6))) == pytest.approx(1)
    assert metrics.stable_rank(jnp.diag(jnp.asarray([2.0, 1.0, 1.0]))) == pytest.approx(6 / 4)


def test_attention_entropy_against_scipy(key):
    logits, x = jax.random.normal(key, (7,)), jnp.arange(7.0)
    weights = np.exp(logits) * np.asarray(x)
    assert metrics.attention_entropy(logits, x) == pytest.approx(stats.entropy(weights), abs=1e-13)
    assert metrics.attention_entropy(jnp.zeros(9)) == pytest.approx(math.log(9))
    assert metrics.attention_entropy(jnp.asarray([1e4, 0.0])) == 0  # neither overflow nor 0 · log 0


def test_rebound_and_largest_rise():
    curve = jnp.asarray([3.0, 1.0, 2.5, 0.5, 0.75])
    assert metrics.rebound(curve) == 0.25
    assert metrics.largest_rise(curve) == 1.5
    assert metrics.largest_rise(jnp.asarray([3.0, 2.0, 1.0])) == 0


def test_fit_order_is_exact_on_a_power_law_and_its_error_is_that_of_linear_regression():
    h = 0.1 * 2.0 ** -np.arange(5)
    order, error = metrics.fit_order(h, 3 * h**1.5)
    assert order == pytest.approx(1.5, abs=1e-13) and error < 1e-13
    noisy = h * np.exp([0.1, -0.2, 0.05, 0.0, 0.1])
    fit = stats.linregress(np.log(h), np.log(noisy))
    order, error = metrics.fit_order(h, noisy)
    assert (order, error) == (pytest.approx(fit.slope), pytest.approx(fit.stderr))


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_fit_order_of_an_error_without_logarithm_is_nan(bad):
    assert math.isnan(metrics.fit_order(np.array([1.0, 0.5, 0.25]), np.array([1.0, 0.5, bad])).order)


def test_fit_order_needs_three_points():
    with pytest.raises(ValueError, match="n ≥ 3"):
        metrics.fit_order(np.ones(2), np.ones(2))
