"""The geometry of the loss in numbers: a line per class and group of one recipe, a line per recipe of all."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .measured import Measured, amplification_error, directions, random_error
from .tables import SHARES, Row


class Cell(NamedTuple):
    """A cell of a table; `small` is a second line that a terminal does without."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page; folded ones wait behind their title."""

    title: str
    reading: str
    columns: Sequence[str]
    lines: Sequence[tuple[Row | str, Sequence[Cell]]]  # what each line is about, and its cells
    folded: bool = False
    groups: int = 0  # how many of the last lines are groups of the classes above: sorting leaves them there


# ---- one analysis, class by class: columns (the first names the line), and cells by entry ---------------------------

Lines = tuple[list[str], list[tuple[int, list[Cell]]]]


def hessian(m: Measured) -> Lines:
    """Both ends of the spectrum, their ratio, trace and mass below zero, with errors; whether Lanczos converged."""
    columns = ["class", "n", "λ max", "λ min", "|λ min/λ max|", "trace", "below 0 (%)", "|gradient|", "converged"]
    kinds = [("lambda_max", 1), ("lambda_min", 1), ("ratio", 1), ("trace", 1), ("negative_mass", 100)]
    values = [of(m, key, scale) for key, scale in kinds]
    done, single, slope = m.everywhere("converged"), m.everywhere("single"), of(m, "gradient_norm")
    lines = []
    for i in m.order:
        mark = "yes" if done[i] else "no"
        cells = [count(m.counts[i]), *(v[i] for v in values), slope[i]]
        lines.append((i, [*cells, Cell(mark + (", one image" if single[i] else ""))]))
    return columns, lines


def radius(m: Measured) -> Lines:
    """Gradient norm, characteristic radius, both bounds and the square-root term, for all weights and for the head."""
    columns, values = ["class", "n"], []
    for scope in ("all", "head"):
        titles = ["|g|", "ρ*", "bound (5)", "bound (7)", "√ (* vacuous)"]
        columns += [f"{title} {scope}" for title in titles]
        keys = ("gradient_norm", "rho", "bound", "first_order", "square_root")
        values += [of(m, f"{key}_{scope}") for key in keys]
    lines = []
    for i in m.order:
        cells = [v[i] for v in values]
        for at, scope in ((4, "all"), (9, "head")):
            vacuous = not m.everywhere(f"says_something_{scope}")[i]
            cells[at] = Cell(cells[at].text + (" *" if vacuous else ""), cells[at].small)
        lines.append((i, [count(m.counts[i]), *cells]))
    return columns, lines


def sharpness(m: Measured) -> Lines:
    """The rise of the loss where the class's own climb leads, where everybody's leads, and in random directions."""
    columns = ["class", "n", "loss", "worst case", "everybody's climb", "random", "‖e‖/‖w‖"]
    values = [of(m, "loss"), of(m, "gap"), of(m, "common"), of(m, "random", error=random_error(m)), of(m, "radius")]
    return columns, [(i, [count(m.counts[i]), *(v[i] for v in values)]) for i in m.order]


def landscape(m: Measured) -> Lines:
    """The loss at the weights, and under noise of a few lengths, mean ± sd over directions (and seeds)."""
    near, far = (np.asarray(m.arrays[0][f"{reach}_ratio"]) for reach in ("near", "far"))
    places = [("near", len(near) // 2), ("near", len(near) - 1), ("far", len(far) // 2), ("far", len(far) - 1)]
    ratios = [(near if reach == "near" else far)[at] for reach, at in places]
    columns = ["class", "n", "loss", *(f"at ‖e‖/‖w‖ = {ratio:.3g}" for ratio in ratios)]
    here = directions(m, "near")[0]
    lines = []
    for i in m.order:
        cells = [Cell(number(float(here[i, 0])))]
        for reach, at in places:
            mean, sd = (values[i, at] for values in directions(m, reach))
            cells.append(Cell(plus_minus(float(mean), float(sd))))
        lines.append((i, [count(m.counts[i]), *cells]))
    return columns, lines


def escape(m: Measured) -> Lines:
    """λ min, and by how much each method's gradients move along its eigenvector: measured (and predicted)."""
    methods = [str(name) for name in m.arrays[0]["method"]][1:]
    columns = ["class", "n", "λ min", *methods]
    ends, measured_, predicted = of(m, "lambda_min"), m.mean("own_amplification"), m.mean("own_predicted")
    error = amplification_error(m, "own")
    lines = []
    for i in m.order:
        cells = []
        for k in range(1, len(methods) + 1):
            seen, foreseen = float(measured_[i, k]), number(float(predicted[i, k]))
            cells.append(Cell(f"{plus_minus(seen, float(error[i, k]))} ({foreseen})"))
        lines.append((i, [count(m.counts[i]), ends[i], *cells]))
    return columns, lines


LINES: dict[str, Callable[[Measured], Lines]] = {
    "hessian": hessian,
    "radius": radius,
    "sharpness": sharpness,
    "landscape": landscape,
    "escape": escape,
}


# ---- method by method ------------------------------------------------------------------------------------------------


def saddles(found: Sequence[tuple[Row, Measured]]) -> Table:
    """λ min and its ratio to λ max of many, medium, few and all, and whether the tail differs from the head."""
    shown = [g for g in SHARES if any(g in m.groups for _, m in found)]
    lines: list[tuple[Row | str, list[Cell]]] = []
    for row, m in found:
        ends, ratios, done = of(m, "lambda_min"), of(m, "ratio"), m.everywhere("converged")
        cells = []
        for g in shown:
            i = m.groups.get(g)
            mark = "" if i is None or done[i] else " *"
            cells.append(Cell("–") if i is None else Cell(ends[i].text + mark, ratios[i].text))
        lines.append((row, [*cells, tail_against_head(m)]))
    reading = (
        "λ min of the mean loss of each group, ± its error; below it |λ min/λ max|, which does not grow with the scale "
        "of the loss. Few against many: what differs by more than twice the error. A saddle also asks for a "
        "small gradient, which the tables by class show. * Not converged: the true λ min is more negative."
    )
    return Table("λ min, method by method", reading, ["recipe", *shown, "few against many"], lines)


def tail_against_head(m: Measured) -> Cell:
    """Whether λ min, and its ratio, of few differ from those of many by more than twice the error."""
    if not {"many", "few"} <= m.groups.keys():
        return Cell("–")
    few, many = m.groups["few"], m.groups["many"]
    texts = []
    for key, less, more in (
        ("lambda_min", "λ min more negative on few", "λ min less negative on few"),
        ("ratio", "smaller ratio on few", "larger ratio on few"),
    ):
        value, error = m.mean(key), m.error(key)
        change, noise = value[few] - value[many], math.hypot(error[few], error[many])
        what = "λ min" if key == "lambda_min" else "the ratio"
        if not math.isfinite(noise):
            texts.append(f"no error bar for {what}")
        elif abs(change) <= 2 * noise:
            texts.append(f"no clear difference of {what}")
        else:
            texts.append(less if change < 0 else more)
    return Cell(texts[0], texts[1])


def gaps(found: Sequence[tuple[Row, Measured]]) -> Table:
    """The worst-case and random rise of many, medium, few and all."""
    shown = [g for g in SHARES if any(g in m.groups for _, m in found)]
    lines: list[tuple[Row | str, list[Cell]]] = []
    for row, m in found:
        worst, random = of(m, "gap"), of(m, "random", error=random_error(m))
        cells = [Cell(worst[m.groups[g]].text, random[m.groups[g]].text) if g in m.groups else Cell("–") for g in shown]
        lines.append((row, cells))
    reading = "By how much the loss of each group rises along its own climb; below it in random directions."
    if len({str(m.asked["options"].get("method")) for _, m in found}) > 1:
        reading += " Each row climbs as its own method does: rows measured with different methods do not compare."
    return Table("The gap, method by method", reading, ["recipe", *shown], lines)


ACROSS: dict[str, Callable[[Sequence[tuple[Row, Measured]]], Table]] = {"hessian": saddles, "sharpness": gaps}


# ---- numbers ---------------------------------------------------------------------------------------------------------


def of(m: Measured, key: str, scale: float = 1, *, error: np.ndarray | None = None) -> list[Cell]:
    """The cells of one array `[T]`: value ± error, and below it where the error comes from."""
    value, whole = scale * m.mean(key), scale * (m.error(key) if error is None else error)
    parts = {"seeds": m.seeds(key), "samples": m.within(key, "samples"), "probes": m.within(key, "probes")}
    cells = []
    for i, (v, e) in enumerate(zip(value, whole, strict=True)):
        known = [f"{name} {number(float(scale * p[i]), 2)}" for name, p in parts.items() if np.isfinite(p[i])]
        cells.append(Cell(plus_minus(float(v), float(e)), ", ".join(known) if len(known) > 1 else ""))
    return cells


def plus_minus(value: float, error: float = math.nan) -> str:
    """`−0.70 ± 0.15`: the error with two digits up to 35, else with one, the value with as many decimals."""
    if not math.isfinite(value):
        return "–"
    if not math.isfinite(error) or error <= 0:
        return number(value)
    power = math.floor(math.log10(error))
    decimals = (1 if error <= 3.5 * 10.0**power else 0) - power
    digits = math.floor(math.log10(abs(value))) + 1 + decimals if value else 1
    if decimals > 5 or digits > 5 or max(abs(value), error) >= 1e5:
        return f"{number(value, min(max(digits, 1), 5))} ± {number(error, 2)}"
    decimals = max(decimals, 0)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}".replace("-", "−")


def number(value: float, digits: int = 3) -> str:
    """Three digits, of huge numbers two: 0.0123, 1.2e10."""
    if not math.isfinite(value):
        return "–"
    digits = min(digits, 2) if abs(value) >= 1e5 else digits
    return f"{value:.{digits}g}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-").replace("-", "−")


def count(n: float) -> Cell:
    """Training images; – where they are not known."""
    return Cell(f"{n:.0f}" if math.isfinite(n) else "–")
