"""Keeps what is small of finished runs under `results/`, and writes the tables of `results/README.md` from it.

python results/collect.py RUNS...   adds runs;   python results/collect.py   writes the tables anew
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from flattail.report import markdown
from flattail.report.tables import by_data, summary, terms
from flattail.runs import ENV, LOG, RECIPE, SCORES, find

HERE = Path(__file__).parent
KEPT = (RECIPE, LOG, SCORES, ENV)


def keep(folders: list[Path]) -> None:
    """Copy the small files of finished runs."""
    for run in find(folders):
        if run.finished:
            there = HERE / run.label / str(run.seed)
            there.mkdir(parents=True, exist_ok=True)
            for name in KEPT:
                shutil.copy(run.path / name, there / name)


def page() -> str:
    """The tables of everything that is kept, and what their terms did."""
    runs = find([HERE])
    lines = [(HERE / "about.md").read_text().rstrip(), "", markdown(runs).replace("### ", "## ").rstrip(), ""]
    for data, rows in by_data(summary(runs)).items():
        lines += [f"## What the terms did: {data}", "", "| | term | ‖e‖/‖w‖ | gap, last epoch | active |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for row in rows:
            for line in terms(row):
                active = f"{100 * line.active:.0f} %"
                lines.append(f"| {row.name} | {line.term} | {line.radius:.3g} | {line.gap} | {active} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    keep(parser.parse_args().runs)
    (HERE / "README.md").write_text(page())
