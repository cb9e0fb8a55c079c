"""Checks of arguments, for all rooms. One wording: the argument, what it must be, what it got.

Shapes and types are always checked. Values are checked where they are known: not inside `jit`, `vmap` or `grad`, where
an index out of range is clamped by JAX and a number outside its domain gives what the formula gives.
"""

import contextlib
import difflib
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact, Int, PyTree

T = TypeVar("T")
Shape = tuple[int | str, ...]
Bound = int | float | None


def describe(x: Any) -> str:
    """A short text for a value: `float64[3, 2]` for a large array, otherwise what Python prints, cut at 80 letters."""
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        form = f"{x.dtype}{list(x.shape)}"
        few = not isinstance(x, Tracer) and x.size <= 4 and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
        return f"{form} {np.asarray(x)}" if few else form
    text = repr(x)
    return text if len(text) <= 80 else f"{text[:77]}..."


def concrete(tree: PyTree) -> bool:
    """Whether every array of a PyTree has values here and now, rather than being traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def require(x: T, ok: Bool[ArrayLike, ""], message: str) -> T:
    """Returns `x`. Raises `ValueError(message)` unless `ok`; where `ok` is traced, an Equinox runtime error."""
    if isinstance(ok, Tracer):
        return eqx.error_if(x, jnp.logical_not(ok), message)
    if not np.all(ok):
        raise ValueError(message)
    return x


def or_nan(x: Inexact[Array, "..."], ok: Bool[ArrayLike, "..."], message: str) -> Inexact[Array, "..."]:
    """Returns `x`. Raises `ValueError(message)` unless `ok`; where `ok` is traced, `x` is NaN instead: no check at run
    time, which would keep what calls it out of JAX's compilation cache."""
    return jnp.where(ok, x, jnp.nan) if isinstance(ok, Tracer) else require(x, np.all(ok), message)


def as_array(name: str, x: Any) -> Array:
    """`x` as an array of numbers or truth values. Raises `ValueError` for strings, objects, ragged lists, `None`, and
    integers that JAX's width does not hold, which it would wrap."""
    if isinstance(x, jax.Array):
        return x
    known = concrete(x)
    try:
        # Values of the host stay known inside jit, to functions that compute on the host and to checks.
        with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
            array = jnp.asarray(x)
    except OverflowError as error:
        raise ValueError(f"{name} must hold integers of at most {_bits()} bits, got {describe(x)}.") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, jax.errors.JAXTypeError):
            raise
        raise ValueError(f"{name} must be a number or an array of numbers, got {describe(x)}.") from error
    if known and jnp.issubdtype(array.dtype, jnp.integer) and array.dtype.itemsize < np.asarray(x).dtype.itemsize:
        if not np.array_equal(np.asarray(array), np.asarray(x)):
            raise ValueError(f"{name} must hold integers of at most {_bits()} bits, got {describe(x)}.")
    return array


def _bits() -> str:
    return f"{8 * jnp.result_type(int).itemsize}"


def as_inexact(x: Any, name: str = "the argument") -> Inexact[Array, "..."]:
    """`x` as an array; integers and arrays of truth values become floating point, complex numbers stay. Raises
    `ValueError` for `True` and `False` too."""
    if isinstance(x, bool | np.bool_):
        raise ValueError(f"{name} must be a number or an array of numbers, got {x}.")
    x = as_array(name, x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))


def as_float(x: Any, name: str = "the argument") -> Float[Array, "..."]:
    """`x` as a floating-point array, of its own precision. Raises `ValueError` for complex numbers too."""
    x = as_inexact(x, name)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"{name} must be real, got {describe(x)}.")
    return x


def check_precision(name: str, x: Any) -> None:
    """Raises `ValueError` for floating point of less than 32 bits, in which linear algebra and solvers fail."""
    if eqx.is_inexact_array(x) and jnp.finfo(x.dtype).bits < 32:
        raise ValueError(f"{name} must be float32 or float64, got {describe(x)}: cast it.")


def check_shape(name: str, x: Any, shape: Shape, sizes: dict[str, int] | None = None) -> None:
    """Raises `ValueError` unless `x` has the shape. Letters stand for sizes: those in `sizes`, or any size at all."""
    sizes, found = sizes or {}, np.shape(x)
    wanted = tuple(sizes.get(s, s) if isinstance(s, str) else s for s in shape)
    if len(found) != len(wanted) or any(isinstance(w, int) and w != n for w, n in zip(wanted, found, strict=True)):
        form = ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "")
        raise ValueError(f"{name} must have shape ({form}), got {found}.")


def real(
    name: str,
    x: Any,
    shape: Shape | None = None,
    sizes: dict[str, int] | None = None,
    *,
    above: Bound = None,
    least: Bound = None,
    below: Bound = None,
    most: Bound = None,
    finite: bool = True,
) -> Float[Array, "..."]:
    """`x` as a real floating-point array of this shape, each entry in this range; NaN never passes.

    **Raises** `ValueError` naming the argument, what it must be, and the first entry that is not.
    """
    given, x = x, as_float(x, name)
    if shape is not None:
        check_shape(name, x, shape, sizes)
    if concrete(given):  # a number stays known inside jit, where its array is not
        check_range(name, given, above=above, least=least, below=below, most=most, finite=finite)
    return x


def check_range(
    name: str,
    x: Any,
    *,
    above: Bound = None,
    least: Bound = None,
    below: Bound = None,
    most: Bound = None,
    finite: bool = True,
) -> None:
    """Raises `ValueError` unless each entry of `x`, whose values are known, lies in the range; NaN never does."""
    values = np.asarray(x)
    bounds = (
        (above, "above", operator.gt),
        (least, "at least", operator.ge),
        (below, "below", operator.lt),
        (most, "at most", operator.le),
    )
    wanted = [(f"{word} {bound}", compare, bound) for bound, word, compare in bounds if bound is not None]
    good = np.isfinite(values) if finite else ~np.isnan(values)
    for _, compare, bound in wanted:
        good = good & compare(values, bound)
    if not np.all(good):
        where = np.unravel_index(np.argmin(good), values.shape)
        words = [text for text, *_ in wanted] or ([] if finite else ["not NaN"])
        words = ["finite"] * bool(finite and (np.isinf(values[where]) or not words)) + words
        place = f" at [{', '.join(map(str, where))}]" if where else ""
        raise ValueError(f"{name} must be {' and '.join(words)}, got {values[where]}{place}.")


def integer(name: str, x: Any, *, least: int | None = None, most: int | None = None) -> int:
    """`x` as a Python integer in this range. Raises `ValueError` for anything else: 2.0, True and traced values too."""
    words = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None)
    wanted = f"{name} must be an integer{' of ' if words else ''}{' and '.join(words)}"
    if isinstance(x, Tracer):
        raise ValueError(f"{wanted} known outside jit and vmap, got a traced value.")
    if isinstance(x, np.ndarray | jax.Array) and x.ndim == 0:
        x = x[()] if isinstance(x, np.ndarray) else np.asarray(x)[()]
    if isinstance(x, bool | np.bool_) or not isinstance(x, int | np.integer):
        raise ValueError(f"{wanted}, got {describe(x)}.")
    if (least is not None and x < least) or (most is not None and x > most):
        raise ValueError(f"{wanted}, got {x}.")
    return int(x)


def indices(
    name: str, x: Any, size: int, shape: Shape | None = None, sizes: dict[str, int] | None = None
) -> Int[Array, "..."]:
    """`x` as an array of integers from 0 to `size − 1`. Raises `ValueError` for others, negative ones too."""
    given, x = x, as_array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, got {describe(x)}.")
    if shape is not None:
        check_shape(name, x, shape, sizes)
    if concrete(given):
        values = np.asarray(given)
        if values.size and (values.min() < 0 or values.max() >= size):
            wrong = values[(values < 0) | (values >= size)].flat[0]
            raise ValueError(f"{name} must lie from 0 to {size - 1}, got {wrong}.")
    return x


def mask(name: str, x: Any, shape: Shape | None = None, sizes: dict[str, int] | None = None) -> Bool[Array, "..."]:
    """`x` as truth values: booleans as they are, numbers if all are 0 or 1 (traced ones are refused)."""
    x = as_array(name, x)
    if shape is not None:
        check_shape(name, x, shape, sizes)
    if x.dtype == jnp.bool_:
        return x
    if not concrete(x) or not np.isin(np.asarray(x), (0, 1)).all():
        raise ValueError(f"{name} must be boolean, or 0 and 1, got {describe(x)}.")
    return x.astype(bool)


def check_positive_semidefinite(name: str, x: Any) -> None:
    """Raises `ValueError` unless the matrices of `x`, if their values are known, are symmetric and have no negative
    eigenvalue, to 1e-5 of the largest."""
    if not concrete(x):
        return
    values = np.asarray(x, float)
    check_range(name, values)
    if not np.allclose(values, values.swapaxes(-1, -2), rtol=0, atol=1e-5 * np.abs(values).max(initial=0)):
        raise ValueError(f"{name} must hold symmetric matrices, got some that are not.")
    eigenvalues = np.linalg.eigvalsh(values)
    lowest = eigenvalues.min(initial=0)
    if lowest < -1e-5 * np.abs(eigenvalues).max(initial=0):
        raise ValueError(f"{name} must be positive semidefinite, got an eigenvalue of {lowest:.3g}.")


def strings(name: str, x: Any) -> tuple[str, ...]:
    """`x` as a tuple of strings: one string is one, never its letters."""
    found = (x,) if isinstance(x, str) else tuple(x) if isinstance(x, Iterable) else (x,)
    for one in found:
        if not isinstance(one, str):
            raise ValueError(f"{name} must be a string or strings, got {describe(one)}.")
    return found


def choice(name: str, x: T, options: Sequence[T]) -> T:
    """`x`, one of the options. Raises `ValueError`, which lists them and names the nearest."""
    if (isinstance(x, str) and x in options) or any(x is option for option in options):
        return x
    near = difflib.get_close_matches(str(x), [str(option) for option in options], n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {describe(x)}.{guess}")


def check_callable(name: str, x: Any) -> None:
    """Raises `ValueError` unless `x` can be called and is an instance rather than a class."""
    if isinstance(x, type):
        raise ValueError(f"{name} must be an instance, got the class {x.__name__}: call it with its arguments first.")
    if not callable(x):
        raise ValueError(f"{name} must be callable, got {describe(x)}.")
