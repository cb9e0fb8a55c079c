"""What `verify` returns: records that print themselves, keep their arrays, and can be written and compared."""

import csv
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from .. import _files
from .._checks import choice, describe
from . import _records

COLUMNS = ("claim", "kind", "measured", "bound", "control", "verdict", "s")
WIDTHS = (28, 9, 28, 17, 8, 9, 6)
FORMATS = ("md", "latex", "csv")
MOVED = 0.01  # of the bound: less is rounding


class Result(dict):
    """The record of one claim, as it stands in `results.json`, with the arrays behind its pictures in `panels`."""

    panels: Sequence[xr.Dataset] = ()

    def __repr__(self) -> str:
        return f"{header()}\n{line(self)}\n{summary([self])}"

    def _repr_html_(self) -> str:
        return _html([self])


class Results(list[Result]):
    """Records of several claims. Prints as the table; `table` writes it in other formats."""

    def __repr__(self) -> str:
        return "\n".join([header(), *map(line, self), "", summary(self)])

    def _repr_html_(self) -> str:
        return _html(self)

    def table(self, format: str = "md") -> str:
        """The table as Markdown (`"md"`), LaTeX (`"latex"`, booktabs) or `"csv"` with a line for each row of evidence.

        **Raises** `ValueError` for another format.
        """
        return {"md": _markdown, "latex": _latex, "csv": _csv}[choice("format", format, FORMATS)](self)


def tree_of(panels: Iterable[xr.Dataset]) -> xr.DataTree:
    """The arrays behind the pictures as one labelled tree, a group a picture.

    Names in a file hold no slashes: variables and axes are numbered, and have their `label` and `role` as attributes.
    """
    groups = {}
    for number, data in enumerate(panels):
        roles = [curve.attrs["role"] for curve in data.data_vars.values()]
        names = {
            name: f"{role}_{roles[:i].count(role)}" for i, (name, role) in enumerate(zip(data, roles, strict=True))
        }
        dims = {name: f"axis_{i}" for i, name in enumerate(dict.fromkeys([*data.coords, *data.dims]))}
        group = data.rename(names | dims)
        for old, new in dims.items():
            if old in data.coords:
                group[new].attrs["label"] = str(old)
        group.attrs = {
            name: value if isinstance(value, str) else json.dumps(value) for name, value in data.attrs.items()
        }
        groups[f"/picture_{number}"] = group
    return xr.DataTree.from_dict(groups)


def read(folder: Path | str) -> Results:
    """The results that `verify` has left in a folder.

    **Raises** `ValueError` for a folder without a `results.json`, and for a damaged one.
    """
    path = _files.folder("folder", folder)
    if not (path / "results.json").is_file():
        raise ValueError(f"folder must have a results.json, written by verify, got {describe(str(folder))}.")
    return Results(map(Result, _records.read(path)))


def header() -> str:
    """The first two lines of the table."""
    return _line(COLUMNS) + "\n" + "  ".join("─" * width for width in WIDTHS)


def line(record: Mapping[str, Any]) -> str:
    """One claim's line of the table."""
    return _line(cells(record))


def cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What the table says of a claim, column by column."""
    return (
        record["name"],
        record["kind"],
        record["measured_text"],
        record["bound_text"],
        "rejected" if record["control_rejected"] else "NOT REJ.",
        record["verdict"] if record["passed"] or record["verdict"] != "holds" else "FAILED",
        f"{record['seconds']:.1f}",
    )


def _line(cells: Iterable[str]) -> str:
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """How many claims hold, and which do not, and why."""
    failed = [record for record in records if not record["passed"]]
    text = f"{len(records) - len(failed)} of {len(records)} claims hold with their control rejected."
    return text + "".join(f"\n  {r['name']}: {why(r)}" for r in failed)


def why(record: Mapping[str, Any]) -> str:
    """The reason for which a claim does not pass."""
    if record["failure"]:
        lines = [line.strip() for line in record["failure"].split("Traceback")[0].splitlines() if line.strip()]
        return f"undecided: {lines[-1] if lines else 'no reason was given'}"
    rows = [
        f"{r['name']}: {r['measured_text']}, needs {r['bound_text']}" for r in record["rows"] if r["verdict"] != "holds"
    ]
    loose = [f"control not rejected: {r['name']}" for r in record["control_rows"] if r["verdict"] != "refuted"]
    return "; ".join([record["verdict"], *rows, *loose])


def _markdown(records: Sequence[Mapping[str, Any]]) -> str:
    safe = lambda text: text.replace("|", "\\|")
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(tuple(map(safe, cells(record))) for record in records)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


_SPECIAL: dict[str, str] = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {c: f"\\{c}" for c in "&%$#_{}"}
_SPECIAL |= {"≤": r"$\leq$", "≥": r"$\geq$", "±": r"$\pm$", "–": "--", "∞": r"$\infty$"}


def _latex(records: Sequence[Mapping[str, Any]]) -> str:
    safe = lambda text: text.translate(str.maketrans(_SPECIAL))
    rows = [" & ".join(map(safe, cells(record))) + r" \\" for record in records]
    head = [r"\begin{tabular}{lllllll}", r"\toprule", " & ".join(COLUMNS) + r" \\", r"\midrule"]
    return "\n".join([*head, *rows, r"\bottomrule", r"\end{tabular}", ""])


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ("claim", "paper", "scale", "seed", "dtype", "part", "row", "kind", "measured", "low", "high", "bound")
    )
    for r in records:
        for part, rows in (("law", r["rows"]), ("control", r["control_rows"])):
            for row in rows:
                told = (part, row["name"], row["kind"], row["measured"], *row["interval"], row["bound"])
                writer.writerow((r["name"], r["paper"], r["scale"], r["seed"], r["dtype"], *told))
    return file.getvalue()


def _html(records: Sequence[Mapping[str, Any]]) -> str:
    row = lambda kind, texts: "<tr>" + "".join(f"<{kind}>{html.escape(text)}</{kind}>" for text in texts) + "</tr>"
    body = "".join(row("td", cells(record)) for record in records)
    said = html.escape(summary(records)).replace("\n", "<br>")
    return f"<table><thead>{row('th', COLUMNS)}</thead><tbody>{body}</tbody></table><p>{said}</p>"


class Difference(NamedTuple):
    """What differs between two sets of results.

    `flipped`: claims whose verdict changed. `moved`: rows whose figure left its interval by more than 1 % of the bound.
    `only`: claims that one of them lacks. `seconds`: of the claims in both. `versions`: that differ.
    """

    flipped: list[str]
    moved: list[str]
    only: list[str]
    seconds: tuple[float, float]
    versions: list[str]

    def __str__(self) -> str:
        parts = {"verdicts that flipped": self.flipped, "figures that moved": self.moved, "in one only": self.only}
        parts["versions that differ"] = self.versions
        lines = [
            f"{title}: {len(found) or 'none'}" + "".join(f"\n  {x}" for x in found) for title, found in parts.items()
        ]
        before, after = self.seconds
        return "\n".join([*lines, f"seconds of the claims in both: {before:.1f}, then {after:.1f}"])


def difference(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Difference:
    """Compares results claim by claim, of one scale, seed, precision and text each."""
    identity = lambda record: tuple(record[name] for name in _records.IDENTITY)
    old, new = ({identity(record): record for record in records} for records in (before, after))
    both = [(old[key], new[key]) for key in old if key in new]
    state = lambda r: r["verdict"] if r["passed"] or r["verdict"] != "holds" else "failed"
    named = lambda r: f"{r['name']} ({r['scale']}, seed {r['seed']}, {r['dtype']})"
    flipped = [f"{named(a)}: {state(a)}, then {state(b)}" for a, b in both if state(a) != state(b)]
    versions = {f"{n} {a['versions'].get(n)}, then {b['versions'].get(n)}" for a, b in both
                for n in a["versions"] | b["versions"] if a["versions"].get(n) != b["versions"].get(n)}  # fmt: skip
    only = [f"{named(old[key])}: in the first" for key in old if key not in new]
    only += [f"{named(new[key])}: in the second" for key in new if key not in old]
    seconds = sum(a["seconds"] for a, _ in both), sum(b["seconds"] for _, b in both)
    return Difference(flipped, [x for pair in both for x in _moved(*pair)], only, seconds, sorted(versions))


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    found = []
    rows = {row["name"]: row for row in after["rows"]}
    for row in before["rows"]:
        if (other := rows.get(row["name"])) is None:
            found.append(f"{before['name']}, {row['name']}: {row['measured_text']}, then not measured")
            continue
        (low, high), (low2, high2) = (np.array(r["interval"], float) for r in (row, other))
        slack = MOVED * abs(float(row["bound"]))
        apart = (
            low2 > high + slack or high2 < low - slack or np.isnan([low, high]).any() != np.isnan([low2, high2]).any()
        )
        if apart:
            found.append(f"{before['name']}, {row['name']}: {row['measured_text']}, then {other['measured_text']}")
    return found
