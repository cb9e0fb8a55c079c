"""The recorded training loop: optax updates in one compiled scan, recording what was asked for and nothing else."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree
from tqdm import tqdm

from .._checked import checked
from .._checks import check_callable, concrete, describe
from ._arguments import schedule
from ._loop import AnyKey, Carry, Loop, check_end
from ._update import scalar

Batch = PyTree


class Run(NamedTuple):
    """What `train` returns.

    - `model`: the trained model.
    - `steps`, shape `(records,)`: the steps recorded, `0, every, 2·every, …`.
    - `observed`: what `observe` returned there, with a leading axis `records`. NaN (zero, for integers) after a
      divergence.
    - `diverged_at`: the step whose loss was not finite, or −1. The model is the one that gave this loss.
    """

    model: Any
    steps: Int[Array, " records"]
    observed: PyTree
    diverged_at: Int[Array, ""]


@checked
def train(
    model: Any,
    loss: Callable[[Any, Batch], Float[Array, ""]],
    data: Callable[[AnyKey], Batch] | Batch,
    optimiser: optax.GradientTransformation,
    steps: int,
    *,
    key: AnyKey | None = None,
    trainable: PyTree = True,
    observe: Callable[[Any], PyTree] = lambda model: None,
    every: int | None = None,
    progress: bool = False,
) -> Run:
    """Trains `model` by `steps` updates of `optimiser` on `loss(model, batch)`.

    One compiled scan. Under `vmap`, over keys, learning rates, initial models, it trains all lanes at once; under `jit`
    the learning rate inside `optimiser` is traced like any other value, so that changing it compiles nothing:

        jax.jit(lambda learning_rate: train(..., optax.sgd(learning_rate), ...))

    In flow time, step `n` of gradient descent stands at `t = learning_rate × n`.

    **Arguments:** `model`, any PyTree, of which the floating-point arrays are trained, complex ones too; `data`, either
    a sampler `(key) -> batch`, drawn anew inside the scan at each step, or a fixed PyTree of arrays, used whole at each
    step; `optimiser`, from optax or like it: line searches and others that need the loss itself get it.

    - `key`: for the sampler, which needs one; fixed data take none. Step `n` draws with `jax.random.fold_in(key, n)`.
    - `trainable`: `True` at the leaves to train, `False` at those to keep, or any tree prefix of that, as in
      `trainable=block.trainable()`. What is kept has no gradient, state or decay, and lanes share it under `vmap`.
    - `observe`: maps the model to any PyTree of arrays, recorded at the steps `0, every, 2·every, …`.
    - `every`: by default `steps`: the start and the end.
    - `progress`: shows a bar, at the cost of a return to Python at each record.

    The caller's arrays stay valid: the loop works on a copy of its own, whose buffers it donates.

    **Raises** `ValueError` for bad arguments, and for labels or tokens of fixed data that the loss refuses. A loss that
    is not finite stops the run there: `diverged_at` has the step, a warning names it, with the reason where the loss
    refuses the batch, and what was recorded before is kept.
    """
    steps, every = schedule(steps, every)
    params, static = _parted(model, trainable)
    _check_data(data, key)
    if not callable(data) and concrete(data) and any(map(_is_integer, jax.tree.leaves(data))):
        _trial(loss, params, static, data)

    loop = Loop(static, loss, data, optimiser, key, observe, every)
    zero = jnp.zeros((), int)
    carry = Carry(params, optimiser.init(params), zero, zero - 1)
    carry = jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, carry)
    records, rest = divmod(steps, every)
    with warnings.catch_warnings():  # under an outer vmap the donated buffers have no output of their shape
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        if progress:
            seen = []
            for _ in tqdm(range(records), unit_scale=every, unit="step"):
                carry, record = _block(loop, carry)
                seen.append(record)
            carry, last = _rest(loop, carry, rest)
            observed = jax.tree.map(lambda *x: jnp.stack(x), *seen, last)
        else:
            carry, observed = _all(loop, carry, records, rest)
    if not isinstance(carry.diverged_at, Tracer) and carry.diverged_at >= 0:
        warnings.warn(
            f"The loss became non-finite at step {int(carry.diverged_at)} of {steps}; later records are NaN."
            f"{_reason(loop, carry)}",
            RuntimeWarning,
            stacklevel=3,  # above the wrapper that checks arguments
        )
    return Run(eqx.combine(carry.params, static), every * jnp.arange(records + 1), observed, carry.diverged_at)


def _parted(model: Any, trainable: PyTree) -> tuple[PyTree, PyTree]:
    """What is trained of a model, and the rest of it."""
    for leaf in [None] if trainable is None else jax.tree.leaves(trainable):
        if not isinstance(leaf, bool | np.bool_):
            raise ValueError(f"trainable must be True, False or a tree of them, got {describe(leaf)}.")
    try:
        chosen, kept = eqx.partition(model, trainable)
    except ValueError as error:
        raise ValueError(f"trainable must be a tree prefix of model, got another tree: {error}") from error
    params, static = eqx.partition(chosen, eqx.is_inexact_array)
    if not jax.tree.leaves(params):
        raise ValueError("model must hold at least one floating-point array, got none to train.")
    return params, eqx.combine(static, kept)


def _check_data(data: Any, key: AnyKey | None) -> None:
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


def _is_integer(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.integer)


def _trial(loss: Callable, params: PyTree, static: PyTree, batch: Batch) -> None:
    """Traces the loss with a batch whose values are known: so its checks of labels and tokens see them. Inside the
    compiled loop they can't. Nothing is computed."""
    jax.eval_shape(lambda p: scalar(loss(eqx.combine(p, static), batch)), params)


def _reason(loop: Loop, carry: Carry) -> str:
    """Why the loss was not finite, if the batch of that step is one that the loss refuses."""
    batch = loop.data
    if callable(batch):
        assert loop.key is not None
        batch = batch(jax.random.fold_in(loop.key, carry.diverged_at))
    try:
        _trial(loop.loss, carry.params, loop.static, batch)
    except ValueError as error:
        return f" The loss refuses its batch: {error}"
    return ""


def _all(loop: Loop, carry: Carry, records: int, rest: int) -> tuple[Carry, PyTree]:
    def block(carry, _):
        return loop.updates(carry, loop.every), loop.record(carry)

    carry, seen = jax.lax.scan(block, carry, length=records)
    last = loop.record(carry)
    observed = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), seen, last)
    return check_end(loop.updates(carry, rest)), observed


def _rest(loop: Loop, carry: Carry, rest: int) -> tuple[Carry, PyTree]:
    return check_end(loop.updates(carry, rest)), loop.record(carry)


_all = eqx.filter_jit(_all, donate="all-except-first")
_rest = eqx.filter_jit(_rest, donate="all-except-first")
_block = eqx.filter_jit(
    lambda loop, carry: (loop.updates(carry, loop.every), loop.record(carry)), donate="all-except-first"
)
