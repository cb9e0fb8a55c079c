"""Numbers and texts as users of claims give them: on the host, of their own precision, or refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import describe


def on_host(argument: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{argument} must have no mask, which would be ignored: leave out what it hides, or fill it.")
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        if isinstance(error, jax.errors.JAXTypeError):
            raise
        raise ValueError(f"{argument} must be a number or an array of numbers, got {describe(values)}.") from error


def as_numbers(argument: str, values: Any, kinds: str = "biuf") -> np.ndarray:
    """Numbers of these kinds as they are: on the host, where float32 as JAX's default narrows nothing."""
    array = on_host(argument, values)
    if jnp.issubdtype(array.dtype, jnp.floating) and not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32)  # bfloat16 and float8, which NumPy and its files do not know
    if array.dtype.kind not in kinds:
        raise ValueError(f"{argument} must be {'real ' * ('c' not in kinds)}numbers, got {describe(values)}.")
    return array


def as_number(argument: str, value: Any) -> float:
    array = as_numbers(argument, value)
    if array.ndim:
        raise ValueError(f"{argument} must be a number, got {describe(array)}.")
    return float(array)


def check_text(name: str, text: Any) -> None:
    if not isinstance(text, str) or text.encode("utf-8", "ignore").decode() != text:
        raise ValueError(f"{name} must be a string without lone surrogates, got {describe(text)}.")


def check_label(name: str, text: Any) -> None:
    """Labels are names in files, where some end at a null character."""
    check_text(name, text)
    if "\0" in text:
        raise ValueError(f"{name} must hold no null character, got {describe(text)}.")
