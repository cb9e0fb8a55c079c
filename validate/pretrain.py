"""Pre-training on a text: `traindyn train`, from options to a folder of figures, metrics and checkpoints."""

import dataclasses
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int
from matplotlib.figure import Figure
from tqdm import tqdm

from ..nets.llama import CONFIGS, Llama, LlamaConfig
from ..nets.pretrain import (
    Step,
    batch_sharding,
    make_mesh,
    make_optimiser,
    shardings,
    shardings_of,
    warmup_cosine,
)
from ..nets.text import tokenise
from ..nets.transformer import Windows, next_token_loss
from .corpus import read_corpus

SIZES = {"tiny": LlamaConfig(vocabulary=256, width=64, hidden=172, layers=2, heads=4, length=64), **CONFIGS}
LEARNING_RATES = {"galore": 0.01, "galore8bit": 0.01, "sgd": 0.1}  # the paper's, and 0.001 for the others
EVALUATED = 256  # windows of the held-out text, at most

_evaluate = eqx.filter_jit(next_token_loss)
_sample = eqx.filter_jit(lambda windows, key: windows(key).tokens)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that decides the numbers of a run; `config.json` is made of it. `corpus` is a name, `text` a hash."""

    config: str
    corpus: str
    text: str
    tokens: str
    vocabulary: int
    optimiser: str
    learning_rate: float
    rank: int | None
    gap: int | None
    scale: float | None
    weight_decay: float
    batch: int
    length: int
    steps: int
    warmup: int
    eval_every: int
    checkpoint_every: int
    clip: float | None
    accumulate: int
    dtype: str
    stacked: bool
    remat: bool
    mesh: tuple[int, int] | None
    seed: int


def pretrain(out: Path, resume: bool, corpus: Path | None, **given: Any) -> bool:
    """Runs what the options say and fills the folder `out`; whether the loss stayed finite.

    `metrics.jsonl` has a line for each step (its loss is that before the step's update) and for each evaluation;
    `checkpoints/` the two newest; `config.json` all options; `loss.png` the curves. A run that was killed and resumed
    leaves the same `metrics.jsonl` as an unbroken one.

    **Raises** `click.BadParameter` naming the option, what it got and what it needs.
    """
    try:
        text, name = read_corpus(corpus)
    except ValueError as error:
        raise _bad("corpus", str(error)) from error
    ids, vocabulary = _tokens(text, given["config"], given["tokens"], given["vocabulary"])
    plan = _plan({**given, "corpus": name, "text": hashlib.sha256(text.encode()).hexdigest(), "vocabulary": vocabulary})
    held = len(ids) // 10
    for part, number in (("", len(ids) - held), ("held-out tenth of the ", held)):
        if number <= plan.length:
            raise _bad("corpus", f"the {part}text has {number} tokens; --length {plan.length} needs {plan.length + 1}.")
    _claim_folder(out, plan, resume)
    jax.config.update("jax_enable_x64", plan.dtype == "float64")
    run = _Run(plan, ids[: len(ids) - held], ids[len(ids) - held :], out)
    try:
        return run()
    finally:
        run.close()


def _bad(option: str, message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint=f"--{option.replace('_', '-')}")


def _tokens(text: str, config: str, kind: str, size: int | None) -> tuple[Int[np.ndarray, " tokens"], int]:
    """The whole text as numbers, and how many different ones there may be."""
    if kind == "bytes":
        if size is not None:
            raise _bad("vocabulary", f"is for --tokens words, got {size} with bytes, of which there are 256.")
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32), 256
    try:
        words = tokenise(text, SIZES[config].vocabulary if size is None else size)
    except ValueError as error:
        raise _bad("vocabulary" if "size" in str(error) else "corpus", str(error)) from error
    return words.ids.astype(np.int32), len(words.vocabulary)


def _plan(given: dict[str, Any]) -> Plan:
    """Options with their defaults filled in. An option that would have no effect is an error."""
    name, sizes = given["optimiser"], SIZES[given["config"]]
    projects, decays = name.startswith("galore"), name.startswith("galore") or name == "adamw"
    for option in ("rank", "gap", "scale"):
        if given[option] is not None and not projects:
            raise _bad(option, f"is for the optimisers galore and galore8bit, got {given[option]} with {name}.")
    if given["weight_decay"] is not None and not decays:
        raise _bad("weight_decay", f"is for adamw, galore and galore8bit, got {given['weight_decay']} with {name}.")
    defaults = {
        "learning_rate": LEARNING_RATES.get(name, 1e-3),
        "rank": sizes.width // 4 if projects else None,
        "gap": 200 if projects else None,
        "scale": 0.25 if projects else None,
        "weight_decay": 0.1 if name == "adamw" else 0.0,
        "length": sizes.length,
        "warmup": given["steps"] // 10,
        "mesh": (jax.device_count(), 1) if jax.device_count() > 1 else None,
    }
    filled: dict[str, Any] = {k: defaults.get(k) if value is None else value for k, value in given.items()}
    plan = Plan(**filled)
    shortest = min(sizes.width, sizes.hidden)
    if plan.rank is not None and plan.rank > shortest:
        raise _bad("rank", f"must be at most {shortest}, the shorter side of the matrices, got {plan.rank}.")
    if plan.warmup >= plan.steps:
        raise _bad("warmup", f"must be below --steps {plan.steps}, got {plan.warmup}.")
    if plan.mesh is not None:
        data, model = plan.mesh
        if data * model > jax.device_count():
            raise _bad("mesh", f"needs at most {jax.device_count()} devices, those that are here, got {data}x{model}.")
        if plan.batch % data:
            raise _bad("batch", f"must be a multiple of {data}, the data axis of --mesh, got {plan.batch}.")
    return plan


def _claim_folder(out: Path, plan: Plan, resume: bool) -> None:
    """Writes `config.json`, or compares it with the one that is there."""
    path, options = out / "config.json", dataclasses.asdict(plan)
    options["mesh"] = None if plan.mesh is None else list(plan.mesh)
    if not resume:
        if path.exists():
            raise _bad("out", f"{out} holds a run already: --resume goes on with it, another folder starts a new one.")
        out.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(options, indent=2) + "\n")
        part.replace(path)
        return
    if not path.exists():
        raise _bad("resume", f"needs a folder with a run, got {out}, which has no config.json.")
    before = json.loads(path.read_text())
    for option in sorted({*options, *before}):
        old, new = before.get(option), options.get(option)
        if old != new:
            name = "corpus" if option == "text" else option
            raise _bad(name, f"must be as in the run that is resumed: {option} was {old}, got {new}.")


class _Run:
    """A run in its folder: model, optimiser state, and the number of steps done."""

    def __init__(self, plan: Plan, text: np.ndarray, held_out: np.ndarray, out: Path):
        import orbax.checkpoint as ocp  # takes a second, which the other commands need not wait for

        self.plan, self.metrics, self.picture = plan, out / "metrics.jsonl", out / "loss.png"
        keep = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.checkpoints = ocp.CheckpointManager((out / "checkpoints").absolute(), options=keep)
        self.save, self.restore = ocp.args.StandardSave, ocp.args.StandardRestore
        mesh = None if plan.mesh is None else make_mesh(*plan.mesh)
        self.place = lambda x: x if mesh is None else jax.device_put(x, batch_sharding(mesh))
        self.sampler = Windows(text, plan.length, plan.batch)
        self.model_key, self.data_key = jax.random.split(jax.random.key(plan.seed))
        self.evaluation = _evenly(held_out, plan.length, plan.batch)
        self.schedule = warmup_cosine(plan.learning_rate, plan.steps, plan.warmup)
        self.model: Any
        self.state: Any
        self.model, self.state, self.step = self._start(mesh)
        self.done = self.checkpoints.latest_step() or 0
        if self.done:
            self._load()

    def _start(self, mesh: Mesh | None) -> tuple[Llama, Any, Step]:
        plan = self.plan
        sizes = dataclasses.replace(SIZES[plan.config], vocabulary=plan.vocabulary, length=plan.length)
        make = lambda key: Llama(sizes, stacked=plan.stacked, remat=plan.remat, dtype=plan.dtype, key=key)
        if mesh is not None:  # each device draws what it will hold
            make = jax.jit(make, out_shardings=shardings(jax.eval_shape(make, self.model_key), mesh))
        model = make(self.model_key)
        galore = {} if plan.rank is None else {"rank": plan.rank, "gap": plan.gap, "scale": plan.scale}
        optimiser = make_optimiser(
            plan.optimiser,  # pyright: ignore[reportArgumentType]
            self.schedule,
            **galore,  # pyright: ignore[reportArgumentType]
            weight_decay=plan.weight_decay,
            clip=plan.clip,
            accumulate=plan.accumulate,
            seed=plan.seed,
        )
        init: Any = optimiser.init
        state, placed = init(model), None  # eagerly, so that it lies where the model does
        if mesh is not None:
            placed = shardings_of(model, mesh), shardings_of(state, mesh)
            state = jax.device_put(state, placed[1])
        return model, state, Step(next_token_loss, optimiser, shardings=placed)

    def __call__(self) -> bool:
        plan, start, first = self.plan, time.monotonic(), self.done
        size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree)) / 1e6
        number = sum(x.size for x in jax.tree.leaves(self.model))
        click.echo(f"{number:,} parameters, {size(self.model):.1f} MB; optimiser state {size(self.state):.1f} MB.")
        self._cut_metrics()
        with self.metrics.open("a") as file, self._bar() as bar:
            while self.done < plan.steps:
                lines = self._advance()
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                if not all(line.get("finite", True) for line in lines):
                    self._draw()
                    click.echo(
                        f"The loss became non-finite at step {self.done} of {plan.steps}. "
                        "What was recorded and saved before is kept; try a lower --learning-rate.",
                        err=True,
                    )
                    return False
                if self._due(plan.checkpoint_every):
                    os.fsync(file.fileno())
                    self.checkpoints.save(self.done, args=self.save(self._arrays()))
                bar.set_postfix_str(f"loss {lines[0]['loss']:.3f}", refresh=False)
                bar.update()
        seconds, lines = time.monotonic() - start, self._draw()
        rate = (plan.steps - first) * plan.batch * plan.length * plan.accumulate / seconds
        last = next(line for line in reversed(lines) if "eval_loss" in line)
        click.echo(f"Held-out loss {last['eval_loss']:.4f}, perplexity {last['perplexity']:.4g}.")
        click.echo(f"{plan.steps - first} steps in {seconds:.1f} s, {rate:.3g} tokens/s. Curves: {self.picture}")
        return True

    def _advance(self) -> list[dict[str, Any]]:
        """One update, and the lines it leaves."""
        plan, losses = self.plan, []
        rate = float(np.asarray(self.schedule(self.done)))
        for part in range(plan.accumulate):
            key = jax.random.fold_in(self.data_key, self.done * plan.accumulate + part)
            batch = self.place(_sample(self.sampler, key))
            self.model, self.state, metrics = self.step(self.model, self.state, batch)
            losses.append(metrics["loss"])
        self.done += 1
        tokens = self.done * plan.batch * plan.length * plan.accumulate
        loss = float(np.mean([float(x) for x in losses]))
        lines = [_line({"step": self.done, "loss": loss, "learning_rate": rate, "tokens": tokens}, loss)]
        if math.isfinite(loss) and self._due(plan.eval_every):
            loss = float(np.mean([float(_evaluate(self.model, self._placed(b))) for b in self.evaluation]))
            lines.append(_line({"step": self.done, "eval_loss": loss, "perplexity": float(np.exp(loss))}, loss))
        return lines

    def _placed(self, batch: np.ndarray) -> Array:
        return self.place(jnp.asarray(batch)) if len(batch) == self.plan.batch else jnp.asarray(batch)

    def _due(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.plan.steps

    def _bar(self) -> tqdm:
        quiet = not sys.stderr.isatty()
        return tqdm(total=self.plan.steps, initial=self.done, unit="step", leave=False, disable=quiet)

    def _arrays(self) -> dict[str, Array]:
        """The arrays of model and state by name."""
        tree = {"model": self.model, "state": self.state}
        return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}

    def _load(self) -> None:
        import orbax.checkpoint as ocp

        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, self._arrays())
        structure = jax.tree.structure({"model": self.model, "state": self.state})
        names = list(self._arrays())
        self.model = self.state = None  # free their memory first
        found = self.checkpoints.restore(self.done, args=self.restore(like))
        tree = jax.tree.unflatten(structure, [found[name] for name in names])
        self.model, self.state = tree["model"], tree["state"]

    def _cut_metrics(self) -> None:
        """Drops what was recorded after the checkpoint, a line half written too."""
        kept = [json.dumps(line) + "\n" for line in _read(self.metrics) if line["step"] <= self.done]
        part = self.metrics.with_suffix(".part")
        part.write_text("".join(kept))
        part.replace(self.metrics)

    def _draw(self) -> list[dict[str, Any]]:
        lines = _read(self.metrics)
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot(
            xlabel="step", ylabel="cross-entropy per token (nats)", title=self.picture.parent.name
        )
        for name, label, style in (("loss", "training batch", "-"), ("eval_loss", "held-out text", "o-")):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            axes.plot(*zip(*points, strict=True), style, label=label, lw=1) if points else None
        axes.legend()
        figure.savefig(self.picture, dpi=120)
        return lines

    def close(self) -> None:
        self.checkpoints.close()


def _line(values: dict[str, Any], loss: float) -> dict[str, Any]:
    """JSON has no NaN: a loss that is not finite is null, and the line says so."""
    if math.isfinite(loss):
        return values
    return {k: v if math.isfinite(v) else None for k, v in values.items()} | {"finite": False}


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines up to the first that is broken."""
    lines = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith("\n"):
            break
        lines.append(json.loads(line))
    return lines


def _evenly(ids: Int[np.ndarray, " tokens"], length: int, batch: int) -> list[Int[np.ndarray, "batch window"]]:
    """Windows without overlap of the held-out text, evenly spread over it, in batches of one size."""
    starts = np.arange(0, len(ids) - length, length)
    number = min(len(starts), EVALUATED)
    number = number // batch * batch or number
    chosen = starts[np.arange(number) * len(starts) // number]
    windows = ids[chosen[:, None] + np.arange(length + 1)]
    return np.split(windows, max(1, number // batch))
