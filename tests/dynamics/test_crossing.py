"""Times of events, on flows and on curves, beside closed forms."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from traindyn.dynamics import GradientFlow, SolveError, crossing_time, escape_time, solve
from traindyn.nets import train
from traindyn.validate import metrics


def _logistic(t, y, args):
    return y * (1 - y)


def _logistic_time(level, start):
    return np.log(level / (1 - level)) - np.log(start / (1 - start))


def _decay(t, y, args):
    return jax.tree.map(jnp.negative, y)


def _square(t, y, args):
    return y**2


def _turning(t, y, args):
    return 1j * y


class _Stiff(eqx.Module):
    stiff = True

    def __call__(self, t, y, args):
        return y * (1 - y)


def _itself(y):
    return y


def _first(y):
    return y["a"][0]


def _real(y):
    return y.real


def _growing(rate, t, y, args):
    return rate * y * (1 - y)


def _time(start, level=0.5, rate=1.0):
    return crossing_time(Partial(_growing, rate), start, _itself, level, 20.0)


@pytest.mark.parametrize("start", (1e-3, 1e-30))
@pytest.mark.parametrize("flow", (_logistic, _Stiff()), ids=("explicit", "stiff"))
def test_the_logistic_curve_escapes_when_its_formula_says(flow, start):
    found = crossing_time(flow, jnp.array(start), _itself, 0.5, 200.0)
    assert found == pytest.approx(_logistic_time(0.5, start), abs=1e-8)
    assert found.shape == () and found.dtype == jnp.float64


def test_falling_before_a_blow_up_and_in_float32():
    y0 = {"a": jnp.array([2.0, 1.0]), "n": jnp.ones(())}
    assert crossing_time(_decay, y0, _first, 1e-3, 20.0) == pytest.approx(math.log(2e3), abs=1e-8)
    assert crossing_time(_square, jnp.array(1.0), _itself, 1e8, 2.0) == pytest.approx(1 - 1e-8, rel=1e-10)
    narrow = crossing_time(_logistic, jnp.float32(1e-3), _itself, 0.5, 20.0)
    assert narrow.dtype == jnp.float32 and narrow == pytest.approx(_logistic_time(0.5, 1e-3), rel=1e-5)


def test_what_never_crosses_takes_for_ever_and_what_is_there_no_time():
    assert crossing_time(_logistic, jnp.array(0.1), _itself, 1.5, 20.0) == math.inf
    assert crossing_time(_logistic, jnp.array(0.1), _itself, 0.5, 2.0) == math.inf  # at 2.197
    assert crossing_time(_logistic, jnp.array(0.1), _itself, 0.1, 2.0) == 0
    assert escape_time(_decay, jnp.array(0.0), _itself, 2.0) == math.inf


def test_lanes_are_as_one_by_one_and_gradients_those_of_the_formula():
    starts = jnp.array([1e-3, 0.2, 0.5, 1e-9])
    expected = [*_logistic_time(0.5, np.array([1e-3, 0.2])), 0.0, math.inf]
    np.testing.assert_allclose(jax.jit(jax.vmap(_time))(starts), expected, rtol=1e-9)
    slopes = jax.jit(jax.grad(_time, argnums=(0, 1, 2)))(0.2, 0.4, 2.0)
    expected = [-1 / 0.2 / 0.8 / 2, 1 / 0.4 / 0.6 / 2, -_logistic_time(0.4, 0.2) / 4]
    np.testing.assert_allclose(slopes, expected, rtol=1e-8)


def test_what_stops_before_is_an_error_or_nan():
    with pytest.raises(SolveError, match="blows up at t = 1 of 2"):
        crossing_time(_square, jnp.array(1.0), _itself, 0.5, 2.0)
    assert jnp.isnan(crossing_time(_decay, jnp.array(1.0), _from_half, -1.0, 1.0))
    lanes = jax.vmap(lambda y: crossing_time(_square, y, _up_to_four, 3.0, 2.0))(jnp.array([1.0, 0.1, 5.0, 3.5]))
    np.testing.assert_allclose(lanes, [2 / 3, math.inf, math.nan, math.nan], rtol=1e-9)


def _from_half(y):
    return jnp.sqrt(y - 0.5)


def _up_to_four(y):
    return jnp.where(y < 4, y, jnp.nan)


def test_a_plateau_is_left_when_the_distance_from_its_start_says():
    end = 1 / (1 + 999 * math.exp(-20.0))
    expected = _logistic_time(1e-3 + 0.1 * (end - 1e-3), 1e-3)
    assert escape_time(_logistic, jnp.array(1e-3), _itself, 20.0) == pytest.approx(expected, abs=1e-9)
    inside = jax.jit(lambda y, f: escape_time(_logistic, y, _itself, 20.0, fraction=f))
    assert inside(1e-3, 0.1) == pytest.approx(expected, abs=1e-9)
    # On the other side than the end: cos falls from 1 to −1 and is back at 0.9 at the end.
    back = escape_time(_turning, jnp.array(1 + 0j), _real, 2 * math.pi - math.acos(0.9), fraction=0.5)
    assert back == pytest.approx(math.acos(0.95), abs=1e-9)


# Curves


def test_curves_cross_where_lines_between_their_points_do():
    t = jnp.array([0.0, 1.0, 3.0, 4.0])
    curve = jnp.array([[0.0, 4.0, 1.0, 2.0, 0.0], [1.0, 2.0, 1.0, jnp.nan, 2.0], [5.0, 0.0, 0.0, 0.0, jnp.nan]])
    curve = jnp.concatenate([curve, curve[2:]])
    found = metrics.crossing_time(t, curve, 1.0)
    np.testing.assert_allclose(found, [1.0, 2.0, 0.0, math.nan, 0.5])
    np.testing.assert_allclose(metrics.crossing_time(t, curve[:, 0], 3.0), 2.0)
    np.testing.assert_allclose(metrics.crossing_time(t, curve[:, :2], jnp.array([9.0, 1.0])), [math.inf, 2.0])
    np.testing.assert_allclose(jax.jit(jax.vmap(metrics.crossing_time, (None, 1, None)))(t, curve, 1.0), found)
    np.testing.assert_allclose(metrics.escape_time(t, curve, 0.5), [1.75, 1.0, 2.0, math.nan, math.nan])
    assert metrics.escape_time(t, jnp.ones(4)) == math.inf
    rise = jnp.array([0.0, jnp.inf])
    assert metrics.crossing_time(t[:2], rise, 1.0) == 0  # where it was last seen on this side
    slope = jax.grad(lambda c: metrics.crossing_time(t, c, 1.5))(curve[:, 0])
    np.testing.assert_allclose(slope, [0, -7 / 16, -1 / 16, 0])


def test_a_network_escapes_when_its_flow_does():
    loss = lambda w, _: (1 - w**2) ** 2 / 4  # ẇ = w (1 − w²)
    rate, start = 0.002, jnp.array(0.01)
    run = train(start, loss, None, optax.sgd(rate), 5000, observe=lambda w: w, every=10)
    flow, t = GradientFlow(Partial(lambda w: loss(w, None))), rate * run.steps.astype(float)
    theory = float(crossing_time(flow, start, _itself, 0.5, 10.0))
    assert theory == pytest.approx((math.log(1 / 3) - math.log(1e-4 / (1 - 1e-4))) / 2, abs=1e-9)
    for of_flow, of_curve in (
        (theory, lambda t, w: metrics.crossing_time(t, w, 0.5)),
        (float(escape_time(flow, start, _itself, 10.0)), metrics.escape_time),
    ):
        assert of_curve(t, solve(flow, start, t).ys) == pytest.approx(of_flow, abs=1e-4)
        assert of_curve(t, run.observed) == pytest.approx(of_flow, abs=5 * rate)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"flow": None}, "flow must be callable, got None"),
        ({"quantity": 3}, "quantity must be callable, got 3"),
        ({"quantity": lambda y: jnp.ones(2)}, r"quantity must return one real number, .*got float64\[2\]"),
        ({"quantity": lambda y: 1j * y}, "quantity must return one real number"),
        ({"quantity": lambda y: y / 0}, "quantity must be finite at the start, got float64.* inf"),
        ({"level": math.nan}, "level must be finite, got nan"),
        ({"until": 0.0}, "until must be above 0, got 0.0"),
        ({"until": math.inf}, "until must be finite and above 0, got inf"),
        ({"rtol": 0.0}, "rtol must be above 0"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1"),
        ({"y0": jnp.ones((), int)}, "y0 must be a floating-point array"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_arguments_are_refused(changes, message):
    arguments = {"flow": _logistic, "y0": jnp.array(0.1), "quantity": _itself, "level": 0.5, "until": 9.0} | changes
    with pytest.raises(ValueError, match=message):
        crossing_time(**arguments)
    if "level" not in changes:
        arguments.pop("level")
        with pytest.raises(ValueError, match=message):
            escape_time(**arguments)


@pytest.mark.usefixtures("as_users")
def test_bad_curves_are_refused():
    t, curve = jnp.arange(3.0), jnp.ones((3, 2))
    for call, message in (
        (lambda: metrics.crossing_time(t[::-1], curve, 0.5), "t must be finite and increase, got"),
        (lambda: metrics.crossing_time(t, curve, jnp.ones(3)), r"level must be one number or have shape \(2,\), got"),
        (lambda: metrics.crossing_time(t, curve, math.inf), "level must be finite"),
        (lambda: metrics.crossing_time(t[:2], curve, 0.5), r"curve must have shape \(2, "),
        (lambda: metrics.crossing_time(t[:0], curve[:0], 0.5), "curve must have at least one time"),
        (lambda: metrics.escape_time(t, curve, 1.0), "fraction must be above 0 and below 1, got 1.0"),
        (
            lambda: escape_time(_logistic, 0.1, _itself, 9.0, fraction=0.0),
            "fraction must be above 0 and below 1, got 0.0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
