"""GaLore as an optax transform: any optimiser, run on gradients projected to a few directions that are renewed."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree

from ..._checked import checked
from ..._checks import concrete, describe, integer, real
from ..._checks import mask as as_mask
from .._arguments import one_number
from .._precision import at_least_float32
from .._sharding import full, known_sharding, with_specs
from .._update import check_real
from .layout import Choice, Layout, Ranks, Side, check_shared_rank, choices, short_range, state_layouts
from .moments import States, Transport
from .names import is_function, is_masked, path_name
from .projectors import Projector
from .refresh import GaLoreState, energy, refresh_options

Whole = int | Int[Array, ""]
Gap = ArrayLike | Callable[[Int[Array, ""]], Bool[ArrayLike, ""]] | Literal["external"]


@checked
def scale_by_galore(
    base_optimizer: optax.GradientTransformation | None = None,
    rank: Ranks = 128,
    update_proj_gap: Gap = 200,
    scale: ArrayLike = 1.0,
    *,
    weight_dimension_numbers: PyTree | Callable | None = None,
    side: Side = "short",
    projector: Projector | None = None,
    transport: str | Transport = "momentum",
    stagger: bool = True,
    projector_dtype: Any = None,
    accumulator_dtype: Any = "float32",
    min_dim: Whole | None = None,
    rank_tol: ArrayLike | None = None,
    project_params: bool = False,
    accumulate: Whole | None = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Runs `base_optimizer` on `R = Pᵀ G` instead of the gradient `G` of each matrix, and returns `scale × P` times
    what it makes of that. For a rank `r` and a short side `k` its state takes `r/k` of the memory.

    Leaves that are no matrices, or too small for the rank, go through the base optimiser as they are, unscaled: also
    those named `bias` and `scale`, which have several axes in stacks and in Flax. A leaf of more than two axes is a
    stack of matrices in its last two, each with a basis of its own. But a `kernel` of Flax is read by its bias, or by
    the other kernels of its attention layer. `None` leaves, as in an Equinox model's arrays, stay as they are.
    `galore_summary` prints what becomes of each leaf.

    `P` spans the leading left singular vectors of the gradient of the step at which it is renewed; if that gradient is
    zero or not finite, it is kept, and renewed at the next step.

    **Arguments:**

    - `base_optimizer`: by default `optax.scale_by_adam()`. One that needs parameters needs `project_params`. One that
      applies the sign and the learning rate, as `optax.sgd` does, makes the whole a descent; `galore` refuses it.
    - `rank`: an int; a fraction of each short side; a function `(name, shape)` or a tree of these, where `None` leaves
      a parameter whole. A single int leaves whole the matrices whose short side it exceeds.
    - `update_proj_gap`: a basis serves for this many updates; or a function of the number of updates so far that says
      when to renew; or `"external"`: never here, only by `galore_refresh`, so that no code for it is in the step. What
      was never refreshed gets no update: an error outside `jit`; inside, `last_refresh` in the state stays at −1.
    - `scale`: the paper's α, for what was projected.
    - `weight_dimension_numbers`: which axes make the rows and the columns, as in `optax.contrib`: one for all leaves
      that have its axes; a tree or a dictionary by name, where `None` leaves whole; or a function of the parameters
      that gives a tree. Axes that are neither make a stack.
    - `side`: which side is projected. `"short"` is the paper's, `"long"` that of `optax.contrib`, with less state, but
      a basis that keeps less of later gradients; `"left"` and `"right"` are those of `(m, n)`.
    - `projector`: how a basis is found; by default `subspace_iteration()`.
    - `transport`: what becomes of the moments then: `"keep"` (the paper), `"reset"`, `"momentum"` (the first moment
      is turned into the new basis), `"full"` (both), or a function; see `moments`.
    - `stagger`: spread the renewals of different leaves over the gap. The first step renews all.
    - `projector_dtype`: of the bases kept, by default the parameter's. They are computed in float32 at least.
    - `accumulator_dtype`: at least this for what the base optimiser sees, and so for the moments it makes.
    - `min_dim`: leaves of fewer axes than this, by default 2, are left whole.
    - `rank_tol`: rows of `R` smaller than this, relative to the largest, are rounding noise, which Adam would blow up
      to the size of the others; they are set to zero. By default 16 times the rounding unit.
    - `project_params`: give the base optimiser `Pᵀ W` as parameters.
    - `accumulate`: the gradients of this many calls are averaged, in the small space, for one update; it is zero
      between. By default each call is an update.
    - `seed`: for what is random in a projector.

    The update is traced once: `rank` aside, options may be traced numbers. Under `vmap` over states, bases are computed
    only at steps at which some lane is due. On a mesh, `P` is sharded as the side that it projects, `R` as the other.

    **Raises** `ValueError` for options out of range, naming parameter and option; for leaves that are no floating-point
    arrays; for Flax kernels of three axes or more where nothing tells which are inputs. **Warns** of stacks that a rank
    leaves whole, though their axes could make matrices that are large enough. Source: GaLore (Zhao et al., arXiv
    2403.03507), algorithm 2; transport of moments: LDAdam (arXiv 2410.16103).
    """
    _check_numbers(rank, update_proj_gap, scale, rank_tol)
    base_optimizer = optax.scale_by_adam() if base_optimizer is None else base_optimizer
    least_dim = 2 if min_dim is None else _at_least("min_dim", min_dim, 2)
    accumulate = 1 if accumulate is None else integer("accumulate", accumulate, least=1)
    if accumulate > 1:
        base_optimizer = optax.MultiSteps(base_optimizer, accumulate).gradient_transformation()
    kept = None if projector_dtype is None else _dtype("projector_dtype", projector_dtype, jnp.inexact)
    low_rank = _LowRank(kept, _dtype("accumulator_dtype", accumulator_dtype, jnp.floating), scale, rank_tol)
    base = optax.with_extra_args_support(base_optimizer)
    refresh = refresh_options(projector, transport, seed)
    due = _Due(update_proj_gap, accumulate, stagger)
    external = isinstance(update_proj_gap, str)

    def init(params: PyTree) -> GaLoreState:
        plan = choices(params, rank, side, weight_dimension_numbers, least_dim)
        _warn_of_inert_stacks(params, plan)
        layouts = [choice.layout for choice in plan]
        state = low_rank.init(params, layouts, base)
        if transport != "keep":
            _warn_of_unknown_moments(state.inner_state, params, layouts)
        return state

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, GaLoreState]:
        if not isinstance(state, GaLoreState):
            raise ValueError(f"state must be a GaLoreState, as init gives it, got {describe(state)}.")
        if project_params and params is None:
            raise ValueError("params must be given to update, since project_params is True.")
        plan = state_layouts(updates, state.left, state.right, weight_dimension_numbers)
        if params is not None:
            check_real("updates must be real for real parameters", params, updates)
        if external:
            _check_refreshed(state)
        else:
            state = refresh(updates, state, plan, functools.partial(due, state.count))
        low = low_rank.project(updates, state, plan, noise=False)
        projected = low_rank.project(params, state, plan) if project_params else None
        new, inner = _update(base, low, state.inner_state, projected, extra)
        state = state._replace(count=optax.safe_increment(state.count), inner_state=inner)
        return low_rank.project_back(new, updates, state, plan), state

    return optax.GradientTransformationExtraArgs(init, update)


@checked
def galore(
    learning_rate: optax.ScalarOrSchedule,
    rank: Ranks = 128,
    update_proj_gap: Gap = 200,
    scale: ArrayLike = 1.0,
    base_optimizer: optax.GradientTransformation | None = None,
    weight_decay: ArrayLike = 0.0,
    mask: PyTree | Callable | None = None,
    weight_dimension_numbers: PyTree | Callable | None = None,
    *,
    side: Side = "short",
    projector: Projector | None = None,
    transport: str | Transport = "momentum",
    stagger: bool = True,
    projector_dtype: Any = None,
    accumulator_dtype: Any = "float32",
    min_dim: Whole | None = None,
    rank_tol: ArrayLike | None = None,
    project_params: bool = False,
    accumulate: Whole | None = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """The optimiser around `scale_by_galore`: with decoupled weight decay on the whole parameters and a learning rate,
    which may be a schedule. The arguments of `optax.contrib.galore` by the same names, then those of `scale_by_galore`.

    The paper pre-trains with `scale=0.25`, `update_proj_gap=200` and a learning rate of 0.01. With `accumulate`, decay
    and schedule act once for each update, not for each call. Inside `optax.inject_hyperparams` numbers need not be
    named in `static_args` (but `accumulate`, and `rank`, if its `init` is compiled); functions must.

    **Raises** `ValueError` as `scale_by_galore` does, for a learning rate or a decay that is negative or not finite, a
    schedule that gives more than a number, a mask that does not follow the parameters, and a `base_optimizer` that
    applies the sign itself, as `optax.sgd` and `optax.adamw` do, for `galore` would ascend.
    """
    if not callable(learning_rate):
        real("learning_rate", learning_rate, (), least=0)
    real("weight_decay", weight_decay, (), least=0)
    if base_optimizer is not None:
        _check_sign(base_optimizer)
    low_rank = scale_by_galore(
        base_optimizer,
        rank,
        update_proj_gap,
        scale,
        weight_dimension_numbers=weight_dimension_numbers,
        side=side,
        projector=projector,
        transport=transport,
        stagger=stagger,
        projector_dtype=projector_dtype,
        accumulator_dtype=accumulator_dtype,
        min_dim=min_dim,
        rank_tol=rank_tol,
        project_params=project_params,
        accumulate=accumulate,
        seed=seed,
    )
    decays = not isinstance(weight_decay, float | int) or weight_decay != 0
    if mask is not None and not decays:
        raise ValueError("mask would be ignored: it is for weight_decay, which is 0.")
    decay = [optax.add_decayed_weights(weight_decay, _fitting(mask))] if decays else []  # pyright: ignore[reportArgumentType]
    outer = optax.chain(*decay, optax.scale_by_learning_rate(one_number(learning_rate)))
    if accumulate not in (None, 1):
        last = lambda step, **extra: (jnp.asarray(step) + 1) % accumulate == 0
        outer = optax.conditionally_transform(outer, last)
    return optax.chain(low_rank, outer)


def _check_sign(base: optax.GradientTransformation) -> None:
    """**Raises** `ValueError` for a base that returns descent, of which `galore` would make an ascent.

    Two updates of a small matrix show it; the second is for a schedule that starts at zero. A base that can't be tried
    by itself, or whose numbers are traced, passes.
    """
    gradient: Any = {"w": jnp.ones((2, 2), jnp.float32)}
    tx: Any = optax.with_extra_args_support(base)
    try:
        with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
            params = jax.tree.map(jnp.zeros_like, gradient)
            first, state = tx.update(gradient, tx.init(params), params, value=jnp.ones(()))
            second, _ = tx.update(gradient, state, params, value=jnp.ones(()))
            descends = float(jnp.sum(first["w"])) < 0 or float(jnp.sum(second["w"])) < 0
    except Exception:
        return
    if descends:
        raise ValueError(
            "base_optimizer must leave the sign and the learning rate to galore, as scale_by_adam does, but it returns "
            "descent, as sgd, adam and adamw do, so that galore would ascend. Use trace or identity for sgd, and "
            "scale_by_adam for adam, with the weight_decay of galore for adamw; or scale_by_galore around the whole of "
            "it, without a learning rate after that."
        )


def _is_truth(x: Any) -> bool:
    """One truth value or integer."""
    if isinstance(x, np.generic | np.ndarray | jax.Array):
        return x.dtype.kind in "biu" and x.shape == ()
    return isinstance(x, bool | int)


class _Due(NamedTuple):
    """Whether a basis is due at a count."""

    gap: Gap
    accumulate: int
    stagger: bool

    def __call__(self, count: Array, last: Int[Array, "*batch"], i: int, number: int) -> Bool[Array, "*batch"]:
        updates, first = count // self.accumulate, count % self.accumulate == 0
        if callable(self.gap):
            scheduled = self.gap(updates)
            if not _is_truth(scheduled):
                raise ValueError(f"update_proj_gap must return True or False, got {describe(scheduled)}.")
            scheduled = jnp.asarray(scheduled, bool)
        else:
            gap = jnp.asarray(self.gap).astype(count.dtype)
            offset = i * gap // number if self.stagger else 0
            scheduled = (updates + offset) % gap == 0
        return first & (scheduled | (last < 0))


class _LowRank(NamedTuple):
    """To the small space and back, leaf by leaf. Leaves of no layout pass through, in the accumulator's dtype."""

    projector_dtype: Any
    accumulator_dtype: Any
    scale: ArrayLike
    rank_tol: ArrayLike | None

    def init(self, params: PyTree, plan: list[Layout | None], base: optax.GradientTransformation) -> GaLoreState:
        leaves, structure = jax.tree.flatten(params)
        nothing = optax.MaskedNode()
        whole = lambda leaf: _Start(nothing, nothing, self._accumulated(leaf), nothing, nothing)
        starts = [
            whole(x) if layout is None else self._start(x, layout) for x, layout in zip(leaves, plan, strict=True)
        ]
        left, right, low, last, captured = (
            structure.unflatten([s[i] for s in starts]) for i in range(len(_Start._fields))
        )
        return GaLoreState(jnp.zeros((), jnp.int32), left, right, base.init(low), last, captured)

    def project(self, tree: PyTree, state: GaLoreState, plan: list[Layout | None], *, noise: bool = True) -> PyTree:
        """`R = Pᵀ G Q`, without rows that are only rounding noise unless `noise`."""

        def project(x: Array, layout: Layout | None, p: Array | None, q: Array | None) -> Array:
            if layout is None:
                return self._accumulated(x)

            def reduce(x: Array, p: Array | None, q: Array | None) -> Array:
                r = layout.project(x, p, q, self._dtype(x.dtype))
                return r if noise else self._without_noise(r, layout)

            return with_specs(reduce, lambda sharding: layout.specs(sharding)[2], x, x, p, q)

        return _map(project, tree, plan, *_bases(tree, state))

    def project_back(self, new: PyTree, updates: PyTree, state: GaLoreState, plan: list[Layout | None]) -> PyTree:
        """`scale × P R Qᵀ`, in the dtype of the updates."""

        def back(g: Array, layout: Layout | None, p: Array | None, q: Array | None, r: Array) -> Array:
            if r.shape != (g.shape if layout is None else layout.reduced_shape):
                raise ValueError(f"updates must have the shapes of the parameters at init, got {describe(g)}.")
            if layout is None:
                return r.astype(g.dtype)
            scaled = jnp.asarray(self.scale).astype(r.dtype) * r
            scaled = scaled if short_range(g.dtype) else scaled.astype(g.dtype)
            return with_specs(layout.project_back, lambda sharding: sharding.spec, g, scaled, p, q).astype(g.dtype)

        return _map(back, updates, plan, *_bases(updates, state), jax.tree.structure(updates).flatten_up_to(new))

    def _start(self, leaf: Array, layout: Layout) -> "_Start":
        """Sharded as the leaf is."""
        if (
            self.projector_dtype is not None
            and jnp.iscomplexobj(leaf)
            and jnp.issubdtype(self.projector_dtype, jnp.floating)
        ):
            raise ValueError(f"projector_dtype must be complex for complex parameters, got {self.projector_dtype}.")
        dtype = leaf.dtype if self.projector_dtype is None else self.projector_dtype
        stack, like = layout.batch_shape, known_sharding(leaf)
        specs = (None,) * 4 if like is None else layout.specs(like)
        make = lambda shape, value, dtype, spec: full(shape, value, dtype, like, spec)
        basis = lambda k, r, spec: optax.MaskedNode() if r is None else make((*stack, k, r), 0, dtype, spec)
        return _Start(
            basis(layout.m, layout.left, specs[0]),
            basis(layout.n, layout.right, specs[1]),
            make(layout.reduced_shape, 0, self._dtype(leaf.dtype), specs[2]),
            make(stack, -1, jnp.int32, specs[3]),
            make(stack, 0, at_least_float32(jnp.finfo(leaf.dtype).dtype), specs[3]),
        )

    def _accumulated(self, x: Array) -> Array:
        return x.astype(self._dtype(x.dtype)) if jnp.issubdtype(x.dtype, jnp.inexact) else x

    def _dtype(self, dtype: Any) -> Any:
        """The gradient's dtype, or `accumulator_dtype` where that is wider."""
        wider = jnp.finfo(self.accumulator_dtype).bits > jnp.finfo(dtype).bits
        return self.accumulator_dtype if wider and not jnp.issubdtype(dtype, jnp.complexfloating) else dtype

    def _without_noise(self, r: Array, layout: Layout) -> Array:
        """With a comparison that NaN fails: a gradient that is not finite must show."""
        exact = at_least_float32(r.dtype)
        tolerance = 16 * float(jnp.finfo(exact).eps) if self.rank_tol is None else self.rank_tol
        for projected, axis in ((layout.left, -1), (layout.right, -2)):
            if projected:
                size = energy(r.astype(exact), axis)
                r = jnp.where(size < tolerance**2 * jnp.max(size, axis=(-2, -1), keepdims=True), 0, r)
        return r


class _Start(NamedTuple):
    """The beginnings of one parameter's part of a `GaLoreState`; `low` is what the base optimiser is started with."""

    left: Any
    right: Any
    low: Array
    last_refresh: Any
    captured: Any


def _bases(tree: PyTree, state: GaLoreState) -> tuple[list[Array | None], list[Array | None]]:
    flat = lambda bases: [None if is_masked(x) else x for x in jax.tree.structure(tree).flatten_up_to(bases)]
    return flat(state.left), flat(state.right)


def _map(function: Callable[..., Array], tree: PyTree, *rest: list) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten([function(*each) for each in zip(leaves, *rest, strict=True)])


def _update(
    base: optax.GradientTransformationExtraArgs, low: PyTree, inner: PyTree, params: PyTree | None, extra: dict
):
    try:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes inside, whatever the caller's mode
            return base.update(low, inner, params, **extra)
    except (ValueError, TypeError, AttributeError) as error:
        if "incompatible shapes" in str(error):
            raise ValueError(f"updates must have the shapes of the parameters at init: {error}") from error
        if isinstance(error, TypeError) and "required keyword-only argument" in str(error):
            raise ValueError(f"update must be given what base_optimizer needs by name: {error}.") from error
        if params is not None or not ("param" in str(error) or "None" in str(error)):
            raise
        raise ValueError(
            "base_optimizer needs parameters, as adamw and adafactor do, but it runs on projected gradients and gets "
            "none. Use one that does not (scale_by_adam) with the weight_decay of galore; or project_params=True, with "
            "params in the call of update, and it gets projected parameters. One that applies its learning rate, as "
            "these two do, goes into scale_by_galore, with no learning rate after it."
        ) from error


def _warn_of_unknown_moments(inner: PyTree, params: PyTree, plan: list[Layout | None]) -> None:
    states = States(inner)
    for (path, _), layout in zip(jax.tree.leaves_with_path(params), plan, strict=True):
        unknown = [] if layout is None else states.unknown(path, layout.reduced_shape)
        if unknown:
            warnings.warn(
                f"base_optimizer keeps {unknown[0]!r} of {path_name(path)!r}, of which it is not known whether it is a "
                "moment: it stays as it is when the basis changes. transport='keep' does so without this warning.",
                stacklevel=3,
            )
            return


def _warn_of_inert_stacks(params: PyTree, plan: list[Choice]) -> None:
    leaves = jax.tree.leaves_with_path(params)
    inert = [
        f"{path_name(path)!r} of shape {x.shape}" for (path, x), each in zip(leaves, plan, strict=True) if each.inert
    ]
    if inert:
        warnings.warn(
            f"{len(inert)} parameters, such as {inert[0]}, are left whole: as stacks of matrices in the last two axes "
            "they are too small for the rank. If other axes make the rows and the columns, name them in "
            "weight_dimension_numbers. galore_summary shows all.",
            stacklevel=3,
        )


def _check_refreshed(state: GaLoreState) -> None:
    """Outside `jit` only: there a basis that was never made would make updates of zero without a word."""
    last = jax.tree.leaves(state.last_refresh)
    if last and concrete(last) and all((x < 0).all() for x in last):
        raise ValueError(
            "state must be renewed by galore_refresh, on gradients that are not zero, before the first update: with "
            "update_proj_gap='external' nothing else makes a basis."
        )


def _fitting(mask: PyTree | Callable | None) -> PyTree | Callable | None:
    """The mask, which is checked against the parameters when it is used."""
    if mask is None:
        return None

    def of(params: PyTree) -> PyTree:
        tree = mask(params) if is_function(mask, params) else mask
        tree = jax.tree.map(lambda one: bool(as_mask("mask", one, ())), tree)
        try:
            jax.tree.map(lambda _, part: None, tree, params)
        except ValueError as error:
            raise ValueError(
                f"mask must have the structure of the parameters, or be a function of them: {error}"
            ) from error
        return tree

    return of


def _check_numbers(rank: Ranks, gap: Gap, scale: Any, rank_tol: Any) -> None:
    check_shared_rank(rank)
    if isinstance(gap, str) and gap != "external":
        raise ValueError(f"update_proj_gap must be a number of updates, a function of it or 'external', got {gap!r}.")
    if not isinstance(gap, str) and not callable(gap):
        _at_least("update_proj_gap", gap, 1)
    real("scale", scale, ())
    if rank_tol is not None:
        real("rank_tol", rank_tol, (), least=0, below=1)


def _at_least(name: str, value: Any, least: int) -> Any:
    """Numbers that `optax.inject_hyperparams` passes may be traced, and then are not checked."""
    return value if isinstance(value, Tracer) else integer(name, value, least=least)


def _dtype(name: str, x: Any, kind: Any) -> Any:
    try:
        dtype = jnp.dtype("nothing" if x is None else x)  # which NumPy takes for float64
    except TypeError as error:
        raise ValueError(f"{name} must be a floating-point dtype, got {describe(x)}.") from error
    if not jnp.issubdtype(dtype, kind):
        raise ValueError(f"{name} must be a floating-point dtype, got {dtype}.")
    return dtype
