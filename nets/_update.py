"""One update of parameters by an optax optimiser of any kind."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .._checks import describe


class Update(NamedTuple):
    """The loss before the update, its gradient, and the parameters and the optimiser's state after it."""

    value: Float[Array, ""]
    grads: PyTree
    params: PyTree
    state: PyTree


def scalar(value: Any) -> Any:
    """`value`. **Raises** `ValueError` unless it is one real number, as a loss must be."""
    if not (hasattr(value, "dtype") or isinstance(value, float)) or jnp.shape(value) != ():
        raise ValueError(f"loss must return one real number, got {describe(value)}.")
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(f"loss must return one real number, floating point, got {describe(value)}.")
    return value


def update(
    optimiser: optax.GradientTransformation, objective: Callable[[PyTree], Any], params: PyTree, state: PyTree
) -> Update:
    """One update. Line searches and the like get the value, the gradient and the function; what an optimiser doesn't
    call is never traced.

    JAX's gradient for a complex number is the conjugate of the direction in which the loss rises.
    """

    def value_fn(p, *, obj_fn=None, grad_fn=None):  # line searches hand it all arguments that are not theirs
        del obj_fn, grad_fn
        return scalar(objective(p))

    ascent = lambda tree: jax.tree.map(jnp.conj, tree)
    value, grads = jax.value_and_grad(value_fn)(params)
    grads = ascent(grads)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes inside, whatever the caller's mode
        extra = {
            "value": value,
            "grad": grads,
            "value_fn": value_fn,  # of line searches
            "obj_fn": value_fn,  # of Sophia
            "grad_fn": lambda p, *_: ascent(jax.grad(value_fn)(p)),  # of SAM
        }
        try:
            updates, state = optimiser.update(grads, state, params, **_taken(optimiser.update, extra))
        except AttributeError as error:  # of lookahead, whose parameters are pairs
            raise ValueError(
                f"optimiser must take parameters and gradients as the model has them, got one that fails: {error}."
            ) from error
        check_real("optimiser must return real updates for real parameters", params, updates)
        params = optax.apply_updates(params, updates)
    return Update(value, grads, params, state)


def check_real(rule: str, params: PyTree, updates: PyTree) -> None:
    """**Raises** `ValueError` for complex updates of real parameters, of which optax drops the imaginary part."""
    if jax.tree.structure(params) != jax.tree.structure(updates):
        return  # which optax says
    for (path, p), u in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(updates), strict=True):
        if jnp.iscomplexobj(u) and not jnp.iscomplexobj(p):
            raise ValueError(f"{rule}, got {describe(u)} for {jax.tree_util.keystr(path)!r}.")


def _taken(function: Callable, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a function takes. By its signature: of optax's own optimisers, `MultiSteps` takes them without
    saying so, and SAM says so but takes one alone."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}
