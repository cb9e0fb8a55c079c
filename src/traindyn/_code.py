"""Digests of code: what a function's result depends on, so that a later run can tell whether it still holds."""

import ast
import contextlib
import functools
import hashlib
import json
import sys
import sysconfig
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = Path(__file__).parent
_SCRIPTS = {"__main__": "__main__", "__mp_main__": "__main__"}  # the second in a process that was started by the first


def digest(text: str | bytes) -> str:
    """A short digest of a text or of bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).hexdigest()[:32]


def digest_of(path: Path) -> str:
    """Of a file's content; empty if there is none."""
    return digest(path.read_bytes()) if path.is_file() else ""


@functools.cache
def library() -> str:
    """Of every source file of this library."""
    files = sorted(p for room in (_PACKAGE, *_rooms()) for p in room.rglob("*.py") if "__pycache__" not in p.parts)
    return digest(b"".join(path.name.encode() + path.read_bytes() for path in files))


def _rooms() -> list[Path]:
    """The rooms, which are links in a checkout: `rglob` does not enter those."""
    return [path.resolve() for path in _PACKAGE.iterdir() if path.is_symlink() and path.is_dir()]


def code_of(function: Callable[..., Any]) -> str:
    """Of the file that defines a function and all that its imports reach, what is installed left out. Code only, no
    data that the code reads; of a script, its arguments too."""
    first = function.__module__
    found: dict[str, str] = {}
    open_names = [first]
    installed = functools.cache(lambda name: _installed(_file_of(name)))
    while open_names:
        name = open_names.pop()
        # What stands in an installed package is not looked for one by one: imports name hundreds of things in it.
        if _SCRIPTS.get(name, name) in found or (name != first and installed(name.partition(".")[0])):
            continue
        file = _file_of(name)
        name = _SCRIPTS.get(name, name)
        if name != first and _installed(file):
            continue
        found[name] = "" if file is None else digest(file.read_bytes())
        open_names += [] if _installed(file) else _reached(name, file)
    files = sorted((name, digest) for name, digest in found.items() if digest)
    return digest(json.dumps([files, sys.argv if first in _SCRIPTS else []]))


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


def _installed(file: Path | None) -> bool:
    """Whether a file is part of this library, of Python, or of a package that pip has installed."""
    return file is not None and any(file.is_relative_to(place) for place in _places())


@functools.cache
def _places() -> list[Path]:
    pips = (Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return [place.resolve() for place in (_PACKAGE, *_rooms(), *pips)]


def _reached(name: str, file: Path | None) -> set[str]:
    """The modules that a module names in its imports, anywhere in its text, and those it holds things of."""
    reached = {_home(thing) for thing in vars(sys.modules[name]).values()} if name in sys.modules else set()
    if file is not None:
        reached |= _imported(file.read_bytes(), name if file.name == "__init__.py" else name.rpartition(".")[0])
    parents = {one.rsplit(".", i)[0] for one in reached for i in range(1, one.count(".") + 1)}
    return (reached | parents) - {name, ""}


@functools.cache
def _imported(source: bytes, package: str) -> set[str]:
    """What the imports of a text name, relative ones from `package`."""
    named = set()
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                with contextlib.suppress(ImportError):
                    origin = resolve_name("." * node.level + (node.module or ""), package)
                    named |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return named


def _home(thing: Any) -> str:
    """The name of the module that a thing is, or comes from."""
    try:
        name = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    except Exception:  # what only pretends to be a thing
        return ""
    return name if isinstance(name, str) else ""
