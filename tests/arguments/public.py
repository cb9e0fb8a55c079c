"""The public callables of a room, found rather than listed."""

import ast
import enum
import inspect
import types
from collections.abc import Iterator
from typing import Any


def public(room: types.ModuleType) -> dict[str, Any]:
    """Every public function, class and method of a room, by the path at which users find it.

    Those are the names that the room's `__init__` and those of its folders import, and what the public modules that
    they import define. Left out: abstract classes, records without checks of their own (named tuples), exceptions and
    enumerations.
    """
    found: dict[str, Any] = {}
    _walk(room, room.__name__.removeprefix("traindyn."), found)
    return found


def _walk(module: types.ModuleType, path: str, found: dict[str, Any]) -> None:
    package = hasattr(module, "__path__")
    for name in _offered(module) if package else [name for name in vars(module) if not name.startswith("_")]:
        thing = getattr(module, name)
        if isinstance(thing, types.ModuleType):
            claims = path == "validate" and hasattr(thing, "__path__")  # a paper's, which users run by name
            if package and not claims:
                _walk(thing, f"{path}.{name}", found)
        elif _ours(thing) and (package or thing.__module__ == module.__name__) and thing not in found.values():
            found[f"{path}.{name}"] = thing
            if isinstance(thing, type):
                found |= {f"{path}.{name}.{method}": value for method, value in _methods(thing)}


def _offered(package: types.ModuleType) -> list[str]:
    """The names that an `__init__` imports `as` themselves."""
    imports = [x for x in ast.parse(inspect.getsource(package)).body if isinstance(x, ast.ImportFrom)]
    return [alias.name for x in imports for alias in x.names if alias.asname == alias.name]


def _ours(thing: Any) -> bool:
    if not (inspect.isfunction(thing) or inspect.isclass(thing) or hasattr(thing, "__wrapped__")):
        return False
    if not getattr(thing, "__module__", "").startswith("traindyn."):
        return False
    return not inspect.isabstract(thing) and not (
        isinstance(thing, type) and issubclass(thing, tuple | list | dict | BaseException | enum.Enum)
    )


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods that take an argument, those inherited from another public class left out."""
    for name, thing in vars(cls).items():
        function = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
        function = inspect.unwrap(getattr(function, "method", function))
        if inspect.isfunction(function) and (name == "__call__" or not name.startswith("_")):
            parameters = [p for p in inspect.signature(function).parameters if p != "self"]
            if parameters and not getattr(function, "__isabstractmethod__", False):
                yield name, thing
