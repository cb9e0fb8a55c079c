"""Memorisation: what a node ends as that sees pairs of one product only, each with a probability of its own.

For one target h there is one pair for every g, (g, g⁻¹h), at which the node is `s_g = u(g) + w₂(g⁻¹h)` before its
activation. The energy of `Energy` is zero there, for labels that are all alike are zero once centred; what the theorem
maximises is `F(w) = Σ_g p_g σ(s_g)`. Whether it ends at a single pair or spreads over many is up to `φ(x) = σ'(x)/x`.

Source: Tian, Li2 (arXiv 2509.21519), Theorem 5.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..._checked import checked
from ..._checks import check_shape, concrete, describe, integer, or_nan
from ..groups import Group
from ..representations import quotients
from .race import check_probabilities

_MOST = math.sqrt(2)  # of any s_g, for Σ s² ≤ 2‖w‖²


class Activation(NamedTuple):
    """An activation that Theorem 5 covers: `function` σ and its `slope` σ', positive for x > 0; `focused`: whether
    `φ(x) = σ'(x)/x` never falls there, else it falls strictly; `limit` φ(0+)."""

    function: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    focused: bool
    limit: float

    def phi(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`φ(x)` for x > 0."""
        return self.slope(x) / x

    def inverse(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """The x in (0, √2] with `φ(x) = y` of a φ that falls: √2 where y is below φ(√2), 0 where it is not below φ(0+).
        By bisection to rounding."""

        def halve(_, ends):
            lower, upper = ends
            middle = (lower + upper) / 2
            above = self.slope(middle) > y * middle
            return jnp.where(above, middle, lower), jnp.where(above, upper, middle)

        ends = jnp.zeros_like(y), jnp.full_like(y, _MOST)
        lower, upper = jax.lax.fori_loop(0, 64, halve, ends)
        found = jnp.where(y < self.limit, (lower + upper) / 2, 0.0)
        return jnp.where(jnp.isnan(y), y, found)


def _log_cosh(x):
    return jnp.logaddexp(x, -x) - math.log(2)


ACTIVATIONS: dict[str, Activation] = {
    "square": Activation(jnp.square, lambda x: 2 * x, True, 2.0),
    "cube": Activation(lambda x: x**3, lambda x: 3 * x**2, True, 0.0),
    "relu": Activation(jax.nn.relu, jnp.ones_like, False, math.inf),  # the slope for x > 0
    "silu": Activation(jax.nn.silu, lambda x: jax.nn.sigmoid(x) * (1 + x * (1 - jax.nn.sigmoid(x))), False, math.inf),
    "tanh": Activation(jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2, False, math.inf),
    "sigmoid": Activation(jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x)), False, math.inf),
    "log_cosh": Activation(_log_cosh, jnp.tanh, False, 1.0),
}
"""By name. Theorem 5 speaks of no others: their φ must not fall anywhere on x > 0, or fall everywhere."""


@checked
class SingleTarget(eqx.Module):
    """`F(w) = Σ_g p_g σ(s_g)`, `s_g = u(g) + w₂(g⁻¹h)`: what a node climbs that sees one target h only.

    Called on w, shape `(2, order)`, it goes into `ScaledAscent` or `SphereAscent` as their energy.

    **Arguments:** `group`; `target` h; `probabilities` p, shape `(order,)`, of the pairs (g, g⁻¹h), zero allowed;
    `activation` σ, a name in `ACTIVATIONS`.

    **Maximum on ‖w‖ = 1**, where `Σ s² ≤ 2`: `node(profile())`.

    - *Focused*, φ nondecreasing: all on the most probable pair g*, `s = √2 e_g*`.
    - *Spreading*, φ strictly decreasing: `s_g = φ⁻¹(2λ/p_g)`, zero where `2λ/p_g ≥ φ(0+)`, with λ such that `Σ s² = 2`:
      for ReLU s ∝ p.

    **What must happen:** ascent from w ≥ 0 ends there if φ falls, and for x²; from other starts ReLU and SiLU stall,
    for pairs with s < 0 are dead. For x^q, q > 2, every single pair is a local maximum, although the theorem denies
    others: the ascent is a race (for x³ `ModeRace`, of rates p), and ends at the largest `p_g s_g(0)^{q−2}`.

    Source: Li2, Theorem 5. **Raises** `ValueError` for a group of order below three, a target outside, probabilities of
    another shape, negative, that do not sum to one or (where focused) have two largest entries, and for an activation
    that Theorem 5 does not cover. Inside `jit` probabilities that are none are NaN.
    """

    partners: Int[Array, " order"]  # g⁻¹h, for each g
    probabilities: Float[Array, " order"]
    activation: str = eqx.field(static=True)

    def __init__(self, group: Group, target: int, probabilities: Float[Array, " order"], activation: str):
        if group.order < 3:
            raise ValueError(f"group must have order 3 or more, got {group.name}.")
        integer("target", target, least=0, most=group.order - 1)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}: Theorem 5 needs σ'(x)/x to be"
                " monotone for x > 0."
            )
        check_shape("probabilities", probabilities, (group.order,))
        p = check_probabilities(probabilities)
        if ACTIVATIONS[activation].focused:
            first, second = (np if concrete(p) else jnp).sort(p)[:-3:-1]
            message = f"probabilities must have one largest entry for {activation}, got {describe(first)} twice."
            p = or_nan(p, first != second, message)
        self.partners = jnp.asarray(quotients(group)[:, target])
        self.probabilities, self.activation = p, activation

    @checked
    def __call__(self, w: Float[Array, "2 order"]) -> Float[Array, ""]:
        sigma = ACTIVATIONS[self.activation].function
        return jnp.sum(self.probabilities.astype(w.dtype) * sigma(self.sums(w)))

    @checked
    def sums(self, w: Float[Array, "2 order"]) -> Float[Array, " order"]:
        """s, the node before its activation at each of the pairs."""
        return w[0] + w[1][self.partners]

    @checked
    def node(self, s: Float[Array, " order"]) -> Float[Array, "2 order"]:
        """`w = ½ Σ_g s_g [e_g; e_{g⁻¹h}]`: the shortest node with these s, `‖w‖² = ½ Σ s²`."""
        return jnp.stack([s, s[jnp.argsort(self.partners)]]) / 2

    def profile(self) -> Float[Array, " order"]:
        """s at the maximum, `Σ s² = 2`. Differentiable in p: the gradient is that of the conditions for a maximum."""
        sigma, p = ACTIVATIONS[self.activation], self.probabilities
        if sigma.focused:
            first = jnp.where(jnp.arange(len(p)) == jnp.argmax(p), _MOST, 0.0).astype(p.dtype)
            return jnp.where(jnp.isnan(p), p, first)

        def conditions(unknown):  # p σ'(s) = 2λ s and Σ s² = 2
            s, multiplier = unknown[:-1], unknown[-1]
            return jnp.append(p * sigma.slope(s) - multiplier * s, jnp.sum(s**2) - 2)

        def invert(linear, right):
            return jnp.linalg.solve(jax.jacobian(linear)(right), right)

        solution = _spread(sigma, jax.lax.stop_gradient(p))
        return jax.lax.custom_root(conditions, solution, lambda _, found: found, invert)[:-1]


def _spread(sigma: Activation, p: Float[Array, " order"]) -> Float[Array, " unknowns"]:
    """s and 2λ. Bisection in the largest s, that of the largest p, which all others follow."""
    most = jnp.max(p)

    def follow(largest):
        multiplier = most * sigma.phi(largest)
        return sigma.inverse(multiplier / p), multiplier  # infinite where p is zero

    def halve(_, ends):
        lower, upper = ends
        middle = (lower + upper) / 2
        above = jnp.sum(follow(middle)[0] ** 2) > 2
        return jnp.where(above, lower, middle), jnp.where(above, middle, upper)

    ends = jnp.full_like(most, math.sqrt(2 / len(p))), jnp.full_like(most, _MOST)
    s, multiplier = follow(sum(jax.lax.fori_loop(0, 64, halve, ends)) / 2)
    return jnp.append(s, multiplier)
