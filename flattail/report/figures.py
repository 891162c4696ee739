"""Which figures the rows of one data set have data for."""

from collections.abc import Sequence

from .classes import classes
from .panels import MANY_CLASSES, MANY_ROWS, SMALL, WIDE, Figure
from .scored import class_counts, groups, per_class, ranked
from .tables import Row
from .trained import curves, gaps


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Every figure that there is something to draw in: the scores of finished runs, then their training."""
    made = [curves(rows), gaps(rows)]
    if finished := [row for row in rows if row.runs]:
        crowd = len(finished) > MANY_ROWS
        few_classes = len(classes(finished[0].runs[0]).order) <= MANY_CLASSES
        first = [ranked(finished)] if crowd else [groups(finished, rows)]
        counts = class_counts(finished[0], WIDE if crowd else SMALL)
        each = [] if crowd and few_classes else [per_class(finished, rows)]
        made = [*first, counts, *each, *made]
    return [figure for figure in made if figure]
