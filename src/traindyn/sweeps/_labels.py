"""The labels of what a sweep returns: the axes that variables have of their own, and the dataset."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
import xarray as xr

from .._checks import describe, strings
from ._chunks import Results
from ._grid import Grid

STATUS = {
    "not_run": -1,
    "ok": 0,
    "not_finite": 1,
    "solve_stopped_early": 2,
    "training_diverged": 3,
    "raised": 4,
}


class Own(eqx.Module):
    """The names that the caller gives to the variables' own axes, and how many values he gives along each."""

    dims: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True)
    coords: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)

    def __init__(self, dims: Any, coords: Any):
        for name, given in (("dims", dims), ("coords", coords)):
            if given is not None and not isinstance(given, Mapping):
                raise ValueError(f"{name} must be a dictionary by names, got {describe(given)}.")
        self.dims = tuple((name, strings(f"dims[{name!r}]", own)) for name, own in (dims or {}).items())
        self.coords = tuple((name, _coordinate(name, values).shape) for name, values in (coords or {}).items())

    def axes_of(self, name: str, leading: str, number: int) -> list[str]:
        """The axes of a variable after those of the sweep."""
        own = dict(self.dims).get(name)
        if own is None:
            first = [leading] if leading else []
            own = first + [f"{name}_{i}" for i in range(len(first), number)]
        if len(own) != number:
            raise ValueError(f"dims must name the {number} axes of {name}, got {list(own)}.")
        return list(own)

    def check(self, variables: Mapping[tuple[str, str], Any], labels: Sequence[str]) -> None:
        """Raises `ValueError` for names that would clash in the dataset, or would be ignored, before anything runs."""
        names = {name for name, _ in variables}
        for unknown in {name for name, _ in self.dims} - names:
            raise ValueError(f"dims must name variables that fn returns ({', '.join(sorted(names))}), got {unknown!r}.")
        sizes: dict[str, int] = {}
        for (name, leading), x in variables.items():
            if name in labels or name == "status":
                raise ValueError(f"fn returns {name!r}, which is the name of an axis or of the status.")
            own = self.axes_of(name, leading, x.ndim)
            for axis, size in zip(own, x.shape, strict=True):
                taken = axis in labels or axis == "status" or (axis in names and axis != leading)
                if taken or own.count(axis) > 1:
                    raise ValueError(f"dims must give {name} axes with names of their own, got {axis!r} in {own}.")
                if sizes.setdefault(axis, size) != size:
                    raise ValueError(
                        f"dims must name axes of one length alike, got {axis!r} for {sizes[axis]} and {size}."
                    )
        free = sorted(sizes.keys() - names)
        for name, shape in self.coords:
            if name not in free:
                raise ValueError(
                    f"coords must name axes of what fn returns ({', '.join(free) or 'none'}), got {name!r}."
                )
            if shape != (sizes[name],):
                raise ValueError(f"coords[{name!r}] must have shape ({sizes[name]},), got {shape}.")


def _coordinate(name: str, values: Any) -> np.ndarray:
    try:
        found = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"coords[{name!r}] must be an array of values, got {describe(values)}.") from error
    if found.dtype.kind == "O" or isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"coords[{name!r}] must be an array of values without a mask, got {describe(values)}.")
    return found


def dataset_of(grid: Grid, results: Results, own: Own, coords: Mapping) -> xr.Dataset:
    axes = [names[0] for names in grid.groups]
    coordinates = grid.coordinates()
    ended = np.isin(results.status, [STATUS[s] for s in ("ok", "not_finite", "training_diverged")])
    variables = {}
    for (name, leading), flat in results.variables.items():
        if name == leading and ended.any() and (flat[ended] == flat[ended][0]).all():  # times or steps in common
            coordinates[name] = (name, flat[ended][0])
            continue
        dims = [*axes, *own.axes_of(name, leading, flat.ndim - 1)]
        variables[f"{name}s_of_lane" if name == leading else name] = (dims, flat.reshape(*grid.sizes, *flat.shape[1:]))
    variables["status"] = (
        axes,
        results.status.reshape(grid.sizes),
        {"flag_values": np.array([*STATUS.values()], np.int8), "flag_meanings": " ".join(STATUS)},
    )
    coordinates |= {name: (name, _coordinate(name, values)) for name, values in coords.items()}
    taken, waited = results.steps
    return xr.Dataset(variables, coordinates, {"lane_efficiency": taken / waited} if waited else {})
