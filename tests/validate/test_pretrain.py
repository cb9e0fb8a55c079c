"""`traindyn train` as a user runs it: killed and resumed, diverging, on several devices, and with bad arguments."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from traindyn.validate.__main__ import main
from traindyn.validate.pretrain import _evenly

SHORT = ("--length", "16", "--batch", "4", "--eval-every", "4", "--checkpoint-every", "2")
GALORE = ("--optimiser", "galore", "--rank", "8", "--gap", "3")


# Several runs in one process, for a process takes seconds to start.
RUNS = """
import json, sys
from traindyn.validate.__main__ import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, end.code
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    words = random.Random(0).choices(["one", "two", "three", "four", "fire", "water", "earth", "air"], k=1200)
    path.write_text(" ".join(words))
    return path


@pytest.fixture(scope="module")
def start(text):
    """Starts a process that does the runs given, on four devices. Compilations are cheap, and kept for the next."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(text.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

    def start(*runs):
        runs = [["train", "--corpus", str(text), *SHORT, *map(str, options)] for options in runs]
        call = [sys.executable, "-c", RUNS, json.dumps(runs)]
        return subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def _finish(process):
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, output + errors


def _lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def _kill_at(process, out, lines):
    """SIGKILL once the metrics have so many lines."""
    path, deadline = out / "metrics.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def _check_resumed(start, folder, options, kills, steps):
    unbroken, killed = folder / "unbroken", folder / "killed"
    options = (*options, "--steps", steps, "--out")
    for i, lines in enumerate(kills):
        _kill_at(start((*options, killed, *(["--resume"] if i else []))), killed, lines)
    _finish(start((*options, killed, "--resume"), (*options, unbroken)))
    assert (killed / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert (killed / "loss.png").read_bytes().startswith(b"\x89PNG")
    return _lines(unbroken)


def test_a_killed_run_goes_on_as_if_it_had_not_been(start, text, tmp_path):
    steps, kill = 16, random.randrange(1, 16)
    print(f"killed at line {kill}")
    lines = _check_resumed(start, tmp_path, (*GALORE, "--stacked", "--mesh", "1x1"), [kill], steps)
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, steps + 1))
    assert [line["tokens"] for line in training] == [64 * n for n in range(1, steps + 1)]
    assert training[0]["learning_rate"] == 0 and max(line["learning_rate"] for line in training) == pytest.approx(0.01)
    np.testing.assert_allclose(training[0]["loss"], np.log(256), rtol=0.02)  # nothing is known yet
    evaluated = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == list(range(4, steps + 1, 4))
    np.testing.assert_allclose([x["perplexity"] for x in evaluated], np.exp([x["eval_loss"] for x in evaluated]))
    assert evaluated[-1]["eval_loss"] < evaluated[0]["eval_loss"] - 1

    # The folder keeps the two newest checkpoints, and is guarded.
    out = tmp_path / "killed"
    assert {x.name for x in (out / "checkpoints").iterdir()} == {str(steps - 2), str(steps)}
    assert json.loads((out / "config.json").read_text())["rank"] == 8
    before = (out / "metrics.jsonl").read_bytes()
    same = ("train", "--corpus", str(text), "--out", str(out), "--steps", str(steps), *SHORT, *GALORE, "--stacked")
    same = (*same, "--mesh", "1x1")
    refused = {
        (): "holds a run already",
        ("--resume", "--seed", "1"): "--seed: must be as in the run that is resumed: seed was 0, got 1.",
        ("--resume", "--rank", "9"): "--rank: must be as in the run that is resumed: rank was 8, got 9.",
    }
    for more, message in refused.items():
        result = CliRunner().invoke(main, [*same, *more])
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    text.write_text(text.read_text() + " air")
    result = CliRunner().invoke(main, [*same, "--resume"])
    text.write_text(text.read_text().removesuffix(" air"))
    assert result.exit_code == 2 and "--corpus: must be as in the run" in " ".join(result.output.split())
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "options",
    (
        GALORE,
        ("--optimiser", "adam", "--stacked", "--remat"),
        ("--optimiser", "galore8bit", "--accumulate", "2", "--clip", "1", "--dtype", "bfloat16"),
        (*GALORE, "--mesh", "2x2"),
    ),
    ids=("galore", "stacked", "8 bit and accumulated", "mesh"),
)
def test_killed_runs_go_on_from_many_places(start, tmp_path, options, seed):
    kills = sorted(random.Random(seed).sample(range(1, 70), 3))
    _check_resumed(start, tmp_path, options, kills, 80)


@pytest.mark.parametrize(
    "options", (("--clip", "1"), pytest.param(GALORE, marks=pytest.mark.slow)), ids=("adam", "galore")
)
def test_a_mesh_of_devices_gives_the_losses_of_one(start, tmp_path, options):
    options = (*options, "--dtype", "float64", "--steps", "8")
    _finish(
        start(
            (*options, "--out", tmp_path / "one", "--mesh", "1x1"),
            (*options, "--out", tmp_path / "four", "--mesh", "2x2"),
        )
    )
    one, four = ([line.get("loss", line.get("eval_loss")) for line in _lines(tmp_path / x)] for x in ("one", "four"))
    assert len(one) == 10 and len(set(one)) == 10
    np.testing.assert_allclose(four, one, rtol=1e-9)


def test_a_diverged_run_says_where_keeps_everything_and_fails(text, tmp_path, as_users):
    out = tmp_path / "run"
    options = ("--optimiser", "sgd", "--learning-rate", "1e30", "--warmup", "3", "--steps", "20", "--eval-every", "20")
    call = ["train", "--corpus", str(text), "--out", str(out), *SHORT, *options]
    try:
        result = CliRunner().invoke(main, call)
    finally:
        jax.config.update("jax_enable_x64", True)  # the command computes in float32
    assert result.exit_code == 1, result.output
    lines = _lines(out)
    last = lines[-1]
    assert last["loss"] is None and last["finite"] is False and f"at step {last['step']} of 20" in result.output
    assert all(np.isfinite(line["loss"]) for line in lines[:-1]) and len(lines) == last["step"]
    kept = max(int(x.name) for x in (out / "checkpoints").iterdir())
    assert last["step"] - 2 <= kept < last["step"]
    assert (out / "loss.png").exists()


@pytest.mark.parametrize(
    ("options", "messages"),
    (
        (("--config", "2M"), ("--config", "2M", "tiny")),
        (("--vocabulary", "50"), ("--vocabulary", "got 50 with bytes")),
        (("--tokens", "words", "--vocabulary", "1"), ("--vocabulary", "1", "x>=2")),
        (("--rank", "4"), ("--rank", "got 4 with adam")),
        (("--gap", "4"), ("--gap", "got 4 with adam")),
        (("--scale", "0.5"), ("--scale", "got 0.5 with adam")),
        (("--optimiser", "sgd", "--weight-decay", "0.1"), ("--weight-decay", "got 0.1 with sgd")),
        (("--optimiser", "galore", "--rank", "65"), ("--rank", "at most 64", "got 65")),
        (("--steps", "10", "--warmup", "10"), ("--warmup", "below --steps 10", "got 10")),
        (("--learning-rate", "0"), ("--learning-rate", "0")),
        (("--length", "10000000"), ("--corpus", "--length 10000000 needs 10000001")),
        (("--mesh", "2"), ("--mesh", "2x4", "'2'")),
        (("--mesh", "0x2"), ("--mesh", "at least 1", "'0x2'")),
        (("--mesh", "3x5"), ("--mesh", "got 3x5")),
        (("--corpus", "no such file"), ("--corpus", "cannot be read")),
        (("--resume",), ("--resume", "no config.json")),
    ),
)
def test_bad_arguments_are_named(tmp_path, options, messages):
    result = CliRunner().invoke(main, ["train", "--out", str(tmp_path / "run"), *options])
    assert result.exit_code == 2, result.output
    words = " ".join(result.output.split())
    assert all(message in words for message in messages), result.output
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_must_have_the_same_options(tmp_path):
    base = ["train", "--out", str(tmp_path)]
    config = dict(config="tiny", corpus="pydoc_data.topics", steps=1000, seed=3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(main, [*base, "--resume"])
    assert result.exit_code == 2 and "--accumulate: must be as in the run" in " ".join(result.output.split())


def test_evaluation_windows_are_spread_over_the_text_without_overlap():
    ids = np.arange(1001)
    batches = _evenly(ids, 10, 8)
    windows = np.concatenate(batches)
    assert {b.shape for b in batches} == {(8, 11)} and len(windows) == 96
    np.testing.assert_array_equal(np.diff(windows), 1)
    assert np.all(np.diff(windows[:, 0]) >= 10) and windows[0, 0] == 0 and windows[-1, -1] > 950
    (few,) = _evenly(ids[:31], 10, 8)
    np.testing.assert_array_equal(few[:, 0], [0, 10, 20])
    assert sum(map(len, _evenly(np.arange(100_000), 10, 8))) == 256
