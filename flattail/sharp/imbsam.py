"""ImbSAM: Imbalanced SAM (Zhou et al., ICCV 2023, arXiv 2308.07815): the tail alone is made flat."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from .checks import check_choice, check_not_negative, check_number
from .perturb import l2_ball
from .radius import Radius, check_radius, radius_at
from .terms import Context, Term

Eta = int | Literal["few"]


def check_eta(eta: Eta) -> None:
    """Raise ValueError for what is no border between head and tail."""
    if isinstance(eta, str):
        check_choice("eta", eta, ("few",))
    else:
        check_number("eta", eta, 1)


def tail_classes(counts: Tensor, few: Tensor, eta: Eta) -> Tensor:
    """The classes with fewer than eta samples (strictly), `[C]` bool; "few" is the data set's own group."""
    return few if eta == "few" else counts < eta


def check_split(counts: Tensor, few: Tensor, eta: Eta) -> None:
    """Raise ValueError where eta leaves no tail class, and warn where it leaves no other."""
    tail = tail_classes(counts, few, eta)
    if bool(tail.all()):
        warnings.warn(
            f"eta={eta!r} makes every class tail: the largest has {int(counts.max())} samples, so there is no head",
            stacklevel=4,
        )
    if not bool(tail.any()):
        smallest, largest = int(counts.min()), int(counts.max())
        raise ValueError(
            f"eta={eta!r} leaves no tail class: the classes have {smallest} to {largest} samples, and the tail are "
            f"those with fewer than eta; choose eta above {smallest}"
        )


@dataclass(frozen=True)
class ImbSAM:
    """The head where it stands, the tail from its own climb (Zhou et al., ICCV 2023).

        L_head(w) + max_{||e|| <= rho} L_tail(w + e)

    Raises ValueError for a field out of its range.
    """

    rho: Radius = 0.05  # radius of the tail's ball
    eta: Eta = 20  # classes with fewer samples are tail; "few": the data set's few-shot classes
    tail_weight: float = 1.0  # factor of the tail's loss; 2 in the authors' code
    over: Literal["batch", "members"] = "batch"  # divide by the batch, or each group by its own size (SSE-SAM's copy)
    where: ClassVar[Literal["weights", "head"]] = "weights"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_eta(self.eta)
        check_not_negative(tail_weight=self.tail_weight)
        check_choice("over", self.over, ("batch", "members"))

    def check(self, at: Context) -> None:
        """Raise ValueError where eta leaves no tail."""
        check_split(at.counts, at.few, self.eta)

    def terms(self, at: Context) -> list[Term]:
        """The head at w, the tail at w + e."""
        tail = tail_classes(at.counts, at.few, self.eta)[at.y].to(at.ones)
        climb = l2_ball(radius_at(self.rho, at))
        return [
            Term("head", 1 - tail, over=self.over),
            Term("tail", self.tail_weight * tail, climb, over=self.over),
        ]
