"""`solve`, its errors, and the gradient flow of any loss."""

from pathlib import Path

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from traindyn.dynamics import BlowsUp, Flow, GradientFlow, SolveError, _diffrax, grokking, joma, solve
from traindyn.dynamics._compiled import bounded_jit

LINEAR = joma.LinearActivation(jnp.array([0.5, 1.0, -0.9]))
ZERO = jnp.zeros(3)
T_STAR = np.sqrt(np.pi / 2)  # of LINEAR from zero: its second component


class Drift(Flow):
    """`ẏ = rate`, in any PyTree."""

    rate: jax.Array = eqx.field(converter=jnp.asarray, default=1.0)

    def __call__(self, t, y, args):
        return jax.tree.map(lambda y: jnp.full_like(y, self.rate), y)


class Explosion(Flow):
    """`ẏ = exp(y²/2)`, without a `blow_up_time`."""

    def __call__(self, t, y, args):
        return jax.tree.map(lambda y: jnp.exp(y**2 / 2), y)


def _half_square(scale, y):
    return scale * sum(jnp.sum(x**2) / 2 for x in jax.tree.leaves(eqx.filter(y, eqx.is_inexact_array)))


# What solve returns


def test_solution_has_the_times_asked_for_and_the_initial_state_at_zero():
    solution = solve(LINEAR, ZERO + 0.1, [0.0, 0.25, 0.5])
    np.testing.assert_array_equal(solution.ts, [0.0, 0.25, 0.5])
    np.testing.assert_array_equal(solution.ys[0], ZERO + 0.1)
    assert isinstance(solution, dfx.Solution) and solution.result == dfx.RESULTS.successful
    assert solution.stats["t_stop"] == 0.5
    np.testing.assert_allclose(solution.stats["y_stop"], solution.ys[-1], rtol=1e-15)


def test_time_zero_alone_is_the_initial_state():
    for flow in (LINEAR, joma.NonlinearActivation(jnp.ones(3))):
        np.testing.assert_array_equal(solve(flow, ZERO + 0.1, [0.0]).ys, jnp.full((1, 3), 0.1))


def test_state_may_be_any_pytree_of_arrays_and_numbers():
    ys = solve(Drift(2.0), {"a": 1.0, "b": [np.zeros(2), jnp.ones((2, 1))]}, [1.0, 2.0]).ys
    expected = {"a": [3.0, 5.0], "b": [[[2, 2], [4, 4]], [[[3], [3]], [[5], [5]]]]}
    jax.tree.map(
        lambda y, e: np.testing.assert_allclose(y, e, rtol=1e-14),
        ys,
        expected,
        is_leaf=lambda x: isinstance(x, jax.Array),
    )


@pytest.mark.parametrize("flow", (LINEAR, joma.NonlinearActivation(jnp.array([0.5, 2.0, 3.0]))))
def test_float32_defaults_give_float32_accuracy(flow):
    flow32 = jax.tree.map(lambda x: x.astype(jnp.float32), flow)
    solution = solve(flow32, ZERO.astype(jnp.float32), [0.2, 1.0])
    assert solution.ys.dtype == solution.ts.dtype == jnp.float32
    # 1e-5 a step, times some tens of steps.
    np.testing.assert_allclose(solution.ys[1], flow.exact(ZERO, 1.0), rtol=1e-3)


def test_steep_but_finite_solution_is_not_taken_for_a_blow_up():
    # A state that passes through zero: at 1e-9 its own size is small against speed × time, as at a blow-up.
    ys = solve(Drift(), jnp.array([-1.0]), [0.5, 1 + 1e-9]).ys
    np.testing.assert_allclose(ys[:, 0], [-0.5, 1e-9], atol=1e-12)


# Learning rates and other parameters are values, not constants of the compiled program


def test_new_rates_of_a_gradient_flow_do_not_compile_again():
    traces = []

    def loss(y):
        traces.append(None)
        return jnp.sum(y**2) / 2

    end = [float(solve(GradientFlow(loss, rate), jnp.ones(1), [1.0]).ys[0, 0]) for rate in (1.0, 0.5)]
    first = len(traces)
    end.append(float(solve(GradientFlow(loss, 0.25), jnp.ones(1), [1.0]).ys[0, 0]))
    np.testing.assert_allclose(end, np.exp([-1.0, -0.5, -0.25]), rtol=1e-8)
    assert len(traces) == first
    solve(GradientFlow(loss, 0.25), jnp.ones(2), [1.0])
    assert len(traces) > first  # another shape does: the counter works


# Bad input


@pytest.mark.parametrize(
    ("y0", "ts", "options", "message"),
    (
        (ZERO, [0.1, 0.1], {}, "ts must be strictly increasing"),
        (ZERO, [0.2, 0.1], {}, "ts must be strictly increasing"),
        (ZERO.astype(jnp.float32), [0.1, 0.1 + 1e-10], {}, "strictly increasing .in the state's float32."),
        (ZERO, [-0.1, 0.1], {}, "ts must start at zero or later"),
        (ZERO, [0.1, np.nan], {}, "ts must be finite"),
        (ZERO, [[0.1, 0.2]], {}, r"ts must have shape \(times,\) with at least one time, got \(1, 2\)"),
        (ZERO, [], {}, r"ts must have shape \(times,\) with at least one time, got \(0,\)"),
        (ZERO, 0.1, {}, r"ts must have shape \(times,\) with at least one time, got \(\)"),
        (jnp.array([0.0, np.nan, 0.0]), [0.1], {}, "y0 must be finite, got NaN or infinity"),
        ({"a": ZERO, "b": [jnp.array(np.inf)]}, [0.1], {}, r"y0\['b'\]\[0\] must be finite"),
        (jnp.zeros(3, int), [0.1], {}, r"y0 must be a floating-point array, got int64\[3\]"),
        ({"a": ZERO, "b": jnp.zeros((), bool)}, [0.1], {}, r"y0\['b'\] must be a floating-point array, got bool"),
        ({"a": ZERO, "b": "word"}, [0.1], {}, r"y0\['b'\] must be a floating-point array, got 'word'"),
        ({}, [0.1], {}, "y0 must hold at least one floating-point number"),
        (jnp.zeros(2), [0.1], {}, r"y0 must have shape \(3,\), got \(2,\)"),
        (ZERO, [0.1], {"stepsize_controller": dfx.PIDController(1e-3, 1e-3), "rtol": 1e-3}, "would be ignored"),
        (ZERO, [0.1], {"stepsize_controller": dfx.ConstantStepSize(), "atol": 1e-3}, "would be ignored"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_input_is_refused(y0, ts, options, message):
    with pytest.raises(ValueError, match=message):
        solve(LINEAR, y0, ts, **options)


def test_bad_values_inside_jit_are_runtime_errors():
    run = eqx.filter_jit(lambda y0, ts: solve(LINEAR, y0, ts).ys)
    good = run(ZERO, jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(good[1], LINEAR.exact(ZERO, 0.2), rtol=1e-8)
    with pytest.raises(eqx.EquinoxRuntimeError, match="ts must be strictly increasing"):
        run(ZERO, jnp.array([0.2, 0.1]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="y0 must be finite"):
        run(ZERO + jnp.nan, jnp.array([0.1, 0.2]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="blows up in finite time before"):
        run(ZERO, jnp.array([0.1, 2.0]))


# Blow-up


def test_time_past_the_blow_up_is_refused_with_component_and_time():
    with pytest.raises(ValueError, match=r"t = 1\.3 lies past the blow-up: component \[1\] .* t = 1\.253314137"):
        solve(LINEAR, ZERO, [0.1, 1.3])
    with pytest.raises(ValueError, match=r"component \[2\]"):  # from elsewhere another one is first
        solve(LINEAR, jnp.array([0.0, 0.0, -1.0]), [1.0])


def test_unforeseen_blow_up_is_an_error_with_component_time_and_solution():
    with pytest.raises(SolveError, match=r"blows up at t = 1\.2533.* component y\['b'\]\[1\] is") as caught:
        solve(Explosion(), {"a": jnp.array(-0.5), "b": jnp.array([-0.1, 0.0])}, [0.5, 1.2, 3.0, 4.0])
    solution = caught.value.solution
    exact = joma.LinearActivation(jnp.ones(1)).exact(jnp.zeros(1), 0.5)[0]
    assert float(solution.ys["b"][0, 1]) == pytest.approx(float(exact), rel=1e-8)
    assert jnp.all(jnp.isfinite(solution.ys["b"][:2])) and jnp.all(jnp.isinf(solution.ys["b"][2:]))


def test_blow_up_is_data_when_asked_for():
    solution = solve(LINEAR, ZERO, [0.5, 2.0], throw=False)
    assert solution.result == dfx.RESULTS.event_occurred
    # Where the step needed is below the resolution of time, to the accuracy of a solve.
    assert abs(T_STAR - solution.stats["t_stop"]) < 1.5e-8 * T_STAR
    np.testing.assert_allclose(solution.ys[0], LINEAR.exact(ZERO, 0.5), rtol=1e-8)
    assert jnp.all(jnp.isinf(solution.ys[1]))
    # What has not blown up is where the theorem has it: √2 erfinv(Δ/Δ_max).
    expected = np.sqrt(2) * jax.scipy.special.erfinv(jnp.array([0.5, -0.9]))
    np.testing.assert_allclose(solution.stats["y_stop"][jnp.array([0, 2])], expected, rtol=1e-7)


# Steps that run out


def test_steps_that_run_out_name_time_reason_and_component():
    flow = joma.NonlinearActivation(jnp.array([1.0, 4.0]))
    options = {"solver": dfx.Tsit5(), "max_steps": 40}
    with pytest.raises(SolveError) as caught:
        solve(flow, jnp.zeros(2), [0.1, 5.0], **options)
    message, solution = str(caught.value), caught.value.solution
    assert "max_steps=40" in message and "after 40 steps" in message and "maximum number of solver steps" in message
    assert "component y[1]" in message and f"{float(solution.stats['t_stop']):.10g}" in message
    assert 0.1 < float(solution.stats["t_stop"]) < 5.0
    np.testing.assert_allclose(solution.ys[0], flow.exact(jnp.zeros(2), 0.1), rtol=1e-8)
    quiet = solve(flow, jnp.zeros(2), [0.1, 5.0], **options, throw=False)
    assert quiet.result == dfx.RESULTS.max_steps_reached
    np.testing.assert_array_equal(quiet.ys[0], solution.ys[0])


def test_given_solver_and_tolerances_are_used():
    coarse = solve(LINEAR, ZERO, [1.2], rtol=1e-3, atol=1e-3)
    # Explicit Euler with ten steps, which is not within 1e-3 of anything.
    euler = solve(LINEAR, ZERO, [1.0], solver=dfx.Euler(), stepsize_controller=dfx.StepTo(jnp.linspace(0, 1, 11)))
    v = np.zeros(3)
    for _ in range(10):
        v = v + 0.1 * np.asarray(LINEAR(0.0, jnp.asarray(v), None))
    np.testing.assert_allclose(euler.ys[0], v, rtol=1e-13)
    assert coarse.stats["num_steps"] < 40
    assert 1e-8 < float(jnp.max(jnp.abs(coarse.ys[0] - LINEAR.exact(ZERO, 1.2)))) < 1e-1


def test_progress_shows_a_bar_and_changes_no_number(capfd):
    plain = solve(LINEAR, ZERO, [0.5])
    shown = solve(LINEAR, ZERO, [0.5], progress=True)
    jax.effects_barrier()
    np.testing.assert_array_equal(plain.ys, shown.ys)
    assert "%" in capfd.readouterr().err


# The gradient flow of any loss


class Network(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    table: jax.Array
    size: int = 3
    activation: object = jnp.tanh


def test_gradient_flow_of_a_module_leaves_what_is_not_trained_alone():
    network = Network(jnp.array([1.0, -2.0]), jnp.array(0.5), jnp.arange(3))
    flow = GradientFlow(Partial(_half_square, jnp.array(2.0)))
    end = solve(flow, network, [1.0]).ys
    np.testing.assert_allclose(end.weight[0], np.exp(-2.0) * network.weight, rtol=1e-8)
    np.testing.assert_allclose(end.bias[0], np.exp(-2.0) * 0.5, rtol=1e-8)
    np.testing.assert_array_equal(end.table, network.table)
    assert end.size == 3 and end.activation is jnp.tanh


@pytest.mark.parametrize(
    ("rates", "expected"),
    (
        (3.0, {"a": [-3, -3], "b": -3}),
        ({"a": 2.0, "b": 0.5}, {"a": [-2, -2], "b": -0.5}),
        ({"a": None, "b": 0.0}, {"a": [-1, -1], "b": 0}),
        ({"a": jnp.array([1.0, 4.0]), "b": None}, {"a": [-1, -4], "b": -1}),
    ),
)
def test_rates_multiply_leaf_by_leaf(rates, expected):
    y = {"a": jnp.ones(2), "b": jnp.array(1.0)}
    got = GradientFlow(Partial(_half_square, jnp.array(1.0)), rates)(0.0, y)
    np.testing.assert_array_equal(got["a"], expected["a"])
    np.testing.assert_array_equal(got["b"], expected["b"])


def test_gradient_flow_is_the_limit_of_gradient_descent():
    # The error of gradient descent at t = 1 is first order in the learning rate: it halves with it.
    loss = lambda y: jnp.sum(jnp.cosh(y) - 1) + y[0] * y[1] / 2
    y0 = jnp.array([1.5, -0.5])
    limit = solve(GradientFlow(loss), y0, [1.0]).ys[0]
    grad = jax.jit(jax.grad(loss))
    errors = []
    for steps in (100, 200, 400, 800):
        y = y0
        for _ in range(steps):
            y = y - grad(y) / steps
        errors.append(float(jnp.linalg.norm(y - limit)))
    order = -np.polyfit(np.log([100, 200, 400, 800]), np.log(errors), 1)[0]
    assert order == pytest.approx(1, abs=0.02)


# A blow-up is told from a rise that is steep and bounded


def _saddle(w):
    return (1 - jnp.prod(w)) ** 2 / 2


@pytest.mark.parametrize(
    ("dtype", "layers", "start", "end"),
    (
        (jnp.float32, 3, 1e-4, 2e4),
        (jnp.float32, 4, 1e-2, 1e4),  # an infinite trial step, whose error is NaN, on the way
        (jnp.float32, 5, 0.05, 5e3),
        (jnp.float64, 6, 0.05, 5e4),
    ),
)
def test_rise_from_a_saddle_is_no_blow_up(dtype, layers, start, end):
    # Starts at the rate start^(layers−1) and takes the time start^(2−layers)/(layers−2) to leave, then falls to one.
    solution = solve(GradientFlow(_saddle), jnp.full(layers, start, dtype), [end])
    tolerance = 1e-4 if dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose(solution.ys[0], np.ones(layers), rtol=tolerance)


def test_relaxation_oscillation_is_no_blow_up():
    van_der_pol = lambda t, y, args: jnp.stack([y[1], 100 * (1 - y[0] ** 2) * y[1] - y[0]])
    low, high = (solve(van_der_pol, jnp.array([1e-3, 0.0], dtype), [200.0]).ys[0] for dtype in ("float32", "float64"))
    np.testing.assert_allclose(low, high, rtol=1e-3)


def _square(t, y, args):
    return y**2


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
@pytest.mark.parametrize(
    ("flow", "start", "t_star"),
    (
        (_square, 1.0, 1.0),
        (_square, 1e-4, 1e4),  # with the program of the one before
        (lambda t, y, args: y**3, 1.0, 0.5),
        (lambda t, y, args: jnp.exp(y), 0.0, 1.0),
    ),
)
def test_blow_up_is_found_where_it_is(flow, start, t_star, dtype):
    y0 = jnp.array([start / 2, start], dtype)
    solution = solve(flow, y0, [t_star / 2, 2 * t_star], throw=False)
    assert solution.result == dfx.RESULTS.event_occurred
    assert float(solution.stats["t_stop"]) == pytest.approx(t_star, rel=1e-4 if dtype == jnp.float32 else 1e-8)
    assert jnp.all(jnp.isfinite(solution.ys[0])) and jnp.all(jnp.isinf(solution.ys[1]))


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
def test_blow_up_of_a_race_is_found(dtype):
    race, start = grokking.ModeRace(jnp.array([1.0, 0.9], dtype)), jnp.array([0.3, 0.5], dtype)
    solution = solve(race, start, [1e3], throw=False)
    assert solution.result == dfx.RESULTS.event_occurred
    expected = float(jnp.min(race.blow_up_time(start)))
    assert float(solution.stats["t_stop"]) == pytest.approx(expected, rel=1e-4 if dtype == jnp.float32 else 1e-9)


def test_blow_up_under_other_controllers_is_found():
    square, one = lambda t, y, args: y**2, jnp.ones(1)
    adaptive = solve(square, one, [2.0], stepsize_controller=dfx.PIDController(1e-6, 1e-8), throw=False)
    steps = dfx.StepTo(jnp.linspace(0, 2, 101))
    fixed = solve(square, one, [2.0], solver=dfx.Tsit5(), stepsize_controller=steps, throw=False)
    for solution, within in ((adaptive, 1e-5), (fixed, 0.1)):  # some fixed steps late
        assert solution.result == dfx.RESULTS.event_occurred
        assert float(solution.stats["t_stop"]) == pytest.approx(1, abs=within)


def test_blow_up_is_named_as_it_was_seen():
    with pytest.raises(SolveError, match=r"grows by its own size in .*, and float32 has no steps below .* there"):
        solve(lambda t, y, args: y**2, jnp.ones(1, jnp.float32), [2.0])


# Derivatives that are not finite


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
def test_flow_that_is_not_finite_at_the_start_is_named(dtype):
    with pytest.raises(ValueError, match=r"must be finite at the start, got nan for the derivative of y0\['a'\]\[1\]"):
        solve(lambda t, y, args: {"a": jnp.log(y["a"])}, {"a": jnp.array([1.0, -1.0], dtype)}, [1.0])
    stopped = solve(lambda t, y, args: jnp.log(y), jnp.array([-1.0], dtype), [1.0], throw=False)
    assert int(stopped.stats["num_steps"]) == 1 and int(stopped.stats["num_accepted_steps"]) == 0
    with pytest.raises(eqx.EquinoxRuntimeError, match="must be finite at the start"):
        eqx.filter_jit(lambda y: solve(lambda t, y, args: jnp.log(y), y, [1.0]).ys)(jnp.array([-1.0], dtype))


def test_flow_that_ends_is_named_and_does_not_run_out_of_steps():
    with pytest.raises(
        SolveError, match=r"stopped at t = 0\.5.* needs a step below .* the resolution of float64"
    ) as end:
        solve(lambda t, y, args: -jnp.sqrt(0.5 - t) * y, jnp.ones(2), [1.0])
    assert int(end.value.solution.stats["num_steps"]) < 1000


def test_derivative_that_overflows_near_the_start_is_no_obstacle():
    # y = 1/√(2t + y(0)⁻²), and the first trial step of 1e-6 leads to −1e30.
    end = solve(lambda t, y, args: -(y**3), jnp.full(1, 1e12, jnp.float32), [1.0]).ys[0]
    np.testing.assert_allclose(end, [np.sqrt(0.5)], rtol=1e-4)


# Stiff flows in float32


def _stiff_case(mu):
    ts = jnp.asarray(np.array([0.1, 0.2, 1.0, 10.0]), mu.dtype)
    return joma.NonlinearActivation(mu[None]), jnp.zeros(1, mu.dtype), ts


def _stiff(mu):
    return solve(*_stiff_case(mu)).ys[:, 0]


def _stiff_exact(mu):
    flow, y0, ts = _stiff_case(mu)
    return flow.exact(y0, ts)[:, 0]


# Compiled once for all of the parameters.
STIFF_SLOPE = jax.jit(jax.grad(lambda mu: jnp.sum(_stiff(mu))))
STIFF_EXACT_SLOPE = jax.jit(jax.grad(lambda mu: jnp.sum(_stiff_exact(mu))))


@pytest.mark.parametrize("mu", (0.5, 3.0, -4.0, 6.0))
def test_stiff_flow_in_float32_has_values_and_gradients(mu):
    np.testing.assert_allclose(_stiff(jnp.float32(mu)), _stiff_exact(jnp.float64(mu)), rtol=1e-4)
    expected = float(STIFF_EXACT_SLOPE(jnp.float64(mu)))
    assert float(STIFF_SLOPE(jnp.float32(mu))) == pytest.approx(expected, rel=1e-3)


# Complex states


def _distance(target, y):
    return sum(jnp.sum(jnp.abs(a - b) ** 2) / 2 for a, b in zip(jax.tree.leaves(y), target, strict=True))


@pytest.mark.parametrize("dtype", (jnp.complex64, jnp.complex128))
def test_complex_parameters_descend(dtype):
    # ż = c − z: from z(0), z = c + (z(0) − c)e^{−t}.
    c, z0 = jnp.array([1 + 2j, -3j], dtype), jnp.array([3 - 1j, 0.5 + 0j], dtype)
    solution = solve(GradientFlow(Partial(_distance, (c,))), z0, [0.5, 2.0])
    assert solution.ys.dtype == dtype and solution.ts.dtype == jnp.finfo(dtype).dtype
    expected = np.asarray(c) + (np.asarray(z0) - np.asarray(c)) * np.exp(-np.array([0.5, 2.0]))[:, None]
    np.testing.assert_allclose(solution.ys, expected, rtol=1e-4 if dtype == jnp.complex64 else 1e-9)


def test_complex_parameters_move_as_their_two_real_numbers():
    loss = lambda z, x: jnp.abs(z**2 - 1j) ** 2 + x * z.real * z.imag + jnp.cosh(x)
    tree = {"x": jnp.array(0.3), "z": jnp.array(0.8 - 0.1j)}
    end = solve(GradientFlow(lambda y: loss(y["z"], y["x"]), {"x": 2.0, "z": 0.5}), tree, [0.7]).ys
    pair = {"im": jnp.array(-0.1), "re": jnp.array(0.8), "x": jnp.array(0.3)}
    rates = {"im": 0.5, "re": 0.5, "x": 2.0}
    real = solve(GradientFlow(lambda y: loss(jax.lax.complex(y["re"], y["im"]), y["x"]), rates), pair, [0.7]).ys
    np.testing.assert_allclose(end["z"][0], np.asarray(real["re"][0]) + 1j * np.asarray(real["im"][0]), rtol=1e-8)
    np.testing.assert_allclose(end["x"][0], real["x"][0], rtol=1e-8)
    assert end["x"].dtype == jnp.float64


def test_complex_state_of_an_implicit_method_is_no_holomorphic_one():
    # ż = −100 z̄ + z: the derivative is not complex linear. Real part and imaginary part decay and grow alone.
    flow = lambda t, z, args: -100 * jnp.conj(z) + z
    end = solve(flow, jnp.array([1 + 1e-3j]), [0.05], solver=dfx.Kvaerno5()).ys[0, 0]
    np.testing.assert_allclose(end, np.exp(-99 * 0.05) + 1e-3j * np.exp(101 * 0.05), rtol=1e-6)


# Gradients: memory and modes


def test_gradient_keeps_at_most_500_states():
    flow, y = GradientFlow(lambda w: jnp.sum(jnp.cosh(w))), jnp.linspace(0.1, 1, 20_000)
    total = lambda y: jnp.sum(solve(flow, y, jnp.array([1.0])).ys)
    memory = jax.jit(jax.grad(total)).lower(y).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 500 * y.nbytes


def test_forward_mode_needs_its_adjoint():
    flow = lambda rate: Drift(rate)
    end = lambda rate, **options: solve(flow(rate), jnp.zeros(2), [3.0], **options).ys[0]
    value, slope = jax.jvp(lambda rate: end(rate, adjoint=dfx.ForwardMode()), (jnp.array(2.0),), (jnp.array(1.0),))
    np.testing.assert_allclose(value, [6, 6], rtol=1e-12)
    np.testing.assert_allclose(slope, [3, 3], rtol=1e-12)
    jacobian = jax.jacfwd(
        lambda mu: solve(
            GradientFlow(lambda w: mu * jnp.sum(w**2) / 2), jnp.ones(1), [1.0], adjoint=dfx.ForwardMode()
        ).ys[0]
    )(jnp.array(2.0))
    np.testing.assert_allclose(jacobian, [-np.exp(-2.0)], rtol=1e-8)


def test_hessian_needs_the_direct_adjoint():
    # The second derivative of e^{−μ}.
    def end(mu):
        flow = GradientFlow(lambda w: mu * jnp.sum(w**2) / 2)
        return solve(flow, jnp.ones(1), [1.0], adjoint=dfx.DirectAdjoint(), max_steps=64, rtol=1e-6, atol=1e-8).ys[0, 0]

    assert float(jax.hessian(end)(jnp.array(1.0))) == pytest.approx(np.exp(-1.0), rel=1e-5)


def test_closed_form_is_compiled_as_its_docstring_says():
    expected = LINEAR.exact(ZERO, 0.5)
    np.testing.assert_allclose(eqx.filter_jit(LINEAR.exact)(ZERO, 0.5), expected, rtol=1e-14)
    compiled = jax.jit(lambda flow, t, y0: flow.exact(y0, t))
    np.testing.assert_allclose(compiled(LINEAR, 0.5, ZERO), expected, rtol=1e-14)


# What is printed


def test_printed_solution_says_dtype_steps_and_expected_error():
    solution = solve(LINEAR, ZERO, [0.5, 1.0])
    accepted, rejected = (int(solution.stats[f"num_{kind}_steps"]) for kind in ("accepted", "rejected"))
    text = str(solution)
    assert text.startswith(f"Solution(float64, 2 times up to t = 1: {accepted} steps accepted, {rejected} rejected; ")
    assert f"expected relative error about {accepted * 1e-10:.1g}, rtol 1e-10 a step" in text
    low = solve(_in_float32(LINEAR), ZERO.astype(jnp.float32), [1.2])
    assert "float32" in repr(low) and "rtol 1e-05 a step" in repr(low)
    error = np.max(np.abs(np.asarray(low.ys[0]) / np.asarray(LINEAR.exact(ZERO, 1.2)) - 1))
    assert low.expected_error / 100 < error < 10 * low.expected_error
    fixed = solve(Drift(), ZERO, [1.0], solver=dfx.Euler(), stepsize_controller=dfx.StepTo(jnp.linspace(0, 1, 3)))
    assert fixed.expected_error is None and "without a tolerance" in str(fixed)
    assert "stopped before the last time" in str(solve(LINEAR, ZERO, [0.5, 2.0], throw=False))


def test_solution_is_a_pytree_that_can_be_returned_and_batched():
    run = jax.jit(jax.vmap(lambda y: solve(Drift(), y, [1.0, 2.0], throw=False)))
    solution = run(jnp.zeros((4, 2)))
    assert solution.ys.shape == (4, 2, 2) and isinstance(solution, dfx.Solution)
    assert "float64, 2 times up to t = 2" in str(solution)
    jax.make_jaxpr(lambda y: print(solve(Drift(), y, [1.0], throw=False)))(ZERO)  # traced: no numbers, no error


def _in_float32(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


# Compilations


def test_new_closures_keep_a_bounded_number_of_compilations():
    traces = []

    def apply(fn, x):
        traces.append(None)
        return fn(x)

    jitted = bounded_jit(apply, limit=4)
    kept = lambda x: x + 1
    for i in range(20):
        one = jnp.asarray(float(i))
        assert jitted(lambda x, i=i: i * x, one) == i * i and jitted(kept, one) == i + 1
    assert 20 + 20 // 4 <= len(traces) < 40  # the one that is used throughout was compiled again, but not each time


def test_program_of_a_solve_has_the_numbers_of_diffrax_and_no_calls_back():
    ts = jnp.array([0.1, 0.7, 1.0])
    diffrax = dfx.RecursiveCheckpointAdjoint(checkpoints=128)  # whose loop is Diffrax's
    for flow in (LINEAR, joma.NonlinearActivation(jnp.array([0.5, 1.0, -0.9])), GradientFlow(jnp.sum)):
        ours, theirs = (solve(flow, ZERO + 0.1, ts, adjoint=adjoint) for adjoint in (None, diffrax))
        np.testing.assert_array_equal(ours.ys, theirs.ys)
        assert ours.stats["num_steps"] == theirs.stats["num_steps"]
    program = lambda adjoint: str(jax.make_jaxpr(lambda: solve(LINEAR, ZERO, ts, adjoint=adjoint, throw=False).ys)())
    text = {adjoint: program(adjoint) for adjoint in (None, diffrax)}
    assert "callback" not in text[None]  # else JAX does not keep it in its compilation cache
    assert text[None].count("nextafter") == 0 and text[diffrax].count("nextafter") >= 100


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
def test_last_step_is_lengthened_from_the_time_that_diffrax_says(dtype):
    for t in (1.0, 0.125, 1e-30, 1e30, 0.7, 3.3):
        t = before = jnp.asarray(t, dtype)
        for _ in range(_diffrax.ULPS):
            before = jnp.nextafter(before, jnp.asarray(-jnp.inf, dtype))
        assert _diffrax.shortly_before(t) == before


def test_blow_up_time_of_numpy_is_heeded():
    class Square(BlowsUp):
        def __call__(self, t, y, args):
            return y**2

        def blow_up_time(self, y0):
            return 1 / np.asarray(y0)

    np.testing.assert_allclose(solve(Square(), jnp.ones(1), [0.5]).ys, [[2.0]], rtol=1e-8)
    with pytest.raises(ValueError, match=r"t = 2 lies past the blow-up: component \[0\] .* t = 1\."):
        solve(Square(), jnp.ones(1), [2.0])


@pytest.mark.slow
def test_new_losses_do_not_exhaust_memory_maps():
    # 600 of them were more than the kernel's 65 530: the process ended with a segmentation fault between 450 and 500.
    maps = lambda: len(Path("/proc/self/maps").read_text().splitlines())
    steps = dfx.StepTo(jnp.linspace(0, 1, 11))
    before = maps()
    for i in range(600):
        flow = GradientFlow(lambda w, i=i: i * jnp.sum(w**2) / 2000)
        end = solve(flow, jnp.ones(1), [1.0], solver=dfx.Euler(), stepsize_controller=steps).ys[0, 0]
        assert float(end) == pytest.approx((1 - i / 10_000) ** 10, rel=1e-12)
    assert maps() - before < 20_000


# Errors that a newcomer meets


HALF = GradientFlow(Partial(_half_square, jnp.array(1.0)))
ONE = jnp.ones(2)


@pytest.mark.parametrize(
    ("flow", "y0", "ts", "options", "message"),
    (
        (joma.LinearActivation, ONE, [1.0], {}, "flow must be an instance, got the class LinearActivation"),
        (None, ONE, [1.0], {}, "flow must be callable, got None"),
        (lambda y: -y, ONE, [1.0], {}, r"flow must take \(t, y, args\)"),
        (lambda t, y, args: jnp.ones(3), ONE, [1.0], {}, r"flow must return float64\[2\] for y0, got float64\[3\]"),
        (lambda t, y, args: jnp.ones(2, int), ONE, [1.0], {}, r"flow must return float64\[2\] for y0, got int64\[2\]"),
        (lambda t, y, args: {"v": y}, ONE, [1.0], {}, "flow must return a PyTree of y0's structure"),
        (lambda t, y, args: None, ONE, [1.0], {}, "flow must return a PyTree of y0's structure"),
        (HALF, [1.0, 2.0], [1.0], {}, r"y0 must be an array or a PyTree of arrays, got \[1\.0, 2\.0\]: write jax"),
        (HALF, jnp.zeros(0), [1.0], {}, "y0 must hold at least one floating-point number, got none"),
        (HALF, ONE.astype(jnp.float16), [1.0], {}, r"y0 must be float32 or float64, got float16\[2\]"),
        (HALF, {"a": ONE.astype(jnp.bfloat16)}, [1.0], {}, r"y0\['a'\] must be float32 or float64, got bfloat16\[2\]"),
        (
            HALF,
            {"a": ONE, "b": ONE.astype("float32")},
            [1.0],
            {},
            r"y0\['b'\] must be of the precision .* float64, got",
        ),
        (
            joma.LinearActivation(ONE),
            ONE.astype("float32"),
            [0.1],
            {},
            r"float32\[2\] for y0, got float64\[2\]: cast y0",
        ),
        (HALF, ONE, ["a", "b"], {}, "ts must be a number or an array of numbers"),
        (HALF, ONE, None, {}, "ts must be a number or an array of numbers, got None"),
        (HALF, ONE, jnp.array([0, 1 + 1j]), {}, "ts must be real, got complex128"),
        (HALF, ONE, jnp.array([False, True]), {}, "ts must be real numbers, got bool"),
        (HALF, ONE, [1.0], {"rtol": -1e-3}, "rtol must be above 0 and below 1, got -0.001"),
        (HALF, ONE, [1.0], {"rtol": 0.0, "atol": 0.0}, "rtol must be above 0 and below 1, got 0.0"),
        (HALF, ONE, [1.0], {"rtol": np.nan}, "rtol must be above 0 and below 1, got nan"),
        (HALF, ONE, [1.0], {"rtol": 10.0}, "rtol must be above 0 and below 1, got 10.0"),
        (HALF, ONE, [1.0], {"rtol": "1e-3"}, "rtol must be a number or an array of numbers, got '1e-3'"),
        (HALF, ONE, [1.0], {"atol": 0.0}, "atol must be above 0, got 0.0"),
        (HALF, ONE, [1.0], {"max_steps": 0}, "max_steps must be an integer of at least 1 and at most .*, got 0"),
        (HALF, ONE, [1.0], {"max_steps": 2**63}, "max_steps must be an integer of .* at most 2147483647, got 9223"),
        (HALF, ONE, [1.0], {"solver": dfx.KenCarp4()}, "solver must take one term, the flow, .* got KenCarp4"),
        (HALF, ONE, [1.0], {"adjoint": dfx.ImplicitAdjoint()}, "adjoint must be .* got ImplicitAdjoint"),
        (HALF, ONE, [1.0], {"adjoint": dfx.BacksolveAdjoint()}, "adjoint must be .* got BacksolveAdjoint"),
        (
            HALF,
            ONE,
            [1.0],
            {"stepsize_controller": dfx.StepTo(jnp.array([0.0, 0.5]))},
            r"stepsize_controller must step from 0 up to ts\[-1\] = 1, got StepTo from 0 to 0.5",
        ),
        (HALF, {"a": np.ones(2, np.longdouble)}, [1.0], {}, r"y0\['a'\] must be a number or an array of numbers, got"),
        (HALF, np.array([None, 1]), [1.0], {}, "y0 must be a number or an array of numbers, got object"),
        (HALF, ONE, [1.0], {"max_steps": -1}, "max_steps must be an integer of at least 1 and at most .*, got -1"),
        (HALF, ONE, [1.0], {"max_steps": 1.5}, "max_steps must be an integer"),
        (HALF, ONE, [1.0], {"max_steps": None}, "max_steps must be an integer"),
        (HALF, ONE, [1.0], {"solver": "tsit5"}, r"solver must be an instance, as diffrax.Tsit5\(\), got 'tsit5'"),
        (HALF, ONE, [1.0], {"solver": dfx.Tsit5}, "solver must be an instance, as diffrax"),
        (HALF, ONE, [1.0], {"solver": dfx.Euler()}, "solver must estimate its error"),
        (HALF, ONE, [1.0], {"stepsize_controller": 0.1}, "stepsize_controller must be an instance, as diffrax"),
        (
            HALF,
            ONE,
            [1.0],
            {"stepsize_controller": dfx.ConstantStepSize()},
            "stepsize_controller must choose its first",
        ),
        (HALF, ONE, [1.0], {"adjoint": dfx.ForwardMode}, r"adjoint must be an instance, as diffrax.ForwardMode\(\)"),
        (GradientFlow(lambda w: w**2), ONE, [1.0], {}, r"loss must return one real number, got float64\[2\]"),
        (GradientFlow(lambda w: jnp.sum(w) + 1j), ONE, [1.0], {}, r"loss must return one real number, got complex128"),
        (GradientFlow(HALF.loss, {"b": 1.0}), {"a": ONE}, [1.0], {}, "rates must be a scalar or a tree prefix"),
        (
            GradientFlow(HALF.loss, jnp.ones((3, 2))),
            ONE,
            [1.0],
            {},
            r"rates must broadcast against .* \(2,\), got \(3, 2\)",
        ),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_wrong_use_is_named(flow, y0, ts, options, message):
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message):
        solve(flow, y0, ts, **options)


@pytest.mark.parametrize(
    ("loss", "rates", "message"),
    (
        (None, 1.0, "loss must be callable, got None"),
        (_half_square, "fast", "rates must be a number or an array of numbers, got 'fast'"),
        (_half_square, np.nan, "rates must be finite, got nan"),
        (_half_square, {"a": 1j}, r"rates\['a'\] must be real"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_wrong_gradient_flow_is_named(loss, rates, message):
    with pytest.raises(ValueError, match=message):
        GradientFlow(loss, rates)


def test_numbers_beside_arrays_take_their_precision():
    ys = solve(Drift(jnp.float32(2)), {"a": 1.0, "b": jnp.ones(2, jnp.float32)}, [1.0]).ys
    assert ys["a"].dtype == jnp.float32
    np.testing.assert_allclose(ys["a"], [3], rtol=1e-6)


def _logistic(t, y, args):
    return jax.tree.map(lambda y: y * (1 - y), y)


@pytest.mark.parametrize(
    ("dtype", "start", "rtol"), ((jnp.float64, 1e-30, 1e-7), (jnp.float64, 1e-60, 1e-7), (jnp.float32, 1e-20, 3e-3))
)
def test_growth_from_far_below_the_usual_tolerance_is_seen(dtype, start, rtol):
    half = -np.log(start)  # when it is at a half
    y0 = {"small": jnp.array([start], dtype), "zero": jnp.zeros(2, dtype), "one": jnp.ones(1, dtype)}
    solution = solve(_logistic, y0, jnp.array([half, half + 5], dtype))
    np.testing.assert_allclose(solution.ys["small"][:, 0], [0.5, 1 / (1 + np.exp(-5))], rtol=rtol)
    assert solution.atol == pytest.approx(solution.rtol * start)


def test_absolute_tolerance_is_as_documented():
    for start, atol in ((0.0, 1e-12), (1.0, 1e-12), (1e-5, 1e-15)):
        assert solve(_logistic, jnp.array([start]), [1.0]).atol == pytest.approx(atol, rel=1e-12)
    assert solve(_logistic, jnp.array([1e-5]), [1.0], atol=1e-9).atol == 1e-9
    # One small entry beside a large one is overlooked, as solve says.
    assert solve(_logistic, jnp.array([1e-30, 1.0]), [150.0]).ys[0, 0] < 0.01
    slope = lambda y0: solve(_logistic, y0, jnp.array([3.0], y0.dtype)).ys[0, 0]
    for dtype, rtol in ((jnp.float64, 1e-8), (jnp.float32, 1e-3)):
        starts = np.array([1e-3, 1e-5])
        found = jax.jit(jax.vmap(jax.grad(slope)))(jnp.array(starts[:, None], dtype))
        exact = np.exp(-3) / (starts + np.exp(-3) * (1 - starts)) ** 2
        np.testing.assert_allclose(found[:, 0], exact, rtol=rtol)


@pytest.mark.parametrize(
    ("flow", "y0"),
    (
        (joma.LinearActivation(jnp.ones(1)), jnp.array([40.0])),
        (joma.ManyNodes(jnp.array([[1.0, 0.0]])), jnp.array([[40.0, 1.0]])),
        (grokking.ModeRace(jnp.array([1e300])), jnp.array([1e300])),
    ),
)
def test_time_zero_is_never_past_the_blow_up(flow, y0):
    for t in (0.0, jnp.array(0.0)):
        np.testing.assert_array_equal(flow.exact(y0, t), y0)
    np.testing.assert_array_equal(jax.jit(lambda flow, y0: flow.exact(y0, 0.0))(flow, y0), y0)
    with pytest.raises(ValueError, match="lies past the blow-up"):
        flow.exact(y0, 1e-5)
