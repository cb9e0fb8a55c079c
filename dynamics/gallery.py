"""All flows of the library by name, found where they stand: what is tested, swept and listed in common."""

import importlib
import inspect
import pkgutil

from .flow import Flow


def flows() -> dict[str, type[Flow]]:
    """Every flow by its name, as `joma.LinearActivation`, in alphabetical order. Each has an `example`."""
    package = __name__.rpartition(".")[0]
    rooms = importlib.import_module(package)
    found = {}
    for info in pkgutil.walk_packages(rooms.__path__, f"{package}."):
        for name, kind in vars(importlib.import_module(info.name)).items():
            own = inspect.isclass(kind) and issubclass(kind, Flow) and kind.__module__ == info.name
            if own and not inspect.isabstract(kind) and not name.startswith("_"):
                paper = info.name.removeprefix(f"{package}.").partition(".")[0]
                found[name if paper == "flow" else f"{paper}.{name}"] = kind
    return dict(sorted(found.items()))
