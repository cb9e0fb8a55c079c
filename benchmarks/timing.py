"""Timing candidates beside each other in one process, for the benchmarks of this folder."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ROUNDS = 7


class Timing(NamedTuple):
    """Seconds of one call: the first, which compiles, and the median, least and most of the rounds."""

    first: float
    median: float
    least: float
    most: float


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS
) -> tuple[dict[str, Timing], dict[str, Any]]:
    """Times each candidate once a round, in turn, so that a busy spell hits all of them; and what each returned."""
    first, calls, outputs = {}, {}, {}
    samples = {name: [] for name in candidates}
    for name, call in candidates.items():
        start = time.perf_counter()
        outputs[name] = jax.block_until_ready(call())
        first[name] = time.perf_counter() - start
        calls[name] = max(1, int(5e-3 / _seconds(call)))  # short ones are repeated to 5 ms a round
    for _ in range(rounds):
        for name, call in candidates.items():
            samples[name].append(_seconds(call, calls[name]))
    return {n: Timing(first[n], statistics.median(s), min(s), max(s)) for n, s in samples.items()}, outputs


def _seconds(call: Callable[[], Any], number: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(number):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / number


def table(title: str, timings: Mapping[str, Timing], base: str, notes: Mapping[str, str] | None = None, per=1.0):
    """Prints one row a candidate: its time, divided by `per`, and how many times the time of `base` it takes."""
    print(f"\n{title}")
    print(f"  {'':50}{'median':>10}  {'range':>19}{'ratio':>11}{'compile':>9}  note")
    for name, t in timings.items():
        cells = [_unit(x / per) for x in (t.median, t.least, t.most)]
        ratio = f"{t.median / timings[base].median:.3g}×"
        compiled = f"{max(t.first - t.median, 0):.2f} s"
        note = (notes or {}).get(name, "")
        print(
            f"  {name:50}{cells[0]:>10}  {cells[1] + ' – ' + cells[2]:>19}{ratio:>11}{compiled:>9}  {note}", flush=True
        )


def _unit(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def print_header() -> None:
    """What a table was measured on, and how to read it."""
    packages = ("traindyn", "jax", "diffrax", "equinox", "optax", "scipy", "numpy")
    print(f"{jnp.result_type(float)} on {jax.devices()[0].device_kind}, python {platform.python_version()},", end=" ")
    print(", ".join(f"{name} {version(name)}" for name in packages))
    print("ratio: this row's median over that of the row with 1×. range: least and most of the rounds.")
