"""Figures of the landscape: the loss along lines of growing noise, and on planes with one colour scale for all."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .geometry_tables import number
from .measured import Measured, directions
from .panels import INK, TINY, Figure, colour, dash_of, mine, panel
from .tables import Row

Found = Sequence[tuple[Row, Measured]]
# cividis (Nuñez, Anderton, Renslow 2018), dark to light: even steps of lightness for every kind of colour vision
LEVELS = ("#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838")
MOST = 4  # classes shown where there is no group


def lines(found: Found, rows: Sequence[Row]) -> list[Figure]:
    """The loss over the norm ratio of noise: a panel per group, near and far, a line per method with its sd."""
    names, panels = _shown(found), []
    for reach in ("near", "far"):
        known = [(row, m, np.asarray(m.arrays[0][f"{reach}_ratio"]), *directions(m, reach)) for row, m in found]
        seen = [(mean[i], sd[i]) for _, m, _, mean, sd in known for g in names if (i := _at(m, g)) is not None]
        top = max(float(np.nanmax(mean)) for mean, _ in seen)
        reached = max(float(np.nanmax(mean + np.nan_to_num(sd))) for mean, sd in seen)
        for name in names:
            key, label = f"{reach}-{rows[0].key}-{name}", f"Loss of {name} over noise, {reach}"
            with panel(key, TINY, label) as (ax, done):
                for row, m, ratio, mean, sd in known:
                    if (i := _at(m, name)) is not None:
                        ink = colour(row, rows)
                        spread = np.nan_to_num(sd[i])
                        low = np.maximum(mean[i] - spread, 0)
                        with mine(ax, row):
                            ax.fill_between(ratio, low, mean[i] + spread, color=ink, alpha=0.18, lw=0)
                            ax.plot(ratio, mean[i], dash_of(row, rows), color=ink, lw=1.5)
                ax.set_ylim(0, 1.05 * min(reached, 1.6 * top))
                ax.set_xlim(0, max(float(ratio.max()) for _, _, ratio, _, _ in known))
                ax.set_title(f"{_name(found, name)}, {reach}", loc="left", fontsize=9, color=INK)
                ax.set_xlabel("‖noise‖ / ‖weights‖")
            panels.append(done())
    scopes = {str(m.asked["options"].get("scope", "head")) for _, m in found}
    moved = " and ".join({"all": "all weights", "head": "the head"}.get(s, s) for s in sorted(scopes))
    reading = (
        f"The loss under Gaussian noise on {moved}, of a length relative to these weights: the flatter the line, the "
        "flatter the valley. Means over directions (and seeds), bands ± one sd. All near panels share a scale, and all "
        "far ones."
    )
    return [Figure("lines", "Along lines of growing noise", reading, tuple(panels), columns=len(names))]


def planes(found: Found, rows: Sequence[Row]) -> list[Figure]:
    """The loss on a plane: contours per group and method, the same directions and one scale of colours."""
    names = _shown(found)
    surfaces = [
        (row, m, name, np.asarray(m.arrays[0]["plane_losses"][i], dtype=float))
        for row, m in found
        for name in names
        if (i := _at(m, name)) is not None
    ]
    every = np.concatenate([s[np.isfinite(s)] for *_, s in surfaces])
    low, high = np.percentile(every, [5, 95])
    bounds = np.geomspace(max(low, high / 1e4, 1e-12), max(high, 1e-11), len(LEVELS) - 1)
    bounds = np.array([float(f"{b:.1g}") for b in bounds])
    bounds = bounds if len(set(bounds)) == len(bounds) else np.geomspace(bounds[0], 1.01 * bounds[-1], len(bounds))
    edges = np.array([-np.inf, *bounds, np.inf])
    panels, through = [], False
    for row, m, name, surface in surfaces:
        x, y = (np.asarray(m.arrays[0][f"plane_{axis}"]) for axis in "xy")
        two = m.asked["options"].get("other") is not None
        through |= two
        key = f"plane-{row.key}-{name}"
        label = f"Loss of {name} on a plane, {row.name}"
        with panel(key, (TINY[0], TINY[0] * 1.06), label, row) as (ax, done):
            finite = np.nan_to_num(surface, nan=every.max(), posinf=every.max())
            shown = np.clip(finite, edges[1] / 2, edges[-2] * 2)
            inner = [edges[1] / 4, *bounds, edges[-2] * 4]
            ax.contourf(x, y, np.log(shown), levels=np.log(inner), colors=LEVELS)
            ax.plot([0, 1] if two else [0], [0, 0] if two else [0], "P", color="#ffffff", mec="#000000", ms=6, mew=0.6)
            ax.grid(False)
            ax.set_xticks([0, 1] if two else [x[0], 0, x[-1]], ["this", "other"] if two else None)
            ax.set_yticks([y[0], 0, y[-1]])
            ax.set_title(_title(row.name, _name(found, name)), loc="left", fontsize=9, color=INK)
        panels.append(done())
    between = [f"{number(a, 2)}–{number(b, 2)}" for a, b in pairwise(bounds)]
    texts = [f"below {number(bounds[0], 2)}", *between, f"above {number(bounds[-1], 2)}"]
    scale = tuple(zip(LEVELS, texts, strict=True))
    reading = (
        "The loss around the weights (cross) along two random directions, each filter's as long as the filter, the "
        "same for all groups; one scale of colours for all panels, a step of colour being a constant factor. A wide "
        "dark basin is flat; a basin that shrinks from many to few is a sharper tail."
    )
    if through:
        reading += " Planes with two crosses go through two trained models."
    if any(len(m.runs) > 1 for _, m in found):
        reading += " Of several seeds, the first is drawn."
    title = "On a plane, group by group"
    return [Figure("planes", title, reading, tuple(panels), legend=False, columns=len(names), scale=scale)]


def _shown(found: Found) -> list[str]:
    """The groups; without any, the most frequent and the rarest classes."""
    groups = list(dict.fromkeys(g for _, m in found for g in m.groups))
    if groups:
        return groups
    classes = [m.names[i] for _, m in found[:1] for i in m.classes]
    return classes if len(classes) <= MOST else [*classes[: MOST // 2], *classes[-MOST // 2 :]]


def _at(m: Measured, name: str) -> int | None:
    return m.names.index(name) if name in m.names else None


def _title(row: str, name: str) -> str:
    return f"{row if len(row) <= 22 else row[:21] + '…'} · {name}"


def _name(found: Found, name: str) -> str:
    return next(m.shown[i] for _, m in found if (i := _at(m, name)) is not None)
