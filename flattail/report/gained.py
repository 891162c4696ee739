"""Which classes gained, and which lost, from one row to another on the same test images: in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..runs import Run
from .classes import classes
from .flips import Flip

LEVEL = 0.05  # of the test
MEASURE = (
    "gained, lost and paid mean that the 95 % interval over test images leaves out zero and that p is below 0.05 "
    "(McNemar's exact test, with one seed), class by class, without correction for their number"
)


def rarest(of_class: Sequence[Flip]) -> list[Flip]:
    """Classes from the rarest to the most frequent."""
    return sorted(of_class, key=lambda line: (line.count, line.name))


def cells(line: Flip) -> list[str]:
    """What a table says of a class or group: train, test, right before → after, gained, lost, change, p."""
    if not line.n:
        return [f"{line.count:,}", "0", *("–",) * 5]
    change = f"{line.points:+.1f} [{max(line.low, -100):+.1f}, {min(line.high, 100):+.1f}]".replace("-", "−")
    counts = [f"{value:.1f}".removesuffix(".0") for value in (line.a, line.b, line.only_b, line.only_a)]
    p = f"{line.p:.2g}" if line.p >= 1e-4 else "< 0.0001"
    return [f"{line.count:,}", f"{line.n:,}", f"{counts[0]} → {counts[1]}", counts[2], counts[3], change, p]


def sentences(pairs: Sequence[tuple[Run, Run]], of_class: Sequence[Flip], of_group: Sequence[Flip]) -> list[str]:
    """Who gained and who paid between pairs of runs (before, after), one for each seed, given their flips."""
    few = classes(pairs[0][0]).groups.get("few", np.zeros(len(of_class), bool))
    told = [[run.scores or {} for run in pair] for pair in pairs]
    return [*together(of_group, told), *verdict(of_class, few.tolist())]


def together(of_group: Sequence[Flip], told: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Sentences: what became of the rare classes taken together, and of the mean over classes.

    `told`: the documents of scores.json (before, after), one pair for each seed.
    """
    said = []
    few = next((line for line in of_group if line.name == "few" and line.n), None)
    if few is not None:
        _, n, right, _, _, change, p = cells(few)
        said.append(f"the rare classes together: {right} of {n} right, {change} points, p {p}")
    means = [100 * sum(pair[side]["scores"]["balanced"] for pair in told) / len(told) for side in (0, 1)]
    said.append(f"accuracy as a mean over classes, each counting alike: {means[0]:.1f} → {means[1]:.1f} %")
    return said


def verdict(of_class: Sequence[Flip], few: Sequence[bool]) -> list[str]:
    """Sentences: which rare classes gained, lost, or cannot be told, and which others lost or gained."""
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
        f"{line.name} ({f'{line.points:+.0f}'.replace('-', '−')})" if line.n else f"{line.name} (no test image)"
        for line in lines
    ]
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")
