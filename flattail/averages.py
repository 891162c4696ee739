"""Averages of the weights along a stage, which become the model's when it ends.

EMA  a <- d a + (1 - d) w after each step;    SWA  a = mean of w over the last epochs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

SLACK = 1e-9  # shares of epochs are floats


class Average(Protocol):
    """What an average is in a recipe."""

    def begin(self, model: nn.Module) -> AveragedModel:
        """An average without anything in it yet."""
        ...

    def after_step(self, average: AveragedModel, model: nn.Module) -> None:
        """Take in the weights after a step, or not."""
        ...

    def after_epoch(self, average: AveragedModel, model: nn.Module, progress: float) -> None:
        """Take in the weights after an epoch, or not; `progress` is the share of the stage that is done, in (0, 1]."""
        ...


@dataclass(frozen=True)
class EMA:
    """Exponential moving average of the weights, a step at a time, from the first step of the stage on.

    Raises ValueError for a field out of its range.
    """

    decay: float = 0.999  # of the average, per step

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: a share in [0, 1), e.g. 0.999, and not {self.decay}")

    def begin(self, model: nn.Module) -> AveragedModel:
        """torch's."""
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay))

    def after_step(self, average: AveragedModel, model: nn.Module) -> None:
        """Always: torch's `update_parameters` without its copy of the count to the device, which waits."""
        if average.n_averaged == 0:
            average.update_parameters(model)
            return
        with torch.no_grad():
            pairs = zip(average.module.parameters(), model.parameters(), strict=True)
            means, weights = zip(*((mean, p) for mean, p in pairs if p.requires_grad), strict=True)
            torch._foreach_lerp_(means, weights, 1 - self.decay)
            for mean, now in zip(average.module.buffers(), model.buffers(), strict=True):
                mean.copy_(now)
        average.n_averaged += 1

    def after_epoch(self, average: AveragedModel, model: nn.Module, progress: float) -> None:
        """Never."""


@dataclass(frozen=True)
class SWA:
    """Stochastic weight averaging: the mean of the weights after each of the last epochs (Izmailov et al., UAI 2018).

    The learning rate of those epochs is the schedule's.

    Raises ValueError for a field out of its range.
    """

    start: float = 0.75  # share of the stage after which epochs count

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(f"start: a share of the stage in [0, 1), e.g. 0.75, and not {self.start}")

    def begin(self, model: nn.Module) -> AveragedModel:
        """torch's."""
        return AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())

    def after_step(self, average: AveragedModel, model: nn.Module) -> None:
        """Never."""

    def after_epoch(self, average: AveragedModel, model: nn.Module, progress: float) -> None:
        """Once the start is passed."""
        if progress > self.start + SLACK:
            average.update_parameters(model)


AVERAGES: dict[str, type] = {"ema": EMA, "swa": SWA}


@torch.no_grad()
def recompute_statistics(model: nn.Module, images: Iterable[Tensor]) -> None:
    """BatchNorm's means and variances anew: over batches of images [B, ch, H, W], each batch counting equally.

    torch's `update_bn`, but for BatchNorm that is in evaluation mode, as in a frozen backbone: it stays as it is.
    """
    moving = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm) and m.training}
    if not moving:
        return
    for norm in moving:
        norm.reset_running_stats()
        norm.momentum = None
    for x in images:
        model(x)
    for norm, momentum in moving.items():
        norm.momentum = momentum
