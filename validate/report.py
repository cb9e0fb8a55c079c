"""The figure of a claim and the self-contained report, all from what the claims measured."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import latex2mathml.converter
import numpy as np
import xarray as xr
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from .results import summary, why

MOST = 1e300  # that is drawn
_STYLES = {
    "observed": {"marker": "o", "linestyle": "none", "markersize": 3.5, "zorder": 2},
    "predicted": {"linestyle": "-", "linewidth": 1.4, "zorder": 3},
    "control": {"linestyle": ":", "linewidth": 1.6, "zorder": 1},
}
_COLOURS = {"observed": "tab:blue", "predicted": "black", "control": "tab:red"}


def figure(panels: Sequence[xr.Dataset], title: str = "") -> Figure:
    """One axis a panel: observations as points, predictions as lines, controls dotted; maps as cells."""
    columns = min(len(panels), 3) or 1
    rows = -(-len(panels) // columns) or 1
    picture = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    picture.suptitle(title)
    axes = picture.subplots(rows, columns, squeeze=False).ravel()
    for axis, data in zip(axes, panels, strict=False):
        (first, *_) = data.data_vars.values()
        _draw_map(axis, data, first) if first.attrs["role"] == "map" else _draw(axis, data)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    return picture


def _draw(axis: Any, data: xr.Dataset) -> None:
    """Where a curve has several lines, a line and its prediction share a colour and only the first is labelled."""
    x = _drawable(data.coords[data.attrs["x"]].values)
    observed = sum(curve.attrs["role"] == "observed" for curve in data.data_vars.values())
    for number, curve in enumerate(data.data_vars.values()):
        role = curve.attrs["role"]
        lines = _drawable(curve.values.reshape(len(x), -1))
        style = dict(_STYLES[role])
        if role == "observed" and np.isfinite(lines[:, 0]).sum() > 60:
            style |= {"linestyle": "-", "marker": "none", "linewidth": 2.5, "alpha": 0.5}
        for i, line in enumerate(lines.T):
            if lines.shape[1] > 1:
                colour = colormaps["viridis"](0.9 * i / (lines.shape[1] - 1)) if role != "control" else _COLOURS[role]
            else:
                colour = colormaps["tab10"](number) if role == "observed" and observed > 1 else _COLOURS[role]
            label = curve.attrs["label"] if i == 0 else None
            axis.plot(x, line, color=colour, label=label, **style)
    axis.set(title=data.attrs["title"], xlabel=data.attrs["x"], ylabel=data.attrs["y"])
    axis.title.set_fontsize(10)
    for which in data.attrs["log"]:
        getattr(axis, f"set_{which}scale")("log")
        low, high = getattr(axis, f"get_{which}lim")()
        if high < 100 * low:  # over less than two decades every minor tick would be labelled
            scale = getattr(axis, f"{which}axis")
            scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
            scale.set_minor_formatter(NullFormatter())
    for word, place in data.attrs.get("marks", {}).items():
        if not abs(place) <= MOST:
            continue
        axis.axvline(place, color="grey", linewidth=0.8)
        top = axis.get_xaxis_transform()  # x in data, y in the height of the axis
        axis.annotate(word, (place, 1), (2, -9), top, textcoords="offset points", fontsize=8, color="grey")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.25)


def _drawable(values: np.ndarray) -> np.ndarray:
    """NaN for what is not finite, or so large that Matplotlib's own numbers overflow: the end of what diverged."""
    wide = values.astype(float)
    return np.where(np.abs(wide) <= MOST, wide, np.nan)


def _draw_map(axis: Any, data: xr.Dataset, cells: xr.DataArray) -> None:
    low, high = data.attrs.get("limits", (None, None))
    drawn = _drawable(cells.values)
    norm = (LogNorm if data.attrs["log"] == "z" and (drawn > 0).any() else Normalize)(low, high)
    image = axis.imshow(drawn, origin="lower", aspect="auto", norm=norm, cmap="viridis", interpolation="nearest")
    axis.figure.colorbar(image, ax=axis, label=cells.attrs["label"])
    for which in "xy":
        values = data.coords[data.attrs[which]].values
        words = values.dtype.kind == "U"
        every = -(-len(values) // (40 if words else 8))
        labels = [str(v) if words else f"{v:.3g}" for v in values[::every]]
        turned = {"rotation": 90} if words and which == "x" else {}
        getattr(axis, f"set_{which}ticks")(range(0, len(values), every), labels, fontsize=7 if words else 9, **turned)
    axis.set(title=data.attrs["title"], xlabel=data.attrs["x"], ylabel=data.attrs["y"])
    axis.title.set_fontsize(10)


def html(records: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """The report as one page with its figures inside, each from `figure.png` in the folder that the record names."""
    files = {r["name"]: folder / r["folder"] / "figure.png" for r in records if r["folder"]}
    files = {name: path for name, path in files.items() if path.exists()}
    papers: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        papers.setdefault(record["paper"], []).append(record)
    made = sorted({_made_by(record) for record in records})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["math"] = _math
    return environment.from_string(_PAGE.read_text(encoding="utf-8")).render(
        papers=papers,
        pictures={name: _encoded(path.read_bytes()) for name, path in files.items()},
        thumbnails={name: _encoded(_small(path)) for name, path in files.items()},
        errata=[(erratum, record) for record in records for erratum in record["errata"]],
        failed=[(record, why(record)) for record in records if not record["passed"]],
        summary=summary(records).splitlines()[0],
        made=made,
    )


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _small(path: Path) -> bytes:
    file = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail((320, 90))
        image.save(file, "PNG")
    return file.getvalue()


def _math(tex: str) -> Markup:
    """As MathML, which browsers show without any script; as it is written where that can't be made of it, or is more
    than mathematics."""
    try:
        found = latex2mathml.converter.convert(tex.replace("<", r"\lt ").replace(">", r"\gt "))
    except Exception:  # it raises whatever it meets
        return Markup("<code>{}</code>").format(tex)
    return Markup("<code>{}</code>").format(tex) if "href" in found else Markup(found)


def _made_by(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    setting = f"Scale {record['scale']}, seed {record['seed']}, {record['dtype']} on {record['device']}"
    return f"{setting}, corpus {record['corpus']}. {versions}."


_PAGE = Path(__file__).with_name("report.html.jinja")
