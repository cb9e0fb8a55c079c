"""`traindyn verify`."""

import sys
from pathlib import Path

import click
import jax
from tqdm import tqdm

from .. import _catalogue
from .._signals import interruptible
from ..nets import read_corpus
from ..validate import Setting, built_in, results
from ..validate import verify as check_claims
from . import others
from ._jax import backend, cheaply_compiling, keep_compiled


@click.command("verify")
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
@click.option("--claims", "more", multiple=True, metavar="MODULE", help="Also those of a module or a .py file.")
def command(names, scale, seed, corpus, out, x32, jobs, resume, time_limit, more) -> None:
    """Check claims, all or those NAMEd: a claim (joma.exp_invariant) or all of a paper (joma).

    Prints a line a claim and writes results.json, report.html and each claim's figure.png and evidence.nc to OUT.
    What OUT has of other claims and settings stays. Exit status: 0 when all hold and every control is rejected, 1 when
    one does not, 2 on bad arguments, 3 when the program itself fails, 130 and 143 when it is interrupted or terminated.
    """
    keep_compiled()
    foreign = {claim.name: claim for claim in others.claims(more)}
    own = [name for paper in _catalogue.papers().values() for name in paper.claims]
    chosen = others.choose([*own, *foreign], names)
    papers = dict.fromkeys(name.split(".")[0] for name in chosen if name not in foreign)
    known = foreign | {claim.name: claim for claim in (built_in(*papers) if papers else ())}
    try:
        text, corpus_name = read_corpus(corpus)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--corpus") from error
    jax.config.update("jax_enable_x64", not x32)
    trusted = not any(name in foreign for name in chosen)  # somebody else's may end the process it runs in
    jobs = jobs or (2 if backend() == "cpu" and (len(chosen) > 1 or not trusted) else 1)
    try:
        setting = Setting(scale, seed, text, corpus_name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(results.header())
    with tqdm(total=len(chosen), unit="claim", leave=False, disable=not sys.stderr.isatty()) as bar:

        def show(record):
            bar.clear()
            click.echo(results.line(record))
            bar.update()

        with (
            interruptible(f"Finished claims are in {out}; --resume goes on from there."),
            cheaply_compiling(short=scale == "smoke"),
        ):
            try:
                records = check_claims(
                    [known[name] for name in chosen],
                    setting,
                    out=out,
                    resume=resume,
                    jobs=jobs,
                    time_limit=time_limit,
                    on_record=show,
                )
            except ValueError as error:
                raise click.UsageError(str(error)) from error
    click.echo(f"\n{results.summary(records)}\nReport: {out / 'report.html'}")
    sys.exit(0 if all(record["passed"] for record in records) else 1)
