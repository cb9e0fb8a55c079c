"""`traindyn sweep` and `traindyn train`, ended by signals at random moments: nothing lost, no process left, and when
the same command is given again, the results of an unbroken run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import xarray as xr

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
MOMENTS = 20
TRAIN = (
    "--length",
    "16",
    "--batch",
    "4",
    "--steps",
    "80",
    "--eval-every",
    "20",
    "--checkpoint-every",
    "3",
    "--clip",
    "1",
)
SWEEP = ("--axis", "learning_rate=1e-5:3e-5:6", "--axis", "seed=0:4", "--batch-size", "2", "--devices", "1")


class Job(NamedTuple):
    """A command, and the folder and the seconds that it took unbroken."""

    name: str
    environment: dict[str, str]
    arguments: tuple[str, ...]
    unbroken: Path
    seconds: float

    def start(self, out: Path, *more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "traindyn", self.name, *self.arguments, "--out", str(out), *more],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment, start_new_session=True,
        )  # fmt: skip

    def begun(self, out: Path) -> list[Path]:
        """The files by which a run shows that it works."""
        return list(out.glob("metrics.jsonl" if self.name == "train" else "chunk-*.npz"))

    def again(self, out: Path) -> subprocess.Popen:
        """The command that goes on: a sweep needs no option for it, nor does a run that has not made its folder."""
        return self.start(out, *(["--resume"] if self.name == "train" and (out / ".lock").exists() else []))

    def check_equal(self, out: Path) -> None:
        if self.name == "train":
            assert (out / "metrics.jsonl").read_bytes() == (self.unbroken / "metrics.jsonl").read_bytes()
        else:
            with xr.open_dataset(out / "sweep.nc") as found, xr.open_dataset(self.unbroken / "sweep.nc") as unbroken:
                xr.testing.assert_identical(found, unbroken)


# The two share how they write, lock and go on; the sweep has a kill of its own in test_sweeps.py.
@pytest.fixture(scope="module", params=[pytest.param("sweep", marks=pytest.mark.slow), "train"])
def job(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # twenty processes, which compile for longer than they run
    }
    if request.param == "train":
        (place / "text").write_text(" ".join(random.Random(0).choices(["one", "two", "three", "four"], k=1500)))
        arguments = ("--corpus", str(place / "text"), *TRAIN)
    else:
        arguments = ("joma.LinearAttention", *SWEEP)
    made = Job(request.param, environment, arguments, place / "unbroken", 0.0)
    _finish(made.start(place / "first"))  # which compiles
    start = time.monotonic()
    _finish(made.start(made.unbroken))
    return made._replace(seconds=time.monotonic() - start)


def _finish(process: subprocess.Popen) -> None:
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told


def _kill(process: subprocess.Popen, how: signal.Signals) -> str:
    """Ends a run, SIGINT sent to the whole group as a terminal does; no process may be left after five seconds.
    Returns its words."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    if how is signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    _, alive = psutil.wait_procs(family[1:], timeout=1)
    assert not alive, f"{how.name} left {alive}"
    return process.stdout.read()


def _goes_on(job: Job, out: Path, how: signal.Signals, after: float) -> None:
    process = job.start(out)
    time.sleep(after)
    begun = bool(job.begun(out)) and not (out / ("loss.png" if job.name == "train" else "figure.png")).exists()
    chunks = {path: path.read_bytes() for path in out.glob("chunk-*.npz")}
    if process.poll() is None:
        told = _kill(process, how)
        if begun and how is not signal.SIGKILL:
            word, status = ("Interrupted", 130) if how is signal.SIGINT else ("Terminated", 143)
            assert word in told, told  # a garbage collector's callback may have told of it too
            assert process.returncode == status
    _finish(job.again(out))
    job.check_equal(out)
    assert all(path.read_bytes() == content for path, content in chunks.items()), "a finished chunk was done again"


def test_a_run_that_is_ended_goes_on(job, tmp_path):
    """By any of the signals, at any moment; the slow test takes all of them."""
    how = random.choice(SIGNALS)
    after = job.seconds * random.uniform(0.4, 1.0)
    print(f"{job.name} ended by {how.name} after {after:.2f} of {job.seconds:.2f} s")
    _goes_on(job, tmp_path / "run", how, after)


@pytest.mark.slow
@pytest.mark.parametrize("how", SIGNALS, ids=lambda how: how.name)
def test_a_run_ended_at_twenty_moments_goes_on(job, how, tmp_path):
    rng = random.Random(how.value)
    for i in range(MOMENTS):
        _goes_on(job, tmp_path / str(i), how, rng.uniform(0.0, 1.1 * job.seconds))


def test_of_two_at_once_the_second_is_told(job, tmp_path):
    first = job.start(tmp_path)
    deadline = time.monotonic() + 120
    while not job.begun(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    second = job.again(tmp_path)
    told, _ = second.communicate(timeout=120)
    ended = first.poll() is not None
    _finish(first)
    assert ended or (second.returncode == 2 and "in use by another process" in " ".join(told.split())), told
    job.check_equal(tmp_path)
