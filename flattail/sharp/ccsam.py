"""CC-SAM, stage 1: Class-Conditional SAM (Zhou et al., CVPR 2023): each class from within its own radius."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .checks import check_choice, check_share
from .noise import Turned
from .perturb import TINY, Radial
from .terms import Context, Term

OVER: dict[str, Literal["batch", "members", "groups"]] = {
    "samples": "batch",
    "classes": "groups",
    "class-sum": "members",
}


@dataclass(frozen=True)
class CCSAM:
    """Every class from its own climb: rare ones, and those with small gradients, further (Zhou et al., CVPR 2023).

        e_c = sqrt(k) rho_c g_c / ||g_c||,   rho_c = (||w|| / (2 ||g_c||))^(1/2) k^(-1/4) (n_c - 1)^(-1/4)   (eqs. 8, 9)

    with g_c the gradient of class c's mean loss, k the number of displaced scalars and ||w|| their norm. The bound's
    other term, ||w|| / (2 rho_c (n_c - 1)^(1/2)) in eqs. 7 and 11, is left out, as in the released code. Table 2's
    ablation takes direction and length apart: `length="unit"` keeps the direction of g_c alone, `direction="random"`
    the length alone, along Gaussian noise (at one small gradient per class, which the length still needs). Cost: F +
    B for the head.

    Without a factor the lengths are between a tenth of ||w|| and beyond it, and a cap then makes all classes alike.
    So the default `scale` is 0.03, chosen with `cap` on validation splits of digits-LT: the cap cuts the longest
    alone.

    Raises ValueError for a field out of its range.
    """

    scale: float = 0.03  # kappa: factor of the radius of eqs. 8-9, which is 1 there and 1e-6 in the released CIFAR runs
    cap: float = 0.05  # ||e_c|| is at most this multiple of ||w||; where it cuts, classes have equal lengths
    mix: float = 1.0  # phi: share of the perturbed loss; the rest stays at w (released: 0.3 and 0.5)
    average: Literal["classes", "class-sum", "samples"] = "classes"  # of the perturbed loss; "class-sum": as in eq. 11
    norm: Literal["global", "per-tensor"] = "global"  # of g_c; "per-tensor" is the released code's
    labels: Literal["mixed", "hard"] = "mixed"  # of the perturbed loss under mixup; "hard" is the released code's
    scope: str = "head"  # what is displaced: "head", "all", or a pattern on parameter names (a pass per class)
    length: Literal["characteristic", "unit"] = "characteristic"  # of e_c: that of eqs. 8-9, or `scale` for each class
    direction: Literal["gradient", "random"] = "gradient"  # of e_c: that of g_c, or a random one for each class

    def __post_init__(self) -> None:
        if not self.scale >= 0 or not self.cap > 0:
            raise ValueError(f"scale must not be negative and cap must be positive, not {self.scale} and {self.cap}")
        check_share("mix", self.mix)
        check_choice("average", self.average, tuple(OVER))
        check_choice("norm", self.norm, ("global", "per-tensor"))
        check_choice("labels", self.labels, ("mixed", "hard"))
        check_choice("length", self.length, ("characteristic", "unit"))
        check_choice("direction", self.direction, ("gradient", "random"))

    @property
    def where(self) -> Literal["weights", "head"]:
        """The head alone, with one pass of the backbone; or weights, with a pass per class."""
        return "head" if self.scope == "head" else "weights"

    @property
    def only(self) -> str | None:
        """The pattern on parameter names, where the scope is one."""
        return None if self.scope in ("head", "all") else self.scope

    def terms(self, at: Context) -> list[Term]:
        """1 - mix at w; mix at w + e_c, class by class."""
        n = (at.counts - 1).clamp(min=1)

        def length(weight: Tensor, slope: Tensor, size: int) -> Tensor:
            if self.length == "unit":
                return torch.full_like(slope, self.scale)
            few = n.to(slope, non_blocking=True) ** 0.25
            reach: Tensor = self.scale * size**0.25 * (weight / (2 * (slope + TINY))).sqrt() / few
            return reach

        climb = Radial(length, per_tensor=self.norm == "per-tensor", cap=self.cap)
        flat = Term(
            "class",
            self.mix * at.ones,
            climb if self.direction == "gradient" else Turned(climb, at.seed),
            over=OVER[self.average],
            by=at.y,
            groups=len(at.counts),
            losses=at.hard if self.labels == "hard" else None,
        )
        return [flat] if self.mix == 1 else [Term("plain", (1 - self.mix) * at.ones), flat]
