"""Panels of the report as inline SVG: drawn by matplotlib, coloured by the page's own CSS variables.

Text stays text, and every colour becomes `var(--...)`, so one drawing serves light, dark and paper.
"""

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from .tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, ordered so that neighbours differ in lightness too, with the ink; then four more
COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f80", "#1b1c20",
    "#882255", "#999933", "#5f4bb6", "#8a6a55",
)  # fmt: skip
INK, MUTED, GRID = "#1c1d21", "#6a6e78", "#dfe1e6"
SHADES = {"many": "#a9b8c8", "medium": "#6f88a3", "few": "#2f4d6e"}
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {colour: name for name, colour in SHADES.items()}
VARIABLES |= {colour: f"c{i}" for i, colour in enumerate(COLOURS)}
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SMALL, WIDE, TINY = (4.6, 2.9), (9.4, 3.1), (2.2, 1.75)
MANY_CLASSES = 20  # beyond: lines over the rank of a class
MANY_ROWS = 12  # beyond: a line per row instead of bars side by side


@dataclass(frozen=True)
class Figure:
    """One figure of the page: panels side by side under a title, with a sentence on how to read them."""

    key: str
    title: str
    reading: str
    panels: tuple[str, ...]  # SVG
    wide: bool = False  # one panel over the whole width
    legend: bool = True  # whether the rows' colours are explained above it
    columns: int = 0  # panels side by side on a wide screen; 0: two or three
    scale: tuple[tuple[str, str], ...] = ()  # colours and what they stand for, where they are no rows'


def colour(row: Row, rows: Sequence[Row]) -> str:
    """The row's colour, the same in every figure."""
    return COLOURS[rows.index(row) % len(COLOURS)]


@contextmanager
def panel(
    key: str, size: tuple[float, float], label: str, row: Row | None = None
) -> Iterator[tuple["Axes", Callable[[], str]]]:
    """Axes in the house style, and a function that gives the SVG once the drawing is done.

    `row`: whose it is, if it is all one row's.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": key,  # ids differ between panels and not between builds
        "text.parse_math": False,  # a class may be called $1$
        "font.size": 9,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that this machine's font lacks, the reader's browser has
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.add_subplot()
        owner = f' data-row="{row.key}"' if row else ""
        yield axes, lambda: _svg(canvas, axes, key, label, style).replace("<svg", f"<svg{owner}", 1)


@contextmanager
def mine(ax: "Axes", row: Row, said: str | Sequence[str] = "") -> Iterator[None]:
    """What is drawn within belongs to a row: the page hides it with the row, and tells what is pointed at.

    `said`: one text for all of it, or one for each patch (else: for each point) in the order of drawing.
    """
    before = set(map(id, ax.get_children()))
    yield
    drawn = [artist for artist in ax.get_children() if id(artist) not in before]
    each = [said] if isinstance(said, str) else list(said)
    patches = iter([] if isinstance(said, str) else each)
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    for artist in drawn:
        if isinstance(artist, Patch):
            kind, text = "bar", next(patches, each[0])
        elif isinstance(artist, Line2D) and artist.get_label() != "_whisker" and np.size(artist.get_xdata()):
            kind = "line" if artist.get_linestyle() != "None" else "dots"
            text = "\t".join(each) or row.name
        else:
            kind, text = "part", ""
        artist.set_gid(f"{kind}:{row.key}:{text}")


def _svg(canvas: Any, ax: "Axes", key: str, label: str, style: dict[Any, Any]) -> str:
    import matplotlib as mpl

    text = StringIO()
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    head, _, rest = svg.partition(">")
    svg = re.sub(r' (?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", head) + ">" + rest
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'id="(bar|line|dots|part):(\w*):([^"]*)"', _marked, svg)
    svg = re.sub(r'(<g(?: data-row="\w+")? data-(?:bar|line|dots)="([^"\t]*)">)', r"\1<title>\2</title>", svg)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used or "-" in m[1] else "", svg)
    svg = re.sub(r' (?:d|x|y|points|transform)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r"<g/>\s*|<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = re.sub("|".join(VARIABLES), lambda m: f"var(--{VARIABLES[m[0]]})", svg)
    where = escape(json.dumps(_axes(ax, canvas), ensure_ascii=False, separators=(",", ":")))
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}" data-axes="{where}"', 1)


def _marked(found: re.Match[str]) -> str:
    kind, key, text = found.groups()
    said = [f'data-row="{key}"'] * bool(key) + [f'data-{kind}="{text}"'] * (kind != "part")
    return " ".join(said)


def _axes(ax: "Axes", canvas: Any) -> dict[str, Any]:
    """Both axes for the reader's pointer: ends on the drawing, ends in data, scale and its unit, name."""
    width, height = (72 * inches for inches in canvas.get_size_inches())
    box = ax.get_position()
    ends = ((box.x0 * width, box.x1 * width), ((1 - box.y0) * height, (1 - box.y1) * height))
    said = {}
    for name, axis, (low, high), (start, stop) in zip(
        "xy", (ax.xaxis, ax.yaxis), (ax.get_xlim(), ax.get_ylim()), ends, strict=True
    ):
        unit = getattr(getattr(axis, "_scale", None), "linear_width", 0)
        text = axis.get_label_text() or (ax.get_title("left") if name == "y" else "")
        whole = text.startswith(("epoch", "class"))
        said[name] = [round(start, 2), round(stop, 2), float(low), float(high), axis.get_scale(), unit, text, whole]
    return said


def dash_of(row: Row, rows: Sequence[Row]) -> str:
    """The row's line style: another one where the colours begin again."""
    return DASHES[rows.index(row) // len(COLOURS) % len(DASHES)]


def whiskers(ax: "Axes", x: Any, mean: Any, sd: Any) -> None:
    """Error bars of ± one sd, where there is any."""
    if np.isfinite(sd).any():
        ax.errorbar(x, mean, sd, fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.5)
        for cap in ax.lines[-2:]:
            cap.set_label("_whisker")


def plain_log(axis: Any) -> None:
    """Ticks 1, 3, 10, … of a logarithmic axis, written without powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def spans_decades(values: np.ndarray) -> bool:
    """Whether values are positive and too far apart for a linear axis."""
    return bool(values.min() > 0 and values.max() > 50 * values.min())


def mean_of(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean without NaN; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def running(values: np.ndarray) -> np.ndarray:
    """A running mean over a tenth of the classes, narrower at the ends."""
    half = max(1, len(values) // 20)
    return np.array([mean_of(values[max(0, i - half) : i + half + 1], axis=0) for i in range(len(values))])


def asinh_ticks(low: float, high: float, unit: float) -> list[float]:
    """Ticks of an axis that is spread like asinh(value / unit): zero, and a few powers of ten on both sides."""
    first = math.ceil(math.log10(2 * unit))
    left = [10.0**e for e in range(first, 1 + math.floor(math.log10(max(-low, 1e-300))))]
    right = [10.0**e for e in range(first, 1 + math.floor(math.log10(max(high, 1e-300))))]
    return [-t for t in left[::-1][: 1 if len(left) < 3 else 3 : 2]] + [0.0] + right[::-1][::2][:3]
