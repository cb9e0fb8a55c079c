"""`@checked`: the annotations of a function, checked when it is called, for users who have no type checker on.

One decorator stands for the checks that every function would otherwise write by hand: an argument is a number where one
is wanted, real where it must be, of the shape that its annotation says, with sizes that agree with those of the other
arguments and of the module's fields. Integers become floating point where floating point is wanted. Values (domains,
ranges of indices, NaN) are not looked at: see `_checks`. Under `jit` all of it happens while tracing, at no cost later.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._checks import as_array, as_float, as_inexact, check_callable, choice, describe, integer

P = ParamSpec("P")
R = TypeVar("R")
Sizes = dict[str, int | tuple[int, ...]]  # by the letters of shapes; a tuple for `*batch`
Check = Callable[[str, Any, Sizes], Any]  # name, value, sizes so far -> the value, converted


@typing.overload
def checked(target: type[R]) -> type[R]: ...
@typing.overload
def checked(target: Callable[P, R]) -> Callable[P, R]: ...
def checked(target: Any) -> Any:
    """Decorates a function, a method, or a class (its constructor) so that its arguments are checked and converted.

    **Raises** `ValueError` which names the argument, what it must be and what it got. Arguments without annotation, and
    those annotated as PyTrees, are passed on as they are.
    """
    if isinstance(target, type):
        target.__init__ = checked(_as_fields_say(target, target.__init__))
        return target
    signature = inspect.signature(target)
    checks: dict[str, Check] = {}

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return target(*args, **kwargs)  # which raises with the name of the function
        if not checks:  # on the first call, when all classes that annotations name exist
            checks.update({p.name: _check(p.annotation) for p in signature.parameters.values()} | {"": _anything})
        sizes: Sizes = {}
        for name, value in bound.arguments.items():
            if name == "self":
                _bind_fields(value, sizes)
            elif signature.parameters[name].kind not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                bound.arguments[name] = checks[name](name, value, sizes)
        return target(*bound.args, **bound.kwargs)

    return call


def _as_fields_say(cls: type, init: Callable) -> Callable:
    """Equinox writes the converter's annotation, `Any`, into a constructor in place of the field's own."""
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    for field in fields:
        if "converter" in field.metadata and init.__annotations__.get(field.name) is Any:
            init.__annotations__[field.name] = field.type
    return init


def _bind_fields(module: Any, sizes: Sizes) -> None:
    """The sizes of a module's arrays, which its methods speak of too; not `*batch`, over which fields may broadcast."""
    if isinstance(module, eqx.Module):
        for field in dataclasses.fields(module):  # pyright: ignore[reportArgumentType]
            value = getattr(module, field.name, None)
            if _is_array_type(field.type) and eqx.is_array(value):
                found: Sizes = {}
                _fits(field.type.dim_str.split(), value.shape, found)  # pyright: ignore[reportAttributeAccessIssue]
                sizes.update({letter: size for letter, size in found.items() if isinstance(size, int)})


def _check(annotation: Any) -> Check:
    """The check of one annotation."""
    if annotation is int:
        return lambda name, value, _: integer(name, value)
    if annotation is float:
        return _number
    if annotation in (bool, str):
        kind, word = ((bool, np.bool_), "True or False") if annotation is bool else (str, "a string")
        return lambda name, value, _: value if isinstance(value, kind) else _refuse(name, word, value)
    if _is_array_type(annotation):
        return lambda name, value, sizes: _array(name, value, sizes, annotation, scalars=False)
    origin, arms = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return lambda name, value, _: choice(name, value, arms)
    if origin in (typing.Union, types.UnionType):
        return _union(arms)
    if origin is Callable or annotation is Callable:
        return lambda name, value, _: check_callable(name, value) or value
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        return _record(annotation)
    plain = isinstance(annotation, type) and origin is None and annotation.__module__.split(".")[0] == "traindyn"
    if plain and not getattr(annotation, "_is_protocol", False):
        return lambda name, value, _: value if isinstance(value, annotation) else _refuse(name, _a(annotation), value)
    return _anything


def _anything(name: str, value: Any, sizes: Sizes) -> Any:
    return value


def _number(name: str, value: Any, sizes: Sizes) -> Any:
    if isinstance(value, bool | np.bool_) or not (
        isinstance(value, int | float | np.floating | np.integer)
        or (isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and jnp.isrealobj(value))
    ):
        _refuse(name, "a real number", value)
    return value


def _union(arms: tuple[Any, ...]) -> Check:
    """One of several: an array or a number, or any of the others."""
    arrays = [arm for arm in arms if _is_array_type(arm)]
    arrays = [arm for arm in arrays if arm.array_type is not np.ndarray] or arrays  # ArrayLike is both
    others = [arm for arm in arms if not _is_array_type(arm) and arm is not type(None)]
    scalar_arms = [arm for arm in others if arm in (float, int, bool, complex) or _numpy_scalar(arm)]
    rest = [_check(arm) for arm in others if arm not in scalar_arms or not arrays]
    optional = type(None) in arms

    def check(name: str, value: Any, sizes: Sizes) -> Any:
        if value is None and optional:
            return None
        error = None
        for one in rest:
            try:
                return one(name, value, sizes)
            except ValueError as problem:
                error = problem
        for arm in arrays:
            try:
                return _array(name, value, sizes, arm, scalars=bool(scalar_arms))
            except ValueError as problem:
                error = problem
        if error is None:
            return value
        raise error

    return _anything if any(one is _anything for one in rest) else check


def _record(annotation: Any) -> Check:
    """A named tuple of arrays, as the states of flows are: field by field."""
    hints = {name: _check(kind) for name, kind in annotation.__annotations__.items()}

    def check(name: str, value: Any, sizes: Sizes) -> Any:
        if not isinstance(value, annotation):
            _refuse(name, _a(annotation), value)
        fields = {key: one(f"{name}.{key}", getattr(value, key), sizes) for key, one in hints.items()}
        return value._replace(**fields)  # of its own class, as optax's transformations with extra arguments are

    return check


def _array(name: str, value: Any, sizes: Sizes, annotation: Any, *, scalars: bool) -> Any:
    """`value` as an array of this annotation; with `scalars` Python's numbers stay what they are, and weakly typed."""
    kinds = annotation.dtypes
    letters = annotation.dim_str.split()
    if "prng_key" in kinds or ("uint32" in kinds and len(kinds) == 1):
        typed = eqx.is_array(value) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        old = [*letters, "2"] if "prng_key" in kinds else letters  # a key of JAX's old kind is two numbers
        new = letters if "prng_key" in kinds else letters[:-1]
        is_key = typed or (eqx.is_array(value) and value.dtype == jnp.uint32)
        is_key = is_key and _fits(new if typed else old, value.shape, sizes)
        one, many = "one key, as jax.random.key(0)", "keys, as jax.random.split(key, number)"
        return value if is_key else _refuse(name, one if old == ["2"] else many, value)
    array = _of_kind(name, value, annotation)
    if annotation.array_type is np.ndarray and not isinstance(array, Tracer):
        host = np.asarray(value)  # whose float64 JAX may have narrowed
        array = host if host.dtype.kind == array.dtype.kind else np.asarray(array)
    if not _fits(letters, array.shape, sizes):
        raise ValueError(f"{name} must have shape {_form(letters, sizes)}, got {array.shape}.")
    return value if scalars and isinstance(value, int | float | complex | np.number) else array


def _fits(letters: list[str], shape: tuple[int, ...], sizes: Sizes) -> bool:
    """Whether a shape is as jaxtyping's letters say; if so its sizes are noted. An expression (`n-1`) is any size."""
    new = dict(sizes)
    spread = next((i for i, one in enumerate(letters) if one == "..." or one.startswith("*")), None)
    if spread is not None:
        rest = len(letters) - spread - 1
        if len(shape) < len(letters) - 1:
            return False
        middle = shape[spread : len(shape) - rest]
        if letters[spread] not in ("...", "*_") and new.setdefault(letters[spread], middle) != middle:
            return False
        letters = letters[:spread] + letters[spread + 1 :]
        shape = shape[:spread] + shape[len(shape) - rest :]
    if len(letters) != len(shape):
        return False
    for letter, size in zip(letters, shape, strict=True):
        if letter.isidentifier():
            wanted = size if letter == "_" else new.setdefault(letter, size)
        elif letter.isdigit():
            wanted = int(letter)
        else:
            wanted = size
        if wanted != size:
            return False
    sizes.update(new)
    return True


def _form(letters: list[str], sizes: Sizes) -> str:
    """A shape in the words of an error, with the sizes that are known."""
    words: list[str] = []
    for letter in letters:
        size = sizes.get(letter, letter)
        words += map(str, size) if isinstance(size, tuple) else [str(size)]
    return f"({', '.join(words)}{',' * (len(words) == 1)})"


def _of_kind(name: str, value: Any, annotation: Any) -> Any:
    kinds = annotation.dtypes
    if "complex64" in kinds and "float64" not in kinds:
        array = as_inexact(value, name)
        wider = jnp.complex128 if array.dtype == jnp.float64 else jnp.complex64
        return array if jnp.iscomplexobj(array) else array.astype(wider)
    if "complex64" in kinds:
        return as_inexact(value, name)
    if "float64" in kinds and "int64" not in kinds:
        return as_float(value, name)
    array = as_array(name, value)
    if "float64" in kinds:
        return array if jnp.isrealobj(array) else _refuse(name, "real", value)
    if "bool" in kinds:
        return array if array.dtype == jnp.bool_ else _truth(name, array)
    if "int64" in kinds and not jnp.issubdtype(array.dtype, jnp.integer):
        _refuse(name, "integers" if array.ndim else "an integer", value)
    return array


def _truth(name: str, array: jax.Array) -> jax.Array:
    if isinstance(array, Tracer) or not np.isin(np.asarray(array), (0, 1)).all():
        _refuse(name, "boolean, or 0 and 1", array)
    return array.astype(bool)


def _is_array_type(annotation: Any) -> bool:
    return hasattr(annotation, "dtypes") and hasattr(annotation, "dim_str")


def _numpy_scalar(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, np.generic)


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _refuse(name: str, wanted: str, value: Any) -> Any:
    raise ValueError(f"{name} must be {wanted}, got {describe(value)}.")
