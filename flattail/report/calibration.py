"""Calibration: the reliability diagram of every row, and the expected calibration error of every group.

ECE = sum_b |b|/N |accuracy(b) - mean confidence(b)| over 15 equal bins of confidence, closed on the right (Guo et al.,
"On Calibration of Modern Neural Networks", ICML 2017).
"""

from collections.abc import Sequence

import numpy as np

from .answered import Answered, answered
from .classes import classes
from .estimates import Estimate
from .geometry_tables import Cell, Table
from .panels import MUTED, SMALL, Figure, colour, dash_of, mine, panel
from .tables import SHARES, Row

BINS, LEAST = 15, 10  # bins of confidence; the fewest images of a mark


def calibration(rows: Sequence[Row]) -> tuple[list[Figure], list[Table]]:
    """The diagrams of all images and of the rarest group, and the table of errors; nothing without logits."""
    told = {row.key: [(run, said) for run in row.runs if (said := answered(run))] for row in rows}
    known = [row for row in rows if told[row.key]]
    if not known:
        return [], []
    masks = {row.key: [(said, classes(run).groups) for run, said in told[row.key]] for row in known}
    names = [name for name in SHARES if any(name in groups for each in masks.values() for _, groups in each)]
    lines: list[tuple[Row | str, list[Cell]]] = []
    for row in known:
        of = masks[row.key]
        errors = [Estimate.of(100 * calibration_error(s, g[n][s.y]) for s, g in of if n in g) for n in names]
        surplus = Estimate.of(100 * float((s.confidence - s.right).mean()) for s, _ in of)
        lines.append((row, [Cell(str(e).replace("-", "−")) for e in (*errors, surplus)]))
    reading = (
        "Expected calibration error in percent over the test images of each group, 15 bins of confidence; lower is "
        "better. Surplus: mean confidence less accuracy, positive where a model is too sure of itself."
    )
    table = Table("Calibration error", reading, ["recipe", *names, "surplus"], lines)
    panels = [_diagram(name, known, rows, masks) for name in dict.fromkeys((names[-1], names[-2] if names[1:] else ""))]
    reading = (
        f"Accuracy of the test images of each bin of confidence, all seeds together; bins of fewer than {LEAST} images "
        "are left out. On the dotted line confidence is what it says; below it a model is too sure of itself."
    )
    return [Figure("reliability", "How sure, and how right", reading, tuple(filter(None, panels)))], [table]


def calibration_error(said: Answered, who: np.ndarray) -> float:
    """The error over some images, [N] bool, as a fraction; NaN without any."""
    sure, right = said.confidence[who], said.right[who]
    surplus = np.bincount(_bin(sure), weights=right - sure, minlength=BINS)
    return float(np.abs(surplus).sum() / len(sure)) if len(sure) else float("nan")


def _bin(sure: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.arange(1, BINS) / BINS, sure)


def _diagram(name: str, known: Sequence[Row], rows: Sequence[Row], masks: dict) -> str:
    if not name:
        return ""
    with panel(f"reliability-{name}-{rows[0].key}", SMALL, f"Reliability, {name}") as (ax, done):
        ax.plot([0, 100], [0, 100], ":", color=MUTED, lw=1)
        for row in known:
            of = [(s, g[name][s.y]) for s, g in masks[row.key] if name in g]
            if not of:
                continue
            sure, right = (
                np.concatenate(each) for each in zip(*((s.confidence[m], s.right[m]) for s, m in of), strict=True)
            )
            at = _bin(sure)
            n = np.bincount(at, minlength=BINS)
            kept = n >= LEAST
            x, y = (100 * np.bincount(at, weights=w, minlength=BINS)[kept] / n[kept] for w in (sure, right))
            with mine(ax, row):
                ax.plot(x, y, dash_of(row, rows), marker="o", color=colour(row, rows), lw=1.4, ms=3)
        ax.set_xlim(-2, 102)
        ax.set_ylim(-2, 102)
        ax.set_xlabel("confidence (%)")
        ax.set_ylabel("accuracy (%)")
        ax.set_title("all test images" if name == "all" else f"test images of {name}", loc="left", fontsize=9.5)
    return done()
