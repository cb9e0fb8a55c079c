"""One step of pre-training, its optimisers, its learning-rate schedule, and how a model is spread over devices."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Float, PyTree

from .._checked import checked
from .._checks import choice, describe, integer, real
from ._arguments import check_sizes, one_number
from ._precision import at_least_float32
from .engine import State, measured_step
from .galore import clip_by_previous_norm, galore, galore_labels
from .quantise import quantize_state

OptimiserName = Literal["adam", "adamw", "galore", "adam8bit", "galore8bit", "sgd"]
OPTIMISERS: tuple[str, ...] = get_args(OptimiserName)


@checked
class Step(eqx.Module):
    """One update of a model, compiled once: the loss on a batch, its gradient, and the optimiser's update.

        step = Step(next_token_loss, optimiser)
        state = init(model, optimiser)
        state, metrics = step(state, batch)

    It is `engine.measured_step`, compiled, with the state's buffers donated.

    - `loss`: `(model, batch) -> scalar`. The floating-point arrays of the model are trained, complex ones too.
    - `optimiser`: from optax or like it: line searches and others that need the loss itself get it.
    - `gradient_norm`: whether to measure the norm of the whole gradient. Off, because nothing can be donated before all
      gradients are there if their norm is asked for.
    - `shardings`: of the state's `params` and of its `optimiser_state` (see `shardings_of`), which the new ones get
      too; `None` leaves them to the compiler.

    **Raises** `ValueError` for `shardings` that are no such pair, for a state that a step has used up, and for one of
    another optimiser or model.
    """

    loss: Callable[[Any, Any], Float[Array, ""]]
    optimiser: optax.GradientTransformation
    gradient_norm: bool = False
    shardings: tuple[PyTree, PyTree] | None = None

    def __check_init__(self):
        placed = isinstance(self.shardings, tuple | list) and len(self.shardings) == 2
        kinds = (Sharding, PartitionSpec)
        if self.shardings is not None and not (
            placed and all(isinstance(x, kinds) for x in jax.tree.leaves(self.shardings))
        ):
            raise ValueError(
                f"shardings must be a pair of trees of shardings, or None, got {describe(self.shardings)}."
            )

    def __call__(self, state: State, batch: PyTree) -> tuple[State, dict[str, Float[Array, ""]]]:
        """The new state, and what was measured on the model before: `loss`, and `gradient_norm` if asked for.

        The state given is used up: its buffers are donated.
        """
        return _update((self, batch), _apart(state))

    def update(self, state: State, batch: PyTree) -> tuple[State, dict[str, Float[Array, ""]]]:
        """The same, neither compiled nor donating."""
        state, measured = measured_step(state, self.loss, batch, self.optimiser)
        metrics = {"loss": measured.loss}
        if self.gradient_norm:
            metrics["gradient_norm"] = _norm(measured.gradient)
        if self.shardings is not None:
            placed = jax.lax.with_sharding_constraint((state.params, state.optimiser_state), self.shardings)
            state = state._replace(params=placed[0], optimiser_state=placed[1])
        return state, metrics


def _apart(tree: PyTree) -> PyTree:
    """The same arrays, a second one of a kind copied: none can be donated twice, and fresh states may share some."""
    seen: set[int] = set()

    def once(x: Any) -> Any:
        if isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted():
            raise ValueError("state must be what the last step returned, got one that a step has used up.")
        if isinstance(x, jax.Array) and id(x) in seen:
            return jnp.array(x, copy=True)
        seen.add(id(x))
        return x

    return jax.tree.map(once, tree)


def _norm(grads: PyTree) -> Float[Array, ""]:
    """In float32 at least, or squares of float16 would overflow."""
    with jax.numpy_dtype_promotion("standard"):
        return optax.tree.norm(jax.tree.map(lambda g: g.astype(at_least_float32(g.dtype)), grads))


_update = eqx.filter_jit(lambda given, state: given[0].update(state, given[1]), donate="all-except-first")


@checked
def warmup_cosine(learning_rate: float, steps: int, warmup: int) -> optax.Schedule:
    """From zero to `learning_rate` in `warmup` steps, then by a cosine to a tenth of it at `steps`, as in the paper.

    **Raises** `ValueError` unless `0 ≤ warmup < steps`.
    """
    check_sizes(steps=steps)
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup must be at least 0 and below steps = {steps}, got {warmup}.")
    real("learning_rate", learning_rate, (), least=0)
    start = learning_rate if warmup == 0 else 0.0
    return optax.warmup_cosine_decay_schedule(start, learning_rate, warmup, steps, 0.1 * learning_rate)


@checked
def make_optimiser(
    name: OptimiserName,
    learning_rate: optax.ScalarOrSchedule,
    *,
    rank: int | None = None,
    gap: int | None = None,
    scale: float | None = None,
    weight_decay: float = 0.0,
    clip: float | None = None,
    accumulate: int = 1,
    seed: int = 0,
) -> optax.GradientTransformation:
    """An optimiser by name, for a `Llama` or any model whose layers are in its field `blocks`.

    `adam`, `adamw`, `sgd`; `galore`: on the matrices of attention and hidden layers, with Adam on everything else, as
    in the paper; `adam8bit` and `galore8bit`: with moments in 8 bits. Moments are in float32 at least.

    - `rank`, `gap`, `scale`: of GaLore alone, by default 128 and the paper's 200 and 0.25.
    - `weight_decay`: decoupled, on matrices only; for `adamw`, `galore` and `galore8bit`.
    - `clip`: largest norm of a gradient, by the norm of the step before.
    - `accumulate`: gradients averaged for one update, of low rank where GaLore is; the schedule counts updates.
    - `seed`: of GaLore's bases; the others draw nothing.

    **Raises** `ValueError` for an unknown name, and for a weight decay, rank, gap or scale of an optimiser that has
    none.
    """
    choice("name", name, OPTIMISERS)
    of_galore = {"rank": rank, "gap": gap, "scale": scale}
    for option, value in of_galore.items():
        if value is not None and not name.startswith("galore"):
            raise ValueError(f"{option} would be ignored: it is for galore and galore8bit, got {value} for {name}.")
    rank, gap, scale = 128 if rank is None else rank, 200 if gap is None else gap, 0.25 if scale is None else scale
    check_sizes(rank=rank, gap=gap, accumulate=accumulate)
    real("scale", scale, (), above=0), real("weight_decay", weight_decay, (), least=0)
    integer("seed", seed, least=0)
    if not callable(learning_rate):
        real("learning_rate", learning_rate, ())
    if clip is not None:
        real("clip", clip, (), above=0)
    if weight_decay and name in ("adam", "adam8bit", "sgd"):
        raise ValueError(f"weight_decay is for adamw, galore and galore8bit, got {weight_decay} for {name}.")
    learning_rate = one_number(learning_rate)
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


@checked
def in_a_layer(name: str, leaf: Any) -> bool:
    """Whether that is the name of a matrix of attention or of a hidden layer. Gains of stacked norms have two axes too,
    so it goes by their name."""
    return "blocks" in name and "norm" not in name


def _is_matrix(params: PyTree) -> PyTree:
    return jax.tree.map_with_path(lambda path, x: x.ndim > 1 and "norm" not in jax.tree_util.keystr(path), params)


def _in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """In bfloat16 a second moment would never decay: 0.999 rounds to 1."""
    wide = lambda x: x.astype(at_least_float32(x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x
    cast = lambda tree: jax.tree.map(wide, tree)

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        return inner.update(cast(updates), state, None if params is None else cast(params))

    return optax.GradientTransformation(lambda params: inner.init(cast(params)), update)


@checked
def make_mesh(data: int, model: int) -> Mesh:
    """The first `data × model` devices as a mesh of axes `("data", "model")`.

    **Raises** `ValueError` if there are fewer, and for sizes below one.
    """
    check_sizes(data=data, model=model)
    devices = jax.devices()
    if data * model > len(devices):
        raise ValueError(f"data × model must be at most {len(devices)}, the number of devices, got {data} × {model}.")
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((data, model), ("data", "model"), axis_types=auto, devices=devices[: data * model])


@checked
def shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """Where a model's arrays go: each matrix, or stack of matrices in its last two axes, is split along its longer side
    over `model`, if that divides it; everything else is on all devices. `tree` may hold arrays or their shapes.

    GaLore projects the short side, so that its bases stay whole and what it keeps of a gradient is split alike.

    **Raises** `ValueError` for leaves that are neither arrays nor their shapes.
    """
    _check_mesh(mesh, "model")

    def place(x: Any) -> NamedSharding:
        if not hasattr(x, "shape"):
            raise ValueError(f"tree must hold arrays or their shapes, got {describe(x)}.")
        spec: list[str | None] = [None] * len(x.shape)
        if len(x.shape) > 1:
            longer = -1 if x.shape[-1] > x.shape[-2] else -2
            if x.shape[longer] % mesh.shape["model"] == 0:
                spec[longer] = "model"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, tree)


@checked
def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where a batch goes: its first axis is split over `data`."""
    _check_mesh(mesh, "data")
    return NamedSharding(mesh, PartitionSpec("data"))


@checked
def shardings_of(tree: PyTree, mesh: Mesh) -> PyTree:
    """Where the arrays of a tree are; those that are on no mesh, as counters are, go on all devices of `mesh`."""
    _check_mesh(mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    held = lambda x: getattr(x, "sharding", None)
    return jax.tree.map(lambda x: held(x) if isinstance(held(x), NamedSharding) else whole, tree)


def _check_mesh(mesh: Any, *axes: str) -> None:
    if not isinstance(mesh, Mesh | AbstractMesh) or not set(axes) <= set(mesh.axis_names):
        named = f" with the axis {axes[0]!r}, as make_mesh gives it" if axes else ""
        raise ValueError(f"mesh must be a mesh of devices{named}, got {describe(mesh)}.")
