"""Files that a crash, a full disk or a second process can't spoil, for all rooms that write some."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock

from ._checks import describe


def folder(name: str, path: Any) -> Path:
    """`path` as an absolute one, which stays the same if somebody changes the working folder. Raises `ValueError` for
    what is no path."""
    if not isinstance(path, str | Path) or "\0" in str(path):
        raise ValueError(f"{name} must be the path of a folder, got {describe(path)}.")
    return Path(path).absolute()


class FolderInUse(ValueError):
    """Another process holds the lock of a folder."""


def write(path: Path, content: bytes | str | Callable[[IO[bytes]], object]) -> None:
    """Writes a file whole or not at all, whatever ends the process or the machine; a function is given the open file.

    Its folder must be there. **Raises** `OSError` that names the file, a full disk among its causes; what was there
    before is then unharmed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # two processes never share one
    try:
        with part.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # else the name can be on the disk before the bytes are
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def clear_parts(folder: Path) -> None:
    """Removes what killed processes left half written. For holders of the folder's lock."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def check_writable(folder: Path, *files: str, name: str = "out") -> None:
    """Raises `ValueError`, before any work, unless these files can be written to a folder, which need not exist yet.

    Creates nothing that stays. `name` is that of the argument.
    """
    folder = folder.absolute()
    there = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    try:
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is no folder")
        with tempfile.TemporaryFile(dir=there) as file:  # the rights of root, read-only disks: only trying tells
            file.write(b"\0")
        for one in files:
            if (folder / one).is_dir():
                raise IsADirectoryError(f"{folder / one} is a folder")
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ValueError(f"{name} must be a folder that can be written, got {str(folder)!r}: {reason}.") from error


@contextlib.contextmanager
def locked(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock of a folder, which is made if need be. The lock ends with the process, whatever ends that.

    **Raises** `FolderInUse` where another process still holds it after `wait` seconds (−1: waits for ever).
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=wait)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise FolderInUse(f"{folder} is in use by another process: wait for its end, or name another folder.") from None
    try:
        yield
    finally:
        lock.release()
