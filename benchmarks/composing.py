"""What a step and a run of the modular-addition network cost, beside PyTorch loops and the operations they need.

Without `--runs` half a minute; with it whole runs of 10 000 steps too, three minutes.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import check, interleaved, print_header, product_floor, ratio, table

from traindyn.nets import pair_optimisers, pairs, train
from traindyn.nets.pair_runs import train_pairs

NODES, RATE, DECAY, RUN = 512, 0.01, 5e-5, 10_000
BASE, MASKED, WHOLE = "three output products, in a scan", "traindyn: 90 % of pairs", "traindyn: all pairs"


def addition(order: int) -> np.ndarray:
    return np.add.outer(np.arange(order), np.arange(order)) % order


def ours(model: Any, data: pairs.Pairs, loss: Any, steps: int) -> Any:
    """`steps` updates in one compiled scan; rate and decay are arguments, as in `train_pairs`."""
    kept = model.trainable()
    run = lambda model, data, rate, decay: (
        train(model, loss, data, pair_optimisers.coupled_adam(rate, decay), steps, trainable=kept).model
    )
    compiled, rates = jax.jit(run), (jnp.float32(RATE), jnp.float32(DECAY))
    return lambda: compiled(model, data, *rates)


def embedded(form: str) -> Any:
    """The loss on the pairs themselves, rows of weights gathered or found by products with one-hot vectors."""

    def loss(model, batch):
        g1, g2, label = batch
        order = model.order
        row = lambda w, g: w[g] if form == "gather" else jax.nn.one_hot(g, order, dtype=w.dtype) @ w
        out = jnp.square(row(model.a, g1) + row(model.b, g2)) @ model.c.T
        out = out - jnp.mean(out, axis=1, keepdims=True)
        return jnp.mean(jnp.sum(out * out, axis=1)) - 2 * jnp.mean(out[jnp.arange(len(label)), label])

    return loss


def torch_loop(model: Any, mask: np.ndarray, form: str, steps: int, threads: int, evaluate: bool = False) -> Any:
    """The same full-batch steps in PyTorch. `evaluate`: with the test loss and both accuracies after each, as the
    paper's code has it."""
    order = mask.shape[0]
    label = torch.tensor(addition(order).reshape(-1))
    used, rest = (torch.tensor(np.flatnonzero(m)) for m in (mask, ~mask))
    hot = torch.eye(order)

    def outputs(weights, at):
        a, b, c = weights
        if form == "outer sum":
            hidden = (a[:, None] + b[None]).reshape(order**2, -1)[at]
        elif form == "one-hot":
            hidden = hot[at // order] @ a + hot[at % order] @ b
        else:
            hidden = a[at // order] + b[at % order]
        out = hidden.square() @ c.T
        return out - out.mean(1, keepdim=True)

    def loss(out, at):
        return out.square().sum(1).mean() - 2 * out.gather(1, label[at, None]).mean() + 1 - 1 / order

    def run():
        torch.set_num_threads(threads)
        weights = [torch.tensor(np.asarray(w), requires_grad=True) for w in (model.a, model.b, model.c)]
        optimiser = torch.optim.Adam(weights, lr=RATE, weight_decay=DECAY)
        for _ in range(steps):
            optimiser.zero_grad()
            out = outputs(weights, used)
            loss(out, used).backward()
            optimiser.step()
            if evaluate:
                with torch.no_grad():
                    for at in (used, rest):
                        out = outputs(weights, at)
                        loss(out, at).item(), (out.argmax(1) == label[at]).float().mean().item()
        return weights[0].detach().numpy()

    return run


def three_products(order: int, steps: int) -> Any:
    """Outputs, the gradient of the hidden layer and that of c, each from what the one before left."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)

    @jax.jit
    def run(hidden, c):
        def step(carry, _):
            hidden, c = carry
            out = 1e-3 * (hidden @ c.T)
            return (out @ c, out.T @ hidden), None

        return jax.lax.scan(step, (hidden, c), length=steps)[0]

    hidden, c = normal(order**2, NODES), normal(order, NODES)
    return lambda: run(hidden, c)


def steps_of(order: int) -> None:
    """A step at one order, against its peers."""
    steps = 100 if order < 40 else 6
    mask = pairs.split(order, seed=1)
    model = pairs.initial(order, NODES, dtype=jnp.float32, key=jax.random.key(1))
    masked, whole = pairs.pairs(addition(order), mask), pairs.pairs(addition(order))
    at = tuple(jnp.asarray(x) for x in (*np.nonzero(mask), addition(order)[mask]))
    gathered = lambda threads: f"torch: gather, {threads} thread{'s' * (threads > 1)}"
    calls = {
        BASE: three_products(order, steps),
        MASKED: ours(model, masked, pairs.training_loss, steps),
        WHOLE: ours(model, whole, pairs.training_loss, steps),
        "the same, sum over pairs": ours(model, whole, pairs.loss, steps),
        "JAX: gather": ours(model, at, embedded("gather"), steps),
        "JAX: one-hot": ours(model, at, embedded("one-hot"), steps),
        gathered(1): torch_loop(model, mask, "gather", steps, 1),
        gathered(2): torch_loop(model, mask, "gather", steps, 2),
        "torch: outer sum, 2 threads": torch_loop(model, mask, "outer sum", steps, 2),
        "torch: one-hot, 2 threads": torch_loop(model, mask, "one-hot", steps, 2),
        "torch: gather, evaluated each step, 1 thread": torch_loop(model, mask, "gather", steps, 1, True),
    }
    timings, found = interleaved(calls, 5)
    table(f"a step of Adam: order {order}, {NODES} nodes, float32; per step", timings, BASE, per=steps)
    for name in (gathered(1), gathered(2)):
        gap = float(np.abs(found[name] - np.asarray(found[MASKED].a)).max())
        print(f"        {name}: weights after {steps} steps differ by at most {gap:.1e}")
    shapes = ((order**2, NODES, order), (order**2, order, NODES), (order, order**2, NODES))
    products = sum(product_floor(*shape, jnp.float32) for shape in shapes)
    shapes = ((NODES, order, NODES), (order, NODES, NODES))
    grams = 3 * sum(product_floor(*shape, jnp.float32) for shape in shapes)
    print(f"        floors: three products alone {1e3 * products:.3g} ms, six of the closed form {1e3 * grams:.3g} ms")
    best = min((gathered(1), gathered(2)), key=lambda name: timings[name].median)
    figure = ratio(timings, best, MASKED)
    if order < 40:
        check(f"issue, {best}", figure.median >= 8, figure, "≥ 8×")
        evaluated = "torch: gather, evaluated each step, 1 thread"
        print(f"        {evaluated}: {ratio(timings, evaluated, MASKED)}")
    else:
        check(f"5, {best}", figure.median >= 3, figure, "≥ 3×")
        for name in (MASKED, WHOLE):
            figure = ratio(timings, name, BASE)
            check(f"5, {name}, over its products", figure.median <= 1, figure, "≤ 1.0×")


def runs_of(order: int, seeds: int) -> None:
    """A whole run of 10 000 steps, compilation and all, with and without compaction."""
    for compact in (True, False) if order < 40 else (True,):
        start, cpu = time.perf_counter(), time.process_time()
        run = train_pairs(
            addition(order),
            fractions=[0.9],
            seeds=range(1, seeds + 1),
            learning_rates=[RATE],
            weight_decays=[DECAY],
            nodes=NODES,
            steps=RUN,
            compact=compact,
        )
        jax.block_until_ready(run.model.a)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        accuracy = (float(run.train_accuracy[..., -1].min()), float(run.test_accuracy[..., -1].min()))
        kind = f"order {order}, {seeds} seed(s), {'compacting' if compact else 'all nodes'}"
        cost = f"{wall:.1f} s, {cpu:.1f} s of CPU, {1e3 * wall / RUN / seeds:.3g} ms a step"
        print(f"  {kind}: {cost}; {run.model.a.shape[-1]} nodes left; least accuracy {accuracy}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", action="store_true", help="whole runs too, minutes")
    runs = parser.parse_args().runs
    print_header()
    for order in (23, 71):
        steps_of(order)
    if runs:
        print("\nruns of 10 000 steps, compilation included")
        runs_of(23, 5)
        runs_of(71, 1)


if __name__ == "__main__":
    main()
