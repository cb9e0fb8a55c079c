"""Rows of evidence: a measured number, the interval in which it may lie, and the range that is allowed."""

import dataclasses
import enum
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import scipy  # whose parts load when they are asked for: scipy.stats takes half a second, which few rows need
from jaxtyping import ArrayLike, Bool, Num, Real

from .._checked import checked
from .._checks import check_range, choice, describe
from ._given import as_number, as_numbers, check_text
from .metrics import fit_order

Kind = Literal["identity", "bound", "limit", "statistic"]


class Verdict(enum.StrEnum):
    """What finite checks can say. *Undecided*: the measurement failed, or its uncertainty straddles the bound."""

    HOLDS = "holds"
    REFUTED = "refuted"
    UNDECIDED = "undecided"

    @classmethod
    def all(cls, verdicts: Sequence["Verdict"]) -> "Verdict":
        """One verdict for several that must all hold."""
        if cls.REFUTED in verdicts:
            return cls.REFUTED
        return cls.UNDECIDED if cls.UNDECIDED in verdicts or not verdicts else cls.HOLDS


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of evidence: what was measured, the interval in which it may lie given its uncertainty, and the range
    that is allowed. `bound` is the figure the range is drawn around; `kind` says by what it is decided.

    A NaN among measured and interval leaves it undecided. **Raises** `ValueError` for numbers that are none, an
    interval or a range whose ends are swapped, and a measured number outside its interval.
    """

    measured: float
    interval: tuple[float, float]
    bound: float
    allowed: tuple[float, float]
    measured_text: str
    bound_text: str
    kind: Kind = "bound"

    def __post_init__(self):
        for name in ("measured", "bound"):
            object.__setattr__(self, name, as_number(name, getattr(self, name)))
        for name in ("interval", "allowed"):
            ends = as_numbers(name, getattr(self, name))
            if ends.shape != (2,) or ends[0] > ends[1]:
                raise ValueError(f"{name} must be two numbers in order, got {describe(getattr(self, name))}.")
            object.__setattr__(self, name, (float(ends[0]), float(ends[1])))
        if self.measured < self.interval[0] or self.measured > self.interval[1]:
            raise ValueError(f"measured must lie in its interval {list(self.interval)}, got {self.measured}.")
        for name in ("measured_text", "bound_text"):
            check_text(name, getattr(self, name))
        choice("kind", self.kind, get_args(Kind))

    @property
    def verdict(self) -> Verdict:
        (low, high), (least, most) = self.interval, self.allowed
        if math.isnan(self.measured) or math.isnan(low) or math.isnan(high):
            return Verdict.UNDECIDED
        if least <= low and high <= most:
            return Verdict.HOLDS
        return Verdict.REFUTED if high < least or low > most else Verdict.UNDECIDED


def identity(error: Num[ArrayLike, "..."] | Sequence[Any], at_most: Real[ArrayLike, ""]) -> Row:
    """The largest absolute entry of an error must not exceed a bound derived from the tolerances. An infinite error is
    refuted, whatever the bound; NaN is undecided, because nothing was measured.

    **Raises** `ValueError` for an error without entries and a bound that is negative or NaN.
    """
    error, at_most = as_numbers("error", error, "biufc"), as_number("at_most", at_most)
    if error.size == 0:
        raise ValueError(f"error must have at least one entry, got shape {error.shape}.")
    check_range("at_most", at_most, least=0, finite=False)
    wide = error.astype(np.result_type(error, float))  # the smallest integer has no absolute value of its own type
    measured = math.nan if np.isnan(wide).any() else float(np.max(np.abs(wide)))  # |∞ + i NaN| would be infinite
    allowed = (0.0, min(at_most, sys.float_info.max))
    return Row(measured, (measured, measured), at_most, allowed, f"{measured:.2g}", f"≤ {at_most:.3g}", "identity")


@checked
def limit(
    parameter: Real[ArrayLike, " n"],
    error: Real[ArrayLike, " n"],
    order: Real[ArrayLike, ""],
    tolerance: Real[ArrayLike, ""] = 0.1,
) -> Row:
    """An error must fall with the predicted order as a parameter goes to zero: the 95 % interval of the fitted slope,
    by Student's t with n − 2 degrees of freedom, must lie within `tolerance` of the order.

    The interval speaks of the scatter about a straight line; a curve that bends as a whole shows in it only in part.
    **Raises** `ValueError` for fewer than four values, parameters that are not positive or all equal, and negative
    errors.
    """
    predicted, within = float(np.asarray(order)), float(np.asarray(tolerance))
    check_range("order", predicted)
    check_range("tolerance", within, above=0)
    if np.size(parameter) < 4:
        raise ValueError(f"parameter must have at least four values for a limit, got {np.size(parameter)}.")
    fitted, standard_error = fit_order(parameter, error)
    half = float(scipy.special.stdtrit(np.size(parameter) - 2, 0.975)) * standard_error
    return Row(
        fitted,
        (fitted - half, fitted + half),
        predicted,
        (predicted - within, predicted + within),
        f"order {fitted:.3f} ± {half:.3f}",
        f"order {predicted:g} ± {within:g}",
        "limit",
    )


def one_sided(
    values: Real[ArrayLike, "..."] | Sequence[Any],
    *,
    at_least: Real[ArrayLike, ""] | None = None,
    at_most: Real[ArrayLike, ""] | None = None,
) -> Row:
    """Every value must lie on one side of a bound: the worst one is shown.

    NaN among the values, and a worst value that is infinite on the good side, leave it undecided: what diverged proves
    nothing. **Raises** `ValueError` for no values, a bound that is not finite, or unless exactly one bound is given.
    """
    values = as_numbers("values", values).astype(float)
    if values.size == 0:
        raise ValueError(f"values must have at least one entry, got shape {values.shape}.")
    side, bound = _side(at_least, at_most)
    check_range(side, bound)
    measured = float(np.min(values) if side == "at_least" else np.max(values))
    diverged = measured == (math.inf if side == "at_least" else -math.inf)
    interval = (math.nan, math.nan) if diverged else (measured, measured)
    return _bounded(measured, interval, side, bound, f"{measured:.3g}", "bound")


def proportion(
    hits: Bool[ArrayLike, "..."] | Sequence[Any],
    *,
    at_least: Real[ArrayLike, ""] | None = None,
    at_most: Real[ArrayLike, ""] | None = None,
) -> Row:
    """The share of independent trials that are hits: its exact 95 % interval (Clopper and Pearson's) must lie on one
    side of a bound. **Raises** `ValueError` for no trials, hits that are no truth values, a bound outside [0, 1], or
    unless exactly one bound is given."""
    hits = np.ravel(np.asarray(hits))
    if hits.dtype != bool or hits.size == 0:
        raise ValueError(f"hits must be truth values, one a trial, got {describe(hits)}.")
    side, bound = _side(at_least, at_most)
    check_range(side, bound, least=0, most=1)
    low, high = scipy.stats.binomtest(int(hits.sum()), hits.size).proportion_ci(0.95, "exact")
    text = f"{hits.sum()}/{hits.size} [{low:.3g}, {high:.3g}]"
    return _bounded(float(hits.mean()), (float(low), float(high)), side, bound, text, "statistic")


def _side(at_least: Any, at_most: Any) -> tuple[str, float]:
    if (at_least is None) == (at_most is None):
        raise ValueError("exactly one of at_least and at_most must be given.")
    side, bound = ("at_most", at_most) if at_least is None else ("at_least", at_least)
    return side, as_number(side, bound)


def _bounded(measured: float, interval: tuple[float, float], side: str, bound: float, text: str, kind: Kind) -> Row:
    if side == "at_least":
        return Row(measured, interval, bound, (bound, math.inf), text, f"≥ {bound:.3g}", kind)
    return Row(measured, interval, bound, (-math.inf, bound), text, f"≤ {bound:.3g}", kind)


def statistic(
    samples: Real[ArrayLike, "..."] | Sequence[Any],
    *,
    at_least: Real[ArrayLike, ""] | None = None,
    at_most: Real[ArrayLike, ""] | None = None,
    quantile: float | None = None,
) -> Row:
    """The mean of independent samples, or a quantile: its 95 % confidence interval (Student's, or the binomial one)
    must lie on one side of a bound.

    A NaN among the samples leaves it undecided; an infinite one too, unless a quantile is taken. Where some are
    infinite, the quantile is one of the samples rather than between two.

    **Raises** `ValueError` for fewer than three samples, a bound that is NaN, a quantile outside (0, 1), or unless
    exactly one of `at_least`, `at_most` is given.
    """
    values = np.ravel(as_numbers("samples", samples).astype(float))
    if values.size < 3:
        raise ValueError(f"a statistic needs at least three samples, got {values.size}.")
    side, bound = _side(at_least, at_most)
    check_range(side, bound, finite=False)
    if quantile is not None:
        quantile = as_number("quantile", quantile)
        check_range("quantile", quantile, above=0, below=1)
    if np.isnan(values).any():
        measured = low = high = math.nan  # which a quantile would pass over
    elif quantile is None:
        measured = float(values.mean())
        half = float(scipy.special.stdtrit(values.size - 1, 0.975)) * values.std(ddof=1) / math.sqrt(values.size)
        low, high = measured - half, measured + half
    else:
        method = "inverted_cdf" if np.isinf(values).any() else "linear"  # ∞ − ∞ has no value in between
        measured = float(np.quantile(values, quantile, method=method))
        test = scipy.stats.quantile_test(values, q=measured, p=quantile)  # pyright: ignore[reportArgumentType]
        low, high = test.confidence_interval(0.95)
    text = f"{measured:.3g} [{low:.3g}, {high:.3g}]"
    return _bounded(measured, (float(low), float(high)), side, bound, text, "statistic")
