"""The displaced features: every sample's feature moves, and the head sees it from there, in one pass of the backbone.

    z + e,   e a climb along the gradient of the loss with respect to z: of each sample alone, or of a group together

The displacement is a constant: gradients flow to the head and, through z, to a backbone that is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .passes import Look, Processes, coefficients, noise_around
from .perturb import TINY, Radial, answering, norm, recorded
from .terms import Term


class Slopes(NamedTuple):
    """What the climbs of all groups are made from; G is the number of samples where each climbs alone."""

    by: Tensor | None  # [B] group; None: each sample climbs alone
    squares: Tensor  # [G] squared norm of the gradient of sum_i a_i m_i loss_i with respect to the features
    lengths: Tensor  # [G] squared norm of the features
    own: Tensor  # [G] sum of a m


@dataclass
class Sight:
    """What one look from w saw of the features, graph and all."""

    still: Tensor  # [B, ...] what the backbone answered
    gradient: Tensor  # [B, ...] of sum_i a_i m_i loss_i
    slopes: Slopes
    noise: list[Tensor]  # the state of the generators when the backbone was done


class Features:
    """The displaced features of a model: their slopes, by samples or groups, and the features moved along them."""

    def __init__(self, model: Any) -> None:
        self.backbone: nn.Module = model.backbone
        self.device = next(model.parameters()).device

    def look(self, look: Look, name: str, scale: Tensor | float) -> tuple[Sight, Any]:
        """Run the closure at w, recording what the backbone answers; slopes are taken of sums in this scale."""

        def followed(_: nn.Module, inputs: Any, z: Tensor) -> Tensor:
            return z if z.requires_grad else z.detach().requires_grad_()

        handle = self.backbone.register_forward_hook(followed)
        try:
            with recorded(self.backbone) as calls, noise_around(self.backbone, self.device) as noise:
                seen = look.run()
        finally:
            handle.remove()
        if len(calls) != 1:
            raise ValueError(
                f"the closure ran the backbone {len(calls)} times; a method that displaces features needs one run"
            )
        z, term = calls[0][1], look.terms[name]
        (g,) = torch.autograd.grad(look.sum_of(name) * scale, z, retain_graph=True)
        a = coefficients(term, look.masses)
        g, still = g.to(a.dtype) / scale, z.detach().to(a.dtype)
        by = None if term.by is None else term.by.to(z.device, non_blocking=True)

        def grouped(per_sample: Tensor) -> Tensor:
            return per_sample if by is None else a.new_zeros(term.groups).index_add(0, by, per_sample)

        squares = [grouped(t.flatten(1).square().sum(1)) for t in (g, still)]
        return Sight(z, g, Slopes(by, squares[0], squares[1], grouped(a)), noise[1]), seen

    def joined(self, slopes: Sequence[Slopes], processes: Processes) -> Slopes | None:
        """The slopes of several micro-batches and processes as those of one batch; None where samples climb alone."""
        if slopes[0].by is None:
            return None
        sums = [torch.stack(each).sum(0) for each in list(zip(*slopes, strict=True))[1:]]
        return Slopes(slopes[0].by, *processes.add_all(sums))

    def climbed(self, sight: Sight, slopes: Slopes, term: Term) -> tuple[Tensor, Tensor]:
        """Features `[B, ...]` from where each has climbed to, and `||e||/||z||` over all of them."""
        if not isinstance(term.climb, Radial):
            raise ValueError(f"features are displaced along radial climbs, such as l2_ball(0.1), not {term.climb!r}")
        z, by = sight.still, sight.slopes.by
        own = slopes.own.abs().clamp(min=TINY)
        scales = term.climb.scales(slopes.lengths.sqrt(), slopes.squares.sqrt()[None] / own, z[:1].numel())[0]
        factors = (scales / own).detach()
        each = factors if by is None else factors[by]
        e = (each.view(-1, *[1] * (z.ndim - 1)) * sight.gradient).to(z.dtype)
        return z + e, norm([e]) / (norm([z.detach()]) + TINY)

    def answers(self, sight: Sight, features: Tensor) -> AbstractContextManager[Any]:
        """Inside, the backbone does no work and answers with these features."""
        return answering(self.backbone, features)
