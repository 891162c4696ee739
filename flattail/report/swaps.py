"""The flips of every row beside the first one, as the page shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from .classes import classes
from .flips import Flip, comparable, paired
from .tables import Row

MOST, ENDS = 20, 10  # classes beyond which only those that moved most are shown; how many up and down


@dataclass(frozen=True)
class Swap:
    """One row against the first of its data set."""

    row: Row
    seeds: int  # pairs of runs
    groups: Sequence[Flip]  # many, medium, few as far as there are any; all
    lines: Sequence[Flip]  # classes, the most frequent first
    left: int  # classes that are not shown
    scale: float  # the largest share of a class that was gained or lost


def swaps(rows: Sequence[Row]) -> list[Swap]:
    """One for every row that shares the first one's protocol, a seed and its test images."""
    found = []
    for row in rows[1:]:
        pairs = comparable(rows[0], row) if row.differences else []
        if not pairs:
            continue
        of_class, of_group = paired(pairs)
        order = [of_class[c] for c in classes(pairs[0][0]).order]
        shown = order
        if len(order) > MOST:
            ranked = sorted((flip for flip in order if flip.n), key=lambda flip: flip.points)
            kept = {id(flip) for flip in [*ranked[:ENDS], *ranked[-ENDS:]]}
            shown = [flip for flip in order if id(flip) in kept]
        scale = max((max(f.only_a, f.only_b) / f.n for f in [*shown, *of_group] if f.n), default=0.0) or 1.0
        found.append(Swap(row, len(pairs), of_group, shown, len(order) - len(shown), scale))
    return found
