"""What GaLore costs beside Adam and `optax.contrib.galore`: time and memory. `python benchmarks/galore.py [ROW ...]`.

Rows `a` to `e` by letter; without any, all. The candidates of one table run interleaved in this one process; sizes of
memory are those of the compiled program. See README.md for what each row means.
"""

import argparse
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import Timing, interleaved, print_header, table

from traindyn.nets import galore as gl
from traindyn.nets import read_corpus, text
from traindyn.nets.galore.projectors import Projector
from traindyn.nets.llama import CONFIGS, Llama, LlamaConfig
from traindyn.nets.pretrain import in_a_layer, make_optimiser
from traindyn.nets.transformer import Windows, next_token_loss

SHAPE, RANK, START, LAG = (1024, 4096), 128, 60, 20
PROJECTORS: Mapping[str, Projector] = {
    "gram_eigh": gl.gram_eigh(),
    "randomized_range(8, 0)": gl.randomized_range(8, 0),
    "randomized_range(8, 1)": gl.randomized_range(8, 1),
    "randomized_range(8, 2)": gl.randomized_range(8, 2),
    "subspace_iteration(1), warm: default": gl.subspace_iteration(1),
    "subspace_iteration(2), warm": gl.subspace_iteration(2),
    "random_orthonormal": gl.random_orthonormal(),
}
PRECISE = "Adam, moments in float32 as ours"
NEVER = 10**6  # a gap that no benchmark reaches


def check(name: str, passed: bool, figures: str) -> None:
    print(f"  {'PASS' if passed else 'FAIL'}  {name}: {figures}", flush=True)


# (a) bases


def real_gradients() -> tuple[np.ndarray, np.ndarray]:
    """Gradients of the `up` matrix of a one-block model of words after `START` steps and `LAG` later, shape `SHAPE`,
    each on 768 tokens. The steps are made on a quarter of that."""
    tokens = text.tokenise(read_corpus()[0], 2000)
    config = LlamaConfig(vocabulary=2000, width=SHAPE[0], hidden=SHAPE[1], layers=1, heads=8, length=64)
    model, windows = Llama(config, dtype=jnp.float32, key=jax.random.key(0)), Windows(tokens.ids, 64, 3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(model, state, key):
        grads = eqx.filter_grad(next_token_loss)(model, windows(key))
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(model, updates), state

    large = Windows(tokens.ids, 64, 12)
    gradient = jax.jit(lambda model, key: eqx.filter_grad(next_token_loss)(model, large(key)).blocks[0].up.weight.T)
    optimiser, found = optax.adam(3e-4), []
    state = optimiser.init(eqx.filter(model, eqx.is_inexact_array))
    for n in range(START + LAG + 1):
        if n in (START, START + LAG):
            found.append(np.asarray(gradient(model, jax.random.key(n + 1000))))
        model, state = step(model, state, jax.random.key(n))
    return found[0], found[1]


def power_law(exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with singular values `i^-exponent`, and the same with noise of half its norm, from which to start."""
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.standard_normal((SHAPE[0], SHAPE[0])).astype(np.float32))[0]
    v = np.linalg.qr(rng.standard_normal((SHAPE[1], SHAPE[0])).astype(np.float32))[0]
    g = (u * np.arange(1, SHAPE[0] + 1, dtype=np.float32) ** np.float32(-exponent)) @ v.T
    noise = rng.standard_normal(SHAPE).astype(np.float32)
    return g + np.float32(0.5) * np.linalg.norm(g) / np.linalg.norm(noise) * noise, g


def bases() -> None:
    """(a) Cost and captured energy of each projector, warm ones from a basis of the gradient before."""
    key, gradients = jax.random.key(0), {"i^-1/2": power_law(0.5), "real": real_gradients()}
    energy = {name: {} for name in PROJECTORS}
    for kind, (before, g) in gradients.items():
        squares = np.linalg.eigvalsh(g @ g.T)
        print(f"  {kind}: optimal share of the energy at rank {RANK}: {squares[-RANK:].sum() / squares.sum():.3f}")
        warm = jnp.asarray(np.linalg.svd(before, full_matrices=False)[0][:, :RANK])
        arguments = (jnp.asarray(g), warm, key)
        run = {name: functools.partial(_basis, projector, *arguments) for name, projector in PROJECTORS.items()}
        for name, call in run.items():
            energy[name][kind] = np.sum(np.square(np.asarray(call()).T @ g)) / squares[-RANK:].sum()
    long = jnp.asarray(gradients["real"][1].T)
    run["exact_svd"] = functools.partial(_basis, gl.exact_svd(), *arguments)
    run["SVD as optax.contrib takes it, (4096, 1024)"] = lambda: _svd(long)
    timings, _ = interleaved(run, 3)
    notes = {
        name: "of optimal energy: " + ", ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
        for name, shares in energy.items()
    }
    names = ["exact_svd", *(name for name in timings if name != "exact_svd")]
    title = f"(a) one basis of a {SHAPE[0]} × {SHAPE[1]} gradient, r = {RANK}, float32"
    table(title, {name: timings[name] for name in names}, "exact_svd", notes)
    name = "subspace_iteration(1), warm: default"
    speed = timings["exact_svd"].median / timings[name].median
    figures = f"{name}, {speed:.1f}× at {energy[name]['real']:.3f} of the optimal energy of a real gradient"
    check("refresh ≥ 10× cheaper than the full SVD at ≥ 0.95", speed >= 10 and energy[name]["real"] >= 0.95, figures)


@functools.partial(jax.jit, static_argnums=0)
def _basis(projector, g, previous, key):
    return projector(g, previous, key, RANK)


_svd = jax.jit(lambda g: jnp.linalg.svd(g, full_matrices=False)[0][:, :RANK])


# (b) the optimiser's step


class Peak(NamedTuple):
    """Bytes of a compiled program: arguments, temporaries, and the outputs that reuse no argument."""

    arguments: int
    temporaries: int
    outputs: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        return f"{self.total / 1e6:.1f} MB, of which temporary {self.temporaries / 1e6:.1f}"


def peak(compiled: Any) -> Peak:
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Peak(memory.argument_size_in_bytes, memory.temp_size_in_bytes, outputs)


def block_matrices(dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Three LLaMA blocks of width 512 and hidden width 1376."""
    shapes = {name: (512, 512) for name in ("query", "key", "value", "output")}
    shapes |= {"gate": (1376, 512), "up": (1376, 512), "down": (512, 1376)}
    return {f"{i} {name}": jax.ShapeDtypeStruct(shape, dtype) for i in range(3) for name, shape in shapes.items()}


def compiled_step(optimiser: optax.GradientTransformation, shapes: Any) -> Any:
    """One update and its application, with parameters, state and gradient donated."""

    def step(params, state, grads):
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimiser.init, shapes)
    return jax.jit(step, donate_argnums=(0, 1)).lower(shapes, state, shapes).compile()


def stepper(compiled: Any, optimiser: optax.GradientTransformation, params: Any, grads: Any) -> Callable[[], Any]:
    """A call that makes one step on buffers of its own, donated from each call to the next."""
    params = jax.tree.map(jnp.copy, params)
    held = [params, jax.jit(optimiser.init)(params)]

    def call():
        held[:] = compiled(*held, grads)
        return jax.tree.leaves(held[0])[0]

    return call


def optimisers(gap: int, rank: int) -> dict[str, optax.GradientTransformation]:
    return {
        f"optax.contrib.galore r={rank}": optax.contrib.galore(1e-3, rank, gap),
        f"traindyn.galore r={rank}": gl.galore(1e-3, rank, gap),
    }


def step(dtype: Any) -> None:
    """(b) An optimiser's step between refreshes, at one, and amortised; and its compiled peak."""
    shapes, rng = block_matrices(dtype), np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.standard_normal(x.shape).astype(np.float32), dtype)
    params, grads = ({name: draw(x) for name, x in shapes.items()} for _ in range(2))
    candidates, peaks = {"optax.adam": optax.adam(1e-3), PRECISE: make_optimiser("adam", 1e-3)}, {}
    for rank in (128, 32):
        candidates |= optimisers(NEVER, rank)
        candidates[f"traindyn.galore r={rank}, external"] = gl.galore(1e-3, rank, "external")
    calls = {}
    for name, optimiser in candidates.items():
        compiled = compiled_step(optimiser, shapes)
        peaks[name], calls[name] = peak(compiled), stepper(compiled, optimiser, params, grads)
        calls[name]()  # the first step refreshes
    timings, _ = interleaved(calls)
    kind = f"{jnp.dtype(dtype).name}, 9.49 M parameters"
    table(
        f"(b) optimiser step between refreshes, {kind}",
        timings,
        "optax.adam",
        {n: f"peak {p}" for n, p in peaks.items()},
    )
    for rank in (128, 32):
        _step_bars(rank, timings, peaks, dtype)
    calls = {}
    for name, optimiser in optimisers(1, 128).items():
        calls[name] = stepper(compiled_step(optimiser, shapes), optimiser, params, grads)
    refreshes, _ = interleaved(calls, 3)
    amortised = {n: timings[n].median + (t.median - timings[n].median) / 200 for n, t in refreshes.items()}
    notes = {n: f"amortised over 200 steps {t * 1e3:.3g} ms" for n, t in amortised.items()}
    table(f"(b) step that refreshes all, {kind}", refreshes, "traindyn.galore r=128", notes)


def _step_bars(rank: int, timings: Mapping[str, Timing], peaks: Mapping[str, Peak], dtype: Any) -> None:
    ours, theirs = f"traindyn.galore r={rank}", f"optax.contrib.galore r={rank}"
    ratio, adam = timings[ours].median / timings[theirs].median, peaks["optax.adam"].total
    kind = f"{jnp.dtype(dtype).name}, r={rank}"
    check(f"step between refreshes cheaper than optax.contrib.galore's, {kind}", ratio < 1, f"{ratio:.2f}×")
    times = lambda name: f"{peaks[ours].total / peaks[name].total:.2f}×"
    against = f"{times('optax.adam')}; {times(PRECISE)} that of {PRECISE}; {times(theirs)} optax.contrib.galore's"
    check(f"compiled peak below Adam's, {kind}", peaks[ours].total < adam, against)


# (c) the whole train step


def train_step(optimiser: optax.GradientTransformation, model: Llama, tokens: jax.ShapeDtypeStruct) -> Any:
    """One step on a batch, with model and state donated, compiled for shapes alone."""

    def step(model, state, tokens):
        loss, grads = jax.value_and_grad(next_token_loss)(model, tokens)
        updates, state = optimiser.update(grads, state, model)
        return optax.apply_updates(model, updates), state, loss

    state = jax.eval_shape(optimiser.init, model)
    return jax.jit(step, donate_argnums=(0, 1)).lower(model, state, tokens).compile()


def partitioned(projected: optax.GradientTransformation) -> optax.GradientTransformation:
    """That on the matrices of attention and hidden layers, Adam on everything else, as in the paper."""
    parts = {"galore": projected, "full": optax.adam(1e-3)}
    return optax.partition(parts, lambda params: gl.galore_labels(params, in_a_layer))


def whole_steps() -> None:
    """(c) Compiled peak of the train step of the 60M configuration, with layers separate and stacked."""
    tokens = jax.ShapeDtypeStruct((2, 129), jnp.int32)
    adam, ours = optax.adam(1e-3), partitioned(gl.galore(1e-3, 128, "external", 0.25))
    clip, previous = optax.clip_by_global_norm(1.0), gl.clip_by_previous_norm(1.0)
    candidates = {
        "optax.adam": adam,
        "optax.adam, clip_by_global_norm": optax.chain(clip, adam),
        "optax.adam, clip_by_previous_norm": optax.chain(previous, adam),
        "traindyn.galore, external": ours,
        "traindyn.galore, external, clip_by_global_norm": optax.chain(clip, ours),
        "traindyn.galore, external, clip_by_previous_norm": optax.chain(previous, ours),
    }
    for layers in ("separate", "stacked"):
        make = lambda key: Llama(CONFIGS["60M"], stacked=layers == "stacked", dtype=jnp.float32, key=key)  # noqa: B023
        model = jax.eval_shape(make, jax.random.key(0))
        print(f"\n(c) compiled peak of a train step, 60M configuration, float32, 2 × 128 tokens, layers {layers}")
        base = None
        for name, optimiser in candidates.items():
            found = peak(train_step(optimiser, model, tokens))
            base = found.total if base is None else base
            print(f"  {name:50}{found.total / base:>8.3f}×  {found}", flush=True)


# (d) an ensemble of states


def ensemble(lanes: int = 4, size: int = 256, rank: int = 32) -> None:
    """(d) A step between refreshes of several states under `vmap`."""
    rng = np.random.default_rng(0)
    params, grads = (jnp.asarray(rng.standard_normal((lanes, size, size)), jnp.float32) for _ in range(2))
    calls = {}
    for name, optimiser in optimisers(NEVER, rank).items():
        update = jax.jit(jax.vmap(optimiser.update))
        state = jax.block_until_ready(update(grads, jax.vmap(optimiser.init)(params), params)[1])
        calls[name] = functools.partial(update, grads, state, params)
    timings, _ = interleaved(calls)
    ours = f"traindyn.galore r={rank}"
    table(f"(d) step between refreshes under vmap, {lanes} states of {size} × {size}", timings, ours)


# (e) throughput


def throughput(batch: int = 64, steps: int = 5) -> None:
    """(e) Tokens a second of the 60M configuration in bfloat16, on a GPU."""
    if jax.default_backend() != "gpu":
        print("\n(e) tokens a second of the 60M configuration: not measured, there is no GPU here.")
        return
    tokens = jax.random.randint(jax.random.key(0), (batch, 257), 0, 32_000)
    calls = {}
    for name, optimiser in {
        "optax.adam": optax.adam(1e-3),
        "optax.contrib.galore r=128": optax.contrib.galore(1e-3, 128, 200),
        "traindyn.galore r=128": partitioned(gl.galore(1e-3, 128, 200, 0.25)),
    }.items():
        model = Llama(CONFIGS["60M"], dtype=jnp.bfloat16, key=jax.random.key(0))
        compiled = train_step(optimiser, model, jax.ShapeDtypeStruct(tokens.shape, tokens.dtype))
        held = [model, jax.jit(optimiser.init)(model), None]

        def call(compiled=compiled, held=held):
            for _ in range(steps):
                held[:] = compiled(*held[:2], tokens)
            return held[2]

        calls[name] = call
    timings, _ = interleaved(calls)
    rates = {name: f"{batch * 256 * steps / t.median:,.0f} tokens/s" for name, t in timings.items()}
    table("(e) train step, 60M configuration, bfloat16", timings, "optax.adam", rates, per=steps)


def both_dtypes() -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        step(dtype)


ROWS = {"a": bases, "b": both_dtypes, "c": whole_steps, "d": ensemble, "e": throughput}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"which rows, of {', '.join(ROWS)}; by default all")
    rows = parser.parse_args().rows or list(ROWS)
    print_header()
    start = time.perf_counter()
    for row in rows:
        ROWS[row]()
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
