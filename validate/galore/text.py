"""GaLore against its rivals on text: perplexity at equal steps and the same search over learning rates."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int, Key

from ...nets import galore as gl
from ...nets import low_rank, train
from ...nets.llama import Llama, LlamaConfig
from ...nets.pretrain import in_a_layer, warmup_cosine
from ...nets.transformer import Windows, next_token_loss
from ..checks import evidence, mean
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ..rows import statistic

ALPHA = 0.25
GATE = 1.04  # between the ratio published for the smallest model and a failure to reproduce it
FULL, FACTORS, LORA, LONG, FROZEN = "full Adam", "low-rank factors", "LoRA", "GaLore, long side", "frozen matrices"
FULL_SCALED = "full Adam with α"
PROJECTORS = {
    "GaLore": gl.subspace_iteration(),
    "GaLore, SVD": gl.exact_svd(),
    "GaLore, Gram eigh": gl.gram_eigh(),
    "GaLore, randomised range": gl.randomized_range(),
    "GaLore, random": gl.random_orthonormal(),
}
OURS, RANDOM = "GaLore", "GaLore, random"
PUBLISHED = {
    FULL: (34.06, 25.08, 18.80, 15.56),
    OURS: (34.88, 25.36, 18.95, 15.64),
    LORA: (34.99, 33.92, 25.58, 19.21),
    FACTORS: (78.18, 45.51, 37.41, 142.53),
}  # perplexity of the 60M, 130M, 350M and 1B models


class _Size(NamedTuple):
    """Of the model and its training; the rates searched, and as many seeds after; which of `PROJECTORS`."""

    model: LlamaConfig
    batch: int
    steps: int
    gap: int
    records: int
    rates: tuple[float, ...]
    projectors: tuple[str, ...]

    @property
    def rank(self) -> int:
        return self.model.width // 4


class _Result(NamedTuple):
    """Held-out losses, nats a byte, of the search and at its best rate."""

    search: Float[np.ndarray, "rates records"]
    rate: float
    losses: Float[np.ndarray, "seeds records"]


def _size(setting: Setting, vocabulary: int) -> _Size:
    model = functools.partial(LlamaConfig, vocabulary=vocabulary)
    rates, every = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), tuple(PROJECTORS)
    small = model(width=32, hidden=86, layers=1, heads=2, length=32)
    return setting.pick(
        smoke=_Size(small, 8, 300, 30, 5, rates[1:], every[:1]),
        laptop=_Size(small, 8, 400, 40, 10, rates, every),
        paper=_Size(model(width=128, hidden=344, layers=4, heads=4, length=64), 32, 2000, 100, 20, rates, every),
    )


def _split(ids: Int[np.ndarray, " length"], size: _Size) -> tuple[Windows, Int[Array, "windows length_and_one"]]:
    """Windows of the first nine tenths to train on, and held-out ones of `length + 1` bytes, spread over the rest."""
    cut, length = len(ids) * 9 // 10, size.model.length
    number = min(64, (len(ids) - cut) // (length + 1))
    if number < 1:
        raise ValueError(f"the corpus must have at least {10 * (length + 1)} bytes, got {len(ids)}.")
    starts = np.linspace(0, len(ids) - cut - length - 1, number).astype(int)
    held_out = ids[cut:][starts[:, None] + np.arange(length + 1)]
    return Windows(jnp.asarray(ids[:cut]), length, size.batch), jnp.asarray(held_out)


@functools.partial(jax.jit, static_argnames=("method", "size"))
def _losses(windows, held_out, keys, rates, which, scale, *, method, size):
    """Held-out losses, `(lanes, records)`, one run a lane, of a product, or of GaLore on the `method` side of the
    matrices, with its projector of number `which` and its α, `scale`."""

    def one(keys: Key[Array, " 2"], rate: Float[Array, ""]) -> Float[Array, " records"]:
        start, factors = jax.random.split(keys[0])
        model = Llama(size.model, dtype=jnp.float32, key=start)
        unit = warmup_cosine(1.0, size.steps, size.steps // 10)
        schedule = lambda step: rate * jnp.asarray(unit(step)).astype(rate.dtype)
        optimiser = optax.adam(schedule)
        if method == LORA:
            model = low_rank.lora(model, size.rank, in_a_layer, float(size.rank), key=factors)
        elif method == FACTORS:
            model = low_rank.factorise(model, size.rank, in_a_layer, key=factors)
        else:
            side: Any = method
            ours = gl.galore(schedule, 1.0, size.gap, scale, side=side, projector=_projector(which, size))
            parts: dict[Any, Any] = {"galore": ours, "full": optimiser}
            optimiser = optax.partition(parts, lambda params: gl.galore_labels(params, in_a_layer))
        observe, every = lambda model: next_token_loss(model, held_out), size.steps // size.records
        options = {"key": keys[1], "observe": observe, "every": every}
        return train(model, next_token_loss, windows, optimiser, size.steps, **options).observed

    return jax.vmap(one)(keys, rates)


def _projector(which: Int[Array, ""], size: _Size) -> Callable[..., Array]:
    """One compilation for all: bases are as wide as the short side, and columns beyond the rank are zero, to which Adam
    adds nothing. Past the last projector comes the identity, with which GaLore is Adam."""

    def projector(g: Array, previous: Array, key: Array, r: int) -> Array:
        pad = lambda basis: jnp.pad(basis, ((0, 0), (0, r - size.rank)))
        low = lambda name: lambda: pad(PROJECTORS[name](g, previous[:, : size.rank], key, size.rank))
        whole = lambda: jnp.eye(*previous.shape, dtype=g.dtype)
        return jax.lax.switch(which, [*map(low, size.projectors), whole])

    return projector


def _all_methods(setting: Setting, ids: Int[np.ndarray, " length"], size: _Size) -> dict[str, _Result]:
    """Every rate on one seed; then the best of them on as many others. All methods have the same seeds. At the smoke
    scale only what the rows and the control need."""
    data, keys = _split(ids, size), jax.random.split(setting.key, (len(size.rates) + 1, 2))

    def losses(keys: Key[Array, "lanes 2"], rates: Any, method: str, which: int, scale: float) -> np.ndarray:
        numbers = jnp.asarray(rates, jnp.float32), jnp.asarray(which, jnp.int32), jnp.asarray(scale, jnp.float32)
        return np.asarray(_losses(*data, keys, *numbers, method=method, size=size), float)

    def searched(*method: Any) -> _Result:
        search = losses(jnp.broadcast_to(keys[:1], keys[1:].shape), size.rates, *method)
        search = np.nan_to_num(search, nan=np.inf)
        rate = size.rates[int(np.argmin(search[:, -1]))]
        return _Result(search, rate, losses(keys[1:], (rate,) * len(size.rates), *method))

    whole = len(size.projectors)
    methods: dict[str, tuple] = {FULL_SCALED: ("short", whole, ALPHA), FROZEN: ("short", 0, 0.0)}
    methods |= {name: ("short", i, ALPHA) for i, name in enumerate(size.projectors)}
    if setting.scale != "smoke":
        methods |= {
            FULL: ("short", whole, 1.0),
            LONG: ("long", 0, ALPHA),
            LORA: (LORA, 0, 1.0),
            FACTORS: (FACTORS, 0, 1.0),
        }
    return {name: searched(*method) for name, method in methods.items()}


@claim(
    "On text, GaLore at a quarter of the rank gains at least half of what full Adam gains by training the matrices, at "
    "equal steps and with the same search over learning rates. The gain is in log-perplexity over a model in which the "
    "matrices are frozen; any projector does. Full Adam gains more. All train the matrices at the rate times α.",
    source="the order of the first two rows of Table 2, at a size that a laptop trains",
    assumptions=(
        "a LLaMA-style model of bytes, r = d/4, α = 0.25, warm-up and cosine, no clipping, float32",
        "rates 0.001 to 0.1 searched on one seed; five other seeds at the best, the same for all methods",
    ),
    tex=r"\frac{L_{\mathrm{frozen}} - L_{\mathrm{GaLore}}}{L_{\mathrm{frozen}} - L_{\mathrm{Adam}}} \geq \frac{1}{2}",
)
def text_perplexity(setting: Setting) -> Evidence:
    kinds, ids = np.unique(np.frombuffer(setting.corpus.encode(), np.uint8), return_inverse=True)
    size = _size(setting, len(kinds))
    results = _all_methods(setting, ids.astype(np.int32), size)
    full, frozen = results[FULL_SCALED].losses[:, -1], results[FROZEN].losses[:, -1]

    def gain(name: str) -> Evidence:
        share = lambda record: (frozen - results[name].losses[:, record]) / (frozen - full)
        wrong = {"after a fifth of the steps": share(size.records // 5)}
        return mean(f"{name}: share of the gain of {FULL_SCALED}", share(-1), wrong, at_least=0.5)

    checks = [gain(name) for name in size.projectors]
    if setting.scale != "smoke":  # which has too few seeds for a difference of 5 %
        ours = np.mean([results[name].losses[:, -1] for name in size.projectors], axis=0)
        ratio = f"GaLore, mean of {len(size.projectors)} projectors: perplexity over that of {FULL_SCALED}"
        checks.append(mean(ratio, np.exp(ours - full), {f"over that of {FROZEN}": np.exp(ours - frozen)}, at_least=1.0))
    return evidence(*checks, panels=_panels(results, size, setting.corpus_name), remarks=_remarks(results, size))


def _panels(results: dict[str, _Result], size: _Size, corpus: str) -> list[xr.Dataset]:
    main = [name for name in (FULL, FULL_SCALED, OURS, LORA, FACTORS) if name in results]

    def curves(of: Callable[[_Result], np.ndarray]) -> dict[str, Any]:
        return {"observed": {name: of(results[name]) for name in main}, "control": {FROZEN: of(results[FROZEN])}}

    step, rates = ("step", np.linspace(0, size.steps, size.records + 1)), ("learning rate", np.array(size.rates))
    loss, perplexity = curves(lambda x: x.losses.mean(0)), curves(lambda x: np.exp(x.search[:, -1]))
    title = f"{corpus}, {len(size.rates)} seeds at the best rate"
    return [
        panel(title, step, y="held-out loss, nats a byte", **loss),
        panel("search over learning rates, one seed", rates, y="perplexity", log="xy", **perplexity),
    ]


def _remarks(results: dict[str, _Result], size: _Size) -> list[str]:
    perplexity = {name: np.exp(x.losses[:, -1]) for name, x in results.items()}
    rows = {name: statistic(x, at_most=1.0) for name, x in perplexity.items()}
    each = "; ".join(f"{name} {row.measured_text} at {results[name].rate:g}" for name, row in rows.items())
    sizes = (
        f"Perplexity a byte, mean of {len(size.rates)} seeds with its 95 % interval, at the best rate: {each}. "
        f"{size.steps} steps of {size.batch} × {size.model.length} bytes, width {size.model.width}, layers: "
        f"{size.model.layers}, rank {size.rank}, gap {size.gap}."
    )
    if FULL not in results:
        return [sizes]
    over = lambda name, base=OURS: statistic(perplexity[name] / perplexity[base], at_most=GATE)
    order = sorted(PUBLISHED, key=lambda name: rows[name].measured)
    apart = [f"{x} and {y}" for x, y in itertools.pairwise(order) if rows[x].interval[1] > rows[y].interval[0]]
    table = "; ".join(f"{name} {', '.join(f'{x:g}' for x in values)}" for name, values in PUBLISHED.items())
    gate = over(OURS, FULL)
    return [
        sizes,
        f"Against full Adam at one rate for all parameters, as published, GaLore's perplexity is {gate.measured_text} "
        f"times as large (published: 1.024, 1.011, 1.008, 1.005; at most {GATE:g}: {gate.verdict} here). "
        f"That flatters GaLore: α slows the matrices against embeddings and head, which helps by itself: full Adam "
        f"with α comes to {over(FULL_SCALED, FULL).measured_text} times full Adam.",
        f"Published (60M, 130M, 350M, 1B): {table}. The order here is {' < '.join(order)}; intervals overlap for "
        f"{', '.join(apart) or 'none'}. GaLore over LoRA {over(OURS, LORA).measured_text}, over low-rank factors "
        f"{over(OURS, FACTORS).measured_text}: the wide distance of these two in the paper is not seen at this size.",
        f"Long side over short side: {over(LONG).measured_text}; random over the default projector: "
        f"{over(RANDOM).measured_text}. At this size neither side nor basis decides much.",
    ]
