"""What claims found, on disk: `results.json`, which several runs and processes may share."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from .. import _files, _processes
from .._code import code_of, digest, library
from .claim import Claim, Setting

Record = dict[str, Any]
FORMAT = 2  # of a record; one of another format is checked again
IDENTITY = ("name", "scale", "seed", "dtype", "corpus", "corpus_digest")


def versions() -> dict[str, str]:
    """The versions that produced a result."""
    packages = ("traindyn", "jax", "jaxlib", "diffrax", "equinox", "optax", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def key_of(claim: Claim, setting: Setting) -> str:
    """A digest of all that decides a result: the setting, the text of the corpus, the claim with its code and that of
    this library, the versions of the others, JAX's settings and the device.

    Empty for a claim made by a function, in a notebook, or otherwise not found again under its name: nothing tells
    what such a claim holds, so that it is never taken from an earlier run.
    """
    if not _processes.can_be_sent(claim):
        return ""
    texts = [claim.name, claim.paper, claim.statement, claim.source, claim.tex, *claim.assumptions]
    conditions = [setting.scale, setting.seed, str(setting.dtype), setting.corpus_digest]
    settings = {name: str(getattr(jax.config, name)) for name in _processes.DECISIVE}
    device = jax.devices()[0].device_kind
    return digest(json.dumps([texts, conditions, code_of(claim.check), library(), versions(), settings, device]))


def seal(record: Record) -> Record:
    """The record with a digest of itself, by which damage shows."""
    record = {name: value for name, value in record.items() if name != "digest"}
    return record | {"digest": digest(json.dumps(record, sort_keys=True))}


def read(folder: Path) -> list[Record]:
    """The records of a folder; none where there is no `results.json`.

    **Raises** `ValueError` for a file that is damaged, or of an earlier version.
    """
    path = folder / "results.json"
    if not path.exists():
        return []
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ValueError("it is no list of records")
        for record in records:
            if record.get("format") != FORMAT:
                raise ValueError("it is of another version of traindyn")
            if not isinstance(record.get("name"), str) or seal(record) != record:
                raise ValueError(f"the record of {record.get('name', 'a claim')!r} is not as it was written")
        identities = [tuple(record[name] for name in IDENTITY) for record in records]
        if len(set(identities)) < len(identities):
            raise ValueError("it has two records of one claim")
    except (ValueError, KeyError, OSError, RecursionError) as error:
        raise ValueError(
            f"{path} must be as traindyn wrote it, but is damaged or of an earlier version ({error}): move it away or "
            "delete it, and its claims are checked again."
        ) from error
    return records


def set_aside(folder: Path) -> Path:
    """Renames a `results.json` that can't be read, so that nothing is overwritten."""
    path = folder / "results.json"
    number = 1
    while (new := folder / f"results.damaged-{number}.json").exists():
        number += 1
    path.rename(new)
    return new


def merge(folder: Path, new: Sequence[Record]) -> list[Record]:
    """Puts records into `results.json`, each in place of an older one of the same claim and setting; the others stay.
    Several processes may do so at once. Returns all records."""
    with _files.locked(folder, wait=-1.0):
        identity = lambda record: tuple(record[name] for name in IDENTITY)
        records = {identity(record): record for record in read(folder)}
        records |= {identity(record): record for record in new}
        found = list(records.values())
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        _files.write(folder / "results.json", text)
    return found


def places(folder: Path, claims: Sequence[Claim], setting: Setting) -> dict[str, Path]:
    """Where each claim's files go: the folder of its name, or one inside where that belongs to another setting."""
    label = f"{setting.scale}-seed{setting.seed}-{setting.dtype}-{setting.corpus_digest[:8]}"
    found = {}
    with _files.locked(folder, wait=-1.0):
        for claim in claims:
            place = folder / claim.name
            owner = place / ".setting"
            if not owner.exists():
                place.mkdir(parents=True, exist_ok=True)
                _files.write(owner, label)
            found[claim.name] = place if owner.read_text(errors="replace") == label else place / label
    return found
