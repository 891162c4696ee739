"""The report as a file's name asks for it: .html, .md, .csv (a line per run) or .tex (a table for a paper)."""

import csv
import re
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

from ..runs import Run, write_text
from .cost import seconds
from .estimates import Estimate
from .facts import protocol_hash
from .notes import notes
from .page import build, markdown, of_runs
from .tables import GROUPS, SHARES, Row, by_data, value

SCORES = ("all", *GROUPS, "balanced", "worst", "gmean", "ece", "nll")


def _scored(name: str) -> Callable[[Run], object]:
    return lambda run: value(run, name)


# of `table.csv`: fractions between 0 and 1, nll in nats, empty where something is not known
COLUMNS: dict[str, Callable[[Run], object]] = {
    "label": lambda run: run.label,  # the recipe's path
    "title": lambda run: run.recipe.get("title") or run.label,
    "seed": lambda run: run.seed,
    **{name: _scored(name) for name in SCORES},
    "classes_many": lambda run: _sizes(run).get("many"),
    "classes_medium": lambda run: _sizes(run).get("medium"),
    "classes_few": lambda run: _sizes(run).get("few"),
    "test_images": lambda run: (run.scores or {"scores": {}})["scores"].get("n"),
    "data": lambda run: (run.scores or {}).get("data"),
    "fingerprint": lambda run: (run.scores or {}).get("fingerprint"),  # of the training images
    "selection": lambda run: (run.scores or {}).get("selection"),  # which epoch was judged: last, best-on-val, ...
    "protocol": protocol_hash,  # lines that share it and the fingerprint may be compared
    "epochs": lambda run: run.epochs,
    "seconds": lambda run: round(took, 3) if (took := seconds(run)) else None,  # of training
    "finished": lambda run: int(run.finished),
    "recipe": lambda run: run.key,  # a hash of everything but the seed: lines that share it may be averaged
    "run": lambda run: run.path.as_posix(),
}


def comma_separated(runs: Sequence[Run], *, baseline: str | None = None) -> str:
    """One line per run under the names of `COLUMNS`, the baseline's recipe first; unfinished runs without scores."""
    text = StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    for row in of_runs(runs, baseline):
        for run in row.every:
            lines.writerow(["" if (cell := pick(run)) is None else cell for pick in COLUMNS.values()])
    return text.getvalue()


def latex(runs: Sequence[Run], *, baseline: str | None = None) -> str:
    r"""A `booktabs` table for each data set, to be pasted; it needs `\usepackage{booktabs}` and nothing else.

    The best mean of a column is bold only where it is ahead of the baseline's and the interval leaves out zero.
    """
    parts = []
    for data, rows in by_data(of_runs(runs, baseline)).items():
        compared = [row for row in rows if row.differences]
        shown = [name for name in SHARES if any(row.columns[name].n for row in rows)]
        sizes = rows[0].sizes
        heads = [_tex(f"{name} ({sizes[name]})" if name in sizes else name) for name in shown]
        heads += [rf"$\Delta$ {name}" for name in ("all", "few") if compared and name in shown]
        best = {name: _best(rows, name) for name in shown}
        body = []
        for row in rows:
            cells = [_tex(row.name), *(_estimate(row.columns[name], bold=best[name] is row) for name in shown)]
            if compared:
                cells += [_difference(row, name) for name in ("all", "few") if name in shown]
            body.append(f"  {' & '.join([*cells, str(row.n)])} \\\\")
        said = [text for text in notes(rows) if not text.startswith("Unfinished")]
        parts.append(
            "\n".join(
                [
                    *(f"% {line}" for line in _lines([data, *said])),
                    rf"\begin{{tabular}}{{@{{}}l{'r' * len(heads)}r@{{}}}}",
                    r"  \toprule",
                    f"  {' & '.join(['', *heads, '$n$'])} \\\\",
                    r"  \midrule",
                    *body,
                    r"  \bottomrule",
                    r"\end{tabular}",
                    "",
                ]
            )
        )
    return "\n".join(parts)


def _page(runs: Sequence[Run], out: Path, baseline: str | None) -> None:
    build(runs, out, baseline=baseline)


def _text(write: Callable[..., str]) -> Callable[[Sequence[Run], Path, str | None], None]:
    return lambda runs, out, baseline: write_text(out, write(runs, baseline=baseline))


FORMATS: dict[str, Callable[[Sequence[Run], Path, str | None], None]] = {
    ".html": _page,
    ".md": _text(markdown),
    ".csv": _text(comma_separated),
    ".tex": _text(latex),
}


def write(runs: Sequence[Run], out: Path, *, baseline: str | None = None) -> Path:
    """Write the report on the runs to `out`, as its suffix says (`FORMATS`), and return its path.

    Raises ValueError for another suffix, if there is no run, or none of the baseline's name.
    """
    out = Path(out)
    known(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    FORMATS[out.suffix.lower()](runs, out, baseline)
    return out


def known(out: Path) -> None:
    """Raise ValueError for a file whose suffix names no format."""
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out {out}: a report ends in {', '.join(FORMATS)}")


# ---- details -----------------------------------------------------------------------------------------------

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "−": "$-$", "–": "--", "±": r"$\pm$", "→": r"$\to$", "×": r"$\times$",
    "…": r"\dots{}", "ρ": r"$\rho$", "τ": r"$\tau$", "λ": r"$\lambda$", "γ": r"$\gamma$", "α": r"$\alpha$",
    "β": r"$\beta$", "κ": r"$\kappa$", "‖": r"$\|$", "\n": " ", "\r": " ",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(ESCAPES.get(sign, sign) for sign in text)


def _best(rows: Sequence[Row], name: str) -> Row | None:
    """The row with the best mean, if it is ahead of the baseline beyond noise."""
    row = max((row for row in rows if row.columns[name].n), key=lambda row: row.columns[name].mean)
    return row if row.differences and row.differences[name].ahead else None


def _estimate(found: Estimate, *, bold: bool) -> str:
    if not found.n:
        return "--"
    mean = f"{found.mean:.{found.digits}f}"
    mean = rf"\mathbf{{{mean}}}" if bold else mean
    return rf"${mean} \pm {found.sd:.{found.digits}f}$" if found.n > 1 else f"${mean}$"


def _difference(row: Row, name: str) -> str:
    found = row.differences.get(name)
    if found is None or not found.n:
        return "--"
    interval = rf" {{\footnotesize $[{found.low:+.1f}, {found.high:+.1f}]$}}" if found.n > 1 else ""
    return f"${found.mean:+.1f}$" + interval


def _lines(texts: Sequence[str]) -> list[str]:
    """Comments cannot hold a line's end."""
    return [re.sub(r"\s+", " ", text) for text in texts]


def _sizes(run: Run) -> dict[str, int]:
    return run.scores["scores"]["sizes"] if run.scores else {}
