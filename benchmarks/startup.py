"""How long a process takes to its first result, cold and with a cache, what compiles anew, and what a first solve costs
beside Diffrax's. `python benchmarks/startup.py [a] [b] [c]`. See README.md for what each row means.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import diffrax as dfx
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
    _run(command, environment)
    return time.perf_counter() - start


def _run(command: list[str], environment: dict[str, str]) -> str:
    ended = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return ended.stdout


FLOWS = {  # a flow, as what it does to solve: blows up, is stiff, is an autodiff gradient
    "LinearActivation": lambda x: LinearActivation(x),
    "NonlinearActivation": lambda x: NonlinearActivation(x),
    "GradientFlow of cosh": lambda x: GradientFlow(lambda y: jnp.sum(jnp.cosh(y))),
}


def first_solves() -> None:
    """(c) CPU seconds of the first `solve` of a process, traced and compiled, beside `diffeqsolve` as one writes it."""
    for name in FLOWS:
        for dtype in ("float64", "float32"):
            seconds = {"diffeqsolve": [], "solve": []}
            for _ in range(PAIRS):
                for kind, found in seconds.items():
                    command = [sys.executable, __file__, "--first", kind, name, dtype]
                    found.append(float(_run(command, {"JAX_ENABLE_COMPILATION_CACHE": "false"})))
            timings = {kind: Timing(found[0], tuple(found)) for kind, found in seconds.items()}
            table(f"(c) {name}, {dtype}: CPU time of a first solve, {PAIRS} pairs", timings, "diffeqsolve")
            figure = ratio(timings, "solve", "diffeqsolve")
            check(f"7, a first solve, {name}, {dtype}", figure.median <= 1.25, figure, "≤ 1.25×")


def first_solve(kind: str, name: str, dtype: str) -> None:
    """Prints the CPU seconds of one of them, in this process."""
    flow = FLOWS[name](jnp.array([0.5, 1.0, -0.9], dtype))
    y0, ts = jnp.array([0.1, 0.2, 0.3], dtype), jnp.array([0.1, 0.25, 0.5], dtype)
    rtol, atol = (1e-10, 1e-12) if dtype == "float64" else (1e-5, 1e-7)
    controller, solver = dfx.PIDController(rtol, atol), dfx.Tsit5()
    if flow.stiff:
        controller = dfx.ClipStepSizeController(controller, step_ts=ts)
        solver = dfx.Kvaerno5() if dtype == "float64" else dfx.Kvaerno3()
    jax.block_until_ready((y0, ts))
    start = time.process_time()
    if kind == "solve":
        solution = solve(flow, y0, ts)
    else:
        options = {"saveat": dfx.SaveAt(ts=ts), "stepsize_controller": controller, "max_steps": 2**16}
        solution = dfx.diffeqsolve(dfx.ODETerm(flow), solver, 0.0, 0.5, None, y0, **options)
    jax.block_until_ready(solution.ys)
    print(time.process_time() - start)


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", choices=["a", "b", "c", []], help="all by default")
    parser.add_argument("--first", nargs=3, metavar=("KIND", "FLOW", "DTYPE"), help="one solve of (c), in this process")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if arguments.first:
        return first_solve(*arguments.first)
    print_header()
    start = time.perf_counter()
    rows = {"b": compilations, "c": first_solves, "a": first_results}
    for row, run in rows.items():
        if not arguments.rows or row in arguments.rows:
            run()
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
