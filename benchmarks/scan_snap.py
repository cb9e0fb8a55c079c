"""What Scan and Snap costs: Fig. 6 in one call, and the flow beside autodiff. `python benchmarks/scan_snap.py [--x32]`.

Candidates run interleaved in this one process; see README.md for what each row means.
"""

import argparse
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from timing import interleaved, print_header, table

from traindyn.dynamics import GradientFlow, solve
from traindyn.dynamics.scan_snap import Decoder, ScanSnap
from traindyn.nets import scan_snap as nets
from traindyn.nets import train
from traindyn.validate.scan_snap.training import ETAS, FACTORS, figure_6_cells, figure_6_task

QUERIES, SEEDS = (1, 3, 5, 10), 10


def figure_6() -> None:
    """(a) All cells and seeds of the paper's Fig. 6, as one compiled call and as single runs one after another."""
    tasks = [figure_6_task(n) for n in QUERIES]
    keys = jax.random.split(jax.random.key(0), SEEDS)
    one_call = jax.jit(figure_6_cells)

    @jax.jit
    def single(data, key, eta_z, factor):
        """The same run as a cell of `figure_6_cells`; the rates are arguments, so that it compiles once a task."""
        start, draw = jax.random.split(key)
        model = data.network(init_scale=data.probability.shape[1] ** -0.5, key=start)
        optimiser = nets.sgd(1.0, eta_y=eta_z * factor, eta_z=eta_z, momentum=0.9)
        return train(model, nets.cross_entropy, data.contexts(128, 128), optimiser, 100, key=draw).model.z

    def loop():
        cells = itertools.product(tasks, keys, ETAS, FACTORS)
        return [single(data, key, np.float32(eta), np.float32(factor)) for data, key, eta, factor in cells]

    cells = len(QUERIES) * len(ETAS) * len(FACTORS)
    candidates = {"one call": lambda: one_call(tasks, keys), "loop over single compiled runs": loop}
    timings, _ = interleaved(candidates, 5)
    runs = cells * SEEDS
    table(f"(a) Fig. 6, {cells} cells × {SEEDS} seeds = {runs} runs of 100 steps, float32", timings, "one call")
    print(f"  per run and step: {timings['one call'].median / runs / 100 * 1e6:.3g} µs in the one call")


def flows() -> None:
    """(b) The population flow written out, against the gradient flow of the network's loss through autodiff."""
    data = nets.distinct_and_common(10)
    scan, model = ScanSnap(data.table, outputs=data.probability.shape[1], eta_z=0.1), data.network()
    loss = jax.tree_util.Partial(nets.cross_entropy, batch=data.expected())
    real = GradientFlow(loss, model.rates(eta_z=0.1))
    ts = jnp.geomspace(1, 1e4, 61)
    run = jax.jit(lambda flow, y0: solve(flow, y0, ts, throw=False).ys)
    candidates = {
        "traindyn: ScanSnap": lambda: run(scan, scan.zero()),
        "traindyn: GradientFlow of the network": lambda: run(real, model),
    }
    timings, outputs = interleaved(candidates)
    table(f"(b) joint flow to t = 1e4, K = 10, {data.keys.shape[0]} tokens", timings, "traindyn: ScanSnap")
    law, autodiff = outputs.values()
    print(f"  largest difference of z between the two: {float(jnp.max(jnp.abs(law.z - autodiff.z))):.0e}")


def decoder() -> None:
    """(c) The decoder's closed form against solving its equation, for 1000 widths at once."""
    widths = jnp.linspace(10, 1000, 1000)
    ts = jnp.geomspace(0.1, 1e4, 61)
    exact = jax.jit(lambda m: Decoder(m).exact(0.0, ts))
    solved = jax.jit(lambda m: solve(Decoder(m), jnp.zeros_like(m), ts, throw=False).ys)
    candidates = {"traindyn: Decoder.exact": lambda: exact(widths), "traindyn: solve": lambda: solved(widths)}
    timings, outputs = interleaved(candidates)
    a, b = outputs.values()
    notes = {"traindyn: solve": f"off the closed form by {float(jnp.max(jnp.abs(b / a - 1))):.0e}"}
    table("(c) decoder, 1000 widths × 61 times", timings, "traindyn: Decoder.exact", notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--x32", action="store_true", help="float32 instead of float64, in (b) and (c)")
    jax.config.update("jax_enable_x64", not parser.parse_args().x32)
    print_header()
    start = time.perf_counter()
    flows()
    decoder()
    figure_6()
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
