"""What `compare` costs beside the bare training that it contains. `python benchmarks/compare.py [--x32]`.

The peer trains the same network at the same rates from the same keys to the same time: one compiled `lax.scan` over
optax updates a rate, `vmap` over seeds, the model at the end and nothing else. See README.md for each row.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from timing import check, interleaved, print_header, ratio, table

import traindyn

WIDTH, INPUTS, BATCH, TIME, POINTS = 32, 8, 32, 1.6, 8
RATES = (0.08, 0.04, 0.02, 0.01)
TEACHER = np.random.default_rng(1).normal(size=INPUTS)


def start() -> dict[str, jax.Array]:
    rng, dtype = np.random.default_rng(0), jnp.result_type(float)
    shapes = {"a": (INPUTS, WIDTH), "b": (WIDTH,)}
    return {name: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, dtype) for name, shape in shapes.items()}


def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(key, (BATCH, INPUTS))
    return x, jnp.sin(x @ jnp.asarray(TEACHER, x.dtype))


def loss(model: dict[str, jax.Array], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, y = batch
    return jnp.mean((jnp.tanh(x @ model["a"]) @ model["b"] - y) ** 2) / 2


def bare(rates: tuple[float, ...], seeds: int) -> Callable[[], Any]:
    model, keys = start(), jax.random.split(jax.random.key(0), seeds)

    def run(rate: float, steps: int):
        optimiser = optax.sgd(rate)

        def one(model, key):
            def update(carry, number):
                params, state = carry
                grads = jax.grad(loss)(params, draw(jax.random.fold_in(key, number)))
                updates, state = optimiser.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(update, (model, optimiser.init(model)), jnp.arange(steps))[0][0]

        return jax.jit(jax.vmap(one, in_axes=(None, 0)))

    runs = [run(rate, round(TIME / rate)) for rate in rates]
    return lambda: [run(model, keys) for run in runs]


def whole(rates: tuple[float, ...], seeds: int) -> Callable[[], Any]:
    model, fixed = start(), draw(jax.random.key(7))
    flow = traindyn.dynamics.GradientFlow(Partial(lambda data, m: loss(m, data), fixed))
    options = {"learning_rates": rates, "time": TIME, "points": POINTS, "seeds": seeds, "key": jax.random.key(0)}
    return lambda: traindyn.compare(flow, model, model, loss, draw, batch_size=seeds, **options).observed["a"].values


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--x32", action="store_true")
    jax.config.update("jax_enable_x64", not parser.parse_args().x32)
    print_header()
    timings, _ = interleaved({"bare training": bare(RATES, 64), "compare": whole(RATES, 64)}, 5)
    table("4 rates × 64 seeds, 300 steps in all, 320 parameters", timings, "bare training")
    once = ratio(timings, "compare", "bare training")
    check("of a call", once.median <= 1.3, once, "≤ 1.3×")
    many = tuple(0.08 * 0.85**i for i in range(16))
    sizes, _ = interleaved({str(seeds): whole(many, seeds) for seeds in (16, 32, 64)}, 5)
    table("16 rates, by seeds", sizes, "16")
    growth = ratio(sizes, "64", "16")
    check("64 seeds over 16", growth.median <= 4.4, growth, "≤ 4.4×: linear in lanes")


if __name__ == "__main__":
    main()
