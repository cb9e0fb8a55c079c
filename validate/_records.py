"""What claims found, on disk: `results.json`, which several runs and processes may share."""

import ast
import contextlib
import functools
import hashlib
import json
import platform
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from .. import _files
from . import _pool
from .claim import Claim, Setting

Record = dict[str, Any]
FORMAT = 2  # of a record; one of another format is checked again
IDENTITY = ("name", "scale", "seed", "dtype", "corpus", "corpus_digest")
_PACKAGE = Path(__file__).parents[1]
_SCRIPTS = {"__main__": "__main__", "__mp_main__": "__main__"}  # the second in a process that was started by the first


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
    if not _pool.can_be_sent(claim):
        return ""
    texts = [claim.name, claim.paper, claim.statement, claim.source, claim.tex, *claim.assumptions]
    conditions = [setting.scale, setting.seed, str(setting.dtype), setting.corpus_digest]
    settings = {name: str(getattr(jax.config, name)) for name in _pool.DECISIVE}
    device = jax.devices()[0].device_kind
    return _digest(json.dumps([texts, conditions, _code_of(claim), _library(), versions(), settings, device]))


def _digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).hexdigest()[:32]


def digest_of(path: Path) -> str:
    """Of a file's content; empty if there is none."""
    return _digest(path.read_bytes()) if path.is_file() else ""


@functools.cache
def _library() -> str:
    """Of every source file of this library."""
    files = sorted(p for room in (_PACKAGE, *_rooms()) for p in room.rglob("*.py") if "__pycache__" not in p.parts)
    return _digest(b"".join(path.name.encode() + path.read_bytes() for path in files))


def _rooms() -> list[Path]:
    """The rooms, which are links in a checkout: `rglob` does not enter those."""
    return [path.resolve() for path in _PACKAGE.iterdir() if path.is_symlink() and path.is_dir()]


def _code_of(claim: Claim) -> str:
    """Of the file that defines a claim and all that its imports reach, what is installed left out: its version counts
    if it is among `versions`. Code only, no data that the code reads; of a script, its arguments too."""
    first = claim.check.__module__
    found: dict[str, str] = {}
    open_names = [first]
    while open_names:
        name = open_names.pop()
        file = _file_of(name)
        name = _SCRIPTS.get(name, name)
        if name in found or (file is not None and name != first and _installed(file)):
            continue
        found[name] = "" if file is None else _digest(file.read_bytes())
        open_names += [] if file is not None and _installed(file) else _reached(name, file)
    files = sorted((name, digest) for name, digest in found.items() if digest)
    return _digest(json.dumps([files, sys.argv if first in _SCRIPTS else []]))


def _file_of(name: str) -> Path | None:
    """The source of a module, loaded or not; none for what has no source."""
    loaded = sys.modules.get(name)
    spec = None if loaded else _spec_of(name)
    found = getattr(loaded, "__file__", None) if loaded else spec and spec.origin
    path = Path(found) if found else None
    return path.resolve() if path is not None and path.suffix == ".py" and path.is_file() else None


def _spec_of(name: str) -> ModuleSpec | None:
    """Where Python would find a module, without importing the packages around it."""
    around = name.rpartition(".")[0]
    if not around:
        return PathFinder.find_spec(name)
    package = _spec_of(around)
    places = package and package.submodule_search_locations
    return PathFinder.find_spec(name, places) if places else None


def _installed(file: Path) -> bool:
    """Whether a file is part of this library, of Python, or of a package that pip has installed."""
    pips = (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return any(file.is_relative_to(place.resolve()) for place in (_PACKAGE, *_rooms(), *pips))


def _reached(name: str, file: Path | None) -> set[str]:
    """The modules that a module names in its imports, anywhere in its text, and those it holds things of."""
    reached = {_home(thing) for thing in vars(sys.modules[name]).values()} if name in sys.modules else set()
    package = name if file is not None and file.name == "__init__.py" else name.rpartition(".")[0]
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes()))) if file is not None else []
    except (SyntaxError, ValueError):
        nodes = []
    for node in nodes:
        if isinstance(node, ast.Import):
            reached |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            with contextlib.suppress(ImportError):
                source = resolve_name("." * node.level + (node.module or ""), package)
                reached |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    parents = {one.rsplit(".", i)[0] for one in reached for i in range(1, one.count(".") + 1)}
    return (reached | parents) - {name, ""}


def _home(thing: Any) -> str:
    """The name of the module that a thing is, or comes from."""
    try:
        name = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    except Exception:  # what only pretends to be a thing
        return ""
    return name if isinstance(name, str) else ""


def seal(record: Record) -> Record:
    """The record with a digest of itself, by which damage shows."""
    record = {name: value for name, value in record.items() if name != "digest"}
    return record | {"digest": _digest(json.dumps(record, sort_keys=True))}


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
