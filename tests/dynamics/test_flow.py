"""`solve`, its errors, and the gradient flow of any loss."""

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from traindyn.dynamics import Flow, GradientFlow, SolveError, joma, solve

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
    np.testing.assert_allclose(solution.ys[1], flow.exact(1.0, ZERO), rtol=1e-3)


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
        ({}, [0.1], {}, "y0 must hold at least one floating-point array"),
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
    np.testing.assert_allclose(good[1], LINEAR.exact(0.2, ZERO), rtol=1e-8)
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
    exact = joma.LinearActivation(jnp.ones(1)).exact(0.5, jnp.zeros(1))[0]
    assert float(solution.ys["b"][0, 1]) == pytest.approx(float(exact), rel=1e-8)
    assert jnp.all(jnp.isfinite(solution.ys["b"][:2])) and jnp.all(jnp.isinf(solution.ys["b"][2:]))


def test_blow_up_is_data_when_asked_for():
    solution = solve(LINEAR, ZERO, [0.5, 2.0], throw=False)
    assert solution.result == dfx.RESULTS.event_occurred
    # Stopped when the time scale of growth is below √eps t, and so before, and within that of, the blow-up.
    assert 0 <= T_STAR - solution.stats["t_stop"] < 1.5e-8 * T_STAR
    np.testing.assert_allclose(solution.ys[0], LINEAR.exact(0.5, ZERO), rtol=1e-8)
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
    np.testing.assert_allclose(solution.ys[0], flow.exact(0.1, jnp.zeros(2)), rtol=1e-8)
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
    assert 1e-8 < float(jnp.max(jnp.abs(coarse.ys[0] - LINEAR.exact(1.2, ZERO)))) < 1e-1


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
