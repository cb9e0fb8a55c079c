"""What the theorems of Scan and Snap assume of the network and its contexts, as numbers that are 0 where it holds."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ...nets.contexts import Contexts, cross_entropy
from ...nets.scan_snap import precondition
from ..assumptions import Assumption, Seen
from ..curves import CURVES
from ..networks import SCAN_SNAP


def table(data: Contexts) -> Float[np.ndarray, "classes tokens"]:
    """`P(l|n)`: the mean frequencies of the contexts of each next token."""
    x, label = np.asarray(data.x, float), np.asarray(data.label)
    x = x / np.maximum(x.sum(axis=1, keepdims=True), 1e-300)
    return np.stack([x[label == n].mean(axis=0) for n in np.unique(label)])


def overlaps(data: Contexts) -> Float[np.ndarray, " tokens"]:
    """How frequent each token is in another class, the second most frequent one, over where it is most frequent: 0 for
    distinct tokens, up to 1 for common ones. Tokens that never occur are left out."""
    p = table(data)
    p = np.sort(p[:, p.max(axis=0) > 0], axis=0)
    return p[-2] / p[-1] if len(p) > 1 else np.zeros(p.shape[1])


def between(data: Contexts) -> float:
    """How far any token is from both distinct (in one class only) and common (as frequent in all classes)."""
    p = table(data)
    p = np.sort(p[:, p.max(axis=0) > 0], axis=0)
    return float(np.max(np.minimum(overlaps(data), 1 - p[0] / p[-1])))


def inverse_length(data: Contexts) -> float:
    """One over the length of the contexts, from how much those of one class differ: tokens drawn one by one give
    `E‖x − P‖² = (1 − ‖P‖²)/length`. 0 for one context a class."""
    x, label = np.asarray(data.x, float), np.asarray(data.label)
    x = x / np.maximum(x.sum(axis=1, keepdims=True), 1e-300)
    spread, most = 0.0, 0.0
    for n in np.unique(label):
        own = x[label == n]
        if len(own) > 1:
            mean = own.mean(axis=0)
            variance = np.sum((own - mean) ** 2) / (len(own) - 1)
            spread, most = spread + variance, most + 1 - max(np.sum(mean**2) - variance / len(own), 0)
    return float(spread / most) if most > 0 else 0.0


def unlike(gram: Float[Array, "classes classes"], share: Float[Array, " classes"]) -> Float[Array, ""]:
    """How far classes are from alike: the largest difference of a product `f_n·f_n'` of two classes, or of its own
    norm², from their mean, or of the frequency of a class from 1/K, relative. Traced or not."""
    eye = jnp.eye(gram.shape[0], dtype=bool)
    mean = jnp.sum(jnp.where(eye, 0, gram)) / (gram.size - gram.shape[0])
    return jnp.maximum(jnp.max(jnp.where(eye, 0, jnp.abs(gram - mean))), jnp.max(jnp.abs(share * share.shape[0] - 1)))


def _classes_unlike(seen: Seen) -> float | None:
    if overlaps(seen.data).max() < 0.5:
        return None  # no common token
    counts = np.bincount(np.asarray(seen.data.label))
    other = 1 - np.bincount(np.asarray(seen.data.query)).max() / len(seen.data.query)
    return max(
        float(unlike(jnp.asarray(_gram(seen.data)), jnp.asarray(counts[counts > 0] / counts.sum()))), float(other)
    )


def _shared(seen: Seen) -> float | None:
    """The largest product f_n·f_n' of two classes. Classes that have common tokens are another theorem's business."""
    if overlaps(seen.data).max() > 0.5:
        return None
    gram = _gram(seen.data)
    return float(np.max(gram - np.diag(np.diag(gram))))


def _gram(data: Contexts) -> Float[np.ndarray, "classes classes"]:
    p = table(data)
    f = p / np.linalg.norm(p, axis=1, keepdims=True)
    return f @ f.T


TIE = 1e-6  # cosines closer than that are equal: where all classes are alike both directions are one


class Speed(NamedTuple):
    """How fast training moved the two matrices, and how: by least squares over the times between records.

    `ratio`: η_Z/η_Y; 0 for attention that did not move. `plain`, `preconditioned`: the cosine of the movement of Y and
    of the gradient that plain or preconditioned descent follows.
    """

    ratio: float
    plain: float
    preconditioned: float


def speed(seen: Seen) -> Speed:
    """Each matrix moves by its rate times a number of steps times its negative gradient, here the mean of both ends.
    So the records must lie so close that gradients between them are nearly straight."""
    models = jax.tree.map(lambda *x: jnp.stack(x), *seen.models)
    slopes, turned = _slopes(models, seen.data, _one_a_class(seen.data))
    (z, _), (y, plain) = _rate(models.z, slopes.z), _rate(models.y, slopes.y)
    y_turned, cosine = _rate(models.y, turned)
    y = y if plain >= cosine else y_turned
    return Speed(0.0 if z == 0 else z / y if y > 0 else math.inf, plain, cosine)


@eqx.filter_jit
def _slopes(models: Any, data: Contexts, one_a_class: Contexts) -> tuple[Any, Array]:
    """At each time the gradient, and that of Y as preconditioned descent turns it: not finite where features depend on
    each other."""

    def at(model):
        slope: Any = eqx.filter_grad(cross_entropy)(model, data)
        turned: Any = precondition(one_a_class).update(slope, optax.EmptyState(), model)[0]
        return slope, turned.y

    return jax.vmap(at)(models)


def _one_a_class(data: Contexts) -> Contexts:
    label = np.asarray(data.label)
    at = np.unique(label, return_index=True)[1]
    x = jnp.asarray(table(data), jnp.asarray(data.x).dtype)
    return Contexts(x, jnp.asarray(label[at]), jnp.asarray(np.asarray(data.query)[at]))


def _rate(path: Array, slopes: Array) -> tuple[float, float]:
    """The rate at which a matrix follows its negative gradient, and their cosine; 0 where either is not finite."""
    x, g = (np.asarray(one, float) for one in (path, slopes))
    moved, along = np.diff(x, axis=0).ravel(), -((g[1:] + g[:-1]) / 2).ravel()
    size, norm = float(along @ along), float(np.linalg.norm(moved) * np.linalg.norm(along))
    return (float(moved @ along) / size, float(moved @ along) / norm) if 0 < norm < math.inf else (0.0, 0.0)


def _tier(sentence: str, name: str, holds: Callable[[Speed, Seen], bool]) -> Assumption:
    is_one = lambda seen: 0.0 if holds(seen.once(speed), seen) else None
    return Assumption(sentence, name=name, network=SCAN_SNAP, measure=is_one, over_time=True)


def _only_next_tokens(seen: Seen) -> bool:
    return seen.last.y.shape[1] == len(np.unique(np.asarray(seen.data.label)))


LONG = Assumption(
    "sequences so long that frequencies are probabilities",
    name="long sequences",
    network=SCAN_SNAP,
    measure=lambda seen: inverse_length(seen.data),
    curves=CURVES["scan_snap: long sequences"],
)
DISTINCT_OR_COMMON = Assumption(
    "each token is in one class only, or as frequent in all",
    name="tokens distinct or common",
    network=SCAN_SNAP,
    measure=lambda seen: between(seen.data),
    curves=CURVES["scan_snap: tokens distinct or common"],
)
NO_COMMON = Assumption(
    "classes share no token",
    name="no common token",
    network=SCAN_SNAP,
    measure=_shared,
    curves=CURVES["scan_snap: no common token"],
)
CLASSES_ALIKE = Assumption(
    "one query, one common token, classes alike",
    name="classes alike",
    network=SCAN_SNAP,
    measure=_classes_unlike,
    curves=CURVES["scan_snap: classes alike"],
)
SLOW = Assumption(
    "η_Z ≪ η_Y",
    name="slow attention",
    network=SCAN_SNAP,
    measure=lambda seen: seen.once(speed).ratio,
    curves=CURVES["scan_snap: slow attention"],
    regime=("slow attention", "fast attention"),
    over_time=True,
)
TIER_A = _tier("tier A", "tier A", lambda found, seen: found.preconditioned > found.plain - TIE)
TIER_B = _tier(
    "tier B", "tier B", lambda found, seen: found.plain > found.preconditioned - TIE and _only_next_tokens(seen)
)
