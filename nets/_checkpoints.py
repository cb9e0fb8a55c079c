"""Checkpoints that tell whether they are whole, and of what run they are."""

import errno
import gc
import hashlib
import inspect
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._files import sync_folder

_SEAL = "seal"  # the name of the digests among the arrays
_BYTES = hashlib.sha256().digest_size


class Damaged(ValueError):
    """A checkpoint that a run can't go on from."""


class Checkpoints:
    """The two newest states of a run, each by its step, as arrays by name, sealed with digests: that of the arrays, and
    others that the caller wants to find again."""

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp  # takes a second, which the other commands need not wait for

        self.folder, self.orbax = folder.absolute(), ocp
        self.manager: Any = None  # made when all that is damaged is out of its way
        self.hook = sys.unraisablehook

    def steps(self) -> list[int]:
        """Those that are there under the names that they were saved by, the newest first."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted((int(name) for name in names if re.fullmatch("[1-9][0-9]*", name)), reverse=True)

    def save(self, step: int, arrays: Mapping[str, Array | np.ndarray], seals: Sequence[bytes]) -> None:
        """**Raises** `OSError` where it can't be written."""
        if self.manager is None:
            options = self.orbax.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
            self.manager = self.orbax.CheckpointManager(self.folder, options=options)
        digests = [*seals, _digest(arrays)]
        sealed = {**arrays, _SEAL: jnp.asarray(np.frombuffer(b"".join(digests), np.uint8))}
        try:
            self.manager.save(step, args=self.orbax.args.StandardSave(sealed))
            sync_folder(self.folder)
        except Exception as error:  # TensorStore has errors of its own for a full disk
            full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
            number = getattr(error, "errno", None) or (errno.ENOSPC if full else errno.EIO)
            told = "No space left on device" if number == errno.ENOSPC else _brief(error)
            raise OSError(number, told, str(self.folder / str(step))) from error

    def load(self, step: int, like: Mapping[str, jax.ShapeDtypeStruct], seals: int) -> tuple[dict[str, Any], list]:
        """The arrays, placed as `like` says or on the host if they were saved from there, and the digests that were
        given with them, so many.

        **Raises** `Damaged` for one that can't be read or whose arrays are not those that were written.
        """
        sys.unraisablehook = self._tell
        wanted = {**like, _SEAL: jax.ShapeDtypeStruct(((seals + 1) * _BYTES,), jnp.uint8)}
        try:
            with self.orbax.StandardCheckpointer() as files:  # the manager would trust in what the newest looks like
                found = files.restore(self.folder / str(step) / "default", wanted)
        except Exception as error:  # Orbax, TensorStore and JSON each have their own for a damaged file
            raise Damaged(f"it can't be read: {_brief(error)}") from error
        sealed = np.asarray(found.pop(_SEAL)).tobytes()
        digests = [sealed[i : i + _BYTES] for i in range(0, len(sealed), _BYTES)]
        if digests.pop() != _digest(found):
            raise Damaged("its digest does not fit its arrays")
        return found, digests

    def set_aside(self, step: int) -> Path:
        """Moves a checkpoint to a folder beside, for its step to be saved again."""
        place, number = self.folder.with_name(f"damaged-checkpoint-{step}"), 1
        shutil.rmtree(place, ignore_errors=True)
        while os.path.lexists(place):  # as a file, which may be the user's
            place, number = self.folder.with_name(f"damaged-checkpoint-{step}-{number}"), number + 1
        (self.folder / str(step)).rename(place)
        return place

    def _tell(self, problem: Any) -> None:
        """Passes over reads that end after the one that failed, when Orbax waits for them no longer."""
        if str(problem.exc_value) != "Event loop is closed" and not inspect.iscoroutine(problem.object):
            self.hook(problem)

    def close(self) -> None:
        if sys.unraisablehook == self._tell:
            gc.collect()  # of those reads
            sys.unraisablehook = self.hook
        if self.manager is not None:
            self.manager.close()


def _digest(arrays: Mapping[str, Any]) -> bytes:
    """Of names, dtypes, shapes and bytes; arrays spread over devices are gathered one at a time."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {x.dtype} {x.shape} ".encode())
        found.update(x.reshape(-1).view(np.uint8).data)
    return found.digest()


def _brief(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 200 else f"{text[:197]}...").rstrip(".")
