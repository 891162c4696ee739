"""How long training takes: a few real steps, timed."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from ..answers import logits_of
from ..batches import batches_from, epoch_batches
from ..closures import objective
from ..data import LongTail
from ..data.folder_images import Held
from ..data.loading import workers_here
from ..devices import accelerated
from ..rebuilt import build
from ..recipe import Recipe
from ..sharp import ERM, SAM
from ..stage import Stage, clock, freeze, grouped, set_mode, sharpness_aware
from ..starts import shaped
from .choices import RHO, Pace, recipe_of
from .plan import Plan

STEPS = 3  # that are timed, after one that is not
LOOKED = 256  # images whose evaluation is timed


class Timed(NamedTuple):
    """A model on its device, the data, and how long an image takes to read there."""

    model: nn.Module
    data: LongTail
    accelerator: Accelerator
    reading: float  # seconds an image from disk, in one thread; 0: held in memory

    @staticmethod
    def of(recipe: Recipe, data: LongTail, device: str | None, reading: float) -> Timed:
        """A recipe's model, new."""
        accelerator = accelerated(device, recipe.precision)
        model = build(recipe, data, 0).to(accelerator.device)
        return Timed(model, data, accelerator, 0.0 if isinstance(data.train, Held) else reading)

    def epoch(self, stage: Stage, progress: float = 0.0) -> float:
        """Seconds of an epoch of a stage, at this share of training."""
        steps = math.ceil(len(self.data.train) / stage.batch)
        return steps * max(self.step(stage, progress), stage.batch * self.reading / workers_here())

    def step(self, stage: Stage, progress: float) -> float:
        """Seconds of a step of a stage, by its own method."""
        model, data, device = self.model, self.data, self.accelerator.device
        freeze(model, stage)
        set_mode(model, stage)
        optimizer = stage.optim.build(grouped(model, stage))
        flat = sharpness_aware(model, stage, data)
        rows = epoch_batches(data.train, stage, 0, progress)[: 1 + STEPS]
        took, begun = [], time.perf_counter()
        for step, batch in enumerate(batches_from(data.train, stage, rows, 0, 0, self.accelerator, 0)):
            begun = time.perf_counter() if self.reading else begun
            optimizer.zero_grad()
            losses, labels, hard = objective(model, stage, data.counts.to(device), batch, step)
            flat.backward(losses, labels, progress, step=step, hard=hard)
            optimizer.step()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            took.append(time.perf_counter() - begun)
            begun = time.perf_counter()
        return statistics.median(took[1:] or took)

    def beside(self, stage: Stage) -> float:
        """Seconds of a run beside its epochs: reading images into memory is not counted, features for a start are."""
        half = self.data.test.take(torch.arange(min(LOOKED, len(self.data.test))))
        logits_of(self.model, half.take(torch.arange(1)), device=self.accelerator.device)  # set-up is not timed
        begun = time.perf_counter()
        logits_of(self.model, half, device=self.accelerator.device)
        each = (time.perf_counter() - begun) / len(half)
        looks = len(self.data.test) + (len(self.data.train) if stage.start != Stage.start else 0)
        return looks * max(each, self.reading / workers_here())


def pace(plan: Plan, data: LongTail, device: str | None, reading: float) -> Pace:
    """Seconds of an epoch, by plain steps and by SAM's, and beside the epochs."""
    recipe = recipe_of(plan, [plan.stage], "")
    timed = Timed.of(recipe, data, device, reading)
    shaped(timed.model, [plan.stage.start], data.classes)
    plainly, sharply = (timed.epoch(replace(plan.stage, method=method)) for method in (ERM(), SAM(RHO)))
    return Pace(plainly, sharply, timed.beside(plan.stage))


def seconds(recipe: Recipe, data: LongTail, device: str | None, reading: float) -> float:
    """Of one run of a recipe: its stages' steps by their own methods and losses."""
    timed = Timed.of(recipe, data, device, reading)
    total = timed.beside(recipe.stages[0])
    for i, stage in enumerate(recipe.stages):
        shaped(timed.model, [stage.start], data.classes)
        begun, epochs = clock(recipe.stages, i)
        total += stage.epochs * timed.epoch(stage, begun / epochs) if stage.epochs else 0.0
    return total
