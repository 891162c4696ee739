"""Momentum-SAM: look from where the momentum leads, in one pass (Becker et al., 2024, arXiv 2401.12033)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .checks import check_share
from .perturb import TINY, Blind, Tensors, norm
from .radius import Radius, check_radius, radius_at
from .terms import Context, Gradients, Memory, Term


@dataclass(frozen=True)
class MSAM:
    """Everybody from a step along the momentum, without a look from w (Becker et al., arXiv 2401.12033).

        e = -rho v / ||v||,   v <- mu v + grad L(w + e)

    The paper's Algorithm 1 perturbs against the momentum vector v, which is the way that a step of SGD takes. v here
    is the method's own average of gradients, so any optimiser may follow; in the release it is that of SGD, weight
    decay included. Cost: F + B, as a plain step, and one copy of the weights for v.

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.3  # length of the step; 0.3 in the released code
    momentum: float = 0.9  # mu: share of v that stays
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_share("momentum", self.momentum)

    def memory(self, params: Tensors) -> Memory:
        """At rest."""
        return {"v": [torch.zeros_like(p) for p in params]}

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at w + e."""
        v, rho = at.memory["v"], radius_at(self.rho, at)

        def move(weights: Tensors) -> list[Tensor]:
            return list(torch._foreach_mul(v, -rho / (norm(v) + TINY)))

        return [Term("flat", at.ones, Blind(move))]

    def merge(self, at: Context, gradients: Gradients, slopes: Gradients) -> tuple[Tensors, Memory]:
        """The gradient as it is; the momentum takes it in."""
        g = gradients["flat"]
        return g, {"v": list(torch._foreach_add(torch._foreach_mul(at.memory["v"], self.momentum), g))}
