"""What a step of training costs beside its products and beside PyTorch. `python benchmarks/training.py [--x32]`.

Each table's candidates run interleaved in this one process. See README.md for what each row means.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from peak import regression
from peers import finished, tensor
from timing import Ratio, check, interleaved, print_header, ratio, table

from traindyn.nets import joma, scan_snap, train

STEPS, TORCH_STEPS, ROUNDS = 100, 20, 7


def descend(loss: Callable, start: tuple[Any, ...], rate: float, steps: int) -> Callable[[], np.ndarray]:
    """A plain loop of gradient descent in PyTorch, and the last of what it trained."""

    def call():
        params = [tensor(p).requires_grad_() for p in start]
        for _ in range(steps):
            slopes = torch.autograd.grad(loss(*params), params)
            with torch.no_grad():
                for p, slope in zip(params, slopes, strict=True):
                    p -= rate * slope
        return finished(params[-1])[0]

    return call


def off(name: str, ours: Any, theirs: np.ndarray) -> None:
    print(f"  {name}: off ours by {np.max(np.abs(np.asarray(ours) - theirs)):.0e} after {TORCH_STEPS} steps")


def joma_step(dtype: Any) -> None:
    """(a) A step on the block of Theorem 1, over three bare products of its shapes."""
    samples, tokens, nodes, rate = 512, 256, 64, 1.0
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.uniform(size=(samples, tokens)) / tokens, dtype)
    g = jnp.asarray(rng.standard_normal((samples, nodes)), dtype)
    options: Any = {
        "attention": "exp",
        "activation": "relu",
        "init_scale": 0.5,
        "dtype": dtype,
        "key": jax.random.key(5),
    }
    blocks = {e: joma.JomaBlock(tokens, nodes, embeddings=e, **options) for e in (None, "identity")}

    def run(block, steps, **trained):
        call = jax.jit(lambda data, rate: train(block, regression, data, optax.sgd(rate), steps, **trained).model)
        return lambda: call((x, g), jnp.asarray(rate, dtype))

    @jax.jit
    def products(x, v, g):
        """A scan of them, each from what the one before left, so that neither Python nor folding has a part."""

        def step(carry, _):
            x, v, g = carry
            tiny = jnp.asarray(1e-6, dtype)
            return (x + tiny * (g @ v.T), v + tiny * (x.T @ g), g + tiny * (x @ v)), None

        return jax.lax.scan(step, (x, v, g), length=STEPS)[0]

    @jax.jit
    def one_step(block, data, rate):
        loss, slope = jax.value_and_grad(regression)(block, data)
        return jax.tree.map(lambda p, d: p - rate * d, block, slope), loss

    def python_loop(block):
        for _ in range(STEPS):
            block, _ = one_step(block, (x, g), jnp.asarray(rate, dtype))
        return block

    def theirs(steps, ordered):
        """`ordered`: the weights go to V, as in `JomaBlock.hidden`. Else as the equations are written."""
        xs, gs = tensor(x), tensor(g)
        product = lambda w, z: xs @ (torch.exp(z)[:, None] * w) if ordered else (torch.exp(z) * xs) @ w
        hidden = lambda w, z: torch.relu(product(w[:tokens], z) + w[tokens])
        loss = lambda w, z: ((hidden(w, z) - gs) ** 2).sum(1).mean() / 2
        return descend(loss, (blocks["identity"].w, blocks["identity"].z[0]), rate, steps)

    of = {name: run(b, STEPS, trainable=b.trainable()) for name, b in blocks.items()}
    everything = run(blocks[None], STEPS)
    base, ours = "three bare matrix products, in a scan", "traindyn: train, identity embeddings"
    written, ordered = "torch loop, as the equations are written", "torch loop, in our order of the products"
    calls = {
        base: lambda: products(x, blocks["identity"].v, g),
        ours: of["identity"],
        "traindyn: train, random embeddings": of[None],
        "the same, embeddings and all carried": everything,
        "Python loop of jitted steps, identity embeddings": lambda: python_loop(blocks["identity"]),
        written: theirs(STEPS, False),
        ordered: theirs(STEPS, True),
    }
    timings, _ = interleaved(calls, ROUNDS)
    kind = f"{samples} samples, {tokens} tokens, {nodes} nodes, {jnp.dtype(dtype).name}"
    table(f"(a) a step on the block: {kind}; per step", timings, base, per=STEPS)
    end = run(blocks["identity"], TORCH_STEPS)().z[0]
    for name, own_order in ((written, False), (ordered, True)):
        off(name, end, theirs(TORCH_STEPS, own_order)())
    for name in (ours, "traindyn: train, random embeddings"):
        figure = ratio(timings, name, base)
        check(f"4, {name}, over its three products", figure.median <= 1.8, figure, "≤ 1.8×")
    figure = ratio(timings, written, ours)
    check(f"4, {written}", figure.median >= 2.5, figure, "≥ 2.5×")
    print(f"        {ordered}: {ratio(timings, ordered, ours)}; the floor of two products allows", end=" ")
    print(f"{timings[ordered].median / timings[base].median * 1.5:.2g}×")


def scan_snap_step(dtype: Any) -> None:
    """(b) A step of Scan and Snap's network on the expected contexts of its classes."""
    data = scan_snap.distinct_and_common(100, dtype=dtype)
    model, batch, rate = data.network(), data.expected(), 1.0
    run = lambda steps: jax.jit(
        lambda rate: train(model, scan_snap.cross_entropy, batch, scan_snap.sgd(rate, eta_z=0.1), steps).model
    )
    x, label = tensor(batch.x), tensor(batch.label).long()

    def loss(y, z):
        weights = x * torch.exp(torch.where(x > 0, z, -torch.inf) - torch.where(x > 0, z, -torch.inf).amax(1)[:, None])
        c = weights / weights.sum(1, keepdim=True)
        return torch.nn.functional.cross_entropy(c / c.norm(dim=1, keepdim=True) @ y, label)

    def theirs(steps):
        scaled = lambda y, z: loss(y, z * 0.1**0.5)  # a rate of its own for z: descent in z/√η
        return lambda: 0.1**0.5 * descend(scaled, (model.y, model.z[0]), rate, steps)()

    ours, r = run(STEPS), jnp.asarray(rate, dtype)
    calls = {"traindyn: train": lambda: ours(r), "torch loop": theirs(STEPS)}
    timings, _ = interleaved(calls, ROUNDS)
    kind = f"{batch.x.shape[0]} classes, {batch.x.shape[1]} tokens, {model.y.shape[1]} outputs, {jnp.dtype(dtype).name}"
    table(f"(b) a step of Scan and Snap: {kind}; per step", timings, "traindyn: train", per=STEPS)
    off("torch loop", run(TORCH_STEPS)(r).z[0], theirs(TORCH_STEPS)())


def long_loop() -> Ratio:
    """(c) A step's overhead: a model of four numbers, for which arithmetic is nothing."""
    target = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    run = jax.jit(lambda rate: train(jnp.zeros(4), lambda m, t: jnp.sum((m - t) ** 2), target, optax.sgd(rate), 10**4))
    goal = tensor(target)
    calls = {
        "traindyn: train": lambda: run(jnp.asarray(0.01)).model,
        "torch loop": descend(lambda m: ((m - goal) ** 2).sum(), (np.zeros(4, target.dtype),), 0.01, 10**3),
    }
    timings, _ = interleaved(calls, 5)
    timings = {n: t.per({"traindyn: train": 10**4, "torch loop": 10**3}[n]) for n, t in timings.items()}
    table("(c) a step of a model of four numbers; per step", timings, "traindyn: train")
    return ratio(timings, "torch loop", "traindyn: train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--x32", action="store_true", help="float32 alone")
    x32 = parser.parse_args().x32
    jax.config.update("jax_enable_x64", not x32)
    print_header()
    start = time.perf_counter()
    for dtype in (jnp.float32,) if x32 else (jnp.float32, jnp.float64):
        joma_step(dtype)
        scan_snap_step(dtype)
    long_loop()
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
