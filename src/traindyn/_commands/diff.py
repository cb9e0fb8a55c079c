"""`traindyn diff`."""

import sys
from pathlib import Path

import click

from ..validate import difference, read


@click.command("diff")
@click.argument("before", type=click.Path(file_okay=False, path_type=Path))
@click.argument("after", type=click.Path(file_okay=False, path_type=Path))
def command(before: Path, after: Path) -> None:
    """Say what differs between the results in two folders: verdicts, figures, seconds, versions.

    A figure has moved if its interval lies apart from the one before by more than 1 % of the bound. Claims are compared
    at the same scale, seed, precision and text. Exit status: 0, 1 when a verdict has flipped, 2 on bad arguments.
    """
    try:
        found = difference(read(before), read(after))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(str(found))
    sys.exit(1 if found.flipped else 0)
