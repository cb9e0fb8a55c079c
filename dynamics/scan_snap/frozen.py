"""Decoder and back-propagated gradient while attention stands still, for each tier of Scan and Snap.

With `F = [f_1 … f_K]` and `FᵀF = I + E`, the gradient that reaches attention is `g_n = Y(e_n − α_n)`.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, Real

from ..._checked import checked
from ..._checks import as_float, check_precision, concrete, integer, real
from ..flow import Example, Flow, Number
from .decoder import Decoder


def check_independent(name: str, x: Float[Array, "classes tokens"]) -> None:
    """Raises `ValueError` unless the rows are linearly independent, where they are known: `(FᵀF)⁻¹` stands on that."""
    if concrete(x):
        real(name, x)
        rank = int(np.linalg.matrix_rank(np.asarray(x)))
        if rank < len(x):
            raise ValueError(f"{name} must have linearly independent rows in tier A, got {len(x)} of rank {rank}.")


@checked
def backprop_coefficients(
    f: Float[Array, "classes tokens"], outputs: int
) -> tuple[Float[Array, " classes"], Float[Array, "classes classes"]]:
    """ι and β of tier A: `g_n = γ (ι_n f_n − Σ_{n'≠n} β_nn' f_n')`. The diagonal of β is zero.

        ι_n = q₁ (1 − E'_nn) − q₀ Σ_{k≠n} E'_kn,   β_nn' = q₁ E'_nn' − q₀ (1 − Σ_{k≠n} E'_kn')

    with `E' = I − (I+E)⁻¹`, `q₁ = M/(M−1)`, `q₀ = −M/(M−1)²`. Source: Theorem 1, whose eq. 88 prints `+ q₀(1 + Σ…)`.
    **Raises** `ValueError` for fewer outputs than classes or than two, and for features that are linearly dependent,
    which inside `jit` give NaN or huge numbers.
    """
    integer("outputs", outputs, least=max(2, len(f)))
    check_precision("f", f)
    check_independent("f", f)
    q1, q0 = outputs / (outputs - 1), -outputs / (outputs - 1) ** 2
    eye = jnp.eye(f.shape[0], dtype=f.dtype)
    e = eye - jnp.linalg.inv(f @ f.T)
    column = jnp.sum(e, axis=0)
    beta = q1 * e - q0 * (1 - column[None, :] + e)
    return q1 * (1 - jnp.diagonal(e)) - q0 * (column - jnp.diagonal(e)), beta * (1 - eye)


class SymmetricLogits(NamedTuple):
    """`own` u and `other` v: what a class adds to its own logit and to those of the other K − 1 next tokens."""

    own: Float[Array, ""]
    other: Float[Array, ""]


@checked
class SymmetricDecoder(Flow):
    """Tiers B and C on symmetric data, `f_n·f_n' = ρ` for all pairs: two scalars stand for the whole decoder.

    In `Y = Σ_n f_n a_nᵀ`, `a_n` has the entry u at n, v at the other next tokens and `s = −(u + (K−1)v)/(M−K)` at the
    rest:

        u̇ = (η_Y/K)(1 − p_own),   v̇ = −(η_Y/K) p_other

        w_own = u + ρ(K−1)v,   w_other = v + ρ(u + (K−2)v),   w_rest = s(1 + ρ(K−1))

    with p their softmax, counted 1, K−1 and M−K times.

    **Fields:** `rho`, `classes` K, `outputs` M ≥ K, `eta` η_Y. **State:** a `SymmetricLogits`.

    **Closed form:** for M = K, `from_zero`. **What must happen:** for M > K the part of the gradient that tells classes
    apart starts at β ≈ 1/M, far below the β ≈ E' of the preconditioned decoder. Source: derived here.

    **Raises** `ValueError` unless `2 ≤ K ≤ M`, `−1/(K−1) < ρ < 1` (as for K unit vectors) and η is positive.
    """

    rho: Float[Array, ""] = eqx.field(converter=as_float)
    classes: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    eta: Float[Array, ""] = eqx.field(converter=as_float, default=1.0)

    def __check_init__(self):
        integer("classes", self.classes, least=2)
        integer("outputs", self.outputs, least=self.classes)
        real("rho", self.rho, above=-1 / (self.classes - 1), below=1)
        real("eta", self.eta, above=0)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, rho: Number = 0.3, eta: Number = 1.0, time: Number = 30.0) -> Example:
        """Tier C, four classes among ten outputs, from zero. Nothing is drawn."""
        return cls(rho, 4, 10, eta), SymmetricLogits(jnp.zeros(()), jnp.zeros(())), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, ""], y: SymmetricLogits, args: Any = None) -> SymmetricLogits:
        _, other, rest = self._probabilities(y)
        k, m = self.classes, self.outputs
        wrong = (k - 1) * other + (m - k) * rest
        return SymmetricLogits(self.eta / k * wrong, -self.eta / k * other)

    @checked
    def from_zero(self, t: Real[ArrayLike, ""]) -> SymmetricLogits:
        """The state at `t` from zero, for M = K: `a_n = (K−1) h_ρ/(1−ρ) ζ_n`. Raises `ValueError` for M > K, which has
        no closed form."""
        if self.outputs != self.classes:
            raise ValueError(f"from_zero needs outputs = classes = {self.classes} (tier B), got {self.outputs}.")
        k = self.classes
        h = Decoder(k, k, (1 - self.rho) * self.eta).exact(0.0, t)
        own = (k - 1) * h / (1 - self.rho)
        return SymmetricLogits(own, -own / (k - 1))

    @checked
    def separation(self, y: SymmetricLogits) -> Float[Array, ""]:
        """`γβ`, with which the other classes are taken from the gradient: `g_n = … − γβ Σ_{n'≠n} f_n'`."""
        _, other, rest = self._probabilities(y)
        k, m, (u, v) = self.classes, self.outputs, y
        wrong = (k - 1) * other + (m - k) * rest
        unused = (m - k) * self._unused(y) * rest
        return -(v * wrong - u * other - (k - 2) * v * other - unused)

    def _unused(self, y: SymmetricLogits) -> Float[Array, ""]:
        k, m = self.classes, self.outputs
        return -(y.own + (k - 1) * y.other) / (m - k) if m > k else jnp.zeros_like(y.own)

    def _probabilities(self, y: SymmetricLogits):
        """The softmax at the right next token, at each other next token, and at each token that never follows."""
        k, m, (u, v) = self.classes, self.outputs, y
        own = u + self.rho * (k - 1) * v
        logits = jnp.stack([own, v + self.rho * (u + (k - 2) * v), self._unused(y) * (1 + self.rho * (k - 1))])
        weights = jnp.exp(logits - jnp.max(logits))
        p = weights / (weights[0] + (k - 1) * weights[1] + (m - k) * weights[2])
        return p[0], p[1], p[2]
