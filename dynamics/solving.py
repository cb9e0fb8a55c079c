"""Solving a flow: Diffrax's `diffeqsolve` with tolerances for verification, and with a reason where it fails."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, Real

from .._checked import checked
from .._checks import check_callable, check_range, concrete, describe, integer
from ._compiled import bounded_jit
from ._diffrax import Checkpointed, diffeqsolve
from ._state import check_times, extreme, split_state
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
from .flow import BlowsUp, check_blow_up

CHECKPOINTS = 128  # of a backward pass: the memory of some 400 states, and three runs forward up to 8 385 steps
ADJOINT = Checkpointed(checkpoints=CHECKPOINTS)


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
    rtol: Real[ArrayLike, ""] | None = None,
    atol: Real[ArrayLike, ""] | None = None,
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
    state, static = split_state(y0)
    ts = check_times(ts, state)
    _check_steps(stepsize_controller, ts)
    if throw and not _ends_before_blow_up(flow, eqx.combine(state, static), ts):
        check_blow_up(flow, eqx.combine(state, static), ts)
    stiff = getattr(flow, "stiff", False)
    if stepsize_controller is None:
        relative = default_tolerances(ts.dtype)[0] if rtol is None else _tolerance("rtol", rtol, ts.dtype, below=1)
        absolute = default_atol(state, relative, ts.dtype) if atol is None else _tolerance("atol", atol, ts.dtype)
        stepsize_controller = StepControl(rtol=relative, atol=absolute, implicit=stiff and solver is None)
        if stiff:
            stepsize_controller = dfx.ClipStepSizeController(stepsize_controller, step_ts=ts)
    if solver is None:
        solver = implicit_solver(ts.dtype, *tolerances(stepsize_controller)) if stiff else dfx.Tsit5()
    if adjoint is None:
        adjoint = ADJOINT if max_steps >= CHECKPOINTS else Checkpointed(checkpoints=max_steps)
    controller = controlled(stepsize_controller)
    solution, failed, unresolved = _integrate(flow, state, static, ts, solver, controller, max_steps, adjoint, progress)
    if not concrete(unresolved) or bool(unresolved):
        t_stop, y_stop = solution.stats["t_stop"], solution.stats["y_stop"]
        told = _blow_up_told(solution.result, flow, state, static, t_stop, y_stop)
        solution = dataclasses.replace(solution, result=told)
    return _raise_if_failed(solution, failed, flow, static, ts, solver, max_steps) if throw else solution


@bounded_jit
def _integrate(flow, state, static, ts, solver, controller, max_steps, adjoint, progress) -> tuple[Solution, Any, Any]:
    leaves, structure = jax.tree.flatten(state)  # a list: Diffrax takes no tree with an empty branch

    def as_complex(y):
        pairs = zip(y, leaves, strict=True)
        return structure.unflatten([lax.complex(x[..., 0], x[..., 1]) if jnp.iscomplexobj(z) else x for x, z in pairs])

    def field(t, y, args):
        y = as_complex(y)
        return _as_real(jax.tree.leaves(derivative(flow, t, y, static, args)))

    def blowing_up(t, y, args, **_):
        return _grows(y, field(t, y, args), start, resolution(t)) | jnp.isinf(max_norm(y))

    start = _as_real(leaves)
    solution = diffeqsolve(
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
    rtol, atol = tolerances(controller)
    changed = {
        "ts": saved_ts,
        "ys": eqx.combine(as_complex(ys), static),
        "stats": solution.stats | {"t_stop": t_stop, "y_stop": as_complex(y_stop)},
    }
    kept = {field.name: getattr(solution, field.name) for field in dataclasses.fields(solution)}
    ended = solution.result != dfx.RESULTS.successful, solution.result == dfx.RESULTS.dt_min_reached
    return Solution(**(kept | changed), rtol=rtol, atol=atol), *ended


@bounded_jit
def _blow_up_told(result: Any, flow: Callable, state: PyTree, static: PyTree, t_stop: Array, y_stop: PyTree) -> Any:
    """The result of a solve that has no steps left, which is a blow-up where the state grows by its own size soon.

    A program of its own: most solves never need the derivative that it compiles.
    """
    soon = jnp.sqrt(jnp.finfo(t_stop.dtype).eps) * t_stop
    slope = derivative(flow, t_stop, y_stop, static, None)
    grows = _grows(_as_real(y_stop), _as_real(slope), _as_real(state), soon)
    blew_up = (result == dfx.RESULTS.dt_min_reached) & grows
    return dfx.RESULTS.where(blew_up, dfx.RESULTS.event_occurred, result)


def _as_real(tree: PyTree) -> PyTree:
    """Complex leaves as pairs of real numbers: Diffrax's error norms and implicit methods are made for real ones."""
    return jax.tree.map(lambda x: jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x, tree)


def _grows(y: PyTree, slope: PyTree, start: PyTree, time: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether a component that has at least doubled would grow by its own size within `time`."""

    def grows(y, slope, start):
        return jnp.any((jnp.abs(y) < time * jnp.abs(slope)) & (jnp.abs(y) > 2 * jnp.abs(start)) & (y * slope > 0))

    return jnp.any(jnp.stack(jax.tree.leaves(jax.tree.map(grows, y, slope, start))))


def derivative(flow: Callable, t: ArrayLike, y: PyTree, static: PyTree, args: Any) -> PyTree:
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


def _ends_before_blow_up(flow: Callable, y0: PyTree, ts: Array) -> bool:
    """Whether `ts` ends before the flow's blow-up, known or not, by one compiled program: as single operations
    `blow_up_time` would take as long as the rest of a first solve."""
    if not isinstance(flow, BlowsUp) or not concrete((flow, y0, ts)):
        return True
    try:
        times = jax.tree.leaves(_blow_up_time(flow, y0))
    except jax.errors.JAXTypeError:  # one that computes with NumPy
        return False
    last = np.asarray(ts)[-1]
    return all(np.all(last < np.asarray(x)) for x in times)


@bounded_jit
def _blow_up_time(flow: BlowsUp, y0: PyTree) -> PyTree:
    return flow.blow_up_time(y0)


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


def default_atol(state: PyTree, rtol: Any, dtype: Any) -> Float[Array, ""]:
    """The usual one, or `rtol` times the size of the smallest leaf that is not zero: growth from far below an absolute
    tolerance would be overlooked."""
    known = concrete((state, rtol))
    xp = np if known else jnp  # numpy compiles nothing
    atol = default_tolerances(dtype)[1]
    for leaf in jax.tree.leaves(state if known else lax.stop_gradient(state)):
        size = xp.max(xp.abs(xp.asarray(leaf)), initial=0)
        atol = xp.where(size > 0, xp.minimum(atol, rtol * size), atol)
    return jnp.asarray(xp.asarray(xp.maximum(atol, float(jnp.finfo(dtype).tiny)), dtype))


def _tolerance(name: str, value: Any, dtype: Any, below: int | None = None) -> Any:
    if concrete(value):
        check_range(name, value, above=0, below=below)
    return jnp.asarray(value, dtype) if eqx.is_array(value) else float(value)


def _raise_if_failed(
    solution: Solution,
    failed: Array,
    flow: Callable,
    static: PyTree,
    ts: Float[Array, " times"],
    solver: dfx.AbstractSolver,
    max_steps: int,
) -> Solution:
    result, t_stop, y_stop = solution.result, solution.stats["t_stop"], solution.stats["y_stop"]
    if not concrete((failed, solution.stats, solution.ys)):
        blew_up, unresolved = result == dfx.RESULTS.event_occurred, result == dfx.RESULTS.dt_min_reached
        hint = "Call solve with throw=False and read result and stats['t_stop']."
        ys = eqx.error_if(solution.ys, blew_up, f"solve: the solution blows up in finite time before ts[-1]. {hint}")
        ys = eqx.error_if(ys, unresolved & (t_stop == 0), f"solve: the flow must be finite at the start. {hint}")
        return dataclasses.replace(solution, ys=eqx.error_if(ys, failed, f"solve: did not reach ts[-1]. {hint}"))
    if not failed:
        return solution
    slope = derivative(flow, t_stop, y_stop, static, None)
    if t_stop == 0 and not all_finite(slope):
        name, number = extreme(jax.tree.map(jnp.abs, slope), slope)
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
    name, number = extreme(jax.tree.map(jnp.abs, slope if blew_up else y_stop), y_stop)
    reached = f"at t = {float(t_stop):.10g} of {float(ts[-1]):.6g}, where component y{name} is {number:.4g}"
    steps = f"after {int(stats['num_steps'])} steps, {int(stats['num_rejected_steps'])} of them rejected"
    if blew_up:
        name, speed = extreme(jax.tree.map(jnp.abs, slope), slope)
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
