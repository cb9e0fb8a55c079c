"""The loop of a training run: its state, one update, many updates, and what is recorded of it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree, UInt32

from .._checks import describe
from ._update import update

AnyKey = Key[Array, ""] | UInt32[Array, "2"]


class Carry(NamedTuple):
    """What goes from step to step: parameters, the state of the optimiser, the number of the step, and the one at which
    the loss was not finite, or −1."""

    params: PyTree
    state: PyTree
    step: Int[Array, ""]
    diverged_at: Int[Array, ""]


class Loop(eqx.Module):
    """What stays: the rest of the model, the loss and its data, the optimiser, and what is recorded how often."""

    static: PyTree
    loss: Callable
    data: PyTree
    optimiser: optax.GradientTransformation
    key: AnyKey | None
    observe: Callable
    every: int

    def record(self, carry: Carry) -> PyTree:
        seen = self.observe(eqx.combine(carry.params, self.static))
        for leaf in jax.tree.leaves(seen):
            if not eqx.is_array_like(leaf):
                raise ValueError(f"observe must return arrays, got {describe(leaf)}.")
        seen = jax.tree.map(jnp.asarray, seen)
        ok = carry.diverged_at < 0
        return jax.tree.map(lambda x: jnp.where(ok, x, jnp.nan if eqx.is_inexact_array(x) else jnp.zeros_like(x)), seen)

    def update(self, carry: Carry, key: AnyKey | None) -> Carry:
        batch = self.data(key) if callable(self.data) else self.data
        objective = lambda p: self.loss(eqx.combine(p, self.static), batch)
        value, _, new, state = update(self.optimiser, objective, carry.params, carry.state)
        ok = (carry.diverged_at < 0) & jnp.isfinite(value)
        keep = lambda new, old: jnp.where(ok, new, old) if eqx.is_array(new) else new
        params = jax.tree.map(keep, new, carry.params)
        diverged_at = jnp.where(ok | (carry.diverged_at >= 0), carry.diverged_at, carry.step)
        return Carry(params, jax.tree.map(keep, state, carry.state), carry.step + 1, diverged_at)

    def updates(self, carry: Carry, number: int) -> Carry:
        keys = None
        if callable(self.data):  # all keys at once: one small computation less at each step
            assert self.key is not None
            keys = jax.vmap(partial(jax.random.fold_in, self.key))(carry.step + jnp.arange(number))
        return jax.lax.scan(lambda c, key: (self.update(c, key), None), carry, keys, length=number)[0]


def check_end(carry: Carry) -> Carry:
    """The loss is seen before each update; the last update shows in the parameters only."""
    finite = jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(carry.params)]).all()
    fine = finite | (carry.diverged_at >= 0)
    return carry._replace(diverged_at=jnp.where(fine, carry.diverged_at, carry.step))
