"""`traindyn train` as a user runs it: killed and resumed, diverging, on several devices, and with bad arguments."""

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import config as jaxtyping_config

from traindyn.__main__ import main
from traindyn._files import locked
from traindyn.nets import training_run as pretrain
from traindyn.nets.training_plan import SIZES, BadOption, _tokens
from traindyn.nets.training_run import _evenly

CACHE = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
SHORT = ("--length", "16", "--batch", "4", "--eval-every", "4", "--checkpoint-every", "2")
GALORE = ("--optimiser", "galore", "--rank", "8", "--gap", "3")


# Several runs in one process, for a process takes seconds to start.
RUNS = """
import dataclasses, json, sys
from traindyn.__main__ import main
from traindyn.nets.training_plan import SIZES
SIZES["tiny"] = dataclasses.replace(SIZES["tiny"], layers=int(sys.argv[2]))
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


@pytest.fixture(scope="module", autouse=True)
def compiled_once(text):
    """Runs in this process find again what others compiled, in a folder of this module. Their model has one layer:
    they trace and compile for longer than they compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", dataclasses.replace(SIZES["tiny"], layers=1))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(text.parent / "cache in here"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        old = [(name, getattr(jax.config, name)) for name in CACHE]
        for name, value in zip(CACHE, (True, os.environ["JAX_COMPILATION_CACHE_DIR"], 0.1), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
        for name, value in old:
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def start(text):
    """Starts a process that does the runs given, on four devices. Compilations are cheap, and kept for the next."""
    environment = {
        **os.environ,
        "JAX_ENABLE_COMPILATION_CACHE": "true",  # off for the tests
        "JAX_COMPILATION_CACHE_DIR": str(text.parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        # beside the cheaper code of the tests
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4 "
        "--xla_backend_optimization_level=0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

    def start(*runs, layers=2):
        runs = [["train", "--corpus", str(text), *SHORT, *map(str, options)] for options in runs]
        call = [sys.executable, "-c", RUNS, json.dumps(runs), str(layers)]
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
            layers=1,
        )
    )
    one, four = ([line.get("loss", line.get("eval_loss")) for line in _lines(tmp_path / x)] for x in ("one", "four"))
    assert len(one) == 10 and len(set(one)) == 10
    np.testing.assert_allclose(four, one, rtol=1e-9)


def test_a_diverged_run_says_where_keeps_everything_and_fails(text, tmp_path, as_users):
    out = tmp_path / "run"
    options = ("--optimiser", "sgd", "--learning-rate", "1e30", "--warmup", "3", "--steps", "20", "--eval-every", "20")
    call = ["train", "--corpus", str(text), "--out", str(out), *SHORT, *options]
    result = CliRunner().invoke(main, call)
    assert jax.config.jax_enable_x64, "the command computes in float32, and leaves the setting as it was"
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
        (("--learning-rate", "nan"), ("--learning-rate", "nan is not a finite number")),
        (("--learning-rate", "inf"), ("--learning-rate", "inf is not a finite number")),
        (("--clip", "nan"), ("--clip", "nan is not a finite number")),
        (("--optimiser", "galore", "--scale", "nan"), ("--scale", "nan is not a finite number")),
        (("--optimiser", "adamw", "--weight-decay", "nan"), ("--weight-decay", "nan is not a finite number")),
        (("--seed", str(2**70)), ("--seed", "0<=x<=9223372036854775807")),
        (("--out", "/proc/run"), ("--out", "must be a folder that can be written, got '/proc/run'")),
        (("--steps", str(10**20)), ("--steps", "at most 2147483647", str(10**20))),
        (("--optimiser", "galore", "--gap", str(10**20)), ("--gap", "at most 2147483647", str(10**20))),
        (("--accumulate", str(10**20)), ("--accumulate", "at most 2147483647", str(10**20))),
        (
            ("--steps", str(2**31 - 1), "--accumulate", "3"),
            ("--accumulate", "at most 2 with 2147483647 steps", "got 3"),
        ),
        (("--batch", str(10**18)), ("--batch", "for its logits to fit into", str(10**18))),
        (("--learning-rate", "1e-320"), ("--learning-rate", "from 1.18e-38 to 3.4e+38 in float32", "got 1e-320")),
        (("--learning-rate", "1e39", "--dtype", "bfloat16"), ("--learning-rate", "in bfloat16", "got 1e+39")),
        (("--clip", "1e-300"), ("--clip", "from 1.18e-38 to 3.4e+38 in float32", "got 1e-300")),
        (("--clip", "1e-320", "--dtype", "float64"), ("--clip", "from 2.23e-308 to 1.8e+308 in float64", "got 1e-320")),
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


# A finished run of four steps, its folder then spoiled in one way or another.

FOUR = ("--length", "8", "--batch", "2", "--steps", "4", "--eval-every", "1", "--checkpoint-every", "1")


def _train(text, out, *more):
    return CliRunner().invoke(main, ["train", "--corpus", str(text), "--out", str(out), *FOUR, *more])


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    jaxtyping_config.update("jaxtyping_disable", True)  # the schedule is called with float32 under strict promotion
    result = _train(text, out)
    jaxtyping_config.update("jaxtyping_disable", False)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _without(path, number):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:number] + lines[number + 1 :]))


MENDED = {
    "one bit of the newest checkpoint": (lambda run: _flip_a_bit(_largest(run / "checkpoints/4")), "its digest does"),
    "a checkpoint without its files": (lambda run: shutil.rmtree(run / "checkpoints/4/default"), "can't be read"),
    "an empty checkpoint": (lambda run: _largest(run / "checkpoints/4").write_bytes(b""), "can't be read"),
    "the end of the metrics": (
        lambda run: (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[:-20]),
        "metrics.jsonl is not as it was written",
    ),
    "a line of the last step": (lambda run: _without(run / "metrics.jsonl", 6), "can be read to step 3 only"),
    "what is no line at the end": (
        lambda run: (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes() + b"\0\0\n"),
        "can't be read after line 8: the rest is dropped",
    ),
    "an empty config": (lambda run: (run / "config.json").write_text(""), "config.json is damaged (Expecting value"),
    "a config of a list": (lambda run: (run / "config.json").write_text("[]"), "is damaged (it holds no options)"),
    "no config": (lambda run: (run / "config.json").unlink(), "config.json is missing; the options given are those"),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint: the run begins again"),
    "a deep config": ((lambda run: (run / "config.json").write_text("[" * 100_000)), "config.json is damaged (maximum"),
    "a deep line": (
        lambda run: (run / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes() + b"[" * 100_000 + b"\n"),
        "can't be read after line 8: the rest is dropped",
    ),
    "a checkpoint under another name": (lambda run: (run / "checkpoints/4").rename(run / "checkpoints/04"), ""),
    "a copy of a checkpoint": (
        lambda run: shutil.copytree(run / "checkpoints/4", run / "checkpoints/5"),
        "the checkpoint of step 5 can't be used: {run}/metrics.jsonl can be read to step 4 only",
    ),
    "a checkpoint beside a file where it would be kept": (
        lambda run: ((run / "damaged-checkpoint-4").touch(), _flip_a_bit(_largest(run / "checkpoints/4"))),
        "It is now {run}/damaged-checkpoint-4-1; the run goes on from step 3",
    ),
    "a file of a checkpoint's index": (
        lambda run: _flip_a_bit(_largest(run / "checkpoints/4/default/d")),
        "the checkpoint of step 4 can't be used: it can't be read",
    ),
    "a half checkpoint": (lambda run: (run / "checkpoints/3.orbax-checkpoint-tmp-1").mkdir(), ""),
}


USUAL = ("one bit of the newest checkpoint", "the end of the metrics", "an empty config")
CASES = [pytest.param(*MENDED[name], id=name, marks=() if name in USUAL else pytest.mark.slow) for name in MENDED]


@pytest.mark.parametrize(("spoil", "warning"), CASES)
def test_what_is_damaged_is_done_again(text, finished, run, spoil, warning, monkeypatch, as_users):
    spoil(run)
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    result = _train(text, run, "--resume")
    assert result.exit_code == 0 and warning.format(run=run) in " ".join(result.output.split()), result.output
    assert not told and sys.unraisablehook == told.append
    for name in ("metrics.jsonl", "config.json"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    assert {"3", "4"} <= {path.name for path in (run / "checkpoints").iterdir()}


REFUSED = {
    "a hole in the metrics": (lambda run: _without(run / "metrics.jsonl", 2), "has step 3 where step 2 should be"),
    "a number in the metrics": (
        lambda run: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("5.", "4.", 1)),
        "metrics.jsonl is not as it was written",
    ),
    "no metrics": (lambda run: (run / "metrics.jsonl").unlink(), "can be read to step 0 only"),
    "both checkpoints": (
        lambda run: [_flip_a_bit(_largest(run / f"checkpoints/{step}")) for step in (3, 4)],
        "step 4: its digest does not fit its arrays; step 3: its digest",
    ),
    "another run's checkpoints": (
        lambda run: (run / "config.json").write_text(
            (run / "config.json").read_text().replace('"seed": 0', '"seed": 7')
        ),
        "seed was 7, got 0",
    ),
    "no config and no checkpoints": (
        lambda run: [(run / "config.json").unlink(), shutil.rmtree(run / "checkpoints")],
        "needs config.json, which is missing",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_what_nothing_can_mend_is_refused_and_left_as_it_is(text, run, spoil, message, as_users):
    spoil(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = _train(text, run, "--resume")
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_checkpoints_of_other_options_are_not_taken(text, run, as_users):
    (run / "config.json").unlink()
    result = _train(text, run, "--resume", "--seed", "7")
    assert result.exit_code == 2 and "it is of a run with other options" in " ".join(result.output.split())
    assert not (run / "config.json").exists()


def test_a_run_without_its_config_is_not_taken_over(text, run):
    (run / "config.json").unlink()
    result = _train(text, run)
    assert result.exit_code == 2 and "holds metrics.jsonl and checkpoints of a run" in " ".join(result.output.split())


def test_one_process_at_a_time_trains_in_a_folder(text, run):
    with locked(run):
        result = _train(text, run, "--resume")
    assert result.exit_code == 2 and "in use by another process" in " ".join(result.output.split())


def test_what_ended_before_its_first_step_starts_anew(text, finished, tmp_path, as_users):
    with locked(tmp_path / "run"):  # all that such a process leaves
        pass
    assert _train(text, tmp_path / "run", "--resume").exit_code == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_a_start_that_fails_leaves_the_folder_to_the_next(text, tmp_path, monkeypatch, as_users):
    def fails(*_):
        raise MemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(pretrain._Run, "_advance", fails)
        assert isinstance(_train(text, tmp_path / "run").exception, SystemExit | MemoryError)
    assert _train(text, tmp_path / "run", "--seed", "1").exit_code == 0


def test_what_an_aborted_run_leaves_is_no_run(text, finished, tmp_path, as_users):
    """A process that ends without a word, as one without memory does, leaves its options and no step."""
    options = json.loads((finished / "config.json").read_text()) | {"batch": 3}
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "config.json").write_text(json.dumps(options))
    assert _train(text, tmp_path).exit_code == 0
    for name in ("metrics.jsonl", "config.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.parametrize(("name", "content"), [("config.json", '{"mine": 1}'), ("checkpoints", "")])
def test_files_of_others_are_left_as_they_are(text, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    result = _train(text, tmp_path)
    words = " ".join(result.output.split())
    assert result.exit_code == 2 and ("holds a run already" in words or f"{name} is no folder" in words), words
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: content}


def test_files_that_cannot_be_written_are_named_and_the_run_goes_on_later(text, finished, tmp_path, as_users):
    """A limit on the size of files stands for a full disk."""
    out, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        result = _train(text, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 3 and f"Error: {out / 'checkpoints/1'}: " in result.output, result.output
    assert "Traceback" not in result.output
    result = _train(text, out, "--resume")
    assert result.exit_code == 0, result.output
    assert (out / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_a_seed_counts_in_all_its_bits():
    keys = {tuple(jax.random.key_data(pretrain._key(seed)).tolist()) for seed in (0, 1, 2**32, 2**33, 2**33 + 1)}
    assert len(keys) == 5
    np.testing.assert_array_equal(jax.random.key_data(pretrain._key(3)), jax.random.key_data(jax.random.key(3)))


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


def test_an_option_that_cannot_be_is_a_value_error_outside_the_command_line():
    with pytest.raises(ValueError, match=r"^vocabulary is for --tokens words, got 5 with bytes") as caught:
        _tokens("some text", "tiny", "bytes", 5)
    assert isinstance(caught.value, BadOption) and caught.value.option == "vocabulary"
