"""The rows of the table of recipes, by where they come from."""

from .large import LARGE
from .papers import PAPERS
from .shipped import Shipped
from .small import SMALL
from .tables import BASELINES
from .tuned import TUNED

TABLE = (*SMALL, *PAPERS, *BASELINES, *TUNED, *LARGE)

__all__ = ["TABLE", "Shipped"]
