"""`sweep`: one computation at every point of a grid, compiled once, labelled, and kept when interrupted."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.experimental import multihost_utils
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import ArrayLike, Int, PyTree
from tqdm import tqdm

from .._checked import checked
from .._checks import as_array, describe, integer, strings
from .._files import check_writable, locked
from ..dynamics.sweep import default_batch_size, map_lanes
from ..nets.train import Run
from ._chunks import Chunks, Results, fingerprint, text_fingerprint

Point = dict[str, Any]
Axes = Mapping[Any, Any]  # from a name, or a tuple of names, to values

STATUS = {
    "not_run": -1,
    "ok": 0,
    "not_finite": 1,
    "solve_stopped_early": 2,
    "training_diverged": 3,
    "raised": 4,
}
MOST_LANES = 2**31 - 1  # lanes are counted in 32 bits
_HARMLESS = ("equinox._errors.", "equinox.debug.", "equinox.internal.", "diffrax.")  # modules of callbacks
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
    grid, own, folder = _Grid(axes), _Own(dims, coords), Path() if out is None else _path(out)
    if batch_size is not None:
        integer("batch_size", batch_size, least=1)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a jax.sharding.Mesh, got {describe(mesh)}.")
    if mesh is None and jax.process_count() > 1:
        mesh = jax.make_mesh((jax.device_count(),), ("lanes",))
    lane = _Lane(fn, grid, own)
    results = Results(grid.number)
    label = functools.partial(_dataset, grid, results, own, coords or {})
    if out is None:
        _fill(results, lane, grid, cost, batch_size, mesh, progress, None, label)
    else:
        if jax.process_index() == 0:
            check_writable(folder, "sweep.json")
        lane, program = _traced(lane)
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
    grid: "_Grid",
    cost: Callable[[Point], ArrayLike] | None,
    batch_size: int | None,
    mesh: Mesh | None,
    progress: bool,
    chunks: Chunks | None,
    label: Callable[[], xr.Dataset],
) -> None:
    """Runs the lanes that are missing. Raises `SweepError`, with `label()`, for what goes wrong after the first."""
    todo = _in_order(grid, cost)
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


class _Keys(eqx.Module):
    """Typed random keys as plain numbers, which travel between processes."""

    data: np.ndarray
    impl: str = eqx.field(static=True)

    def __getitem__(self, index):
        return jax.random.wrap_key_data(jnp.asarray(self.data)[index], impl=self.impl)


class _Grid(eqx.Module):
    """The axes: for each, its names, how many values, and the values themselves, on the host."""

    values: dict[str, PyTree]
    groups: tuple[tuple[str, ...], ...] = eqx.field(static=True)
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, axes: Axes):
        if not isinstance(axes, Mapping):
            raise ValueError(f"axes must be a dictionary from names to values, got {describe(axes)}.")
        groups, sizes, values = [], [], {}
        for names, given in axes.items():
            names, given = (names, given) if isinstance(names, tuple) else ((names,), (given,))
            if not names or not isinstance(given, tuple | list | np.ndarray | jax.Array) or len(given) != len(names):
                raise ValueError(f"axes: {names} must come with one set of values each, got {describe(given)}.")
            lengths = {}
            for name, value in zip(names, given, strict=True):
                if not isinstance(name, str) or not name or name in values or name == "status":
                    raise ValueError(f"axes: each name must be another string, and not 'status', got {name!r}.")
                values[name], lengths[name] = _axis_values(name, value)
            if len(set(lengths.values())) > 1:
                raise ValueError(f"axes: {names} move together and must have as many values, got {lengths}.")
            groups.append(tuple(names))
            sizes.append(lengths[names[0]])
        if not groups:
            raise ValueError("axes must name at least one axis, got none.")
        if math.prod(sizes) > MOST_LANES:
            raise ValueError(f"axes must have at most {MOST_LANES:,} points together, got {math.prod(sizes):,}.")
        self.values, self.groups, self.sizes = values, tuple(groups), tuple(sizes)

    @property
    def number(self) -> int:
        return math.prod(self.sizes)

    def point(self, index: Int[ArrayLike, ""]) -> Point:
        """The point of a lane: lanes count through the last axis first."""
        point = {}
        for names, i in zip(self.groups, jnp.unravel_index(index, self.sizes), strict=True):
            for name in names:
                at = lambda x, i=i: x[i] if isinstance(x, _Keys) else jnp.asarray(x)[i]
                point[name] = jax.tree.map(at, self.values[name], is_leaf=lambda x: isinstance(x, _Keys))
        return point

    def coordinates(self) -> dict[str, tuple[str, np.ndarray]]:
        """For each name its axis and its values, or where these are no numbers, their index."""
        found = {}
        for names, size in zip(self.groups, self.sizes, strict=True):
            for name in names:
                value = self.values[name]
                plain = isinstance(value, np.ndarray) and value.ndim == 1
                found[name] = (names[0], _on_host(value) if plain else np.arange(size))
        return found

    def fingerprints(self) -> dict[str, str]:
        arrays = lambda value: [np.asarray(x) for x in jax.tree.leaves(value)]
        return {f"axis {name}": fingerprint(arrays(value)) for name, value in self.values.items()}


def _axis_values(name: str, value: Any) -> tuple[PyTree, int]:
    """The values of an axis on the host, in the precision of the moment, and how many they are."""
    if isinstance(value, list | range):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"axes: {name} must be a list of numbers, got {describe(value)}.") from error

    def on_host(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return _Keys(np.asarray(jax.random.key_data(x)), str(jax.random.key_impl(x)))
        if isinstance(x, str) or (isinstance(x, np.ndarray) and x.dtype.kind not in "biufcV"):
            raise ValueError(f"axes: {name} must be numbers, keys or trees of them, got {describe(x)}.")
        given = np.asarray(x)
        kept = np.asarray(as_array(f"axes: {name}", x))
        if given.dtype.kind in "fc" and (np.isfinite(given) & ~np.isfinite(kept)).any():
            raise ValueError(f"axes: {name} must fit {kept.dtype}, the precision of the moment, got {describe(given)}.")
        return kept

    lengths = {np.shape(x)[:1] for x in jax.tree.leaves(value)}
    if len(lengths) != 1 or not next(iter(lengths)):
        raise ValueError(
            f"axes: {name} must be arrays with a common leading axis, one entry a value, got leading axes "
            f"{sorted(lengths)}."
        )
    ((length,),) = lengths
    if length == 0:
        raise ValueError(f"axes: {name} must have at least one value, got none.")
    return jax.tree.map(on_host, value), length


class _Own(eqx.Module):
    """The names that the caller gives to the variables' own axes, and how many values he gives along each."""

    dims: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True)
    coords: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)

    def __init__(self, dims: Any, coords: Any):
        for name, given in (("dims", dims), ("coords", coords)):
            if given is not None and not isinstance(given, Mapping):
                raise ValueError(f"{name} must be a dictionary by names, got {describe(given)}.")
        self.dims = tuple((name, strings(f"dims[{name!r}]", own)) for name, own in (dims or {}).items())
        self.coords = tuple((name, _coordinate(name, values).shape) for name, values in (coords or {}).items())

    def axes_of(self, name: str, leading: str, number: int) -> list[str]:
        """The axes of a variable after those of the sweep."""
        own = dict(self.dims).get(name)
        if own is None:
            first = [leading] if leading else []
            own = first + [f"{name}_{i}" for i in range(len(first), number)]
        if len(own) != number:
            raise ValueError(f"dims must name the {number} axes of {name}, got {list(own)}.")
        return list(own)

    def check(self, variables: Mapping[tuple[str, str], Any], labels: Sequence[str]) -> None:
        """Raises `ValueError` for names that would clash in the dataset, or would be ignored, before anything runs."""
        names = {name for name, _ in variables}
        for unknown in {name for name, _ in self.dims} - names:
            raise ValueError(f"dims must name variables that fn returns ({', '.join(sorted(names))}), got {unknown!r}.")
        sizes: dict[str, int] = {}
        for (name, leading), x in variables.items():
            if name in labels or name == "status":
                raise ValueError(f"fn returns {name!r}, which is the name of an axis or of the status.")
            own = self.axes_of(name, leading, x.ndim)
            for axis, size in zip(own, x.shape, strict=True):
                taken = axis in labels or axis == "status" or (axis in names and axis != leading)
                if taken or own.count(axis) > 1:
                    raise ValueError(f"dims must give {name} axes with names of their own, got {axis!r} in {own}.")
                if sizes.setdefault(axis, size) != size:
                    raise ValueError(
                        f"dims must name axes of one length alike, got {axis!r} for {sizes[axis]} and {size}."
                    )
        free = sorted(sizes.keys() - names)
        for name, shape in self.coords:
            if name not in free:
                raise ValueError(
                    f"coords must name axes of what fn returns ({', '.join(free) or 'none'}), got {name!r}."
                )
            if shape != (sizes[name],):
                raise ValueError(f"coords[{name!r}] must have shape ({sizes[name]},), got {shape}.")


def _coordinate(name: str, values: Any) -> np.ndarray:
    try:
        found = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"coords[{name!r}] must be an array of values, got {describe(values)}.") from error
    if found.dtype.kind == "O" or isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"coords[{name!r}] must be an array of values without a mask, got {describe(values)}.")
    return found


class _Lane(eqx.Module):
    """From the number of a lane to its variables, by `(name, name of the leading axis)`, and its status."""

    fn: Callable[[Point], PyTree]
    grid: _Grid
    own: _Own

    def __call__(self, index: Int[ArrayLike, ""]):
        found, stopped, diverged = [], jnp.zeros((), bool), jnp.zeros((), bool)
        special = lambda x: isinstance(x, dfx.Solution | Run)
        result = self.fn(self.grid.point(index))
        try:
            leaves = jax.tree.leaves_with_path(result, is_leaf=special)
        except ValueError as error:  # which JAX raises for keys that can't be sorted
            raise ValueError(f"fn must return dictionaries with keys of one type, got {describe(result)}.") from error
        for path, x in leaves:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if isinstance(x, dfx.Solution):
                stopped |= x.result != dfx.RESULTS.successful
                time = _join(name, "time")
                found += [*_named(x.ys, name, "y", time), ((time, time), x.ts)]
                if "num_steps" in x.stats:
                    found += [((_join(name, "num_steps"), ""), x.stats["num_steps"])]
            elif isinstance(x, Run):
                diverged |= x.diverged_at >= 0
                step = _join(name, "step")
                found += [*_named(x.observed, name, "observed", step), ((step, step), x.steps)]
                found += _named(x.model, _join(name, "model"), "", "")
                found += [((_join(name, "diverged_at"), ""), x.diverged_at)]
            elif eqx.is_array_like(x):
                found += [((name or "value", ""), jnp.asarray(x))]
        variables = dict(found)
        if not variables:
            raise ValueError("fn must return at least one array, got none.")
        names = [name for (name, _), _ in found]
        if len(set(names)) < len(names):
            raise ValueError(f"fn must return one variable of a name, got two: {max(names, key=names.count)!r}.")
        self.own.check(variables, [*self.grid.values])
        floats = [x for x in variables.values() if eqx.is_inexact_array(x)]
        finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]).all() if floats else True
        status = jnp.where(finite, STATUS["ok"], STATUS["not_finite"])
        status = jnp.where(diverged, STATUS["training_diverged"], status)
        return variables, jnp.where(stopped, STATUS["solve_stopped_early"], status).astype(jnp.int8)


def _traced(lane: _Lane) -> tuple[Callable, dict[str, str]]:
    """The lane, traced once and for all, and digests of its program and of the arrays that this takes from `fn`: those
    of a `Partial` or a module, and those that a closure holds."""
    index, is_array = jnp.zeros((), jnp.int32), lambda x: isinstance(x, jax.Array | np.ndarray)
    arrays, rest = eqx.partition(lane, is_array)  # the values of the axes stay out of the text
    program, shapes = jax.make_jaxpr(lambda a, i: eqx.combine(a, rest)(i), return_shape=True)(arrays, index)
    for name in _callbacks(program.jaxpr):
        raise ValueError(
            f"out must be None for a fn that calls back to Python, as it does with {name}: what that returns may have "
            "changed when the sweep goes on."
        )
    run, tree = jaxpr_as_fun(program), jax.tree.structure(shapes)
    text = jax.jit(lambda a, i: run(*jax.tree.leaves(a), i)).lower(arrays, index).as_text()
    held = [_on_host(x) for x in [*jax.tree.leaves(arrays.fn), *program.consts]]
    same = {"fn": text_fingerprint(text), "arrays of fn": fingerprint(held)}
    return lambda index: jax.tree.unflatten(tree, run(*jax.tree.leaves(arrays), index)), same


def _callbacks(program: Jaxpr) -> Iterator[str]:
    """The callbacks that bring numbers into a program, but for those that raise errors or show progress."""
    for equation in program.eqns:
        if "callback" in equation.primitive.name and equation.outvars:
            called = getattr(equation.params.get("callback"), "callback_func", None)
            module = getattr(called, "__module__", None) or ""
            if not f"{module}.".startswith(_HARMLESS):
                yield f"{equation.primitive.name} of {getattr(called, '__name__', describe(called))}"
        inner = [
            x for value in equation.params.values() for x in (value if isinstance(value, tuple | list) else [value])
        ]
        for x in inner:
            if isinstance(x, Jaxpr | ClosedJaxpr):
                yield from _callbacks(x.jaxpr if isinstance(x, ClosedJaxpr) else x)


def _named(tree: PyTree, prefix: str, bare: str, dim: str) -> list[tuple[tuple[str, str], Any]]:
    """The arrays of a tree by their paths."""
    found = []
    for path, x in jax.tree.leaves_with_path(tree):
        if eqx.is_array(x):
            name = _join(prefix, jax.tree_util.keystr(path, simple=True, separator="."))
            found.append(((name or bare, dim), x))
    return found


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


class _Cost(eqx.Module):
    fn: Callable[[Point], ArrayLike]
    grid: _Grid

    def __call__(self, index: Int[ArrayLike, ""]):
        found = as_array("cost", self.fn(self.grid.point(index)))
        if found.shape or jnp.iscomplexobj(found):
            raise ValueError(f"cost must return one real number for each point, got {describe(found)}.")
        return found.astype(float)


def _in_order(grid: _Grid, cost: Callable[[Point], ArrayLike] | None) -> np.ndarray:
    """The lanes in the order in which they run: the dearest first, so that the last chunk is a cheap one."""
    lanes = np.arange(grid.number, dtype=np.int32)
    if cost is None:
        return lanes
    costs = np.asarray(map_lanes(_Cost(cost, grid), jnp.asarray(lanes), batch_size=4096))
    order = np.argsort(-costs, kind="stable").astype(np.int32)
    return multihost_utils.broadcast_one_to_all(order) if jax.process_count() > 1 else order


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
    return jax.tree.map(_on_host, out)


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


def _on_host(x: Any) -> np.ndarray:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    x = np.asarray(x)
    if x.dtype.kind != "V" and (
        x.dtype.kind != "f" or np.issubdtype(x.dtype, np.floating)
    ):  # float8_e5m2 says it is "f"
        return x
    return x.astype(np.int8 if jnp.issubdtype(x.dtype, jnp.integer) else np.float32)  # files know no others so narrow


def _dataset(grid: _Grid, results: Results, own: _Own, coords: Mapping) -> xr.Dataset:
    axes = [names[0] for names in grid.groups]
    coordinates = grid.coordinates()
    ended = np.isin(results.status, [STATUS[s] for s in ("ok", "not_finite", "training_diverged")])
    variables = {}
    for (name, leading), flat in results.variables.items():
        if name == leading and ended.any() and (flat[ended] == flat[ended][0]).all():  # times or steps in common
            coordinates[name] = (name, flat[ended][0])
            continue
        dims = [*axes, *own.axes_of(name, leading, flat.ndim - 1)]
        variables[f"{name}s_of_lane" if name == leading else name] = (dims, flat.reshape(*grid.sizes, *flat.shape[1:]))
    variables["status"] = (
        axes,
        results.status.reshape(grid.sizes),
        {"flag_values": np.array([*STATUS.values()], np.int8), "flag_meanings": " ".join(STATUS)},
    )
    coordinates |= {name: (name, _coordinate(name, values)) for name, values in coords.items()}
    taken, waited = results.steps
    return xr.Dataset(variables, coordinates, {"lane_efficiency": taken / waited} if waited else {})
