"""What is taken for what: the confusion matrix of every row, by class or by group, and the commonest mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .classes import Classes, classes
from .tables import Row

MOST, WORST = 20, 12  # classes beyond which groups are shown instead; mistakes listed then


@dataclass(frozen=True)
class Square:
    """One cell of a matrix."""

    share: float  # of the line's test images; NaN where it has none
    said: str  # both classes and the count, in words
    right: bool


@dataclass(frozen=True)
class Confusion:
    """The matrix of one row over all its seeds: a line per true class (or group), a column per answer."""

    row: Row
    heads: tuple[str, ...]  # of the lines
    names: tuple[str, ...]  # of the columns: the same, or right answers and wrong ones by group
    lines: tuple[tuple[Square, ...], ...]
    mistakes: tuple[tuple[str, str], ...]  # the commonest, as `ship → airplane` and how often


def confusions(rows: Sequence[Row]) -> list[Confusion]:
    """A matrix for every row whose scores hold one."""
    return [_confusion(row) for row in rows if row.runs and all(_cells(run.scores) for run in row.runs)]


def _cells(scores: object) -> list:
    return scores["scores"].get("confusion") or [] if isinstance(scores, dict) else []


def _confusion(row: Row) -> Confusion:
    known = classes(row.runs[0])
    n = len(known.names)
    cells = [_sparse(_cells(run.scores), n) for run in row.runs]
    label, answer, times = (np.concatenate(each) for each in zip(*cells, strict=True))
    tested = np.bincount(label, weights=times, minlength=n)
    if n <= MOST:
        place, names = np.empty(n, int), tuple(known.names[c] for c in known.order)
        place[known.order] = np.arange(n)
    else:
        place, names = _grouped(known)
    size = len(names)
    matrix = np.bincount(place[label] * size + place[answer], weights=times, minlength=size**2).reshape(size, size)
    if n > MOST:  # within a group the right answers are told apart from the wrong ones
        hit = np.bincount(place[label[label == answer]], weights=times[label == answer], minlength=size)
        matrix = np.concatenate([hit[:, None], matrix - np.diag(hit)], axis=1)
    seeds, totals = len(row.runs), matrix.sum(axis=1)
    lines = tuple(
        tuple(
            Square(
                float(matrix[i, j] / totals[i]) if totals[i] else float("nan"),
                _said(names, i, j, float(matrix[i, j]) / seeds, float(totals[i]) / seeds, n > MOST),
                j == 0 if n > MOST else i == j,
            )
            for j in range(matrix.shape[1])
        )
        for i in range(size)
    )
    wrong = np.flatnonzero(label != answer)
    pairs, at = np.unique(label[wrong] * np.int64(n) + answer[wrong], return_inverse=True)
    often = np.bincount(at, weights=times[wrong], minlength=len(pairs))
    worst = np.argsort(-often / np.maximum(tested[pairs // n], 1), kind="stable")[:WORST]
    mistakes = tuple(
        (
            f"{known.names[pairs[k] // n]} → {known.names[pairs[k] % n]}",
            f"{100 * often[k] / tested[pairs[k] // n]:.0f} % of {tested[pairs[k] // n] / seeds:,.0f}",
        )
        for k in worst
    )
    return Confusion(
        row, names, names if n <= MOST else ("right", *(f"wrong, {name}" for name in names)), lines, mistakes
    )


def _grouped(known: Classes) -> tuple[np.ndarray, tuple[str, ...]]:
    names = tuple(name for name in known.groups if name != "all") or ("all",)
    place = np.zeros(len(known.names), int)
    for i, name in enumerate(names):
        place[known.groups[name]] = i
    return place, names


def _sparse(cells: Sequence[Sequence[int]], n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, answers and counts of a matrix that is a list of them, or written out."""
    found = np.array(cells)
    if found.shape == (n, n) and n != 3:
        label, answer = found.nonzero()
        return label, answer, found[label, answer]
    return found[:, 0], found[:, 1], found[:, 2]


def _said(names: Sequence[str], i: int, j: int, count: float, of: float, grouped: bool) -> str:
    number = f"{count:,.1f}".removesuffix(".0") + f" of {of:,.1f}".removesuffix(".0")
    if not grouped:
        return f"{names[i]} called {names[j]}: {number}"
    what = "classified rightly" if j == 0 else f"taken for another class of {names[j - 1]}"
    return f"images of {names[i]} {what}: {number}"
