"""Many lanes of one computation at bounded memory: `vmap` within a chunk, `lax.map` over chunks, lanes over devices."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from .._checked import checked
from .._checks import describe, integer
from ._compiled import bounded_jit
from ._state import numpy_as_jax


def default_batch_size() -> int:
    """Lanes of a chunk where nobody says: on a CPU what stays in the cache, elsewhere what fills the device."""
    return 32 if jax.default_backend() == "cpu" else 4096


@checked
def map_lanes(
    fn: Callable[[Any], PyTree],
    lanes: PyTree[Array],
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> PyTree:
    """`jax.vmap(fn)(lanes)`, whatever the number of lanes: a device has at most `batch_size` of them in work at a time.

    An adaptive solve takes as many steps as the slowest lane of its chunk, not of all: sort lanes by cost. Works under
    `jit`, `vmap` and `grad`. Calls with the same `fn` and shapes share a compilation; a `fn` written in the call is a
    new one each time, and the 64 latest are kept. Data that change should travel as leaves, `jax.tree_util.Partial(fn,
    data)`.

    **Arguments:** `fn`, from one lane to a PyTree; what it returns that is no array must be the same for all lanes;
    `lanes`, a PyTree of arrays with a common leading axis `(lanes, ...)`.

    - `batch_size`: by default 32 on a CPU and 4096 elsewhere.
    - `mesh`: shares the lanes among all its devices, consecutive lanes to a device. Each device runs its own loops and
      waits for no other. By default the lanes stay on one device.

    **Raises** `ValueError` for lanes without a common leading axis, no lanes, or a `batch_size` below one.
    """
    if batch_size is not None:
        batch_size = integer("batch_size", batch_size, least=1)
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a jax.sharding.Mesh, got {describe(mesh)}.")
    lanes = numpy_as_jax("lanes", lanes)
    for path, x in jax.tree.leaves_with_path(lanes):
        if not eqx.is_array(x):
            raise ValueError(f"lanes{jax.tree_util.keystr(path)} must be an array, got {describe(x)}.")
    return _map_lanes(fn, lanes, batch_size, mesh)


@bounded_jit
def _map_lanes(fn: Callable, lanes: PyTree[Array], batch_size: int | None, mesh: Mesh | None) -> PyTree:
    number = _common_length(lanes)
    devices = 1 if mesh is None else mesh.size
    batch = min(default_batch_size() if batch_size is None else batch_size, -(-number // devices))
    chunks = -(-number // (batch * devices))
    padding = chunks * batch * devices - number
    if padding:  # with the last lane over again: one shape of chunk, one compilation
        lanes = jax.tree.map(lambda x: jnp.concatenate([x, jnp.broadcast_to(x[-1:], (padding, *x.shape[1:]))]), lanes)
    arrays, rest = eqx.partition(fn, eqx.is_array)
    fixed = None

    def on_device(arrays, lanes):
        one = eqx.combine(arrays, rest)

        def lane(point):
            nonlocal fixed
            out = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float | int | np.ndarray) else x, one(point))
            out, fixed = eqx.partition(out, eqx.is_array)
            return out

        if chunks == 1:
            return jax.vmap(lane)(lanes)
        out = jax.lax.map(jax.vmap(lane), jax.tree.map(lambda x: x.reshape(chunks, batch, *x.shape[1:]), lanes))
        return jax.tree.map(lambda x: x.reshape(chunks * batch, *x.shape[2:]), out)

    if mesh is not None:
        split = PartitionSpec(mesh.axis_names)
        specs = (PartitionSpec(), split)
        mesh = Mesh(mesh.devices, mesh.axis_names)  # no explicit axes: the padding is cut off a sharded axis below
        on_device = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    out = on_device(arrays, lanes)
    return eqx.combine(jax.tree.map(lambda x: x[:number], out) if padding else out, fixed)


def _common_length(lanes: PyTree[Array]) -> int:
    lengths = {jax.tree_util.keystr(path): jnp.shape(x)[:1] for path, x in jax.tree.leaves_with_path(lanes)}
    if not lengths or () in lengths.values() or len(set(lengths.values())) > 1:
        raise ValueError(f"lanes must be arrays with a common leading axis, got the leading axes {lengths}.")
    (number,) = next(iter(lengths.values()))
    if number < 1:
        raise ValueError("lanes must hold at least one lane, got none.")
    return number
