"""Optimisers and learning-rate schedules as values: `build(parameters)`, and a factor of the rate per epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import nn

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]
SLACK = 1e-9  # shares of epochs are floats: 0.55 of 200 is 110.00000000000001


class Optim(Protocol):
    """What an optimiser is in a recipe."""

    @property
    def lr(self) -> float:
        """The learning rate before the schedule."""
        ...

    def build(self, parameters: Parameters) -> torch.optim.Optimizer:
        """The torch optimiser of these parameters, or of these groups of them."""
        ...


class Schedule(Protocol):
    """What a schedule is in a recipe."""

    def __call__(self, epoch: float, epochs: int) -> float:
        """The factor of the learning rate in an epoch (0-based; with a fraction within it) of so many."""
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum and coupled weight decay."""

    lr: float = 0.1  # learning rate before the schedule
    momentum: float = 0.9  # share of the last direction that is kept
    weight_decay: float = 2e-4  # factor of the weights that is added to their gradient
    nesterov: bool = False  # look ahead along the momentum

    def __post_init__(self) -> None:
        positive_rate(self.lr)
        if not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise ValueError(
                f"momentum is in [0, 1) and weight_decay not negative, and not {self.momentum} and {self.weight_decay}"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum: write `momentum: 0.9`, or leave it out")

    def build(self, parameters: Parameters) -> torch.optim.Optimizer:
        """torch.optim.SGD."""
        how = {"momentum": self.momentum, "weight_decay": self.weight_decay, "nesterov": self.nesterov}
        return torch.optim.SGD(parameters, lr=self.lr, **how)  # type: ignore[arg-type]


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""

    lr: float = 1e-3  # learning rate before the schedule
    weight_decay: float = 0.05  # factor by which weights shrink, times the learning rate
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the means of gradient and square

    def __post_init__(self) -> None:
        positive_rate(self.lr)
        if not self.weight_decay >= 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"weight_decay is not negative and betas are in [0, 1), and not {self.weight_decay} and {self.betas}"
            )

    def build(self, parameters: Parameters) -> torch.optim.Optimizer:
        """torch.optim.AdamW."""
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas)


@dataclass(frozen=True)
class Constant:
    """The learning rate as it is."""

    def __call__(self, epoch: float, epochs: int) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True)
class Multistep:
    """Warm-up in a line, then drops at shares of training."""

    at: tuple[float, ...] = (0.8, 0.9)  # shares of training at which the rate drops
    factors: tuple[float, ...] = (0.01, 0.0001)  # of the full rate, from each drop on
    warmup: float = 0.0  # share of training for the warm-up; 0.025 is 5 of 200 epochs
    start: float = 0.0  # where the warm-up's line begins: one epoch before the first; by the step, with the first

    def __post_init__(self) -> None:
        if len(self.at) != len(self.factors):
            raise ValueError(f"{len(self.at)} drops need as many factors, not {len(self.factors)}")
        rising_shares(at=self.at)
        rising_shares(warmup=[self.warmup])

    def __call__(self, epoch: float, epochs: int) -> float:
        """The factor in this epoch."""
        warm = self.warmup * epochs
        if epoch < warm - SLACK:
            return self.start + (1 - self.start) * min((epoch + 1) / warm, 1.0)
        passed = [f for share, f in zip(self.at, self.factors, strict=True) if epoch >= share * epochs - SLACK]
        return passed[-1] if passed else 1.0


@dataclass(frozen=True)
class Cosine:
    """Half a cosine down to zero, after an optional warm-up (Loshchilov and Hutter, ICLR 2017)."""

    ahead: int = 0  # epochs that the curve runs ahead: 1 where a release steps its scheduler first, so it ends at 0
    warmup: float = 0.0  # share of training for a warm-up in a line

    def __post_init__(self) -> None:
        rising_shares(warmup=[self.warmup])

    def __call__(self, epoch: float, epochs: int) -> float:
        """The factor in this epoch."""
        warm = self.warmup * epochs
        if epoch < warm - SLACK:
            return min((epoch + 1) / warm, 1.0)
        return 0.5 * (1 + math.cos(math.pi * (epoch + self.ahead - warm) / (epochs - warm)))


OPTIMS: dict[str, type] = {"sgd": SGD, "adamw": AdamW}
SCHEDULES: dict[str, type] = {"constant": Constant, "multistep": Multistep, "cosine": Cosine}


def rising_shares(**given: Sequence[float]) -> None:
    """Raise ValueError for what are no shares of training, one after the other."""
    for name, shares in given.items():
        if not all(0 <= share <= 1 for share in shares):
            said = ", ".join(f"{share:g}" for share in shares)
            raise ValueError(f"{name}: shares of training in [0, 1] (epoch 160 of 200 is 0.8), and not {said}")
        if any(a > b for a, b in pairwise(shares)):
            raise ValueError(f"{name}: none before the one before it, and not {', '.join(map(str, shares))}")


def positive_rate(lr: float) -> None:
    """Raise ValueError for a learning rate that is not positive."""
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: a learning rate is positive, and this is {lr}")
