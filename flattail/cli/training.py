"""`train`: recipes times seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Out, Root, Sets, mistakes_told, numbers
from .printed import print_table


def train(
    recipes: Annotated[list[str], typer.Argument(help="Recipe files, folders of them, or names of shipped ones.")],
    set_: Sets = None,
    seeds: Annotated[str, typer.Option(help="0, 0-2 or 0,3,7.")] = "0",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    out: Out = Path("runs"),
    device: Device = None,
    root: Root = Path("data"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with interrupted runs.")] = False,
) -> None:
    """Train recipes; finished runs are left alone, so the same command completes a table."""
    with mistakes_told():
        from ..jobs import run_all
        from ..recipe import found, label, read

        paths = found(recipes)
        values = {label(path): read(path, set_ or ()) for path in paths}
        if len(values) < len(paths):
            raise ValueError("two of these recipes have the same folder and name, and so the same runs: rename one")
        folders = run_all(values, numbers(seeds), jobs=jobs, out=out, device=device, root=root, resume=resume)
        if folders:
            print_table(folders)
