"""SSE-SAM: Stage-wise Saddle Escaping SAM (Lyu et al., AAAI 2025, arXiv 2412.13715)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .checks import check_share
from .imbsam import Eta, check_eta, check_split, tail_classes
from .perturb import l2_ball
from .radius import SLACK, Radius, check_radius, radius_at
from .terms import Context, Term


@dataclass(frozen=True)
class SSESAM:
    """Head and tail each made flat; after `switch`, the tail alone (Lyu et al., AAAI 2025).

        max_{||e|| <= rho_head} L_head(w + e)  +  max_{||e|| <= rho_tail} L_tail(w + e),   rho_head = 0 from `switch` on

    Raises ValueError for a field out of its range.
    """

    head_rho: Radius = 0.05  # radius of the head's ball, until the switch
    tail_rho: Radius = 0.10  # radius of the tail's ball
    switch: float = 0.7  # gamma in the paper: share of training after which the head stays at w; 0: from the start
    eta: Eta = 100  # classes with fewer samples are tail; "few": the data set's few-shot classes
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.head_rho)
        check_radius(self.tail_rho)
        check_eta(self.eta)
        check_share("switch", self.switch)

    def check(self, at: Context) -> None:
        """Raise ValueError where eta leaves no tail."""
        check_split(at.counts, at.few, self.eta)

    def terms(self, at: Context) -> list[Term]:
        """The head at w + e_head until the switch, then at w; the tail at w + e_tail."""
        tail = tail_classes(at.counts, at.few, self.eta)[at.y].to(at.ones)
        early = at.progress < self.switch - SLACK
        return [
            Term("head", 1 - tail, l2_ball(radius_at(self.head_rho, at)) if early else None),
            Term("tail", tail, l2_ball(radius_at(self.tail_rho, at))),
        ]
