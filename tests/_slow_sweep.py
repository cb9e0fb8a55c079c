"""A sweep of twenty slow chunks, run as a process of its own to be killed: `python _slow_sweep.py OUT`."""

import sys

import jax
import jax.numpy as jnp

from traindyn import sweep

jax.config.update("jax_enable_x64", True)
AXES = {"x": jnp.linspace(0.1, 1.0, 20), "seed": jax.random.split(jax.random.key(0), 3)}
BATCH = 3


def slow(point):
    turn = lambda _, c: jnp.cos(c + point["x"])
    return {"end": jax.lax.fori_loop(0, 3_000_000, turn, jax.random.uniform(point["seed"]))}


if __name__ == "__main__":
    sweep(slow, AXES, batch_size=BATCH, out=sys.argv[1])
