"""What the theorems of composing and of grokking assume of a two-layer network and its pairs, as numbers that are 0
where it holds exactly. Both papers speak of the same network.

Most are the relative error of the theorem themselves, and so need no curve:

- a sum over all pairs lacks the fraction of its terms that is held out;
- the least norm of a solution is exceeded by `balance`;
- `G_F` is off its multiple of `Ỹ Ỹᵀ F̃` by the sine of the angle between them.
"""

import jax.numpy as jnp
import numpy as np

from ..nets.grokking import alignment, backpropagated, features
from ..nets.pairs import TwoLayer
from .assumptions import Assumption, Seen, relative
from .curves import CURVES
from .networks import PAIRS


def held_out(seen: Seen) -> float:
    """The fraction of the group's pairs that are not trained on."""
    return 1 - float(np.sum(np.asarray(seen.data.used))) / np.asarray(seen.data.table).size


def not_commuting(seen: Seen) -> float | None:
    table = np.asarray(seen.data.table)
    return 0.0 if np.array_equal(table, table.T) else None


def balance(model: TwoLayer) -> float:
    """By how much the squared norm exceeds that of the balanced network of the same outputs, relative:
    `Σ_j (‖a_j‖² + ‖b_j‖² + ‖c_j‖²) / 3 Σ_j (‖a_j‖ ‖b_j‖ ‖c_j‖)^⅔ − 1`. Scaling the three rows of a node keeps their
    product, and with x² the part `2 a b c` of the outputs."""
    norms = np.stack([np.linalg.norm(np.asarray(x, float), axis=0) for x in (model.a, model.b, model.c)])
    least, found = 3 * np.sum(np.prod(norms, axis=0) ** (2 / 3)), np.sum(norms**2)
    return float(found / least - 1) if least > 0 else (0.0 if found == 0 else np.inf)


def not_square(seen: Seen) -> float:
    """How far the activation is from x² on the trained pairs: ‖σ(u) − u²‖ / ‖u²‖."""

    def off(model: TwoLayer) -> float:
        used = np.asarray(seen.data.used)
        u = (
            np.asarray(model.a)[np.asarray(seen.data.first)[used]]
            + np.asarray(model.b)[np.asarray(seen.data.second)[used]]
        )
        after = np.asarray(model.activation(jnp.asarray(u)))
        return relative(after - u**2, u**2)

    return seen.largest(off)


def not_along(seen: Seen) -> float | None:
    """The relative error of `G_F` as a multiple of `Ỹ Ỹᵀ F̃`: the sine of their angle, 1 for an obtuse one. Of no
    gradient nothing is said."""
    model, pairs = seen.last, seen.data
    size = float(jnp.linalg.norm(backpropagated(model, pairs)))
    v = float(model.scale * jnp.linalg.norm(model.c))
    if size <= 1e-6 * v * np.sqrt(float(np.sum(np.asarray(pairs.used)))):
        return None
    cosine = float(alignment(model, pairs))
    return float(np.sqrt(max(1 - cosine**2, 0))) if cosine > 0 else 1.0


ALL_PAIRS = Assumption("all pairs of elements", name="all pairs", network=PAIRS, measure=held_out)
ABELIAN = Assumption("a finite Abelian group", name="Abelian group", network=PAIRS, measure=not_commuting)
SQUARE = Assumption("the activation x²", name="square activation", network=PAIRS, measure=not_square)
BALANCED = Assumption(
    "balanced nodes: ‖a_j‖ = ‖b_j‖ = ‖c_j‖",
    name="balanced nodes",
    network=PAIRS,
    measure=lambda seen: balance(seen.last),
)
WIDE = Assumption(
    "many nodes",
    name="width",
    network=PAIRS,
    measure=lambda seen: 1 / seen.last.nodes,
    curves=CURVES["pairs: width"],
)
ALONG_LABELS = Assumption(
    "G_F is a multiple of Ỹ Ỹᵀ F̃",
    name="gradient along the labels",
    network=PAIRS,
    measure=not_along,
    regime=("independent features", "gradient not along the labels"),
)
LAZY = Assumption(
    "features held fixed",
    name="fixed features",
    network=PAIRS,
    measure=lambda seen: seen.change(lambda model: features(model, seen.data)),
    regime=("lazy", "feature learning"),
    over_time=True,
)
