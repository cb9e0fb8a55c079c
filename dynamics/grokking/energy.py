"""Stage II: the energy that a hidden node climbs while nodes are still independent, and its ascent.

A node is `w = [u; w₂]`, shape `(2, order)`: on the pair (h₁, h₂) of a group of order M it computes `σ(u(h₁) + w₂(h₂))`.

Source: Tian, Li2 (arXiv 2509.21519), Theorem 1. The sum over a group is written out here, and so is its form by
representations: the published one has the trace where the Frobenius norm belongs, and is four times too small for x².
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from ..._checked import checked
from ..._checks import check_shape, describe
from ..._pairs import used_pairs
from ..flow import Conserving, Example, Flow, Number
from ..groups import Group, symmetric
from ..representations import Irrep, fourier, quotients


@checked
class Energy(eqx.Module):
    """`E(w) = ½ ‖Ỹᵀ σ(Xw)‖²`, with labels Y centred over the pairs used: how far a node tells the labels apart.

    With `z_h = Σ_{ab=h} σ(u_a + w₂_b)` over the n_h pairs of label h, `E = ½ Σ_h (z_h − n_h z̄)²`, z̄ the mean of σ.

    **Arguments:** `group`; `used`, which pairs, shape `(order, order)`, by default all; `activation` σ, any function of
    one number, by default x²; `interaction`: only `σ(u+w₂) − σ(u) − σ(w₂)`, what needs both halves, is counted. With x²
    and all pairs this changes nothing. On a subset the terms σ(u) and σ(w₂) no longer cancel, and favour nodes that
    respond to a single element.

    Homogeneous of degree 4 for x², so that `w·∇E = 4E`; `σ = ax + bx²` has b² times as much on all pairs, and a linear
    σ none. Source: Li2, Theorem 1. **Raises** `ValueError` for a group of order below three, for a `used` of another
    shape or that leaves nothing, and when called for a σ whose value has another shape than its argument.
    """

    quotient: Int[Array, "order order"]  # g⁻¹h at [g, h]
    used: Float[Array, "order order"]  # whether the pair (g, g⁻¹h) is, at [g, h]
    activation: Callable[[Array], Array] = eqx.field(static=True)
    interaction: bool = eqx.field(static=True)

    def __init__(
        self,
        group: Group,
        used: Bool[ArrayLike, "order order"] | None = None,
        *,
        activation: Callable[[Array], Array] = jnp.square,
        interaction: bool = False,
    ):
        if group.order < 3:
            raise ValueError(f"group must have order 3 or more for its labels to differ, got {group.name}.")
        quotient = quotients(group)
        mask = np.take_along_axis(used_pairs(used, group.order), quotient, axis=1)
        self.quotient, self.used = jnp.asarray(quotient), jnp.asarray(mask, jnp.result_type(float))
        self.activation, self.interaction = activation, interaction

    @checked
    def __call__(self, w: Float[Array, "2 order"]) -> Float[Array, ""]:
        u, v = w[0][:, None], w[1][self.quotient]
        hidden = self.activation(u + v)
        check_shape("the value of activation", hidden, v.shape)
        if self.interaction:
            hidden = hidden - self.activation(u) - self.activation(v)
        used = self.used.astype(w.dtype)
        sums, counts = jnp.sum(used * hidden, axis=0), jnp.sum(used, axis=0)
        return jnp.sum((sums - counts * (jnp.sum(sums) / jnp.sum(counts))) ** 2) / 2


@checked
def convolution(u: Float[Array, " order"], v: Float[Array, " order"], group: Group) -> Float[Array, " order"]:
    """`(u∗v)(h) = Σ_g u(g) v(g⁻¹h)`."""
    check_shape("u", u, (group.order,))
    return u @ v[quotients(group)]


@checked
def convolution_energy(w: Float[Array, "2 order"], group: Group) -> Float[Array, ""]:
    """The energy on all pairs with x²: `E = 2 ‖u∗w₂ − mean‖²`, for the squares of the halves sum to constants."""
    check_shape("w", w, (2, group.order))
    both = convolution(w[0], w[1], group)
    return 2 * jnp.sum((both - jnp.mean(both)) ** 2)


@checked
def plancherel_energy(w: Float[Array, "2 order"], irreps: Sequence[Irrep]) -> Float[Array, ""]:
    """The same by representations, real or complex: `E = (2/M) Σ m ‖û ŵ₂‖_F²` over those that are given, without the
    trivial one; m the multiplicities. **Raises** `ValueError` for irreps of another group, and for one given twice."""
    check_irreps(irreps)
    for r in irreps:
        check_shape("w", w, (2, r.group.order))
    parts = [
        r.multiplicity * jnp.sum(jnp.abs(fourier(w[0], r) @ fourier(w[1], r)) ** 2) for r in irreps if not r.trivial
    ]
    return 2 / w.shape[1] * sum(parts, jnp.zeros((), w.dtype))


def check_irreps(irreps: Sequence[Irrep], *, real: bool = False) -> None:
    """Raises `ValueError` unless these are different representations of one group, and with `real` over the reals."""
    if not isinstance(irreps, Sequence) or not all(isinstance(r, Irrep) for r in irreps):
        raise ValueError(
            f"irreps must be a sequence of representations, as from irreps(group), got {describe(irreps)}."
        )
    names = sorted({r.group.name for r in irreps})
    if any(r.group != irreps[0].group for r in irreps):
        raise ValueError(f"irreps must be of one group, got {', '.join(names)}.")
    for r in irreps if real else ():
        check_real(r)
    for i, r in enumerate(irreps):
        check_shape(f"irreps[{i}].matrices", r.matrices, (r.group.order, "dim", "dim"))
    characters = np.array([r.character for r in irreps])  # orthogonal, without a common part
    same = np.triu(np.abs(characters @ characters.conj().T) > 0.5, 1) if len(irreps) else np.zeros((0, 0))
    for first, second in np.argwhere(same):
        raise ValueError(f"irreps must hold each representation once, got the same at [{first}] and [{second}].")


def check_real(irrep: Irrep) -> None:
    """Raises `ValueError` for a representation over the complex numbers."""
    if np.iscomplexobj(irrep.matrices):
        raise ValueError(f"irrep must be real, as from irreps(group), got a complex one of {irrep.group.name}.")


@checked
class SphereAscent(Conserving):
    """`ẇ = (I − wwᵀ) ∇E(w)`: gradient ascent of a node whose norm stays at one.

    **Fields:** `energy`, any function of w. **State:** w, shape `(2, order)`, of norm one. **Invariant:** the norm. The
    equation holds as written for another norm too, which then moves, to one where E grows with the norm.

    **Assumptions:** (1) the gradient that reaches the layer is proportional to `Ỹ Ỹᵀ F`; (2) weight decay keeps norms,
    which for x² it does not by itself: `ẇ = ∇E − ηw` has an unstable radius. **What must happen:** E never falls.
    **Values that work:** small groups, for rates are of the size of E; else `ScaledAscent`. Source: Li2, Theorem 1.
    """

    energy: Callable[[Array], Array]

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, time: Number = 3.0) -> Example:
        """A random node on the group S3."""
        w = jax.random.normal(key, (2, 6))
        return cls(Energy(symmetric(3))), w / jnp.linalg.norm(w), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: ArrayLike, y: Float[Array, "2 order"], args: Any = None) -> Float[Array, "2 order"]:
        slope = jax.grad(self.energy)(y)
        return slope - y * jnp.sum(y * slope)

    @checked
    def invariants(self, y: Float[Array, "2 order"]) -> Float[Array, ""]:
        """‖w‖²."""
        return jnp.sum(y**2)


@checked
class ScaledAscent(Flow):
    """`ẇ = ∇E/(w·∇E) − w`: the paths of `SphereAscent` at rates of order one for every group.

    **Fields:** `energy`, any function of w that grows along w. **State:** w, shape `(2, order)`, of any norm but zero:
    `d‖w‖²/dt = 2(1 − ‖w‖²)`. **What must happen:** it ends at a local maximum of E on the sphere, within 20 to 40 units
    of time from random starts. It is NaN where E has no slope along w, as at constants. Source: derived here.
    """

    energy: Callable[[Array], Array]

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, time: Number = 10.0) -> Example:
        """A random node on the group S3."""
        w = jax.random.normal(key, (2, 6))
        return cls(Energy(symmetric(3))), w / jnp.linalg.norm(w), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: ArrayLike, y: Float[Array, "2 order"], args: Any = None) -> Float[Array, "2 order"]:
        slope = jax.grad(self.energy)(y)
        return slope / jnp.sum(y * slope) - y
