"""Claims by name, and those that are not the library's own: of installed packages, of a module, of a file."""

import importlib
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from .. import _catalogue

if TYPE_CHECKING:
    from ..validate import Claim


def claims(modules: Iterable[str]) -> "list[Claim]":
    """Those that installed packages offer as entry points `traindyn.claims`, and those of `modules`.

    **Raises** `click.BadParameter` for a module that has none, and for a name that another claim has.
    """
    found = [claim for point in entry_points(group="traindyn.claims") for claim in _offered(point)]
    for name in modules:
        found += _claims_of(name)
    names = [claim.name for claim in found]
    if found:
        names += [name for paper in _catalogue.papers().values() for name in paper.claims]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise click.BadParameter(f"two claims have the same name: {', '.join(twice)}.", param_hint="--claims")
    return found


def _offered(point: EntryPoint) -> "Sequence[Claim]":
    from ..validate import claims_in

    try:
        found = point.load()
        return claims_in(found) if isinstance(found, ModuleType) else _listed(found)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # somebody else's package must not end every command
        click.echo(f"Warning: the claims of {point.value} are left out: {brief(error)}", err=True)
        return []


def _listed(found: object) -> "Sequence[Claim]":
    from ..validate import Claim

    if not isinstance(found, Sequence) or not all(isinstance(claim, Claim) for claim in found):
        raise ValueError("CLAIMS must be a sequence of claims, made by `traindyn.validate.claim`.")
    return found


def _claims_of(name: str) -> "Sequence[Claim]":
    from ..validate import claims_in

    try:
        if name.endswith(".py"):
            path = Path(name).resolve()
            if not path.is_file():
                raise FileNotFoundError("there is no such file.")
            if "." in path.stem:
                raise ValueError("a module's file must have no dot in its name but that of .py; rename the file.")
            module = _module_of(path)
        else:
            module = importlib.import_module(name)
        found = claims_in(module)
        if not found:
            raise ValueError("it has no claims, which are functions under @claim(…).")
        return found
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what test libraries raise
        raise click.BadParameter(f"cannot take claims from {name}: {brief(error)}", param_hint="--claims") from error


def _module_of(path: Path) -> ModuleType:
    """Imports a file by a search path that worker processes have too: at its end, so that nothing beside the file takes
    the place of a module of the same name."""
    sys.path.append(str(path.parent))
    try:
        module = importlib.import_module(path.stem)
        if Path(module.__file__ or "") != path:
            raise ImportError(f"a module named {path.stem} is there already; rename the file.")
    except BaseException:
        sys.path.remove(str(path.parent))
        raise
    return module


def brief(error: BaseException) -> str:
    """One line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def choose(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of the claims `known` that are named, by their own names or by that of their paper; all for no names."""
    is_named = lambda claim, name: claim == name or claim.startswith(f"{name}.")
    for name in names:
        if not any(is_named(claim, name) for claim in known):
            all_names = ", ".join([*sorted({claim.split(".")[0] for claim in known}), *known])
            raise click.BadParameter(f"no claim is named {name!r}. Known: {all_names}.", param_hint="NAME")
    return [claim for claim in known if not names or any(is_named(claim, name) for name in names)]
