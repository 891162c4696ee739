"""LookSAM: SAM in every k-th step, its direction reused between (Liu et al., CVPR 2022, arXiv 2203.02714)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from .checks import check_not_negative, check_number
from .perturb import TINY, Tensors, l2_ball, norm, orthogonal
from .radius import Radius, check_radius, radius_at
from .terms import Context, Gradients, Memory, Term


@dataclass(frozen=True)
class LookSAM:
    """SAM at times; between, a plain step bent by what SAM added last (Liu et al., CVPR 2022).

        every k-th step:   g_s = grad L(w + e),   v = the part of g_s that is orthogonal to g = grad L(w)
        else:              g + alpha ||g|| v / ||v||

    Norms and products are over all trained parameters together (our reading; implementations also take each tensor
    apart). Cost: 2F + 2B in every k-th step, F + B between, and one copy of the weights for v.

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.05  # radius of the ball
    k: int = 5  # steps from one look to the next
    alpha: float = 0.7  # length of the reused direction, in lengths of the plain slope
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_number("k", self.k, 1)
        check_not_negative(alpha=self.alpha)

    def memory(self, params: Tensors) -> Memory:
        """No direction yet."""
        return {"v": [torch.zeros_like(p) for p in params]}

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at w + e or at w."""
        looks = at.step % self.k == 0
        return [Term("flat", at.ones, l2_ball(radius_at(self.rho, at)))] if looks else [Term("plain", at.ones)]

    def merge(self, at: Context, gradients: Gradients, slopes: Gradients) -> tuple[Tensors, Memory]:
        """SAM's gradient, or the plain one with what is remembered."""
        if "flat" in gradients:
            return gradients["flat"], {"v": orthogonal(gradients["flat"], slopes["flat"])}
        g, v = gradients["plain"], at.memory["v"]
        return list(torch._foreach_add(g, torch._foreach_mul(v, self.alpha * norm(g) / (norm(v) + TINY)))), at.memory
