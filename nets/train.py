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
from ._arguments import AnyKey, schedule
from ._update import scalar
from .engine import State, advance, check_end, check_state, init, record

Batch = PyTree


class Run(NamedTuple):
    """What `train` returns.

    - `state`: where training ended, to go on from: `train(None, …, state=run.state)`.
    - `steps`, shape `(records,)`: the steps recorded, `0, every, 2·every, …`, counted from the first of all runs.
    - `observed`: what `observe` returned there, with a leading axis `records`. NaN (zero, for integers) after a
      divergence.
    """

    state: State
    steps: Int[Array, " records"]
    observed: PyTree

    @property
    def model(self) -> Any:
        """The trained model."""
        return self.state.model

    @property
    def diverged_at(self) -> Int[Array, "*lanes"]:
        """The step whose loss was not finite, or −1. The model is the one that gave this loss."""
        return self.state.diverged_at


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
    state: State | None = None,
) -> Run:
    """Trains `model` by `steps` updates of `optimiser` on `loss(model, batch)`.

    One compiled scan over `step`. Under `vmap`, over keys, learning rates, initial models, it trains all lanes at once;
    under `jit` the learning rate inside `optimiser` is traced like any other value, so that changing it compiles
    nothing:

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
    - `state`: goes on from here, as `Run.state` or `init` has it, with `model` `None` and `trainable` as it was.
      Steps count on from `state.step`: with the same arguments the end is that of one longer run.

    The caller's arrays stay valid: the loop works on a copy of its own, whose buffers it donates.

    **Raises** `ValueError` for bad arguments, a state of another optimiser among them, and for labels or tokens of
    fixed data that the loss refuses. A loss that is not finite stops the run there: `diverged_at` has the step, a
    warning names it, with the reason where the loss refuses the batch, and what was recorded before is kept.
    """
    steps, every = schedule(steps, every)
    start = _start(model, optimiser, trainable, state)
    _check_data(data, key)
    if not callable(data) and concrete(data) and any(map(_is_integer, jax.tree.leaves(data))):
        _trial(loss, start, data)

    loop = _Loop(start.kept, loss, data, optimiser, key, observe, every)
    copied = jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, start._replace(kept=None))
    records, rest = divmod(steps, every)
    with warnings.catch_warnings():  # under an outer vmap the donated buffers have no output of their shape
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        if progress:
            seen = []
            for _ in tqdm(range(records), unit_scale=every, unit="step"):
                copied, one = _block(loop, copied)
                seen.append(one)
            end, last = _rest(loop, copied, rest)
            observed = jax.tree.map(lambda *x: jnp.stack(x), *seen, last)
        else:
            end, observed = _all(loop, copied, records, rest)
    end = loop.whole(end)
    if not isinstance(end.diverged_at, Tracer) and end.diverged_at >= 0:
        warnings.warn(
            f"The loss became non-finite at step {int(end.diverged_at)} of {int(end.step)}; later records are NaN."
            f"{_reason(loop, end)}",
            RuntimeWarning,
            stacklevel=3,  # above the wrapper that checks arguments
        )
    return Run(end, start.step + every * jnp.arange(records + 1), observed)


def _start(model: Any, optimiser: optax.GradientTransformation, trainable: PyTree, state: State | None) -> State:
    if state is None:
        return init(model, optimiser, trainable=trainable)
    if model is not None:
        raise ValueError(f"model must be None where state is given, which holds one, got {describe(model)}.")
    if trainable is not True:
        raise ValueError(f"trainable would be ignored: state holds what is trained, got {describe(trainable)}.")
    check_state(state, optimiser)
    return state


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


def _trial(loss: Callable, state: State, batch: Batch) -> None:
    """Traces the loss with a batch whose values are known: so its checks of labels and tokens see them. Inside the
    compiled loop they can't. Nothing is computed."""
    jax.eval_shape(lambda p: scalar(loss(eqx.combine(p, state.kept), batch)), state.params)


class _Loop(eqx.Module):
    """What stays the same from step to step. `kept`, of the model, is none of the loop's state: no copy is made of it,
    and lanes share it."""

    kept: PyTree
    loss: Callable
    data: PyTree
    optimiser: optax.GradientTransformation
    key: AnyKey | None
    observe: Callable
    every: int

    def whole(self, state: State) -> State:
        return state._replace(kept=self.kept)

    def batch(self, key: AnyKey | None) -> Batch:
        return self.data(key) if callable(self.data) else self.data

    def key_of(self, step: Int[Array, ""]) -> AnyKey | None:
        return None if self.key is None else jax.random.fold_in(self.key, step)

    def updates(self, state: State, number: int) -> State:
        def update(state, key):
            new, _ = advance(self.whole(state), self.loss, self.batch(key), self.optimiser)
            return new._replace(kept=None), None

        keys = jax.vmap(self.key_of)(state.step + jnp.arange(number))  # at once: one small computation less a step
        return jax.lax.scan(update, state, keys, length=number)[0]

    def record(self, state: State) -> PyTree:
        return record(self.whole(state), self.observe)


def _reason(loop: _Loop, state: State) -> str:
    """Why the loss was not finite, if the batch of that step is one that the loss refuses."""
    try:
        _trial(loop.loss, state, loop.batch(loop.key_of(state.diverged_at)))
    except ValueError as error:
        return f" The loss refuses its batch: {error}"
    return ""


def _all(loop: _Loop, state: State, records: int, rest: int) -> tuple[State, PyTree]:
    def block(state, _):
        return loop.updates(state, loop.every), loop.record(state)

    state, seen = jax.lax.scan(block, state, length=records)
    last = loop.record(state)
    observed = jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), seen, last)
    return check_end(loop.updates(state, rest)), observed


def _rest(loop: _Loop, state: State, rest: int) -> tuple[State, PyTree]:
    return check_end(loop.updates(state, rest)), loop.record(state)


_all = eqx.filter_jit(_all, donate="all-except-first")
_rest = eqx.filter_jit(_rest, donate="all-except-first")
_block = eqx.filter_jit(
    lambda loop, state: (loop.updates(state, loop.every), loop.record(state)), donate="all-except-first"
)
