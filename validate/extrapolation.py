"""What is left of a difference as the learning rate goes to zero, and the interval in which its size lies.

A difference `d(η)` between training and a theory is a smooth function of the learning rate η: `a + bη + cη² + …`. Its
value at zero is a weighted sum of the measured ones. Under minibatch noise each seed gives such a sum of its own, and
what is left is a matter of independent samples.
"""

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from .metrics import fit_order


class Estimate(float):
    """A number with its 95 % interval: `low`, `high`."""

    low: float
    high: float

    def __new__(cls, value: float, low: float, high: float):
        made = super().__new__(cls, value)
        made.low, made.high = float(low), float(high)
        return made

    def __getnewargs__(self):
        return float(self), self.low, self.high

    def __repr__(self) -> str:
        return f"{float(self):.3g} [{self.low:.3g}, {self.high:.3g}]"

    __str__ = __repr__


class Weights(NamedTuple):
    """How values at increasing parameters are summed: to the value at zero, and to another estimate of it, of lower
    order or from fewer parameters. What they differ by says how far off the extrapolation may be."""

    value: Float[np.ndarray, " n"]
    other: Float[np.ndarray, " n"]


def weights(rates: Float[np.ndarray, " rates"], noisy: bool) -> list[Weights]:
    """The ways to extrapolate from three increasing parameters or more.

    Without noise: the polynomials through the 3 to 5 smallest rates, beside that through one less. With noise: fits of
    second order through four rates or more, else of first, beside the same fit without the largest rate.
    """
    number = len(rates)
    if number == 1:  # nothing to extrapolate along
        return [Weights(np.ones(1), np.ones(1))]
    if not noisy:
        most = range(3, min(number, 5) + 1)
        return [Weights(_intercept(rates, m, m - 1), _intercept(rates, m - 1, m - 2)) for m in most]
    found = [Weights(_intercept(rates, number, 1), _intercept(rates, number - 1, 1))]
    if number > 3:
        found.append(Weights(_intercept(rates, number, 2), _intercept(rates, number - 1, 2)))
    return found


def _intercept(rates: Float[np.ndarray, " rates"], used: int, degree: int) -> Float[np.ndarray, " rates"]:
    """The weights whose sum is the value at zero of the polynomial of this degree, fitted to the `used` smallest rates.

    Fitted by the covariance `min(η, η′)` of runs that see the same batches at the same times: the larger rate adds
    noise of its own to that of the smaller.
    """
    few = rates[:used] / rates[0]
    noise = np.linalg.inv(np.minimum.outer(few, few))
    powers = few[:, None] ** np.arange(degree + 1)
    fit = np.linalg.solve(powers.T @ noise @ powers, powers.T @ noise)
    return np.pad(fit[0], (0, len(rates) - used))


class Sizes(NamedTuple):
    """The norm of the mean of vectors, at each time: estimate, interval, and standard error of the mean."""

    value: Float[np.ndarray, " times"]
    low: Float[np.ndarray, " times"]
    high: Float[np.ndarray, " times"]
    error: Float[np.ndarray, " times"]


def norms_of_mean(samples: Float[np.ndarray, "seeds times n"], one_of: float = 1.0) -> Sizes:
    """The norm of the mean of independent vectors with its 95 % interval, from their spread.

    Noise makes the norm of a mean too large, by its variance in all directions. Along the mean itself the interval is
    Student's; across it the variance is taken off, give or take its own error. For vectors of one number this is
    Student's interval of the absolute value. One sample has no interval: it is taken as exact. `one_of`: the lower end
    is one of so many of which the largest is taken, and allows for that.
    """
    number = len(samples)
    mean = samples.mean(axis=0)
    squares = np.sum(mean**2, axis=-1)
    size = np.sqrt(squares)
    if number == 1:
        return Sizes(size, size, size, np.zeros_like(size))
    off = samples - mean
    total = np.sum(off**2, axis=(0, 2)) / (number - 1)  # the trace of the covariance
    unit = mean / np.where(size > 0, size, 1)[:, None]
    along = np.sum(np.sum(off * unit, axis=-1) ** 2, axis=0) / (number - 1)
    along = np.where(size > 0, along, total)
    by_time = off.swapaxes(0, 1)
    gram = by_time @ by_time.swapaxes(1, 2) / (number - 1)  # (times, seeds, seeds)
    of_squares = np.sum(gram**2, axis=(1, 2))  # the trace of the covariance squared
    across = np.sqrt(2 * np.maximum(of_squares - along**2, 0)) / number
    error = np.sqrt(along / number)
    t = lambda tail: float(scipy.special.stdtrit(number - 1, 1 - tail))
    rest = squares - np.maximum(total - along, 0) / number
    ends = []
    for sign, quantile in ((-1, t(0.025 / one_of)), (1, t(0.025))):
        ends.append(np.sqrt(np.maximum(rest + sign * quantile * across, 0)) + sign * quantile * error)
    low, high = np.maximum(ends[0], 0), ends[1]
    value = np.clip(np.sqrt(np.maximum(squares - total / number, 0)), low, high)
    return Sizes(value, low, high, np.sqrt(total / number))


def independent(samples: Float[np.ndarray, "seeds times n"]) -> float:
    """How many independent tests the times count for, by the correlation of their noise: from one to all of them.

    Source: Nyholt, A simple correction for multiple testing (2004), equation 5.
    """
    off = samples - samples.mean(axis=0)
    by_time = off.swapaxes(0, 1).reshape(off.shape[1], -1)
    gram = by_time @ by_time.T
    size = np.sqrt(np.diag(gram))
    moving = size > 0
    number = int(moving.sum())
    if not number:
        return 1.0
    squares = np.sum((gram[np.ix_(moving, moving)] / np.outer(size[moving], size[moving])) ** 2)
    return float(max(number + 1 - squares / number, 1))


class Left(NamedTuple):
    """What is left of the differences at rate zero.

    `mean`, shape `(times, n)`: its mean over seeds. `sizes`: its norm at each time, with the interval that all sources
    of error leave. `noise`, `remainder`, `rounding`, shape `(times,)`: what they contribute to it; `remainder` is that
    of the extrapolation. `of_rate`, `of_size`, shape `(times,)`: what the smallest rate and the largest size add.
    """

    mean: Float[np.ndarray, "times n"]
    sizes: Sizes
    noise: Float[np.ndarray, " times"]
    remainder: Float[np.ndarray, " times"]
    rounding: Float[np.ndarray, " times"]
    of_rate: Float[np.ndarray, " times"]
    of_size: Float[np.ndarray, " times"]


def extrapolate(
    differences: Float[np.ndarray, "sizes rates seeds times n"],
    rates: Float[np.ndarray, " rates"],
    inverse_sizes: Float[np.ndarray, " sizes"],
    rounding: Float[np.ndarray, "rates times"],
    slack: Float[np.ndarray, " times"],
) -> Left:
    """The differences at rate zero, and at infinite size where there are several sizes. Of the ways to extrapolate the
    one with the shortest interval is taken. Both parameters increase.

    `rounding`: of a difference. `slack`: what else may be off by so much.
    """
    noisy = differences.shape[2] > 1
    found = [
        _left(differences, by_rate, by_size, rounding, slack)
        for by_rate in weights(rates, noisy)
        for by_size in weights(inverse_sizes, noisy=False)
    ]
    return min(found, key=lambda left: np.max(left.sizes.high) - np.max(left.sizes.low))


# How many times its last correction a value at zero may be off, downwards and upwards. Rates too large for a
# polynomial, as under momentum whose memory lasts from one time to the next, leave some of their difference at zero.
# It looks like an error of the theory: up to 4.4 times the last correction, over 37 right theories.
_SAFETY = (5.0, 2.0)


def _sum(weights: Float[np.ndarray, " m"], terms: Float[np.ndarray, "m *shape"]) -> Float[np.ndarray, "*shape"]:
    """Weighted, one term after another: `tensordot` would copy them all first."""
    total = weights[0] * terms[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total += weight * term
    return total


def _doubt(correction: Float[np.ndarray, "seeds times n"], times: float) -> float:
    """How far off an extrapolation may be: so many `times` its last correction, or what noise leaves of this. The
    largest of all times, as at some a correction passes through zero."""
    size = norms_of_mean(correction)
    return float(np.maximum(size.value, times * size.low).max())


def _left(
    differences: Float[np.ndarray, "sizes rates seeds times n"],
    by_rate: Weights,
    by_size: Weights,
    rounding: Float[np.ndarray, "rates times"],
    slack: Float[np.ndarray, " times"],
) -> Left:
    size = lambda samples: norms_of_mean(samples).value
    each = _sum(by_rate.value, differences.swapaxes(0, 1))  # (sizes, seeds, times, n)
    of_rates = _sum(by_rate.value - by_rate.other, differences.swapaxes(0, 1))
    at_zero = _sum(by_size.value, each)
    corrections = _sum(by_size.value, of_rates), _sum(by_size.value - by_size.other, each)
    below, above = (sum(_doubt(one, times) for one in corrections) for times in _SAFETY)
    rounded = np.abs(by_size.value).sum() * np.abs(by_rate.value) @ rounding
    norms = norms_of_mean(at_zero, independent(at_zero))
    low, high = norms.low - below - rounded - slack, norms.high + above + rounded + slack
    wider = Sizes(norms.value, np.maximum(low, 0), high, norms.error)
    of_rate, of_size = size(differences[0, 0] - each[0]), size(each[0] - at_zero)
    return Left(at_zero.mean(axis=0), wider, norms.error, np.full_like(rounded, above), rounded, of_rate, of_size)


def order(rates: Float[np.ndarray, " rates"], sizes: Float[np.ndarray, " rates"]) -> Estimate:
    """The order with which sizes fall with the rate, by least squares of the logarithms, and Student's interval. NaN
    where there are fewer than three rates or a size is zero."""
    if len(rates) < 3:
        return Estimate(np.nan, np.nan, np.nan)
    fitted, error = fit_order(rates, sizes)
    half = float(scipy.special.stdtrit(len(rates) - 2, 0.975)) * error
    return Estimate(fitted, fitted - half, fitted + half)
