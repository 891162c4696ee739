"""The rows of the table of recipes, by where they come from."""

from .baselines import BASELINES
from .large import LARGE
from .papers import PAPERS
from .shipped import Shipped
from .small import SMALL
from .tuned import TUNED

TABLE = (*SMALL, *PAPERS, *BASELINES, *TUNED, *LARGE)

__all__ = ["TABLE", "Shipped"]
