"""Timing candidates beside each other in one process, for the benchmarks of this folder."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROUNDS = 7


class Timing(NamedTuple):
    """Seconds of one call: the first, which compiles, and those of the rounds."""

    first: float
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def per(self, number: float) -> "Timing":
        """The same, of one of `number` parts of a call; compilation stays whole."""
        return Timing(self.median / number + self.first - self.median, tuple(x / number for x in self.rounds))


class Ratio(NamedTuple):
    """How many times as long one candidate takes as another: median, least and most over the rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        median, least, most = (f"{x:.0f}" if x >= 1000 else f"{x:.3g}" for x in self)
        return f"{median}× ({least} – {most})"


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
    return {n: Timing(first[n], tuple(s)) for n, s in samples.items()}, outputs


def _seconds(call: Callable[[], Any], number: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(number):
        jax.block_until_ready(call())
    return (time.perf_counter() - start) / number


def ratio(timings: Mapping[str, Timing], name: str, base: str) -> Ratio:
    """Round by round, so that a spell which slows both cancels."""
    each = [a / b for a, b in zip(timings[name].rounds, timings[base].rounds, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def table(title: str, timings: Mapping[str, Timing], base: str, notes: Mapping[str, str] | None = None, per=1.0):
    """Prints one row a candidate: its time, divided by `per`, and how many times the time of `base` it takes."""
    print(f"\n{title}")
    print(f"  {'':54}{'median':>10}  {'range':>19}{'ratio, its range':>27}{'compile':>9}  note")
    for name, t in timings.items():
        cells = [unit(x / per) for x in (t.median, min(t.rounds), max(t.rounds))]
        times = "1×" if name == base else str(ratio(timings, name, base))
        compiled = f"{max(t.first - t.median, 0):.2f} s"
        note = (notes or {}).get(name, "")
        print(
            f"  {name:54}{cells[0]:>10}  {cells[1] + ' – ' + cells[2]:>19}{times:>27}{compiled:>9}  {note}".rstrip(),
            flush=True,
        )


def check(bar: str, passed: bool, figure: Any, asked: str) -> None:
    """Prints whether a bar holds, with its figure."""
    print(f"  {'PASS' if passed else 'FAIL'}  bar {bar}: {figure} (asked {asked})", flush=True)


def unit(seconds: float) -> str:
    for name, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds / 1e-9:.3g} ns"


class Floor(NamedTuple):
    """What this machine does at best, as measured in this run: seconds a byte copied (read and written), seconds an
    exponential, both of 4 million numbers."""

    byte: float
    exponential: float


def floor() -> Floor:
    """Prints and returns the floors that do not depend on shapes."""
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, 2**22), jnp.result_type(float))
    copy, exp = jax.jit(lambda x: -x), jax.jit(lambda x: jnp.exp(jnp.exp(jnp.exp(jnp.exp(x)))))
    timings, _ = interleaved({"copy": lambda: copy(x), "exp": lambda: exp(x)}, 5)
    copied, exponentials = (min(t.rounds) / x.size for t in timings.values())
    found = Floor(copied / (2 * x.dtype.itemsize), max(exponentials - copied, 0) / 4)
    print(f"floors: {1e-9 / found.byte:.3g} GB/s read and written, {found.exponential * 1e9:.3g} ns an exponential")
    return found


def product_floor(rows: int, inner: int, columns: int, dtype: Any) -> float:
    """Seconds of one bare matrix product of this shape: the least of five rounds."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((rows, inner), (inner, columns)))
    product = jax.jit(jnp.matmul)
    return min(interleaved({"": lambda: product(a, b)}, 5)[0][""].rounds)


def print_header() -> None:
    """What a table was measured on, and how to read it."""
    print(f"{jnp.result_type(float)} on {jax.devices()[0].device_kind}, python {platform.python_version()},", end=" ")
    print(", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))))
    print("ratio: this row's time over that of the row with 1×, round by round: median, least and most.")


PACKAGES = ("traindyn", "jax", "diffrax", "equinox", "optax", "scipy", "numpy", "torch", "torchdiffeq")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
