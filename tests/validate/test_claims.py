"""Every built-in claim at the smoke scale, through the command line as a user runs it."""

import json
import subprocess
import sys

import pytest

from traindyn.validate import built_in


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, "-m", "traindyn", "verify", "--scale", "smoke", "--time-limit", "600", "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run, {record["name"]: record for record in json.loads((out / "results.json").read_text())}


@pytest.mark.parametrize("name", [claim.name for claim in built_in()])
def test_claim_holds_and_its_control_is_rejected(results, name):
    record = results[1][name]
    not_holding = [row for row in record["rows"] if row["verdict"] != "holds"]
    not_refuted = [row for row in record["control_rows"] if row["verdict"] != "refuted"]
    assert record["passed"], (not_holding, not_refuted, record["failure"])


def test_status_and_table(results):
    run, records = results
    assert run.returncode == 0 and len(records) == len(built_in())
    assert all(name in run.stdout for name in records)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_claims_hold_at_other_seeds_too(tmp_path, seed):
    command = [sys.executable, "-m", "traindyn", "verify", "--scale", "laptop", "--seed", str(seed)]
    run = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
