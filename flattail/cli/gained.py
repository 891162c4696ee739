"""Which classes gained, and which lost, from one recipe to another: on the terminal, the rarest first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .screen import table, unbroken

SHOWN = 30  # classes that the table has, the rarest


def print_gained(pairs: Sequence[tuple[Path, Path]]) -> None:
    """A table of the rarest classes and of the groups, and what it says; pairs (before, after), one for each seed."""
    from rich.markup import escape

    from ..report.flips import paired
    from ..report.gained import MEASURE, cells, rarest, sentences
    from ..runs import read

    runs = [(read(before), read(after)) for before, after in pairs]
    of_class, of_group = paired(runs)
    console, seeds = unbroken(), f", mean of {len(runs)} seeds" * (len(runs) > 1)
    titles = [run.recipe["title"] or run.label for run in runs[0]]
    console.print(
        f"from {titles[0]} to {titles[1]}, the same test images{seeds}", style="bold", markup=False, highlight=False
    )
    rare = rarest(of_class)
    rows = table("class", "train", "test", "right before → after", "gained", "lost", "change in points [95 %]", "p")
    for line in rare[:SHOWN]:
        rows.add_row(escape(line.name), *cells(line))
    for line in of_group:
        rows.add_row(f"[bold]{line.name}[/bold]", *cells(line))
    console.print(rows)
    if len(rare) > SHOWN:
        console.print(f"the {SHOWN} rarest of {len(rare)} classes; the report shows more of them", style="dim")
    for sentence in [*sentences(runs, of_class, of_group), MEASURE]:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    console.print()
