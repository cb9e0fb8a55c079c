"""The two-layer network on pairs of group elements, which pairs it is trained on, and its loss in two forms.

Sources: Composing Global Optimizers (Tian, arXiv 2410.01779), sections 3 and 6 and the settings of its experiments;
Li2 (Tian, arXiv 2509.21519), section 4.2.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._checked import checked
from .._checks import concrete, describe, indices, integer, real
from .._pairs import Pairs as Pairs
from .._pairs import is_latin
from .._pairs import pairs as pairs
from ._accuracy import right
from ._arguments import AnyKey, check_activation, check_sizes, floating
from ._pair_outputs import centred, check_pairs, of_all, one_hot, outputs


@checked
class TwoLayer(eqx.Module):
    """`o_g(g1, g2) = scale Σ_j c_gj σ(a_g1j + b_g2j)`, for the first and second of two elements of a group.

    **Trained:** `a`, `b`, `c`, each of shape `(order, nodes)`. **Fixed:** `scale`, 1/2d for constructed solutions, the
    papers' code's 1 for training; the mask `trainable()` keeps it from both updates and decay. `activation`: σ, by
    default the square; a function that is the same object each time, or each call compiles anew.

    **Raises** `ValueError` for matrices of different shapes, and for a σ that does not keep the shape of its argument.
    """

    a: Float[Array, "order nodes"]
    b: Float[Array, "order nodes"]
    c: Float[Array, "order nodes"]
    scale: Float[Array, ""]
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        a: Float[ArrayLike, "order nodes"],
        b: Float[ArrayLike, "order nodes"],
        c: Float[ArrayLike, "order nodes"],
        scale: Real[ArrayLike, ""] = 1.0,
        activation: Callable[[Array], Array] = jnp.square,
    ):
        self.a, self.b, self.c = jnp.asarray(a), jnp.asarray(b), jnp.asarray(c)
        self.scale = jnp.asarray(scale, self.a.dtype)
        check_activation(activation, self.a.shape, self.a.dtype)
        self.activation = activation

    @property
    def order(self) -> int:
        return self.a.shape[0]

    @property
    def nodes(self) -> int:
        return self.a.shape[1]

    @checked
    def __call__(self, first: Int[ArrayLike, ""], second: Int[ArrayLike, ""]) -> Float[Array, " order"]:
        """The outputs for one pair. Inside `jit` an element beyond the last is taken for it."""
        indices("first", first, self.order), indices("second", second, self.order)
        return self.scale * (self.c @ self.activation(self.a[first] + self.b[second]))

    def outputs(self) -> Float[Array, "order order order"]:
        """The outputs for all pairs: axes first, second, g."""
        return of_all(self, self.scale * self.c)

    def trainable(self) -> "TwoLayer":
        """The same module with `True` at the leaves that are trained and `False` elsewhere: a mask for optax."""
        return eqx.tree_at(lambda m: (m.a, m.b, m.c, m.scale), self, (True, True, True, False))


@checked
def initial(
    order: int,
    nodes: int,
    *,
    scale: Real[ArrayLike, ""] = 1.0,
    activation: Callable[[Array], Array] = jnp.square,
    fan_in: int | None = None,
    output_scale: Real[ArrayLike, ""] = 1.0,
    dtype: Any = None,
    key: AnyKey,
) -> TwoLayer:
    """The papers' initial weights: a and b from `U(±1/√fan_in)`, c from `output_scale · U(±1/√nodes)`.

    - `fan_in`: the numbers that feed a hidden node: by default `order`, two linear layers side by side; `2·order` is
      one layer on both.
    - `output_scale`: 0 starts the output layer at zero.

    **Raises** `ValueError` for sizes below one.
    """
    fan_in = order if fan_in is None else fan_in
    check_sizes(order=order, nodes=nodes, fan_in=fan_in)
    real("scale", scale, ()), real("output_scale", output_scale, ())
    dtype = floating(dtype)
    a, b, c = jax.random.uniform(key, (3, order, nodes), dtype, -1, 1)
    c = jnp.asarray(output_scale, dtype) * (c / nodes**0.5)
    return TwoLayer(a / fan_in**0.5, b / fan_in**0.5, c, scale, activation)


# Data: which pairs are used


@checked
def split(order: int, *, fraction: float = 0.9, seed: int) -> Bool[np.ndarray, "order order"]:
    """Which pairs are trained on, as the papers' code splits them: held out are the first `⌈(1 − fraction) order²⌉`
    entries of `RandomState(seed).permutation(order²)`. **Raises** `ValueError` for a fraction that leaves no pair on
    one side."""
    check_sizes(order=order)
    integer("seed", seed, least=0, most=2**32 - 1)
    real("fraction", fraction, (), above=0, below=1)
    held_out = int(np.ceil(round((1 - fraction) * order**2, 9)))  # 1 − 0.9 is a little more than 0.1
    if not 1 <= held_out < order**2:
        raise ValueError(f"fraction must leave one of {order**2} pairs at least on each side, got {fraction}.")
    used = np.ones(order**2, bool)
    used[np.random.RandomState(seed).permutation(order**2)[:held_out]] = False
    return used.reshape(order, order)


@checked
def split_pairs(table: Int[ArrayLike, "order order"], *, fraction: float = 0.9, seed: int) -> tuple[Pairs, Pairs]:
    """The pairs trained on, by `split`, and those held out. **Raises** `ValueError` as `pairs` and `split` do."""
    used = split(len(pairs(table).table), fraction=fraction, seed=seed)
    return pairs(table, used), pairs(table, ~used)


@checked
def stacked(samples: Sequence[Pairs]) -> Pairs:
    """Samples of one group, padded to the largest and stacked: each field has a leading axis. **Raises** `ValueError`
    for no sample, and for samples of groups of different orders."""
    if not isinstance(samples, Sequence) or not samples or not all(isinstance(one, Pairs) for one in samples):
        raise ValueError(f"samples must be a sequence of at least one Pairs, got {describe(samples)}.")
    order = samples[0].table.shape[0]
    if any(one.table.shape[0] != order for one in samples):
        raise ValueError(f"samples must be of groups of one order, got {[one.table.shape[0] for one in samples]}.")

    known = all(map(concrete, samples))
    xp: Any = np if known else jnp  # each length would compile a program

    def joined(name: str, fill: int = 0) -> Any:
        rows = [xp.asarray(getattr(one, name)) for one in samples]
        most = max(map(len, rows))
        return xp.stack([xp.pad(row, (0, most - len(row)), constant_values=fill) for row in rows])

    latin = all(one.held_out is not None for one in samples)
    first, second, label, used = map(joined, ("first", "second", "label", "used"))
    tables = xp.stack([one.table for one in samples])
    held_out = joined("held_out", order**2) if latin else None
    with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():  # values stay known inside jit
        return jax.tree.map(jnp.asarray, Pairs(first, second, label, used, tables, held_out))


# Loss


@checked
def loss(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    """The mean over the pairs of `‖P(o − onehot)‖²`: `P = I − 11ᵀ/order` takes the mean over outputs away.

    **Raises** `ValueError` for pairs of another group or none; where no pair is used, inside `jit`, it is NaN."""
    check_pairs(model, pairs)
    return _mean_square(model, pairs)


def _mean_square(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    gap = jnp.where(pairs.used[:, None], outputs(model, pairs) - (one_hot(model, pairs) - 1 / model.order), 0)
    return jnp.vdot(gap, gap) / jnp.sum(pairs.used, dtype=gap.dtype)


@checked
def training_loss(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    """`loss` in the form with fewer operations, for its gradient.

    For nearly all pairs and few nodes that is, where the activation is `jnp.square`, the sum over the whole table in
    closed form, less the pairs held out. Its rounding is that of numbers of the size of one: nothing to the gradient,
    but no loss of 1e-9 shows in float32.

    **Raises** `ValueError` as `loss` does, and, where values are known, for fields that contradict each other.
    """
    check_pairs(model, pairs)
    _check_held_out(pairs)
    if pairs.held_out is None or model.activation is not jnp.square:
        return _mean_square(model, pairs)
    # Six products of order·nodes² against three of pairs·order·nodes; the rows of labels take as long as 15·order
    # pairs.
    rows = 2 * model.nodes + 15 * model.order + pairs.held_out.shape[0]
    return _mean_square(model, pairs) if rows > pairs.first.shape[0] else _closed_loss(model, pairs)


@checked
def accuracy(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    """The fraction of the pairs of which the largest output is that of the label; NaN where an output is. **Raises**
    `ValueError` as `loss` does."""
    check_pairs(model, pairs)
    return right(outputs(model, pairs), pairs.label, pairs.used)


def _check_held_out(pairs: Pairs) -> None:
    """The closed form goes by `table` and `held_out`, which `_replace(used=…)` and `_replace(label=…)` leave as they
    were."""
    if pairs.held_out is None or not concrete(pairs):
        return
    first, second, label, used, table, held_out = (np.asarray(x) for x in pairs)
    order, mask = len(table), np.zeros(table.shape, bool)
    mask[first[used], second[used]] = True
    others = np.sort(held_out[held_out < order**2])
    same = np.array_equal(others, np.flatnonzero(~mask)) and np.array_equal(label, table[first, second])
    if not same or not is_latin(table):
        raise ValueError(
            "pairs.held_out must be the table's pairs that are not used, and None for a table whose rows or columns "
            "have an element twice, as pairs(table, used) gives it, got others."
        )


def _closed_loss(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    """The loss from sums over the whole table. With `u = a² cᵀ`, `v = b² cᵀ` (c centred) and `t = Σ_j a_j b_j c_j`, the
    output is `u_g1 + v_g2 + 2 t_g1g2`. Squared and summed over pairs, every term is a sum over an order × order matrix
    except Σ t², which is `Σ (aᵀa) ∘ (bᵀb) ∘ (cᵀc)`. In the label term `Σ c_label a²` vanishes: c is centred, and each
    row of the table a permutation."""
    assert pairs.held_out is not None
    order, table = model.order, pairs.table
    a, b, c = model.a, model.b, centred(model)
    u, v = jnp.square(a) @ c.T, jnp.square(b) @ c.T
    u_t = u * ((a * jnp.sum(b, axis=0, keepdims=True)) @ c.T)
    v_t = v * ((b * jnp.sum(a, axis=0, keepdims=True)) @ c.T)
    squares = order * jnp.sum(u * u + v * v) + 2 * jnp.sum(jnp.sum(u, axis=0) * jnp.sum(v, axis=0))
    squares = squares + 4 * jnp.sum(u_t + v_t) + 4 * _gram(a, b, c)
    total = squares - 4 * _on_labels(a, b, c, table) + (order**2 - order)
    if pairs.held_out.shape[0]:
        real = pairs.held_out < order**2  # the rest is padding
        first, second = jnp.divmod(jnp.where(real, pairs.held_out, 0), order)
        hot = table[first, second][:, None] == jnp.arange(order, dtype=table.dtype)[None]
        gap = jnp.square(a[first] + b[second]) @ c.T - (hot.astype(c.dtype) - 1 / order)
        gap = jnp.where(real[:, None], gap, 0)
        total = total - jnp.vdot(gap, gap)
    return total / jnp.sum(pairs.used, dtype=total.dtype)


@jax.custom_jvp
def _gram(a: Float[Array, "order nodes"], b: Float[Array, "order nodes"], c: Float[Array, "order nodes"]) -> Array:
    """`Σ_{g1 g2 g} (Σ_j a_g1j b_g2j c_gj)²`, by three Gram matrices."""
    return jnp.sum((a.T @ a) * (b.T @ b) * (c.T @ c))


@_gram.defjvp
def _(primals, tangents):
    """The Gram matrices are symmetric: three products for the gradient, where autodiff takes six."""
    a, b, c = primals
    aa, bb, cc = a.T @ a, b.T @ b, c.T @ c
    slopes = (a @ (bb * cc), b @ (aa * cc), c @ (aa * bb))
    return jnp.sum(aa * bb * cc), 2 * _inner(slopes, tangents)


@jax.custom_jvp
def _on_labels(a: Array, b: Array, c: Array, label: Int[Array, "order order"]) -> Array:
    """`Σ_{g1 g2} Σ_j a_g1j b_g2j c_lj` at the labels l."""
    return jnp.sum(a * jax.lax.map(lambda row: jnp.sum(c[row] * b, axis=0), label))


@_on_labels.defjvp
def _(primals, tangents):
    """Row by row, and without the scatter of autodiff: which g2 has label g is a gather too, each row being a
    permutation. 0.1 to 0.2 of the time at order 71."""
    a, b, c, label = primals

    def row(slopes, at):
        a_g, label_g, place = at
        rows = c[label_g]
        return (slopes[0] + a_g[None] * rows, slopes[1] + a_g[None] * b[place]), jnp.sum(rows * b, axis=0)

    zero = jnp.zeros_like(b)
    (of_b, of_c), of_a = jax.lax.scan(row, (zero, zero), (a, label, jnp.argsort(label, axis=1)))
    return jnp.sum(a * of_a), _inner((of_a, of_b, of_c), tangents[:3])


def _inner(first: Sequence[Array], second: Sequence[Array]) -> Array:
    return jnp.stack([jnp.sum(x * y) for x, y in zip(first, second, strict=True)]).sum()
