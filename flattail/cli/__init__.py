"""The command line: list · show · train · sweep · evaluate · import · analyse · report · predict · export · data.

Torch comes only when there is work.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from .choosing import list_, show
from .data import data
from .judging import evaluate, import_
from .looking import analyse, report
from .sweeping import sweep
from .training import train
from .using import export, predict

app = typer.Typer(
    name="flattail",
    help="Flat minima for the tail: sharpness-aware training and analysis for long-tailed recognition.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def told_version(asked: bool) -> None:
    """Print the version and end, if it was asked for."""
    if asked:
        from .. import __version__

        typer.echo(f"flattail {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", callback=told_version, is_eager=True)
    ] = False,
) -> None:
    """Flat minima for the tail: sharpness-aware training and analysis for long-tailed recognition."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are no UTF-8 are printed as they are


app.command("list")(list_)
app.command()(show)
app.command()(train)
app.command()(sweep)
app.command()(evaluate)
app.command("import")(import_)
app.command()(analyse)
app.command()(report)
app.command()(predict)
app.command()(export)
app.add_typer(data, name="data")
