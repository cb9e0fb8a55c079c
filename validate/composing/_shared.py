"""What the claims of composing global optimisers share: groups, random elements, the real network."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float

from ...dynamics.composing import Solution, cyclic, loss, product, to_weights
from ...dynamics.groups import Abelian
from ...nets import pairs as nets
from .. import pair_networks
from ..checks import rounding

ALL_PAIRS = pair_networks.ALL_PAIRS.said(
    "all d² pairs of group elements, mean squared error after projection onto zero mean"
)
FINITE = pair_networks.ABELIAN.said("a finite Abelian group")


def no_loss() -> float:
    """What rounding leaves of a loss, the square of potentials."""
    return rounding(800) ** 2


PRODUCTS = ((2, 2), (2, 3), (3, 5), (3, 3), (2, 2, 3))
GROUPS = (*map(cyclic, (4, 5, 6, 7, 11, 23)), *(product(*orders) for orders in PRODUCTS))


def some_groups(scale: str) -> tuple[Abelian, ...]:
    """All of them, or at the smoke scale an odd, an even and a product."""
    return (cyclic(7), cyclic(4), product(3, 3)) if scale == "smoke" else GROUPS


def _element(z: Complex[np.ndarray, "3 order nodes"], group: Abelian) -> Solution:
    """The part of any array that belongs to real weights."""
    return Solution((z + z[:, group.inverse].conj()) / 2, group)


def random_element(rng: np.random.Generator, group: Abelian, nodes: int) -> Solution:
    """Normal weights in Fourier space."""
    shape = (3, group.order, nodes)
    return _element(rng.normal(size=shape) + 1j * rng.normal(size=shape), group)


def random_unit(rng: np.random.Generator, group: Abelian, nodes: int) -> Solution:
    """A random element with `r_kkk = 1` for all k."""
    z = np.array(random_element(rng, group, nodes).z)
    z[2] /= np.sum(np.prod(z, axis=0), axis=1, keepdims=True)
    return _element(z, group)


def turns(rng: np.random.Generator, size: int) -> Complex[np.ndarray, " size"]:
    """Random numbers of modulus one."""
    return np.exp(2j * np.pi * rng.random(size))


def measure(solutions: Sequence[Solution]) -> Float[np.ndarray, "solutions 3"]:
    """Of solutions of one group: the loss by the decomposition, and the loss and the accuracy of the real network that
    carries these weights. Filled up with dead nodes, they share one compilation."""
    group, most = solutions[0].group, max(z.nodes for z in solutions)
    filled = np.stack([np.pad(np.asarray(z.z), ((0, 0), (0, 0), (0, most - z.nodes))) for z in solutions])

    def of(z):
        weights, pairs = to_weights(z, group), nets.pairs(group.table)
        model = nets.TwoLayer(*weights, scale=jnp.asarray(1 / (2 * group.order), weights.a.dtype))
        return jnp.stack([loss(z, group), nets.loss(model, pairs), nets.accuracy(model, pairs)])

    return np.asarray(jax.jit(lambda all: jax.lax.map(of, all))(filled))
