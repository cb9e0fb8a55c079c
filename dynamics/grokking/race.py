"""Which mode a node learns, and how many nodes it takes to learn them all: a race, and the coupons that it draws.

Modes that feed themselves, `α̇_l = μ_l α_l²`, grow without bound, and the first to do so is what the node becomes. Every
new node draws its mode anew, so that all of them are found as a collector finds coupons; Muon draws those less that it
has already.

Source: Tian, Li2 (arXiv 2509.21519), Theorem 8 and Lemmas 7 to 9; the number of draws by quadrature is derived here.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, Real

from ..._checked import checked
from ..._checks import as_float, concrete, describe, integer, or_nan, real, require
from ..flow import BlowsUp, ClosedForm, Example, Number, Times, at_each, check_blow_up
from .spectral import unit_factor


@checked
class ModeRace(ClosedForm, BlowsUp):
    """`α̇_l = μ_l α_l²`: how much a node holds of each mode.

    **Fields:** `mu` μ, shape `(modes,)`. **State:** α, shape `(modes,)`, of either sign.

    **Assumptions:** `ẇ = A(w) w` with `A = Σ λ_l ζ_l ζ_lᵀ`, orthonormal ζ, and modes that feed themselves,
    `λ_l = μ_l α_l` for `α_l = ζ_lᵀ w`; each node for itself.

    **Closed form:** `α_l(t) = α_l(0)/(1 − μ_l α_l(0) t)`. **What must happen:** the mode with the largest `μ_l α_l(0)`,
    `winner`, diverges first, while all others are finite (Lemma 8). A node kept at norm one moves along the same
    quotients of α in another time, and ends at that mode alone. **Values that work:** times up to 0.99 of the blow-up.

    Source: Li2, Theorem 8.
    """

    mu: Float[Array, " modes"] = eqx.field(converter=as_float)

    def __check_init__(self):
        real("mu", self.mu)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, time: Number = 0.9) -> Example:
        """Four modes with random starts, the fastest of speed one, so that nothing diverges before t = 1."""
        mu, drawn = jnp.array([1.0, 0.9, 0.7, 0.5]), jax.random.normal(key, (4,))
        return cls(mu), drawn / jnp.max(jnp.abs(mu * drawn)), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: ArrayLike, y: Float[Array, " modes"], args: Any = None) -> Float[Array, " modes"]:
        return self.mu * y**2

    @checked
    def exact(self, y0: Float[Array, " modes"], ts: Times) -> Float[Array, "*times modes"]:
        """The states at the times `ts`. Raises `ValueError` past the blow-up; inside `jit` such components are NaN."""
        check_blow_up(self, y0, ts)

        def moved(t):
            left = 1 - jnp.where(self.mu * y0 == 0, 0.0, self.mu * (y0 * jnp.asarray(t, y0.dtype)))  # finite at t = 0
            return jnp.where(left > 0, y0 / jnp.where(left > 0, left, 1.0), jnp.nan)

        return at_each(ts, moved)

    @checked
    def blow_up_time(self, y0: Float[Array, " modes"]) -> Float[Array, " modes"]:
        """When each mode alone would diverge, `1/(μ_l α_l(0))`; never unless that is positive."""
        speed = self.mu * y0
        never = speed <= 0  # in this direction, lest NaN be never
        return jnp.where(never, jnp.inf, 1 / jnp.where(never, 1.0, speed))

    @checked
    def winner(self, y0: Float[Array, " modes"]) -> Int[Array, ""]:
        """The mode that diverges first: the largest `μ_l α_l(0)`. Lemma 8. **Raises** `ValueError` for NaN, and where
        no `μ_l α_l(0)` is positive and none diverges. Inside `jit` NaN counts as the largest."""
        speed = self.mu * real("y0", y0)
        if not y0.size or (concrete(speed) and not np.any(speed > 0)):
            raise ValueError("y0 must have an entry with mu * y0 above 0: no mode diverges, so there is no winner.")
        return jnp.argmax(speed)


@checked
def frechet(key: Key[Array, ""], shape: tuple[int, ...], exponent: Real[ArrayLike, ""]) -> Float[Array, "*shape"]:
    """Draws with the distribution function `exp(−x^{−a})`, x > 0, a the `exponent`: the initial α of Theorem 8.
    **Raises** `ValueError` for an exponent that is not positive, and for a shape that is no tuple of sizes."""
    if not isinstance(shape, tuple | list):
        raise ValueError(f"shape must be a tuple of sizes, got {describe(shape)}.")
    shape = tuple(integer("shape", size, least=0) for size in shape)
    gumbel = jax.random.gumbel(key, shape)  # the logarithm of a Fréchet number, but for the scale
    return jnp.exp(gumbel / _exponent(exponent, gumbel.dtype))


@checked
def winner_probabilities(mu: Float[ArrayLike, " modes"], exponent: Real[ArrayLike, ""]) -> Float[Array, " modes"]:
    """`p_l = μ_l^a / Σ μ^a`: how probable each mode is to win the race from Fréchet starts of this exponent. Lemma 7.

    **Raises** `ValueError` unless μ and the exponent are positive and finite.
    """
    mu = as_float(mu)
    mu = or_nan(mu, _all((mu > 0) & (mu < jnp.inf)), f"mu must be positive and finite, got {describe(mu)}.")
    return jax.nn.softmax(_exponent(exponent, mu.dtype) * jnp.log(mu))


# How many draws

_SPACING = 1 / 16  # to 1e-15 for up to a thousand modes, to 1e-11 for ten thousand
# ln t, in units of the longest waiting time: what lies below e^−38 counts nothing, and beyond 45 + ln L all are found.
_LOG_TIMES = np.arange(-38, math.log(75), _SPACING)


@checked
def coupon_time(p: Float[ArrayLike, " modes"]) -> Float[Array, ""]:
    """`T₀ = ∫₀^∞ 1 − Π_l (1 − e^{−p_l t}) dt`: how many independent draws collect all modes, on average.

    L·H_L for L equal p, with `H_L = Σ 1/l`. By the trapezoidal rule in ln t, which converges exponentially for such an
    integrand: right to rounding, at no cost in the number of subsets, and differentiable. Source: Theorem 8.

    **Raises** `ValueError` unless p is positive and sums to one; inside `jit` the result is NaN then.
    """
    p = _positive(p)
    longest = 1 / jax.lax.stop_gradient(jnp.min(p))  # a unit of time, on which the integral does not depend
    times = longest * jnp.exp(jnp.asarray(_LOG_TIMES, p.dtype))
    found = jnp.sum(jax.nn.log1mexp(times[:, None] * p[None]), axis=1)  # the logarithm of the product
    return _SPACING * jnp.sum(times * -jnp.expm1(found))


@checked
def coupon_bound(p: Float[ArrayLike, " modes"]) -> Float[Array, ""]:
    """`max(1/min p, L·H_L)`, below which T₀ cannot fall: the wait for the rarest mode, and T₀ for equal p, which take
    the fewest draws. Holds for every p; the main text of the paper has H_L without L, less than 1/min p for any p."""
    p = _positive(p)
    modes = p.shape[0]
    return jnp.maximum(1 / jnp.min(p), modes * sum(1 / n for n in range(1, modes + 1)))


@checked
def sequential_coupon_time(p: Float[ArrayLike, " modes"], exponent: Real[ArrayLike, ""]) -> Float[Array, ""]:
    """`T_a = 2^{−a} T₀ + (1 − 2^{−a}) L`: how many nodes collect all modes if each is trained after those before it and
    starts with half as much of every mode that is found already. So Muon does it, by Theorem 8; a is the exponent of
    the Fréchet starts. Exact for a half; the paper bounds T_a from above by it. **Raises** `ValueError` as
    `coupon_time`, and for an exponent that is not positive."""
    p = _positive(p)
    kept = 2 ** -_exponent(exponent, p.dtype)
    return kept * coupon_time(p) + (1 - kept) * p.shape[0]


@checked
def distinct(p: Float[ArrayLike, " modes"], draws: Real[ArrayLike, ""]) -> Float[Array, ""]:
    """`Σ_l 1 − (1 − p_l)^K`: how many modes K independent draws find, on average. **Raises** `ValueError` unless p is
    positive and sums to one, and for a negative number of draws."""
    p = _positive(p)
    draws = jnp.asarray(draws, p.dtype)
    draws = or_nan(draws, _all(draws >= 0), f"draws must not be negative, got {describe(draws)}.")
    some = p < 1
    found = -jnp.expm1(draws * jnp.log1p(-jnp.where(some, p, 0.0)))  # small p keep their digits
    return jnp.sum(jnp.where(some, found, 1 - (1 - p) ** draws))


# The update of Muon


@checked
def polar(a: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """`U Vᵀ` of the singular value decomposition `U S Vᵀ`: what Muon makes of a gradient. Its columns are orthonormal
    where the rank is their number. Lemma 2: along it the gradient climbs by the sum of the singular values.

    Singular values below `max(rows, columns) eps` of the largest count as zero and give nothing: a zero matrix stays
    zero. Differentiable once, where singular values coincide too; with zeros among them along matrices of the same
    rank. A float16 or bfloat16 matrix is decomposed in float32, and counts by its own eps.
    """
    return unit_factor(a)


@checked
def polar_last_column(q: Float[Array, "rows columns"], v: Float[Array, " rows"]) -> Float[Array, " rows"]:
    """The last column of `polar([Q, v])`, for orthonormal Q and a v that Q nearly lacks: `v_⊥/‖v_⊥‖ + v_∥/(1 + ‖v_⊥‖)`
    up to the order ‖v_∥‖², with v_∥ the part of v that Q spans and v_⊥ the rest, which must not vanish.

    A gradient keeps of what others have already a part `1/(1 + ‖v_⊥‖)`, and all of what is new. Lemma 9, which has
    `1 + ‖v_⊥‖²` there. **Raises** `ValueError` for a Q that is not orthonormal, and for a v that it spans, which
    inside `jit` is divided by zero.
    """
    if concrete(q):
        off = float(np.max(np.abs(np.asarray(q).T @ np.asarray(q) - np.eye(q.shape[1])), initial=0))
        require(q, off < 1e-4, f"q must have orthonormal columns, QᵀQ is off the identity by {off:.2g}.")
    inside = q @ (q.T @ v)
    outside = v - inside
    size = jnp.linalg.norm(outside)
    if concrete(size) and size <= 100 * jnp.finfo(v.dtype).eps * np.linalg.norm(v):
        raise ValueError(f"v must not lie in the span of the columns of q, got {describe(v)}.")
    return outside / size + inside / (1 + size)


@checked
def check_probabilities(p: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns `p`. Raises `ValueError` unless it is a distribution; inside `jit` it is NaN then."""
    p = or_nan(p, _all(p >= 0), f"p must not be negative, got {describe(p)}.")
    return or_nan(p, _all(jnp.abs(jnp.sum(p) - 1) < 1e-5), f"p must sum to one, got {describe(jnp.sum(p))}.")


def _positive(p: Float[ArrayLike, " modes"]) -> Float[Array, " modes"]:
    p = as_float(p)
    return check_probabilities(
        or_nan(p, _all(p > 0), f"p must be positive, or a mode is never found, got {describe(p)}.")
    )


def _exponent(exponent: Real[ArrayLike, ""], dtype: Any) -> Float[Array, ""]:
    exponent = jnp.asarray(exponent, dtype)
    proper = (exponent > 0) & (exponent < jnp.inf)
    return or_nan(exponent, _all(proper), f"exponent must be positive and finite, got {describe(exponent)}.")


def _all(ok):
    return jnp.all(ok) if not concrete(ok) else np.all(ok)
