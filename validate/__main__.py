"""The command line: `traindyn list`, `traindyn verify`, `traindyn cite`, `traindyn train`."""

import importlib
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

import click
import jax
from tqdm import tqdm

from ..nets.pretrain import OPTIMISERS
from . import galore, joma, report, reversal, scan_snap
from .claim import Claim, Setting
from .corpus import read_corpus
from .papers import BIBTEX
from .pretrain import SIZES, pretrain
from .verify import verify as run_claims

BUILT_IN = (*joma.CLAIMS, *scan_snap.CLAIMS, *reversal.CLAIMS, *galore.CLAIMS)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="traindyn")
def main() -> None:
    """Check theory of how neural networks learn against how they really learn."""


_MORE = click.option(
    "--claims", "more", multiple=True, metavar="MODULE", help="Also the CLAIMS of a module or a .py file. Repeatable."
)


@main.command("list")
@_MORE
def list_claims(more: tuple[str, ...]) -> None:
    """List every claim: its name, kind and statement."""
    for claim in _all_claims(more):
        click.echo(f"{claim.name:28}{claim.kind:11}{claim.statement}")


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
@click.option("--resume", is_flag=True, help="Keep the claims that OUT/results.json already has.")
@_MORE
def verify(names, scale, seed, corpus, out, x32, jobs, resume, more) -> None:
    """Check claims, all or those NAMEd: a claim (joma.exp_invariant) or all of a paper (joma).

    Prints a line a claim and writes results.json, report.html and each claim's figure.png and evidence.npz to OUT.
    Exit status: 0 when all hold and every control is rejected, 1 when one does not, 2 on bad arguments.
    """
    chosen = _choose(_all_claims(more), names)
    try:
        text, corpus_name = read_corpus(corpus)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--corpus") from error
    jax.config.update("jax_enable_x64", not x32)
    jobs = jobs or (2 if jax.default_backend() == "cpu" and len(chosen) > 1 else 1)
    setting = Setting(scale, seed, text, corpus_name)
    click.echo(report.header())
    with tqdm(total=len(chosen), unit="claim", leave=False, disable=not sys.stderr.isatty()) as bar:

        def show(record):
            bar.clear()
            click.echo(report.line(record))
            bar.update()

        try:
            records = run_claims(chosen, setting, out=out, resume=resume, jobs=jobs, on_record=show)
        except KeyboardInterrupt:
            click.echo(f"Interrupted. Finished claims are in {out}; --resume goes on from there.", err=True)
            sys.exit(130)
    click.echo(f"\n{report.summary(records)}\nReport: {out / 'report.html'}")
    sys.exit(0 if all(record["passed"] for record in records) else 1)


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
def cite(names: tuple[str, ...]) -> None:
    """Print the BibTeX entries of the papers behind the claims NAMEd, or of all."""
    papers = dict.fromkeys(claim.name.split(".")[0] for claim in _choose(BUILT_IN, names))
    click.echo("\n\n".join(BIBTEX[paper] for paper in papers))


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


_POSITIVE, _ABOVE_ZERO = click.IntRange(min=1), click.FloatRange(min=0, min_open=True)


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
@click.option("--weight-decay", type=click.FloatRange(min=0), help="Decoupled.  [default: 0; adamw 0.1]")
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
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/train"), show_default=True)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in OUT.")
def train(out, resume, corpus, **options) -> None:
    """Train a LLaMA-style language model on a text, of which the last tenth is held out.

    Writes metrics.jsonl, config.json, checkpoints/ and loss.png to OUT. Exit status: 0, 1 when the loss diverged, 2 on
    bad arguments.
    """
    try:
        sys.exit(0 if pretrain(out, resume, corpus, **options) else 1)
    except KeyboardInterrupt:
        click.echo(f"Interrupted. --resume goes on from the newest checkpoint in {out}.", err=True)
        sys.exit(130)


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
    claims = [*BUILT_IN]
    for point in entry_points(group="traindyn.claims"):
        claims += point.load()
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
            sys.path.insert(0, str(path.parent))  # for the worker processes too
            module = importlib.import_module(path.stem)
            if Path(module.__file__ or "") != path:
                raise ImportError(f"a module named {path.stem} is there already; rename the file.")
            return module.CLAIMS
        return importlib.import_module(name).CLAIMS
    except (ImportError, OSError, AttributeError) as error:
        raise click.BadParameter(f"cannot take claims from {name}: {error}", param_hint="--claims") from error


if __name__ == "__main__":
    main(prog_name="traindyn")
