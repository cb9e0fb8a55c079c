"""Whether the gradient becomes low rank: on JoMA's flow, on the trained block, and on a small LLaMA on text."""

import functools
from typing import Any

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
from ._shared import orthonormal, stable_ranks

TOKENS, NODES, CLASSES, RECORDS = 64, 32, 40, 20
SHUFFLED = "shuffled gradient"
Block = tuple[np.ndarray, dict[str, np.ndarray]]


@jax.jit
@jax.vmap
def _flow(delta: Float[Array, "tokens nodes"], left: Float[Array, " times"]):
    """V and V̇ along JoMA's flow of several nodes, at `1 − t/t* = left`."""
    flow, zero = ManyNodes(delta), jnp.zeros_like(delta)
    v = flow.exact(zero, (1 - left) * jnp.min(flow.blow_up_time(zero)))
    return v, jax.vmap(lambda v: flow(0.0, v))(v)


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

    slow = lambda updates, _: eqx.tree_at(lambda m: m.z, updates, replace_fn=lambda z: z * eta_z)
    optimiser = optax.chain(optax.sgd(rate), optax.stateless(slow))
    return train(model, nets.cross_entropy, data, optimiser, steps, observe=observe, every=steps // RECORDS).observed


def _blocks(setting: Setting, attention: str, rate: float, eta_z: float) -> Block:
    """The loss, and stable ranks of V, of its gradient, and of that gradient with its entries shuffled, `(tasks,
    records)`. Classes of each task have token frequencies of their own, drawn sparse."""
    rng, tasks, steps = setting.rng, *setting.pick(smoke=(5, 1000), laptop=(8, 2000), paper=(40, 20000))
    probability = rng.dirichlet(np.full(TOKENS, 0.2), size=(tasks, CLASSES))
    keys, rates = jax.random.split(setting.key, tasks), (np.asarray(rate), np.asarray(eta_z))
    loss, v, gradient = map(np.asarray, _train_block(probability, keys, *rates, attention, steps))
    shuffled = rng.permuted(gradient.reshape(*loss.shape, -1), axis=-1).reshape(gradient.shape)
    of = {"gradient": gradient, "V": v, SHUFFLED: shuffled}
    return loss, {name: stable_ranks(x) for name, x in of.items()}


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
    of_v, of_rate = (stable_ranks(np.asarray(x)) for x in _flow(delta, np.tile(left, (draws, 1))))
    random, last_v, last_rate = stable_ranks(delta), of_v[:, -1], of_rate[:, -1]
    trained, fixed = (_blocks(setting, "exp", 0.3, eta_z) for eta_z in (1.0, 0.0))
    least = lambda block: block[1]["gradient"].min(axis=1) / block[1]["gradient"][:, 0]
    over = lambda name, block: block[1]["gradient"][:, -1] / block[1][name][:, -1]
    still, matrix = "attention fixed", "random matrix"
    scattered = {"random matrices over their mean": random / random.mean()}
    steps = np.linspace(0, setting.pick(smoke=1000, laptop=2000, paper=20000), RECORDS + 1)
    title = f"JoMA's flow, {TOKENS} tokens, {NODES} nodes, mean of {draws} draws"
    on_flow = {"V": of_v.mean(0), "V̇": of_rate.mean(0)}, {matrix: np.full(len(left), random.mean())}
    in_block = {name: rank.mean(0) for name, rank in trained[1].items()}
    fixed_gradient = {"gradient, attention fixed": fixed[1]["gradient"].mean(0)}
    block, y = "block, exponential attention, mean over tasks", "stable rank"
    return evidence(
        mean("block: least sr(V̇) over its start", least(trained), {still: least(fixed)}, at_most=0.5),
        mean("block: sr(V̇)/sr(V) at the end", over("V", trained), {still: over("V", fixed)}, at_most=1),
        mean("block: sr(V̇) over the shuffled, at the end", over(SHUFFLED, trained), scattered, at_most=0.7),
        quantile("flow: median sr(V̇) at 1e-5", last_rate, 0.5, {matrix: random}, at_most=1.05),
        at_most("flow: sr(V̇)/sr(V) there", last_rate / last_v, 1, {matrix: random / last_v}),
        panels=[
            panel(title, ("1 − t/t*", left), y=y, observed=on_flow[0], control=on_flow[1], log="xy"),
            panel(block, ("step", steps), y=y, observed=in_block, control=fixed_gradient),
        ],
        remarks=_joma_remarks(setting, trained, fixed),
    )


def _joma_remarks(setting: Setting, trained: Block, fixed: Block) -> list[str]:
    """Means over tasks."""
    course = lambda rank: (rank[:, 0].mean(), rank.min(axis=1).mean(), rank[:, -1].mean())
    (loss, trained_ranks), (fixed_loss, fixed_ranks) = trained, fixed
    equal = np.argmax(loss <= fixed_loss[:, -1:], axis=1)  # where the trained one has come as far
    then = np.take_along_axis(trained_ranks["gradient"], equal[:, None], axis=1).mean()
    first, least, last = course(trained_ranks["gradient"])
    remarks = [
        f"Block: the stable rank of the gradient goes from {first:.1f} to {least:.1f} at its lowest and back to "
        f"{last:.1f}, as the loss goes to {loss[:, -1].mean():.2g}: once the samples of the leading direction are "
        "learned, the others are what is left.",
        f"With attention held fixed it rises, to {course(fixed_ranks['gradient'])[2]:.1f} at a loss of "
        f"{fixed_loss[:, -1].mean():.2g}. With trained attention it is {then:.1f} there: it is the joint dynamics that "
        "lowers it.",
    ]
    if setting.scale != "smoke":
        softmax = _blocks(setting, "softmax", 1.0, 1.0)[1]
        first, least, last = course(softmax["gradient"])
        remarks.append(
            f"With softmax attention the effect is weaker: {first:.1f} at the start, {least:.1f} at the lowest, "
            f"{last:.1f} at the end, no lower than V's {softmax['V'][:, -1].mean():.1f}."
        )
    return remarks


VOCABULARY, LAGS = 96, 5  # refreshes every LAGS records
SQUARE, RECTANGULAR = ("query", "key", "value", "output"), ("gate", "up", "down")
KINDS = (*SQUARE, *RECTANGULAR)
Spectra = dict[str, dict[str, np.ndarray]]


def _tokens(corpus: str) -> np.ndarray:
    """The bytes of the text: the most frequent ones by number, the last for all others."""
    data = np.frombuffer(corpus.encode()[: 2**20], np.uint8)
    number = np.full(256, VOCABULARY - 1)
    frequent = np.argsort(-np.bincount(data, minlength=256), kind="stable")[: VOCABULARY - 1]
    number[frequent] = np.arange(len(frequent))
    return number[data].astype(np.int32)


@functools.partial(jax.jit, static_argnames=("config", "batch", "every", "records"))
def _train_llama(tokens: Array, key: Array, config: LlamaConfig, batch: int, every: int, records: int):
    """The training loss at each record, and the gradient of each kind of matrix, `(records, layers, out, in)`, and of
    the head. Minibatch gradients, as Adam sees them."""
    model: Any = Llama(config, dtype=jnp.float32, key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    windows, adam = Windows(tokens, config.length, batch), optax.adam(3e-3)

    def step(carry, number):
        params, state, _, _ = carry
        data = windows(jax.random.fold_in(key, number))
        loss, gradient = jax.value_and_grad(lambda p: next_token_loss(eqx.combine(p, static), data))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, loss, gradient), None

    def record(carry, numbers):
        carry, _ = jax.lax.scan(step, carry, numbers)
        loss, gradient = carry[2:]
        of = {kind: jnp.stack([getattr(block, kind).weight for block in gradient.blocks]) for kind in KINDS}
        return carry, (loss, of | {"head": gradient.head.weight[None]})

    numbers = jnp.arange(1, records * every + 1, dtype=jnp.uint32).reshape(-1, every)
    return jax.lax.scan(record, (params, adam.init(params), jnp.zeros((), jnp.float32), params), numbers)[1]


def _spectra(g: np.ndarray) -> dict[str, np.ndarray]:
    """Of one kind of matrix, `(records, layers)`: stable rank and the energy of the r = k/4 leading directions, k the
    short side; and `(refreshes, lags, layers)`: the share of the energy of later gradients, from lag 1 on, that a basis
    of a refresh captures, on the short side and on the long."""
    g = g.astype(np.float64)  # so that the Gram matrix of the short side keeps what float32 resolves
    turned = lambda x: x.swapaxes(-1, -2)
    g = g if g.shape[-2] <= g.shape[-1] else turned(g)  # short side first
    values, vectors = np.linalg.eigh(g @ turned(g))
    r, energy, starts = g.shape[-2] // 4, values.sum(-1), np.arange(0, len(g) - LAGS, LAGS)
    later, left = starts[:, None] + np.arange(1, LAGS + 1), vectors[starts, ..., -r:]
    right = turned(g[starts]) @ left / np.sqrt(values[starts][..., None, -r:])
    share = lambda x: (x**2).sum((-1, -2)) / energy[later]
    short, long = share(turned(left)[:, None] @ g[later]), share(g[later] @ right[:, None])
    return {"rank": energy / values[..., -1], "top": values[..., -r:].sum(-1) / energy, "short": short, "long": long}


def _reversible(rng: np.random.Generator, start: np.ndarray) -> np.ndarray:
    """Stable ranks, at the end over the start, of gradients of reversible networks that start as these, `(layers, rows,
    columns)`: `(1 − ηS)^s G(0)` as in Lemma 3.3, S = C ⊗ B with eigenvalues of B and C from 0.05 to 1."""
    layers, rows, columns = start.shape
    b, c = (rng.uniform(0.05, 1, (layers, size)) for size in (rows, columns))
    left, right = (orthonormal(rng, layers, size, size) for size in (rows, columns))
    end = left @ start @ right * (1 - 0.9 * b[:, :, None] * c[:, None, :]) ** 10_000
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
    config, batch, every, records, seeds = setting.pick(
        smoke=(model(width=32, hidden=88, layers=1, length=16), 32, 10, 16, 3),
        laptop=(model(width=64, hidden=176, layers=2, length=32), 16, 10, 26, 3),
        paper=(model(width=256, hidden=688, layers=4, length=128), 64, 50, 101, 4),
    )
    tokens, rng = jnp.asarray(_tokens(setting.corpus)), setting.rng
    keys = [jax.random.fold_in(setting.key, seed) for seed in range(seeds)]
    runs = [_train_llama(tokens, key, config, batch, every, records) for key in keys]
    losses, gradients = zip(*jax.tree.map(np.asarray, runs), strict=True)
    stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    spectra = stack([{name: _spectra(g) for name, g in run.items()} for run in gradients])  # seeds first
    random = stack([{name: _spectra(rng.standard_normal(g.shape)) for name, g in gradients[0].items()}])
    # One sample for each kind of matrix, layer and seed.
    pooled = lambda of, names=KINDS: np.concatenate([np.ravel(of(name)) for name in names])
    edge = lambda among: pooled(lambda name: (among[name]["short"] - among[name]["long"]).mean((1, 2)), RECTANGULAR)
    top = lambda among: pooled(lambda name: among[name]["top"].mean(1))
    rank = lambda among: pooled(lambda name: among[name]["rank"].mean(1) / random[name]["rank"].mean())
    rise = pooled(lambda name: spectra[name]["rank"][:, -LAGS:].mean(1) / spectra[name]["rank"][:, 0])
    falling = np.concatenate([_reversible(rng, run[name][0].astype(float)) for run in gradients for name in KINDS])
    average = lambda name, side: spectra[name][side].mean()
    shares = "; ".join(f"{name} {average(name, 'short'):.2f} and {average(name, 'long'):.2f}" for name in RECTANGULAR)
    output, inputs = (np.mean([average(name, side) for name in SQUARE]) for side in ("short", "long"))
    short, long = (spectra["head"][side].mean((0, 2, 3)) for side in ("short", "long"))
    wrong, reversible = "random matrices", {"a reversible network, as in Lemma 3.3": falling}
    captured = "gate, up, down: share captured, short − long"  # random matrices have r/k − r/o = 0.16
    return evidence(
        mean(captured, edge(spectra), {wrong: edge(random)}, at_least=0.2),
        mean("energy of the k/4 leading directions", top(spectra), {wrong: top(random)}, at_least=0.9),
        mean("sr(G) over a random matrix's", rank(spectra), {wrong: rank(random)}, at_most=0.5),
        mean("sr(G) at the end over the start", rise, reversible, at_least=1),
        panels=_llama_panels(config, every, spectra, random),
        remarks=[
            f"Captured by the short side and by the long: {shares}. Square matrices: output side {output:.2f}, input "
            f"side {inputs:.2f}. Head: {short[0]:.2f} and {long[0]:.2f} by the first basis, {short[1:].mean():.2f} and "
            f"{long[1:].mean():.2f} by later ones.",
            f"The stable rank grows {np.mean(rise):.1f}-fold from the first record to the last, to a loss of "
            f"{np.mean([loss[-1] for loss in losses]):.2f} nats a byte. Whether it falls in longer runs was not tried.",
        ],
    )


def _llama_panels(config: LlamaConfig, every: int, spectra: Spectra, random: Spectra) -> list:
    """Curves over training, and over the lag since a refresh: means over seeds, layers and matrices."""
    steps, lags = (every * np.arange(1, n + 1) for n in (spectra["head"]["rank"].shape[1], LAGS))
    captured = lambda side: np.mean([spectra[name][side].mean((0, 1, 3)) for name in RECTANGULAR], axis=0)
    return [
        panel(
            f"width {config.width}, {config.layers} layers: stable rank of the gradient",
            ("step", steps),
            y="stable rank",
            observed={name: spectra[name]["rank"].mean((0, 2)) for name in KINDS},
            control={f"random, {n}": np.full(len(steps), random[n]["rank"].mean()) for n in ("query", "gate")},
            log="y",
        ),
        panel(
            "gate, up, down: captured by the basis of a refresh",
            ("steps since the refresh", lags),
            y="share of ‖G‖²",
            observed={"short side": captured("short")},
            control={"long side": captured("long")},
        ),
    ]
