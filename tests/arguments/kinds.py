"""Bad arguments by kind, made from a call that works.

A `Call` names a public callable and arguments with which it works. `faults` replaces one argument at a time by a value
of another dtype, shape or range, by NaN, by text or by nothing, and returns each replacement that was taken in silence
or ended in an error that does not say what is wrong:

- *refused*, as most must be: a `ValueError` raised by the library itself, which says what the argument must be;
- *NaN*, where a formula has no domain to leave: NaN in, NaN or infinity out;
- *the same*, where a value of another dtype means the same number: integers as floats, 0 and 1 as truth values.

An argument may have the shapes that its annotation allows: what jaxtyping refuses must be refused without it too.
"""

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import TypeCheckError
from jaxtyping import config as jaxtyping_config

ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / name) for name in ("dynamics", "nets", "validate", "src"))
ERRORS = (ValueError,)


@dataclasses.dataclass(frozen=True)
class Call:
    """A public callable, arguments with which it works, and what differs from the rules.

    - `arguments`: by name. What is not named here keeps its default and is not tried.
    - `accepts`: by argument, the kinds that are rightly taken (a comment in the table says why). `"*"` is any kind.
    - `bad`: by argument, further values that must be refused.
    - `positional`: the arguments that can't be given by name.
    """

    fn: Callable
    arguments: Mapping[str, Any]
    accepts: Mapping[str, str | Sequence[str]] = dataclasses.field(default_factory=dict)
    bad: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    positional: Sequence[str] = ()

    def __call__(self, **changed: Any) -> Any:
        arguments = {**self.arguments, **changed}
        first = [arguments.pop(name) for name in self.positional]
        return self.fn(*first, **arguments)


def faults(call: Call) -> list[str]:
    """One line for each replacement that the library does not deal with as it should."""
    found = []
    for name in call.arguments:
        accepted = call.accepts.get(name, ())
        accepted = {accepted} if isinstance(accepted, str) else {*accepted}
        accepted |= {"nothing"} if name in _optional(call.fn) else set()
        for kind, value, expected in replacements(call.arguments[name]):
            if not accepted & {kind, "*"} and (fault := _fault(call, name, kind, value, expected)):
                found.append(f"{name}, {kind}: {fault}")
        for value in call.bad.get(name, ()):
            if fault := _fault(call, name, "bad", value, "refused"):
                found.append(f"{name} = {value!r:.60}: {fault}")
    return found


def replacements(value: Any) -> Iterator[tuple[str, Any, str]]:
    """Other values for an argument: `(kind, value, expected outcome)`."""
    yield "text", "x" if not isinstance(value, str) else f"{value}?", "refused"
    if value is not None:
        yield "nothing", None, "refused"
    if _is_key(value):
        yield "number", 0, "refused"
    elif isinstance(value, bool | np.bool_):
        yield "number", 0.5, "refused"
    elif isinstance(value, int | np.integer):
        yield "fraction", value + 0.5, "refused"
        yield "negative", -1 - abs(int(value)), "refused"
        yield "NaN", float("nan"), "refused"
    elif isinstance(value, float | np.floating):
        yield "NaN", float("nan"), "NaN"
        yield "complex", complex(value, 1.0), "refused"
    elif isinstance(value, jax.Array | np.ndarray):
        yield from _of_array(value)
    elif isinstance(value, str) or callable(value):
        yield "number", 3, "refused"
    else:
        leaves, tree = jax.tree.flatten(value)
        for i, leaf in enumerate(leaves):
            if eqx.is_array(leaf) and not _is_key(leaf):
                for kind, changed, expected in _of_array(leaf):
                    if kind in ("complex", "longer", "NaN"):
                        yield f"leaf {i} {kind}", tree.unflatten([*leaves[:i], changed, *leaves[i + 1 :]]), expected


def _of_array(x: Any) -> Iterator[tuple[str, Any, str]]:
    x = np.asarray(x)
    if x.dtype.kind == "b":
        yield "integers", jnp.asarray(x.astype(int)), "same"
        yield "twos", jnp.asarray(2 * x.astype(int) + 1), "refused"
    elif x.dtype.kind in "iu":
        yield "floats", jnp.asarray(x + 0.5), "refused"
        if x.size and x.dtype.kind == "i":
            yield "negative", jnp.asarray(_with(x, -1)), "refused"
            yield "too large", jnp.asarray(_with(x, 10**6)), "refused"
    else:
        if x.size:
            yield "NaN", jnp.asarray(_with(x, np.nan)), "NaN"
        if x.dtype.kind != "c":
            yield "complex", jnp.asarray(x + 1j), "refused"
            yield "integers", jnp.asarray(np.round(x).astype(int)), "same"
    yield "rank", jnp.asarray(np.stack([x, x])), "typed"
    for axis in range(x.ndim):
        if x.shape[axis]:
            longer = np.concatenate([x, np.take(x, [-1], axis)], axis)
            yield f"longer {axis}" if axis else "longer", jnp.asarray(longer), "typed"


def _with(x: np.ndarray, value: Any) -> np.ndarray:
    x = x.copy()
    x.flat[-1] = value
    return x


def _optional(fn: Callable) -> set[str]:
    """The arguments that may be left out as `None`."""
    return {p.name for p in inspect.signature(fn).parameters.values() if p.default is None}


def _is_key(x: Any) -> bool:
    return eqx.is_array(x) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _fault(call: Call, name: str, kind: str, value: Any, expected: str) -> str:
    """What is wrong with the outcome of one replacement; empty if nothing is."""
    if expected == "typed":
        try:
            call(**{name: value})
            return ""  # a shape that the annotation allows
        except TypeCheckError:
            expected = "refused"
        except ValueError as error:  # the library's own check, ahead of the return annotation
            return _unclear(error)
        except Exception as error:
            return f"{type(error).__name__} from inside: {str(error)[:150]}"
    # NaN has the dtype and shape of what works in JAX's strict modes, where its programs are compiled already.
    with as_users(strict=expected == "NaN"):
        try:
            result = call(**{name: value})
        except ERRORS as error:
            return _unclear(error)
        except Exception as error:
            return f"{type(error).__name__} from inside: {str(error)[:150]}"
        if expected == "NaN" and not _all_finite(result):
            return ""
        if expected == "same":
            as_meant = value.astype(np.asarray(call.arguments[name]).dtype)
            return "" if _equal(result, call(**{name: as_meant})) else "taken, and means another number"
        return "taken in silence"


def _unclear(error: Exception) -> str:
    inner = traceback.extract_tb(error.__traceback__)[-1].filename
    clear = inner.startswith(OURS) and any(word in str(error) for word in ("must", "needs", "would be ignored"))
    return "" if clear else f"{type(error).__name__} that does not say what is needed: {str(error)[:150]}"


def _arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree) if eqx.is_array_like(x) and not _is_key(x)]


def _all_finite(tree: Any) -> bool:
    return all(np.isfinite(x).all() for x in _arrays(tree) if x.dtype.kind in "fc")


def _equal(a: Any, b: Any) -> bool:
    pairs = list(zip(_arrays(a), _arrays(b), strict=True))
    return all(x.dtype == y.dtype and np.allclose(x, y, rtol=1e-5, atol=1e-8, equal_nan=True) for x, y in pairs)


class as_users:
    """Without the shape checks of jaxtyping, which users do not have, and with JAX's ordinary promotion or strictly."""

    def __init__(self, strict: bool = False):
        self.strict = strict

    def __enter__(self):
        self.modes = (jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion)
        jaxtyping_config.update("jaxtyping_disable", True)
        if self.strict:
            return
        jax.config.update("jax_numpy_dtype_promotion", "standard")
        jax.config.update("jax_numpy_rank_promotion", "allow")

    def __exit__(self, *_):
        jaxtyping_config.update("jaxtyping_disable", False)
        jax.config.update("jax_numpy_dtype_promotion", self.modes[0])
        jax.config.update("jax_numpy_rank_promotion", self.modes[1])
