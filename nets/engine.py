"""Training in single steps: a public state, how it starts, and one update of it. `train` is a scan over these."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._checked import checked
from .._checks import describe
from ._update import update


class State(NamedTuple):
    """Where training stands: a PyTree of all that the next step needs beside the loss, its batch and the optimiser.

    - `params`: the arrays that are trained, with `None` at the other leaves of the model.
    - `kept`: those other leaves, with `None` at the arrays that are trained.
    - `optimiser_state`: what the optimiser remembers.
    - `step`, shape `()`: the number of steps taken.
    - `diverged_at`, shape `()`: the step whose loss was not finite, or −1. From there on `params` and
      `optimiser_state` stay as they were when they gave this loss.
    """

    params: PyTree
    kept: PyTree
    optimiser_state: PyTree
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]

    @property
    def model(self) -> Any:
        """The whole model."""
        return eqx.combine(self.params, self.kept)


class Measured(NamedTuple):
    """What a step measured on the model before its update: the loss, and the gradient of what is trained.

    For complex parameters the gradient points to where the loss rises: JAX's conjugate.
    """

    loss: Float[Array, ""]
    gradient: PyTree


@checked
def init(model: Any, optimiser: optax.GradientTransformation, *, trainable: PyTree = True) -> State:
    """The state before the first step.

    `model` is any PyTree: its floating-point arrays are trained, complex ones too. `trainable` is `True` at the leaves
    to train, `False` at those to keep, or any tree prefix of that. What is kept has no gradient, state or decay.

    **Raises** `ValueError` for a model that leaves nothing to train, and for a `trainable` of another tree.
    """
    params, kept = _parted(model, trainable)
    zero = jnp.zeros((), int)
    return State(params, kept, optimiser.init(params), zero, zero - 1)


@checked
def step(
    state: State, loss: Callable[[Any, Any], Float[Array, ""]], batch: Any, optimiser: optax.GradientTransformation
) -> State:
    """The state after one update by `optimiser` on `loss(model, batch)`.

    A pure function, for a loop of your own, under `jit`, `vmap` and `grad`:

        state = init(model, optimiser)
        for batch in batches:
            state = step(state, loss, batch, optimiser)

    Compile it by `eqx.filter_jit`, or by `jax.jit` if all leaves of the model are arrays. A loss that is not finite
    is data: `state.diverged_at` has its step, and nothing moves any more.

    **Raises** `ValueError` for a loss that is not one real number, and for a state of another optimiser.
    """
    return measured_step(state, loss, batch, optimiser)[0]


@checked
def measured_step(
    state: State, loss: Callable[[Any, Any], Float[Array, ""]], batch: Any, optimiser: optax.GradientTransformation
) -> tuple[State, Measured]:
    """`step`, and the loss and gradient that it measured. Under `jit` what you don't use costs nothing."""
    check_state(state, optimiser)
    return advance(state, loss, batch, optimiser)


# What `train` and its like are made of, without checks


def advance(
    state: State, loss: Callable, batch: PyTree, optimiser: optax.GradientTransformation
) -> tuple[State, Measured]:
    """`measured_step` of a state known to fit."""
    objective = lambda params: loss(eqx.combine(params, state.kept), batch)
    value, gradient, params, optimiser_state = update(optimiser, objective, state.params, state.optimiser_state)
    running = state.diverged_at < 0
    ok = running & jnp.isfinite(value)
    keep = lambda new, old: jnp.where(ok, new, old) if eqx.is_array(new) else new
    new = State(
        jax.tree.map(keep, params, state.params),
        state.kept,
        jax.tree.map(keep, optimiser_state, state.optimiser_state),
        state.step + 1,
        jnp.where(running & ~ok, state.step, state.diverged_at),
    )
    return new, Measured(value, gradient)


def check_end(state: State) -> State:
    """Marks the end of training, where parameters are not finite. Each step sees the loss before its update, so that
    the last update shows in the parameters only."""
    finite = jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state.params)]).all()
    fine = finite | (state.diverged_at >= 0)
    return state._replace(diverged_at=jnp.where(fine, state.diverged_at, state.step))


def observed(model: Any, observe: Callable[[Any], PyTree]) -> PyTree:
    """What `observe` returns for a model, as arrays. **Raises** `ValueError` for anything else."""
    seen = observe(model)
    for leaf in jax.tree.leaves(seen):
        if not eqx.is_array_like(leaf):
            raise ValueError(f"observe must return arrays, got {describe(leaf)}.")
    return jax.tree.map(jnp.asarray, seen)


def record(state: State, observe: Callable[[Any], PyTree]) -> PyTree:
    """What `observe` returns for the model; after a divergence NaN, or zero for integers."""
    seen, ok = observed(state.model, observe), state.diverged_at < 0
    return jax.tree.map(lambda x: jnp.where(ok, x, jnp.nan if eqx.is_inexact_array(x) else jnp.zeros_like(x)), seen)


def check_state(state: State, optimiser: optax.GradientTransformation) -> None:
    """**Raises** `ValueError` unless a state is like one that `init` gives for this optimiser. Nothing is computed."""
    if not jax.tree.leaves(state.params):
        raise ValueError("state must hold at least one floating-point array in params, got none to train.")
    found, wanted = state.optimiser_state, jax.eval_shape(optimiser.init, state.params)
    needed = "state must be what init gives for this optimiser and model"
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        raise ValueError(f"{needed}, got another optimiser_state: {describe(found)}.")
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        if jnp.shape(x) != y.shape:
            where = f"optimiser_state{jax.tree_util.keystr(path)}"
            raise ValueError(f"{needed}, got shape {jnp.shape(x)} at {where}, not {y.shape}.")


def _parted(model: Any, trainable: PyTree) -> tuple[PyTree, PyTree]:
    """What is trained of a model, and the rest of it."""
    for leaf in [None] if trainable is None else jax.tree.leaves(trainable):
        if not isinstance(leaf, bool | np.bool_):
            raise ValueError(f"trainable must be True, False or a tree of them, got {describe(leaf)}.")
    try:
        chosen, kept = eqx.partition(model, trainable)
    except ValueError as error:
        raise ValueError(f"trainable must be a tree prefix of model, got another tree: {error}") from error
    params, static = eqx.partition(chosen, eqx.is_inexact_array)
    if not jax.tree.leaves(params):
        raise ValueError("model must hold at least one floating-point array, got none to train.")
    return params, eqx.combine(static, kept)
