"""Options and arguments that several commands share, and how mistakes are told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..recipe import Recipe

Root = Annotated[Path, typer.Option(help="Folder of the data sets.", envvar="FLATTAIL_DATA")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default the best there is.")]
Out = Annotated[Path, typer.Option(help="Folder of the run directories.")]
One = Annotated[str, typer.Argument(help="A recipe file, or the name of one that comes with flattail.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Replace a value: stages.0.method.rho=0.1 (repeatable).")]


@contextmanager
def mistakes_told(*, again: str = "the same command with --resume goes on") -> Iterator[None]:
    """A user's mistake is one message and exit code 2, never a traceback; a run that was stopped says how to go on."""
    try:
        yield
    except SystemExit as stopped:
        if stopped.code in (130, 143):
            typer.secho(f"flattail: stopped, with a checkpoint; {again}", err=True)
        raise
    except BrokenPipeError:  # whoever read the output has seen enough, which typer knows to end quietly
        raise
    except (ValueError, FloatingPointError, OSError, ImportError, MemoryError) as error:
        full, said = getattr(error, "errno", None) == 28, str(error) or "too little memory"
        text = f"the disk is full, and what was written before is whole: {said}" if full else said
        typer.secho(f"flattail: {text}", fg="red", err=True)
        raise typer.Exit(2) from error


def one_recipe(name: str, sets: list[str] | None) -> tuple[Path, Recipe]:
    """The file and the recipe that a name means, with `sets` replaced; ValueError for a folder of several."""
    from ..recipe import found, read

    path, *more = found([name])
    if more:
        raise ValueError(f"{name} is a folder of {len(more) + 1} recipes: name one of them")
    return path, read(path, sets or ())


def numbers(text: str, *, option: str = "--seeds") -> list[int]:
    """Seeds: `0`, `0-2`, `0,3,7`."""
    seeds: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{option} {text}: write 0, 0-2 or 0,3,7")
        if int(last or first) < int(first):
            raise ValueError(f"{option} {text}: {piece} runs backwards")
        seeds += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(seeds))
