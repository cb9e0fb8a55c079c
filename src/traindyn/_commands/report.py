"""`traindyn report`."""

from pathlib import Path

import click

from .._files import write
from ..validate import read
from ..validate.results import FORMATS

ENDINGS = {"md": "md", "latex": "tex", "csv": "csv"}


class _Formats(click.ParamType):
    name = ",".join(FORMATS)

    def convert(self, value, param, ctx):
        found = value.split(",")
        for one in found:
            if one not in FORMATS:
                self.fail(f"must be among {', '.join(FORMATS)}, got {one!r}.", param, ctx)
        return found


@click.command("report")
@click.argument("out", type=click.Path(file_okay=False, path_type=Path), default=Path("out"))
@click.option(
    "--format", "formats", type=_Formats(), default="md", show_default=True, help="One, or several with commas."
)
def command(out: Path, formats: list[str]) -> None:
    """Write the results in OUT as tables: Markdown, LaTeX, or CSV with every row of evidence.

    Writes report.md, report.tex or report.csv to OUT, with the results of all settings that OUT has. Exit status: 0, 2
    on bad arguments, 3 when a file can't be written.
    """
    try:
        found = read(out)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    for name in formats:
        write(out / f"report.{ENDINGS[name]}", found.table(name))
        click.echo(out / f"report.{ENDINGS[name]}")
