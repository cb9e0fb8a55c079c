"""Renewing the bases of GaLore: when a basis is due, what it becomes, and what becomes of the moments."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ..._checked import checked
from ..._checks import check_callable, choice, describe, integer
from .._precision import at_least_float32
from .._sharding import with_specs
from ..quantise import Quantised, quantised_specs
from ..train import AnyKey
from .layout import Layout, adjoint, state_layouts
from .moments import TRANSPORTS, Rotate, States, Transport, transported
from .names import is_masked, path_name
from .projectors import Projector, subspace_iteration

Due = Callable[[Int[Array, "*batch"], int, int], Bool[Array, "*batch"]]


class GaLoreState(NamedTuple):
    """What GaLore keeps. Trees have the structure of the parameters, with `optax.MaskedNode()` where nothing is kept.

    - `count`: the number of updates so far (of micro-batches, if it accumulates).
    - `left`, `right`: the bases `P`, shape `(*batch, m, r)`, and `Q`, shape `(*batch, n, r)`; zero before the first.
    - `inner_state`: that of the base optimiser, for gradients of shape `(*batch, r, n)` or `(*batch, m, r)`.
    - `last_refresh`, shape `(*batch,)`: the count at which the basis was last renewed; −1: it is due.
    - `captured`, shape `(*batch,)`: the share of the gradient's energy `‖G‖_F²` that the basis had then.
    """

    count: Int[Array, ""]
    left: PyTree
    right: PyTree
    inner_state: PyTree
    last_refresh: PyTree
    captured: PyTree


class Held(NamedTuple):
    """What is kept of one parameter."""

    p: Array | None
    q: Array | None
    moments: list[dict[str, Any]]
    last_refresh: Int[Array, "*batch"]
    captured: Float[Array, "*batch"]


class Refresh(NamedTuple):
    """How bases are renewed."""

    projector: Projector
    transport: Transport
    seed: ArrayLike

    def __call__(self, updates: PyTree, state: GaLoreState, plan: list[Layout | None], due: Due) -> GaLoreState:
        """The state with the basis of each parameter renewed from `updates` where it is due, and its moments turned.
        `due` is told when a basis was last renewed, and the place of the parameter among how many."""
        leaves, structure = jax.tree.flatten_with_path(updates)
        inner, fields = States(state.inner_state), ("left", "right", "last_refresh", "captured")
        kept = {name: structure.flatten_up_to(getattr(state, name)) for name in fields}
        key = jax.random.fold_in(jax.random.key(self.seed), state.count)
        for i, ((path, g), layout) in enumerate(zip(leaves, plan, strict=True)):
            if layout is None:
                continue
            groups = inner.groups(path, layout.reduced_shape)
            moments = [{name: inner.leaves[place] for name, place in group.items()} for group in groups]
            p, q = (None if is_masked(kept[name][i]) else kept[name][i] for name in ("left", "right"))
            last = kept["last_refresh"][i]
            held = Held(p, q, moments, last, kept["captured"][i])
            held = self._where_due(g, held, layout, due(last, i, len(leaves)), state.count, jax.random.fold_in(key, i))
            new = (held.p, held.q, held.last_refresh, held.captured)
            for name, x in zip(fields, new, strict=True):
                kept[name][i] = kept[name][i] if x is None else x
            for group, moments in zip(groups, held.moments, strict=True):
                for name, place in group.items():
                    inner.leaves[place] = moments[name]
        trees = {name: structure.unflatten(x) for name, x in kept.items()}
        return state._replace(inner_state=inner.rebuilt(), **trees)

    def _where_due(self, g: Array, held: Held, layout: Layout, due: Array, count: Array, key: AnyKey) -> Held:
        """One conditional outside all batches, on a number that has none: under `vmap` it stays a conditional."""

        def choose(g: Array, held: Held, due: Array, count: Array, key: AnyKey) -> Held:
            renew = lambda: self._renewed(g, held, layout, due, count, key)
            return jax.lax.cond(_any_lane(jnp.any(due)), renew, lambda: held)

        def specs(sharding: NamedSharding) -> Held:
            p, q, r, one = layout.specs(sharding)
            reduced = NamedSharding(sharding.mesh, r)
            spec = lambda x: quantised_specs(reduced, x.shape, x.block) if isinstance(x, Quantised) else r
            moments = [{name: spec(x) for name, x in group.items()} for group in held.moments]
            left, right = (None if x is None else spec for x, spec in ((held.p, p), (held.q, q)))
            return Held(left, right, moments, one, one)  # pyright: ignore[reportArgumentType]

        return with_specs(choose, specs, g, g, held, due, count, key)

    def _renewed(self, g: Array, held: Held, layout: Layout, due: Array, count: Array, key: AnyKey) -> Held:
        """A new basis where it is `due` and the gradient is good for one; elsewhere what was held."""
        g = layout.matrices(g).astype(at_least_float32(g.dtype))
        largest = jnp.max(jnp.abs(g), axis=(-2, -1))
        g = g / jnp.where(largest > 0, largest, 1)[..., None, None].astype(g.dtype)
        p = self._basis(g, held.p, key, layout)
        q = self._basis(adjoint(g), held.q, jax.random.fold_in(key, 1), layout)
        r = g if p is None else adjoint(p) @ g
        r = r if q is None else r @ q
        captured = energy(r) / jnp.maximum(energy(g), jnp.finfo(g.dtype).tiny)
        good = due & (largest > 0) & jnp.isfinite(largest) & jnp.isfinite(captured)
        rotate = _rotation(p, held.p, q, held.q)
        moments = [transported(self.transport, x, rotate, count) for x in held.moments]
        new = Held(p, q, moments, jnp.full_like(held.last_refresh, count), captured)
        select = lambda x, y: jnp.where(good[(..., *(None,) * (y.ndim - good.ndim))], x.astype(y.dtype), y)
        chosen = jax.tree.map(select, new, held)
        due_again = jnp.where(due & ~good, jnp.full_like(chosen.last_refresh, -1), chosen.last_refresh)
        return chosen._replace(last_refresh=due_again)

    def _basis(self, g: Array, previous: Array | None, key: AnyKey, layout: Layout) -> Array | None:
        if previous is None:
            return None
        rank, stack = previous.shape[-1], layout.batch_shape

        def find(g: Array, previous: Array, key: AnyKey) -> Array:
            basis = self.projector(g, previous, key, rank)
            if jnp.shape(basis) != previous.shape:
                raise ValueError(f"projector must return a basis of shape {previous.shape}, got {describe(basis)}.")
            return basis

        keys = jax.random.split(key, stack) if stack else key
        for _ in stack:
            find = jax.vmap(find)
        return find(g, previous.astype(g.dtype), keys)


@checked
def galore_refresh(
    state: PyTree,
    grads: PyTree,
    *,
    projector: Projector | None = None,
    transport: str | Transport = "momentum",
    weight_dimension_numbers: PyTree | Callable | None = None,
    seed: ArrayLike = 0,
) -> PyTree:
    """The state of an optimiser in which the bases of every `GaLoreState` are renewed from `grads`, and the moments
    turned: for `update_proj_gap="external"`, as a compiled function of its own, say on the gradient of a large batch.

    `state` may be that of any chain or partition around GaLore; options are those of `scale_by_galore`. Matrices whose
    gradient is zero or not finite keep their basis.

    **Raises** `ValueError` for a state without a `GaLoreState`, and gradients that do not fit it.
    """
    how = refresh_options(projector, transport, seed)
    by_name = {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(grads)}

    def renewed(state: GaLoreState) -> GaLoreState:
        based = lambda p, q: not (is_masked(p) and is_masked(q))
        held = jax.tree.map(based, state.left, state.right, is_leaf=is_masked)
        names = [path_name(path) for path, has in jax.tree.leaves_with_path(held) if has]
        if missing := [name for name in names if name not in by_name]:
            raise ValueError(f"grads must have every projected parameter, got none for {missing[0]!r}.")
        pick = lambda path, has: by_name[path_name(path)] if has else optax.MaskedNode()
        updates = jax.tree.map_with_path(pick, held)
        plan = state_layouts(updates, state.left, state.right, weight_dimension_numbers, grads)
        return how(updates, state, plan, lambda last, *_: jnp.full_like(last, True, bool))

    return _on_galore_states(renewed, state)


@checked
def galore_reset(state: PyTree) -> PyTree:
    """The state of an optimiser in which every basis of every `GaLoreState` is due at the next update.

    **Raises** `ValueError` for a state without a `GaLoreState`.
    """
    due = lambda s: s._replace(last_refresh=jax.tree.map(lambda n: jnp.full_like(n, -1), s.last_refresh))
    return _on_galore_states(due, state)


def refresh_options(projector: Projector | None, transport: str | Transport, seed: ArrayLike) -> Refresh:
    """**Raises** `ValueError` for a transport of unknown name, a projector that takes other arguments, and a seed that
    is no integer of 64 bits."""
    if not isinstance(seed, Tracer):
        integer("seed", seed, least=-(2**63), most=2**63 - 1)
    if isinstance(transport, str):
        transport = TRANSPORTS[choice("transport", transport, tuple(TRANSPORTS))]
    check_callable("transport", transport)
    projector = subspace_iteration() if projector is None else projector
    check_callable("projector", projector)
    try:
        inspect.signature(projector).bind("g", "previous", "key", "r")
    except TypeError as error:
        raise ValueError(
            f"projector must be a function (g, previous, key, r), as exact_svd() is, got {describe(projector)}."
        ) from error
    except ValueError:  # a function without a signature
        pass
    return Refresh(projector, transport, seed)


def _on_galore_states(function: Callable[[GaLoreState], GaLoreState], state: PyTree) -> PyTree:
    is_state = lambda x: isinstance(x, GaLoreState)
    if not any(map(is_state, jax.tree.leaves(state, is_leaf=is_state))):
        raise ValueError(f"state must hold a GaLoreState, as init of galore gives it, got {describe(state)}.")
    return jax.tree.map(lambda x: function(x) if is_state(x) else x, state, is_leaf=is_state)


def _rotation(p: Array | None, old_p: Array | None, q: Array | None, old_q: Array | None) -> Rotate:
    """`x ↦ C_P x C_Qᴴ` with `C = P_newᴴ P_old`, and with `|C|²` for squares."""
    c = None if p is None or old_p is None else adjoint(p) @ old_p.astype(p.dtype)
    d = None if q is None or old_q is None else adjoint(q) @ old_q.astype(q.dtype)

    def rotate(x: Array, squared: bool = False) -> Array:
        power = (lambda c: jnp.square(jnp.abs(c))) if squared else (lambda c: c)
        x = x.astype(at_least_float32(x.dtype))
        x = x if c is None else power(c).astype(x.dtype) @ x
        return x if d is None else x @ adjoint(power(d)).astype(x.dtype)

    return rotate


def energy(x: Array, axis: int | None = None) -> Array:
    """`‖x‖_F²` of each matrix; with `axis`, of each row or column, that axis kept."""
    squares = jnp.square(jnp.abs(x))
    return jnp.sum(squares, axis=(-2, -1)) if axis is None else jnp.sum(squares, axis=axis, keepdims=True)


@jax.custom_batching.custom_vmap
def _any_lane(x: Bool[Array, ""]) -> Bool[Array, ""]:
    """`x`; under `vmap` one value for all lanes, whether it holds in any: a `cond` on it stays a `cond`."""
    return x


@_any_lane.def_vmap
def _(axis_size: int, batched: list[bool], x: Array) -> tuple[Array, bool]:
    return _any_lane(jnp.any(x, axis=0) if batched[0] else x), False
