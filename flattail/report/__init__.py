"""Reports on runs: one self-contained HTML page, Markdown, CSV, LaTeX; made from the run directories alone."""

from .estimates import Difference, Estimate
from .flips import Flip, flips
from .page import build, markdown
from .tables import Row, summary
from .written import comma_separated, latex, write

__all__ = [
    "Difference", "Estimate", "Flip", "Row",
    "build", "comma_separated", "flips", "latex", "markdown", "summary", "write",
]  # fmt: skip
