"""The command line: `traindyn list`, `traindyn verify`, `traindyn sweep`, `traindyn cite`, `traindyn train`."""

import contextlib
import importlib
import io
import math
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import click
import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from .._files import check_writable
from ..nets.pretrain import OPTIMISERS
from . import _start, flows, named_sweep, report
from ._signals import ends_promptly
from .claim import Claim, Setting, built_in, claims_in
from .corpus import read_corpus
from .joma import validity as joma_validity
from .pretrain import SIZES, pretrain
from .scan_snap import validity as scan_snap_validity
from .subject import Subject
from .sweep import SweepError
from .verify import verify as run_claims

CRASHED = 3
SUBJECTS = (joma_validity.VALIDITY, scan_snap_validity.VALIDITY, *flows.SUBJECTS)


class _Program(click.Group):
    """A crash of the program itself ends with status 3: 1 says that a claim does not hold."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # whoever read the output is gone, as `head` is; nor can the rest be flushed at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"Error: {where}{error.strerror or error}. What was finished before is kept.", err=True)
        except KeyboardInterrupt as error:  # click would say "Aborted!" and end with 1
            stopped(error, "Nothing had begun.")
        except Exception:
            traceback.print_exc()
        sys.exit(CRASHED)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="traindyn")
def main() -> None:
    """Check theory of how neural networks learn against how they really learn."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe on Windows, say, that has no Greek letters
            stream.reconfigure(errors="replace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        _start.begun()
    warnings.showwarning = _say
    _keep_compiled()


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is dealt with as an interrupt from the keyboard is."""

    status = 128 + signal.SIGTERM


def _terminate(*_: object) -> None:
    raise Terminated


def _say(message: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
    click.echo(f"Warning: {message}", err=True)


def stopped(error: KeyboardInterrupt, advice: str) -> NoReturn:
    """Ends the program after an interrupt with the status that shells expect."""
    click.echo(f"{'Terminated' if isinstance(error, Terminated) else 'Interrupted'}. {advice}", err=True)
    sys.exit(getattr(error, "status", 130))


@contextlib.contextmanager
def _interruptible(advice: str) -> Iterator[None]:
    """For work that keeps all that is finished, whatever ends it."""
    try:
        with ends_promptly(advice):
            yield
    except KeyboardInterrupt as error:
        stopped(error, advice)


def _keep_compiled() -> None:
    """Compilation is what a short run waits for, so what was compiled is kept in the user's cache, unless they have
    said where (JAX_COMPILATION_CACHE_DIR) or that it should not be (JAX_ENABLE_COMPILATION_CACHE=false)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not home.startswith("~"):  # else there is no home
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "traindyn" / "jax"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if "JAX_LOGGING_LEVEL" not in os.environ:  # else XLA warns, falsely, of each program it finds (jax issue 38445)
        jax.config.update("jax_logging_level", "CRITICAL")


_MORE = click.option(
    "--claims", "more", multiple=True, metavar="MODULE", help="Also the claims of a module or a .py file. Repeatable."
)


@main.command("list")
@_MORE
def list_claims(more: tuple[str, ...]) -> None:
    """List every claim: its name and statement; and what else can be swept, with its parameters."""
    for claim in _all_claims(more):
        click.echo(f"{claim.name:28}{'claim':11}{claim.statement}")
    for subject in SUBJECTS:
        parameters = ", ".join(f"{name}={value:g}" for name, value in subject.defaults.items())
        click.echo(f"{subject.name:28}{'sweep':11}{subject.statement} [{parameters}]")


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--scale", type=click.Choice(["smoke", "laptop", "paper"]), default="laptop", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--corpus", type=click.Path(path_type=Path), help="Text for the claims on real text.  [default: Python's]"
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out"), show_default=True)
@click.option("--x32", is_flag=True, help="Compute in float32 instead of float64.")
@click.option("--jobs", type=click.IntRange(min=1), help="Claims checked at a time.  [default: 2 on a CPU, else 1]")
@click.option("--resume", is_flag=True, help="Keep the claims that OUT/results.json already has, if nothing changed.")
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="For each claim.")
@_MORE
def verify(names, scale, seed, corpus, out, x32, jobs, resume, time_limit, more) -> None:
    """Check claims, all or those NAMEd: a claim (joma.exp_invariant) or all of a paper (joma).

    Prints a line a claim and writes results.json, report.html and each claim's figure.png and evidence.npz to OUT.
    What OUT has of other claims and settings stays. Exit status: 0 when all hold and every control is rejected, 1 when
    one does not, 2 on bad arguments, 3 when the program itself fails, 130 and 143 when it is interrupted or terminated.
    """
    chosen = _choose(_all_claims(more), names)
    try:
        text, corpus_name = read_corpus(corpus)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--corpus") from error
    jax.config.update("jax_enable_x64", not x32)
    own = all(claim in built_in() for claim in chosen)  # somebody else's may end the process it runs in
    jobs = jobs or (2 if _backend() == "cpu" and (len(chosen) > 1 or not own) else 1)
    try:
        setting = Setting(scale, seed, text, corpus_name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(report.header())
    with tqdm(total=len(chosen), unit="claim", leave=False, disable=not sys.stderr.isatty()) as bar:

        def show(record):
            bar.clear()
            click.echo(report.line(record))
            bar.update()

        with _interruptible(f"Finished claims are in {out}; --resume goes on from there."):
            try:
                records = run_claims(
                    chosen, setting, out=out, resume=resume, jobs=jobs, time_limit=time_limit, on_record=show
                )
            except ValueError as error:
                raise click.UsageError(str(error)) from error
    click.echo(f"\n{report.summary(records)}\nReport: {out / 'report.html'}")
    sys.exit(0 if all(record["passed"] for record in records) else 1)


class _Axis(click.ParamType):
    name = "NAME=FIRST:LAST:NUMBER[:log]"

    def convert(self, value, param, ctx):
        try:
            return named_sweep.parse_axis(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@main.command()
@click.argument("name")
@click.option(
    "--axis", "axes", type=_Axis(), multiple=True, help="Also seed=0:8, integers, and mu=0.5,1,2. Repeatable."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="[default: out/sweep/NAME]")
@click.option("--batch-size", type=click.IntRange(min=1), help="Lanes a device has in work at a time.")
@click.option(
    "--devices", type=click.IntRange(min=1, max=4096), help="Devices that a CPU counts as.  [default: its cores]"
)
@click.option("--scale", type=click.Choice(["smoke", "laptop", "paper"]), default="smoke", help="Of a claim.")
@click.option("--corpus", type=click.Path(path_type=Path), help="Text for a claim on real text.  [default: Python's]")
@click.option("--x32", is_flag=True, help="Compute in float32 instead of float64.")
@click.option("--coordinator", metavar="HOST:PORT", help="Of several processes: where the first listens.")
@click.option("--processes", type=click.IntRange(min=1), help="How many processes there are.")
@click.option("--process", type=click.IntRange(min=0), help="The number of this one.")
@_MORE
def sweep(name, axes, out, batch_size, devices, scale, corpus, x32, coordinator, processes, process, more) -> None:
    """Sweep the flow, validity map or claim NAMEd (see `list`) over axes, of a claim over seeds.

    Writes sweep.nc (for xarray.open_dataset) and figure.png to OUT, which also keeps what is finished: the same command
    goes on from there. Exit status: 0; 2 on bad arguments; 3 when a file can't be written or the program fails; 130
    and 143 when it is interrupted or terminated.

    On several machines run the same command on each, with --coordinator, --processes and --process, and an OUT that
    they share; where JAX knows the cluster (Slurm, TPU pods, Open MPI), --coordinator auto is enough.
    """
    out = out or Path("out/sweep") / name
    known: dict[str, object] = {thing.name: thing for thing in (*SUBJECTS, *_all_claims(more))}
    if name not in known:
        raise click.BadParameter(f"nothing is named {name!r}. Known: {', '.join(known)}.", param_hint="NAME")
    thing = known[name]
    if coordinator is None and (processes or process is not None):
        raise click.BadParameter("needs --coordinator too.", param_hint="--processes")
    try:
        axes = named_sweep.axes_of(axes)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--axis") from error
    jax.config.update("jax_enable_x64", not x32)
    with contextlib.suppress(RuntimeError):  # JAX is running already, or XLA_FLAGS has said how many
        jax.config.update("jax_num_cpu_devices", devices or os.cpu_count() or 1)
    if coordinator is not None:
        _join(*((None, None, None) if coordinator == "auto" else (coordinator, processes, process)))
    _backend()
    first = jax.process_index() == 0
    with _interruptible(f"The same command goes on from what is in {out}."):
        try:
            if first:
                check_writable(out, "sweep.nc", "figure.png", "sweep.json")
            if isinstance(thing, Claim):
                found, picture = _sweep_claim(thing, axes, Setting(scale, 0, *read_corpus(corpus)), out)
            else:
                assert isinstance(thing, Subject)
                progress = first and sys.stderr.isatty()
                found = named_sweep.sweep_subject(
                    thing, axes, out=out, batch_size=batch_size, mesh=named_sweep.all_devices(), progress=progress
                )
                picture = named_sweep.figure(found, [*(axes or thing.axes)])
            if first:
                named_sweep.save(found, picture, out)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        except SweepError as error:
            click.echo(f"Error: {error}. The same command goes on from what is in {out}.", err=True)
            sys.exit(CRASHED)
    if first:
        well = int((found["status"] == 0).sum())
        click.echo(f"{found}\n\n{well} of {found['status'].size} lanes are well. {out / 'sweep.nc'}, figure.png")


def _sweep_claim(
    claim: Claim, axes: Mapping[str, np.ndarray], setting: Setting, out: Path
) -> tuple[xr.Dataset, Figure]:
    if {*axes} != {"seed"}:
        raise ValueError(f"{claim.name} is a claim, which has one axis: --axis seed=0:8.")
    with tqdm(total=len(axes["seed"]), unit="seed", disable=not sys.stderr.isatty()) as bar:
        found = named_sweep.sweep_claim(claim, axes["seed"].tolist(), setting, out=out, on_seed=bar.update)
    return found, named_sweep.claim_figure(found)


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
def cite(names: tuple[str, ...]) -> None:
    """Print the BibTeX entries of the papers behind the claims NAMEd, or of all."""
    modules = dict.fromkeys(sys.modules[claim.check.__module__].__package__ for claim in _choose(built_in(), names))
    click.echo("\n\n".join(importlib.import_module(module or "").PAPER.bibtex for module in modules))


class _Mesh(click.ParamType):
    name = "DATAxMODEL"

    def convert(self, value, param, ctx):
        try:
            data, model = map(int, value.split("x"))
        except ValueError:
            self.fail(f"needs two numbers as in 2x4, got {value!r}.", param, ctx)
        if min(data, model) < 1:
            self.fail(f"needs numbers of at least 1, got {value!r}.", param, ctx)
        return data, model


class _Finite(click.FloatRange):
    """NaN passes the comparisons of a range, and infinity one without an end."""

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is not a finite number.", param, ctx)


_POSITIVE, _ABOVE_ZERO = click.IntRange(min=1), _Finite(min=0, min_open=True)
_SEED = click.IntRange(min=0, max=2**63 - 1)


@main.command()
@click.option("--config", type=click.Choice([*SIZES]), default="tiny", show_default=True, help="Size of the model.")
@click.option("--corpus", type=click.Path(path_type=Path), help="Text to train on.  [default: Python's]")
@click.option("--tokens", type=click.Choice(["bytes", "words"]), default="bytes", show_default=True)
@click.option("--vocabulary", type=click.IntRange(min=2), help="Most frequent words kept.  [default: the config's]")
@click.option("--optimiser", type=click.Choice(OPTIMISERS), default="adam", show_default=True)
@click.option("--learning-rate", type=_ABOVE_ZERO, help="At its peak.  [default: 0.001; GaLore 0.01, sgd 0.1]")
@click.option("--rank", type=_POSITIVE, help="Of GaLore.  [default: a quarter of the width]")
@click.option("--gap", type=_POSITIVE, help="Updates between GaLore's projections.  [default: 200]")
@click.option("--scale", type=_ABOVE_ZERO, help="Of GaLore's updates.  [default: 0.25]")
@click.option("--weight-decay", type=_Finite(min=0), help="Decoupled.  [default: 0; adamw 0.1]")
@click.option("--batch", type=_POSITIVE, default=16, show_default=True, help="Windows a batch.")
@click.option("--length", type=_POSITIVE, help="Tokens a window.  [default: the config's]")
@click.option("--steps", type=_POSITIVE, default=1000, show_default=True, help="Updates.")
@click.option("--warmup", type=click.IntRange(min=0), help="Steps of rising learning rate.  [default: a tenth]")
@click.option("--eval-every", type=_POSITIVE, default=100, show_default=True, metavar="STEPS")
@click.option("--checkpoint-every", type=_POSITIVE, default=100, show_default=True, metavar="STEPS")
@click.option("--clip", type=_ABOVE_ZERO, help="Largest norm of a gradient, by that of the step before.")
@click.option("--accumulate", type=_POSITIVE, default=1, show_default=True, help="Batches an update.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float64"]), default="float32", show_default=True)
@click.option("--stacked", is_flag=True, help="Layers in one scanned block: compiles faster, needs more memory.")
@click.option("--remat", is_flag=True, help="Recompute activations instead of keeping them.")
@click.option("--mesh", type=_Mesh(), help="Devices that share the batch x the model.  [default: all x 1]")
@click.option("--seed", type=_SEED, default=0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/train"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in OUT.")
def train(out, resume, corpus, **options) -> None:
    """Train a LLaMA-style language model on a text, of which the last tenth is held out.

    Writes metrics.jsonl, config.json, checkpoints/ and loss.png to OUT, where one process at a time may work. Exit
    status: 0, 1 when the loss diverged, 2 on bad arguments, 3 when a file can't be written or the program fails, 130
    and 143 when it is interrupted or terminated.
    """
    _backend()
    with _interruptible(f"--resume goes on from the newest checkpoint in {out}."):
        sys.exit(0 if pretrain(out, resume, corpus, **options) else 1)


def _backend() -> str:
    """Starts JAX."""
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise click.UsageError(f"JAX finds no device (JAX_PLATFORMS={wanted}): {_brief(error)}") from error


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError, IndexError) as error:
        raise click.BadParameter(f"cannot join the others: {_brief(error)}", param_hint="--coordinator") from error


def _choose(claims: Sequence[Claim], names: Iterable[str]) -> list[Claim]:
    names = list(names)
    for name in names:
        if not any(claim.name == name or claim.name.startswith(f"{name}.") for claim in claims):
            known = ", ".join([*sorted({c.name.split(".")[0] for c in claims}), *(c.name for c in claims)])
            raise click.BadParameter(f"no claim is named {name!r}. Known: {known}.", param_hint="NAME")
    return [c for c in claims if not names or any(c.name == n or c.name.startswith(f"{n}.") for n in names)]


def _all_claims(modules: Iterable[str]) -> list[Claim]:
    """The built-in claims, those that installed packages offer as entry points `traindyn.claims`, and those of
    `modules`. Each module holds them as a sequence `CLAIMS`."""
    claims = [*built_in()]
    for point in entry_points(group="traindyn.claims"):
        try:
            claims += _as_claims(point.load())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # somebody else's package must not end every command
            click.echo(f"Warning: the claims of {point.value} are left out: {_brief(error)}", err=True)
    for name in modules:
        claims += _claims_of(name)
    if len({claim.name for claim in claims}) < len(claims):
        names = [claim.name for claim in claims]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise click.BadParameter(f"two claims have the same name: {', '.join(twice)}.", param_hint="--claims")
    return claims


def _claims_of(name: str) -> Sequence[Claim]:
    try:
        if name.endswith(".py"):
            path = Path(name).resolve()
            if not path.is_file():
                raise FileNotFoundError("there is no such file.")
            if "." in path.stem:
                raise ValueError("a module's file must have no dot in its name but that of .py; rename the file.")
            module = _module_of(path)
        else:
            module = importlib.import_module(name)
        found = claims_in(module)
        if not found:
            raise ValueError("it has no claims, which are functions under @claim(…).")
        return found
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what test libraries raise
        raise click.BadParameter(f"cannot take claims from {name}: {_brief(error)}", param_hint="--claims") from error


def _module_of(path: Path) -> ModuleType:
    """Imports a file by a search path that worker processes have too: at its end, so that nothing beside the file takes
    the place of a module of the same name."""
    sys.path.append(str(path.parent))
    try:
        module = importlib.import_module(path.stem)
        if Path(module.__file__ or "") != path:
            raise ImportError(f"a module named {path.stem} is there already; rename the file.")
    except BaseException:
        sys.path.remove(str(path.parent))
        raise
    return module


def _as_claims(found: object) -> Sequence[Claim]:
    if not isinstance(found, Sequence) or not all(isinstance(claim, Claim) for claim in found):
        raise ValueError("CLAIMS must be a sequence of claims, made by `traindyn.validate.claim`.")
    return found


def _brief(error: BaseException) -> str:
    """One line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    main()
