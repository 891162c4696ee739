"""The figures of a training: how long the tail is, who gains, class by class, over the epochs."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .estimates import Estimate
from .panels import (
    DASHES,
    GRID,
    INK,
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
    spans_decades,
    whiskers,
)  # fmt: skip
from .tables import GROUPS, SHARES, Row, series, terms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY_CLASSES, BINS, TERMS = 20, 100, 5  # beyond: lines over rank, means of neighbours, one line for all
MANY_ROWS = 12  # beyond: a line per row instead of bars side by side


def figures(rows: Sequence[Row]) -> list[Figure]:
    """Every figure that the rows of one data set have data for."""
    finished = [row for row in rows if row.runs]
    made = [curves(rows), gaps(rows)]
    if finished:
        crowd = len(finished) > MANY_ROWS
        each = [] if crowd and len(_classes(finished[0])[0]) <= MANY_CLASSES else [per_class(finished, rows)]
        first = [ranked(finished), class_counts(finished[0], WIDE)] if crowd else [groups(finished, rows)]
        made = [*first, *([] if crowd else [class_counts(finished[0], SMALL)]), *each, *made]
    return [figure for figure in made if figure]


# ---- figures -----------------------------------------------------------------------------------------------


def class_counts(row: Row, size: tuple[float, float]) -> Figure:
    """Training images per class, most frequent first."""
    counts, names, order = _classes(row)
    counts, ranks = counts[order], np.arange(len(order))
    with panel(f"counts-{row.key}", size, "Training images per class") as (ax, done):
        few_classes = len(counts) <= MANY_CLASSES
        if len(counts) <= 4 * BINS:
            bars = ax.bar(ranks, counts, 0.8 if few_classes else 1.0, color=[SHADES[g] for g in _group_of(row)])
            for bar, c, count in zip(bars, order, counts, strict=True):
                bar.set_gid(f"bar::{names[c]} · {count:,} training images")
        else:
            ax.fill_between(ranks, counts, step="mid", color=SHADES["medium"], lw=0)
        if counts.max() > 10 * max(counts.min(), 1):
            ax.set_yscale("log")
            ax.set_ylim(max(0.6, 0.5 * counts.min()), 1.6 * counts.max())
            plain_log(ax.yaxis)
        ax.set_ylabel("training images")
        _class_axis(ax, names, order)
        if few_classes:
            for rank, count in enumerate(counts):
                ax.annotate(f"{count}", (rank, count), (0, 2), textcoords="offset points", ha="center", fontsize=7.5)
        _name_groups(ax, row)
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
                ax.text(-0.01, y, row.name, transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=8)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_yticks([])
        ax.set_xlim(0, 101)
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("test accuracy (%)")
    reading = "A line per recipe, the best over all on top; marks are means over seeds, the bar at all is ± one sd."
    scale = [(f"var(--{name})" if name in SHADES else "var(--ink)", name) for name in shown]
    return Figure("groups", "Who gains, who pays", reading, (done(),), wide=True, legend=False, scale=tuple(scale))


def per_class(rows: Sequence[Row], every: Sequence[Row]) -> Figure:
    """Accuracy of every class, ordered by training count."""
    _, names, order = _classes(rows[0])
    n = len(order)
    rows = [row for row in rows if len(_classes(row)[0]) == n]
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
        _class_axis(ax, names, order)
        _name_groups(ax, rows[0])
        _percent(ax)
    reading = "Mean test accuracy of every class, the most frequent first; whiskers are ± one sd over seeds."
    if n > MANY_CLASSES:
        marks = "classes" if len(bins) == n else f"means of about {n // BINS} neighbouring classes"
        reading += f" Marks are {marks}, lines their running mean."
    return Figure("classes", "Accuracy, class by class", reading, (done(),), wide=True)


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
    panels, size = [], SMALL if len(found) <= MANY_ROWS else (3.1, 2.2)
    for row, paths in found:
        with panel(f"gaps-{row.key}", size, f"Sharpness gaps of {row.name}", row) as (ax, done):
            ax.axhline(0, color=MUTED, lw=0.8)
            if len(paths) <= TERMS:
                for name, path in paths.items():
                    _band(ax, row, rows, path, dash=style[name], label=name)
                ax.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best", handlelength=2.6)
            else:
                means = np.stack([mean_of(path, axis=0) for path in paths.values()])  # [terms, epochs]
                low, mid, high = np.nanpercentile(means, [10, 50, 90], axis=0)
                x, label = np.arange(1, means.shape[1] + 1), f"median of {len(paths)} terms, 10–90 %"
                with mine(ax, row, f"{row.name}, {label}"):
                    ax.fill_between(x, low, high, color=colour(row, rows), alpha=0.2, lw=0)
                    ax.plot(x, mid, color=colour(row, rows), lw=1.6, label=label)
                ax.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
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
    columns = 0 if size == SMALL else 4
    return Figure("gaps", "Sharpness, term by term", reading, tuple(panels), legend=False, columns=columns)


# ---- details -----------------------------------------------------------------------------------------------


def _classes(row: Row) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Counts [C], names, and the classes by falling count."""
    scores = row.runs[0].scores or {}
    counts = np.array(scores["counts"])
    return counts, [str(name) for name in scores["names"]], np.argsort(-counts, kind="stable")


def _per_class(row: Row) -> np.ndarray:
    """Accuracy of every class in every finished run, [runs, C]; NaN for a class without test images."""
    return np.array([run.scores["scores"]["per_class"] for run in row.runs if run.scores], dtype=float)


def _group_of(row: Row) -> list[str]:
    """The group of every class by falling count; groups are sets of counts, so they follow each other."""
    sizes = [(name, row.sizes.get(name, 0)) for name in GROUPS]
    named = [name for name, size in sizes for _ in range(size)]
    total = len(_classes(row)[0])
    return named if len(named) == total else ["medium"] * total


def _name_groups(ax: "Axes", row: Row) -> None:
    """The groups' names over the classes that are in them, with thin lines between."""
    start = 0
    sizes = [(name, row.sizes.get(name, 0)) for name in GROUPS]
    if sum(size for _, size in sizes) != len(_classes(row)[0]):
        return
    for name, size in sizes:
        if size:
            middle, over = start + (size - 1) / 2, ax.get_xaxis_transform()
            ax.text(middle, 1.02, name, transform=over, ha="center", fontsize=8, color=MUTED)
            if start:
                ax.axvline(start - 0.5, color=MUTED, lw=0.8, ls=":")
        start += size


def _class_axis(ax: "Axes", names: Sequence[str], order: np.ndarray) -> None:
    if len(order) > MANY_CLASSES:
        ax.set_xlabel("class, most frequent first")
    else:
        shown = [names[c] if len(names[c]) <= 14 else names[c][:13] + "…" for c in order]
        turned = max(map(len, shown)) * len(shown) > 60
        angle: dict[str, Any] = {"rotation": 35, "ha": "right"} if turned else {}
        ax.set_xticks(range(len(order)), shown, **angle)
        ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.7, len(order) - 0.3)


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


def _percent(ax: "Axes") -> None:
    ax.set_ylim(0, 104)
    ax.set_yticks(range(0, 101, 20))
    ax.set_ylabel("test accuracy (%)")
