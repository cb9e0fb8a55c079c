"""Stage I, lazy learning: the output layer fits labels on random features, and the gradient that it sends back to them.

With features F = σ(XW), shape `(pairs, nodes)`, and one-hot labels Y, both centred over the pairs (a tilde), the output
layer V minimises `J = ½ ‖Ỹ − F̃V‖² + (η/2) ‖V‖²`, and `G_F = −∂J/∂F = (Ỹ − F̃V) Vᵀ` reaches the features.

Training code that minimises a mean over n pairs, with decay wd, has `η = n·wd/2`.

Source: Tian, Li2 (arXiv 2509.21519), section 3; the forms by the kernel and for wide layers are derived here.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from ..._checked import checked
from ..._checks import as_float, or_nan, real
from ..._pairs import Pairs, pairs
from ..flow import ClosedForm, Example, Number, Times, at_each
from ..groups import cyclic
from .spectral import evolve, ridge


@checked
def centred(x: Float[Array, "pairs n"]) -> Float[Array, "pairs n"]:
    """P1 x: less its mean over the pairs."""
    return x - jnp.mean(x, axis=0, keepdims=True)


@checked
class OutputLayer(ClosedForm):
    """`V̇ = F̃ᵀ(Ỹ − F̃V) − ηV`: gradient flow of the output layer, features held fixed.

    **Fields:** `features` F, shape `(pairs, nodes)`, and `labels` Y, shape `(pairs, classes)`, as they are: both are
    centred here; `decay` η. **State:** V, shape `(nodes, classes)`.

    **Closed form:** `V(t) = e^{−At} (V(0) − V_r) + V_r` with `A = F̃ᵀF̃ + ηI` and the ridge solution `V_r = A⁻¹F̃ᵀỸ`.
    **What must happen:** from a small V(0) the gradient that is sent back starts as `G_F(0) + t Ỹ Ỹᵀ F̃` (Proposition 1)
    and tends, at the rate λ_min(A), to that of `limit_gradient` (equation 4).

    Source: Li2, Proposition 1.

    **Raises** `ValueError` for shapes that do not fit, no pairs, and a negative decay, which is NaN inside `jit`.
    """

    features: Float[Array, "pairs nodes"]
    labels: Float[Array, "pairs classes"]
    decay: Float[Array, ""] = eqx.field(converter=as_float)

    def __init__(
        self, features: Float[Array, "pairs nodes"], labels: Float[Array, "pairs classes"], decay: Float[ArrayLike, ""]
    ):
        if not len(features):
            raise ValueError(f"features must have at least one pair, got {features.shape}.")
        decay = jnp.asarray(real("decay", decay, least=0), features.dtype)
        message = "decay must not be negative."
        self.decay = or_nan(decay, decay >= 0, message)
        self.features = or_nan(centred(features), decay >= 0, message)  # those that leave nothing, too
        self.labels = centred(labels)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, decay: Number = 1.0, time: Number = 0.1) -> Example:
        """Eight nodes with x² and random weights on all pairs of Z5, from zero."""
        all_pairs, w = pairs(cyclic(5).table), jax.random.normal(key, (2, 5, 8))
        features = (w[0][all_pairs.first] + w[1][all_pairs.second]) ** 2
        return cls(features, jnp.eye(5)[all_pairs.label], decay), jnp.zeros((8, 5)), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(
        self, t: ArrayLike, y: Float[Array, "nodes classes"], args: Any = None
    ) -> Float[Array, "nodes classes"]:
        return self.features.T @ (self.labels - self.features @ y) - self.decay * y

    def matrix(self) -> Float[Array, "nodes nodes"]:
        """A."""
        return self.features.T @ self.features + self.decay * jnp.eye(self.features.shape[1], dtype=self.features.dtype)

    def limit(self) -> Float[Array, "nodes classes"]:
        """V_r; with η = 0 the least squares of smallest norm. Differentiable once, where singular values coincide too.

        What a node lacks of the span of the others counts as zero below `2 √max(pairs, nodes) eps` of its length, 5e-6
        in float32 for 400 pairs. Nodes that are so alike need float64 where η is below that share of ‖f̃‖².
        """
        return ridge(self.features, self.labels, self.decay).solution

    @checked
    def exact(self, y0: Float[Array, "nodes classes"], ts: Times) -> Float[Array, "*times nodes classes"]:
        """The states at the times `ts`, which may be infinite. Differentiable once, where eigenvalues of A coincide
        too; at an infinite time if A is positive definite."""
        state = lambda t: evolve(jnp.asarray(t, y0.dtype), self.features, self.labels, self.decay, y0)
        return at_each(ts, state)

    @checked
    def backpropagated(self, y: Float[Array, "nodes classes"]) -> Float[Array, "pairs nodes"]:
        """G_F for this V."""
        return (self.labels - self.features @ y) @ y.T

    def correlation(self) -> Float[Array, "pairs nodes"]:
        """`Ỹ Ỹᵀ F̃`, along which the energy of every node climbs."""
        return self.labels @ (self.labels.T @ self.features)

    def limit_gradient(self) -> Float[Array, "pairs nodes"]:
        """G_F at the ridge solution, `(Ỹ − F̃V_r) V_rᵀ`. It equals equation 4, `η K Ỹ Ỹᵀ F̃ A⁻¹`, and by the kernel
        `η K Ỹ Ỹᵀ K F̃`, with `K = (F̃F̃ᵀ + ηI)⁻¹`. At η = 0 it vanishes only where the labels lie in the span of F̃."""
        solution, left_over = ridge(self.features, self.labels, self.decay)
        return left_over @ solution.T

    def wide_gradient(self) -> Float[Array, "pairs nodes"]:
        """What G_F at the ridge solution tends to for ever more nodes, x², normal weights of variance one and all pairs
        of a group: `η/(4K+η)² Ỹ Ỹᵀ F̃`, K the nodes. The kernel has the eigenvalue 4K on what no single element of a
        pair tells, where all of Ỹ lies (`wide_kernel`)."""
        return self.decay / (4 * self.features.shape[1] + self.decay) ** 2 * self.correlation()


@checked
def wide_kernel(pairs: Pairs) -> Float[np.ndarray, "pairs pairs"]:
    """`F Fᵀ/K` for K → ∞, x² and normal weights of variance one: `4·11ᵀ + 4I + 2(B₁B₁ᵀ + B₂B₂ᵀ)`, with B the one-hot
    rows of each element. Lemma 1 of the paper needs a multiple of the identity, which this is not."""
    same = [(x[:, None] == x[None]).astype(float) for x in map(np.asarray, (pairs.first, pairs.second))]
    return 4.0 + 4 * same[0] * same[1] + 2 * (same[0] + same[1])
