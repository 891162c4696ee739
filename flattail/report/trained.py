"""Figures over the epochs: loss, accuracy and the sharpness of every term."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .panels import (
    DASHES,
    INK,
    MANY_ROWS,
    MUTED,
    SMALL,
    Figure,
    colour,
    dash_of,
    mean_of,
    mine,
    panel,
    plain_log,
    spans_decades,
)  # fmt: skip
from .tables import Row, series, terms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TERMS = 5  # beyond: one line for all


def curves(rows: Sequence[Row]) -> Figure | None:
    """Loss, training accuracy and (if it was logged) test accuracy over the epochs."""
    wanted: list[tuple[str, str, Callable[[Mapping[str, Any]], float | None], float]] = [
        ("loss", "training loss", lambda line: line["loss"], 1.0),
        ("accuracy", "training accuracy (%)", lambda line: line["accuracy"], 100.0),
        ("test", "test accuracy (%)", lambda line: line.get("test", {}).get("all"), 100.0),
    ]
    panels = []
    for key, label, pick, scale in wanted:
        found = [(row, scale * series(row, pick)) for row in rows]
        found = [(row, values) for row, values in found if values.size and np.isfinite(values).any()]
        if not found:
            continue
        with panel(f"{key}-{rows[0].key}", SMALL, label) as (ax, done):
            for row, values in found:
                _band(ax, row, rows, values)
            for border in sorted({b for row in rows for b in _borders(row)})[:4]:
                ax.axvline(border, color=MUTED, lw=0.8, ls=":")
            _epochs(ax, max(values.shape[1] for _, values in found))
            ax.set_ylabel(label)
            if key == "loss" and spans_decades(np.concatenate([v[np.isfinite(v)] for _, v in found])):
                ax.set_yscale("log")
                plain_log(ax.yaxis)
        panels.append(done())
    reading = "Lines are means over seeds, bands reach from the lowest to the highest seed"
    reading += "; dotted verticals are borders of stages." if any(_borders(row) for row in rows) else "."
    if len({str(stage.get("loss")) for row in rows for stage in row.every[0].recipe["stages"]}) > 1:
        reading += " Values of different losses do not compare."
    if len(rows) > MANY_ROWS:
        reading += " Point at a line for its name."
    return Figure("curves", "Training", reading, tuple(panels)) if panels else None


def gaps(rows: Sequence[Row]) -> Figure | None:
    """The sharpness of every term over the epochs, a panel for each row that has terms."""
    found = []
    for row in rows:
        paths = {line.term: series(row, _gap(line.term)) for line in terms(row)}
        paths = {name: path for name, path in paths.items() if np.isfinite(path).any()}
        if paths:
            found.append((row, paths))
    if not found:
        return None
    tops = [max(np.nanmax(np.abs(mean_of(path, axis=0))) for path in paths.values()) for _, paths in found]
    lowest = min(np.nanmin(mean_of(path, axis=0)) for _, paths in found for path in paths.values())
    shared = max(tops) <= 12 * min(tops)
    style: dict[str, str] = {}  # term -> dash, the same in all panels
    for _, paths in found:
        for name in paths if len(paths) <= TERMS else ():
            taken = {style.get(other) for other in paths}
            style.setdefault(name, next((dash for dash in DASHES if dash not in taken), DASHES[0]))
    panels = []
    for row, paths in found:
        with panel(f"gaps-{row.key}", SMALL, f"Sharpness gaps of {row.name}", row) as (ax, done):
            ax.axhline(0, color=MUTED, lw=0.8)
            if len(paths) <= TERMS:
                for name, path in paths.items():
                    _band(ax, row, rows, path, dash=style[name], label=name)
                ax.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best", handlelength=2.6)
            else:
                means = np.stack([mean_of(path, axis=0) for path in paths.values()])  # [terms, epochs]
                low, mid, high = np.nanpercentile(means, [10, 50, 90], axis=0)
                x, label = np.arange(1, means.shape[1] + 1), f"median of {len(paths)} terms, 10–90 %"
                with mine(ax, row, f"{row.name}, {label}"):
                    ax.fill_between(x, low, high, color=colour(row, rows), alpha=0.2, lw=0)
                    ax.plot(x, mid, color=colour(row, rows), lw=1.6, label=label)
                ax.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
            ax.set_title(row.name, loc="left", fontsize=9.5, color=INK)
            if shared:
                ax.set_ylim(min(0, 1.1 * lowest), 1.15 * max(tops))
            _epochs(ax, max(path.shape[1] for path in paths.values()))
            ax.set_ylabel("loss rise from w to w + e")
        panels.append(done())
    reading = "How much each term's loss rises within its neighbourhood: lower is flatter. "
    reading += "All panels share one scale." if shared else "Every panel has its own scale."
    silent = [row.name for row in rows if row not in [row for row, _ in found]]
    if silent:
        reading += f" No term was ever active for {', '.join(silent)}: nothing was displaced there."
    columns = 0 if len(found) <= MANY_ROWS else 3
    return Figure("gaps", "Sharpness, term by term", reading, tuple(panels), legend=False, columns=columns)


def _gap(term: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda line: line.get("terms", {}).get(term, {}).get("gap")


def _band(ax: "Axes", row: Row, rows: Sequence[Row], values: np.ndarray, *, dash: str = "", **line: Any) -> None:
    """Mean over seeds as a line, lowest to highest as a band; values [runs, epochs]."""
    kept = np.isfinite(values).any(axis=0)
    x, values = (np.arange(values.shape[1]) + 1)[kept], values[:, kept]
    ink = colour(row, rows)
    with mine(ax, row, line.get("label", "") and f"{row.name}, {line['label']}"):
        if len(values) > 1:
            ax.fill_between(x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=ink, alpha=0.16, lw=0)
        mark = "o" if len(x) == 1 else ""
        ax.plot(x, mean_of(values, axis=0), mark, ls=dash or dash_of(row, rows), color=ink, lw=1.6, ms=4, **line)


def _borders(row: Row) -> list[int]:
    ends = np.cumsum([int(stage["epochs"]) for stage in row.every[0].recipe["stages"]])
    return [int(end) for end in ends[:-1]]


def _epochs(ax: "Axes", last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("epoch")
    ax.set_xlim(1 - 0.02 * last, last * 1.02)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
