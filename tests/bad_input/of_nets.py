import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.config.update("jax_enable_x64", True)
from traindyn.dynamics import composing as dc
from traindyn.dynamics import galore as dgal
from traindyn.dynamics import grokking as dg
from traindyn.dynamics import groups
from traindyn.dynamics import joma as dj
from traindyn.dynamics import representations as drep
from traindyn.nets import (
    Recorder,
    eviction,
    galore,
    grokking,
    joma,
    llama,
    low_rank,
    pair_optimisers,
    pair_runs,
    pairs,
    pretrain,
    quantise,
    reversal,
    scan_snap,
    text,
    train,
    transformer,
)

from .cases import C

k = jax.random.key(0)
nan, inf = float("nan"), float("inf")
# ---- train
G = "train"
m0 = jnp.ones(2)
sq = lambda m, b: jnp.sum((m - b) ** 2)
C(G, "steps -1", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), -1))
C(G, "steps 0", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 0).model, "ok")
C(G, "steps 2.5", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 2.5).model)
C(G, "steps '10'", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), "10").model)
C(G, "steps None", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), None).model)
C(G, "every 0", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 10, every=0).model)
C(G, "every -2", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 10, every=-2).model)
C(
    G,
    "every > steps",
    lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 3, every=10, observe=lambda m: m).observed,
    "ok",
)
C(G, "every 1.5", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 3, every=1.5).model)
C(G, "sampler without key", lambda: train(m0, sq, lambda key: jnp.zeros(2), optax.sgd(0.1), 3))
C(G, "key an int", lambda: train(m0, sq, lambda key: jax.random.normal(key, (2,)), optax.sgd(0.1), 3, key=0).model)
C(
    G,
    "key an array of keys",
    lambda: (
        train(m0, sq, lambda key: jax.random.normal(key, (2,)), optax.sgd(0.1), 3, key=jax.random.split(k, 2)).model
    ),
)
C(
    G,
    "key None for data that is no sampler, given key",
    lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 3, key=k).model,
    "ok",
)
C(
    G,
    "legacy uint32 key",
    lambda: train(m0, sq, lambda key: jax.random.normal(key, (2,)), optax.sgd(0.1), 3, key=jax.random.PRNGKey(0)).model,
    "ok",
)
C(G, "model of ints", lambda: train(jnp.arange(2), sq, jnp.zeros(2), optax.sgd(0.1), 3))
C(G, "model None", lambda: train(None, sq, jnp.zeros(2), optax.sgd(0.1), 3))
C(G, "model of numpy arrays", lambda: train(np.ones(2), sq, jnp.zeros(2), optax.sgd(0.1), 3).model)
C(G, "model of python floats", lambda: train([1.0, 2.0], lambda m, b: m[0] ** 2, jnp.zeros(2), optax.sgd(0.1), 3).model)
C(G, "model NaN", lambda: train(jnp.array([nan, 1.0]), sq, jnp.zeros(2), optax.sgd(0.1), 3))
C(
    G,
    "model float16",
    lambda: train(jnp.ones(2, jnp.float16), lambda m, b: jnp.sum(m**2), jnp.zeros(2), optax.sgd(0.1), 3).model,
    "ok",
)
C(
    G,
    "model complex",
    lambda: train(jnp.ones(2, complex), lambda m, b: jnp.sum(jnp.abs(m) ** 2), jnp.zeros(2), optax.sgd(0.1), 20).model,
    "ok",
)
C(G, "loss returns a vector", lambda: train(m0, lambda m, b: m, jnp.zeros(2), optax.sgd(0.1), 3))
C(G, "loss returns None", lambda: train(m0, lambda m, b: None, jnp.zeros(2), optax.sgd(0.1), 3))
C(G, "loss with one argument", lambda: train(m0, lambda m: jnp.sum(m), jnp.zeros(2), optax.sgd(0.1), 3))
C(G, "loss that ignores the model", lambda: train(m0, lambda m, b: 1.0, jnp.zeros(2), optax.sgd(0.1), 3).model)
C(G, "data a string", lambda: train(m0, sq, "data", optax.sgd(0.1), 3))
C(G, "data a list of strings", lambda: train(m0, sq, ["a"], optax.sgd(0.1), 3))
C(G, "data None", lambda: train(m0, lambda m, b: jnp.sum(m**2), None, optax.sgd(0.1), 3).model, "ok")
C(G, "data empty array", lambda: train(m0, lambda m, b: jnp.mean((b - m[0]) ** 2), jnp.zeros(0), optax.sgd(0.1), 3))
C(G, "optimiser a float", lambda: train(m0, sq, jnp.zeros(2), 0.1, 3))
C(G, "optimiser the factory", lambda: train(m0, sq, jnp.zeros(2), optax.sgd, 3))
C(G, "learning rate NaN", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(nan), 3).diverged_at, "ok")
C(G, "learning rate negative", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(-0.1), 3).model)
C(G, "learning rate 1e6: diverges", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(1e6), 100).diverged_at, "ok")
C(
    G,
    "trainable of another structure",
    lambda: train({"a": m0}, lambda m, b: jnp.sum(m["a"]), jnp.zeros(2), optax.sgd(0.1), 3, trainable={"b": True}),
)
C(G, "trainable all False", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 3, trainable=False))
C(G, "trainable a string", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 3, trainable="yes").model)
C(G, "observe returns strings", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 3, observe=lambda m: "x"))
C(G, "observe None", lambda: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 3, observe=None))
C(
    G,
    "observe ints after divergence",
    lambda: train(m0, sq, jnp.zeros(2), optax.sgd(1e9), 100, observe=lambda m: jnp.int32(7), every=25).observed,
    "ok",
)
C(
    G,
    "labels outside classes -> cross_entropy",
    lambda: (
        train(
            joma.JomaBlock(4, 3, classes=3, key=k),
            joma.cross_entropy,
            joma.Contexts(jnp.ones((2, 4)) / 4, jnp.array([0, 9]), jnp.zeros(2, int)),
            optax.sgd(0.1),
            3,
        ).diverged_at
    ),
)
C(
    G,
    "label -1 -> cross_entropy",
    lambda: joma.cross_entropy(
        joma.JomaBlock(4, 3, classes=3, key=k),
        joma.Contexts(jnp.ones((2, 4)) / 4, jnp.array([0, -1]), jnp.zeros(2, int)),
    ),
)
C(
    G,
    "label 9 of 3 -> cross_entropy",
    lambda: joma.cross_entropy(
        joma.JomaBlock(4, 3, classes=3, key=k),
        joma.Contexts(jnp.ones((2, 4)) / 4, jnp.array([0, 9]), jnp.zeros(2, int)),
    ),
)
C(
    G,
    "query 5 of 2 (clamped)",
    lambda: joma.cross_entropy(
        joma.JomaBlock(4, 3, classes=3, queries=2, key=k),
        joma.Contexts(jnp.ones((2, 4)) / 4, jnp.array([0, 1]), jnp.array([0, 5])),
    ),
)
C(G, "query 5 of 1 (ignored)", lambda: joma.JomaBlock(4, 3, classes=3, key=k)(jnp.ones(4) / 4, 5))
C(G, "x of other length", lambda: joma.JomaBlock(4, 3, classes=3, key=k)(jnp.ones(5) / 4))
C(G, "x scalar broadcast (1,)", lambda: joma.JomaBlock(4, 3, classes=3, key=k).attend(jnp.ones(1)))
C(
    G,
    "progress=True under jit",
    lambda: jax.jit(lambda m: train(m, sq, jnp.zeros(2), optax.sgd(0.1), 4, progress=True).model)(m0),
)
# ---- joma nets
watched = lambda **options: train(m0, sq, jnp.zeros(2), optax.sgd(0.1), 4, **options).model
C(G, "callback a string", lambda: watched(callback="f"))
C(
    G,
    "callback under vmap",
    lambda: jax.vmap(lambda m: train(m, sq, m0, optax.sgd(0.1), 4, callback=print))(jnp.ones((3, 2))),
)
C(G, "out a file", lambda: watched(out=__file__))
C(G, "out under jit", lambda: jax.jit(lambda m: train(m, sq, m0, optax.sgd(0.1), 4, out="never").model)(m0))
C(G, "save_every without out", lambda: watched(save_every=2))
C(G, "save_every no multiple of every", lambda: watched(every=2, save_every=3, out="never"))
# ---- recorder
G = "Recorder"


def record(*calls, every=2):
    recorder = Recorder(lambda m: m, every)
    for call in calls:
        recorder(*call)
    return recorder.observed


C(G, "every two, in order", lambda: record((0, m0), (1, m0), (2, m0)), "float64[2, 2]")
C(G, "a record skipped", lambda: record((0, m0), (3, m0)))
C(G, "a step twice", lambda: record((0, m0), (0, m0)))
C(G, "a model of another shape", lambda: record((0, m0), (2, jnp.ones(3))))
C(G, "a step as an array", lambda: record((jnp.array(0), m0)), "ok")
C(G, "a step traced", lambda: jax.jit(lambda n: record((n, m0)))(0))
C(G, "no record", lambda: record())
C(G, "every 0", lambda: record((0, m0), every=0))
G = "nets.joma"
for kw in (
    {"tokens": 0, "nodes": 2},
    {"tokens": 2, "nodes": -1},
    {"tokens": 2.5, "nodes": 2},
    {"tokens": 2, "nodes": 2, "classes": 0},
    {"tokens": 2, "nodes": 2, "queries": 0},
    {"tokens": 2, "nodes": 2, "attention": "relu"},
    {"tokens": 2, "nodes": 2, "activation": "gelu"},
    {"tokens": 2, "nodes": 2, "embeddings": "random"},
    {"tokens": 2, "nodes": 2, "embeddings": jnp.ones((2, 2))},
    {"tokens": 2, "nodes": 2, "embeddings": [[1.0, 2.0, 3.0]]},
    {"tokens": 2, "nodes": 2, "dtype": int},
    {"tokens": 2, "nodes": 2, "dtype": "float8"},
    {"tokens": 2, "nodes": 2, "init_scale": nan},
    {"tokens": 2, "nodes": 2, "temperature": 0.0},
    {"tokens": True, "nodes": 2},
):
    C(G, f"JomaBlock({kw})", lambda kw=kw: joma.JomaBlock(**kw, key=k))
C(G, "JomaBlock key int", lambda: joma.JomaBlock(2, 2, key=0))
C(G, "JomaBlock key None", lambda: joma.JomaBlock(2, 2, key=None))
C(G, "JomaBlock train_decoder without decoder", lambda: joma.JomaBlock(2, 2, train_decoder=True, key=k).decoder)
C(
    G,
    "cross_entropy of a block without a decoder (nodes as classes)",
    lambda: joma.cross_entropy(
        joma.JomaBlock(4, 3, key=k), joma.Contexts(jnp.ones((2, 4)) / 4, jnp.array([0, 2]), jnp.zeros(2, int))
    ),
)
C(G, "class_tokens kind", lambda: joma.class_tokens("uniform", key=k))
C(G, "class_tokens tokens 0", lambda: joma.class_tokens("gaussian", 0, key=k))
C(G, "class_tokens tokens 1", lambda: joma.class_tokens("gaussian", 1, key=k).x)
C(G, "class_tokens classes 0", lambda: joma.class_tokens("gaussian", 4, 0, key=k).x)
C(G, "class_tokens classes -1", lambda: joma.class_tokens("gaussian", 4, -1, key=k).x)
C(G, "class_tokens 200 classes of 4 tokens (underflow?)", lambda: joma.class_tokens("gaussian", 4, 400, key=k).x[-1])
C(G, "ClassMixture rows not one", lambda: joma.ClassMixture(jnp.ones((2, 3)))(k).x.sum())
C(G, "ClassMixture negative", lambda: joma.ClassMixture(jnp.array([[1.5, -0.5]]))(k).x)
C(G, "ClassMixture NaN", lambda: joma.ClassMixture(jnp.array([[nan, 0.5]]))(k).x)
C(G, "ClassMixture row of zeros", lambda: joma.ClassMixture(jnp.zeros((2, 3)))(k).x)
C(G, "ClassMixture length 0", lambda: joma.ClassMixture(jnp.ones((2, 3)) / 3, 0)(k).x)
C(G, "ClassMixture batch 0", lambda: joma.ClassMixture(jnp.ones((2, 3)) / 3, 4, 0)(k).x)
C(G, "ClassMixture 1-d", lambda: joma.ClassMixture(jnp.ones(3) / 3)(k).x)
C(G, "ClassMixture ints", lambda: joma.ClassMixture(jnp.array([[1, 0], [0, 1]]))(k).x)
C(G, "minibatch size 0", lambda: joma.minibatch(jnp.ones((4, 2)), 0)(k))
C(G, "minibatch size -1", lambda: joma.minibatch(jnp.ones((4, 2)), -1)(k))
C(G, "minibatch of unlike lengths (clamped rows)", lambda: [joma.minibatch((jnp.arange(8.0), jnp.arange(2.0)), 6)(k)])
C(G, "minibatch of nothing", lambda: joma.minibatch({}, 2))
C(G, "minibatch of no rows", lambda: joma.minibatch(jnp.zeros((0, 2)), 2)(k))
C(G, "gaussian_clusters sigma negative", lambda: joma.gaussian_clusters(jnp.ones((2, 3)), -1.0, 2, key=k)[0])
C(G, "gaussian_clusters samples 0", lambda: joma.gaussian_clusters(jnp.ones((2, 3)), 1.0, 0, key=k)[0])
C(G, "gaussian_clusters int centres", lambda: joma.gaussian_clusters(jnp.ones((2, 3), int), 1.0, 2, key=k)[0])
C(
    G,
    "stationary_loss g of other nodes",
    lambda: joma.stationary_loss(joma.JomaBlock(4, 3, key=k), (jnp.ones((2, 4)), jnp.ones((2, 2)))),
)
C(
    G,
    "stationary_loss g (2,1) broadcast",
    lambda: joma.stationary_loss(joma.JomaBlock(4, 3, key=k), (jnp.ones((2, 4)), jnp.ones((2, 1)))),
)
# ---- scan_snap nets
G = "nets.scan_snap"
P = np.array([[0.5, 0.5, 0, 0, 0], [0, 0.5, 0.5, 0, 0]])
C(G, "YZTransformer sizes 0", lambda: scan_snap.YZTransformer(0, 1, 2))
C(G, "YZTransformer init_scale without key", lambda: scan_snap.YZTransformer(3, 1, 2, init_scale=0.1))
C(
    G,
    "YZTransformer init_scale array without key",
    lambda: scan_snap.YZTransformer(3, 1, 2, init_scale=jnp.float32(0.1)).y,
)
C(
    G,
    "YZTransformer query out of range",
    lambda: scan_snap.YZTransformer(3, 2, 2, init_scale=1.0, key=k)(jnp.ones(3), 7),
)
C(G, "YZTransformer empty context", lambda: scan_snap.YZTransformer(3, 2, 2, init_scale=1.0, key=k)(jnp.zeros(3), 0))
C(G, "YZTransformer negative counts", lambda: scan_snap.YZTransformer(3, 2, 2, init_scale=1.0, key=k)(-jnp.ones(3), 0))
C(G, "OneLayerTransformer vocabulary 1", lambda: scan_snap.OneLayerTransformer.orthonormal(1, key=k))
C(G, "OneLayerTransformer sequence of 1", lambda: scan_snap.OneLayerTransformer.orthonormal(4, key=k)(jnp.array([1])))
C(
    G,
    "OneLayerTransformer token 9 of 4 (clamped)",
    lambda: scan_snap.OneLayerTransformer.orthonormal(4, key=k)(jnp.array([1, 9, 2])),
)
C(G, "OneLayerTransformer token -1", lambda: scan_snap.OneLayerTransformer.orthonormal(4, key=k)(jnp.array([1, -1, 2])))
C(
    G,
    "OneLayerTransformer float tokens",
    lambda: scan_snap.OneLayerTransformer.orthonormal(4, key=k)(jnp.array([1.0, 2.0])),
)
C(
    G,
    "sequence_loss next token out of range",
    lambda: scan_snap.sequence_loss(
        scan_snap.OneLayerTransformer.orthonormal(4, key=k), (jnp.array([[1, 2]]), jnp.array([9]))
    ),
)
C(G, "SequenceClasses rows not one", lambda: scan_snap.SequenceClasses(2 * P, [3, 3]))
C(G, "SequenceClasses query token out of vocabulary", lambda: scan_snap.SequenceClasses(P, [3, 7]))
C(G, "SequenceClasses query among keys", lambda: scan_snap.SequenceClasses(P, [1, 3]))
C(G, "SequenceClasses query floats", lambda: scan_snap.SequenceClasses(P, [3.0, 3.0]))
C(G, "SequenceClasses next_token shared", lambda: scan_snap.SequenceClasses(P, [3, 3], [4, 4]))
C(G, "SequenceClasses empty row", lambda: scan_snap.SequenceClasses(np.array([[1.0, 0, 0], [0, 0, 0]]), [2, 2]))
C(G, "SequenceClasses NaN", lambda: scan_snap.SequenceClasses(np.array([[nan, 0, 0]]), [2]))
C(G, "SequenceClasses strings", lambda: scan_snap.SequenceClasses([["a", "b"]], [1]))
C(G, "SequenceClasses under jit", lambda: jax.jit(lambda p: scan_snap.SequenceClasses(p, [3, 3]).table)(P))
sc = lambda: scan_snap.SequenceClasses(P, [3, 3])
C(G, "contexts length 1", lambda: sc().contexts(4, 1))
C(G, "contexts batch 0", lambda: sc().contexts(0, 4))
C(G, "contexts length 2.5", lambda: sc().contexts(2, 2.5)(k))
C(G, "network outputs 1", lambda: sc().network(outputs=1))
C(G, "distinct_and_common queries do not divide", lambda: scan_snap.distinct_and_common(5, 2))
C(G, "distinct_and_common weights negative", lambda: scan_snap.distinct_and_common(4, 2, distinct=[-1.0]))
C(G, "distinct_and_common weights inf", lambda: scan_snap.distinct_and_common(4, 2, distinct=[inf]))
C(G, "distinct_and_common both empty", lambda: scan_snap.distinct_and_common(4, 2, distinct=[], common=[]))
C(G, "distinct_and_common classes 2.0", lambda: scan_snap.distinct_and_common(4.0, 2))
C(G, "sgd momentum 2", lambda: scan_snap.sgd(0.1, momentum=2.0))
C(
    G,
    "precondition with equal contexts (singular)",
    lambda: (
        train(
            scan_snap.YZTransformer(2, 1, 2),
            scan_snap.cross_entropy,
            scan_snap.Contexts(jnp.ones((2, 2)) / 2, jnp.arange(2), jnp.zeros(2, int)),
            optax.chain(
                scan_snap.precondition(scan_snap.Contexts(jnp.ones((2, 2)) / 2, jnp.arange(2), jnp.zeros(2, int))),
                scan_snap.sgd(0.1),
            ),
            3,
        ).diverged_at
    ),
)
# ---- transformer
G = "transformer"
T = lambda **kw: transformer.Transformer(**{**dict(vocabulary=7, width=4, length=5, key=k), **kw})
for kw in (
    {"vocabulary": 0},
    {"width": 5, "heads": 2},
    {"layers": 0},
    {"length": 0},
    {"norm": "rms"},
    {"positions": "rotary"},
    {"dropout": 1.0},
    {"dropout": -0.1},
    {"dropout": nan},
    {"heads": 0},
    {"hidden": 0},
    {"width": 4.0},
    {"dtype": int},
    {"width": 3, "heads": 1},
):
    C(G, f"Transformer({kw})", lambda kw=kw: T(**kw), "ok" if kw == {"width": 3, "heads": 1} else "error")
C(G, "tokens longer than length", lambda: T()(jnp.zeros(6, int)))
C(G, "token 9 of 7", lambda: T()(jnp.array([1, 9])))
C(G, "token -1", lambda: T()(jnp.array([1, -1])))
C(G, "no tokens", lambda: T()(jnp.zeros(0, int)))
C(G, "float tokens", lambda: T()(jnp.zeros(3)))
C(G, "2-d tokens", lambda: T()(jnp.zeros((2, 3), int)))
C(
    G,
    "next_token_loss token 9 of 7",
    lambda: transformer.next_token_loss(T(), jnp.array([[1, 9, 2]])),
)
C(G, "next_token_loss token -1", lambda: transformer.next_token_loss(T(), jnp.array([[1, -1, 2]])))
C(G, "next_token_loss label -1 only", lambda: transformer.next_token_loss(T(), jnp.array([[1, 2, -1]])))
C(G, "next_token_loss one token", lambda: transformer.next_token_loss(T(), jnp.array([[1]])))
C(G, "next_token_loss empty batch", lambda: transformer.next_token_loss(T(), jnp.zeros((0, 3), int)))
C(G, "Windows length 0", lambda: transformer.Windows(jnp.arange(9), 0))
C(G, "Windows too short", lambda: transformer.Windows(jnp.arange(5), 5))
C(G, "Windows ids floats", lambda: transformer.Windows(jnp.arange(9.0), 3)(k).tokens)
C(G, "Windows ids 2-d", lambda: transformer.Windows(jnp.zeros((9, 2), int), 3)(k).tokens)
C(G, "Windows ids NaN", lambda: transformer.Windows(jnp.full(9, nan), 3)(k).tokens)
C(G, "Windows batch 2.5", lambda: transformer.Windows(jnp.arange(9), 3, 2.5)(k).tokens)
C(G, "Windows ids scalar", lambda: transformer.Windows(jnp.array(3), 3))
C(G, "sinusoids length -1", lambda: transformer.sinusoids(-1, 4))
# ---- eviction
G = "eviction"
s5 = jnp.arange(5.0)
for b in (0, -1, 2.7, nan, "2", None):
    C(G, f"keep budget {b!r}", lambda b=b: eviction.keep(s5, b))
C(G, "keep budget 99", lambda: eviction.keep(s5, 99), "ok")
C(G, "keep recent > budget", lambda: eviction.keep(s5, 2, recent=3))
C(G, "keep recent -1", lambda: eviction.keep(s5, 2, recent=-1))
C(G, "keep NaN scores", lambda: eviction.keep(jnp.array([nan, 1.0, 2.0]), 1))
C(G, "keep scores 0-d", lambda: eviction.keep(jnp.array(1.0), 1))
C(G, "keep scores list", lambda: eviction.keep([1.0, 2.0], 1))
C(G, "keep budget 0 under jit", lambda: jax.jit(lambda b: eviction.keep(s5, b))(0))
C(G, "keep budget array", lambda: eviction.keep(s5, jnp.array([1, 2])))
# ---- text
G = "text"
C(G, "tokenise size 1", lambda: text.tokenise("a b", 1))
C(G, "tokenise no words", lambda: text.tokenise("... !!", 5))
C(G, "tokenise empty", lambda: text.tokenise("", 5))
C(G, "tokenise bytes", lambda: text.tokenise(b"a b", 5))
C(G, "tokenise size 2.5", lambda: text.tokenise("a b c", 2.5))
C(G, "tokenise size > words", lambda: text.tokenise("a b", 100), "ok")
tk = text.tokenise("the cat sat on the mat the dog " * 40, 6)
C(G, "contexts unknown word", lambda: text.contexts(tk, ("zebra",)))
C(G, "contexts no queries", lambda: text.contexts(tk, ()))
C(G, "contexts length 1", lambda: text.contexts(tk, ("the",), length=1))
C(G, "contexts too few windows", lambda: text.contexts(tk, ("the",), least=10**6))
C(G, "contexts queries a string", lambda: text.contexts(tk, "the", length=4))
C(G, "contexts longer than the text", lambda: text.contexts(tk, ("the",), length=10**5))
C(G, "frequent_queries 0", lambda: text.frequent_queries(tk, 0))
C(G, "frequent_queries -1", lambda: text.frequent_queries(tk, -1))
C(G, "frequent_queries 99", lambda: text.frequent_queries(tk, 99))
# ---- reversal nets
G = "nets.reversal"
C(G, "reversal both >= pairs", lambda: reversal.reversal(3, 3))
C(G, "reversal both -1", lambda: reversal.reversal(3, -1))
C(G, "reversal vocabulary too small", lambda: reversal.reversal(3, 1, vocabulary=5))
C(G, "reversal 2.5", lambda: reversal.reversal(2.5, 1))
C(G, "reversal 0 0", lambda: reversal.reversal(0, 0))
C(G, "contexts vocabulary smaller than tokens (one_hot zeros)", lambda: reversal.contexts(jnp.array([[5, 0, 6]]), 3))
C(G, "contexts sentences 2-wide (clamped)", lambda: reversal.contexts(jnp.array([[1, 2]]), 8))
C(G, "Bilinear theta wrong", lambda: reversal.Bilinear(jnp.ones((3, 2)), jnp.ones((3, 3))))
C(G, "Bilinear vectors 1-d", lambda: reversal.Bilinear(jnp.ones(3)))
C(G, "Bilinear vectors ints", lambda: reversal.Bilinear(jnp.ones((3, 2), int)).theta)
C(
    G,
    "Bilinear token 9 of 3 (clamped)",
    lambda: reversal.Bilinear(jnp.arange(6.0).reshape(3, 2), jnp.eye(2))(jnp.array(9)),
)
C(
    G,
    "pair_loss pairs out of range",
    lambda: reversal.pair_loss(reversal.Bilinear(jnp.arange(6.0).reshape(3, 2), jnp.eye(2)), jnp.array([[0, 9]])),
)
C(
    G,
    "pair_loss first out of range (clamped)",
    lambda: reversal.pair_loss(reversal.Bilinear(jnp.arange(6.0).reshape(3, 2), jnp.eye(2)), jnp.array([[9, 0]])),
)
C(G, "recall last token out of range", lambda: reversal.recall(T(), jnp.array([[0, 1, 99]])).loss)
# ---- galore nets
G = "nets.galore"
W = {"w": jnp.ones((6, 4)), "b": jnp.ones(4)}
upd = lambda tx, p=W: tx.update(p, tx.init(p), p)[0]
for kw in (
    {"rank": 0},
    {"rank": -1},
    {"rank": 5},
    {"rank": 2.5},
    {"rank": 1.5},
    {"rank": nan},
    {"rank": "4"},
    {"rank": True},
    {"rank": None},
    {"rank": 2, "update_proj_gap": 0},
    {"rank": 2, "update_proj_gap": -5},
    {"rank": 2, "update_proj_gap": 1.5},
    {"rank": 2, "update_proj_gap": "never"},
    {"rank": 2, "side": "up"},
    {"rank": 2, "transport": "rotate"},
    {"rank": 2, "min_dim": 1},
    {"rank": 2, "accumulate": 0},
    {"rank": 2, "scale": nan},
    {"rank": 2, "scale": "big"},
    {"rank": 2, "projector": "svd"},
    {"rank": 2, "rank_tol": -1.0},
    {"rank": 2, "rank_tol": nan},
    {"rank": 2, "seed": 1.5},
    {"rank": 2, "seed": -1},
    {"rank": 2, "accumulator_dtype": "int32"},
    {"rank": 2, "accumulator_dtype": "float1000"},
    {"rank": 2, "projector_dtype": int},
    {"rank": {"w": 9}},
    {"rank": {"nope": 2}},
    {"rank": {"b": 2}},
    {"rank": lambda n, s: 99},
    {"rank": lambda n, s: "x"},
    {"rank": 2, "weight_dimension_numbers": galore.GaLoreDimensionNumbers(0, 0)},
    {"rank": 2, "weight_dimension_numbers": galore.GaLoreDimensionNumbers(0, 5)},
    {"rank": 2, "weight_dimension_numbers": {"nope": galore.GaLoreDimensionNumbers(0, 1)}},
    {"rank": 2, "mask": {"nope": True}, "weight_decay": 0.1},
):
    C(
        G,
        f"galore(0.1, {kw if not callable(kw.get('rank')) else 'rank function'})",
        lambda kw=kw: upd(galore.galore(0.1, **kw)),
    )
C(G, "galore learning rate NaN", lambda: upd(galore.galore(nan, 2)))
C(G, "galore learning rate string", lambda: upd(galore.galore("0.1", 2)))
C(
    G,
    "galore NaN gradient",
    lambda: (lambda tx: tx.update({"w": jnp.full((6, 4), nan), "b": jnp.ones(4)}, tx.init(W), W)[0])(
        galore.galore(0.1, 2)
    ),
    "ok",
)
C(
    G,
    "galore zero gradient",
    lambda: (lambda tx: tx.update(jax.tree.map(jnp.zeros_like, W), tx.init(W), W)[0])(galore.galore(0.1, 2)),
    "ok",
)
C(G, "galore base adamw without project_params", lambda: upd(galore.galore(0.1, 2, base_optimizer=optax.adamw(0.1))))
C(
    G,
    "galore state of another model",
    lambda: (lambda tx: tx.update({"v": jnp.ones((6, 4))}, tx.init(W))[0])(galore.galore(0.1, 2)),
)
C(
    G,
    "galore state of another shape",
    lambda: (lambda tx: tx.update({"w": jnp.ones((8, 4)), "b": jnp.ones(4)}, tx.init(W))[0])(galore.galore(0.1, 2)),
)
C(G, "galore int params", lambda: upd(galore.galore(0.1, 2), {"w": jnp.ones((6, 4), int)}))
C(G, "galore empty params", lambda: upd(galore.galore(0.1, 2), {}))
C(
    G,
    "galore Equinox model with functions (not filtered)",
    lambda: galore.galore(0.1, 2).init(eqx.nn.MLP(4, 4, 8, 1, key=k)),
)
C(
    G,
    "galore_refresh missing grads",
    lambda: (lambda tx: galore.galore_refresh(tx.init(W), {"b": jnp.ones(4)}))(galore.galore(0.1, 2, "external")),
)
C(G, "galore_refresh not a state", lambda: galore.galore_refresh({"x": 1}, W))
C(G, "galore external never refreshed", lambda: upd(galore.galore(0.1, 2, "external")))
C(G, "galore_labels unknown word", lambda: galore.galore_labels(W, ["nope"]))
C(G, "galore_labels a string (iterates letters)", lambda: galore.galore_labels(W, "w"))
C(
    G,
    "galore_labels a longer string",
    lambda: galore.galore_labels({"blocks": jnp.ones((2, 2)), "head": jnp.ones((2, 2))}, "block"),
)
C(G, "galore_labels none chosen", lambda: galore.galore_labels(W, lambda n, x: False))
C(G, "galore_state_bytes rank 0", lambda: galore.galore_state_bytes(W, 0))
C(G, "galore_state_bytes of non-arrays", lambda: galore.galore_state_bytes({"w": "x"}, 2))
C(G, "clip_by_previous_norm 0", lambda: galore.clip_by_previous_norm(0.0))
C(G, "clip_by_previous_norm NaN", lambda: galore.clip_by_previous_norm(nan))
C(G, "clip_by_previous_norm string", lambda: galore.clip_by_previous_norm("1"))
C(G, "randomized_range oversample -1", lambda: galore.randomized_range(-1))
C(G, "subspace_iteration 0", lambda: galore.subspace_iteration(0))
C(G, "subspace_iteration 1.5", lambda: upd(galore.galore(0.1, 2, projector=galore.subspace_iteration(1.5))))
# ---- quantise
G = "quantise"
for args in ((4,), (8, 0), (8, -3), (8, 2.5), ("8",), (8.0,)):
    C(G, f"quantise bits/block {args}", lambda args=args: quantise.dequantise(quantise.quantise(jnp.ones(8), *args)))
C(G, "quantise ints", lambda: quantise.dequantise(quantise.quantise(jnp.arange(8))))
C(G, "quantise NaN", lambda: quantise.dequantise(quantise.quantise(jnp.array([nan, 1.0, 2.0]))))
C(G, "quantise 0-d", lambda: quantise.quantise(jnp.array(1.0)))
C(G, "quantise empty", lambda: quantise.dequantise(quantise.quantise(jnp.zeros(0))))
C(G, "quantise complex", lambda: quantise.dequantise(quantise.quantise(jnp.ones(3, complex))))
C(G, "quantise float16 tiny", lambda: quantise.dequantise(quantise.quantise(jnp.array([6e-8, 1.0], jnp.float16))), "ok")
C(G, "quantise subnormal", lambda: quantise.dequantise(quantise.quantise(jnp.array([1e-310, 0.0]))), "ok")
C(G, "quantize_state min_size -1", lambda: quantise.quantize_state(optax.adam(0.1), min_size=-1).init(W))
C(G, "quantize_state of None", lambda: quantise.quantize_state(None))
# ---- low_rank
G = "low_rank"
mlp = lambda: eqx.nn.MLP(4, 4, 8, 2, key=k)
C(G, "factorise rank 0", lambda: low_rank.factorise(mlp(), 0, ["layers"], key=k))
C(G, "factorise rank 99", lambda: low_rank.factorise(mlp(), 99, ["layers"], key=k))
C(G, "factorise rank 2.5", lambda: low_rank.factorise(mlp(), 2.5, ["layers"], key=k))
C(G, "factorise word unknown", lambda: low_rank.factorise(mlp(), 2, ["nope"], key=k))
C(G, "factorise where a string", lambda: low_rank.factorise(mlp(), 2, "layers.1", key=k))
C(G, "factorise chooses none", lambda: low_rank.factorise(mlp(), 2, lambda n, w: False, key=k))
C(G, "factorise no linear layers", lambda: low_rank.factorise(jnp.ones(3), 2, ["x"], key=k))
C(G, "lora alpha 0", lambda: low_rank.lora(mlp(), 2, ["layers"], 0.0, key=k))
C(G, "lora alpha NaN", lambda: low_rank.lora(mlp(), 2, ["layers"], nan, key=k))
C(G, "lora twice", lambda: low_rank.lora(low_rank.lora(mlp(), 2, ["layers"], key=k), 2, ["layers"], key=k))
# ---- llama
G = "llama"
L = lambda **kw: llama.LlamaConfig(**{**dict(vocabulary=11, width=8, hidden=8, layers=1, heads=2, length=6), **kw})
for kw in (
    {"vocabulary": 0},
    {"width": 6},
    {"heads": 3},
    {"kv_heads": 3},
    {"kv_heads": 0},
    {"length": 0},
    {"layers": -1},
    {"width": 8.0},
    {"layers": 1.5},
    {"heads": "2"},
    {"tied": "no"},
):
    C(G, f"LlamaConfig({kw})", lambda kw=kw: llama.Llama(L(**kw), key=k))
C(G, "Llama dtype int", lambda: llama.Llama(L(), dtype=int, key=k))
C(G, "Llama tokens too many", lambda: llama.Llama(L(), key=k)(jnp.zeros(7, int)))
C(G, "Llama token 99 (clamped/NaN?)", lambda: llama.Llama(L(), key=k)(jnp.array([1, 99])))
C(G, "Llama token -1", lambda: llama.Llama(L(), key=k)(jnp.array([1, -1])))
C(G, "Llama float tokens", lambda: llama.Llama(L(), key=k)(jnp.array([1.0, 2.0])))
C(G, "Llama key None", lambda: llama.Llama(L(), key=None))
C(G, "Llama config a name", lambda: llama.Llama("60M", key=k))
# ---- pretrain
G = "nets.pretrain"
C(G, "warmup >= steps", lambda: pretrain.warmup_cosine(0.1, 10, 10))
C(G, "warmup -1", lambda: pretrain.warmup_cosine(0.1, 10, -1))
C(G, "lr negative", lambda: pretrain.warmup_cosine(-0.1, 10, 1)(3))
C(G, "lr NaN", lambda: pretrain.warmup_cosine(nan, 10, 1)(3))
C(G, "steps 0", lambda: pretrain.warmup_cosine(0.1, 0, 0))
C(G, "make_optimiser name", lambda: pretrain.make_optimiser("lion", 0.1))
C(G, "make_optimiser decay for adam", lambda: pretrain.make_optimiser("adam", 0.1, weight_decay=0.1))
C(G, "make_optimiser decay negative", lambda: pretrain.make_optimiser("adamw", 0.1, weight_decay=-0.1))
C(G, "make_optimiser accumulate 0", lambda: pretrain.make_optimiser("adam", 0.1, accumulate=0))
C(G, "make_optimiser clip -1", lambda: pretrain.make_optimiser("adam", 0.1, clip=-1.0))
C(G, "make_optimiser galore on a model without blocks", lambda: pretrain.make_optimiser("galore", 0.1, rank=2).init(W))
C(G, "make_mesh 0x1", lambda: pretrain.make_mesh(0, 1))
C(G, "make_mesh 99x1", lambda: pretrain.make_mesh(99, 1))
C(G, "make_mesh -1x-1", lambda: pretrain.make_mesh(-1, -1))
C(G, "make_mesh 1.0", lambda: pretrain.make_mesh(1.0, 1))
# ---- pairs, composing, grokking
G = "pairs"
tb = groups.cyclic(5).table
C(G, "TwoLayer shapes", lambda: pairs.TwoLayer(jnp.ones((5, 2)), jnp.ones((5, 2)), jnp.ones((5, 3))))
C(
    G,
    "TwoLayer ints",
    lambda: pairs.TwoLayer(jnp.ones((5, 2), int), jnp.ones((5, 2), int), jnp.ones((5, 2), int), 0.5).scale,
)
C(
    G,
    "TwoLayer element 9 of 5 (clamped)",
    lambda: pairs.TwoLayer(jnp.arange(10.0).reshape(5, 2), jnp.ones((5, 2)), jnp.ones((5, 2)))(9, 0),
)
C(G, "initial nodes 0", lambda: pairs.initial(5, 0, key=k))
C(G, "initial order 2.5", lambda: pairs.initial(2.5, 3, key=k))
C(G, "pairs table not square", lambda: pairs.pairs(np.ones((5, 4), int)))
C(G, "pairs labels out of range", lambda: pairs.pairs(tb + 1))
C(G, "pairs labels negative", lambda: pairs.pairs(tb - 1))
C(G, "pairs used floats", lambda: pairs.loss(pairs.initial(5, 4, key=k), pairs.pairs(tb, np.full((5, 5), 0.5))))
C(G, "pairs used ints 0/1 (~used!)", lambda: pairs.pairs(tb, np.eye(5, dtype=int)).held_out)
C(G, "pairs used none", lambda: pairs.pairs(tb, np.zeros((5, 5), bool)))
C(G, "pairs table floats", lambda: pairs.pairs(tb + 0.4).label)
C(
    G,
    "pairs no latin square",
    lambda: pairs.training_loss(pairs.initial(5, 4, key=k), pairs.pairs(np.zeros((5, 5), int))),
    "ok",
)
C(G, "loss with a model of another order", lambda: pairs.loss(pairs.initial(7, 4, key=k), pairs.pairs(tb)))
C(G, "loss with a model of smaller order", lambda: pairs.loss(pairs.initial(3, 4, key=k), pairs.pairs(tb)))
C(G, "split fraction 0", lambda: pairs.split(5, fraction=0, seed=0))
C(G, "split fraction 1.5", lambda: pairs.split(5, fraction=1.5, seed=0))
C(G, "split fraction NaN", lambda: pairs.split(5, fraction=nan, seed=0))
C(G, "split seed -1", lambda: pairs.split(5, seed=-1))
C(G, "split seed 1.5", lambda: pairs.split(5, seed=1.5))
C(G, "split order 0", lambda: pairs.split(0, seed=0))
C(G, "coupled_adam decay NaN", lambda: pair_optimisers.coupled_adam(0.1, nan))
G = "nets.pair_runs"
tr = lambda **kw: (
    pair_runs.train_pairs(
        kw.pop("table", tb),
        **{**dict(nodes=8, fractions=[0.5], seeds=[0], learning_rates=[0.01], weight_decays=[1e-3], steps=4), **kw},
    ).train_loss
)
for kw in (
    {"seeds": []},
    {"seeds": [-1]},
    {"seeds": [1.5]},
    {"seeds": 0},
    {"fractions": [0.0]},
    {"fractions": [1.0]},
    {"fractions": 0.5},
    {"fractions": [nan]},
    {"learning_rates": 0.1},
    {"learning_rates": []},
    {"learning_rates": [nan]},
    {"weight_decays": [-1.0]},
    {"steps": -1},
    {"every": 0},
    {"nodes": 0},
    {"optimiser": "lion"},
    {"batch_size": 0},
    {"batch_size": 1.5},
    {"table": tb[:3]},
    {"table": tb + 1},
    {"table": tb + 0.5},
    {"table": np.arange(4).reshape(2, 2)},
    {"activation": "relu"},
    {"dtype": int},
    {"observe": "x"},
    {"fan_in": 0},
    {"threshold": -1.0, "compact": True},
    {"threshold": nan, "compact": True},
    {"threshold": 0.02},
    {"seeds": [2**40]},
    {"weight_decays": [nan]},
    {"table": "x"},
    {"table": np.zeros((5, 5), int)},
):
    C(
        G,
        f"train_pairs({ {a: (b if a != 'table' else np.ravel(b)[:2].tolist()) for a, b in kw.items()} })",
        lambda kw=kw: tr(**dict(kw)),
    )
G = "nets.grokking"
C(G, "pairs used of other shape", lambda: pairs.pairs(tb, np.ones((4, 4), bool)))
C(G, "pairs used NaN", lambda: pairs.pairs(tb, np.full((5, 5), nan)).label)
C(G, "split_pairs fraction 2", lambda: pairs.split_pairs(tb, fraction=2.0, seed=0))
C(G, "contents projectors shape", lambda: grokking.contents(pairs.initial(5, 3, key=k), jnp.ones((2, 4, 4))))
C(
    G,
    "contents projectors not projectors",
    lambda: grokking.contents(pairs.initial(5, 3, key=k), 7 * jnp.ones((2, 5, 5))),
)
C(
    G,
    "muon without params",
    lambda: (lambda tx, m: tx.update(m, tx.init(m)))(pair_optimisers.muon(0.1, 0.0), pairs.initial(5, 3, key=k)),
)
C(
    G,
    "energies, model of other order",
    lambda: grokking.energies(pairs.initial(7, 3, key=k), pairs.pairs(tb)),
)
C(
    G,
    "energies, model of smaller order (clamped rows)",
    lambda: grokking.energies(pairs.initial(3, 3, key=k), pairs.pairs(tb)),
)
# ---- theory given integers, and corrected cases
G = "dynamics, integer or narrow states"
C(G, "ModeRace.exact int alpha0", lambda: dg.ModeRace(jnp.ones(2)).exact(jnp.ones(2, int), 0.5))
C(G, "ManyNodes.exact int V0", lambda: dj.ManyNodes(jnp.ones((2, 2))).exact(jnp.zeros((2, 2), int), 0.5))
C(G, "NonlinearActivation.exact int v0", lambda: dj.NonlinearActivation(jnp.ones(2)).exact(jnp.zeros(2, int), 0.5))
C(G, "LogGap.exact int y0", lambda: dj.LogGap(jnp.ones(2)).exact(jnp.zeros(2, int), 0.5))
C(
    G,
    "LinearAttention.exact int z0",
    lambda: dj.LinearAttention(jnp.ones((2, 1))).exact(
        dj.LinearAttentionState(jnp.zeros((2, 1), int), jnp.ones(2, int)), 0.5
    ),
)
C(
    G,
    "ReversibleGradient.exact int W0",
    lambda: dgal.ReversibleGradient(
        jnp.ones((2, 3, 4)), jnp.tile(jnp.eye(3), (2, 1, 1)), jnp.tile(jnp.eye(4), (2, 1, 1))
    ).exact(jnp.zeros((3, 4), int), 0.5),
)
C(
    G,
    "OutputLayer.exact int V0",
    lambda: dg.OutputLayer(jax.random.normal(k, (6, 2)), jnp.eye(6), 0.5).exact(jnp.zeros((2, 6), int), 0.5),
)
C(
    G,
    "OutputLayer int features, decay 0.5, limit",
    lambda: dg.OutputLayer(jnp.arange(12).reshape(6, 2) ** 2 % 7, jnp.eye(6), 0.5).limit(),
)
C(
    G,
    "OutputLayer float features, decay 0.5, limit",
    lambda: dg.OutputLayer(1.0 * (jnp.arange(12).reshape(6, 2) ** 2 % 7), jnp.eye(6), 0.5).limit(),
    "ok",
)
C(G, "InfiniteWidth.exact int r0", lambda: dc.InfiniteWidth(5, 1.0).exact(jnp.zeros((4, 4, 4), int), 0.5))
C(G, "Energy int w", lambda: dg.Energy(groups.cyclic(5))(jnp.arange(10).reshape(2, 5)))
C(G, "Energy float w", lambda: dg.Energy(groups.cyclic(5))(1.0 * jnp.arange(10).reshape(2, 5)), "ok")
C(G, "fourier int f", lambda: drep.fourier(jnp.array([1, 2, 4]), drep.irreps(groups.cyclic(3))[1]))
C(G, "fourier float f", lambda: drep.fourier(jnp.array([1.0, 2, 4]), drep.irreps(groups.cyclic(3))[1]), "ok")
C(
    G,
    "predicted_logits int",
    lambda: dj.predicted_logits(
        "exp", jnp.ones((3, 2), int), v0=jnp.zeros((3, 2), int), z0=jnp.zeros(3, int), rate_ratio=0.5
    ),
)
C(
    G,
    "predicted_logits float",
    lambda: dj.predicted_logits("exp", jnp.ones((3, 2)), v0=jnp.zeros((3, 2)), z0=jnp.zeros(3), rate_ratio=0.5),
    "ok",
)
C(
    G,
    "invariants int, rate_ratio 0.5",
    lambda: dj.invariants("linear", jnp.ones((3, 2), int), jnp.ones((1, 3), int), rate_ratio=0.5),
)
C(G, "repulsion int features, decay 0.5", lambda: dg.repulsion(jnp.arange(12).reshape(4, 3) % 5, 0.5, 0, 1))
C(
    G,
    "repulsion float features, decay 0.5",
    lambda: dg.repulsion(1.0 * (jnp.arange(12).reshape(4, 3) % 5), 0.5, 0, 1),
    "ok",
)
C(G, "inverse_gram int features, decay 0.5", lambda: dg.inverse_gram(jnp.eye(3, dtype=int), 0.5))
C(
    G,
    "maximum int a, x, b of S3",
    lambda: dg.maximum(drep.irreps(groups.symmetric(3))[2], jnp.array([1, 0]), jnp.array([1, 0]), jnp.array([1, 0])),
)
C(
    G,
    "maximum float a, x, b of S3",
    lambda: dg.maximum(
        drep.irreps(groups.symmetric(3))[2], jnp.array([1.0, 0]), jnp.array([1.0, 0]), jnp.array([1.0, 0])
    ),
    "ok",
)
C(
    G,
    "from_weights shapes",
    lambda: dc.from_weights(jnp.ones((5, 2)), jnp.ones((5, 2)), jnp.ones((4, 2)), groups.cyclic(5)),
)
C(
    G,
    "from_weights order of another group",
    lambda: dc.from_weights(jnp.ones((4, 2)), jnp.ones((4, 2)), jnp.ones((4, 2)), groups.cyclic(5)),
)
C(G, "from_weights non-Abelian", lambda: dc.from_weights(*[jnp.ones((6, 2))] * 3, groups.symmetric(3)))
C(G, "from_weights ints", lambda: dc.from_weights(*[jnp.arange(10).reshape(5, 2)] * 3, groups.cyclic(5)).z)
