"""A stage of training as a value, and what follows from it: who is trained, in which mode, at which rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from .averages import Average
from .constraints import Constraint
from .data import LongTail
from .data.halves import Augment
from .data.mix import Mix
from .data.samplers import Sampler, Uniform
from .losses import CE, Loss
from .losses.contract import masses_of
from .optim import SGD, SLACK, Constant, Cosine, Multistep, Optim, Schedule
from .sharp import ERM, Method, SharpnessAware
from .sharp.shares import cancels
from .starts import Keep, Start


@dataclass(frozen=True)
class Stage:
    """A stretch of training: what is minimised, on which batches, by which steps.

    Raises ValueError for a field out of its range, and for fields that do not go together.
    """

    epochs: int  # passes over the training images; 0 where the start does the whole work
    method: Method = ERM()  # `flattail list methods`
    loss: Loss = CE()  # `flattail list losses`
    sampler: Sampler = Uniform()  # which images make a batch
    optim: Optim = SGD()  # `flattail list optims`
    schedule: Schedule = Constant()  # factor on the learning rate over the epochs
    batch: int = 128  # images per step, over all processes
    augment: tuple[Augment, ...] = ()  # in this order, on images in memory
    mix: Mix | None = None  # images made of two: mixup, cutmix, remix
    start: Start = Keep()  # what becomes of the classifier when the stage begins
    init: str | None = None  # the first stage: a finished run to take the weights from; {seed} in it is the seed
    train: str = "all"  # what is trained: "all", "head", or a pattern on the names of parameters
    statistics: Literal["frozen", "moving", "kept"] = "frozen"  # kept by: frozen modules, no BatchNorm, every BatchNorm
    rates: tuple[tuple[str, float], ...] = ()  # factors on the learning rate; the first pattern found in a name counts
    average: Average | None = None  # of the weights along the stage, which are the model's at its end
    constraint: Constraint | None = None  # what the weights obey while the stage lasts
    carry: bool = False  # keep the optimiser and the clock of the stage before
    clock: Literal["epoch", "step"] = "epoch"  # schedules move at epoch borders, or at every step
    micro: int = 1  # micro-batches that a step is cut into
    drop_last: bool = False  # leave out the last, short batch of an epoch
    clip: float | None = None  # largest norm of the gradient
    only: str | None = None  # pattern on the names of the parameters that are displaced
    buffers: Literal["keep", "all"] = "keep"  # do displaced passes move BatchNorm: no, or as the releases do
    dropout: Literal["same", "fresh"] = "same"  # masks in the passes of a step
    climb: Literal["apart", "together"] = "apart"  # processes (for the head: micro-batches) climb each by its own slope
    on_nan: Literal["stop", "skip"] = "stop"  # at a loss or slope that is not finite: end, or leave the step out

    def __post_init__(self) -> None:
        for name, least in (("epochs", 0), ("batch", 1), ("micro", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, and is {getattr(self, name)}")
        if self.epochs == 0 and self.start == type(self).start:
            raise ValueError("epochs: 0 is for a stage whose `start` does the whole work, and this has none")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: must be positive, and is {self.clip}")
        for name, pattern in (("only", self.only), ("train", self.train), *(("rates", p) for p, _ in self.rates)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(f"{name}: {pattern!r} is no regular expression ({error})") from error
        for pattern, factor in self.rates:
            if not factor >= 0:
                raise ValueError(f"rates: a factor is 0 or more, and that of {pattern!r} is {factor}")


def refuse_misfits(stages: Sequence[Stage]) -> None:
    """Raise ValueError for stages that cannot follow each other: a carried optimiser stays what it is."""
    if not stages:
        raise ValueError("stages: at least one is needed")
    if stages[0].carry:
        raise ValueError("stages[0].carry: there is no stage before the first; remove it")
    for i, (before, stage) in enumerate(pairwise(stages), start=1):
        if stage.init is not None:
            raise ValueError(
                f"stages[{i}].init: only the first stage takes its weights from a run; this goes on with those of the "
                "stage before: remove it"
            )
        if not stage.carry:
            continue
        place = f"stages[{i}].carry: the optimiser of the stage before is kept"
        if before.epochs == 0 or stage.start != Stage.start:
            raise ValueError(f"{place}, but a `start` makes the classifier a new one: remove `carry`")
        for name, does in (("train", "trains"), ("rates", "has rates")):
            if (was := getattr(before, name)) != (now := getattr(stage, name)):
                raise ValueError(
                    f"{place}, which {does} `{was}`, not `{now}`: write the same `{name}`, or remove `carry`"
                )
        if replace(stage.optim, lr=before.optim.lr) != before.optim:  # type: ignore[type-var]
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
    """Leave trainable what the stage trains, and return it. ValueError if that is nothing."""
    pattern = {"all": "", "head": r"^head\."}.get(stage.train, stage.train)
    for name, p in model.named_parameters():
        p.requires_grad_(re.search(pattern, name) is not None)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"train: no parameter has {stage.train!r} in its name; {last_names(model)}")
    return trained


def grouped(model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """The trainable parameters in groups by the factor on their rate, as torch's optimisers take them.

    Raises ValueError for a pattern that decides over no trained parameter.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    used: set[str] = set()
    for name, p in model.named_parameters():
        if p.requires_grad:
            pattern, factor = next(((r, f) for r, f in stage.rates if re.search(r, name)), ("", 1.0))
            used.add(pattern)
            groups.setdefault(factor, []).append(p)
    for pattern, _ in stage.rates:
        if pattern not in used:
            raise ValueError(f"rates: {pattern!r} is the first to be found in no trained name; {last_names(model)}")
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]


def last_names(model: nn.Module) -> str:
    """The names that patterns are mostly about."""
    return f"the last names are {[n for n, _ in model.named_parameters()][-4:]}"


def set_mode(model: nn.Module, stage: Stage) -> None:
    """Training mode; modules all of whose parameters are frozen are in evaluation mode, unless statistics move.

    Where statistics are kept, so is every BatchNorm whose parameters are trained.
    """
    model.train()
    if stage.statistics == "moving":
        return
    for module in model.modules():
        own = [p.requires_grad for p in module.parameters()]
        frozen = bool(own) and not any(own)
        if frozen or (stage.statistics == "kept" and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            module.eval()


def set_rate(optimizer: torch.optim.Optimizer, stage: Stage, epoch: float, epochs: int) -> float:
    """The learning rate of this moment, times the factor of each group; returns it without.

    A warm-up gives an epoch the rate of its end, as published; by the step it runs through the epoch, from its start.
    """
    warm = isinstance(stage.schedule, Multistep | Cosine) and epoch < stage.schedule.warmup * epochs - SLACK
    rate = stage.optim.lr * stage.schedule(epoch - 1 if warm and stage.clock == "step" else epoch, epochs)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def cancelled(stages: Sequence[Stage], data: LongTail) -> list[str]:
    """What to say where a mean over each class makes the class weights of the loss cancel, stage by stage."""
    few = data.group().get("few", data.counts < 20)
    return [
        f"stage {i}: the method's mean over each class cancels the class weights of the loss: take the mean over "
        "samples (`average: samples`) for weights that count"
        for i, stage in enumerate(stages)
        if stage.epochs and cancels(stage.method, data.counts, few) and masses_of(stage.loss, data.counts) is not None
    ]


def sharpness_aware(net: nn.Module, stage: Stage, data: LongTail) -> SharpnessAware:
    """What stands where `loss.backward()` stood in this stage."""
    return SharpnessAware(
        net, stage.method, data.counts, few=data.group().get("few"), only=stage.only,
        buffers=stage.buffers, dropout=stage.dropout, climb_together=stage.climb == "together",
    )  # fmt: skip
