"""What the library claims, read from its source: nothing is imported, so that listing it takes no time.

That this is what the claims themselves say, a test makes sure of.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

VALIDATE = Path(__file__).parent / "validate"


class Entry(NamedTuple):
    """A paper: how it is cited, and the statement of each claim by its name."""

    citation: str
    bibtex: str
    predicts: str
    claims: Mapping[str, str]


def papers() -> dict[str, Entry]:
    """Every paper by the first part of its claims' names, in alphabetical order."""
    return {folder.name: found for folder in sorted(VALIDATE.iterdir()) if (found := _paper(folder)) is not None}


def _paper(folder: Path) -> Entry | None:
    file = folder / "__init__.py"
    if not file.is_file():
        return None
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _named(node.value, "Paper"):
            positional = [ast.literal_eval(x) for x in node.value.args]
            given = {x.arg: ast.literal_eval(x.value) for x in node.value.keywords}
            given |= dict(zip(("name", "citation", "bibtex", "predicts"), positional, strict=False))
            citation = f"{given['name']} ({given['citation']})"
            return Entry(citation, given["bibtex"], given.get("predicts", ""), _claims(folder))
    return None


def _claims(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.glob("[!_]*.py")):
        for node in [x for x in _tree(file).body if isinstance(x, ast.FunctionDef)]:
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and _named(decorator, "claim"):
                    found[f"{folder.name}.{node.name}"] = ast.literal_eval(decorator.args[0])
    return found


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _named(call: ast.Call, name: str) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == name
