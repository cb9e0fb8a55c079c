"""What a flow is, how it is solved, and the gradient flow of any loss.

Time is `t = learning_rate × step` everywhere in this library, and a state `y0` is the state at `t = 0`.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._checks import as_float, concrete, require


class Flow(eqx.Module):
    """An ordinary differential equation whose parameters are PyTree leaves.

    Calling a flow is its vector field in Diffrax's signature, so `diffrax.ODETerm(flow)` works as it is. Beside it a
    flow may define

    - `exact(t, y0)`: the closed form at the time `t`, from the state `y0` at time zero;
    - `invariants(y)`: a PyTree of what the flow conserves;
    - `blow_up_time(y0)`: shaped like `y0` (or one entry a row), when each component leaves every bound.

    `stiff = True` makes `solve` choose an implicit method.
    """

    stiff: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, t: ArrayLike, y: PyTree, args: Any) -> PyTree:
        """The time derivative of the state `y`, a PyTree of the same structure."""


class GradientFlow(Flow):
    """`ẏ = −rates ∘ ∇loss(y)`: gradient descent on any scalar loss, as the learning rate goes to zero.

    `y` is any PyTree of parameters, an Equinox module among them: leaves that are not floating-point arrays (sizes,
    activation functions, tokens) stay as they are. `rates` multiplies the learning rate leaf by leaf; it is a scalar
    or any tree prefix of the parameters, with scalars or arrays that broadcast against the leaves (`None` is 1).

    Data that change between calls should travel as leaves, `GradientFlow(jax.tree_util.Partial(loss, data))`, so that
    new data do not compile anew.
    """

    loss: Callable[[Any], Float[Array, ""]]
    rates: PyTree = eqx.field(converter=lambda rates: jax.tree.map(jnp.asarray, rates), default=1.0)

    def __call__(self, t: ArrayLike, y: PyTree, args: Any = None) -> PyTree:
        grads = eqx.filter_grad(self.loss)(y)
        rates = jax.tree.broadcast(self.rates, grads, is_leaf=lambda x: x is None)
        return jax.tree.map(lambda g, r: -g if r is None else -jnp.asarray(r, g.dtype) * g, grads, rates)


class SolveError(RuntimeError):
    """A solve that did not reach the last time asked for; `solution` holds what was computed before that."""

    def __init__(self, message: str, solution: dfx.Solution):
        super().__init__(message)
        self.solution = solution


def solve(
    flow: Flow,
    y0: PyTree,
    ts: Float[ArrayLike, " times"] | Sequence[float | int],
    *,
    solver: dfx.AbstractSolver | None = None,
    stepsize_controller: dfx.AbstractStepSizeController | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 2**16,
    throw: bool = True,
    progress: bool = False,
) -> dfx.Solution:
    """Integrates `flow` from the state `y0` at `t = 0` and returns the states at exactly the times `ts`.

    A thin layer over `diffrax.diffeqsolve`; whoever outgrows it calls that with the same flow. Works under `jit`,
    `vmap` and `grad` with respect to the flow's parameters, `y0` and `ts`.

    **Arguments:** `flow`, any `(t, y, args) -> dy/dt`; `y0`, a PyTree of floating-point arrays, or an Equinox module,
    whose other leaves are left alone; `ts`, shape `(times,)`, increasing, from zero on.

    - `solver`: by default `Tsit5`, and `Kvaerno5` (in float32 `Kvaerno3`) for a flow that says it is `stiff`, as
      `v̇ = (μ−v)∘exp(v²/2)` does.
      An explicit method gets the values of a stiff flow right and its gradients silently wrong.
    - `rtol`, `atol`: by default 1e-10, 1e-12 for a float64 state and 1e-5, 1e-7 for a float32 one, in the max norm: the
      usual root mean square hides the one row that is about to blow up.
    - `stepsize_controller`: by default a `PIDController` of these tolerances, which for a stiff flow also steps to each
      of `ts`, since `Kvaerno5` interpolates at third order only.
    - `progress`: shows a bar.

    **Returns** Diffrax's `Solution`: `ts` as asked for and `ys` with a leading axis `times`; `stats["t_stop"]` and
    `stats["y_stop"]` are the time and state that were reached. An event stops a solution that blows up in finite time,
    once it has at least doubled and the time in which it would grow by its own size is below `√eps · t`: the remaining
    `ys` are infinite.

    **Raises** `ValueError` for a bad `y0`, `ts` or option, and for a time past the `blow_up_time` of the flow;
    `SolveError` when the solution blows up or the steps run out. It says where, and holds the solution. Inside `jit`
    these are runtime errors of Equinox, best read under `eqx.filter_jit`. With `throw=False` the last two are data:
    read `result`.
    """
    if stepsize_controller is not None and (rtol is not None or atol is not None):
        raise ValueError("rtol and atol would be ignored: they belong inside the stepsize_controller that was given.")
    state, static = _split_state(y0)
    ts = _check_times(ts, state)
    if throw:
        check_blow_up(flow, y0, ts)
    stiff = getattr(flow, "stiff", False)
    if solver is None:  # in float32 the roundings of a stiff field exceed what the root finder of Kvaerno5 asks for
        implicit = dfx.Kvaerno5 if ts.dtype == jnp.float64 else dfx.Kvaerno3
        solver = implicit() if stiff else dfx.Tsit5()
    if stepsize_controller is None:
        double = ts.dtype == jnp.float64
        rtol = (1e-10 if double else 1e-5) if rtol is None else rtol
        atol = (1e-12 if double else 1e-7) if atol is None else atol
        stepsize_controller = dfx.PIDController(rtol=rtol, atol=atol, norm=optx.max_norm)
        if stiff:
            stepsize_controller = dfx.ClipStepSizeController(stepsize_controller, step_ts=ts)
    solution = _integrate(flow, state, static, ts, solver, stepsize_controller, max_steps, progress)
    return _raise_if_failed(solution, ts, max_steps) if throw else solution


@eqx.filter_jit
def _integrate(flow, state, static, ts, solver, controller, max_steps, progress) -> dfx.Solution:
    def field(t, y, args):
        return eqx.filter(flow(t, eqx.combine(y, static), args), eqx.is_array)

    size = lambda z: jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(z)]))

    def blowing_up(t, y, args, **_):
        soon = size(y) < jnp.sqrt(jnp.finfo(ts.dtype).eps) * t * size(field(t, y, args))
        return soon & (size(y) > 2 * size(state))  # a state that passes through zero is small and fast as well

    solution = dfx.diffeqsolve(
        dfx.ODETerm(field),
        solver,
        t0=jnp.zeros((), ts.dtype),
        t1=ts[-1],
        dt0=None,
        y0=state,
        saveat=dfx.SaveAt(subs=(dfx.SubSaveAt(ts=ts), dfx.SubSaveAt(t1=True))),
        stepsize_controller=controller,
        event=dfx.Event(blowing_up),
        max_steps=max_steps,
        throw=False,
        progress_meter=dfx.TqdmProgressMeter() if progress else dfx.NoProgressMeter(),
    )
    (saved_ts, (t_stop,)), (ys, y_stop) = solution.ts, solution.ys  # pyright: ignore[reportGeneralTypeIssues]
    stats = solution.stats | {"t_stop": t_stop, "y_stop": jax.tree.map(lambda y: y[0], y_stop)}
    return dataclasses.replace(solution, ts=saved_ts, ys=eqx.combine(ys, static), stats=stats)


def _split_state(y0: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves of `y0` that evolve, and the rest."""
    y0 = jax.tree.map(lambda y: jnp.asarray(y) if isinstance(y, np.ndarray | np.generic) else y, y0)
    if not isinstance(y0, eqx.Module):
        for path, leaf in jax.tree.leaves_with_path(y0):
            if not (isinstance(leaf, float) or eqx.is_inexact_array(leaf)):
                raise ValueError(
                    f"y0{jax.tree_util.keystr(path)} must be a floating-point array, got {_describe(leaf)}. "
                    "Cast it, or keep what does not evolve outside the state."
                )
        y0 = jax.tree.map(as_float, y0)
    state, static = eqx.partition(y0, eqx.is_inexact_array)
    if not jax.tree.leaves(state):
        raise ValueError("y0 must hold at least one floating-point array, got none.")

    def finite(path, leaf):
        xp, name = np if concrete(leaf) else jnp, jax.tree_util.keystr(path)
        return require(leaf, xp.all(xp.isfinite(leaf)), f"y0{name} must be finite, got NaN or infinity.")

    return jax.tree_util.tree_map_with_path(finite, state), static


def _check_times(ts: ArrayLike | Sequence[float], state: PyTree) -> Float[Array, " times"]:
    dtype = jnp.finfo(jnp.result_type(*jax.tree.leaves(state))).dtype
    ts = jnp.asarray(ts, dtype)
    if ts.ndim != 1 or ts.size == 0:
        raise ValueError(f"ts must have shape (times,) with at least one time, got {ts.shape}.")
    values, xp = (np.asarray(ts), np) if concrete(ts) else (ts, jnp)  # numpy compiles nothing
    ts = require(ts, xp.all(xp.isfinite(values)), "ts must be finite, got NaN or infinity.")
    ts = require(ts, values[0] >= 0, "ts must start at zero or later: y0 is the state at t = 0.")
    return require(ts, xp.all(values[1:] > values[:-1]), f"ts must be strictly increasing (in the state's {dtype}).")


def check_blow_up(flow: Flow, y0: PyTree, t: ArrayLike) -> None:
    """Raises `ValueError` if `t` lies past the flow's `blow_up_time`, where it has one and the values are known."""
    if not hasattr(flow, "blow_up_time"):
        return
    times = flow.blow_up_time(y0)  # pyright: ignore[reportAttributeAccessIssue]
    if concrete((times, t)):
        when, name = _extreme(jax.tree.map(jnp.negative, times))
        if float(np.max(t)) >= -when:
            raise ValueError(
                f"t = {float(np.max(t)):.6g} lies past the blow-up: component {name} becomes infinite at "
                f"t = {-when:.10g}. Ask for earlier times (`solve` with throw=False stops there)."
            )


def _raise_if_failed(solution: dfx.Solution, ts: Float[Array, " times"], max_steps: int) -> dfx.Solution:
    blew_up = solution.result == dfx.RESULTS.event_occurred
    failed = solution.result != dfx.RESULTS.successful
    if not concrete((failed, solution.stats, solution.ys)):
        hint = "Call solve with throw=False and read result and stats['t_stop']."
        ys = eqx.error_if(solution.ys, blew_up, f"solve: the solution blows up in finite time before ts[-1]. {hint}")
        return dataclasses.replace(solution, ys=eqx.error_if(ys, failed, f"solve: did not reach ts[-1]. {hint}"))
    if not failed:
        return solution
    t_stop, (size, name) = float(solution.stats["t_stop"]), _extreme(solution.stats["y_stop"], absolute=True)
    reached = f"at t = {t_stop:.10g} of {float(ts[-1]):.6g}, where component y{name} is {size:.4g}"
    if blew_up:
        why = f"the solution blows up {reached}. Ask for earlier times"
    else:
        why = (
            f"the solve stopped {reached}, after {int(solution.stats['num_steps'])} steps (max_steps={max_steps}): "
            f"{dfx.RESULTS[solution.result]} The flow may be stiff (try solver=diffrax.Kvaerno5()) or not smooth "
            "(loosen rtol)"
        )
    raise SolveError(f"{why}; what was computed is in this error's `solution`, or pass throw=False.", solution)


def _extreme(tree: PyTree, absolute: bool = False) -> tuple[float, str]:
    """The largest entry of a PyTree and where it stands, as in `['v'][3]`. A NaN counts as the largest."""
    best, name = -np.inf, ""
    for path, leaf in jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_array)):
        values = np.abs(np.asarray(leaf)) if absolute else np.asarray(leaf)
        index = np.unravel_index(np.argmax(values), values.shape)
        if not values[index] <= best:
            best = float(values[index])
            name = jax.tree_util.keystr(path) + "".join(f"[{i}]" for i in index)
    return best, name


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if eqx.is_array(leaf) else repr(leaf)
