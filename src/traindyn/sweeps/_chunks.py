"""What a sweep has computed, in memory, and its chunks on disk."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from .._files import clear_parts, write

Variables = dict[tuple[str, str], np.ndarray]  # by name and name of the leading axis


class Results:
    """Variables with a leading axis of lanes, the status of each lane (−1: not run), and steps taken and waited for."""

    def __init__(self, number: int):
        self.variables: Variables = {}
        self.status = np.full(number, -1, np.int8)
        self.steps = (0, 0)
        self.last_error = ""

    def put(self, lanes: np.ndarray, variables: Variables, status: np.ndarray, steps: Sequence[int], error: str):
        """Takes in some lanes. Lanes without variables are NaN, or zero."""
        for key, x in variables.items():
            if key not in self.variables:
                blank = np.nan if np.issubdtype(x.dtype, np.inexact) else 0
                self.variables[key] = np.full((len(self.status), *x.shape[1:]), blank, x.dtype)
            self.variables[key][lanes] = x
        self.status[lanes] = status
        self.steps = (self.steps[0] + steps[0], self.steps[1] + steps[1])
        self.last_error = error or self.last_error


class Chunks:
    """A folder with one file a chunk, each written whole or not at all, and `sweep.json`, which says of what sweep.

    Each file carries the digest of its sweep and one of its content. A damaged file is set aside, with a
    warning, so that its lanes are computed again.

    **Raises** `ValueError` if the folder holds another sweep: other axes, other arrays in the function, a function that
    compiles to something else, or another version of JAX, whose compiler may give other numbers.
    """

    def __init__(self, folder: Path, same: Mapping[str, str]):
        same = {**same, "version of jax": jax.__version__, "version of jaxlib": version("jaxlib")}
        self.folder, self.same, self.sweep = folder, same, _digest(json.dumps(same, sort_keys=True).encode())
        self.damaged: dict[Path, str] = {}
        try:
            found = json.loads((folder / "sweep.json").read_bytes())
            if not (before := dict(found["same"])):
                raise ValueError("it names no sweep")
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self.damaged[folder / "sweep.json"] = _reason(error)
            return
        other = sorted(key for key in same.keys() | before.keys() if same.get(key) != before.get(key))
        if other:
            raise ValueError(
                f"out={str(folder)!r} holds another sweep: {', '.join(other)} differs. Name another folder, or delete "
                "this one."
            )

    def read(self, results: Results) -> None:
        """Takes in the chunks that are whole."""
        for path in self._files():
            try:
                file = _load(path)
            except Exception as error:  # a flipped bit can make NumPy and zipfile raise nearly anything
                self.damaged[path] = _reason(error)
                continue
            if str(file["sweep"]) != self.sweep:
                raise ValueError(
                    f"out={str(self.folder)!r} holds another sweep: {path.name} is of one. Name another folder, or "
                    "delete this one."
                )
            names = json.loads(str(file["names"]))
            variables = {(name, dim): file[f"v{i}"] for i, (name, dim) in enumerate(names)}
            results.put(file["lanes"], variables, file["status"], file["steps"].tolist(), str(file["error"]))

    def start(self) -> None:
        """Makes the folder ready to be written, when all processes have read it: the first does so."""
        self.next = 1 + max((int(path.stem.split("-")[1]) for path in self._files()), default=-1)
        if jax.process_index() > 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_parts(self.folder)
        index = self.folder / "sweep.json"
        for path, reason in self.damaged.items():
            then = "it is written again" if path == index else "its lanes are computed again"
            warnings.warn(f"{path} is damaged ({reason}): {then}.", stacklevel=5)
            path.replace(path.with_suffix(".damaged"))
        if not index.exists():
            write(index, json.dumps({"same": self.same}, indent=1))

    def _files(self) -> list[Path]:
        """The chunks, and no other file that looks like one, such as a copy that somebody has made."""
        return sorted(path for path in self.folder.glob("chunk-*.npz") if re.fullmatch(r"chunk-\d+", path.stem))

    def write(self, lanes: np.ndarray, variables: Variables, status: np.ndarray, steps: Sequence[int], error: str):
        """One file more. Of several processes the first writes."""
        if jax.process_index() == 0:
            arrays = {f"v{i}": np.asarray(x) for i, x in enumerate(variables.values())}
            arrays |= {"lanes": lanes, "status": status, "steps": np.array(steps)}
            arrays |= {"names": np.array(json.dumps([*variables])), "error": np.array(error)}
            arrays["sweep"] = np.array(self.sweep)
            arrays["digest"] = np.array(_digest_of(arrays))
            path = self.folder / f"chunk-{self.next:06}.npz"
            write(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
        self.next += 1


def fingerprint(arrays: Sequence[np.ndarray]) -> str:
    """A digest of arrays: their dtypes, shapes and bytes."""
    return _digest(*(_bytes(x) for x in arrays))


def text_fingerprint(text: str) -> str:
    return _digest(text.encode())


def _load(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a chunk. Raises one of many errors where the file is damaged in any bit that matters."""
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    if str(found.pop("digest")) != _digest_of(found):  # the checksums of zip do not cover what its headers leave unread
        raise ValueError("its digest does not fit its content")
    return found


def _digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    return _digest(*(name.encode() + _bytes(arrays[name]) for name in sorted(arrays)))


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _bytes(x: np.ndarray) -> bytes:
    return f"{x.dtype}{x.shape}".encode() + x.tobytes()


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
