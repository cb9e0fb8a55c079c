"""`traindyn sweep NAME`: a registered computation over axes given as text, saved and drawn."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from .._checks import check_range, describe
from .._files import write
from ..validate import Claim, Setting, verify
from .engine import Point, sweep
from .subject import Subject, whole_numbers

MOST_PANELS = 12
MOST_VALUES = 1_000_000  # of an axis given as text
MOST_LANES = 10_000_000  # of a sweep by name: more is a slip of the pen


def parse_axis(text: str) -> tuple[str, np.ndarray]:
    """`learning_rate=1e-3:1:64:log`, 64 values from 1e-3 to 1; without `:log` evenly spaced. `seed=0:8`, the integers
    0 to 7. `mu=0.5,1,2`, these values. At most a million values, all finite.

    **Raises** `ValueError` for anything else.
    """
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {describe(text)}.")
    name, _, values = text.partition("=")
    parts = values.split(":")
    read = {1: _listed, 2: _counted, 3: _spaced, 4: _spaced}.get(len(parts), _nothing)
    try:
        found = read(*parts)
        if not name.isidentifier() or not np.isfinite(found).all():
            raise ValueError
    except _TooMany:
        raise ValueError(f"must have at most {MOST_VALUES:,} values, got {text!r}.") from None
    except (ValueError, OverflowError):
        raise ValueError(
            f"needs NAME=FIRST:LAST:NUMBER[:log] (log: both above zero), NAME=FIRST:END for integers, or NAME=A,B,…, "
            f"all finite, got {text!r}."
        ) from None
    return name, found


class _TooMany(ValueError):
    """More values than anyone wants, or than fit into memory."""


def _listed(values: str) -> np.ndarray:
    words = values.split(",")
    try:
        return np.array([int(word) for word in words], np.int64)  # not by way of floats, which round large seeds
    except ValueError:
        return np.array([float(word) for word in words])


def _counted(first: str, end: str) -> np.ndarray:
    low, high = int(first), int(end)
    if high <= low:
        raise ValueError
    _check_number(high - low)
    return np.arange(low, high, dtype=np.int64)


def _spaced(first: str, last: str, number: str, log: str | None = None) -> np.ndarray:
    low, high, n = float(first), float(last), int(number)
    if n < 1 or log not in (None, "log") or (log and min(low, high) <= 0) or not np.isfinite([low, high]).all():
        raise ValueError
    _check_number(n)
    return np.linspace(low, high, n) if log is None else np.geomspace(low, high, n)


def _nothing(*parts: str) -> np.ndarray:
    raise ValueError


def _check_number(number: int) -> None:
    if number > MOST_VALUES:
        raise _TooMany


def axes_of(pairs: Sequence[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Axes by name. **Raises** `ValueError` for a name that comes twice."""
    axes: dict[str, np.ndarray] = {}
    for name, values in pairs:
        if name in axes:
            raise ValueError(f"each axis must be given once, got {name} twice.")
        axes[name] = values
    return axes


def sweep_subject(
    subject: Subject,
    axes: Mapping[str, np.ndarray],
    *,
    out: Path,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Sweeps a subject over `axes`, its own where there are none; the parameters left keep their defaults, which the
    dataset has as scalar coordinates.

    **Raises** `ValueError` for an axis that the subject does not have, and for values that it does not take.
    """
    chosen: dict[str, Any] = {name: subject.values(name, given) for name, given in (axes or subject.axes).items()}
    lanes = math.prod(len(values) for values in chosen.values())
    if lanes > MOST_LANES:
        raise ValueError(f"axes must have at most {MOST_LANES:,} points together, got {lanes:,}.")
    if subject.check is not None:
        for name, values in chosen.items():
            for end in {values.min(), values.max()}:
                subject.check({**subject.defaults, name: end})
    fixed = {name: value for name, value in subject.defaults.items() if name not in chosen}
    cost = subject.cost
    found = sweep(
        _Filled(subject.fn, fixed),
        chosen,
        batch_size=batch_size,
        mesh=mesh,
        cost=None if cost is None else _Filled(cost, fixed),
        dims=subject.dims,
        coords=subject.coords,
        out=out,
        progress=progress,
    )
    for variable, label in subject.labels.items():
        found[variable].attrs["label"] = label
    for variable, bound in subject.bounds.items():
        found[variable].attrs["bound"] = bound
    return found.assign_coords(fixed).assign_attrs(title=subject.name, source=subject.source)


class _Filled:
    """A function of a point whose missing parameters have their defaults."""

    def __init__(self, fn, fixed: Mapping[str, float | int]):
        self.fn, self.fixed = fn, fixed

    def __call__(self, point: Point) -> Any:
        return self.fn({**self.fixed, **point})


def sweep_claim(
    claim: Claim, seeds: Sequence[int | float], setting: Setting, *, out: Path, on_seed=lambda: None
) -> xr.Dataset:
    """Checks a claim at several seeds, one after another in this process; finished seeds are kept in `out`.

    **Returns** a dataset over `seed` and, by name, the rows of the claim's evidence: `measured`, `bound`, `holds`; and
    over `seed` alone `passed`, whether all rows hold and the control is rejected, and `status`, 4 where it raised.

    **Raises** `ValueError` for seeds that are no integers, negative, or beyond the integers of the moment, and for an
    `out` that holds the sweep of something else.
    """
    check_range("seed", seeds, least=0)
    seeds = whole_numbers("seed", seeds).tolist()
    _take(out, claim)
    records = []
    for seed in seeds:
        at = Setting(setting.scale, int(seed), setting.corpus, setting.corpus_name)
        records += verify([claim], at, out=out / f"seed-{seed}", resume=True)
        on_seed()
    rows = list(dict.fromkeys(row["name"] for record in records for row in record["rows"]))
    table = {key: np.full((len(rows), len(records)), np.nan) for key in ("measured", "bound", "holds")}
    for j, record in enumerate(records):
        for row in record["rows"]:
            i = rows.index(row["name"])
            table["measured"][i, j], table["bound"][i, j] = float(row["measured"]), float(row["bound"])
            table["holds"][i, j] = row["verdict"] == "holds"
    variables: dict[str, Any] = {key: (("row", "seed"), values) for key, values in table.items()}
    variables["passed"] = ("seed", np.array([record["passed"] for record in records]))
    variables["status"] = ("seed", np.array([4 if record["failure"] else 0 for record in records], np.int8))
    attributes = {"title": claim.name, "source": claim.source}
    return xr.Dataset(variables, {"row": rows, "seed": np.asarray(seeds)}, attributes)


def _take(out: Path, claim: Claim) -> None:
    """Writes into `sweep.json` whose sweep a folder holds, where a sweep of a subject has its own name of it."""
    same, index = {"claim": claim.name}, out / "sweep.json"
    try:
        found = json.loads(index.read_bytes())["same"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or damaged
        found = {} if any(out.glob("chunk-*.npz")) else same
    if found != same:
        raise ValueError(f"out={str(out)!r} holds another sweep: name another folder, or delete this one.")
    if jax.process_index() == 0:
        out.mkdir(parents=True, exist_ok=True)
        write(index, json.dumps({"same": same}, indent=1))


def save(found: xr.Dataset, picture: Figure, out: Path) -> None:
    """Writes `sweep.nc` and `figure.png`, each whole or not at all."""
    content = bytes(found.to_netcdf(engine="h5netcdf"))  # pyright: ignore[reportArgumentType]
    write(out / "sweep.nc", content)
    write(out / "figure.png", lambda file: picture.savefig(file, dpi=120))


def figure(found: xr.Dataset, axes: Sequence[str]) -> Figure:
    """A panel a variable that has one number a lane: a line over one axis, a map over two, whose white line is the
    bound. Over more axes, the median over those after the second. Lanes that are not well are left blank, and numbers
    beyond 1e300, in which Matplotlib's own overflow."""
    names = [n for n, v in found.data_vars.items() if set(axes) == set(v.dims) and n != "status"]
    names = [n for n in names if found[n].attrs.get("label")] or names
    names = names[:MOST_PANELS]
    columns = min(len(names), 4) or 1
    rows = -(-len(names) // columns) or 1
    picture = Figure(figsize=(4.4 * columns, 3.5 * rows), layout="constrained")
    rest = list(axes[2:])
    picture.suptitle(found.attrs.get("title", "") + (f", median over {', '.join(rest)}" if rest else ""))
    panels = picture.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(panels, names, strict=False):
        values = found[name].where(found["status"].isin((0, 1, 2, 3)) & (np.abs(found[name]).astype(float) <= 1e300))
        values = values.median(rest) if rest else values
        label = found[name].attrs.get("label", "")
        axis.set_title(f"{name}\n{label}" if label else name, fontsize=9)
        bound = found[name].attrs.get("bound")
        if len(axes) == 1:
            _draw_line(axis, values, bound)
        else:
            _draw_map(axis, values.transpose(axes[1], axes[0]), bound)
    for axis in panels[len(names) :]:
        axis.axis("off")
    return picture


def claim_figure(found: xr.Dataset) -> Figure:
    """A panel a row: what was measured at each seed, and the bound."""
    rows = found["row"].values[:MOST_PANELS]
    columns = min(len(rows), 4) or 1
    lines = -(-len(rows) // columns) or 1  # where every seed raised there is no row
    picture = Figure(figsize=(4.4 * columns, 3.2 * lines), layout="constrained")
    picture.suptitle(found.attrs["title"])
    panels = picture.subplots(lines, columns, squeeze=False).ravel()
    for axis, row in zip(panels, rows, strict=False):
        of_row = found.sel(row=row)
        axis.plot(found["seed"], of_row["measured"], "o")
        axis.plot(found["seed"], of_row["bound"], ":", color="tab:red")
        axis.set_title(str(row), fontsize=8)
        axis.set(xlabel="seed", ylabel="measured; bound dotted")
    for axis in panels[len(rows) :]:
        axis.axis("off")
    return picture


def _draw_line(axis: Any, values: xr.DataArray, bound: float | None) -> None:
    (x,) = values.dims
    axis.plot(values[x], values, "o-", markersize=3)
    if bound is not None:
        axis.axhline(bound, linestyle=":", color="tab:red")
    if _geometric(values[x].values):
        axis.set_xscale("log")
    if _decades(values.values) > 1.5:
        axis.set_yscale("log")
    axis.set_xlabel(str(x))
    axis.grid(alpha=0.25)


def _draw_map(axis: Any, values: xr.DataArray, bound: float | None) -> None:
    y, x = values.dims
    norm = LogNorm() if _decades(values.values) > 1.5 else Normalize()
    mesh = axis.pcolormesh(values[x], values[y], values, norm=norm, cmap="viridis", shading="nearest")
    axis.figure.colorbar(mesh, ax=axis)
    finite = values.values[np.isfinite(values.values)]
    if bound is not None and finite.size and finite.min() < bound < finite.max() and min(values.shape) > 1:
        axis.contour(values[x], values[y], values, levels=[bound], colors="white", linewidths=1.6)
    for which, name in (("x", x), ("y", y)):
        at = values[name].values
        above = at[at > 0]
        if _geometric(at):
            getattr(axis, f"set_{which}scale")("log")
        elif at.size > 3 and at.min() == 0 and above.size and at.max() > 20 * above.min():
            getattr(axis, f"set_{which}scale")("symlog", linthresh=above.min())
    axis.set(xlabel=str(x), ylabel=str(y))


def _geometric(x: np.ndarray) -> bool:
    return bool(x.size > 2 and x.min() > 0 and np.allclose(np.diff(np.log(x.astype(float)), 2), 0, atol=1e-6))


def _decades(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.log10(finite.max() / finite.min())) if finite.size and finite.min() > 0 else 0.0


def all_devices() -> Mesh | None:
    """A mesh of all devices of all processes, or `None` where there is one."""
    return jax.make_mesh((jax.device_count(),), ("lanes",)) if jax.device_count() > 1 else None
