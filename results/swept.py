"""One setting varied in the protocol of a hundred epochs, and the loss around four methods: tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
import numpy as np
from longer import LONG, STYLE, by_row, save, title, wrapped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measures import accuracy, cells
from spectra import HESSIAN

from flattail.runs import Run

LINES = "lines.json"  # what is kept of the analysis
COLOURS = {"many": "#5b8ff9", "medium": "#a0a0a0", "few": "#e8684a", "all": "#303030"}
SWEPT: Mapping[str, tuple[str, str, Mapping[float, str]]] = {  # folder's ending -> axis, place, rows of the main table
    "rho": ("ρ of SAM, in CE + DRW", "stages.*.method.rho", {0: "ce-drw", 0.1: "ce-drw-sam"}),
    "switch": ("γ of SSE-SAM: the share of training after which the head stays at w", "stages.0.method.switch",
               {0.7: "ssesam"}),
    "eta": ("η of SSE-SAM: classes with fewer images are tail", "stages.0.method.eta", {1000: "ssesam"}),
}  # fmt: skip
AROUND = ("ce", "ldam-drw", "mislas", "gcl")  # the rows of CC-SAM's figure 1


def swept(runs: Sequence[Run], name: str) -> dict[float, list[Run]]:
    """The runs of a setting, by its value; those of the main table among them."""
    rows, found = by_row(runs), dict[float, list[Run]]()
    for run in runs:
        folder, _, value = run.label.rpartition("/")
        if folder == f"{LONG}-{name}":
            found.setdefault(float(value), []).append(run)
    if found:
        found |= {value: [*rows[row].values()] for value, row in SWEPT[name][2].items() if row in rows}
    return dict(sorted(found.items()))


def lowest(run: Run) -> float | None:
    """λ_min of the few group, if it was analysed."""
    if not (run.path / HESSIAN).exists():
        return None
    kept = json.loads((run.path / HESSIAN).read_text())
    return float(kept["lambda_min"][kept["name"].index("few")])


def swept_lines(runs: Sequence[Run]) -> list[str]:
    """A table for every setting that was varied."""
    out: list[str] = []
    for name, (said, place, _) in SWEPT.items():
        if not (found := swept(runs, name)):
            continue
        out += [f"## {said}", "", "| value | many | medium | few | all | λ_min of few | n |"]
        out += ["| ---: |" + " ---: |" * 6]
        for value, each in found.items():
            lows = [low for run in each if (low := lowest(run)) is not None]
            minimum = (f"{mean(lows):.2f}" + (f" ± {stdev(lows):.2f}" if len(lows) > 1 else "")) if lows else "–"
            out.append(f"| {value:g} | {' | '.join(cells(each))} | {minimum.replace('-', '−')} | {len(each)} |")
        out += ["", f"`--set '{place}=VALUE'`; test accuracy, shown and not chosen by.", ""]
        out += [f"![{said}]({LONG}-{name}.svg)", ""]
    return out


def draw_swept(runs: Sequence[Run], folder: Path) -> None:
    """Accuracy, and λ_min of the few where it is known, against each setting that was varied."""
    for name, (said, _, _) in SWEPT.items():
        if not (found := swept(runs, name)):
            continue
        lows = {value: [low for run in each if (low := lowest(run)) is not None] for value, each in found.items()}
        panels = 2 if sum(map(bool, lows.values())) > 1 else 1
        with mpl.rc_context(STYLE):
            drawing = Figure(figsize=(4 * panels, 3), layout="constrained")
            left, *right = drawing.subplots(1, panels, squeeze=False)[0]
            for group, colour in COLOURS.items():
                points(left, {v: [accuracy(run, group) for run in each] for v, each in found.items()}, colour, group)
            left.set(xlabel=said.partition(":")[0], ylabel="test accuracy, percent")
            drawing.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
            for ax in right:
                points(ax, {v: each for v, each in lows.items() if each}, COLOURS["few"], "few")
                ax.set(xlabel=said.partition(":")[0], ylabel="λ_min of the few")
                ax.set_ylim(1.15 * min(low for each in lows.values() for low in each), 0)
            save(drawing, folder / f"{LONG}-{name}.svg")


def points(ax: Axes, values: Mapping[float, Sequence[float]], colour: str, label: str) -> None:
    """Means and sds at evenly spaced places, since values grow by factors."""
    bars = [stdev(v) if len(v) > 1 else 0 for v in values.values()]
    middles = [mean(v) for v in values.values()]
    ax.errorbar(range(len(values)), middles, bars, fmt="o-", color=colour, ms=4, lw=1, label=label)
    ax.set_xticks(range(len(values)), [f"{v:g}" for v in values])
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def chosen_lines(folder: Path) -> list[str]:
    """What was chosen on images kept out of training, sweep by sweep: `<name>.json` of `keep_sweep`."""
    out: list[str] = []
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text())
        names = [place.rpartition(".")[2] for place in kept["over"]]
        out += [f"## Chosen on validation images: {', '.join(names)} of `{kept['recipe']}`", ""]
        out += [f"| {' | '.join(names)} | score | standard error | |", f"| {'---: | ' * (len(names) + 2)}--- |"]
        for trial in kept["trials"]:
            numbers = [f"{100 * trial[name]:.1f}" for name in ("score", "error")]
            out.append(f"| {' | '.join([*trial['point'].values(), *numbers])} | {trial['said']} |")
        out += ["", *wrapped(kept["history"]), ""]
    return out


def around(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The kept lines of the rows of CC-SAM's figure 1: title -> arrays, of one seed each."""
    rows = by_row(runs)
    found = {}
    for name in AROUND:
        kept = [run for run in rows.get(name, {}).values() if (run.path / LINES).exists()]
        if kept:
            found[title(rows[name])] = json.loads((kept[0].path / LINES).read_text())
    return found


def around_lines(runs: Sequence[Run], figure: str) -> list[str]:
    """What the figure of the loss around four methods shows."""
    if not (found := around(runs)):
        return []
    said = (
        "Training cross-entropy under Gaussian noise on the classifier, mean and sd over directions, of "
        f"{', '.join(found)}; one seed each: `flattail analyse RUN landscape`. The logits of cosine heads are "
        "taken as they are, without their loss's scale, and so their loss can be neither small nor large."
    )
    heading = "## Loss around the classifier, as in figure 1 of CC-SAM"
    return [heading, "", *wrapped(said), "", f"![Loss against the norm ratio of noise]({figure})", ""]


def draw_around(runs: Sequence[Run], path: Path) -> bool:
    """Loss against the norm ratio of noise on the classifier, far and near; whether there was anything to draw."""
    if not (found := around(runs)):
        return False
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(8, 3), layout="constrained")
        for ax, (scale, said) in zip(drawing.subplots(1, 2), (("far", "(a) far"), ("near", "(b) near")), strict=True):
            for i, (row, kept) in enumerate(found.items()):
                ratio, middle, sd = (np.array(kept[scale][key]) for key in ("ratio", "mean", "sd"))
                ax.plot(ratio, middle, color=f"C{i}", lw=1.4, label=row)
                ax.fill_between(ratio, middle - sd, middle + sd, color=f"C{i}", alpha=0.15, lw=0)
            ax.set(xlabel="‖ε‖/‖θ‖, noise on the classifier", ylabel="training cross-entropy", title=said)
            ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
        save(drawing, path)
    return True
