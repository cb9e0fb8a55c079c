"""What a step on a sample of pairs costs, beside a PyTorch loop, other forms of the loss and the products it needs.

Then twelve runs in one program, beside as many PyTorch loops one after another. Two minutes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import interleaved, print_header, product_floor, table

from traindyn.nets import pair_optimisers, pairs, train
from traindyn.nets.pair_runs import train_pairs

RATE, DECAY = 1e-3, 2e-4
OURS = "traindyn: gather, hidden layer formed anew"
SIZES = ((23, 0.45, 512, 100), (71, 0.4, 2048, 4))  # order, fraction, nodes, steps


def addition(order: int) -> np.ndarray:
    return np.add.outer(np.arange(order), np.arange(order)) % order


def ours(model: Any, data: Any, loss: Any, steps: int) -> Any:
    """`steps` updates in one compiled scan; rate and decay are arguments, as in `train_pairs`."""
    kept = model.trainable()
    run = lambda model, data, rate, decay: (
        train(model, loss, data, pair_optimisers.coupled_adam(rate, decay), steps, trainable=kept).model
    )
    compiled, rates = jax.jit(run), (jnp.float32(RATE), jnp.float32(DECAY))
    return lambda: compiled(model, data, *rates)


def other(form: str) -> Any:
    """The same loss in other forms, which computes the same."""

    def loss(model, sample):
        def rows(w, g):
            hot = (g[:, None] == jnp.arange(model.order)[None]).astype(w.dtype)
            if form == "one-hot":
                return hot @ w
            if form == "one-hot backward":  # the value is that of the rows, the slope that of the product
                return jax.lax.stop_gradient(w)[g] + _no_value(hot, w)
            return w[g]

        out = jnp.square(rows(model.a, sample.first) + rows(model.b, sample.second)) @ model.c.T
        out = out - jnp.mean(out, axis=1, keepdims=True)
        return jnp.mean(jnp.sum(out * out, axis=1)) - 2 * jnp.mean(out[jnp.arange(len(sample.label)), sample.label])

    return loss


@jax.custom_vjp
def _no_value(hot: jax.Array, w: jax.Array) -> jax.Array:
    """Zeros, whose slope is that of `hot @ w`."""
    return jnp.zeros((hot.shape[0], w.shape[1]), w.dtype)


_no_value.defvjp(lambda hot, w: (_no_value(hot, w), hot), lambda hot, slope: (None, hot.T @ slope))


def torch_loop(model: Any, sample: pairs.Pairs, steps: int, threads: int) -> Any:
    """The same full-batch steps in PyTorch, with the loss as the authors' code writes it."""
    g1, g2, label = (torch.tensor(np.asarray(x), dtype=torch.int64) for x in sample[:3])

    def run():
        torch.set_num_threads(threads)
        a, b, c = weights = [torch.tensor(np.asarray(w), requires_grad=True) for w in (model.a, model.b, model.c)]
        optimiser = torch.optim.Adam(weights, lr=RATE, weight_decay=DECAY)
        for _ in range(steps):
            optimiser.zero_grad()
            out = (a[g1] + b[g2]).square() @ c.T
            out = out - out.mean(1, keepdim=True)
            loss = out.square().sum(1).mean() - 2 * out.gather(1, label[:, None]).mean() + 1 - 1 / model.order
            loss.backward()
            optimiser.step()
        return a.detach().numpy()

    return run


def start(order: int, fraction: float, nodes: int, seed: int) -> tuple[Any, pairs.Pairs]:
    """The weights and the sample that seed `seed` of `train_pairs` has."""
    model = pairs.initial(order, nodes, fan_in=2 * order, dtype=jnp.float32, key=jax.random.key(seed))
    return model, pairs.split_pairs(addition(order), fraction=fraction, seed=seed)[0]


def steps_of(order: int, fraction: float, nodes: int, steps: int) -> None:
    """A step of one run, against its peers."""
    model, sample = start(order, fraction, nodes, 0)
    n = len(sample.label)
    calls = {
        OURS: ours(model, sample, pairs.loss, steps),
        "JAX: gather": ours(model, sample, other("gather"), steps),
        "JAX: gather, one-hot product for its gradient": ours(model, sample, other("one-hot backward"), steps),
        "JAX: one-hot products": ours(model, sample, other("one-hot"), steps),
        "torch: gather, 1 thread": torch_loop(model, sample, steps, 1),
        "torch: gather, 2 threads": torch_loop(model, sample, steps, 2),
    }
    timings, found = interleaved(calls, 7)
    table(f"a step of Adam: order {order}, {n} pairs, {nodes} nodes, float32; per step", timings, OURS, per=steps)
    for name in calls:
        if name != OURS:
            weights = found[name] if name.startswith("torch") else found[name].a
            gap = float(np.abs(np.asarray(weights) - np.asarray(found[OURS].a)).max())
            print(f"        {name}: weights after {steps} steps differ by at most {gap:.1e}")
    shapes = ((n, nodes, order), (n, order, nodes), (order, n, nodes))
    products = sum(product_floor(*shape, jnp.float32) for shape in shapes)
    print(f"        floor: its three products alone {1e3 * products:.3g} ms")


def runs_of(order: int, fraction: float, nodes: int, steps: int, seeds: int) -> None:
    """Many seeds, whole calls: samples and weights are made in each of ours, and before those of PyTorch."""

    def together(batch_size):
        return lambda: train_pairs(
            addition(order), fractions=[fraction], seeds=range(seeds), learning_rates=[RATE], weight_decays=[DECAY],
            nodes=nodes, fan_in=2 * order, steps=steps, batch_size=batch_size,
        ).model.a[0, 0, 0]  # fmt: skip

    loops = [torch_loop(*start(order, fraction, nodes, seed), steps, 1) for seed in range(seeds)]
    base = "traindyn: one after another"
    calls = {
        base: together(1),
        "traindyn: four side by side": together(4),
        "traindyn: all side by side": together(seeds),
        "torch: one after another, 1 thread": lambda: np.stack([loop() for loop in loops]),
    }
    timings, found = interleaved(calls, 5)
    title = f"{seeds} runs of {steps} steps: order {order}, {nodes} nodes, float32; per step of one run"
    table(title, timings, base, per=steps * seeds)
    for name in calls:
        if name != base:
            gap = float(np.abs(np.asarray(found[name]) - np.asarray(found[base])).max())
            print(f"        {name}: weights differ by at most {gap:.1e}")


def main() -> None:
    print_header()
    for size in SIZES:
        steps_of(*size)
    runs_of(23, 0.45, 512, 50, seeds=12)
    runs_of(7, 0.6, 32, 300, seeds=12)


if __name__ == "__main__":
    main()
