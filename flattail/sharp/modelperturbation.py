"""Model perturbation: the loss under random moves (F2M, Shi et al., NeurIPS 2021, arXiv 2111.01549)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .checks import check_number
from .noise import gaussian, nth_seed
from .perturb import TINY, Blind, Tensors, norm
from .radius import Radius, check_radius, radius_at
from .terms import Context, Term


@dataclass(frozen=True)
class ModelPerturbation:
    """Everybody under random moves of a given share of the weights' norm (Shi et al., NeurIPS 2021).

        1/M sum_j L(w + e_j),   e_j = rho ||w|| n_j / ||n_j||,   n_j ~ N(0, 1)

    with w the displaced parameters. The distribution is our reading: the CC-SAM paper compares with the method, and
    its settings are in an appendix that we could not read. Nobody looks from w. Cost: M (F + B).

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.01  # ||e|| as a share of ||w||
    draws: int = 1  # M: moves whose losses are averaged, a pass each
    only: str | None = None  # the layers that move: a pattern on parameter names; all of them by default
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_number("draws", self.draws, 1)

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at every w + e_j."""
        rho = radius_at(self.rho, at)

        def climb(seed: int) -> Blind:
            def move(weights: Tensors) -> list[Tensor]:
                noise = gaussian(weights, seed)
                torch._foreach_mul_(noise, rho * norm(weights) / (norm(noise) + TINY))
                return noise

            return Blind(move)

        seeds = [nth_seed(at.seed, j, self.draws) for j in range(self.draws)]
        return [Term(f"draw {j}", at.ones / self.draws, climb(seed)) for j, seed in enumerate(seeds)]
