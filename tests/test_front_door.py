"""The command line's front door: what it lists is what there is, and it imports nothing that takes long."""

import importlib
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import traindyn
from traindyn import _catalogue, dynamics, nets, sweeps, validate
from traindyn.__main__ import LATER, main
from traindyn.validate import built_in


def test_the_catalogue_is_what_the_claims_say_in_their_order():
    listed = [(name, text) for paper in _catalogue.papers().values() for name, text in paper.claims.items()]
    assert listed == [(claim.name, claim.statement) for claim in built_in()]


@pytest.mark.parametrize("paper", _catalogue.papers())
def test_papers_are_cited_as_their_claims_say(paper):
    entry, found = _catalogue.papers()[paper], importlib.import_module(f"traindyn.validate.{paper}").PAPER
    assert (entry.bibtex, entry.predicts) == (found.bibtex, found.predicts) and entry.predicts
    assert str(found).startswith(entry.citation[:-1]) and found.arxiv in str(found)
    assert {claim.paper for claim in built_in(paper)} == {str(found)}
    assert list(entry.claims) == [claim.name for claim in built_in(paper)]


@pytest.mark.parametrize("name", LATER)
def test_a_command_says_of_itself_what_the_front_door_says(name):
    command = importlib.import_module(f"traindyn._commands.{name}").command
    assert command.name == name and command.help.replace("\n", " ").startswith(LATER[name])
    shown = CliRunner().invoke(main, [name, "--help"]).output
    assert "Exit status" in shown and shown.startswith(f"Usage: main {name}")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["list"], ["cite", "joma"]])
def test_light_commands_import_no_jax(words):
    code = (
        "import sys; from traindyn.__main__ import main; main(sys.argv[1:], standalone_mode=False); "
        "assert not {'jax', 'numpy', 'matplotlib'} & {*sys.modules}, sorted(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout, run.stderr


def test_the_module_runs_and_an_unknown_command_is_told():
    run = subprocess.run([sys.executable, "-m", "traindyn", "prove"], capture_output=True, text=True)
    assert run.returncode == 2 and "No such command 'prove'" in run.stderr
    assert isinstance(main, click.Group) and set(LATER) | {"list", "cite"} == set(main.list_commands(None))


def test_the_rooms_are_attributes_of_the_package():
    assert (traindyn.dynamics, traindyn.nets, traindyn.sweeps, traindyn.validate) == (dynamics, nets, sweeps, validate)
    assert traindyn.sweep is sweeps.sweep and set(dir(traindyn)) == {*traindyn.__all__, "__version__"}
    assert all(getattr(traindyn, name) is not None for name in dir(traindyn))
    with pytest.raises(AttributeError, match="has no attribute 'theory'"):
        _ = traindyn.theory
