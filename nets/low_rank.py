"""Weights of low rank by construction, the rivals of GaLore: factors trained from scratch, and LoRA.

Both turn chosen linear layers of an Equinox model into modules of this file, which train like any other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._checked import checked
from .._checks import check_shape, describe, integer, real
from ._precision import at_least_float32
from .galore.names import Where, chooser, path_name
from .train import AnyKey

Model = TypeVar("Model")


@checked
class Factorised(eqx.Module):
    """A linear layer whose weight is a product: `y = B A x + bias`. `layer` holds what is not the weight."""

    a: Float[Array, "*stack r inputs"]
    b: Float[Array, "*stack outputs r"]
    layer: eqx.nn.Linear

    def __check_init__(self):
        _check_layer(self.layer, self.a, self.b)

    @property
    def weight(self) -> Float[Array, "*stack outputs inputs"]:
        """`B A`."""
        return self.b @ self.a

    @checked
    def __call__(self, x: Float[Array, "*inputs"], *, key: AnyKey | None = None) -> Float[Array, "*outputs"]:
        """The layer's output, through `r` numbers. `key` has no effect."""
        return _through(self, x, lambda x: self.b @ (self.a @ x))


@checked
class LoRA(eqx.Module):
    """A linear layer whose weight moves by a product: `y = W₀ x + scale · B A x + bias`.

    `W₀`, the weight of `layer`, is frozen: no gradient reaches it. The bias is trained.
    """

    a: Float[Array, "*stack r inputs"]
    b: Float[Array, "*stack outputs r"]
    layer: eqx.nn.Linear
    scale: float = eqx.field(static=True)

    def __check_init__(self):
        _check_layer(self.layer, self.a, self.b)
        real("scale", self.scale)

    @property
    def weight(self) -> Float[Array, "*stack outputs inputs"]:
        """`W₀ + scale · B A`."""
        return jax.lax.stop_gradient(self.layer.weight) + self.scale * (self.b @ self.a)

    @checked
    def __call__(self, x: Float[Array, "*inputs"], *, key: AnyKey | None = None) -> Float[Array, "*outputs"]:
        """The layer's output. `key` has no effect."""
        frozen = jax.lax.stop_gradient(self.layer.weight)
        return _through(self, x, lambda x: frozen @ x + self.scale * (self.b @ (self.a @ x)))


@checked
def factorise(model: Model, rank: int, where: Where, *, key: AnyKey) -> Model:
    """The model with the weights of chosen linear layers replaced by factors, `W = B A`, to be trained from scratch.

    `where` chooses layers as `galore_labels` chooses matrices: a regular expression that is searched in names such as
    `blocks.0.query.weight`; several, of which one must be found; or a function `(name, weight) -> bool`. Layers stacked
    for a scan get stacked factors.

    **Initial values:** entries of both factors are normal and of one size, such that those of `B A` have the mean
    square of the weight that they replace.

    **Raises** `ValueError` for a rank below 1 or above a chosen layer's short side, a pattern that is in the name of no
    linear layer, a function that chooses none, and a model without linear layers. Source: the "low-rank" row of Table 2
    in arXiv 2403.03507.
    """

    def make(layer: eqx.nn.Linear, draw: Callable[..., Array]) -> Factorised:
        a, b = _shapes(layer.weight, rank)
        size = (jnp.mean(jnp.square(layer.weight)) / rank) ** 0.25
        without = eqx.tree_at(lambda m: m.weight, layer, None)
        return Factorised(draw(a) * size, draw(b) * size, without)

    return _replaced(model, rank, where, make, lambda shape, dtype: jax.random.normal(key, shape, dtype))


@checked
def lora(model: Model, rank: int, where: Where, alpha: float = 32.0, *, key: AnyKey) -> Model:
    """The model with the weights of chosen linear layers frozen and a trained product beside them,
    `W = W₀ + (alpha/rank) B A`. It begins where the model is, for `B` is zero. `where` is as in `factorise`.

    **Initial values** of `A`: uniform in ±1/√inputs, as in the authors' code.

    Optimisers that move weights without a gradient, by weight decay, would move the frozen ones too: mask them by
    `trainable`. **Raises** `ValueError` as `factorise` does, and for an `alpha` that is not positive. Source: Hu et
    al., arXiv 2106.09685.
    """
    real("alpha", alpha, above=0)

    def make(layer: eqx.nn.Linear, draw: Callable[..., Array]) -> LoRA:
        a, b = _shapes(layer.weight, rank)
        return LoRA(draw(a) / math.sqrt(a[-1]), jnp.zeros(b, layer.weight.dtype), layer, alpha / rank)

    return _replaced(model, rank, where, make, lambda shape, dtype: jax.random.uniform(key, shape, dtype, -1, 1))


def merge(model: Model) -> Model:
    """The model with dense weights in place of all products: what it was before `factorise` or `lora`, trained."""
    dense = lambda x: eqx.tree_at(lambda m: m.weight, x.layer, x.weight, is_leaf=lambda y: y is None)
    return jax.tree.map(lambda x: dense(x) if _is_product(x) else x, model, is_leaf=_is_product)


def trainable(model: PyTree) -> PyTree:
    """Which leaves are trained: true for arrays of floating point, but for the frozen weights of `LoRA`. A filter for
    `eqx.partition`, and, of a model's arrays, a mask for `optax.masked`."""
    of = lambda x: jax.tree.map(eqx.is_inexact_array, x)
    frozen = lambda x: eqx.tree_at(lambda m: m.layer.weight, of(x), False) if isinstance(x, LoRA) else of(x)
    return jax.tree.map(frozen, model, is_leaf=lambda x: isinstance(x, LoRA))


def _replaced(model: Model, rank: int, where: Where, make: Callable, draw: Callable) -> Model:
    """The model with `make(layer, draw)` for each chosen layer; `draw` there hands out one common draw by the piece."""
    integer("rank", rank, least=1)
    leaf = lambda x: isinstance(x, eqx.nn.Linear) or _is_product(x)
    found = jax.tree.leaves_with_path(model, is_leaf=leaf)
    layers = {path_name(path): x for path, x in found if isinstance(x, eqx.nn.Linear) and x.weight is not None}
    if not layers:
        raise ValueError(f"model must have layers of eqx.nn.Linear that are no products yet, got {describe(model)}.")
    chosen = {name: layers[name] for name in _chosen(layers, where)}
    total = 0
    for name, layer in chosen.items():
        *_, m, n = layer.weight.shape
        if rank > min(m, n):
            raise ValueError(
                f"rank must be at most {min(m, n)}, the short side of {_weight(name)!r}, of shape "
                f"{layer.weight.shape}, got {rank}."
            )
        total += sum(map(math.prod, _shapes(layer.weight, rank)))
    dtype = at_least_float32(next(iter(chosen.values())).weight.dtype)
    numbers, used = draw((total,), dtype), 0

    def replace(path: Sequence[Any], x: Any) -> Any:
        if path_name(path) not in chosen:
            return x

        def take(shape: tuple[int, ...]) -> Array:
            nonlocal used
            used += math.prod(shape)
            return numbers[used - math.prod(shape) : used].reshape(shape).astype(x.weight.dtype)

        return make(x, take)

    return jax.tree.map_with_path(replace, model, is_leaf=leaf)


def _chosen(layers: dict[str, eqx.nn.Linear], where: Where) -> list[str]:
    choose = chooser(where, [_weight(name) for name in layers], "linear layer")
    chosen = [name for name, layer in layers.items() if choose(_weight(name), layer.weight)]
    if not chosen:
        raise ValueError(f"where must choose at least one linear layer, got none of {[*layers]}.")
    return chosen


def _weight(name: str) -> str:
    return f"{name}.weight" if name else "weight"


def _shapes(weight: Array, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of `A` and of `B`."""
    *stack, m, n = weight.shape
    return (*stack, rank, n), (*stack, m, rank)


def _check_layer(layer: Any, a: Array, b: Array) -> None:
    if not isinstance(layer, eqx.nn.Linear):
        raise ValueError(f"layer must be an eqx.nn.Linear, got {describe(layer)}.")
    sizes = [1 if size == "scalar" else size for size in (layer.out_features, layer.in_features)]
    if [b.shape[-2], a.shape[-1]] != sizes:
        raise ValueError(f"layer must have {b.shape[-2]} outputs and {a.shape[-1]} inputs, as b and a, got {sizes}.")


def _through(
    module: Factorised | LoRA, x: Float[Array, "*inputs"], product: Callable[[Array], Array]
) -> Float[Array, "*outputs"]:
    """The product and the bias; a number where the layer takes or gives one."""
    layer, inputs = module.layer, module.a.shape[-1]
    check_shape("x", x, () if layer.in_features == "scalar" else (inputs,))
    y = product(x.reshape(inputs))
    y = y if layer.bias is None else y + layer.bias
    return y.reshape(()) if layer.out_features == "scalar" else y


def _is_product(x: Any) -> bool:
    return isinstance(x, Factorised | LoRA)
