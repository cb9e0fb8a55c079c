"""What becomes of an optimiser's moments when the basis that they live in changes.

A moment lives in the basis that its gradients were projected to. GaLore keeps it as it stands when the basis changes;
here it can be turned into the new one by `C = P_newᴴ P_old`. A transport is a function `(moments, rotate, count)`. It
gets the moments of one parameter by field name, shape `(*batch, r, o)`, and returns them in the new basis; `rotate(x)`
is `C x` (for a projection of columns `x Cᴴ`), `rotate(x, squared=True)` the same with `|C|²` entry by entry.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int, PyTree

from ..._checks import describe
from ..quantise import Quantised, dequantise, quantise

FIRST = ("mu", "trace", "momentum", "acc_grads")  # linear in the gradients
SECOND = ("nu", "nu_max", "sum_of_squares", "mean_square_grad")  # their squares


Rotate = Callable[..., Inexact[Array, "*batch r o"]]
Moments = Mapping[str, Array]
Transport = Callable[[Moments, Rotate, Int[Array, ""]], Moments]


def keep(moments: Moments, rotate: Rotate, count: Int[Array, ""]) -> Moments:
    """As they stand: the paper's choice."""
    return moments


def reset(moments: Moments, rotate: Rotate, count: Int[Array, ""]) -> Moments:
    """To zero. The bias correction of Adam goes on counting."""
    return {name: jnp.zeros_like(x) for name, x in moments.items()}


def momentum(moments: Moments, rotate: Rotate, count: Int[Array, ""]) -> Moments:
    """The first moment turned into the new basis, the second kept."""
    return {name: rotate(x) if name in FIRST else x for name, x in moments.items()}


def full(b1: float = 0.9, b2: float = 0.999) -> Transport:
    """Both moments of Adam turned, the second as the variance that it estimates:
    `v ← |(C∘C)(v̂ − m̂²) + (C m̂)²| (1 − b2ᵗ)`. `b1` and `b2` must be those of the optimiser.

    Moments other than Adam's are treated as `momentum` does. Source: LDAdam (arXiv 2410.16103).
    """

    def transport(moments: Moments, rotate: Rotate, count: Int[Array, ""]) -> Moments:
        turned = dict(momentum(moments, rotate, count))
        if not {"mu", "nu"} <= moments.keys():
            return turned
        mu, nu = moments["mu"], moments["nu"]
        t = jnp.maximum(count, 1).astype(nu.dtype)  # at the first step both moments are zero
        correct1, correct2 = (1 - jnp.asarray(b, nu.dtype) ** t for b in (b1, b2))
        mean = mu.astype(jnp.result_type(mu.dtype, nu.dtype)) / correct1
        spread = nu / correct2 - jnp.square(jnp.abs(mean))
        turned["nu"] = jnp.abs(rotate(spread, squared=True) + jnp.square(jnp.abs(rotate(mean)))) * correct2
        return turned

    return transport


TRANSPORTS: Mapping[str, Transport] = {"keep": keep, "reset": reset, "momentum": momentum, "full": full()}


Group = Mapping[str, int]


class States:
    """An optimiser's state, flattened, in which the moments of a parameter can be found and replaced.

    They are found by path and field name through any nesting of transforms: a leaf whose path ends in a name of `FIRST`
    or `SECOND` followed by the parameter's own path. A group is what one transform holds of a parameter.
    """

    def __init__(self, state: PyTree):
        found, self.structure = jax.tree.flatten_with_path(state, is_leaf=lambda x: isinstance(x, Quantised))
        self.paths = [tuple(path) for path, _ in found]
        self.leaves: list[Any] = [leaf for _, leaf in found]

    def groups(self, parameter: Sequence[Any], shape: tuple[int, ...]) -> list[Group]:
        """Where the moments of a parameter are: a place in `leaves` for each field name."""
        groups: dict[tuple, dict[str, int]] = {}
        for before, name, place in self._fields(parameter, shape):
            if name in (*FIRST, *SECOND):
                groups.setdefault(before, {})[name] = place
        return list(groups.values())

    def unknown(self, parameter: Sequence[Any], shape: tuple[int, ...]) -> list[str]:
        """The fields that look like moments of the parameter but have no name known here."""
        return [name for _, name, _ in self._fields(parameter, shape) if name not in (*FIRST, *SECOND)]

    def _fields(self, parameter: Sequence[Any], shape: tuple[int, ...]):
        for place, path in enumerate(self.paths):
            start = len(path) - len(parameter)
            if start > 0 and path[start:] == tuple(parameter) and jnp.shape(self.leaves[place]) == shape:
                yield path[: start - 1], getattr(path[start - 1], "name", ""), place

    def rebuilt(self) -> PyTree:
        return self.structure.unflatten(self.leaves)


def transported(transport: Transport, held: Mapping[str, Any], rotate: Rotate, count: Int[Array, ""]) -> dict[str, Any]:
    """The moments `held`, arrays or `Quantised`, in the new basis, in the form that they came in."""
    moments = {name: dequantise(x) for name, x in held.items()}
    new = transport(moments, rotate, count)
    for name, x in moments.items():
        found = new.get(name) if isinstance(new, Mapping) else None
        if getattr(found, "shape", None) != x.shape:
            raise ValueError(f"transport must return every moment in its shape, got {describe(found)} for {name!r}.")
    cast = {name: new[name].astype(x.dtype) for name, x in moments.items()}
    packed = lambda x, like: quantise(x, 8 * like.codes.dtype.itemsize, like.block, step=count)
    return {name: packed(cast[name], x) if isinstance(x, Quantised) else cast[name] for name, x in held.items()}
