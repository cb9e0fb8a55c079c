"""How potentials move under gradient flow, and what becomes of that at infinite width.

Source: Composing Global Optimisers (arXiv 2410.01779), Theorem 6; the finite-width flow is derived here.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Complex, Float, Key

from ..._checked import checked
from ..._checks import as_float, check_precision, check_shape, integer, real
from ..flow import ClosedForm, Example, Flow, Number, Times, at_each
from .ring import target


@checked
class TruncatedFlow(Flow):
    """`ż = −(1/d) conj ∂ℓ̃/∂z`: the gradient flow of the network's weights, on the truncated loss

        ℓ̃ = (1/d) Σ_{k≠0} { −2 r_kkk + Σ_{k1,k2≠0} |r_{k1k2k}|² }

    which leaves out what has a or b twice. **Fields:** `order` d. **State:** the real and the imaginary part of the
    frequencies without zero, shape `(2, 3, d − 1, nodes)` (`pack`, `unpack`); Hermitian symmetry is kept.

    `velocity(z)` is how its potentials move, `ṙ = (2/d²) J J* (δ − r)` with `J = ∂r/∂z`: always downhill.
    """

    order: int = eqx.field(static=True)

    def __check_init__(self):
        integer("order", self.order, least=2)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, time: Number = 2.0) -> Example:
        """Order five and eight nodes with real weights."""
        flow = cls(5)
        weights = jax.random.normal(key, (3, 5, 8)) / 2
        return flow, flow.pack(jnp.fft.fft(weights, axis=1)[:, 1:]), jnp.linspace(0.0, time, 9)

    def _check(self, z: Complex[Array, "3 k nodes"]) -> None:
        check_shape("z", z, (3, self.order - 1, "nodes"))

    @checked
    def __call__(self, t: ArrayLike, y: Float[Array, "2 3 k nodes"], args: Any = None) -> Float[Array, "2 3 k nodes"]:
        check_shape("y", y, (2, 3, self.order - 1, "nodes"))
        return self.pack(self.descent(self.unpack(y)))

    @checked
    def pack(self, z: Complex[Array, "3 k nodes"]) -> Float[Array, "2 3 k nodes"]:
        self._check(z)
        return jnp.stack([z.real, z.imag])

    @checked
    def unpack(self, y: Float[Array, "2 3 k nodes"]) -> Complex[Array, "3 k nodes"]:
        check_shape("y", y, (2, 3, self.order - 1, "nodes"))
        check_precision("y", y)
        return jax.lax.complex(y[0], y[1])

    @checked
    def potentials(self, z: Complex[Array, "3 k nodes"]) -> Complex[Array, "k k k"]:
        """`r_{k1k2k}` at the frequencies without zero."""
        self._check(z)
        return jnp.einsum("ij,kj,lj->ikl", *z)

    @checked
    def descent(self, z: Complex[Array, "3 k nodes"]) -> Complex[Array, "3 k nodes"]:
        """ż: `(2/d²) J* (δ − r)`."""
        gap = target(self.order - 1).astype(z.dtype) - self.potentials(z)
        back = (
            jnp.einsum("ikl,kj,lj->ij", gap, jnp.conj(z[1]), jnp.conj(z[2])),
            jnp.einsum("ikl,ij,lj->kj", gap, jnp.conj(z[0]), jnp.conj(z[2])),
            jnp.einsum("ikl,ij,kj->lj", gap, jnp.conj(z[0]), jnp.conj(z[1])),
        )
        return 2 / self.order**2 * jnp.stack(back)

    @checked
    def velocity(self, z: Complex[Array, "3 k nodes"]) -> Complex[Array, "k k k"]:
        """`ṙ = (2/d²) J J* (δ − r)`, with

        `(JJ*)_{(k1k2k),(l1l2l)} = [k1=l1] Σ_j b_k2 c_k conj(b_l2 c_l) + [k2=l2] Σ_j a_k1 c_k conj(a_l1 c_l)
        + [k=l] Σ_j a_k1 b_k2 conj(a_l1 b_l2)`.
        """
        gap = target(self.order - 1).astype(z.dtype) - self.potentials(z)
        a, b, c = z
        pairs = lambda p, q: p[:, None] * q[None]  # (k, k', nodes)
        bc, ac, ab = pairs(b, c), pairs(a, c), pairs(a, b)
        moved = (
            jnp.einsum("klj,mnj,imn->ikl", bc, jnp.conj(bc), gap)
            + jnp.einsum("ilj,mnj,mkn->ikl", ac, jnp.conj(ac), gap)
            + jnp.einsum("ikj,mnj,mnl->ikl", ab, jnp.conj(ab), gap)
        )
        return 2 / self.order**2 * moved

    @checked
    def gram(self, z: Complex[Array, "3 k nodes"]) -> Complex[Array, "kkk kkk"]:
        """The matrix JJ*, of order (d−1)³: for small d."""
        self._check(z)
        k = self.order - 1
        a, b, c = z
        eye = jnp.eye(k, dtype=z.dtype)
        bc, ac, ab = (p[:, None] * q[None] for p, q in ((b, c), (a, c), (a, b)))
        square = (
            jnp.einsum("im,klj,npj->iklmnp", eye, bc, jnp.conj(bc))
            + jnp.einsum("kn,ilj,mpj->iklmnp", eye, ac, jnp.conj(ac))
            + jnp.einsum("lp,ikj,mnj->iklmnp", eye, ab, jnp.conj(ab))
        )
        return square.reshape(k**3, k**3)


@checked
class InfiniteWidth(ClosedForm):
    """`ṙ = rate (δ − r)`, `rate = 6 q σ⁴/d²`: Theorem 6, every potential follows an equation of its own, for the
    truncated loss, wide networks and weights drawn with mean zero and variance `d σ²`.

    **Fields:** `order` d; `rate`. **State:** r, shape `(d−1, d−1, d−1)` (its real part, as the flow keeps both apart).
    **Assumptions:** JJ* stays what it is at the start; the theorem says so of the start alone.

    **Closed form:** `r(t) = δ + e^{−rate t} (r(0) − δ)`. **Raises** `ValueError` for a negative rate.
    """

    order: int = eqx.field(static=True)
    rate: Float[Array, ""] = eqx.field(converter=as_float)

    def __check_init__(self):
        integer("order", self.order, least=2)
        real("rate", self.rate, (), least=0)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, rate: Number = 1.0, time: Number = 3.0) -> Example:
        """Order five, from small random potentials."""
        return cls(5, rate), 0.1 * jax.random.normal(key, (4, 4, 4)), jnp.linspace(0.0, time, 9)

    @classmethod
    @checked
    def of(cls, order: int, nodes: int, variance: Float[ArrayLike, ""]) -> "InfiniteWidth":
        """For `nodes` hidden nodes whose weights have this variance."""
        integer("order", order, least=2), integer("nodes", nodes, least=1)
        sigma2 = real("variance", variance, (), least=0) / order
        return cls(order, 6 * nodes * sigma2**2 / order**2)

    @checked
    def __call__(self, t: ArrayLike, y: Float[Array, "k k k"], args: Any = None) -> Float[Array, "k k k"]:
        check_shape("y", y, (self.order - 1,) * 3)
        return self.rate * (target(self.order - 1).astype(y.dtype) - y)

    @checked
    def exact(self, y0: Float[Array, "k k k"], ts: Times) -> Float[Array, "*times k k k"]:
        """The states at the times `ts`, which may be infinite."""
        check_shape("y0", y0, (self.order - 1,) * 3)
        delta = target(self.order - 1).astype(y0.dtype)
        decayed = lambda t: jnp.exp(-jnp.where(self.rate == 0, 0.0, self.rate * jnp.asarray(t, y0.dtype)))
        return at_each(ts, lambda t: delta + decayed(t) * (y0 - delta))
