"""SAM-ON: SAM that displaces the normalisation layers alone (Mueller et al., NeurIPS 2023, arXiv 2306.04226)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from .perturb import l2_ball
from .radius import Radius, check_radius, radius_at
from .terms import Context, Term

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class SAMNorms:
    """Everybody from one climb of the normalisation layers' parameters (Mueller et al., NeurIPS 2023).

        max_{||e|| <= rho} L(w + e),   e of the scales and shifts of normalisation layers

    Which layers those are is found by their types, whatever they are called in a model. Cost: 2F + 2B.

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.05  # radius of the ball
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)

    def pattern(self, model: nn.Module) -> str:
        """The names of the normalisation layers' own parameters.

        Raises ValueError for a model without any.
        """
        names = [
            f"{place}.{name}" if place else name
            for place, module in model.named_modules()
            if isinstance(module, NORMS) or re.search(r"Norm(Act)?(\dd)?$", type(module).__name__)
            for name, _ in module.named_parameters(recurse=False)
        ]
        if not names:
            raise ValueError(f"{type(model).__name__} has no normalisation layer with parameters: use SAM, or only=...")
        return f"^({'|'.join(map(re.escape, names))})$"

    def terms(self, at: Context) -> list[Term]:
        """Everybody, at w + e."""
        return [Term("flat", at.ones, l2_ball(radius_at(self.rho, at)))]
