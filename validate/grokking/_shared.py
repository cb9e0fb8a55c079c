"""What the claims of Li2 share: the twelve groups, energies and nodes of one shape for all of them."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ...dynamics import groups
from ...dynamics.grokking import Energy
from ...dynamics.representations import Irrep
from .. import pair_networks

SIGMAS = 4.0  # which chance exceeds once in 16 000 times
ALL_PAIRS = pair_networks.ALL_PAIRS.said("all M² pairs of elements of a finite group")
RECIPE = (
    "full batches, Adam with coupled L2, x², mean squared error over centred outputs, initial weights of torch's linear"
    " layers, float32"
)

_ABELIAN = groups.cyclic(7), groups.cyclic(23), groups.product(3, 5), groups.cyclic(8), groups.product(2, 4)
_SMALL = groups.symmetric(3), groups.dihedral(5), groups.dicyclic(2), groups.dicyclic(3), groups.alternating(4)
GROUPS = (*_ABELIAN, *_SMALL, groups.metacyclic(7, 3, 2), groups.symmetric(4))
LARGEST = max(group.order for group in GROUPS)


def some_groups(scale: str) -> tuple[groups.Group, ...]:
    """All of them, or at the smoke scale one Abelian, one of each kind of representation."""
    few = {"Z8", "S3", "Q8", "A4"}
    return tuple(group for group in GROUPS if scale != "smoke" or group.name in few)


def widened(w: Float[np.ndarray, "*batch 2 order"]) -> Float[np.ndarray, "*batch 2 largest"]:
    """Nodes of any of the groups as nodes of one shape, with zeros that no energy sees."""
    return np.pad(w, [(0, 0)] * (w.ndim - 1) + [(0, LARGEST - w.shape[-1])])


def same_shape(energies: Sequence[Energy]) -> Energy:
    """Energies of several groups as one with a leading axis, compiled once: elements that are added make no pair."""

    def wide(energy: Energy) -> Energy:
        pad = lambda x: jnp.asarray(np.pad(np.asarray(x), [(0, LARGEST - len(x))] * 2))
        return eqx.tree_at(lambda e: (e.quotient, e.used), energy, (pad(energy.quotient), pad(energy.used)))

    return jax.tree.map(lambda *x: jnp.stack(x), *map(wide, energies))


def entries(r: Irrep, a: Float[np.ndarray, "n dim"], x: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n order"]:
    """`aᵀ R(h) x`."""
    return np.einsum("ni,hij,nj->nh", a, r.matrices, x)


def random_nodes(rng: np.random.Generator, number: int, order: int) -> Float[np.ndarray, "number 2 order"]:
    """Normal directions, of norm one."""
    w = rng.normal(size=(number, 2, order))
    return w / np.linalg.norm(w, axis=(1, 2), keepdims=True)


def standard_errors(samples: np.ndarray, law: np.ndarray) -> np.ndarray:
    """By how many standard errors the mean of the samples, along the first axis, is off."""
    return (samples.mean(axis=0) - law.mean(axis=0)) / (samples.std(axis=0, ddof=1) / np.sqrt(len(samples)))


def first(steps: np.ndarray, curve: Float[np.ndarray, "*batch records"], level: float) -> Float[np.ndarray, "*batch"]:
    """The step of the first record at which a curve has reached a level; NaN if none has."""
    reached = curve >= level
    return np.where(reached.any(axis=-1), steps[np.argmax(reached, axis=-1)], np.nan)


def nontrivial(irreps: Sequence[Irrep]) -> tuple[Irrep, ...]:
    return tuple(irrep for irrep in irreps if not irrep.trivial)


def short(irrep: Irrep) -> str:
    """As in C2: its kind and its real dimension."""
    return f"{ {'real': 'R', 'complex': 'C', 'quaternionic': 'H'}[irrep.kind] }{irrep.dim}"
