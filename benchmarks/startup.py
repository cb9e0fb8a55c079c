"""How long a process takes to its first result, cold and with a cache, and what compiles anew.
`python benchmarks/startup.py`. See README.md for what each row means.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from timing import Timing, check, print_header, ratio, table

from traindyn.dynamics import GradientFlow, solve
from traindyn.dynamics.joma import LinearActivation, NonlinearActivation
from traindyn.nets import joma as nets
from traindyn.nets import train

PAIRS = 5
CLAIM = ("verify", "--scale", "smoke", "--jobs", "1")
SUBJECTS = {  # name: words of the command line, more of the environment
    "a map of closed forms and training, joma.validity": (("sweep", "joma.validity"), {}),
    "training, joma.gd_invariant": ((*CLAIM, "joma.gd_invariant"), {}),
    "solves, joma.no_attention": ((*CLAIM, "joma.no_attention"), {}),
    "the same, EQX_ON_ERROR=off": ((*CLAIM, "joma.no_attention"), {"EQX_ON_ERROR": "off"}),
}


def first_results() -> None:
    """(a) Seconds from the start of a process to its end, with an empty compilation cache and with its own.

    JAX keeps no program that calls back into Python, as each run-time check of Equinox and Diffrax does, so that a
    solve compiles anew; EQX_ON_ERROR=off, which leaves the checks out, shows what that costs.
    """
    program = str(Path(sys.executable).with_name("traindyn"))
    bare = _seconds([sys.executable, "-c", "import traindyn._commands.verify"], {})
    light = [f"{words[0]} {_seconds([program, *words], {}):.2f} s" for words in (["--help"], ["list"], ["cite"])]
    print(f"\nimporting all that verify imports: {bare:.2f} s; {', '.join(light)}")
    for name, (words, more) in SUBJECTS.items():
        cold, warm = [], []
        for _ in range(PAIRS):
            with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as out:
                found = more | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
                command = [program, *words, "--out"]
                cold.append(_seconds([*command, str(Path(out) / "cold")], found))
                warm.append(_seconds([*command, str(Path(out) / "warm")], found))
        timings = {"cold": Timing(cold[0], tuple(cold)), "with the cache": Timing(warm[0], tuple(warm))}
        table(f"(a) {name}: whole process, {PAIRS} pairs", timings, "cold")
        figure = ratio(timings, "with the cache", "cold")
        check(f"6, a second start, {name}", figure.median <= 0.6, figure, "≤ 0.6×")


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return seconds


def compilations() -> None:
    """(b) How often changing a number compiles something."""
    count = 0

    def listen(name, seconds, **_):
        nonlocal count
        count += name == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    x, g = jnp.ones((8, 4)), jnp.ones((8, 2))
    block = nets.JomaBlock(4, 2, attention="exp", key=jax.random.key(4))
    sampler = nets.minibatch((x, g), 4)
    loss, zero, ts = nets.stationary_loss, jnp.zeros(3), jnp.linspace(0, 0.5, 3)
    still = lambda y: jnp.sum(y**2) / 2
    run = jax.jit(lambda rate: train(block, loss, (x, g), optax.sgd(rate), 10).model.z)
    seeded = jax.jit(lambda key: train(block, loss, sampler, optax.sgd(0.1), 10, key=key).model.z)
    numbers = [jnp.asarray(n) for n in (0.1, 0.2, 0.3, 0.4)]
    keys = {float(n): jax.random.key(i) for i, n in enumerate(numbers)}
    subjects = {
        "learning rate of train, under jit": run,
        "seed of train, under jit": lambda n: seeded(keys[float(n)]),
        "Δ of LinearActivation, in solve": lambda n: solve(LinearActivation(n * jnp.ones(3)), zero, ts, throw=False).ys,
        "μ of NonlinearActivation, in solve": lambda n: (
            solve(NonlinearActivation(n * jnp.ones(3)), zero, ts, throw=False).ys
        ),
        "rates of GradientFlow, arrays, in solve": lambda n: solve(GradientFlow(still, n), zero, ts, throw=False).ys,
        "rates of GradientFlow, Python floats, in solve": lambda n: (
            solve(GradientFlow(still, float(n)), zero, ts, throw=False).ys
        ),
    }
    print("\n(b) compilations when a number changes: at the first value, and at three more")
    anew = 0
    for name, call in subjects.items():
        counts = []
        for n in numbers:
            before = count
            jax.block_until_ready(call(n))
            counts.append(count - before)
        anew += sum(counts[1:])
        print(f"  {name:50}{counts[0]:>10}  {sum(counts[1:]):>19}", flush=True)
    check("6, compilations when a rate, a seed or μ changes", anew == 0, anew, "none")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    jax.config.update("jax_enable_x64", True)
    print_header()
    start = time.perf_counter()
    compilations()
    first_results()
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
