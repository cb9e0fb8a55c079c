"""`verify` as a process among others: signals, deaths, time limits, two at once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

HERE = Path(__file__).parent
NAMES = {"slow.one", "slow.two", "slow.three", "slow.four"}


def start(out, *more, claims="claims_to_kill.py", jobs=2):
    arguments = ["verify", "slow", "--claims", str(HERE / claims), "--jobs", str(jobs), "--out", str(out), *more]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "traindyn", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
    )  # fmt: skip


def kill(process, how: signal.Signals) -> list[psutil.Process]:
    """Sends a signal, SIGINT to the whole group as a terminal does, and returns those that were alive."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    if how is signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    return family


def records(out: Path) -> dict[str, dict]:
    path = out / "results.json"
    return {r["name"]: r for r in json.loads(path.read_text())} if path.exists() else {}


def _ends(out: Path, how: signal.Signals, process, seconds: float) -> None:
    """Killed now, `verify` leaves no process and loses nothing; resumed, it ends as if unharmed."""
    family = kill(process, how)
    told, _ = process.communicate(timeout=seconds)
    _, alive = psutil.wait_procs(family[1:], timeout=seconds)
    assert not alive, f"{how.name} left {alive}"
    before = records(out)
    if how is not signal.SIGKILL and "slow." in told:  # else Python's own start was interrupted
        word, status = ("Interrupted", 130) if how is signal.SIGINT else ("Terminated", 143)
        assert word in told and process.returncode == status and "Traceback" not in told, told
    again = start(out, "--resume")
    told, _ = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert set(records(out)) == NAMES
    assert all(records(out)[name] == record for name, record in before.items()), "what was finished is taken as it is"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_killed_run_leaves_no_process_and_goes_on(how, tmp_path):
    process = start(tmp_path)
    while not records(tmp_path) and process.poll() is None:
        time.sleep(0.02)
    _ends(tmp_path, how, process, 30.0)  # other tests keep both cores busy


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_run_killed_at_twenty_moments_goes_on(how, tmp_path):
    """Within 5 s, on a machine that does nothing else."""
    rng = random.Random(how.value)
    for i in range(20):
        process = start(tmp_path / str(i))
        time.sleep(rng.uniform(0.5, 9.0))
        if process.poll() is None:
            _ends(tmp_path / str(i), how, process, 5.0)


def test_a_process_that_dies_or_takes_too_long_costs_its_own_claim(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)  # the processes get it too
    from claims_to_kill import endless, exits, killed, one, two

    from traindyn.validate import verify

    found = verify([killed, one, endless, exits, two], out=tmp_path, jobs=2, time_limit=5.0)
    assert [r["verdict"] for r in found] == ["undecided", "holds", "undecided", "undecided", "holds"]
    assert "killed by signal 9" in found[0]["failure"] and "time limit of 5 s" in found[2]["failure"]
    assert "SystemExit" in found[3]["failure"]
    assert set(records(tmp_path)) == {r["name"] for r in found}


@pytest.mark.skipif(os.name == "nt", reason="no fork")
def test_children_of_claims_hold_nothing_up_and_stay_nowhere(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(tmp_path)
    from claims_to_kill import exits_hard, forked, interrupts, leaves, one

    from traindyn.validate import verify

    found = verify([forked, interrupts, exits_hard, leaves, one], jobs=2, time_limit=1e300)
    assert [r["verdict"] for r in found] == ["undecided", "undecided", "undecided", "holds", "holds"]
    reasons = ("killed by signal 9", "raised KeyboardInterrupt", "exit status 0")
    assert all(reason in r["failure"] for reason, r in zip(reasons, found, strict=False))
    child = int((tmp_path / "child").read_text())
    _, alive = psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=5)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_a_process_that_has_grown_large_gets_no_other_claim(tmp_path, monkeypatch):
    sys.path.append(str(HERE))
    from claims_to_kill import after, large, small

    from traindyn.validate import verify

    monkeypatch.chdir(tmp_path)
    records = verify([small, large, after], time_limit=1e3)
    assert [record["verdict"] for record in records] == ["holds"] * 3
    pids = [(tmp_path / f"pid of {name}").read_text() for name in ("small", "large", "after")]
    assert pids[0] == pids[1] != pids[2]


SCRIPT = """
import sys
from traindyn.validate import Evidence, Setting, claim, identity, verify

@claim("s", source="", assumptions=())
def check(setting):
    print("checked", flush=True)
    return Evidence({"r": identity(float(sys.argv[1]), 1.0)}, {"c": identity(5.0, 1.0)})

if __name__ == "__main__":
    (record,) = verify([check], Setting("smoke"), out="out", resume=True, jobs=int(sys.argv[2]))
    print(record["measured"])
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_script_is_resumed_unless_its_arguments_differ(jobs, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    run = lambda number: subprocess.run(
        [sys.executable, "script.py", number, jobs], cwd=tmp_path, capture_output=True, text=True
    ).stdout.split()
    assert run("0.1") == ["checked", "0.1"] and run("0.1") == ["0.1"] and run("0.2") == ["checked", "0.2"]


def test_a_users_claim_can_not_end_the_program(tmp_path):
    """With one claim, too: it has a process of its own."""
    path = tmp_path / "hard.py"
    path.write_text(
        f"import sys\nsys.path.append({str(HERE)!r})\nfrom claims_to_kill import exits_hard\nCLAIMS = (exits_hard,)\n"
    )
    run = _command("verify", "slow", "--claims", str(path), "--out", str(tmp_path / "out"))
    assert run.returncode == 1 and b"exit status 0" in run.stdout and b"0 of 1 claims hold" in run.stdout


@pytest.mark.parametrize("text", ["class Skipped(BaseException): ...\nraise Skipped('no')", "raise SystemExit(0)"])
def test_a_claims_file_that_ends_itself_is_a_bad_argument(text, tmp_path):
    (tmp_path / "skips.py").write_text(text)
    run = _command("list", "--claims", str(tmp_path / "skips.py"))
    assert run.returncode == 2 and b"cannot take claims from" in run.stderr and b"Traceback" not in run.stderr


def test_without_a_device_a_command_says_so():
    for command in (("verify", "joma.erf_law"), ("sweep", "joma.LinearActivation"), ("train",)):
        run = _command(*command, JAX_PLATFORMS="nowhere")
        assert run.returncode == 2 and b"JAX finds no device" in run.stderr, run.stderr


def test_a_time_limit_needs_claims_that_can_be_sent():
    from traindyn.validate import Evidence, claim, identity, verify

    @claim("s", source="", assumptions=(), name="a.here")
    def here(setting):
        return Evidence({"r": identity(0.0, 1.0)}, {"c": identity(2.0, 1.0)})

    with pytest.raises(ValueError, match=r"claims must stand at the top level .*a\.here can't be given"):
        verify([here], time_limit=1.0)
    assert verify([here], jobs=2)[0]["passed"], "without a limit it is checked in this process"


def test_two_runs_in_one_folder_keep_all(tmp_path):
    runs = [start(tmp_path, "--seed", str(seed), jobs=1) for seed in (0, 1)]
    assert [run.wait(120) for run in runs] == [0, 0]
    found = json.loads((tmp_path / "results.json").read_text())
    assert {(r["name"], r["seed"]) for r in found} == {(name, seed) for name in NAMES for seed in (0, 1)}


def _command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "traindyn", *arguments],
        capture_output=True, env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    )  # fmt: skip


def test_a_narrow_pipe_and_a_missing_home_end_no_command(tmp_path):
    for environment in ({"PYTHONIOENCODING": "cp1252"}, {"HOME": "", "XDG_CACHE_HOME": ""}):
        told = _command("list", **environment)
        assert told.returncode == 0 and b"joma.blow_up" in told.stdout, told.stderr


def test_a_broken_claims_file_is_told_in_a_line(tmp_path):
    (tmp_path / "broken_claims.py").write_text("def (:\n")
    told = _command("list", "--claims", str(tmp_path / "broken_claims.py"))
    assert told.returncode == 2 and b"SyntaxError" in told.stderr and b"Traceback" not in told.stderr
