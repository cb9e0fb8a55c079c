"""Compiled functions that forget: `filter_jit` of a function that users call with new closures again and again."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax

P = ParamSpec("P")
R = TypeVar("R")


def bounded_jit(function: Callable[P, R], limit: int = 64) -> Callable[P, R]:
    """`eqx.filter_jit(function)`, which keeps at most `limit` compilations.

    A compilation belongs to the functions among its arguments, and a lambda written in a call is a new function each
    time. Every one costs some ten megabytes and a hundred memory maps; the kernel ends a process that has 65 530 maps.
    The program that is needed throughout is compiled again once in `limit` new ones.
    """
    traced = 0

    @functools.wraps(function)
    def counted(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal traced
        traced += 1
        return function(*args, **kwargs)

    jitted: Any = eqx.filter_jit(counted)
    forget = getattr(getattr(jitted, "_cached", None), "clear_cache", jax.clear_caches)  # Equinox has no public name

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal traced
        if traced >= limit:
            traced = 0
            forget()
        return jitted(*args, **kwargs)

    return call
