"""Theorem 8 of Li2: the race of modes, the number of nodes that collect them all, and the polar factor."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from traindyn.dynamics.grokking import race
from traindyn.dynamics.grokking.race import ModeRace

MU = jnp.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
SPREAD = np.array([1e-4, 1e-3, 1e-2, 0.1, 0.3, 0.5889])
RNG = np.random.default_rng(7)
coupon_time = jax.jit(race.coupon_time)


def _by_subsets(p):
    """T₀ by inclusion and exclusion over all subsets, and its gradient."""
    subsets = np.array(list(itertools.product((0, 1), repeat=len(p))))[1:]
    signs, sums = -((-1.0) ** subsets.sum(axis=1)), subsets @ p
    return np.sum(signs / sums), -(signs / sums**2) @ subsets


def test_exact_solves_the_equation():
    flow, y0 = ModeRace(MU), jnp.array([0.5, -2.0, 0.0, 0.7, 0.1, 1.2])
    for t in (0.0, 0.5, 1.6):  # before 1/(0.5 · 1.2)
        y, slope = jax.jvp(lambda t: flow.exact(y0, t), (t,), (1.0,))
        np.testing.assert_allclose(slope, flow(t, y, None), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(flow.exact(y0, 0.0), y0)


def test_the_winner_is_the_mode_of_the_largest_product_and_alone_becomes_infinite():
    flow, y0 = ModeRace(MU), jnp.array([0.5, -2.0, 0.0, 0.8, 0.1, 1.2])  # products 0.5, −1.8, 0, 0.56, 0.06, 0.6
    times = flow.blow_up_time(y0)
    np.testing.assert_allclose(times, [2, np.inf, np.inf, 1 / 0.56, 1 / 0.06, 1 / 0.6], rtol=1e-14)
    assert int(flow.winner(y0)) == int(jnp.argmin(times)) == 5
    assert int(flow.winner(jnp.array([1.0, 1.05, 1.2, 1.3, 1.5, 1.7]))) == 0  # not the largest at the start
    late = flow.exact(y0, times[5] * (1 - 1e-12))
    assert late[5] > 1e11 and jnp.max(jnp.abs(jnp.delete(late, 5))) < 20
    with pytest.raises(ValueError, match=r"past the blow-up: component \[5\] becomes infinite at t = 1.66"):
        flow.exact(y0, 1.7)
    np.testing.assert_array_equal(jnp.isnan(jax.jit(lambda t: flow.exact(y0, t))(1.7)), np.arange(6) == 5)


def test_gradients_reach_rates_and_starts():
    y0, t = jnp.array([0.5, -2.0, 0.1, 0.7, 0.1, 1.2]), 0.8
    by_mu, by_y0 = jax.jit(jax.grad(lambda mu, y0: jnp.sum(ModeRace(mu).exact(y0, t)), argnums=(0, 1)))(MU, y0)
    left = 1 - MU * y0 * t
    np.testing.assert_allclose(by_mu, t * y0**2 / left**2, rtol=1e-13)
    np.testing.assert_allclose(by_y0, 1 / left**2, rtol=1e-13)
    still = jax.grad(lambda y: jnp.sum(jnp.nan_to_num(ModeRace(MU).blow_up_time(y), posinf=0.0)))(jnp.zeros(6))
    assert jnp.all(jnp.isfinite(still))


def test_frechet_draws_and_who_wins_from_them(key):
    start = race.frechet(key, (40_000, 6), 2)
    cdf = lambda x: np.exp(-(np.asarray(x) ** -2.0))
    assert stats.kstest(np.asarray(start[:5000]).ravel(), cdf).pvalue > 1e-3
    p = np.asarray(race.winner_probabilities(MU, 2))
    np.testing.assert_allclose(p, np.asarray(MU) ** 2 / np.sum(np.asarray(MU) ** 2), rtol=1e-14)
    won = np.bincount(np.asarray(jax.vmap(ModeRace(MU).winner)(start)), minlength=6) / len(start)
    assert np.max(np.abs(won - p) / np.sqrt(p * (1 - p) / len(start))) < 4
    assert np.abs(race.winner_probabilities(MU, 1000.0) - np.eye(6)[0]).max() < 1e-15  # without overflow


@pytest.mark.parametrize("p", (SPREAD, np.arange(1, 11) / 55), ids=("spread", "ten"))
def test_coupon_time_is_that_of_inclusion_and_exclusion(p):
    value, slope = jax.jit(jax.value_and_grad(race.coupon_time))(jnp.asarray(p))
    exact, exact_slope = _by_subsets(p)
    assert float(value) == pytest.approx(exact, rel=1e-12)  # sums that alternate lose some digits
    np.testing.assert_allclose(slope, exact_slope, rtol=1e-9)


@pytest.mark.parametrize("modes", (1, 6, 5000))
def test_coupon_time_for_equal_modes(modes):
    p, harmonic = jnp.full(modes, 1 / modes), np.sum(1 / np.arange(1, modes + 1))
    assert float(coupon_time(p)) == pytest.approx(modes * harmonic, rel=1e-11)
    assert float(race.coupon_bound(p)) == pytest.approx(modes * harmonic, rel=1e-12)


def test_values_of_the_specification():
    p = race.winner_probabilities(MU, 2.0)
    assert float(coupon_time(p)) == pytest.approx(20.762, abs=5e-4)
    assert float(race.sequential_coupon_time(p, 2.0)) == pytest.approx(9.6905, abs=5e-5)


def test_the_bound_holds_for_any_probabilities():
    p = np.random.default_rng(0).dirichlet(np.full(6, 0.7), 300)
    over = np.asarray(jax.jit(jax.vmap(lambda p: race.coupon_time(p) / race.coupon_bound(p)))(p))
    assert 1 - 1e-12 < over.min() < 1.05 and over.max() > 1.2
    assert float(race.coupon_bound(jnp.asarray(SPREAD))) == pytest.approx(1e4)


def test_sequential_coupon_time_is_the_expectation_of_its_protocol():
    p, kept = np.array([0.4, 0.3, 0.2, 0.1]), 2**-1.5

    def remaining(found):
        """Expected draws from here, where modes found before count `kept` times as much."""
        if len(found) == 4:
            return 0.0
        weight = np.array([q * (kept if mode in found else 1) for mode, q in enumerate(p)])
        weight /= weight.sum()
        new = [mode for mode in range(4) if mode not in found]
        return (1 + sum(weight[k] * remaining(found | {k}) for k in new)) / sum(weight[k] for k in new)

    assert float(race.sequential_coupon_time(p, 1.5)) == pytest.approx(remaining(frozenset()), rel=1e-13)


def test_distinct_is_the_mean_over_all_sequences():
    p = np.array([0.5, 0.3, 0.2])
    for draws in (1, 2, 4):
        every = list(itertools.product(range(3), repeat=draws))
        mean = sum(np.prod(p[list(s)]) * len(set(s)) for s in every)
        assert float(race.distinct(p, draws)) == pytest.approx(mean, rel=1e-14)
    assert float(race.distinct(p, 0)) == 0
    assert float(race.distinct(jnp.full(11, 1 / 11), 22)) == pytest.approx(11 * (1 - (10 / 11) ** 22), rel=1e-14)


def test_batches_and_float32(key):
    p = np.random.default_rng(1).dirichlet(np.ones(6), 4)
    together = jax.jit(jax.vmap(race.coupon_time))(p)
    np.testing.assert_allclose(together[2], coupon_time(p[2]), rtol=1e-14)
    single = p.astype(np.float32)
    all_three = jax.jit(lambda p: (race.coupon_time(p), race.coupon_bound(p), race.sequential_coupon_time(p, 2.0)))
    for wide, narrow in zip(all_three(p[0]), all_three(single[0]), strict=True):
        assert narrow.dtype == jnp.float32
        assert float(narrow) == pytest.approx(float(wide), rel=1e-5)
    assert race.distinct(single[0], 5).dtype == race.winner_probabilities(single[0], 2).dtype == jnp.float32
    assert jnp.isnan(coupon_time(p[0] + 0.01))  # inside jit there is no value to check


def test_polar_factor_and_the_first_order_of_its_last_column():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(7, 3))
    factor = np.asarray(race.polar(jnp.asarray(a)))
    np.testing.assert_allclose(factor.T @ factor, np.eye(3), atol=1e-14)
    stretch = factor.T @ a  # A = (U Vᵀ)(V S Vᵀ)
    np.testing.assert_allclose(stretch, stretch.T, atol=1e-13)
    assert np.linalg.eigvalsh(stretch).min() > 0

    basis = np.linalg.qr(rng.normal(size=(7, 4)))[0]
    q, inside, outside = basis[:, :3], basis[:, :3] @ [0.6, 0.0, -0.8], 0.6 * basis[:, 3]
    off = []
    for size in (1e-1, 1e-2, 1e-3):
        v = size * inside + outside
        exact = race.polar(jnp.asarray(np.column_stack([q, v])))[:, -1]
        off.append(float(jnp.linalg.norm(exact - race.polar_last_column(jnp.asarray(q), jnp.asarray(v)))))
        along = float(exact @ jnp.asarray(inside)) / size
    np.testing.assert_allclose(off, [2e-3, 2e-5, 2e-7], rtol=0.1)  # of second order
    assert along == pytest.approx(1 / 1.6, abs=1e-6)  # not 1/(1 + 0.36), as printed


@pytest.mark.parametrize(
    "a",
    (
        RNG.normal(size=(5, 3)),
        RNG.normal(size=(3, 5)),
        2 * np.linalg.qr(RNG.normal(size=(5, 3)))[0],
        3 * np.linalg.qr(RNG.normal(size=(5, 3)))[0].T,
        np.eye(3),
    ),
    ids=("tall", "wide", "tall, equal", "wide, equal", "square, equal"),
)
def test_gradient_of_the_polar_factor(a):
    weights = jnp.asarray(np.random.default_rng(5).normal(size=a.shape))
    value = jax.jit(lambda x: jnp.sum(weights * race.polar(x)))
    expected = np.zeros_like(a)
    for i in np.ndindex(a.shape):
        step = np.zeros_like(a)
        step[i] = 1e-6
        expected[i] = (value(a + step) - value(a - step)) / 2e-6
    np.testing.assert_allclose(jax.grad(value)(jnp.asarray(a)), expected, atol=2e-8)


def test_polar_factor_of_what_is_not_of_full_rank():
    b, c = (jnp.asarray(np.random.default_rng(6).normal(size=size)) for size in ((4, 2), (2, 5)))
    left, _, right = np.linalg.svd(b @ c)
    np.testing.assert_allclose(race.polar(b @ c), left[:, :2] @ right[:2], atol=1e-12)
    np.testing.assert_array_equal(race.polar(jnp.zeros((2, 3))), np.zeros((2, 3)))
    assert np.isnan(race.polar(jnp.full((2, 2), jnp.nan))).all()
    value = jax.jit(lambda b: jnp.sum(jnp.sin(race.polar(b @ c))))
    step = 1e-6 * jnp.eye(4, 2)
    slope = jnp.vdot(jax.grad(value)(b), step) / 1e-6
    np.testing.assert_allclose(slope, (value(b + step) - value(b - step)) / 2e-6, rtol=1e-7)


def test_integers_are_the_numbers_that_they_stand_for():
    np.testing.assert_allclose(ModeRace(jnp.array([0.1])).exact(jnp.array([1]), 0.9), [1.0989], atol=1e-4)
    whole = ModeRace(jnp.array([1, 2]))
    np.testing.assert_allclose(whole.exact(jnp.array([1, 1]), 0.25), [4 / 3, 2.0], rtol=1e-15)
    np.testing.assert_allclose(race.polar(jnp.array([[3, 0], [0, 2]])), np.eye(2), atol=1e-15)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: ModeRace(jnp.ones((2, 2))), r"mu must have shape \(modes,\), got \(2, 2\)"),
        (lambda: ModeRace(MU)(0.0, jnp.ones(5)), r"y must have shape \(6,\), got \(5,\)"),
        (lambda: ModeRace(MU).exact(jnp.ones(5), 0.0), r"y0 must have shape \(6,\), got \(5,\)"),
        (lambda: ModeRace(MU).winner(jnp.ones(5)), r"y0 must have shape \(6,\), got \(5,\)"),
        (lambda: ModeRace(jnp.ones(2)).winner(jnp.array([-1.0, -2.0])), "no mode diverges, so there is no winner"),
        (lambda: ModeRace(jnp.ones(2)).winner(jnp.zeros(2)), "no mode diverges, so there is no winner"),
        (lambda: ModeRace(jnp.ones(0)).winner(jnp.ones(0)), "no mode diverges, so there is no winner"),
        (lambda: race.winner_probabilities([jnp.inf, 1.0], 1.0), "mu must be positive and finite"),
        (lambda: race.frechet(jax.random.key(0), (3,), 0.0), "exponent must be positive"),
        (lambda: race.winner_probabilities(-MU, 2.0), "mu must be positive"),
        (lambda: race.winner_probabilities(MU, -1.0), "exponent must be positive"),
        (lambda: race.coupon_time(jnp.array([0.5, 0.6])), "p must sum to one"),
        (lambda: race.coupon_time(jnp.array([1.0, 0.0])), "p must be positive, or a mode is never found"),
        (lambda: race.coupon_time(jnp.ones((1, 1))), r"p must have shape \(modes,\), got \(1, 1\)"),
        (lambda: race.coupon_bound(jnp.array([1.5, -0.5])), "p must be positive"),
        (lambda: race.sequential_coupon_time(jnp.array([0.5, 0.5]), 0.0), "exponent must be positive"),
        (lambda: race.distinct(jnp.array([0.5, 0.5]), -1), "draws must not be negative"),
        (lambda: race.polar_last_column(jnp.eye(4)[:, :2], jnp.ones(3)), r"v must have shape \(4,\), got \(3,\)"),
        (lambda: race.polar_last_column(jnp.ones((4, 2)), jnp.ones(4)), "q must have orthonormal columns, .* by 4"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("dtype", "p"), ((jnp.float64, 1e-17), (jnp.float32, 1e-8)))
def test_distinct_keeps_small_probabilities(dtype, p):
    both = jnp.array([p, 1.0], dtype)
    np.testing.assert_allclose(race.distinct(both, 1 / p), 1 + (1 - np.exp(-1)), rtol=1e-6)
    slope, in_draws = jax.jit(jax.grad(race.distinct, (0, 1)))(both, jnp.array(1 / p, dtype))
    np.testing.assert_allclose(slope, [np.exp(-1) / p, 0], rtol=1e-6)
    np.testing.assert_allclose(in_draws, p * np.exp(-1), rtol=1e-6)
    np.testing.assert_array_equal(jax.vmap(lambda k: race.distinct(both[1:], k))(jnp.array([0.0, 3.0], dtype)), [0, 1])


@pytest.mark.parametrize("dtype", (jnp.float16, jnp.bfloat16))
def test_polar_of_half_precision(dtype):
    a = jnp.array([[1.0, 0.5], [0.25, 1.0]], dtype)
    wide = a.astype(float)
    rtol = 2 * float(jnp.finfo(dtype).eps)
    assert race.polar(a).dtype == dtype
    np.testing.assert_array_equal(race.polar(jnp.eye(2, dtype=dtype)), np.eye(2))
    np.testing.assert_allclose(race.polar(a).astype(float), race.polar(wide), rtol=rtol)
    entry = lambda a: race.polar(a)[0, 1]
    found = jax.jit(jax.vmap(jax.grad(entry)))(a[None])[0]
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(float), jax.grad(entry)(wide), rtol=2 * rtol)


def test_last_column_beside_none_is_its_direction():
    np.testing.assert_allclose(race.polar_last_column(jnp.zeros((3, 0)), jnp.array([3.0, 0, 4])), [0.6, 0, 0.8])
