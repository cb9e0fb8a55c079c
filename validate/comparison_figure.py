"""The picture of a comparison."""

import io
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .comparison import Comparison

CURVES = 4  # the numbers that move most


class Picture(Figure):
    """A figure that notebooks show, whether or not pyplot has been imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=75)
        return file.getvalue()


def draw(comparison: "Comparison") -> Figure:
    """Three panels: trajectories with the band of seeds at the smallest rate, the difference against the rate with its
    value at zero, and the budget as bars."""
    figure = Picture(figsize=(13, 3.8), layout="constrained")
    curves, rates, bars = figure.subplots(1, 3)
    _trajectories(curves, comparison)
    _by_rate(rates, comparison)
    _budget(bars, comparison)
    figure.suptitle(f"{comparison.verdict}: error {comparison.theory_error}, allowed {comparison.within:g}")
    return figure


def _columns(data, leading: int) -> tuple[list[str], np.ndarray]:
    """All numbers of a dataset along one last axis, each with its name; of a complex one the two parts."""
    names, columns = [], []
    for name, x in data.data_vars.items():
        values = x.values.reshape(*x.shape[:leading], -1)
        parts = {"": values} if not np.iscomplexobj(values) else {"Re ": values.real, "Im ": values.imag}
        for part, own in parts.items():
            shape = x.shape[leading:]
            places = ["" if not shape else f"[{', '.join(map(str, i))}]" for i in np.ndindex(*shape)]
            names += [f"{part}{name}{place}" for place in places]
            columns.append(own)
    return names, np.concatenate(columns, axis=-1)


def _trajectories(axes, comparison: "Comparison") -> None:
    observed = comparison.observed
    if "size" in observed.dims:
        observed = observed.isel(size=0)
    smallest = observed.isel(learning_rate=0)
    names, predicted = _columns(comparison.predicted, 1)
    _, seen = _columns(smallest, 2)  # (seeds, times, numbers)
    times, moved = observed["time"].values, np.abs(predicted - predicted[0]).max(axis=0)
    for colour, i in enumerate(np.sort(np.argsort(-moved, kind="stable")[:CURVES])):
        axes.plot(times, predicted[:, i], color=f"C{colour}", label=names[i])
        mean, spread = seen[:, :, i].mean(axis=0), seen[:, :, i].std(axis=0)
        axes.plot(times, mean, "o", color=f"C{colour}", markersize=4)
        if len(seen) > 1:
            axes.fill_between(times, mean - 2 * spread, mean + 2 * spread, color=f"C{colour}", alpha=0.2, linewidth=0)
    rate = float(smallest["learning_rate"])
    band = ", band: ± 2 sd of seeds" if len(seen) > 1 else ""
    axes.set(xlabel="t = learning rate × step", title=f"theory (lines), training at rate {rate:.3g}{band}")
    axes.title.set_fontsize(9)
    axes.legend(fontsize=7)


def _by_rate(axes, comparison: "Comparison") -> None:
    profile, error = comparison.profile, comparison.theory_error
    rates, seen = profile["learning_rate"].values, profile["difference"].values
    axes.errorbar(rates, seen, yerr=profile["half_width"].values, fmt="o", markersize=4, capsize=3, label="training")
    if np.isfinite([error, error.low, error.high]).all():
        ends = [[error - error.low], [error.high - error]]
        axes.errorbar([0.0], [float(error)], yerr=ends, fmt="D", color="black", capsize=3, label="at rate zero")
    axes.axhspan(-comparison.within, comparison.within, color="0.9", zorder=0, label="allowed")
    axes.axhline(0, color="0.6", linewidth=0.8)
    when = f"difference / distance moved, at t = {profile.attrs['time_of_difference']:.3g}"
    axes.set(xlabel="learning rate", title=when)
    axes.title.set_fontsize(9)
    axes.legend(fontsize=7)


def _budget(axes, comparison: "Comparison") -> None:
    terms = {name: size for name, size in comparison.budget.items() if np.isfinite(size)}
    colours = ["C3" if name == comparison.limited_by else "C0" for name in terms]
    axes.barh(list(terms), [max(size, 1e-16) for size in terms.values()], color=colours)
    axes.axvline(comparison.within, color="black", linestyle="--", linewidth=0.8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set(xlabel="share of the distance moved (dashed: allowed)", title=f"limited by: {comparison.limited_by}")
    axes.title.set_fontsize(9)
