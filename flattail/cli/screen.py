"""What commands print on, and how: lines that are not broken, tables without rules, notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LONG = 10_000  # columns where there is no terminal


def unbroken() -> Console:
    """A console whose lines end at a terminal's border, and nowhere when another program reads them."""
    from rich.console import Console

    screen = Console()
    return screen if screen.is_terminal else Console(width=LONG)


def table(*columns: str, title: str | None = None) -> Table:
    """A table without rules, its title on the left."""
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))


def note(console: Console, text: str) -> None:
    """A sentence for those who read on, as it is."""
    console.print(text, style="dim", markup=False, highlight=False)
