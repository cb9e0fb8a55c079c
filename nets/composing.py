"""The two-layer quadratic network on pairs of group elements, its data, its training and the compaction of dead nodes.

Source: Composing Global Optimizers (Tian, arXiv 2410.01779), sections 3 and 6 and the settings of its experiments.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from .train import AnyKey, _Carry, _check_end, _Loop, train


class QuadraticNetwork(eqx.Module):
    """`o_g(g1, g2) = scale Σ_j c_gj (a_g1j + b_g2j)²`, for two elements g1, g2 of a group of some order.

    **Trained:** `a`, `b`, `c`, each of shape `(order, nodes)`. **Fixed:** `scale`, the paper's 1/2d for constructed
    solutions, its code's 1 for training; the mask `trainable()` keeps it from both updates and decay.

    **Raises** `ValueError` for matrices of different shapes.
    """

    a: Float[Array, "order nodes"]
    b: Float[Array, "order nodes"]
    c: Float[Array, "order nodes"]
    scale: Float[Array, ""]

    def __init__(
        self,
        a: Float[ArrayLike, "order nodes"],
        b: Float[ArrayLike, "order nodes"],
        c: Float[ArrayLike, "order nodes"],
        scale: ArrayLike = 1.0,
    ):
        self.a, self.b, self.c = jnp.asarray(a), jnp.asarray(b), jnp.asarray(c)
        if self.a.ndim != 2 or not self.a.shape == self.b.shape == self.c.shape:
            shapes = ", ".join(str(x.shape) for x in (self.a, self.b, self.c))
            raise ValueError(f"a, b and c must have one shape (order, nodes), got {shapes}.")
        self.scale = jnp.asarray(scale, self.a.dtype)

    @property
    def order(self) -> int:
        return self.a.shape[0]

    @property
    def nodes(self) -> int:
        return self.a.shape[1]

    def __call__(self, g1: Int[ArrayLike, ""], g2: Int[ArrayLike, ""]) -> Float[Array, " order"]:
        """The outputs for one pair."""
        return self.scale * (self.c @ jnp.square(self.a[g1] + self.b[g2]))

    def outputs(self) -> Float[Array, "order order order"]:
        """The outputs for all pairs: axes g1, g2, g."""
        return _outputs(self.a, self.b, self.scale * self.c)

    def trainable(self) -> "QuadraticNetwork":
        """The same module with `True` at the leaves that are trained and `False` elsewhere: a mask for optax."""
        return eqx.tree_at(lambda m: (m.a, m.b, m.c, m.scale), self, (True, True, True, False))


def initial(order: int, nodes: int, *, scale: ArrayLike = 1.0, dtype: Any = None, key: AnyKey) -> QuadraticNetwork:
    """The paper's initial weights: a and b from `U(±1/√order)`, c from `U(±1/√nodes)`. **Raises** `ValueError` for
    sizes below one."""
    for name, size in {"order": order, "nodes": nodes}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    dtype = jnp.result_type(float) if dtype is None else dtype
    a, b, c = jax.random.uniform(key, (3, order, nodes), dtype, -1, 1)
    return QuadraticNetwork(a / order**0.5, b / order**0.5, c / nodes**0.5, scale)


# Data: the table of the group, and which of its pairs are used


class Pairs(NamedTuple):
    """All pairs of elements: `label`, the number of each product (the group's table), and `mask`, the pairs used.

    `unused`: the numbers `g1·order + g2` of the pairs that are not, as `pairs` finds them. With them the loss may
    take its fast form, which needs each row and column of the table to have every element once.
    """

    label: Int[Array, "order order"]
    mask: Bool[Array, "order order"]
    unused: Int[Array, " left_out"] | None = None


def pairs(table: Int[ArrayLike, "order order"], mask: Bool[ArrayLike, "order order"] | None = None) -> Pairs:
    """The pairs of a group's table, by default all of them. **Raises** `ValueError` for other shapes, labels that are
    no elements, or a mask that leaves nothing."""
    label = np.asarray(table)
    order = len(label)
    used = np.ones(label.shape, bool) if mask is None else np.asarray(mask)
    if label.ndim != 2 or label.shape != (order, order) or used.shape != label.shape:
        raise ValueError(f"table and mask must have shape (order, order), got {label.shape} and {used.shape}.")
    if label.min() < 0 or label.max() >= order:
        raise ValueError(f"table must hold numbers from 0 to {order - 1}, got {label.min()} to {label.max()}.")
    if not used.any():
        raise ValueError("mask must leave at least one pair.")
    counts = np.arange(order)
    latin = (np.sort(label, axis=0) == counts[:, None]).all() and (np.sort(label, axis=1) == counts).all()
    unused = jnp.asarray(np.flatnonzero(~used), int) if latin else None
    return Pairs(jnp.asarray(label, int), jnp.asarray(used), unused)


def split(order: int, *, train: float = 0.9, seed: int) -> Bool[np.ndarray, "order order"]:
    """The training pairs, as the paper's code splits them: left out are the first `⌈(1 − train) order²⌉` entries of
    `RandomState(seed).permutation(order²)`. **Raises** `ValueError` unless `train` lies between 0 and 1."""
    if not 0 < train < 1:
        raise ValueError(f"train must lie between 0 and 1, got {train}.")
    left_out = int(np.ceil(round((1 - train) * order**2, 9)))  # 1 − 0.9 is a little more than 0.1
    if left_out == order**2:
        raise ValueError(f"train must leave at least one of {order**2} pairs, got {train}.")
    mask = np.ones(order**2, bool)
    mask[np.random.RandomState(seed).permutation(order**2)[:left_out]] = False
    return mask.reshape(order, order)


# Loss


def masked_loss(model: QuadraticNetwork, pairs: Pairs) -> Float[Array, ""]:
    """The mean over the pairs used of `‖P(o − onehot)‖²`: `P = I − 11ᵀ/order` takes the mean over outputs away."""
    return _mean_square(_outputs(model.a, model.b, _centred(model)), pairs)


def training_loss(model: QuadraticNetwork, pairs: Pairs) -> Float[Array, ""]:
    """`masked_loss` in the form with fewer operations, for its gradient.

    For many pairs and few nodes that is the sum over the whole table in closed form, less the pairs left out. Its
    rounding is that of numbers of the size of one: nothing to the gradient, but no loss of 1e-9 shows in float32.
    """
    # Six products of order·nodes² against three of order³·nodes; the rows of labels take as long as 15 order²·nodes.
    if pairs.unused is None or 2 * model.nodes + 15 * model.order > model.order**2:
        return masked_loss(model, pairs)
    return _closed_loss(model, pairs)


def accuracy(model: QuadraticNetwork, pairs: Pairs) -> Float[Array, ""]:
    """The part of the pairs used of which the largest output is that of the label."""
    return _accuracy(model.outputs(), pairs)


def _outputs(
    a: Float[Array, "order nodes"], b: Float[Array, "order nodes"], c: Float[Array, "order nodes"]
) -> Float[Array, "order order order"]:
    order, nodes = a.shape
    hidden = jnp.square(a[:, None] + b[None])  # rows of embeddings: no product with one-hot vectors
    return (hidden.reshape(order**2, nodes) @ c.T).reshape(order, order, order)


def _centred(model: QuadraticNetwork) -> Float[Array, "order nodes"]:
    """P c: the outputs of these weights have mean zero."""
    return model.scale * (model.c - jnp.mean(model.c, axis=0, keepdims=True))


def _mean_square(centred: Float[Array, "order order order"], pairs: Pairs) -> Float[Array, ""]:
    order = centred.shape[0]
    hot = pairs.label[..., None] == jnp.arange(order, dtype=pairs.label.dtype)[None, None]
    gap = jnp.where(pairs.mask[..., None], centred - (hot.astype(centred.dtype) - 1 / order), 0)
    return jnp.vdot(gap, gap) / jnp.sum(pairs.mask, dtype=gap.dtype)


def _accuracy(outputs: Float[Array, "order order order"], pairs: Pairs) -> Float[Array, ""]:
    right = (jnp.argmax(outputs, axis=2).astype(pairs.label.dtype) == pairs.label) & pairs.mask
    return jnp.sum(right, dtype=outputs.dtype) / jnp.sum(pairs.mask, dtype=outputs.dtype)


def _closed_loss(model: QuadraticNetwork, pairs: Pairs) -> Float[Array, ""]:
    """The loss from sums over the whole table: with `u = a² cᵀ`, `v = b² cᵀ` (c centred) and `t = Σ_j a_j b_j c_j`,
    the output is `u_g1 + v_g2 + 2 t_g1g2`, so that each sum over pairs of its square but that of t is one of matrices
    of order × order, and that of t is `Σ (aᵀa) ∘ (bᵀb) ∘ (cᵀc)`. Of what the labels take, `Σ c_label a²` is zero, for
    c is centred and each row of the table a permutation."""
    assert pairs.unused is not None
    order, left_out = model.order, pairs.unused.shape[0]
    a, b, c = model.a, model.b, _centred(model)
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


# Training


def coupled_adam(
    learning_rate: float | Float[Array, ""], weight_decay: float | Float[Array, ""]
) -> optax.GradientTransformation:
    """Adam on the gradient of loss plus `weight_decay/2 ‖w‖²`, as `torch.optim.Adam(weight_decay=…)` has it: the decay
    goes through the moments. Not AdamW. Both numbers may be traced."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_adam(), optax.scale_by_learning_rate(learning_rate)
    )


class SeedRuns(NamedTuple):
    """What `train_seeds` returns; everything but `steps` has a leading axis `seeds`.

    The losses are `masked_loss` at `steps`, on the pairs trained on and on those left out. `diverged_at`: as in `Run`.
    """

    model: QuadraticNetwork
    steps: Int[Array, " records"]
    train_loss: Float[Array, "seeds records"]
    test_loss: Float[Array, "seeds records"]
    train_accuracy: Float[Array, "seeds records"]
    test_accuracy: Float[Array, "seeds records"]
    observed: PyTree
    diverged_at: Int[Array, " seeds"]


def train_seeds(
    table: Int[ArrayLike, "order order"],
    *,
    nodes: int = 512,
    weight_decay: ArrayLike,
    learning_rate: ArrayLike = 0.01,
    steps: int = 10_000,
    train: float = 0.9,
    seeds: Sequence[int],
    every: int | None = None,
    observe: Callable[[QuadraticNetwork], PyTree] = lambda model: None,
    compact: bool = False,
    threshold: float = 0.02,
    dtype: Any = jnp.float32,
) -> SeedRuns:
    """Trains one network a seed on the table of a group, as the paper does: full batches, Adam with coupled L2.

    Seed s splits the pairs by `split(order, train=train, seed=s)` and draws `initial` weights by `jax.random.key(s)`.
    One compiled program, seed after seed: 0.6 of the time that `vmap` takes on a CPU.

    - `every`: the steps between records, by default `steps`: the start and the end.
    - `observe`: maps the model to any PyTree of arrays, recorded as well.
    - `compact`: every 250 steps from 1000 on, keep no more nodes than one of the seeds has alive, rounded up to a
      multiple of 32, moments of Adam included. Dead is a node of which the product of the root mean squares of its rows
      of a, b and c, times `scale`, lies below `threshold³`; the largest are kept. Most die within 1000 steps. With it
      `observe` must return arrays whose shape does not depend on the number of nodes.

    **Raises** `ValueError` for bad arguments.
    """
    if len(seeds) < 1:
        raise ValueError("seeds must have at least one entry, got none.")
    if threshold < 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}.")
    every = max(steps, 1) if every is None else every
    if steps < 0 or every < 1:
        raise ValueError(f"steps must be at least 0 and every at least 1, got steps={steps}, every={every}.")
    order = len(np.asarray(table))
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    models = stack([initial(order, nodes, dtype=dtype, key=jax.random.key(s)) for s in seeds])
    data = stack([pairs(table, split(order, train=train, seed=s)) for s in seeds])
    rates = (jnp.asarray(learning_rate, dtype), jnp.asarray(weight_decay, dtype))
    if compact:
        return _compacting(models, data, rates, observe, steps, every, threshold)
    run = _run_lanes(models, data, rates, observe, steps, every)
    return SeedRuns(run.model, run.steps[0], *run.observed, diverged_at=run.diverged_at)


def _watch(observe: Callable, data: Pairs) -> Callable[[QuadraticNetwork], PyTree]:
    """What is recorded: losses and accuracies from the outputs formed once, and what the caller asks for."""
    rest = data._replace(mask=~data.mask)

    def watch(model):
        outputs = _outputs(model.a, model.b, _centred(model))
        return (
            *(_mean_square(outputs, p) for p in (data, rest)),
            *(_accuracy(outputs, p) for p in (data, rest)),
            observe(model),
        )

    return watch


@eqx.filter_jit
def _run_lanes(models, data, rates, observe, steps, every):
    def lane(at):
        model, data = at
        kept = model.trainable()
        watch = _watch(observe, data)
        return train(
            model, training_loss, data, coupled_adam(*rates), steps, trainable=kept, observe=watch, every=every
        )

    return jax.lax.map(lane, (models, data))


# Compaction

_FIRST, _BETWEEN, _MULTIPLE = 1000, 250, 32


def _compacting(models, data, rates, observe, steps, every, threshold) -> SeedRuns:
    """The same run in pieces, between which nodes are dropped."""
    params, scale = eqx.partition(models, models.trainable())
    count = models.a.shape[0]
    state = jax.vmap(coupled_adam(*rates).init)(params)
    carry = _Carry(params, state, jnp.zeros(count, int), jnp.full(count, -1))
    records = range(0, steps + 1, every)
    drops = range(_FIRST, steps + 1, _BETWEEN)
    seen, now = [], 0
    for stop in sorted({*records, *drops, steps}):
        if stop > now:
            carry = _advance(carry, scale, data, rates, stop - now)
        now = stop
        if now in records:
            seen.append(_record(carry, scale, data, observe))
        if now in drops:
            carry = _compacted(carry, scale, threshold)
    carry = jax.vmap(_check_end)(carry)
    observed = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *seen)
    model = eqx.combine(carry.params, scale)
    return SeedRuns(model, jnp.asarray(records), *observed, diverged_at=carry.diverged_at)


def _loop(static, data, rates, observe) -> _Loop:
    return _Loop(static, training_loss, data, coupled_adam(*rates), None, observe, 1)


@eqx.filter_jit
def _advance(carry, static, data, rates, number):
    def lane(at):
        carry, static, data = at
        loop = _loop(static, data, rates, lambda model: None)
        return jax.lax.fori_loop(0, number, lambda _, carry: loop.update(carry, None), carry)

    return jax.lax.map(lane, (carry, static, data))


@eqx.filter_jit
def _record(carry, static, data, observe):
    def lane(at):
        carry, static, data = at
        return _loop(static, data, (0.0, 0.0), _watch(observe, data)).record(carry)

    return jax.lax.map(lane, (carry, static, data))


def _compacted(carry: _Carry, static: QuadraticNetwork, threshold: float) -> _Carry:
    """The nodes alive, of the seed that has most; of the others as many, the largest, in the order that they had."""
    params = carry.params
    rows = [np.sqrt(np.mean(np.square(x), axis=1)) for x in map(np.asarray, (params.a, params.b, params.c))]
    size = np.asarray(static.scale)[:, None] * np.prod(rows, axis=0)
    alive = int((size > threshold**3).sum(axis=1).max())
    nodes = max(-(-alive // _MULTIPLE), 1) * _MULTIPLE
    if nodes >= size.shape[1]:
        return carry
    keep = np.sort(np.argsort(-size, axis=1, kind="stable")[:, :nodes], axis=1)[:, None]
    pick = lambda x: jnp.asarray(np.take_along_axis(np.asarray(x), keep, axis=2)) if x.ndim == 3 else x
    return jax.tree.map(pick, carry)  # on the host: nothing to compile for each new number of nodes
