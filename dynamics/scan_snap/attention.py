"""Attention alone, the decoder being far ahead of it: Lemma 4, its scalar form on symmetric data, and Theorem 4.

All of these hold to the extent that η_Z ≪ η_Y: the decoder keeps a memory of the attention it was trained under, which
fades like a logarithm.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, Real

from ..._checked import checked
from ..._checks import as_float, check_shape, concrete, integer, or_nan, real
from ..flow import ClosedForm, Example, Flow, Number, Times, at_each
from .decoder import Decoder
from .flow import ScanSnap
from .frozen import backprop_coefficients, check_independent


@checked
class SlowAttention(Flow):
    """Lemma 4: the attention of tier A with the decoder in closed form,

        ż_m = (η_Z/K) γ(t) Σ_{ψ(n)=m} f_n ∘ Σ_{n'≠n} β_nn' (f_n f_nᵀ − I) f_n'

    **Fields:** `scan`, the full flow (its tier is taken to be A). **State:** `z`, shape `(queries, tokens)`.

    **What must happen:** distinct tokens rise, with `ż_l/ż_l' = f_nl²/f_nl'²` (Theorem 3), a single common token
    falls (Theorem 2). Source: Lemma 4, whose print lacks the 1/K. **Raises** `ValueError` for classes that are
    linearly dependent, where the table is known.
    """

    scan: ScanSnap

    def __check_init__(self):
        check_independent("probability", self.scan.probability)

    @property
    def decoder(self) -> Decoder:
        """The decoder that γ(t) comes from: that of tier A."""
        return Decoder(self.scan.outputs, self.scan.probability.shape[0], self.scan.eta_y)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, eta_y: Number = 1.0, eta_z: Number = 0.1, time: Number = 30.0) -> Example:
        """That of `ScanSnap`."""
        scan, start, ts = ScanSnap.example(key, eta_y=eta_y, eta_z=eta_z, time=time)
        return cls(scan), start.z, ts

    @checked
    def __call__(
        self, t: Real[ArrayLike, ""], y: Float[Array, "queries tokens"], args: Any = None
    ) -> Float[Array, "queries tokens"]:
        f = self.scan.features(y)
        _, beta = backprop_coefficients(f, self.scan.outputs)
        pull = jnp.sum(beta * (f @ f.T), axis=1, keepdims=True) * f - beta @ f
        z = jax.ops.segment_sum(f * pull, self.scan.query, self.scan.queries)
        return self.scan.eta_z / f.shape[0] * self.decoder.gamma(t) * z

    @checked
    def xi(self, t: Real[ArrayLike, ""], z: Float[Array, "queries tokens"]) -> Float[Array, " classes"]:
        """`ξ_n = γ Σ_{n'≠n} β_nn' f_n·f_n'`, positive: distinct tokens grow by `ż_l = (η_Z/K) f_nl² ξ_n`."""
        f = self.scan.features(z)
        _, beta = backprop_coefficients(f, self.scan.outputs)
        return self.decoder.gamma(t) * jnp.sum(beta * (f @ f.T), axis=1)


@checked
class SymmetricAttention(Flow):
    """One class stands for all: one query, the same common tokens and like distinct tokens in each of K classes.

        distinct: ż_l = (η_Z/K) f_l² ξ,  ξ = γβ(K−1)ρ          common: ż_l = −η_Z γβ(K−1)(1−ρ) f_l²,   ρ = Σ_common f_l²

    | tier | `outputs` | β | decoder |
    |---|---|---|---|
    | B | K (default) | `K/((K−1)²(1−ρ))` | M = K and η = (1−ρ) η_Y, at the ρ of the time |
    | A | M > K | `q₁E' − q₀(1 − (K−2−(K−1)ρ)E')`, `E' = ρ/((1−ρ)(1+(K−1)ρ))` | M, η_Y |

    **Fields:** `common` and `distinct`, weights in proportion to `P(l|n)`; `classes` K; `outputs`; `eta_y`, `eta_z`.
    **State:** `z` of the common tokens, then of the distinct ones of one class, shape `(tokens,)`.

    **What must happen:** tier B snaps by `e^{2z}`: see `law`. Source: derived here for tier B; Lemma 4 for tier A.
    **Raises** `ValueError` for weights that are negative, distinct ones that are all zero, fewer than two classes, and
    rates that are negative or, for `eta_y`, zero.
    """

    common: Float[Array, " common"] = eqx.field(converter=as_float)
    distinct: Float[Array, " distinct"] = eqx.field(converter=as_float)
    classes: int = eqx.field(static=True)
    outputs: int | None = eqx.field(static=True, default=None)
    eta_y: Float[Array, ""] = eqx.field(converter=as_float, default=1.0)
    eta_z: Float[Array, ""] = eqx.field(converter=as_float, default=1.0)

    def __check_init__(self):
        integer("classes", self.classes, least=2)
        real("common", self.common, least=0)
        distinct = real("distinct", self.distinct, least=0)
        if concrete(distinct) and not np.any(np.asarray(distinct) > 0):
            raise ValueError("distinct must have a weight above 0, got none.")
        real("eta_y", self.eta_y, above=0)
        real("eta_z", self.eta_z, least=0)
        if self.outputs is not None and self.outputs <= self.classes:
            raise ValueError(f"outputs must exceed classes = {self.classes}, or be None, got {self.outputs}.")

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, eta_y: Number = 1.0, eta_z: Number = 0.1, time: Number = 30.0) -> Example:
        """Tier B, four classes, one common token and three distinct ones a class, from zero."""
        distinct = jax.random.uniform(key, (3,), minval=0.5, maxval=1.0)
        flow = cls(jnp.array([0.6]), distinct, 4, eta_y=eta_y, eta_z=eta_z)
        return flow, jnp.zeros(4), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: Float[Array, " tokens"], args: Any = None) -> Float[Array, " tokens"]:
        number, k = self.common.shape[0], self.classes
        square = self.features(y) ** 2
        rho, apart = self.rho(y), jnp.sum(square[number:])  # 1 − ρ, which keeps its digits as ρ → 1
        if self.outputs is None:  # β (1 − ρ), for 1 − ρ may be too small for a number
            beta, outputs = k / (k - 1) ** 2, k
            eta = jnp.maximum(apart * self.eta_y, jnp.finfo(apart.dtype).tiny)
        else:
            m, e = self.outputs, rho / (1 + (k - 1) * rho)
            beta = m / (m - 1) * e + m / (m - 1) ** 2 * (apart - e * (k - 2 - (k - 1) * rho))
            outputs, eta = m, self.eta_y
        strength = self.eta_z * Decoder(outputs, k, eta).gamma(t) * beta * (k - 1)
        within = _unit(self.distinct, y[number:]) ** 2  # f_l²/(1 − ρ) of the distinct tokens
        return strength * jnp.concatenate([-square[:number], rho / k * within])

    @checked
    def features(self, z: Float[Array, " tokens"]) -> Float[Array, " tokens"]:
        """`f` of one class, over its own tokens."""
        weights = jnp.concatenate([self.common, self.distinct])
        check_shape("z", z, weights.shape)
        return _unit(weights, z)

    @checked
    def rho(self, z: Float[Array, " tokens"]) -> Float[Array, ""]:
        """`ρ = f_n·f_n'`: the common tokens' part of `‖f‖² = 1`."""
        return jnp.sum(self.features(z)[: self.common.shape[0]] ** 2)

    @checked
    def law(self, t: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """`−z_c ≈ ½ ln(1 + (η_Z/η_Y) K²(K−1) h² ρ₀/(1−ρ₀))`: the scan-and-snap law of tier B for one common token, as
        long as ρ is small. Scanning up to `t = 2K ln K/((1−ρ₀)η_Y)`, then growth like ½ ln ln t. Raises `ValueError`
        for tier A and for several common tokens, which it does not describe."""
        if self.outputs is not None or self.common.shape[0] != 1:
            raise ValueError(
                f"law needs outputs=None and one common token, got {self.outputs}, {self.common.shape[0]}."
            )
        k, rho = self.classes, self.rho(jnp.zeros(self.common.shape[0] + self.distinct.shape[0], self.common.dtype))
        h = Decoder(k, k, (1 - rho) * self.eta_y).exact(0.0, t)
        return jnp.log1p(self.eta_z / self.eta_y * k**2 * (k - 1) * h**2 * rho / (1 - rho)) / 2


def _unit(weights: Float[Array, " n"], z: Float[Array, " n"]) -> Float[Array, " n"]:
    """`weights ∘ e^z`, of length one."""
    top = jnp.max(jnp.where(weights > 0, z, -jnp.inf))
    weights = weights * jnp.exp(jnp.where(weights > 0, z - top, -jnp.inf))
    return weights / jnp.linalg.norm(weights)


@checked
class PhaseTransition(ClosedForm):
    """Theorem 4's premise, `ż = −(η_Z/C₀) γ(t) e^{4z}`, for the one common token.

    `C₀ = 1/(Kρ²)` with ρ = f_n·f_n' at the start: the paper's `ρ₀⁴/K`, whose ρ₀ is the norm `‖c_n‖/c_n,common`.

    **Fields:** `decoder`, whose `eta` is η_Y; `eta_z`; `c0`. **State:** `z`, a scalar, from zero.

    **Closed form:** `−z = B(t) = ¼ ln(1 + 4Γ/C₀)`, `Γ = (η_Z/η_Y) K (M−1)² h²/2`. **What must happen:** B grows like
    `ln t` before `decoder.logarithmic_from()`, like ¼ ln ln² t after it. At a fixed ratio larger rates give a larger B;
    at a fixed η_Z a larger η_Y gives a smaller one.

    Source: Theorem 4 and eq. 14 of the paper, which lacks the offset `−¼ ln C₀`; the slides lack the ¼ as well.
    The premise itself is heuristic: Lemma 4's own exponent lies near 3. **Raises** `ValueError` for a C₀ that is not
    positive and a negative rate.
    """

    decoder: Decoder
    eta_z: Float[Array, ""] = eqx.field(converter=as_float)
    c0: Float[Array, ""] = eqx.field(converter=as_float)

    def __check_init__(self):
        real("eta_z", self.eta_z, least=0)
        real("c0", self.c0, above=0)

    @classmethod
    @checked
    def example(
        cls, key: Key[Array, ""], *, eta_y: Number = 1.0, eta_z: Number = 0.5, c0: Number = 3.0, time: Number = 30.0
    ) -> Example:
        """Thirty outputs, two classes, from zero. Nothing is drawn."""
        return cls(Decoder(30, 2, eta_y), eta_z, c0), jnp.zeros(()), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: Float[Array, ""], args: Any = None) -> Float[Array, ""]:
        return -self.eta_z / self.c0 * self.decoder.gamma(t) * jnp.exp(4 * y)

    @checked
    def exact(self, y0: Real[ArrayLike, ""], ts: Times) -> Float[Array, "*times"]:
        """`z` at the times `ts`, from any start: `e^{−4z}` grows by `4Γ/C₀`."""
        return at_each(ts, lambda t: self._moved(jnp.asarray(y0, self.c0.dtype), t))

    def _moved(self, y0: Float[Array, ""], t: Array) -> Float[Array, ""]:
        grown = 4 * self.eta_z / self.c0 * self.decoder.gamma_integral(t)
        log = jnp.log(jnp.where(grown > 0, grown, 1.0))
        late = (grown > 0) & (4 * y0 + log > 0)  # the start counts for less than what is added
        most = math.log(float(jnp.finfo(y0.dtype).max)) / 2 - 4
        half = jnp.exp(jnp.where(late, 0.0, jnp.where(grown > 0, 2 * y0, jnp.minimum(2 * y0, most))))
        early = y0 - jnp.log1p(jnp.where(late, 0.0, grown) * half * half) / 4
        return jnp.where(late, -(log + jnp.log1p(jnp.exp(-jnp.where(late, 4 * y0 + log, 0.0)))) / 4, early)

    @checked
    def early(self, t: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """B while h is linear: `¼ ln(1 + 2 (M−1)² η_Y η_Z t²/(K M² C₀))`. Scanning."""
        d = self.decoder
        time = jnp.asarray(t, self.c0.dtype)
        square = 2 * ((d.outputs - 1) / d.outputs) ** 2 * d.eta * self.eta_z * time**2 / d.classes
        return jnp.log1p(square / self.c0) / 4

    @checked
    def late(self, t: Real[ArrayLike, ""]) -> Float[Array, ""]:
        """B once h is a logarithm: `¼ ln(1 + 2K (M−1)²/M² (η_Z/η_Y) ln²(Mη_Y t/K)/C₀)`. Snapping. Raises `ValueError`
        before `t = K/(Mη_Y)`, where that logarithm is negative; inside `jit` it is NaN there."""
        d = self.decoder
        scaled = d.outputs * d.eta * jnp.asarray(t, self.c0.dtype) / d.classes
        log = jnp.log(or_nan(scaled, scaled >= 1, "t must be at least K/(M eta) for the late law."))
        square = 2 * d.classes * ((d.outputs - 1) / d.outputs) ** 2 * self.eta_z / d.eta * log**2
        return jnp.log1p(square / self.c0) / 4
