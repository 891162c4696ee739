"""Focal-SAM: sharpness in proportion to rarity (Li et al., ICML 2025, arXiv 2505.01660)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .checks import check_not_negative
from .perturb import l2_ball
from .radius import Radius, check_radius, radius_at
from .terms import Context, Term


@dataclass(frozen=True)
class FocalSAM:
    """Every class partly at w and partly from one climb, the rarer the more so (Li et al., ICML 2025).

        L(w) + sum_c s_c [L_c(w + e) - L_c(w)],   s_c = strength (1 - pi_c)^gamma

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.2  # radius of the ball
    strength: float = 0.5  # lambda: share of the climbed loss for an infinitely rare class
    gamma: float = 3.0  # how fast the share falls with a class's frequency pi_c
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_not_negative(strength=self.strength, gamma=self.gamma)

    def terms(self, at: Context) -> list[Term]:
        """1 - s at w, s at w + e."""
        n = at.counts.to(at.ones)
        s = (self.strength * (1 - n / n.sum()) ** self.gamma)[at.y]
        return [Term("plain", 1 - s), Term("flat", s, l2_ball(radius_at(self.rho, at)))]
