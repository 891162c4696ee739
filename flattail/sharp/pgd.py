"""PGD: a random kick where the slope is small (Jin et al., ICML 2017, arXiv 1703.00887)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .checks import check_not_negative
from .noise import in_ball
from .perturb import Blind, Tensors, norm
from .radius import Radius, check_radius, radius_at
from .terms import Context, Gradients, Memory, Term


@dataclass(frozen=True)
class PGD:
    """Everybody from a random kick where the slope is small; by default in every step (Jin et al., ICML 2017).

        if ||g|| <= threshold, and `pause` steps since the last kick:   grad L(w + xi),   ||xi|| <= r uniformly drawn
        else:                                                           grad L(w)

    Algorithm 1 moves w by xi for good and goes on from there; here the gradient is taken at w + xi and the optimiser
    steps from w, since a method makes the gradient and leaves the weights alone. A finite threshold compares the
    slope of all trained parameters; under `only`, or in processes that climb apart, the kick goes by its own slope,
    the pause by that of all. Cost: 2F + 2B, also in steps without a kick, for what a device knows is not waited for;
    F + B where the threshold is infinite.

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.05  # radius of the ball that the kick is drawn from
    threshold: float = math.inf  # of the slope's norm, above which there is no kick
    pause: int = 0  # steps between kicks, at least
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_not_negative(threshold=self.threshold, pause=self.pause)

    def memory(self, params: Tensors) -> Memory:
        """No kick yet."""
        return {"since": torch.full((), float(self.pause), dtype=torch.float64).to(params[0].device, torch.float32)}

    def kicks(self, at: Context, slope: Tensors) -> Tensor:
        """Whether this step has a kick."""
        since: Tensor = at.memory["since"]
        rested = since >= self.pause
        return rested if self.threshold == math.inf else rested & (norm(slope) <= self.threshold).to(since.device)

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at w + xi or at w."""
        rho = radius_at(self.rho, at)

        def kick(weights: Tensors, slope: Tensors) -> list[Tensor]:
            noise = in_ball(weights, rho, at.seed)
            torch._foreach_mul_(noise, self.kicks(at, slope).float())
            return noise

        climb = kick if self.threshold < math.inf else Blind(lambda weights: kick(weights, []))
        return [Term("kicked", at.ones, climb)]

    def merge(self, at: Context, gradients: Gradients, slopes: Gradients) -> tuple[Tensors, Memory]:
        """The gradient as it is; steps since the last kick are counted."""
        since = at.memory["since"]
        kicked = self.kicks(at, slopes.get("kicked", []))
        return gradients["kicked"], {"since": torch.where(kicked, torch.zeros_like(since), since + 1)}
