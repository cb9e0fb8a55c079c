"""Theorem 4 of JoMA: nonlinear activation near a critical point, `v̇ = (μ − v) ∘ exp(v²/2)`.

The components are separate, so one scalar equation carries the file. With the gap `w = μ − v` and `w = w₀ e^{−s}`,

    ṡ = exp(½ (μ − w₀ e^{−s})²),      e^{μ²/2} t = s + ∫_{e^{−s}}^1 (exp(μ w₀ x − w₀² x²/2) − 1)/x dx.

The integrand is entire, so a fixed Gauss–Legendre rule gives the right-hand side to rounding, and Halley's iteration
inverts it: the slope of the right-hand side, and the slope of that, cost nothing beside the integral.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Real

from ..._checked import checked
from ..._checks import as_float, check_precision, or_nan, real, require
from ..flow import ClosedForm, Example, Number, Times, at_each

Rule = tuple[np.ndarray, np.ndarray]  # nodes and weights
_FINE: Rule = np.polynomial.legendre.leggauss(64)
_COARSE: Rule = np.polynomial.legendre.leggauss(16)
_LARGEST = 10
_SETTLED = 1e3  # the speed ṡ is one at least, and e^{−1000} is zero: later times change nothing
_NEAR = 4.0  # the coarse rule is right to rounding where neither |μ| nor the gap exceeds this


@checked
class NonlinearActivation(ClosedForm):
    """`v̇ = (μ − v) ∘ exp(v²/2)`, or without attention `v̇ = μ − v`.

    **Fields:** `mu` μ, shape `(tokens,)`: the critical point; `attention`: whether the attention factor is there.
    **State:** `v`, shape `(tokens,)`.

    **Assumptions:** a model, proportional to the flow near a critical point with one aligned cluster, not a
    consequence of Theorem 3: with a homogeneous activation and stationary gradient the norm has no finite attractor.

    **Closed form:** implicit, inverted by `exact`. Without attention `1 − v/μ = e^{−t}` (from zero).
    **What must happen:** salient tokens (large μ) win first, the others catch up, so that the entropy of
    `softmax(v²/2)` falls and bounces back; without attention it only falls. From zero,
    `ln 1/(1−v/μ) = e^{μ²/2} (t − τ(μ))` at late times, with `lag` τ. **Values that work:** |μ| ≤ 6, |v(0)| ≤ 5. The
    equation is stiff (rate `e^{μ²/2}`): beyond |μ| = 4 use `exact` or `log_form()`.

    **Raises** `ValueError` for a negative time, and where the closed form would lose digits, |μ| or |v(0)| above 10.
    Inside `jit` a negative time gives NaN; sizes are not checked there.

    Source: JoMA, Theorem 4; the lag is the bounded correction that its proof leaves open.
    """

    mu: Float[Array, " tokens"] = eqx.field(converter=as_float)
    attention: bool = eqx.field(default=True, static=True)

    def __check_init__(self):
        real("mu", self.mu)

    @property
    def stiff(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.attention

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, mu: Number = 3.0, time: Number = 10.0) -> Example:
        """Six critical points between 0 and `mu`, from zero."""
        return cls(mu * jax.random.uniform(key, (6,))), jnp.zeros(6), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: Float[Array, " tokens"], args: Any = None) -> Float[Array, " tokens"]:
        return (self.mu - y) * jnp.exp(y**2 / 2) if self.attention else self.mu - y

    @checked
    def exact(self, y0: Float[Array, " tokens"], ts: Times) -> Float[Array, "*times tokens"]:
        """The states at the times `ts ≥ 0`. Differentiable: the gradient is that of the implicit equation."""
        gap = self.mu - y0
        times = jnp.minimum(_later(ts, gap.dtype), _SETTLED)
        moved = lambda t: _progress(t, self.mu, gap) if self.attention else jnp.broadcast_to(t, gap.shape)
        return at_each(times, lambda t: y0 - gap * jnp.expm1(-moved(t)))

    @checked
    def time_to(self, y0: Float[Array, " tokens"], v: Float[Array, " tokens"]) -> Float[Array, " tokens"]:
        """When each component of `y0` reaches `v`, infinite at μ. Raises `ValueError` for a `v` that does not lie
        between `y0` and μ; inside `jit` that is NaN."""
        gap = self.mu - y0
        left = jnp.where(gap == 0, jnp.where(v == y0, 1.0, jnp.nan), (self.mu - v) / jnp.where(gap == 0, 1.0, gap))
        progress = -jnp.log(or_nan(left, (left >= 0) & (left <= 1), "v must lie between y0 and mu in each component."))
        return _time(progress, self.mu, gap) if self.attention else progress

    def lag(self) -> Float[Array, " tokens"]:
        """τ(μ): how far, in time, the late exponential approach from `v(0) = 0` lags behind one that starts at once."""
        _check_near(self.mu, jnp.zeros_like(self.mu))
        return jnp.exp(-(self.mu**2) / 2) * _remainder(self.mu, self.mu)

    def log_form(self) -> "LogGap":
        """The companion flow of `y = ln 1/δ`, `δ = 1 − v/μ`: the one to integrate for large μ or late times."""
        return LogGap(self.mu, self.attention)


@checked
class LogGap(ClosedForm):
    """`ẏ = exp(½ μ² (1 − e^{−y})²)` with `y = ln 1/δ` and `δ = 1 − v/μ`; without attention `ẏ = 1`.

    The same trajectories as `NonlinearActivation`, neither stiff nor subject to the underflow of δ (`y` reaches 3e5 at
    `μ = 4, t = 100`). **Fields:** `mu`, `attention` as there. **State:** `y`, shape `(tokens,)`; `to_log` and `to_v`
    convert. `v(0)/μ` must be below one. **Raises** `ValueError` as there.
    """

    mu: Float[Array, " tokens"] = eqx.field(converter=as_float)
    attention: bool = eqx.field(default=True, static=True)

    def __check_init__(self):
        real("mu", self.mu)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, mu: Number = 2.0, time: Number = 2.0) -> Example:
        """Six critical points between 0 and `mu`, from zero."""
        return cls(mu * jax.random.uniform(key, (6,))), jnp.zeros(6), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: Float[Array, " tokens"], args: Any = None) -> Float[Array, " tokens"]:
        return jnp.exp(self.to_v(y) ** 2 / 2) if self.attention else jnp.ones_like(y)

    @checked
    def exact(self, y0: Float[Array, " tokens"], ts: Times) -> Float[Array, "*times tokens"]:
        """The states at the times `ts ≥ 0`."""
        check_precision("y0", y0)
        moved = lambda t: _progress(t, self.mu, self.mu * jnp.exp(-y0)) if self.attention else t
        return at_each(_later(ts, y0.dtype), lambda t: y0 + moved(t))

    @checked
    def time_to(self, y0: Float[Array, " tokens"], y: Float[Array, " tokens"]) -> Float[Array, " tokens"]:
        """When each component of `y0` reaches `y`. It must not be below `y0`: else a `ValueError`, inside `jit` NaN."""
        y, gap = or_nan(y, y >= y0, "y must be at least y0 in each component."), self.mu * jnp.exp(-y0)
        return _time(y - y0, self.mu, gap) if self.attention else y - y0

    @checked
    def to_log(self, v: Float[Array, " tokens"]) -> Float[Array, " tokens"]:
        """`y = −ln(1 − v/μ)`."""
        v = require(
            v,
            jnp.all(v / self.mu < 1),
            "v/mu must be below one: the log form cannot pass the critical point.",
        )
        return -jnp.log1p(-v / self.mu)

    @checked
    def to_v(self, y: Float[Array, " tokens"]) -> Float[Array, " tokens"]:
        """`v = μ (1 − e^{−y})`."""
        return -self.mu * jnp.expm1(-y)


def _later(ts: ArrayLike, dtype: Any) -> Float[Array, "..."]:
    times = jnp.asarray(ts, dtype)
    return or_nan(times, times >= 0, "ts must be zero or later, and not NaN.")


def _check_near(mu: Float[Array, " n"], v0: Float[Array, " n"]) -> None:
    """The rules are fine enough for these, whatever the time: measured against adaptive quadrature."""
    real("mu", mu, least=-_LARGEST, most=_LARGEST)
    real("v(0)", v0, least=-_LARGEST, most=_LARGEST)


def _remainder(mu: Float[Array, " n"], gap: Float[Array, " n"], rule: Rule = _FINE) -> Float[Array, " n"]:
    """`∫_0^1 (exp(μ w x − w² x²/2) − 1)/x dx`."""
    nodes, weights = (jnp.asarray(a, mu.dtype) for a in rule)
    x = (1 + nodes)[None] / 2
    wx = gap[:, None] * x
    return ((jnp.expm1(wx * (mu[:, None] - wx / 2)) / x) @ weights) / 2


def _elapsed(
    s: Float[Array, " n"], mu: Float[Array, " n"], gap: Float[Array, " n"], rule: Rule = _FINE
) -> Float[Array, " n"]:
    """`e^{μ²/2} t = ∫_δ^1 exp(q)/x dx`, `δ = e^{−s}`; of the progress `s = ln(gap at t = 0 / gap at t)`."""
    # Late, as s + ∫ (exp(q) − 1)/x dx, which has no pole at zero. Early as it stands: from far out those two cancel.
    # Beside s what cancels in exp(q) − 1 is below rounding, and expm1 takes half as long again.
    late = s > 1
    nodes, weights = (jnp.asarray(a, mu.dtype) for a in rule)
    half = -jnp.expm1(-s) / 2
    x = jnp.exp(-s)[:, None] + half[:, None] * (1 + nodes)[None]
    wx = gap[:, None] * x
    q = wx * (mu[:, None] - wx / 2)
    return jnp.where(late, s, 0) + half * (((jnp.exp(q) - late.astype(q.dtype)[:, None]) / x) @ weights)


def _time(s: Float[Array, " n"], mu: Float[Array, " n"], gap: Float[Array, " n"]) -> Float[Array, " n"]:
    """The time that a progress takes."""
    _check_near(mu, mu - gap)
    return _elapsed(s, mu, gap) * jnp.exp(-(mu**2) / 2)


def _progress(t: Float[Array, ""], mu: Float[Array, " n"], gap: Float[Array, " n"]) -> Float[Array, " n"]:
    """The progress that a time makes."""
    _check_near(mu, mu - gap)
    return _inverted(t, mu, gap)


@jax.jit
def _inverted(t: Float[Array, ""], mu: Float[Array, " n"], gap: Float[Array, " n"]) -> Float[Array, " n"]:
    """Inverts `_elapsed`: by the coarse rule to the end, and where that is not exact, mostly one step by the fine.
    Infinite where the right-hand side is."""
    scaled = t * jnp.exp(mu**2 / 2)
    never = jnp.isinf(scaled)
    unbounded, t = scaled, jnp.where(never, 1.0, t)
    scaled = jnp.where(never, 1.0, scaled)

    def residual(s, rule=_FINE):
        return _elapsed(s, mu, gap, rule) - scaled

    def invert(residual, s):
        s = _halley(lambda s: residual(s, _COARSE), s, t, mu, gap, jnp.ones_like(s, bool))
        return _halley(residual, s, t, mu, gap, jnp.maximum(jnp.abs(mu), jnp.abs(gap)) > _NEAR)

    late = scaled - _remainder(mu, gap, _COARSE)  # exact as t grows
    solve = lambda g, r: r / g(jnp.ones_like(r))
    found = jax.lax.custom_root(residual, late, lambda _, s: invert(residual, s), solve)
    return jnp.where(never, unbounded, found)


def _halley(
    residual: Callable[[Array], Array],
    s: Float[Array, " n"],
    t: Float[Array, " n"],
    mu: Float[Array, " n"],
    gap: Float[Array, " n"],
    wanted: Bool[Array, " n"],
) -> Float[Array, " n"]:
    """The root of a residual whose slope is `exp(μ w x − w² x²/2)` at `x = e^{−s}`, inside a bracket; s itself, at no
    cost, if it is `wanted` nowhere."""
    # v² never exceeds the larger of its two ends, so the speed ṡ = exp(v²/2) lies between one and that bound. From far
    # out that is too far: once the gap is below one, |v| is below |μ| + 1.
    fastest = jnp.maximum(mu**2, (mu - gap) ** 2) / 2
    soon = jnp.log(jnp.maximum(jnp.abs(gap), 1)) + t * jnp.exp((jnp.abs(mu) + 1) ** 2 / 2)
    upper = jnp.minimum(jnp.minimum(t * jnp.exp(fastest), soon), jnp.finfo(s.dtype).max)
    lower = t

    def step(carry):
        s, lower, upper, _, count = carry
        r = residual(s)
        lower, upper = jnp.where(r < 0, s, lower), jnp.where(r > 0, s, upper)
        wx = gap * jnp.exp(-s)
        newton = r / jnp.exp(wx * (mu - wx / 2))
        new = s - newton / (1 + newton * wx * (mu - wx) / 2)
        inside = (new >= lower) & (new <= upper)
        change = jnp.where(inside, jnp.abs(new - s), upper - lower)
        middle = jnp.sqrt(lower) * jnp.sqrt(upper)  # the bracket spans orders of magnitude
        return jnp.where(inside, new, middle), lower, upper, change, count + 1

    def unfinished(carry):  # Halley cubes the error: after a small step the next would be below rounding
        s, _, _, change, count = carry
        return jnp.any(change > 0.1 * jnp.cbrt(jnp.finfo(s.dtype).eps) * s) & (count < 64)

    s = jnp.clip(s, lower, upper)
    return jax.lax.while_loop(unfinished, step, (s, lower, upper, jnp.where(wanted, jnp.inf, 0.0), 0))[0]
