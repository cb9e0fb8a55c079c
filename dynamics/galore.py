"""GaLore (Zhao et al., ICML 2024, arXiv 2403.03507): the gradient of a reversible network, and how its rank falls.

Time is `t = learning_rate × step`. The gradient G is the direction of descent, `W ← W + η G`, as in the paper.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import expm
from jaxtyping import Array, ArrayLike, Bool, Float, Key, Real

from .._checked import checked
from .._checks import as_float, check_positive_semidefinite, concrete, real
from .flow import ClosedForm, Example, Number, Times, at_each


class Split(NamedTuple):
    """A gradient, split by the two smallest distinct eigenvalues of the operator that drives it.

    - `parallel` G∥, shape `(rows, columns)`: its part in the eigenspace of the smallest eigenvalue.
    - `rest` G⊥, the same shape: everything else.
    - `first` λ₁, `second` λ₂: the two smallest distinct eigenvalues; `largest` λ_max. λ₂ is infinite if there is one
      eigenvalue only.
    """

    parallel: Float[Array, "rows columns"]
    rest: Float[Array, "rows columns"]
    first: Float[Array, ""]
    second: Float[Array, ""]
    largest: Float[Array, ""]

    def ratio(self, learning_rate: Float[ArrayLike, ""]) -> Float[Array, ""]:
        """`q = (1 − ηλ₂)/(1 − ηλ₁)`: by how much G⊥ shrinks against G∥ in one step, at least. Zero without a λ₂."""
        eta, some = jnp.asarray(learning_rate, self.first.dtype), jnp.isfinite(self.second)
        return jnp.where(some, (1 - eta * jnp.where(some, self.second, 0.0)) / (1 - eta * self.first), 0.0)


@checked
class ReversibleGradient(ClosedForm):
    """`Ẇ = G(W) = (1/N) Σ_i (A_i − B_i W C_i)`: one weight matrix of a reversible network, all else held fixed.

    **Fields:** `a` A, shape `(samples, rows, columns)`; `b` B, shape `(samples, rows, rows)`; `c` C, shape
    `(samples, columns, columns)`; `B_i`, `C_i` symmetric and positive semidefinite. For the squared loss of a deep
    linear or ReLU network they are `A_i = Jᵀ y fᵀ`, `B_i = Jᵀ J`, `C_i = f fᵀ`, with J the Jacobian of the layers above
    and f the input of the layer. **State:** `W`, shape `(rows, columns)`.

    **Assumptions:** A, B and C do not depend on W: the layers around are fixed, and so are the signs of a ReLU.

    **Closed form:** with `S = (1/N) Σ C_i ⊗ B_i`, `vec G(t) = exp(−St) vec G(0)`; in steps, `(1 − ηS)ⁿ`.
    **What must happen:** the part of G in the eigenspace of the smallest eigenvalue that G contains outlives all
    others, and with it the stable rank of G tends to the stable rank of that part (Lemma 3.3). **Values that work:**
    up to `rows × columns` of some hundreds, for the closed form is a function of a matrix of that order.

    Source: GaLore, Theorem 3.2 and Lemma 3.3. **Raises** `ValueError` for shapes that do not fit, for no samples, and
    for B or C that are not symmetric or have negative eigenvalues, where their values are known: not inside `jit`.
    """

    a: Float[Array, "samples rows columns"] = eqx.field(converter=as_float)
    b: Float[Array, "samples rows rows"] = eqx.field(converter=as_float)
    c: Float[Array, "samples columns columns"] = eqx.field(converter=as_float)

    def __check_init__(self):
        if 0 in self.a.shape:
            raise ValueError(f"a must have at least one sample, row and column, got shape {self.a.shape}.")
        real("a", self.a)
        check_positive_semidefinite("b", self.b)
        check_positive_semidefinite("c", self.c)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, time: Number = 2.0) -> Example:
        """Eight samples of a matrix of 4 × 4, from zero; B of rank 3, C of rank 4."""
        f, y, j = jnp.split(jax.random.normal(key, (8, 4, 11)), [4, 7], axis=2)
        b, c = j @ j.swapaxes(1, 2) / 4, f @ f.swapaxes(1, 2) / 4
        return cls(y @ f[:, :, :3].swapaxes(1, 2), b, c), jnp.zeros((4, 4)), jnp.linspace(0.0, time, 9)

    @checked
    def __call__(
        self, t: Real[ArrayLike, ""], y: Float[Array, "rows columns"], args: Any = None
    ) -> Float[Array, "rows columns"]:
        return jnp.mean(self.a - self.b @ y[None] @ self.c, axis=0)

    def operator(self) -> Float[Array, "modes modes"]:
        """S, which takes a gradient, its entries row by row, to `(1/N) Σ B_i G C_i`; `modes = rows × columns`."""
        samples, rows, columns = self.a.shape
        return jnp.einsum("sia,sbj->ijab", self.b, self.c).reshape(rows * columns, rows * columns) / samples

    def modes(self) -> tuple[Float[Array, " modes"], Float[Array, "modes rows columns"]]:
        """The eigenvalues of S, ascending, and its eigenvectors as matrices of Frobenius norm one."""
        values, vectors = jnp.linalg.eigh(self.operator())
        return values, vectors.T.reshape(-1, *self.a.shape[1:])

    @checked
    def exact(self, y0: Float[Array, "rows columns"], ts: Times) -> Float[Array, "*times rows columns"]:
        """The states at the times `ts`. By the exponential of a matrix rather than by the eigenvectors of S: that is
        differentiable where eigenvalues coincide, too. Slow modes lose digits as `‖S‖t` grows: `‖S‖t eps` of what they
        move. Raises `ValueError` for `‖S‖|t|` above 2³², in the 1-norm; inside `jit` the state is NaN there."""
        times = jnp.asarray(real("ts", ts), y0.dtype)
        if concrete((self, times)):
            norm, longest = float(np.max(np.sum(np.abs(np.asarray(self.operator())), axis=0))), np.max(np.abs(times))
            if not norm * float(longest) <= 2.0**32:
                most = f"{2.0**32 / norm:.4g} in size, 2³² over the norm of S"
                raise ValueError(f"ts must be at most {most}, got {longest:.4g}.")
        start = self(0.0, y0)
        # d/dt (W − W₀, 1) = [[−S, G(0)], [0, 0]] (W − W₀, 1)
        matrix = jnp.pad(-self.operator(), ((0, 1), (0, 1))).at[:-1, -1].set(start.ravel())
        moved = lambda t: expm(matrix * t, max_squarings=32)[:-1, -1]
        return at_each(times, lambda t: y0 + moved(t).reshape(y0.shape))

    @checked
    def split(self, gradient: Float[Array, "rows columns"], tolerance: float | None = None) -> Split:
        """Splits a gradient by the smallest eigenvalue of S. Eigenvalues within `tolerance` of it, in units of the
        largest, count as the same: by default `eps^⅔`, 4e-11 in float64 and 2e-5 in float32. First derivatives are
        right where eigenvalues coincide; those of an eigenvalue λ₁ or λ₂ that is not simple do not exist."""
        operator = self.operator()
        values = jnp.linalg.eigvalsh(operator)
        near = float(jnp.finfo(values.dtype).eps) ** (2 / 3) if tolerance is None else tolerance
        near = jnp.asarray(real("tolerance", near, least=0), values.dtype)
        parallel = (_slow_part(operator, near) @ gradient.ravel()).reshape(gradient.shape)
        second = jnp.min(jnp.where(_slow(values, near), jnp.inf, values))
        return Split(parallel, gradient - parallel, values[0], second, values[-1])

    @checked
    def within(
        self,
        p: Float[Array, "rows left"],
        q: Float[Array, "columns right"],
        y0: Float[Array, "rows columns"],
    ) -> "ReversibleGradient":
        """The flow of X where `W = W₀ + P X Qᵀ` moves by the projected gradient `R = Pᵀ G Q` (GaLore with fixed
        projections and without a normalisation). It has the same form, with `Pᵀ B_i P` and `Qᵀ C_i Q`.

        `p` P and `q` Q have orthonormal columns, else a `ValueError` where they are known; `y0` W₀ is where X = 0.
        Source: GaLore, Definition 3.6, Theorem 3.8.
        """
        _check_orthonormal("p", p)
        _check_orthonormal("q", q)
        a = p.T @ (self.a - self.b @ y0[None] @ self.c) @ q
        return ReversibleGradient(a, p.T @ self.b @ p, q.T @ self.c @ q)

    def contraction(self) -> Float[Array, ""]:
        """`κ = (1/N) Σ λ_min(B_i) λ_min(C_i)`: G shrinks by the factor `1 − ηκ` in each step, at least, if
        `η λ_max(S) ≤ 1`. Source: GaLore, Theorem 3.8, on the flow `within` the projections."""
        return jnp.mean(jnp.linalg.eigvalsh(self.b)[:, 0] * jnp.linalg.eigvalsh(self.c)[:, 0])


def _check_orthonormal(name: str, x: Float[Array, "rows columns"]) -> None:
    if concrete(x):
        values = np.asarray(x, float)
        off = np.max(np.abs(values.T @ values - np.eye(values.shape[1])), initial=0)
        if not off < 1e-3:
            raise ValueError(
                f"{name} must have orthonormal columns, got {name}ᵀ{name} that is {off:.2g} off the identity."
            )


def _slow(values: Float[Array, " modes"], tolerance: Float[Array, ""]) -> Bool[Array, " modes"]:
    return values <= values[0] + tolerance * values[-1]


@jax.custom_jvp
def _slow_part(operator: Float[Array, "modes modes"], tolerance: Float[Array, ""]) -> Float[Array, "modes modes"]:
    """The projection onto the eigenspace of the smallest eigenvalue."""
    values, vectors = jnp.linalg.eigh(operator)
    vectors = jnp.where(_slow(values, tolerance), vectors, 0.0)
    return vectors @ vectors.T


@_slow_part.defjvp
def _slow_part_jvp(primals, tangents):
    """The derivative of a function f of a symmetric matrix needs `(f(λ_i) − f(λ_j))/(λ_i − λ_j)` only (Daleckii and
    Krein), which is zero within the slow modes and within the others, where JAX's own of `eigh` divides by zero."""
    values, vectors = jnp.linalg.eigh(primals[0])
    slow = _slow(values, primals[1])
    across = slow[:, None] != slow[None, :]
    apart = jnp.where(across, -jnp.abs(values[:, None] - values[None, :]), 1.0)
    moved = (tangents[0] + tangents[0].T) / 2
    change = jnp.where(across, vectors.T @ moved @ vectors / apart, 0.0)
    return _slow_part(*primals), vectors @ change @ vectors.T


@checked
def stable_rank_bound(
    split: Split, learning_rate: Real[ArrayLike, ""], steps: Real[ArrayLike, " times"]
) -> Float[Array, " times"]:
    """What the stable rank of G cannot exceed `steps` steps after it was `split`:

        (‖G∥‖_F² + q^{2s} ‖G⊥‖_F²) / max(0, ‖G∥‖₂ − q^s ‖G⊥‖_F)²,   q = (1 − ηλ₂)/(1 − ηλ₁)

    for steps `W ← W + ηG` with `ηλ_max < 1`; infinite while the difference is not positive. It tends to the stable rank
    of G∥ as q^s. Proof: the parts of `G_t/(1 − ηλ₁)^s` are G∥ and one of Frobenius norm at most `q^s ‖G⊥‖_F`, which are
    orthogonal, and whose spectral norms differ by no more than that of the sum.

    Source: GaLore, Lemma 3.3, whose printed bound `sr(G∥) + q^{2s} ‖G⊥‖_F²/‖G∥‖₂²` takes ‖G_t‖₂ for at least
    `(1 − ηλ₁)^s ‖G∥‖₂`, which it need not be. **Raises** `ValueError` for a rate that is negative or so large that
    `ηλ_max ≥ 1`, and for a negative number of steps, where they are known: not inside `jit`.
    """
    rate = real("learning_rate", learning_rate, least=0)
    real("steps", steps, least=0)
    if concrete((rate, split.largest)) and not float(rate) * float(split.largest) < 1:
        raise ValueError(
            f"learning_rate must be below 1/λ_max = {1 / float(split.largest):.4g} for the bound, got {learning_rate}."
        )
    shrunk = split.ratio(learning_rate) ** jnp.asarray(steps, split.parallel.dtype)
    square = lambda x: jnp.sum(x**2)
    top = square(split.parallel) + shrunk**2 * square(split.rest)
    gap = jnp.linalg.norm(split.parallel, ord=2) - shrunk * jnp.sqrt(square(split.rest))
    return jnp.where(gap > 0, top / jnp.where(gap > 0, gap, 1.0) ** 2, jnp.inf)
