"""`traindyn train`."""

import math
import sys
from pathlib import Path

import click
import jax

from .._signals import interruptible
from ..nets.pretrain import OPTIMISERS
from ..nets.training_plan import SIZES, BadOption
from ..nets.training_run import pretrain
from ._jax import backend, keep_compiled


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


@click.command("train")
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
def command(out, resume, corpus, **options) -> None:
    """Train a LLaMA-style language model on a text, of which the last tenth is held out.

    Writes metrics.jsonl, config.json, checkpoints/ and loss.png to OUT, where one process at a time may work. Exit
    status: 0, 1 when the loss diverged, 2 on bad arguments, 3 when a file can't be written or the program fails, 130
    and 143 when it is interrupted or terminated.
    """
    keep_compiled()
    backend()
    with interruptible(f"--resume goes on from the newest checkpoint in {out}."):
        before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_enable_x64", options["dtype"] == "float64")
        try:
            finite = pretrain(out, resume, corpus, **options)
        except BadOption as error:
            raise click.BadParameter(error.reason, param_hint=f"--{error.option.replace('_', '-')}") from error
        finally:
            jax.config.update("jax_enable_x64", before)
        sys.exit(0 if finite else 1)
