"""The decoder of Scan and Snap while attention stands still: one scalar equation, its closed form and its clock.

    ḣ = (η/K) / (M − 1 + e^{Mh}),      e^{Mh} + (M − 1) M h = M η t/K + 1      (h(0) = 0)

A class that is visited moves its own column of the decoder along `ζ_n = M/(M−1) (e_n − 1/M)` and no other.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, Real

from ..._checked import checked
from ..._checks import as_float, check_range, check_shape, concrete, integer, require
from ..flow import ClosedForm, Example, Number, Times, at_each


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


@checked
class Decoder(ClosedForm):
    """`ḣ = (η/K) / (M − 1 + e^{Mh})`: the logits of one class, `w_n = (M−1) h ζ_n`, its attention standing still.

    **Fields:** `outputs` M, the width of the softmax; `classes` K, drawn equally often, so that a class has been
    visited `s = t/K` times; `eta` η_Y. All may be arrays, for a sweep. **State:** `h`, of any shape.

    **Assumptions:** the decoder of tier A (preconditioned), or orthogonal inputs, `FᵀF = I`. Tier B follows the same
    law with M = K and η = (1−ρ) η_Y.

    **Closed form:** `e^{Mh} + (M−1) M h = M η t/K + 1` from zero. **What must happen:** h grows linearly up to
    `t = K ln M/η`, then like its logarithm; γ, the size of the gradient that reaches attention, rises and falls.

    Source: Scan and Snap (arXiv 2305.16380), Lemmas 5 to 9.
    """

    outputs: Float[Array, "*batch"]
    classes: Float[Array, "*batch"]
    eta: Float[Array, "*batch"]

    def __init__(
        self, outputs: Real[ArrayLike, "..."], classes: Real[ArrayLike, "..."] = 1, eta: Real[ArrayLike, "..."] = 1.0
    ):
        """Numbers take the dtype of whatever is an array. **Raises** `ValueError` for fewer than two or infinitely many
        outputs, and shapes that do not broadcast. Where they are known, also for fewer classes than one and a rate that
        is not positive."""
        if concrete(classes):
            check_range("classes", classes, least=1)
        if concrete(eta):
            check_range("eta", eta, above=0)
        check_broadcast(outputs=outputs, classes=classes, eta=eta)
        dtype = jnp.result_type(float, outputs, classes, eta)
        self.outputs, self.classes, self.eta = (jnp.asarray(x, dtype) for x in (outputs, classes, eta))
        # By the value given: inside `jit` the array made of a number is traced, and the check would run at every step.
        xp, number = (np, np.asarray(outputs)) if concrete(outputs) else (jnp, self.outputs)
        enough = xp.all((number >= 2) & (number < np.inf))
        self.outputs = require(self.outputs, enough, f"outputs must be at least 2 and finite, got {outputs}.")

    @classmethod
    @checked
    def example(
        cls,
        key: Key[Array, ""],
        *,
        outputs: Number = 20.0,
        classes: Number = 4.0,
        eta: Number = 1.0,
        time: Number = 30.0,
    ) -> Example:
        """One class from zero, through the end of its linear growth. Nothing is drawn."""
        return cls(outputs, classes, eta), jnp.zeros(()), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, "..."], y: Float[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        self._check_broadcast(y=y)
        return self.eta / self.classes / (self.outputs - 1 + jnp.exp(self.outputs * y))

    @checked
    def exact(self, y0: Real[ArrayLike, "..."], ts: Times) -> Float[Array, "..."]:
        """`h` at the times `ts`, which come first in its shape."""
        self._check_broadcast(y0=y0)
        return at_each(ts, lambda t: self._moved(y0, t))

    def _moved(self, y0: Real[ArrayLike, "..."], t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        m = self.outputs
        pushed = m * self.eta * jnp.asarray(t, m.dtype) / self.classes
        return gap_after(pushed, m - 1, m * jnp.asarray(y0, m.dtype)) / m

    @checked
    def visits(self, number: int) -> Float[Array, " number_and_one"]:
        """`h*` after 0, 1, …, `number` visits of the class by stochastic gradient descent with one sample a step:

            h*(s) = h*(s−1) + η / (M − 1 + e^{M h*(s−1)})

        exactly, where `exact` is the limit of small η: `0 ≤ h* − h ≤ 2η/M` (Lemmas 5 and 7). For scalar fields.
        """
        integer("number", number, least=0)
        for name in ("outputs", "eta"):
            check_shape(name, getattr(self, name), ())

        def visit(h, _):
            new = h + self.eta / (self.outputs - 1 + jnp.exp(self.outputs * h))
            return new, new

        zero = jnp.zeros((), self.outputs.dtype)
        return jnp.concatenate([zero[None], jax.lax.scan(visit, zero, length=number)[1]])

    @checked
    def gamma(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """`γ = (M−1)² h / (M − 1 + e^{Mh})`: the gradient that reaches attention, over ζ_n's part of it."""
        self._check_broadcast(t=t)
        h, m = self._moved(0.0, t), self.outputs
        return (m - 1) * h * ((m - 1) / (m - 1 + jnp.exp(m * h)))

    @checked
    def gamma_integral(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """`∫₀ᵗ γ = (K/η) (M−1)² h²/2`, exactly."""
        self._check_broadcast(t=t)
        return self.classes / self.eta * ((self.outputs - 1) * self._moved(0.0, t)) ** 2 / 2

    def peak(self) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """When γ is largest, and how large: at `x = Mh = 1 + W((M−1)/e)`, which is `x = 1 + u`, `u e^u = (M−1)/e`."""
        m = self.outputs
        u = _lambert((m - 1) / math.e)
        x = 1 + u
        t = self.classes / self.eta * ((jnp.expm1(x) + (m - 1) * x) / m)
        return t, (m - 1) / m * u  # (M−1)² e^{−x}/M

    def _check_broadcast(self, **arrays: Any) -> None:
        check_broadcast(**arrays, outputs=self.outputs, classes=self.classes, eta=self.eta)

    def linear_until(self) -> Float[Array, "*batch"]:
        """`t₀' = K ln M/η`: until about here `h = ηt/(KM)` and `γ = ηt/K`."""
        return self.classes * jnp.log(self.outputs) / self.eta

    def logarithmic_from(self) -> Float[Array, "*batch"]:
        """`t₀ = 2K ln M/η`: from about here `h = ln(Mηt/K)/M` and `γ = K ln(Mηt/K)/(ηt)`. It depends on η_Y and not on
        η_Z: a larger attention rate makes the phase transition stronger, not earlier."""
        return 2 * self.linear_until()


@jax.jit
def _lambert(z: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The principal branch of Lambert's W for z > 0, by Newton's method in `u + ln u = ln z`."""
    log = jnp.log(z)

    def step(_, u):
        return u * (1 + log - jnp.log(u)) / (1 + u)

    return jax.lax.fori_loop(0, 12, step, _below_lambert(log))


def _below_lambert(log: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """A bound below W(z), and near to it, by ln z: `ln z − ln ln z` for z > e, else `z/(1 + z)`."""
    return jnp.where(log > 1, log - jnp.log(jnp.maximum(log, 1)), jax.nn.sigmoid(log))
