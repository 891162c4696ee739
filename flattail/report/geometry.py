"""The geometry of the loss on the page and in the terminal: what every analysis of the runs found."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..runs import Run
from .frequency import escapes, extremes, radii, rises
from .geometry_tables import ACROSS, LINES, Table
from .landscapes import lines, planes
from .measured import analysed, measured, said
from .panels import Figure
from .spectra import densities
from .tables import Row


@dataclass(frozen=True)
class Part:
    """What the page shows of one analysis."""

    key: str
    title: str
    notes: Sequence[str]
    figures: Sequence[Figure]
    tables: Sequence[Table]


def geometry(rows: Sequence[Row]) -> list[Part]:
    """A part for every analysis that any of the rows has.

    Raises ValueError naming the file if one is damaged.
    """
    parts = []
    for name, title in TITLES.items():
        found = analysed(rows, name)
        if not found:
            continue
        tables = [across(found)] if (across := ACROSS.get(name)) else []
        for row, m in found:
            columns, lines = LINES[name](m)
            said_of = [(m.shown[i], cells) for i, cells in lines]
            groups = len(lines) - len(m.classes)
            by_class = f"{row.name}, class by class"
            tables.append(Table(by_class, READINGS[name], columns, said_of, folded=True, groups=groups))
        figures = [figure for draw in FIGURES[name] for figure in draw(found, rows)]
        notes = [*said(found), *([WHISKERS] if name != "landscape" else [])]
        parts.append(Part(name, title, notes, figures, tables))
    return parts


def summary_lines(run: Run, name: str) -> tuple[list[str], list[list[str]]]:
    """A finished analysis as a table of plain text: its columns, and a line per class and group.

    Raises FileNotFoundError if the run has not been analysed so, ValueError naming the file if it is damaged.
    """
    found = measured([run], name) if name in run.analyses else None
    if found is None:
        run.analysis(name)  # says what to do
        raise AssertionError(name)
    columns, lines = LINES[name](found)
    return [*columns], [[found.shown[i], *(cell.text for cell in cells)] for i, cells in lines]


FIGURES = {
    "hessian": (extremes, densities),
    "radius": (radii,),
    "sharpness": (rises,),
    "landscape": (lines, planes),
    "escape": (escapes,),
}
TITLES = {
    "hessian": "Is the tail at a saddle?",
    "radius": "How far does a class let us look? CC-SAM's characteristic radius",
    "sharpness": "Sharpness, class by class",
    "landscape": "The landscape around the weights",
    "escape": "Do the methods leave the saddle?",
}
ERRORS = "± is over samples, probes and seeds in quadrature, as far as each is known; below it, one by one."
WHISKERS = "On logarithmic axes a whisker is the factor 1 + error/value, up and down."
READINGS = {
    "hessian": "λ max and λ min are the ends of the spectrum of the Hessian of the class's mean loss. "
    f"{ERRORS} Not converged: the true end lies further out.",
    "radius": "ρ* is eq. 8 of CC-SAM; bound (5) climbs to the rim of its ball and measures, bound (7) is its first "
    "order. √ is the square-root term of eq. 1; where it is not below 1 (*) the bound is vacuous: it says nothing.",
    "sharpness": "By how much the loss rises where the method looks from: the class's own climb, the climb of all "
    "samples, and the mean over random directions of the same length (± their spread).",
    "landscape": "The loss under Gaussian noise of exact length, mean ± sd over directions and seeds.",
    "escape": "The second moment of ⟨gradient, v⟩ over mini-batches of the class, relative to the plain gradient's, v "
    "being the eigenvector of λ min; in brackets as predicted to first order. Above 1, the method "
    "steps further along v than plain descent does.",
}
