"""Figures over class frequency: curvature, radii, sharpness and escape, a mark per class and a colour per method."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .geometry_tables import number
from .measured import Measured, amplification_error, random_error
from .panels import INK, MARKERS, MUTED, SMALL, Figure, asinh_ticks, colour, dash_of, mine, panel, plain_log
from .tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Sequence[tuple[Row, Measured]]
Pick = Callable[[Measured], tuple[np.ndarray, np.ndarray]]  # values `[T]` and their errors
MOST = 20  # classes; marks are smaller beyond


def extremes(found: Found, rows: Sequence[Row]) -> list[Figure]:
    """Both ends of the spectrum and their ratio over class frequency, with error bars."""
    hollow = {row.key: ~m.everywhere("converged") | m.everywhere("single") for row, m in found}
    panels = [
        over_frequency(f"{key}-{rows[0].key}", label, found, rows, _both(key), hollow=hollow)
        for key, label in (("lambda_min", "λ min"), ("lambda_max", "λ max"), ("ratio", "|λ min / λ max|"))
    ]
    reading = (
        "Each mark is a class, the rarest to the left. A tail at a saddle shows as λ min falling away from zero to the "
        "left; the ratio tells whether it does so by more than the loss as a whole gets steeper there (λ max). "
        "Whiskers: samples, probes and seeds in quadrature."
    )
    reading += _hollow(hollow, "Hollow marks did not converge, or have a single image.")
    return _figure("extremes", "Both ends of the spectrum over class frequency", reading, panels)


def radii(found: Found, rows: Sequence[Row]) -> list[Figure]:
    """Gradient norm, characteristic radius and bound over class frequency, for all weights and for the head."""
    panels = []
    for scope, name in (("all", "all weights"), ("head", "head")):
        hollow = {row.key: ~m.everywhere(f"says_something_{scope}") for row, m in found}
        for key, label in (("gradient_norm", "‖g‖"), ("rho", "ρ*"), ("bound", "bound")):
            bound = key == "bound"
            panels.append(
                over_frequency(
                    f"{key}-{scope}-{rows[0].key}",
                    f"{label}, {name}",
                    found,
                    rows,
                    _both(f"{key}_{scope}"),
                    hollow=hollow if bound else {},
                    also=_mean(f"first_order_{scope}") if bound else None,
                )
            )
    reading = (
        "Per class, the rarest to the left: the gradient of its loss, the radius ρ* that follows from it, and CC-SAM's "
        "bound on its test loss, measured at the rim of the ball (marks) and to first order (dotted). Hollow marks are "
        "vacuous: the square-root term of eq. 1 is not below 1, so the bound says nothing there."
    )
    return _figure("radii", "Gradient, characteristic radius and bound over class frequency", reading, panels)


def rises(found: Found, rows: Sequence[Row]) -> list[Figure]:
    """The rise of the loss of every class: worst case and random, over class frequency."""
    wanted: list[tuple[str, str, Pick]] = [
        ("gap", "worst case: own climb", _both("gap")),
        ("common", "everybody's climb", _both("common")),
        ("random", "random directions", lambda m: (m.mean("random"), random_error(m))),
    ]
    panels = [over_frequency(f"{key}-{rows[0].key}", label, found, rows, pick) for key, label, pick in wanted]
    reading = (
        "By how much the loss of each class rises where the method looks from, the rarest class to the left: higher is "
        "sharper. Random directions have the length of the class's own climb; whiskers are their spread, and seeds."
    )
    return _figure("rises", "Sharpness over class frequency", reading, panels)


def escapes(found: Found, rows: Sequence[Row]) -> list[Figure]:
    """Predicted and measured amplification along v over class frequency, a panel for each method compared."""
    figures = []
    for kind, whose in (("own", "the class's own batches"), ("mixed", "batches of all classes")):
        panels = []
        names = dict.fromkeys(str(n) for _, m in found for n in m.arrays[0]["method"][1:])
        for name in names:
            with_it = [(row, m) for row, m in found if name in m.arrays[0]["method"]]
            panels.append(
                over_frequency(
                    f"{kind}-{name}-{rows[0].key}",
                    name,
                    with_it,
                    rows,
                    _amplified(kind, name),
                    also=_foreseen(kind, name),
                    size=(3.1, 2.5),
                    log=True,
                    one=True,
                )
            )
        reading = (
            "The second moment of the gradient along the eigenvector v of each class's λ min, relative to the plain "
            f"gradient's, over {whose}: measured (marks) and as predicted to first order (dotted). Above the line "
            "at 1 the method steps further along v than plain descent does, longer gradients included; marks far from "
            "the dots say that the loss is not quadratic as far as the method looks."
        )
        title = f"Amplification along the escape direction, {whose}"
        figures += _figure(f"escape-{kind}", title, reading, panels)
    return figures


def over_frequency(
    key: str,
    label: str,
    found: Found,
    rows: Sequence[Row],
    pick: Pick,
    *,
    hollow: Mapping[str, np.ndarray] = {},
    also: Callable[[Measured], np.ndarray] | None = None,
    size: tuple[float, float] = (SMALL[0] * 0.8, SMALL[1] * 0.9),
    log: bool = False,
    one: bool = False,
) -> str | None:
    """One panel: a value `[T]` of every class ± its error over its training images, a colour per method.

    `hollow`: by the row's key, which entries `[T]` are drawn hollow. `also`: a second value, dotted. None where no
    count is known.
    """
    drawn = []
    for row, m in found:
        at = [i for i in m.classes if np.isfinite(m.counts[i])]
        value, error = (np.asarray(a)[at] for a in pick(m))
        if np.isfinite(value).any():
            drawn.append((row, m, at, value, error))
    if not drawn:
        return None
    with panel(key, size, f"{label} over class frequency") as (ax, done):
        seen = [np.concatenate([v, np.asarray(also(m))[at]]) if also else v for _, m, at, v, _ in drawn]
        _scale(ax, np.concatenate(seen), log=log)
        if one:
            ax.axhline(1, color=MUTED, lw=0.8)
        for k, (row, m, at, value, error) in enumerate(drawn):
            x = m.counts[at] * 1.035 ** (k - (len(drawn) - 1) / 2)
            ink, few = colour(row, rows), len(at) <= MOST
            spread = np.nan_to_num(error)
            if ax.get_yscale() == "log":  # as a factor: an error above the value does not reach to nothing
                spread = np.stack([value * spread / (value + spread), spread])
            empty = np.asarray(hollow.get(row.key, np.zeros(len(m.names), bool)))[at]
            style: dict[str, Any] = {"color": ink, "ms": 4.5 if few else 2.6, "mew": 1.1 if few else 0.6}
            mark = MARKERS[rows.index(row) % len(MARKERS)]
            with mine(ax, row):
                ax.errorbar(x, value, spread, fmt="none", ecolor=ink, elinewidth=0.9, alpha=0.6)
                ax.plot(x, value, dash_of(row, rows), color=ink, lw=0.9, alpha=0.5)
            for which, face in ((~empty, ink), (empty, "none")):
                told = [f"{row.name} · {m.shown[at[i]]} ({m.counts[at[i]]:.0f})" for i in np.flatnonzero(which)]
                with mine(ax, row, told):
                    ax.plot(x[which], value[which], mark, ls="", mfc=face, **style)
            if also:
                with mine(ax, row, f"{row.name}, predicted"):
                    ax.plot(x, np.asarray(also(m))[at], ":", color=ink, lw=1.3)
        ax.set_xscale("log")
        plain_log(ax.xaxis)
        ax.set_xlabel("training images of the class")
        ax.set_title(label, loc="left", fontsize=9.5, color=INK)
    return done()


# ---- details -----------------------------------------------------------------------------------------------


def _figure(key: str, title: str, reading: str, panels: Sequence[str | None]) -> list[Figure]:
    known = tuple(p for p in panels if p)
    return [Figure(key, title, reading, known, columns=3)] if known else []


def _hollow(hollow: Mapping[str, np.ndarray], text: str) -> str:
    return f" {text}" if any(h.any() for h in hollow.values()) else ""


def _scale(ax: "Axes", values: np.ndarray, *, log: bool) -> None:
    """A logarithmic axis where values are positive and far apart, an asinh one where their signs differ."""
    known = values[np.isfinite(values)]
    typical = float(np.median(np.abs(known))) or 1.0
    if known.min() > 0 and (log or known.max() > 12 * known.min()):
        ax.set_yscale("log")
        _few_decades(ax, float(known.min()), float(known.max()))
        return
    if np.abs(known).max() > 12 * typical:
        ax.set_yscale("asinh", linear_width=typical / 3)
        low, high = min(0.0, 1.4 * known.min()), max(0.0, 1.4 * known.max())
        ticks = asinh_ticks(low, high, typical / 3)
        ax.set_yticks(ticks, [number(t) for t in ticks])
        ax.yaxis.minorticks_off()
    ax.axhline(0, color=MUTED, lw=0.8)


def _few_decades(ax: "Axes", low: float, high: float) -> None:
    if high < 2000 * low:
        plain_log(ax.yaxis)
        return
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    step = max(1, math.ceil((last - first) / 5))
    ticks = [10.0**e for e in range(first, last + 1, step)]
    ax.set_yticks(ticks, [number(t) for t in ticks])
    ax.yaxis.minorticks_off()


def _both(key: str) -> Pick:
    return lambda m: (m.mean(key), m.error(key))


def _mean(key: str) -> Callable[[Measured], np.ndarray]:
    return lambda m: m.mean(key)


def _amplified(kind: str, name: str) -> Pick:
    return lambda m: (m.mean(f"{kind}_amplification")[:, _of(m, name)], amplification_error(m, kind)[:, _of(m, name)])


def _foreseen(kind: str, name: str) -> Callable[[Measured], np.ndarray]:
    return lambda m: m.mean(f"{kind}_predicted")[:, _of(m, name)]


def _of(m: Measured, name: str) -> int:
    return [str(n) for n in m.arrays[0]["method"]].index(name)
