"""The decoder of Scan and Snap while attention stands still: one scalar equation, its closed form and its clock.

    ḣ = (η/K) / (M − 1 + e^{Mh}),      e^{Mh} + (M − 1) M h = M η t/K + 1      (h(0) = 0)

A class that is visited moves its own column of the decoder along `ζ_n = M/(M−1) (e_n − 1/M)` and no other.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, Real

from ..._checked import checked
from ..._checks import check_range, concrete, integer, require
from ..flow import ClosedForm, Example, Number, Times, at_each
from ..gap import check_broadcast, gap_after, lambert, visits


@checked
class Decoder(ClosedForm):
    """`ḣ = (η/K) / (M − 1 + e^{Mh})`: the logits of one class, `w_n = (M−1) h ζ_n`, its attention standing still.

    **Fields:** `outputs` M, the width of the softmax; `classes` K, drawn equally often, so that a class has been
    visited `s = t/K` times; `eta` η_Y. All may be arrays, for a sweep. **State:** `h`, of any shape.

    **Assumptions:** the decoder of tier A (preconditioned), or orthogonal inputs, `FᵀF = I`. Tier B follows the same
    law with M = K and η = (1−ρ) η_Y.

    **Closed form:** `e^{Mh} + (M−1) M h = M η t/K + 1` from zero. **What must happen:** h grows linearly up to
    `t = K ln M/η`, then like its logarithm; γ, the size of the gradient that reaches attention, rises and falls.

    Source: Scan and Snap (arXiv 2305.16380), Lemmas 5 to 9.
    """

    outputs: Float[Array, "*batch"]
    classes: Float[Array, "*batch"]
    eta: Float[Array, "*batch"]

    def __init__(
        self, outputs: Real[ArrayLike, "..."], classes: Real[ArrayLike, "..."] = 1, eta: Real[ArrayLike, "..."] = 1.0
    ):
        """Numbers take the dtype of whatever is an array. **Raises** `ValueError` for fewer than two or infinitely many
        outputs, and shapes that do not broadcast. Where they are known, also for fewer classes than one and a rate that
        is not positive."""
        if concrete(classes):
            check_range("classes", classes, least=1)
        if concrete(eta):
            check_range("eta", eta, above=0)
        check_broadcast(outputs=outputs, classes=classes, eta=eta)
        dtype = jnp.result_type(float, outputs, classes, eta)
        self.outputs, self.classes, self.eta = (jnp.asarray(x, dtype) for x in (outputs, classes, eta))
        # By the value given: inside `jit` the array made of a number is traced, and the check would run at every step.
        xp, number = (np, np.asarray(outputs)) if concrete(outputs) else (jnp, self.outputs)
        enough = xp.all((number >= 2) & (number < np.inf))
        self.outputs = require(self.outputs, enough, f"outputs must be at least 2 and finite, got {outputs}.")

    @classmethod
    @checked
    def example(
        cls,
        key: Key[Array, ""],
        *,
        outputs: Number = 20.0,
        classes: Number = 4.0,
        eta: Number = 1.0,
        time: Number = 30.0,
    ) -> Example:
        """One class from zero, through the end of its linear growth. Nothing is drawn."""
        return cls(outputs, classes, eta), jnp.zeros(()), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Real[ArrayLike, "..."], y: Float[Array, "..."], args: Any = None) -> Float[Array, "..."]:
        self._check_broadcast(y=y)
        return self.eta / self.classes / (self.outputs - 1 + jnp.exp(self.outputs * y))

    @checked
    def exact(self, y0: Real[ArrayLike, "..."], ts: Times) -> Float[Array, "..."]:
        """`h` at the times `ts`, which come first in its shape."""
        self._check_broadcast(y0=y0)
        return at_each(ts, lambda t: self._moved(y0, t))

    def _moved(self, y0: Real[ArrayLike, "..."], t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        m = self.outputs
        pushed = m * self.eta * jnp.asarray(t, m.dtype) / self.classes
        return gap_after(pushed, m - 1, m * jnp.asarray(y0, m.dtype)) / m

    @checked
    def visits(self, number: int) -> Float[Array, " number_and_one"]:
        """`h*` after 0, 1, …, `number` visits of the class by stochastic gradient descent with one sample a step:

            h*(s) = h*(s−1) + η / (M − 1 + e^{M h*(s−1)})

        exactly, where `exact` is the limit of small η: `0 ≤ h* − h ≤ 2η/M` (Lemmas 5 and 7). For scalar fields.
        """
        integer("number", number, least=0)
        return visits(self.outputs, self.eta, number)

    @checked
    def gamma(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """`γ = (M−1)² h / (M − 1 + e^{Mh})`: the gradient that reaches attention, over ζ_n's part of it."""
        self._check_broadcast(t=t)
        h, m = self._moved(0.0, t), self.outputs
        return (m - 1) * h * ((m - 1) / (m - 1 + jnp.exp(m * h)))

    @checked
    def gamma_integral(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """`∫₀ᵗ γ = (K/η) (M−1)² h²/2`, exactly."""
        self._check_broadcast(t=t)
        return self.classes / self.eta * ((self.outputs - 1) * self._moved(0.0, t)) ** 2 / 2

    def peak(self) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """When γ is largest, and how large: at `x = Mh = 1 + W((M−1)/e)`, which is `x = 1 + u`, `u e^u = (M−1)/e`."""
        m = self.outputs
        u = lambert((m - 1) / math.e)
        x = 1 + u
        t = self.classes / self.eta * ((jnp.expm1(x) + (m - 1) * x) / m)
        return t, (m - 1) / m * u  # (M−1)² e^{−x}/M

    def _check_broadcast(self, **arrays: Any) -> None:
        check_broadcast(**arrays, outputs=self.outputs, classes=self.classes, eta=self.eta)

    def linear_until(self) -> Float[Array, "*batch"]:
        """`t₀' = K ln M/η`: until about here `h = ηt/(KM)` and `γ = ηt/K`."""
        return self.classes * jnp.log(self.outputs) / self.eta

    def logarithmic_from(self) -> Float[Array, "*batch"]:
        """`t₀ = 2K ln M/η`: from about here `h = ln(Mηt/K)/M` and `γ = K ln(Mηt/K)/(ηt)`. It depends on η_Y and not on
        η_Z: a larger attention rate makes the phase transition stronger, not earlier."""
        return 2 * self.linear_until()
