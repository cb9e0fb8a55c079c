"""Pre-training on a text: `traindyn train`, from options to a folder of figures, metrics and checkpoints."""

import dataclasses
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable
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

from .._files import FolderInUse, check_writable, clear_parts, locked, write
from ._checkpoints import Checkpoints, Damaged
from .corpus import read_corpus
from .engine import State, init
from .llama import CONFIGS, Llama, LlamaConfig
from .pretrain import (
    Step,
    batch_sharding,
    make_mesh,
    make_optimiser,
    shardings,
    shardings_of,
    warmup_cosine,
)
from .text import tokenise
from .transformer import Windows, next_token_loss

SIZES = {"tiny": LlamaConfig(vocabulary=256, width=64, hidden=172, layers=2, heads=4, length=64), **CONFIGS}
LEARNING_RATES = {"galore": 0.01, "galore8bit": 0.01, "sgd": 0.1}  # the paper's, and 0.001 for the others
MOST_STEPS = 2**31 - 1  # counted in 32 bits
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
    leaves the same `metrics.jsonl` as an unbroken one. Where the newest checkpoint or the end of `metrics.jsonl` is
    damaged, the run goes on from the checkpoint before, with a warning. One process at a time may work in `out`.

    JAX's 64 bits are the caller's to switch: `dtype="float64"` needs them.

    **Raises** `click.BadParameter` naming the option, what it got and what it needs, before anything is written;
    `OSError` naming the file that can't be written, on a full disk for one.
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
    _check_memory(plan)
    folder = _Folder(out, plan)
    folder.check(resume)  # before the model is made, and again when no other process can change it
    run = _Run(plan, ids[: len(ids) - held], ids[len(ids) - held :], folder)
    try:
        with locked(out):
            clear_parts(out)
            return run(lost=folder.check(resume))
    except FolderInUse as error:
        raise _bad("out", str(error)) from error


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
    _check_numbers(plan)
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


def _check_numbers(plan: Plan) -> None:
    """Counts fit into those of JAX, and rates into the dtype."""
    for option in ("steps", "gap", "accumulate"):
        if (getattr(plan, option) or 0) > MOST_STEPS:
            raise _bad(option, f"must be at most {MOST_STEPS}, got {getattr(plan, option)}.")
    if plan.steps * plan.accumulate > 2 * MOST_STEPS:
        most = 2 * MOST_STEPS // plan.steps
        raise _bad("accumulate", f"must be at most {most} with {plan.steps} steps, got {plan.accumulate}.")
    kept = jnp.finfo(plan.dtype)
    least, largest = float(kept.tiny), float(kept.max)
    for option in ("learning_rate", "scale", "weight_decay", "clip"):
        number = getattr(plan, option)
        if number and not least <= number <= largest:
            raise _bad(option, f"must be from {least:.3g} to {largest:.3g} in {plan.dtype}, got {number}.")


def _check_memory(plan: Plan) -> None:
    """XLA ends the process where there is not enough."""
    a_window, memory = plan.length * plan.vocabulary * jnp.finfo(plan.dtype).bits // 8, _memory()
    if memory is not None and plan.batch * a_window > memory:
        most = f"at most {memory // a_window} for its logits to fit into {memory / 2**30:.0f} GiB"
        raise _bad("batch", f"must be {most}, got {plan.batch}.")


def _memory() -> int | None:
    """Bytes of all devices, or of this machine if they are its CPU, where somebody says."""
    try:
        if jax.default_backend() == "cpu":
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return sum((device.memory_stats() or {})["bytes_limit"] for device in jax.local_devices()) * jax.process_count()
    except (AttributeError, KeyError, ValueError, OSError):
        return None


class _Folder:
    """The files of a run."""

    def __init__(self, out: Path, plan: Plan):
        self.out, self.config, self.checkpoints = out, out / "config.json", out / "checkpoints"
        self.metrics, self.picture = out / "metrics.jsonl", out / "loss.png"
        self.options = dataclasses.asdict(plan)
        self.options["mesh"] = None if plan.mesh is None else list(plan.mesh)
        self.digest = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).digest()

    def check(self, resume: bool) -> str:
        """Why `config.json` can't be read, where a run is to be resumed whose checkpoints may stand in for it.

        **Raises** `click.BadParameter` unless the folder is as it must be for a new run, or for this one to go on.
        """
        files = (self.config, self.metrics, self.picture)
        try:
            check_writable(self.out, *(path.name for path in files))
        except ValueError as error:
            raise _bad("out", str(error).removeprefix("out ")) from error
        if os.path.lexists(self.checkpoints) and not self.checkpoints.is_dir():
            raise _bad(
                "out", f"must be a folder that can be written, got '{self.out}': {self.checkpoints} is no folder."
            )
        parts = self.parts()
        if not resume:
            if self.config.exists() and (parts or not self._left_behind()):
                raise _bad(
                    "out", f"{self.out} holds a run already: --resume goes on with it, another folder starts a new one."
                )
            if parts:
                raise _bad(
                    "out", f"{self.out} holds {' and '.join(parts)} of a run: delete them, or name another folder."
                )
            return ""
        if not parts and not self.config.exists() and not (self.out / ".lock").exists():
            raise _bad("resume", f"needs a folder with a run, got {self.out}, which has no config.json.")
        return (
            self._compare() if parts or self.config.exists() else ""
        )  # what was killed before its first step has nothing, and starts anew

    def parts(self) -> list[str]:
        """What the folder has of a run's steps."""
        recorded = self.metrics.exists() and self.metrics.stat().st_size > 0
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return [path.name for path, there in ((self.metrics, recorded), (self.checkpoints, saved)) if there]

    def _left_behind(self) -> bool:
        """Whether `config.json` is that of a run which has no steps, because its process was killed or ran out of
        memory, and nobody else's."""
        try:
            found = json.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(found, dict) and found.keys() == self.options.keys()

    def _compare(self) -> str:
        try:
            before = json.loads(self.config.read_text(encoding="utf-8"))
            if not isinstance(before, dict):
                raise ValueError("it holds no options")
        except FileNotFoundError:
            return "is missing"
        except (OSError, ValueError, RecursionError) as error:
            return f"is damaged ({error})"
        for option in sorted({*self.options, *before}):
            old, new = before.get(option), self.options.get(option)
            if old != new:
                name = "corpus" if option == "text" else option
                raise _bad(name, f"must be as in the run that is resumed: {option} was {old}, got {new}.")
        return ""

    def write_config(self) -> None:
        write(self.config, json.dumps(self.options, indent=2) + "\n")

    def leave(self) -> None:
        """Gives the folder up, where a run failed before its first step: the next may have other options."""
        for path in (self.config, self.metrics):
            path.unlink(missing_ok=True)


class _Run:
    """A run: the state of training, the number of steps done, and a digest of what `metrics.jsonl` has of them."""

    def __init__(self, plan: Plan, text: np.ndarray, held_out: np.ndarray, folder: _Folder):
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
        click.echo(f"{number:,} parameters, {size(params):.1f} MB; optimiser state {memory:.1f} MB.")
        with self.folder.metrics.open("ab") as file, self._bar() as bar:
            while self.done < plan.steps:
                lines = self._advance()
                self._record(file, lines)
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
                    checkpoints.save(self.done, self._arrays(), [self.folder.digest, self.recorded.digest()])
                bar.set_postfix_str(f"loss {lines[0]['loss']:.3f}", refresh=False)
                bar.update()
        seconds, lines = time.monotonic() - start, self._draw()
        rate = (plan.steps - first) * plan.batch * plan.length * plan.accumulate / seconds
        last = next(line for line in reversed(lines) if "eval_loss" in line)
        click.echo(f"Held-out loss {last['eval_loss']:.4f}, perplexity {last['perplexity']:.4g}.")
        click.echo(f"{plan.steps - first} steps in {seconds:.1f} s, {rate:.3g} tokens/s. Curves: {self.folder.picture}")
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

        **Raises** `click.BadParameter` where there are some and none is.
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
                records = _records(self.folder.metrics)
                digest = hashlib.sha256(b"".join(_until(records, step)))
                reached = any(record["step"] == step for _, record in records)  # no copy of an earlier one passes
                if digest.digest() != recorded or not reached:
                    raise Damaged(_hole(self.folder.metrics, step))
            except Damaged as error:
                wrong[step] = str(error)
                continue
            tree = jax.tree.unflatten(structure, [found[name] for name in like])
            number = jnp.asarray(step * self.plan.accumulate)
            self.state = self.state._replace(params=tree["model"], optimiser_state=tree["state"], step=number)
            self.done, self.recorded = step, digest
            break
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in wrong.items())
        if wrong and not self.done:
            raise _bad(
                "resume",
                f"needs a checkpoint that is whole, got none in {self.folder.out} ({reasons}). Put the damaged file "
                "back, or start in another folder.",
            )
        for step, reason in wrong.items():
            place = checkpoints.set_aside(step)
            click.echo(
                f"Warning: the checkpoint of step {step} can't be used: {reason}. It is now {place}; the run goes on "
                f"from step {self.done}.",
                err=True,
            )

    def _recover(self, lost: str) -> None:
        """Writes `config.json` again, where a checkpoint has shown that the options are those of the run."""
        if not self.done:
            raise _bad(
                "resume",
                f"needs config.json, which {lost} in {self.folder.out}, and no checkpoint is there to tell whose run "
                "it was: start in another folder.",
            )
        self.folder.write_config()
        click.echo(f"Warning: {self.folder.config} {lost}; the options given are those of the run.", err=True)

    def _cut_metrics(self) -> None:
        """Drops what was recorded after the checkpoint, a line half written too."""
        path, records = self.folder.metrics, _records(self.folder.metrics)
        if records and not self.done:
            click.echo(f"Warning: {self.folder.out} has no checkpoint: the run begins again.", err=True)
        if path.exists() and path.read_bytes()[sum(len(line) for line, _ in records) :].endswith(b"\n"):
            click.echo(f"Warning: {path} can't be read after line {len(records)}: the rest is dropped.", err=True)
        write(path, b"".join(_until(records, self.done)))

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
        lines = [record for _, record in _records(self.folder.metrics)]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="cross-entropy per token (nats)", title=self.folder.out.name)
        for name, label, style in (("loss", "training batch", "-"), ("eval_loss", "held-out text", "o-")):
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            axes.plot(*zip(*points, strict=True), style, label=label, lw=1) if points else None
        axes.legend()
        write(self.folder.picture, lambda file: figure.savefig(file, dpi=120, format="png"))
        return lines


def _key(seed: int) -> Array:
    """A key of all 64 bits of a seed: in float32, JAX drops those above 32."""
    low, high = seed % 2**32, seed >> 32
    return jax.random.fold_in(jax.random.key(low), high) if high else jax.random.key(low)


def _line(values: dict[str, Any], loss: float) -> dict[str, Any]:
    """JSON has no NaN: a loss that is not finite is null, and the line says so."""
    if math.isfinite(loss):
        return values
    return {k: v if math.isfinite(v) else None for k, v in values.items()} | {"finite": False}


def _records(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a run and their records, up to the first that is broken."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(record["step"], int):
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        found.append((line, record))
    return found


def _until(records: Iterable[tuple[bytes, dict[str, Any]]], step: int) -> list[bytes]:
    return [line for line, record in records if record["step"] <= step]


def _hole(path: Path, step: int) -> str:
    """Why these are not the metrics up to this step."""
    steps = [record["step"] for _, record in _records(path) if "loss" in record]
    for number, found in enumerate(steps, 1):
        if found != number:
            return f"{path} has step {found} where step {number} should be"
    if len(steps) < step:
        return f"{path} can be read to step {len(steps)} only"
    return f"{path} is not as it was written"


def _evenly(ids: Int[np.ndarray, " tokens"], length: int, batch: int) -> list[Int[np.ndarray, "batch window"]]:
    """Windows without overlap of the held-out text, evenly spread over it, in batches of one size."""
    starts = np.arange(0, len(ids) - length, length)
    number = min(len(starts), EVALUATED)
    number = number // batch * batch or number
    chosen = starts[np.arange(number) * len(starts) // number]
    windows = ids[chosen[:, None] + np.arange(length + 1)]
    return np.split(windows, max(1, number // batch))
