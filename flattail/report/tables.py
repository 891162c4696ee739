"""What the runs say in numbers: a row per recipe with means over seeds and differences to a baseline.

Runs are averaged only if their recipes agree in everything but the seed, and compared only if they share a protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..runs import Run
from .estimates import Difference, Estimate, difference
from .facts import flat, shared, spelled, text

GROUPS = ("many", "medium", "few")
SHARES = (*GROUPS, "all")  # accuracies in percent
OTHERS = ("balanced", "worst", "gmean", "ece", "nll")  # percent, but nll in nats


@dataclass(frozen=True)
class Row:
    """One recipe: its finished runs, and what they average to."""

    name: str  # the title, made unique
    label: str  # the recipe's path
    key: str  # the recipe's hash, without the seed
    data: str  # the title of the data set
    runs: tuple[Run, ...]  # finished, by seed
    unfinished: tuple[Run, ...]  # left out of every number
    columns: Mapping[str, Estimate]  # percent, by the names of SHARES and OTHERS
    differences: Mapping[str, Difference]  # to the baseline, by the names of SHARES; empty for it and other protocols
    sizes: Mapping[str, int]  # classes per group
    expect: Mapping[str, Any] | None  # the published number: accuracy (percent), source, status

    @property
    def n(self) -> int:
        """How many seeds the numbers average."""
        return len(self.runs)

    @property
    def every(self) -> tuple[Run, ...]:
        """Finished and unfinished runs."""
        return self.runs + self.unfinished


@dataclass(frozen=True)
class TermLine:
    """What one term of a row's method did: means over seeds."""

    row: str  # the name of the row
    term: str  # the name of the term
    active: float  # share of steps in which it was there, over all epochs
    radius: float  # mean ‖e‖/‖w‖ in the last epoch that has one; NaN if it was never displaced
    gap: Estimate  # its sharpness in that epoch
    remark: str = ""  # what the training had to say of the radius in that epoch


# ---- rows --------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Run], *, baseline: str | None = None) -> list[Row]:
    """One row per recipe, data set by data set, the baseline of each data set first.

    The baseline is the row named (by its label or name); else, of those trained without any displacement, the one
    with unweighted cross-entropy whose recipe is nearest to all others, or the first; else the first of all. Raises
    ValueError for a baseline that is not there, and for the same run given twice.
    """
    by_key: dict[str, list[Run]] = {}
    for run in runs:
        by_key.setdefault(run.key, []).append(run)
    titles = {text(run.recipe["data"]): run.scores["data"] for run in runs if run.scores}
    rows = [_row(group, titles) for group in by_key.values()]
    rows = [row for same in by_data(rows).values() for row in _named(same)]
    if baseline and baseline not in {name for row in rows for name in (row.name, row.label)}:
        raise ValueError(f"no run is named {baseline!r}: choose from {', '.join(row.label for row in rows)}")
    return [
        row
        for data in dict.fromkeys(row.data for row in rows)
        for row in _compared([row for row in rows if row.data == data], baseline)
    ]


def by_data(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each data set, in order."""
    names = dict.fromkeys(row.data for row in rows)
    return {data: [row for row in rows if row.data == data] for data in names}


def terms(row: Row) -> list[TermLine]:
    """What every term of the row's method did, from the logs of its finished (else of all) runs.

    Where a term has ended or not begun, as that of the head after SSE-SAM's switch, its stage goes on without it.
    """
    logs = [run.rows for run in row.runs or row.unfinished]
    names = dict.fromkeys(name for log in logs for line in log for name in line.get("terms", {}))
    lines = []
    for name in names:
        seen = [[line["terms"][name] for line in log if name in line.get("terms", {})] for log in logs]
        stages = [{line["stage"] for line in log if name in line.get("terms", {})} for log in logs]
        whole = sum(line["stage"] in there for log, there in zip(logs, stages, strict=True) for line in log)
        last = [next((t for t in reversed(log) if t["radius"] is not None), None) for log in seen]
        lines.append(
            TermLine(
                row.name,
                name,
                active=sum(t["active"] for log in seen for t in log) / whole,
                radius=Estimate.of(t["radius"] for t in last if t).mean,
                gap=Estimate.of((t["gap"] for t in last if t), digits=4),
                remark=next((t["remark"] for t in last if t and "remark" in t), ""),
            )
        )
    return lines


def series(row: Row, pick: Any) -> np.ndarray:
    """`pick(line)` of every epoch, [runs, epochs], NaN where there is none; of finished runs if any are."""
    logs = [run.rows for run in row.runs or row.unfinished]
    length = max((line["epoch"] + 1 for log in logs for line in log), default=0)
    values = np.full((len(logs), length), np.nan)
    for run, log in enumerate(logs):
        for line in log:
            value = pick(line)
            values[run, line["epoch"]] = np.nan if value is None else value
    return values


# ---- details -----------------------------------------------------------------------------------------------


def _row(group: list[Run], titles: Mapping[str, str]) -> Row:
    seeds: dict[int, Run] = {}
    for run in sorted(group, key=lambda run: run.seed):
        if run.seed in seeds:
            both = f"{seeds[run.seed].path} and {run.path}"
            raise ValueError(f"{both} are the same recipe and seed: give one of them")
        seeds[run.seed] = run
    done = tuple(run for run in seeds.values() if run.scores)
    first = next(iter(seeds.values()))
    data = first.recipe["data"]
    return Row(
        name=str(first.recipe.get("title") or first.label),
        label=first.label,
        key=first.key,
        data=str(titles.get(text(data)) or spelled(data)),
        runs=done,
        unfinished=tuple(run for run in seeds.values() if not run.scores),
        columns={name: _column(done, name) for name in (*SHARES, *OTHERS)} | _best(done),
        differences={},
        sizes=done[0].scores["scores"]["sizes"] if done and done[0].scores else {},
        expect=first.recipe.get("expect"),
    )


def _column(runs: Sequence[Run], name: str) -> Estimate:
    if name == "nll":
        return Estimate.of((value(run, name) for run in runs), digits=3)
    return Estimate.of(100 * v for run in runs if (v := value(run, name)) is not None)


def _best(runs: Sequence[Run]) -> dict[str, Estimate]:
    """The best epoch on test beside the last one, where a run knows of both."""
    best, last = [], []
    for run in runs:
        scores = run.scores or {}
        chosen, watched = scores.get("selection") == "best-on-test", scores.get("best_on_test")
        if watched or chosen:
            best.append(watched["all"] if watched else value(run, "all"))
        if chosen and run.rows:
            last.append(run.rows[-1].get("test", {}).get("all", run.rows[-1].get("score") if _level(run) else None))
    columns = {"best on test": best, "last epoch": last}
    known = {name: [100 * v for v in values if v is not None] for name, values in columns.items()}
    return {name: Estimate.of(values) for name, values in known.items() if values}


def _level(run: Run) -> bool:
    """Whether the mean over classes, by which an epoch is chosen, is the accuracy over images as well."""
    images, classes = value(run, "all"), value(run, "balanced")
    return images is not None and classes is not None and abs(images - classes) < 1e-9


def value(run: Run, name: str) -> float | None:
    """One score of a finished run, as a fraction; None if the run has none."""
    scores = run.scores["scores"] if run.scores else {}
    return scores.get("groups", {}).get(name) if name in GROUPS else scores.get(name)


def _compared(rows: list[Row], baseline: str | None) -> list[Row]:
    named = [row for row in rows if baseline in (row.name, row.label)]
    plain = [row for row in rows if row.runs and not displaced(row)]
    leaves = {row.key: {*map(text, flat(row.every[0].recipe).items())} for row in rows}
    ordinary = sorted(
        (row for row in plain if _ordinary(row)),
        key=lambda row: sum(len(leaves[row.key] ^ each) for each in leaves.values()),
    )
    first = (named or ordinary or plain or rows)[0]
    return [first, *(replace(row, differences=_differences(row, first)) for row in rows if row is not first)]


def _ordinary(row: Row) -> bool:
    losses = [stage.get("loss") for stage in row.every[0].recipe["stages"]]
    return all(isinstance(each, Mapping) and each.get("name") == "ce" and not each.get("weights") for each in losses)


def _differences(row: Row, base: Row) -> dict[str, Difference]:
    if not shared(row.every, base.every):
        return {}
    theirs = {run.seed: run for run in base.runs}
    common = [(run, theirs[run.seed]) for run in row.runs if run.seed in theirs and shared([run], [theirs[run.seed]])]
    return {name: difference((_points(a, name), _points(b, name)) for a, b in common) for name in SHARES}


def _points(run: Run, name: str) -> float | None:
    return None if (share := value(run, name)) is None else 100 * share


def displaced(row: Row) -> bool:
    """Whether any term was ever looked at from a displaced place."""
    lines = [line for run in row.every for line in run.rows]
    return any(t["radius"] or t["gap"] for line in lines for t in line.get("terms", {}).values())


def _named(rows: list[Row]) -> list[Row]:
    """Rows that share a name get what tells them apart: the label, else the settings that differ."""
    for tell in (lambda row, _: row.label, lambda row, same: _settings(row, same), lambda row, _: row.key):
        for name in {row.name for row in rows}:
            same = [row for row in rows if row.name == name]
            names = [f"{name} ({tell(row, same)})" for row in same]
            if len(same) > 1 and len(set(names)) > 1:
                renamed = {row.key: new for row, new in zip(same, names, strict=True)}
                rows = [replace(row, name=renamed.get(row.key, row.name)) for row in rows]
    return rows


def _settings(row: Row, same: Sequence[Row]) -> str:
    trees = {other.key: flat(other.every[0].recipe) for other in same}
    names = sorted({name for tree in trees.values() for name in tree})
    differ = [name for name in names if len({text(tree.get(name)) for tree in trees.values()}) > 1]
    shown = [f"{name.rpartition('.')[2]} {trees[row.key].get(name, '–')}" for name in differ[:3]]
    return ", ".join(shown) + (", …" if len(differ) > 3 else "")
