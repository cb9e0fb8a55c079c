"""Training on some pairs of a group until the others are learned too: samples, what theory speaks of, many runs.

Source: Li2 (Tian, "Provable Scaling Laws of Feature Emergence from Learning Dynamics of Grokking", arXiv 2509.21519),
sections 3 to 6, and its authors' code for what the text leaves open. The network is `pairs.TwoLayer`; in the paper's
letters `W = [a; b]`, of shape (2·order, nodes), and `V = scale·cᵀ`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from .._checked import checked
from .._checks import check_shape, choice, concrete, describe, indices, integer, real
from ._accuracy import right
from ._arguments import (
    check_fields,
    check_rates,
    check_sizes,
    check_used,
    chosen,
    elements_of,
    schedule,
    seed_numbers,
    training_dtype,
)
from ._pair_outputs import centred
from .pairs import TwoLayer as TwoLayer
from .pairs import coupled_adam as coupled_adam
from .pairs import initial, split
from .train import train

# Data


class Sample(NamedTuple):
    """Pairs of elements and the numbers of their products. Where `used` is false there is padding, so that samples of
    different sizes stack, and all that is computed from them leaves it out. `elements`: the group's, by whose number a
    model of another order is told."""

    g1: Int[Array, " n"]
    g2: Int[Array, " n"]
    label: Int[Array, " n"]
    used: Bool[Array, " n"]
    elements: Int[Array, " order"]


@checked
def sample(
    table: Int[ArrayLike, "order order"],
    mask: Bool[ArrayLike, "order order"],
    capacity: int | None = None,
) -> Sample:
    """The pairs of a group's table where the mask is true, row by row, padded to `capacity`, by default not at all.
    **Raises** `ValueError` for a table or mask of another shape, labels that are no elements, a mask of other numbers
    than 0 and 1 or one that leaves nothing, an order below 3, or a capacity that is too small."""
    label = elements_of(table, 3)  # the theory needs such a group
    at = np.flatnonzero(chosen(mask, len(label)))
    capacity = len(at) if capacity is None else integer("capacity", capacity, least=len(at))
    padded = np.pad(at, (0, capacity - len(at)))
    g1, g2 = np.divmod(padded, len(label))
    columns = (g1, g2, label.reshape(-1)[padded])
    g1, g2, label, elements = (jnp.asarray(x, int) for x in (*columns, np.arange(len(label))))
    return Sample(g1, g2, label, jnp.asarray(np.arange(capacity) < len(at)), elements)


@checked
def samples(
    table: Int[ArrayLike, "order order"], fraction: float, seed: int, capacity: int | None = None
) -> tuple[Sample, Sample]:
    """The pairs trained on, about `fraction` of all, and those left out, by `pairs.split`, each padded to `capacity`.
    **Raises** `ValueError` as `sample` does, and for a fraction that leaves one side empty."""
    mask = _mask(len(elements_of(table, 3)), fraction, seed)
    return sample(table, mask, capacity), sample(table, ~mask, capacity)


def _mask(order: int, fraction: float, seed: int) -> Bool[np.ndarray, "order order"]:
    real("fraction", fraction, (), above=0, below=1)
    used = round(fraction * order**2, 9)  # 9 digits as in split
    if not 1 <= used < order**2:
        raise ValueError(f"fraction must leave one of {order**2} pairs at least on each side, got {fraction}.")
    return split(order, train=fraction, seed=seed)


def _check_sample(model: TwoLayer, sample: Sample) -> None:
    check_shape("sample.elements", sample.elements, (model.order,))
    check_used("sample.used", sample.used)
    for name in ("g1", "g2", "label"):
        indices(f"sample.{name}", getattr(sample, name), model.order)


# What is trained


@checked
def features(model: TwoLayer, sample: Sample) -> Float[Array, "n nodes"]:
    """F = σ(X W): what each hidden node makes of each pair, zero at the padding."""
    _check_sample(model, sample)
    return jnp.where(sample.used[:, None], _hidden(model, sample), 0)


@checked
def loss(model: TwoLayer, sample: Sample) -> Float[Array, ""]:
    """The mean over the pairs of `‖P(o − onehot)‖²`, where `P = I − 11ᵀ/order` takes the mean over outputs away: what
    `pairs.masked_loss` is, from no more rows than the sample has. The authors' code trains on it."""
    _check_sample(model, sample)
    gap = jnp.where(sample.used[:, None], _outputs(model, sample) - (_hot(model, sample) - 1 / model.order), 0)
    return jnp.vdot(gap, gap) / jnp.sum(sample.used, dtype=gap.dtype)


@checked
def accuracy(model: TwoLayer, sample: Sample) -> Float[Array, ""]:
    """The part of the pairs of which the largest output is that of the label; NaN where an output is."""
    _check_sample(model, sample)
    return right(_outputs(model, sample), sample.label, sample.used)


def _hidden(model: TwoLayer, sample: Sample) -> Float[Array, "n nodes"]:
    # Gathered rows, formed anew for the gradient: 0.8 to 0.95 of the time of a step, for less goes through memory. With
    # a one-hot product in place of the scatter of the gradient it took 1.2 times as long, in place of both 1.5 times.
    rows = jax.checkpoint(lambda a, b: model.activation(a[sample.g1] + b[sample.g2]))
    return rows(model.a, model.b)


def _outputs(model: TwoLayer, sample: Sample) -> Float[Array, "n order"]:
    """With mean zero, which changes neither loss nor accuracy."""
    return _hidden(model, sample) @ centred(model).T


def _hot(model: TwoLayer, sample: Sample) -> Float[Array, "n order"]:
    """Y, zero at the padding."""
    hot = sample.label[:, None] == jnp.arange(model.order, dtype=sample.label.dtype)[None]
    return (hot & sample.used[:, None]).astype(model.a.dtype)


# What theory speaks of


@checked
def backpropagated(model: TwoLayer, sample: Sample) -> Float[Array, "n nodes"]:
    """`G_F = P1 (Y − F V) Vᵀ`, where `P1` takes the mean over the pairs away: what the gradient of
    `½ ‖P1 (Y − F V)‖²` brings to the features, with its sign turned."""
    _check_sample(model, sample)
    v = model.scale * model.c.T
    return _over_pairs(_hot(model, sample) - features(model, sample) @ v, sample) @ v.T


@checked
def label_correlation(model: TwoLayer, sample: Sample) -> Float[Array, "n nodes"]:
    """`Ỹ Ỹᵀ F̃`, each with its mean over the pairs taken away: what theory has `backpropagated` be a multiple of."""
    _check_sample(model, sample)
    y = _over_pairs(_hot(model, sample), sample)
    return y @ (y.T @ features(model, sample))  # y has mean zero, so F needs no centring


@checked
def alignment(model: TwoLayer, sample: Sample) -> Float[Array, ""]:
    """The cosine of `backpropagated` and `label_correlation` as vectors of n·nodes numbers; 0 where one vanishes."""
    return _cosine(backpropagated(model, sample), label_correlation(model, sample))


@checked
def energies(model: TwoLayer, sample: Sample) -> Float[Array, " nodes"]:
    """`E(w_j) = ½ ‖Ỹᵀ σ(X ŵ_j)‖²` of each hidden node, with its weights `w_j = [a_j; b_j]` at norm 1."""
    _check_sample(model, sample)
    model = _scaled(model)
    norm = jnp.sqrt(_squares(model))[None]
    unit = eqx.tree_at(lambda m: (m.a, m.b), model, (_over(model.a, norm), _over(model.b, norm)))
    y = _over_pairs(_hot(model, sample), sample)
    return jnp.sum(jnp.square(y.T @ features(unit, sample)), axis=0) / 2


@checked
def contents(model: TwoLayer, projectors: Float[ArrayLike, "classes order order"]) -> Float[Array, "nodes classes"]:
    """The part of `‖w_j‖²` of each hidden node, a_j and b_j together, that lies in each of the spaces given by their
    orthogonal projectors; 0 for a node without weights. **Raises** `ValueError` for projectors of another shape, and,
    where known, for matrices that are no orthogonal projectors."""
    check_shape("projectors", projectors, ("classes", model.order, model.order))
    _check_projectors(projectors)
    return _contents(model, jnp.asarray(projectors, model.a.dtype))


def _check_projectors(projectors: Float[ArrayLike, "classes order order"]) -> None:
    if concrete(projectors):
        p = np.asarray(projectors, float)
        worst = max(np.max(np.abs(p @ p - p), initial=0), np.max(np.abs(p - p.transpose(0, 2, 1)), initial=0))
        if not worst < 1e-4:  # rounding in float32 leaves some 1e-6
            raise ValueError(f"projectors must be symmetric and their own squares, got some that are {worst:.2g} off.")


def _contents(model: TwoLayer, projectors: Float[Array, "classes order order"]) -> Float[Array, "nodes classes"]:
    model = _scaled(model)
    part_a, part_b = (jnp.sum(jnp.square(projectors @ half[None]), axis=1) for half in (model.a, model.b))
    return _over(part_a + part_b, _squares(model)[None]).T


class Stage(NamedTuple):
    """Where training stands: `|G_F|`, `alignment`, `energies` and `contents`."""

    gradient_norm: Float[Array, ""]
    alignment: Float[Array, ""]
    energy: Float[Array, " nodes"]
    content: Float[Array, "nodes classes"]


@checked
def stages(projectors: Float[ArrayLike, "classes order order"]) -> Callable[[TwoLayer, Sample], Stage]:
    """What records a `Stage`, for `train_runs(observe=…)`. Two of the same shape share one compilation.
    **Raises** `ValueError` for matrices that are no orthogonal projectors."""
    _check_projectors(projectors)
    return jax.tree_util.Partial(_stage, jnp.asarray(projectors))


def _stage(projectors: Float[Array, "classes order order"], model: TwoLayer, sample: Sample) -> Stage:
    gradient = backpropagated(model, sample)
    cosine = _cosine(gradient, label_correlation(model, sample))
    unit, largest = _by_largest(gradient)
    return Stage(largest * jnp.linalg.norm(unit), cosine, energies(model, sample), contents(model, projectors))


def _over_pairs(x: Float[Array, "n columns"], sample: Sample) -> Float[Array, "n columns"]:
    """P1 x, for x that is zero at the padding: the mean over the pairs taken away, and still zero there."""
    mean = jnp.sum(x, axis=0, keepdims=True) / jnp.sum(sample.used, dtype=x.dtype)
    return jnp.where(sample.used[:, None], x - mean, 0)


def _scaled(model: TwoLayer) -> TwoLayer:
    """With the weights of each hidden node relative to their largest, so that no square of a small node vanishes."""
    largest = jnp.max(jnp.maximum(jnp.abs(model.a), jnp.abs(model.b)), axis=0, keepdims=True)
    unit = jax.lax.stop_gradient(jnp.where(largest == 0, 1, largest))
    return eqx.tree_at(lambda m: (m.a, m.b), model, (model.a / unit, model.b / unit))


def _by_largest(x: Float[Array, "n nodes"]) -> tuple[Float[Array, "n nodes"], Float[Array, ""]]:
    """x relative to its largest entry, and that entry; 1 for x of zeros."""
    largest = jnp.max(jnp.abs(x), initial=0)
    largest = jax.lax.stop_gradient(jnp.where(largest == 0, 1, largest))
    return x / largest, largest


def _squares(model: TwoLayer) -> Float[Array, " nodes"]:
    return jnp.sum(jnp.square(model.a) + jnp.square(model.b), axis=0)


def _over(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """x/y, and 0 where y is. NaN stays NaN."""
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


def _cosine(x: Float[Array, "n nodes"], y: Float[Array, "n nodes"]) -> Float[Array, ""]:
    (x, _), (y, _) = _by_largest(x), _by_largest(y)
    return _over(jnp.vdot(x, y), jnp.linalg.norm(x) * jnp.linalg.norm(y))


# Optimisers

Rate = float | Float[Array, ""]


@checked
def coupled_sgd(learning_rate: Rate, weight_decay: Rate, *, momentum: float = 0.9) -> optax.GradientTransformation:
    """Gradient descent on loss plus `weight_decay/2 ‖w‖²`, as `torch.optim.SGD(momentum=…, weight_decay=…)` has it,
    with the momentum of the authors' code. Both rates may be traced."""
    check_rates(learning_rate, weight_decay)
    real("momentum", momentum, (), least=0, below=1)
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.trace(momentum), optax.scale_by_learning_rate(learning_rate)
    )


@checked
def muon(learning_rate: Rate, weight_decay: Rate, *, beta: float = 0.99) -> optax.GradientTransformation:
    """Muon on the one matrix `W = [a; b]`, and `coupled_adam` on c, for the parameters of a `TwoLayer`.

    a and b apart would be another optimiser: a matrix is made orthogonal as a whole. `optax.contrib.muon` less its
    factor for the shape: as in the authors' code there is none, nor Nesterov's step, and the decay of W is decoupled.
    Their momentum is 0.99: the 0.9 beside it is of Nesterov's step. Both rates may be traced.
    """
    check_rates(learning_rate, weight_decay)
    real("beta", beta, (), least=0, below=1)
    of_w = optax.chain(
        optax.contrib.scale_by_muon(
            beta=beta, nesterov=False, weight_dimension_numbers=optax.contrib.MuonDimensionNumbers()
        ),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    of_c = coupled_adam(learning_rate, weight_decay)
    joined = lambda model: jnp.concatenate([model.a, model.b])

    def init(params):
        check_fields(params, ("a", "b", "c"), "a TwoLayer")
        return of_w.init(joined(params)), of_c.init(params.c)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params must be given: muon decays them.")
        w, state_w = of_w.update(joined(updates), state[0], joined(params))
        c, state_c = of_c.update(updates.c, state[1], params.c)
        a, b = jnp.split(jnp.asarray(w), 2)
        return eqx.tree_at(lambda m: (m.a, m.b, m.c), updates, (a, b, c)), (state_w, state_c)

    return optax.GradientTransformation(init, update)


Optimiser = Callable[[Rate, Rate], optax.GradientTransformation]
OPTIMISERS: dict[str, Optimiser] = {"adam": coupled_adam, "sgd": coupled_sgd, "muon": muon}


# Training


class Runs(NamedTuple):
    """What `train_runs` returns; everything but `steps` has leading axes (fractions, learning_rates, weight_decays,
    seeds), what is recorded has `records` after them.

    The losses are `loss` at `steps`, on the pairs trained on and on those left out. `diverged_at`: as in `Run`.
    """

    model: TwoLayer
    steps: Int[Array, " records"]
    train_loss: Float[Array, "fractions learning_rates weight_decays seeds records"]
    test_loss: Float[Array, "fractions learning_rates weight_decays seeds records"]
    train_accuracy: Float[Array, "fractions learning_rates weight_decays seeds records"]
    test_accuracy: Float[Array, "fractions learning_rates weight_decays seeds records"]
    observed: PyTree
    diverged_at: Int[Array, "fractions learning_rates weight_decays seeds"]


@checked
def train_runs(
    table: Int[ArrayLike, "order order"],
    *,
    fractions: Sequence[float],
    seeds: Sequence[int],
    learning_rates: Float[ArrayLike, " learning_rates"] | Sequence[float],
    weight_decays: Float[ArrayLike, " weight_decays"] | Sequence[float],
    nodes: int,
    steps: int,
    every: int | None = None,
    activation: Callable[[Array], Array] = jnp.square,
    output_scale: Real[ArrayLike, ""] = 1.0,
    optimiser: str | Optimiser = "adam",
    observe: Callable[[TwoLayer, Sample], PyTree] | None = None,
    batch_size: int | None = None,
    dtype: Any = jnp.float32,
) -> Runs:
    """Trains one network for each fraction, learning rate, weight decay and seed, as the paper does: full batches.

    Seed s splits the pairs by `samples(table, fraction, s)` and draws weights by `initial(key=jax.random.key(s))` with
    a fan-in of 2·order, as one linear layer on both elements has it. The mean squared error of `loss` with weight
    decay λ is the theory's ridge problem at `η = nλ/2`. In flow time, step m stands at `t = learning rate × m`.

    One compiled program; other rates and seeds compile nothing. All samples are padded to the largest: fractions far
    apart are cheaper in calls of their own.

    - `every`: the steps between records, by default `steps`: the start and the end. The pairs left out are looked at
      then and only then.
    - `optimiser`: a name in `OPTIMISERS`, or `(learning_rate, weight_decay) -> optax.GradientTransformation`.
    - `observe`: maps the model and its sample to any PyTree of arrays, recorded as well; see `stages`.
    - `batch_size`: how many runs go side by side. By default one on a CPU, where that took 0.8 of the time of all 12
      from order 23 and 512 nodes on (at order 7 and 32 nodes 1.4 times as long), and all elsewhere, not measured.

    **Raises** `ValueError` for bad arguments, a `dtype` of float16 among them.
    """
    order, (steps, every), dtype = len(elements_of(table, 3)), schedule(steps, every), training_dtype(dtype)
    check_sizes(nodes=nodes)
    seeds = seed_numbers(seeds)
    real("fractions", fractions, ("fractions",), above=0, below=1)
    real("learning_rates", learning_rates, ("learning_rates",))
    real("weight_decays", weight_decays, ("weight_decays",), least=0)
    rates, decays = (jnp.asarray(x, dtype) for x in (learning_rates, weight_decays))
    axes = {"fractions": fractions, "learning_rates": rates, "weight_decays": decays, "seeds": seeds}
    for name, axis in axes.items():
        if len(axis) < 1:
            raise ValueError(f"{name} must be a sequence of at least one entry, got {describe(axis)}.")
    if isinstance(optimiser, str):
        choice("optimiser", optimiser, tuple(OPTIMISERS))
    if batch_size is not None:
        check_sizes(batch_size=batch_size)

    masks = [_mask(order, fraction, seed) for fraction in fractions for seed in seeds]
    most = [max(int(side.sum()) for side in sides) for sides in (masks, [~mask for mask in masks])]
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    data = stack([(sample(table, mask, most[0]), sample(table, ~mask, most[1])) for mask in masks])
    options = {"activation": activation, "fan_in": 2 * order, "output_scale": output_scale, "dtype": dtype}
    models = stack([initial(order, nodes, **options, key=jax.random.key(s)) for s in seeds])
    shape = tuple(len(axis) for axis in axes.values())
    fraction, rate, decay, seed = np.indices(shape).reshape(4, -1)
    lanes = (jnp.asarray(fraction * len(seeds) + seed), jnp.asarray(seed), rates[rate], decays[decay])
    if batch_size is None:
        batch_size = 1 if jax.default_backend() == "cpu" else len(seed)
    make = OPTIMISERS[optimiser] if isinstance(optimiser, str) else optimiser
    run = _run_lanes(models, data, lanes, make, observe, steps, every, batch_size)
    at = run.steps[0]
    run = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), run._replace(steps=None))
    return Runs(run.model, at, *run.observed, diverged_at=run.diverged_at)


@eqx.filter_jit
def _run_lanes(models, data, lanes, make, observe, steps, every, batch_size):
    def lane(at):
        which, seed, rate, decay = at
        pick = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
        (trained, rest), model = pick(data, which), pick(models, seed)

        def watch(model):
            scores = (f(model, s) for f in (loss, accuracy) for s in (trained, rest))
            return *scores, None if observe is None else observe(model, trained)

        kept = model.trainable()
        return train(model, loss, trained, make(rate, decay), steps, trainable=kept, observe=watch, every=every)

    return jax.lax.map(lane, lanes, batch_size=None if batch_size == 1 else batch_size)
