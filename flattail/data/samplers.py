"""Who is in the batches of an epoch.

p_c ∝ n_c^q :  q = 1 as the data are (uniform) · 0 every class alike (balanced) · 1/2 (square-root)
progressive:   p_c = (1 − t)·n_c/N + t/C,  t the share of training done      (Kang et al., ICLR 2020, eq. 1–2)
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor


class Sampler(Protocol):
    """The labels [N] to one epoch of index batches; N draws, the last batch perhaps short."""

    def __call__(
        self, y: Tensor, batch: int, *, generator: Generator, progress: float, drop_last: bool = False
    ) -> list[Tensor]:
        """``progress`` is the share of training done, in [0, 1]; ``generator`` is a CPU generator."""

    def shares(self, counts: Tensor, progress: float) -> Tensor:
        """The classes' shares [C] (float64, sum 1) that batches of classes of these sizes [C] have in the mean."""


@dataclass(frozen=True)
class Uniform:
    """Every sample once per epoch, in random order."""

    def __call__(
        self, y: Tensor, batch: int, *, generator: Generator, progress: float, drop_last: bool = False
    ) -> list[Tensor]:
        """One epoch of index batches."""
        return batches(torch.randperm(len(y), generator=generator), batch, drop_last)

    def shares(self, counts: Tensor, progress: float) -> Tensor:
        """Shares [C] as the data have them."""
        return shares(counts.double())


@dataclass(frozen=True)
class Balanced:
    """Every class equally often: shuffled classes in a cycle, each with its shuffled samples in a cycle.

    Raises ValueError for a field out of its range.
    """

    per_class: int = 1  # samples in a row of one class (CC-SAM 1, cRT and MiSLAS 4)

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise ValueError(f"per_class: at least one sample in a row, and not {self.per_class}")

    def __call__(
        self, y: Tensor, batch: int, *, generator: Generator, progress: float, drop_last: bool = False
    ) -> list[Tensor]:
        """One epoch of index batches."""
        present = y.unique()
        turns = -(-len(y) // (len(present) * self.per_class))
        classes = torch.rand(turns, len(present), generator=generator).argsort(1)  # [turns, C]
        each = torch.stack([cycle((y == c).nonzero()[:, 0], turns * self.per_class, generator) for c in present])
        drawn = each.view(len(present), turns, self.per_class)[classes, torch.arange(turns)[:, None]]
        return batches(drawn.flatten()[: len(y)], batch, drop_last)

    def shares(self, counts: Tensor, progress: float) -> Tensor:
        """The same share for every class [C] that has samples."""
        return shares((counts > 0).double())


class ByShares(ABC):
    """As many rows as samples, with replacement: a class by its share, then one of its samples."""

    @abstractmethod
    def shares(self, counts: Tensor, progress: float) -> Tensor:
        """Shares [C] of classes of these sizes [C]."""

    def __call__(
        self, y: Tensor, batch: int, *, generator: Generator, progress: float, drop_last: bool = False
    ) -> list[Tensor]:
        """One epoch of index batches."""
        size = torch.bincount(y)
        classes = torch.multinomial(self.shares(size, progress), len(y), replacement=True, generator=generator)
        start = size.cumsum(0) - size
        inside = (torch.rand(len(y), generator=generator, dtype=torch.float64) * size[classes]).long()
        return batches(y.argsort(stable=True)[start[classes] + inside], batch, drop_last)


@dataclass(frozen=True)
class SquareRoot(ByShares):
    """Classes drawn by the square root of their size, with replacement (Mahajan et al., ECCV 2018)."""

    def shares(self, counts: Tensor, progress: float) -> Tensor:
        """Shares [C] by the square root of the sizes."""
        return shares(counts.double().sqrt())


@dataclass(frozen=True)
class Progressive(ByShares):
    """From the classes as they are to every class alike, as training goes (Kang et al., ICLR 2020)."""

    def shares(self, counts: Tensor, progress: float) -> Tensor:
        """Shares [C] between those of the data and equal ones."""
        n, present = counts.double(), (counts > 0).double()
        return (1 - progress) * n / n.sum() + progress * present / present.sum()


@dataclass(frozen=True)
class Reversed(ByShares):
    """Classes drawn by the inverse of their size, with replacement: BBN's second branch (Zhou et al., CVPR 2020)."""

    def shares(self, counts: Tensor, progress: float) -> Tensor:
        """Shares [C] by the inverse of the sizes."""
        n = counts.double()
        return shares(torch.where(n > 0, 1 / n.clamp(min=1), 0.0))


@dataclass(frozen=True)
class EffectiveNumber(ByShares):
    """Samples drawn by one over their class's effective number, with replacement: "Resample" of LDAM-DRW's code.

    (1 - beta) / (1 - beta^n_c) each (Cui et al., CVPR 2019); there the sampler is made and never used.

    Raises ValueError for a field out of its range.
    """

    beta: float = 0.9999  # 0: as the data are; towards 1: every class alike

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta: a share in [0, 1), e.g. 0.9999, and not {self.beta}")

    def shares(self, counts: Tensor, progress: float) -> Tensor:
        """Shares [C] by size over effective number."""
        n = counts.double()
        effective = (1 - self.beta**n) / (1 - self.beta)
        return shares(torch.where(n > 0, n / effective.clamp(min=1), 0.0))


SAMPLERS = {
    "uniform": Uniform,
    "balanced": Balanced,
    "square-root": SquareRoot,
    "progressive": Progressive,
    "reversed": Reversed,
    "effective-number": EffectiveNumber,
}


def shares(mass: Tensor) -> Tensor:
    """Masses [C] made to sum to 1."""
    return mass / mass.sum()


def batches(order: Tensor, batch: int, drop_last: bool) -> list[Tensor]:
    """An epoch cut into batches."""
    cut = list(order.split(batch))
    return cut[:-1] if drop_last and cut and len(cut[-1]) < batch else cut


def cycle(rows: Tensor, n: int, generator: Generator) -> Tensor:
    """The first ``n`` of an endless walk through ``rows``, shuffled anew on every round."""
    rounds = -(-n // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=generator)] for _ in range(rounds)])[:n]
