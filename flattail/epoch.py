"""The steps of an epoch and their record; what they need: the call of `fit` they belong to, and their stage at work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from . import checkpoint as checkpoints
from .batches import batches_from, epoch_batches
from .checkpoint import Interrupted, Meters, Place, State, Stop
from .closures import Batch, objective
from .data.addressed import address
from .data.longtail import LongTail
from .data.streamed import may_skip, unread
from .devices import common_statistics
from .sharp import SharpnessAware
from .sharp.perturb import norm
from .sharp.report import Report
from .stage import Stage, clock, set_mode, set_rate


@dataclass
class Training:
    """What a call of `fit` was given, and where it stands."""

    model: nn.Module
    data: LongTail
    stages: Sequence[Stage]
    seed: int
    accelerator: Accelerator
    workers: int
    compile: bool
    checkpoint: Path | None
    every: float
    identity: str
    score: Callable[[nn.Module], float] | None
    watch: Callable[[nn.Module], dict[str, Any]] | None
    on_epoch: Callable[[dict[str, Any]], None]
    on_step: Callable[[Place, int], None]
    state: State
    begun: float = field(default_factory=time.monotonic)
    before: float = 0.0  # seconds in the processes before this one
    written: float = field(default_factory=time.monotonic)  # when the last checkpoint was

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(s.epochs for s in self.stages)

    @property
    def wall(self) -> float:
        """Seconds until now, in this process and those before."""
        return self.before + time.monotonic() - self.begun

    def note_unread(self) -> int:
        """How many training images could not be read until now, in any process; the state remembers which."""
        if may_skip(self.data.train):
            for found in gather_object([unread(self.data.train)]):
                self.state.unread |= found
        return len(self.state.unread)

    def save(self, work: Work | None) -> None:
        """Write the checkpoint, if there is to be one and the weights are finite; the step after others will say so."""
        if self.checkpoint is not None and torch.isfinite(norm([p.detach() for p in self.model.parameters()])):
            self.state.wall = self.wall
            tensors = {} if work is None else work.tensors()
            checkpoints.save(
                self.checkpoint, self.model, tensors, self.accelerator, self.state, self.identity,
                self.data.fingerprint,
            )  # fmt: skip
            self.written = time.monotonic()


@dataclass
class Work:
    """A stage in progress: what it has beside the model, and remembers from step to step."""

    net: nn.Module  # the model as the steps call it
    optimizer: torch.optim.Optimizer
    flat: SharpnessAware
    average: AveragedModel | None
    bounds: dict[str, Tensor]  # what the constraint remembers
    copy: nn.Module | None  # to be judged in the model's place; None: the model itself can be

    def tensors(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "method": self.flat.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "bounds": self.bounds,
        }


def train_epoch(run: Training, i: int, epoch: int, work: Work, stop: Stop) -> dict[str, Any]:
    """Every step of an epoch, from where training stands; returns its record, in plain values."""
    stage, state, accelerator = run.stages[i], run.state, run.accelerator
    flat, optimizer = work.flat, work.optimizer
    flat.report = Report(type(stage.method).__name__)
    vars(flat.report).update(state.report or {})
    state.report = None
    set_mode(run.model, stage)
    begun, epochs = clock(run.stages, i)
    key, meters, since = address(run.seed, i, epoch), state.meters, time.monotonic()
    batches = epoch_batches(run.data.train, stage, key, (begun + epoch) / epochs)
    first, bad = state.place.step, torch.full((), -1, device=accelerator.device)
    steps = batches_from(run.data.train, stage, batches[first:], key, first, accelerator, run.workers)
    for step, batch in enumerate(steps, start=first):
        state.place = Place(i, epoch, step)
        if number := stop.agreed(accelerator, step):
            must_be_finite(bad, batches, run)
            meters.seconds += time.monotonic() - since
            meters.right = over_processes(meters.right, accelerator)
            common_statistics(run.model, accelerator)
            state.report = vars(flat.report)
            run.note_unread()
            run.save(work)
            raise Interrupted(128 + number)
        run.on_step(state.place, len(batches))
        torch.manual_seed(address(key, step, accelerator.process_index, "noise"))
        now = begun + epoch + (step / len(batches) if stage.clock == "step" else 0)
        rate = set_rate(optimizer, stage, now, epochs)
        optimizer.zero_grad()
        before = Before(run.model, flat.report) if stage.on_nan == "skip" else None
        pieces = min(stage.micro, max(len(batches[step]) // accelerator.num_processes, 1))  # as many in every process
        loss, right = step_backward(run, flat, stage, batch.cut(pieces), now / epochs, (key, step))
        if before is not None:
            if not_finite(loss, accelerator):
                before.put_back(run.model, flat.report)
                if accelerator.scaler is not None:
                    step_optimizer(optimizer, stage, accelerator)  # it lowers its scale, and takes no step
                state.steps += 1
                meters.skipped += 1
                continue
        else:
            bad = torch.where((bad < 0) & ~torch.isfinite(loss), step, bad)
            if accelerator.device.type == "cpu" or (accelerator.scaler is None and step % 50 == 0):
                must_be_finite(bad, batches, run)
        step_optimizer(optimizer, stage, accelerator)
        if stage.constraint is not None:
            stage.constraint.after_step(run.model, work.bounds)
        if stage.average is not None and work.average is not None:
            stage.average.after_step(work.average, run.model)
        state.steps += 1
        meters.loss = meters.loss + loss * len(batches[step])
        meters.right = meters.right + right
        meters.images += len(batches[step])
    return record(run, flat, batches, bad, rate, since)


def record(
    run: Training, flat: SharpnessAware, batches: Sequence[Tensor], bad: Tensor, rate: float, since: float
) -> dict[str, Any]:
    """What an epoch's row says once its steps are done; the meters begin anew. FloatingPointError as in `fit`."""
    accelerator, meters, (stage, epoch, _) = run.accelerator, run.state.meters, run.state.place
    if not meters.images:
        raise FloatingPointError(
            f"stage {stage}, epoch {epoch}: no step had a finite loss and slope, and on_nan: skip left out all of "
            f"them; {kept_by(run)}. Lower the learning rate or rho, add a warm-up, or clip the gradient"
        )
    right = over_processes(meters.right, accelerator)
    mean = torch.as_tensor(meters.loss) / meters.images
    must_be_finite(torch.where((bad < 0) & ~torch.isfinite(mean), len(batches) - 1, bad), batches, run)
    common_statistics(run.model, accelerator)
    run.state.meters = Meters()
    return {
        "loss": float(mean),
        "accuracy": float(right) / meters.images,
        "lr": rate,
        "seconds": round(meters.seconds + time.monotonic() - since, 3),
        "images": meters.images,
        **({"skipped": meters.skipped} if meters.skipped else {}),
        **({"unread": missed} if (missed := run.note_unread()) else {}),
        **flat.report.passes,
        "terms": flat.report.row(),
        "cosines": flat.report.cosines,
    }


def step_backward(
    run: Training, flat: SharpnessAware, stage: Stage, pieces: list[Batch], progress: float, place: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The gradient of a step; returns the loss at w and the number of images that were classified rightly.

    `pieces` are its micro-batches, as many in every process; `place` is the address of the step: the key of its epoch,
    and its number there.
    The loss is NaN where it, a slope or the gradient is not finite; but where a scaler deals with those, only the loss
    counts.
    """
    key = address(*place, "mixup")
    objectives = [objective(flat.model, stage, run.data.counts, piece, key + j) for j, piece in enumerate(pieces)]
    losses, labels, hard = (list(each) for each in zip(*objectives, strict=True))
    loss = flat.backward(
        losses, labels, progress,
        step=run.state.steps, hard=hard, scaler=run.accelerator.scaler, seed=address(*place, "climb"),
    )  # fmt: skip
    out = flat.outcome
    assert out is not None and out.finite is not None
    if run.accelerator.scaler is None:
        gradient = norm([p.grad for p in run.model.parameters() if p.grad is not None])
        loss = torch.where(out.finite & torch.isfinite(gradient), loss, torch.nan)
    return loss, torch.cat(out.seen).sum()


def step_optimizer(optimizer: torch.optim.Optimizer, stage: Stage, accelerator: Accelerator) -> None:
    """Unscale, clip, step."""
    scaler = accelerator.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    if stage.clip is not None:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], stage.clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


class Before:
    """What a step changes that can be left out: statistics and other buffers of the model, and sums of the report."""

    def __init__(self, model: nn.Module, report: Report) -> None:
        self.buffers = [b.clone() for b in model.buffers()]
        self.sums = {name: dict(v) if isinstance(v, dict) else v for name, v in vars(report).items()}

    @torch.no_grad()
    def put_back(self, model: nn.Module, report: Report) -> None:
        """As if the step had not been."""
        for now, then in zip(model.buffers(), self.buffers, strict=True):
            now.copy_(then)
        vars(report).update(self.sums)


def not_finite(loss: Tensor, accelerator: Accelerator) -> bool:
    """Whether the loss is not finite in this process or another."""
    return bool(accelerator.reduce((~torch.isfinite(loss)).float()) > 0)


def must_be_finite(bad: Tensor, batches: Sequence[Tensor], run: Training) -> None:
    """Stop if some step of the epoch was not finite: `bad` is the first, and negative where there is none."""
    if (step := int(bad)) < 0:
        return
    stage, epoch, _ = run.state.place
    rows = ", ".join(map(str, batches[step].tolist()))
    raise FloatingPointError(
        f"the loss or its slope is not finite in stage {stage}, epoch {epoch}, step {step}; {kept_by(run)}. "
        f"The batch is rows {rows} of the training images. "
        "Lower the learning rate or rho, add a warm-up, clip the gradient, or leave such steps out (on_nan: skip)"
    )


def kept_by(run: Training) -> str:
    """Where one could go on from."""
    there = run.checkpoint is not None and run.checkpoint.exists()
    return f"the last good checkpoint is {run.checkpoint}" if there else "there is no checkpoint yet"


def over_processes(right: Tensor | float, accelerator: Accelerator) -> Tensor:
    """The sum of what the processes counted."""
    return accelerator.reduce(torch.as_tensor(right, dtype=torch.float32, device=accelerator.device))
