"""Assumptions as data: a sentence that a claim lists, and the number that says how far a network is from it.

An `Assumption` is a string, its sentence, so that claims list it beside sentences that nothing measures. It belongs to
a class of networks, a `Network`. Its measure looks at the network (`Seen`) and returns a number: 0 where the sentence
holds exactly. How far a theorem is off at each number was measured once, on the validity maps or beside them: the
*curves* of `curves.CURVES`, made by `benchmarks/assumptions.py`. The tolerance follows from them: it is the number at
which the first theorem is 10 % off.

`None` as a measure says that the claim is not about this network: a law of exponential attention on softmax attention.
Which claims are about which networks is derived from the assumptions that claims list. Nothing else links them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Float

from .._checks import check_callable, describe
from ._given import as_number, check_text

Points = Sequence[tuple[float, float]]  # (measured, error of the theorem there), from the smallest to the largest
T = TypeVar("T")
WITHIN = 0.1  # the error up to which a theorem counts as in reach


@dataclasses.dataclass(frozen=True)
class Network:
    """A class of networks, and the `loss(model, data)` that it trains on. `noun`: as in "a JoMA block".

    The loss refuses data that do not fit the model by a `ValueError`.

    **Raises** `ValueError` for a model that is no class, a loss that is no function, and a noun that is no text.
    """

    model: type
    loss: Callable[[Any, Any], Float[Array, ""]]
    noun: str

    def __post_init__(self):
        if not isinstance(self.model, type):
            raise ValueError(f"model must be a class of networks, got {describe(self.model)}.")
        check_callable("loss", self.loss)
        check_text("noun", self.noun)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a measure looks at: the same network at one time or several, in order, and its data."""

    models: tuple[Any, ...]
    data: Any
    found: dict[Callable, Any] = dataclasses.field(default_factory=dict)

    def once(self, of: "Callable[[Seen], T]") -> "T":
        """`of(self)`, computed for the first measure that asks."""
        if of not in self.found:
            self.found[of] = of(self)
        return self.found[of]

    @property
    def first(self) -> Any:
        return self.models[0]

    @property
    def last(self) -> Any:
        return self.models[-1]

    def largest(self, measure: Callable[[Any], Any]) -> float:
        """The largest number of `measure(model)` over the times; NaN if one is."""
        return float(np.max([float(measure(model)) for model in self.models]))

    def change(self, of: Callable[[Any], Any]) -> float:
        """The largest change of `of(model)` since the first time, over its size there: `‖x(t) − x(0)‖ / ‖x(0)‖`."""
        start = np.asarray(of(self.first))
        return self.largest(lambda model: relative(np.asarray(of(model)) - start, start))


def relative(error: Any, size: Any) -> float:
    """`‖error‖ / ‖size‖`; 0 for no error, infinite for one of nothing."""
    error, size = (float(np.linalg.norm(np.ravel(np.asarray(x)))) for x in (error, size))
    return 0.0 if error == 0 else error / size if size else math.inf


class Assumption(str):
    """A sentence that a claim assumes, and how far a network is from it.

    - `name`: in short, the same for all sentences that say it (see `said`).
    - `network`: the `Network` that it speaks of.
    - `measure`: `(Seen) -> number`, 0 where the sentence holds; `None` where claims that need it are not about this
      network.
    - `curves`: by the name of a claim, pairs (measured, error of its theorem there). A claim without pairs of its own
      gets the largest error of the others. By default the number is the theorem's relative error itself.
    - `regime`: the word for networks that fulfil it, and for those that do not; empty for none.
    - `over_time`: whether it speaks of change over training. One model cannot show it.

    **Raises** `ValueError` for what is no text, no function, no `Network`, and curves that do not rise along both axes.
    """

    name: str
    network: Network
    measure: Callable[[Seen], float | None]
    curves: Mapping[str, Points]
    regime: tuple[str, str]
    over_time: bool

    def __new__(
        cls,
        sentence: str,
        *,
        name: str,
        network: Network,
        measure: Callable[[Seen], float | None],
        curves: Mapping[str, Points] | None = None,
        regime: tuple[str, str] = ("", ""),
        over_time: bool = False,
    ):
        texts = {"sentence": sentence, "name": name}
        if not isinstance(regime, tuple) or len(regime) != 2:
            raise ValueError(f"regime must be two words, fulfilled and broken, got {describe(regime)}.")
        for key, text in (*texts.items(), ("regime", regime[0]), ("regime", regime[1])):
            check_text(key, text)
        if not isinstance(network, Network):
            raise ValueError(f"network must be a Network, got {describe(network)}.")
        check_callable("measure", measure)
        if not isinstance(over_time, bool):
            raise ValueError(f"over_time must be True or False, got {describe(over_time)}.")
        made = super().__new__(cls, sentence)
        made.name, made.network, made.measure, made.regime, made.over_time = name, network, measure, regime, over_time
        made.curves = _rising({} if curves is None else curves)
        return made

    def __reduce__(self):
        """Travels to another process as its sentence, within the record of a result. What measures stays here."""
        return str, (str(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Assumption":
        return self

    def said(self, sentence: str) -> "Assumption":
        """The same assumption in the words of another claim. **Raises** `ValueError` for what is no text."""
        names = ("name", "network", "measure", "curves", "regime", "over_time")
        return Assumption(sentence, **{name: getattr(self, name) for name in names})

    def error(self, measured: float, claim: str = "") -> float:
        """How far a theorem is expected to be off where the assumption measures this: that of `claim` if it has a curve
        of its own, else the worst. Beyond its end a curve goes on in proportion. NaN for NaN.

        **Raises** `ValueError` for what is no number, and for a claim that is no text.
        """
        measured = as_number("measured", measured)
        check_text("claim", claim)
        if not self.curves:
            return measured
        chosen = [self.curves[claim]] if claim in self.curves else self.curves.values()
        return float(np.max([_along(points, measured) for points in chosen]))

    @functools.cached_property
    def tolerance(self) -> float:
        """The number at which the first theorem is 10 % off."""
        low, high = 0.0, 1.0
        while self.error(high) <= WITHIN and high < 1e6:
            low, high = high, 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.error(middle) <= WITHIN else (low, middle)
        return low


def _rising(curves: Mapping[str, Points]) -> dict[str, tuple[tuple[float, float], ...]]:
    if not isinstance(curves, Mapping):
        raise ValueError(f"curves must map names of claims to pairs (measured, error), got {describe(curves)}.")
    found = {}
    for claim, points in curves.items():
        array = np.asarray(points, float)
        rises = array.ndim == 2 and array.shape[1] == 2 and len(array) > 1 and np.isfinite(array).all()
        if not rises or not (
            (np.diff(array[:, 0]) > 0).all() and (np.diff(array[:, 1]) >= 0).all() and array[0, 0] >= 0
        ):
            raise ValueError(
                f"curves[{claim!r}] must be two pairs (measured, error) or more, from 0 on, measured rising and error "
                f"not falling, got {describe(points)}."
            )
        found[claim] = tuple(map(tuple, array.tolist()))
    return found


def _along(points: Points, measured: float) -> float:
    x, y = np.asarray(points).T
    return float(y[-1] * measured / x[-1] if measured > x[-1] else np.interp(measured, x, y))
