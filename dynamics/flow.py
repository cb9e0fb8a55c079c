"""What a flow is, how it is solved, and the gradient flow of any loss.

Time is `t = learning_rate × step` everywhere in this library, and a state `y0` is the state at `t = 0`.
"""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from .._checked import checked
from .._checks import (
    as_array,
    as_float,
    check_callable,
    check_precision,
    check_range,
    concrete,
    describe,
    integer,
    require,
)
from ._compiled import bounded_jit
from ._steps import (
    StepControl,
    all_finite,
    controlled,
    default_tolerances,
    ends_by_itself,
    implicit_solver,
    max_norm,
    resolution,
    tolerances,
)

CHECKPOINTS = 128  # of a backward pass: the memory of some 400 states, and three runs forward up to 8 385 steps
ADJOINT = dfx.RecursiveCheckpointAdjoint(checkpoints=CHECKPOINTS)


class Flow(eqx.Module):
    """An ordinary differential equation whose parameters are PyTree leaves.

    Calling a flow is its vector field in Diffrax's signature, so `diffrax.ODETerm(flow)` works as it is. Beside it a
    flow may define

    - `exact(t, y0)`: the closed form at the time `t`, from the state `y0` at time zero;
    - `invariants(y)`: a PyTree of what the flow conserves;
    - `blow_up_time(y0)`: shaped like `y0` (or one entry a row), when each component leaves every bound.

    A flow holds arrays and has no hash, and so have its methods: `jax.jit(flow.exact)` fails. Write
    `equinox.filter_jit(flow.exact)`, or `jax.jit(lambda flow, t, y0: flow.exact(t, y0))`, which new parameters do not
    compile anew.

    `stiff = True` makes `solve` choose an implicit method.
    """

    stiff: ClassVar[bool] = False

    def __check_init__(self):
        for field in dataclasses.fields(self):
            check_precision(field.name, getattr(self, field.name, None))

    @abc.abstractmethod
    def __call__(self, t: ArrayLike, y: PyTree, args: Any) -> PyTree:
        """The time derivative of the state `y`, a PyTree of the same structure."""


def _as_rates(rates: PyTree) -> PyTree:
    def rate(path: Any, x: Any) -> Float[Array, "..."]:
        name = f"rates{jax.tree_util.keystr(path)}"
        x = as_float(x, name)
        if concrete(x):
            check_range(name, x)
        return x

    return jax.tree_util.tree_map_with_path(rate, rates)


@checked
class GradientFlow(Flow):
    """`ẏ = −rates ∘ ∇loss(y)`: gradient descent on any scalar loss, as the learning rate goes to zero.

    `y` is any PyTree of parameters, an Equinox module among them: leaves that are not floating-point arrays (sizes,
    activation functions, tokens) stay as they are. A complex parameter moves as its two real numbers do, along
    `−(∂/∂x + i ∂/∂y) loss`. `rates` multiplies the learning rate leaf by leaf; it is a scalar or any tree prefix of the
    parameters, with scalars or arrays that broadcast against the leaves (`None` is 1).

    Data that change between calls should travel as leaves, `GradientFlow(jax.tree_util.Partial(loss, data))`, so that
    new data do not compile anew. A loss written in the call, `GradientFlow(lambda w: …)`, is a new function every time
    and costs seconds of compilation every time.
    """

    loss: Callable[[Any], Float[Array, ""]]
    rates: PyTree = eqx.field(converter=_as_rates, default=1.0)

    @checked
    def __call__(self, t: Float[ArrayLike, ""], y: PyTree, args: Any = None) -> PyTree:
        if not any(eqx.is_inexact_array(x) for x in jax.tree.leaves(y)):
            raise ValueError(f"y must hold floating-point parameters, got {describe(y)}.")
        grads = eqx.filter_grad(self._real_loss)(y)
        try:
            rates = jax.tree.broadcast(self.rates, grads, is_leaf=lambda x: x is None)
        except ValueError as error:
            raise ValueError(
                f"rates must be a scalar or a tree prefix of the parameters, {jax.tree.structure(grads)}, "
                f"got {jax.tree.structure(self.rates)}."
            ) from error
        return jax.tree.map(_descent, grads, rates)

    def _real_loss(self, y: PyTree) -> Float[Array, ""]:
        loss = as_array("the value of loss", self.loss(y))
        if loss.ndim or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(f"loss must return one real number, got {loss.dtype}{list(loss.shape)}.")
        return loss


def _descent(grad: Array, rate: Array | None) -> Array:
    step = -jnp.conj(grad)  # JAX's gradient is ∂/∂x − i ∂/∂y
    if rate is None:
        return step
    if not _broadcasts(rate.shape, grad.shape):
        raise ValueError(f"rates must broadcast against a parameter of shape {grad.shape}, got {rate.shape}.")
    return jnp.asarray(rate, grad.dtype) * step


def _broadcasts(shape: tuple[int, ...], against: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, against) == against
    except ValueError:
        return False


class Solution(dfx.Solution):
    """Diffrax's `Solution`, which says how exact it is when it is printed.

    `rtol` and `atol` are the tolerances of one step, `None` where the steps were not adapted to any.
    """

    ts: Any  # with the axes of a batch; `ys` is any PyTree, Equinox modules among them
    ys: Any
    rtol: Any = None
    atol: Any = None

    @property
    def expected_error(self) -> Any:
        """`rtol` a step, times the steps, relative to the state: what a flow gives that does not amplify errors.

        One that does, as before a blow-up, is off by more, and a contracting one by less. `None` without `rtol`.
        """
        return None if self.rtol is None else self.rtol * self.stats["num_accepted_steps"]

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(eqx.filter(self.ys, eqx.is_inexact_array))
        if not leaves or not concrete((self.ts, self.stats, self.result, self.rtol)):
            return super().__repr__()
        kinds = "/".join(sorted({str(x.dtype) for x in leaves}))
        accepted, rejected = (int(np.max(self.stats[f"num_{kind}_steps"])) for kind in ("accepted", "rejected"))
        error = "no expected error, without a tolerance"
        if self.rtol is not None:
            expected, rtol = float(np.max(self.expected_error)), float(np.max(self.rtol))
            error = f"expected relative error about {expected:.1g}, rtol {rtol:.1g} a step, if the flow amplifies none"
        done = bool(np.all(np.asarray(self.result == dfx.RESULTS.successful)))
        ends = "" if done else "; stopped before the last time, see result"
        return (
            f"Solution({kinds}, {np.shape(self.ts)[-1]} times up to t = {np.max(self.t1):.6g}: "
            f"{accepted} steps accepted, {rejected} rejected; {error}{ends})"
        )


class SolveError(RuntimeError):
    """A solve that did not reach the last time asked for; `solution` holds what was computed before that."""

    def __init__(self, message: str, solution: dfx.Solution):
        super().__init__(message)
        self.solution = solution


@checked
def solve(
    flow: Callable[..., PyTree],
    y0: PyTree,
    ts: Float[ArrayLike, " times"] | Sequence[float | int],
    *,
    solver: dfx.AbstractSolver | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 2**16,
    adjoint: dfx.AbstractAdjoint | None = None,
    throw: bool = True,
    progress: bool = False,
) -> Solution:
    """Integrates `flow` from the state `y0` at `t = 0` and returns the states at exactly the times `ts`.

    A thin layer over `diffrax.diffeqsolve`; whoever outgrows it calls that with the same flow. Works under `jit`,
    `vmap` and `grad` with respect to the flow's parameters, `y0` and `ts`.

    **Arguments:** `flow`, any `(t, y, args) -> dy/dt`; `y0`, a PyTree of arrays of one precision, float32 or float64
    (or the complex numbers of these, which are solved as pairs of real ones), or an Equinox module, whose other leaves
    are left alone; `ts`, shape `(times,)`, increasing, from zero on, in the precision of `y0`.

    - `solver`: by default `Tsit5`, and `Kvaerno5` (in float32 `Kvaerno3`) for a flow that says it is `stiff`, as
      `v̇ = (μ−v)∘exp(v²/2)` does.
      An explicit method gets the values of a stiff flow right and its gradients silently wrong.
    - `rtol`, `atol`: by default 1e-10, 1e-12 for a float64 state and 1e-5, 1e-7 for a float32 one, in the max norm: the
      usual root mean square hides the one row that is about to blow up.
      The default `atol` is smaller where `y0` is small: at most `rtol` times the largest entry of each leaf. So growth
      from 1e-30 is right. Leaves of zeros have no size and count for nothing in this.
      No growth is right from below `atol`: of one small entry beside large ones in a leaf, or of what first decays.
    - `stepsize_controller`: by default a `PIDController` of these tolerances, which for a stiff flow also steps to each
      of `ts`, since `Kvaerno5` interpolates at third order only.
    - `adjoint`: by default `RecursiveCheckpointAdjoint(checkpoints=128)`, for gradients in the memory of some 400
      states, however many steps there are. Forward mode (`jvp`, `jacfwd`) needs `diffrax.ForwardMode()`, and both modes
      in one, as `hessian` does, `diffrax.DirectAdjoint()` with a small `max_steps`.
    - `progress`: shows a bar.

    The program is compiled once for each flow, as a structure, and kept; the parameters of a flow are no part of that.
    A function written in the call is, as in `solve(GradientFlow(lambda w: …), …)`: in a loop this compiles every time.
    The 64 latest compilations are kept. `GradientFlow(jax.tree_util.Partial(loss, data))` compiles once.

    **Returns** Diffrax's `Solution`: `ts` as asked for and `ys` with a leading axis `times`; `stats["t_stop"]` and
    `stats["y_stop"]` are the time and state that were reached. Printed, it says its dtype, steps and expected error. A
    solution that blows up in finite time is stopped where the step that it needs is below the resolution of `t`; the
    remaining `ys` are infinite. At a late time a bounded rise may be as steep: then rescale time, or use float64.

    **Raises** `ValueError` for a bad flow, `y0`, `ts` or option, for a flow that is not finite at the start, and for a
    time past the `blow_up_time` of the flow; `SolveError` when the solution blows up, the steps run out, or no step is
    small enough. It says where, and holds the solution. Inside `jit` these are runtime errors of Equinox, best read
    under `eqx.filter_jit`. With `throw=False` the last three are data: read `result`, which is
    `diffrax.RESULTS.event_occurred` at a blow-up.
    """
    check_callable("flow", flow)
    max_steps = integer("max_steps", max_steps, least=1, most=2**31 - 1)
    if stepsize_controller is not None and (rtol is not None or atol is not None):
        raise ValueError("rtol and atol would be ignored: they belong inside the stepsize_controller that was given.")
    _check_options(solver, stepsize_controller, adjoint)
    state, static = _split_state(y0)
    ts = _check_times(ts, state)
    _check_steps(stepsize_controller, ts)
    if throw:
        check_blow_up(flow, eqx.combine(state, static), ts)
    stiff = getattr(flow, "stiff", False)
    if stepsize_controller is None:
        relative = default_tolerances(ts.dtype)[0] if rtol is None else _tolerance("rtol", rtol, ts.dtype, below=1)
        absolute = _default_atol(state, relative, ts.dtype) if atol is None else _tolerance("atol", atol, ts.dtype)
        stepsize_controller = StepControl(rtol=relative, atol=absolute, implicit=stiff and solver is None)
        if stiff:
            stepsize_controller = dfx.ClipStepSizeController(stepsize_controller, step_ts=ts)
    if solver is None:
        solver = implicit_solver(ts.dtype, *tolerances(stepsize_controller)) if stiff else dfx.Tsit5()
    if adjoint is None:
        adjoint = ADJOINT if max_steps >= CHECKPOINTS else dfx.RecursiveCheckpointAdjoint(checkpoints=max_steps)
    controller = controlled(stepsize_controller)
    solution = _integrate(flow, state, static, ts, solver, controller, max_steps, adjoint, progress)
    return _raise_if_failed(solution, flow, static, ts, solver, max_steps) if throw else solution


@bounded_jit
def _integrate(flow, state, static, ts, solver, controller, max_steps, adjoint, progress) -> Solution:
    leaves, structure = jax.tree.flatten(state)

    def as_complex(y):
        pairs = zip(structure.flatten_up_to(y), leaves, strict=True)
        return structure.unflatten([lax.complex(x[..., 0], x[..., 1]) if jnp.iscomplexobj(z) else x for x, z in pairs])

    def field(t, y, args):
        y = as_complex(y)
        return _as_real(_derivative(flow, t, y, static, args))

    def blowing_up(t, y, args, **_):
        return _grows(y, field(t, y, args), start, resolution(t)) | jnp.isinf(max_norm(y))

    start = _as_real(state)
    solution = _diffeqsolve(
        dfx.ODETerm(field),
        solver,
        t0=jnp.zeros((), ts.dtype),
        t1=ts[-1],
        dt0=None,
        y0=start,
        saveat=dfx.SaveAt(subs=(dfx.SubSaveAt(ts=ts), dfx.SubSaveAt(t1=True))),
        stepsize_controller=controller,
        adjoint=adjoint,
        event=None if ends_by_itself(controller) else dfx.Event(blowing_up),
        max_steps=max_steps,
        throw=False,
        progress_meter=dfx.TqdmProgressMeter() if progress else dfx.NoProgressMeter(),
    )
    (saved_ts, (t_stop,)), (ys, y_stop) = solution.ts, solution.ys  # pyright: ignore[reportGeneralTypeIssues]
    y_stop = jax.tree.map(lambda y: y[0], y_stop)
    soon = jnp.sqrt(jnp.finfo(ts.dtype).eps) * t_stop
    blew_up = (solution.result == dfx.RESULTS.dt_min_reached) & _grows(y_stop, field(t_stop, y_stop, None), start, soon)
    rtol, atol = tolerances(controller)
    changed = {
        "ts": saved_ts,
        "ys": eqx.combine(as_complex(ys), static),
        "stats": solution.stats | {"t_stop": t_stop, "y_stop": as_complex(y_stop)},
        "result": dfx.RESULTS.where(blew_up, dfx.RESULTS.event_occurred, solution.result),
    }
    kept = {field.name: getattr(solution, field.name) for field in dataclasses.fields(solution)}
    return Solution(**(kept | changed), rtol=rtol, atol=atol)


_diffeqsolve = inspect.unwrap(dfx.diffeqsolve)  # its own jit, inside another, would keep every flow alive


def _as_real(tree: PyTree) -> PyTree:
    """Complex leaves as pairs of real numbers: Diffrax's error norms and implicit methods are made for real ones."""
    return jax.tree.map(lambda x: jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x, tree)


def _grows(y: PyTree, slope: PyTree, start: PyTree, time: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a component that has at least doubled would grow by its own size within `time`."""

    def grows(y, slope, start):
        return jnp.any((jnp.abs(y) < time * jnp.abs(slope)) & (jnp.abs(y) > 2 * jnp.abs(start)) & (y * slope > 0))

    return jnp.any(jnp.stack(jax.tree.leaves(jax.tree.map(grows, y, slope, start))))


def _derivative(flow: Callable, t: ArrayLike, y: PyTree, static: PyTree, args: Any) -> PyTree:
    """The derivative of the leaves that evolve, of the same structure, shapes and dtypes as they."""
    try:
        inspect.signature(flow).bind(t, y, args)
    except TypeError as error:
        raise ValueError(f"flow must take (t, y, args), got {describe(flow)}: {error}.") from error
    except ValueError:  # a built-in function without a signature
        pass
    slope = eqx.filter(flow(t, eqx.combine(y, static), args), eqx.is_array)
    if jax.tree.structure(slope) != jax.tree.structure(y):
        raise ValueError(
            f"flow must return a PyTree of y0's structure, {jax.tree.structure(y)}, got {jax.tree.structure(slope)}."
        )
    for (path, x), f in zip(jax.tree.leaves_with_path(y), jax.tree.leaves(slope), strict=True):
        if (f.shape, f.dtype) != (x.shape, x.dtype):
            wanted, got = (f"{z.dtype}{list(z.shape)}" for z in (x, f))
            advice = "" if f.dtype == x.dtype else ": cast y0 or the parameters of the flow"
            raise ValueError(f"flow must return {wanted} for y0{jax.tree_util.keystr(path)}, got {got}{advice}.")
    return slope


def _check_options(
    solver: dfx.AbstractSolver | None,
    controller: dfx.AbstractStepSizeController | None,
    adjoint: dfx.AbstractAdjoint | None,
) -> None:
    for name, value, kind, example in (
        ("solver", solver, dfx.AbstractSolver, "Tsit5()"),
        ("stepsize_controller", controller, dfx.AbstractStepSizeController, "PIDController(rtol=1e-6, atol=1e-8)"),
        ("adjoint", adjoint, dfx.AbstractAdjoint, "ForwardMode()"),
    ):
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} must be an instance, as diffrax.{example}, got {describe(value)}.")
    if solver is not None and not _takes_one_term(solver):
        raise ValueError(f"solver must take one term, the flow, as diffrax.Tsit5(), got {describe(solver)}.")
    if isinstance(adjoint, dfx.ImplicitAdjoint | dfx.BacksolveAdjoint):
        raise ValueError(
            "adjoint must be diffrax.RecursiveCheckpointAdjoint(), DirectAdjoint() or ForwardMode(), which can save "
            f"states on the way, got {describe(adjoint)}."
        )
    if isinstance(controller, dfx.ConstantStepSize):
        raise ValueError("stepsize_controller must choose its first step, got ConstantStepSize(): use diffrax.StepTo.")
    adaptive = controller is None or isinstance(controller, dfx.AbstractAdaptiveStepSizeController)
    if adaptive and not (solver is None or isinstance(solver, dfx.AbstractAdaptiveSolver)):
        raise ValueError(
            f"solver must estimate its error where steps are adapted, got {describe(solver)}: "
            "give stepsize_controller=diffrax.StepTo(times), or a solver as diffrax.Tsit5()."
        )


def _takes_one_term(solver: dfx.AbstractSolver) -> bool:
    kind = solver.term_structure
    return isinstance(kind, type) and issubclass(kind, dfx.AbstractTerm) and not issubclass(kind, dfx.MultiTerm)


def _check_steps(controller: dfx.AbstractStepSizeController | None, ts: Float[Array, " times"]) -> None:
    """Raises `ValueError` for steps that are given and known, and do not lead from zero to the last time."""
    if isinstance(controller, dfx.StepTo) and concrete((controller.ts, ts)):
        steps, last = np.asarray(controller.ts), np.asarray(ts)[-1]
        if steps[0] != 0 or steps[-1] != last or not np.all(steps[1:] > steps[:-1]):
            raise ValueError(
                f"stepsize_controller must step from 0 up to ts[-1] = {last:.6g}, "
                f"got StepTo from {steps[0]:.6g} to {steps[-1]:.6g}."
            )


def _default_atol(state: PyTree, rtol: Any, dtype: Any) -> Float[Array, ""]:
    """The usual one, or `rtol` times the size of the smallest leaf that is not zero: growth from far below an absolute
    tolerance would be overlooked."""
    known = concrete((state, rtol))
    xp = np if known else jnp  # numpy compiles nothing
    atol = default_tolerances(dtype)[1]
    for leaf in jax.tree.leaves(state if known else lax.stop_gradient(state)):
        size = xp.max(xp.abs(xp.asarray(leaf)), initial=0)
        atol = xp.where(size > 0, xp.minimum(atol, rtol * size), atol)
    return jnp.asarray(xp.maximum(atol, float(jnp.finfo(dtype).tiny)), dtype)


def _tolerance(name: str, value: Any, dtype: Any, below: int | None = None) -> Any:
    if concrete(value):
        check_range(name, value, above=0, below=below)
    return jnp.asarray(value, dtype) if eqx.is_array(value) else float(value)


def _split_state(y0: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves of `y0` that evolve, and the rest."""
    y0 = numpy_as_jax("y0", y0)
    if not isinstance(y0, eqx.Module):
        y0 = _numbers_as_arrays(y0)
    state, static = eqx.partition(y0, eqx.is_inexact_array)
    leaves = jax.tree.leaves(state)
    if not sum(leaf.size for leaf in leaves):
        raise ValueError("y0 must hold at least one floating-point number, got none.")
    for path, leaf in jax.tree.leaves_with_path(state):
        name, precision = f"y0{jax.tree_util.keystr(path)}", _precision(leaf)
        if precision.itemsize < 4:
            raise ValueError(
                f"{name} must be float32 or float64, got {describe(leaf)}: steps need more digits. Cast it."
            )
        if precision != _precision(leaves[0]):
            raise ValueError(
                f"{name} must be of the precision of y0's first leaf, {leaves[0].dtype}, got {leaf.dtype}."
            )

    def finite(path, leaf):
        xp, name = np if concrete(leaf) else jnp, jax.tree_util.keystr(path)
        return require(leaf, xp.all(xp.isfinite(leaf)), f"y0{name} must be finite, got NaN or infinity.")

    return jax.tree_util.tree_map_with_path(finite, state), static


def numpy_as_jax(name: str, tree: PyTree) -> PyTree:
    """The tree with NumPy's arrays as JAX's. Raises `ValueError` for objects, strings and longdouble."""

    def convert(path, x):
        return as_array(f"{name}{jax.tree_util.keystr(path)}", x) if isinstance(x, np.ndarray | np.generic) else x

    return jax.tree_util.tree_map_with_path(convert, tree)


def _numbers_as_arrays(y0: PyTree) -> PyTree:
    """Python's numbers as arrays, of the precision that the arrays beside them have."""
    for path, leaf in jax.tree.leaves_with_path(y0):
        if not (isinstance(leaf, float | complex) or eqx.is_inexact_array(leaf)):
            raise ValueError(
                f"y0{jax.tree_util.keystr(path)} must be a floating-point array, got {describe(leaf)}. "
                "Cast it, or keep what does not evolve outside the state."
            )
    leaves = jax.tree.leaves(y0)
    if type(y0) in (list, tuple) and leaves and not any(eqx.is_array(leaf) for leaf in leaves):
        raise ValueError(f"y0 must be an array or a PyTree of arrays, got {describe(y0)}: write jax.numpy.array(y0).")
    dtype = next((_precision(leaf) for leaf in leaves if eqx.is_array(leaf)), jnp.result_type(float))

    def as_its_kind(leaf):
        if eqx.is_array(leaf):
            return leaf
        return jnp.asarray(leaf, jnp.result_type(dtype, jnp.complex64) if isinstance(leaf, complex) else dtype)

    return jax.tree.map(as_its_kind, y0)


def _precision(x: Array) -> np.dtype:
    return jnp.finfo(x.dtype).dtype


def _check_times(ts: ArrayLike | Sequence[float], state: PyTree) -> Float[Array, " times"]:
    ts = as_array("ts", ts)
    if ts.dtype == jnp.bool_:
        raise ValueError(f"ts must be real numbers, got {describe(ts)}.")
    dtype = _precision(jax.tree.leaves(state)[0])
    ts = as_float(ts, "ts").astype(dtype)
    if ts.ndim != 1 or ts.size == 0:
        raise ValueError(f"ts must have shape (times,) with at least one time, got {ts.shape}.")
    values, xp = (np.asarray(ts), np) if concrete(ts) else (ts, jnp)  # numpy compiles nothing
    ts = require(ts, xp.all(xp.isfinite(values)), "ts must be finite, got NaN or infinity.")
    ts = require(ts, values[0] >= 0, "ts must start at zero or later: y0 is the state at t = 0.")
    return require(ts, xp.all(values[1:] > values[:-1]), f"ts must be strictly increasing (in the state's {dtype}).")


def check_blow_up(flow: Any, y0: PyTree, t: ArrayLike) -> None:
    """Raises `ValueError` if `t` lies past the flow's `blow_up_time`, where it has one and the values are known. Zero
    never does, even where that time is too short for a number."""
    if not hasattr(flow, "blow_up_time"):
        return
    times = flow.blow_up_time(y0)
    if concrete((times, t)):
        name, when = _extreme(jax.tree.map(jnp.negative, times))
        if float(np.max(t)) >= -when and np.max(t) > 0:
            raise ValueError(
                f"t = {float(np.max(t)):.6g} lies past the blow-up: component {name} becomes infinite at "
                f"t = {-when:.10g}. Ask for earlier times (`solve` with throw=False stops there)."
            )


def _raise_if_failed(
    solution: Solution,
    flow: Callable,
    static: PyTree,
    ts: Float[Array, " times"],
    solver: dfx.AbstractSolver,
    max_steps: int,
) -> Solution:
    result, t_stop, y_stop = solution.result, solution.stats["t_stop"], solution.stats["y_stop"]
    failed = result != dfx.RESULTS.successful
    if not concrete((failed, solution.stats, solution.ys)):
        blew_up, unresolved = result == dfx.RESULTS.event_occurred, result == dfx.RESULTS.dt_min_reached
        hint = "Call solve with throw=False and read result and stats['t_stop']."
        ys = eqx.error_if(solution.ys, blew_up, f"solve: the solution blows up in finite time before ts[-1]. {hint}")
        ys = eqx.error_if(ys, unresolved & (t_stop == 0), f"solve: the flow must be finite at the start. {hint}")
        return dataclasses.replace(solution, ys=eqx.error_if(ys, failed, f"solve: did not reach ts[-1]. {hint}"))
    if not failed:
        return solution
    slope = _derivative(flow, t_stop, y_stop, static, None)
    if t_stop == 0 and not all_finite(slope):
        name, number = _extreme(jax.tree.map(jnp.abs, slope), slope)
        raise ValueError(f"flow must be finite at the start, got {number} for the derivative of y0{name} at t = 0.")
    raise SolveError(
        f"{_why(solution, slope, ts, solver, max_steps)}; what was computed is in this error's `solution`, "
        "or pass throw=False.",
        solution,
    )


def _why(solution: Solution, slope: PyTree, ts: Array, solver: dfx.AbstractSolver, max_steps: int) -> str:
    stats, result = solution.stats, solution.result
    t_stop, y_stop, least = stats["t_stop"], stats["y_stop"], float(resolution(stats["t_stop"]))
    blew_up = bool(result == dfx.RESULTS.event_occurred)
    name, number = _extreme(jax.tree.map(jnp.abs, slope if blew_up else y_stop), y_stop)
    reached = f"at t = {float(t_stop):.10g} of {float(ts[-1]):.6g}, where component y{name} is {number:.4g}"
    steps = f"after {int(stats['num_steps'])} steps, {int(stats['num_rejected_steps'])} of them rejected"
    if blew_up:
        name, speed = _extreme(jax.tree.map(jnp.abs, slope), slope)
        return (
            f"the solution blows up {reached} and its derivative {speed:.4g}: it grows by its own size in "
            f"{abs(number / speed):.2g}, and {ts.dtype} has no steps below {least:.2g} there. Ask for earlier times, "
            "or rescale time if it is a rise that is bounded"
        )
    if bool(result == dfx.RESULTS.dt_min_reached):
        return (
            f"the solve stopped {reached}, {steps}: it needs a step below {least:.2g}, the resolution of {ts.dtype} at "
            "this time. The derivative is not finite nearby, or it jumps, or it changes faster than that: rescale time"
        )
    implicit = "Kvaerno5()"
    if ts.dtype == jnp.float32:
        implicit = "Kvaerno3(root_finder=diffrax.VeryChord(rtol=1e-3, atol=1e-5))"
    stiff = "" if isinstance(solver, dfx.AbstractImplicitSolver) else f"be stiff (try solver=diffrax.{implicit}) or "
    return (
        f"the solve stopped {reached}, {steps} (max_steps={max_steps}): {dfx.RESULTS[result]} "
        f"The flow may {stiff}not be smooth (loosen rtol)"
    )


def _extreme(tree: PyTree, values: PyTree = None) -> tuple[str, Any]:
    """Where the largest entry of a PyTree stands, as in `['v'][3]`, and what `values` has there.

    A NaN counts as the largest.
    """
    best, found = -np.inf, ("", np.nan)
    leaves = jax.tree.leaves_with_path(tree)
    for (path, leaf), value in zip(leaves, jax.tree.leaves(tree if values is None else values), strict=True):
        leaf = np.asarray(leaf)
        if leaf.size:
            index = np.unravel_index(np.argmax(leaf), leaf.shape)
            if not leaf[index] <= best:
                best = leaf[index]
                name = jax.tree_util.keystr(path) + "".join(f"[{i}]" for i in index)
                found = name, np.asarray(value)[index].item()
    return found
