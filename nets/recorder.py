"""Records for training loops of your own, as `train` makes them, and as labelled datasets."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from .._checked import checked
from .._checks import concrete, describe, integer
from .engine import State, observed, record

if TYPE_CHECKING:
    import xarray as xr


@checked
class Recorder:
    """Observes the model of a training loop of your own at the steps `start, start + every, …`, as `train` does.

    Call it before each update and after the last; between two records it does nothing:

        recorder = Recorder(observe, every=10)
        for step, batch in enumerate(batches):
            recorder(step, model)
            model = update(model, batch)
        recorder(len(batches), model)

    `recorder.steps` and `recorder.observed` are then those of a `Run`. The model may be of any library: only `observe`
    looks at it. Arrays are copied, so that updates in place and donated buffers do no harm.

    Under `jit`, `vmap` and `grad` a recorder that is made inside works the same, as long as steps are Python's numbers.
    For a loop by `lax.scan`, scan over `every` steps and call the recorder between two scans.

    **Arguments:** `observe`, from the model to any PyTree of arrays; `every`, the steps between two records; `start`,
    the step of the first one, where training goes on from an earlier loop.

    **Raises** `ValueError` for bad arguments.
    """

    def __init__(self, observe: Callable[[Any], PyTree], every: int, *, start: int = 0):
        self.observe = observe
        self.every = integer("every", every, least=1)
        self.start = integer("start", start, least=0)
        self._last = self.start - 1
        self._seen: list[PyTree] = []

    @checked
    def __call__(self, step: int, model: Any) -> None:
        """Records `model`, which has taken `step` updates, if its turn has come.

        `model` may be the `State` of `nets.step`. Then its model is observed, and as NaN once it has diverged.

        **Raises** `ValueError` for a step that is not above the last one, for a record that was skipped, and for
        observations of another structure, shape or dtype than the first.
        """
        step = integer("step", step, least=self.start)
        if step <= self._last:
            raise ValueError(f"step must be above {self._last}, the last one that the recorder saw, got {step}.")
        due = self.start + self.every * len(self._seen)
        if step > due:
            raise ValueError(f"step must be at most {due}, the step of the next record, got {step}: it was skipped.")
        if isinstance(model, State) and concrete(model.step) and int(model.step) != step:
            raise ValueError(f"step must be that of the state, {int(model.step)}, got {step}.")
        if step == due:
            seen = record(model, self.observe) if isinstance(model, State) else observed(model, self.observe)
            if self._seen:
                _check_alike(seen, self._seen[0])
            self._seen.append(jax.tree.map(jnp.array, seen))
        self._last = step

    @property
    def steps(self) -> Int[Array, " records"]:
        """The steps recorded, shape `(records,)`."""
        return self.start + self.every * jnp.arange(len(self._seen))

    @property
    def observed(self) -> PyTree:
        """What `observe` returned there, with a leading axis `records`. **Raises** `ValueError` before the first."""
        if not self._seen:
            raise ValueError(f"recorder must be called at step {self.start} before its record is read, got no call.")
        return jax.tree.map(lambda *x: jnp.stack(x), *self._seen)

    def dataset(self) -> "xr.Dataset":
        """The record as a labelled dataset: see `labelled`. **Raises** `ValueError` before the first record."""
        return labelled(self.steps, self.observed)


def labelled(steps: Int[Array, "..."], observed: PyTree) -> "xr.Dataset":
    """A record as a labelled dataset: one variable a leaf, with the dimension `step` first.

    A leaf is named by its path, as `layers.0.weight`, and a record that is one array `observed`. Its other dimensions
    are `NAME_1`, `NAME_2`, ….

    **Raises** `ValueError` for a batch of records and for values that are traced.
    """
    import xarray as xr  # which training does not need

    if not concrete((steps, observed)):
        raise ValueError("observed must be known, to be labelled: call this outside jit and vmap.")
    if steps.ndim != 1:
        raise ValueError(f"steps must have shape (records,), got {steps.shape}: take one run of the batch.")
    variables = {}
    for path, x in jax.tree.leaves_with_path(observed):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "observed"
        if name == "step" or name in variables:
            raise ValueError(f"observed must have one leaf of a name and none named step, got {name!r}.")
        variables[name] = (["step", *(f"{name}_{i}" for i in range(1, x.ndim))], np.asarray(x))
    return xr.Dataset(variables, {"step": np.asarray(steps)})


def _check_alike(seen: PyTree, first: PyTree) -> None:
    wanted = "observe must return the structure, shapes and dtypes of the first record"
    if jax.tree.structure(seen) != jax.tree.structure(first):
        raise ValueError(f"{wanted}, {jax.tree.structure(first)}, got {jax.tree.structure(seen)}.")
    for (path, x), y in zip(jax.tree.leaves_with_path(seen), jax.tree.leaves(first), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{wanted}, {y.dtype}{list(y.shape)}{where and f' at {where}'}, got {describe(x)}.")
