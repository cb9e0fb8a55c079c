"""Every bad input ends well: nothing fatal, no wrong number in silence, fewer than 5 % of errors from deep inside."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("table", ["dynamics", "nets", "validate", "command_line"])
def test_bad_inputs_end_well(table: str):
    """In a process of its own, without the shape checks that tests have."""
    run = subprocess.run(
        [sys.executable, "-m", "bad_input", table], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
