"""What every flow must do, driven by one table of flows.

Each solve costs seconds of compilation, so a flow is compiled twice in all, `solve` as it is called and
`jit(vmap(value_and_grad(solve)))`, and the tests share the results.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from arguments.kinds import as_users
from hypothesis import strategies as st

from traindyn.dynamics import Flow, GradientFlow, galore, grokking, groups, joma, reversal, scan_snap, solve

H = 1e-4  # how far the second and third of the `lanes` lie from the first
TOLERANCES = (1e-10, 1e-8, 1e-6)
# Reverse mode through a solve takes the longest to compile. Of the others the vector field is differentiated.
DIFFERENTIATED = ("GradientFlow", "LinearActivation", "ManyNodes", "NonlinearActivation")
AROUND_ONE = (0.999, 1.0, 1.001)


@dataclasses.dataclass(frozen=True)
class Case:
    """A flow with an initial state and times. `exact` is `(flow, t, y0) -> y`, where there is a closed form;
    where there is none, the times are those of a central difference."""

    flow: Flow
    y0: Any
    ts: tuple[float, ...]
    exact: Callable[[Any, Any, Any], Any] | None = None
    conserves: bool = False
    autonomous: bool = True


def _exact(flow, t, y0):
    return flow.exact(t, y0)


def _quadratic(curvature, y):
    return sum(jnp.sum(c * x**2) / 2 for c, x in zip(curvature, (y["a"], y["b"]), strict=True))


def _decay(flow, t, y0):
    """The gradient flow of `½ Σ c y²` with the rates r: `e^{−rct} y(0)`."""
    c, r = flow.loss.args[0], flow.rates
    return {"a": jnp.exp(-r["a"] * c[0] * t) * y0["a"], "b": jnp.exp(-r["b"] * c[1] * t) * y0["b"]}


def _push_back(head, label, h):
    """`−∂/∂h` of the cross-entropy of `h @ head`."""
    return (jax.nn.one_hot(label, head.shape[1], dtype=h.dtype) - jax.nn.softmax(h @ head)) @ head.T


def _psd(x):
    return x @ x.swapaxes(-1, -2)


def _table() -> dict[str, Case]:
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    x = jnp.asarray(rng.dirichlet(np.ones(4), size=6))
    state = joma.JointState(0.5 * normal(4, 3), 0.5 * normal(2, 4) + 1, 0.3 * normal(2, 3))
    query = jnp.array([0, 1, 0, 0, 1, 1])
    push = jax.tree_util.Partial(_push_back, 3 * normal(3, 5), jnp.array([0, 1, 2, 3, 4, 0]))
    joint = lambda g, **options: joma.Joint(x, g, query=query, eta_w=0.7, eta_z=1.6, **options)

    linear = joma.LinearActivation(jnp.array([1.0, 0.8, 0.5, 0.1, -0.3, -0.9]), 1.3)
    v0 = jnp.array([0.05, -0.2, 0.3, 0.0, 0.1, -0.15])
    nodes, rows0 = joma.ManyNodes(normal(5, 3), 0.8), 0.3 * normal(5, 3)
    to_99_percent = lambda t_star: tuple(float(t_star) * f for f in (0.1, 0.5, 0.9, 0.99))

    mu = jnp.array([0.5, -1.0, 2.0, 3.0, 4.0])
    race, alpha0 = grokking.ModeRace(jnp.array([1.0, 0.9, 0.7, 0.5])), jnp.array([0.3, 0.5, -0.2, 0.4])
    centres, strength = normal(3, 4), jnp.array([0.5, 0.3, -0.4])
    mixture = joma.MixtureState(normal(4), jnp.array(0.2))

    table = jnp.asarray(rng.dirichlet(np.ones(5), size=3))
    scan = scan_snap.ScanSnap(
        table, jnp.array([0, 1, 0]), outputs=4, eta_y=0.8, eta_z=0.5, preconditioned=True, queries=2
    )
    phase = scan_snap.PhaseTransition(scan_snap.Decoder(30.0, 2.0, 0.7), jnp.array(0.5), jnp.array(3.0))
    symmetric = scan_snap.SymmetricAttention(jnp.array([0.6]), jnp.array([0.4, 0.7, 1.0]), 3, eta_z=jnp.array(0.4))
    rates = {"a": jnp.array(1.0), "b": jnp.array([0.3, 2.0])}
    curvature = (jnp.array([1.0, 2.0, 0.5]), jnp.array([1.5, 0.7]))
    return {
        "GradientFlow": Case(
            GradientFlow(jax.tree_util.Partial(_quadratic, curvature), rates),
            {"a": normal(3), "b": normal(2)},
            (0.5, 3.0),
            _decay,
        ),
        "Joint, linear attention": Case(joint(normal(6, 3), attention="linear"), state, AROUND_ONE, conserves=True),
        "Joint, exp attention": Case(
            joint(push, activation=jnp.tanh, temperature=0.8, normaliser=1.2), state, AROUND_ONE, conserves=True
        ),
        "Joint, softmax attention": Case(
            joint(push, attention="softmax", activation=jnp.square, temperature=0.5), state, AROUND_ONE, conserves=True
        ),
        "LinearActivation": Case(linear, v0, to_99_percent(linear.blow_up_time(v0).min()), _exact),
        "RegularisedClock": Case(linear.regularised(), joma.ClockState(v0, jnp.array(0.0)), AROUND_ONE),
        "ManyNodes": Case(nodes, rows0, to_99_percent(nodes.blow_up_time(rows0).min()), _exact),
        "LinearAttention": Case(
            joma.LinearAttention(normal(4, 2)),
            joma.LinearAttentionState(normal(4, 2), normal(4)),
            (0.5, 2.0),
            _exact,
            conserves=True,
        ),
        "Mixture": Case(joma.Mixture(centres, strength, 0.7), mixture, AROUND_ONE),
        # The times of the issue: "for all t". At t = 0.4 the components with μ = 3 and 4 are in full flight.
        "NonlinearActivation": Case(
            joma.NonlinearActivation(mu), jnp.array([0.0, 0.0, 0.0, 0.1, 0.0]), (0.1, 0.4, 0.5, 1.0, 10.0), _exact
        ),
        "ScanSnap": Case(scan, scan_snap.YZ(normal(5, 4), 0.5 * normal(2, 5)), AROUND_ONE),
        "Decoder": Case(
            scan_snap.Decoder(jnp.array([10.0, 100.0]), jnp.array([2.0, 3.0]), jnp.array([0.7, 1.0])),
            jnp.array([0.01, 0.005]),
            (0.5, 20.0),
            _exact,
        ),
        "SlowAttention": Case(scan_snap.SlowAttention(scan), 0.5 * normal(2, 5), AROUND_ONE),
        "SymmetricAttention": Case(symmetric, 0.3 * normal(4), AROUND_ONE),
        "SymmetricDecoder": Case(
            scan_snap.SymmetricDecoder(jnp.array(0.3), 3, 10, jnp.array(0.8)),
            scan_snap.SymmetricLogits(jnp.array(0.4), jnp.array(-0.1)),
            AROUND_ONE,
        ),
        "PhaseTransition": Case(phase, jnp.array(-0.1), (0.5, 20.0), _exact, autonomous=False),
        "Bilinear": Case(
            reversal.Bilinear.of(normal(4, 3), jnp.array([[0, 1], [1, 0], [2, 3]]), normal(3, 3)),
            normal(4, 4),
            AROUND_ONE,
        ),
        "OneLayer": Case(
            reversal.OneLayer(jnp.array([10.0, 50.0]), jnp.array([3.0, 4.0]), jnp.array([0.5, 1.0]), targets=2),
            jnp.array([0.1, 0.3]),
            (0.5, 20.0),
            _exact,
        ),
        "ReversibleGradient": Case(
            galore.ReversibleGradient(normal(3, 2, 4), _psd(normal(3, 2, 2)), _psd(normal(3, 4, 1))),
            normal(2, 4),
            (0.5, 3.0),
            _exact,
        ),
        "ScaledAscent": Case(grokking.ScaledAscent(grokking.Energy(groups.symmetric(3))), normal(2, 6), AROUND_ONE),
        "ModeRace": Case(race, alpha0, to_99_percent(race.blow_up_time(alpha0).min()), _exact),
        "OutputLayer": Case(
            grokking.OutputLayer(0.5 * normal(5, 3), normal(5, 2), 0.3), normal(3, 2), (0.5, 3.0), _exact
        ),
        "LogGap": Case(joma.LogGap(mu), jnp.array([0.0, 0.1, 0.0, -0.1, 0.0]), (0.1, 0.4, 0.5, 1.0, 10.0), _exact),
    }


TABLE = _table()
every_flow = pytest.mark.parametrize("name", TABLE)
alone_too = [n for n, case in TABLE.items() if not case.exact or n in ("LinearActivation", "NonlinearActivation")]
alone_and_batched = pytest.mark.parametrize("name", alone_too)  # the closed form speaks for the others
with_closed_form = pytest.mark.parametrize("name", [n for n, case in TABLE.items() if case.exact])
without_closed_form = pytest.mark.parametrize("name", [n for n, case in TABLE.items() if not case.exact])
conserving = pytest.mark.parametrize("name", [n for n, case in TABLE.items() if case.conserves])


def _map_floats(f, tree, *rest):
    return jax.tree.map(lambda x, *r: f(x, *r) if eqx.is_inexact_array(x) else x, tree, *rest)


def _direction(tree, seed=1):
    """A random tangent: one normal number for each floating-point number of a PyTree."""
    rng = np.random.default_rng(seed)
    return _map_floats(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


@functools.cache
def lanes(name: str):
    """The flow and its initial state, and both displaced by ±H along one direction: a list of three pairs."""
    pair = (TABLE[name].flow, TABLE[name].y0)
    moved = lambda h: _map_floats(lambda x, d: x + h * d, pair, _direction(pair))
    return [moved(0.0), moved(H), moved(-H)]  # the first too: the types of all three must agree, weakness included


class Counted(Flow):
    """The same flow, counting how often its vector field is traced."""

    flow: Flow
    traces: list = eqx.field(static=True)

    @property
    def stiff(self):
        return self.flow.stiff

    def __call__(self, t, y, args):
        self.traces.append(None)
        return self.flow(t, y, args)


@functools.cache
def one_by_one(name: str):
    """`solve` on each of the lanes, and how often the vector field had been traced after each."""
    traces, ys, counts = _SameList(), [], []
    for flow, y0 in lanes(name):
        ys.append(solve(Counted(flow, traces), y0, TABLE[name].ts).ys)
        counts.append(len(traces))
    return ys, counts


class _SameList(list):
    """A list that can be a static field: hashed and compared by identity."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


@functools.cache
def batched(name: str):
    """`jit(vmap(solve))`, over parameters, initial values and tolerances at once.

    Five lanes: the three of `lanes` at the default tolerances, then the first at the wider ones. Returns the solutions,
    and for `DIFFERENTIATED` the gradients of a number read off the solution.
    """
    ts = jnp.asarray(TABLE[name].ts)
    pairs = lanes(name) + [lanes(name)[0]] * 2
    floats, rest = eqx.partition(jax.tree.map(lambda *x: jnp.stack(x), *pairs), eqx.is_inexact_array)
    tolerances = jnp.array(TOLERANCES[:1] * 3 + TOLERANCES[1:])

    def number(floats, rest, tolerance):
        flow, y0 = eqx.combine(floats, rest)
        controller = dfx.PIDController(rtol=tolerance, atol=tolerance / 100, norm=optx.max_norm)
        if flow.stiff:
            controller = dfx.ClipStepSizeController(controller, step_ts=ts)
        ys = solve(flow, y0, ts, stepsize_controller=controller).ys
        return _number(ys), ys

    run = jax.value_and_grad(number, has_aux=True) if name in DIFFERENTIATED else lambda *args: (number(*args), None)
    (_, ys), gradients = jax.jit(jax.vmap(run))(floats, rest, tolerances)
    lane = lambda tree: [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(pairs))]
    return lane(ys), lane(gradients)


def _number(ys):
    """One number that depends on all components at all times."""
    return sum(jnp.sum(w * y) for w, y in zip(*map(jax.tree.leaves, (_direction(ys, seed=2), ys)), strict=True))


def _exact_at(case: Case, flow, y0):
    return jax.tree.map(lambda *y: jnp.stack(y), *[case.exact(flow, t, y0) for t in map(jnp.asarray, case.ts)])


def _distance(a, b) -> float:
    """The largest difference of two PyTrees, relative to the largest number in `b`."""
    (a, _), (b, _) = (jax.flatten_util.ravel_pytree(eqx.filter(z, eqx.is_inexact_array)) for z in (a, b))
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


def _as_float32(tree):
    return _map_floats(lambda x: x.astype(jnp.float32), tree)


@every_flow
def test_vector_field_has_the_structure_of_the_state(name):
    case = TABLE[name]
    dy = case.flow(0.0, case.y0, None)
    assert jax.tree.structure(dy) == jax.tree.structure(case.y0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), dy) == jax.tree.map(lambda x: (x.shape, x.dtype), case.y0)
    assert all(jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(dy))


@every_flow
def test_goes_into_diffrax_as_it_is(name):
    case = TABLE[name]
    term = dfx.ODETerm(case.flow)
    expected = jax.tree.map(lambda f: 0.5 * f, case.flow(0.0, case.y0, None))
    assert eqx.tree_equal(term.vf_prod(0.0, case.y0, None, jnp.asarray(0.5)), expected, rtol=1e-14, atol=0)


@every_flow
def test_vector_field_never_leaves_the_device(name):
    # A check that survives into the trace would call back to Python at every step of a solve.
    case = TABLE[name]
    floats, rest = eqx.partition((case.flow, case.y0), eqx.is_inexact_array)
    field = jax.make_jaxpr(lambda t, floats: (lambda flow, y: flow(t, y, None))(*eqx.combine(floats, rest)))
    assert "callback" not in str(field(1.0, floats))


@every_flow
def test_is_a_pytree_and_new_parameters_compile_nothing(name):
    (flow, y0), (moved, y1), _ = lanes(name)
    leaves, structure = jax.tree.flatten(flow)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(rebuilt) == structure and type(rebuilt) is type(flow)
    field = eqx.filter_jit(eqx.debug.assert_max_traces(lambda flow, y: flow(1.0, y, None), max_traces=1))
    for each, y in ((rebuilt, y0), (moved, y1)):
        assert _distance(field(each, y), each(1.0, y, None)) < 1e-14


@every_flow
def test_float32_in_float32_out(name):
    case = TABLE[name]

    def everything(flow, y0):
        out = [flow(0.0, y0, None)]
        out += [flow.exact(np.float32(case.ts[0]), y0)] if hasattr(flow, "exact") else []
        out += [flow.invariants(y0)] if hasattr(flow, "invariants") else []
        out += [flow.blow_up_time(y0)] if hasattr(flow, "blow_up_time") else []
        return out

    out = jax.eval_shape(everything, _as_float32(case.flow), _as_float32(case.y0))
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}


@with_closed_form
def test_batched_solve_agrees_with_the_closed_form(name):
    for ys, (flow, y0) in zip(batched(name)[0], lanes(name), strict=False):
        _assert_exact(ys, name, flow, y0)


@pytest.mark.parametrize("name", ("LinearActivation", "NonlinearActivation"))
def test_solve_agrees_with_the_closed_form_at_its_defaults(name):
    for ys, (flow, y0) in zip(one_by_one(name)[0], lanes(name), strict=True):
        _assert_exact(ys, name, flow, y0)


def _assert_exact(ys, name, flow, y0):
    for got, exact in zip(*map(jax.tree.leaves, (ys, _exact_at(TABLE[name], flow, y0))), strict=True):
        # Component by component; a component that starts at zero and stays there has no relative error.
        np.testing.assert_allclose(got, exact, rtol=1e-8, atol=1e-11)


@without_closed_form
def test_solution_obeys_its_equation(name):
    # Its slope by a central difference: h²/6 = 2e-7 of the third derivative, which no case has beyond 50, and the
    # error of the solve, 1e-10 times some steps, over 2h = 2e-3.
    (flow, _), _, _ = lanes(name)
    before, now, after = (jax.tree.map(lambda y, i=i: y[i], one_by_one(name)[0][0]) for i in range(3))
    slope = jax.tree.map(lambda a, b: (a - b) / (AROUND_ONE[2] - AROUND_ONE[0]), after, before)
    assert _distance(slope, flow(1.0, now, None)) < 1e-5


@conserving
def test_invariants_are_constant_along_the_solution(name):
    for y, (flow, y0) in zip(batched(name)[0], lanes(name), strict=False):
        start = flow.invariants(y0)
        assert jnp.max(jnp.abs(jax.vmap(flow.invariants)(y) - start[None])) < 1e-9
        # Not because nothing happens.
        assert jnp.max(jnp.abs(y.z[-1] - y0.z)) > 0.05


@alone_and_batched
def test_batch_is_as_its_lanes_one_by_one(name):
    for together, alone in zip(batched(name)[0], one_by_one(name)[0], strict=False):
        # Roundings may shift a step, so that they agree to the accuracy of the solves.
        assert _distance(together, alone) < 1e-8


@alone_and_batched
def test_new_parameters_and_initial_values_do_not_compile_the_solve_again(name):
    ys, counts = one_by_one(name)
    assert counts[0] > 0 and counts[1:] == counts[:1] * 2
    assert _distance(ys[0], ys[1]) > 1e-6  # they did change


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradient_through_solve_is_that_of_the_closed_form(name):
    # The gradient has the accuracy of a solve: a step's tolerance times some hundred steps, amplified by the flow. An
    # explicit solver on the stiff flow misses by many orders of magnitude.
    case = TABLE[name]
    floats, rest = eqx.partition(lanes(name)[0], eqx.is_inexact_array)
    exact = jax.jit(jax.grad(lambda floats: _number(_exact_at(case, *eqx.combine(floats, rest)))))(floats)
    gradients = batched(name)[1]
    for tolerance, gradient in zip(TOLERANCES, (gradients[0], *gradients[3:]), strict=True):
        for got, wanted in zip(*map(jax.tree.leaves, (gradient, exact)), strict=True):
            assert jnp.max(jnp.abs(got - wanted)) <= 1e3 * tolerance * jnp.max(jnp.abs(wanted))


@pytest.mark.parametrize("name", [n for n in TABLE if n not in DIFFERENTIATED])
def test_gradient_of_the_vector_field_is_its_slope(name):
    # A central difference: H² of the third derivative and roundings of 1e-16/H.
    (floats, rest), (up, _), (down, _) = (eqx.partition(p, eqx.is_inexact_array) for p in lanes(name))

    @jax.jit
    def number(floats):
        flow, y = eqx.combine(floats, rest)
        return _number(flow(1.0, y, None))  # at t = 0 some stand still

    parts = jax.tree.map(lambda g, d: jnp.sum(g * d), jax.grad(number)(floats), _direction(floats))
    slope = float(number(up) - number(down)) / (2 * H)
    assert float(sum(jax.tree.leaves(parts))) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", [n for n, c in TABLE.items() if hasattr(c.flow, "exact") and c.autonomous])
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(first=st.floats(0, 1), second=st.floats(0, 1), scale=st.floats(-1, 1))
def test_closed_form_is_a_semigroup(name, first, second, scale):
    # Only roundings, amplified by at most the growth of a perturbation: exp(v²/2) ≤ e^8 for |v| ≤ 4.
    case = TABLE[name]
    y0 = jax.tree.map(lambda y: scale * y, case.y0)
    end = case.ts[-1] / 2 if hasattr(case.flow, "blow_up_time") else case.ts[-1]  # scaling v(0) moves the blow-up
    s, t = (jnp.asarray(end * f / 2) for f in (first, second))
    exact = _compiled_exact(name)
    in_two, in_one = exact(t, exact(s, y0)), exact(s + t, y0)
    for a, b in zip(*map(jax.tree.leaves, (in_two, in_one)), strict=True):
        np.testing.assert_allclose(a, b, rtol=64 * math.exp(8) * 2.3e-16, atol=64 * math.exp(8) * 2.3e-16)


@functools.cache
def _compiled_exact(name: str):
    flow = TABLE[name].flow
    return jax.jit(lambda t, y0: flow.exact(t, y0))


# Other kinds of states. Users have no shape checker on, and JAX promotes dtypes.


def _questions(name: str) -> dict[str, Callable[[Any, Any], Any]]:
    """What a flow can be asked about a state: functions of the flow and the state."""
    case = TABLE[name]
    t = case.ts[0] / 100  # well before any blow-up, from the states made below too
    questions: dict[str, Callable[[Any, Any], Any]] = {"derivative": lambda flow, y: flow(0.0, y, None)}
    if hasattr(case.flow, "exact"):
        questions["exact"] = lambda flow, y: flow.exact(t, y)
    if hasattr(case.flow, "invariants"):
        questions["invariants"] = lambda flow, y: flow.invariants(y)
    if hasattr(case.flow, "blow_up_time"):
        questions["blow_up_time"] = lambda flow, y: flow.blow_up_time(y)
    return questions


def _answer(question, flow, y):
    """What comes of it: an array, or the message of the refusal."""
    with as_users():
        try:
            return question(flow, y)
        except ValueError as error:
            assert "must" in str(error)
            return str(error)


def _same(a, b) -> bool:
    return isinstance(a, str) == isinstance(b, str) and (isinstance(a, str) or bool(eqx.tree_equal(a, b)))


@every_flow
def test_integer_states_are_the_same_numbers_or_refused(name):
    whole = _map_floats(lambda x: jnp.round(2 * x).astype(int), TABLE[name].y0)
    for question in _questions(name).values():
        answer = _answer(question, TABLE[name].flow, whole)
        if not isinstance(answer, str):
            assert _same(answer, _answer(question, TABLE[name].flow, jax.tree.map(lambda x: x.astype(float), whole)))


@pytest.mark.parametrize("name", [n for n in TABLE if n != "GradientFlow"])  # whose loss says what it takes
def test_complex_states_are_refused(name):
    for question in _questions(name).values():
        answer = _answer(question, TABLE[name].flow, _map_floats(lambda x: jax.lax.complex(x, x), TABLE[name].y0))
        assert isinstance(answer, str) and "real" in answer


@every_flow
@pytest.mark.parametrize("dtype", (jnp.float16, jnp.bfloat16))
def test_narrow_states_are_right_or_refused(name, dtype):
    narrow = _map_floats(lambda x: x.astype(dtype), TABLE[name].y0)
    wide = _map_floats(lambda x: x.astype(jnp.float64), narrow)
    for question in _questions(name).values():
        answer = _answer(question, TABLE[name].flow, narrow)
        if not isinstance(answer, str):
            expected = _answer(question, TABLE[name].flow, wide)
            for got, right in zip(*map(jax.tree.leaves, (answer, expected)), strict=True):
                # What a flow computes from the state alone has the state's precision: sums of some dozen terms.
                error = 16 * float(jnp.finfo(dtype).eps)
                scale = float(jnp.max(jnp.where(jnp.isfinite(right), jnp.abs(right), 0)))
                np.testing.assert_allclose(np.asarray(got, float), right, rtol=error, atol=error * scale)


@pytest.mark.parametrize("dtype", (jnp.float16, jnp.bfloat16))
@every_flow
def test_narrow_parameters_are_refused_or_widened(name, dtype):
    flow = TABLE[name].flow
    fields = [f.name for f in dataclasses.fields(flow) if f.init and eqx.is_inexact_array(getattr(flow, f.name))]
    for field in fields:
        with as_users():
            try:
                made = dataclasses.replace(flow, **{field: getattr(flow, field).astype(dtype)})
            except ValueError as error:
                assert "must" in str(error)
            else:
                assert getattr(made, field).dtype in (jnp.float32, jnp.float64)


def _strided(x):
    """The same numbers, spread over memory, in the other order of axes."""
    x = np.asarray(x)
    spread = np.zeros((*x.shape[::-1], 2), x.dtype)
    spread[..., 0] = x.T
    return spread[..., 0].T


@every_flow
def test_views_of_numpy_arrays_are_the_same_numbers(name):
    # Those of no axis are NumPy's scalars.
    flow, y0 = TABLE[name].flow, TABLE[name].y0
    view = _map_floats(_strided, y0)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(view))
    for question in _questions(name).values():
        assert _same(_answer(question, flow, view), _answer(question, flow, y0))


@pytest.mark.parametrize("name", ("GradientFlow", "LinearActivation", "ManyNodes"))
def test_solve_from_views_of_numpy_arrays(name):
    case = TABLE[name]
    assert _same(solve(case.flow, _map_floats(_strided, case.y0), case.ts).ys, one_by_one(name)[0][0])
