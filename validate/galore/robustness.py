"""Gradients, trees and precisions as they come: what must not break a projection, and what 8-bit states cost."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...nets.galore import GaLoreDimensionNumbers, exact_svd, galore, scale_by_galore
from ...nets.quantise import dequantise, quantise, quantize_state
from ..claim import Evidence, Setting, claim
from ..panels import heatmap, panel
from ..rows import identity, statistic

RATE = 0.1


def _scan(optimiser: Any, params: Any, grads: Any) -> Any:
    """The parameters after updates from given gradients."""

    def step(carry, g):
        updates, state = optimiser.update(g, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.lax.scan(step, (params, optimiser.init(params)), grads)[0][0]


GAP, RANK = 3, 2
OURS = functools.partial(galore, RATE, RANK, GAP, projector=exact_svd(), stagger=False)
THEIRS = functools.partial(optax.contrib.galore, RATE, RANK, GAP)
MATRIX, STACK, HEADS = (6, 10), (3, 6, 10), (6, 2, 5)
SPEC = GaLoreDimensionNumbers(0, (1, 2))


class _Layer(eqx.Module):
    """Some arrays of an Equinox model: a matrix, a bias, and a bias that is not there."""

    weight: Any
    bias: Any
    none: Any = None


def _trees() -> dict[str, tuple[dict[str, Any], Any, Any]]:
    """By name: options; from one matrix of 6 × 10 and a stack of three, a tree; from the tree, the matrices again."""
    heads = lambda w: w.reshape(*w.shape[:-1], 2, 5)
    flat = lambda w: w.reshape(*w.shape[:-2], 10)
    layer = lambda w, stack: {"layer": _Layer(w, w[..., 0]), "scalar": w[..., 0, 0]}
    return {
        "Equinox layer, None, scalar": ({}, layer, lambda t: [t["layer"].weight]),
        "stacked layers": ({}, lambda w, stack: stack, lambda t: list(t)),
        "heads as an axis": ({"weight_dimension_numbers": SPEC}, lambda w, stack: heads(w), lambda t: [flat(t)]),
        "one spec, mixed axes": (
            {"weight_dimension_numbers": SPEC},
            lambda w, stack: [w, heads(w)],
            lambda t: [t[0], flat(t[1])],
        ),
    }


@functools.partial(jax.jit, static_argnames=("maker", "name"))
def _in_a_tree(maker, name, w, stack):
    options, make, split = _trees()[name]
    grads = make(w, stack)
    start = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads)
    return split(_scan(maker(**options), start, grads))


@functools.partial(jax.jit, static_argnames="maker")
def _alone(maker, g):
    return _scan(maker(), jnp.zeros_like(g[0]), g)


# CONTROL: optax.contrib.galore on the same trees, against itself matrix by matrix; ∞: it raises
@claim(
    "A matrix is treated alike by itself, in a tree with None and scalars, in a stack of layers, and with "
    "heads as an axis of its own.",
    source="algorithm 2 is stated for one matrix; the layouts are ours",
    assumptions=("Adam, rank 2, a gap of 3, 7 steps, singular vectors, 6 × 10 matrices",),
)
def trees(setting: Setting) -> Evidence:
    w, stack = (jnp.asarray(setting.rng.standard_normal((7, *shape)), setting.dtype) for shape in (MATRIX, STACK))
    kinds = list(_trees())
    raised: dict[str, str] = {}

    def errors(maker: Any) -> np.ndarray:
        by_itself = np.asarray(_alone(maker, w))
        layers = [np.asarray(_alone(maker, stack[:, i])) for i in range(stack.shape[1])]

        def error(name: str) -> float:
            try:
                found = _in_a_tree(maker, name, w, stack)
            except (AttributeError, ValueError, TypeError) as failure:
                raised[name] = f"{type(failure).__name__}: {str(failure).splitlines()[0]}"
                return np.inf
            against = layers if name == "stacked layers" else [by_itself] * len(found)
            pairs = [(np.asarray(x), y) for x, y in zip(found, against, strict=True)]
            return max(float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in pairs)

        return np.array([error(name) for name in kinds])

    ours = errors(OURS)
    theirs = errors(THEIRS)
    bound = setting.bound(1e-12, 1e-6)
    shown = lambda x: np.where(np.isfinite(x), np.maximum(x, np.finfo(setting.dtype).eps), np.nan)
    broken = [i for i, error in enumerate(theirs) if error > 0.01]
    return Evidence(
        rows={name: identity(error, bound) for name, error in zip(kinds, ours, strict=True)},
        control={f"optax.contrib: {kinds[i]}": identity(theirs[i], bound) for i in broken},
        panels=[
            heatmap(
                "a tree against its matrices one by one (white: refused)",
                ("tree", kinds),
                ("implementation", ["optax.contrib", "here"]),
                np.stack([shown(theirs), shown(ours)]),
                z_label="relative difference after 7 steps",
                log="z",
            )
        ],
        remarks=[f"Refused by optax.contrib.galore: {name}. {failure}" for name, failure in raised.items()],
    )


@functools.partial(jax.jit, static_argnames=("tx", "steps", "ones"))
def _second_moments(tx, params, steps, ones):
    """The second moment's first entry over steps: gradients of one, `ones` of them, then zeros."""

    def step(state, t):
        g = jnp.where(t < ones, jnp.ones_like(params), jnp.zeros_like(params))
        state = tx.update(g, state)[1]
        return state, optax.tree.get(state, "nu").ravel()[0].astype(jnp.float32)

    return jax.lax.scan(step, tx.init(params), jnp.arange(steps))[1]


# CONTROL: optax.scale_by_adam on bfloat16 parameters, whose second moment is bfloat16: there 0.999 is 1
@claim(
    "With bfloat16 parameters the second moment decays as 0.999^t after a gradient of one, and grows as "
    "1 − 0.999^t under constant ones: moments are kept in float32.",
    source="the paper trains in bfloat16; Adam's averages",
    assumptions=("4 × 8 matrices of bfloat16", "the basis e₁, e₂"),
)
def precision(setting: Setting) -> Evidence:
    steps = setting.pick(smoke=1001, laptop=3001, paper=5001)
    params = jnp.zeros((4, 8), jnp.bfloat16)
    ours = scale_by_galore(rank=2, side="left", projector=lambda g, p, key, r: jnp.eye(4, 2, dtype=g.dtype))
    adam = optax.scale_by_adam()
    with jax.numpy_dtype_promotion("standard"):
        decay, growth, decay16, growth16 = (
            np.asarray(_second_moments(tx, params, steps, ones), float) for tx in (ours, adam) for ones in (1, steps)
        )
    t = np.arange(1, steps + 1)
    decays, grows = 1e-3 * 0.999 ** (t - 1), 1 - 0.999**t
    return Evidence(
        rows={
            "ν after one gradient, relative error": identity(decay / decays - 1, 0.02),
            "ν under constant gradients, relative error": identity(growth / grows - 1, 0.02),
        },
        control={
            "ν after one gradient, Adam on bfloat16": identity(decay16[1000] / decays[1000] - 1, 0.02),
            "ν under constant gradients, Adam on bfloat16": identity(growth16[-1] / grows[-1] - 1, 0.02),
        },
        panels=[
            panel(
                title,
                ("step", t[::10]),
                y="second moment ν",
                observed={"here": x[::10]},
                predicted={law: exact[::10]},
                control={"optax Adam, bfloat16": wrong[::10]},
            )
            for title, law, x, exact, wrong in (
                ("one gradient, then zeros", "10⁻³ · 0.999^t", decay, decays, decay16),
                ("constant gradients", "1 − 0.999^t", growth, grows, growth16),
            )
        ],
        remarks=[
            f"In bfloat16 ν stays at {decay16[-1]:.2g} for ever after one gradient, and stops at {growth16[-1]:.3g} "
            f"under constant ones; exact are {decays[-1]:.2g} and {grows[-1]:.3g} after {steps} steps.",
        ],
    )


ROWS, COLUMNS, SEEDS, LOW, BATCH, LEARNING_RATE = 16, 64, 8, 4, 8, 0.02
CODES = {"one sign": (7.0, 254), "both signs": (5.0, 126)}  # decades and steps of the magnitudes
LOG_CODE = {name: np.log(10) * decades / steps for name, (decades, steps) in CODES.items()}


def _still(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """`quantize_state` with a dither that does not move: its count is held."""
    held = lambda state: state._replace(count=jnp.zeros_like(state.count))
    update: Any = lambda g, state, params=None: tx.update(g, held(state), params)
    return optax.GradientTransformationExtraArgs(tx.init, update)


def _state(result: Any) -> Any:
    return result[1]


def _linear(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transform with its state rounded to 8 bits a row on a linear scale."""

    def rounded(x: Any) -> Any:
        if jnp.ndim(x) < 2:
            return x
        largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
        unit = jnp.where(largest > 0, largest, jnp.ones_like(largest)) / 127
        return jnp.round(x / unit) * unit

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(updates, state, params)
        return updates, jax.tree.map(rounded, state)

    return optax.GradientTransformation(tx.init, update)


def _adams() -> dict[str, Any]:
    adam, eight = optax.scale_by_adam(), quantize_state(optax.scale_by_adam(), min_size=1)
    low = functools.partial(scale_by_galore, rank=LOW, update_proj_gap=50, projector=exact_svd())
    return {
        "Adam": adam,
        "8-bit Adam": eight,
        "GaLore": low(adam),
        "8-bit GaLore": low(eight),
        "linear 8-bit Adam": _linear(adam),
    }


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def _regression(target, scale, inputs, noise, name, steps):
    """Excess losses, `(seeds, steps)`, of least squares on noisy linear data with a rate that falls linearly to 0."""

    def run(target, scale, inputs, noise):
        rate = optax.linear_schedule(LEARNING_RATE, 0.0, steps)
        tx = optax.chain(_adams()[name], optax.scale_by_learning_rate(rate))

        def step(carry, batch):
            w, state = carry
            x, e = batch
            error = (w - target) @ x.T - e
            updates, state = tx.update(error @ x / x.shape[0], state, w)
            w = optax.apply_updates(w, updates)
            return (w, state), 0.5 * jnp.sum((w - target) ** 2 * scale**2)

        start = jnp.zeros_like(target)
        return jax.lax.scan(step, (start, tx.init(start)), (inputs, noise))[1]

    return jax.vmap(run, (0, None, 0, 0))(target, scale, inputs, noise)


@functools.partial(jax.jit, static_argnames=("still", "steps"))
def _averages(before, after, still, steps):
    """Adam's second moments in 8 bits over exact ones, averaged over entries, when gradients change after 100 steps."""
    eight = quantize_state(optax.scale_by_adam(), min_size=1)
    tx = _still(eight) if still else eight

    def step(carry: Any, t: Any) -> Any:
        state, exact = carry
        g = jnp.where(t < 100, before, after)
        state, exact = _state(tx.update(g, state)), 0.999 * exact + 0.001 * g**2
        nu = dequantise(state.inner_state.nu)
        return (state, exact), jnp.stack([jnp.mean(jnp.abs(nu / exact - 1)), jnp.mean(jnp.log(nu / exact))])

    return jax.lax.scan(step, (tx.init(before), jnp.zeros_like(before)), jnp.arange(steps))[1]


@functools.partial(jax.jit, static_argnames="steps")
def _rounded(x, steps):
    """Arrays in 8 bits and back, at the first `steps` steps of the dither."""
    return jax.lax.map(lambda t: dequantise(quantise(x, step=t)), jnp.arange(steps))


# CONTROL: moments in 8 bits on a linear scale; a dither that does not move; scales not counted in the bytes
@claim(
    "Adam with its moments in 8 bits, alone and inside GaLore, ends within 2 % of the excess loss of Adam; "
    "for rounding is on a logarithmic scale, so that small second moments do not become zero, and dithered, so that it "
    "averages out and slow averages move.",
    source="8-bit optimizers (arXiv 2110.02861), which the paper uses for its 7B model; codes and dither are ours",
    assumptions=(
        f"least squares on noisy linear data, {ROWS} × {COLUMNS}, {SEEDS} seeds; rank {LOW} for GaLore",
        "(ln ρ)²/8 is the largest mean error of dithering between codes of ratio ρ, plus ln ρ (1 + ln N)/N of N steps",
        "ln ρ/2 bounds the mean of ln(ν₈/ν): a move of ν upwards is that much too large",
    ),
)
def quantised(setting: Setting) -> Evidence:
    rng, steps = setting.rng, setting.pick(smoke=300, laptop=1000, paper=4000)
    cast = lambda x: jnp.asarray(x, setting.dtype)
    scale = np.geomspace(1, 0.03, COLUMNS)
    data = (
        cast(rng.standard_normal((SEEDS, ROWS, COLUMNS))),
        cast(scale),
        cast(rng.standard_normal((SEEDS, steps, BATCH, COLUMNS)) * scale),
        cast(rng.standard_normal((SEEDS, steps, ROWS, BATCH))),
    )
    names = [name for name in _adams() if setting.scale != "smoke" or "GaLore" not in name]
    losses = {name: np.asarray(_regression(*data, name, steps)) for name in names}
    end = {name: x[:, -1] for name, x in losses.items()}
    against = {"8-bit Adam": "Adam", "8-bit GaLore": "GaLore", "linear 8-bit Adam": "Adam"}
    ratio = {name: np.log(end[name] / end[exact]) for name, exact in against.items() if name in end}

    before, after = (cast(10 ** rng.uniform(-1, 0, (ROWS, COLUMNS))) for _ in range(2))
    length = setting.pick(smoke=1500, laptop=4000, paper=10000)
    moving, held = (np.asarray(_averages(before, after, still, length)) for still in (False, True))
    normal = rng.standard_normal((ROWS, COLUMNS))
    arrays, number = {"both signs": normal, "one sign": normal**2}, 1000
    rounded = {name: np.asarray(_rounded(cast(x), number)) for name, x in arrays.items()}
    relative = {name: x / arrays[name] for name, x in rounded.items()}
    # Below the least code there is nothing to average; the entries that are on the scale.
    near = {
        name: np.abs(x) > 10 ** (0.1 - CODES[name][0]) * np.abs(x).max(axis=1, keepdims=True)
        for name, x in arrays.items()
    }
    mean_error = {name: np.abs(x.mean(0) - 1)[near[name]].max() for name, x in relative.items()}
    first_error = {name: np.abs(x[0] - 1)[near[name]].max() for name, x in relative.items()}
    average = {name: x**2 / 8 + x * (1 + np.log(number)) / number for name, x in LOG_CODE.items()}

    eight = quantize_state(optax.scale_by_adam(), min_size=1)
    state = jax.eval_shape(eight.init, jax.ShapeDtypeStruct((40, 600), setting.dtype))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)
    codes, scales = 2 * 40 * 600, 2 * 40 * 3 * jnp.dtype(setting.dtype).itemsize
    t, one = np.arange(1, steps + 1), LOG_CODE["one sign"]
    return Evidence(
        rows={
            f"ln of the loss of {name} over that of {against[name]}": statistic(x, at_most=np.log(1.02))
            for name, x in ratio.items()
            if name != "linear 8-bit Adam"
        }
        | {f"mean of {number} roundings, relative error, {n}": identity(mean_error[n], average[n]) for n in arrays}
        | {
            "mean |ν₈/ν − 1|, against one code": identity(moving[100:, 0], np.expm1(one)),
            "|mean ln(ν₈/ν)|": identity(moving[100:, 1], one / 2),
            "bytes of state, 40 × 600, less codes and scales": identity(size - codes - scales, 0.0),
        },
        control={
            "ln of the loss, linear 8-bit Adam": statistic(ratio["linear 8-bit Adam"], at_most=np.log(1.02)),
            "dither held: mean |ν₈/ν − 1| in the end": identity(held[-1, 0], np.expm1(one)),
            "bytes of state less codes": identity(size - codes, 0.0),
        }
        | {f"one rounding, relative error, {n}": identity(first_error[n], average[n]) for n in arrays},
        panels=[
            panel(
                "excess loss, mean of seeds",
                ("step", t),
                y="½ ‖(W − W*) Σ^½‖²",
                observed={name: losses[name].mean(0) for name in names if name in ("8-bit Adam", "8-bit GaLore")},
                predicted={name: losses[name].mean(0) for name in names if name in ("Adam", "GaLore")},
                control={"8 bits, linear": losses["linear 8-bit Adam"].mean(0)},
                log="y",
            ),
            panel(
                "second moments when gradients change at step 100",
                ("step", np.arange(1, length + 1)[::10]),
                y="mean |ν₈/ν − 1|",
                observed={"dithered": moving[::10, 0]},
                predicted={"one code": np.full(len(moving[::10]), np.expm1(one))},
                control={"dither held": held[::10, 0]},
                log="y",
            ),
        ],
        remarks=[
            "Final losses relative to those with moments as computed, geometric mean of seeds: "
            + "; ".join(f"{name} {np.exp(x.mean()):.4g}" for name, x in ratio.items())
            + ".",
            f"With the dither held most averages stay where they are: ν is off by a factor {1 + held[-1, 0]:.1f} on "
            f"average after {length - 100} steps, with it by {moving[-1, 0]:.1%}.",
        ],
    )
