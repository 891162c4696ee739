"""The class-wise Hessians of the protocol of a hundred epochs: head against tail, class by class, and the figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import matplotlib as mpl
from longer import STYLE, WITHOUT, by_row, save, title, wrapped
from matplotlib.figure import Figure
from measures import marked

from flattail.report.estimates import difference
from flattail.runs import Run

HESSIAN = "hessian.json"  # what is kept of the analysis
NUMBERS = {
    "lambda_min": "λ_min",
    "lambda_max": "λ_max",
    "trace": "trace",
    "ratio": "|λ_min/λ_max|",
    "gradient_norm": "‖∇L‖",
}
LINES = {  # row -> colour and line; one colour for a row and its climbs
    "ce": ("#5b8ff9", "-"), "ce-sam": ("#5b8ff9", "--"), "imbsam": ("#5b8ff9", ":"),
    "ce-drw": ("#e8684a", "-"), "ce-drw-sam": ("#e8684a", "--"),
    "ce-classes": ("#4c9f70", "-"), "ccsam": ("#4c9f70", "--"),
}  # fmt: skip
BARS = (
    "n is the number of seeds; ± is the standard deviation over them or, of a single seed, the standard error over "
    "samples."
)


class Spectrum(NamedTuple):
    """The kept Hessians of a row, one of each seed that was analysed."""

    title: str
    counts: list[int]  # training images of each class [C]
    seeds: dict[int, dict[str, Any]]  # arrays by number, in the order of `names`, of each seed

    @property
    def names(self) -> list[str]:
        """Of the classes (their numbers) and groups."""
        return next(iter(self.seeds.values()))["name"]

    def each(self, number: str, name: str) -> dict[int, float]:
        """A number by seed."""
        return {seed: found[number][found["name"].index(name)] for seed, found in self.seeds.items()}

    def of(self, number: str, name: str) -> tuple[float, float | None]:
        """A number's mean over seeds and their standard deviation; of one seed the error over samples, if known."""
        values = list(self.each(number, name).values())
        alone = next(iter(self.seeds.values())).get(f"{number}_samples")
        bar = stdev(values) if len(values) > 1 else alone[self.names.index(name)] if alone else None
        return mean(values), bar


def spectra(runs: Sequence[Run]) -> dict[str, Spectrum]:
    """Those of the rows that have some, in the order of the table."""
    found = {}
    for row, seeds in by_row(runs).items():
        kept = [run for run in seeds.values() if (run.path / HESSIAN).exists()]
        if kept and kept[0].scores is not None:
            each = {run.seed: json.loads((run.path / HESSIAN).read_text()) for run in kept}
            found[row] = Spectrum(title(seeds), kept[0].scores["counts"], each)
    return found


def head_and_tail(runs: Sequence[Run]) -> str:
    """Every number of the most and of the least frequent group, a row per recipe."""
    if not (found := spectra(runs)):
        return ""
    heads = [f"{said} {group}" for said in NUMBERS.values() for group in ("many", "few")]
    lines = [f"| | n | {' | '.join(heads).replace('|λ_min/λ_max|', 'ratio')} |", f"| --- |{' ---: |' * 11}"]
    for row in found.values():
        cells = [shown(*row.of(number, group)) for number in NUMBERS for group in ("many", "few")]
        lines.append(f"| {row.title} | {len(row.seeds)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *wrapped(f"{BARS} The ratio is |λ_min/λ_max|."), "", *changed(found)])


def changed(found: dict[str, Spectrum]) -> list[str]:
    """What a climb changes beside the same without it, seed by seed, where two seeds or more have both."""
    lines = []
    for name, plain in WITHOUT.items():
        ours, theirs = found.get(name), found.get(plain)
        common = sorted(ours.seeds.keys() & theirs.seeds.keys()) if ours and theirs else []
        if ours is None or theirs is None or len(common) < 2:
            continue
        cells = []
        for number in ("lambda_min", "lambda_max", "trace"):
            for group in ("many", "few"):
                a, b = ours.each(number, group), theirs.each(number, group)
                cells.append(marked(difference([(a[seed], b[seed]) for seed in common])))
        lines.append(f"| {ours.title} | {' | '.join(cells)} | {len(common)} |")
    heads = [
        f"{NUMBERS[number]} {group}" for number in ("lambda_min", "lambda_max", "trace") for group in ("many", "few")
    ]
    said = "Seed by seed, with half its 95 % t interval; in bold where that leaves out zero."
    head = [f"| beside the same without it | {' | '.join(heads)} | n |", f"| --- |{' ---: |' * 7}"]
    return [*head, *lines, "", said, ""] if lines else []


def class_by_class(runs: Sequence[Run]) -> list[str]:
    """A table per number: a row per recipe, a column per class and per group."""
    if not (found := spectra(runs)):
        return []
    first = next(iter(found.values()))
    names = first.names
    heads = [f"{name} ({first.counts[int(name)]:,})" if name.isdigit() else name for name in names]
    lines = [
        "## Class-wise Hessian",
        "",
        *wrapped(f"`flattail analyse RUN hessian`. {BARS} A class has its training images in brackets."),
        "",
    ]
    for number, said in NUMBERS.items():
        lines += [f"**{said}**", "", f"| | n | {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(names) + 1)}"]
        for row in found.values():
            cells = [shown(*row.of(number, name)) for name in names]
            lines.append(f"| {row.title} | {len(row.seeds)} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def shown(value: float, bar: float | None) -> str:
    """Both with as many digits as the value's size asks for."""
    digits = next((d for d, least in enumerate((100, 10, 1)) if abs(value) >= least), 3)
    return (f"{value:.{digits}f}" + ("" if bar is None else f" ± {bar:.{digits}f}")).replace("-", "−")


def draw_spectra(runs: Sequence[Run], path: Path) -> None:
    """Both ends of each class's Hessian against how many training images the class has."""
    found = spectra(runs)
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(8, 3.6), layout="constrained")
        axes = drawing.subplots(1, 2)
        for ax, number in zip(axes, ("lambda_min", "lambda_max"), strict=True):
            for row in filter(found.__contains__, LINES):
                colour, style = LINES[row]
                ends = [found[row].of(number, str(c)) for c in range(len(found[row].counts))]
                ax.errorbar(
                    found[row].counts, [value for value, _ in ends], [bar or 0 for _, bar in ends],
                    color=colour, ls=style, lw=1.2, marker="o", ms=3, elinewidth=0.6, label=found[row].title,
                )  # fmt: skip
            ax.set(xscale="log", xlabel="training images of the class", ylabel=NUMBERS[number])
            ax.invert_xaxis()
            ax.axhline(0, color="#a0a0a0", lw=0.6)
            ax.spines[["top", "right"]].set_visible(False)
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
        save(drawing, path)
