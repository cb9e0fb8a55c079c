"""The front door: `traindyn list`, `cite`, `verify`, `diff`, `report`, `sweep`, `train`. Also `python -m traindyn`.

What takes seconds to import is imported by the command that needs it.
"""

import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import click

from . import _catalogue, _start
from ._commands import others
from ._signals import CRASHED, catch_termination, ends_promptly, stopped

LATER = {  # the commands in files of their own, by name, and what they do
    "diff": "Say what differs between the results in two folders: verdicts, figures, seconds, versions.",
    "report": "Write the results in OUT as tables: Markdown, LaTeX, or CSV with every row of evidence.",
    "sweep": "Sweep the flow, validity map or claim NAMEd (see list) over axes, of a claim over seeds.",
    "train": "Train a LLaMA-style language model on a text, of which the last tenth is held out.",
    "verify": "Check claims, all or those NAMEd: a claim (joma.exp_invariant) or all of a paper (joma).",
}


class _Later(click.Command):
    """A command that is imported when it runs, or is asked what it can do."""

    def make_context(self, info_name, args, parent=None, **extra):
        command = importlib.import_module(f"._commands.{self.name}", __package__).command
        catch_termination()
        _start.begun()
        return command.make_context(info_name, args, parent, **extra)


class _Program(click.Group):
    """A crash of the program itself ends with status 3: 1 says that a claim does not hold."""

    def list_commands(self, ctx):
        return sorted([*self.commands, *LATER])

    def get_command(self, ctx, cmd_name):
        return _Later(cmd_name, short_help=LATER[cmd_name]) if cmd_name in LATER else self.commands.get(cmd_name)

    def invoke(self, ctx):
        try:
            with ends_promptly("What was finished before is kept."):  # what is imported may swallow an interrupt
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
    warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)


@main.command("list")
@click.option("--claims", "more", multiple=True, metavar="MODULE", help="Also those of a module or a .py file.")
@click.option("--sweeps", is_flag=True, help="List what else can be swept, with its parameters.")
def list_claims(more: Sequence[str], sweeps: bool) -> None:
    """List every claim: its name and statement."""
    if sweeps:
        from .sweeps.flows import subjects

        for subject in subjects():
            parameters = ", ".join(f"{name}={value:g}" for name, value in subject.defaults.items())
            click.echo(f"{subject.name:30}{subject.statement} [{parameters}]")
        return
    for paper in _catalogue.papers().values():
        for name, statement in paper.claims.items():
            click.echo(f"{name:30}{statement}")
    for claim in others.claims(more):
        click.echo(f"{claim.name:30}{claim.statement}")


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
def cite(names: Sequence[str]) -> None:
    """Print the BibTeX entries of the papers behind the claims NAMEd, or of all."""
    papers = _catalogue.papers()
    claims = [name for paper in papers.values() for name in paper.claims]
    chosen = others.choose(claims, names)
    click.echo("\n\n".join(papers[key].bibtex for key in dict.fromkeys(name.split(".")[0] for name in chosen)))


if __name__ == "__main__":
    main()
