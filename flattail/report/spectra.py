"""The spectral density of every class's Hessian: small panels with shared axes.

p(u) = mean over probes of sum_j tau_j² N(u; asinh(theta_j / unit), width²),   u = asinh(lambda / unit)
"""

import math
from collections.abc import Sequence

import numpy as np

from .geometry_tables import number
from .measured import Measured
from .panels import GRID, INK, MUTED, TINY, Figure, asinh_ticks, colour, dash_of, mine, panel
from .tables import Row

Found = Sequence[tuple[Row, Measured]]
WIDTH = 0.012  # of the smoothing Gaussian, as a share of the axis
FLOOR, MOST = 1e-7, 20  # the lowest density drawn; the most classes that get a panel of their own


def densities(found: Found, rows: Sequence[Row]) -> list[Figure]:
    """The spectral density of every class and group: small panels with shared axes, a line per method."""
    names = _shown(found)
    every = np.concatenate([_known(m, i)[0] for _, m in found for name in names if (i := _at(m, name)) is not None])
    unit = max(float(np.median([abs(e) for _, m in found for e in m.mean("lambda_min")])) / 3, 1e-12)
    ends = np.arcsinh(np.array([every.min(), every.max()]) / unit)
    low, high = ends + np.array([-0.06, 0.06]) * np.ptp(ends)
    low = min(low, -0.3)  # zero is always there
    grid, width = np.linspace(low, high, 600), WIDTH * (high - low)
    drawn = {
        (row.key, name): _density(m, i, grid, unit, width)
        for row, m in found
        for name in names
        if (i := _at(m, name)) is not None
    }
    top = max(float(values.max()) for values in drawn.values())
    panels = []
    for name in names:
        title = next(f"{m.shown[i]}{_n(m, i)}" for _, m in found if (i := _at(m, name)) is not None)
        with panel(f"density-{rows[0].key}-{name}", TINY, f"Spectral density of {title}") as (ax, done):
            ax.axvspan(low, 0, color=GRID, alpha=0.55, lw=0)
            ax.axvline(0, color=MUTED, lw=0.8)
            for row, _ in found:
                if (values := drawn.get((row.key, name))) is not None:
                    with mine(ax, row):
                        ax.plot(grid, np.maximum(values, FLOOR), dash_of(row, rows), color=colour(row, rows), lw=1.2)
            ax.set_yscale("log")
            ax.set_ylim(FLOOR, 3 * top)
            ax.set_yticks([1e-6, 1e-3, 1], ["1e-6", "0.001", "1"])
            ax.minorticks_off()
            ax.set_xlim(low, high)
            ticks = asinh_ticks(unit * math.sinh(low), unit * math.sinh(high), unit)
            ax.set_xticks(np.arcsinh(np.array(ticks) / unit), [number(t) for t in ticks])
            ax.set_title(title, loc="left", fontsize=9, color=INK)
        panels.append(done())
    left_out = " Of many classes, the three most frequent and the three rarest." if len(_all(found)) > MOST else ""
    reading = (
        "Where the eigenvalues of the Hessian of each class's mean loss lie (across, spread like asinh so that both "
        f"signs show) and how many (up, logarithmic, per unit of the axis); negative curvature is shaded.{left_out} "
        f"Ritz values and their masses, smoothed by a Gaussian of {100 * WIDTH:.1f} % of the axis. All panels share "
        "both axes: compare how far the lines reach to the left of zero in rare classes (last) and frequent ones."
    )
    return [Figure("spectra", "Spectral density, class by class", reading, tuple(panels), columns=5)]


# ---- details -----------------------------------------------------------------------------------------------


def _all(found: Found) -> list[str]:
    return list(dict.fromkeys(m.names[i] for _, m in found for i in m.classes))


def _shown(found: Found) -> list[str]:
    """The classes that get a panel, the most frequent first, and the groups."""
    classes = _all(found)
    classes = classes if len(classes) <= MOST else [*classes[:3], *classes[-3:]]
    return [*classes, *dict.fromkeys(g for _, m in found for g in m.groups)]


def _at(m: Measured, name: str) -> int | None:
    return m.names.index(name) if name in m.names else None


def _n(m: Measured, i: int) -> str:
    return f" · {m.counts[i]:.0f}" if np.isfinite(m.counts[i]) else ""


def _known(m: Measured, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and masses of all runs and probes, together of mass 1."""
    nodes, masses = (np.concatenate([np.ravel(a[key][i]) for a in m.arrays]) for key in ("nodes", "masses"))
    kept = np.isfinite(nodes) & np.isfinite(masses)
    return nodes[kept], masses[kept] / masses[kept].sum()


def _density(m: Measured, i: int, grid: np.ndarray, unit: float, width: float) -> np.ndarray:
    """The density on a grid `[G]` of asinh(λ / unit), per unit of it."""
    nodes, masses = _known(m, i)
    bumps = np.exp(-0.5 * ((grid[:, None] - np.arcsinh(nodes / unit)) / width) ** 2)
    return bumps @ masses / (width * math.sqrt(2 * math.pi))
