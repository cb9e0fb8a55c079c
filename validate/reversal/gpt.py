"""A small GPT trained on the sentences: what it stores in one direction is missing in the other."""

import functools
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Real

from ...nets import reversal as nets
from ...nets import train
from ...nets.transformer import Transformer, next_token_loss
from ..checks import at_most, evidence, mean
from ..claim import Evidence, Setting, claim
from ..panels import heatmap, panel

RECORDS = 20
TRAINING = ("AdamW, full batch, loss on the last entity alone, float32", "pre-norm, a decoder of its own")


# `reversal`: pairs, and those trained both ways; `chain`: triples, and those whose A⇝C is trained.
_Size = namedtuple("_Size", "reversal chain vocabulary layers width heads rate steps seeds")


def _size(setting: Setting) -> _Size:
    """At the smoke scale both data sets have the same numbers of sentences, so that they share a compilation."""
    return setting.pick(
        smoke=_Size((30, 20), (20, 10), 62, 1, 64, 4, 3e-3, 250, 5),
        laptop=_Size((50, 35), (40, 28), 202, 2, 128, 4, 1e-3, 400, 4),
        paper=_Size((200, 140), (200, 140), 802, 4, 256, 8, 1e-3, 1000, 10),
    )


@functools.partial(jax.jit, static_argnames=("size", "tied", "trained"))
def _train_all(keys: Array, sentences: Array, *, size: _Size, tied: bool, trained: int) -> nets.Recall:
    """Trains a model a key on the first `trained` sentences and recalls all, `(models, records, sentences, …)`, with
    the weights of the sentences' last entities. `tied`: the embeddings also decode, as in GPT-2."""
    shape = {"layers": size.layers, "width": size.width, "heads": size.heads, "tied": tied, "dtype": jnp.float32}
    options = {"norm": "pre", "positions": "learned", "length": 2, "activation": jax.nn.gelu, **shape}
    of_last = functools.partial(next_token_loss, last_only=True)
    optimiser, every = optax.flatten(optax.adamw(size.rate)), size.steps // RECORDS

    def observe(model):
        loss, weights = nets.recall(model, sentences)
        return nets.Recall(loss, weights[:, sentences[:, 2]])

    def run(key):
        model, batch = Transformer(size.vocabulary, **options, key=key), sentences[:trained]
        return train(model, of_last, batch, optimiser, size.steps, observe=observe, every=every).observed

    return jax.vmap(run)(keys)


def diagonal_score(weights: Real[ArrayLike, "*batch n n"]) -> Real[np.ndarray, "*batch"]:
    """How far the mean of the diagonal lies above that of the other entries, in their standard deviations."""
    weights = np.asarray(weights)
    n = weights.shape[-1]
    others = weights[..., ~np.eye(n, dtype=bool)]
    diagonal = np.diagonal(weights, axis1=-2, axis2=-1).mean(-1)
    return (diagonal - others.mean(-1)) / others.std(-1)


def _recalled(setting: Setting, data: nets.Sentences, *, tied: bool = False) -> nets.Recall:
    size, sentences = _size(setting), jnp.concatenate([data.train, data.test])
    keys = jax.random.split(setting.key, size.seeds)
    return jax.tree.map(np.asarray, _train_all(keys, sentences, size=size, tied=tied, trained=len(data.train)))


def _evidence(setting: Setting, data: nets.Sentences, groups: dict[str, slice], known: list[str]) -> Evidence:
    """`groups` of trained sentences, each as many as there are in the test: first those like the test's, but trained;
    `known`: those whose weights must be stored."""
    size, number, (trained, *_) = _size(setting), len(data.train), groups
    groups = groups | {"unseen": slice(number, None)}
    losses, weights = _recalled(setting, data)
    # `(seeds, records)` each: losses, and scores of the weights among the sentences of a group
    loss = {name: losses[:, :, rows].mean(2) for name, rows in (groups | {"train": slice(number)}).items()}
    score = {name: diagonal_score(weights[:, :, rows, rows]) for name, rows in groups.items()}
    maps = {name: weights[:, -1, rows, rows] for name, rows in groups.items()}
    shifted = {name: {"the next sentence's entity": diagonal_score(np.roll(x, 1, axis=2))} for name, x in maps.items()}
    end = lambda curves, name: curves[name][:, -1]
    uniform, step = np.log(size.vocabulary), ("step", size.steps // RECORDS * np.arange(RECORDS + 1))
    shown = {"train": loss["train"].mean(0), "test": loss["unseen"].mean(0)}
    scores, guess = {name: x.mean(0) for name, x in score.items()}, {"ln V, a uniform guess": uniform + 0 * step[1]}
    title = f"layers: {size.layers}, width: {size.width}, mean over {size.seeds} seeds"
    axes = [(f"{which} entity, one a sentence", np.arange(len(maps[trained][0]))) for which in ("last", "first")]
    scale = {"z_label": "logit", "limits": (maps[known[0]][0].min(), maps[known[0]][0].max())}
    by_seed = "; ".join(f"{name} {_by_seed(end(score, name))}" for name in score)
    return evidence(
        mean("loss of the test", end(loss, "unseen"), {trained: end(loss, trained)}, at_least=uniform),
        at_most("loss of training", end(loss, "train"), 0.01, {"before training": loss["train"][:, 0].min()}),
        *(mean(f"diagonal score, {name}", end(score, name), shifted[name], at_least=3.0) for name in known),
        mean("diagonal score, unseen", end(score, "unseen"), {trained: end(score, trained)}, at_most=2.0),
        panels=[
            panel(title, step, y="loss of the last entity (nats)", observed=shown, predicted=guess),
            panel("diagonal of the weights, mean over seeds", step, y="standard deviations", observed=scores),
            *(heatmap(f"{name}, one seed", *axes, z=x[0], **scale) for name, x in maps.items()),
        ],
        remarks=[f"By seed: test loss {_by_seed(end(loss, 'unseen'))} (ln V = {uniform:.3g}); scores {by_seed}."],
    )


def _by_seed(values: ArrayLike) -> str:
    return ", ".join(f"{v:.3g}" for v in np.asarray(values))


@claim(
    "A small GPT trained on both directions of some pairs and one of others does not learn the reversal of these, nor "
    "with tied embeddings. Its training loss falls below 0.01; its test loss is at least that of a uniform guess. "
    "The weights from first to last entity have a bright diagonal in the direction seen, and not in the other.",
    source="Section 5, at a size that a laptop trains",
    assumptions=(*TRAINING, "tied embeddings beyond the smoke scale only"),
    tex=r"L_{\mathrm{train}} \to 0,\quad L_{\mathrm{reversal}} \geq \ln V",
)
def transformer(setting: Setting) -> Evidence:
    (pairs, both), number = _size(setting).reversal, sum(_size(setting).reversal)
    data, test = nets.reversal(pairs, both, vocabulary=_size(setting).vocabulary), pairs - both
    starts = {"A→B of both": 0, "B←A of both": both, "seen": 2 * both}
    groups = {name: slice(start, start + test) for name, start in starts.items()}
    found = _evidence(setting, data, groups, ["seen"])
    if setting.scale == "smoke":
        return found
    tied, guess = _recalled(setting, data, tied=True), np.log(pairs)
    loss, trained = (tied.loss[:, -1, rows].mean(1) for rows in (slice(number, None), slice(0, test)))
    first, last = (tied.loss[:, record, :number].mean(1) for record in (0, -1))
    trace = diagonal_score(tied.weights[:, -1, number:, number:])
    return evidence(
        found,
        mean("tied: loss of the test, at least that of guessing a B", loss, {"A→B of both": trained}, at_least=guess),
        at_most("tied: loss of training", last, 0.01, {"before training": first.min()}),
        remarks=[
            f"Embeddings that also decode, as in GPT-2, leave a trace of the reversal: its score is {_by_seed(trace)}; "
            f"test loss {_by_seed(loss)}, against ln {pairs} = {guess:.3g} of guessing among all B (or all A).",
        ],
    )


@claim(
    "A small GPT trained on A→B, B→C and some of A⇝C does not conclude the others. Its training loss falls below 0.01; "
    "its test loss is at least that of a uniform guess. The weights have a bright diagonal for A→B and B→C, not A⇝C.",
    source="Section 5 (chain of thought), at a size that a laptop trains",
    assumptions=TRAINING,
    tex=r"L_{\mathrm{train}} \to 0,\quad L_{A \leadsto C} \geq \ln V",
)
def transformer_chain(setting: Setting) -> Evidence:
    n, direct = _size(setting).chain
    data = nets.chain_of_thought(n, direct, vocabulary=_size(setting).vocabulary)
    groups = {"A⇝C trained": slice(2 * n, 3 * n - direct), "A→B": slice(direct, n), "B→C": slice(n + direct, 2 * n)}
    return _evidence(setting, data, groups, ["A→B", "B→C"])
