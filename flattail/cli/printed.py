"""The tables that commands print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .options import unbroken


def print_table(folders: list[Path]) -> None:
    """Mean ± sd over seeds of many, medium, few and all, by data set."""
    from rich.markup import escape
    from rich.table import Table

    from ..report import summary
    from ..report.notes import headline, notes, warnings
    from ..report.tables import by_data
    from ..runs import read

    console = unbroken()
    rows = summary([read(f, root=f.parent.parent.parent) for f in folders])
    columns = ("many", "medium", "few", "all")
    for data, mine in by_data(rows).items():
        sizes = mine[0].sizes or {}
        heads = [f"{n} ({sizes[n]})" if n in sizes else n for n in columns]
        change = ["Δ all"] if len(mine) > 1 else []
        table = Table("method", *heads, "n", *change, title=data, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for row in mine:
            gained = [str(row.differences.get("all", "–"))] if change else []
            table.add_row(escape(row.name), *(str(row.columns[n]) for n in columns), str(row.n), *gained)
        console.print(table)
        for said in filter(None, [headline(mine), *notes(mine), *warnings(mine)]):
            console.print(f"[dim]{escape(said)}[/dim]")
        console.print()


def print_open(run: Path, opened: str, threshold: str, **how: Any) -> None:
    """What every rule says of images of unknown classes, and what rejecting them costs the known ones."""
    from rich.markup import escape
    from rich.table import Table

    from ..report.opened import open_lines
    from ..runs import OPEN, read
    from ..worlds import entry, met

    outcome, console = met(run, opened, threshold=threshold, **how), unbroken()
    titles = [f"open set: {outcome.title}, {outcome.n:,} images; percent", "closed accuracy → rejected ones wrong"]
    for title, (columns, lines) in zip(titles, open_lines(read(run), entry(opened, threshold)), strict=True):
        table = Table(*columns, box=None, padding=(0, 2, 0, 0))
        for line in lines:
            table.add_row(*line)
        console.print(escape(title))
        console.print(table)
    for said in [f"threshold: {outcome.threshold}", *outcome.warnings]:
        console.print(f"[dim]{escape(said)}[/dim]")
    console.print(escape(f"kept in {run / OPEN}"))


def print_priors(run: Path, priors: list[str], **how: Any) -> None:
    """Accuracy under class priors, as the logits are and corrected for the prior."""
    from rich.markup import escape
    from rich.table import Table

    from ..worlds import under_priors

    def percent(value: float) -> str:
        return "–" if value != value else f"{100 * value:.1f}"

    scores, said = under_priors(run, priors, **how)
    names, console = [*scores[0].share], unbroken()
    title = "accuracy under class priors: plain → corrected; percent"
    table = Table("prior", *names, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for each in scores:
        table.add_row(escape(each.prior), *(f"{percent(each.plain[n])} → {percent(each.corrected[n])}" for n in names))
        table.add_row("  its share", *(percent(each.share[n]) for n in names), style="dim")
    console.print(table)
    for text in said:
        console.print(f"[dim]{escape(text)}[/dim]")
