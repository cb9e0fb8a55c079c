"""What claims found, on disk: `results.json`, which several runs and processes may share."""

import ast
import functools
import hashlib
import inspect
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from .. import _files
from .claim import Claim, Setting

Record = dict[str, Any]
IDENTITY = ("name", "scale", "seed", "dtype", "corpus", "corpus_digest")
_PACKAGE = Path(__file__).parents[1]


def versions() -> dict[str, str]:
    """The versions that produced a result."""
    packages = ("traindyn", "jax", "jaxlib", "diffrax", "equinox", "optax", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def key_of(claim: Claim, setting: Setting) -> str:
    """A digest of all that decides a result: the setting, the text of the corpus, the code of the claim and of this
    library, the versions of the others, and the device."""
    parts = [setting.scale, setting.seed, str(setting.dtype), setting.corpus_digest, claim.name, _code_of(claim)]
    parts.append(jax.devices()[0].device_kind)
    return _digest(json.dumps([*parts, _library(), versions()]))


def _digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).hexdigest()[:32]


@functools.cache
def _library() -> str:
    """Of every source file of this library."""
    files = sorted(p for room in (_PACKAGE, *_rooms()) for p in room.rglob("*.py") if "__pycache__" not in p.parts)
    return _digest(b"".join(path.name.encode() + path.read_bytes() for path in files))


def _rooms() -> list[Path]:
    """The rooms, which are links in a checkout: `rglob` does not enter those."""
    return [path.resolve() for path in _PACKAGE.iterdir() if path.is_symlink() and path.is_dir()]


def _code_of(claim: Claim) -> str:
    """The file that defines a claim, and those that it imports from beside it; where there is no file, as in a
    notebook, the function itself. Code that is installed elsewhere counts only if its version is among `versions`."""
    check = inspect.unwrap(claim.check)
    try:
        file = Path(inspect.getsourcefile(check) or "")
    except TypeError:
        return _digest(repr(check))
    if not file.is_file():
        code = check.__code__
        return _digest(code.co_code + repr((code.co_consts, code.co_names)).encode())
    if any(file.resolve().is_relative_to(room) for room in (_PACKAGE.resolve(), *_rooms())):
        return claim.name  # its file is part of the library
    return _digest(b"".join(place.read_bytes() for place in _with_imports(file.resolve())))


def _with_imports(file: Path) -> list[Path]:
    """A file and all that its imports reach in its folder; if that is a package, every file of it. Read off the text:
    which modules are loaded at the moment differs between processes."""
    root = file.parent
    while (root / "__init__.py").is_file() and root != root.parent:
        root = root.parent
    if root != file.parent:
        return sorted((root / file.relative_to(root).parts[0]).rglob("*.py"))
    found, open_files = {file}, [file]
    while open_files:
        for name in _imported(open_files.pop()):
            places = {root / f"{name}.py"} if (root / f"{name}.py").is_file() else {*(root / name).rglob("*.py")}
            open_files += places - found
            found |= places
    return sorted(found)


def _imported(file: Path) -> set[str]:
    """The first part of each name that a file imports."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError):
        return set()
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.split(".")[0] for name in names}


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
            if not isinstance(record.get("name"), str) or seal(record) != record:
                raise ValueError(f"the record of {record.get('name', 'a claim')!r} is not as it was written")
        identities = [tuple(record[name] for name in IDENTITY) for record in records]
        if len(set(identities)) < len(identities):
            raise ValueError("it has two records of one claim")
    except (ValueError, KeyError, OSError) as error:
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
            found[claim.name] = place if owner.read_text() == label else place / label
    return found
