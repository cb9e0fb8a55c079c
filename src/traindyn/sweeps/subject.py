"""What the command line can sweep by name: a function of one point, and the parameters of that point."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from .._checks import check_callable, check_range, check_shape, describe

DOMAINS = {"learning_rate": {"above": 0}, "time": {"above": 0}, "seed": {"least": 0}}  # of parameters that all share


@dataclasses.dataclass(frozen=True)
class Subject:
    """A computation with a name, of one point, ready for `sweep`.

    **Fields:** `fn`, from a point (a dictionary of scalars) to a PyTree of arrays; `defaults`, each parameter of the
    point and its value where it is no axis (an integer, such as a seed, takes integers only); `axes`, swept when
    nobody says otherwise; `cost`, `dims`, `coords` as `sweep` takes them; `labels`, by variable, the words for it;
    `bounds`, by variable, the figure up to which a claim is said to hold; `source`, of the theorem; `domains`, by
    parameter, `above`, `least`, `below` or `most`, each a number. Where `domains` is silent, `learning_rate` and `time`
    are above zero and `seed` is at least 0. `check`, called with a point of known values before a sweep, at both ends
    of each axis: it raises `ValueError` for parameters that `fn` can't take.

    **Raises** `ValueError` for defaults and axes that are no finite numbers or lie outside their domain, and for names
    that are no parameters.
    """

    name: str
    statement: str
    fn: Callable[[dict[str, Any]], Any]
    defaults: Mapping[str, float | int]
    axes: Mapping[str, ArrayLike | Sequence[float]]
    cost: Callable[[dict[str, Any]], Any] | None = None
    dims: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    coords: Mapping[str, ArrayLike | Sequence[float]] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    source: str = ""
    domains: Mapping[str, Mapping[str, float | int]] = dataclasses.field(default_factory=dict)
    check: Callable[[dict[str, Any]], Any] | None = None

    def __post_init__(self):
        check_callable("fn", self.fn)
        for name in ("cost", "check"):
            if getattr(self, name) is not None:
                check_callable(name, getattr(self, name))
        for name, given in (("name", self.name), ("statement", self.statement), ("source", self.source)):
            if not isinstance(given, str):
                raise ValueError(f"{name} must be a string, got {describe(given)}.")
        for name in ("defaults", "axes", "dims", "coords", "labels", "bounds", "domains"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be a dictionary, got {describe(getattr(self, name))}.")
        for field in ("axes", "domains"):
            unknown = [name for name in getattr(self, field) if name not in self.defaults]
            if unknown:
                known = ", ".join(map(str, self.defaults))
                raise ValueError(f"{field} must be among the parameters {known}, got {unknown[0]!r}.")
        for name, domain in self.domains.items():
            if not isinstance(domain, Mapping) or {*domain} - {"above", "least", "below", "most"}:
                raise ValueError(f"domains[{name!r}] must have above, least, below or most, got {describe(domain)}.")
        for name, value in self.defaults.items():
            check_shape(name, self.values(name, value), ())
        for name, value in self.axes.items():
            check_shape(name, self.values(name, value), ("values",))

    def values(self, name: str, given: ArrayLike | Sequence[float]) -> np.ndarray:
        """Values of a parameter as the subject takes them: whole ones become integers where its default is one.

        **Raises** `ValueError` naming the parameter, its domain, and the value outside it; so for an integer that the
        precision of the moment cannot hold.
        """
        if name not in self.defaults:
            raise ValueError(f"{self.name} has no parameter {name!r}: it must be one of {', '.join(self.defaults)}.")
        try:
            found = np.asarray(given)
        except ValueError as error:  # a ragged list
            raise ValueError(f"{name} must be numbers, got {describe(given)}.") from error
        if found.dtype.kind not in "iuf":
            raise ValueError(f"{name} must be numbers, got {describe(given)}.")
        check_range(name, found, **DOMAINS.get(name, {}) | dict(self.domains.get(name, {})))  # pyright: ignore[reportArgumentType]
        return whole_numbers(name, found) if isinstance(self.defaults[name], int | np.integer) else found


def whole_numbers(name: str, x: ArrayLike | Sequence[float | int]) -> np.ndarray:
    """`x` as integers. Raises `ValueError` for fractions, and for numbers beyond the integers of the moment."""
    found = np.asarray(x)
    largest = int(jnp.iinfo(jax.dtypes.canonicalize_dtype(int)).max)
    check_range(name, found, most=min(largest, 2**53) if found.dtype.kind == "f" else largest)
    wrong = found[found != np.floor(found)]
    if wrong.size:
        raise ValueError(f"{name} must be integers, got {wrong.flat[0]}.")
    return found.astype(int)
