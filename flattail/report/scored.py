"""Figures of accuracy: how long the tail is, who gains, class by class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .classes import Classes, classes
from .estimates import Estimate
from .panels import (
    GRID,
    INK,
    MANY_CLASSES,
    MARKERS,
    MUTED,
    SHADES,
    SMALL,
    WIDE,
    Figure,
    colour,
    dash_of,
    mean_of,
    mine,
    panel,
    plain_log,
    running,
    whiskers,
)  # fmt: skip
from .tables import GROUPS, SHARES, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 100  # beyond twice as many classes: means of neighbours


def class_counts(row: Row, size: tuple[float, float]) -> Figure:
    """Training images per class, most frequent first."""
    known = classes(row.runs[0])
    counts, ranks = known.counts[known.order], np.arange(len(known.order))
    with panel(f"counts-{row.key}", size, "Training images per class") as (ax, done):
        few_classes = len(counts) <= MANY_CLASSES
        if len(counts) <= 4 * BINS:
            bars = ax.bar(ranks, counts, 0.8 if few_classes else 1.0, color=_shades(known))
            for bar, c, count in zip(bars, known.order, counts, strict=True):
                bar.set_gid(f"bar::{known.names[c]} · {count:,} training images")
        else:
            ax.fill_between(ranks, counts, step="mid", color=SHADES["medium"], lw=0)
        if counts.max() > 10 * max(counts.min(), 1):
            ax.set_yscale("log")
            ax.set_ylim(max(0.6, 0.5 * counts.min()), 1.6 * counts.max())
            plain_log(ax.yaxis)
        ax.set_ylabel("training images")
        _class_axis(ax, known)
        if few_classes:
            for rank, count in enumerate(counts):
                ax.annotate(f"{count}", (rank, count), (0, 2), textcoords="offset points", ha="center", fontsize=9)
        _name_groups(ax, known)
    least, most = int(counts.min()), int(counts.max())
    reading = (
        f"Each bar is a class, the most frequent first: {most} training images down to {least}, "
        f"an imbalance of {most / max(least, 1):.0f}. Groups have a shade each, to the rarest on the right."
    )
    return Figure("counts", "How long is the tail?", reading, (done(),), legend=False, wide=size == WIDE)


def groups(rows: Sequence[Row], every: Sequence[Row]) -> Figure:
    """Accuracy of many, medium, few and all as grouped bars."""
    shown = [name for name in SHARES if any(row.columns[name].n for row in rows)]
    width = 0.8 / len(rows)
    with panel(f"groups-{rows[0].key}", SMALL, "Accuracy by group") as (ax, done):
        for i, row in enumerate(rows):
            at = np.arange(len(shown)) + (i - (len(rows) - 1) / 2) * width
            mean, sd = np.array([(row.columns[name].mean, row.columns[name].sd) for name in shown]).T
            with mine(ax, row, [f"{row.name} · {name} {row.columns[name]}" for name in shown]):
                ax.bar(at, mean, width * 0.9, color=colour(row, every))
                whiskers(ax, at, mean, sd)
        size = rows[0].sizes
        ax.set_xticks(range(len(shown)), [f"{g} ({size[g]})" if g in size else g for g in shown])
        ax.tick_params(axis="x", length=0)
        _percent(ax)
    reading = (
        "Test accuracy over the classes of each group (their number in brackets); whiskers are ± one sd over "
        "seeds. What a method does for the tail shows under few, what it costs under many."
    )
    return Figure("groups", "Who gains, who pays", reading, (done(),))


def ranked(rows: Sequence[Row]) -> Figure:
    """Accuracy of many, medium, few and all as marks on a line per row, the best on top."""
    best = sorted(rows, key=lambda row: -np.nan_to_num(row.columns["all"].mean))
    shown = [name for name in SHARES if any(row.columns[name].n for row in rows)]
    highest = max(row.columns[name].mean for row in rows for name in shown if row.columns[name].n)
    with panel(f"ranked-{rows[0].key}", (WIDE[0], 0.7 + 0.19 * len(rows)), "Accuracy by group") as (ax, done):
        for y, row in enumerate(best):
            known = [row.columns[name] for name in shown]
            mean = np.array([each.mean for each in known])
            text = " · ".join(f"{name} {each}" for name, each in zip(shown, known, strict=True))
            with mine(ax, row, f"{row.name} · {text}"):
                ax.plot([np.nanmin(mean), np.nanmax(mean)], [y, y], color=GRID, lw=2.5, zorder=1)
                for name, each in zip(shown, known, strict=True):
                    ink, mark = (SHADES[name], "o") if name in SHADES else (INK, "D")
                    ax.plot([each.mean], [y], mark, ms=5 if name in SHADES else 4, color=ink, mew=0, ls="", zorder=3)
                    if name == "all" and each.n > 1:
                        ax.plot([each.mean - each.sd, each.mean + each.sd], [y, y], color=INK, lw=1, zorder=2)
                ax.text(-0.01, y, row.name, transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=9)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks([])
        ax.set_xlim(0, 10 * np.ceil(highest / 10) + 1)
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("test accuracy (%)")
    reading = "A line per recipe, the best over all on top; marks are means over seeds, the bar at all is ± one sd."
    scale = [(f"var(--{name})" if name in SHADES else "var(--ink)", name) for name in shown]
    return Figure("groups", "Who gains, who pays", reading, (done(),), wide=True, legend=False, scale=tuple(scale))


def per_class(rows: Sequence[Row], every: Sequence[Row]) -> Figure:
    """Accuracy of every class, ordered by training count."""
    known = classes(rows[0].runs[0])
    names, order, n = known.names, known.order, len(known.order)
    rows = [row for row in rows if len(classes(row.runs[0]).order) == n]
    bins = np.array_split(order, min(n, BINS)) if n > 2 * BINS else [np.array([c]) for c in order]
    at = np.array([np.mean(b) for b in np.array_split(np.arange(n), len(bins))])
    size = WIDE if n <= MANY_CLASSES else (WIDE[0], 3.5)
    with panel(f"classes-{rows[0].key}", size, "Accuracy per class") as (ax, done):
        width = 0.82 / len(rows)
        for i, row in enumerate(rows):
            found = 100 * _per_class(row)  # [runs, C]
            found = np.stack([mean_of(found[:, b], axis=1) for b in bins], axis=1)  # [runs, bins]
            mean = mean_of(found, axis=0)
            sd = found.std(axis=0, ddof=1) if len(found) > 1 else np.full(len(bins), np.nan)
            ink = colour(row, every)
            if n <= MANY_CLASSES:
                x = at + (i - (len(rows) - 1) / 2) * width
                told = [f"{row.name} · {names[c]} {Estimate.of(v)}" for c, v in zip(order, found.T, strict=True)]
                with mine(ax, row, told):
                    ax.bar(x, mean, width * 0.9, color=ink)
                    whiskers(ax, x, mean, sd)
            else:
                x = at + (i - (len(rows) - 1) / 2) * 0.6 / len(rows)
                mark = MARKERS[every.index(row) % len(MARKERS)]
                with mine(ax, row):
                    ax.vlines(x, mean - np.nan_to_num(sd), mean + np.nan_to_num(sd), color=ink, alpha=0.3, lw=0.8)
                    ax.plot(x, running(mean), dash_of(row, every), color=ink, lw=1.8)
                with mine(
                    ax,
                    row,
                    [names[b[0]] if len(b) == 1 else f"{len(b)} classes" for b in bins] if len(rows) == 1 else "",
                ):
                    ax.plot(x, mean, mark, color=ink, ms=2.4, alpha=0.65, mew=0, ls="")
        _class_axis(ax, known)
        _name_groups(ax, known)
        _percent(ax)
    reading = "Mean test accuracy of every class, the most frequent first; whiskers are ± one sd over seeds."
    if n > MANY_CLASSES:
        marks = "classes" if len(bins) == n else f"means of about {n // BINS} neighbouring classes"
        reading += f" Marks are {marks}, lines their running mean."
    return Figure("classes", "Accuracy, class by class", reading, (done(),), wide=True)


def _per_class(row: Row) -> np.ndarray:
    """Accuracy of every class in every finished run, [runs, C]; NaN for a class without test images."""
    return np.array([run.scores["scores"]["per_class"] for run in row.runs if run.scores], dtype=float)


def _shades(known: Classes) -> list[str]:
    """The shade of every class's group, by falling count."""
    return [
        SHADES[next((name for name in GROUPS if name in known.groups and known.groups[name][c]), "medium")]
        for c in known.order
    ]


def _name_groups(ax: "Axes", known: Classes) -> None:
    """The groups' names over the classes that are in them, with thin lines between."""
    for name in filter(known.groups.__contains__, GROUPS):
        ranks = np.flatnonzero(known.groups[name][known.order])
        over = ax.get_xaxis_transform()
        ax.text(ranks.mean(), 1.02, name, transform=over, ha="center", fontsize=9, color=MUTED)
        if ranks[0]:
            ax.axvline(ranks[0] - 0.5, color=MUTED, lw=0.8, ls=":")


def _class_axis(ax: "Axes", known: Classes) -> None:
    names, order = known.names, known.order
    if len(order) > MANY_CLASSES:
        ax.set_xlabel("class, most frequent first")
    else:
        shown = [names[c] if len(names[c]) <= 14 else names[c][:13] + "…" for c in order]
        turned = max(map(len, shown)) * len(shown) > 60
        angle: dict[str, Any] = {"rotation": 35, "ha": "right"} if turned else {}
        ax.set_xticks(range(len(order)), shown, **angle)
        ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.7, len(order) - 0.3)


def _percent(ax: "Axes") -> None:
    ax.set_ylim(0, 104)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel("test accuracy (%)")
