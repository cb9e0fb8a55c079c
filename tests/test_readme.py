"""The README's code runs as it stands."""

import importlib
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def block(part: str) -> str:
    """The one block of code that has this part."""
    (found,) = [code for code in BLOCKS if part in code]
    return found


def ran(code: str, folder: Path) -> str:
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout


def test_the_examples_run_and_print_what_they_say(tmp_path):
    first, second, *_ = BLOCKS
    assert len(first.strip().splitlines()) <= 12
    error, drift = ran(first + second, tmp_path).strip().split("\n", 1)
    assert float(error) < 1e-9
    drifts = [float(x) for x in drift.strip("[] ").split()]
    assert all(3 < larger / smaller < 6 for larger, smaller in pairwise(drifts)), "about a quarter at half the rate"


def test_the_sweep_runs_and_marks_what_diverges(tmp_path):
    drift, status = ran(block("import sweep"), tmp_path).strip().split("\n")
    assert 0 < float(drift) < 0.1 and status == "[0 0 0 3]"


def test_a_theory_is_compared_as_shown(tmp_path):
    code = block("traindyn.compare(")
    shown = [line.removeprefix("# ") for line in code.split("print(found)\n")[1].splitlines()]
    words = lambda text: [word.strip("[],%") for word in text.split()]
    for line, printed in zip(shown, ran(code, tmp_path).splitlines(), strict=True):
        for asked, found in zip(words(line), words(printed), strict=True):
            try:
                assert float(found) == pytest.approx(float(asked), rel=0.5), printed  # rounding is in some of them
            except ValueError:
                assert found == asked, printed


def test_a_trained_network_is_diagnosed_as_said(tmp_path):
    printed = ran(BLOCKS[0] + BLOCKS[1] + block("traindyn.diagnose("), tmp_path)
    said = next(line for line in printed.splitlines() if line.startswith("exponential attention"))
    assert said.startswith("exponential attention, stationary gradient () 0.03") and "joma.many_nodes  " in printed


def test_the_optimiser_is_made_and_its_bytes_counted(tmp_path):
    printed = ran(block("quantize"), tmp_path)
    bases = 4 * 64 * (256 + 1024 + 1024)
    low = 2 * (3 * 64 * 1024 + 4 * (1024 + 2 * 64 * 4))  # codes of two moments, and a scale for each 256 or row
    whole = 2 * (10 * 1024 + 4 * 10 * 4) + 2 * 4 * (3 * 1024 + 10)
    assert int(printed) == bases + low + whole + 4 * (3 + 2 * 3) == 1040820


def test_what_galore_projects_is_printed_as_shown(tmp_path):
    code = block("galore_summary(")
    shown = README.split(code + "```\n\n```\n")[1].split("```")[0]
    assert [line.rstrip() for line in ran(code, tmp_path).splitlines()] == shown.splitlines()


def test_the_users_own_claim_runs(tmp_path):
    (tmp_path / "my_claims.py").write_text(block("# my_claims.py"), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "traindyn",
        "verify",
        "my_claims",
        "--claims",
        "my_claims.py",
        "--scale",
        "smoke",
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "my_claims.decay" in run.stdout, run.stdout + run.stderr


def test_the_table_of_flows_is_what_the_library_has(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    readme = importlib.import_module("readme")
    assert readme.replaced(README, readme.FLOWS, readme.flow_rows()) == README, "run make readme"
