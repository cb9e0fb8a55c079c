"""One step of pre-training, its optimisers, its learning-rate schedule, and how a model is spread over devices."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from ._precision import at_least_float32
from .galore import clip_by_previous_norm, galore, galore_labels
from .quantise import quantize_state

OptimiserName = Literal["adam", "adamw", "galore", "adam8bit", "galore8bit", "sgd"]
OPTIMISERS: tuple[str, ...] = get_args(OptimiserName)


class Step(eqx.Module):
    """One update of a model, compiled once: the loss on a batch, its gradient, and the optimiser's update.

        step = Step(next_token_loss, optimiser)
        state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
        model, state, metrics = step(model, state, batch)

    - `loss`: `(model, batch) -> scalar`. The floating-point arrays of the model are trained.
    - `gradient_norm`: whether to measure the norm of the whole gradient. Off, because nothing can be donated before all
      gradients are there if their norm is asked for.
    - `shardings`: of the model's trained arrays and of the state (see `shardings_of`), which the new ones get too;
      `None` leaves them to the compiler.
    """

    loss: Callable[[Any, Any], Float[Array, ""]]
    optimiser: optax.GradientTransformation
    gradient_norm: bool = False
    shardings: tuple[PyTree, PyTree] | None = None

    def __call__(self, model: Any, state: PyTree, batch: PyTree) -> tuple[Any, PyTree, dict[str, Float[Array, ""]]]:
        """The new model and state, and what was measured on the old model: `loss`, and `gradient_norm` if asked for.

        The model and the state given are used up: their buffers are donated.
        """
        return _update((self, batch), model, state)

    def update(self, batch: PyTree, model: Any, state: PyTree) -> tuple[Any, PyTree, dict[str, Float[Array, ""]]]:
        params, static = eqx.partition(model, eqx.is_inexact_array)
        loss, grads = jax.value_and_grad(lambda p: self.loss(eqx.combine(p, static), batch))(params)
        metrics = {"loss": loss}
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes inside, whatever the caller's mode
            if self.gradient_norm:
                metrics["gradient_norm"] = optax.tree.norm(optax.tree.cast(grads, at_least_float32(loss.dtype)))
            updates, state = self.optimiser.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        if self.shardings is not None:
            params, state = jax.lax.with_sharding_constraint((params, state), self.shardings)
        return eqx.combine(params, static), state, metrics


_update = eqx.filter_jit(lambda given, model, state: given[0].update(given[1], model, state), donate="all-except-first")


def warmup_cosine(learning_rate: float, steps: int, warmup: int) -> optax.Schedule:
    """From zero to `learning_rate` in `warmup` steps, then by a cosine to a tenth of it at `steps`, as in the paper.

    **Raises** `ValueError` unless `0 ≤ warmup < steps`.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must be at least 0 and below steps = {steps}, got {warmup}.")
    start = learning_rate if warmup == 0 else 0.0
    return optax.warmup_cosine_decay_schedule(start, learning_rate, warmup, steps, 0.1 * learning_rate)


def make_optimiser(
    name: OptimiserName,
    learning_rate: optax.ScalarOrSchedule,
    *,
    rank: int = 128,
    gap: int = 200,
    scale: float = 0.25,
    weight_decay: float = 0.0,
    clip: float | None = None,
    accumulate: int = 1,
    seed: int = 0,
) -> optax.GradientTransformation:
    """An optimiser by name, for a `Llama` or any model whose layers are in its field `blocks`.

    `adam`, `adamw`, `sgd`; `galore`: on the matrices of attention and hidden layers, with Adam on everything else, as
    in the paper; `adam8bit` and `galore8bit`: with moments in 8 bits. Moments are in float32 at least.

    - `rank`, `gap`, `scale`: of GaLore, by default the paper's gap and scale.
    - `weight_decay`: decoupled, on matrices only; for `adamw`, `galore` and `galore8bit`.
    - `clip`: largest norm of a gradient, by the norm of the step before.
    - `accumulate`: gradients averaged for one update, of low rank where GaLore is; the schedule counts updates.

    **Raises** `ValueError` for an unknown name, and a weight decay for an optimiser that has none.
    """
    if name not in OPTIMISERS:
        raise ValueError(f"name must be one of {', '.join(OPTIMISERS)}, got {name!r}.")
    if weight_decay and name in ("adam", "adam8bit", "sgd"):
        raise ValueError(f"weight_decay is for adamw, galore and galore8bit, got {weight_decay} for {name}.")
    moments = optax.identity() if name == "sgd" else optax.scale_by_adam()
    moments = quantize_state(moments) if name.endswith("8bit") else moments
    decay = [optax.add_decayed_weights(weight_decay, _is_matrix)] if weight_decay else []
    whole = optax.chain(moments, *decay, optax.scale_by_learning_rate(learning_rate))
    if accumulate > 1:
        whole = optax.MultiSteps(whole, accumulate).gradient_transformation()
    whole = _in_float32(whole)
    if name.startswith("galore"):
        projected = galore(learning_rate, rank, gap, scale, moments, weight_decay, accumulate=accumulate, seed=seed)
        whole = optax.partition({"galore": projected, "full": whole}, lambda p: galore_labels(p, in_a_layer))
    return whole if clip is None else optax.chain(clip_by_previous_norm(clip), whole)


def in_a_layer(name: str, leaf: Any) -> bool:
    """Whether that is the name of a matrix of attention or of a hidden layer. Gains of stacked norms have two axes too,
    so it goes by their name."""
    return "blocks" in name and "norm" not in name


def _is_matrix(params: PyTree) -> PyTree:
    return jax.tree.map_with_path(lambda path, x: x.ndim > 1 and "norm" not in jax.tree_util.keystr(path), params)


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """In bfloat16 a second moment would never decay: 0.999 rounds to 1."""
    cast = lambda tree: jax.tree.map(lambda x: x.astype(at_least_float32(x.dtype)), tree)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        return inner.update(cast(updates), state, None if params is None else cast(params))

    return optax.GradientTransformation(lambda params: inner.init(cast(params)), update)


def make_mesh(data: int, model: int) -> Mesh:
    """The first `data × model` devices as a mesh of axes `("data", "model")`.

    **Raises** `ValueError` if there are fewer.
    """
    devices = jax.devices()
    if data * model > len(devices):
        raise ValueError(f"data × model must be at most {len(devices)}, the number of devices, got {data} × {model}.")
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((data, model), ("data", "model"), axis_types=auto, devices=devices[: data * model])


def shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """Where a model's arrays go: each matrix, or stack of matrices in its last two axes, is split along its longer side
    over `model`, if that divides it; everything else is on all devices. `tree` may hold arrays or their shapes.

    GaLore projects the short side, so that its bases stay whole and what it keeps of a gradient is split alike.
    """

    def place(x: Any) -> NamedSharding:
        spec = [None] * x.ndim
        if x.ndim > 1:
            longer = -1 if x.shape[-1] > x.shape[-2] else -2
            if x.shape[longer] % mesh.shape["model"] == 0:
                spec[longer] = "model"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where a batch goes: its first axis is split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shardings_of(tree: PyTree, mesh: Mesh) -> PyTree:
    """Where the arrays of a tree are; those that are on no mesh, as counters are, go on all devices of `mesh`."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: x.sharding if isinstance(x.sharding, NamedSharding) else whole, tree)
