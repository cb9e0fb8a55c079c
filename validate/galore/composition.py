"""GaLore within other people's code: compiled, batched, combined, saved and restored."""

import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core as jax_core
from jax.sharding import PartitionSpec

from ...nets.galore import exact_svd, galore, galore_labels, galore_reset, scale_by_galore
from ...nets.quantise import quantize_state
from ..claim import Evidence, Setting, claim
from ..panels import heatmap, panel
from ..rows import identity

RATE, RANK, GAP = 0.1, 3, 3
SHAPES = {"a": (6, 10), "b": (10, 6), "c": (4,)}


def _gradients(setting: Setting, steps: int, leaves: str = "abc") -> Any:
    rng = setting.rng
    return {name: jnp.asarray(rng.standard_normal((steps, *SHAPES[name])), setting.dtype) for name in leaves}


def _start(grads: Any) -> Any:
    return jax.tree.map(lambda g: jnp.zeros(g.shape[1:], g.dtype), grads)


def _follow(optimiser: Any, grads: Any, state: Any = None, **extra: Any) -> Any:
    """The parameters after each update from given gradients."""

    def step(carry, g):
        updates, state = optimiser.update(g, carry[1], carry[0], **extra)
        params = optax.apply_updates(carry[0], updates)
        return (params, state), params

    start = _start(grads)
    return jax.lax.scan(step, (start, optimiser.init(start) if state is None else state), grads)[1]


def _outside(jaxpr: Any) -> tuple[int, int]:
    """Matrix decompositions and floating-point operations of products in a program, not counting what stands in a
    branch of a conditional."""
    decompositions = flops = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        batch = lambda shape: int(np.prod(shape[:-2]))
        if name in ("svd", "eigh", "qr", "geqrf", "householder_product"):
            decompositions += batch(equation.invars[0].aval.shape)
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            flops += 2 * int(np.prod(equation.outvars[0].aval.shape) * inner)
        if name == "cond":
            continue
        for inner in jax_core.jaxprs_in_params(equation.params):
            more = _outside(inner)
            decompositions, flops = decompositions + more[0], flops + more[1]
    return decompositions, flops


def _lanes(tx: Any, grads: Any, lanes: int | None) -> tuple[int, int]:
    """What one step of so many optimisers side by side, or of one, does outside of conditionals."""
    shape = () if lanes is None else (lanes,)
    many = jax.tree.map(lambda g: jax.ShapeDtypeStruct((*shape, *g.shape[1:]), g.dtype), grads)
    over = (lambda f: f) if lanes is None else jax.vmap
    states = jax.eval_shape(over(tx.init), many)
    return _outside(jax.make_jaxpr(over(tx.update))(many, states).jaxpr)


def _differing(tx: Any, grads: Any) -> dict[str, int]:
    """How many entries of the updates from a loop over compiled steps are not those from a scan, to the bit."""
    init, steps = jax.jit(tx.init), len(next(iter(grads.values())))
    scan = lambda state, grads: jax.lax.scan(lambda state, g: tx.update(g, state)[::-1], state, grads)[1]
    scanned = jax.tree.map(np.asarray, jax.jit(scan)(init(_start(grads)), grads))
    differing = {"compiled steps": 0, "donated state": 0}
    for name, donated in zip(differing, ((), (1,)), strict=True):
        update, state = jax.jit(tx.update, donate_argnums=donated), init(_start(grads))
        for t in range(steps):
            updates, state = update(jax.tree.map(lambda g, t=t: np.asarray(g)[t], grads), state)
            differing[name] += sum(int(np.sum(scanned[k][t] != np.asarray(updates[k]))) for k in grads)
    return differing


# CONTROL: optax.contrib.galore under vmap
@claim(
    "For matrices the updates of compiled steps, also with a donated state, and of a scan agree to the bit. "
    "Under vmap over states a step off the schedule computes no basis, and as many products as its lanes alone.",
    source="algorithm 2; JAX turns a conditional on a batched number into both of its branches",
    assumptions=("Adam, 6 × 10 and 10 × 6, rank 3, a gap of 3", "counted before compilation"),
)
def compilation(setting: Setting) -> Evidence:
    matrices, few = _gradients(setting, 7, "ab"), (1, 4)
    lanes = np.array(setting.pick(smoke=few, laptop=(1, 2, 4, 8), paper=(1, 2, 4, 8)))
    differing = _differing(galore(RATE, RANK, GAP), matrices)
    remarks = []
    if setting.scale != "smoke":
        adam = _differing(optax.adam(RATE), matrices)["compiled steps"]
        remarks = [
            f"Of optax.adam by itself {adam} entries of 840 differ in the last bit between a loop and a scan, where "
            "the compiler fuses otherwise: so may leaves that are not projected, and what is added to an update within "
            "the same program.",
        ]
    ours, theirs = scale_by_galore(rank=RANK, update_proj_gap=GAP), optax.contrib.scale_by_galore(RANK, GAP)
    _, products = _lanes(ours, matrices, None)
    mine, others = (np.array([_lanes(each, matrices, n) for n in lanes]) for each in (ours, theirs))
    each = {"a": jnp.asarray(setting.rng.standard_normal((2, 3, *SHAPES["a"])), setting.dtype)}
    follow = lambda g: _follow(ours, g)["a"]
    one, both = jax.jit(follow), jax.jit(jax.vmap(follow))
    lane_error = np.asarray(both(each)) - np.stack([np.asarray(one({"a": each["a"][i]})) for i in range(2)])
    return Evidence(
        rows={f"entries that differ from a scan, {name}": identity(count, 0) for name, count in differing.items()}
        | {
            "decompositions outside conditionals, all lanes": identity(mine[:, 0], 0),
            "products outside conditionals over lanes times one, − 1": identity(mine[:, 1] / (lanes * products) - 1, 0),
            "parameters of a lane against the lane alone": identity(lane_error, setting.bound(1e-12, 1e-4)),
        },
        control={
            f"optax.contrib, decompositions, {n} lanes": identity(count, 0)
            for n, count in zip(lanes, others[:, 0], strict=True)
        },
        panels=[
            panel(
                "one step off the schedule, two matrices, under vmap",
                ("lanes", lanes),
                y="decompositions computed",
                observed={"here": mine[:, 0]},
                control={"optax.contrib.galore": others[:, 0]},
            )
        ],
        remarks=remarks,
    )


REPEAT, EXTRA = {"MultiSteps": 2}, {"argument for the base": {"value": 1.0}}


def _wrapped(maker: Any) -> dict[str, Any]:
    """By name: a function that makes GaLore within something else."""
    value: Any = lambda g, state, params=None, *, value, **extra: (jax.tree.map(lambda g: g * value, g), state)
    scaled = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), value)
    base, with_value = maker(RATE, RANK, GAP), optax.chain(scaled, optax.scale_by_adam())
    labels = lambda tree: galore_labels(tree, lambda name, leaf: name == "a")
    static = ("projector",) if isinstance(maker, functools.partial) else ()
    numbers = {"learning_rate": RATE, "rank": RANK, "update_proj_gap": GAP, "scale": 1.0}
    return {
        "partition": lambda: optax.partition({"galore": base, "full": optax.adam(RATE)}, labels),
        "masked": lambda: optax.masked(base, {"a": True, "c": False}),
        "apply_if_finite": lambda: optax.apply_if_finite(base, 2),
        "MultiSteps": lambda: optax.MultiSteps(base, 2).gradient_transformation(),
        "inject_hyperparams": lambda: optax.inject_hyperparams(maker, static_args=static)(**numbers),
        "argument for the base": lambda: maker(RATE, RANK, GAP, base_optimizer=with_value),
    }


def _missing_specs(params: Any) -> int:
    """The number of trees, moments and bases, in which `map_params` does not give a parameter's spec to its leaf."""
    tx, specs = scale_by_galore(rank=RANK), {"a": PartitionSpec(None, "x"), "c": PartitionSpec("x")}
    hole = lambda x: isinstance(x, optax.MaskedNode)
    mapped: Any = optax.tree.map_params(tx, lambda leaf, spec: spec, tx.init(params), specs, is_leaf=hole)
    return sum(tree != specs for tree in (mapped.inner_state.mu, mapped.inner_state.nu, mapped.left))


# CONTROL: optax.contrib.galore in the same places, where it raises (∞)
@claim(
    "Inside optax's partition, masked, apply_if_finite, MultiSteps and inject_hyperparams, and with a base "
    "that takes arguments, GaLore takes the steps that it takes alone; map_params reaches all of its state.",
    source="optax's contract of transforms",
    assumptions=("7 steps, Adam, rank 3, a gap of 3, singular vectors; functions are named in static_args",),
)
def compose(setting: Setting) -> Evidence:
    grads = _gradients(setting, 7, "ac")
    makers: dict[str, Any] = {"here": functools.partial(galore, projector=exact_svd())}
    makers["optax.contrib"] = optax.contrib.galore
    found: dict[str, dict[str, float]] = {}
    raised: list[str] = []
    curves = {}
    for whose, maker in makers.items():
        alone = jax.jit(lambda g, maker=maker: _follow(maker(RATE, RANK, GAP), g))(grads)
        found[whose] = {}
        for name, make in _wrapped(maker).items():
            if whose != "here" and name not in ("inject_hyperparams", "argument for the base"):
                continue  # nothing to be refuted: it works there
            extra, repeat = EXTRA.get(name, {}), REPEAT.get(name, 1)
            try:
                tx = make()
                # inject_hyperparams has the rank as an array, which a compiled init cannot have.
                start = tx.init(_start(grads)) if name == "inject_hyperparams" else None
                run = jax.jit(lambda g, start, tx=tx, extra=extra: _follow(tx, g, start, **extra))
                trail = run(jax.tree.map(lambda g, n=repeat: jnp.repeat(g, n, axis=0), grads), start)
            except (TypeError, ValueError) as error:
                found[whose][name] = np.inf
                raised.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
                continue
            # In a partition only the first matrix is GaLore's.
            leaves = "a" if name in ("partition", "masked") else "ac"
            pairs = [(np.asarray(trail[k])[repeat - 1 :: repeat], np.asarray(alone[k])) for k in leaves]
            distance = [np.abs(x - y).reshape(7, -1).max(1) for x, y in pairs]
            curves[whose, name] = np.max(distance, axis=0)
            found[whose][name] = float(curves[whose, name].max())
    found["here"]["map_params: specs that are missing"] = _missing_specs(_start(grads))
    bound = setting.bound(1e-12, 1e-5)
    # MultiSteps averages gradients in float32.
    bounds = {"MultiSteps": setting.bound(1e-5, 1e-4), "map_params: specs that are missing": 0.0}
    names = [name for whose, name in curves if whose == "here"]
    return Evidence(
        rows={name: identity(error, bounds.get(name, bound)) for name, error in found["here"].items()},
        control={f"optax.contrib, {name}": identity(x, bound) for name, x in found["optax.contrib"].items()},
        panels=[
            heatmap(
                "distance from GaLore alone",
                ("step", np.arange(1, 8)),
                ("wrapper", names),
                [np.maximum(curves["here", name], np.finfo(setting.dtype).eps / 100) for name in names],
                z_label="max |W − W_alone|",
                log="z",
            )
        ],
        remarks=[f"optax.contrib.galore, {text}" for text in raised],
    )


def _through_disk(how: str, folder: Path, tree: Any, like: Any) -> Any:
    """`tree` after a round trip through the disk."""
    if how == "Equinox":
        eqx.tree_serialise_leaves(folder / "saved.eqx", tree)
        return eqx.tree_deserialise_leaves(folder / "saved.eqx", like)
    import orbax.checkpoint as orbax  # takes a second, which the other claims need not wait for

    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "saved", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "saved", jax.eval_shape(lambda: like))


# CONTROL: a state that has lost its count, or its bases and when they were made, or its moments
@claim(
    "Saved and restored at any phase of the gap, with 8-bit moments and staggered bases, training goes on to "
    "the bit as if it had not stopped.",
    source="the author's code cannot resume; optax.contrib keeps arrays of no entries, which Orbax refuses",
    assumptions=("a gap of 4, three leaves, 8-bit Adam; Equinox's and, where it is installed, Orbax's format",),
)
def resume(setting: Setting) -> Evidence:
    steps, gap = 10, 4
    grads = _gradients(setting, steps)
    tx = galore(RATE, RANK, gap, base_optimizer=quantize_state(optax.scale_by_adam(), min_size=8))

    @jax.jit
    def step(g, state, params):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    def go_on(params: Any, state: Any, first: int) -> list[tuple[Any, Any]]:
        trail = []
        for t in range(first, steps):
            params, state = step(jax.tree.map(lambda g, t=t: np.asarray(g)[t], grads), state, params)
            trail.append((params, state))
        return trail

    start: Any = (_start(grads), jax.jit(tx.init)(_start(grads)))
    unbroken = go_on(start[0], start[1], 0)

    def distance(trail: list[tuple[Any, Any]]) -> np.ndarray:
        """Of the parameters, after each step, from the unbroken run."""
        pairs = zip(trail, unbroken[-len(trail) :], strict=True)
        each = lambda x, y: max(float(np.abs(np.asarray(x[k]) - np.asarray(y[k])).max()) for k in SHAPES)
        return np.array([each(x[0], y[0]) for x, y in pairs])

    def differing(a: Any, b: Any) -> int:
        count = jax.tree.map(lambda x, y: int(np.sum(np.asarray(x) != np.asarray(y))), a, b)
        return sum(jax.tree.leaves(count))

    formats = setting.pick(smoke=("Equinox",), laptop=("Equinox", "Orbax"), paper=("Equinox", "Orbax"))
    counts: dict[str, list[int]] = {how: [] for how in formats}
    for how, phase in itertools.product(counts, range(1, gap + 1)):
        with tempfile.TemporaryDirectory() as folder:
            loaded = _through_disk(how, Path(folder), unbroken[phase - 1], start)
        counts[how].append(differing(go_on(loaded[0], loaded[1], phase)[-1], unbroken[-1]))
    params, (state, *rest) = unbroken[gap]
    lost = {
        "count": state._replace(count=start[1][0].count),
        "bases": galore_reset(state._replace(left=start[1][0].left, right=start[1][0].right)),
        "moments": state._replace(inner_state=start[1][0].inner_state),
    }
    apart = {name: distance(go_on(params, (each, *rest), gap + 1)) for name, each in lost.items()}
    eps, after = float(np.finfo(setting.dtype).eps), np.arange(gap + 2, steps + 1)
    kept = distance(go_on(params, (state, *rest), gap + 1))
    return Evidence(
        rows={
            f"entries of the last state that differ, {how}, saved after 1, 2, 3 or 4 steps": identity(np.array(n), 0)
            for how, n in counts.items()
        },
        control={f"max |W − W_unbroken|, {name} lost": identity(x.max(), 0) for name, x in apart.items()},
        panels=[
            panel(
                f"resumed after {gap + 1} steps",
                ("step", after),
                y="max |W − W_unbroken|",
                observed={"whole state": np.maximum(kept, eps)},
                control={f"{name} lost": np.maximum(x, eps) for name, x in apart.items()},
                log="y",
            )
        ],
        remarks=[f"Formats tried: {', '.join(formats)}."],
    )
