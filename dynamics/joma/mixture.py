"""Theorem 3 of JoMA: one nonlinear node under uniform attention, on a mixture of isotropic clusters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm as normal
from jaxtyping import Array, ArrayLike, Float, Key, Real

from ..._checked import checked
from ..._checks import as_float, check_shape, real
from ..flow import Example, Flow, Number

Activation = str | Callable[[Array], Array]

# The trapezoidal rule, for it converges faster than Gauss and Hermite's where φ' changes within less than σ‖v‖.
_NODES = np.linspace(-9, 9, 201)
_WEIGHTS = np.exp(-(_NODES**2) / 2) / np.sum(np.exp(-(_NODES**2) / 2))
_KNOWN = ("identity", "relu", "leaky_relu", "square", "erf")
_SAME = {
    jax.nn.relu: "relu",
    jax.nn.leaky_relu: "leaky_relu",
    jnp.square: "square",
    jax.scipy.special.erf: "erf",
}


class MixtureState(NamedTuple):
    """`v`, shape `(tokens,)`: the node in token space. `beta`, a scalar: its residual bias `u_qᵀ w`."""

    v: Float[Array, " tokens"]
    beta: Float[Array, ""]


def _slope(x: Any) -> Float[Array, ""] | None:
    return None if x is None else as_float(x)


@checked
class Mixture(Flow):
    """The flow of one hidden node under uniform attention, inputs drawn from C Gaussian clusters `N(x̄_c, σ² I)`:

        v̇ = Σ_c a_c { θ₁(r_c) x̄_c/‖v‖ + θ₂(r_c) v/‖v‖³ },   β̇ = Σ_c a_c θ₁(r_c)/‖v‖,   r_c = vᵀx̄_c + β

    with `θ₁ = ‖v‖ E[φ'(r+s)]`, `θ₂ = ‖v‖ E[s φ'(r+s)]` for `s ~ N(0, σ²‖v‖²)`. The residual bias β is the integral
    `∫ E[g h'] dt'` of the printed theorem, kept as a state of its own.

    **Fields:** `centres` x̄, shape `(clusters, tokens)`; `strength` a_c = P[c] E[g | c], shape `(clusters,)`; `sigma`, a
    scalar; `activation` φ: `"identity"`, `"relu"`, `"leaky_relu"` (with `slope`), `"square"`, `"erf"` in closed form,
    or any smooth function, by a trapezoidal rule of 201 nodes (ReLU itself is not smooth: name it). The rule fails
    where φ' changes within much less than σ‖v‖: of tanh, θ₁ is right to 1e-10 at σ‖v‖ = 4, to 1e-3 at 10, not at 20.
    **State:** a `MixtureState`, with `v ≠ 0` for the two rectifiers.

    **Raises** `ValueError` for a negative `sigma`, an unknown activation, one that does not return one number, and a
    `slope` (0.01 by default) that another activation than `"leaky_relu"` would ignore.

    **Assumptions:** (1) the back-propagated gradient is stationary and constant within a cluster; (2) attention is
    uniform; (3) clusters are isotropic, here Gaussian. **What must happen:** for a homogeneous φ the norm grows without
    end.

    Source: JoMA, Theorem 3. The printed θ(r) depend on `‖v‖` as well as on r.
    """

    centres: Float[Array, "clusters tokens"] = eqx.field(converter=as_float)
    strength: Float[Array, " clusters"] = eqx.field(converter=as_float)
    sigma: Float[Array, ""] = eqx.field(converter=as_float, default=1.0)
    activation: Activation = eqx.field(static=True, default="relu", kw_only=True)
    slope: Float[Array, ""] | None = eqx.field(converter=_slope, default=None, kw_only=True)

    def __check_init__(self):
        real("centres", self.centres)
        real("strength", self.strength)
        real("sigma", self.sigma, least=0)
        if isinstance(self.activation, str) and self.activation not in _KNOWN:
            raise ValueError(f"activation must be a smooth function or one of {_KNOWN}, got {self.activation!r}.")
        if self.slope is not None and self.activation != "leaky_relu":
            raise ValueError(f'slope would be ignored: it belongs to activation="leaky_relu", got {self.activation!r}.')

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, sigma: Number = 1.0, time: Number = 2.0) -> Example:
        """Four clusters in six dimensions, ReLU."""
        drawn = jax.random.normal(key, (4, 7))
        y0 = MixtureState(0.1 * jnp.ones(6), jnp.zeros(()))
        return cls(drawn[:, :6], drawn[:, 6], sigma), y0, jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: MixtureState, args: Any = None) -> MixtureState:
        square = jnp.sum(y.v**2)
        norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        slope, curvature = self._moments(self.centres @ y.v + y.beta, norm)
        return MixtureState(
            (self.strength * slope) @ self.centres + jnp.sum(self.strength * curvature) * y.v,
            jnp.sum(self.strength * slope),
        )

    @checked
    def theta1(self, r: Float[Array, " n"], norm: Real[ArrayLike, ""]) -> Float[Array, " n"]:
        """θ₁ at pre-activations `r` and a node of length `norm` = ‖v‖."""
        norm = jnp.asarray(real("norm", norm, least=0), r.dtype)
        return norm * self._moments(r, norm)[0]

    @checked
    def theta2(self, r: Float[Array, " n"], norm: Real[ArrayLike, ""]) -> Float[Array, " n"]:
        """θ₂ at pre-activations `r` and a node of length `norm` = ‖v‖."""
        norm = jnp.asarray(real("norm", norm, least=0), r.dtype)
        return norm**3 * self._moments(r, norm)[1]

    def _moments(self, r, norm):
        """`E[φ'(r+s)]` and `E[s φ'(r+s)]/‖v‖²`; the latter is `σ² E[φ''(r+s)]` (Stein), which needs no division."""
        name = _SAME.get(self.activation, self.activation) if callable(self.activation) else self.activation
        spread = self.sigma * norm
        if name == "identity":
            return jnp.ones_like(r), jnp.zeros_like(r)
        if name == "square":
            return 2 * r, jnp.full_like(r, 2) * self.sigma**2
        if name == "erf":
            widened = 1 + 2 * spread**2
            slope = 2 / math.sqrt(math.pi) / jnp.sqrt(widened) * jnp.exp(-(r**2) / widened)
            return slope, -2 * self.sigma**2 * r / widened * slope
        if callable(name):
            r_and_s = r[:, None] + spread * jnp.asarray(_NODES, r.dtype)[None]
            weights = jnp.asarray(_WEIGHTS, r.dtype)

            def value(u):
                found = name(u)
                check_shape("the value of activation", found, ())
                return found

            first = jax.grad(value)
            each = lambda f: jax.vmap(jax.vmap(f))(r_and_s) @ weights
            return each(first), self.sigma**2 * each(jax.grad(first))
        slope = jnp.asarray(0.0 if name == "relu" else 0.01 if self.slope is None else self.slope, r.dtype)
        safe = jnp.where(spread > 0, spread, 1.0)
        cdf = jnp.where(spread > 0, normal.cdf(r / safe), jnp.heaviside(r, 0.5))
        density = jnp.where(spread > 0, normal.pdf(r / safe) / safe, 0.0)
        return slope + (1 - slope) * cdf, (1 - slope) * self.sigma**2 * density
