"""From what training has shown and a flow has predicted to the theory's error, its budget and advice."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy
import xarray as xr
from jaxtyping import Float

from .comparison import Comparison
from .extrapolation import Estimate, Left, extrapolate, norms_of_mean, order


class Leaf(NamedTuple):
    """An observed array: its name and shape, and whether its numbers are complex, which count as two."""

    name: str
    shape: tuple[int, ...]
    is_complex: bool


class Measured(NamedTuple):
    """What training has shown.

    - `rates`, increasing, and `rounded`: from the rates that were asked for to those that divide the `times`.
    - `seen`: what was observed, NaN after a divergence.
    - `sizes`: largest first, and their `inverse` powers in which is extrapolated.
    - `sampled`: whether batches were drawn. `eps`: the unit of rounding of the model.
    """

    rounded: Mapping[float, float]
    rates: Float[np.ndarray, " rates"]
    times: Float[np.ndarray, " times"]
    seen: Float[np.ndarray, "sizes rates seeds times n"]
    sizes: list[float]
    inverse: Float[np.ndarray, " sizes"]
    sampled: bool
    leaves: list[Leaf]
    eps: float

    @property
    def fine(self) -> np.ndarray:
        """At which rates no run diverged."""
        return np.asarray(np.isfinite(self.seen).all(axis=(0, 2, 3, 4)))


class Predicted(NamedTuple):
    """A solution at the times, and what it errs by: its distance from one at ten times its tolerance."""

    values: Float[np.ndarray, "times n"]
    integrator: Float[np.ndarray, " times"]

    @property
    def moved(self) -> float:
        """The largest distance from the start."""
        return float(np.linalg.norm(self.values - self.values[:1], axis=-1).max())

    def over(self, distance: float) -> "Predicted":
        return Predicted(self.values / distance, self.integrator / distance)


def decide(measured: Measured, theory: Predicted, wrong: Mapping[str, Predicted], within: float) -> Comparison:
    """The comparison. All errors are over the distance that the theory moves, those of wrong flows too."""
    others = {label: _decide(measured, one, theory.moved, within) for label, one in wrong.items()}
    return _decide(measured, theory, theory.moved, within)._replace(wrong=others)


def _decide(measured: Measured, theory: Predicted, moved: float, within: float) -> Comparison:
    rates, scaled = measured.rates[measured.fine], theory.over(moved)
    differences = measured.seen[:, measured.fine] / moved - scaled.values
    error, left = _extrapolated(measured, differences, scaled)
    sizes = [norms_of_mean(d) for d in differences[0]]
    largest = np.array([size.value.max() for size in sizes])
    predicted = _labelled(measured, ("time",), theory.values).assign_coords(time=measured.times)
    return Comparison(
        theory_error=error,
        within=within,
        wrong={},
        bias_order=order(rates, largest),
        spread_order=order(rates, np.array([size.error.max() for size in sizes])),
        budget=_budget(measured, error, left, scaled),
        advice=_advice(measured, error, left, scaled, within),
        remarks=_remarks(measured),
        observed=_observed(measured),
        predicted=predicted,
        profile=_profile(measured, differences[0], left).assign(largest=("learning_rate", largest)),
    )


def _extrapolated(measured: Measured, differences: np.ndarray, predicted: Predicted) -> tuple[Estimate, Left | None]:
    """What is left at rate zero. Nothing is known of it with two rates, or one run where batches are drawn."""
    fine = measured.fine
    if fine.sum() < 3 or (measured.sampled and differences.shape[2] == 1):
        return Estimate(math.nan, 0.0, math.inf), None
    if not np.isfinite(differences).all():  # a flow that blows up
        return Estimate(math.inf, math.inf, math.inf), None
    size = np.linalg.norm(predicted.values, axis=-1).max()
    # Steps round at random; the error of n of them grows as √n.
    rounding = measured.eps * np.sqrt(measured.times / measured.rates[fine, None]) * size
    slack = np.nan_to_num(predicted.integrator, nan=np.inf)
    left = extrapolate(differences, measured.rates[fine], measured.inverse, rounding, slack)
    return Estimate(*(float(getattr(left.sizes, end).max()) for end in ("value", "low", "high"))), left


def _budget(measured: Measured, error: Estimate, left: Left | None, theory: Predicted) -> dict[str, float]:
    integrator = float(np.max(theory.integrator))
    if math.isinf(error):
        return {"theory": math.inf}
    if left is None:  # nothing bounds what was not measured
        few = measured.fine.sum() < 3
        return {"learning rate" if few else "minibatch noise": math.inf, "integrator": integrator, "theory": math.nan}
    terms = {"learning rate": left.of_rate.max(), "minibatch noise": left.noise.max(), "integrator": integrator}
    terms |= {"rounding": left.rounding.max()} | ({"size": left.of_size.max()} if len(measured.sizes) > 1 else {})
    return {name: float(term) for name, term in terms.items()} | {"theory": float(error)}


def _advice(measured: Measured, error: Estimate, left: Left | None, theory: Predicted, within: float) -> str:
    """What would decide an undecided comparison, in numbers."""
    seeds = measured.seen.shape[2]
    if measured.fine.sum() < 3:
        return f"Take three rates below {measured.rates[~measured.fine][0]:.3g}, at which training diverged."
    if math.isinf(error):
        return "The flow blows up before the last time."
    if left is None:
        return "Give seeds=8 or more: one run does not tell minibatch noise from an error of the theory."
    if error.high <= within:
        return ""
    if error.low > within:
        return f"The theory errs by {100 * error:.3g} % at rate zero: neither smaller rates nor more seeds will help."
    fixed, bent = float(left.rounding.max() + theory.integrator.max()), float(left.remainder.max())
    size = float(error) if error.low > 0 else 0.0  # what is shown of it
    margin = abs(within - size) - fixed
    if margin <= 0:
        return f"Rounding and the integrator leave {100 * fixed:.2g} %: train in float64, or lower rtol."
    noise = (error.high - size if size < within else size - error.low) - bent - fixed
    # What rates leave and what seeds leave share the margin, unless the first takes little of it.
    bends, told = bent > margin / 2, []
    share = margin / 2 if bends else margin - bent
    if noise > share:
        more = _times(noise / share, seeds)
        told.append(
            f"{more}× the seeds ({more * seeds})" + (f", or learning rates {more}× smaller" if not bends else "")
        )
    if bends or not told:
        told.append(f"learning rates {max(math.ceil(math.sqrt(2 * bent / margin)), 2)}× smaller")
    return f"To decide at {100 * within:.3g} %: " + ", and ".join(told) + "."


def _times(narrower: float, seeds: int) -> int:
    """How many times the seeds make Student's interval narrower by this factor."""
    quantile = lambda n: float(scipy.special.stdtrit(n - 1, 0.975))
    more = 2
    while quantile(seeds) / quantile(more * seeds) * math.sqrt(more) < narrower:
        more += 1
    return more


def _remarks(measured: Measured) -> tuple[str, ...]:
    told, rates, fine = [], measured.rates, measured.fine
    if not fine.all():
        gone = ", ".join(f"{rate:.3g}" for rate in rates[~fine])
        told.append(
            f"Training diverged at learning rate {gone}, left out: {fine.sum()} of {len(rates)} rates are used."
        )
    changed = {asked: rate for asked, rate in measured.rounded.items() if abs(asked / rate - 1) > 1e-6}
    if changed:
        pairs = ", ".join(f"{asked:.4g} to {rate:.4g}" for asked, rate in changed.items())
        told.append(f"Learning rates are rounded to divide time/points = {measured.times[1]:.4g}: {pairs}.")
    if measured.sampled and measured.seen.shape[2] == 1:
        told.append("One seed: minibatch noise cannot be told from an error of the theory.")
    return tuple(told)


def _profile(measured: Measured, differences: np.ndarray, left: Left | None) -> xr.Dataset:
    """What is left over time, and the differences by rate along the direction and at the time of the largest."""
    rates = measured.rates[measured.fine]
    at = -1 if left is None else int(np.argmax(left.sizes.value))
    one = differences[0].mean(axis=0) if len(differences) else np.zeros(differences.shape[2:])
    along = one[at] if left is None else left.mean[at]
    size = np.linalg.norm(along)
    samples = differences[:, :, at] @ (along / size if 0 < size < np.inf else along)  # (rates, seeds)
    seeds, half = samples.shape[1], np.zeros(len(samples))
    if seeds > 1:
        half = float(scipy.special.stdtrit(seeds - 1, 0.975)) * samples.std(axis=1, ddof=1) / math.sqrt(seeds)
    unknown = np.full(len(measured.times), np.nan)
    error, low, high = (unknown,) * 3 if left is None else left.sizes[:3]
    return xr.Dataset(
        {
            "error": ("time", error),
            "low": ("time", low),
            "high": ("time", high),
            "difference": ("learning_rate", samples.mean(axis=1)),
            "half_width": ("learning_rate", half),
        },
        {"time": measured.times, "learning_rate": rates},
        {"time_of_difference": float(measured.times[at])},
    )


def _observed(measured: Measured) -> xr.Dataset:
    leading, coordinates = ("learning_rate", "seed", "time"), {"learning_rate": measured.rates, "time": measured.times}
    seen = measured.seen
    if len(measured.sizes) > 1:
        leading, coordinates = ("size", *leading), coordinates | {"size": np.array(measured.sizes, float)}
    else:
        seen = seen[0]
    coordinates |= {"seed": np.arange(seen.shape[-3])}
    return _labelled(measured, leading, seen).assign_coords(coordinates)


def _labelled(measured: Measured, leading: tuple[str, ...], flat: np.ndarray) -> xr.Dataset:
    """The leaves as they were, from their numbers along one axis."""
    found, start = {}, 0
    for name, shape, is_complex in measured.leaves:
        number = math.prod(shape)
        part = flat[..., start : start + number]
        start += number
        if is_complex:
            part = part + 1j * flat[..., start : start + number]
            start += number
        dims = tuple(f"{name}_{i}" for i in range(1, len(shape) + 1))  # as a record of training has them
        found[name] = ((*leading, *dims), part.reshape(*flat.shape[:-1], *shape))
    return xr.Dataset(found)
