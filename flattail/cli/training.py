"""`train`: recipes times seeds, or a folder of photographs for which a recipe is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, Out, Root, Sets, mistakes_told, numbers
from .photos import train_photos
from .printed import print_table


def train(
    recipes: Annotated[
        list[str] | None, typer.Argument(help="Recipe files, folders of them, or names of shipped ones.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Instead of recipes: a folder with a folder of images for each class.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="With --data: what all runs together may take, about.")] = 30.0,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="With --data: ImageNet weights may be fetched, if none are here.")
    ] = False,
    set_: Sets = None,
    seeds: Annotated[str, typer.Option(help="0, 0-2 or 0,3,7.")] = "0",
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    out: Out = Path("runs"),
    device: Device = None,
    root: Root = Path("data"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with interrupted runs.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Log the test accuracy of every epoch; nothing is chosen by it.")
    ] = False,
) -> None:
    """Train recipes; finished runs are left alone, so the same command completes a table.

    With --data my_photos/ a recipe is chosen from the class counts and the machine, and trained beside a plain one.
    """
    with mistakes_told():
        how: dict[str, Any] = {
            "jobs": jobs, "out": out, "device": device, "root": root, "resume": resume, "watch": watch,
        }  # fmt: skip
        if data is not None:
            if recipes:
                raise ValueError(f"--data {data} chooses a recipe, and {recipes[0]} is one: give one or the other")
            train_photos(data, set_ or (), numbers(seeds), minutes=minutes, fetch=pretrained, **how)
            return
        if not recipes:
            raise ValueError(
                "nothing to train: give a recipe (`flattail list recipes`), or --data FOLDER of your images"
            )
        from ..jobs import run_all
        from ..recipe import found, label, read

        paths = found(recipes)
        values = {label(path): read(path, set_ or ()) for path in paths}
        if len(values) < len(paths):
            raise ValueError("two of these recipes have the same folder and name, and so the same runs: rename one")
        folders = run_all(values, numbers(seeds), **how)
        if folders:
            print_table(folders)
