"""`data check` and `data prepare`: is a data set whole, and what is made of official files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import One, Root, Sets, mistakes_told, one_recipe
from .screen import table, unbroken

if TYPE_CHECKING:
    from ..data.checked import Checked

data = typer.Typer(
    help="Is a data set whole, and are its lists in place?",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@data.command()
def check(
    recipe: One,
    set_: Sets = None,
    root: Root = Path("data"),
    quick: Annotated[bool, typer.Option("--quick", "--no-images", help="Decode no image.")] = False,
) -> None:
    """What a recipe's data need: lists, files, class counts, every image decoded; exit code 1 if they are not whole."""
    with mistakes_told():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from ..data.checked import check as checked

        dataset = one_recipe(recipe, set_)[1].data
        columns = (TextColumn("images decoded"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=None, visible=False)

            def told(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total, visible=True)

            what = checked(dataset, root, images=not quick, told=told)
        print_checked(what, root)
        if what.wrong:
            raise typer.Exit(1)


def print_checked(what: Checked, root: Path) -> None:
    """What was found, and then what is wrong, each with the first of what it is about."""
    from rich.markup import escape

    console = unbroken()
    console.print(f"[bold]{escape(what.title)}[/bold] under {escape(str(root))}", soft_wrap=True)
    if what.parts:
        parts = table("", "images", "classes", "largest", "smallest", "")
        for column in parts.columns[1:5]:
            column.justify = "right"
        for part in what.parts:
            some = part.counts[part.counts > 0]
            sizes = (f"{len(some):,}", f"{int(some.max()):,}", f"{int(some.min()):,}") if len(some) else ("", "", "")
            parts.add_row(escape(part.source), f"{part.images:,}", *sizes, part.remark)
        console.print(parts)
    for note in what.notes:
        console.print(escape(note), soft_wrap=True)
    if what.files:
        decoded = "none decoded" if what.decoded is None else f"{what.decoded:,} decoded"
        console.print(f"files: {what.files - what.missing:,} of {what.files:,} are there, {decoded}")
    if what.groups:
        console.print("groups: " + ", ".join(f"{name} {n}" for name, n in what.groups.items()))
    if what.fingerprint:
        console.print(f"fingerprint: {what.fingerprint}")
    for each in what.wrong:
        count = f"{each.number:,} " if each.number else ""
        console.print(f"[red]{count}{escape(each.what)}[/red]{':' if each.first else ''}", soft_wrap=True)
        for first in each.first:
            console.print(f"  {escape(first)}", soft_wrap=True)
        if each.number > len(each.first) > 0:
            console.print(f"  and {each.number - len(each.first):,} more")
    console.print("[red]not whole[/red]" if what.wrong else "[green]whole[/green]")


@data.command()
def prepare(
    name: Annotated[str, typer.Argument(help="inat18: its lists, from train2018.json and val2018.json.")],
    root: Root = Path("data"),
    json: Annotated[Path | None, typer.Option(help="Folder of the JSON files; else below the data root.")] = None,
) -> None:
    """Write the lists of a data set that is published without them."""
    with mistakes_told():
        from ..data.inat import prepare as prepared

        if name != "inat18":
            raise ValueError(f"there is nothing to prepare for {name!r}: inat18 alone is published without lists")
        for path, images in prepared(root, source=json).items():
            typer.echo(f"{path}: {images:,} images")
