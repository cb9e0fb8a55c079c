"""Claims: theorems turned into something that can fail.

A claim has a check, which measures; what it measured is its `Evidence`: rows that must hold, rows of a control that
must be rejected, and the arrays behind them. Table, JSON, figure and report are all made from that evidence.
"""

import dataclasses
import enum
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, ArrayLike, Key, Real
from scipy.special import stdtrit

from .metrics import fit_order

Kind = Literal["identity", "limit", "statistic"]
Scale = Literal["smoke", "laptop", "paper"]
T = TypeVar("T")


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
    """One line of evidence, made by `identity`, `limit` or `statistic`: what was measured, the interval in which it
    may lie given its uncertainty, and the range that is allowed. `bound` is the figure the range is drawn around."""

    measured: float
    interval: tuple[float, float]
    bound: float
    allowed: tuple[float, float]
    measured_text: str
    bound_text: str

    @property
    def verdict(self) -> Verdict:
        (low, high), (least, most) = self.interval, self.allowed
        if math.isnan(low) or math.isnan(high):
            return Verdict.UNDECIDED
        if least <= low and high <= most:
            return Verdict.HOLDS
        return Verdict.REFUTED if high < least or low > most else Verdict.UNDECIDED


def identity(error: Real[ArrayLike, "..."], at_most: float) -> Row:
    """The largest absolute entry of an error must not exceed a bound derived from the tolerances. An infinite error is
    refuted; NaN is undecided, for nothing was measured."""
    measured = float(np.max(np.abs(np.asarray(error))))
    return Row(measured, (measured, measured), at_most, (0.0, at_most), f"{measured:.2g}", f"≤ {at_most:.3g}")


def limit(parameter: Real[ArrayLike, " n"], error: Real[ArrayLike, " n"], order: float, tolerance: float = 0.1) -> Row:
    """An error must fall with the predicted order as a parameter goes to zero: the 95 % interval of the fitted slope,
    by Student's t with n − 2 degrees of freedom, must lie within `tolerance` of the order.

    The interval speaks of the scatter about a straight line; a curve that bends as a whole shows in it only in part.
    **Raises** `ValueError` for fewer than four values.
    """
    if np.size(parameter) < 4:
        raise ValueError(f"parameter must have at least four values for a limit, got {np.size(parameter)}.")
    fitted, standard_error = fit_order(parameter, error)
    half = float(stdtrit(np.size(parameter) - 2, 0.975)) * standard_error
    return Row(
        fitted,
        (fitted - half, fitted + half),
        order,
        (order - tolerance, order + tolerance),
        f"order {fitted:.3f} ± {half:.3f}",
        f"order {order:g} ± {tolerance:g}",
    )


def statistic(
    samples: Real[ArrayLike, "..."],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    quantile: float | None = None,
) -> Row:
    """The mean of independent samples, or a quantile: its 95 % confidence interval (Student's, or the binomial one)
    must lie on one side of a bound.

    **Raises** `ValueError` for fewer than three samples, or unless exactly one of `at_least`, `at_most` is given.
    """
    from scipy import stats  # takes half a second, which the other kinds need not wait for

    values = np.ravel(np.asarray(samples, float))
    if values.size < 3:
        raise ValueError(f"a statistic needs at least three samples, got {values.size}.")
    if (at_least is None) == (at_most is None):
        raise ValueError("exactly one of at_least and at_most must be given.")
    if quantile is None:
        measured = float(values.mean())
        half = stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size)
        low, high = measured - half, measured + half
    else:
        measured = float(np.quantile(values, quantile))
        test = stats.quantile_test(values, q=measured, p=quantile)  # pyright: ignore[reportArgumentType]
        low, high = test.confidence_interval(0.95)
    text = f"{measured:.3g} [{low:.3g}, {high:.3g}]"
    interval = (float(low), float(high))
    if at_least is not None:
        return Row(measured, interval, at_least, (at_least, math.inf), text, f"≥ {at_least:.3g}")
    assert at_most is not None
    return Row(measured, interval, at_most, (-math.inf, at_most), text, f"≤ {at_most:.3g}")


@dataclasses.dataclass(frozen=True)
class Erratum:
    """A statement that is misprinted or false as published: `where`, as `printed`, as `corrected`, and the measured
    figures that decide between the two, with the correction and as printed."""

    where: str
    printed: str
    corrected: str
    error_corrected: str
    error_printed: str


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a check measured.

    `rows`: each by name, the most telling first; all must hold. `control`: the same checks against a prediction that is
    wrong in one place; all must be refuted. `panels`: the arrays behind them, one picture each (see `panel`,
    `heatmap`). `remarks`: findings that no bound expresses. `errata`: published statements that it decides against.
    """

    rows: Mapping[str, Row]
    control: Mapping[str, Row]
    panels: Sequence[xr.Dataset] = ()
    remarks: Sequence[str] = ()
    errata: Sequence[Erratum] = ()

    @property
    def verdict(self) -> Verdict:
        return Verdict.all([row.verdict for row in self.rows.values()])

    @property
    def control_rejected(self) -> bool:
        return bool(self.control) and all(row.verdict is Verdict.REFUTED for row in self.control.values())

    @property
    def decisive(self) -> Row:
        """The row that stands for all in the table: the first that does not hold, else the first."""
        rows = list(self.rows.values())
        return next((row for row in rows if row.verdict is not Verdict.HOLDS), rows[0])


def panel(
    title: str,
    x: tuple[str, Real[ArrayLike, " n"]],
    *,
    y: str = "",
    predicted: Mapping[str, ArrayLike] | None = None,
    observed: Mapping[str, ArrayLike] | None = None,
    control: Mapping[str, ArrayLike] | None = None,
    marks: Mapping[str, float] | None = None,
    log: str = "",
) -> xr.Dataset:
    """One picture of evidence: curves over a common axis `x = (label, values)`, as a labelled dataset.

    `predicted`, `observed` and `control` map a curve's label to its values, shape `(n,)` or `(n, lines)`; `marks`
    are places on the axis, each with a word that stands to the right of it; `log` names the logarithmic axes, `"x"`,
    `"y"` or `"xy"`.
    """
    name, values = x
    curves = {}
    roles = {"predicted": predicted, "observed": observed, "control": control}
    for role, label, curve in ((r, k, v) for r, group in roles.items() for k, v in (group or {}).items()):
        array = np.asarray(curve)
        dims = (name,) if array.ndim == 1 else (name, f"{role} {label} line")
        curves[f"{role}: {label}"] = xr.Variable(dims, array, {"role": role, "label": label})
    attributes = {"title": title, "y": y, "log": log, "x": name, "marks": dict(marks or {})}
    return xr.Dataset(curves, {name: np.asarray(values)}, attributes)


def heatmap(
    title: str,
    x: tuple[str, ArrayLike | Sequence[Any]],
    y: tuple[str, ArrayLike | Sequence[Any]],
    z: ArrayLike | Sequence[Sequence[float]],
    *,
    z_label: str = "",
    limits: tuple[float, float] | None = None,
    log: str = "",
) -> xr.Dataset:
    """One picture of evidence: `z`, shape `(ny, nx)`, over two axes `(label, values)` of numbers or words.

    Cells are drawn of equal size, whatever the spacing of the axes. `limits` fixes the colour scale, so that maps side
    by side compare; `log="z"` makes it logarithmic. **Raises** `ValueError` for two axes of one label.
    """
    (x_name, x_values), (y_name, y_values) = x, y
    if x_name == y_name:
        raise ValueError(f"x and y must have different labels, got {x_name!r} for both.")
    variable = xr.Variable((y_name, x_name), np.asarray(z), {"role": "map", "label": z_label})
    attributes = {"title": title, "x": x_name, "y": y_name, "log": log}
    coordinates = {y_name: np.asarray(y_values), x_name: np.asarray(x_values)}
    return xr.Dataset({f"map: {z_label}": variable}, coordinates, attributes | ({"limits": limits} if limits else {}))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Under which conditions a claim is checked. Claims draw all their randomness from `key` and `rng`."""

    scale: Scale = "laptop"
    seed: int = 0
    corpus: str = ""
    corpus_name: str = ""

    @property
    def key(self) -> Key[Array, ""]:
        return jax.random.key(self.seed)

    @property
    def rng(self) -> np.random.Generator:
        """For fixed data: drawn on the host, it compiles nothing."""
        return np.random.default_rng(self.seed)

    @property
    def dtype(self) -> Any:
        return jnp.result_type(float)

    def pick(self, *, smoke: T, laptop: T, paper: T) -> T:
        """The value for this scale."""
        return {"smoke": smoke, "laptop": laptop, "paper": paper}[self.scale]

    def bound(self, float64: T, float32: T) -> T:
        """The bound for the precision in use. Claims are made in float64; the other says what float32 resolves."""
        return float64 if self.dtype == jnp.float64 else float32


@dataclasses.dataclass(frozen=True)
class Claim:
    """A theorem turned into something that can fail. Made by the decorator `claim`."""

    name: str
    paper: str
    kind: Kind
    statement: str
    source: str
    assumptions: tuple[str, ...]
    control: str
    check: Callable[[Setting], Evidence]

    def __reduce__(self):
        """Travels to another process as the name it has in its module."""
        return _find, (self.check.__module__, self.check.__qualname__)


def _find(module: str, name: str) -> Claim:
    return getattr(importlib.import_module(module), name)


def claim(
    name: str,
    *,
    paper: str,
    kind: Kind,
    statement: str,
    source: str,
    assumptions: Sequence[str],
    control: str,
) -> Callable[[Callable[[Setting], Evidence]], Claim]:
    """Turns a function `(Setting) -> Evidence` into a `Claim`.

    `name` is `paper.claim`, as in `joma.exp_invariant`; `statement` what is claimed, in one or two sentences; `source`
    theorem or equation; `control` what the control gets wrong.
    """
    if kind not in ("identity", "limit", "statistic"):
        raise ValueError(f"kind must be identity, limit or statistic, got {kind!r}.")
    if "." not in name:
        raise ValueError(f"name must read paper.claim, as in joma.exp_invariant, got {name!r}.")
    return lambda check: Claim(name, paper, kind, statement, source, tuple(assumptions), control, check)
