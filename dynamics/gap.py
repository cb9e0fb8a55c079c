"""The gap between a logit that is pushed up and those that are pushed down: `e^x − 1 + others·x = k`, and its kin.

What the decoder of Scan and Snap and the one-layer transformer of the reversal curse have in common.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._checked import checked
from .._checks import as_float, check_range, check_shape, concrete


@checked
def logit_gap(k: Real[ArrayLike, "..."], others: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The root x of `e^x − 1 + others·x = k`, for `others > 0`. It has the sign of `k`.

    The gap between the logit that is pushed up and the `others` that are pushed down: every cross-entropy flow on
    orthogonal inputs ends in this equation. By Newton's method from above, which converges for any size of `k`; the
    Lambert form `x = c/a − W(e^{c/a}/a)`, `c = k+1`, `a = others`, overflows beyond c/a = 709. Differentiable in both,
    any number of times. **Raises** `ValueError` for shapes that do not broadcast, and for `others` that are not
    positive; inside `jit` these give NaN.
    """
    if concrete(others):
        check_range("others", others, above=0)
    check_broadcast(k=k, others=others)
    pushed = as_float(k)
    return gap_of(*jnp.broadcast_arrays(pushed, jnp.asarray(others, pushed.dtype)))


def check_broadcast(**arrays: Any) -> None:
    """Raises `ValueError` unless the shapes of these arguments broadcast against each other."""
    shapes = {name: jnp.shape(x) for name, x in arrays.items()}
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError as error:
        names, found = (", ".join(map(str, x)) for x in (shapes, shapes.values()))
        raise ValueError(f"{names} must have shapes that broadcast, got {found}.") from error


@jax.custom_jvp
@jax.jit
def gap_of(k: Float[Array, "*batch"], a: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """`logit_gap`, and for k ≥ 0 with `a = 0` too."""

    def step(_, x):
        power = jnp.exp(x)
        # Near k = −1 it is k + 1 that has the digits, and near zero k itself.
        left = jnp.where(low, power - (finite + 1), jnp.expm1(x) - finite)
        return x - (left + a * x) / (power + a)

    finite = jnp.where(jnp.isinf(k), 0.0, k)
    low = finite < -0.5
    above = _above(finite, a)
    end = jnp.where(jnp.isinf(k), k, above)  # infinite too where the root is below all numbers
    root = jax.lax.fori_loop(0, 12, step, jnp.where(jnp.isinf(above), 0.0, above))
    valid = (a > 0) | ((a == 0) & (k >= 0))
    return jnp.where(valid, jnp.where(jnp.isinf(end), end, root), jnp.nan)


@gap_of.defjvp
def _gap_jvp(primals, tangents):
    (k, a), (dk, da) = primals, tangents
    x = gap_of(k, a)
    return x, (dk - x * da) / (jnp.exp(x) + a)


def gap_after(
    pushed: Float[Array, "..."], others: Float[Array, "..."], start: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The root x of `e^x + others·x = e^start + others·start + pushed`. From a start above zero by the equation divided
    by `e^start`, which overflows otherwise."""
    up, down = jnp.maximum(start, 0), jnp.minimum(start, 0)
    scale = jnp.exp(-up)
    k, a = jnp.broadcast_arrays(scale * pushed + jnp.expm1(down) + others * down, others * scale)
    return up + gap_of(k, a)


def _above(k: Float[Array, "*batch"], a: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """A bound above the root, and near to it. On a convex function Newton stays above the root."""
    c, positive = k + 1, jnp.where(a > 0, a, 1.0)
    linear = k / (a + 1)
    grown = jnp.log1p(jnp.maximum(k, 0))
    # Where e^x = c − ax is small: y = −x is at most ln 1/c and ln(1 + 1/a), and so at least −ln(c + a times those).
    furthest = jnp.minimum(-jnp.log(jnp.maximum(c, 0)), jnp.log1p(1 / positive))
    small = jnp.log(jnp.where(c > 0, c, 0) + a * furthest)
    # For c ≤ 0, y = −c/a + W(e^{c/a}/a), with the lower bound of Lambert's W that `_lambert` starts from.
    log = c / positive - jnp.log(positive)
    far = c / positive - _below_lambert(log)
    below = jnp.minimum(linear, jnp.where(c > 0, small, far))
    return jnp.where(k > 0, jnp.minimum(grown, linear), jnp.where(k < 0, below, 0.0))


def visits(outputs: Float[Array, "..."], eta: Float[Array, "..."], number: int) -> Float[Array, " number_and_one"]:
    """`h*` after 0, 1, …, `number` visits: `h*(s) = h*(s−1) + η / (M − 1 + e^{M h*(s−1)})` from zero.

    **Raises** `ValueError` for more than one M or η.
    """
    for name, x in (("outputs", outputs), ("eta", eta)):
        check_shape(name, x, ())

    def visit(h, _):
        new = h + eta / (outputs - 1 + jnp.exp(outputs * h))
        return new, new

    zero = jnp.zeros((), outputs.dtype)
    return jnp.concatenate([zero[None], jax.lax.scan(visit, zero, length=number)[1]])


@jax.jit
def lambert(z: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The principal branch of Lambert's W for z > 0, by Newton's method in `u + ln u = ln z`."""
    log = jnp.log(z)

    def step(_, u):
        return u * (1 + log - jnp.log(u)) / (1 + u)

    return jax.lax.fori_loop(0, 12, step, _below_lambert(log))


def _below_lambert(log: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """A bound below W(z), and near to it, by ln z: `ln z − ln ln z` for z > e, else `z/(1 + z)`."""
    return jnp.where(log > 1, log - jnp.log(jnp.maximum(log, 1)), jax.nn.sigmoid(log))
