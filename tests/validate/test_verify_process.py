"""`verify` as a process among others: signals, deaths, time limits, two at once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import psutil
import pytest
from click.testing import CliRunner

from traindyn.__main__ import main

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
    words = ["verify", "slow", "--claims", str(HERE / "claims_to_kill.py"), "--jobs", "1", "--out", str(out)]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in the process that was killed
        again = CliRunner().invoke(main, [*words, "--resume"])
    assert again.exit_code == 0 and "checked again" not in again.output, again.output
    assert set(records(out)) == NAMES
    assert all(records(out)[name] == record for name, record in before.items()), "what was finished is taken as it is"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
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


@pytest.fixture(scope="module")
def badly_behaved(tmp_path_factory):
    """One run of claims that die, take too long or leave children, for each may cost a process; and its folder."""
    from traindyn.validate import verify

    out = tmp_path_factory.mktemp("badly behaved")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)  # the processes get it too
        patch.chdir(out)
        import claims_to_kill as c

        claims = [c.killed, c.one, c.endless, c.exits, c.two]
        if os.name != "nt":
            claims += [c.forked, c.interrupts, c.exits_hard, c.leaves, c.three]
        verify(claims, out=out, jobs=2, time_limit=5.0, on_record=(found := []).append)
    return {record["name"].removeprefix("slow."): record for record in found}, out


def _verdicts(found, *names):
    return [found[name]["verdict"] for name in names]


def test_a_process_that_dies_or_takes_too_long_costs_its_own_claim(badly_behaved):
    found, out = badly_behaved
    assert _verdicts(found, "killed", "endless", "exits") == ["undecided"] * 3
    assert _verdicts(found, "one", "two") == ["holds"] * 2
    assert "killed by signal 9" in found["killed"]["failure"]
    assert "time limit of 5 s" in found["endless"]["failure"]
    assert "SystemExit" in found["exits"]["failure"]
    assert set(records(out)) == {r["name"] for r in found.values()}


@pytest.mark.skipif(os.name == "nt", reason="no fork")
def test_children_of_claims_hold_nothing_up_and_stay_nowhere(badly_behaved):
    found, out = badly_behaved
    assert _verdicts(found, "forked", "interrupts", "exits_hard") == ["undecided"] * 3
    assert _verdicts(found, "leaves", "three") == ["holds"] * 2
    assert "killed by signal 9" in found["forked"]["failure"]
    assert "raised KeyboardInterrupt" in found["interrupts"]["failure"]
    assert "exit status 0" in found["exits_hard"]["failure"]
    child = int((out / "child").read_text())
    _, alive = psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=5)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_a_process_that_has_grown_large_gets_no_other_claim(tmp_path, monkeypatch):
    sys.path.append(str(HERE))
    from claims_to_kill import after, large, small

    from traindyn.validate import verify

    monkeypatch.chdir(tmp_path)
    records = verify([small, large, after], time_limit=1e300)
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
    (record,) = verify([check], Setting("smoke"), out="out", resume=True, jobs=int(open("jobs").read()))
    print(record["measured"])
"""


def test_a_script_is_resumed_unless_its_arguments_differ(tmp_path):
    """In the process itself, and in one that it starts."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(number, jobs):
        (tmp_path / "jobs").write_text(jobs)
        call = [sys.executable, "script.py", number]
        return subprocess.run(call, cwd=tmp_path, capture_output=True, text=True).stdout.split()

    for number, jobs in (("0.1", "1"), ("0.2", "2")):
        assert run(number, jobs) == ["checked", number] and run(number, jobs) == [number]
    assert run("0.1", "1") == ["checked", "0.1"]


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
    told = CliRunner().invoke(main, ["list", "--claims", str(tmp_path / "skips.py")])
    assert told.exit_code == 2 and "cannot take claims from" in told.stderr and "Traceback" not in told.stderr


# Several commands in one process, for a process takes seconds to start.
COMMANDS = """
import json, sys
from traindyn.__main__ import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        print(end.code, flush=True)
"""


def test_without_a_device_a_command_says_so():
    commands = (("verify", "joma.erf_law"), ("sweep", "joma.LinearActivation"), ("train",))
    run = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "nowhere"},
    )  # fmt: skip
    assert run.stdout.split() == ["2"] * 3, run.stdout + run.stderr
    told = run.stderr.split("Usage: ")[1:]
    assert [" ".join(one.split()[1:2]) for one in told] == ["verify", "sweep", "train"], run.stderr
    assert all("JAX finds no device" in one for one in told), run.stderr


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
    told = CliRunner().invoke(main, ["list", "--claims", str(tmp_path / "broken_claims.py")])
    assert told.exit_code == 2 and "SyntaxError" in told.stderr and "Traceback" not in told.stderr
