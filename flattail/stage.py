"""A stage of training as a value, and what follows from it: who is trained, in which mode, at which rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from .data.halves import Augment
from .data.samplers import Sampler, Uniform
from .losses import CE, Loss
from .optim import SGD, Constant, Optim, Schedule
from .sharp import ERM, Method


@dataclass(frozen=True)
class Stage:
    """A stretch of training: what is minimised, on which batches, by which steps."""

    epochs: int
    method: Method = ERM()
    loss: Loss = CE()
    sampler: Sampler = Uniform()
    optim: Optim = SGD()
    schedule: Schedule = Constant()
    batch: int = 128  # images per step, over all processes
    augment: tuple[Augment, ...] = ()  # in this order, on images in memory
    mixup: float = 0.0  # alpha of the Beta distribution that mixes two images; 0: none
    train: Literal["all", "head"] = "all"  # "head": the backbone is frozen and in evaluation mode
    carry: bool = False  # keep the optimiser and the clock of the stage before
    clock: Literal["epoch", "step"] = "epoch"  # schedules move at epoch borders, or at every step
    micro: int = 1  # micro-batches that a step is cut into
    drop_last: bool = False  # leave out the last, short batch of an epoch
    clip: float | None = None  # largest norm of the gradient
    only: str | None = None  # pattern on the names of the parameters that are displaced
    buffers: Literal["keep", "all"] = "keep"  # do displaced passes move BatchNorm: no, or as the releases do
    dropout: Literal["same", "fresh"] = "same"  # masks in the passes of a step
    climb: Literal["apart", "together"] = "apart"  # processes (for the head: micro-batches) climb each by its own slope

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "micro"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, and is {getattr(self, name)}")
        if not self.mixup >= 0:
            raise ValueError(f"mixup: must be 0 or more, and is {self.mixup}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: must be positive, and is {self.clip}")
        try:
            re.compile(self.only or "")
        except re.error as error:
            raise ValueError(f"only: {self.only!r} is no regular expression ({error})") from error


def refuse_misfits(stages: Sequence[Stage]) -> None:
    """Raise ValueError for stages that cannot follow each other: a carried optimiser stays what it is."""
    if not stages:
        raise ValueError("stages: at least one is needed")
    if stages[0].carry:
        raise ValueError("stages[0].carry: there is no stage before the first; remove it")
    for i, (before, stage) in enumerate(pairwise(stages), start=1):
        if stage.carry and stage.train != before.train:
            raise ValueError(
                f"stages[{i}].carry: the optimiser of the stage before is kept, which trains `{before.train}`, "
                f"not `{stage.train}`: write the same `train`, or remove `carry`"
            )
        if stage.carry and replace(stage.optim, lr=before.optim.lr) != before.optim:  # type: ignore[type-var]
            raise ValueError(
                f"stages[{i}].optim: the optimiser of the stage before is kept (`carry`), only its `lr` may differ: "
                "write the same `optim`, or remove `carry`"
            )


def clock(stages: Sequence[Stage], i: int) -> tuple[int, int]:
    """Epochs that the clock shows when stage i begins, and those of its whole chain of carried stages."""
    first = i
    while first and stages[first].carry:
        first -= 1
    last = i
    while last + 1 < len(stages) and stages[last + 1].carry:
        last += 1
    return sum(s.epochs for s in stages[first:i]), sum(s.epochs for s in stages[first : last + 1])


def freeze(model: nn.Module, stage: Stage) -> list[nn.Parameter]:
    """Leave trainable what the stage trains, and return it."""
    for name, p in model.named_parameters():
        p.requires_grad_(stage.train == "all" or name.startswith("head."))
    return [p for p in model.parameters() if p.requires_grad]


def set_mode(model: nn.Module, stage: Stage) -> None:
    """Training mode; a frozen backbone stays in evaluation mode, BatchNorm included."""
    model.train()
    if stage.train == "head":
        model.get_submodule("backbone").eval()


def set_rate(optimizer: torch.optim.Optimizer, stage: Stage, epoch: float, epochs: int) -> None:
    """The learning rate of this moment."""
    for group in optimizer.param_groups:
        group["lr"] = stage.optim.lr * stage.schedule(epoch, epochs)
