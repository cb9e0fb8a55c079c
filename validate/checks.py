"""Checks: what was observed against a law and against wrong laws, by one measure of error.

Each check returns `Evidence`: a row for each law, a row of the control for each wrong law, made by the same function
with the same bound, and, where it is told the axis, the picture. `evidence` joins several.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import ArrayLike, Bool, Num, Real

from .._checks import check_callable, check_range, describe
from ..dynamics import default_tolerances
from ._given import as_number, as_numbers, check_label
from .claim import Erratum, Evidence
from .panels import as_axis, panel
from .rows import Row, identity, limit, one_sided, proportion, statistic

Values = Num[ArrayLike, "..."] | Sequence[Any]
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
Axis = tuple[str, Any]


def rounding(n: Real[ArrayLike, ""]) -> float:
    """`n` units of rounding of JAX's default precision: 2.2e-16 n in float64, 1.2e-7 n in float32."""
    check_range("n", units := as_number("n", n), above=0)
    return float(units * jnp.finfo(jnp.result_type(float)).eps)


def solver(k: Real[ArrayLike, ""]) -> float:
    """`k` times the default `rtol` of `solve` in JAX's default precision: 1e-10 k in float64, 1e-5 k in float32."""
    check_range("k", times := as_number("k", k), above=0)
    return float(times * default_tolerances(jnp.result_type(float))[0])


def scaled(observed: np.ndarray, law: np.ndarray) -> np.ndarray:
    """Errors over the largest entry of the law."""
    return np.asarray((observed - law) / np.max(np.abs(law), initial=0.0))


def relative(observed: np.ndarray, law: np.ndarray) -> np.ndarray:
    """Errors over the law, entry by entry."""
    return np.asarray((observed - law) / law)


def absolute(observed: np.ndarray, law: np.ndarray) -> np.ndarray:
    """Errors as they are."""
    return np.asarray(observed - law)


def norms(observed: np.ndarray, law: np.ndarray) -> np.ndarray:
    """`‖observed − law‖ / ‖law‖` over all axes but the first."""
    over = tuple(range(1, observed.ndim))
    size = lambda x: np.sqrt(np.sum(np.abs(x) ** 2, axis=over))
    return np.asarray(size(observed - law) / size(law))


def agrees(
    name: str,
    x: Axis | None,
    observed: Values,
    law: Values | Mapping[str, Values],
    wrong: Mapping[str, Values] = {},
    *,
    within: Real[ArrayLike, ""],
    measure: Measure = scaled,
    y: str = "",
    log: str = "",
) -> Evidence:
    """Each law is met within an error, and each wrong law is not.

    `x`: the axis of the picture, `(label, values)`, along the first axis of `observed`; `None` draws none. `law`:
    values that broadcast against `observed`, or several by label. `measure`: `(observed, law)` to errors, of which the
    largest counts: `scaled`, `relative`, `absolute`, `norms`, or a function of your own.

    **Raises** `ValueError` for what is no number or does not fit.
    """
    seen, bound = as_numbers("observed", observed, "biufc"), _within(within)
    laws, others = _laws(name, "law", law, seen), _laws(name, "wrong", wrong, seen)
    row = lambda label, values: identity(_errors(measure, label, seen, values), bound)
    rows = {_named(name, label, laws): row(label, values) for label, values in laws.items()}
    control = {f"{name}: {label}": row(label, values) for label, values in others.items()}
    return Evidence(rows, control, _curves(name, x, {"observed": seen}, laws, others, y=y, log=log))


def vanishes(
    name: str,
    residual: Values | Mapping[str, Values],
    wrong: Mapping[str, Values] = {},
    *,
    within: Real[ArrayLike, ""],
    x: Axis | None = None,
    y: str = "",
    log: str = "",
) -> Evidence:
    """What a law says is zero is within `within` of it, sign aside, and what a wrong law says is not.

    **Raises** `ValueError` for what is no number or does not fit.
    """
    bound = _within(within)
    rows, control = _both(name, "residual", residual, wrong, lambda values: identity(values, bound), "biufc")
    size = lambda given: {label: np.abs(np.asarray(values)) for label, values in given.items()}
    several = _labelled("residual", residual, "residual")
    return Evidence(rows, control, _curves(name, x, size(several), {}, size(wrong), y=y, log=log))


def converges(
    name: str,
    x: Axis,
    observed: Values,
    law: Values | Mapping[str, Values],
    wrong: Mapping[str, Values] = {},
    *,
    order: Real[ArrayLike, ""] = 1.0,
    tolerance: Real[ArrayLike, ""] = 0.1,
    measure: Measure = norms,
) -> Evidence:
    """The error of each law falls with `order` as the parameter `x = (label, values)` goes to zero; that of each wrong
    law does not. See `agrees`; `observed` has one entry along its first axis for each value of the parameter.

    The 95 % interval of the fitted order must lie within `tolerance` of `order`.

    **Raises** `ValueError` for fewer than four values, and for what is no number or does not fit.
    """
    (label, parameter), seen = as_axis("x", x), as_numbers("observed", observed, "biufc")
    if seen.shape[:1] != parameter.shape:
        raise ValueError(f"observed must have shape ({len(parameter)}, …), one entry a {label}, got {seen.shape}.")
    laws, others = _laws(name, "law", law, seen), _laws(name, "wrong", wrong, seen)

    def errors(values: np.ndarray, which: str) -> np.ndarray:
        found = np.abs(_errors(measure, which, seen, values))
        return found.reshape(len(found), -1).max(axis=1)

    right = {one: errors(values, one) for one, values in laws.items()}
    wrongly = {one: errors(values, one) for one, values in others.items()}
    return scales(
        f"{name}, order in the {label}",
        x,
        right,
        wrongly,
        order=order,
        tolerance=tolerance,
        y=f"error of {name}",
    )


def scales(
    name: str,
    x: Axis,
    values: Values | Mapping[str, Values],
    wrong: Mapping[str, Values] = {},
    *,
    order: Real[ArrayLike, ""],
    tolerance: Real[ArrayLike, ""] = 0.1,
    y: str = "",
) -> Evidence:
    """Each of the values, one for each value of the parameter `x = (label, values)`, is proportional to its power
    `order`; the wrong ones are not. The 95 % interval of the fitted order must lie within `tolerance` of `order`.

    **Raises** `ValueError` for fewer than four values, values that are not positive, and what does not fit.
    """
    _, parameter = as_axis("x", x)
    rows, control = _both(name, "values", values, wrong, lambda found: limit(parameter, found, order, tolerance))
    observed = _labelled("values", values, "observed")
    first, power = np.asarray(next(iter(observed.values())))[0], as_number("order", order)
    predicted = {f"order {power:g}": first * (parameter / parameter[0]) ** power}
    return Evidence(rows, control, _curves(name, x, observed, predicted, wrong, y=y, log="xy"))


def at_most(
    name: str,
    values: Values | Mapping[str, Values],
    bound: Real[ArrayLike, ""],
    wrong: Mapping[str, Values] = {},
    *,
    x: Axis | None = None,
    y: str = "",
    log: str = "",
) -> Evidence:
    """Every value is at most `bound`; among the wrong ones, made by another theory or without what it asks, one is not.

    **Raises** `ValueError` for what is no number, and for wrong values that the right ones imply.
    """
    return _one_sided(name, values, "at_most", bound, wrong, x, y, log)


def at_least(
    name: str,
    values: Values | Mapping[str, Values],
    bound: Real[ArrayLike, ""],
    wrong: Mapping[str, Values] = {},
    *,
    x: Axis | None = None,
    y: str = "",
    log: str = "",
) -> Evidence:
    """Every value is at least `bound`; among the wrong ones, made by another theory or without what it asks, one is
    not. **Raises** `ValueError` for what is no number, and for wrong values that the right ones imply."""
    return _one_sided(name, values, "at_least", bound, wrong, x, y, log)


def mean(
    name: str,
    samples: Values,
    wrong: Mapping[str, Values] = {},
    *,
    at_least: Real[ArrayLike, ""] | None = None,
    at_most: Real[ArrayLike, ""] | None = None,
) -> Evidence:
    """The mean of independent samples lies on one side of a bound with its 95 % interval, Student's; that of the wrong
    ones lies on the other.

    **Raises** `ValueError` for fewer than three samples, unless exactly one bound is given, and for wrong samples that
    the right ones imply.
    """
    _check_not_implied(name, samples, wrong)
    row = lambda x: statistic(x, at_least=at_least, at_most=at_most)
    return Evidence(*_both(name, "samples", samples, wrong, row))


def quantile(
    name: str,
    samples: Values,
    q: Real[ArrayLike, ""],
    wrong: Mapping[str, Values] = {},
    *,
    at_least: Real[ArrayLike, ""] | None = None,
    at_most: Real[ArrayLike, ""] | None = None,
) -> Evidence:
    """A quantile of independent samples lies on one side of a bound with its 95 % interval, the binomial one; that of
    the wrong ones lies on the other. **Raises** `ValueError` as `mean` does, and for `q` outside (0, 1)."""
    _check_not_implied(name, samples, wrong)
    row = lambda x: statistic(x, at_least=at_least, at_most=at_most, quantile=as_number("q", q))
    return Evidence(*_both(name, "samples", samples, wrong, row))


def count(
    name: str,
    hits: Bool[ArrayLike, "..."] | Sequence[Any],
    wrong: Mapping[str, Any] = {},
    *,
    at_least: Real[ArrayLike, ""] | None = None,
    at_most: Real[ArrayLike, ""] | None = None,
) -> Evidence:
    """The share of independent trials that are hits lies on one side of a bound with its exact 95 % interval; that of
    the wrong ones lies on the other.

    **Raises** `ValueError` for hits that are no truth values, unless exactly one bound is given, and for wrong hits
    that the right ones imply.
    """
    _check_not_implied(name, hits, wrong)
    row = lambda x: proportion(x, at_least=at_least, at_most=at_most)
    return Evidence(*_both(name, "hits", hits, wrong, row, "b"))


def evidence(
    *parts: Evidence,
    panels: Sequence[xr.Dataset] = (),
    remarks: Sequence[str] = (),
    errata: Sequence[Erratum] = (),
) -> Evidence:
    """Several checks as one: all rows must hold, and all rows of the control must be refuted.

    `panels` are pictures beside those of the checks. **Raises** `ValueError` for two rows of one name, and for checks
    none of which has a row, or a wrong law.
    """
    for part in parts:
        if not isinstance(part, Evidence):
            raise ValueError(f"parts must be checks, such as agrees(…), got {describe(part)}.")
    rows, control = _joined(parts, "rows"), _joined(parts, "control")
    if not rows:
        raise ValueError("a check must have a law: no row would be left that must hold.")
    if not control:
        raise ValueError("a check must have a wrong law: a claim without a control proves nothing.")
    several = [*parts, Evidence({}, {}, panels, remarks, errata)]
    every = lambda which: [thing for part in several for thing in getattr(part, which)]
    return Evidence(rows, control, every("panels"), every("remarks"), every("errata"))


def _joined(parts: Sequence[Evidence], which: str) -> dict[str, Row]:
    joined: dict[str, Row] = {}
    for part in parts:
        for name, row in getattr(part, which).items():
            if name in joined:
                raise ValueError(f"checks must have names of their own, got two of {name!r}.")
            joined[name] = row
    return joined


def _labelled(argument: str, given: Any, single: str) -> dict[str, Any]:
    """By label; what has none gets `single`."""
    if not isinstance(given, Mapping):
        return {single: given}
    for label in given:
        check_label(f"labels of {argument}", label)
    return dict(given)


def _laws(name: str, argument: str, given: Any, seen: np.ndarray) -> dict[str, np.ndarray]:
    check_label("name", name)
    if argument == "wrong" and not isinstance(given, Mapping):
        raise ValueError(f"wrong must map labels to predictions, got {describe(given)}.")
    found = {}
    for label, values in _labelled(argument, given, "").items():
        array = as_numbers(f"{argument} {label}".rstrip(), values, "biufc")
        try:
            found[label] = np.broadcast_to(array, seen.shape)
        except ValueError as error:
            shapes = f"must fit observed of shape {seen.shape}, got {array.shape}"
            raise ValueError(f"{argument} {label}".rstrip() + f" {shapes}.") from error
    return found


def _named(name: str, label: str, among: Mapping[str, Any]) -> str:
    return f"{name}: {label}" if label and len(among) > 1 else name


def _errors(measure: Measure, label: str, seen: np.ndarray, law: np.ndarray) -> np.ndarray:
    check_callable("measure", measure)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what diverged is in the row
        return as_numbers(f"errors of {label or 'the law'}", measure(seen, law), "biufc")


def _within(given: Any) -> float:
    check_range("within", bound := as_number("within", given), least=0)
    return bound


def _both(
    name: str,
    argument: str,
    values: Any,
    wrong: Mapping[str, Any],
    row: Callable[[np.ndarray], Row],
    kinds: str = "biuf",
) -> tuple[dict[str, Row], dict[str, Row]]:
    """The row of the values, or of each by its label, and those of the control."""
    check_label("name", name)
    several, others = _labelled(argument, values, ""), _labelled("wrong", wrong, "")
    if not isinstance(wrong, Mapping):
        raise ValueError(f"wrong must map labels to values, got {describe(wrong)}.")
    rows = {_named(name, label, several): row(as_numbers(argument, found, kinds)) for label, found in several.items()}
    return rows, {f"{name}: {label}": row(as_numbers(f"wrong {label}", x, kinds)) for label, x in others.items()}


def _one_sided(
    name: str, values: Any, side: str, bound: Any, wrong: Mapping[str, Any], x: Axis | None, y: str, log: str
) -> Evidence:
    _check_not_implied(name, values, wrong)
    limit_ = as_number("bound", bound)
    check_range("bound", limit_)
    rows, control = _both(name, "values", values, wrong, lambda found: one_sided(found, **{side: limit_}))
    if x is None:
        return Evidence(rows, control)
    line = {f"{side.replace('_', ' ')} {limit_:.3g}": np.full(len(as_axis("x", x)[1]), limit_)}
    return Evidence(rows, control, _curves(name, x, _labelled("values", values, "observed"), line, wrong, y=y, log=log))


def _check_not_implied(name: str, values: Any, wrong: Mapping[str, Any]) -> None:
    """A wrong value that is the right one turned round fails whenever the right one holds: it controls nothing."""
    turned = {"the negative": lambda a: -a, "the inverse": lambda a: 1 / a, "the complement": lambda a: 1 - a}
    for right in _labelled("values", values, "").values():
        a = np.asarray(right)
        for label, other in wrong.items() if isinstance(wrong, Mapping) else ():
            b = np.asarray(other)
            if a.shape != b.shape or a.dtype.kind not in "biuf" or b.dtype.kind not in "biuf" or np.array_equal(a, b):
                continue
            if a.size == 0 or not np.isfinite(a).all():
                continue
            if np.ptp(a.astype(float)) == 0 and float(a.flat[0]).is_integer():  # 0 and 1, say: all, and none
                continue
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                for word, turn in turned.items():
                    if np.array_equal(turn(a.astype(float)), b.astype(float)):
                        raise ValueError(f"{name}: {label} is {word} of what must hold, and so can't but be refuted.")


def _curves(
    title: str,
    x: Axis | None,
    observed: Mapping[str, Any],
    predicted: Mapping[str, Any],
    control: Mapping[str, Any],
    *,
    y: str,
    log: str,
) -> list[xr.Dataset]:
    if x is None:
        return []
    flat = lambda curve: np.asarray(curve).reshape(len(curve), -1) if np.ndim(curve) > 2 else curve
    theory = {label or "theory": flat(curve) for label, curve in predicted.items()}
    seen = {label or "observed": flat(curve) for label, curve in observed.items()}
    return [
        panel(title, x, y=y, log=log, observed=seen, predicted=theory, control={k: flat(v) for k, v in control.items()})
    ]
