"""Facts of Theorem 4 of JoMA, which the common tests do not know."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from traindyn.dynamics import joma

MU = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
R_0 = (0.194895, 0.880825, 2.481637, 6.343538, 17.243099, 55.500835, 227.446, 1227.0327, 82150.376, 1.60727e7)
TAU = (0.171995, 0.534247, 0.805670, 0.858505, 0.757609, 0.616559, 0.497536, 0.411624, 0.306146, 0.244787)


def test_lag_has_the_values_of_the_specification():
    lag = joma.NonlinearActivation(jnp.array(MU)).lag()
    np.testing.assert_allclose(lag, TAU, atol=6e-7)  # printed to six decimals
    np.testing.assert_allclose(lag * jnp.exp(jnp.array(MU) ** 2 / 2), R_0, rtol=4e-6)  # the shortest has six digits


def test_lag_is_even_in_mu():
    mu = jnp.array([0.5, 3.0])
    np.testing.assert_allclose(joma.NonlinearActivation(-mu).lag(), joma.NonlinearActivation(mu).lag(), rtol=1e-14)


def test_time_to_one_percent_and_to_one_half_has_the_values_of_the_specification():
    mu = jnp.array([1.0, 2.0, 3.0, 4.0])
    flow, zero = joma.NonlinearActivation(mu), jnp.zeros(4)
    np.testing.assert_allclose(flow.time_to(zero, 0.99 * mu), [3.321, 1.476, 0.667, 0.413], atol=5e-4)
    np.testing.assert_allclose(flow.time_to(zero, 0.5 * mu), [0.660, 0.576, 0.472, 0.375], atol=5e-4)
    off = joma.NonlinearActivation(mu, attention=False)
    np.testing.assert_allclose(off.time_to(zero, 0.99 * mu), np.log(100), rtol=1e-13)


def test_exact_and_time_to_are_inverse_from_any_start():
    mu = jnp.array([4.0, 2.0, -3.0, 1.0, 3.0])
    v0 = jnp.array([0.0, 3.5, 1.0, -2.0, -4.0])  # among them one past μ, and three on the other side of zero
    for attention in (True, False):
        flow = joma.NonlinearActivation(mu, attention=attention)
        there_and_back = jax.jit(lambda v, f=flow: jax.vmap(f.exact, in_axes=(None, 0))(v0, f.time_to(v0, v)))
        for share in (0.1, 0.5, 0.9):
            v = v0 + share * (mu - v0)
            each = jnp.diag(there_and_back(v))
            # t has a relative error of some eps; dv/dt · t is at most some hundreds.
            np.testing.assert_allclose(each, v, rtol=1e-12, atol=1e-12)


def test_exact_solves_the_equation():
    # From both sides of zero and of μ; dv/dt by forward differentiation of the implicit equation.
    mu = jnp.array([4.0, 2.0, -3.0, 1.0, 3.0, 0.0])
    v0 = jnp.array([0.0, 3.5, 1.0, -2.0, -4.0, 2.0])
    flow = joma.NonlinearActivation(mu)
    compiled = jax.jit(lambda t: jax.jvp(lambda t: flow.exact(v0, t), (t,), (1.0,)))
    for t in (0.05, 0.3, 0.8):
        v, slope = compiled(t)
        np.testing.assert_allclose(slope, flow(t, v, None), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(flow.exact(v0, 0.0), v0)


def test_exact_converges_where_it_starts_far_out_and_ends_near_zero():
    rng = np.random.default_rng(0)
    mu, v0 = jnp.asarray(rng.uniform(-1, 1, 4000)), jnp.asarray(rng.uniform(-5, 5, 4000))
    flow = joma.NonlinearActivation(mu)
    for t in (1e-3, 0.1, 1.0):  # Newton's iteration oscillated at a dozen of these
        np.testing.assert_allclose(flow.time_to(v0, flow.exact(v0, t)), t, rtol=1e-9)


def test_exact_at_the_critical_point_stays_there():
    mu = jnp.array([0.0, 1.0, 4.0])
    np.testing.assert_allclose(joma.NonlinearActivation(mu).exact(mu, 0.7), mu, rtol=1e-15)


def test_log_form_is_the_same_trajectory():
    mu, v0 = jnp.array([1.0, -2.0, 4.0]), jnp.array([0.2, 0.5, -0.3])
    flow = joma.NonlinearActivation(mu)
    log = flow.log_form()
    both = jax.jit(lambda t: (log.to_v(log.exact(log.to_log(v0), t)), flow.exact(v0, t)))
    for t in (0.1, 0.4, 1.0):
        np.testing.assert_allclose(*both(t), rtol=1e-12)
    # ẏ = v̇/(μ − v)
    np.testing.assert_allclose(log(0.0, log.to_log(v0), None), flow(0.0, v0, None) / (mu - v0), rtol=1e-13)
    np.testing.assert_allclose(log.to_v(log.to_log(v0)), v0, rtol=1e-14)


def test_log_form_obeys_the_late_law_where_the_gap_itself_underflows():
    mu = jnp.array([1.0, 1.5, 2.0, 3.0, 4.0])
    y = joma.LogGap(mu).exact(jnp.zeros(5), 100.0)
    lag = joma.NonlinearActivation(mu).lag()
    np.testing.assert_allclose(y, jnp.exp(mu**2 / 2) * (100 - lag), rtol=1e-14)
    # Theorem 4's leading ratio, which is reached slowly: 1.0012 at this time (4 against 1).
    assert float(y[4] / y[0] / jnp.exp((16 - 1) / 2)) == pytest.approx(1.0012, abs=1e-4)


def test_without_attention_every_gap_is_exp_minus_t():
    mu = jnp.array([0.5, -2.0, 6.0])
    off = joma.NonlinearActivation(mu, attention=False)
    np.testing.assert_allclose(1 - off.exact(jnp.zeros(3), 2.0) / mu, np.exp(-2.0), rtol=1e-14)
    np.testing.assert_array_equal(off.log_form()(0.0, jnp.zeros(3), None), jnp.ones(3))


def test_attention_entropy_bounces_back_and_without_attention_only_falls():
    mu = jnp.linspace(1.0, 4.0, 10)
    times = jnp.linspace(0.0, 4.0, 81)

    def entropies(flow):
        v = jax.jit(jax.vmap(lambda t: flow.exact(jnp.zeros(10), t)))(times)
        p = jax.nn.softmax(v**2 / 2, axis=1)
        return -jnp.sum(p * jnp.log(p), axis=1)

    on, off = entropies(joma.NonlinearActivation(mu)), entropies(joma.NonlinearActivation(mu, attention=False))
    p = jax.nn.softmax(mu**2 / 2)
    assert float(on[0]) == pytest.approx(np.log(10), rel=1e-14)
    assert float(on.min()) < 0.5 * float(on[-1])  # falls below half of where it ends
    assert float(on[-1]) == pytest.approx(-float(jnp.sum(p * jnp.log(p))), abs=0.05)
    assert jnp.all(jnp.diff(off) < 0)


def test_log_form_refuses_to_pass_the_critical_point():
    flow = joma.LogGap(jnp.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="v/mu must be below one"):
        flow.to_log(jnp.array([0.5, 2.0]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="v/mu must be below one"):
        eqx.filter_jit(lambda v: flow.to_log(v))(jnp.array([0.5, 2.0]))


@pytest.mark.parametrize("flow", (joma.NonlinearActivation(jnp.ones(2)), joma.LogGap(jnp.ones(2))))
def test_negative_times_are_refused(flow):
    with pytest.raises(ValueError, match="ts must be zero or later"):
        flow.exact(jnp.zeros(2), -1.0)


def test_time_to_is_infinite_at_mu_and_nothing_where_the_state_is_there_already():
    flow = joma.NonlinearActivation(jnp.array([1.0, 1.0, 2.0]))
    got = flow.time_to(jnp.array([0.0, 1.0, 0.5]), jnp.array([1.0, 1.0, 0.5]))
    np.testing.assert_array_equal(got, [np.inf, 0, 0])
    # and its slope at the start is that of the field, dt/dv = 1/v̇
    slope = jax.grad(lambda v: flow.time_to(jnp.zeros(3), v)[2])(jnp.zeros(3))
    np.testing.assert_allclose(slope, [0, 0, 0.5], rtol=1e-14)


@pytest.mark.parametrize(("mu", "v0"), ((0.0, 5.0), (0.0, 8.0), (6.0, -8.0), (-3.0, 8.0), (10.0, 0.0), (10.0, -10.0)))
def test_exact_and_time_to_keep_their_digits_far_out(mu, v0):
    # Far out ∫dx/x and ∫(exp(q) − 1)/x dx cancel: float32 was 0.01 off from v(0) = 5, float64 0.1 from 8.
    flow, start = joma.NonlinearActivation(jnp.array([mu])), jnp.array([v0])
    small = joma.NonlinearActivation(jnp.array([mu], jnp.float32))
    rate = lambda v: np.exp(-(v**2) / 2) / (mu - v)
    for share in (1e-3, 0.1, 0.5, 0.9):
        v = v0 + share * (mu - v0)
        cuts = np.unique(np.concatenate([np.linspace(v0, v, 40), v0 + (v - v0) * 10.0 ** -np.arange(8)]))
        pieces = [integrate.quad(rate, a, b, epsabs=0, epsrel=1e-13)[0] for a, b in itertools.pairwise(cuts)]
        t = abs(sum(pieces))
        assert float(flow.time_to(start, jnp.array([v]))[0]) == pytest.approx(t, rel=1e-12)
        for one, dtype in ((flow, jnp.float64), (small, jnp.float32)):
            eps = float(jnp.finfo(dtype).eps)
            spread = 30 * eps * (1 + abs(v) + abs(mu - v) * t * np.exp(v**2 / 2))  # what rounding t and v make of v
            if spread < 0.01:
                got = float(one.exact(start.astype(dtype), jnp.asarray(t, dtype))[0])
                assert abs(got - v) < 3 * spread, (share, dtype, got, v)


def test_what_cannot_be_is_nan_inside_jit():
    flow = joma.NonlinearActivation(jnp.ones(1))
    assert jnp.isnan(eqx.filter_jit(flow.exact)(jnp.zeros(1), -1.0))
    assert jnp.isnan(eqx.filter_jit(flow.time_to)(jnp.zeros(1), 2 * jnp.ones(1)))
    assert jnp.isnan(eqx.filter_jit(flow.log_form().time_to)(jnp.ones(1), jnp.zeros(1)))


def test_integers_are_the_numbers_they_mean():
    log = joma.LogGap([1, 2])
    np.testing.assert_array_equal(log.exact(jnp.zeros(2, int), 1), log.exact(jnp.zeros(2), 1.0))
    flow = joma.NonlinearActivation([1, 2])
    np.testing.assert_array_equal(flow.exact(np.zeros(2, int), 1), flow.exact(jnp.zeros(2), 1.0))


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: joma.NonlinearActivation([40.0]).exact(jnp.zeros(1), 1.0), "mu must be .* at most 10, got 40.0"),
        (lambda: joma.LogGap([11]).exact(jnp.zeros(1), 1.0), "mu must be .* at most 10, got 11.0"),
        (lambda: joma.NonlinearActivation([40.0]).lag(), "mu must be .* at most 10, got 40.0"),
        (lambda: joma.NonlinearActivation([1.0]).exact(jnp.array([-50.0]), 1.0), r"v\(0\) must be at least -10"),
        (lambda: joma.NonlinearActivation([1.0]).time_to(jnp.array([-50.0]), jnp.zeros(1)), r"v\(0\) must be at least"),
        (lambda: joma.NonlinearActivation([jnp.nan]), "mu must be finite, got nan"),
        (lambda: joma.NonlinearActivation([1.0]).exact(jnp.zeros(1), jnp.nan), "ts must be zero or later, and not NaN"),
        (lambda: joma.NonlinearActivation([1.0]).time_to(jnp.zeros(1), jnp.array([2.0])), "v must lie between y0 and"),
        (lambda: joma.NonlinearActivation([1.0]).time_to(jnp.zeros(1), jnp.array([-0.5])), "v must lie between y0 and"),
        (lambda: joma.LogGap([1.0]).time_to(jnp.ones(1), jnp.zeros(1)), "y must be at least y0"),
        (lambda: joma.NonlinearActivation(jnp.ones((2, 2))), r"mu must have shape \(tokens,\), got \(2, 2\)"),
        (lambda: joma.NonlinearActivation(1.0), r"mu must have shape \(tokens,\), got \(\)"),
        (
            lambda: joma.NonlinearActivation(jnp.ones(2)).exact(jnp.ones(3), 0.1),
            r"y0 must have shape \(2,\), got \(3,\)",
        ),
        (lambda: joma.NonlinearActivation(jnp.ones(2))(0.1, jnp.ones(3)), r"y must have shape \(2,\), got \(3,\)"),
        (lambda: joma.LogGap(jnp.ones(2)).exact(jnp.ones(1), 0.1), r"y0 must have shape \(2,\), got \(1,\)"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_wrong_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
@pytest.mark.parametrize("attention", (True, False))
def test_infinite_time_ends_at_mu_and_the_log_gap_at_infinity(attention, dtype):
    mu, y0 = jnp.array([0.0, 1.0, 4.0, -6.0], dtype), jnp.array([0.0, 0.5, 0.0, 1.0], dtype)
    end = lambda mu, t, y0: joma.NonlinearActivation(mu[None], attention).exact(y0[None], t)[0]
    forever = jnp.array(jnp.inf, dtype)
    np.testing.assert_array_equal(joma.NonlinearActivation(mu, attention).exact(0 * y0, forever), mu)
    slopes = jax.jit(jax.vmap(jax.grad(end, (0, 1, 2)), (0, None, 0)))(mu, forever, y0)
    for slope, value in zip(slopes, (1.0, 0.0, 0.0), strict=True):
        np.testing.assert_array_equal(slope, np.full(4, value))
    gap = joma.LogGap(mu[1:], attention)
    assert np.all(gap.exact(y0[1:], forever) == np.inf) and np.all(eqx.filter_jit(gap.exact)(y0[1:], forever) == np.inf)
    assert joma.LogGap(jnp.array([4.0]), True).exact(jnp.zeros(1), 1e307) == np.inf  # beyond the largest number
