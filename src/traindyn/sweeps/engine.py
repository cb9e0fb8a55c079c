"""`sweep`: one computation at every point of a grid, compiled once, labelled, and kept when interrupted."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import ArrayLike, PyTree
from tqdm import tqdm

from .._checked import checked
from .._checks import describe, integer
from .._files import check_writable, locked
from ..dynamics.sweep import default_batch_size, map_lanes
from ._chunks import Chunks, Results
from ._grid import Axes, Grid, Point, in_order, on_host
from ._labels import STATUS, Own, dataset_of
from ._lane import Lane, traced

_CHUNKS_A_CALL = 64  # what one call computes stays on the device until it returns


class SweepError(RuntimeError):
    """A sweep that an error cut short; `dataset` holds what was computed before, the rest having status −1."""

    def __init__(self, message: str, dataset: xr.Dataset):
        super().__init__(message)
        self.dataset = dataset


@checked
def sweep(
    fn: Callable[[Point], PyTree],
    axes: Axes,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    cost: Callable[[Point], ArrayLike] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, ArrayLike | Sequence[float]] | None = None,
    out: Path | str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Computes `fn` at every point of the product of `axes`, compiled once, and labels what comes out.

        rates = jnp.logspace(-3, 0, 64)
        found = sweep(lambda p: train(model, loss, data(p["seed"]), optax.sgd(p["learning_rate"]), 100),
                      {"learning_rate": rates, "seed": jax.random.split(key, 8)})
        found["observed"].sel(learning_rate=0.1, method="nearest").mean("seed").plot()

    Lanes run as `map_lanes` runs them: `vmap` within a chunk, `lax.map` over chunks, so that memory does not grow with
    the number of lanes, and split over the devices of a mesh.

    **Arguments:** `fn`, a pure function of a point, a dictionary with one value of each axis, to any PyTree of arrays;
    a diffrax `Solution` or a `train` `Run` in it is labelled with its own times and steps. `axes`, for each name its
    values: an array, a list, random keys or a PyTree of arrays with a common leading axis. A tuple of names with a
    tuple of values is one axis along which these move together, called by the first name.

    - `batch_size`: lanes in work at a time on a device, by default 32 on a CPU and 4096 elsewhere.
    - `mesh`: shares the lanes among its devices; with `jax.distributed`, among those of all processes (the default
      there), each of which then returns the whole dataset.
    - `cost`: of a point, any scalar that grows with the steps its adaptive solve will take. A chunk waits for its
      slowest lane: lanes of like cost then share one.
    - `dims`: for a variable, the names of its own axes; `coords`, for such a name, its values.
    - `out`: a folder that keeps finished chunks. The same sweep with the same folder runs only the lanes it lacks, on
      any number of devices and at any `batch_size`. Several processes need a folder that they share. A `fn` with
      callbacks to Python can't have one: nobody can tell whether they still give the same numbers.
    - `progress`: shows a bar, at the cost of a return to Python at each chunk, as `out` does.

    **Returns** a dataset whose variables are the paths of the leaves of what `fn` returns (`value` for a bare array,
    `y` for the states of a bare `Solution`), with the axes as dimensions: numbers as coordinates, keys and trees as
    their index. `status` says for each lane whether all is well:

        0  ok                    1  not_finite (NaN or infinity in a variable)
        2  solve_stopped_early   3  training_diverged
        4  raised (a run-time error of Equinox, as `solve` with throw=True has: NaN, and zero for integers)

    The attribute `lane_efficiency` is there where a `Solution` tells its steps: those taken over those that every lane
    of a chunk waited for.

    **Raises** `ValueError` for bad axes, names that clash, `dims` or `coords` that do not fit, and a `cost` that is not
    one real number. So too for an `out` that holds another sweep, or is given with callbacks. `SweepError`, with the
    dataset so far, when anything else goes wrong after the first lanes.
    """
    grid, own, folder = Grid(axes), Own(dims, coords), Path() if out is None else _path(out)
    if batch_size is not None:
        integer("batch_size", batch_size, least=1)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a jax.sharding.Mesh, got {describe(mesh)}.")
    if mesh is None and jax.process_count() > 1:
        mesh = jax.make_mesh((jax.device_count(),), ("lanes",))
    lane = Lane(fn, grid, own)
    results = Results(grid.number)
    label = functools.partial(dataset_of, grid, results, own, coords or {})
    if out is None:
        _fill(results, lane, grid, cost, batch_size, mesh, progress, None, label)
    else:
        if jax.process_index() == 0:
            check_writable(folder, "sweep.json")
        lane, program = traced(lane)
        with _opened(folder, grid.fingerprints() | program, results) as chunks:
            _fill(results, lane, grid, cost, batch_size, mesh, progress, chunks, label)
    if not results.variables:
        raise SweepError(f"All {grid.number} lanes raised; the last one: {results.last_error}", label())
    return label()


def _path(out: Any) -> Path:
    try:
        path = Path(out)
    except TypeError as error:
        raise ValueError(f"out must be a path, got {describe(out)}.") from error
    if "\0" in str(path):
        raise ValueError(f"out must be a path without null characters, got {describe(out)}.")
    return path


@contextlib.contextmanager
def _opened(out: Path, same: Mapping[str, str], results: Results) -> Iterator[Chunks]:
    """The folder of a sweep, of which no other run may write a part; its chunks are read into `results`."""
    first = jax.process_index() == 0
    with locked(out) if first else contextlib.nullcontext():
        chunks = Chunks(out, same)
        chunks.read(results)
        if jax.process_count() > 1:  # nobody writes before all have read
            multihost_utils.sync_global_devices("traindyn sweep")
        chunks.start()
        yield chunks


def _fill(
    results: Results,
    lane: Callable,
    grid: Grid,
    cost: Callable[[Point], ArrayLike] | None,
    batch_size: int | None,
    mesh: Mesh | None,
    progress: bool,
    chunks: Chunks | None,
    label: Callable[[], xr.Dataset],
) -> None:
    """Runs the lanes that are missing. Raises `SweepError`, with `label()`, for what goes wrong after the first."""
    todo = in_order(grid, cost)
    todo = todo[results.status[todo] == STATUS["not_run"]]
    bar = tqdm(total=grid.number, initial=grid.number - len(todo), unit="lane", disable=not progress)
    try:
        with bar:
            stepwise = progress or chunks is not None
            for lanes, batch in _calls(todo, batch_size, mesh, stepwise):
                new = _run(lane, lanes, batch, mesh)
                results.put(*new)
                if chunks is not None:
                    chunks.write(*new)
                bar.update(len(new[0]))
    except Exception as error:
        if (results.status == STATUS["not_run"]).all():
            raise
        done = int((results.status != STATUS["not_run"]).sum())
        raise SweepError(f"The sweep stopped after {done} of {grid.number} lanes: {error}", label()) from error


def _calls(
    todo: np.ndarray, batch_size: int | None, mesh: Mesh | None, stepwise: bool
) -> Iterator[tuple[np.ndarray, int]]:
    """The lanes of each call, by device, chunk and place in the chunk, all calls of one shape. Chunks are dealt out to
    the devices in turn, so that dear ones meet dear ones there too. The last lane fills the places left over."""
    if not len(todo):
        return
    devices = 1 if mesh is None else mesh.size
    batch = min(batch_size or default_batch_size(), -(-len(todo) // devices))
    rounds = -(-len(todo) // (batch * devices))
    calls = rounds if stepwise else -(-rounds // _CHUNKS_A_CALL)
    each = -(-rounds // calls)
    filled = np.concatenate([todo, np.full(calls * each * devices * batch - len(todo), todo[-1], todo.dtype)])
    for lanes in filled.reshape(calls, each, devices, batch):
        yield lanes.swapaxes(0, 1), batch


def _run(lane: Callable, lanes: np.ndarray, batch: int, mesh: Mesh | None):
    """The lanes computed, their variables, their status, steps taken and steps waited for, and what they raised."""
    flat = lanes.ravel()
    try:
        variables, status = _computed(lane, flat, batch, mesh)
    except eqx.EquinoxRuntimeError as error:
        if jax.process_count() > 1:
            raise
        variables, status, message = _one_by_one(lane, flat, str(error))
    else:
        message = ""
    steps = variables.get(("num_steps", ""))
    taken = waited = 0
    if steps is not None:
        chunks = steps.reshape(-1, batch)
        waited = int(chunks.max(axis=1).sum() * batch)
    _, first = np.unique(flat, return_index=True)
    first = np.sort(first)  # without the places that were filled
    if steps is not None:
        taken = int(steps[first].sum())
    return flat[first], {k: x[first] for k, x in variables.items()}, status[first], (taken, waited), message


def _computed(lane: Callable, flat: np.ndarray, batch: int, mesh: Mesh | None):
    if mesh is None:
        lanes = jnp.asarray(flat)
    else:
        sharding = NamedSharding(Mesh(mesh.devices, mesh.axis_names), PartitionSpec(mesh.axis_names))
        lanes = jax.make_array_from_callback(flat.shape, sharding, lambda index: flat[index])
    out = map_lanes(lane, lanes, batch_size=batch, mesh=mesh)
    if jax.process_count() > 1:
        out = multihost_utils.process_allgather(out, tiled=True)
    return jax.tree.map(on_host, out)


def _one_by_one(lane: Callable, flat: np.ndarray, message: str):
    """Each lane alone, so that one that raises takes no other with it."""
    results = Results(len(flat))
    for place in range(len(flat)):
        try:
            variables, status = _computed(lane, flat[place : place + 1], 1, None)
        except eqx.EquinoxRuntimeError as error:
            variables, status, message = {}, np.array([STATUS["raised"]], np.int8), str(error)
        results.put(np.array([place]), variables, status, (0, 0), message)
    return results.variables, results.status, message
