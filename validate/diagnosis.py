"""`diagnose`: which assumptions of theorems a network fulfils, and which theorems that puts in reach.

It asks the claims: those whose measurable assumptions (`assumptions.Assumption`) speak of the network's class are its
theorems. Each assumption is measured once, whichever claims list it, and each theorem's expected error is that of the
assumption that it is farthest from. Sentences that nothing measures stay conditions: a theorem is in reach as far as
numbers can tell.
"""

import dataclasses
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._checks import describe
from ..nets.train import Run
from .assumptions import WITHIN, Assumption, Network, Seen
from .claim import Claim, built_in


@dataclasses.dataclass(frozen=True)
class Measurement:
    """An assumption and the number that the network has there: `None` if it takes a run to tell."""

    assumption: Assumption
    measured: float | None

    @property
    def fulfilled(self) -> bool | None:
        """`None` if not measured. NaN is not fulfilled."""
        return None if self.measured is None else bool(self.measured <= self.assumption.tolerance)


@dataclasses.dataclass(frozen=True)
class Theorem:
    """A claim about the network's class, and what its assumptions say of it.

    `error`: how far its theorem is expected to be off, relative, as far as measured; `limit`: the name of the
    assumption that says so; `unmeasured`: the names of those that take a run; `conditions`: the sentences that nothing
    measures.
    """

    claim: Claim
    error: float
    limit: str
    unmeasured: tuple[str, ...]
    conditions: tuple[str, ...]

    @property
    def in_reach(self) -> bool:
        return not self.unmeasured and self.error <= WITHIN


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` returns. It prints as a table of the assumptions and one of the theorems."""

    network: Network
    measurements: tuple[Measurement, ...]
    theorems: tuple[Theorem, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the assumptions that are measured and not fulfilled."""
        return tuple(one.assumption.name for one in self.measurements if one.fulfilled is False)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """The names of the assumptions that take a run, or models at several times."""
        return tuple(one.assumption.name for one in self.measurements if one.fulfilled is None)

    @property
    def in_reach(self) -> dict[str, float]:
        """By the name of each claim whose assumptions are all measured and fulfilled to 10 %, its expected error."""
        return {one.claim.name: one.error for one in self.theorems if one.in_reach}

    @property
    def regime(self) -> str:
        """The words of the assumptions that name regimes, in the order of the table; "unknown" if none is measured."""
        words = [
            one.assumption.regime[0 if one.fulfilled else 1] for one in self.measurements if one.fulfilled is not None
        ]
        return ", ".join(word for word in words if word) or "unknown"

    def _rows(self) -> list[tuple[str, ...]]:
        said = {True: "yes", False: "no", None: "not measured: needs a run"}
        return [
            (
                one.assumption.name,
                "–" if one.measured is None else f"{one.measured:.3g}",
                f"{one.assumption.tolerance:.2g}",
                said[one.fulfilled],
            )
            for one in self.measurements
        ]

    def _reach(self) -> list[tuple[str, ...]]:
        rows = []
        for one in sorted(self.theorems, key=lambda one: (not one.in_reach, bool(one.unmeasured))):
            error = f"{one.error:.1%}" if one.error < 10 else "far off"
            why = f"needs a run: {', '.join(one.unmeasured)}" if one.unmeasured else one.limit
            word = "in reach" if one.in_reach else ("out of reach" if one.error > WITHIN else "open")
            rows.append((one.claim.name, word, f"{error}, {why}" if why else error, str(len(one.conditions))))
        return rows

    def __repr__(self) -> str:
        lines = [f"{self.network.noun}: {self.regime}", ""]
        for head, rows in ((_ASSUMPTIONS, self._rows()), (_THEOREMS, self._reach())):
            widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
            lines += [
                "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
            ]
            lines.append("")
        return "\n".join(lines[:-1])

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self.network.noun)}: <b>{html.escape(self.regime)}</b></p>"]
        for head, rows in ((_ASSUMPTIONS, self._rows()), (_THEOREMS, self._reach())):
            cells = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
            body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
            parts.append(f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>")
        return "".join(parts)


_ASSUMPTIONS = "assumption", "measured", "tolerance", "fulfilled"
_THEOREMS = "theorem", "is", "expected to be off by", "conditions not measured"


def diagnose(trained: Any, data: Any, *, claims: Iterable[Claim] | None = None) -> Diagnosis:
    """Measures a network on the assumptions of the theorems about its class.

        run = train(model, loss, data, optimiser, steps, observe=lambda model: model, every=100)
        print(traindyn.diagnose(run, data))

    - `trained`: a model; or models at several times, in order, as a sequence or as a `Run` that recorded them. A `Run`
      that recorded anything else counts as its last model. Records should lie so close that gradients between two are
      nearly straight: the learning rates are read off them.
    - `data`: fixed data, as the network trains on: `Contexts`, or `(x, g)` for a JoMA block whose gradient is
      stationary; `Pairs`; pairs of tokens.
    - `claims`: by default all of the library. Claims of your own list `Assumption`s, on networks of your own.

    Assumptions about change over training, the ratio of learning rates among them, cannot be told from one model: they
    are reported as not measured, and the theorems that need them as open. Tolerances and expected errors are for small
    learning rates and for tasks like those of the validity maps; see `curves`.

    **Raises** `ValueError` for models of no class that claims speak of, models of several classes or shapes, several
    runs at once, data that the network's loss refuses, and claims that are none.
    """
    found = built_in() if claims is None else _claims(claims)
    measurable = {claim.name: [x for x in claim.assumptions if isinstance(x, Assumption)] for claim in found}
    models = _models(trained)
    known = {one.network.model: one.network for several in measurable.values() for one in several}
    network = next((known[kind] for kind in type(models[-1]).__mro__ if kind in known), None)
    if network is None:
        names = ", ".join(sorted(kind.__name__ for kind in known)) or "none: no claim lists a measurable assumption"
        raise ValueError(
            f"trained must be a model of a class that claims speak of ({names}), or a Run, got "
            f"{describe(type(models[-1]).__name__)}."
        )
    _check_data(network, models, data)
    about = {name: several for name, several in measurable.items() if _speaks_of(several, network)}
    seen, several_times = Seen(models, data), len(models) > 1
    numbers: dict[str, Measurement] = {}
    elsewhere: set[str] = set()
    for one in (one for several in about.values() for one in several):
        if one.name in numbers or one.name in elsewhere:
            continue
        if one.over_time and not several_times:
            numbers[one.name] = Measurement(one, None)
        elif (measured := one.measure(seen)) is None:
            elsewhere.add(one.name)
        else:
            numbers[one.name] = Measurement(one, float(measured))
    theorems = [
        _theorem(claim, [numbers[one.name] for one in about[claim.name]])
        for claim in found
        if claim.name in about and not any(one.name in elsewhere for one in about[claim.name])
    ]
    needed = {one.name for theorem in theorems for one in about[theorem.claim.name]}
    kept = [one for name, one in numbers.items() if name in needed]
    return Diagnosis(network, tuple(kept), tuple(theorems))


def _theorem(claim: Claim, measurements: Sequence[Measurement]) -> Theorem:
    errors = {
        one.assumption.name: one.assumption.error(one.measured, claim.name)
        for one in measurements
        if one.measured is not None
    }
    errors = {name: math.inf if math.isnan(error) else error for name, error in errors.items()}
    limit = max(errors, key=lambda name: errors[name], default="")
    unmeasured = tuple(one.assumption.name for one in measurements if one.measured is None)
    conditions = tuple(one for one in claim.assumptions if not isinstance(one, Assumption))
    return Theorem(claim, errors.get(limit, 0.0), limit, unmeasured, conditions)


def _speaks_of(assumptions: Sequence[Assumption], network: Network) -> bool:
    return bool(assumptions) and all(one.network.model is network.model for one in assumptions)


def _claims(claims: Any) -> tuple[Claim, ...]:
    found: tuple[Any, ...] = (
        tuple(claims) if isinstance(claims, Iterable) and not isinstance(claims, str) else (claims,)
    )
    wrong = [one for one in found if not isinstance(one, Claim)]
    if wrong or not found:
        raise ValueError(
            f"claims must be at least one claim, made by `claim`, got {describe(wrong[0] if wrong else claims)}."
        )
    return found


def _models(trained: Any) -> tuple[Any, ...]:
    """One model, or several in order."""
    if isinstance(trained, Run):
        if np.ndim(trained.steps) != 1 or np.ndim(trained.diverged_at):
            raise ValueError(f"trained must be one run, got one of steps {describe(trained.steps)}: take one lane.")
        model, records = trained.model, trained.observed
        if type(records) is not type(model):
            return (model,)
        at = lambda i: jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, records)
        return tuple(map(at, range(len(trained.steps))))
    if isinstance(trained, list | tuple) and not hasattr(trained, "_fields"):
        if not trained or len({type(one) for one in trained}) > 1:
            raise ValueError(f"trained must be a model, or models of one class, got {describe(trained)}.")
        shapes = [[jnp.shape(x) for x in jax.tree.leaves(eqx.filter(one, eqx.is_array))] for one in trained]
        if any(one != shapes[0] for one in shapes):
            raise ValueError(f"trained must be models of one shape, got {shapes[0]} and others.")
        return tuple(trained)
    return (trained,)


def _check_data(network: Network, models: Sequence[Any], data: Any) -> None:
    if callable(data):
        raise ValueError(
            f"data must be fixed data, got a sampler: draw from it first, as in {type(data).__name__}(key)."
        )
    try:
        network.loss(models[-1], data)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"data must fit {network.noun}, got {describe(data)}: {error}") from error
