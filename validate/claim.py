"""Claims: theorems turned into something that can fail.

A claim has a check, which measures; what it measured is its `Evidence`: rows that must hold, rows of a control that
must be rejected, and the arrays behind them. Table, JSON, figure and report are all made from that evidence.
"""

import dataclasses
import hashlib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key

from .._checks import check_callable, choice, describe, integer, strings
from ._given import as_number, check_text
from .paper import Paper, paper_of
from .rows import Row, Verdict

Scale = Literal["smoke", "laptop", "paper"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Erratum:
    """A statement that is misprinted or false as published: `where`, as `printed`, as `corrected`, and the measured
    errors that decide between the two, with the correction and as printed.

    The errors are numbers, of one measure for both: `measure` names it. **Raises** `ValueError` for texts that are
    none, errors that are no numbers, and a printed form that errs no more than the corrected one.
    """

    where: str
    printed: str
    corrected: str
    error_corrected: float
    error_printed: float
    measure: str = "relative error"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if field.name.startswith("error_"):
                object.__setattr__(self, field.name, as_number(field.name, given))
            else:
                check_text(field.name, given)
        if not 0 <= self.error_corrected < self.error_printed:
            found = f"{self.error_corrected:g} and {self.error_printed:g}"
            raise ValueError(f"error_corrected must be at least 0 and below error_printed, got {found}.")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a check measured.

    `rows`: each by name, the most telling first; all must hold. `control`: the same checks against a prediction that is
    wrong in one place; all must be refuted. `panels`: the arrays behind them, one picture each (see `panel`,
    `heatmap`). `remarks`: findings that no bound expresses. `errata`: published statements that it decides against.

    **Raises** `ValueError` for rows, panels, remarks or errata of another type.
    """

    rows: Mapping[str, Row]
    control: Mapping[str, Row]
    panels: Sequence[xr.Dataset] = ()
    remarks: Sequence[str] = ()
    errata: Sequence[Erratum] = ()

    def __post_init__(self):
        for name, rows in (("rows", self.rows), ("control", self.control)):
            wrong = [rows] if not isinstance(rows, Mapping) else [key for key in rows if not isinstance(key, str)]
            if not wrong:
                wrong = [row for row in rows.values() if not isinstance(row, Row)]
            if wrong:
                made = "the checks (agrees, converges, …)"
                raise ValueError(f"{name} must map names to rows made by {made}, got {describe(wrong[0])}.")
        for name, things, kind in (("panels", self.panels, xr.Dataset), ("errata", self.errata, Erratum)):
            several = isinstance(things, Iterable) and not isinstance(things, kind)
            kept = tuple(things) if several else (things,)  # a generator is used up by looking at it
            wrong = [x for x in kept if not isinstance(x, kind)] if several else [things]
            if wrong:
                raise ValueError(f"{name} must be a sequence of {kind.__name__}, got {describe(wrong[0])}.")
            object.__setattr__(self, name, kept)
        for data in self.panels:
            roles = {curve.attrs.get("role") for curve in data.data_vars.values()}
            if not roles or None in roles or not {"title", "x", "y", "log"} <= data.attrs.keys():
                raise ValueError(f"panels must be made by panel or heatmap, got a dataset of {list(data.data_vars)}.")
        object.__setattr__(self, "remarks", strings("remarks", self.remarks))

    @property
    def verdict(self) -> Verdict:
        return Verdict.all([row.verdict for row in self.rows.values()])

    @property
    def control_rejected(self) -> bool:
        return bool(self.control) and all(row.verdict is Verdict.REFUTED for row in self.control.values())

    @property
    def decisive(self) -> Row:
        """The row that stands for all in the table: the first that does not hold, else the first."""
        rows = list(self.rows.values())
        if not rows:
            raise ValueError("rows must hold at least one row, got none.")
        return next((row for row in rows if row.verdict is not Verdict.HOLDS), rows[0])


@dataclasses.dataclass(frozen=True)
class Setting:
    """Under which conditions a claim is checked. Claims draw all their randomness from `key` and `rng`.

    **Raises** `ValueError` for a scale that there is not, and a seed outside `0 … 2⁶³ − 1`.
    """

    scale: Scale = "laptop"
    seed: int = 0
    corpus: str = ""
    corpus_name: str = ""

    def __post_init__(self):
        choice("scale", self.scale, ("smoke", "laptop", "paper"))
        object.__setattr__(self, "seed", integer("seed", self.seed, least=0, most=2**63 - 1))
        for name in ("corpus", "corpus_name"):
            check_text(name, getattr(self, name))

    @property
    def corpus_digest(self) -> str:
        """Tells this text from others of the same name."""
        return hashlib.sha256(self.corpus.encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def key(self) -> Key[Array, ""]:
        return jax.random.key(self.seed)

    @property
    def rng(self) -> np.random.Generator:
        """For fixed data: drawn on the host, it compiles nothing."""
        return np.random.default_rng(self.seed)

    @property
    def dtype(self) -> Any:
        return jnp.result_type(float)

    def pick(self, *, smoke: T, laptop: T, paper: T) -> T:
        """The value for this scale."""
        return {"smoke": smoke, "laptop": laptop, "paper": paper}[self.scale]

    def bound(self, float64: T, float32: T) -> T:
        """The bound for the precision in use. Claims are made in float64; the other says what float32 resolves."""
        return float64 if self.dtype == jnp.float64 else float32


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\.[A-Za-z_][A-Za-z0-9_]{0,99}")  # a folder has it, too


@dataclasses.dataclass(frozen=True)
class Claim:
    """A theorem turned into something that can fail. Made by the decorator `claim`.

    `name` is `paper.function`, as in `joma.exp_invariant`; `paper` its citation in short; `tex` the mathematics of the
    statement in LaTeX; `flow` the flow that it is about, if any.

    **Raises** `ValueError` for a name that is not two identifiers, and for what is no text or no function.
    """

    name: str
    paper: str
    statement: str
    source: str
    assumptions: tuple[str, ...]
    check: Callable[[Setting], Evidence]
    tex: str = ""
    flow: type | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name must read paper.claim, two identifiers as in joma.exp_invariant, got {describe(self.name)}."
            )
        check_callable("check", self.check)
        object.__setattr__(self, "assumptions", strings("assumptions", self.assumptions))
        for name in ("paper", "statement", "source", "tex"):
            check_text(name, getattr(self, name))
        for assumption in self.assumptions:
            check_text("assumptions", assumption)
        if self.flow is not None and not isinstance(self.flow, type):
            raise ValueError(f"flow must be a class of flows, got {describe(self.flow)}.")

    def __reduce__(self):
        """Travels to another process as the name it has in its module."""
        return _find, (self.check.__module__, self.check.__qualname__)


def _find(module: str, name: str) -> Claim:
    return getattr(importlib.import_module(module), name)


def claim(
    statement: str,
    *,
    source: str,
    assumptions: str | Sequence[str],
    tex: str = "",
    flow: type | None = None,
    name: str | None = None,
    paper: Paper | str | None = None,
) -> Callable[[Callable[[Setting], Evidence]], Claim]:
    """Turns a function `(Setting) -> Evidence` into a `Claim`.

    `statement`: what is claimed, in one or two sentences. `source`: theorem or equation. `tex`: its mathematics in
    LaTeX. `flow`: the class of flows that it is about.

    The paper is the `PAPER` of the module or of its package, and the name is that of this module or package and of the
    function: `joma.exp_invariant`. Without a `PAPER` both are the module's. `name` and `paper` say otherwise, as claims
    that a loop makes need.

    **Raises** `ValueError` for a name that is not two identifiers, and what is no text.
    """

    def made(check: Callable[[Setting], Evidence]) -> Claim:
        check_callable("check", check)
        key, found = paper_of(check)
        own = f"{key}.{getattr(check, '__name__', '')}" if name is None else name
        cited = found if paper is None else paper
        if isinstance(cited, Paper):
            cited = str(cited)
        return Claim(own, cited, statement, source, strings("assumptions", assumptions), check, tex, flow)

    return made


def claims_in(module: ModuleType | str) -> tuple[Claim, ...]:
    """The claims of a module, or of a package and all its modules, in the order of the files and of the lines.

    A module whose claims are made by functions lists them as `CLAIMS`; what is only imported into a module is not its.

    **Raises** `ValueError` for a module that is not there, and for two claims of one name.
    """
    if isinstance(module, str):
        try:
            module = importlib.import_module(module)
        except (ModuleNotFoundError, ValueError) as error:
            if isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}."):
                raise  # what the module itself imports
            raise ValueError(f"module must be a module, or the name of one, got {describe(module)}.") from error
    if not isinstance(module, ModuleType):
        raise ValueError(f"module must be a module, or the name of one, got {describe(module)}.")
    found = [*_own_claims(module)]
    for info in sorted(pkgutil.iter_modules(getattr(module, "__path__", []), f"{module.__name__}."), key=str):
        if not info.name.rpartition(".")[2].startswith("_"):
            found += claims_in(info.name)
    for claim in found:
        places = [f"{one.check.__module__}.{one.check.__name__}" for one in found if one.name == claim.name]
        if len(places) > 1:
            raise ValueError(f"claims must have names of their own, got {claim.name} for {' and '.join(places)}.")
    return tuple(found)


def built_in(*papers: str) -> tuple[Claim, ...]:
    """The claims of this library, all or those of some papers: `built_in("joma")`. Only these papers are imported.

    **Raises** `ValueError` for a paper that there is not.
    """
    package = importlib.import_module("..validate", __package__)
    known = sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.ispkg)
    for paper in papers:
        choice("papers", paper, known)
    return tuple(claim for paper in papers or known for claim in claims_in(f"{package.__name__}.{paper}"))


def _own_claims(module: ModuleType) -> Sequence[Claim]:
    listed = getattr(module, "CLAIMS", None)
    if listed is not None:
        if not isinstance(listed, Sequence) or not all(isinstance(claim, Claim) for claim in listed):
            raise ValueError(f"CLAIMS must be a sequence of claims, made by `claim`, got {describe(listed)}.")
        return listed
    own = {id(x): x for x in vars(module).values() if isinstance(x, Claim) and x.check.__module__ == module.__name__}
    return list(own.values())  # a module's names are in the order of their lines
