"""What is printed, written and compared of results, each word of it."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from traindyn.__main__ import main
from traindyn.validate import (
    Claim,
    Evidence,
    Result,
    Results,
    Setting,
    Verdict,
    agrees,
    at_most,
    difference,
    evidence,
    heatmap,
    mean,
    panel,
    read,
    report,
    results,
    verify,
)

LAW = np.array([1.0, 2.0, 4.0])
T = ("t/t*", LAW)


def claim_of(name, found):
    return Claim(name, "A paper", "a statement", "eq. 1", ("an assumption",), lambda setting: found, r"\dot v < v^2")


GOOD = evidence(agrees("v", T, LAW, LAW, {"as printed": 2 * LAW}, within=0.01))
REFUTED = evidence(agrees("v", T, 1.5 * LAW, LAW, {"as printed": 2 * LAW}, within=0.01), at_most("w", 1, 2, {"x": 3}))
LOOSE = evidence(agrees("v", T, LAW, LAW, {"as printed": LAW}, within=0.01))
UNSURE = evidence(mean("v", [0.0, 1.0, 2.0], {"as printed": [5.0, 5.1, 5.2]}, at_most=1.5))
UNKNOWN = evidence(agrees("v", T, LAW, LAW, {"as printed": LAW * math.nan}, within=0.01))
EVIDENCE = {"x.good": GOOD, "x.refuted": REFUTED, "x.loose": LOOSE, "x.unsure": UNSURE, "x.unknown": UNKNOWN}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    verify([claim_of(name, found) for name, found in EVIDENCE.items()], Setting("smoke"), out=out)
    return out


@pytest.fixture(scope="module")
def found(folder):
    return read(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.good", ["x.good", "identity", "0", "≤ 0.01", "rejected", "holds"]),
        ("x.refuted", ["x.refuted", "identity", "0.5", "≤ 0.01", "rejected", "refuted"]),
        ("x.loose", ["x.loose", "identity", "0", "≤ 0.01", "NOT REJ.", "FAILED"]),
        ("x.unsure", ["x.unsure", "statistic", "1 [-1.48, 3.48]", "≤ 1.5", "rejected", "undecided"]),
        ("x.unknown", ["x.unknown", "identity", "0", "≤ 0.01", "NOT REJ.", "FAILED"]),
    ],
)
def test_a_line_of_the_table_says_what_was_found(found, name, words):
    (record,) = (r for r in found if r["name"] == name)
    assert results.cells(record)[:-1] == tuple(words)
    ends = np.cumsum([0, *(width + 2 for width in results.WIDTHS)])
    split = lambda line: [line.ljust(ends[-1])[a:b].strip() for a, b in itertools.pairwise(ends)]
    assert split(results.line(record))[:-1] == words
    assert split(results.header().splitlines()[0]) == list(results.COLUMNS)
    assert record["passed"] == (name == "x.good")


def test_the_summary_counts_and_says_why(found):
    assert results.summary(found) == (
        "1 of 5 claims hold with their control rejected.\n"
        "  x.refuted: refuted; v: 0.5, needs ≤ 0.01\n"
        "  x.loose: holds; control not rejected: v: as printed\n"
        "  x.unsure: undecided; v: 1 [-1.48, 3.48], needs ≤ 1.5\n"
        "  x.unknown: holds; control not rejected: v: as printed"
    )
    assert repr(found).splitlines()[2:7] == [results.line(r) for r in found]
    assert repr(found).endswith(results.summary(found)) and results.line(found[0]) in repr(found[0])
    (broken,) = verify([dataclasses.replace(claim_of("x.broken", GOOD), check=lambda setting: 1 / 0)])
    assert results.summary([broken]).endswith("  x.broken: undecided: ZeroDivisionError: division by zero")
    assert results.line(broken).split() == ["x.broken", "–", "–", "NOT", "REJ.", "undecided", "0.0"]


def test_a_verdict_is_that_of_all_rows_and_of_the_control():
    held, refuted, undecided = Verdict.HOLDS, Verdict.REFUTED, Verdict.UNDECIDED
    assert Verdict.all([held, held]) is held and Verdict.all([]) is undecided
    assert Verdict.all([held, undecided]) is undecided and Verdict.all([undecided, refuted, held]) is refuted
    assert REFUTED.decisive is REFUTED.rows["v"] and GOOD.decisive.kind == "identity"


def test_results_keep_their_arrays_and_files_hold_them_labelled(folder):
    picture = heatmap(
        "m", ("key/x", ["a", "b"]), ("η", [0.1, 1.0]), [[1.0, 2.0], [3.0, 4.0]], z_label="c/d", limits=(0.0, 9.0)
    )
    lines = panel("p", ("t", LAW), observed={"ẇ/w": np.ones((3, 2))}, marks={"here": 2.0}, log="x")
    (record,) = verify([claim_of("x.maps", evidence(GOOD, panels=[picture, lines]))], out=folder / "maps")
    assert [data.attrs["title"] for data in record.panels] == ["v", "m", "p"]
    with xr.open_datatree(folder / "maps" / "x.maps" / "evidence.nc", engine="h5netcdf") as tree:
        first, second, third = (tree[f"picture_{i}"].to_dataset() for i in range(3))
        np.testing.assert_array_equal(first["observed_0"], LAW)
        labels = {v.attrs["role"]: v.attrs["label"] for v in first.data_vars.values()}
        assert labels == {"observed": "observed", "predicted": "theory", "control": "as printed"}
        assert first["axis_0"].attrs["label"] == "t/t*"
        np.testing.assert_array_equal(second["map_0"], [[1, 2], [3, 4]])
        assert second["map_0"].attrs["label"] == "c/d" and json.loads(second.attrs["limits"]) == [0, 9]
        assert {second[d].attrs["label"] for d in second["map_0"].dims} == {"key/x", "η"}
        assert third["observed_0"].shape == (3, 2) and json.loads(third.attrs["marks"]) == {"here": 2.0}
        assert third.attrs["log"] == "x" and third["observed_0"].attrs["label"] == "ẇ/w"


def test_the_report_is_grouped_and_shows_the_mathematics(folder):
    page = (folder / "report.html").read_text()
    assert "1 of 5 claims hold" in page and ">A paper</a>:\n1 of 5.<br>" in page
    assert page.count("<math ") == 5 and "&#x0003C;" in page
    assert page.count("data:image/png;base64,") == 10, "a figure and a thumbnail each"
    for words in ("needs ≤ 1.5", "control not rejected: v: as printed", "an assumption", "a statement", "Scale smoke"):
        assert words in page
    assert report._math(r"\href{javascript:alert(1)}{x}") == r"<code>\href{javascript:alert(1)}{x}</code>"
    assert "<script" not in report._math(r"\text{<script>alert(1)</script>}")


def test_tables_in_other_formats(found):
    markdown = found.table("md").splitlines()
    assert markdown[:2] == [
        "| claim | kind | measured | bound | control | verdict | s |",
        "| " + "--- | " * 6 + "--- |",
    ]
    assert markdown[2].startswith("| x.good | identity | 0 | ≤ 0.01 | rejected | holds | ") and len(markdown) == 7
    latex = found.table("latex")
    assert r"x.good & identity & 0 & $\leq$ 0.01 & rejected & holds & " in latex
    assert latex.count(r"\\") == 6 and latex.startswith(r"\begin{tabular}")
    rows = found.table("csv").splitlines()
    assert rows[1] == "x.good,A paper,smoke,0,float64,law,v,identity,0.0,0.0,0.0,0.01"
    assert rows[2] == "x.good,A paper,smoke,0,float64,control,v: as printed,identity,0.5,0.5,0.5,0.01"
    assert "x.unknown,A paper,smoke,0,float64,control,v: as printed,identity,nan,nan,nan,0.01" in rows
    assert "<td>x.good</td>" in found._repr_html_() and "<td>x.good</td>" in found[0]._repr_html_()
    with pytest.raises(ValueError, match="format must be one of 'md', 'latex', 'csv', got 'xls'"):
        found.table("xls")
    record = Result(found[0] | {"name": "a|b_c%", "measured_text": "<b>"})
    assert r"| a\|b_c% |" in Results([record]).table() and r"a|b\_c\% &" in Results([record]).table("latex")
    assert "&lt;b&gt;" in Results([record])._repr_html_()


def moved(**more):
    return evidence(mean("v", np.array([0.9, 1.0, 1.1]) + more.get("by", 0.0), {"w": [5.0, 5.1, 5.2]}, at_most=2.0))


def test_two_runs_are_compared(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    same = [claim_of("x.same", GOOD), claim_of("x.near", moved()), claim_of("x.far", moved())]
    verify([*same, claim_of("x.flips", GOOD), claim_of("x.gone", GOOD)], Setting("smoke"), out=a)
    others = [claim_of("x.same", GOOD), claim_of("x.near", moved(by=0.1)), claim_of("x.far", moved(by=0.6))]
    verify([*others, claim_of("x.flips", LOOSE), claim_of("x.new", GOOD)], Setting("smoke"), out=b)
    found = difference(read(a), read(b))
    assert found.flipped == ["x.flips (smoke, seed 0, float64): holds, then failed"]
    assert found.moved == ["x.far, v: 1 [0.752, 1.25], then 1.6 [1.35, 1.85]"]
    assert difference(read(b), read(a)).moved == ["x.far, v: 1.6 [1.35, 1.85], then 1 [0.752, 1.25]"]
    assert [x.split(" ")[0] for x in found.only] == ["x.gone", "x.new"] and not found.versions
    told = CliRunner().invoke(main, ["diff", str(a), str(b)])
    assert told.exit_code == 1 and "verdicts that flipped: 1\n  x.flips" in told.output and "2" in told.output
    assert CliRunner().invoke(main, ["diff", str(a), str(a)]).exit_code == 0
    bad = CliRunner().invoke(main, ["diff", str(a), str(tmp_path)])
    assert bad.exit_code == 2 and "must have a results.json" in bad.output


def test_figures_that_turn_nan_or_vanish_have_moved(found):
    (good,) = (r for r in found if r["name"] == "x.good")
    nan = good | {"rows": [good["rows"][0] | {"interval": ["nan", "nan"], "measured_text": "nan"}]}
    assert difference([good], [nan]).moved == ["x.good, v: 0, then nan"]
    assert difference([good], [good | {"rows": []}]).moved == ["x.good, v: 0, then not measured"]
    versions = good | {"versions": good["versions"] | {"jax": "9.9"}}
    assert difference([good], [versions]).versions == [f"jax {good['versions']['jax']}, then 9.9"]
    assert difference([good], [good]).seconds == (good["seconds"],) * 2


def test_report_writes_the_formats_that_are_asked_for(folder, found):
    told = CliRunner().invoke(main, ["report", str(folder), "--format", "md,csv"])
    assert told.exit_code == 0 and (folder / "report.md").read_text() == found.table("md")
    assert (folder / "report.csv").read_text() == found.table("csv") and not (folder / "report.tex").exists()
    bad = CliRunner().invoke(main, ["report", str(folder), "--format", "xls"])
    assert bad.exit_code == 2 and "must be among md, latex, csv, got 'xls'" in bad.output


def test_evidence_without_rows_says_nothing():
    with pytest.raises(ValueError, match="rows must hold at least one row"):
        _ = Evidence({}, {}).decisive
