"""The protocol of a hundred epochs: its table, what SAM adds to each scheme, and the figure of both."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from measures import GROUPS, accuracy, cells, marked, paired, spread

from flattail.recipe import read, shipped
from flattail.runs import Run

LONG = "cifar10-lt-16px"
LONGS = {LONG: "CIFAR-10-LT", "cifar100-lt-16px": "CIFAR-100-LT"}  # folders; the rows of each stand in one table
STYLE = {"svg.hashsalt": "flattail", "svg.fonttype": "none", "font.size": 9}
ORDER = (
    "ce", "ce-sam", "ce-drw", "ce-drw-sam", "ldam-drw", "ldam-drw-sam", "vs", "vs-sam", "imbsam", "ssesam",
    "ce-classes", "ccsam", "ccsam-2", "ccsam-strong", "focalsam", "ce-mixup", "mislas", "gcl", "crt", "ccsam-crt",
)  # fmt: skip
THEIRS = {  # our row -> the recipe there, where its name differs
    "ccsam": "ccsam-stage1", "ccsam-2": "ccsam", "imbsam": "r34-ce-imbsam", "ssesam": "r34-ce-ssesam",
}  # fmt: skip
WITHOUT = {  # our row -> the same without its climb, or without its second stage
    "ce-sam": "ce", "ce-drw-sam": "ce-drw", "ldam-drw-sam": "ldam-drw", "vs-sam": "vs", "imbsam": "ce", "ssesam": "ce",
    "focalsam": "ce", "ccsam": "ce-classes", "ccsam-2": "ccsam", "ccsam-crt": "ccsam", "mislas": "ce-mixup",
    "crt": "ce",
}  # fmt: skip
BEST = (
    "Last epoch; best epoch on test is what choosing by the test set would have reported, of the runs that were "
    "watched, and never ours."
)
SEEDS = (
    "Mean ± sample sd over n seeds, percent. Δ: mean paired difference over common seeds with its 95 % t interval, "
    "which takes two seeds; in bold where it leaves out zero, without correction for many rows."
)


def by_row(runs: Sequence[Run], where: str = LONG) -> dict[str, dict[int, Run]]:
    """The runs of a protocol, second stages too: name of the row -> seed -> run, in the order of the table."""
    found: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        folder, _, name = run.label.rpartition("/")
        if folder in (where, f"{where}-2"):
            found[name][run.seed] = run
    return {
        name: found[name] for name in sorted(found, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    }


def published(where: str, name: str) -> str:
    """The number that the paper gives for its own protocol, with its source."""
    return cited(f"{where.replace('16px', '100')}/{THEIRS.get(name, name)}")[1]


def cited(label: str) -> tuple[float | None, str]:
    """The accuracy that is published for a shipped recipe, and the same with its source; None and – without any."""
    path = shipped() / f"{label}.yaml"
    expect = read(path).expect if path.exists() else None
    if expect is None or expect.accuracy is None:
        return None, "–"
    return expect.accuracy, f"{expect.accuracy:g} ({expect.source})"


def title(seeds: dict[int, Run]) -> str:
    """Of a row."""
    return str(next(iter(seeds.values())).recipe["title"])


def long_table(rows: dict[str, dict[int, Run]], where: str) -> list[str]:
    """The table of all rows, and that of pairs."""
    if "ce" not in rows:
        return []
    best: dict[str, list[float]] = {
        name: [100 * r.scores["best_on_test"]["all"] for r in seeds.values() if r.scores and "best_on_test" in r.scores]
        for name, seeds in rows.items()
    }
    heads = [*GROUPS, "best epoch on test", "n", "Δ all to CE", "published, 200 epochs at 32 px"]
    out = [
        f"## {where}: a hundred epochs", "", f"| | {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)} --- |",
    ]  # fmt: skip
    for name, seeds in rows.items():
        delta = "" if name == "ce" else marked(paired(seeds, rows["ce"], "all"))
        watched = spread(best[name]) + (f" (n = {len(best[name])})" if 0 < len(best[name]) < len(seeds) else "")
        said = [watched, str(len(seeds)), delta, published(where, name)]
        out.append(f"| {title(seeds)} ({name}) | {' | '.join([*cells(seeds.values()), *said])} |")
    sizes = ", ".join(f"{group} {size(rows, group)}" for group in GROUPS[:-1])
    out += [
        "", *wrapped(f"{SEEDS} {BEST} Classes by frequency: {sizes}; all is the mean over classes."), "",
        "**What the climb, or the second stage, adds**", "",
        f"| points over the same without it | {' | '.join(GROUPS)} | n |", f"| --- |{' ---: |' * (len(GROUPS) + 1)}",
    ]  # fmt: skip
    for name, seeds in rows.items():
        if plain := rows.get(WITHOUT.get(name, "")):
            found = [paired(seeds, plain, group) for group in GROUPS]
            out.append(f"| {title(seeds)} | {' | '.join(map(marked, found))} | {found[0].n} |")
    return [*out, "", *first_stages(rows)]


def first_stages(rows: dict[str, dict[int, Run]]) -> list[str]:
    """Where the rows of two stages in one run stood before the second one, which trains the classifier alone."""
    out = []
    for name, seeds in rows.items():
        ends = [end for run in seeds.values() if (end := end_of_first(run))]
        if ends:
            said = " | ".join(spread([100 * end["balanced" if g == "all" else g] for end in ends]) for g in GROUPS)
            out.append(f"| {title(seeds)} ({name}) | {said} | {len(ends)} |")
    if not out:
        return []
    heads = [f"| the end of the first stage | {' | '.join(GROUPS)} | n |", f"| --- |{' ---: |' * (len(GROUPS) + 1)}"]
    return ["**At the end of the first stage, before the classifier is trained further**", "", *heads, *out, ""]


def end_of_first(run: Run) -> dict[str, float] | None:
    """The watched scores at the end of a first stage that a stage of the head alone follows in the same run."""
    if [stage["train"] for stage in run.recipe["stages"]] != ["all", "head"]:
        return None
    rows = [row for row in run.rows if row["stage"] == 0]
    return rows[-1].get("test") if rows else None


def wrapped(text: str) -> list[str]:
    """Prose as the pages have it."""
    return textwrap.wrap(text, 138, break_on_hyphens=False)


def figure(rows: dict[str, dict[int, Run]], path: Path) -> None:
    """Accuracy of many, medium and few for every row, a dot for each mean and a bar for the sd over seeds."""
    with mpl.rc_context(STYLE):
        drawing = Figure(figsize=(6.5, 0.3 * len(rows) + 0.9), layout="constrained")
        ax = drawing.add_subplot()
        marks: dict[str, Any] = {"many": ("#5b8ff9", "o"), "medium": ("#a0a0a0", "s"), "few": ("#e8684a", "D")}
        for place, seeds in enumerate(rows.values()):
            for group, (colour, mark) in marks.items():
                values = [accuracy(run, group) for run in seeds.values()]
                bar = stdev(values) if len(values) > 1 else 0
                ax.errorbar(mean(values), place, xerr=bar, fmt=mark, color=colour, ms=4, lw=1.2)
        for group, (colour, mark) in marks.items():
            ax.plot([], [], mark, color=colour, ms=4, label=f"{group} ({size(rows, group)} classes)")
        ax.set_yticks(range(len(rows)), [f"{title(seeds)}  n = {len(seeds)}" for seeds in rows.values()])
        ax.invert_yaxis()
        ax.set_xlabel("test accuracy, percent")
        ax.grid(axis="x", alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        drawing.legend(loc="outside upper center", ncols=3, frameon=False)
        save(drawing, path)


def save(drawing: Figure, path: Path) -> None:
    """As SVG, the same bytes each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, metadata={"Date": None, "Creator": None})


def size(rows: dict[str, dict[int, Run]], group: str) -> int:
    """How many classes a group has."""
    (run, *_) = next(iter(rows.values())).values()
    assert run.scores is not None
    return int(run.scores["scores"]["sizes"][group])
