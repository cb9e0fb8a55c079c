"""Every public callable refuses bad arguments with an error that says what is wrong."""

import functools
import importlib
import inspect
import types
from pathlib import Path

import equinox as eqx
import jax
import pytest

import traindyn.dynamics
import traindyn.nets
import traindyn.sweeps
import traindyn.validate
from arguments.kinds import Call, faults
from arguments.public import public
from traindyn.dynamics import flows

ROOMS = (traindyn.dynamics, traindyn.nets, traindyn.sweeps, traindyn.validate)
TABLES = sorted(path.stem for path in Path(__file__).parent.glob("of_*.py"))


@functools.cache
def calls() -> dict[str, Call]:
    """Those that work, by name. They are made when the first is wanted: every process of the tests reads this file."""
    calls: dict[str, Call] = {}
    for table in TABLES:
        found = importlib.import_module(f"arguments.{table}").CALLS
        assert not calls.keys() & found.keys()
        calls |= found
    example = lambda kind: {
        "key": jax.random.key(0),
        **{p.name: p.default for p in inspect.signature(kind.example).parameters.values() if p.name != "key"},
    }
    return calls | {f"dynamics.{name}.example": Call(kind.example, example(kind)) for name, kind in flows().items()}


NAMES = [name for room in ROOMS for name in public(room)]


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_every_public_callable_has_an_entry(room: types.ModuleType):
    names = public(room)
    assert not sorted(name for name in names if name not in calls())
    prefix = room.__name__.removeprefix("traindyn.")
    assert not sorted(name for name in calls() if name.startswith(f"{prefix}.") and name not in names)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_bad_arguments_are_refused(name: str):
    call = calls()[name]
    call()  # works as it stands
    assert not faults(call)


def _grouped() -> dict[str, list[str]]:
    """The calls of each module that may be made inside `jit`, which are compiled as one program."""
    groups: dict[str, list[str]] = {}
    for name in NAMES:
        if not name.startswith(("sweeps.", "validate.")):
            groups.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return groups


@pytest.mark.parametrize("names", _grouped().values(), ids=_grouped())
@pytest.mark.filterwarnings("ignore")
def test_arguments_that_are_known_work_inside_jit(names: list[str]):
    """Where checks look at values, those must be values of the host still."""
    made = calls()  # not inside `jit`, whose values must not stay in the tables

    @eqx.filter_jit
    def results():
        found = {}
        for name in names:
            try:
                found[name] = made[name]()
            except Exception as error:
                error.add_note(f"in {name}")
                if not isinstance(error, ValueError) or "outside jit" not in str(error):
                    raise
        return found

    results()
