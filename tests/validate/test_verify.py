"""Running claims, the files they leave, and the command line, on small claims made here."""

import importlib
import json
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner

from traindyn.__main__ import main
from traindyn._commands import _jax
from traindyn._commands._jax import cheaply_compiling
from traindyn.dynamics import joma
from traindyn.nets import read_corpus
from traindyn.sweeps.flows import subjects
from traindyn.validate import (
    Erratum,
    Evidence,
    Setting,
    _records,
    built_in,
    claim,
    heatmap,
    identity,
    panel,
    verify,
)

FIELDS = {
    "name", "paper", "statement", "kind", "measured", "bound", "passed", "control_rejected", "seconds", "scale", "seed",
    "dtype", "device", "versions",
}  # fmt: skip
HEADER = dict(statement="a & b", source="eq. 1", assumptions=("none",), paper="A paper")


def make(name, error=0.1, control=5.0, calls=None, drawn=False):
    @claim(name=name, **HEADER)
    def check(setting):
        if calls is not None:
            calls.append(name)
        if error is None:
            raise FloatingPointError("no solution")
        curves = dict(observed={"o": np.arange(3.0)}, predicted={"p": np.ones((3, 2))})
        panels = [panel("p", ("t", np.arange(3.0)), **curves)] if drawn else []  # an axis takes a while to draw
        return Evidence({"row": identity(error, 1.0)}, {"wrong": identity(control, 1.0)}, panels)

    return check


def test_every_record_has_what_the_json_promises_and_files_match(tmp_path):
    seen = []
    claims = [make("x.good", drawn=True), make("x.bad", error=2.0, drawn=True)]
    records = verify(claims, Setting("smoke"), out=tmp_path, on_record=seen.append)
    assert json.loads((tmp_path / "results.json").read_text()) == records == seen
    assert all(set(record) >= FIELDS for record in records)
    assert [record["passed"] for record in records] == [True, False]
    with xr.open_datatree(tmp_path / "x.good" / "evidence.nc", engine="h5netcdf") as tree:
        np.testing.assert_array_equal(tree["picture_0/observed_0"], [0, 1, 2])
        np.testing.assert_array_equal(tree["picture_0/axis_0"], [0, 1, 2])
    assert (tmp_path / "x.bad" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_self_contained_and_escapes_its_texts(tmp_path):
    verify([make("x.good", drawn=True), make("x.bad", error=2.0, drawn=True)], out=tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "a &amp; b" in page
    assert "1 of 2 claims hold" in page and "http" not in page


def test_maps_and_errata_are_drawn_kept_and_listed(tmp_path):
    @claim(name="x.map", **HEADER)
    def check(setting):
        cells = heatmap("m", ("key", ["a", "b"]), ("η", [0.1, 1.0]), [[1.0, 2.0], [3.0, 4.0]], z_label="c", log="z")
        erratum = Erratum("slides", "B = <4>", "B = ¼", 1e-9, 0.3)
        return Evidence({"row": identity(0.1, 1.0)}, {"wrong": identity(5.0, 1.0)}, [cells], errata=[erratum])

    (record,) = verify([check], out=tmp_path)
    assert record["errata"] == [
        {
            "where": "slides",
            "printed": "B = <4>",
            "corrected": "B = ¼",
            "error_corrected": 1e-9,
            "error_printed": 0.3,
            "measure": "relative error",
        }
    ]
    page = (tmp_path / "report.html").read_text()
    assert "Errata" in page and "B = &lt;4&gt;" in page
    with xr.open_datatree(tmp_path / "x.map" / "evidence.nc", engine="h5netcdf") as tree:
        cells = tree["picture_0/map_0"]
        np.testing.assert_array_equal(cells, [[1, 2], [3, 4]])
        assert list(cells[cells.dims[1]].values) == ["a", "b"]


def test_a_damaged_file_is_named_and_never_overwritten(tmp_path):
    claim_ = make("x.good")
    (record,) = verify([claim_], out=tmp_path)
    path = tmp_path / "results.json"
    whole = path.read_text()
    for damaged in (whole[: len(whole) // 2], "", whole.replace("holds", "halts"), whole.replace("0.1", "0.2")):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"results\.json must be as traindyn wrote it, but is damaged"):
            verify([claim_], out=tmp_path, resume=True)
        assert path.read_text() == damaged
    with pytest.warns(UserWarning, match="results.json can't be read; it is now .*results.damaged-1.json"):
        verify([claim_], out=tmp_path)
    assert (tmp_path / "results.damaged-1.json").read_text() == damaged
    assert json.loads(path.read_text())[0]["passed"] == record["passed"]


def test_results_of_an_earlier_version_are_set_aside(tmp_path):
    verify([make("x.good")], out=tmp_path)
    (record,) = json.loads((tmp_path / "results.json").read_text())
    older = _records.seal({name: value for name, value in record.items() if name not in ("format", "tex")})
    (tmp_path / "results.json").write_text(json.dumps([older]))
    with pytest.raises(ValueError, match="of another version of traindyn"):
        verify([make("x.good")], out=tmp_path, resume=True)
    with pytest.warns(UserWarning, match="results.json can't be read; it is now .*results.damaged-1.json"):
        verify([make("x.good")], out=tmp_path)


SEEN = []  # by the claims below, which stand at the top of a module, as those that can be resumed do


@claim(name="x.words", **HEADER)
def words(setting):
    SEEN.append(len(setting.corpus))
    return Evidence({"row": identity(len(setting.corpus), 1e9)}, {"wrong": identity(5.0, 1.0)})


@claim(name="x.late", **HEADER)
def late(setting):
    SEEN.append("late")
    return Evidence({"row": identity(0.1, 1.0)}, {"wrong": identity(5.0, 1.0)})


@claim(name="x.once", **HEADER)
def once(setting):
    SEEN.append("once")
    if len(SEEN) == 1:
        raise FloatingPointError("no solution")
    return Evidence({"row": identity(0.1, 1.0)}, {"wrong": identity(5.0, 1.0)})


@pytest.fixture
def seen():
    SEEN.clear()
    return SEEN


def test_results_of_other_code_corpora_versions_and_settings_are_not_resumed(tmp_path, monkeypatch, seen):
    short, long = (Setting("smoke", 0, text, "book.txt") for text in ("short", "a longer text"))
    run = lambda setting: verify([words], setting, out=tmp_path, resume=True)[0]["measured"]
    assert [run(short), run(short), run(long), run(short)] == [5, 5, 13, 5]
    assert seen == [5, 13], "one file name, two texts"
    with jax.default_prng_impl("rbg"), pytest.warns(UserWarning, match="checked again because .* JAX's settings"):
        run(short)
    monkeypatch.setattr(_records, "versions", lambda: {"jax": "0.0"})
    with pytest.warns(UserWarning, match=r"checked again because .*: x\.words"):
        run(short)
    assert seen == [5, 13, 5, 5]


def test_a_result_in_float64_is_not_taken_for_one_in_float32(tmp_path, seen):
    run = lambda: verify([late], out=tmp_path, resume=True)[0]["dtype"]
    assert run() == run() == "float64"
    with jax.enable_x64(False):
        assert run() == run() == "float32"
    assert run() == "float64" and seen == ["late"] * 2


def test_files_that_were_lost_or_changed_are_made_again(tmp_path, seen):
    run = lambda: verify([late], out=tmp_path, resume=True)
    figure, arrays = (tmp_path / "x.late" / name for name in ("figure.png", "evidence.nc"))
    run(), run()
    figure.unlink()
    run()
    arrays.write_bytes(b"junk")
    run(), run()
    assert seen == ["late"] * 3 and figure.exists() and xr.open_datatree(arrays, engine="h5netcdf").groups == ("/",)


def test_a_failure_shows_no_picture_of_another_run(tmp_path):
    verify([make("x.a", drawn=True)], out=tmp_path)
    verify([make("x.a", error=None)], out=tmp_path)
    assert not (tmp_path / "x.a" / "figure.png").exists()
    assert "data:image" not in (tmp_path / "report.html").read_text()
    verify([make("x.a", drawn=True)], out=tmp_path)
    verify([make("x.a", error=None)], Setting(seed=1), out=tmp_path)
    assert "data:image" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("value", [1.0, 2.0])
def test_what_a_claim_made_by_a_function_holds_is_never_taken_from_an_earlier_run(tmp_path, value):
    verify([make("x.a", error=0.1)], out=tmp_path)
    (record,) = verify([make("x.a", error=value)], out=tmp_path, resume=True)
    assert record["measured"] == value


def test_code_that_changes_while_it_is_checked_leaves_no_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own_edited.py"
    path.write_text(OWN.format(target=1).replace("    return", f"    open({str(path)!r}, 'a').write('#')\n    return"))
    half = importlib.import_module("own_edited").half
    (record,) = verify([half], out=tmp_path / "out")
    assert record["passed"] and record["key"] == "", record["failure"]


def test_settings_and_the_working_folder_are_those_of_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @claim(name="x.changes", **HEADER)
    def changes(setting):
        jax.config.update("jax_default_prng_impl", "rbg")
        np.seterr(all="raise")
        os.chdir("/")
        return Evidence({"row": identity(0.1, 1.0)}, {"wrong": identity(5.0, 1.0)})

    before = jax.config.jax_default_prng_impl, np.geterr()
    (record,) = verify([changes], out="rel")
    assert record["passed"] and (tmp_path / "rel" / "x.changes" / "figure.png").exists()
    assert (jax.config.jax_default_prng_impl, np.geterr()) == before and os.getcwd() == str(tmp_path)


def test_a_finished_claim_is_written_though_the_others_records_were_spoiled(tmp_path):
    @claim(name="x.spoils", **HEADER)
    def spoils(setting):
        (tmp_path / "results.json").write_text("[" * 100_000)
        return Evidence({"row": identity(0.1, 1.0)}, {"wrong": identity(5.0, 1.0)})

    with pytest.warns(UserWarning, match="can't be read"):
        verify([make("x.first"), spoils], out=tmp_path)
    assert [r["name"] for r in json.loads((tmp_path / "results.json").read_text())] == ["x.first", "x.spoils"]


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize("out", [b"out", 3, "a\0b"])
def test_bad_folders_are_named(out):
    with pytest.raises(ValueError, match="out must be the path of a folder"):
        verify([make("x.a")], out=out)
    with pytest.raises(ValueError, match="resume would be ignored"):
        verify([make("x.a")], resume=True)


def test_a_change_in_what_a_claims_file_imports_is_a_change(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_numbers.py").write_text("import own_deeper\nTARGET = own_deeper.TARGET\n")
    (tmp_path / "own_deeper.py").write_text("TARGET = 1\n")
    (tmp_path / "own_unused.py").write_text("OTHER = 1\n")
    body = OWN.format(target="own_numbers.TARGET").replace("    return", "    import own_numbers\n    return")
    (tmp_path / "own_keyed.py").write_text(body)
    half = importlib.import_module("own_keyed").half
    key = _records.key_of(half, Setting())
    (tmp_path / "own_unused.py").write_text("OTHER = 2\n")
    assert _records.key_of(half, Setting()) == key == _records.key_of(half, Setting()), "loaded or not yet"
    (tmp_path / "own_deeper.py").write_text("TARGET = 2\n")
    assert _records.key_of(half, Setting()) != key


LAYOUTS = {  # the files beside the claims, and how those import what is in `helper`
    "namespace": ("ns/helper.py", "ns/own_x.py", "from ns import helper"),
    "relative": ("ns2/helper.py", "ns2/own_x.py", "from . import helper"),
    "beside the package": ("helper3.py", "pk3/own_x.py", "import helper3 as helper"),
    "by name": ("helper4.py", "own_4.py", "import importlib\nhelper = importlib.import_module('helper4')"),
    "in a function": ("helper5.py", "own_5.py", "def later():\n    import helper5\n    return helper5"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_change_is_found_however_it_is_imported(layout, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    helper, own, line = LAYOUTS[layout]
    for path in (tmp_path / helper, tmp_path / own):
        path.parent.mkdir(exist_ok=True)
    if own.startswith("pk3"):
        (tmp_path / "pk3" / "__init__.py").write_text("")
    (tmp_path / helper).write_text("TARGET = 1\n")
    (tmp_path / own).write_text(line + "\n" + OWN.format(target=1))
    half = importlib.import_module(own.removesuffix(".py").replace("/", ".")).half
    key = _records.key_of(half, Setting())
    assert key and key == _records.key_of(half, Setting())
    (tmp_path / helper).write_text("TARGET = 2\n")
    assert _records.key_of(half, Setting()) != key


def test_a_folder_keeps_what_other_calls_found(tmp_path):
    names = lambda: sorted((r["name"], r["seed"]) for r in json.loads((tmp_path / "results.json").read_text()))
    verify([make("x.a"), make("x.b")], out=tmp_path)
    verify([make("x.a")], Setting(seed=1), out=tmp_path)
    verify([make("x.c")], out=tmp_path)
    assert names() == [("x.a", 0), ("x.a", 1), ("x.b", 0), ("x.c", 0)]
    page = (tmp_path / "report.html").read_text()
    assert all(f'id="x.{letter}"' in page for letter in "abc") and page.count("image/png") == 6, (
        "a figure and a thumbnail each"
    )
    assert len(list((tmp_path / "x.a").rglob("figure.png"))) == 2, "each seed has its own figure"


class Unusual(BaseException):
    pass


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("exit", "SystemExit: 0"),
        ("unusual", "Unusual"),
        ("nothing", "TypeError: a check must return Evidence"),
        ("figure", "ParseFatalException"),
        ("surrogate", "ValueError: ?"),
        ("remark", "UnicodeEncodeError"),
        ("row name", "ValueError: rows must map names to rows"),
        ("rows", "ValueError: rows must map names to rows"),
        ("x64", ""),
    ],
)
def test_whatever_a_claim_does_wrong_is_its_own_affair(fault, reason, tmp_path, as_users):
    @claim(name="x.fault", **HEADER)
    def check(setting):
        if fault == "unusual":
            raise Unusual
        if fault == "exit":
            raise SystemExit(0)
        if fault == "surrogate":
            raise ValueError("\udc80")
        title = r"$\foo{$" if fault == "figure" else "t"
        found = Evidence(
            {b"\x80" if fault == "row name" else "row": 0.1 if fault == "rows" else identity(0.1, 1.0)},
            {"c": identity(5.0, 1.0)},
            [panel(title, ("x", np.arange(2)), observed={"o": np.arange(2)})],
            ["\udc80" if fault == "remark" else "a remark"],
        )
        if fault == "x64":
            jax.config.update("jax_enable_x64", False)
        return None if fault == "nothing" else found

    record, good = verify([check, make("x.good")], out=tmp_path)
    assert good["passed"] and jax.config.jax_enable_x64
    assert record["verdict"] == ("holds" if fault == "x64" else "undecided")
    assert reason in record["failure"].partition("Traceback")[0] and bool(record["failure"]) == (fault != "x64")
    assert record["dtype"] == "float64" and json.loads((tmp_path / "results.json").read_text())[0] == record


def test_an_out_that_cannot_be_written_is_found_before_any_check(tmp_path):
    calls = []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out must be a folder that can be written"):
        verify([make("x.a", calls=calls)], out=tmp_path / "file" / "sub")
    with pytest.raises(ValueError, match=r"claims must have names of their own, got two of x\.a"):
        verify([make("x.a", calls=calls), make("x.a", calls=calls)])
    assert not calls


def test_a_claim_whose_control_is_not_rejected_fails():
    (record,) = verify([make("x.loose", control=0.5)])
    assert record["verdict"] == "holds" and not record["control_rejected"] and not record["passed"]


def test_a_check_that_raises_is_undecided_and_the_others_go_on(tmp_path):
    broken, good = verify([make("x.broken", error=None), make("x.good")], out=tmp_path)
    assert broken["verdict"] == "undecided" and broken["measured"] is None and not broken["passed"]
    assert "no solution" in broken["failure"] and good["passed"]


def test_infinite_figures_are_valid_json(tmp_path):
    verify([make("x.wild", error=np.inf, control=np.inf)], out=tmp_path)
    (record,) = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert record["measured"] == "inf" and record["verdict"] == "refuted"


def test_an_interrupted_run_keeps_finished_claims_and_resume_goes_on(tmp_path, seen):
    @claim(name="x.interrupt", **HEADER)
    def interrupt(setting):
        raise KeyboardInterrupt

    setting = Setting("smoke", 0, "short")
    with pytest.raises(KeyboardInterrupt):
        verify([words, interrupt], setting, out=tmp_path)
    assert [r["name"] for r in json.loads((tmp_path / "results.json").read_text())] == ["x.words"]
    assert "x.words" in (tmp_path / "report.html").read_text()

    records = verify([words, late], setting, out=tmp_path, resume=True)
    assert seen == [5, "late"] and [r["name"] for r in records] == ["x.words", "x.late"]
    verify([words], Setting("smoke", 1, "short"), out=tmp_path, resume=True)
    assert seen[2:] == [5], "another seed is another run"


def test_resume_keeps_finished_claims_that_come_later_or_were_not_asked_for(tmp_path):
    names = lambda: {record["name"] for record in json.loads((tmp_path / "results.json").read_text())}
    verify([make("x.b"), make("x.c")], out=tmp_path)
    verify([make("x.a"), make("x.b")], out=tmp_path, resume=True)
    assert names() == {"x.a", "x.b", "x.c"}


def test_resume_runs_again_what_raised(tmp_path):
    calls = []
    verify([make("x.a", error=None, calls=calls)], out=tmp_path)
    assert verify([make("x.a", calls=calls)], out=tmp_path, resume=True)[0]["passed"]
    assert calls == ["x.a", "x.a"]


def test_what_raised_is_run_again_without_a_word_of_changes(tmp_path, seen):
    assert not verify([once], out=tmp_path)[0]["passed"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert verify([once], out=tmp_path, resume=True)[0]["passed"]


OWN = """
from traindyn.validate import agrees, claim, evidence, rounding

@claim("1 is two halves", source="arithmetic", assumptions=())
def half(setting):
    return evidence(agrees("sum", None, 0.5 + 0.5, {target}, {{"thirds": 2 / 3}}, within=rounding(8)))
"""


def run(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.mark.parametrize(("target", "status", "word"), [(1, 0, "holds"), (2, 1, "refuted")])
def test_a_users_own_claim_from_a_file_and_the_exit_status(tmp_path, target, status, word):
    module = tmp_path / f"own_{word}.py"
    module.write_text(OWN.format(target=target))
    result = run("verify", f"own_{word}", "--claims", module, "--scale", "smoke", "--out", tmp_path / "out")
    assert result.exit_code == status, result.output
    assert f"own_{word}.half" in result.output and word in result.output
    assert f"own_{word}.half" in run("list", "--claims", module).output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no_such_claim"], "no claim is named"),
        (["--scale", "huge"], "huge"),
        (["--seed", "-1"], "-1"),
        (["--claims", "no_such_module"], "cannot take claims"),
        (["--corpus", "/no/such/file"], "cannot be read"),
    ],
)
def test_bad_arguments_end_with_status_2_and_say_why(args, message):
    result = run("verify", *args)
    assert result.exit_code == 2 and message in result.output


def test_two_claims_of_one_name_are_refused(tmp_path):
    module = tmp_path / "own_twice.py"
    module.write_text(OWN.format(target=1) + "CLAIMS = (half, half)\n")
    result = run("list", "--claims", module)
    assert result.exit_code == 2 and "names of their own" in " ".join(result.output.split())


def test_a_file_whose_name_is_taken_is_refused(tmp_path):
    (tmp_path / "json.py").write_text(OWN.format(target=1))
    result = run("list", "--claims", tmp_path / "json.py")
    assert result.exit_code == 2 and "rename the file" in result.output
    assert str(tmp_path) not in sys.path  # where it would stand in the way of json


def test_files_beside_claims_take_no_modules_place(tmp_path):
    for name in ("json", "stat", "random"):
        (tmp_path / f"{name}.py").write_text("1 / 0\n")
    (tmp_path / "beside.py").write_text(OWN.format(target=1))
    program = [sys.executable, "-m", "traindyn"]
    options = ["--claims", tmp_path / "beside.py", "--scale", "smoke", "--jobs", "2", "--out", tmp_path / "out"]
    result = subprocess.run([*program, "verify", "beside", *map(str, options)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_list_names_every_claim_and_sweep_once():
    for command, known in ((("list",), built_in()), (("list", "--sweeps"), subjects())):
        lines = run(*command).output.splitlines()
        assert [line.split()[0] for line in lines] == [one.name for one in known]
        assert all(one.statement in line for one, line in zip(known, lines, strict=True))


def test_cite_prints_an_entry_for_every_paper_and_for_a_claim():
    everything = run("cite").output
    for paper in {each.name.split(".")[0] for each in built_in()}:
        entry = run("cite", paper).output
        assert entry.startswith("@") and entry.strip() in everything
    assert run("cite", "joma.erf_law").output == run("cite", "joma").output
    assert run("cite", "nothing").exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\xff\xfe\x00\x01", "must be that of UTF-8 text"), (b"a\0b", "null characters")],
)
def test_bad_corpora_say_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "corpus"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_corpus(path)


def test_the_default_corpus_needs_no_file():
    text, name = read_corpus()
    assert name == "pydoc_data.topics" and len(text.split()) > 10_000


def test_processes_compile_cheaply_and_as_the_user_has_said(monkeypatch):
    for given in ("--xla_backend_optimization_level=3", None):
        monkeypatch.setenv("XLA_FLAGS", given) if given else monkeypatch.delenv("XLA_FLAGS")
        for short in (False, True):
            with cheaply_compiling(short=short):
                flags = os.environ["XLA_FLAGS"].split()
            assert "--xla_cpu_parallel_codegen_split_count=1" in flags
            assert ("--xla_cpu_use_fusion_emitters=false" in flags) == short
            assert ("--xla_backend_optimization_level=1" in flags) == (short and not given)
            assert (given in flags) == bool(given) and os.environ.get("XLA_FLAGS") == given


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(_jax, "CHEAP", {"xla_of_another_year": 1})
    before = os.environ["XLA_FLAGS"]
    with cheaply_compiling(short=False):
        assert os.environ["XLA_FLAGS"] == before


def test_a_second_start_finds_what_the_first_compiled(tmp_path):
    cache = tmp_path / "cache" / "traindyn" / "jax"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    command = [sys.executable, "-m", "traindyn", "verify", "galore.gradient_form", "--scale", "smoke"]
    found = []
    for i in range(2):
        run = subprocess.run([*command, "--out", tmp_path / str(i)], env=environment, capture_output=True, check=True)
        assert b"cpu_aot_loader" not in run.stderr
        found.append({path.name for path in cache.glob("*-cache")})
    assert found[0] and found[1] == found[0]


def test_the_reason_of_a_failure_is_the_error_and_not_jaxs_note_on_it(tmp_path):
    @claim(name="x.inside", **HEADER)
    def check(setting):
        return jax.jit(lambda: joma.LinearActivation(jnp.ones(3)).exact(jnp.zeros(3), jnp.ones((2, 2))))()

    results = verify([check], out=tmp_path)
    assert str(results).endswith("x.inside: undecided: ValueError: ts must have shape (times,), got (2, 2).")
