"""Calls of GaLore, of 8-bit states and of low-rank layers that work, and what they rightly accept."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from traindyn.nets import galore as gl
from traindyn.nets import low_rank, quantise

from .kinds import Call

NAN = float("nan")
KEY = jax.random.key(0)
PARAMS = {"w": jnp.linspace(0.1, 1.0, 24).reshape(6, 4), "b": jnp.ones(4)}
LAYER = eqx.nn.Linear(3, 4, key=KEY)
A, B, X = jnp.ones((2, 3)), jnp.ones((4, 2)), jnp.array([0.5, -1.0, 2.0])
MATRIX = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
# A transform is made first and sees parameters later, so that mistakes in trees are seen in its first step.
TREES = {"rank": [{"nope": 2}, {"w": 9}, {"b": 1}, "2", True, 0, 1.5, NAN, 5]}
DIMS = {
    "weight_dimension_numbers": [
        3,
        {"w": 0},
        "flax",
        {"w": gl.GaLoreDimensionNumbers(0, 0)},
        gl.GaLoreDimensionNumbers(0, 7),
    ]
}
NUMBERS = {
    "scale": ["big", NAN, 1j], "rank_tol": [-1.0, NAN, 2.0], "seed": [1.5, "1"], "accumulate": [0, 1.5],
    "projector": [gl.exact_svd, "svd"], "projector_dtype": [int, "float1000"], "accumulator_dtype": [int, "complex64"],
    "min_dim": [1, 2.5], "update_proj_gap": [0, 1.5, "never"], "side": ["up"], "transport": ["rotate"],
    "base_optimizer": [optax.scale_by_adam, optax.adamw(0.1)],
}  # fmt: skip


def _stepped(factory: Any) -> Any:
    """The first update of a transform from this factory."""

    @functools.wraps(factory)
    def step(*args: Any, **options: Any) -> Any:
        tx = factory(*args, **options)
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]

    return step


@functools.wraps(gl.galore_refresh)
def _refreshed(state: Any, grads: Any, **options: Any) -> Any:
    return gl.galore_refresh(state, grads, **options)


OPTIONS = {
    "rank": 2, "update_proj_gap": 3, "scale": 0.5, "side": "short", "stagger": True, "min_dim": 2, "rank_tol": 1e-6,
    "project_params": False, "seed": 0, "transport": "keep", "projector": gl.exact_svd(), "projector_dtype": "float32",
    "base_optimizer": optax.identity(), "accumulator_dtype": "float32", "weight_dimension_numbers": None,
}  # fmt: skip
EXTERNAL = gl.scale_by_galore(optax.identity(), 2, "external")
STATE = EXTERNAL.init(PARAMS)
# What has no wrong value: a seed is any integer; no projected dtype is the parameter's; functions of a tree or of a
# count can be anything that can be called, and numbers of them show only in their results.
ACCEPTS = {"seed": "negative", "weight_dimension_numbers": "nothing"}
# A mesh of one device, for the specs of quantised arrays.
SHARDING = NamedSharding(jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,)), PartitionSpec(None, "x"))

CALLS = {
    "nets.galore.galore": Call(
        _stepped(gl.galore),
        {"learning_rate": 0.1, "weight_decay": 0.1, "mask": {"w": True, "b": False}, **OPTIONS},
        accepts=ACCEPTS,
        bad=TREES
        | DIMS
        | NUMBERS
        | {
            "learning_rate": [NAN, "0.1", -1.0],
            "weight_decay": [-1.0, "1"],
            "mask": [{"nope": True}, "text"],
        },
    ),
    "nets.galore.scale_by_galore": Call(
        _stepped(gl.scale_by_galore), OPTIONS, accepts=ACCEPTS, bad=TREES | DIMS | NUMBERS
    ),
    "nets.galore.galore_state_bytes": Call(
        gl.galore_state_bytes,
        {"params": PARAMS, "rank": 2},
        # Shapes and dtypes are all that is looked at: values, other shapes and complex parameters make no mistake.
        accepts={
            "params": (
                "leaf 0 NaN",
                "leaf 1 NaN",
                "leaf 0 longer",
                "leaf 1 longer",
                "leaf 0 complex",
                "leaf 1 complex",
                "nothing",
            )
        },
        bad=TREES | {"params": [{"w": 1.0}, {"w": jnp.ones((2, 2), int)}]},
    ),
    "nets.galore.galore_summary": Call(
        gl.galore_summary,
        {"params": PARAMS, "rank": 2},
        accepts={
            "params": (
                "leaf 0 NaN",
                "leaf 1 NaN",
                "leaf 0 longer",
                "leaf 1 longer",
                "leaf 0 complex",
                "leaf 1 complex",
                "nothing",
            )
        },  # as above
        bad=TREES | {"params": [{"w": 1.0}, {"w": jnp.ones((2, 2), int)}]},
    ),
    "nets.galore.galore_labels": Call(
        gl.galore_labels,
        {"params": PARAMS, "where": "w"},
        # By name and number of axes alone. A tree without leaves, as None, has no labels.
        accepts={
            "params": (
                "leaf 0 NaN",
                "leaf 1 NaN",
                "leaf 0 longer",
                "leaf 1 longer",
                "leaf 0 complex",
                "leaf 1 complex",
                "nothing",
            )
        },
        bad={"where": ["nope", ["w", "nope"], [], "", 3, [3], "(w", lambda name, leaf: False]},
    ),
    "nets.galore.clip_by_previous_norm": Call(
        _stepped(gl.clip_by_previous_norm), {"max_norm": 1.0}, bad={"max_norm": [0.0, -1.0, NAN, "1", 1j]}
    ),
    "nets.galore.galore_refresh": Call(
        _refreshed,
        {"state": STATE, "grads": PARAMS, "transport": "momentum", "seed": 0, "projector": gl.exact_svd()},
        # A state is not checked number by number. A gradient of a vector is not looked at. Complex gradients of real
        # parameters are a mistake, but bases are found in the dtype of the state. NaN keeps the basis.
        accepts={
            "state": "*",
            "grads": ("leaf 0 NaN", "leaf 1 NaN", "leaf 0 longer", "leaf 0 complex", "leaf 1 complex"),
            "seed": "negative",
        },
        bad={
            "state": [None, {"x": 1}, "x"],
            "grads": [{"b": jnp.ones(4)}, {"w": jnp.ones((6, 4), int)}],
            "transport": ["rotate"],
            "projector": [gl.exact_svd],
        },
    ),
    "nets.galore.galore_reset": Call(
        gl.galore_reset,
        {"state": STATE},
        accepts={"state": "*"},
        bad={"state": [None, {"x": 1}, "x"]},  # as above
    ),
    "nets.galore.exact_svd": Call(gl.exact_svd, {}),
    "nets.galore.gram_eigh": Call(gl.gram_eigh, {}),
    "nets.galore.random_orthonormal": Call(gl.random_orthonormal, {}),
    "nets.galore.randomized_range": Call(gl.randomized_range, {"oversample": 2, "power_iters": 1}),
    "nets.galore.subspace_iteration": Call(gl.subspace_iteration, {"iters": 1}, bad={"iters": [0, True]}),
    "nets.low_rank.Factorised": Call(low_rank.Factorised, {"a": A, "b": B, "layer": LAYER}),
    "nets.low_rank.Factorised.__call__": Call(low_rank.Factorised(A, B, LAYER), {"x": X, "key": KEY}),
    "nets.low_rank.LoRA": Call(
        low_rank.LoRA, {"a": A, "b": B, "layer": LAYER, "scale": 1.0}, bad={"scale": [NAN, "1"]}
    ),
    "nets.low_rank.LoRA.__call__": Call(low_rank.LoRA(A, B, LAYER, 1.0), {"x": X, "key": KEY}),
    "nets.low_rank.factorise": Call(
        low_rank.factorise,
        {"model": LAYER, "rank": 2, "where": "weight", "key": KEY},
        accepts={"where": "text"},  # with a question mark: a regular expression, which is found
        bad={"rank": [0, 99, 2.5], "where": ["nope", [], "weight|nope"], "model": [jnp.ones(3)]},
    ),
    "nets.low_rank.lora": Call(
        low_rank.lora,
        {"model": LAYER, "rank": 2, "where": "weight", "alpha": 4.0, "key": KEY},
        accepts={"where": "text"},  # as above
        bad={"rank": [0, 99, 2.5], "where": ["nope", [], "weight|nope"], "alpha": [0.0, -1.0, float("inf")]},
    ),
    # Both take any tree: one without products stays as it is, and each leaf is trained or not.
    "nets.low_rank.merge": Call(low_rank.merge, {"model": LAYER}, accepts={"model": "*"}),
    "nets.low_rank.trainable": Call(low_rank.trainable, {"model": LAYER}, accepts={"model": "*"}),
    "nets.quantise.Quantised": Call(
        quantise.Quantised,
        {"codes": jnp.ones((2, 3), jnp.uint8), "scale": jnp.ones((2, 1)), "block": 4},
        # Every code of 8 bits stands for a number; a NaN scale is a block of NaN.
        accepts={"scale": "NaN"},
        bad={"codes": [jnp.ones((2, 3), jnp.uint32)], "block": [2, 0]},
    ),
    "nets.quantise.quantise": Call(
        quantise.quantise, {"x": MATRIX, "bits": 8, "block": 2, "step": 0}, bad={"bits": [4, 8.0, "8"], "block": [0]}
    ),
    # Anything that is not `Quantised` is returned as it is, so that it maps over a state.
    "nets.quantise.dequantise": Call(quantise.dequantise, {"x": quantise.quantise(MATRIX)}, accepts={"x": "*"}),
    "nets.quantise.quantize_state": Call(
        _stepped(quantise.quantize_state),
        {"inner": optax.scale_by_adam(), "bits": 8, "block": 4, "min_size": 4},
        bad={"inner": [optax.scale_by_adam], "bits": [4], "block": [0]},
    ),
    "nets.quantise.quantised_specs": Call(
        quantise.quantised_specs, {"sharding": SHARDING, "shape": (2, 4), "block": 2}, accepts={"shape": "*"}
    ),
}
