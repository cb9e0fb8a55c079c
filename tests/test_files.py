"""Files: whole or not at all, one process at a time, and a folder that cannot be written is found before work."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from traindyn import _files as files

HOLD = """
import sys, time
from pathlib import Path
from traindyn import _files as files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "a.json"
    files.write(path, "one")
    files.write(path, b"two")
    assert path.read_text() == "two"
    files.write(path, lambda file: file.write(b"three"))
    assert path.read_text() == "three"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_named_and_harms_nothing(tmp_path: Path):
    path = tmp_path / "a.json"
    files.write(path, "one")

    def full(file):
        file.write(b"tw")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*a\.json"):
        files.write(path, full)
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_device_that_is_full(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / f".a.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        files.write(tmp_path / "a", "one")
    assert not [*tmp_path.iterdir()]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path):
    (tmp_path / ".a.json.7.part").write_bytes(b"")
    (tmp_path / "b.json").write_bytes(b"")
    files.clear_parts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]


@pytest.mark.parametrize("out", ["file", "file/below", "folder"])
def test_a_folder_that_cannot_be_written_is_found_before_work(tmp_path: Path, out: str):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "results.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^out must be a folder that can be written, got '.*': "):
        files.check_writable(tmp_path / out, "results.json")


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path: Path):
    files.check_writable(tmp_path / "new" / "folder", "results.json")
    files.check_writable(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_read_only_disk():
    if not Path("/sys/kernel").is_dir():
        pytest.skip("no /sys here")
    with pytest.raises(ValueError, match=r"^out must be a folder that can be written"):
        files.check_writable(Path("/sys/kernel/traindyn"))


def test_one_process_holds_a_folder_and_a_kill_frees_it(tmp_path: Path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(files.FolderInUse, match="in use by another process"), files.locked(tmp_path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with files.locked(tmp_path), pytest.raises(files.FolderInUse), files.locked(tmp_path):
        pass
    with files.locked(tmp_path):
        pass
