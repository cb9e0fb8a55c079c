"""What a sweep has computed, in memory, and its chunks on disk."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

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

    **Raises** `ValueError` if the folder holds another sweep: other axes, or a function that compiles to something
    else.
    """

    def __init__(self, folder: Path, axes: Mapping[str, Sequence[np.ndarray]], program: str):
        self.folder = folder
        digest = lambda *parts: hashlib.sha256(b"".join(parts)).hexdigest()
        same = {f"axis {name}": digest(*(_bytes(x) for x in arrays)) for name, arrays in axes.items()}
        same["fn"] = digest(program.encode())
        path = folder / "sweep.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            other = sorted(key for key in same.keys() | found["same"].keys() if same.get(key) != found["same"].get(key))
            if other:
                raise ValueError(
                    f"out={str(folder)!r} holds another sweep: {', '.join(other)} differs. It was made with jax "
                    f"{found['jax']}, here is {jax.__version__}. Name another folder, or delete this one."
                )
        elif jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps({"same": same, "jax": jax.__version__}, indent=1).encode())
        self.next = 1 + max((int(p.stem.split("-")[1]) for p in self._files()), default=-1)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("chunk-*.npz"))

    def read(self, results: Results) -> None:
        for path in self._files():
            with np.load(path) as file:
                names = json.loads(str(file["names"]))
                variables = {(name, dim): file[f"v{i}"] for i, (name, dim) in enumerate(names)}
                results.put(file["lanes"], variables, file["status"], file["steps"].tolist(), str(file["error"]))

    def write(self, lanes: np.ndarray, variables: Variables, status: np.ndarray, steps: Sequence[int], error: str):
        """One file more. Of several processes the first writes."""
        if jax.process_index() == 0:
            arrays = {f"v{i}": x for i, x in enumerate(variables.values())}
            names = json.dumps([*variables])
            path = self.folder / f"chunk-{self.next:06}.npz"
            new = path.with_suffix(".new")
            with new.open("wb") as file:
                np.savez(
                    file,
                    allow_pickle=False,
                    names=names,
                    lanes=lanes,
                    status=status,
                    steps=np.array(steps),
                    error=error,
                    **arrays,
                )
            new.replace(path)
        self.next += 1


def _bytes(x: np.ndarray) -> bytes:
    return f"{x.dtype}{x.shape}".encode() + x.tobytes()


def _write(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)
