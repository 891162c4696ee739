"""WSAM: weighted sharpness as a regulariser (Yue et al., KDD 2023, arXiv 2305.15817), its coupled form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .perturb import l2_ball
from .radius import Radius, check_radius, radius_at
from .terms import Context, Term


@dataclass(frozen=True)
class WSAM:
    """The loss plus a multiple of its sharpness, one that may exceed SAM's (Yue et al., KDD 2023).

        L(w) + gamma / (1 - gamma) [max_{||e|| <= rho} L(w + e) - L(w)]

    Cost: 2F + 3B.

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.05  # radius of the ball
    gamma: float = 0.9  # weight of the sharpness, gamma / (1 - gamma) of it; 1/2 is SAM, 0 the plain step
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        if not 0 <= self.gamma < 1:
            raise ValueError(f"`gamma` is in [0, 1), not {self.gamma}")

    def terms(self, at: Context) -> list[Term]:
        """1 - a at w, a at w + e, with a = gamma / (1 - gamma)."""
        a = self.gamma / (1 - self.gamma)
        return [Term("plain", (1 - a) * at.ones), Term("flat", a * at.ones, l2_ball(radius_at(self.rho, at)))]
