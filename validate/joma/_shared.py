"""What the claims of JoMA share: the paper's name, small random tasks, the flow of the block and its descent."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from ...dynamics import GradientFlow, solve
from ...nets import joma as nets

TIME = "t = learning rate × step"
FLOW = f"gradient flow, {TIME}"


def four_activations(h: Float[Array, " nodes"]) -> Float[Array, " nodes"]:
    """Identity, tanh, SiLU and the square in turn: Theorem 1 asks nothing of the activation."""
    kinds = (h, jnp.tanh(h), jax.nn.silu(h), jnp.square(h))
    return jnp.stack([kinds[k % 4][k] for k in range(h.shape[0])])


def random_task(
    rng: np.random.Generator, *, tokens: int = 12, samples: int = 40, classes: int = 5, queries: int = 1
) -> nets.Contexts:
    """Random token frequencies and labels: a task without structure, for laws that need none."""
    x = rng.random((samples, tokens))
    x = jnp.asarray(x / x.sum(axis=1, keepdims=True), jnp.result_type(float))
    label, query = rng.integers(classes, size=samples), rng.integers(queries, size=samples)
    return nets.Contexts(x, jnp.asarray(label), jnp.asarray(query))


def loss_flow(data: PyTree, model: nets.JomaBlock, *, eta_z: ArrayLike = 1.0, loss=nets.cross_entropy) -> GradientFlow:
    """The gradient flow of the real network's loss, through autodiff, with `eta_z` times the rate for the logits."""
    return GradientFlow(jax.tree_util.Partial(loss, batch=data), model.rates(eta_z=eta_z))


@jax.jit
def _nodes_and_logits(models: nets.JomaBlock):
    return jax.vmap(lambda m: (m.v, m.z))(models)


def along_flow(
    data: PyTree, model: nets.JomaBlock, ts: np.ndarray, *, eta_z: float = 1.0, loss=nets.cross_entropy, **options
) -> tuple[np.ndarray, np.ndarray]:
    """The nodes `(times, tokens, nodes)` and logits `(times, queries, tokens)` of the real block along its gradient
    flow. Calls that differ in numbers only share one compilation."""
    v, z = _nodes_and_logits(solve(loss_flow(data, model, eta_z=eta_z, loss=loss), model, ts, **options).ys)
    return np.asarray(v), np.asarray(z)


def sgd(learning_rate: Any, eta_z: ArrayLike = 1.0) -> optax.GradientTransformation:
    """Gradient descent with `eta_z` times the rate for the attention logits."""
    plain = optax.sgd(learning_rate)

    def update(updates, state, params=None):
        updates, state = plain.update(updates, state, params)
        return eqx.tree_at(lambda m: m.z, updates, replace_fn=lambda z: z * jnp.asarray(eta_z, z.dtype)), state

    return optax.GradientTransformation(plain.init, update)
