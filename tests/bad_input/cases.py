"""Runs a table of bad arguments and says how each ended.

- *good*: an error of the library's own that says what is wrong, or the right value.
- *poor*: an error from deep inside, or one that does not say what is needed.
- *bad*: a wrong number or NaN in silence.
- *fatal*: a fault of one claim that ended the whole run.
"""

import dataclasses
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(str(ROOT / name) for name in ("dynamics", "nets", "validate", "src"))
OWN_ERRORS = ("ValueError", "SolveError", "SweepError", "FileNotFoundError")
OUR_WORDS = (" must be ", " must not ", "blows up", "took all")
SECONDS = 90


@dataclasses.dataclass(frozen=True)
class Case:
    """One call. `expect` is how a careful library ends it: `"error"`, `"ok"`, or a word that the value must show."""

    group: str
    label: str
    call: Callable[[], Any]
    expect: str

    @property
    def name(self) -> str:
        return f"{self.group}: {self.label}"


CASES: list[Case] = []


def C(group: str, label: str, call: Callable[[], Any], expect: str = "error") -> None:
    CASES.append(Case(group, label, call, expect))


@dataclasses.dataclass(frozen=True)
class Outcome:
    name: str
    ending: str
    text: str
    seconds: float


def run(case: Case, allowed: dict[str, str]) -> Outcome:
    """`allowed` maps the name of a case that rightly ends otherwise than `expect` says to how the outcome begins."""
    start = time.perf_counter()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = case.call()
        signal.alarm(0)
        text = describe(value)
        right = case.expect == "ok" or (case.expect != "error" and case.expect in text)
        ending = "good" if right or _as_allowed(case.name, text, allowed) else "bad"
    except BaseException as error:
        signal.alarm(0)
        inner = traceback.extract_tb(error.__traceback__)[-1].filename
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        clear = type(error).__name__ in OWN_ERRORS and inner.startswith(OURS)
        # Compiled code can raise through Equinox alone, which puts its own words around ours.
        clear |= "EquinoxRuntimeError" in str(error) + type(error).__name__ and any(w in str(error) for w in OUR_WORDS)
        if _as_allowed(case.name, text, allowed) or (clear and case.expect == "error"):
            ending = "good"
        else:
            ending = "fatal" if case.group == "verify()" else "poor"
    return Outcome(case.name, ending, text, round(time.perf_counter() - start, 2))


def _as_allowed(name: str, text: str, allowed: dict[str, str]) -> bool:
    return name in allowed and text.startswith(allowed[name])


def _late(*_: Any) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


def describe(x: Any) -> str:
    """Dtypes, shapes and first numbers of the arrays of a value, and whether one is NaN."""
    leaves = [leaf for leaf in jax.tree.leaves(x) if hasattr(leaf, "shape")]
    if not leaves:
        return repr(x)[:300]
    texts, nan = [], False
    for leaf in leaves[:6]:
        key = eqx.is_array(leaf) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if key else leaf)
        numbers = array.astype(complex if array.dtype.kind == "c" else float) if array.dtype.kind not in "OUSM" else 0
        nan |= bool(np.isnan(numbers).any())
        few = np.array2string(array.ravel()[:4], precision=4) if array.size else "[]"
        texts.append(f"{array.dtype}{list(array.shape)}{few}")
    return ("NaN! " if nan else "") + " | ".join(texts)
