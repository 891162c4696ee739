"""Gradient norm penalty: L(w) + lambda ||grad L(w)|| (Zhao et al., ICML 2022, arXiv 2202.03599)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .checks import check_not_negative
from .perturb import l2_ball
from .radius import Radius, check_radius, radius_at
from .terms import Context, Term


@dataclass(frozen=True)
class GradientNormPenalty:
    """A small slope is wanted: partly at w, partly from one climb (Zhao et al., ICML 2022).

        (1 - alpha) grad L(w) + alpha grad L(w + r g / ||g||),   alpha = lambda / r

    Cost: 2F + 3B.

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.05  # r in the paper: the step of the finite difference
    alpha: float = 0.8  # lambda / r: share of the climbed loss; 1 is SAM, 0 the plain step
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_not_negative(alpha=self.alpha)

    def terms(self, at: Context) -> list[Term]:
        """1 - alpha at w, alpha at w + e."""
        climb = l2_ball(radius_at(self.rho, at))
        return [Term("plain", (1 - self.alpha) * at.ones), Term("flat", self.alpha * at.ones, climb)]
