"""What every flow must do. The flows are found, and their examples are the table; a few more settings stand beside.

Each solve costs seconds of compilation, so a flow is compiled once, `jit(vmap(solve))`, and the tests share the result.
Data are made and compared by NumPy, as JAX compiles a program for each operation on each shape.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

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

from traindyn.dynamics import BlowsUp, ClosedForm, Conserving, Flow, flows, joma, reversal, scan_snap, solve

H = 1e-4  # how far the parameters of the second and third of the `lanes` lie from the first
FAR = 0.1  # how far their starts do
STEP = 1e-3  # of the central differences in time
TOLERANCES = (1e-10, 1e-8, 1e-6)
# Reverse mode through a solve takes the longest to compile. Of the others the vector field is differentiated.
DIFFERENTIATED = ("joma.LinearActivation", "joma.NonlinearActivation")
ALONE = (*DIFFERENTIATED, "scan_snap.ScanSnap")


class Case(NamedTuple):
    """A flow, a start, and times: up to 0.99 of the first blow-up, where there is one."""

    flow: Any
    y0: Any
    ts: Any


def _push_back(head, label, h):
    """`−∂/∂h` of the cross-entropy of `h @ head`."""
    return (jax.nn.one_hot(label, head.shape[1], dtype=h.dtype) - jax.nn.softmax(h @ head)) @ head.T


def _parameters(kind: type[Flow]) -> dict[str, float]:
    """Those of its example, none at a default of one, where what multiplies and what divides are the same."""
    parameters = inspect.signature(kind.example).parameters.values()
    return {p.name: 1.2 * p.default for p in parameters if isinstance(p.default, float) and p.name != "time"}


def _table() -> dict[str, Case]:
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    x = jnp.asarray(rng.dirichlet(np.ones(4), size=6))
    state = joma.JointState(0.5 * normal(4, 3), 0.5 * normal(2, 4) + 1, 0.3 * normal(2, 3))
    query = jnp.array([0, 1, 0, 0, 1, 1])
    push = jax.tree_util.Partial(_push_back, 3 * normal(3, 5), jnp.array([0, 1, 2, 3, 4, 0]))
    joint = lambda g, **options: joma.Joint(x, g, query=query, eta_w=0.7, eta_z=1.6, **options)
    table = jnp.asarray(rng.dirichlet(np.ones(5), size=3))
    scan = scan_snap.ScanSnap(
        table, jnp.array([0, 1, 0]), outputs=4, eta_y=0.8, eta_z=0.5, preconditioned=True, queries=2
    )
    one = jnp.linspace(0.0, 1.0, 5)
    return {name: Case(*kind.example(jax.random.key(0), **_parameters(kind))) for name, kind in flows().items()} | {
        "joma.Joint, linear": Case(joint(normal(6, 3), attention="linear"), state, one),
        "joma.Joint, exp, two queries": Case(
            joint(push, activation=jnp.tanh, temperature=0.8, normaliser=1.2), state, one
        ),
        "joma.Joint, softmax": Case(
            joint(push, attention="softmax", activation=jnp.square, temperature=0.5), state, one
        ),
        "scan_snap.ScanSnap, tier A": Case(scan, scan_snap.YZ(normal(5, 4), 0.5 * normal(2, 5)), one),
        "scan_snap.Decoder, several": Case(
            scan_snap.Decoder(jnp.array([10.0, 100.0]), jnp.array([2.0, 3.0]), jnp.array([0.7, 1.0])),
            jnp.array([0.01, 0.005]),
            jnp.array([0.5, 20.0]),
        ),
        "scan_snap.SymmetricAttention, tier A": Case(
            scan_snap.SymmetricAttention(jnp.array([0.6]), jnp.array([0.4, 0.7]), 3, 5), 0.3 * normal(3), one
        ),
        "reversal.OneLayer, two targets": Case(
            reversal.OneLayer(jnp.array([10.0, 50.0]), jnp.array([3.0, 4.0]), jnp.array([0.5, 1.0]), targets=2),
            jnp.array([0.1, 0.3]),
            jnp.array([0.5, 20.0]),
        ),
        "reversal.Bilinear, from weights": Case(
            reversal.Bilinear.of(normal(4, 3), jnp.array([[0, 1], [1, 0], [2, 3]]), normal(3, 3)), normal(4, 4), one
        ),
        # At t = 0.4 the components with μ = 3 and 4 are in full flight.
        "joma.NonlinearActivation, to μ = 4": Case(
            joma.NonlinearActivation(jnp.array([0.5, -1.0, 2.0, 3.0, 4.0])),
            jnp.array([0.0, 0.0, 0.0, 0.1, 0.0]),
            jnp.array([0.1, 0.4, 0.5, 1.0, 10.0]),
        ),
    }


TABLE = _table()
EXAMPLES = [name for name in TABLE if "," not in name]


def _names(protocol: type) -> list[str]:
    return [name for name, case in TABLE.items() if isinstance(case.flow, protocol)]


every_flow = pytest.mark.parametrize("name", TABLE)
with_closed_form = pytest.mark.parametrize("name", _names(ClosedForm))
without_closed_form = pytest.mark.parametrize("name", [n for n in TABLE if n not in _names(ClosedForm)])


def _map_floats(f, tree, *rest):
    return jax.tree.map(lambda x, *r: f(x, *r) if eqx.is_inexact_array(x) else x, tree, *rest)


def _with_numpy(f, tree):
    """A PyTree whose floating-point arrays are changed by NumPy."""
    return _map_floats(lambda x: jnp.asarray(f(np.asarray(x))), tree)


def _direction(tree, seed=1):
    """A random tangent: one normal number for each floating-point number of a PyTree."""
    rng = np.random.default_rng(seed)
    return _map_floats(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


@functools.cache
def lanes(name: str) -> list[Case]:
    """The flow and its start, and two on either side: parameters moved by H, starts by FAR, along one direction."""
    flow, y0, ts = TABLE[name]

    def moved(sign: float) -> Case:
        def shift(tree, far):
            move = lambda x, d: jnp.asarray(np.asarray(x) + sign * far * np.asarray(d))
            return _map_floats(move, tree, _direction(tree))

        at = Case(shift(flow, H), shift(y0, FAR), ts)
        return at._replace(ts=_times(at, name in _names(ClosedForm)))

    return [moved(0.0), moved(1.0), moved(-1.0)]  # the first too: the types of all three must agree


def _times(case: Case, exact: bool) -> Any:
    """Up to 0.99 of the first blow-up; of a flow without closed form three around the middle, for its slope."""
    if isinstance(case.flow, BlowsUp):
        return jnp.min(case.flow.blow_up_time(case.y0)) * jnp.array([0.1, 0.5, 0.9, 0.99])
    return case.ts if exact else case.ts[-1] / 2 + STEP * jnp.array([-1.0, 0.0, 1.0])


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
    for flow, y0, ts in lanes(name):
        ys.append(solve(Counted(flow, traces), y0, ts).ys)
        counts.append(len(traces))
    return ys, counts


class _SameList(list):
    """A list that can be a static field: hashed and compared by identity."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


@functools.cache
def batched(name: str) -> list[Any]:
    """`jit(vmap(solve))` over parameters, starts and times at once: the states of each of the lanes."""
    floats, rest = eqx.partition(jax.tree.map(lambda *x: jnp.stack(x), *lanes(name)), eqx.is_inexact_array)
    ys = jax.jit(jax.vmap(lambda floats, rest: solve(*eqx.combine(floats, rest)).ys))(floats, rest)
    return [jax.tree.map(lambda x, i=i: jnp.asarray(np.asarray(x)[i]), ys) for i in range(len(lanes(name)))]


def _number(ys):
    """One number that depends on all components at all times."""
    return sum(jnp.sum(w * y) for w, y in zip(*map(jax.tree.leaves, (_direction(ys, seed=2), ys)), strict=True))


def _distance(a, b) -> float:
    """The largest difference of two PyTrees, relative to the largest number in `b`."""
    leaves = lambda tree: [np.ravel(x) for x in jax.tree.leaves(tree) if eqx.is_inexact_array_like(x)]
    a, b = (np.concatenate(leaves(tree)) for tree in (a, b))
    assert a.shape == b.shape
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def _as_float32(tree):
    return _with_numpy(lambda x: x.astype(np.float32), tree)


@every_flow
def test_vector_field_has_the_structure_of_the_state(name):
    case = TABLE[name]
    dy = case.flow(0.0, case.y0, None)
    assert jax.tree.structure(dy) == jax.tree.structure(case.y0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), dy) == jax.tree.map(lambda x: (x.shape, x.dtype), case.y0)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(dy))


@every_flow
def test_goes_into_diffrax_as_it_is(name):
    case = TABLE[name]
    term = dfx.ODETerm(case.flow)
    expected = jax.tree.map(lambda f: np.asarray(0.5 * np.asarray(f)), case.flow(0.0, case.y0, None))
    product = jax.tree.map(np.asarray, term.vf_prod(0.0, case.y0, None, jnp.asarray(0.5)))
    assert eqx.tree_equal(product, expected, rtol=1e-14, atol=0)


@every_flow
def test_vector_field_never_leaves_the_device(name):
    # A check that survives into the trace would call back to Python at every step of a solve.
    case = TABLE[name]
    floats, rest = eqx.partition((case.flow, case.y0), eqx.is_inexact_array)
    field = jax.make_jaxpr(lambda t, floats: (lambda flow, y: flow(t, y, None))(*eqx.combine(floats, rest)))
    assert "callback" not in str(field(1.0, floats))


@every_flow
def test_is_a_pytree_and_new_parameters_compile_nothing(name):
    (flow, y0, _), (moved, y1, _), _ = lanes(name)
    leaves, structure = jax.tree.flatten(flow)
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(rebuilt) == structure and type(rebuilt) is type(flow)
    field = eqx.filter_jit(eqx.debug.assert_max_traces(lambda flow, y: flow(1.0, y, None), max_traces=1))
    for each, y in ((rebuilt, y0), (moved, y1)):
        assert _distance(field(each, y), each(1.0, y, None)) < 1e-14


@every_flow
def test_float32_in_float32_out(name):
    case = TABLE[name]
    time = np.float32(np.asarray(case.ts)[1])

    def everything(flow, y0):
        out = [flow(0.0, y0, None)]
        out += [flow.exact(y0, time)] if isinstance(flow, ClosedForm) else []
        out += [flow.invariants(y0)] if isinstance(flow, Conserving) else []
        out += [flow.blow_up_time(y0)] if isinstance(flow, BlowsUp) else []
        return out

    out = jax.eval_shape(everything, _as_float32(case.flow), _as_float32(case.y0))
    assert {x.dtype for x in jax.tree.leaves(out)} == {jnp.dtype("float32")}


@with_closed_form
def test_solve_agrees_with_the_closed_form_at_all_times(name):
    for ys, (flow, y0, ts) in zip(batched(name), lanes(name), strict=True):
        _assert_close(ys, flow.exact(y0, ts))


@with_closed_form
def test_closed_form_at_many_times_is_that_at_each(name):
    flow, y0, ts = lanes(name)[1]
    each = [flow.exact(y0, jnp.asarray(t)) for t in np.asarray(ts)]
    _assert_close(flow.exact(y0, ts), jax.tree.map(lambda *y: np.stack(y), *each), 1e-13)
    assert jax.tree.map(jnp.shape, each[0]) == jax.tree.map(jnp.shape, y0)


def _assert_close(got, right, rtol=1e-8):
    # Component by component; a component that starts at zero and stays there has no relative error.
    for a, b in zip(*map(jax.tree.leaves, (got, right)), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol / 1e3)


@without_closed_form
def test_solution_obeys_its_equation(name):
    # Its slope by a central difference: h²/6 = 2e-7 of the third derivative, and the error of the solve, 1e-10 times
    # some steps, over 2h = 2e-3.
    for ys, (flow, _, ts) in zip(batched(name), lanes(name), strict=True):
        before, now, after = (jax.tree.map(lambda y, i=i: jnp.asarray(np.asarray(y)[i]), ys) for i in range(3))
        slope = jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / (2 * STEP), after, before)
        assert _distance(slope, flow(ts[1], now, None)) < 1e-5


@pytest.mark.parametrize("name", _names(Conserving))
def test_invariants_are_constant_along_the_solution(name):
    (flow, y0, _), ys = lanes(name)[0], batched(name)[0]
    start, along = np.asarray(flow.invariants(y0)), np.asarray(jax.jit(jax.vmap(flow.invariants))(ys))
    assert np.max(np.abs(along - start)) < 1e-9 * max(1, np.max(np.abs(start)))
    assert _distance(jax.tree.map(lambda y: np.asarray(y)[-1], ys), y0) > 0.05  # not because nothing happens


@pytest.mark.parametrize("name", ALONE)
def test_batch_is_as_its_lanes_one_by_one(name):
    for together, alone in zip(batched(name), one_by_one(name)[0], strict=True):
        # Roundings may shift a step, so that they agree to the accuracy of the solves.
        assert _distance(together, alone) < 1e-8


@pytest.mark.parametrize("name", ALONE)
def test_new_parameters_and_initial_values_do_not_compile_the_solve_again(name):
    ys, counts = one_by_one(name)
    assert counts[0] > 0 and counts[1:] == counts[:1] * 2
    assert _distance(ys[0], ys[1]) > 1e-6  # they did change


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_a_flow_of_its_kind_with_a_start_and_times(name):
    kind = flows()[name]
    flow, y0, ts = kind.example(jax.random.key(1))
    assert type(flow) is kind and inspect.getdoc(kind.example) != inspect.getdoc(Flow.example)
    assert jax.tree.structure(flow(ts[0], y0, None)) == jax.tree.structure(y0)
    np.testing.assert_allclose(ts, np.linspace(0, inspect.signature(kind.example).parameters["time"].default, 9))
    if isinstance(flow, BlowsUp):
        assert ts[-1] < jnp.min(flow.blow_up_time(y0))


def test_a_flow_without_example_says_so():
    with pytest.raises(NotImplementedError, match=r"Counted must define the classmethod example\(key\)"):
        Counted.example(jax.random.key(0))


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradient_through_solve_is_that_of_the_closed_form(name):
    # The gradient has the accuracy of a solve: a step's tolerance times some hundred steps, amplified by the flow. An
    # explicit solver on the stiff flow misses by many orders of magnitude.
    (flow, y0), ts = lanes(name)[1][:2], lanes(name)[1].ts
    floats, rest = eqx.partition((flow, y0), eqx.is_inexact_array)

    def number(floats, tolerance):
        flow, y0 = eqx.combine(floats, rest)
        controller = dfx.PIDController(rtol=tolerance, atol=tolerance / 100, norm=optx.max_norm)
        if flow.stiff:
            controller = dfx.ClipStepSizeController(controller, step_ts=ts)
        return _number(solve(flow, y0, ts, stepsize_controller=controller).ys)

    def closed(floats):
        flow, y0 = eqx.combine(floats, rest)
        return _number(flow.exact(y0, ts))

    exact = jax.jit(jax.grad(closed))(floats)
    gradients = jax.jit(jax.vmap(jax.grad(number), (None, 0)))(floats, jnp.array(TOLERANCES))
    for i, tolerance in enumerate(TOLERANCES):
        for got, wanted in zip(*map(jax.tree.leaves, (gradients, exact)), strict=True):
            got_at, right = np.asarray(got)[i], np.asarray(wanted)
            assert np.max(np.abs(got_at - right)) <= 1e3 * tolerance * np.max(np.abs(right))


@pytest.mark.parametrize("name", [n for n in TABLE if n not in DIFFERENTIATED])
def test_gradient_of_the_vector_field_is_its_slope(name):
    # A central difference: 1e-10 of the third derivative and roundings of 1e-16/1e-5.
    flow, start, _ = lanes(name)[1]  # from zero some stand still
    floats, rest = eqx.partition((flow, start), eqx.is_inexact_array)

    @jax.jit
    @jax.value_and_grad
    def number(floats):
        flow, y = eqx.combine(floats, rest)
        return _number(flow(1.0, y, None))

    up, down = (
        _map_floats(lambda x, d, h=h: jnp.asarray(np.asarray(x) + h * np.asarray(d)), floats, _direction(floats))
        for h in (1e-5, -1e-5)
    )
    parts = jax.tree.map(lambda g, d: np.sum(np.asarray(g) * np.asarray(d)), number(floats)[1], _direction(floats))
    slope = (float(number(up)[0]) - float(number(down)[0])) / 2e-5
    assert float(sum(jax.tree.leaves(parts))) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", [n for n in _names(ClosedForm) if n != "scan_snap.PhaseTransition"])
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(first=st.floats(0, 1), second=st.floats(0, 1), scale=st.floats(-1, 1))
def test_closed_form_is_a_semigroup(name, first, second, scale):
    # Only roundings, amplified by at most the growth of a perturbation: exp(v²/2) ≤ e^8 for |v| ≤ 4.
    case = TABLE[name]
    y0 = jax.tree.map(lambda y: scale * y, case.y0)
    end = case.ts[-1] / 2 if isinstance(case.flow, BlowsUp) else case.ts[-1]  # scaling v(0) moves the blow-up
    s, t = (jnp.asarray(end * f / 2) for f in (first, second))
    exact = _compiled_exact(name)
    in_two, in_one = exact(exact(y0, s), t), exact(y0, s + t)
    for a, b in zip(*map(jax.tree.leaves, (in_two, in_one)), strict=True):
        np.testing.assert_allclose(a, b, rtol=64 * math.exp(8) * 2.3e-16, atol=64 * math.exp(8) * 2.3e-16)


@functools.cache
def _compiled_exact(name: str):
    flow = TABLE[name].flow
    return jax.jit(lambda y0, t: flow.exact(y0, t))


# Other kinds of states. Users have no shape checker on, and JAX promotes dtypes.


def _questions(name: str) -> dict[str, Callable[[Any, Any], Any]]:
    """What a flow can be asked about a state: functions of the flow and the state."""
    case = TABLE[name]
    t = float(case.ts[1]) / 100  # well before any blow-up, from the states made below too
    questions: dict[str, Callable[[Any, Any], Any]] = {"derivative": lambda flow, y: flow(0.0, y, None)}
    if isinstance(case.flow, ClosedForm):
        questions["exact"] = lambda flow, y: flow.exact(y, t)
    if isinstance(case.flow, Conserving):
        questions["invariants"] = lambda flow, y: flow.invariants(y)
    if isinstance(case.flow, BlowsUp):
        questions["blow_up_time"] = lambda flow, y: flow.blow_up_time(y)
    return questions


def _answer(question, flow, y, modes=(True, False)):
    """What comes of it: an array, or the message of the refusal.

    What JAX's strict modes let pass is the same without them, and its programs are compiled already: they come first.
    """
    for strict in modes:
        with as_users(strict):
            try:
                return question(flow, y)
            except ValueError as error:
                if "must" in str(error):
                    return str(error)
                if not strict:
                    raise


def _same(a, b) -> bool:
    return isinstance(a, str) == isinstance(b, str) and (isinstance(a, str) or _equal(a, b))


def _equal(a, b) -> bool:
    numbers = lambda tree: [(x.dtype, x.shape, np.asarray(x).tolist()) for x in jax.tree.leaves(tree)]
    return jax.tree.structure(a) == jax.tree.structure(b) and numbers(a) == numbers(b)


@every_flow
def test_integer_states_are_the_same_numbers_or_refused(name):
    whole = _with_numpy(lambda x: np.round(2 * x).astype(int), TABLE[name].y0)
    for question in _questions(name).values():
        answer = _answer(question, TABLE[name].flow, whole)
        if not isinstance(answer, str):
            floats = jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(float)), whole)
            assert _same(answer, _answer(question, TABLE[name].flow, floats))


@pytest.mark.parametrize("name", [n for n in TABLE if n != "GradientFlow"])  # whose loss says what it takes
def test_complex_states_are_refused(name):
    for question in _questions(name).values():
        answer = _answer(question, TABLE[name].flow, _with_numpy(lambda x: x + 1j * x, TABLE[name].y0))
        assert isinstance(answer, str) and "real" in answer


@every_flow
@pytest.mark.parametrize("dtype", (jnp.float16, jnp.bfloat16))
def test_narrow_states_are_right_or_refused(name, dtype):
    narrow = _with_numpy(lambda x: x.astype(dtype), TABLE[name].y0)
    wide = _with_numpy(lambda x: x.astype(float), narrow)
    for question in _questions(name).values():
        answer = _answer(question, TABLE[name].flow, narrow, modes=(False,))  # nothing narrow is compiled yet
        if not isinstance(answer, str):
            expected = _answer(question, TABLE[name].flow, wide)
            for got, right in zip(*map(jax.tree.leaves, (answer, expected)), strict=True):
                # What a flow computes from the state alone has the state's precision: sums of some dozen terms.
                error = 16 * float(jnp.finfo(dtype).eps)
                scale = np.max(np.where(np.isfinite(right), np.abs(right), 0))
                np.testing.assert_allclose(np.asarray(got, float), right, rtol=error, atol=error * scale)


@pytest.mark.parametrize("dtype", (jnp.float16, jnp.bfloat16))
@every_flow
def test_narrow_parameters_are_refused_or_widened(name, dtype):
    flow = TABLE[name].flow
    fields = [f.name for f in dataclasses.fields(flow) if f.init and eqx.is_inexact_array(getattr(flow, f.name))]
    for field in fields:
        with as_users():
            try:
                made = dataclasses.replace(
                    flow, **{field: _with_numpy(lambda x: x.astype(dtype), getattr(flow, field))}
                )
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


@pytest.mark.parametrize("name", ALONE)
def test_solve_from_views_of_numpy_arrays(name):
    flow, y0, ts = lanes(name)[1]
    assert _same(solve(flow, _map_floats(_strided, y0), ts).ys, solve(flow, y0, ts).ys)
