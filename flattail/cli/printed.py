"""The tables of runs that commands print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .screen import note, table, unbroken

if TYPE_CHECKING:
    from ..priors import PriorScores
    from ..scores import Scores
    from ..worlds import Met


def print_table(folders: list[Path], *, baseline: str | None = None) -> None:
    """Mean ± sd over seeds of many, medium, few and all, by data set."""
    from rich.markup import escape

    from ..report import summary
    from ..report.notes import headline, notes, warnings
    from ..report.tables import by_data
    from ..runs import read

    console = unbroken()
    rows = summary([read(f, root=f.parent.parent.parent) for f in folders], baseline=baseline)
    columns = ("many", "medium", "few", "all")
    for data, mine in by_data(rows).items():
        sizes = mine[0].sizes or {}
        heads = [f"{n} ({sizes[n]})" if n in sizes else n for n in columns]
        change = ["Δ all"] if len(mine) > 1 else []
        means = table("method", *heads, "n", *change, title=escape(data))
        for row in mine:
            gained = [str(row.differences.get("all", "–"))] if change else []
            means.add_row(escape(row.name), *(str(row.columns[n]) for n in columns), str(row.n), *gained)
        console.print(means)
        for said in filter(None, [headline(mine), *notes(mine), *warnings(mine)]):
            note(console, said)
        console.print()


def print_scores(run: Path, scores: Scores) -> None:
    """Every score of a run, those of the classes where they are few, and what its stages began from."""
    from rich.markup import escape

    from ..runs import read

    said, console = read(run).scores, unbroken()
    assert said is not None
    rows = table("score", "value")
    for name in ("all", "balanced", "worst", "gmean", "ece"):
        rows.add_row(name, f"{100 * getattr(scores, name):.2f} %")
    rows.add_row("nll", f"{scores.nll:.4f}")
    for name, value in scores.groups.items():
        rows.add_row(f"{name} ({scores.sizes[name]} classes)", f"{100 * value:.2f} %")
    console.print(rows)
    if len(scores.per_class) <= 20:
        classes = table("class", "train images", "accuracy")
        for name, n, value in zip(said["names"], said["counts"], scores.per_class.tolist(), strict=True):
            classes.add_row(escape(name), str(n), f"{100 * value:.1f} %")
        console.print(classes)
    for stage, found in said.get("starts", {}).items():
        values = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        console.print(f"the start of stage {stage} found {values}")


def print_open(run: Path, outcome: Met, opened: str, threshold: str) -> None:
    """What every rule says of images of unknown classes, and what rejecting them costs the known ones."""
    from rich.markup import escape

    from ..report.opened import open_lines
    from ..runs import OPEN, read
    from ..worlds import entry

    console = unbroken()
    titles = [f"open set: {outcome.title}, {outcome.n:,} images; percent", "closed accuracy → rejected ones wrong"]
    for title, (columns, lines) in zip(titles, open_lines(read(run), entry(opened, threshold)), strict=True):
        rows = table(*columns)
        for line in lines:
            rows.add_row(*map(escape, line))
        console.print(escape(title))
        console.print(rows)
    for said in [f"threshold: {outcome.threshold}", *outcome.warnings]:
        note(console, said)
    console.print(escape(f"kept in {run / OPEN}"))


def print_priors(scores: Sequence[PriorScores], said: Sequence[str]) -> None:
    """Accuracy under class priors, as the logits are and corrected for the prior."""
    from rich.markup import escape

    def percent(value: float) -> str:
        return "–" if value != value else f"{100 * value:.1f}"

    names, console = [*scores[0].share], unbroken()
    rows = table("prior", *names, title="accuracy under class priors: plain → corrected; percent")
    for each in scores:
        rows.add_row(escape(each.prior), *(f"{percent(each.plain[n])} → {percent(each.corrected[n])}" for n in names))
        rows.add_row("  its share", *(percent(each.share[n]) for n in names), style="dim")
    console.print(rows)
    for text in said:
        note(console, text)
