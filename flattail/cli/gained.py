"""Which classes gained, and which lost, from one recipe to another: paired on the same test images, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .screen import table, unbroken

if TYPE_CHECKING:
    from ..report.flips import Flip

SHOWN = 30  # classes that the table has, the rarest
LEVEL = 0.05  # of the test


def print_gained(pairs: Sequence[tuple[Path, Path]]) -> None:
    """A table of the rarest classes and of the groups, and what it says; pairs (before, after), one for each seed."""
    from rich.markup import escape

    from ..report.flips import paired
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
        console.print(f"the {SHOWN} rarest of {len(rare)} classes; all of them are in the report", style="dim")
    told = [[run.scores or {} for run in pair] for pair in runs]
    for sentence in [*together(of_group, told), *verdict(of_class, told[0][0]["groups"]["few"])]:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    console.print()


def rarest(of_class: Sequence[Flip]) -> list[Flip]:
    """Classes from the rarest to the most frequent."""
    return sorted(of_class, key=lambda line: (line.count, line.name))


def cells(line: Flip) -> list[str]:
    """What the table says of a class or group."""
    if not line.n:
        return [f"{line.count:,}", "0", *("–",) * 5]
    change = f"{line.points:+.1f} [{max(line.low, -100):+.1f}, {min(line.high, 100):+.1f}]".replace("-", "−")
    counts = [f"{value:.1f}".removesuffix(".0") for value in (line.a, line.b, line.only_b, line.only_a)]
    p = f"{line.p:.2g}" if line.p >= 1e-4 else "< 0.0001"
    return [f"{line.count:,}", f"{line.n:,}", f"{counts[0]} → {counts[1]}", counts[2], counts[3], change, p]


def together(of_group: Sequence[Flip], told: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Sentences: what became of the rare classes taken together, and of the mean over classes."""
    said = []
    few = next((line for line in of_group if line.name == "few" and line.n), None)
    if few is not None:
        _, n, right, _, _, change, p = cells(few)
        said.append(f"the rare classes together: {right} of {n} right, {change} points, p {p}")
    means = [100 * sum(pair[side]["scores"]["balanced"] for pair in told) / len(told) for side in (0, 1)]
    said.append(f"accuracy as a mean over classes, each counting alike: {means[0]:.1f} → {means[1]:.1f} %")
    return said


def verdict(of_class: Sequence[Flip], few: Sequence[bool]) -> list[str]:
    """Sentences: which rare classes gained, lost, or cannot be told, and which others lost."""
    rare = rarest([line for line, is_rare in zip(of_class, few, strict=True) if is_rare])
    others = rarest([line for line, is_rare in zip(of_class, few, strict=True) if not is_rare])
    said = []
    if rare:
        up, down = [line for line in rare if up_for_sure(line)], [line for line in rare if down_for_sure(line)]
        parts = [f"gained: {names(up)}" if up else "none gained for certain"]
        parts += [f"lost: {names(down)}"] if down else []
        parts += [f"cannot be told: {names(rest)}"] if (rest := [x for x in rare if x not in (*up, *down)]) else []
        said.append(f"of the {len(rare)} rare {'class' if len(rare) == 1 else 'classes'}, {'; '.join(parts)}")
    if paid := [line for line in others if down_for_sure(line)]:
        said.append(f"paid for by {names(paid)}")
    if better := [line for line in others if up_for_sure(line)]:
        said.append(f"others that gained: {names(better)}")
    said.append(
        "gained, lost, paid: the 95 % interval over test images leaves out zero and p is below 0.05 (McNemar's exact "
        "test, with one seed); class by class, without correction for their number"
    )
    return said


def up_for_sure(line: Flip) -> bool:
    """Whether a class gained by both measures; of few images the interval alone says too much."""
    return line.low > 0 and line.p < LEVEL


def down_for_sure(line: Flip) -> bool:
    """Whether a class lost by both measures."""
    return line.high < 0 and line.p < LEVEL


def names(lines: Sequence[Flip], most: int = 10) -> str:
    """Classes with their changes in points."""
    told = [
        f"{line.name} ({line.points:+.0f})".replace("-", "−") if line.n else f"{line.name} (no test image)"
        for line in lines
    ]
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")
