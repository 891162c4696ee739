"""The scores of a sweep against what was varied: a panel for each place, an SVG that stands alone."""

from __future__ import annotations

import warnings
from io import StringIO
from typing import TYPE_CHECKING, Any

from ..report.panels import COLOURS, GRID, INK, MUTED, plain_log
from .chosen import Outcome, score_title
from .space import Values, names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "sweep", "text.parse_math": False, "font.family": "sans-serif",
    "font.size": 9, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": MUTED,
    "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID,
    "ytick.major.size": 0,
}  # fmt: skip
READING = "bars: one standard error; shade: within one of the best"
WIDTH, HEIGHT = 4.2, 3.0  # inches, of a panel
TICKS = 8  # values of a list that are written under the axis, each where it is


def drawn(outcome: Outcome) -> str:
    """The figure as SVG. Points with bars of one standard error; the shade is what cannot be told from the best."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    axes = outcome.sweep.axes
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that this machine's font lacks
        figure = Figure(figsize=(WIDTH * len(axes), HEIGHT), layout="constrained")
        panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
        for number, ax in enumerate(panels):
            panel(ax, outcome, number)
        panels[0].set_ylabel(f"{score_title(outcome.sweep)}, validation, %")
        panels[0].set_title(READING, loc="left", fontsize=7.5, color=MUTED)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def panel(ax: Axes, outcome: Outcome, number: int) -> None:
    """Every trial by its value at one place."""
    axis = outcome.sweep.axes[number]
    shown = [t for t in outcome.tried if t.score is not None]
    texts = [t.point[axis.place] for t in shown]
    numeric = axis.numeric
    order = sorted(dict.fromkeys(texts), key=float) if numeric else [t for t in axis.texts if t in texts]
    at = [float(t) if numeric else float(order.index(t)) for t in texts]
    if numeric and (axis.log or decades(at)):
        ax.set_xscale("log")
        plain_log(ax.xaxis)
    if numeric and isinstance(axis, Values) and len(order) <= TICKS:
        ax.set_xticks([float(t) for t in order], order)
    best = outcome.best.score
    assert best is not None
    ax.axhspan(100 * outcome.bar, 100 * best.value, color=COLOURS[0], alpha=0.1, lw=0)
    single = len(outcome.sweep.axes) == 1 and numeric
    if single:
        line = sorted(zip(at, (t.score.value for t in shown if t.score), strict=True))
        ax.plot([x for x, _ in line], [100 * y for _, y in line], color=COLOURS[0], lw=1, alpha=0.5)
    for x, trial in zip(at, shown, strict=True):
        assert trial.score is not None
        chosen = trial is outcome.best
        ax.errorbar(
            x, 100 * trial.score.value, 100 * trial.score.error, fmt="o", ms=6 if chosen else 4.5, capsize=2,
            color=COLOURS[1] if chosen else COLOURS[0], elinewidth=1, zorder=3 if chosen else 2,
        )  # fmt: skip
        if chosen:
            ax.annotate(
                f" {trial.point[axis.place]}", (x, 100 * trial.score.value), (4, 4), textcoords="offset points",
                color=COLOURS[1],
            )  # fmt: skip
    if not numeric:
        ax.set_xticks(range(len(order)), [t if len(t) < 20 else f"{t[:18]}…" for t in order])
        ax.set_xlim(-0.5, len(order) - 0.5)
    ax.set_xlabel(names(outcome.sweep.axes)[axis.place])


def decades(values: list[float]) -> bool:
    """Whether numbers are positive and their largest at least eight times the smallest: a grid by doubling."""
    return min(values) > 0 and max(values) >= 8 * min(values)
