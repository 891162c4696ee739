"""The flips of every row beside the first one, as the page shows them."""

from collections.abc import Sequence
from dataclasses import dataclass

from .classes import Classes, classes
from .flips import Flip, comparable, paired
from .gained import rarest, sentences
from .tables import Row

LINES = 400  # classes of all rows together that a page shows
ENDS = 10  # how many up, down and of the rarest are shown at least, where there are too many classes for all


@dataclass(frozen=True)
class Swap:
    """One row against the first of its data set."""

    row: Row
    seeds: int  # pairs of runs
    groups: Sequence[Flip]  # many, medium, few as far as there are any; all
    lines: Sequence[Flip]  # classes, the most frequent first
    left: int  # classes that are not shown
    scale: float  # the largest share of a class that was gained or lost
    said: Sequence[str]  # who gained and who paid, in sentences


def swaps(rows: Sequence[Row]) -> list[Swap]:
    """One for every row that shares the first one's protocol, a seed and its test images."""
    found = []
    others = [(row, pairs) for row in rows[1:] if row.differences and (pairs := comparable(rows[0], row))]
    for row, pairs in others:
        of_class, of_group = paired(pairs)
        shown = shown_of(of_class, classes(pairs[0][0]), LINES // len(others))
        scale = max((max(f.only_a, f.only_b) / f.n for f in [*shown, *of_group] if f.n), default=0.0) or 1.0
        said = sentences(pairs, of_class, of_group)
        found.append(Swap(row, len(pairs), of_group, shown, len(of_class) - len(shown), scale, said))
    return found


def shown_of(of_class: Sequence[Flip], known: Classes, most: int) -> list[Flip]:
    """The most frequent class first: all, or of too many those that moved most and the rarest."""
    order = [of_class[c] for c in known.order]
    if len(order) <= max(most, 3 * ENDS):
        return order
    moved = sorted((flip for flip in order if flip.n), key=lambda flip: flip.points)
    kept = {id(flip) for flip in [*moved[:ENDS], *moved[-ENDS:], *rarest(of_class)[:ENDS]]}
    return [flip for flip in order if id(flip) in kept]
