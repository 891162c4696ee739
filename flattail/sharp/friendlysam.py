"""Friendly-SAM: climb along the noise of the batch's slope alone (Li et al., CVPR 2024, arXiv 2403.12350)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .checks import check_not_negative, check_share
from .perturb import Tensors, l2_ball
from .radius import Radius, check_radius, radius_at
from .terms import Context, Gradients, Memory, Term


@dataclass(frozen=True)
class FriendlySAM:
    """Everybody from a climb along what is this batch's own in its slope (Li et al., CVPR 2024).

        e = rho d / ||d||,   d = g - sigma m,   m <- lambda m + (1 - lambda) g

    m, an average of past slopes, stands for that of all data. As in the released code, a step climbs by the m that it
    found, and the first one sets m = g and climbs along g. Cost: 2F + 2B, and one copy of the weights for m.

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.05  # radius of the ball
    sigma: float = 1.0  # how much of the average slope is taken out
    decay: float = 0.9  # lambda in the paper: share of the average that stays; 0.6 to 0.95 were tried there
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_not_negative(sigma=self.sigma)
        check_share("decay", self.decay)

    def memory(self, params: Tensors) -> Memory:
        """No slope seen."""
        return {"m": [torch.zeros_like(p) for p in params], "first": torch.ones((), device=params[0].device)}

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at w + e."""
        ball, m = l2_ball(radius_at(self.rho, at)), at.memory["m"]

        def climb(weights: Tensors, slope: Tensors) -> list[Tensor]:
            torch._foreach_sub_(slope, m, alpha=self.sigma)
            return ball(weights, slope)

        return [Term("flat", at.ones, climb)]

    def merge(self, at: Context, gradients: Gradients, slopes: Gradients) -> tuple[Tensors, Memory]:
        """SAM's gradient; the average moves by the slope at w."""
        first, g = at.memory["first"] > 0, slopes["flat"]
        averages = torch._foreach_lerp(at.memory["m"], g, 1 - self.decay)
        m = [torch.where(first, new, average) for new, average in zip(g, averages, strict=True)]
        return gradients["flat"], {"m": m, "first": torch.zeros_like(at.memory["first"])}
