"""Claims: theorems turned into something that can fail.

A claim has a check, which measures; what it measured is its `Evidence`: rows that must hold, rows of a control that
must be rejected, and the arrays behind them. Table, JSON, figure and report are all made from that evidence.
"""

import dataclasses
import enum
import hashlib
import importlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, ArrayLike, Key, Num, Real
from scipy.special import stdtrit

from .._checked import checked
from .._checks import check_callable, check_range, choice, describe, integer, strings
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
    may lie given its uncertainty, and the range that is allowed. `bound` is the figure the range is drawn around.

    A NaN among measured and interval leaves it undecided. **Raises** `ValueError` for numbers that are none, an
    interval or a range whose ends are swapped, and a measured number outside its interval.
    """

    measured: float
    interval: tuple[float, float]
    bound: float
    allowed: tuple[float, float]
    measured_text: str
    bound_text: str

    def __post_init__(self):
        for name in ("measured", "bound"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ("interval", "allowed"):
            ends = _numbers(name, getattr(self, name))
            if ends.shape != (2,) or ends[0] > ends[1]:
                raise ValueError(f"{name} must be two numbers in order, got {describe(getattr(self, name))}.")
            object.__setattr__(self, name, (float(ends[0]), float(ends[1])))
        if self.measured < self.interval[0] or self.measured > self.interval[1]:
            raise ValueError(f"measured must lie in its interval {list(self.interval)}, got {self.measured}.")
        for name in ("measured_text", "bound_text"):
            _check_text(name, getattr(self, name))

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
    error, at_most = _numbers("error", error, "biufc"), _number("at_most", at_most)
    if error.size == 0:
        raise ValueError(f"error must have at least one entry, got shape {error.shape}.")
    check_range("at_most", at_most, least=0, finite=False)
    wide = error.astype(np.result_type(error, float))  # the smallest integer has no absolute value of its own type
    measured = math.nan if np.isnan(wide).any() else float(np.max(np.abs(wide)))  # |∞ + i NaN| would be infinite
    allowed = (0.0, min(at_most, sys.float_info.max))
    return Row(measured, (measured, measured), at_most, allowed, f"{measured:.2g}", f"≤ {at_most:.3g}")


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
    half = float(stdtrit(np.size(parameter) - 2, 0.975)) * standard_error
    return Row(
        fitted,
        (fitted - half, fitted + half),
        predicted,
        (predicted - within, predicted + within),
        f"order {fitted:.3f} ± {half:.3f}",
        f"order {predicted:g} ± {within:g}",
    )


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
    from scipy import stats  # takes half a second, which the other kinds need not wait for

    values = np.ravel(_numbers("samples", samples).astype(float))
    if values.size < 3:
        raise ValueError(f"a statistic needs at least three samples, got {values.size}.")
    if (at_least is None) == (at_most is None):
        raise ValueError("exactly one of at_least and at_most must be given.")
    side, bound = ("at_most", at_most) if at_least is None else ("at_least", at_least)
    bound = _number(side, bound)
    check_range(side, bound, finite=False)
    if quantile is not None:
        quantile = _number("quantile", quantile)
        check_range("quantile", quantile, above=0, below=1)
    if np.isnan(values).any():
        measured = low = high = math.nan  # which a quantile would pass over
    elif quantile is None:
        measured = float(values.mean())
        half = stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size)
        low, high = measured - half, measured + half
    else:
        method = "inverted_cdf" if np.isinf(values).any() else "linear"  # ∞ − ∞ has no value in between
        measured = float(np.quantile(values, quantile, method=method))
        test = stats.quantile_test(values, q=measured, p=quantile)  # pyright: ignore[reportArgumentType]
        low, high = test.confidence_interval(0.95)
    text = f"{measured:.3g} [{low:.3g}, {high:.3g}]"
    interval = (float(low), float(high))
    if at_least is not None:
        return Row(measured, interval, bound, (bound, math.inf), text, f"≥ {bound:.3g}")
    return Row(measured, interval, bound, (-math.inf, bound), text, f"≤ {bound:.3g}")


@dataclasses.dataclass(frozen=True)
class Erratum:
    """A statement that is misprinted or false as published: `where`, as `printed`, as `corrected`, and the measured
    figures that decide between the two, with the correction and as printed. **Raises** `ValueError` for what is no
    text."""

    where: str
    printed: str
    corrected: str
    error_corrected: str
    error_printed: str

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_text(field.name, getattr(self, field.name))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a check measured.

    `rows`: each by name, the most telling first; all must hold. `control`: the same checks against a prediction that is
    wrong in one place; all must be refuted. `panels`: the arrays behind them, one picture each (see `panel`,
    `heatmap`). `remarks`: findings that no bound expresses. `errata`: published statements that it decides against.

    **Raises** `ValueError` for rows, panels, remarks or errata of another type.
    """

    rows: Mapping[str, Row]
    control: Mapping[str, Row]
    panels: Sequence[xr.Dataset] = ()
    remarks: Sequence[str] = ()
    errata: Sequence[Erratum] = ()

    def __post_init__(self):
        for name, rows in (("rows", self.rows), ("control", self.control)):
            wrong = [rows] if not isinstance(rows, Mapping) else [key for key in rows if not isinstance(key, str)]
            if not wrong:
                wrong = [row for row in rows.values() if not isinstance(row, Row)]
            if wrong:
                made = "identity, limit or statistic"
                raise ValueError(f"{name} must map names to rows made by {made}, got {describe(wrong[0])}.")
        for name, things, kind in (("panels", self.panels, xr.Dataset), ("errata", self.errata, Erratum)):
            several = isinstance(things, Iterable) and not isinstance(things, kind)
            kept = tuple(things) if several else (things,)  # a generator is used up by looking at it
            wrong = [x for x in kept if not isinstance(x, kind)] if several else [things]
            if wrong:
                raise ValueError(f"{name} must be a sequence of {kind.__name__}, got {describe(wrong[0])}.")
            object.__setattr__(self, name, kept)
        for data in self.panels:
            roles = {curve.attrs.get("role") for curve in data.data_vars.values()}
            if not roles or None in roles or not {"title", "x", "y", "log"} <= data.attrs.keys():
                raise ValueError(f"panels must be made by panel or heatmap, got a dataset of {list(data.data_vars)}.")
        object.__setattr__(self, "remarks", strings("remarks", self.remarks))

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
        if not rows:
            raise ValueError("rows must hold at least one row, got none.")
        return next((row for row in rows if row.verdict is not Verdict.HOLDS), rows[0])


def panel(
    title: str,
    x: tuple[str, ArrayLike | Sequence[float]],
    *,
    y: str = "",
    predicted: Mapping[str, ArrayLike | Sequence[Any]] | None = None,
    observed: Mapping[str, ArrayLike | Sequence[Any]] | None = None,
    control: Mapping[str, ArrayLike | Sequence[Any]] | None = None,
    marks: Mapping[str, float] | None = None,
    log: str = "",
) -> xr.Dataset:
    """One picture of evidence: curves over a common axis `x = (label, values)`, as a labelled dataset.

    `predicted`, `observed` and `control` map a curve's label to its values, shape `(n,)` or `(n, lines)`; `marks`
    are places on the axis, each with a word that stands to the right of it; `log` names the logarithmic axes, `"x"`,
    `"y"` or `"xy"`.

    **Raises** `ValueError` for no curve, an axis, a curve or a mark that are no numbers or do not fit, labels that are
    no texts or hold null characters, and one label for two things.
    """
    _check_text("title", title)
    _check_text("y", y)
    name, values = _axis("x", x)
    choice("log", log, ("", "x", "y", "xy"))
    curves = {}
    roles = {"predicted": predicted, "observed": observed, "control": control}
    for role, group in roles.items():
        if group is not None and not isinstance(group, Mapping):
            raise ValueError(f"{role} must map labels to curves, got {describe(group)}.")
    if not any(roles.values()):
        raise ValueError("predicted, observed or control must have at least one curve, got none.")
    for role, label, curve in ((r, k, v) for r, group in roles.items() for k, v in (group or {}).items()):
        _check_label(f"labels of {role}", label)
        array = _numbers(f"{role}[{label!r}]", curve)
        if array.ndim not in (1, 2) or len(array) != len(values) or array.size == 0:
            raise ValueError(
                f"{role}[{label!r}] must have shape ({len(values)},) or ({len(values)}, lines), got {array.shape}."
            )
        dims = (name,) if array.ndim == 1 else (name, f"{role} {label} line")
        if name in (f"{role}: {label}", *dims[1:]):
            raise ValueError(f"x must have another label than the curves and their lines, got {name!r}.")
        curves[f"{role}: {label}"] = xr.Variable(dims, array, {"role": role, "label": label})
    if marks is not None and not isinstance(marks, Mapping):
        raise ValueError(f"marks must map words to places on the axis, got {describe(marks)}.")
    for word in marks or {}:
        _check_text("words of marks", word)
    places = {word: _number(f"marks[{word!r}]", place) for word, place in (marks or {}).items()}
    attributes = {"title": title, "y": y, "log": log, "x": name, "marks": places}
    return xr.Dataset(curves, {name: values}, attributes)


def _axis(argument: str, axis: Any, words: bool = False) -> tuple[str, np.ndarray]:
    """The label and the values of an axis."""
    if not (isinstance(axis, tuple) and len(axis) == 2 and isinstance(axis[0], str)):
        raise ValueError(f"{argument} must be a label and values, ('t', values), got {describe(axis)}.")
    label, values = axis
    _check_label(f"label of {argument}", label)
    array = _on_host(argument, values)
    if words and array.dtype.kind == "U":
        values = array
        for word in array.flat:
            _check_text(f"words of {argument}", str(word))
    else:
        values = _numbers(argument, values)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{argument} must have values of shape (n,), n ≥ 1, got {values.shape}.")
    return label, values


def _on_host(argument: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{argument} must have no mask, which would be ignored: leave out what it hides, or fill it.")
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        if isinstance(error, jax.errors.JAXTypeError):
            raise
        raise ValueError(f"{argument} must be a number or an array of numbers, got {describe(values)}.") from error


def _numbers(argument: str, values: Any, kinds: str = "biuf") -> np.ndarray:
    """Numbers of these kinds as they are: on the host, where float32 as JAX's default narrows nothing."""
    array = _on_host(argument, values)
    if jnp.issubdtype(array.dtype, jnp.floating) and not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)  # bfloat16 and float8, which NumPy and its files do not know
    if array.dtype.kind not in kinds:
        raise ValueError(f"{argument} must be {'real ' * ('c' not in kinds)}numbers, got {describe(values)}.")
    return array


def _number(argument: str, value: Any) -> float:
    array = _numbers(argument, value)
    if array.ndim:
        raise ValueError(f"{argument} must be a number, got {describe(array)}.")
    return float(array)


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
    by side compare; `log="z"` makes it logarithmic.

    **Raises** `ValueError` for two axes of one label, and for values that are no numbers or do not fit. Labels must be
    texts without null characters, `limits` two finite numbers in order, above zero on a logarithmic scale.
    """
    _check_text("title", title)
    _check_label("z_label", z_label)
    (x_name, x_values), (y_name, y_values) = _axis("x", x, words=True), _axis("y", y, words=True)
    choice("log", log, ("", "z"))
    cells = _numbers("z", z)
    if cells.shape != (len(y_values), len(x_values)):
        raise ValueError(f"z must have shape ({len(y_values)}, {len(x_values)}), got {cells.shape}.")
    if log and not (cells > 0).any():
        raise ValueError("z must have an entry above 0 for a logarithmic scale, got none.")
    if x_name == y_name:
        raise ValueError(f"x and y must have different labels, got {x_name!r} for both.")
    if f"map: {z_label}" in (x_name, y_name):
        raise ValueError(f"x and y must have other labels than the map, got 'map: {z_label}'.")
    variable = xr.Variable((y_name, x_name), cells, {"role": "map", "label": z_label})
    attributes: dict[str, Any] = {"title": title, "x": x_name, "y": y_name, "log": log}
    if limits is not None:
        ends = _numbers("limits", limits)
        if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] >= ends[1] or (log and ends[0] <= 0):
            least = ", above 0 for a logarithmic scale" if log else ""
            raise ValueError(f"limits must be two finite numbers in order{least}, got {describe(limits)}.")
        attributes["limits"] = (float(ends[0]), float(ends[1]))
    return xr.Dataset({f"map: {z_label}": variable}, {y_name: y_values, x_name: x_values}, attributes)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Under which conditions a claim is checked. Claims draw all their randomness from `key` and `rng`.

    **Raises** `ValueError` for a scale that there is not, and a seed outside `0 … 2⁶³ − 1`.
    """

    scale: Scale = "laptop"
    seed: int = 0
    corpus: str = ""
    corpus_name: str = ""

    def __post_init__(self):
        choice("scale", self.scale, ("smoke", "laptop", "paper"))
        object.__setattr__(self, "seed", integer("seed", self.seed, least=0, most=2**63 - 1))
        for name in ("corpus", "corpus_name"):
            _check_text(name, getattr(self, name))

    @property
    def corpus_digest(self) -> str:
        """Tells this text from others of the same name."""
        return hashlib.sha256(self.corpus.encode("utf-8", "surrogatepass")).hexdigest()[:32]

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


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\.[A-Za-z_][A-Za-z0-9_]{0,99}")  # a folder has it, too


def _check_name_and_kind(name: str, kind: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"name must read paper.claim, two identifiers as in joma.exp_invariant, got {describe(name)}.")
    choice("kind", kind, ("identity", "limit", "statistic"))


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

    def __post_init__(self):
        _check_name_and_kind(self.name, self.kind)
        check_callable("check", self.check)
        object.__setattr__(self, "assumptions", strings("assumptions", self.assumptions))
        for name in ("paper", "statement", "source", "control"):
            _check_text(name, getattr(self, name))
        for assumption in self.assumptions:
            _check_text("assumptions", assumption)

    def __reduce__(self):
        """Travels to another process as the name it has in its module."""
        return _find, (self.check.__module__, self.check.__qualname__)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str) or text.encode("utf-8", "ignore").decode() != text:
        raise ValueError(f"{name} must be a string without lone surrogates, got {describe(text)}.")


def _check_label(name: str, text: Any) -> None:
    """Labels are names in `evidence.npz`, which end at a null character."""
    _check_text(name, text)
    if "\0" in text:
        raise ValueError(f"{name} must hold no null character, got {describe(text)}.")


def _find(module: str, name: str) -> Claim:
    return getattr(importlib.import_module(module), name)


def claim(
    name: str,
    *,
    paper: str,
    kind: Kind,
    statement: str,
    source: str,
    assumptions: str | Sequence[str],
    control: str,
) -> Callable[[Callable[[Setting], Evidence]], Claim]:
    """Turns a function `(Setting) -> Evidence` into a `Claim`.

    `name` is `paper.claim`, as in `joma.exp_invariant`; `statement` what is claimed, in one or two sentences; `source`
    theorem or equation; `control` what the control gets wrong.

    **Raises** `ValueError` for a name that is not two identifiers, an unknown kind, and what is no text.
    """
    _check_name_and_kind(name, kind)
    return lambda check: Claim(
        name, paper, kind, statement, source, strings("assumptions", assumptions), control, check
    )
