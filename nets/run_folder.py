"""The folder of a pre-training run: whether it may be used, its options, and the lines of its metrics."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .._files import check_writable, write
from .training_plan import BadOption, Plan


class RunFolder:
    """The files of a run."""

    def __init__(self, out: Path, plan: Plan):
        self.out, self.config, self.checkpoints = out, out / "config.json", out / "checkpoints"
        self.metrics, self.picture = out / "metrics.jsonl", out / "loss.png"
        self.options = dataclasses.asdict(plan)
        self.options["mesh"] = None if plan.mesh is None else list(plan.mesh)
        self.digest = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).digest()

    def check(self, resume: bool) -> str:
        """Why `config.json` can't be read, where a run is to be resumed whose checkpoints may stand in for it.

        **Raises** `BadOption` unless the folder is as it must be for a new run, or for this one to go on.
        """
        files = (self.config, self.metrics, self.picture)
        try:
            check_writable(self.out, *(path.name for path in files))
        except ValueError as error:
            raise BadOption("out", str(error).removeprefix("out ")) from error
        if os.path.lexists(self.checkpoints) and not self.checkpoints.is_dir():
            raise BadOption(
                "out", f"must be a folder that can be written, got '{self.out}': {self.checkpoints} is no folder."
            )
        parts = self.parts()
        if not resume:
            if self.config.exists() and (parts or not self._left_behind()):
                raise BadOption(
                    "out", f"{self.out} holds a run already: --resume goes on with it, another folder starts a new one."
                )
            if parts:
                raise BadOption(
                    "out", f"{self.out} holds {' and '.join(parts)} of a run: delete them, or name another folder."
                )
            return ""
        if not parts and not self.config.exists() and not (self.out / ".lock").exists():
            raise BadOption("resume", f"needs a folder with a run, got {self.out}, which has no config.json.")
        return (
            self._compare() if parts or self.config.exists() else ""
        )  # what was killed before its first step has nothing, and starts anew

    def parts(self) -> list[str]:
        """What the folder has of a run's steps."""
        recorded = self.metrics.exists() and self.metrics.stat().st_size > 0
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return [path.name for path, there in ((self.metrics, recorded), (self.checkpoints, saved)) if there]

    def _left_behind(self) -> bool:
        """Whether `config.json` is that of a run which has no steps, because its process was killed or ran out of
        memory, and nobody else's."""
        try:
            found = json.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(found, dict) and found.keys() == self.options.keys()

    def _compare(self) -> str:
        try:
            before = json.loads(self.config.read_text(encoding="utf-8"))
            if not isinstance(before, dict):
                raise ValueError("it holds no options")
        except FileNotFoundError:
            return "is missing"
        except (OSError, ValueError, RecursionError) as error:
            return f"is damaged ({error})"
        for option in sorted({*self.options, *before}):
            old, new = before.get(option), self.options.get(option)
            if old != new:
                name = "corpus" if option == "text" else option
                raise BadOption(name, f"must be as in the run that is resumed: {option} was {old}, got {new}.")
        return ""

    def write_config(self) -> None:
        write(self.config, json.dumps(self.options, indent=2) + "\n")

    def leave(self) -> None:
        """Gives the folder up, where a run failed before its first step: the next may have other options."""
        for path in (self.config, self.metrics):
            path.unlink(missing_ok=True)


def records(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a run and their records, up to the first that is broken."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(record["step"], int):
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        found.append((line, record))
    return found


def until(records: Iterable[tuple[bytes, dict[str, Any]]], step: int) -> list[bytes]:
    return [line for line, record in records if record["step"] <= step]


def hole(path: Path, step: int) -> str:
    """Why these are not the metrics up to this step."""
    steps = [record["step"] for _, record in records(path) if "loss" in record]
    for number, found in enumerate(steps, 1):
        if found != number:
            return f"{path} has step {found} where step {number} should be"
    if len(steps) < step:
        return f"{path} can be read to step {len(steps)} only"
    return f"{path} is not as it was written"
