"""Calls of the training loop and of pre-training that work, and what they rightly accept."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from traindyn import nets
from traindyn.nets import llama, pretrain

from .kinds import Call

NAN = float("nan")
KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
MODEL = {"w": jnp.array([0.5, -0.25])}
TOKENS = jnp.array([[1, 2, 0], [0, 3, 1]])
SIZES = {"vocabulary": 5, "width": 4, "hidden": 6, "layers": 1, "heads": 1, "kv_heads": 1, "tied": False, "length": 4}
CONFIG = llama.LlamaConfig(**SIZES)
LLAMA = llama.Llama(CONFIG, key=KEY)
LAYER = LLAMA.blocks[0]
MESH = pretrain.make_mesh(1, 1)
WEIGHTS = {"w": jnp.ones((4, 2))}


def loss(model: dict, batch: jax.Array) -> jax.Array:
    return jnp.mean((model["w"] - batch) ** 2)


def watch(model: dict) -> jax.Array:
    return model["w"]


STEP = pretrain.Step(loss, SGD)


def _stepped(state, batch):
    """A step uses up what it is given."""
    return STEP(jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, state), batch)


BATCH, ADAM = jnp.array([0.1, 0.2]), optax.adam(0.1)
STATE = nets.init(MODEL, SGD)
UPDATED = {"state": STATE, "batch": BATCH}
ENGINE = {"state": nets.init(MODEL, ADAM), "loss": loss, "batch": BATCH, "optimiser": ADAM}
# A model may be complex. Which shapes of model and data go together is the caller's loss's own affair.
OF_LOSS = {"model": ("leaf 0 complex", "leaf 0 longer"), "data": ("integers", "longer", "nothing", "rank")}
OF_STATE = ("leaf 0 complex", "leaf 0 longer")
OF_STEP = {"state": OF_STATE, "batch": ("text", "complex", *OF_LOSS["data"])}
BAD_STATES = [None, MODEL, nets.init(MODEL, optax.lbfgs())]
BAD_STATES.append(STATE._replace(params=None))
BAD_LOSSES = [lambda m, b: m["w"], lambda m, b: None, lambda m, b: 1]


@functools.wraps(nets.Recorder.__call__)
def _recorded(step, model):
    recorder = nets.Recorder(watch, 2)
    recorder(step, model)
    return recorder.observed


# Parts of a layer are checked where it is built, and their numbers where it is called.
PARTS = {name: getattr(LAYER, name) for name in ("query", "key", "value", "output", "gate", "up", "down")}
NORMS = {"attention_norm": LAYER.attention_norm, "hidden_norm": LAYER.hidden_norm}

CALLS = {
    "nets.train": Call(
        nets.train,
        {
            "model": MODEL,
            "loss": loss,
            "data": jnp.array([0.1, 0.2]),
            "optimiser": SGD,
            "steps": 2,
            "trainable": True,
            "observe": watch,
            "every": 1,
            "progress": False,
            "callback": None,
            "out": None,
            "save_every": None,
        },
        accepts=OF_LOSS | {"out": "text"},  # a folder
        bad={
            "steps": [2.5, "10", -1, True],
            "every": [0, 1.5],
            "optimiser": [0.1, optax.sgd],
            "key": [KEY],
            "trainable": ["yes", None, False, {"v": True}, 1.0],
            "data": [["a"]],
            "observe": [None],
            "loss": BAD_LOSSES,
            "state": [STATE],  # with a model
            "callback": [3],
            "out": [3, "a\0b", __file__],
            "save_every": [1],  # without a folder
        },
    ),
    "nets.Recorder": Call(nets.Recorder, {"observe": watch, "every": 2, "start": 0}, bad={"every": [0, True]}),
    "nets.Recorder.__call__": Call(
        _recorded,
        {"step": 0, "model": MODEL},
        # Only `observe` looks at the model.
        accepts={"model": "*"},
        bad={"step": [1, True], "model": [{"w": "x"}]},
    ),
    "nets.init": Call(
        nets.init,
        {"model": MODEL, "optimiser": SGD, "trainable": True},
        accepts={"model": ("leaf 0 complex", "leaf 0 longer", "leaf 0 NaN")},
        bad={"optimiser": [0.1, optax.sgd], "trainable": ["yes", None, False, {"v": True}, 1.0]},
    ),
    # A loss that is NaN is data: the state says at which step.
    "nets.step": Call(
        nets.step,
        ENGINE,
        accepts=OF_STEP | {"batch": ("NaN", *OF_STEP["batch"])},
        bad={"state": BAD_STATES, "loss": BAD_LOSSES, "optimiser": [0.1, SGD]},
    ),
    "nets.measured_step": Call(
        nets.measured_step,
        ENGINE,
        accepts=OF_STEP,
        bad={"state": BAD_STATES, "loss": BAD_LOSSES, "optimiser": [0.1, SGD]},
    ),
    "nets.pretrain.Step": Call(
        pretrain.Step, {"loss": loss, "optimiser": SGD, "gradient_norm": True}, bad={"optimiser": [0.1, optax.sgd]}
    ),
    "nets.pretrain.Step.__call__": Call(_stepped, UPDATED, accepts=OF_STEP, bad={"state": [{}, (), ENGINE["state"]]}),
    "nets.pretrain.Step.update": Call(STEP.update, UPDATED, accepts=OF_STEP, bad={"state": [{}, (), ENGINE["state"]]}),
    "nets.pretrain.warmup_cosine": Call(
        pretrain.warmup_cosine, {"learning_rate": 0.1, "steps": 10, "warmup": 2}, bad={"warmup": [10], "steps": [0, 2]}
    ),
    "nets.pretrain.make_optimiser": Call(
        pretrain.make_optimiser,
        {
            "name": "galore",
            "learning_rate": 0.1,
            "rank": 2,
            "gap": 3,
            "scale": 0.5,
            "weight_decay": 0.1,
            "clip": 1.0,
            "accumulate": 2,
            "seed": 0,
        },
        bad={"learning_rate": ["0.1", NAN], "accumulate": [0], "clip": [-1.0, 0.0], "weight_decay": [-0.1]},
    ),
    "nets.pretrain.in_a_layer": Call(
        pretrain.in_a_layer,
        {"name": "blocks.query", "leaf": WEIGHTS["w"]},
        accepts={"name": "text", "leaf": "*"},  # any name is one; the leaf is what optax hands over, and not read
    ),
    "nets.pretrain.make_mesh": Call(pretrain.make_mesh, {"data": 1, "model": 1}, bad={"data": [0, 99], "model": [1.0]}),
    # A tree of any arrays, or of their shapes, has its place.
    "nets.pretrain.shardings": Call(pretrain.shardings, {"tree": WEIGHTS, "mesh": MESH}, accepts={"tree": "*"}),
    "nets.pretrain.batch_sharding": Call(pretrain.batch_sharding, {"mesh": MESH}),
    "nets.pretrain.shardings_of": Call(pretrain.shardings_of, {"tree": WEIGHTS, "mesh": MESH}, accepts={"tree": "*"}),
    "nets.llama.LlamaConfig": Call(
        llama.LlamaConfig, SIZES, bad={"heads": [3, "2", 0], "width": [6.0, 0], "kv_heads": [0, 2], "tied": ["no", 1]}
    ),
    "nets.llama.Block": Call(llama.Block, {**PARTS, **NORMS, "head_width": 4}, bad={"head_width": [3, 0]}),
    "nets.llama.Block.__call__": Call(eqx.filter_jit(LAYER), {"x": jnp.ones((3, 4))}),
    "nets.llama.Llama": Call(
        llama.Llama,
        {"config": CONFIG, "stacked": False, "remat": False, "dtype": jnp.float32, "key": KEY},
        accepts={"dtype": "nothing"},  # the default
        bad={"dtype": [int, complex]},
    ),
    "nets.llama.Llama.__call__": Call(
        LLAMA, {"tokens": TOKENS[0]}, bad={"tokens": [jnp.zeros(5, int), jnp.zeros(0, int)]}
    ),
    "nets.llama.rotate": Call(llama.rotate, {"x": jnp.ones((3, 2, 4))}, bad={"x": [jnp.ones((3, 2, 3))]}),
}
