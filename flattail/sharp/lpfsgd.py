"""LPF-SGD: the loss smoothed by a Gaussian (Bisla et al., AISTATS 2022, arXiv 2201.08025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .checks import check_not_negative, check_number
from .noise import gaussian, nth_seed
from .perturb import Blind, Tensors, filter_norms, filters_of
from .terms import Context, Term


@dataclass(frozen=True)
class LPFSGD:
    """Everybody under noise in proportion to each filter's norm: low on average nearby (Bisla et al., AISTATS 2022).

        1/M sum_j L_j(w + e_j),   e_j ~ N(0, sigma^2 diag(||w_f||^2)),
        sigma(t) = gamma (1 + (alpha - 1)(1 - cos(pi t)) / 2)

    with w_f the filter that a weight is in (the slice of a tensor's first axis; the column of a cosine head), or the
    whole tensor where it has one axis; L_j is the loss of every M-th sample. Nobody looks from w. Cost: F + B for one
    draw. For M: M (F + B), since a pass runs the whole batch; or (2 - 1/M) F + B where rows can be run apart. (The
    paper runs each part of the batch alone.)

    Raises ValueError for a field out of its range.
    """

    gamma: float = (
        0.002  # sigma at the beginning; the authors: 0.002 for plain ResNets, 5e-4 with alpha 15 for wide ones
    )
    alpha: float = 1.0  # sigma at the end, as a multiple of gamma
    draws: int = 1  # M: parts of the batch, each with noise of its own; the authors: 1, and 8 for wide ResNets
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_not_negative(gamma=self.gamma, alpha=self.alpha)
        check_number("draws", self.draws, 1)

    def sigma(self, at: Context) -> float:
        """The standard deviation of this step; a constant one reads no progress."""
        if self.alpha == 1:
            return self.gamma
        return self.gamma * (1 + (self.alpha - 1) * (1 - math.cos(math.pi * at.progress)) / 2)

    def terms(self, at: Context) -> list[Term]:
        """Every M-th sample at w + e_j."""
        sigma, which = self.sigma(at), torch.arange(len(at.y), device=at.y.device) % self.draws

        def term(j: int) -> Term:
            seed = nth_seed(at.seed, j, self.draws)
            return Term(f"draw {j}", at.ones * (which == j), Blind(lambda weights: by_filter(weights, sigma, seed)))

        return [term(j) for j in range(self.draws)]


def by_filter(weights: Tensors, sigma: float, seed: int) -> list[Tensor]:
    """Gaussian noise of sigma times the norm of each filter."""
    noise = gaussian(weights, seed)
    for w, e in zip(weights, noise, strict=True):
        e.mul_(sigma * (filter_norms(w, filters_of(w)) if w.ndim > 1 else w.norm()))
    return noise
