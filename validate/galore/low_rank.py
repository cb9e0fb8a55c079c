"""Whether the gradient becomes low rank: on JoMA's flow, on the trained block, and on a small LLaMA on text."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ...dynamics.joma import ManyNodes
from ...nets import joma as nets
from ...nets import train
from ...nets.llama import Llama, LlamaConfig
from ...nets.transformer import Windows, next_token_loss
from ..checks import at_most, evidence, mean, quantile
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ._shared import stable_ranks

TOKENS, NODES, CLASSES, RECORDS = 64, 32, 40, 20


@jax.jit
@jax.vmap
def _flow(delta: Float[Array, "tokens nodes"], left: Float[Array, " times"]):
    """V and V̇ along JoMA's flow of several nodes, at `1 − t/t* = left`."""
    flow, zero = ManyNodes(delta), jnp.zeros_like(delta)
    v = flow.exact(zero, (1 - left) * jnp.min(flow.blow_up_time(zero)))
    return v, jax.vmap(lambda v: flow(0.0, v))(v)


class _Block(NamedTuple):
    """Of blocks trained, `(tasks, records)`: the loss, and stable ranks of V, of its gradient, and of that gradient
    with its entries shuffled."""

    loss: np.ndarray
    v: np.ndarray
    gradient: np.ndarray
    shuffled: np.ndarray


@functools.partial(jax.jit, static_argnames=("attention", "steps"))
@functools.partial(jax.vmap, in_axes=(0, 0, None, None, None, None))
def _train_block(probability: Array, key: Array, rate: Array, eta_z: Array, attention: str, steps: int):
    """The loss, V and −V̇ of the block along gradient descent on one sample of each class; `eta_z` is the rate of the
    attention logits over that of the weights."""
    model = nets.JomaBlock(TOKENS, NODES, classes=CLASSES, attention=attention, dtype=probability.dtype, key=key)
    data = nets.Contexts(probability, jnp.arange(CLASSES), jnp.zeros(CLASSES, int))

    def observe(model):
        loss, gradient = eqx.filter_value_and_grad(nets.cross_entropy)(model, data)
        return loss, model.v, model.u_c.T @ gradient.w

    slow = lambda updates: eqx.tree_at(lambda m: m.z, updates, replace_fn=lambda z: z * eta_z)
    scaled = optax.stateless(lambda updates, _: slow(updates))
    optimiser = optax.chain(optax.sgd(rate), scaled)
    return train(model, nets.cross_entropy, data, optimiser, steps, observe=observe, every=steps // RECORDS).observed


def _blocks(setting: Setting, attention: str, rate: float, eta_z: float) -> _Block:
    """Several tasks: classes with token frequencies of their own, drawn sparse."""
    rng, tasks, steps = setting.rng, *setting.pick(smoke=(5, 1000), laptop=(8, 2000), paper=(40, 20000))
    probability = rng.dirichlet(np.full(TOKENS, 0.2), size=(tasks, CLASSES))
    as_float = lambda x: jnp.asarray(x, setting.dtype)
    keys = jax.random.split(setting.key, tasks)
    seen = _train_block(as_float(probability), keys, as_float(rate), as_float(eta_z), attention, steps)
    loss, v, gradient = map(np.asarray, seen)
    shuffled = rng.permuted(gradient.reshape(*loss.shape, -1), axis=-1).reshape(gradient.shape)
    return _Block(loss, *map(stable_ranks, (v, gradient, shuffled)))


@claim(
    "Attention that is trained along makes the gradient of the layer below its nonlinearity low rank. On JoMA's flow "
    "the stable rank of V̇ falls below 1.05, ahead of that of V. On the trained block it falls to less than half, below "
    "that of V and of the shuffled gradient.",
    source="Lemma B.6, with the sum over nodes inside the exponential (see joma.many_nodes)",
    assumptions=(
        "flow: stationary back-propagated gradient, zero start, any normal Δ, 1 − t/t* = 1e-5",
        "block: exponential attention, one query, cross-entropy, gradient descent",
    ),
    tex=r"\mathrm{sr}(\dot V) = \frac{\|\dot V\|_F^2}{\|\dot V\|_2^2} \to 1 \quad (t \to t^*)",
    flow=ManyNodes,
)
def low_rank_joma(setting: Setting) -> Evidence:
    rng, draws = np.random.default_rng([setting.seed, 1]), setting.pick(smoke=20, laptop=100, paper=1000)
    left = np.concatenate([[0.9, 0.5, 0.2, 0.1], 10.0 ** -np.arange(2, 6)])
    delta = rng.standard_normal((draws, TOKENS, NODES))
    arguments = (jnp.asarray(x, setting.dtype) for x in (delta, np.tile(left, (draws, 1))))
    of_v, of_rate = (stable_ranks(np.asarray(x)) for x in _flow(*arguments))
    random = stable_ranks(delta)
    trained, fixed = (_blocks(setting, "exp", 0.3, eta_z) for eta_z in (1.0, 0.0))
    least = lambda block: block.gradient.min(axis=1) / block.gradient[:, 0]
    over_v = lambda block: block.gradient[:, -1] / block.v[:, -1]
    over_shuffled = trained.gradient[:, -1] / trained.shuffled[:, -1]
    end, fixed_attention, matrix = left.argmin(), "attention fixed", {"random matrix": random}
    return evidence(
        mean("block: least sr(V̇) over its start", least(trained), {fixed_attention: least(fixed)}, at_most=0.5),
        mean("block: sr(V̇)/sr(V) at the end", over_v(trained), {fixed_attention: over_v(fixed)}, at_most=1),
        mean(
            "block: sr(V̇) over the shuffled, at the end",
            over_shuffled,
            {"random matrices over their mean": random / random.mean()},
            at_most=0.7,
        ),
        quantile("flow: median sr(V̇) at 1e-5", of_rate[:, end], 0.5, matrix, at_most=1.05),
        at_most("flow: sr(V̇)/sr(V) there", of_rate[:, end] / of_v[:, end], 1, {"random matrix": random / of_v[:, end]}),
        panels=[
            panel(
                f"JoMA's flow, {TOKENS} tokens, {NODES} nodes, mean of {draws} draws",
                ("1 − t/t*", left),
                y="stable rank",
                observed={"V": of_v.mean(0), "V̇": of_rate.mean(0)},
                control={"random matrix": np.full(len(left), random.mean())},
                log="xy",
            ),
            panel(
                "block, exponential attention, mean over tasks",
                ("step", setting.pick(smoke=1000, laptop=2000, paper=20000) // RECORDS * np.arange(RECORDS + 1)),
                y="stable rank",
                observed={
                    "gradient": trained.gradient.mean(0),
                    "V": trained.v.mean(0),
                    "shuffled gradient": trained.shuffled.mean(0),
                },
                control={"gradient, attention fixed": fixed.gradient.mean(0)},
            ),
        ],
        remarks=_joma_remarks(setting, trained, fixed),
    )


def _joma_remarks(setting: Setting, trained: _Block, fixed: _Block) -> list[str]:
    """Means over tasks."""
    least = lambda block: block.gradient.min(axis=1).mean()
    ends = lambda block: (block.gradient[:, 0].mean(), block.gradient[:, -1].mean())
    equal = np.argmax(trained.loss <= fixed.loss[:, -1:], axis=1)  # where the trained one has come as far
    then = np.take_along_axis(trained.gradient, equal[:, None], axis=1).mean()
    (first, last), loss = ends(trained), trained.loss[:, -1].mean()
    remarks = [
        f"Block: the stable rank of the gradient goes from {first:.1f} to {least(trained):.1f} at its lowest and back "
        f"to {last:.1f}, as the loss goes to {loss:.2g}: once the samples of the leading direction are learned, the "
        "others are what is left.",
        f"With attention held fixed it rises, to {ends(fixed)[1]:.1f} at a loss of {fixed.loss[:, -1].mean():.2g}. "
        f"With trained attention it is {then:.1f} there: it is the joint dynamics that lowers it.",
    ]
    if setting.scale == "smoke":
        return remarks
    softmax = _blocks(setting, "softmax", 1.0, 1.0)
    first, last = ends(softmax)
    return [
        *remarks,
        f"With softmax attention the effect is weaker: {first:.1f} at the start, {least(softmax):.1f} at the lowest, "
        f"{last:.1f} at the end, no lower than V's {softmax.v[:, -1].mean():.1f}.",
    ]


class _Size(NamedTuple):
    """Of the small LLaMA, of its training, and of what is recorded."""

    model: LlamaConfig
    batch: int
    every: int  # steps between records
    records: int
    seeds: int


VOCABULARY, LAGS = 96, 5  # refreshes every LAGS records
KINDS = ("query", "key", "value", "output", "gate", "up", "down")
RECTANGULAR = ("gate", "up", "down")


def _tokens(corpus: str) -> np.ndarray:
    """The bytes of the text: the most frequent ones by number, the last for all others."""
    data = np.frombuffer(corpus.encode()[: 2**20], np.uint8)
    number = np.full(256, VOCABULARY - 1)
    frequent = np.argsort(-np.bincount(data, minlength=256), kind="stable")[: VOCABULARY - 1]
    number[frequent] = np.arange(len(frequent))
    return number[data].astype(np.int32)


@functools.partial(jax.jit, static_argnames="size")
def _train_llama(tokens: Array, key: Array, size: _Size) -> tuple[Array, dict[str, Array]]:
    """The training loss at each record, and the gradient of each kind of matrix, `(records, layers, out, in)`, and of
    the head. Minibatch gradients, as Adam sees them."""
    model: Any = Llama(size.model, dtype=jnp.float32, key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    windows, adam = Windows(tokens, size.model.length, size.batch), optax.adam(3e-3)

    def step(carry, number):
        params, state, _, _ = carry
        batch = windows(jax.random.fold_in(key, number))
        loss, gradient = jax.value_and_grad(lambda p: next_token_loss(eqx.combine(p, static), batch))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, loss, gradient), None

    def record(carry, numbers):
        carry, _ = jax.lax.scan(step, carry, numbers)
        loss, gradient = carry[2:]
        of = {kind: jnp.stack([getattr(block, kind).weight for block in gradient.blocks]) for kind in KINDS}
        return carry, (loss, of | {"head": gradient.head.weight[None]})

    numbers = jnp.arange(1, size.records * size.every + 1, dtype=jnp.uint32).reshape(-1, size.every)
    return jax.lax.scan(record, (params, adam.init(params), jnp.zeros((), jnp.float32), params), numbers)[1]


class _Spectra(NamedTuple):
    """Of one kind of matrix, `(records, layers)`: stable rank and the energy of the r = k/4 leading directions, k the
    short side; and `(refreshes, lags, layers)`: the share of the energy of later gradients, from lag 1 on, that a basis
    of a refresh captures, on the short side and on the long."""

    rank: np.ndarray
    top: np.ndarray
    short: np.ndarray
    long: np.ndarray


def _spectra(g: np.ndarray) -> _Spectra:
    g = g.astype(np.float64)  # so that the Gram matrix of the short side keeps what float32 resolves
    g = g if g.shape[-2] <= g.shape[-1] else g.swapaxes(-1, -2)  # short side first
    values, vectors = np.linalg.eigh(g @ g.swapaxes(-1, -2))
    r, energy = g.shape[-2] // 4, values.sum(-1)
    left = vectors[..., -r:]
    right = g.swapaxes(-1, -2) @ left / np.sqrt(values[..., None, -r:])
    square = lambda x: (x**2).sum((-1, -2))
    short, long = [], []
    for start in range(0, len(g) - LAGS, LAGS):
        later, of = g[start + 1 : start + LAGS + 1], energy[start + 1 : start + LAGS + 1]
        short.append(square(left[start].swapaxes(-1, -2) @ later) / of)
        long.append(square(later @ right[start]) / of)
    return _Spectra(energy / values[..., -1], values[..., -r:].sum(-1) / energy, np.stack(short), np.stack(long))


def _reversible(rng: np.random.Generator, start: np.ndarray) -> np.ndarray:
    """Stable ranks, at the end over the start, of gradients of reversible networks that start as these, `(layers, rows,
    columns)`: `(1 − ηS)^s G(0)` as in Lemma 3.3, S = C ⊗ B with eigenvalues of B and C from 0.05 to 1."""
    layers, rows, columns = start.shape
    turn = lambda size: np.linalg.qr(rng.standard_normal((layers, size, size)))[0]
    b, c = (rng.uniform(0.05, 1, (layers, size)) for size in (rows, columns))
    end = turn(rows) @ start @ turn(columns) * (1 - 0.9 * b[:, :, None] * c[:, None, :]) ** 10_000
    return stable_ranks(end) / stable_ranks(start)


@claim(
    "In a small LLaMA on text the gradient of a matrix is low rank from the start. A quarter of its k directions hold "
    "more than 90 % of its energy, and its stable rank is less than half of a random matrix's. On rectangular matrices "
    "a basis of the short side captures more of later gradients than one of the long side, by more than on random "
    "matrices. The stable rank does not fall further in training: it rises.",
    source="section 3 and Algorithm 1 (short side); that the gradient becomes low rank over time is not found here",
    assumptions=("Adam at a fixed rate", "bytes of the corpus", "minibatch gradients", "float32"),
    tex=r"\sum_{i \leq k/4} \sigma_i^2(G) \geq 0.9\, \|G\|_F^2",
)
def low_rank_llama(setting: Setting) -> Evidence:
    model = functools.partial(LlamaConfig, vocabulary=VOCABULARY, heads=4)
    size = setting.pick(
        smoke=_Size(model(width=32, hidden=88, layers=1, length=16), 32, 10, 16, 3),
        laptop=_Size(model(width=64, hidden=176, layers=2, length=32), 16, 10, 26, 3),
        paper=_Size(model(width=256, hidden=688, layers=4, length=128), 64, 50, 101, 4),
    )
    tokens = jnp.asarray(_tokens(setting.corpus))
    runs = [_train_llama(tokens, jax.random.fold_in(setting.key, seed), size) for seed in range(size.seeds)]
    runs = jax.tree.map(np.asarray, runs)
    spectra = [{name: _spectra(g) for name, g in gradients.items()} for _, gradients in runs]
    rng, shapes = setting.rng, {name: g.shape for name, g in runs[0][1].items()}
    random = {name: _spectra(rng.standard_normal(shape)) for name, shape in shapes.items()}

    def over(names: tuple[str, ...], of: Callable[[_Spectra], np.ndarray], among: list[dict[str, _Spectra]]):
        """One sample for each kind of matrix, layer and seed."""
        return np.concatenate([of(run[name]) for run in among for name in names])

    def check(name: str, names: tuple[str, ...], of: Callable[[_Spectra], np.ndarray], **bound: float) -> Evidence:
        return mean(name, over(names, of, spectra), {"random matrices": over(names, of, [random])}, **bound)

    typical = np.concatenate([np.full(size.model.layers, random[name].rank.mean()) for name in KINDS])
    rank = lambda among: over(KINDS, lambda s: s.rank.mean(0), among) / np.tile(typical, len(among))
    rise = over(KINDS, lambda s: s.rank[-LAGS:].mean(0) / s.rank[0], spectra)
    falling = np.concatenate([_reversible(rng, g[name][0].astype(float)) for _, g in runs for name in KINDS])
    return evidence(
        check(
            "gate, up, down: share captured, short − long",
            RECTANGULAR,
            lambda s: (s.short - s.long).mean((0, 1)),
            at_least=0.2,  # random matrices have r/k − r/o = 0.16
        ),
        check("energy of the k/4 leading directions", KINDS, lambda s: s.top.mean(0), at_least=0.9),
        mean("sr(G) over a random matrix's", rank(spectra), {"random matrices": rank([random])}, at_most=0.5),
        mean("sr(G) at the end over the start", rise, {"a reversible network, as in Lemma 3.3": falling}, at_least=1),
        panels=_llama_panels(size, spectra, random),
        remarks=_llama_remarks(spectra, [losses[-1] for losses, _ in runs], rise),
    )


def _llama_panels(size: _Size, spectra: list[dict[str, _Spectra]], random: dict[str, _Spectra]) -> list:
    """Curves over training, and over the lag since a refresh: means over seeds, layers and matrices."""
    steps = size.every * np.arange(1, size.records + 1)
    average = lambda name, of: np.mean([of(run[name]) for run in spectra], axis=0)
    lags = lambda of: np.mean([average(name, of) for name in RECTANGULAR], axis=0)
    return [
        panel(
            f"width {size.model.width}, {size.model.layers} layers: stable rank of the gradient",
            ("step", steps),
            y="stable rank",
            observed={name: average(name, lambda s: s.rank.mean(1)) for name in KINDS},
            control={f"random, {n}": np.full(len(steps), random[n].rank.mean()) for n in ("query", "gate")},
            log="y",
        ),
        panel(
            "gate, up, down: captured by the basis of a refresh",
            ("steps since the refresh", size.every * np.arange(1, LAGS + 1)),
            y="share of ‖G‖²",
            observed={"short side": lags(lambda s: s.short.mean((0, 2)))},
            control={"long side": lags(lambda s: s.long.mean((0, 2)))},
        ),
    ]


def _llama_remarks(spectra: list, losses: list[float], rise: np.ndarray) -> list[str]:
    average = lambda name, of: np.mean([of(run[name]) for run in spectra])
    shares = "; ".join(
        f"{name} {average(name, lambda s: s.short.mean()):.2f} and {average(name, lambda s: s.long.mean()):.2f}"
        for name in RECTANGULAR
    )
    square = [average(name, lambda s: s.short.mean()) for name in KINDS if name not in RECTANGULAR]
    inputs = [average(name, lambda s: s.long.mean()) for name in KINDS if name not in RECTANGULAR]
    sides = lambda of: f"{average('head', lambda s: of(s.short)):.2f} and {average('head', lambda s: of(s.long)):.2f}"
    head = [sides(lambda share: share[0].mean()), sides(lambda share: share[1:].mean())]
    return [
        f"Captured by the short side and by the long: {shares}. Square matrices: output side {np.mean(square):.2f}, "
        f"input side {np.mean(inputs):.2f}. Head: {head[0]} by the first basis, {head[1]} by later ones.",
        f"The stable rank grows {np.mean(rise):.1f}-fold from the first record to the last, to a loss of "
        f"{np.mean(losses):.2f} nats a byte. Whether it falls in longer runs was not tried.",
    ]
