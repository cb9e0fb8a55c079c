"""Theorem 2 of JoMA: linear activation under a stationary back-propagated gradient, one node or many.

All of it rests on one scalar equation, `ȧ = r exp(a²/2)`, whose solution is the Gaussian quantile of a straight line:
`Φ(a(t)) = Φ(a(0)) + r t / √(2π)`, with Φ the normal distribution function, `erf(a/√2) = 2Φ(a) − 1`.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfc, erfinv, log_ndtr, ndtri
from jaxtyping import Array, ArrayLike, Float, Int, Key, Real

from ..._checked import checked
from ..._checks import as_float, check_shape, concrete, real
from ..flow import BlowsUp, ClosedForm, Conserving, Example, Flow, Number, Times, at_each, check_blow_up


@checked
class LinearActivation(ClosedForm, BlowsUp):
    """`v̇ = Δ ∘ exp(v²/2) / A`: one node with linear activation and exponential attention.

    **Fields:** `delta` Δ, shape `(tokens,)`: the saliency `E[g x_l]` of each token, discriminancy times co-occurrence
    (times `exp(z_l(0) − v_l(0)²/2)` where the logits do not start at `v²/2`); `normaliser` A, a scalar.
    **State:** `v`, shape `(tokens,)`.

    **Assumptions:** (1) stationary back-propagated gradient; (2) one query; (3) identity activation, one node.

    **Closed form:** `erf(v_l/√2) = erf(v_l(0)/√2) + √(2/π) Δ_l t/A`. From zero, `erf(v_l/√2)/Δ_l` is common to all
    tokens. **What must happen:** one token, `winner`, diverges at a finite time towards the sign of its Δ, all others
    are finite there. The divergence is slow, `v ≈ √(2 ln 1/(1−t/t*))`. **Values that work:** Δ of order one, `v(0)=0`,
    times up to `0.99 t*`; beyond, `regularised()`. **Raises** `ValueError` for a Δ that is not finite and a normaliser
    that is not positive.

    Source: JoMA, Theorem 2, whose printed `erf(v/2)` is the law of `exp(v²/4)`.
    """

    delta: Float[Array, " tokens"] = eqx.field(converter=as_float)
    normaliser: Float[Array, ""] = eqx.field(converter=as_float, default=1.0)

    def __check_init__(self):
        real("delta", self.delta)
        real("normaliser", self.normaliser, above=0)

    @classmethod
    @checked
    def example(
        cls, key: Key[Array, ""], *, delta: Number = 1.0, normaliser: Number = 1.0, time: Number = 1.0
    ) -> Example:
        """Six tokens from zero. The largest |Δ| is `delta`; at the defaults the blow-up is at √(π/2) = 1.2533."""
        return cls(_salient(key, (6,), delta), normaliser), jnp.zeros(6), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: Float[Array, " tokens"], args: Any = None) -> Float[Array, " tokens"]:
        return self.delta * jnp.exp(y**2 / 2) / self.normaliser

    @checked
    def exact(self, y0: Float[Array, " tokens"], ts: Times) -> Float[Array, "*times tokens"]:
        """The states at the times `ts`. Raises `ValueError` past the blow-up; inside `jit` such components are NaN."""
        check_blow_up(self, y0, ts)
        return at_each(ts, lambda t: _quantile_law(y0, self.delta / self.normaliser, t))

    @checked
    def blow_up_time(self, y0: Float[Array, " tokens"]) -> Float[Array, " tokens"]:
        """When each token alone would diverge: `A √(π/2) (1 − sgn(Δ) erf(v(0)/√2)) / |Δ|`."""
        return _quantile_time(y0, self.delta / self.normaliser)

    @checked
    def winner(self, y0: Float[Array, " tokens"]) -> Int[Array, ""]:
        """The token that diverges first. It has the largest |Δ| if `v(0) = 0`, and need not otherwise. Raises
        `ValueError` where every Δ is zero and none diverges; inside `jit` that is token 0."""
        ahead, still = jnp.sign(self.delta) * real("y0", y0), self.delta == 0
        if not y0.size or (concrete(still) and np.all(still)):
            raise ValueError("delta must have an entry that is not 0: no token diverges, so there is no winner.")
        # The logarithm of the time but for what all share: far out the time itself is too short for a number.
        return jnp.argmin(jnp.where(still, jnp.inf, log_ndtr(-ahead) - jnp.log(jnp.abs(self.delta))))

    def regularised(self) -> "RegularisedClock":
        """The same trajectories in a time that never reaches the blow-up."""
        return RegularisedClock(self)


class ClockState(NamedTuple):
    """`v`, shape `(tokens,)`, and the time `t` of the original flow."""

    v: Float[Array, " tokens"]
    t: Float[Array, ""]


@checked
class RegularisedClock(Flow):
    """`LinearActivation` in the clock `dτ = exp(max_l v_l²/2) dt`, in which the winner grows linearly and for ever:

        dv/dτ = Δ ∘ exp((v² − max v²)/2) / A,   dt/dτ = exp(−max v²/2)

    **State:** a `ClockState`, whose `t` tends to the blow-up time and whose other components to their values there.
    From zero, `τ = 14 A/max|Δ|` brings the winner to 14, where `t` agrees with `t*` to rounding in float64.
    """

    flow: LinearActivation

    @classmethod
    @checked
    def example(
        cls, key: Key[Array, ""], *, delta: Number = 1.0, normaliser: Number = 1.0, time: Number = 6.0
    ) -> Example:
        """That of `LinearActivation`, past its blow-up."""
        flow, v0, _ = LinearActivation.example(key, delta=delta, normaliser=normaliser)
        return cls(flow), ClockState(v0, jnp.zeros(())), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: ClockState, args: Any = None) -> ClockState:
        check_shape("y.v", y.v, self.flow.delta.shape)
        top = jnp.max(y.v**2)
        return ClockState(
            self.flow.delta * jnp.exp((y.v**2 - top) / 2) / self.flow.normaliser,
            jnp.exp(-top / 2).astype(y.t.dtype),
        )


@checked
class ManyNodes(ClosedForm, BlowsUp):
    """`V̇ = (1/A) diag(exp(½ (V∘V) 1)) Δ`: several nodes with linear activation under exponential attention.

    **Fields:** `delta` Δ, shape `(tokens, nodes)`, `Δ_lk = E[g_k x_l]` (times `exp(z_l(0) − ½Σ_k v_lk(0)²)`);
    `normaliser` A. **State:** `V`, shape `(tokens, nodes)`. **Assumptions:** as for `LinearActivation`, for each node.

    **Closed form**, for any initial value: row `l` moves along its own `μ_l = Δ_l`, so its component `a` along it obeys
    the scalar equation with rate `‖μ_l‖ exp(‖u_⊥‖²/2)`. From zero, `erf(‖u_l‖/√2) = √(2/π) ‖μ_l‖ t/A`.
    **What must happen:** the row of largest `‖μ_l‖` diverges at `A√(π/2)/‖μ_l‖`; if it is unique, V̇ becomes of rank
    one fast, and V only logarithmically slowly.

    Source: from Theorem 1. JoMA's slides and GaLore (Lemma B.6) print the sum over nodes outside the exponential.
    """

    delta: Float[Array, "tokens nodes"] = eqx.field(converter=as_float)
    normaliser: Float[Array, ""] = eqx.field(converter=as_float, default=1.0)

    def __check_init__(self):
        real("delta", self.delta)
        real("normaliser", self.normaliser, above=0)

    @classmethod
    @checked
    def example(
        cls, key: Key[Array, ""], *, delta: Number = 1.0, normaliser: Number = 1.0, time: Number = 1.0
    ) -> Example:
        """Six tokens and three nodes from zero. The longest row of Δ has the length `delta`."""
        return cls(_salient(key, (6, 3), delta), normaliser), jnp.zeros((6, 3)), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(
        self, t: Real[ArrayLike, ""], y: Float[Array, "tokens nodes"], args: Any = None
    ) -> Float[Array, "tokens nodes"]:
        return jnp.exp(jnp.sum(y**2, axis=1, keepdims=True) / 2) * self.delta / self.normaliser

    @checked
    def exact(self, y0: Float[Array, "tokens nodes"], ts: Times) -> Float[Array, "*times tokens nodes"]:
        """The states at the times `ts`. Raises `ValueError` past the blow-up; inside `jit` such rows are NaN."""
        check_blow_up(self, y0, ts)
        return at_each(ts, lambda t: self._moved(y0, t))

    def _moved(self, y0: Float[Array, "tokens nodes"], t: Array) -> Float[Array, "tokens nodes"]:
        along, start, rate = self._rows(y0)
        at_rest = jnp.asarray(t, y0.dtype) * _exp(jnp.sum(y0**2, axis=1) / 2) / self.normaliser
        most = float(jnp.finfo(y0.dtype).max)
        at_rest = self.delta * jnp.clip(at_rest, -most, most)[:, None]  # zero, but for its derivative
        moved = _quantile_law(start, rate, t) - start
        return y0 + jnp.where((rate != 0)[:, None], along * moved[:, None], at_rest)

    @checked
    def blow_up_time(self, y0: Float[Array, "tokens nodes"]) -> Float[Array, " tokens"]:
        """When each row alone would diverge."""
        _, start, rate = self._rows(y0)
        return _quantile_time(start, rate)

    def _rows(self, y0):
        norm, along = _directions(self.delta)
        start = jnp.sum(along * y0, axis=1)
        across = y0 - along * start[:, None]
        strength = jnp.exp(jnp.where(norm > 0, jnp.sum(across**2, axis=1) / 2, 0.0))
        return along, start, norm * strength / self.normaliser


class LinearAttentionState(NamedTuple):
    """`v`, shape `(tokens, nodes)`, and the logits `z`, shape `(tokens,)`."""

    v: Float[Array, "tokens nodes"]
    z: Float[Array, " tokens"]


@checked
class LinearAttention(ClosedForm, Conserving):
    """`V̇ = diag(z) Δ`, `ż = (Δ∘V) 1`: linear attention, linear activation, stationary gradient.

    **Fields:** `delta` Δ, shape `(tokens, nodes)`. **State:** a `LinearAttentionState`.
    **Closed form:** with `a` the component of a row of V along `μ_l = Δ_l` and `m = ‖μ_l‖`,
    `a = a₀ cosh mt + z₀ sinh mt`, `z = z₀ cosh mt + a₀ sinh mt`. From `V(0) = 0`, `arcsinh(v_l/z₀)/Δ_l` is common to
    all tokens (one node). **What must happen:** exponential growth, no blow-up; `V(0) = 0, z(0) = 0` is a fixed point.

    Source: the linear-attention analogue of JoMA's Theorem 2.
    """

    delta: Float[Array, "tokens nodes"] = eqx.field(converter=as_float)

    def __check_init__(self):
        real("delta", self.delta)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, delta: Number = 1.0, z0: Number = 0.1, time: Number = 2.0) -> Example:
        """Six tokens and three nodes, V from zero and all logits from `z0`."""
        start = LinearAttentionState(jnp.zeros((6, 3)), z0 * jnp.ones(6))
        return cls(_salient(key, (6, 3), delta)), start, jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: LinearAttentionState, args: Any = None) -> LinearAttentionState:
        return LinearAttentionState(y.z[:, None] * self.delta, jnp.sum(self.delta * y.v, axis=1))

    @checked
    def exact(self, y0: LinearAttentionState, ts: Times) -> LinearAttentionState:
        """The states at the times `ts`."""
        return at_each(ts, lambda t: self._moved(y0, t))

    def _moved(self, y0: LinearAttentionState, t: Array) -> LinearAttentionState:
        norm, along = _directions(self.delta)
        t = jnp.asarray(t, norm.dtype)
        start, moves = jnp.sum(along * y0.v, axis=1), norm > 0
        x = jnp.where(moves, norm * jnp.where(moves, t, 0.0), 0.0)
        # Early by what is added, of which small changes keep their digits; late by a ± z, which grow by e^{±x}.
        early = jnp.abs(x) < 1
        near, far = jnp.where(early, x, 0.0), jnp.where(early, 0.0, x)
        bend, mix = 2 * jnp.sinh(near / 2) ** 2, jnp.sinh(near)  # cosh − 1, sinh
        up, down = _scaled((start + y0.z) / 2, far), _scaled((start - y0.z) / 2, -far)
        added = along * (start * bend + y0.z * mix)[:, None]
        most, total = float(jnp.finfo(norm.dtype).max), (up + down)[:, None]
        total = jnp.where(along == 0, jnp.clip(total, -most, most), total)  # across it, nothing of infinity
        v = jnp.where(early[:, None], y0.v + added, y0.v - along * start[:, None] + along * total)
        z = jnp.where(early, y0.z * (1 + bend) + start * mix, up - down)
        # A row of zeros stays, but has derivatives.
        longest = math.sqrt(most)
        time, inner = jnp.clip(t, -longest, longest), jnp.sum(self.delta * y0.v, axis=1)
        v_rest = y0.v + self.delta * (y0.z * time + inner * time**2 / 2)[:, None]
        return LinearAttentionState(jnp.where(moves[:, None], v, v_rest), jnp.where(moves, z, y0.z + inner * time))

    @checked
    def invariants(self, y: LinearAttentionState) -> Float[Array, " tokens"]:
        """`z² − Σ_k v_k²`, Theorem 1."""
        return y.z**2 - jnp.sum(y.v**2, axis=1)


def _salient(key: Key[Array, ""], shape: tuple[int, ...], delta: Number) -> Float[Array, "..."]:
    """Random saliencies, the longest row of length `delta`: so the first blow-up is at the same time for every key."""
    drawn = jax.random.normal(key, shape)
    return delta * drawn / jnp.max(jnp.linalg.norm(drawn.reshape(shape[0], -1), axis=1))


def _directions(delta):
    """The length of each row and its direction, of rows of any size; a row of zeros has gradients too."""
    most = jax.lax.stop_gradient(jnp.max(jnp.abs(delta), axis=1, initial=0.0))
    some = most > 0
    scaled = delta / jnp.where(some, most, 1.0)[:, None]
    norm = jnp.sqrt(jnp.where(some, jnp.sum(scaled**2, axis=1), 1.0))
    return jnp.where(some, most * norm, 0.0), scaled / norm[:, None]


def _scaled(p: Float[Array, " n"], x: Float[Array, " n"]) -> Float[Array, " n"]:
    """`p eˣ`, zero for p = 0 however large x is, and right where eˣ alone is beyond all numbers."""
    half = _exp(x / 2)
    return p * half * half


def _tail(a: Float[Array, " n"]) -> Float[Array, " n"]:
    """`1 − Φ(a)`. JAX's `ndtr` computes it by three branches and takes all of them, at twice the time."""
    return erfc(a * math.sqrt(0.5)) / 2


def _exp(x: Float[Array, " n"]) -> Float[Array, " n"]:
    """`exp(x)`, kept below the largest number: zero times it is zero."""
    return jnp.exp(jnp.minimum(x, math.log(float(jnp.finfo(x.dtype).max)) - 1))


@jax.jit
def _quantile_law(a0: Float[Array, " n"], rate: Float[Array, " n"], t: ArrayLike) -> Float[Array, " n"]:
    """`a(t)` of `ȧ = rate exp(a²/2)`. Near zero by erf, which keeps small values; further out by the tail of the normal
    distribution, which keeps `1 − erf`; as it was where it stands still so far out that the tail underflows. NaN once
    it has blown up."""
    sign = jnp.where(rate < 0, -1.0, 1.0).astype(a0.dtype)
    most = float(jnp.finfo(a0.dtype).max)
    t = jnp.asarray(t, a0.dtype)
    moved = rate * jnp.where(rate == 0, jnp.clip(t, -most, most), t)  # at rest for an infinite time, too
    middle = erf(a0 / math.sqrt(2)) + math.sqrt(2 / math.pi) * moved
    tail = _tail(sign * a0) - sign * moved / math.sqrt(2 * math.pi)
    still = (moved == 0) & (_tail(jnp.abs(a0)) < jnp.finfo(a0.dtype).tiny)
    near, over = (jnp.abs(middle) < 0.5) & ~still, (tail <= 0) & ~still
    inner = math.sqrt(2) * erfinv(jnp.where(near, middle, 0.0))
    back = _tail(-sign * a0) + sign * moved / math.sqrt(2 * math.pi)  # the tail that the row comes out of
    behind = sign * middle < 0
    far = ndtri(jnp.where(near | over | still, 0.5, jnp.where(behind, back, tail)))
    outer = jnp.where(behind, sign, -sign) * far
    outer = jnp.where(still, a0 + moved * _exp(a0**2 / 2), outer)
    return jnp.where(near, inner, jnp.where(over, jnp.nan, outer))


def _quantile_time(a0: Float[Array, " n"], rate: Float[Array, " n"]) -> Float[Array, " n"]:
    """When `ȧ = rate exp(a²/2)` becomes infinite; never where the rate is zero."""
    still = rate == 0
    size = jnp.abs(jnp.where(still, 1.0, rate))
    time = math.sqrt(2 * math.pi) * _tail(jnp.sign(rate) * a0) / size
    return jnp.where(still, jnp.inf, time)
