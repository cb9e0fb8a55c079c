"""The two-layer network on pairs of group elements, its data, its loss in two forms, and Adam as its papers have it.

Sources: Composing Global Optimizers (Tian, arXiv 2410.01779), sections 3 and 6 and the settings of its experiments;
Li2 (Tian, arXiv 2509.21519), section 4.2.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._checked import checked
from .._checks import check_shape, concrete, indices, integer, real
from ._accuracy import right
from ._arguments import AnyKey, check_activation, check_rates, check_sizes, check_used, chosen, elements_of, floating
from ._pair_outputs import centred, mean_square, outputs


@checked
class TwoLayer(eqx.Module):
    """`o_g(g1, g2) = scale Σ_j c_gj σ(a_g1j + b_g2j)`, for two elements g1, g2 of a group of some order.

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
    def __call__(self, g1: Int[ArrayLike, ""], g2: Int[ArrayLike, ""]) -> Float[Array, " order"]:
        """The outputs for one pair. Inside `jit` an element beyond the last is taken for it."""
        indices("g1", g1, self.order), indices("g2", g2, self.order)
        return self.scale * (self.c @ self.activation(self.a[g1] + self.b[g2]))

    def outputs(self) -> Float[Array, "order order order"]:
        """The outputs for all pairs: axes g1, g2, g."""
        return outputs(self, self.scale * self.c)

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


# Data: the table of the group, and which of its pairs are used


class Pairs(NamedTuple):
    """All pairs of elements: `label`, the number of each product (the group's table), and `mask`, the pairs used.

    `unused`: the numbers `g1·order + g2` of the pairs that are not, as `pairs` finds them. With them the loss may
    take its fast form, which needs each row and column of the table to have every element once.
    """

    label: Int[Array, "order order"]
    mask: Bool[Array, "order order"]
    unused: Int[Array, " left_out"] | None = None


@checked
def pairs(
    table: Int[ArrayLike, "order order"],
    mask: Bool[ArrayLike, "order order"] | None = None,
) -> Pairs:
    """The pairs of a group's table where `mask` is true, or 1; by default all of them.

    **Raises** `ValueError` for other shapes, labels that are no elements, a mask of other numbers than 0 and 1, and one
    that leaves nothing.
    """
    label = elements_of(table)
    used = chosen(mask, len(label))
    unused = jnp.asarray(np.flatnonzero(~used), int) if _is_latin(label) else None
    return Pairs(jnp.asarray(label, int), jnp.asarray(used), unused)


def _is_latin(label: Int[np.ndarray, "order order"]) -> bool:
    """Whether each row and each column has every element once."""
    counts = np.arange(len(label))
    return bool((np.sort(label, axis=0) == counts[:, None]).all() and (np.sort(label, axis=1) == counts).all())


@checked
def split(order: int, *, train: float = 0.9, seed: int) -> Bool[np.ndarray, "order order"]:
    """The training pairs, as the papers' code splits them: left out are the first `⌈(1 − train) order²⌉` entries of
    `RandomState(seed).permutation(order²)`. **Raises** `ValueError` unless `train` lies between 0 and 1."""
    check_sizes(order=order)
    integer("seed", seed, least=0, most=2**32 - 1)
    real("train", train, (), above=0, below=1)
    left_out = int(np.ceil(round((1 - train) * order**2, 9)))  # 1 − 0.9 is a little more than 0.1
    if left_out == order**2:
        raise ValueError(f"train must leave at least one of {order**2} pairs, got {train}.")
    mask = np.ones(order**2, bool)
    mask[np.random.RandomState(seed).permutation(order**2)[:left_out]] = False
    return mask.reshape(order, order)


# Loss


@checked
def masked_loss(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    """The mean over the pairs used of `‖P(o − onehot)‖²`: `P = I − 11ᵀ/order` takes the mean over outputs away.

    **Raises** `ValueError` where no pair is used; inside `jit` it is NaN."""
    _check_pairs(model, pairs)
    return mean_square(outputs(model, centred(model)), pairs)


@checked
def training_loss(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    """`masked_loss` in the form with fewer operations, for its gradient.

    For many pairs and few nodes that is, where the activation is `jnp.square`, the sum over the whole table in closed
    form, less the pairs left out. Its rounding is that of numbers of the size of one: nothing to the gradient, but no
    loss of 1e-9 shows in float32.

    **Raises** `ValueError`, where values are known, for an `unused` that is not that of the mask and the table.
    """
    _check_pairs(model, pairs)
    _check_unused(pairs)
    # Six products of order·nodes² against three of order³·nodes; the rows of labels take as long as 15 order²·nodes.
    dear = 2 * model.nodes + 15 * model.order > model.order**2
    if model.activation is not jnp.square or pairs.unused is None or dear:
        return masked_loss(model, pairs)
    return _closed_loss(model, pairs)


@checked
def accuracy(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    """The part of the pairs used of which the largest output is that of the label; NaN where an output is.
    **Raises** `ValueError` where no pair is used; inside `jit` it is NaN."""
    _check_pairs(model, pairs)
    return right(model.outputs(), pairs.label, pairs.mask)


def _check_pairs(model: TwoLayer, pairs: Pairs) -> None:
    check_shape("pairs.label", pairs.label, (model.order, model.order))
    indices("pairs.label", pairs.label, model.order)
    check_used("pairs.mask", pairs.mask)
    if pairs.unused is not None:
        indices("pairs.unused", pairs.unused, model.order**2)


def _check_unused(pairs: Pairs) -> None:
    """The closed form goes by `unused`, which `_replace(mask=…)` and `_replace(label=…)` leave as it was."""
    if pairs.unused is None or not concrete(pairs):
        return
    label, mask, unused = (np.asarray(x) for x in pairs)
    if not np.array_equal(np.sort(unused), np.flatnonzero(~mask.astype(bool))) or not _is_latin(label):
        raise ValueError(
            "pairs.unused must be the pairs that the mask leaves out, and None for a table whose rows or columns have "
            "an element twice, as pairs(table, mask) gives it, got others."
        )


def _closed_loss(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    """The loss from sums over the whole table: with `u = a² cᵀ`, `v = b² cᵀ` (c centred) and `t = Σ_j a_j b_j c_j`,
    the output is `u_g1 + v_g2 + 2 t_g1g2`, so that each sum over pairs of its square but that of t is one of matrices
    of order × order, and that of t is `Σ (aᵀa) ∘ (bᵀb) ∘ (cᵀc)`. Of what the labels take, `Σ c_label a²` is zero, for
    c is centred and each row of the table a permutation."""
    assert pairs.unused is not None
    order, left_out = model.order, pairs.unused.shape[0]
    a, b, c = model.a, model.b, centred(model)
    u, v = jnp.square(a) @ c.T, jnp.square(b) @ c.T
    u_t = u * ((a * jnp.sum(b, axis=0, keepdims=True)) @ c.T)
    v_t = v * ((b * jnp.sum(a, axis=0, keepdims=True)) @ c.T)
    squares = order * jnp.sum(u * u + v * v) + 2 * jnp.sum(jnp.sum(u, axis=0) * jnp.sum(v, axis=0))
    squares = squares + 4 * jnp.sum(u_t + v_t) + 4 * _gram(a, b, c)
    total = squares - 4 * _on_labels(a, b, c, pairs.label) + (order**2 - order)
    if left_out:
        g1, g2 = jnp.divmod(pairs.unused, order)
        hot = pairs.label[g1, g2][:, None] == jnp.arange(order, dtype=pairs.label.dtype)[None]
        gap = jnp.square(a[g1] + b[g2]) @ c.T - (hot.astype(c.dtype) - 1 / order)
        total = total - jnp.vdot(gap, gap)
    return total / (order**2 - left_out)


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


# Optimiser


@checked
def coupled_adam(
    learning_rate: float | Float[Array, ""], weight_decay: float | Float[Array, ""]
) -> optax.GradientTransformation:
    """Adam on the gradient of loss plus `weight_decay/2 ‖w‖²`, as `torch.optim.Adam(weight_decay=…)` has it: the decay
    goes through the moments. Not AdamW. Both numbers may be traced."""
    check_rates(learning_rate, weight_decay)
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_adam(), optax.scale_by_learning_rate(learning_rate)
    )
