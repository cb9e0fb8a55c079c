"""What the command line can sweep by name: a function of one point, and the parameters of that point."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import ArrayLike


@dataclasses.dataclass(frozen=True)
class Subject:
    """A computation with a name, of one point, ready for `sweep`.

    **Fields:** `fn`, from a point (a dictionary of scalars) to a PyTree of arrays; `defaults`, each parameter of the
    point and its value where it is no axis; `axes`, what is swept when nobody says otherwise; `cost`, `dims`, `coords`
    as `sweep` takes them; `labels`, by variable, what it is; `bounds`, by variable, the figure up to which a claim is
    said to hold; `source`, of the theorem.
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

    def __post_init__(self):
        unknown = [name for name in self.axes if name not in self.defaults]
        if unknown:
            raise ValueError(f"axes must be among the parameters {', '.join(self.defaults)}, got {unknown[0]!r}.")
