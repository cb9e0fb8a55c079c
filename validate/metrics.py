"""The quantities that claims speak of, computed the same way on a flow's state and on a network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._checked import checked
from .._checks import check_range, concrete, describe, real


@checked
def normalised_correlation(a: Float[Array, "*batch n"], b: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """The cosine of `a` and `b` after each has lost its mean: Pearson's correlation over the last axis.

    Blind to offset and scale of either argument: 1 does not mean that `a` equals `b`. NaN if either is constant.
    Source: JoMA's Fig. 2 (its NC).
    """
    constant = [jnp.all(x == x[..., :1], axis=-1) for x in (a, b)]  # less its rounded mean, it need not be zero
    a, b = (x / _largest(x) for x in (a, b))
    a, b = a - jnp.mean(a, axis=-1, keepdims=True), b - jnp.mean(b, axis=-1, keepdims=True)
    a, b = (x / _largest(x) for x in (a, b))
    found = jnp.sum(a * b, axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))
    return jnp.where(constant[0] | constant[1], jnp.nan, found)


@checked
def relative_error(observed: Float[Array, "*batch n"], predicted: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """`‖observed − predicted‖ / ‖observed‖` over the last axis; infinite if only `observed` is zero."""
    common = jnp.maximum(_largest(observed), _largest(predicted))
    error, size = observed / common - predicted / common, observed / common
    of_error, of_size = _largest(error), _largest(size)
    error, size = (jnp.linalg.norm(x, axis=-1) for x in (error / of_error, size / of_size))
    return error / size * jnp.squeeze(of_error / of_size, -1)


def _largest(x: Float[Array, "..."], axis: int | tuple[int, ...] = -1) -> Float[Array, "..."]:
    """The largest absolute entry, to within a factor of four: divided by it, squares neither overflow nor vanish. 1 for
    zeros and infinities."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0.0))
    most = 1 / float(jnp.finfo(x.dtype).tiny)  # the reciprocals of larger numbers, which XLA takes, are flushed to zero
    return jnp.where((largest > 0) & jnp.isfinite(largest), jnp.minimum(largest, most), 1.0)


@checked
def stable_rank(x: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch"]:
    """`‖X‖_F² / ‖X‖₂²`, between 1 and the rank. NaN for a zero matrix. Source: GaLore, section 3.

    **Raises** `ValueError` for a matrix without entries.
    """
    if 0 in x.shape[-2:]:
        raise ValueError(f"x must have at least one row and one column, got shape {x.shape}.")
    singular = jnp.linalg.svd(x / _largest(x, axis=(-2, -1)), compute_uv=False)
    return jnp.sum(singular**2, axis=-1) / singular[..., 0] ** 2


@checked
def entropy(p: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """The entropy of a distribution over the last axis, in nats. A probability of zero adds nothing; NaN gives NaN.

    **Raises** `ValueError` for negative entries and rows that do not sum to one. Inside `jit` both give NaN.
    """
    _check_entries("p", p)
    rows = jnp.sum(p, axis=-1)
    slack = 4 * p.shape[-1] * jnp.finfo(p.dtype).eps
    proper = (jnp.abs(rows - 1) <= slack) & jnp.all(p >= 0, axis=-1)
    if concrete(proper):
        told = np.asarray(proper | jnp.any(jnp.isnan(p), axis=-1))
        if not told.all():
            wrong = np.asarray(p).reshape(-1, p.shape[-1])[np.argmin(told)]
            raise ValueError(f"p must hold probabilities that sum to 1 over the last axis, got {describe(wrong)}.")
    terms = jnp.where(p == 0, 0.0, p * jnp.log(jnp.where(p == 0, 1.0, p)))  # not p > 0, in which NaN would vanish
    return jnp.where(proper, -jnp.sum(terms, axis=-1), jnp.nan)


@checked
def attention_entropy(
    logits: Float[Array, "*batch tokens"], x: Float[Array, "*batch tokens"] | None = None
) -> Float[Array, "*batch"]:
    """The entropy, in nats, of the attention `x∘exp(logits)/Σ` over tokens of frequency `x` (uniform by default).

    NaN for a NaN among the logits, and where no token has a frequency above zero.

    **Raises** `ValueError` for negative frequencies. Inside `jit` they give NaN.
    """
    _check_entries("logits", logits)
    if x is not None and concrete(x) and (np.asarray(x) < 0).any():
        raise ValueError(f"x must hold frequencies of at least 0, got {describe(x)}.")
    present = None if x is None else x > 0
    top = jnp.max(logits, axis=-1, keepdims=True, where=present, initial=-jnp.inf)  # of tokens that are there
    weights = jnp.exp(logits - top) if x is None else jnp.where(x == 0, 0.0, x * jnp.exp(logits - top))
    weights = weights if x is None else jnp.where(x < 0, jnp.nan, weights)
    return entropy(weights / jnp.sum(weights, axis=-1, keepdims=True))


@checked
def rebound(curve: Float[Array, "times *batch"]) -> Float[Array, "*batch"]:
    """How far a curve ends above its lowest point: zero for one that never rises in the end."""
    _check_times(curve)
    return curve[-1] - jnp.min(curve, axis=0)


@checked
def largest_rise(curve: Float[Array, "times *batch"]) -> Float[Array, "*batch"]:
    """The largest increase between any time and any later one: at most rounding for a curve that never rises."""
    _check_times(curve)
    lowest = jax.lax.cummin(curve, axis=0)
    return jnp.max(curve - lowest, axis=0)


@checked
def crossing_time(
    t: Float[Array, " times"], curve: Float[Array, "times *batch"], level: Real[ArrayLike, "..."]
) -> Float[Array, "*batch"]:
    """When a curve first reaches `level`, rising or falling, by linear interpolation; infinite if it never does.

    `dynamics.crossing_time` is the same on a flow. For a trained network `t` is learning rate × step. `level` is one
    number or has the shape of the batch. Zero distance counts: a curve that begins at the level reaches it at `t[0]`.
    NaN if the curve is NaN before it gets there, as after a divergence.

    **Raises** `ValueError` for times that do not increase, curves without times and levels that are not finite.
    """
    _check_times(curve)
    level = real("level", level)
    if level.shape not in ((), curve.shape[1:]):
        raise ValueError(f"level must be one number or have shape {curve.shape[1:]}, got {level.shape}.")
    _check_increasing(t)
    return _first_reached(t, curve, level)


@checked
def escape_time(
    t: Float[Array, " times"], curve: Float[Array, "times *batch"], fraction: Real[ArrayLike, ""] = 0.1
) -> Float[Array, "*batch"]:
    """When a curve leaves the plateau on which it starts; infinite if it ends where it starts.

    It has left when its distance from its start first reaches `fraction`, between 0 and 1, of the distance at its end,
    on either side. `dynamics.escape_time` is the same on a flow. Else as in `crossing_time`.
    """
    _check_times(curve)
    _check_increasing(t)
    fraction = real("fraction", fraction, (), above=0, below=1)
    moved = jnp.abs(curve - curve[:1])
    found = _first_reached(t, moved, fraction.astype(curve.dtype) * moved[-1])
    return jnp.where(moved[-1] == 0, jnp.inf, found)


def _first_reached(
    t: Float[Array, " times"], curve: Float[Array, "times *batch"], level: Float[Array, "..."]
) -> Float[Array, "*batch"]:
    level, t = jnp.broadcast_to(level, curve.shape[1:]).astype(curve.dtype), t.astype(curve.dtype)
    side = jnp.sign(curve - level[None])
    there = (side != side[:1]) | (side == 0)  # NaN, which is on no side, too
    last = jnp.argmax(there, axis=0)
    first = jnp.maximum(last - 1, 0)
    low, high = (jnp.take_along_axis(curve, i[None], axis=0)[0] for i in (first, last))
    rise = jnp.where(high == low, 1.0, high - low)
    found = t[first] + (level - low) / rise * (t[last] - t[first])
    return jnp.where(jnp.any(there, axis=0), found, jnp.inf)


def _check_increasing(t: Float[Array, " times"]) -> None:
    if concrete(t) and not (np.all(np.isfinite(t)) and np.all(np.diff(t) > 0)):
        raise ValueError(f"t must be finite and increase, got {describe(t)}.")


def _check_entries(name: str, x: Float[Array, "*batch n"]) -> None:
    if x.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one entry along the last axis, got shape {x.shape}.")


def _check_times(curve: Float[Array, "times *batch"]) -> None:
    if curve.shape[0] == 0:
        raise ValueError(f"curve must have at least one time, got shape {curve.shape}.")


class Order(NamedTuple):
    """A fitted order of convergence and its standard error."""

    order: float
    standard_error: float


@checked
def fit_order(parameter: Real[ArrayLike, " n"], error: Real[ArrayLike, " n"]) -> Order:
    """The slope of `log error` on `log parameter` by least squares, and its standard error from the residuals.

    **Raises** `ValueError` for parameters that are not positive, negative errors, and fewer than three points, which
    leave no residual. NaN if an error is zero or not finite.
    """
    check_range("parameter", parameter, above=0)
    errors = np.asarray(error, float)
    check_range("error", np.where(np.isnan(errors), 0.0, errors), least=0, finite=False)
    with np.errstate(divide="ignore"):
        x, y = np.log(np.asarray(parameter, float)), np.log(np.asarray(error, float))
    if x.shape != y.shape or x.ndim != 1 or x.size < 3:
        raise ValueError(f"parameter and error must have one common shape (n,), n ≥ 3, got {x.shape} and {y.shape}.")
    if np.ptp(x) == 0:
        raise ValueError(f"parameter must take more than one value, got {np.exp(x[0]):g} only.")
    if not np.all(np.isfinite(y)):
        return Order(float("nan"), float("nan"))
    dx = x - x.mean()
    slope = dx @ y / (dx @ dx)
    residual = y - y.mean() - slope * dx
    return Order(float(slope), float(np.sqrt(residual @ residual / (x.size - 2) / (dx @ dx))))
