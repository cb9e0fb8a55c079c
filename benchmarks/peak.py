"""The task of `sweeps.py`, and the peak memory of one sweep of it: `python benchmarks/peak.py LANES CHUNK [--x32]`."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import traindyn
from traindyn.nets import joma as nets
from traindyn.nets import train

TOKENS, NODES, BATCH = 64, 16, 32


def regression(model: nets.JomaBlock, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """`½ E‖h − g‖²`: unlike that of a stationary gradient, no part of its own is common to lanes or steps."""
    x, g = batch
    return jnp.mean(jnp.sum((jax.vmap(model.hidden)(x) - g) ** 2, axis=1)) / 2


class Task:
    """SGD on a block of JoMA, a minibatch a step, shared by all lanes."""

    def __init__(self, steps: int):
        rng, dtype = np.random.default_rng(3), jnp.result_type(float)
        data = rng.uniform(size=(1024, TOKENS)) / TOKENS, rng.standard_normal((1024, NODES))
        options: Any = {"attention": "exp", "activation": "relu", "embeddings": "identity", "init_scale": 0.5}
        self.steps, self.key, self.dtype = steps, jax.random.key(3), dtype
        self.block = nets.JomaBlock(TOKENS, NODES, **options, key=jax.random.key(4))
        self.sampler = nets.minibatch(tuple(jnp.asarray(a, dtype) for a in data), BATCH)

    def lane(self, rate: jax.Array) -> jax.Array:
        """The attention logits at the end."""
        trained = {"key": self.key, "trainable": self.block.trainable()}
        return train(self.block, regression, self.sampler, optax.sgd(rate), self.steps, **trained).model.z[0]


def main() -> None:
    jax.config.update("jax_enable_x64", "--x32" not in sys.argv)
    lanes, chunk = int(sys.argv[1]), int(sys.argv[2])
    task, rates = Task(10), np.linspace(1e-3, 1e-2, max(lanes, 1))
    if lanes:
        found = traindyn.sweep(lambda point: jnp.sum(task.lane(point["rate"])), {"rate": rates}, batch_size=chunk)
        assert not found["status"].any()
    # The high-water mark of this process alone: getrusage counts what the parent held when it forked.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1e3)


if __name__ == "__main__":
    main()
