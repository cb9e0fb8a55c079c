"""The control of steps: what Diffrax's leaves open where a solution leaves the numbers that a dtype holds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

from .._checks import describe


def max_norm(tree: PyTree) -> Float[Array, ""]:
    """The largest magnitude in a PyTree, infinite if there is a NaN.

    A NaN would stall the control of steps: an infinite state over an infinite scale is one, and the next step with it.
    """
    sizes = [jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree) if x.size]
    largest = jnp.max(jnp.stack(sizes))
    return jnp.where(jnp.isnan(largest), jnp.inf, largest)


class NoNaN(eqx.Module):
    """A norm that is infinite where another is NaN."""

    norm: Callable[[PyTree], Any]

    def __call__(self, tree: PyTree) -> Any:
        size = self.norm(tree)
        return jnp.where(jnp.isnan(size), jnp.inf, size)


class StepControl(dfx.PIDController):
    """A `PIDController` that ends the solve, with `dt_min_reached`, where time can't resolve the step that it needs.

    Diffrax's goes on with steps of zero there until they run out. It also begins with a step of zero, or NaN, where the
    derivative overflows near the start.

    With `implicit` the smallest steps are accepted whatever their error, if their equations were solved: a solution
    that falls onto a stiff flow's slow manifold, faster than time resolves, is at most that time late. A blow-up ends
    such a solve all the same, as its equations have no solution.
    """

    norm: Callable[[PyTree], Any] = max_norm
    implicit: bool = eqx.field(static=True, default=False)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        first, state = super().init(terms, t0, t1, y0, dt0, args, func, error_order)
        small = jnp.where(jnp.isfinite(first) & (first > t0), first, t0 + 1e-6 * (t1 - t0))
        return jnp.where(all_finite(func(terms, t0, y0, args)), small, t0), state  # a step of zero ends at once

    def adapt_step_size(self, t0: Any, t1: Any, y0, y1_candidate, args, y_error, error_order, controller_state):
        adapted = super().adapt_step_size(t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state)
        keep, next_t0, next_t1, made_jump, state, result = adapted
        if self.implicit:
            solved = all_finite(y_error) & all_finite(y1_candidate)
            forced = ~keep & solved & (t1 - t0 < 2 * resolution(t0))
            next_t0, next_t1 = jnp.where(forced, t1, next_t0), jnp.where(forced, t1 + (t1 - t0), next_t1)
            keep = keep | forced
        # Only a rejection makes a step smaller; one that was accepted may be as small as it likes, as it was cut short
        # to end at a given time. The smallest is one unit in the last place of t.
        next_t1 = jnp.where(keep, next_t1, jnp.maximum(next_t1, t0 + 0.74 * jnp.finfo(t0.dtype).eps * jnp.abs(t0)))
        lost = ~keep & ~(next_t1 < t1)
        result = dfx.RESULTS.where(lost, dfx.RESULTS.dt_min_reached, result)
        return keep, next_t0, next_t1, made_jump, state, result


def resolution(t: Any) -> Float[Array, ""]:
    """The smallest step that makes sense at the time `t`: two to four times the distance to the next number."""
    info = jnp.finfo(t.dtype)
    return jnp.maximum(2 * info.eps * jnp.abs(t), 4 * info.tiny)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number of a PyTree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def controlled(controller: dfx.AbstractStepSizeController) -> dfx.AbstractStepSizeController:
    """The same controller, which ends the solve as `StepControl` does if it adapts steps as Diffrax's do."""
    if isinstance(controller, dfx.ClipStepSizeController):
        return eqx.tree_at(lambda c: c.controller, controller, controlled(controller.controller))
    if type(controller) is dfx.PIDController:
        fields: dict[str, Any] = {f.name: getattr(controller, f.name) for f in dataclasses.fields(controller)}
        return StepControl(**{**fields, "norm": NoNaN(controller.norm)})
    return controller


def ends_by_itself(controller: dfx.AbstractStepSizeController) -> bool:
    """Whether a controller ends a solve that blows up."""
    if isinstance(controller, dfx.ClipStepSizeController):
        return ends_by_itself(controller.controller)
    return isinstance(controller, StepControl)


def tolerances(controller: dfx.AbstractStepSizeController) -> tuple[Any, Any]:
    """`rtol` and `atol` of a controller that has them."""
    return getattr(controller, "rtol", None), getattr(controller, "atol", None)


class StageRoots(dfx.VeryChord):
    """The root finder of an implicit stage, whose changes count by what they change in the state.

    Diffrax's counts the change of the derivative, which near rest is the state's rounding times the stiffness: in
    float32 it never settles. A change below a thirtieth of the tolerance of a step is settled. It also gives up after
    two changes that do not foretell convergence, where the smallest steps of a fast transient need a third.
    """

    rtol: Any
    atol: Any

    def step(self, fn, y, args, options, state, tags):
        new, new_state, aux = super().step(fn, y, args, options, state, tags)
        _, diagonal, _, prod, _, before, _, control = args  # of Diffrax's implicit stages
        change, added = (jax.tree.map(lambda x: diagonal * x, prod(x, control)) for x in (new_state.diff, new))
        relative = lambda c, b, a: c / (self.atol + self.rtol * jnp.abs(b + a))
        size = self.norm(jax.tree.map(relative, change, before, added))
        return new, eqx.tree_at(lambda s: s.diffsize, new_state, size), aux

    def terminate(self, fn, y, args, options, state, tags):
        rate = state.diffsize / state.diffsize_prev
        error = state.diffsize * rate / (1 - rate)  # of a sequence that converges at this rate
        converged = (state.diffsize < 1 / 30) | ((error > 0) & (error < self.kappa))
        diverged = ~converged & ~(rate <= 2)
        failed = state.result != optx.RESULTS.successful
        result = optx.RESULTS.where(diverged, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful)
        result = optx.RESULTS.where(state.step >= 2, result, optx.RESULTS.successful)
        done = failed | ((state.step >= 2) & (converged | diverged))
        return done, optx.RESULTS.where(failed, state.result, result)


def implicit_solver(dtype: Any, rtol: Any, atol: Any) -> dfx.AbstractSolver:
    """The solver of stiff flows, for steps of these tolerances.

    In float32 the longer trial steps of `Kvaerno5` overflow, which its gradient does not survive.
    """
    usual = default_tolerances(dtype)
    rtol, atol = usual[0] if rtol is None else rtol, usual[1] if atol is None else atol
    method = dfx.Kvaerno5 if dtype == jnp.float64 else dfx.Kvaerno3
    return method(root_finder=StageRoots(rtol=rtol, atol=atol, norm=max_norm))


def default_tolerances(dtype: Any) -> tuple[float, float]:
    """`rtol` and `atol` of `solve` for a state of this precision. **Raises** `ValueError` for others than float32 and
    float64."""
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"dtype must be float32 or float64, got {describe(dtype)}.")
    return (1e-10, 1e-12) if dtype == jnp.float64 else (1e-5, 1e-7)
