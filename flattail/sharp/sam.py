"""SAM: Sharpness-Aware Minimization (Foret et al., ICLR 2021, arXiv 2010.01412), and ASAM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .checks import check_not_negative
from .perturb import adaptive_ball, l2_ball
from .radius import Radius, check_radius, radius_at
from .terms import Context, Term


@dataclass(frozen=True)
class SAM:
    """Everybody from one climb: the loss nearby is made low (Foret et al., ICLR 2021).

        min_w max_{||e|| <= rho} L(w + e),   e = rho g / ||g||

    For long tails: a large rho leaves the saddle points of the tail classes' loss (Rangwani et al., NeurIPS 2022,
    arXiv 2212.13827).

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.05  # radius of the ball; Saddle uses 0.1 to 0.8 on CIFAR-LT
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at w + e."""
        return [Term("flat", at.ones, l2_ball(radius_at(self.rho, at)))]


@dataclass(frozen=True)
class ASAM:
    """SAM in a ball stretched by the weights' own sizes (Kwon et al., ICML 2021, arXiv 2102.11600).

        min_w max_{||T_w^-1 e|| <= rho} L(w + e),   e = rho T_w^2 g / ||T_w g||

    with T_w diagonal: |w| + `floor`.

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.5  # radius of the stretched ball
    floor: float = 0.01  # added to |w|, so that zero weights can move
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_not_negative(floor=self.floor)

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at w + e."""
        return [Term("flat", at.ones, adaptive_ball(radius_at(self.rho, at), floor=self.floor))]
