"""Calls of the networks on pairs of a group's elements that work, and what they rightly accept."""

import jax
import jax.numpy as jnp
import numpy as np

from traindyn.nets import grokking, pair_optimisers, pair_runs, pairs

from .kinds import Call

NAN = float("nan")
KEY = jax.random.key(0)
TABLE = np.add.outer(np.arange(3), np.arange(3)) % 3
MASK = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], bool)
MODEL = pairs.initial(3, 2, key=KEY)
PAIRS = pairs.pairs(TABLE, MASK)
PROJECTORS = jnp.stack([jnp.full((3, 3), 1 / 3), jnp.eye(3) - jnp.full((3, 3), 1 / 3)])
RATES = {"learning_rate": 0.1, "weight_decay": 1e-3}
TABLES = {"table": [TABLE[:2], TABLE + 1, TABLE - 1, TABLE + 0.5, "x"]}
SEEDS = {"seeds": [(), (-1,), (1.5,), 3, (2**40,), ("0",)]}


def watch(model: pairs.TwoLayer, *_) -> jax.Array:
    return model.a


OF_PAIRS = {"model": MODEL, "pairs": PAIRS}
SAMPLES = {
    "bad": {
        "model": [pairs.initial(4, 2, key=KEY), None],
        "pairs": [tuple(PAIRS), PAIRS._replace(table=TABLE + 1), PAIRS._replace(used=jnp.zeros(6, bool))],
    }
}

CALLS = {
    "nets.pairs.TwoLayer": Call(
        pairs.TwoLayer,
        {"a": MODEL.a, "b": MODEL.b, "c": MODEL.c, "scale": 0.5, "activation": jnp.square},
        bad={"scale": [jnp.ones(2)]},
    ),
    "nets.pairs.TwoLayer.__call__": Call(MODEL, {"first": 1, "second": 2}, bad={"first": [3, -1], "second": [9, 0.5]}),
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
    "nets.pairs.split": Call(
        pairs.split,
        {"order": 3, "fraction": 0.5, "seed": 1},
        bad={"order": [0], "fraction": [0.0, 1.0, 1.5, 0.01], "seed": [2**40]},
    ),
    "nets.pairs.split_pairs": Call(
        pairs.split_pairs,
        {"table": TABLE, "fraction": 0.5, "seed": 1},
        bad=TABLES | {"fraction": [0.0, 1.0, 2.0], "seed": [2**40]},
    ),
    "nets.pairs.stacked": Call(
        pairs.stacked,
        {"samples": [PAIRS, PAIRS]},
        bad={"samples": [[], PAIRS, [PAIRS, None], [PAIRS, pairs.pairs(np.add.outer(range(4), range(4)) % 4)]]},
    ),
    "nets.pairs.loss": Call(pairs.loss, OF_PAIRS, **SAMPLES),
    "nets.pairs.training_loss": Call(pairs.training_loss, OF_PAIRS, **SAMPLES),
    "nets.pairs.accuracy": Call(pairs.accuracy, OF_PAIRS, **SAMPLES),
    "nets.pair_optimisers.coupled_adam": Call(pair_optimisers.coupled_adam, RATES, bad={"weight_decay": [-1.0]}),
    "nets.pair_optimisers.coupled_sgd": Call(
        pair_optimisers.coupled_sgd, RATES | {"momentum": 0.9}, bad={"momentum": [1.0, -0.1], "weight_decay": [-1.0]}
    ),
    "nets.pair_optimisers.muon": Call(
        pair_optimisers.muon, RATES | {"beta": 0.9}, bad={"beta": [1.0], "weight_decay": [-1.0]}
    ),
    "nets.grokking.features": Call(grokking.features, OF_PAIRS, **SAMPLES),
    "nets.grokking.backpropagated": Call(grokking.backpropagated, OF_PAIRS, **SAMPLES),
    "nets.grokking.label_correlation": Call(grokking.label_correlation, OF_PAIRS, **SAMPLES),
    "nets.grokking.alignment": Call(grokking.alignment, OF_PAIRS, **SAMPLES),
    "nets.grokking.energies": Call(grokking.energies, OF_PAIRS, **SAMPLES),
    "nets.grokking.contents": Call(
        grokking.contents,
        {"model": MODEL, "projectors": PROJECTORS},
        bad={"projectors": [7 * PROJECTORS, jnp.ones((2, 4, 4))]},
    ),
    "nets.grokking.stages": Call(grokking.stages, {"projectors": PROJECTORS}, bad={"projectors": [7 * PROJECTORS]}),
    "nets.pair_runs.train_pairs": Call(
        pair_runs.train_pairs,
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
            "fan_in": 6,
            "output_scale": 0.5,
            "optimiser": "sgd",
            "observe": watch,
            "batch_size": 1,
            "compact": False,
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
            "threshold": [0.02],
            "fan_in": [0],
            "activation": ["relu"],
            "observe": ["x"],
            "dtype": [int],
        },
        accepts={"dtype": "nothing", "learning_rates": "longer", "weight_decays": "longer"},
    ),
}
