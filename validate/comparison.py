"""What `compare` returns: a verdict, the theory's error with its interval, a budget of what limits it, and advice."""

import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import ArrayLike, Real

from .._checks import check_range
from ._given import as_number
from .claim import Evidence
from .extrapolation import Estimate
from .panels import panel
from .rows import Row, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Comparison(NamedTuple):
    """Whether a theory meets training as the learning rate goes to zero, how nearly, and what limits the answer.

    All errors are relative to the distance that the theory moves.

    - `theory_error`: what is left at rate zero, `max ‖a(t)‖ / D`: a number with `low` and `high`, its 95 % interval.
    - `within`: the error that is allowed. `wrong`: the same for each wrong flow, by label.
    - `bias_order`: the order in the rate of the mean difference, 1 for descent beside its gradient flow.
    - `spread_order`: that of the spread over seeds, ½ for minibatch noise; NaN for one run.
    - `budget`: what the smallest rate, the noise of the mean, the integrator, rounding, the size and the theory add.
    - `observed`: dimensions `(learning_rate, seed, time, …)`, or with `size` before them.
    - `predicted`: dimensions `(time, …)`.
    - `profile`: over time the theory's error with its interval; over rates the largest size of the difference, and the
      difference along the direction in which the theory's error is largest, with the half-width of its interval.
    - `remarks`: what was rounded or left out.
    """

    theory_error: Estimate
    within: float
    wrong: Mapping[str, "Comparison"]
    bias_order: Estimate
    spread_order: Estimate
    budget: Mapping[str, float]
    advice: str
    remarks: tuple[str, ...]
    observed: xr.Dataset
    predicted: xr.Dataset
    profile: xr.Dataset

    @property
    def low(self) -> float:
        """The lower end of the interval of `theory_error`."""
        return self.theory_error.low

    @property
    def high(self) -> float:
        """The upper end of the interval of `theory_error`."""
        return self.theory_error.high

    @property
    def verdict(self) -> Verdict:
        """Whether the theory holds, is refuted, or is left undecided. `str` gives the word."""
        return self._row.verdict

    @property
    def _row(self) -> Row:
        error, within = self.theory_error, self.within
        return Row(error, (error.low, error.high), within, (-math.inf, within), f"{error}", f"≤ {within:.3g}", "limit")

    @property
    def passed(self) -> bool:
        """Whether the theory holds and every wrong flow is refuted."""
        refuted = all(one.verdict is Verdict.REFUTED for one in self.wrong.values())
        return self.verdict is Verdict.HOLDS and refuted

    @property
    def limited_by(self) -> str:
        """The largest term of the budget. The theory counts by the lower end of its error: by what is shown of it. It
        is the answer where it is refuted."""
        if self.verdict is Verdict.REFUTED:
            return "theory"
        shown = dict(self.budget) | {"theory": self.low}
        return max(shown, key=lambda term: shown[term])

    def evidence(
        self,
        name: str = "theory's error over the distance moved",
        *,
        order: Real[ArrayLike, ""] | None = None,
        tolerance: Real[ArrayLike, ""] = 0.1,
    ) -> Evidence:
        """For a claim: a row for the theory, one for each wrong flow as the control, and a picture.

        With `order` the interval of `bias_order` must lie within `tolerance` of it, too. **Raises** `ValueError` for an
        order and a tolerance that are no numbers, and a tolerance that is not above zero.
        """
        rows, control = {name: self._row}, {f"{name}: {label}": one._row for label, one in self.wrong.items()}
        if order is not None:
            power, slack = as_number("order", order), as_number("tolerance", tolerance)
            check_range("tolerance", slack, above=0)
            by_rate = f"{name}, order in the learning rate"
            rows[by_rate] = self._order_row(power, slack)
            control |= {f"{by_rate}: {label}": one._order_row(power, slack) for label, one in self.wrong.items()}
        return Evidence(rows, control, [self._panel(name)] if self.profile.sizes["learning_rate"] else [], self.remarks)

    def _order_row(self, order: float, tolerance: float) -> Row:
        fitted = self.bias_order
        allowed = (order - tolerance, order + tolerance)
        return Row(
            fitted,
            (fitted.low, fitted.high),
            order,
            allowed,
            f"order {fitted}",
            f"order {order:g} ± {tolerance:g}",
            "limit",
        )

    def to_netcdf(self, path: Path | str) -> None:
        """Writes observed, predicted, profile and the numbers beside them as one netCDF tree; complex arrays as two."""
        groups = {"/observed": self.observed, "/predicted": self.predicted, "/profile": self.profile}
        tree = xr.DataTree.from_dict({name: _real(data) for name, data in groups.items()})
        numbers = {
            name: [float(x), x.low, x.high]
            for name, x in (
                ("theory_error", self.theory_error),
                ("bias_order", self.bias_order),
                ("spread_order", self.spread_order),
            )
        }
        errors = {label: one.theory_error for label, one in self.wrong.items()}
        wrong = {label: [float(x), x.low, x.high] for label, x in errors.items()}
        texts = {
            "budget": json.dumps(dict(self.budget)),
            "wrong": json.dumps(wrong),
            "remarks": json.dumps(self.remarks),
        }
        tree.attrs = numbers | texts | {"within": self.within, "verdict": str(self.verdict), "advice": self.advice}
        tree.to_netcdf(path, engine="h5netcdf")

    def figure(self) -> "Figure":
        """Trajectories with their band, the difference against the learning rate with its value at zero, the budget."""
        from .comparison_figure import draw  # matplotlib loads where it is used

        return draw(self)

    def _panel(self, name: str) -> xr.Dataset:
        """The largest difference by rate: that of a right theory falls to zero, that of a wrong one to its error."""
        own, others = self.profile["largest"], {label: one.profile["largest"] for label, one in self.wrong.items()}
        finite = {label: x.values for label, x in others.items() if np.isfinite(x).all()}
        rates, y = own["learning_rate"].values, "largest difference / distance moved"
        allowed = {f"allowed at rate zero: {self.within:g}": np.full(len(rates), self.within)}
        curves = {"observed": {"theory": own.values}, "control": finite, "predicted": allowed}
        return panel(name, ("learning rate", rates), y=y, log="xy", **curves)

    def _told(self) -> list[tuple[str, str]]:
        shown = lambda x: f"{100 * x:.3g} %"
        ends = f"[{shown(self.low)}, {shown(self.high)}]"
        parts = ", ".join(f"{term} {shown(size)}" for term, size in self.budget.items() if size > 0)
        found = [
            ("verdict", f"{self.verdict}: error {shown(self.theory_error)} {ends}, allowed {shown(self.within)}"),
            ("limited by", f"{self.limited_by} ({parts})"),
            ("order of bias", f"{self.bias_order}"),
        ]
        if not math.isnan(self.spread_order):
            found.append(("order of spread", f"{self.spread_order}"))
        for label, one in self.wrong.items():
            error = one.theory_error
            found.append(
                (f"wrong: {label}", f"{one.verdict}: error {shown(error)} [{shown(error.low)}, {shown(error.high)}]")
            )
        return [*found, *([("advice", self.advice)] if self.advice else []), *(("remark", x) for x in self.remarks)]

    def __repr__(self) -> str:
        rows = self._told()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {text}" for name, text in rows)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self._told())
        return f"<table>{rows}</table>"


def _real(data: xr.Dataset) -> xr.Dataset:
    """With the real and the imaginary part of a complex array as two, as files have no complex numbers."""
    parts = {}
    for name, x in data.data_vars.items():
        parts |= {f"{name}.real": x.real, f"{name}.imag": x.imag} if np.iscomplexobj(x) else {name: x}
    return xr.Dataset(parts, data.coords, data.attrs)
