"""`analyse` and `report`: the geometry of a run, and a page on many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Device, Root, mistakes_told
from .printed import print_table
from .screen import note, table, unbroken


def analyse(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    what: Annotated[str, typer.Argument(help="hessian, landscape, sharpness, radius or escape.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="An option: samples=50, classes=few (repeatable).")
    ] = None,
    split: Annotated[Literal["train", "test", "val"], typer.Option(help="Whose images.")] = "train",
    loss: Annotated[Literal["ce", "own"], typer.Option(help="ce compares methods; own is the run's loss.")] = "ce",
    root: Root = Path("data"),
    device: Device = None,
) -> None:
    """Loss geometry, class by class: is the tail of this model at a saddle? Kept in the run directory."""
    with mistakes_told():
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress, TaskID

        from ..examine import examine
        from ..report.geometry import READINGS, summary_lines
        from ..runs import read

        with Progress(console=Console(stderr=True)) as progress:
            bars: dict[str, TaskID] = {}

            def told(part: str, step: int, steps: int) -> None:
                if part not in bars:
                    bars[part] = progress.add_task(part)
                progress.update(bars[part], completed=step, total=steps)

            path = examine(run, what, sets=set_ or (), split=split, loss=loss, root=root, device=device, progress=told)
        columns, rows = summary_lines(read(run), what)
        summary = table(*columns)
        for row in rows:
            summary.add_row(*map(escape, row))
        console = unbroken()
        console.print(summary)
        note(console, READINGS[what])
        typer.echo(f"kept in {path}")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders that hold some.")],
    out: Annotated[
        list[Path] | None, typer.Option(help="The file to write: .html, .md, .csv or .tex (repeatable).")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The recipe that others are compared with, by its label or title.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no table, only where the files are.")] = False,
) -> None:
    """One HTML page that needs nothing else: tables, curves, flips, confusion, calibration, sharpness, cost."""
    with mistakes_told():
        from ..report.written import known, write
        from ..runs import find

        paths = out or [Path("report.html")]
        for path in paths:
            known(path)
        found = find(runs)
        if not found:
            raise ValueError(f"no run directory lies at or below {', '.join(map(str, runs))}")
        if not quiet:
            print_table([r.path for r in found], baseline=baseline)
        for path in paths:
            typer.echo(f"report: {write(found, path, baseline=baseline).resolve()}")
