"""The recorded training loop: optax updates in one compiled scan, recording what was asked for and nothing else."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree
from tqdm import tqdm

from .._checked import checked
from .._checks import concrete, describe, integer
from .._files import folder
from ._arguments import AnyKey, check_data, schedule
from ._saved_run import Same, SavedRun, arguments, saved_run
from ._update import scalar
from .engine import State, advance, check_end, check_state, init, record
from .recorder import labelled

if TYPE_CHECKING:
    import xarray as xr

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

    def dataset(self) -> "xr.Dataset":
        """The record as a labelled dataset, one variable a leaf, with the dimension `step` first.

        A leaf is named by its path, as `layers.0.weight`, and a record that is one array `observed`. Its other
        dimensions are `NAME_1`, `NAME_2`, …. **Raises** `ValueError` for a batch of runs and inside `jit`.
        """
        return labelled(self.steps, self.observed)

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
    callback: Callable[[int, PyTree], Any] | None = None,
    out: Any = None,
    save_every: int | None = None,
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
    - `progress`: shows a bar. `callback`: is called as `callback(step, observed)` at each record, with arrays of the
      host. These two and `out` cost a return to Python at each record.
    - `out`: a folder that keeps the two newest states with all records. Called again with the same arguments and
      folder, the run goes on from the newest whole one: on one machine the end is that of an unbroken run to the bit. A
      finished run returns at once, and a larger `steps` prolongs it.
    - `save_every`: a multiple of `every`, by default `every`. The state is saved at these steps and at the end, before
      the callback is called there. Records up to the state that is found are not told to `callback` again.
    - `state`: goes on from here, as `Run.state` or `init` has it, with `model` `None` and `trainable` as it was.
      Steps count on from `state.step`: with the same arguments the end is that of one longer run.

    The caller's arrays stay valid: the loop works on a copy of its own, whose buffers it donates.

    **Raises** `ValueError` for bad arguments, a state of another optimiser among them, for labels or tokens of fixed
    data that the loss refuses, for `callback` or `out` under `jit` and `vmap`, and for a folder that holds a run with
    other arguments; `OSError` where a state can't be saved. A loss that is not finite stops the run there:
    `diverged_at` has the step, a warning names it, with the reason where the loss refuses the batch, and what was
    recorded before is kept.
    """
    steps, every = schedule(steps, every)
    start = _start(model, optimiser, trainable, state)
    check_data(data, key)
    if not callable(data) and concrete(data) and any(map(_is_integer, jax.tree.leaves(data))):
        _trial(loss, start, data)

    saving = _saving(out, save_every, every)
    loop = _Loop(start.kept, loss, data, optimiser, key, observe, every)
    copied = jax.tree.map(lambda x: jnp.array(x, copy=True) if eqx.is_array(x) else x, start._replace(kept=None))
    if callback is not None or saving:
        _check_known(callback, (start, data, key))
    with warnings.catch_warnings():  # under an outer vmap the donated buffers have no output of their shape
        warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
        if saving:
            with saved_run(out, loop.arguments(copied), int(copied.step)) as saved:
                end, observed = _by_blocks(loop, copied, steps, progress, callback, saved, saving)
        elif progress or callback is not None:
            end, observed = _by_blocks(loop, copied, steps, progress, callback)
        else:
            end, observed = _all(loop, copied, *divmod(steps, every))
    end = loop.whole(end)
    if not isinstance(end.diverged_at, Tracer) and end.diverged_at >= 0:
        warnings.warn(
            f"The loss became non-finite at step {int(end.diverged_at)} of {int(end.step)}; later records are NaN."
            f"{_reason(loop, end)}",
            RuntimeWarning,
            stacklevel=3,  # above the wrapper that checks arguments
        )
    return Run(end, start.step + every * jnp.arange(steps // every + 1), observed)


def _start(model: Any, optimiser: optax.GradientTransformation, trainable: PyTree, state: State | None) -> State:
    if state is None:
        return init(model, optimiser, trainable=trainable)
    if model is not None:
        raise ValueError(f"model must be None where state is given, which holds one, got {describe(model)}.")
    if trainable is not True:
        raise ValueError(f"trainable would be ignored: state holds what is trained, got {describe(trainable)}.")
    check_state(state, optimiser)
    return state


def _saving(out: Any, save_every: int | None, every: int) -> int:
    """How many steps lie between two saved states; zero if none is saved."""
    if out is None:
        if save_every is not None:
            raise ValueError(f"save_every would be ignored: out names no folder, got {describe(save_every)}.")
        return 0
    folder("out", out)
    number = every if save_every is None else integer("save_every", save_every, least=1)
    if number % every:
        raise ValueError(f"save_every must be a multiple of every = {every}, got {number}.")
    return number


def _check_known(callback: Callable | None, values: PyTree) -> None:
    if not concrete(values):
        name = "out" if callback is None else "callback"
        raise ValueError(f"{name} must be None under jit and vmap, where it would be given no values, got traced ones.")


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

    def block(self, state: State) -> tuple[State, PyTree]:
        """From one record to the next."""
        state = self.updates(state, self.every)
        return state, self.record(state)

    def arguments(self, state: State) -> Same:
        """What tells a run that starts here from others."""
        data = None if callable(self.data) else self.data
        arrays = {"every": self.every, "model": (state.params, self.kept), "optimiser": state.optimiser_state}
        arrays |= {"data": data, "key": self.key, "state": (state.step, state.diverged_at)}
        return arguments(arrays, lambda loop, state: loop.block(state), self, state)


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


def _by_blocks(
    loop: _Loop,
    state: State,
    steps: int,
    progress: bool,
    callback: Callable[[int, PyTree], Any] | None,
    saved: SavedRun | None = None,
    saving: int = 0,
) -> tuple[State, PyTree]:
    """The same with a return to Python at each record, from the newest state that was saved."""
    watched = callback is not None or saved is not None
    first, done, seen = int(state.step) if watched else 0, 0, []

    def see(one: PyTree) -> PyTree:
        one = jax.device_get(one) if concrete(one) else one
        seen.append(jax.tree.map(lambda x: x[None], one))
        return one

    found = saved and saved.newest(steps, loop.every, state, eqx.filter_eval_shape(loop.record, state))
    if found:
        done, state, before = found
        seen.append(before)
    else:
        one = see(_record(loop, state))
        if callback:
            callback(first, one)
    with tqdm(total=steps, initial=done, unit="step", disable=not progress) as bar:
        while done < steps:
            number = min(loop.every, steps - done)
            if number == loop.every:
                state, one = _block(loop, state)
                one = see(one)
            else:
                state, one = _rest(loop, state, number), None
            if watched:  # under vmap, an optimiser's own numbers show here only
                _check_known(callback, state)
            done += number
            bar.update(number)
            if saved and (done % saving == 0 or done == steps):
                seen[:] = [_joined(seen)]
                saved.save(done, state, seen[0])
            if callback and number == loop.every:
                callback(first + done, one)
    return _end(state), jax.tree.map(jnp.asarray, _joined(seen))


def _joined(seen: list[PyTree]) -> PyTree:
    """Records as one, on the host where their values are known: that compiles nothing."""
    return jax.tree.map(lambda *x: (np if concrete(x) else jnp).concatenate(x), *seen)


_all = eqx.filter_jit(_all, donate="all-except-first")
_block = eqx.filter_jit(lambda loop, state: loop.block(state), donate="all-except-first")
_rest = eqx.filter_jit(lambda loop, state, number: loop.updates(state, number), donate="all-except-first")
_record = eqx.filter_jit(lambda loop, state: loop.record(state))
_end = eqx.filter_jit(check_end)
