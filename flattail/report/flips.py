"""Which test images two models disagree about, class by class: gained and lost ones, with intervals.

Both models see the same images, so only those that one of them alone gets right say anything: McNemar's exact test
(1947) asks whether they fall evenly. The interval of the difference of accuracies is Wald's with half an image more in
every cell (Agresti and Min, Statistics in Medicine 24, 2005), which keeps its level where images are few:

    d ± 1.96 sqrt((s - d²)/(n + 2)),   d = (gained - lost)/(n + 2),   s = (gained + lost + 1)/(n + 2)

Over several seeds an image counts by its mean change x, and s is the sum of x² likewise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..runs import Run
from .answered import Answered, answered
from .classes import classes
from .estimates import Difference, difference
from .tables import Row

Z = 1.959963984540054  # the normal quantile of 0.975


@dataclass(frozen=True)
class Flip:
    """The test images of one class, or of one group, under models a and b; counts are means over the pairs of runs."""

    name: str  # the class's name, or the group's
    count: int  # training images
    n: int  # test images
    a: float  # classified rightly by a
    b: float  # by b
    only_a: float  # by a alone: lost from a to b
    only_b: float  # by b alone: gained from a to b
    low: float  # 95 % interval of the difference b - a over test images, in points; NaN for a class without any
    high: float
    p: float  # two-sided, of no difference: McNemar's exact test, or the interval's; NaN as above
    seeds: Difference  # b - a over seeds, in points, with its t interval

    @property
    def points(self) -> float:
        """b - a in percentage points."""
        return 100 * (self.b - self.a) / self.n if self.n else math.nan

    @property
    def clear(self) -> bool:
        """Whether the interval over images leaves out zero."""
        return self.low > 0 or self.high < 0


def flips(a: Run, b: Run) -> list[Flip]:
    """Two finished runs on the same test images: one `Flip` per class, in the order of the classes.

    Raises ValueError if their test images differ, or if one of them kept no logits.
    """
    return paired([(a, b)])[0]


def paired(pairs: Sequence[tuple[Run, Run]]) -> tuple[list[Flip], list[Flip]]:
    """Pairs of runs (a, b), one per seed: a `Flip` per class, by number, and one per group, the last of which is all.

    Raises ValueError if test images differ, or if a run kept no logits.
    """
    told = [(_told(a), _told(b)) for a, b in pairs]
    y = told[0][0].y
    for (a, b), each in zip(pairs, told, strict=True):
        for run, said in zip((a, b), each, strict=True):
            if not np.array_equal(said.y, y):
                raise ValueError(
                    f"{run.path} was judged on other test images than {pairs[0][0].path}: compare it apart"
                )
    before, after = (np.stack([each[side].right for each in told]) for side in (0, 1))  # [S, N]
    known = classes(pairs[0][0])
    images = np.split(np.argsort(y, kind="stable"), np.cumsum(np.bincount(y, minlength=len(known.names)))[:-1])
    parts = list(zip(known.names, map(int, known.counts), images, strict=True))
    parts += [(name, int(known.counts[mask].sum()), np.flatnonzero(mask[y])) for name, mask in known.groups.items()]
    found = [_flip(name, n, before[:, who], after[:, who]) for name, n, who in parts]
    return found[: len(known.names)], found[len(known.names) :]


def comparable(a: Row, b: Row) -> list[tuple[Run, Run]]:
    """The runs of two rows that share a seed, kept their logits and were judged on the same test images."""
    theirs = {run.seed: run for run in a.runs}
    found = [(theirs[run.seed], run) for run in b.runs if run.seed in theirs]
    told = [(pair, answered(pair[0]), answered(pair[1])) for pair in found]
    first = next((x for _, x, y in told if x is not None and y is not None), None)
    if first is None:
        return []
    return [pair for pair, x, y in told if x and y and all(np.array_equal(first.y, each.y) for each in (x, y))]


# ---- details -----------------------------------------------------------------------------------------------


def _told(run: Run) -> Answered:
    if (said := answered(run)) is None:
        raise ValueError(
            f"{run.path} kept no logits: finish the run, or write them with `flattail evaluate {run.path}`"
        )
    return said


def _flip(name: str, count: int, a: np.ndarray, b: np.ndarray) -> Flip:
    """One line from which images are right, [S, n] bool each."""
    change = b.astype(np.int8) - a  # [S, n]
    seeds, n = change.shape
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    mean = change.mean(axis=0) if n else np.zeros(0)
    both = [(100 * float(y.mean()), 100 * float(x.mean())) for x, y in zip(a, b, strict=True)] if n else []
    return Flip(
        name, count, n, int(a.sum()) / seeds, int(b.sum()) / seeds, lost / seeds, gained / seeds,
        *_interval(mean), _p(mean, seeds), difference(both),
    )  # fmt: skip


def _interval(change: np.ndarray) -> tuple[float, float]:
    """In points, given the change of every image [n], -1 to 1."""
    n = len(change)
    if not n:
        return math.nan, math.nan
    d, s = float(change.sum()) / (n + 2), (float((change**2).sum()) + 1) / (n + 2)
    half = Z * math.sqrt(max(s - d * d, 0.0) / (n + 2))
    return 100 * (d - half), 100 * (d + half)


def _p(change: np.ndarray, seeds: int) -> float:
    """McNemar's exact p for one pair of runs, that of the interval's z for several."""
    from scipy.special import bdtr, ndtr

    n = len(change)
    if not n:
        return math.nan
    if seeds == 1:
        lost, gained = int((change < 0).sum()), int((change > 0).sum())
        return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5))) if lost + gained else 1.0
    low, high = _interval(change)
    return 2 * float(ndtr(-abs(low + high) / (high - low) * Z))
