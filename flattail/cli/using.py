"""`predict` and `export`: a finished run put to use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, Root, mistakes_told
from .screen import table, unbroken

if TYPE_CHECKING:
    from ..classifier import Classifier
    from ..predict import Answer

SHOWN = 20  # rows on a screen
NAMED = 10  # unreadable files


def predict(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders of them, or patterns.")],
    out: Annotated[Path | None, typer.Option(help="Write the answers to a .csv or .json file.")] = None,
    top: Annotated[int, typer.Option(min=1, help="So many classes of each image, the best first.")] = 1,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Every class's probability, too.")] = False,
    prior: Annotated[
        str | None, typer.Option(help="Class prior of these images: uniform, forward:50 or a file; else as trained.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read files; by default one per core.")
    ] = None,
    root: Root = Path("data"),
    device: Device = None,
) -> None:
    """Class, probability and group of any images; a table, or CSV where another program reads it."""
    with mistakes_told():
        from rich.console import Console
        from rich.progress import track

        from ..data.pictures import found
        from ..predict import WRITERS, Unreadable, columns, writable, write_csv
        from ..predict import predict as predicted
        from ..runs import replacing

        if out is not None:
            writable(out)
        files = found(images)
        of = known(run, root)
        if top > len(of.names):
            raise ValueError(f"--top {top}: this run knows {len(of.names)} classes")
        for said in of.doubts if prior or of.log_prior is None else ():
            typer.secho(said, dim=True, err=True)
        unreadable: list[Unreadable] = []

        def answers() -> Iterator[Answer]:
            each = predicted(of, files, under=prior, device=device, workers=workers)
            console = Console(stderr=True)
            for one in track(each, "images", total=len(files), console=console, disable=not console.is_terminal):
                if isinstance(one, Unreadable):
                    unreadable.append(one)
                else:
                    yield one
            if len(unreadable) == len(files):
                raise ValueError(f"none of {len(files)} files is a readable image: {named(unreadable)}")

        rows = (columns(of, answer, top=top, all_classes=probabilities) for answer in answers())
        if out is not None:
            with replacing(out) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape") as file:
                WRITERS[out.suffix](file, rows)
            typer.echo(f"{len(files) - len(unreadable):,} images: {out}")
        elif unbroken().is_terminal and not probabilities:
            print_answers(of, rows, top)
        else:
            write_csv(sys.stdout, rows)
        if unreadable:
            said = f"{len(unreadable)} of {len(files)} files could not be read: {named(unreadable)}"
            typer.secho(f"flattail: {said}", fg="red", err=True)
            raise typer.Exit(1)


def known(run: Path, root: Path) -> Classifier:
    """The run's classifier; what a user should know of an older run is said."""
    from ..classifier import classifier

    of = classifier(run, root)
    if of.older:
        said = f"{run} is older than flattail's note of how a run sees images: that was taken from its data"
        typer.secho(said, dim=True, err=True)
    return of


def named(unreadable: list[Any]) -> str:
    """The first files that could not be read, and why."""
    said = [f"{each.file} ({each.reason})" for each in unreadable[:NAMED]]
    more = len(unreadable) - len(said)
    return "\n  ".join(["", *said, *([f"and {more} more"] if more else [])])


def print_answers(of: Classifier, rows: Iterator[dict[str, Any]], top: int) -> None:
    """The first answers, and, where there are more, how many images fell to each group."""
    from rich.markup import escape

    answers, fell = table(), dict.fromkeys([*of.groups, ""], 0)
    for column in ("file", "label", "group", "probability", *(["next"] if top > 1 else [])):
        answers.add_column(column, overflow="fold", justify="right" if column == "probability" else "left")
    for row in rows:
        fell[row["group"]] += 1
        if sum(fell.values()) <= SHOWN:
            more = ", ".join(f"{row[f'label_{k}']} {100 * row[f'probability_{k}']:.1f} %" for k in range(2, top + 1))
            said = (row["file"], row["label"], row["group"], f"{100 * row['probability']:.1f} %", more)
            answers.add_row(*map(escape, said[: len(answers.columns)]))
    console, n = unbroken(), sum(fell.values())
    console.print(answers)
    if n > SHOWN:
        groups = ", ".join(f"{name or 'in no group'} {each:,}" for name, each in fell.items() if each)
        console.print(f"and {n - SHOWN:,} more, which --out answers.csv keeps; of all: {groups}", highlight=False)


def export(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write; by default RUN/export.")] = None,
    format_: Annotated[
        str, typer.Option("--format", help="Which of them, with commas between.")
    ] = "safetensors,torch,onnx",
    root: Root = Path("data"),
) -> None:
    """The model for use elsewhere, checked: safetensors, torch.export, ONNX, and a model card."""
    with mistakes_told():
        from ..export import FORMATS
        from ..export import export as exported

        done = exported(run, out, root=root, formats=[name.strip() for name in format_.split(",")])
        rows = table("file", "largest difference of a logit from torch's")
        for name, difference in done.differences.items():
            rows.add_row(FORMATS[name].file, f"{difference:.2g}")
        unbroken().print(rows)
        typer.echo(f"with config.json and a model card, README.md: {done.folder}")
        for said in done.refused.values():
            typer.secho(f"flattail: {said}", fg="red", err=True)
        if done.refused:
            raise typer.Exit(1)
