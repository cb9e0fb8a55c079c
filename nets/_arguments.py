"""Checks of arguments that several of these modules share."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from .._checks import check_callable, concrete, describe, indices, integer, real

AnyKey = Key[Array, ""] | UInt32[Array, "2"]


def floating(dtype: Any) -> Any:
    """`dtype`, by default JAX's. **Raises** `ValueError` unless it is one of real floating-point numbers."""
    if dtype is None:
        return jnp.result_type(float)
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"dtype must be a floating-point dtype, as jnp.float32, got {describe(dtype)}.")
    return found


def training_dtype(dtype: Any) -> Any:
    """As `floating`. **Raises** `ValueError` for float16 too, in which Adam's 1e-8 and its second moments are zero."""
    dtype = floating(dtype)
    if dtype == jnp.float16:
        raise ValueError("dtype must have the range of float32, as bfloat16 has, or Adam divides by zero, got float16.")
    return dtype


def check_sizes(**sizes: int) -> None:
    """**Raises** `ValueError` unless each is an integer of at least 1."""
    for name, size in sizes.items():
        integer(name, size, least=1)


def schedule(steps: int, every: int | None) -> tuple[int, int]:
    """The number of steps and how many lie between records: by default all, so that the start and the end are seen."""
    steps = integer("steps", steps, least=0)
    return steps, max(steps, 1) if every is None else integer("every", every, least=1)


def seed_numbers(seeds: Sequence[int]) -> list[int]:
    """The seeds as Python integers. **Raises** `ValueError` unless NumPy's generator takes each."""
    if isinstance(seeds, str) or not np.ndim(seeds) == 1 or len(seeds) < 1:
        raise ValueError(f"seeds must be a sequence of at least one integer, got {describe(seeds)}.")
    return [integer("seeds", seed, least=0, most=2**32 - 1) for seed in seeds]


def inside(label: Int[Array, "*batch"], classes: int) -> Int[Array, "*batch"]:
    """Labels for a look-up in `classes` columns, which gives NaN beyond the last: negative ones are put there too, for
    JAX would count them from the end."""
    return jnp.where(label < 0, jnp.asarray(classes, label.dtype), label)


def check_contexts(x: Any, query: Any, z: Float[Array, "queries tokens"], *, counts: bool, of: str = "") -> None:
    """**Raises** `ValueError` for a query without logits, and with `counts` for frequencies below zero, where known.
    `of` stands before the names."""
    indices(f"{of}query", query, z.shape[0])
    if counts and concrete(x) and not np.all(np.asarray(x) >= 0):
        raise ValueError(f"{of}x must be frequencies, none negative or NaN, got {describe(x)}.")


def check_activation(activation: Callable, shape: tuple[int, ...], dtype: Any) -> None:
    """**Raises** `ValueError` unless an activation of numbers of this shape has that shape. Nothing is computed."""
    found = jax.eval_shape(activation, jax.ShapeDtypeStruct(shape, dtype))
    if getattr(found, "shape", None) != shape:
        raise ValueError(f"activation must keep the shape {shape} of what it is given, got {describe(found)}.")


def check_logits(logits: Any, *rows: int) -> Any:
    """`logits`, what a model returned. **Raises** `ValueError` unless it has the shape `(*rows, vocabulary)`."""
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    if len(shape) != len(rows) + 1 or shape[:-1] != rows or 0 in shape[-1:]:
        form = ", ".join(map(str, rows)) + ", vocabulary" if rows else "classes,"
        raise ValueError(f"model must return logits of shape ({form}), got {describe(logits)}.")
    return logits


def check_some(name: str, number: int) -> None:
    """**Raises** `ValueError` for a mean over nothing."""
    if number < 1:
        raise ValueError(f"{name} must hold at least one sample, got none.")


def check_fields(params: Any, names: Sequence[str], of: str) -> None:
    """**Raises** `ValueError` unless an optimiser for the fields of one model has parameters with these fields."""
    if not all(hasattr(params, name) for name in names):
        raise ValueError(f"params must have the fields {', '.join(names)}, as {of} has, got {describe(params)}.")


def one_number(schedule: Any) -> Any:
    """A learning rate as it is; a schedule of it **raises** `ValueError` where it gives anything but one number."""
    if not callable(schedule):
        return schedule

    def of(step: Any) -> Any:
        rate = schedule(step)
        if not isinstance(rate, int | float | np.generic | np.ndarray | jax.Array) or jnp.shape(rate) != ():
            raise ValueError(f"learning_rate must be a number or a schedule that returns one, got {describe(rate)}.")
        return rate

    return of


def check_rates(learning_rate: Any, weight_decay: Any) -> None:
    """**Raises** `ValueError` for a learning rate that is not finite and a weight decay that is not so either or is
    negative, where known."""
    real("learning_rate", learning_rate, ()), real("weight_decay", weight_decay, (), least=0)


def check_data(data: Any, key: AnyKey | None) -> None:
    """**Raises** `ValueError` unless data are a sampler with one key, or fixed arrays without."""
    if callable(data):
        check_callable("data", data)
        if key is None:
            raise ValueError("key must be given: data is a sampler, which draws with it.")
        if key.ndim != (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1):
            raise ValueError(f"key must be one key, got an array of shape {key.shape}: take one run a key by vmap.")
        return
    if key is not None:
        raise ValueError("key would be ignored: data is fixed, so that nothing is drawn.")
    for path, leaf in jax.tree.leaves_with_path(data):
        name = f"data{jax.tree_util.keystr(path)}"
        if not eqx.is_array_like(leaf):
            raise ValueError(f"{name} must be an array, got {leaf!r}.")
        if isinstance(leaf, np.ndarray | np.generic):
            try:
                jax.typeof(leaf)
            except TypeError as error:
                raise ValueError(f"{name} must be an array of numbers, got {describe(leaf)}.") from error
