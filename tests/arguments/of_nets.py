"""Calls of the networks of tokens that work, and what they rightly accept."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from traindyn.nets import eviction, joma, read_corpus, reversal, scan_snap, text, transformer

from .kinds import Call

NAN = float("nan")
KEY = jax.random.key(0)
X = jnp.array([0.5, 0.25, 0.25])
FREQUENCIES = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
CONTEXTS = joma.Contexts(FREQUENCIES, jnp.array([0, 1]), jnp.array([0, 1]))
BLOCK = joma.JomaBlock(3, 2, classes=2, queries=2, key=KEY)
YZ = scan_snap.YZTransformer(3, 2, 2, init_scale=1.0, key=KEY)
SEQUENCES = scan_snap.OneLayerTransformer.orthonormal(4, key=KEY)
TABLE = np.array([[0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0, 0.0]])
CLASSES = scan_snap.SequenceClasses(TABLE, [3, 4])
SAMPLER, SEQUENCER = CLASSES.contexts(4, 3), CLASSES.sequences(4, 3)
MODEL = transformer.Transformer(5, width=4, hidden=3, length=4, key=KEY)
LAYER = MODEL.blocks[0]
TOKENS = jnp.array([[1, 2, 0], [0, 3, 1]])
WORDS = text.tokenise("the cat and the dog and the cat", 4)
BILINEAR = reversal.Bilinear(jnp.linspace(0.1, 1.0, 6).reshape(3, 2), jnp.eye(2))
PARTS = ("project_in", "project_out", "hidden_in", "hidden_out", "attention_norm", "hidden_norm")


def logits(tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return jnp.eye(5)[tokens]


def drop(x: jax.Array) -> jax.Array:
    return x


CALLS = {
    "nets.read_corpus": Call(
        read_corpus,
        {"path": str(Path(__file__))},
        bad={"path": [str(Path(__file__).parent), b"x", "a\0b", ""]},
    ),
    "nets.joma.JomaBlock": Call(
        joma.JomaBlock,
        {
            "tokens": 3,
            "nodes": 2,
            "classes": 2,
            "queries": 1,
            "attention": "exp",
            "activation": "relu",
            "temperature": 0.5,
            "normaliser": 2.0,
            "embeddings": jnp.eye(4),
            "init_scale": 0.1,
            "train_decoder": True,
            "dtype": jnp.float32,
            "key": KEY,
        },
        accepts={"dtype": "nothing", "classes": "nothing"},
        bad={
            "tokens": [0, 2.5],
            "temperature": [0.0, -1.0, NAN, jnp.ones(2)],
            "normaliser": [0.0],
            "attention": ["soft"],
            "activation": ["swish", 3],
            "embeddings": ["unit", [[1.0, 2.0, 3.0]], jnp.ones((4, 3))],
            "init_scale": [NAN],
            "dtype": [int, "float8"],
            "classes": [0, None],
        },
    ),
    "nets.joma.JomaBlock.attend": Call(
        BLOCK.attend, {"x": X, "query": 1}, bad={"query": [2, -1, 0.5], "x": [jnp.ones(1), -X]}
    ),
    "nets.joma.JomaBlock.hidden": Call(BLOCK.hidden, {"x": X, "query": 1}, bad={"query": [2, -1], "x": [-X]}),
    "nets.joma.JomaBlock.__call__": Call(BLOCK, {"x": X, "query": 1}, bad={"query": [2, -1], "x": [-X]}),
    "nets.joma.JomaBlock.rates": Call(
        BLOCK.rates, {"eta_w": 1.0, "eta_z": 0.5}, bad={"eta_w": [-1.0, NAN], "eta_z": [-1.0, NAN, jnp.ones(2)]}
    ),
    "nets.contexts.cross_entropy": Call(
        joma.cross_entropy,
        {"model": BLOCK, "batch": CONTEXTS},
        bad={
            "batch": [
                CONTEXTS._replace(label=jnp.array([0, 2])),
                CONTEXTS._replace(label=jnp.array([0, -1])),
                CONTEXTS._replace(query=jnp.array([0, 5])),
                CONTEXTS._replace(x=-FREQUENCIES),
                tuple(CONTEXTS),
            ]
        },
    ),
    "nets.joma.stationary_loss": Call(
        joma.stationary_loss,
        {"model": BLOCK, "batch": (FREQUENCIES, jnp.ones((2, 2)))},
        bad={"batch": [(FREQUENCIES, jnp.ones((2, 1))), (FREQUENCIES,), (X, jnp.ones(2))], "model": [YZ, None]},
    ),
    "nets.joma.minibatch": Call(
        joma.minibatch,
        {"data": CONTEXTS, "size": 3},
        # Samples are the caller's own and may be any numbers.
        accepts={"data": [f"leaf {i} {kind}" for i in range(3) for kind in ("complex", "NaN")]},
        bad={"size": [0, -1, 1.5], "data": [{}, (), jnp.zeros((0, 2)), jnp.array(1.0), ["a"]]},
    ),
    "nets.joma.class_tokens": Call(
        joma.class_tokens,
        {"kind": "gaussian", "tokens": 4, "classes": 3, "dtype": jnp.float32, "key": KEY},
        accepts={"dtype": "nothing"},
        bad={"tokens": [0], "classes": [0, -1], "dtype": [int]},
    ),
    "nets.joma.ClassMixture": Call(
        joma.ClassMixture,
        {"probability": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "length": 4, "batch": 3},
        bad={"probability": [jnp.zeros((1, 2)), jnp.array([[1.5, -0.5]])], "length": [0], "batch": [0]},
    ),
    "nets.joma.ClassMixture.__call__": Call(joma.ClassMixture(FREQUENCIES, 4, 3), {"key": KEY}),
    "nets.joma.gaussian_clusters": Call(
        joma.gaussian_clusters,
        {"centres": jnp.ones((2, 3)), "sigma": 0.5, "samples": 2, "key": KEY},
        bad={"sigma": [-1.0, NAN], "samples": [0]},
    ),
    "nets.scan_snap.YZTransformer": Call(
        scan_snap.YZTransformer,
        {
            "tokens": 3,
            "queries": 2,
            "outputs": 2,
            "init_scale": 0.5,
            "normalise": True,
            "dtype": jnp.float32,
            "key": KEY,
        },
        accepts={"dtype": "nothing"},
        bad={"tokens": [0], "key": [None], "init_scale": [NAN, jnp.ones(2)], "dtype": [int]},
    ),
    "nets.scan_snap.YZTransformer.attend": Call(YZ.attend, {"x": X, "query": 1}, bad={"query": [2, -1], "x": [-X]}),
    "nets.scan_snap.YZTransformer.features": Call(YZ.features, {"x": X, "query": 1}, bad={"query": [2], "x": [-X]}),
    "nets.scan_snap.YZTransformer.__call__": Call(YZ, {"x": X, "query": 1}, bad={"query": [2, -1], "x": [-X]}),
    "nets.scan_snap.YZTransformer.rates": Call(
        YZ.rates, {"eta_y": 1.0, "eta_z": 0.5}, bad={"eta_y": [-1.0, NAN], "eta_z": [jnp.ones(2)]}
    ),
    "nets.scan_snap.OneLayerTransformer": Call(
        scan_snap.OneLayerTransformer, {name: getattr(SEQUENCES, name) for name in ("u", "w_q", "w_k", "w_v")}
    ),
    "nets.scan_snap.OneLayerTransformer.orthonormal": Call(
        scan_snap.OneLayerTransformer.orthonormal,
        {"vocabulary": 4, "init_scale": 0.5, "dtype": jnp.float32, "key": KEY},
        accepts={"dtype": "nothing"},
        bad={"vocabulary": [1], "init_scale": [NAN]},
    ),
    "nets.scan_snap.OneLayerTransformer.__call__": Call(
        SEQUENCES, {"sequence": jnp.array([1, 2, 3])}, bad={"sequence": [jnp.array([1])]}
    ),
    "nets.scan_snap.sequence_loss": Call(
        scan_snap.sequence_loss,
        {"model": SEQUENCES, "batch": (TOKENS, jnp.array([3, 2]))},
        bad={"batch": [(TOKENS,), (TOKENS, jnp.array([3, 4])), (TOKENS + 2, jnp.array([3, 2])), (X, X)]},
    ),
    "nets.scan_snap.sgd": Call(
        scan_snap.sgd,
        {"learning_rate": 0.1, "eta_y": 1.0, "eta_z": 1.0, "momentum": 0.9},
        bad={"momentum": [1.0, -0.1], "eta_y": [-1.0]},
    ),
    # Optax hands the contexts to a function; they meet a network later.
    "nets.scan_snap.precondition": Call(
        scan_snap.precondition,
        {"contexts": CONTEXTS},
        bad={"contexts": [tuple(CONTEXTS), CONTEXTS._replace(query=jnp.array([0, -1]))]},
    ),
    "nets.scan_snap.SequenceClasses": Call(
        scan_snap.SequenceClasses,
        {"probability": TABLE, "query": np.array([3, 4]), "next_token": np.array([0, 1])},
        bad={
            "probability": [2 * TABLE, -TABLE, 0 * TABLE, "x", [["a", "b"]]],
            "query": [[1, 3], [3, 7], [3.0, 4.0]],
            "next_token": [[0, 0], [0, 9]],
        },
        accepts={"probability": "integers"},  # rounded, its rows no longer sum to one
    ),
    "nets.scan_snap.SequenceClasses.contexts": Call(
        CLASSES.contexts, {"batch": 4, "length": 3}, bad={"batch": [0], "length": [1, 2.5]}
    ),
    "nets.scan_snap.SequenceClasses.sequences": Call(
        CLASSES.sequences, {"batch": 4, "length": 3}, bad={"batch": [0], "length": [1]}
    ),
    "nets.scan_snap.SequenceClasses.network": Call(CLASSES.network, {"outputs": 2}, bad={"outputs": [1]}),
    "nets.scan_snap.ContextSampler": Call(
        scan_snap.ContextSampler, {"classes": CLASSES, "batch": 4, "length": 3}, accepts={"classes": "*"}
    ),
    "nets.scan_snap.ContextSampler.__call__": Call(SAMPLER, {"key": KEY}),
    "nets.scan_snap.SequenceSampler": Call(
        scan_snap.SequenceSampler, {"classes": CLASSES, "batch": 4, "length": 3}, accepts={"classes": "*"}
    ),
    "nets.scan_snap.SequenceSampler.__call__": Call(SEQUENCER, {"key": KEY}),
    "nets.scan_snap.distinct_and_common": Call(
        scan_snap.distinct_and_common,
        {
            "classes": 4,
            "queries": 2,
            "distinct": jnp.array([1.0, 2.0]),
            "common": jnp.array([1.0]),
            "dtype": jnp.float32,
        },
        accepts={"dtype": "nothing", "distinct": "longer", "common": "longer"},
        bad={"classes": [0, 5, 4.0], "queries": [0, 3], "distinct": [[-1.0], [0.0], [float("inf")]], "common": [["a"]]},
    ),
    "nets.text.tokenise": Call(
        text.tokenise,
        {"text": "a b a", "size": 3},
        accepts={"text": "text"},
        bad={"text": [b"a b", "", "..."], "size": [1]},
    ),
    "nets.text.frequent_queries": Call(text.frequent_queries, {"tokens": WORDS, "number": 2}, bad={"number": [0, -1]}),
    "nets.text.contexts": Call(
        text.contexts,
        {"tokens": WORDS, "queries": ("the",), "length": 2, "least": 1},
        bad={
            "queries": ["zebra", (), ("zebra",), (3,)],
            "length": [1, 100, 2.5],
            "least": [10**6],
            "tokens": [WORDS._replace(ids=WORDS.ids + 9), WORDS._replace(ids=WORDS.ids + 0.5)],
        },
    ),
    "nets.transformer.Block": Call(
        transformer.Block,
        {name: getattr(LAYER, name) for name in PARTS} | {"heads": 2, "post_norm": True, "activation": jax.nn.relu},
        bad={"heads": [3, 0]},
    ),
    "nets.transformer.Block.__call__": Call(eqx.filter_jit(LAYER), {"x": jnp.ones((3, 4)), "drop": drop}),
    "nets.transformer.Transformer": Call(
        transformer.Transformer,
        {
            "vocabulary": 5,
            "layers": 1,
            "width": 4,
            "heads": 2,
            "hidden": 3,
            "norm": "pre",
            "positions": "learned",
            "length": 4,
            "activation": jax.nn.gelu,
            "tied": True,
            "dropout": 0.1,
            "dtype": jnp.float32,
            "key": KEY,
        },
        accepts={"dtype": "nothing", "positions": "nothing"},
        bad={"heads": [3, 0], "dropout": [1.0, -0.1, NAN], "width": [4.0], "dtype": [int], "tied": [1]},
    ),
    "nets.transformer.Transformer.__call__": Call(MODEL, {"tokens": TOKENS[0], "key": KEY}),
    "nets.transformer.Transformer.with_attention": Call(
        MODEL.with_attention, {"tokens": TOKENS[0]}, bad={"tokens": [jnp.zeros(0, int), jnp.zeros(5, int)]}
    ),
    "nets.transformer.sinusoids": Call(transformer.sinusoids, {"length": 3, "width": 4}, bad={"length": [0, -1]}),
    "nets.transformer.next_token_loss": Call(
        transformer.next_token_loss,
        {"model": logits, "batch": TOKENS, "last_only": False},
        bad={"batch": [TOKENS[:, :1], TOKENS[:0], [["a", "b"]]]},
    ),
    "nets.transformer.Windows": Call(
        transformer.Windows,
        {"ids": jnp.arange(9), "length": 3, "batch": 2},
        # Which tokens there are is the model's own affair.
        accepts={"ids": "too large"},
        bad={"ids": [jnp.zeros((9, 2), int), jnp.arange(3), jnp.array(3)], "length": [0], "batch": [0, 2.5]},
    ),
    "nets.transformer.Windows.__call__": Call(transformer.Windows(jnp.arange(9), 3, 2), {"key": KEY}),
    "nets.reversal.reversal": Call(
        reversal.reversal, {"pairs": 3, "both": 1, "vocabulary": 9}, bad={"both": [3], "pairs": [0], "vocabulary": [5]}
    ),
    "nets.reversal.chain_of_thought": Call(
        reversal.chain_of_thought, {"triples": 3, "direct": 1, "vocabulary": 11}, bad={"direct": [3], "vocabulary": [5]}
    ),
    "nets.reversal.contexts": Call(
        reversal.contexts,
        {"sentences": TOKENS, "vocabulary": 5, "dtype": jnp.float32},
        accepts={"dtype": "nothing"},
        bad={"sentences": [TOKENS[:, :2], TOKENS + 3], "dtype": [int]},
    ),
    "nets.reversal.recall": Call(
        reversal.recall,
        {"model": logits, "sentences": TOKENS},
        bad={"sentences": [TOKENS + 3, TOKENS[:, :2]]},
    ),
    "nets.reversal.Bilinear": Call(
        reversal.Bilinear, {"vectors": jnp.ones((3, 2)), "theta": jnp.eye(2), "symmetric": True}, bad={"symmetric": [2]}
    ),
    "nets.reversal.Bilinear.__call__": Call(BILINEAR, {"token": jnp.array(1)}, bad={"token": [9, -1]}),
    "nets.reversal.pair_loss": Call(reversal.pair_loss, {"model": BILINEAR, "pairs": jnp.array([[0, 1], [2, 0]])}),
    "nets.eviction.keep": Call(
        eviction.keep,
        {"scores": jnp.array([0.5, 2.0, 1.0]), "budget": 2, "recent": 1},
        bad={"budget": [0, jnp.array([1, 2])], "recent": [3, -1], "scores": [jnp.array(1.0), jnp.array([NAN, 1.0])]},
    ),
}
