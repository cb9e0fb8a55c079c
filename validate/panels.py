"""The pictures of evidence, as labelled datasets: curves over a common axis, and maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import ArrayLike

from .._checks import choice, describe
from ._given import as_number, as_numbers, check_label, check_text, on_host


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
    check_text("title", title)
    check_text("y", y)
    name, values = as_axis("x", x)
    choice("log", log, ("", "x", "y", "xy"))
    curves = {}
    roles = {"predicted": predicted, "observed": observed, "control": control}
    for role, group in roles.items():
        if group is not None and not isinstance(group, Mapping):
            raise ValueError(f"{role} must map labels to curves, got {describe(group)}.")
    if not any(roles.values()):
        raise ValueError("predicted, observed or control must have at least one curve, got none.")
    for role, label, curve in ((r, k, v) for r, group in roles.items() for k, v in (group or {}).items()):
        check_label(f"labels of {role}", label)
        array = as_numbers(f"{role}[{label!r}]", curve)
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
        check_text("words of marks", word)
    places = {word: as_number(f"marks[{word!r}]", place) for word, place in (marks or {}).items()}
    attributes = {"title": title, "y": y, "log": log, "x": name, "marks": places}
    return xr.Dataset(curves, {name: values}, attributes)


def as_axis(argument: str, axis: Any, words: bool = False) -> tuple[str, np.ndarray]:
    """The label and the values of an axis."""
    if not (isinstance(axis, tuple) and len(axis) == 2 and isinstance(axis[0], str)):
        raise ValueError(f"{argument} must be a label and values, ('t', values), got {describe(axis)}.")
    label, values = axis
    check_label(f"label of {argument}", label)
    array = on_host(argument, values)
    if words and array.dtype.kind == "U":
        values = array
        for word in array.flat:
            check_text(f"words of {argument}", str(word))
    else:
        values = as_numbers(argument, values)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{argument} must have values of shape (n,), n ≥ 1, got {values.shape}.")
    return label, values


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
    check_text("title", title)
    check_label("z_label", z_label)
    (x_name, x_values), (y_name, y_values) = as_axis("x", x, words=True), as_axis("y", y, words=True)
    choice("log", log, ("", "z"))
    cells = as_numbers("z", z)
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
        ends = as_numbers("limits", limits)
        if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] >= ends[1] or (log and ends[0] <= 0):
            least = ", above 0 for a logarithmic scale" if log else ""
            raise ValueError(f"limits must be two finite numbers in order{least}, got {describe(limits)}.")
        attributes["limits"] = (float(ends[0]), float(ends[1]))
    return xr.Dataset({f"map: {z_label}": variable}, {y_name: y_values, x_name: x_values}, attributes)
