"""Diffrax's `diffeqsolve` and its loop, less what only costs compilation where `solve` calls them.

Two things in them are of no use there:

- the hundredth number before `t1`, by a hundred steps in a row, which is a quarter of the compilation of a solve;
- a check that the times to save are in order, which `solve` has made. A check at run time calls back into Python, and
  JAX keeps no program that does in its compilation cache.

The functions are Diffrax's own with another `eqxi` and `range` among their names, so that all numbers are the same.
"""

import inspect
import types
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox.internal as eqxi
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

source: Any = inspect.getmodule(inspect.unwrap(dfx.diffeqsolve))
ULPS = 100  # as far before t1 a step is lengthened to end there


def shortly_before(t: Float[Array, ""]) -> Float[Array, ""]:
    """The hundredth number before `t > 0`, at once."""
    t = lax.stop_gradient(t)
    whole = lax.bitcast_convert_type(t, jnp.int64 if t.dtype == jnp.float64 else jnp.int32)
    return lax.bitcast_convert_type(jnp.maximum(whole - ULPS, 0), t.dtype)


def _error_if(x: Any, wrong: Any, message: str) -> Any:
    return x if message.startswith("saveat.ts must") else eqxi.error_if(x, wrong, message)


def _once(number: int) -> range:
    return range(1 if number == ULPS else number)


_names = vars(source) | {
    "range": _once,
    "eqxi": types.SimpleNamespace(**vars(eqxi) | {"prevbefore": shortly_before, "error_if": _error_if}),
}


def _renamed(function: Callable) -> Callable:
    copy = types.FunctionType(function.__code__, _names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


diffeqsolve: Callable[..., dfx.Solution] = _renamed(inspect.unwrap(dfx.diffeqsolve))
"""Without its own jit, which inside another would keep every flow alive."""

_code = source.loop.__code__
_as_known = ULPS in _code.co_consts and {"range", "prevbefore"} <= set(_code.co_names)  # Diffrax 0.7.2's; else its own
_loop = _renamed(source.loop) if _as_known else source.loop


class Checkpointed(dfx.RecursiveCheckpointAdjoint):
    """Diffrax's adjoint by checkpoints, around this loop."""

    @property
    def _loop(self) -> Callable:
        return _loop
