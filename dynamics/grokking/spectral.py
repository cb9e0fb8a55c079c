"""Functions of singular values with first derivatives that are right where these coincide: ridge regression, its
gradient flow, the inverse of its matrix, and the unitary factor of a matrix.

JAX's derivatives of `eigh` and `svd` divide by differences of eigenvalues, and those vanish for alike nodes, and for
more nodes than the rank of their features. The derivative of a function f of a symmetric matrix needs only the divided
differences `(f(λ_i) − f(λ_j))/(λ_i − λ_j)`, which have a limit there (Daleckii and Krein).

The matrix of the first three is `A = FᵀF + ηI`. Its eigenvalues are `s² + η` in the span of the rows of F, and η
across.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = Float[Array, ""]
Features = Float[Array, "pairs nodes"]
Labels = Float[Array, "pairs classes"]
Output = Float[Array, "nodes classes"]


@jax.custom_jvp
def svd(a: Float[Array, "rows columns"]) -> tuple[Array, Array, Array]:
    """The thin decomposition U, S, Vᵀ, which can't be differentiated: an error rather than NaN or a wrong number."""
    left, values, right = jnp.linalg.svd(a, full_matrices=False)
    return left, values, right


@svd.defjvp
def _refuse(primals, tangents):
    raise NotImplementedError(
        "OutputLayer.exact, OutputLayer.limit, inverse_gram, repulsion and polar have first derivatives only: those of "
        "singular vectors do not exist where singular values coincide."
    )


class Factors(NamedTuple):
    """`F = U diag(s) Wᵀ`. Where s is zero, U and W have columns of zeros, which count for nothing in a product."""

    left: Float[Array, "pairs k"]
    values: Float[Array, " k"]
    right: Float[Array, "nodes k"]

    @property
    def lacking(self) -> Array:
        """Whether there are directions across the rows of F."""
        return jnp.sum(self.values != 0) < len(self.right)

    def across(self, x: Output) -> Output:
        """What of x lies there: exactly nothing if there are none, for rounding would outlive all else."""
        return jnp.where(self.lacking, x - self.right @ (self.right.T @ x), 0.0)


def factors(features: Features) -> Factors:
    """The decomposition of F, without the singular values that are rounding: those of F with columns of unit length
    that are below `2 √max(pairs, nodes) eps` of the largest. So small columns keep their digits, and what one column
    lacks of the span of the others counts as zero below that share of its length."""
    length = jnp.max(jnp.abs(features), axis=0, keepdims=True, initial=0.0)  # first, for squares may be no numbers
    length = jnp.where(length == 0, 1.0, length)
    length = length * jnp.maximum(jnp.linalg.norm(features / length, axis=0, keepdims=True), 1.0)
    left, values, right = svd(features / length)
    rounding = 2 * math.sqrt(max(features.shape)) * jnp.finfo(values.dtype).eps * jnp.max(values, initial=0.0)
    none = values <= rounding  # in this direction, lest NaN count as none
    inner, values, right = svd(jnp.where(none, 0.0, values)[:, None] * right * length)
    none = jnp.arange(len(values)) >= jnp.sum(~none)
    columns = lambda x: jnp.where(none[None], 0.0, x)
    return Factors(columns(left @ inner), jnp.where(none, 0.0, values), columns(right.T))


class Ridge(NamedTuple):
    """`V = (FᵀF + ηI)⁻¹FᵀY`, with η = 0 of smallest norm, and what it leaves, `Y − FV`."""

    solution: Output
    left_over: Labels


@jax.custom_jvp
def ridge(features: Features, labels: Labels, decay: Scalar) -> Ridge:
    """The ridge solution. At η = 0 its derivative is that along features of the same rank."""
    f = factors(features)
    seen = f.left.T @ labels
    gain, lost = _gain(f, decay)
    return Ridge(f.right @ (gain * seen), labels - f.left @ seen + f.left @ (lost * seen))


@ridge.defjvp
def _ridge_jvp(primals, tangents):
    (features, labels, decay), (d_features, d_labels, d_decay) = primals, tangents
    f, out = factors(features), ridge(*primals)
    d_labels = d_labels - d_features @ out.solution
    push = d_features.T @ out.left_over - d_decay * out.solution
    # Across the rows of F it is (Y − FV)/η that pushes; without a decay, only its part that F spans.
    seen, positive = f.left.T @ labels, decay > 0
    beyond = jnp.where(positive, (labels - f.left @ seen) / jnp.where(positive, decay, 1.0), 0.0)
    dual = f.left @ (_inverse(f, decay) * seen) + beyond
    within = _inverse(f, decay) * (f.right.T @ push) + _gain(f, decay)[0] * (f.left.T @ d_labels)
    moved = f.right @ within + f.across(d_features.T @ dual)
    return out, Ridge(moved, d_labels - features @ moved)


def _gain(f: Factors, decay: Scalar) -> tuple[Float[Array, "k 1"], Float[Array, "k 1"]]:
    """`s/(s² + η)` and `η/(s² + η)`, without squares, which may be no numbers; zeros where s is zero."""
    none = f.values == 0
    values = jnp.where(none, 1.0, f.values)
    ratio = decay / values
    gain, lost = 1 / (values + ratio), 1 / (1 + values / ratio)
    return jnp.where(none, 0.0, gain)[:, None], jnp.where(none, 0.0, lost)[:, None]


def _inverse(f: Factors, decay: Scalar) -> Float[Array, "k 1"]:
    """`1/(s² + η)`, zero where s is zero."""
    return _gain(f, decay)[0] / jnp.where(f.values == 0, 1.0, f.values)[:, None]


@jax.custom_jvp
def gram_inverse(features: Features, decay: Scalar) -> Float[Array, "nodes nodes"]:
    """`A⁻¹`. NaN without a decay where features have less rank than nodes."""
    f = factors(features)
    across = f.across(jnp.eye(len(f.right), dtype=features.dtype))
    beyond = across / jnp.where(f.lacking, jnp.where(decay > 0, decay, jnp.nan), 1.0)
    return f.right @ (_inverse(f, decay) * f.right.T) + beyond


@gram_inverse.defjvp
def _gram_inverse_jvp(primals, tangents):
    (features, decay), (d_features, d_decay) = primals, tangents
    f, inverse = factors(features), gram_inverse(*primals)
    fitted = f.left @ (_gain(f, decay)[0] * f.right.T)  # F A⁻¹
    half = inverse @ (d_features.T @ fitted)
    return inverse, -(half + half.T + d_decay * inverse @ inverse)


@jax.custom_jvp
def evolve(t: Scalar, features: Features, labels: Labels, decay: Scalar, start: Output) -> Output:
    """`V(t)` of `V̇ = FᵀY − AV` from V(0): `e^{−At} V(0) + ∫₀ᵗ e^{−As} ds FᵀY`. At t = ∞ the derivative needs a positive
    decay, or features that lack no direction."""
    f = factors(features)
    rates = _rates(f, decay, t)
    values = f.values[:, None]
    driven = jnp.where(rates == 0, t * values, -jnp.expm1(-rates * t) * _gain(f, decay)[0])  # by s/λ, not by 1/λ
    pushed = driven * (f.left.T @ labels)
    return f.right @ (_kept(rates, t) * (f.right.T @ start) + pushed) + _kept(decay, t) * f.across(start)


@evolve.defjvp
def _evolve_jvp(primals, tangents):
    t, features, labels, decay, start = primals
    d_t, d_features, d_labels, d_decay, d_start = tangents
    f = factors(features)
    rates, image, seen = _rates(f, decay, t), f.left * f.values[None], f.left.T @ labels
    push, within, across = f.values[:, None] * seen, f.right.T @ start, f.across(start)
    moved = d_features @ f.right
    change = moved.T @ image + image.T @ moved + d_decay * jnp.eye(len(f.values), dtype=moved.dtype)  # of A
    slope = d_t * _kept(rates, t) * (push - rates * within)
    slope += _kept(rates, t) * (f.right.T @ d_start)
    slope += _driven(rates, t) * (moved.T @ labels + f.values[:, None] * (f.left.T @ d_labels))
    slope -= (_kept_between(rates, rates.T, t) * change) @ within
    slope -= (_driven_between(rates, rates.T, t) * change) @ push
    slope -= _kept_between(rates, decay, t) * (image.T @ (d_features @ across))
    # Across the rows of F the rate is η. What has no such direction must not meet an infinite time.
    kept, driven = _kept(decay, t), jnp.where(f.lacking, _driven(decay, t), 0.0)
    lost = jnp.where(f.lacking & (kept != 0), t * kept, 0.0)
    source = driven * (labels - f.left @ seen) + f.left @ (_driven(rates, t) * seen)
    source -= image @ (_kept_between(rates, decay, t) * within)
    outer = kept * f.across(d_start) + f.across(d_features.T @ source) - (d_t * kept * decay + d_decay * lost) * across
    return evolve(*primals), f.right @ slope + outer


def _rates(f: Factors, decay: Scalar, t: Scalar) -> Float[Array, "k 1"]:
    """λ; where s is zero, a number whose `e^{−λt}` is finite at any time, negative ones too. Neither λ·0 nor λ·∞ is
    NaN, however large or small s is."""
    info = jnp.finfo(f.values.dtype)
    rates = jnp.clip(f.values**2 + decay, jnp.where(jnp.isinf(t), info.tiny, 0.0), info.max)
    return jnp.where(f.values == 0, jnp.sign(t), rates)[:, None]


def _kept(rate: Float[Array, "..."], t: Scalar) -> Float[Array, "..."]:
    """`e^{−λt}`, one for λ = 0 at t = ∞ too."""
    return jnp.exp(-jnp.where(rate == 0, 0.0, rate * t))


def _driven(rate: Float[Array, "..."], t: Scalar) -> Float[Array, "..."]:
    """`∫₀ᵗ e^{−λs} ds`."""
    return jnp.where(rate == 0, t, -jnp.expm1(-rate * t) / jnp.where(rate == 0, 1.0, rate))


def _kept_between(a: Float[Array, "..."], b: Float[Array, "..."], t: Scalar) -> Float[Array, "..."]:
    """`(e^{−at} − e^{−bt})/(b − a)`."""
    slower = _kept(jnp.minimum(a, b), t)
    return jnp.where(slower == 0, 0.0, slower * _driven(jnp.abs(a - b), t))


def _driven_between(a: Float[Array, "..."], b: Float[Array, "..."], t: Scalar) -> Float[Array, "..."]:
    """The same of `∫₀ᵗ e^{−λs} ds`, for positive rates. By the larger rate b it is `(∫₀ᵗ e^{−as} ds − that of e)/b`,
    which cancels where bt is small; there by its series in at and bt."""
    slow, fast = jnp.minimum(a, b), jnp.maximum(a, b)
    near = jnp.abs(fast * t) < 1
    x, y = (jnp.where(near, rate * t, 0.0) for rate in (slow, fast))
    term, power, series = jnp.ones_like(y), jnp.ones_like(x), jnp.full_like(y, 0.5)
    for n in range(1, 18):  # Σ (−1)ⁿ hₙ/(n + 2)!, hₙ the sum of all products of n of x and y: to 1e-17
        power = power * x
        term = y * term + power
        series += (-1) ** n / math.factorial(n + 2) * term
    far = (_driven(slow, t) - _kept_between(a, b, t)) / fast
    return jnp.where(near, jnp.where(near, t, 0.0) ** 2 * series, far)


@jax.custom_jvp
def unit_factor(a: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """`U Vᵀ` of `U S Vᵀ`, without the singular values that are rounding."""
    left, _, right = _significant(a)
    return (left @ right.T).astype(a.dtype)


@unit_factor.defjvp
def _unit_factor_jvp(primals, tangents):
    (a,), (d_a,) = primals, tangents
    left, values, right = _significant(a)
    d_a = d_a.astype(left.dtype)
    inverse = jnp.where(values == 0, 0.0, 1 / jnp.where(values == 0, 1.0, values))
    sums = values[:, None] + values[None]  # and no differences
    core = left.T @ d_a @ right
    turned = jnp.where(sums == 0, 0.0, (core - core.T) / jnp.where(sums == 0, 1.0, sums))
    above = (d_a @ right - left @ core) * inverse[None]
    beside = (left.T @ d_a - core @ right.T) * inverse[:, None]
    moved = (left @ turned + above) @ right.T + left @ beside
    return (left @ right.T).astype(a.dtype), moved.astype(a.dtype)


def _significant(a: Float[Array, "rows columns"]) -> Factors:
    left, values, right = svd(a if jnp.finfo(a.dtype).bits >= 32 else a.astype(jnp.float32))
    rounding = max(a.shape) * float(jnp.finfo(a.dtype).eps) * jnp.max(values, initial=0.0)
    none = values <= rounding
    columns = lambda x: jnp.where(none[None], 0.0, x)
    return Factors(columns(left), jnp.where(none, 0.0, values), columns(right.T))
