"""What accuracy costs: passes a step and seconds, beside what they bought."""

from collections.abc import Sequence

import numpy as np

from ..runs import Run
from .estimates import Estimate
from .geometry_tables import Cell, Table, number
from .panels import MARKERS, SMALL, Figure, colour, mine, panel, plain_log, whiskers
from .tables import Row


def seconds(run: Run) -> float:
    """Seconds of training, over all stages."""
    return float(run.env.get("seconds") or sum(line["seconds"] for line in run.rows))


def duration(took: float) -> str:
    """Seconds in words; – where they are not known."""
    if took != took:
        return "–"
    if took < 60:
        return f"{took:.2g} s" if took < 10 else f"{took:.0f} s"
    hours, minutes = divmod(round(took / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{took / 60:.1f} min"


def passes(row: Row) -> str:
    """Forward and backward passes a step, on average over training, as `2F + 3B`; – where they were not logged."""
    lines = [line for run in row.every for line in run.rows if "forwards" in line]
    if not lines:
        return "–"
    images = np.array([line["images"] for line in lines], dtype=float)
    means = [float(np.average([line[kind] for line in lines], weights=images)) for kind in ("forwards", "backwards")]
    return " + ".join(f"{mean:.3g}{letter}" for mean, letter in zip(means, "FB", strict=True))


def cost(rows: Sequence[Row]) -> Table:
    """A line per row: passes, seconds in all and beside the first row's, and the accuracies again."""
    took = {row.key: Estimate.of([s for run in row.runs if (s := seconds(run)) > 0]) for row in rows}
    base = took[rows[0].key].mean
    compared = len(rows) > 1
    lines: list[tuple[Row | str, list[Cell]]] = []
    for row in rows:
        mean = took[row.key].mean
        times = "–" if not base > 0 or mean != mean else f"{number(mean / base, 2)} ×"
        change = row.differences.get("all")
        cells = [passes(row), duration(mean), *[times] * compared, str(row.columns["all"]), str(row.columns["few"])]
        lines.append((row, [Cell(text) for text in [*cells, *[str(change) if change else "–"] * compared]]))
    reading = (
        "Passes: forward (F) and backward (B) ones a step, on average over training, as the runs logged them. Wall "
        "time of training, mean over seeds: on a machine that does other work as well, good for its order of magnitude."
    )
    machines = {str(run.env.get("device")) for row in rows for run in row.runs if run.env.get("device")}
    if len(machines) > 1:
        reading += " Rows were trained on different devices: seconds do not compare."
    columns = ["recipe", "passes a step", "wall time", *[f"beside {rows[0].name}"] * compared, "all", "few"]
    return Table("What it costs", reading, [*columns, *["Δ all"] * compared], lines)


def bought(rows: Sequence[Row]) -> list[Figure]:
    """Accuracy of all and few over wall time, a mark per row."""
    known = [row for row in rows if row.runs and Estimate.of(seconds(run) for run in row.runs).mean > 0]
    if len(known) < 2:
        return []
    panels = []
    for name in ("all", "few"):
        if not any(row.columns[name].n for row in known):
            continue
        with panel(f"cost-{name}-{rows[0].key}", SMALL, f"Accuracy of {name} over wall time") as (ax, done):
            for row in known:
                x, y = np.mean([seconds(run) for run in row.runs]) / 60, row.columns[name]
                if not y.n:
                    continue
                with mine(ax, row, f"{row.name} · {name} {y} · {duration(60 * float(x))}"):
                    whiskers(ax, [x], [y.mean], [y.sd])
                    ax.plot(
                        [x], [y.mean], MARKERS[rows.index(row) % len(MARKERS)], color=colour(row, rows), ms=6.5, ls=""
                    )
            ax.set_xscale("log")
            plain_log(ax.xaxis)
            low, high = ax.get_xlim()
            ax.set_xlim(low / 1.3, high * 1.3)
            ax.set_xlabel("wall time (minutes)")
            ax.set_ylabel(f"{name} (%)")
        panels.append(done())
    reading = "Up and to the left is better. Whiskers are ± one sd over seeds; wall time is that of these machines."
    return [Figure("cost", "Accuracy against cost", reading, tuple(panels))]
