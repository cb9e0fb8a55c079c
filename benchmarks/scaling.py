"""How cost grows with lanes, tokens and hidden nodes. `python benchmarks/scaling.py [--x32]`.

For each size the sizes run interleaved; the exponent is that of a power law fitted to their medians, with its standard
error. See README.md for what each row means.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from peak import Task, regression
from timing import check, floor, interleaved, print_header, unit

from traindyn.dynamics.joma import LinearActivation, NonlinearActivation
from traindyn.dynamics.sweep import map_lanes
from traindyn.nets import joma, train
from traindyn.validate.metrics import fit_order

STEPS, ROUNDS = 20, 5


def grows(title: str, calls: Mapping[int, Callable[[], Any]]) -> None:
    """Prints one line: the time at each size, and the exponent over all sizes and over the upper three."""
    named, _ = interleaved({str(size): call for size, call in calls.items()}, ROUNDS)
    timings = {size: named[str(size)] for size in calls}
    sizes, medians = np.array(list(calls)), np.array([t.median for t in timings.values()])
    every, upper = fit_order(sizes, medians), fit_order(sizes[-3:], medians[-3:])
    print(f"\n{title}")
    for size, t in timings.items():
        print(f"  {size:>8}  {unit(t.median):>8}  ({unit(min(t.rounds))} – {unit(max(t.rounds))})")
    print(f"  exponent {every[0]:.2f} ± {every[1]:.2f}, of the upper three {upper[0]:.2f} ± {upper[1]:.2f}", end="")
    print()
    check("linear", upper[0] <= 1.1, f"{upper[0]:.2f}", "≤ 1.1")


def closed_form(field: type, title: str, evaluate: Callable) -> None:
    def call(lanes):
        values = jnp.asarray(np.random.default_rng(0).uniform(0.5, 3.0, (lanes, 10)), jnp.result_type(float))
        run = jax.jit(jax.vmap(lambda v: evaluate(field(v), jnp.zeros_like(v))))
        return lambda: run(values)

    grows(f"{title}, lanes of 10 tokens", {lanes: call(lanes) for lanes in (10, 100, 1000, 10_000, 100_000)})


def lanes_of_sgd() -> None:
    """Cost of a sweep of SGD against its lanes, in chunks."""
    task = Task(STEPS)
    run = jax.jit(lambda rates: map_lanes(task.lane, rates, batch_size=256))

    def call(lanes):
        rates = jnp.asarray(np.linspace(1e-3, 1e-2, lanes), task.dtype)
        return lambda: run(rates)

    grows(f"SGD of {STEPS} steps, lanes", {lanes: call(lanes) for lanes in (1, 16, 64, 256, 1024, 4096)})


def step(samples: int, tokens: int, nodes: int) -> Callable[[], Any]:
    """Some steps of gradient descent on a block."""
    rng, dtype = np.random.default_rng(0), jnp.result_type(float)
    x = jnp.asarray(rng.uniform(size=(samples, tokens)) / tokens, dtype)
    g = jnp.asarray(rng.standard_normal((samples, nodes)), dtype)
    options: Any = {"attention": "exp", "activation": "relu", "embeddings": "identity"}
    block = joma.JomaBlock(tokens, nodes, **options, key=jax.random.key(0))
    run = jax.jit(lambda d: train(block, regression, d, optax.sgd(0.1), STEPS, trainable=block.trainable()).model.w)
    return lambda: run((x, g))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--x32", action="store_true", help="float32 instead of float64")
    jax.config.update("jax_enable_x64", not parser.parse_args().x32)
    print_header()
    floor()
    start = time.perf_counter()
    closed_form(NonlinearActivation, "NonlinearActivation.exact", lambda flow, v0: flow.exact(v0, 1.0))
    closed_form(LinearActivation, "LinearActivation.blow_up_time", lambda flow, v0: flow.blow_up_time(v0))
    lanes_of_sgd()
    sizes = (64, 128, 256, 512, 1024, 2048)
    grows(f"{STEPS} steps of the block, 256 samples, 64 nodes: tokens", {m: step(256, m, 64) for m in sizes})
    grows(f"{STEPS} steps of the block, 256 samples, 256 tokens: nodes", {k: step(256, 256, k) for k in sizes})
    grows(f"{STEPS} steps of the block, 256 tokens, 64 nodes: samples", {n: step(n, 256, 64) for n in sizes})
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
