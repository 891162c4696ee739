"""CC-SAM, stage 2: the classifier is trained on features moved against it (Zhou et al., CVPR 2023, eqs. 12 to 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from .checks import check_choice, check_not_negative, check_share
from .perturb import Radial
from .terms import Context, Term


@dataclass(frozen=True)
class AdversarialFeatures:
    """The head on features as they are and, more and more, on features moved up its own slope (CC-SAM, CVPR 2023).

        z_adv = z + strength g / ||g||,   g = grad_z L,   L = (1 - t/T) L(z) + (t/T) L(z_adv)      (12, 13, 14)

    ||.|| is taken sample by sample, our reading: z in eq. 12 is the feature of one sample, and a norm over the batch
    would make the move of each depend on how many others there are. The release takes it over all samples of a class
    in the batch, multiplies noise and loss of class c by v_c = ln(n_max / n_c + .01) / 2, and stops the ramp at
    `limit`: that is `norm="class", rarity=2.0, ahead=1/E` for E epochs. Cost: F + B, and two small backward passes of
    the head.

    Raises ValueError for a field out of its range.
    """

    strength: float = 1.0  # lambda_a: length of the move; 1 in the released code
    limit: float = 1.0  # share of the moved loss at which the ramp stops; released: 1.0 (CIFAR-10) and 0.3 (CIFAR-100)
    norm: Literal["sample", "class", "batch"] = (
        "sample"  # over whom the slope's norm is taken; "class" is the release's
    )
    rarity: float | None = None  # a number: noise and loss of class c times ln(n_max/n_c + .01) / rarity; released: 2
    ahead: float = 0.0  # how much the ramp runs ahead of training; released: one epoch, as a share
    where: ClassVar[Literal["features"]] = "features"

    def __post_init__(self) -> None:
        check_not_negative(strength=self.strength)
        check_share("limit", self.limit)
        check_share("ahead", self.ahead)
        check_choice("norm", self.norm, ("sample", "class", "batch"))
        if self.rarity is not None and not self.rarity > 0:
            raise ValueError(f"`rarity` divides, so it is positive, not {self.rarity}")
        if self.rarity is not None and self.norm == "batch":
            raise ValueError("`rarity` has a length per class, and norm='batch' one for all: use 'sample' or 'class'")

    def terms(self, at: Context) -> list[Term]:
        """1 - t/T at z, t/T at z + e."""
        ramp = min(at.progress + self.ahead, self.limit)
        weight, length = ramp * at.ones, at.ones.new_full((), self.strength)
        if self.rarity is not None:
            n = at.counts.clamp(min=1).to(at.ones)
            v = (n.max() / n + 0.01).log() / self.rarity
            weight, length = weight * v[at.y], length.to(v) * (v if self.norm == "class" else v[at.y])
        climb = Radial(lambda w, g, k: torch.zeros_like(g) + length.to(g, non_blocking=True))
        by = {"sample": None, "class": at.y, "batch": torch.zeros_like(at.y)}[self.norm]
        groups = len(at.counts) if self.norm == "class" else 1
        return [Term("plain", (1 - ramp) * at.ones), Term("adversarial", weight, climb, by=by, groups=groups)]
