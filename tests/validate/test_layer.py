"""How the claims are written: found, short, with mathematics; and no private name crosses a file."""

import ast
import importlib
import inspect
import itertools
import pkgutil
from pathlib import Path

import latex2mathml.converter
import pytest

import traindyn
from traindyn import validate
from traindyn.validate import Claim, Paper, built_in, claim, claims_in

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for room in ("dynamics", "nets", "validate", "src/traindyn")
    for path in (ROOT / room).rglob("*.py")
    if room != "src/traindyn" or path.relative_to(ROOT / room).parts[0] not in ("dynamics", "nets", "validate")
)
PAPERS = sorted(path.parent for path in (ROOT / "validate").glob("*/__init__.py"))


@pytest.mark.parametrize("one", built_in(), ids=lambda one: one.name)
def test_a_claim_is_short_and_states_its_mathematics(one: Claim):
    assert one.statement.endswith((".", ".)")) and one.source and one.assumptions
    assert "<math" in latex2mathml.converter.convert(one.tex) and one.tex
    lines, _ = inspect.getsourcelines(inspect.unwrap(one.check))
    assert sum(1 for line in itertools.dropwhile(lambda line: not line.startswith("def "), lines)) <= 60


def test_nothing_that_is_a_claim_is_left_out_or_listed_twice():
    decorated = [
        f"{path.parent.name}.{node.name}"
        for path in (ROOT / "validate").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Call) and getattr(d.func, "id", "") == "claim" for d in node.decorator_list)
    ]
    assert sorted(decorated) == sorted(one.name for one in built_in())
    assert [path.name for path in PAPERS] == sorted({one.name.split(".")[0] for one in built_in()})


@pytest.mark.parametrize("folder", PAPERS, ids=lambda path: path.name)
def test_a_paper_is_cited_and_imports_no_other(folder: Path):
    assert isinstance(importlib.import_module(f"traindyn.validate.{folder.name}").PAPER, Paper)
    for path in folder.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module:
                assert node.module.split(".")[0] not in {other.name for other in PAPERS}, path


@pytest.mark.parametrize("paper", [path.name for path in PAPERS])
@pytest.mark.parametrize("room", ["dynamics", "nets"])
def test_no_theory_or_network_of_a_paper_imports_that_of_another(room: str, paper: str):
    theory = ROOT / room
    for path in [theory / f"{paper}.py", *(theory / paper).glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else ():
            if isinstance(node, ast.ImportFrom) and node.level == (1 if path.parent == theory else 2) and node.module:
                assert node.module.split(".")[0] not in {other.name for other in PAPERS}, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_crosses_a_file(path: Path):
    """Whoever imports `_name` from another module, or looks at `module._name`, is named here."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    imports = [(x, alias) for x in nodes if isinstance(x, ast.ImportFrom) for alias in x.names]
    private = lambda name: name.startswith("_") and not name.startswith("__")
    here = {one.stem for folder in (path.parent, path.parent.parent, ROOT / "src/traindyn") for one in folder.iterdir()}
    taken = [
        alias.name for x, alias in imports if private(alias.name) and not (x.module is None and alias.name in here)
    ]
    modules = {alias.asname or alias.name for x, alias in imports if x.module is None}
    looked = [
        f"{x.value.id}.{x.attr}"
        for x in nodes
        if isinstance(x, ast.Attribute) and isinstance(x.value, ast.Name) and x.value.id in modules and private(x.attr)
    ]
    assert not taken + looked


def test_every_module_can_be_reached_by_its_name():
    """No module is hidden by something of its name in the package around it."""
    for package in (traindyn.dynamics, traindyn.nets, traindyn.validate, traindyn.sweeps):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module, name = importlib.import_module(info.name), info.name.rpartition(".")[2]
            if name not in HIDDEN:
                assert getattr(package, name, module) is module, info.name


HIDDEN = {"claim", "train", "verify"}  # functions of their module's name, which people import from the room


MINE = """
from traindyn.validate import Paper, at_most, claim, evidence
PAPER = Paper("Mine", "Me, 2026", "@misc{me, author={Me}, title={It}, year={2026}}")

@claim("Second in the alphabet, first in the file.", source="s", assumptions=())
def zebra(setting):
    return evidence(at_most("a", 1, 2, {"w": 3}))

@claim("Another.", source="s", assumptions="one")
def ant(setting):
    return evidence(at_most("a", 1, 2, {"w": 3}))
"""


def test_claims_of_a_file_are_named_after_it_in_the_order_of_its_lines(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_found.py").write_text(MINE)
    found = claims_in("mine_found")
    assert [one.name for one in found] == ["mine_found.zebra", "mine_found.ant"]
    assert {one.paper for one in found} == {"Mine (Me, 2026)"} and found[1].assumptions == ("one",)
    (tmp_path / "mine_taken.py").write_text("from mine_found import ant\n")
    assert claims_in("mine_taken") == (), "what is imported is not the module's own"
    (tmp_path / "mine_twice.py").write_text(
        MINE.replace('assumptions="one")', 'assumptions="one", name="x.y")').replace(
            "assumptions=())", 'assumptions=(), name="x.y")'
        )
    )
    with pytest.raises(ValueError, match=r"names of their own, got x\.y for mine_twice\.zebra and mine_twice\.ant"):
        claims_in("mine_twice")
    (tmp_path / "mine_listed.py").write_text(MINE + "CLAIMS = (ant,)\n")
    assert [one.name for one in claims_in("mine_listed")] == ["mine_listed.ant"]


def test_a_claim_without_a_paper_is_its_modules_own():
    @claim("It holds.", source="s", assumptions=())
    def here(setting):
        return None

    assert (here.name, here.paper) == ("test_layer.here", "test_layer")
    with pytest.raises(ValueError, match="papers must be one of 'composing', "):
        built_in("decay")
    assert {one.name for one in built_in("joma")} == {one.name for one in built_in() if one.name.startswith("joma.")}
    assert validate.Paper("A", "B", "@misc{x, author={A}, title={B}, year={2}, note={arXiv:2310.00535}}").arxiv
