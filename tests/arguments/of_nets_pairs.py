"""Calls of the networks on pairs of a group's elements that work, and what they rightly accept."""

import jax
import jax.numpy as jnp
import numpy as np

from traindyn.nets import composing, grokking, pairs

from .kinds import Call

NAN = float("nan")
KEY = jax.random.key(0)
TABLE = np.add.outer(np.arange(3), np.arange(3)) % 3
MASK = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], bool)
MODEL = pairs.initial(3, 2, key=KEY)
PAIRS = pairs.pairs(TABLE, MASK)
SAMPLE = grokking.sample(TABLE, MASK, 8)
PROJECTORS = jnp.stack([jnp.full((3, 3), 1 / 3), jnp.eye(3) - jnp.full((3, 3), 1 / 3)])
RATES = {"learning_rate": 0.1, "weight_decay": 1e-3}
TABLES = {"table": [TABLE[:2], TABLE + 1, TABLE - 1, TABLE + 0.5, "x"]}
SEEDS = {"seeds": [(), (-1,), (1.5,), 3, (2**40,), ("0",)]}


def watch(model: pairs.TwoLayer, *_) -> jax.Array:
    return model.a


OF_SAMPLE = {"model": MODEL, "sample": SAMPLE}
SAMPLES = {"bad": {"model": [pairs.initial(4, 2, key=KEY), None], "sample": [tuple(SAMPLE)]}}
LOSSES = {"bad": {"model": [pairs.initial(4, 2, key=KEY)], "pairs": [tuple(PAIRS), PAIRS._replace(label=TABLE + 1)]}}

CALLS = {
    "nets.pairs.TwoLayer": Call(
        pairs.TwoLayer,
        {"a": MODEL.a, "b": MODEL.b, "c": MODEL.c, "scale": 0.5, "activation": jnp.square},
        bad={"scale": [jnp.ones(2)]},
    ),
    "nets.pairs.TwoLayer.__call__": Call(MODEL, {"g1": 1, "g2": 2}, bad={"g1": [3, -1], "g2": [9, 0.5]}),
    "nets.pairs.initial": Call(
        pairs.initial,
        {
            "order": 3,
            "nodes": 2,
            "scale": 0.5,
            "activation": jnp.square,
            "fan_in": 6,
            "output_scale": 0.5,
            "dtype": jnp.float32,
            "key": KEY,
        },
        accepts={"dtype": "nothing"},
        bad={"order": [0, 2.5], "nodes": [0], "fan_in": [0], "dtype": [int], "scale": [NAN]},
    ),
    "nets.pairs.pairs": Call(
        pairs.pairs, {"table": TABLE, "mask": MASK}, bad=TABLES | {"mask": [0 * MASK, MASK + 0.5, MASK[:2]]}
    ),
    "nets.pairs.split": Call(
        pairs.split,
        {"order": 3, "train": 0.5, "seed": 1},
        bad={"order": [0], "train": [0.0, 1.0, 1.5], "seed": [2**40]},
    ),
    "nets.pairs.masked_loss": Call(pairs.masked_loss, {"model": MODEL, "pairs": PAIRS}, **LOSSES),
    "nets.pairs.training_loss": Call(pairs.training_loss, {"model": MODEL, "pairs": PAIRS}, **LOSSES),
    "nets.pairs.accuracy": Call(pairs.accuracy, {"model": MODEL, "pairs": PAIRS}, **LOSSES),
    "nets.pairs.coupled_adam": Call(pairs.coupled_adam, RATES, bad={"weight_decay": [-1.0]}),
    "nets.composing.train_seeds": Call(
        composing.train_seeds,
        {
            "table": TABLE,
            "nodes": 2,
            "weight_decay": 1e-3,
            "learning_rate": 0.01,
            "steps": 2,
            "train": 0.5,
            "seeds": (0, 1),
            "every": 1,
            "observe": watch,
            "compact": False,
            "dtype": jnp.float32,
        },
        bad=TABLES
        | SEEDS
        | {
            "steps": [-1, 2.5],
            "every": [0],
            "threshold": [0.02],
            "train": [0.0, 1.0],
            "weight_decay": [-1.0],
            "learning_rate": [[0.1, 0.2]],
            "dtype": [int],
            "nodes": [0],
        },
        accepts={"dtype": "nothing"},
    ),
    "nets.grokking.sample": Call(
        grokking.sample,
        {"table": TABLE, "mask": MASK, "capacity": 8},
        bad=TABLES | {"mask": [0 * MASK, MASK + 0.5, MASK[:2]], "capacity": [3, 6.5]},
    ),
    "nets.grokking.samples": Call(
        grokking.samples,
        {"table": TABLE, "fraction": 0.5, "seed": 1, "capacity": 9},
        bad=TABLES | {"fraction": [0.0, 1.0, 2.0], "seed": [2**40], "capacity": [1]},
    ),
    "nets.grokking.features": Call(grokking.features, OF_SAMPLE, **SAMPLES),
    "nets.grokking.loss": Call(grokking.loss, OF_SAMPLE, **SAMPLES),
    "nets.grokking.accuracy": Call(grokking.accuracy, OF_SAMPLE, **SAMPLES),
    "nets.grokking.backpropagated": Call(grokking.backpropagated, OF_SAMPLE, **SAMPLES),
    "nets.grokking.label_correlation": Call(grokking.label_correlation, OF_SAMPLE, **SAMPLES),
    "nets.grokking.alignment": Call(grokking.alignment, OF_SAMPLE, **SAMPLES),
    "nets.grokking.energies": Call(grokking.energies, OF_SAMPLE, **SAMPLES),
    "nets.grokking.contents": Call(
        grokking.contents,
        {"model": MODEL, "projectors": PROJECTORS},
        bad={"projectors": [7 * PROJECTORS, jnp.ones((2, 4, 4))]},
    ),
    "nets.grokking.stages": Call(grokking.stages, {"projectors": PROJECTORS}, bad={"projectors": [7 * PROJECTORS]}),
    "nets.grokking.coupled_sgd": Call(
        grokking.coupled_sgd, RATES | {"momentum": 0.9}, bad={"momentum": [1.0, -0.1], "weight_decay": [-1.0]}
    ),
    "nets.grokking.muon": Call(grokking.muon, RATES | {"beta": 0.9}, bad={"beta": [1.0], "weight_decay": [-1.0]}),
    "nets.grokking.train_runs": Call(
        grokking.train_runs,
        {
            "table": TABLE,
            "fractions": (0.5,),
            "seeds": (0,),
            "learning_rates": jnp.array([0.01]),
            "weight_decays": jnp.array([1e-3]),
            "nodes": 2,
            "steps": 2,
            "every": 1,
            "activation": jnp.square,
            "output_scale": 0.5,
            "optimiser": "sgd",
            "observe": watch,
            "batch_size": 1,
            "dtype": jnp.float32,
        },
        bad=TABLES
        | SEEDS
        | {
            "fractions": [(0.0,), (1.0,), 0.5, (NAN,), ()],
            "learning_rates": [0.1, (), (NAN,)],
            "weight_decays": [(-1.0,)],
            "steps": [-1],
            "every": [0],
            "nodes": [0],
            "optimiser": ["lion"],
            "batch_size": [0, 1.5],
            "activation": ["relu"],
            "observe": ["x"],
            "dtype": [int],
        },
        accepts={"dtype": "nothing", "learning_rates": "longer", "weight_decays": "longer"},
    ),
}
