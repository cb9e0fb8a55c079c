"""Times of events on a flow: when a quantity of its state reaches a level, and when it leaves its first plateau.

`validate.metrics` has the same two for curves, those of a trained network among them.
"""

import warnings
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, Real

from .._checked import checked
from .._checks import as_array, check_callable, concrete, describe, integer, or_nan, real
from ._compiled import bounded_jit
from ._diffrax import Checkpointed, diffeqsolve
from ._state import split_state
from ._steps import StepControl, default_tolerances, implicit_solver
from .solving import ADJOINT, CHECKPOINTS, default_atol, derivative, solve

Number = Real[ArrayLike, ""]


@checked
def crossing_time(
    flow: Callable[..., PyTree],
    y0: PyTree,
    quantity: Callable[[Any], Any],
    level: Number,
    until: Number,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 2**16,
) -> Float[Array, ""]:
    """When `quantity(y)` first reaches `level` along the flow from `y0`, rising or falling; infinite if not by `until`.

    Diffrax's event finds the step of the crossing and, on the polynomial of that step, the time. A Newton step from a
    solve up to there makes it as exact as `solve` is. Two crossings within one step are not seen.

    Works under `jit`, `vmap` and `grad` (once, in reverse mode) with respect to `y0`, `level` and the flow's
    parameters.

    **Arguments:** `flow` and `y0`, as `solve` takes them; `quantity`, from the state to one real number; `level`, which
    may be where the quantity starts: then the time is zero; `until`, the last time.

    - `rtol`, `atol`, `max_steps`: as in `solve`.

    **Raises** `ValueError` for bad arguments and for a quantity that is not one finite number at the start;
    `SolveError` for a flow that blows up, or takes too many steps, before the quantity crosses. Inside `jit` both are
    NaN.
    """
    check_callable("flow", flow)
    max_steps = integer("max_steps", max_steps, least=1, most=2**31 - 1)
    state, static = split_state(y0)
    dtype = jnp.finfo(jax.tree.leaves(state)[0].dtype).dtype
    level, until = (x.astype(dtype) for x in (real("level", level, ()), real("until", until, (), above=0)))
    relative = real("rtol", default_tolerances(dtype)[0] if rtol is None else rtol, (), above=0, below=1).astype(dtype)
    absolute = default_atol(state, relative, dtype) if atol is None else real("atol", atol, (), above=0).astype(dtype)
    start = _start(quantity, state, static, dtype)
    if concrete((start, level)) and start == level:
        return jnp.zeros((), dtype)

    fixed: Any = jax.tree.map(
        lambda x: lax.stop_gradient(x) if eqx.is_array(x) else x,
        (flow, quantity, state, static, level, until, relative, absolute, max_steps),
    )
    with warnings.catch_warnings():  # a complex state is only searched as it is; `solve` takes pairs of real numbers
        warnings.filterwarnings("ignore", message="Complex dtype support in Diffrax")
        near, crossed, failed = lax.stop_gradient(_locate(*fixed))
    whole, options = eqx.combine(state, static), {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    if concrete((crossed, failed)) and not crossed:
        if failed:
            solve(flow, whole, until[None], **options)  # raises, and says where and why
        return jnp.asarray(jnp.nan if failed else jnp.inf, dtype)
    ys = eqx.filter(solve(flow, whole, near[None], **options, throw=False).ys, eqx.is_inexact_array)
    exact = _newton(flow, quantity, jax.tree.map(lambda y: y[0], ys), static, level, near)
    found = jnp.where(crossed, exact, jnp.where(failed, jnp.nan, jnp.inf))
    return jnp.where(jnp.isnan(start), start, jnp.where(start == level, 0.0, found))


@checked
def escape_time(
    flow: Callable[..., PyTree],
    y0: PyTree,
    quantity: Callable[[Any], Any],
    until: Number,
    *,
    fraction: Number = 0.1,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 2**16,
) -> Float[Array, ""]:
    """When `quantity(y)` leaves the plateau on which it starts, infinite if it ends where it starts.

    It has left when its distance from its start first reaches `fraction`, between 0 and 1, of the distance at `until`,
    on either side. All else is as in `crossing_time`; a flow that does not reach `until` raises `SolveError`, inside
    `jit` too.
    """
    fraction = real("fraction", fraction, (), above=0, below=1)
    options = {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    check_callable("flow", flow)
    state, static = split_state(y0)
    dtype = jnp.finfo(jax.tree.leaves(state)[0].dtype).dtype
    until = real("until", until, (), above=0).astype(dtype)
    start = _start(quantity, state, static, dtype)
    ys = eqx.filter(solve(flow, eqx.combine(state, static), until[None], **options).ys, eqx.is_inexact_array)
    moved = jnp.abs(_value(quantity, jax.tree.map(lambda y: y[0], ys), static, dtype) - start)
    level = fraction.astype(dtype) * moved
    if concrete(level) and level == 0:
        return jnp.asarray(jnp.inf, dtype)
    found = crossing_time(flow, y0, Partial(_distance, quantity, start), level, until, **options)
    return jnp.where(moved == 0, jnp.inf, found)


def _distance(quantity: Callable, start: Float[Array, ""], y: PyTree) -> Float[Array, ""]:
    return jnp.abs(quantity(y) - start)


def _start(quantity: Callable, y: PyTree, static: PyTree, dtype: Any) -> Float[Array, ""]:
    value = _value(quantity, y, static, dtype)
    return or_nan(value, jnp.isfinite(value), f"quantity must be finite at the start, got {describe(value)}.")


def _value(quantity: Callable, y: PyTree, static: PyTree, dtype: Any) -> Float[Array, ""]:
    value = as_array("the value of quantity", quantity(eqx.combine(y, static)))
    if value.ndim or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"quantity must return one real number, floating point, got {describe(value)}.")
    return value.astype(dtype)


class _Halving(optx.Bisection):
    """Bisection down to a width of `rtol`, whatever the value there: a steep quantity has none that is small."""

    def terminate(self, fn, y, args, options, state, tags):
        return jnp.abs(state.upper - state.lower) <= self.rtol * jnp.abs(y), optx.RESULTS.successful


@bounded_jit
def _locate(
    flow, quantity, state, static, level, until, rtol, atol, max_steps
) -> tuple[Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
    """Nearly when the quantity crosses, whether it does, and whether the solve ended before both that and `until`."""
    stiff, dtype = getattr(flow, "stiff", False), until.dtype
    start = _value(quantity, state, static, dtype) - level

    def above(t, y, args, **_):
        """1 at the start, 0 at the level; 1 too where there is nothing to find."""
        height = (_value(quantity, y, static, dtype) - level) / start
        return jnp.where(jnp.isnan(height), 1.0, height).astype(float)  # Diffrax's other branch is JAX's default

    solution = diffeqsolve(
        dfx.ODETerm(lambda t, y, args: derivative(flow, t, y, static, args)),
        implicit_solver(dtype, rtol, atol) if stiff else dfx.Tsit5(),
        t0=jnp.zeros((), dtype),
        t1=until,
        dt0=None,
        y0=state,
        stepsize_controller=StepControl(rtol=rtol, atol=atol, implicit=stiff),
        adjoint=ADJOINT if max_steps >= CHECKPOINTS else Checkpointed(checkpoints=max_steps),
        event=dfx.Event(above, _Halving(rtol=float(jnp.finfo(dtype).eps) ** 0.75, atol=0.0, flip=True)),
        max_steps=max_steps,
        throw=False,
    )
    crossed: Any = solution.event_mask
    last = _value(quantity, jax.tree.map(lambda y: y[0], solution.ys), static, dtype)
    failed = (solution.result != dfx.RESULTS.successful) | jnp.isnan(last)
    return solution.ts[0], crossed, ~crossed & failed


@bounded_jit
def _newton(flow, quantity, y, static, level, near) -> Float[Array, ""]:
    """The time of the crossing from the state `y` at a time nearby; its gradient is that of the implicit function."""
    value = lambda y: _value(quantity, y, static, near.dtype)
    height, speed = jax.jvp(value, (y,), (derivative(flow, near, y, static, None),))
    return near - (height - level) / lax.stop_gradient(speed)
