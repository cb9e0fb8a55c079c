"""`traindyn sweep`."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from .. import _catalogue
from .._files import check_writable
from .._signals import CRASHED, interruptible
from ..nets import read_corpus
from ..sweeps import Subject, SweepError, named
from ..sweeps.flows import subjects
from ..validate import Claim, Setting, built_in
from . import others
from ._jax import backend, keep_compiled
from .others import brief


class _Axis(click.ParamType):
    name = "NAME=FIRST:LAST:NUMBER[:log]"

    def convert(self, value, param, ctx):
        try:
            return named.parse_axis(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("sweep")
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
@click.option("--claims", "more", multiple=True, metavar="MODULE", help="Also those of a module or a .py file.")
def command(name, axes, out, batch_size, devices, scale, corpus, x32, coordinator, processes, process, more) -> None:
    """Sweep the flow, validity map or claim NAMEd (see list) over axes, of a claim over seeds.

    Writes sweep.nc (for xarray.open_dataset) and figure.png to OUT, which also keeps what is finished: the same command
    goes on from there. Exit status: 0; 2 on bad arguments; 3 when a file can't be written or the program fails; 130
    and 143 when it is interrupted or terminated.

    On several machines run the same command on each, with --coordinator, --processes and --process, and an OUT that
    they share; where JAX knows the cluster (Slurm, TPU pods, Open MPI), --coordinator auto is enough.
    """
    out = out or Path("out/sweep") / name
    thing = _thing(name, more)
    if coordinator is None and (processes or process is not None):
        raise click.BadParameter("needs --coordinator too.", param_hint="--processes")
    try:
        axes = named.axes_of(axes)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--axis") from error
    keep_compiled()
    jax.config.update("jax_enable_x64", not x32)
    with contextlib.suppress(RuntimeError):  # JAX is running already, or XLA_FLAGS has said how many
        jax.config.update("jax_num_cpu_devices", devices or os.cpu_count() or 1)
    if coordinator is not None:
        _join(*((None, None, None) if coordinator == "auto" else (coordinator, processes, process)))
    backend()
    first = jax.process_index() == 0
    with interruptible(f"The same command goes on from what is in {out}."):
        try:
            if first:
                check_writable(out, "sweep.nc", "figure.png", "sweep.json")
            if isinstance(thing, Claim):
                found, picture = _sweep_claim(thing, axes, Setting(scale, 0, *read_corpus(corpus)), out)
            else:
                assert isinstance(thing, Subject)
                progress = first and sys.stderr.isatty()
                found = named.sweep_subject(
                    thing, axes, out=out, batch_size=batch_size, mesh=named.all_devices(), progress=progress
                )
                picture = named.figure(found, [*(axes or thing.axes)])
            if first:
                named.save(found, picture, out)
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
        found = named.sweep_claim(claim, axes["seed"].tolist(), setting, out=out, on_seed=bar.update)
    return found, named.claim_figure(found)


def _thing(name: str, more: Sequence[str]) -> Subject | Claim:
    """What has this name. Of the claims only those of its paper are imported."""
    known: dict[str, Subject | Claim] = {one.name: one for one in (*subjects(), *others.claims(more))}
    own = [claim for paper in _catalogue.papers().values() for claim in paper.claims]
    if name in own:
        known |= {claim.name: claim for claim in built_in(name.split(".")[0])}
    if name not in known:
        everything = ", ".join([*known, *own])
        raise click.BadParameter(f"nothing is named {name!r}. Known: {everything}.", param_hint="NAME")
    return known[name]


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError, IndexError) as error:
        raise click.BadParameter(f"cannot join the others: {brief(error)}", param_hint="--coordinator") from error
