"""Pre-training on a text: `traindyn train`, from options to a folder of figures, metrics and checkpoints."""

import dataclasses
import hashlib
import io
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int
from matplotlib.figure import Figure
from tqdm import tqdm

from .._files import FolderInUse, clear_parts, locked, write
from ._checkpoints import Checkpoints, Damaged
from .engine import State, init
from .llama import Llama
from .pretrain import (
    Step,
    batch_sharding,
    make_mesh,
    make_optimiser,
    shardings,
    shardings_of,
    warmup_cosine,
)
from .run_folder import RunFolder, hole, records, until
from .training_plan import SIZES, BadOption, Plan, plan_of
from .transformer import Windows, next_token_loss

EVALUATED = 256  # windows of the held-out text, at most

_evaluate = eqx.filter_jit(next_token_loss)
_sample = eqx.filter_jit(lambda windows, key: windows(key).tokens)


def pretrain(out: Path, resume: bool, corpus: Path | None, **given: Any) -> bool:
    """Runs what the options say and fills the folder `out`; whether the loss stayed finite.

    `metrics.jsonl` has a line for each step (its loss is that before the step's update) and for each evaluation;
    `checkpoints/` the two newest; `config.json` all options; `loss.png` the curves. A run that was killed and resumed
    leaves the same `metrics.jsonl` as an unbroken one. Where the newest checkpoint or the end of `metrics.jsonl` is
    damaged, the run goes on from the checkpoint before, with a warning. One process at a time may work in `out`.

    JAX's 64 bits are the caller's to switch: `dtype="float64"` needs them.

    **Raises** `BadOption` naming the option, what it got and what it needs, before anything is written;
    `OSError` naming the file that can't be written, on a full disk for one.
    """
    plan, ids = plan_of(corpus, given)
    held = len(ids) // 10
    folder = RunFolder(out, plan)
    folder.check(resume)  # before the model is made, and again when no other process can change it
    run = _Run(plan, ids[: len(ids) - held], ids[len(ids) - held :], folder)
    try:
        with locked(out):
            clear_parts(out)
            return run(lost=folder.check(resume))
    except FolderInUse as error:
        raise BadOption("out", str(error)) from error


class _Run:
    """A run: the state of training, the number of steps done, and a digest of what `metrics.jsonl` has of them."""

    def __init__(self, plan: Plan, text: np.ndarray, held_out: np.ndarray, folder: RunFolder):
        self.plan, self.folder = plan, folder
        mesh = None if plan.mesh is None else make_mesh(*plan.mesh)
        self.place = lambda x: x if mesh is None else jax.device_put(x, batch_sharding(mesh))
        self.sampler = Windows(jnp.asarray(text), plan.length, plan.batch)
        self.model_key, self.data_key = jax.random.split(_key(plan.seed))
        self.evaluation = _evenly(held_out, plan.length, plan.batch)
        self.schedule = warmup_cosine(plan.learning_rate, plan.steps, plan.warmup)
        self.state: State
        self.state, self.step = self._start(mesh)
        self.done, self.recorded = 0, hashlib.sha256()

    def _start(self, mesh: Mesh | None) -> tuple[State, Step]:
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
            seed=plan.seed % 2**32,
        )
        state, placed = init(model, optimiser), None  # eagerly, so that it lies where the model does
        if mesh is not None:
            placed = shardings_of(state.params, mesh), shardings_of(state.optimiser_state, mesh)
            state = state._replace(optimiser_state=jax.device_put(state.optimiser_state, placed[1]))
        return state, Step(next_token_loss, optimiser, shardings=placed)

    def __call__(self, lost: str) -> bool:
        """Goes on from what the folder has. `lost`: why it has no readable `config.json`, though it should."""
        checkpoints = Checkpoints(self.folder.checkpoints)
        try:
            self._find(checkpoints)
            if lost:
                self._recover(lost)
            new = not self.folder.config.exists() or not self.folder.parts()
            if new:
                self.folder.write_config()
            try:
                self._cut_metrics()
                return self._train(checkpoints)
            except Exception:
                if new and not self.done:
                    self.folder.leave()
                raise
        finally:
            checkpoints.close()

    def _train(self, checkpoints: Checkpoints) -> bool:
        plan, start, first = self.plan, time.monotonic(), self.done
        size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree)) / 1e6
        params, memory = self.state.params, size(self.state.optimiser_state)
        number = sum(x.size for x in jax.tree.leaves(params))
        _say(f"{number:,} parameters, {size(params):.1f} MB; optimiser state {memory:.1f} MB.")
        with self.folder.metrics.open("ab") as file, self._bar() as bar:
            while self.done < plan.steps:
                lines = self._advance()
                self._record(file, lines)
                if not all(line.get("finite", True) for line in lines):
                    self._draw()
                    _say(
                        f"The loss became non-finite at step {self.done} of {plan.steps}. "
                        "What was recorded and saved before is kept; try a lower --learning-rate.",
                        err=True,
                    )
                    return False
                if self._due(plan.checkpoint_every):
                    os.fsync(file.fileno())
                    checkpoints.save(self.done, self._arrays(), [self.folder.digest, self.recorded.digest()])
                bar.set_postfix_str(f"loss {lines[0]['loss']:.3f}", refresh=False)
                bar.update()
        seconds, lines = time.monotonic() - start, self._draw()
        rate = (plan.steps - first) * plan.batch * plan.length * plan.accumulate / seconds
        last = next(line for line in reversed(lines) if "eval_loss" in line)
        _say(f"Held-out loss {last['eval_loss']:.4f}, perplexity {last['perplexity']:.4g}.")
        _say(f"{plan.steps - first} steps in {seconds:.1f} s, {rate:.3g} tokens/s. Curves: {self.folder.picture}")
        return True

    def _advance(self) -> list[dict[str, Any]]:
        """One update, and the lines it leaves."""
        plan, losses = self.plan, []
        rate = float(np.asarray(self.schedule(self.done)))
        for part in range(plan.accumulate):
            key = jax.random.fold_in(self.data_key, self.done * plan.accumulate + part)
            batch = self.place(_sample(self.sampler, key))
            self.state, metrics = self.step(self.state, batch)
            losses.append(metrics["loss"])
        self.done += 1
        tokens = self.done * plan.batch * plan.length * plan.accumulate
        loss = float(np.mean([float(x) for x in losses]))
        lines = [_line({"step": self.done, "loss": loss, "learning_rate": rate, "tokens": tokens}, loss)]
        if math.isfinite(loss) and self._due(plan.eval_every):
            loss = float(np.mean([float(_evaluate(self.state.model, self._placed(b))) for b in self.evaluation]))
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
        return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(self._saved())}

    def _saved(self) -> dict[str, Any]:
        return {"model": self.state.params, "state": self.state.optimiser_state}

    def _find(self, checkpoints: Checkpoints) -> None:
        """Takes the newest checkpoint that is whole, of this run, and of which `metrics.jsonl` has all lines.

        **Raises** `BadOption` where there are some and none is.
        """
        like = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in self._arrays().items()}
        structure = jax.tree.structure(self._saved())
        wrong: dict[int, str] = {}
        for step in checkpoints.steps():
            self.state = self.state._replace(params=None, optimiser_state=None)  # free their memory first
            try:
                found, (options, recorded) = checkpoints.load(step, like, seals=2)
                if options != self.folder.digest:
                    raise Damaged("it is of a run with other options")
                lines = records(self.folder.metrics)
                digest = hashlib.sha256(b"".join(until(lines, step)))
                reached = any(record["step"] == step for _, record in lines)  # no copy of an earlier one passes
                if digest.digest() != recorded or not reached:
                    raise Damaged(hole(self.folder.metrics, step))
            except Damaged as error:
                wrong[step] = str(error)
                continue
            tree = jax.tree.unflatten(structure, [found[name] for name in like])
            number = jnp.asarray(np.int64(step * self.plan.accumulate))  # which wraps in 32 bits, as counting does
            self.state = self.state._replace(params=tree["model"], optimiser_state=tree["state"], step=number)
            self.done, self.recorded = step, digest
            break
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in wrong.items())
        if wrong and not self.done:
            raise BadOption(
                "resume",
                f"needs a checkpoint that is whole, got none in {self.folder.out} ({reasons}). Put the damaged file "
                "back, or start in another folder.",
            )
        for step, reason in wrong.items():
            place = checkpoints.set_aside(step)
            _say(
                f"Warning: the checkpoint of step {step} can't be used: {reason}. It is now {place}; the run goes on "
                f"from step {self.done}.",
                err=True,
            )

    def _recover(self, lost: str) -> None:
        """Writes `config.json` again, where a checkpoint has shown that the options are those of the run."""
        if not self.done:
            raise BadOption(
                "resume",
                f"needs config.json, which {lost} in {self.folder.out}, and no checkpoint is there to tell whose run "
                "it was: start in another folder.",
            )
        self.folder.write_config()
        _say(f"Warning: {self.folder.config} {lost}; the options given are those of the run.", err=True)

    def _cut_metrics(self) -> None:
        """Drops what was recorded after the checkpoint, a line half written too."""
        path, lines = self.folder.metrics, records(self.folder.metrics)
        if lines and not self.done:
            _say(f"Warning: {self.folder.out} has no checkpoint: the run begins again.", err=True)
        if path.exists() and path.read_bytes()[sum(len(line) for line, _ in lines) :].endswith(b"\n"):
            _say(f"Warning: {path} can't be read after line {len(lines)}: the rest is dropped.", err=True)
        write(path, b"".join(until(lines, self.done)))

    def _record(self, file: io.BufferedWriter, lines: list[dict[str, Any]]) -> None:
        """Adds lines to `metrics.jsonl`. Raises `OSError` which names it."""
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self.recorded.update(content)
        try:
            file.write(content)
            file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder.metrics)) from error

    def _draw(self) -> list[dict[str, Any]]:
        lines = [record for _, record in records(self.folder.metrics)]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="cross-entropy per token (nats)", title=self.folder.out.name)
        for name, label, style in (("loss", "training batch", "-"), ("eval_loss", "held-out text", "o-")):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            axes.plot(*zip(*points, strict=True), style, label=label, lw=1) if points else None
        axes.legend()
        write(self.folder.picture, lambda file: figure.savefig(file, dpi=120, format="png"))
        return lines


def _say(message: str, *, err: bool = False) -> None:
    print(message, file=sys.stderr if err else sys.stdout, flush=True)


def _key(seed: int) -> Array:
    """A key of all 64 bits of a seed: in float32, JAX drops those above 32."""
    low, high = seed % 2**32, seed >> 32
    return jax.random.fold_in(jax.random.key(low), high) if high else jax.random.key(low)


def _line(values: dict[str, Any], loss: float) -> dict[str, Any]:
    """JSON has no NaN: a loss that is not finite is null, and the line says so."""
    if math.isfinite(loss):
        return values
    return {k: v if math.isfinite(v) else None for k, v in values.items()} | {"finite": False}


def _evenly(ids: Int[np.ndarray, " tokens"], length: int, batch: int) -> list[Int[np.ndarray, "batch window"]]:
    """Windows without overlap of the held-out text, evenly spread over it, in batches of one size."""
    starts = np.arange(0, len(ids) - length, length)
    number = min(len(starts), EVALUATED)
    number = number // batch * batch or number
    chosen = starts[np.arange(number) * len(starts) // number]
    windows = ids[chosen[:, None] + np.arange(length + 1)]
    return np.split(windows, max(1, number // batch))
