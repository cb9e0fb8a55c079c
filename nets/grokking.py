"""What theory says of hidden nodes while they train on some pairs of a group, measured on the network.

Source: Li2 (Tian, "Provable Scaling Laws of Feature Emergence from Learning Dynamics of Grokking", arXiv 2509.21519),
sections 3 to 6. The network is `pairs.TwoLayer`; in the paper's letters `W = [a; b]`, of shape (2·order, nodes), and
`V = scale·cᵀ`. `pair_runs.train_pairs` trains it.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._checked import checked
from .._checks import check_shape, concrete
from .._pairs import Pairs
from ._pair_outputs import check_pairs, hidden, one_hot
from .pairs import TwoLayer


@checked
def features(model: TwoLayer, pairs: Pairs) -> Float[Array, "n nodes"]:
    """F = σ(X W), the activation of each hidden node on each pair; zero at the padding."""
    check_pairs(model, pairs)
    return jnp.where(pairs.used[:, None], hidden(model, pairs), 0)


@checked
def backpropagated(model: TwoLayer, pairs: Pairs) -> Float[Array, "n nodes"]:
    """`G_F = P1 (Y − F V) Vᵀ`, where `P1` takes the mean over the pairs away: what the gradient of
    `½ ‖P1 (Y − F V)‖²` brings to the features, with its sign turned."""
    check_pairs(model, pairs)
    v = model.scale * model.c.T
    return _over_pairs(one_hot(model, pairs) - features(model, pairs) @ v, pairs) @ v.T


@checked
def label_correlation(model: TwoLayer, pairs: Pairs) -> Float[Array, "n nodes"]:
    """`Ỹ Ỹᵀ F̃`, each with its mean over the pairs taken away: what theory has `backpropagated` be a multiple of."""
    check_pairs(model, pairs)
    y = _over_pairs(one_hot(model, pairs), pairs)
    return y @ (y.T @ features(model, pairs))  # y has mean zero, so F needs no centring


@checked
def alignment(model: TwoLayer, pairs: Pairs) -> Float[Array, ""]:
    """The cosine of `backpropagated` and `label_correlation` as vectors of n·nodes numbers; 0 where one vanishes."""
    return _cosine(backpropagated(model, pairs), label_correlation(model, pairs))


@checked
def energies(model: TwoLayer, pairs: Pairs) -> Float[Array, " nodes"]:
    """`E(w_j) = ½ ‖Ỹᵀ σ(X ŵ_j)‖²` of each hidden node, with its weights `w_j = [a_j; b_j]` at norm 1."""
    check_pairs(model, pairs)
    model = _scaled(model)
    norm = jnp.sqrt(_squares(model))[None]
    unit = eqx.tree_at(lambda m: (m.a, m.b), model, (_over(model.a, norm), _over(model.b, norm)))
    y = _over_pairs(one_hot(model, pairs), pairs)
    return jnp.sum(jnp.square(y.T @ features(unit, pairs)), axis=0) / 2


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
def stages(projectors: Float[ArrayLike, "classes order order"]) -> Callable[[TwoLayer, Pairs], Stage]:
    """What records a `Stage`, for `train_pairs(observe=…)`. Two of the same shape share one compilation.
    **Raises** `ValueError` for matrices that are no orthogonal projectors."""
    _check_projectors(projectors)
    return jax.tree_util.Partial(_stage, jnp.asarray(projectors))


def _stage(projectors: Float[Array, "classes order order"], model: TwoLayer, pairs: Pairs) -> Stage:
    gradient = backpropagated(model, pairs)
    cosine = _cosine(gradient, label_correlation(model, pairs))
    unit, largest = _by_largest(gradient)
    return Stage(largest * jnp.linalg.norm(unit), cosine, energies(model, pairs), contents(model, projectors))


def _over_pairs(x: Float[Array, "n columns"], pairs: Pairs) -> Float[Array, "n columns"]:
    """P1 x, for x that is zero at the padding: the mean over the pairs taken away, and still zero there."""
    mean = jnp.sum(x, axis=0, keepdims=True) / jnp.sum(pairs.used, dtype=x.dtype)
    return jnp.where(pairs.used[:, None], x - mean, 0)


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
