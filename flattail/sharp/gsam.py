"""GSAM: surrogate gap guided SAM (Zhuang et al., ICLR 2022, arXiv 2203.08065): the gap is made small as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from .checks import check_not_negative
from .perturb import Tensors, l2_ball, orthogonal
from .radius import Radius, check_radius, radius_at
from .terms import Context, Gradients, Memory, Term


@dataclass(frozen=True)
class GSAM:
    """Down the slope nearby, and up the part of the slope at w that is orthogonal to it (Zhuang et al., ICLR 2022).

        g_s - alpha g_o,   g_s = grad L(w + e),   g_o the part of g = grad L(w) that is orthogonal to g_s

    The paper's rho_t follows the learning rate between two values: a schedule of `rho` does that. Cost: 2F + 2B, and
    the gradients of both passes held at once.

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.05  # radius of the ball
    alpha: float = 0.1  # how much of the orthogonal part is climbed
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_not_negative(alpha=self.alpha)

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at w + e."""
        return [Term("flat", at.ones, l2_ball(radius_at(self.rho, at)))]

    def merge(self, at: Context, gradients: Gradients, slopes: Gradients) -> tuple[Tensors, Memory]:
        """Algorithm 1."""
        there = gradients["flat"]
        torch._foreach_sub_(there, orthogonal(slopes["flat"], there), alpha=self.alpha)
        return there, {}
