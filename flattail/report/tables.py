"""What the runs say in numbers: mean ± sd over seeds, paired differences, and what differs between rows.

Runs are averaged only if their recipes agree in everything but the seed. The sd is the sample's (n - 1); a
paired difference is the mean d over n common seeds, its 95 % interval d ± t(0.975, n - 1) sd / sqrt(n).
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..runs import Run

GROUPS = ("many", "medium", "few")
SHARES = (*GROUPS, "all")  # accuracies in percent
OTHERS = ("balanced", "worst", "gmean", "ece", "nll")  # percent, but nll in nats
SOUND = (1e-4, 0.5)  # below it a perturbation is vacuous, above it the neighbourhood is not local


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; printed as `71.2 ± 0.4`, with – for what cannot be known."""

    mean: float  # NaN if no seed has a value
    sd: float  # sample standard deviation; NaN for a single value
    n: int  # seeds that have a value
    digits: int = 1  # decimals printed

    @staticmethod
    def of(values: Iterable[float | None], digits: int = 1) -> "Estimate":
        """The estimate from one value per seed; None and NaN are left out."""
        known = np.array([v for v in values if v is not None and not math.isnan(v)], dtype=float)
        mean = float(known.mean()) if len(known) else math.nan
        return Estimate(mean, float(known.std(ddof=1)) if len(known) > 1 else math.nan, len(known), digits)

    def __str__(self) -> str:
        if not self.n:
            return "–"
        sd = f"{self.sd:.{self.digits}f}" if self.n > 1 else "–"
        return f"{self.mean:.{self.digits}f} ± {sd}"


@dataclass(frozen=True)
class Difference:
    """A row minus the baseline over their common seeds, in percentage points, with its 95 % t interval."""

    mean: float  # NaN without a common seed
    low: float  # NaN for fewer than two pairs
    high: float  # NaN for fewer than two pairs
    n: int  # common seeds

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    @property
    def interval(self) -> str:
        """The interval as `[-0.3, 2.1]`; – for fewer than two pairs."""
        return f"[{_signed(self.low)}, {_signed(self.high)}]" if self.n > 1 else "–"

    def __str__(self) -> str:
        if not self.n:
            return "–"
        return _signed(self.mean) + (f" {self.interval}" if self.n > 1 else "")


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
    differences: Mapping[str, Difference]  # to the baseline, by the names of SHARES; empty for the baseline
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

    @property
    def verdict(self) -> str:
        """A remark where the radius is out of the sound range."""
        if self.radius < SOUND[0]:
            return "vacuous: the perturbation is too small to matter"
        return "very large: not a neighbourhood any more" if self.radius > SOUND[1] else ""


# ---- rows --------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Run], *, baseline: str | None = None) -> list[Row]:
    """One row per recipe, data set by data set, the baseline of each data set first.

    The baseline is the row named (by its label or name); else the first one trained without any displacement;
    else the first. Raises ValueError for a baseline that is not there, and for the same run given twice.
    """
    by_key: dict[str, list[Run]] = {}
    for run in runs:
        by_key.setdefault(run.key, []).append(run)
    titles = {_text(run.recipe["data"]): run.scores["data"] for run in runs if run.scores}
    rows = _named([_row(group, titles) for group in by_key.values()])
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
    """What every term of the row's method did, from the logs of its finished (else of all) runs."""
    logs = [run.rows for run in row.runs or row.unfinished]
    names = dict.fromkeys(name for log in logs for line in log for name in line.get("terms", {}))
    lines = []
    for name in names:
        seen = [[line["terms"][name] for line in log if name in line.get("terms", {})] for log in logs]
        last = [next((t for t in reversed(log) if t["radius"] is not None), None) for log in seen]
        lines.append(
            TermLine(
                row.name,
                name,
                active=float(np.mean([t["active"] for log in seen for t in log])),
                radius=Estimate.of(t["radius"] for t in last if t).mean,
                gap=Estimate.of((t["gap"] for t in last if t), digits=4),
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


# ---- what must be said beside the numbers ------------------------------------------------------------------


def notes(rows: Sequence[Row]) -> list[str]:
    """Footnotes for the rows of one data set: the protocol, and everything that differs between rows."""
    said = ["Accuracy in percent on the test set, mean ± sample sd over n seeds; – is for what is not known."]
    if len(rows) > 1:
        said.append(
            f"Δ: mean difference to {rows[0].name} over common seeds, in points, with its 95 % t interval "
            "(two pairs or more); marked where the interval leaves out zero, without correction for many rows."
        )
    same, differing = [], []
    for what, pick in FACTS.items():
        found = _differing(rows, pick)
        if len(found) == 1:
            same.append(f"{what} {next(iter(found))}")
        elif found:
            each = "; ".join(f"{text}: {', '.join(names)}" for text, names in found.items())
            differing.append(f"Rows differ in {what} — {each}.")
    for row in rows:
        for run in row.unfinished:
            at = f"{len(run.rows)} of {run.epochs} epochs"
            differing.append(f"Unfinished, left out of every number: {row.name}, seed {run.seed} ({at}).")
    return [*said, f"The same for all rows: {'; '.join(same)}.", *differing]


def warnings(rows: Sequence[Row]) -> list[str]:
    """The warnings that the runs recorded, each once, with the seeds that have it."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        for run in row.runs:
            for text in dict.fromkeys((run.scores or {}).get("warnings", [])):
                seeds.setdefault((row.name, text), []).append(run.seed)
    return [f"{name} (seed {', '.join(map(str, found))}): {text}" for (name, text), found in seeds.items()]


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
        data=str(titles.get(_text(data)) or _spelled(data)),
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
    found = [best["all"] for run in runs if (best := (run.scores or {}).get("best_on_test"))]
    return {"best on test": Estimate.of(100 * v for v in found)} if found else {}


def value(run: Run, name: str) -> float | None:
    """One score of a finished run, as a fraction; None if the run has none."""
    scores = run.scores["scores"] if run.scores else {}
    return scores.get("groups", {}).get(name) if name in GROUPS else scores.get(name)


def _compared(rows: list[Row], baseline: str | None) -> list[Row]:
    named = [row for row in rows if baseline in (row.name, row.label)]
    plain = [row for row in rows if row.runs and not displaced(row)]
    first = (named or plain or rows)[0]
    compared = [{c: _difference(row, first, c) for c in SHARES} for row in rows]
    rest = [replace(row, differences=d) for row, d in zip(rows, compared, strict=True) if row is not first]
    return [first, *rest]


def displaced(row: Row) -> bool:
    """Whether any term was ever looked at from a displaced place."""
    lines = [line for run in row.every for line in run.rows]
    return any(t["radius"] or t["gap"] for line in lines for t in line.get("terms", {}).values())


def _difference(row: Row, base: Row, name: str) -> Difference:
    from scipy import stats

    theirs = {run.seed: value(run, name) for run in base.runs}
    pairs = [(value(run, name), theirs.get(run.seed)) for run in row.runs]
    gains = np.array([100 * (a - b) for a, b in pairs if a is not None and b is not None])
    n = len(gains)
    if n < 2:
        return Difference(float(gains[0]) if n else math.nan, math.nan, math.nan, n)
    half = float(stats.t.ppf(0.975, n - 1) * gains.std(ddof=1) / math.sqrt(n))
    return Difference(float(gains.mean()), float(gains.mean()) - half, float(gains.mean()) + half, n)


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
    differ = [name for name in names if len({_text(tree.get(name)) for tree in trees.values()}) > 1]
    shown = [f"{name.rpartition('.')[2]} {trees[row.key].get(name, '–')}" for name in differ[:3]]
    return ", ".join(shown) + (", …" if len(differ) > 3 else "")


def flat(tree: Any, place: str = "") -> dict[str, Any]:
    """The leaves of a recipe by their dotted place, as in `stages.0.method.rho`."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        items = list(enumerate(tree))
    else:
        return {place: tree}
    return {k: v for name, inner in items for k, v in flat(inner, f"{place}.{name}".lstrip(".")).items()}


def _differing(rows: Sequence[Row], pick: Any) -> dict[str, list[str]]:
    """Value -> the names of the rows that have it; runs without one are left out."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for run in row.every:
            said = pick(run)
            if said is not None and row.name not in found.setdefault(str(said), []):
                found[str(said)].append(row.name)
    return found


def _score(name: str) -> Callable[[Run], Any]:
    return lambda run: run.scores[name] if run.scores else None


def _sizes(run: Run) -> str | None:
    sizes = run.scores["scores"]["sizes"] if run.scores else {}
    return ", ".join(f"{name} ({size})" for name, size in sizes.items()) or None


def _spelled(value: Any) -> str:
    """`{name: x, a: 1}` as `x (a 1)`."""
    if not isinstance(value, Mapping):
        return str(value)
    rest = ", ".join(f"{k} {inner}" for k, inner in value.items() if k != "name" and inner is not None)
    return str(value.get("name", "")) + (f" ({rest})" if rest else "")


def _signed(number: float) -> str:
    return f"{number:+.1f}".replace("-", "−")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


FACTS: dict[str, Callable[[Run], Any]] = {  # what a footnote states when all rows agree, and names when not
    "classes per group": _sizes,
    "data fingerprint": _score("fingerprint"),
    "data": lambda run: _spelled(run.recipe["data"]),
    "model": lambda run: _spelled(run.recipe["model"]),
    "epochs": lambda run: run.epochs,
    "selected epoch": _score("selection"),
    "device": lambda run: run.env.get("device"),
    "dtype": lambda run: run.env.get("dtype"),
    "torch": lambda run: run.env.get("versions", {}).get("torch"),
}
