"""The figure of a claim, a line of the table, and the self-contained report, all from what the claim measured."""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

COLUMNS = ("claim", "kind", "measured", "bound", "control", "verdict", "s")
WIDTHS = (28, 9, 28, 17, 8, 9, 6)

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


def header() -> str:
    """The first two lines of the table."""
    return _line(COLUMNS) + "\n" + "  ".join("─" * width for width in WIDTHS)


def line(record: dict[str, Any]) -> str:
    """One claim's line of the table."""
    cells = (
        record["name"],
        record["kind"],
        record["measured_text"],
        record["bound_text"],
        "rejected" if record["control_rejected"] else "NOT REJ.",
        record["verdict"] if record["passed"] or record["verdict"] != "holds" else "FAILED",
        f"{record['seconds']:.1f}",
    )
    return _line(cells)


def _line(cells: Iterable[str]) -> str:
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def summary(records: Sequence[dict[str, Any]]) -> str:
    """How many claims hold, and which do not."""
    failed = [record for record in records if not record["passed"]]
    text = f"{len(records) - len(failed)} of {len(records)} claims hold with their control rejected."
    return text + "".join(f"\n  {r['name']}: {_why(r)}" for r in failed)


def _why(record: dict[str, Any]) -> str:
    if record["failure"]:
        lines = [line.strip() for line in record["failure"].split("Traceback")[0].splitlines() if line.strip()]
        return f"undecided: {lines[-1] if lines else 'no reason was given'}"
    rows = [
        f"{r['name']}: {r['measured_text']}, needs {r['bound_text']}" for r in record["rows"] if r["verdict"] != "holds"
    ]
    loose = [f"control not rejected: {r['name']}" for r in record["control_rows"] if r["verdict"] != "refuted"]
    return "; ".join([record["verdict"], *rows, *loose])


def html(records: Sequence[dict[str, Any]], folder: Path) -> str:
    """The report as one page with its figures inside, each from `figure.png` in the folder that the record names."""
    pictures = {
        r["name"]: base64.b64encode(path.read_bytes()).decode()
        for r in records
        if r["folder"] and (path := folder / r["folder"] / "figure.png").exists()
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_PAGE).render(records=records, pictures=pictures, summary=summary(records))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>traindyn report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e21; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .3rem; border-top: 1px solid #ddd; padding-top: 1.5rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e8e8e8; vertical-align: top; }
th { border-bottom: 2px solid #999; } img { max-width: 100%; margin: .8rem 0; }
.scroll { overflow-x: auto; } a { color: inherit; }
.holds, .rejected { color: #14713a; } .refuted, .failed { color: #b3261e; font-weight: 600; }
.undecided { color: #8a5a00; }
.statement { font-size: 1.05rem; } .small, footer { color: #555; font-size: .88rem; } ul { margin: .3rem 0 .8rem; }
pre { white-space: pre-wrap; font-size: .8rem; background: #f6f6f6; padding: .6rem; }
</style></head><body>
<h1>Theory of training against training</h1>
<p>{{ summary.splitlines()[0] }} A claim passes when every row holds and when its control, the same check
against a prediction that is wrong in one place, is refuted. Finite checks are evidence, not proof.</p>
<div class="scroll"><table>
<tr><th>claim</th><th>kind</th><th>measured</th><th>bound</th><th>control</th><th>verdict</th><th>s</th></tr>
{% for r in records %}<tr><td><a href="#{{ r.name }}">{{ r.name }}</a></td><td>{{ r.kind }}</td>
<td>{{ r.measured_text }}</td><td>{{ r.bound_text }}</td>
{% set control = 'rejected' if r.control_rejected else 'not rejected' %}
{% set verdict = r.verdict if r.passed or r.verdict != 'holds' else 'failed' %}
<td class="{{ 'rejected' if r.control_rejected else 'failed' }}">{{ control }}</td>
<td class="{{ verdict }}">{{ verdict }}</td>
<td>{{ '%.1f' % r.seconds }}</td></tr>
{% endfor %}</table></div>
{% for r in records %}
<h2 id="{{ r.name }}">{{ r.name }}</h2>
<p class="statement">{{ r.statement }}</p>
<p class="small">{{ r.paper }}. {{ r.source }}.</p>
{% if r.name in pictures %}
<img alt="figure of {{ r.name }}" src="data:image/png;base64,{{ pictures[r.name] }}">
{% endif %}
<div class="scroll"><table><tr><th>{{ r.kind }}</th><th>measured</th><th>bound</th><th>verdict</th></tr>
{% for row in r.rows %}<tr><td>{{ row.name }}</td><td>{{ row.measured_text }}</td><td>{{ row.bound_text }}</td>
<td class="{{ row.verdict }}">{{ row.verdict }}</td></tr>{% endfor %}
<tr><th>control: the same checks of wrong laws</th><th></th><th></th><th>must be refuted</th></tr>
{% for row in r.control_rows %}<tr><td>{{ row.name }}</td><td>{{ row.measured_text }}</td><td>{{ row.bound_text }}</td>
<td class="{{ 'rejected' if row.verdict == 'refuted' else 'failed' }}">{{ row.verdict }}</td></tr>{% endfor %}
</table></div>
<p class="small">Assumptions: {{ r.assumptions | join('; ') }}.</p>
{% for remark in r.remarks %}<p>{{ remark }}</p>{% endfor %}
{% if r.failure %}<pre>{{ r.failure }}</pre>{% endif %}
{% endfor %}
{% if records | selectattr('errata') | list %}
<h2 id="errata">Errata</h2>
<p>Statements that do not hold as published, and the measurement that decides: the same check on both forms.</p>
<div class="scroll"><table>
<tr><th>where</th><th>as printed</th><th>as corrected</th><th>printed</th><th>corrected</th><th>figure</th></tr>
{% for r in records %}{% for e in r.errata %}
<tr><td>{{ e.where }}</td><td>{{ e.printed }}</td><td>{{ e.corrected }}</td>
<td>{{ e.error_printed }}</td><td>{{ e.error_corrected }}</td>
<td><a href="#{{ r.name }}">{{ r.name }}</a></td></tr>
{% endfor %}{% endfor %}</table></div>
{% endif %}
{% set r = records[0] %}
<footer><p>Scale {{ r.scale }}, seed {{ r.seed }}, {{ r.dtype }} on {{ r.device }}, corpus {{ r.corpus }}.
{% for name, number in r.versions.items() %}{{ name }} {{ number }}{{ ', ' if not loop.last }}{% endfor %}.</p></footer>
</body></html>
"""
