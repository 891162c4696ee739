"""Keeps what is small of finished runs under `results/`, and writes from it every table and figure of results.

python results/collect.py RUNS...   adds runs;   python results/collect.py   writes the tables anew
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml

from flattail.recipe import from_tree, signed, to_tree
from flattail.report import markdown
from flattail.report.tables import by_data, summary, terms
from flattail.runs import ENV, LOG, RECIPE, SCORES, Run, find, write_json, write_text
from flattail.stage import clock
from flattail.sweep.chosen import Outcome
from flattail.sweep.ledger import SETTINGS, done
from flattail.sweep.settings import swept
from flattail.sweep.space import axis

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from full import full_lines  # noqa: E402
from longer import LONG, LONGS, WITHOUT, by_row, figure, long_table, title, wrapped  # noqa: E402
from measures import GROUPS, accuracy, average, cells, kept, marked, paired, passes  # noqa: E402
from spectra import HESSIAN, class_by_class, draw_spectra, head_and_tail  # noqa: E402
from swept import LINES, around_lines, chosen_lines, draw_around, draw_swept, swept_lines  # noqa: E402

KEPT = (RECIPE, LOG, SCORES, ENV)
QUICK = "cifar10-lt-quick"  # whose rows, and those of its second stages, stand in one table
ENDS = ("lambda_min", "lambda_max", "trace", "ratio", "loss", "gradient_norm")
CAVEAT = (
    "Forward (F) and backward (B) passes of the whole batch, on average over training. Seconds of training, mean over "
    "seeds, on one core (two for the full-length runs) of a machine that did other work as well: good for orders of "
    "magnitude only."
)
ACTED = (
    "‖e‖/‖w‖: how far a term looked, in lengths of the displaced weights (or features); gap: L(w + e) − L(w); active: "
    "share of the epochs in which it moved."
)
BARS = (
    "Accuracy in percent, mean ± sample sd over n seeds; Δ with half its 95 % t interval over the same seeds, without "
    "correction for so many rows. Ahead and behind are those whose interval leaves out zero; the others cannot be told "
    "from CE by these runs."
)
SHORT = (
    "a protocol that anyone can repeat on a laptop: 16 pixels, a small ResNet, 100 epochs. The papers "
    "train longer and larger: compare rows, not tables."
)
SPECTRA = HERE.parent / "docs" / "figures" / "spectra.svg"
PAGE, README = HERE.parent / "docs" / "analysis.md", HERE.parent / "README.md"
SWEEPS = HERE / "sweeps"
AROUND = HERE / f"{LONG}-around.svg"
BEGIN, END = "<!-- results/collect.py writes from here -->\n", "<!-- to here -->\n"


def keep(folders: list[Path], label: str | None) -> None:
    """Copy the small files of finished runs, and the numbers of their analyses."""
    for run in find(folders):
        if run.finished:
            there = HERE / (label or run.label) / str(run.seed)
            there.mkdir(parents=True, exist_ok=True)
            for name in filter(lambda name: (run.path / name).exists(), KEPT):  # a start alone leaves no log
                shutil.copy(run.path / name, there / name)
            write_text(there / RECIPE, signed(from_tree(yaml.safe_load(run.text))))  # as the present version spells it
            if (found := run.path / "analysis" / "hessian.npz").exists():
                with np.load(found) as file:
                    wanted = ("name", *(f"{k}{s}" for k in ENDS for s in ("", "_samples")))
                    plain = {k: file[k].tolist() for k in wanted if k in file.files}
                    plain["converged"] = bool(file["converged"].all())
                write_json(there / HESSIAN, plain)
            if (found := run.path / "analysis" / "landscape.npz").exists():
                with np.load(found) as file:
                    whole = file["name"].tolist().index("all")
                    ends = {"ratio": ..., "mean": whole, "sd": whole}
                    scales = {s: {k: file[f"{s}_{k}"][i].tolist() for k, i in ends.items()} for s in ("near", "far")}
                write_json(there / LINES, scales)


def keep_sweep(folder: Path) -> None:
    """Keep what came of a sweep, under the name of its recipe."""
    said = yaml.safe_load((folder / SETTINGS).read_text())
    axes = [axis(f"{place}={text}") for place, text in said["over"].items()]
    how = {name: said[name] for name in ("seeds", "validation", "score")}
    sweep = swept(from_tree(said["recipe"]), axes, trials=None, **how)
    outcome = Outcome.of(sweep, done(folder, sweep))
    trials = []
    for tried in outcome.tried:
        note = "chosen" if tried is outcome.best else "within one standard error" if tried in outcome.alike else ""
        if tried.score is not None:
            trials.append(
                {"point": tried.point, "score": tried.score.value, "error": tried.score.error, "said": note}
                | {"seconds": tried.seconds}
            )
    SWEEPS.mkdir(exist_ok=True)
    label = f"{folder.parent.name}/{folder.name.removesuffix('-sweep')}"
    came = {"recipe": label, "over": said["over"], "history": outcome.history(), "trials": trials}
    write_json(SWEEPS / f"{label.replace('/', '-')}.json", came)


def page() -> str:
    """The tables of everything that is kept, and what their terms did."""
    runs = kept()
    long = [run for run in runs if not run.label.startswith(QUICK)]
    small = [replace(r, recipe={**r.recipe, "expect": None}) for r in runs if r.label.startswith("digits")]
    said = [(HERE / "about.md").read_text().rstrip(), "", *full_lines(runs)]
    for where in LONGS:
        if rows := by_row(runs, where):
            said += [*long_table(rows, where), f"![Accuracy of many, medium and few, row by row]({where}.svg)", ""]
    said += [*chosen_lines(SWEEPS), *swept_lines(runs), *class_by_class(runs), *around_lines(runs, AROUND.name)]
    said += [markdown(small).replace("### ", "## ").rstrip(), ""] if small else []
    said += side_by_side([run for run in runs if run.label.startswith(QUICK)])
    for data, each in by_data(summary(long)).items():
        acted = [(row, line) for row in each for line in terms(row)]
        if not acted:
            continue
        said += [f"## What the terms did: {data}", "", "| | term | ‖e‖/‖w‖ | gap, last epoch | active |"]
        said += ["| --- | --- | --- | --- | --- |"]
        for row, line in acted:
            active = f"{100 * line.active:.0f} %"
            said.append(f"| {row.name} | {line.term} | {line.radius:.3g} | {line.gap} | {active} |")
        said += ["", *wrapped(ACTED), ""]
    return "\n".join([*said, *cost(long), ""])


def front() -> str:
    """The project's README with its tables of results written anew: the rows that have two seeds or more."""
    lines: list[str] = []
    if full := full_lines(kept()):
        lines += ["By a paper's own recipe, at its full length (200 epochs, ResNet-32, 32 pixels):", "", *full[2:]]
    lines += [*wrapped(f"{'All others in' if full else 'In'} {SHORT}"), ""]
    for where, data in LONGS.items():
        rows = {name: seeds for name, seeds in by_row(kept(), where).items() if len(seeds) > 1}
        if rows:
            lines += [f"| {data}, 16 px, 100 epochs | {' | '.join(GROUPS)} | seeds |", "| --- |" + " ---: |" * 5]
        for seeds in rows.values():
            lines.append(f"| {title(seeds)} | {' | '.join(cells(seeds.values()))} | {len(seeds)} |")
        lines += ["", *added(rows), "", f"![Accuracy by row](results/{where}.svg)", ""] if rows else []
    return between(README.read_text(), "\n".join(lines[:-1]))


def added(rows: dict[str, dict[int, Run]]) -> list[str]:
    """What SAM adds to each scheme that has both rows, in a sentence."""
    said = [
        f"{title(rows[plain])}: "
        + ", ".join(f"{group} {marked(paired(rows[name], rows[plain], group))}" for group in ("few", "all"))
        for name, plain in WITHOUT.items()
        if name.endswith("-sam") and {name, plain} <= rows.keys()
    ]
    if not said:
        return []
    return wrapped(f"What SAM (ρ = 0.1) adds, in points, seed by seed with 95 % intervals: {'; '.join(said)}.")


def side_by_side(runs: list[Run]) -> list[str]:
    """Every row of the short protocol beside plain cross-entropy, seed by seed, with what it costs."""
    by_label: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        by_label[run.label][run.seed] = run
    plain = by_label.pop(f"{QUICK}/ce", {})
    if not plain:
        return []
    lines = [
        f"## {QUICK}: every row beside CE",
        "",
        "| | many | medium | few | all | Δ all to CE | n | passes a step | seconds |",
    ]
    lines += [f"| --- |{' ---: |' * 6} --- | ---: |"]
    table = {f"{QUICK}/ce": plain} | dict(
        sorted(by_label.items(), key=lambda item: -mean(accuracy(r, "all") for r in item[1].values()))
    )
    ahead, behind = [], []
    for label, seeds in table.items():
        first = next(iter(seeds.values()))
        assert first.recipe is not None
        name = f"{first.recipe['title']} ({Path(label).name})" + (" ²" if label.startswith(f"{QUICK}-2/") else "")
        found = paired(seeds, plain, "all")
        delta = "–" if seeds is plain else marked(found)
        if found.clear:
            (ahead if found.mean > 0 else behind).append(first.recipe["title"])
        took = mean(run.env["seconds"] for run in seeds.values() if run.env)
        said = ", ".join(dict.fromkeys(asked(first.recipe)))
        lines.append(f"| {name} | {' | '.join(cells(seeds.values()))} | {delta} | {len(seeds)} | {said} | {took:.0f} |")
    said_of = [
        f"{where}: {', '.join(names) or 'nobody'}." for where, names in (("Ahead of CE", ahead), ("Behind it", behind))
    ]
    return [
        *lines,
        "",
        *wrapped(f"² A second stage; its seconds are beside those of the first. {CAVEAT} {BARS}"),
        "",
        *wrapped(" ".join(said_of)),
        "",
    ]


def cost(runs: list[Run]) -> list[str]:
    """What each recipe asks for: passes a step, stage by stage, and the seconds that it took."""
    lines = ["## Cost", "", "| | passes a step, by stage | seconds |", "| --- | --- | ---: |"]
    by_label: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.env and not run.label.startswith("digits"):
            by_label[run.label].append(run)
    for label, each in by_label.items():
        took = mean(run.env["seconds"] for run in each)
        lines.append(f"| {label} | {', '.join(asked(each[0].recipe))} | {took:.0f} |")
    return [*lines, "", *wrapped(CAVEAT)]


def asked(recipe: Mapping[str, Any]) -> list[str]:
    """Passes a step, stage by stage, on average over its epochs; none where nothing is trained."""
    stages, said = from_tree(recipe).stages, []
    for i, stage in enumerate(stages):
        begun, epochs = clock(stages, i)
        each = range(max(1, 40 // max(stage.epochs, 1)))  # steps that stand for an epoch's
        shares = tuple((begun + e) / epochs for e in range(stage.epochs) for _ in each)
        said.append(average(passes(json.dumps(to_tree(stage.method)), shares)) if shares else "none")
    return said


def docs() -> str:
    """The docs page with its tables written anew."""
    return between(PAGE.read_text(), head_and_tail(kept()))


def between(page: str, text: str) -> str:
    """A page with what stands between the markers replaced."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + text + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--label", help="keep them under this name, e.g. cifar10-lt-16px-rho/0.2")
    given = parser.parse_args()
    keep(given.runs, given.label)
    for settings in (path for folder in given.runs for path in folder.rglob(SETTINGS)):
        keep_sweep(settings.parent)
    kept.cache_clear()
    (HERE / "README.md").write_text(page())
    PAGE.write_text(docs())
    README.write_text(front())
    for protocol in LONGS:
        if found := by_row(kept(), protocol):
            figure(found, HERE / f"{protocol}.svg")
    draw_swept(kept(), HERE)
    draw_around(kept(), AROUND)
    draw_spectra(kept(), SPECTRA)
    for script in ("recipes/table.py", "docs/methods.py"):  # they quote what was measured
        subprocess.run([sys.executable, str(HERE.parent / script)], check=True)
