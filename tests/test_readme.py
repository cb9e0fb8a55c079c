"""The README's code runs as it stands."""

import importlib
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_examples_run_and_print_what_they_say(tmp_path):
    first, second, *_ = BLOCKS
    assert len(first.strip().splitlines()) <= 12
    run = subprocess.run(
        [sys.executable, "-c", first + second], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    error, drift = run.stdout.strip().split("\n", 1)
    assert float(error) < 1e-9
    drifts = [float(x) for x in drift.strip("[] ").split()]
    assert all(3 < larger / smaller < 6 for larger, smaller in pairwise(drifts)), "about a quarter at half the rate"


def test_the_sweep_runs_and_marks_what_diverges(tmp_path):
    run = subprocess.run([sys.executable, "-c", BLOCKS[2]], cwd=tmp_path, capture_output=True, text=True, check=True)
    drift, status = run.stdout.strip().split("\n")
    assert 0 < float(drift) < 0.1 and status == "[0 0 0 3]"


def test_a_trained_network_is_diagnosed_as_said(tmp_path):
    code = "".join(BLOCKS[i] for i in (0, 1, 3))
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = next(line for line in run.stdout.splitlines() if line.startswith("exponential attention"))
    assert said.startswith("exponential attention, stationary gradient () 0.03") and "joma.many_nodes  " in run.stdout


def test_the_optimiser_is_made_and_its_bytes_counted(tmp_path):
    code = BLOCKS[4]
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    bases = 4 * 64 * (256 + 1024 + 1024)
    low = 2 * (3 * 64 * 1024 + 4 * (1024 + 2 * 64 * 4))  # codes of two moments, and a scale for each 256 or row
    whole = 2 * (10 * 1024 + 4 * 10 * 4) + 2 * 4 * (3 * 1024 + 10)
    assert int(run.stdout) == bases + low + whole + 4 * (3 + 2 * 3) == 1040820


def test_what_galore_projects_is_printed_as_shown(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split(BLOCKS[5] + "```\n\n```\n")[1].split("```")[0]
    run = subprocess.run([sys.executable, "-c", BLOCKS[5]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.rstrip() for line in run.stdout.splitlines()] == shown.splitlines()


def test_the_users_own_claim_runs(tmp_path):
    (tmp_path / "my_claims.py").write_text(BLOCKS[6], encoding="utf-8")
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
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.replaced(text, readme.FLOWS, readme.flow_rows()) == text, "run make readme"
