"""The published protocols at their full length: our numbers beside the published ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

from longer import cited, wrapped
from measures import GROUPS, accuracy, cells, spread

from flattail.report.estimates import signed
from flattail.runs import Run

FULL = ("cifar10-lt-100", "cifar100-lt-100")  # folders of the papers' recipes, at imbalance 100

SAID = (
    "Mean ± sample sd over n seeds, percent, last epoch; beside it the best of the epochs that were watched on test. "
    "Published numbers mostly are the best epoch on test: the recipes say whose."
)


def full_length(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of the papers' recipes, by label."""
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.label.rpartition("/")[0] in FULL:
            found[run.label].append(run)
    return found


def full_lines(runs: Sequence[Run]) -> list[str]:
    """The table of them, the last epoch and the best on test beside what is published."""
    heads = [*GROUPS, "best epoch on test", "n", "published", "all − published"]
    out = ["## The published protocols at full length", "", f"| | {' | '.join(heads)} |"]
    out.append(f"| --- |{' ---: |' * 6} --- | ---: |")
    found = full_length(runs)
    for label, seeds in found.items():
        watched = [[row["test"]["all"] for row in run.rows if "test" in row] for run in seeds]
        best = [100 * max(each) for each in watched if each]
        published, theirs = cited(label)
        gap = "–" if published is None else signed(mean(accuracy(run, "all") for run in seeds) - published)
        name = f"{seeds[0].recipe['title']} ({label})"
        out.append(f"| {name} | {' | '.join(cells(seeds))} | {spread(best)} | {len(seeds)} | {theirs} | {gap} |")
    return [*out, "", *wrapped(SAID), ""] if found else []
