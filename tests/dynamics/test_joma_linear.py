"""Facts of Theorem 2 of JoMA, which the common tests do not know."""

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.scipy.special import erf, erfinv, ndtri

from traindyn.dynamics import joma, solve

DELTA = jnp.array([1.0, 0.8, 0.5, 0.1, -0.3, -0.9])
ROOT = np.sqrt(np.pi / 2)
EPS = np.finfo(float).eps


def test_growth_before_the_blow_up_has_the_values_of_the_specification():
    # v at 1 − t/t* = 1e-1 … 1e-12, printed to three decimals.
    flow, zero = joma.LinearActivation(jnp.array([1.0])), jnp.zeros(1)
    v = [flow.exact(zero, ROOT * (1 - rest))[0] for rest in (1e-1, 1e-2, 1e-4, 1e-6, 1e-8)]
    np.testing.assert_allclose(v, [1.645, 2.576, 3.891, 4.892, 5.731], atol=5e-4)


def test_from_zero_erf_over_delta_is_common_to_all_tokens():
    v = joma.LinearActivation(DELTA, 2.0).exact(jnp.zeros(6), 0.9 * 2 * ROOT)
    np.testing.assert_allclose(erf(v / np.sqrt(2)) / DELTA, 0.9, rtol=8 * EPS)
    printed = erf(v / 2) / DELTA  # the misprint, which is 0.17 off here
    assert (jnp.max(printed) - jnp.min(printed)) / jnp.mean(printed) > 0.1


@pytest.mark.parametrize("delta", (1.0, -2.0))
@pytest.mark.parametrize("v0", (-1.3, 0.0, 0.4))
def test_blow_up_time_of_one_token(delta, v0):
    flow, y0 = joma.LinearActivation(jnp.array([delta]), 0.7), jnp.array([v0])
    expected = 0.7 * ROOT * (1 - np.sign(delta) * erf(v0 / np.sqrt(2))) / abs(delta)
    t = flow.blow_up_time(y0)[0]
    assert float(t) == pytest.approx(float(expected), rel=8 * EPS)
    # √(2 ln 1/rest) bounds the state from above, and it is past 7 there; with the sign of Δ.
    assert 7 < float(jnp.sign(delta) * flow.exact(y0, t * (1 - 1e-12))[0]) < 7.5


def test_zero_delta_never_blows_up_and_stays():
    flow, y0 = joma.LinearActivation(jnp.array([0.0, 1.0])), jnp.array([0.3, 0.0])
    assert flow.blow_up_time(y0)[0] == jnp.inf
    assert float(flow.exact(y0, 1.0)[0]) == pytest.approx(0.3, rel=4 * EPS)
    # The derivative does not become NaN through the division by Δ.
    assert float(jax.grad(lambda f: f.blow_up_time(y0)[1])(flow).delta[1]) == pytest.approx(-ROOT, rel=8 * EPS)
    # and dv/dΔ at Δ = 0 is t exp(v²/2), near zero as far out, on either side.
    far = jnp.array([0.3, 1.5, -1.5])
    slope = jax.jit(jax.grad(lambda delta: joma.LinearActivation(delta).exact(far, 0.1).sum()))(jnp.zeros(3))
    np.testing.assert_allclose(slope, 0.1 * jnp.exp(far**2 / 2), rtol=64 * EPS)


def test_winner_has_the_largest_delta_from_zero_and_not_from_elsewhere():
    flow = joma.LinearActivation(DELTA)
    assert flow.winner(jnp.zeros(6)) == 0
    ahead = jnp.zeros(6).at[1].set(1.0)  # 0.8 from one: (1 − erf(1/√2))/0.8 = 0.40 against 1 for the first
    assert flow.winner(ahead) == 1
    assert flow.winner(jnp.zeros(6).at[0].set(-0.5)) == 5  # 1.38 for the first, and 1/0.9 for the negative one


def test_exact_at_time_zero_is_the_initial_value_however_far_out():
    # "Any initial value": on the side that it leaves, v0 is as well conditioned as on the side that it goes to.
    y0 = jnp.array([-9.0, -8.0, -5.0, -0.1, 0.0, 0.1, 5.0, 8.0])
    for sign in (1.0, -1.0):
        np.testing.assert_allclose(joma.LinearActivation(sign * jnp.ones(8)).exact(y0, 0.0), y0, rtol=64 * EPS)


@pytest.mark.parametrize(
    ("dtype", "sizes"), ((jnp.float64, (30, 38, 38.6, 39, 1e3)), (jnp.float32, (10, 13, 13.5, 14, 1e3)))
)
@pytest.mark.parametrize("many", (False, True))
def test_a_token_that_stands_still_stays_however_far_out(dtype, sizes, many):
    # Where the tail of the normal distribution underflows, or exp(v²/2) overflows.
    y0 = jnp.array([*sizes, *(-size for size in sizes)], dtype)
    y0 = jnp.stack([y0, 0 * y0], axis=1) if many else y0
    make = joma.ManyNodes if many else joma.LinearActivation
    flow = make(jnp.zeros_like(y0))
    np.testing.assert_array_equal(flow.exact(y0, 0.1), y0)
    assert jnp.all(flow.blow_up_time(y0) == jnp.inf)
    by_delta, by_start = jax.jit(jax.grad(lambda d, y: make(d).exact(y, 0.1).sum(), (0, 1)))(flow.delta, y0)
    assert jnp.all(jnp.isfinite(by_delta))
    np.testing.assert_allclose(by_start, jnp.ones_like(y0), rtol=1e-6)
    if not many:  # nothing moves at t = 0; from far out a token comes in at once
        inwards = lambda t: eqx.filter_jit(make(-jnp.sign(y0)).exact)(y0, t)
        np.testing.assert_array_equal(inwards(0.0), y0)
        np.testing.assert_allclose(inwards(0.1), np.sign(y0) * -float(ndtri(0.1 / np.sqrt(2 * np.pi))), rtol=1e-6)


def test_integers_are_the_numbers_they_mean():
    flow = joma.LinearActivation([1, 0.8, -0.3])
    np.testing.assert_allclose(flow.exact(np.zeros(3, int), 0.1), [0.1002, 0.0801, -0.03], atol=5e-5)
    np.testing.assert_array_equal(flow.exact(np.zeros(3, int), 0.1), flow.exact(jnp.zeros(3), 0.1))
    start = joma.LinearAttentionState(np.zeros((1, 1), int), np.ones(1, int))
    moved = joma.LinearAttention([[1]]).exact(start, 1)
    np.testing.assert_allclose((moved.v[0, 0], moved.z[0]), (np.sinh(1), np.cosh(1)), rtol=1e-15)


def test_exact_refuses_a_time_past_the_blow_up_and_is_nan_there_inside_jit():
    flow, y0 = joma.LinearActivation(DELTA), jnp.zeros(6)
    with pytest.raises(ValueError, match=r"component \[0\] becomes infinite at t = 1\.25331413"):
        flow.exact(y0, 1.3)
    v = jax.jit(lambda t: flow.exact(y0, t))(1.3)
    assert jnp.isnan(v[0]) and jnp.all(jnp.isfinite(v[1:]))


small = st.floats(-3, 3)


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(v0=st.lists(small, min_size=4, max_size=4), first=st.floats(0, 1), second=st.floats(0, 1))
def test_exact_is_a_semigroup_from_any_initial_value(v0, first, second):
    y0, delta = jnp.asarray(v0), jnp.array([1.0, 0.2, -0.6, 0.0])
    both = _semigroup(delta, y0, jnp.asarray(first), jnp.asarray(second))
    # Roundings of v(0), of the state on the way and of Δt, as the flow amplifies them: dv/dv(0) = exp((v² − v(0)²)/2).
    v, middle = both[0], both[2]
    growth = lambda start: jnp.abs(start) * jnp.exp((v**2 - start**2) / 2)
    bound = 16 * EPS * (1 + jnp.abs(v) + growth(y0) + growth(middle) + ROOT * jnp.exp(v**2 / 2))
    assert jnp.all(jnp.abs(both[0] - both[1]) <= bound)


@jax.jit
def _semigroup(delta, y0, first, second):
    flow = joma.LinearActivation(delta)
    s, t = 0.45 * first * flow.blow_up_time(y0).min(), 0.45 * second * flow.blow_up_time(y0).min()
    middle = flow.exact(y0, s)
    return flow.exact(middle, t), flow.exact(y0, s + t), middle


def test_regularised_clock_runs_up_to_the_blow_up():
    # From zero the winner is Δτ/A, so that τ = 14 A/Δ puts it at 14, where 1 − t/t* is e^{−98}.
    clock = joma.LinearActivation(DELTA, 1.5).regularised()
    end = solve(clock, joma.ClockState(jnp.zeros(6), jnp.array(0.0)), [14 * 1.5]).ys
    assert float(end.v[0, 0]) == pytest.approx(14, rel=1e-9)
    assert float(end.t[0]) == pytest.approx(1.5 * ROOT, rel=1e-8)
    np.testing.assert_allclose(end.v[0, 1:], np.sqrt(2) * erfinv(DELTA[1:]), rtol=1e-8)


def test_regularised_clock_has_the_trajectories_of_the_flow():
    # dv/dτ over dt/dτ is dv/dt, whatever the clock.
    flow, v = joma.LinearActivation(DELTA, 1.5), jnp.array([0.3, -0.2, 2.0, 1.0, -1.5, 0.0])
    slope = flow.regularised()(0.0, joma.ClockState(v, jnp.array(0.0)), None)
    np.testing.assert_allclose(slope.v / slope.t, flow(0.0, v, None), rtol=8 * EPS)
    assert float(jnp.abs(slope.v[2])) == pytest.approx(0.5 / 1.5, rel=8 * EPS)  # the largest moves at |Δ|/A


def test_many_nodes_from_zero_obey_the_law_of_the_row_norms():
    delta = jax.random.normal(jax.random.key(1), (5, 3))
    flow, norms = joma.ManyNodes(delta, 2.0), jnp.linalg.norm(delta, axis=1)
    np.testing.assert_allclose(flow.blow_up_time(jnp.zeros((5, 3))), 2 * ROOT / norms, rtol=8 * EPS)
    t = 0.9 * float(2 * ROOT / norms.max())
    rows = flow.exact(jnp.zeros((5, 3)), t)
    np.testing.assert_allclose(erf(jnp.linalg.norm(rows, axis=1) / np.sqrt(2)), norms * t / (2 * ROOT), rtol=16 * EPS)
    np.testing.assert_allclose(rows / jnp.linalg.norm(rows, axis=1)[:, None], delta / norms[:, None], rtol=16 * EPS)


def test_many_nodes_have_the_sum_over_nodes_inside_the_exponent():
    v = jnp.array([[1.0, 2.0]])
    got = joma.ManyNodes(jnp.array([[3.0, -1.0]]), 2.0)(0.0, v, None)
    np.testing.assert_allclose(got, np.exp(2.5) / 2 * np.array([[3.0, -1.0]]), rtol=8 * EPS)


def test_many_nodes_slope_becomes_rank_one_before_the_blow_up_and_the_state_does_not():
    delta = jax.random.normal(jax.random.key(2), (16, 8))
    flow, zero = joma.ManyNodes(delta), jnp.zeros((16, 8))
    stable_rank = lambda x: float(jnp.sum(x**2) / jnp.linalg.norm(x, ord=2) ** 2)
    states = [flow.exact(zero, float(flow.blow_up_time(zero).min()) * (1 - rest)) for rest in (1e-2, 1e-4, 1e-6)]
    ranks = [stable_rank(v) for v in states]
    assert ranks[0] > ranks[1] > ranks[2] > 1.5
    assert stable_rank(flow(0.0, states[2], None)) < 1.05


def test_one_node_is_a_special_case_of_many():
    y0 = jnp.array([0.3, -0.2, 0.0, 1.0, 0.5, 0.1])
    one, many = joma.LinearActivation(DELTA, 1.2), joma.ManyNodes(DELTA[:, None], 1.2)
    np.testing.assert_allclose(many.exact(y0[:, None], 0.3)[:, 0], one.exact(y0, 0.3), rtol=1e-13)


@pytest.mark.parametrize("flow_of", (joma.ManyNodes, joma.LinearAttention))
def test_a_token_without_saliency_stays_and_has_finite_gradients(flow_of):
    delta = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    y0 = jnp.array([[0.1, 0.2], [0.3, 0.4]])
    state = joma.LinearAttentionState(y0, jnp.ones(2)) if flow_of is joma.LinearAttention else y0

    def moved(delta):
        y = flow_of(delta).exact(state, 0.1)
        return y.v if flow_of is joma.LinearAttention else y

    np.testing.assert_allclose(moved(delta)[1], y0[1], rtol=1e-15)
    # At Δ = 0 the row moves as Δ_l t times the strength of attention there, exp(‖v‖²/2) or z = 1: that is its slope.
    strength = 1.0 if flow_of is joma.LinearAttention else np.exp(0.125)
    slope = jax.jit(jax.jacrev(moved))(delta)[1, :, 1, :]
    np.testing.assert_allclose(slope, 0.1 * strength * np.eye(2), rtol=1e-13, atol=1e-15)


def test_linear_attention_from_zero_is_the_sinh_and_cosh_law():
    delta, z0 = jax.random.normal(jax.random.key(3), (4, 1)), jnp.full(4, 0.3)
    y = joma.LinearAttention(delta).exact(joma.LinearAttentionState(jnp.zeros((4, 1)), z0), 2.0)
    np.testing.assert_allclose(jnp.arcsinh(y.v[:, 0] / 0.3) / delta[:, 0], 2.0, rtol=1e-13)
    np.testing.assert_allclose(y.z, 0.3 * jnp.cosh(2 * delta[:, 0]), rtol=1e-13)


def test_linear_attention_from_zero_logits_is_at_rest():
    y0 = joma.LinearAttentionState(jnp.zeros((2, 3)), jnp.zeros(2))
    slope = joma.LinearAttention(jnp.ones((2, 3)))(0.0, y0, None)
    assert jnp.all(slope.v == 0) and jnp.all(slope.z == 0)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: joma.LinearActivation(jnp.ones((2, 2))), r"delta must have shape \(tokens,\), got \(2, 2\)"),
        (lambda: joma.LinearActivation([jnp.nan]), "delta must be finite, got nan"),
        (lambda: joma.LinearActivation([1.0], 0.0), "normaliser must be above 0, got 0.0"),
        (lambda: joma.LinearActivation([1.0], jnp.ones(2)), r"normaliser must have shape \(\), got \(2,\)"),
        (lambda: joma.LinearActivation([1j]), "delta must be real"),
        (
            lambda: joma.LinearActivation([1.0]).exact(jnp.zeros(1), jnp.ones((1, 2))),
            r"ts must have shape \(times,\), got \(1, 2\)",
        ),
        (lambda: joma.LinearActivation(jnp.ones(0)).winner(jnp.ones(0)), "delta must have an entry that is not 0"),
        (lambda: joma.LinearActivation([0.0]).winner(jnp.zeros(1)), "delta must have an entry that is not 0"),
        (
            lambda: joma.LinearActivation(DELTA).regularised()(0.0, joma.ClockState(jnp.zeros(1), jnp.array(0.0))),
            r"y.v must have shape \(6,\), got \(1,\)",
        ),
        (
            lambda: joma.LinearAttention(jnp.ones((3, 2)))(
                0.0, joma.LinearAttentionState(jnp.ones((3, 2)), jnp.ones(1))
            ),
            r"y.z must have shape \(3,\), got \(1,\)",
        ),
        (lambda: joma.ManyNodes(jnp.ones((3, 2)), -1.0), "normaliser must be above 0, got -1.0"),
        (lambda: joma.ManyNodes(jnp.ones(2)), r"delta must have shape \(tokens, nodes\), got \(2,\)"),
        (lambda: joma.LinearAttention(jnp.ones(2)), r"delta must have shape \(tokens, nodes\), got \(2,\)"),
        (lambda: joma.LinearActivation(DELTA).exact(jnp.zeros(5), 0.1), r"y0 must have shape \(6,\), got \(5,\)"),
        (lambda: joma.LinearActivation(DELTA)(0.0, jnp.zeros(5)), r"y must have shape \(6,\), got \(5,\)"),
        (lambda: joma.LinearActivation(DELTA).winner(jnp.zeros((6, 1))), r"y0 must have shape \(6,\), got \(6, 1\)"),
        (lambda: joma.ManyNodes(jnp.ones((2, 3))).exact(jnp.zeros((3, 2)), 0.1), r"y0 must have shape \(2, 3\)"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_wrong_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("dtype", "starts"), ((jnp.float64, [40.0, 45.0]), (jnp.float32, [14.0, 15.0])))
def test_winner_far_out_is_the_farther_one(dtype, starts):
    flow, starts = joma.LinearActivation(jnp.ones(2, dtype)), jnp.array(starts, dtype)
    assert flow.winner(starts) == 1 and flow.winner(starts[::-1]) == 0
    assert joma.LinearActivation(-flow.delta).winner(-starts) == 1
    assert jax.jit(lambda f, y: f.winner(y))(flow, starts) == 1


@pytest.mark.parametrize(
    ("dtype", "size", "time"),
    (
        (jnp.float32, 1e-25, 1e25),
        (jnp.float32, 1e25, 0.5e-25),
        (jnp.float64, 1e-170, 1e170),
        (jnp.float64, 1e200, 0.5e-200),
    ),
)
def test_rows_of_any_size_move_as_rows_of_size_one(dtype, size, time):
    delta, zero, rtol = jnp.array([[1.0, -0.5]], dtype), jnp.zeros((1, 2), dtype), 20 * float(jnp.finfo(dtype).eps)
    y0 = joma.LinearAttentionState(zero + 0.1, jnp.ones(1, dtype))
    time, scaled, unit = jnp.array(time, dtype), size * delta, jnp.array(size * time, dtype)
    for kind, start in ((joma.ManyNodes, zero), (joma.LinearAttention, y0)):
        found, wanted = kind(scaled).exact(start, time), kind(delta).exact(start, unit)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(x, y, rtol=rtol)
    blow_up = joma.ManyNodes(scaled).blow_up_time(zero)
    np.testing.assert_allclose(blow_up * size, joma.ManyNodes(delta).blow_up_time(zero), rtol=rtol)


@pytest.mark.parametrize("t", (800.0, 2000.0, np.inf))
@pytest.mark.parametrize(
    ("delta", "v", "z", "v_end", "z_end"),
    (
        ([[1.0, 0.0]], [[0.0, 0.0]], [0.0], [[0.0, 0.0]], [0.0]),
        ([[1.0, 0.0]], [[0.0, 2.0]], [0.0], [[0.0, 2.0]], [0.0]),
        ([[1.0, 0.0]], [[1.0, 2.0]], [-1.0], [[0.0, 2.0]], [0.0]),
        ([[1.0, 0.0]], [[1.0, 2.0]], [0.5], [[np.inf, 2.0]], [np.inf]),
        ([[0.0, 0.0]], [[1.0, 2.0]], [0.5], [[1.0, 2.0]], [0.5]),
    ),
)
def test_linear_attention_has_its_limits(t, delta, v, z, v_end, z_end):
    start = joma.LinearAttentionState(jnp.array(v), jnp.array(z))
    end = joma.LinearAttention(delta).exact(start, t)
    np.testing.assert_allclose(end.v, v_end, atol=1e-300)
    np.testing.assert_allclose(end.z, z_end, atol=1e-300)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
def test_linear_attention_has_gradients_early_late_and_at_rest(dtype):
    def by_hand(delta, t, v, z):  # one node
        grow, mix = jnp.cosh(delta * t), jnp.sinh(delta * t)
        return jnp.sum(v * grow[:, None] + (z * mix)[:, None]) + 2 * jnp.sum(z * grow + v[:, 0] * mix)

    def flow(delta, t, v, z):
        end = joma.LinearAttention(delta[:, None]).exact(joma.LinearAttentionState(v, z), t)
        return jnp.sum(end.v) + 2 * jnp.sum(end.z)

    delta = jnp.array([1.0, -0.5, 0.0, 2.0], dtype)
    v, z = jnp.array([[0.3], [1.0], [0.5], [0.0]], dtype), jnp.array([1.0, 0.2, 0.7, 0.0], dtype)
    for t in (0.1, 3.0, -2.0):
        point = (delta, jnp.array(t, dtype), v, z)
        found, wanted = jax.jit(jax.grad(flow, (0, 1, 2, 3)))(*point), jax.grad(by_hand, (0, 1, 2, 3))(*point)
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=100 * float(jnp.finfo(dtype).eps), atol=1e-6)


def test_what_stands_still_does_so_for_ever():
    still, y0 = joma.LinearActivation(jnp.zeros(3)), jnp.array([1.0, 40.0, 0.0])
    for t in (jnp.inf, -jnp.inf, 1.0):
        np.testing.assert_allclose(still.exact(y0, t), y0, rtol=1e-15)
    np.testing.assert_allclose(joma.ManyNodes(jnp.zeros((1, 3))).exact(y0[None], jnp.inf), y0[None], rtol=1e-15)
    slope = jax.jit(jax.grad(lambda delta: joma.LinearActivation(delta).exact(jnp.ones(1), 2.0)[0]))(jnp.zeros(1))
    np.testing.assert_allclose(slope, [2 * np.exp(0.5)], rtol=1e-14)
