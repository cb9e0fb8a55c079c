"""What sweeps over many lanes cost, in time and memory. `python benchmarks/sweeps.py [--x32] [ROW ...]`.

Rows `a` to `c` by letter; without any, all. The candidates of one table run interleaved in this one process. See
README.md for what each row means.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import torch
from peak import BATCH, NODES, TOKENS, Task
from peers import finished, one_thread, tensor
from timing import check, interleaved, print_header, product_floor, ratio, table, unit

import traindyn
from traindyn.dynamics.sweep import map_lanes

STEPS, CHUNK = 100, 256
NUMBERS = (1, 16, 64, 256, 1024, 4096)
TORCH_STEPS, LOOP_LANES = 4, 16
OURS, LOOP = "{} lanes: traindyn", "torch, Python loop over lanes and steps"
PEERS = {False: "{} lanes: torch.func.vmap", True: "{} lanes: torch.func.vmap, in our order"}
MEMORY_LANES = 100_000


def batches_and_start(task: Task) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]:
    """The same minibatches, drawn beforehand, so that PyTorch is not charged for drawing them; and the same start."""
    drawn = [task.sampler(jax.random.fold_in(task.key, n)) for n in range(TORCH_STEPS)]
    return [(tensor(x), tensor(g)) for x, g in drawn], (tensor(task.block.w), tensor(task.block.z[0]))


def as_written(w: torch.Tensor, z: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The loss as the equations have it."""
    h = torch.relu((torch.exp(z) * x) @ w[:TOKENS] + w[TOKENS])
    return ((h - g) ** 2).sum(1).mean() / 2


def in_our_order(w: torch.Tensor, z: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The weights go to V, as in `JomaBlock.hidden`, so that lanes share the left factor of each product."""
    h = torch.relu(x @ (torch.exp(z)[:, None] * w[:TOKENS]) + w[TOKENS])
    return ((h - g) ** 2).sum(1).mean() / 2


def torch_loop(task: Task, rates: np.ndarray) -> Callable[[], np.ndarray]:
    batches, start = batches_and_start(task)

    def call():
        ends = []
        for rate in rates.tolist():
            w, z = (p.clone().requires_grad_() for p in start)
            for x, g in batches:
                dw, dz = torch.autograd.grad(as_written(w, z, x, g), (w, z))
                with torch.no_grad():
                    w -= rate * dw
                    z -= rate * dz
            ends.append(z)
        return finished(torch.stack(ends))[0]

    return call


def torch_vmap(task: Task, rates: np.ndarray, loss: Callable = as_written) -> Callable[[], np.ndarray]:
    (batches, start), rate = batches_and_start(task), tensor(rates)
    slope = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(0, 0, None, None))

    def call():
        w, z = (p.expand(len(rates), *p.shape).clone() for p in start)
        for x, g in batches:
            dw, dz = slope(w, z, x, g)
            w -= rate[:, None, None] * dw
            z -= rate[:, None] * dz
        return finished(z)[0]

    return call


def learning_rates() -> None:
    """(a) SGD at many learning rates, per lane and step."""
    task, short = Task(STEPS), Task(TORCH_STEPS)
    rates = {n: np.linspace(1e-3, 1e-2, n).astype(task.dtype) for n in NUMBERS}
    agree(short, rates[LOOP_LANES])
    lanes = jax.jit(lambda rates: map_lanes(task.lane, rates, batch_size=CHUNK))
    default = jax.jit(lambda rates: map_lanes(task.lane, rates))
    plain, alone = jax.jit(jax.vmap(task.lane)), jax.jit(task.lane)
    calls, per = {}, {}
    for n, values in rates.items():
        ours = jnp.asarray(values)
        calls[OURS.format(n)], per[OURS.format(n)] = (lambda r=ours: lanes(r)), n * STEPS
        if n == 4096:
            name = f"{n} lanes: the same, one vmap without chunks"
            calls[name], per[name] = (lambda r=ours: plain(r)), n * STEPS
            name = f"{n} lanes: the same, chunks of the default size"
            calls[name], per[name] = (lambda r=ours: default(r)), n * STEPS
        if n in (16, 64, 256, 1024):
            for ordered, name in PEERS.items():
                name, loss = name.format(n), in_our_order if ordered else as_written
                calls[name], per[name] = torch_vmap(short, values, loss), n * TORCH_STEPS
    name = f"{LOOP_LANES} lanes: ours one by one, compiled once"
    calls[name], per[name] = (lambda: [alone(r) for r in jnp.asarray(rates[LOOP_LANES])]), LOOP_LANES * STEPS
    calls[LOOP], per[LOOP] = torch_loop(short, rates[LOOP_LANES]), LOOP_LANES * TORCH_STEPS
    timings, _ = interleaved(calls, 5)
    timings = {name: t.per(per[name]) for name, t in timings.items()}
    title = f"(a) SGD at many learning rates: {TOKENS} tokens, {NODES} nodes, batch {BATCH}, chunks of {CHUNK} lanes;"
    title += " per lane and step"
    table(title, timings, OURS.format(64))
    least = 2 * product_floor(BATCH, TOKENS, NODES * 256, task.dtype) / 256
    print(f"  floor: two matrix products, of 256 lanes at once, {unit(least)} a lane")
    for n in (16, 64, 256, 1024):
        against, ordered = (ratio(timings, PEERS[order].format(n), OURS.format(n)) for order in (False, True))
        figure = f"{against}, in our order {ordered}"
        check(f"3, torch.func.vmap at {n} lanes", against.median >= 5, figure, "≥ 5×")
        against = ratio(timings, LOOP, OURS.format(n))
        check(f"3, torch loop at {n} lanes", against.median >= 40, against, "≥ 40×")
    growth = ratio(timings, OURS.format(4096), OURS.format(64))
    check("3, a lane and step at 4096 lanes over one at 64", growth.median <= 1.15, growth, "≤ 1.15×")


def agree(task: Task, rates: np.ndarray) -> None:
    ours = np.asarray(jax.jit(jax.vmap(task.lane))(jnp.asarray(rates)))
    ordered = torch_vmap(task, rates, in_our_order)
    for peer in (torch_loop(task, rates), torch_vmap(task, rates), ordered):
        print(f"  torch is off ours by {np.max(np.abs(peer() - ours)):.0e} after {TORCH_STEPS} steps")


def stiffness() -> None:
    """(b) Lanes of unequal stiffness: `v̇ = (μ − v) exp(v²/2)` by Tsit5, whose steps grow as `e^{μ²/2}`."""
    number, tokens, end, rtol = 1024, 32, 1.0, 1e-6 if jnp.result_type(float) == jnp.float64 else 1e-4
    mu = np.random.default_rng(5).uniform(0, 4, number).astype(jnp.result_type(float))

    def lane(largest):
        m = largest * jnp.linspace(1 / tokens, 1, tokens, dtype=largest.dtype)
        field = lambda t, v, args: (m - v) * jnp.exp(jnp.clip(v, 0, m) ** 2 / 2)
        step = dfx.PIDController(rtol=rtol, atol=rtol / 100, norm=optx.max_norm)
        return dfx.diffeqsolve(
            dfx.ODETerm(field), dfx.Tsit5(), 0.0, end, None, jnp.zeros_like(m), stepsize_controller=step,
            max_steps=2**16, throw=False,
        )  # fmt: skip

    by_mu, cost = lambda point: lane(point["mu"]), lambda point: point["mu"] ** 2
    plain = jax.jit(jax.vmap(lambda m: lane(m).ys[0]))
    datasets = {}

    def swept(name, **options):
        def call():
            datasets[name] = traindyn.sweep(by_mu, {"mu": mu}, **options)
            return datasets[name]["y"].values[:, 0]

        return call

    base, sorted_ = "vmap(diffeqsolve)", "traindyn: sweep, cost given"
    calls = {base: lambda: plain(jnp.asarray(mu))}
    calls[sorted_] = swept(sorted_, cost=cost)
    for batch in (8, 128):
        calls[f"{sorted_}, chunks of {batch}"] = swept(f"{sorted_}, chunks of {batch}", cost=cost, batch_size=batch)
    calls["traindyn: sweep, no cost given"] = swept("traindyn: sweep, no cost given")
    timings, outputs = interleaved(calls, 5)
    steps = np.asarray(jax.jit(jax.vmap(lambda m: lane(m).stats["num_steps"]))(jnp.asarray(mu)))
    notes = {base: f"lane efficiency {steps.mean() / steps.max():.2f}"}
    for name, found in datasets.items():
        notes[name] = f"lane efficiency {found.attrs.get('lane_efficiency', np.nan):.2f}"
    table(
        f"(b) {number} lanes, μ from 0 to 4, {steps.min()} to {steps.max()} steps, rtol {rtol:g}", timings, base, notes
    )
    off = max(float(np.max(np.abs(np.asarray(v) - np.asarray(outputs[base])))) for v in outputs.values())
    print(f"  largest difference between them: {off:.0e}")
    faster = ratio(timings, base, sorted_)
    check("2, sweep with cost against vmap(diffeqsolve)", faster.median >= 4, faster, "≥ 4×")


def memory() -> None:
    """(c) Peak memory of a sweep of many lanes and of one chunk of it, each in a process of its own."""
    print(f"\n(c) peak memory of a sweep, {TOKENS} tokens, {NODES} nodes, one number a lane kept")
    options = ["--x32"] if jnp.result_type(float) == jnp.float32 else []
    script, peaks = Path(__file__).with_name("peak.py"), {}
    for lanes in (0, CHUNK, MEMORY_LANES):
        command = [sys.executable, str(script), str(lanes), str(CHUNK), *options]
        peaks[lanes] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"  {lanes:>7} lanes: {peaks[lanes]:.0f} MB", flush=True)
    whole = peaks[MEMORY_LANES] / peaks[CHUNK]
    over = (peaks[MEMORY_LANES] - peaks[0]) / (peaks[CHUNK] - peaks[0])
    figure = f"{whole:.2f}× in all, {over:.2f}× beyond what the process holds without a sweep"
    check(f"memory, {MEMORY_LANES} lanes over one chunk of {CHUNK}", max(whole, over) <= 2, figure, "≤ 2×")


def main() -> None:
    rows = {"a": learning_rates, "b": stiffness, "c": memory}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="a, b or c; by default all")
    parser.add_argument("--x32", action="store_true", help="float32 instead of float64")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", not arguments.x32)
    print_header()
    one_thread()
    start = time.perf_counter()
    for row in arguments.rows or rows:
        rows[row]()
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
