"""The report itself: one HTML file without anything outside it, or Markdown for a README."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runs import Run, write_text
from .calibration import calibration
from .classes import classes
from .confusion import Confusion, confusions
from .cost import bought, cost, duration, seconds
from .differences import Change, changes
from .estimates import Estimate, signed
from .figures import figures
from .gained import MEASURE
from .geometry import Part, geometry
from .geometry_tables import Table, number
from .notes import headline, notes, warnings
from .opened import opened
from .panels import COLOURS, MANY_CLASSES, MANY_ROWS, Figure, mean_of
from .swaps import Swap, swaps
from .tables import GROUPS, OTHERS, SHARES, Row, TermLine, by_data, summary, terms

TEMPLATE = "page.html.j2"
TITLES = {
    "balanced": "balanced",
    "worst": "worst class",
    "gmean": "G-mean",
    "ece": "ECE",
    "nll": "NLL",
    "last epoch": "last epoch",
    "best on test": "best epoch on test",
}
LINES = 5  # a row with more terms shows their median
MATRICES = 9  # confusion matrices that are not folded


@dataclass(frozen=True)
class Heat:
    """Accuracy of every class under every row, where rows are too many for bars."""

    names: Sequence[str]  # the most frequent class first
    lines: Sequence[tuple[Row, Sequence[float]]]


@dataclass(frozen=True)
class Section:
    """What the page shows of one data set."""

    data: str
    rows: Sequence[Row]
    headline: str  # who is ahead beyond noise
    heads: Mapping[str, str]  # column -> its heading, with the group's size where all rows agree
    others: Sequence[str]
    notes: Sequence[str]
    warnings: Sequence[str]
    terms: Sequence[TermLine]
    figures: Sequence[Figure]
    heat: Heat | None
    swaps: Sequence[Swap]
    confusions: Sequence[Confusion]
    reliability: Sequence[Figure]
    errors: Sequence[Table]
    opened: Sequence[Table]
    geometry: Sequence[Part]
    bought: Sequence[Figure]
    cost: Table
    changes: Sequence[tuple[Row, Sequence[Change]]]

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Where the page leads to from the top of the section."""
        there: dict[str, tuple[str, object]] = {
            "figures": ("Figures", self.figures),
            "flips": ("Flips", self.swaps),
            "confusion": ("Confusion", self.confusions),
            "calibration": ("Calibration", self.reliability),
            "others": ("Other measures", True),
            "terms": ("Terms", self.terms),
            "open": ("Open set", self.opened),
            "geometry": ("Loss geometry", self.geometry),
            "cost": ("Cost", True),
            "recipes": ("Recipes", self.changes),
        }
        return [(key, title) for key, (title, found) in there.items() if found]


def build(runs: Sequence[Run], out: Path, *, baseline: str | None = None) -> Path:
    """Write the HTML report on the runs to `out` and return its path.

    Raises ValueError if there is no run, or none of the baseline's name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    place: dict[str, int] = {}
    page.filters["mark"] = lambda row, rows: place[row.key]
    page.filters |= {"signed": signed, "brief": lambda p: number(p, 2), "short": _short}
    rows = of_runs(runs, baseline)
    sections = [_section(data, found) for data, found in by_data(rows).items()]
    place |= {row.key: i % len(COLOURS) for s in sections for i, row in enumerate(s.rows)}
    html = page.get_template(TEMPLATE).render(
        sections=sections,
        rows=rows,
        columns=SHARES,
        titles=TITLES,
        crowd=MANY_ROWS,
        few=MATRICES,
        measure=MEASURE,
        made=[_made(row) for row in rows],
        runs=sum(row.n for row in rows),
        unfinished=sum(len(row.unfinished) for row in rows),
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html)
    return out


def markdown(runs: Sequence[Run], *, baseline: str | None = None) -> str:
    """The summary as GitHub Markdown: a table for each data set, its footnotes below."""
    parts = []
    for data, rows in by_data(of_runs(runs, baseline)).items():
        heads = _heads(rows)
        compared, published = len(rows) > 1, any(row.expect for row in rows)
        titles = ["", *(heads[name] for name in SHARES), "n"]
        titles += [f"Δ all to {rows[0].name}"] * compared + ["expected"] * published
        lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
        for row in rows:
            cells = [row.name, *(str(row.columns[name]) for name in SHARES), str(row.n)]
            change = row.differences.get("all")
            cells += ([f"**{change}**" if change.clear else str(change)] if change else ["–"]) * compared
            cells += [_published(row.expect)] * published
            lines.append(cells)
        table = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
        said = "\n".join(f"- {_cell(text)}" for text in [*notes(rows), *warnings(rows)])
        parts.append(f"### {_cell(data)}\n\n{table}\n\n{said}\n")
    return "\n".join(parts)


# ---- details -----------------------------------------------------------------------------------------------


def of_runs(runs: Sequence[Run], baseline: str | None) -> list[Row]:
    """The summary; raises ValueError if there is no run, or none of the baseline's name."""
    if not runs:
        raise ValueError("no run to report on: give directories that hold runs, <recipe>/<seed>/recipe.yaml")
    return summary(runs, baseline=baseline)


def _section(data: str, rows: Sequence[Row]) -> Section:
    (drawn, errors), moved = calibration(rows), swaps(rows)
    return Section(
        data,
        rows,
        headline=headline(rows, moved),
        heads=_heads(rows),
        others=[name for name in (*OTHERS, "last epoch", "best on test") if any(name in row.columns for row in rows)],
        notes=notes(rows),
        warnings=warnings(rows),
        terms=[line for row in rows for line in _lines(row)],
        figures=figures(rows),
        heat=_heat([row for row in rows if row.runs]),
        swaps=moved,
        confusions=confusions(rows),
        reliability=drawn,
        errors=errors,
        opened=opened(rows),
        geometry=geometry(rows),
        bought=bought(rows),
        cost=cost(rows),
        changes=[(row, found) for row in rows[1:] if (found := changes(row, rows[0]))],
    )


def _heat(rows: Sequence[Row]) -> Heat | None:
    if len(rows) <= MANY_ROWS or len((known := classes(rows[0].runs[0])).names) > MANY_CLASSES:
        return None
    lines = []
    for row in rows:
        found = np.array([run.scores["scores"]["per_class"] for run in row.runs if run.scores], dtype=float)
        if found.shape[1] == len(known.names):
            lines.append((row, mean_of(found, axis=0)[known.order].tolist()))
    return Heat([known.names[c] for c in known.order], lines)


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"


def _lines(row: Row) -> list[TermLine]:
    """The displaced terms of a row, or their median if they are many."""
    found = [line for line in terms(row) if line.gap.n or line.radius >= 0]
    if len(found) <= LINES:
        return found
    active, radius, gap = np.nanmedian([(t.active, t.radius, t.gap.mean) for t in found], axis=0)
    name = f"{found[0].term} … {found[-1].term}: median of {len(found)}"
    said = next((line.remark for line in found if line.remark), "")
    return [TermLine(row.name, name, active=active, radius=radius, gap=Estimate.of([gap], digits=4), remark=said)]


def _heads(rows: Sequence[Row]) -> dict[str, str]:
    sizes = {name: {row.sizes.get(name) for row in rows if row.runs} for name in GROUPS}
    one = {name: found.pop() for name, found in sizes.items() if len(found) == 1}
    return {name: f"{name} ({one[name]})" if one.get(name) is not None else name for name in SHARES}


def _made(row: Row) -> dict[str, Any]:
    """How the numbers of a row were made: where, how long, by which command and recipe."""
    envs = [run.env for run in row.every]
    commands = dict.fromkeys(str(env["command"]) for env in envs if env.get("command"))
    seeds = ",".join(str(run.seed) for run in row.every)
    return {
        "name": row.name,
        "label": row.label,
        "key": row.key,
        "runs": [run.path.as_posix() for run in row.every],
        "seconds": [duration(seconds(run)) for run in row.every],
        "epoch": duration(_per_epoch(row)),
        "device": _joined(env.get("device") for env in envs),
        "dtype": _joined(env.get("dtype") for env in envs),
        "git": _joined(_git(env.get("git")) for env in envs),
        "versions": _joined(", ".join(map(" ".join, env.get("versions", {}).items())) for env in envs),
        "commands": list(commands) or [f"flattail train recipe.yaml --seeds {seeds}"],
        "recipe": row.every[0].text,
    }


def _per_epoch(row: Row) -> float:
    seconds = sorted(line["seconds"] for run in row.every for line in run.rows)
    return seconds[len(seconds) // 2] if seconds else float("nan")


def _git(said: Any) -> str | None:
    if isinstance(said, Mapping):
        return " ".join(name if value is True else str(value) for name, value in said.items() if value)
    return said


def _joined(values: Any) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value)) or "–"


def _published(expect: Mapping[str, Any] | None) -> str:
    return f"{expect['accuracy']} ({expect['status']}; {expect['source']})" if expect else "–"


def _cell(text: str) -> str:
    for sign, written in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("\r", " "), ("\n", " ")):
        text = text.replace(sign, written)
    return text
