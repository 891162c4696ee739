"""Training: stages in, records out. The only training loop.

What a step draws (order, augmentation, mixup, dropout) has an address, (seed, stage, epoch, step, position in the
batch), and no state: a checkpoint is tensors and a place, and workers or processes change nothing that is drawn.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from . import checkpoint as checkpoints
from .checkpoint import Interrupted, Meters, Place, State, Stop, stopping
from .closures import Batch, mixed, plain
from .data.addressed import address, seeds
from .data.halves import Draw, Half, in_order
from .data.longtail import LongTail
from .sharp import SharpnessAware
from .stage import Stage, clock, freeze, refuse_misfits, set_mode, set_rate

__all__ = ["Interrupted", "Place", "Stage", "accelerated", "fit", "logits_of"]


def fit(
    model: nn.Module,
    data: LongTail,
    stages: Sequence[Stage],
    *,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    workers: int = 0,
    compile: bool = False,
    checkpoint: Path | None = None,
    every: float = 20.0,
    identity: str = "",
    score: Callable[[nn.Module], float] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    on_step: Callable[[Place, int], None] = lambda place, steps: None,
) -> int:
    """Train a model in place, stage after stage.

    Args:
        model: a `Split`, or for methods in weight space any module from images to logits.
        data: its training half is learnt from.
        stages: what to do, in order; a carried stage goes on with the optimiser and the clock of the one before.
        seed: addresses everything that is drawn.
        accelerator: device, processes and precision; by default what Accelerate finds here.
        workers: processes that read images that are not in memory.
        compile: compile the model, or for head methods its backbone.
        checkpoint: a file; what it holds is continued bit for bit (on the CPU), and it is rewritten as training goes.
        every: seconds between checkpoints, which are written at epoch borders, and anywhere on SIGTERM or SIGINT.
        identity: what the checkpoint must have been made by, e.g. the text of the recipe.
        score: of the model after each epoch; the weights with the highest score are left in the model.
        on_epoch: receives a row of plain values after each epoch, in the main process.
        on_step: receives the place and the number of steps of the epoch, before each step.

    Returns:
        The epoch (0-based, over the whole run) whose weights the model holds.

    Raises:
        ValueError: for stages that do not fit each other, or a checkpoint of another recipe.
        FloatingPointError: at a loss or slope that is not finite, naming the step and the last good checkpoint.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint written.
    """
    refuse_misfits(stages)
    accelerator = accelerator or Accelerator()
    model.to(accelerator.device)
    run = Training(
        model, data, stages, seed, accelerator, workers, compile, checkpoint, every, identity, score, on_epoch, on_step
    )
    saved = checkpoints.load(checkpoint, identity)
    if saved is not None:
        tensors, run.state = saved
        model.load_state_dict(tensors["model"])
        if not accelerator.is_main_process:
            run.state.meters.right = 0.0  # it is the sum over processes that was saved
    trainable = [p.requires_grad for p in model.parameters()]
    optimizer: torch.optim.Optimizer | None = None
    with torch.random.fork_rng(), stopping() as stop:
        for i in range(run.state.place.stage, len(stages)):
            trained = freeze(model, stages[i])
            if optimizer is None or not stages[i].carry:
                optimizer = stages[i].optim.build(trained)
            if saved is not None:
                optimizer.load_state_dict(tensors["optimizer"])
                if accelerator.scaler is not None and tensors["scaler"]:
                    accelerator.scaler.load_state_dict(tensors["scaler"])
                saved = None
            train_stage(run, i, optimizer, stop)
        if optimizer is not None and (number := stop.agreed(accelerator, 0)):
            run.save(optimizer)
            raise Interrupted(128 + number)
    for p, was in zip(model.parameters(), trainable, strict=True):
        p.requires_grad_(was)
    if run.state.best_model is not None:
        model.load_state_dict(run.state.best_model)
        return run.state.best_epoch
    return run.epochs - 1


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
    on_epoch: Callable[[dict[str, Any]], None]
    on_step: Callable[[Place, int], None]
    state: State = field(default_factory=State)
    written: float = field(default_factory=time.monotonic)  # when the last checkpoint was

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(s.epochs for s in self.stages)

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the checkpoint, if there is to be one."""
        if self.checkpoint is not None:
            checkpoints.save(self.checkpoint, self.model, optimizer, self.accelerator, self.state, self.identity)
            self.written = time.monotonic()


def train_stage(run: Training, i: int, optimizer: torch.optim.Optimizer, stop: Stop) -> None:
    """Every epoch of a stage, from where training stands."""
    stage, state, accelerator = run.stages[i], run.state, run.accelerator
    net = prepared(run.model, stage, accelerator, run.compile)
    before = sum(s.epochs for s in run.stages[:i])
    for epoch in range(state.place.epoch, stage.epochs):
        row = train_epoch(run, i, epoch, net, optimizer, stop)
        row = {"epoch": before + epoch, "stage": i, "epochs": run.epochs} | row
        if run.score is not None:
            row["score"] = value = run.score(run.model)
            if value > state.best:
                state.best, state.best_epoch = value, before + epoch
                state.best_model = {n: t.detach().cpu().clone() for n, t in run.model.state_dict().items()}
        more = epoch + 1 < stage.epochs
        state.place = Place(i, epoch + 1) if more else Place(i + 1)
        if accelerator.is_main_process:
            run.on_epoch(row)
            accelerator.log(numbers_of(row), step=before + epoch)
        due = time.monotonic() - run.written >= run.every
        if due and (more or (i + 1 < len(run.stages) and run.stages[i + 1].carry)):
            run.save(optimizer)
    accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    accelerator._models.clear()
    if run.compile:
        compiled(run.model, stage)._compiled_call_impl = None


def train_epoch(
    run: Training, i: int, epoch: int, net: nn.Module, optimizer: torch.optim.Optimizer, stop: Stop
) -> dict[str, Any]:
    """Every step of an epoch, from where training stands; returns its record, in plain values."""
    stage, state, accelerator = run.stages[i], run.state, run.accelerator
    flat = SharpnessAware(
        net, stage.method, run.data.counts, few=run.data.group().get("few"), only=stage.only,
        buffers=stage.buffers, dropout=stage.dropout, climb_together=stage.climb == "together",
    )  # fmt: skip
    vars(flat.report).update(state.report or {})
    state.report = None
    set_mode(run.model, stage)
    begun, epochs = clock(run.stages, i)
    key, meters, since = address(run.seed, i, epoch), state.meters, time.monotonic()
    batches = epoch_batches(run.data.train, stage, key, (begun + epoch) / epochs)
    first = state.place.step
    steps = batches_from(run.data.train, stage, batches[first:], key, first, accelerator, run.workers)
    for step, batch in enumerate(steps, start=first):
        state.place = Place(i, epoch, step)
        if number := stop.agreed(accelerator, step):
            meters.seconds += time.monotonic() - since
            meters.right = over_processes(meters.right, accelerator)
            state.report = vars(flat.report)
            run.save(optimizer)
            raise Interrupted(128 + number)
        run.on_step(state.place, len(batches))
        torch.manual_seed(address(key, step, accelerator.process_index, "noise"))
        now = begun + epoch + (step / len(batches) if stage.clock == "step" else 0)
        set_rate(optimizer, stage, now, epochs)
        optimizer.zero_grad()
        loss, right = step_backward(run, flat, stage, batch, now / epochs, address(key, step, "mixup"))
        if accelerator.device.type == "cpu" or (accelerator.scaler is None and step % 50 == 0):
            must_be_finite(loss, run)
        step_optimizer(optimizer, stage, accelerator)
        state.steps += 1
        meters.loss = meters.loss + loss * len(batches[step])
        meters.right = meters.right + right
        meters.images += len(batches[step])
    right = over_processes(meters.right, accelerator)
    mean = torch.as_tensor(meters.loss) / meters.images
    must_be_finite(mean, run)
    state.meters = Meters()
    return {
        "loss": float(mean),
        "accuracy": float(right) / meters.images,
        "lr": optimizer.param_groups[0]["lr"],
        "seconds": round(meters.seconds + time.monotonic() - since, 3),
        "images": meters.images,
        "terms": flat.report.row(),
        "cosines": flat.report.cosines,
    }


def step_backward(
    run: Training, flat: SharpnessAware, stage: Stage, batch: Batch, progress: float, key: int
) -> tuple[Tensor, Tensor]:
    """The gradient of a step; returns the loss at w and the number of images that were classified rightly.

    The loss is NaN where it or a slope is not finite; but where a scaler deals with slopes, only their loss counts.
    """
    how = (flat.model, stage.loss, run.data.counts)
    twice = stage.method.where == "weights"
    objectives = [
        mixed(*how, piece, stage.mixup, key + j, twice=twice) if stage.mixup else plain(*how, piece)
        for j, piece in enumerate(batch.cut(stage.micro))
    ]
    losses, labels, hard = (list(each) for each in zip(*objectives, strict=True))
    loss = flat.backward(losses, labels, progress, step=run.state.steps, hard=hard, scaler=run.accelerator.scaler)
    out = flat.outcome
    assert out is not None and out.finite is not None
    if run.accelerator.scaler is None:
        loss = torch.where(out.finite, loss, torch.nan)
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


def must_be_finite(loss: Tensor, run: Training) -> None:
    """Stop at a loss that is not finite, or whose slope was not."""
    if torch.isfinite(loss):
        return
    stage, epoch, step = run.state.place
    there = run.checkpoint is not None and run.checkpoint.exists()
    kept = f"the last good checkpoint is {run.checkpoint}" if there else "there is no checkpoint yet"
    raise FloatingPointError(
        f"the loss or its slope is not finite in stage {stage}, epoch {epoch}, step {step}; {kept}. "
        "Lower the learning rate or rho, add a warm-up, or clip the gradient"
    )


def over_processes(right: Tensor | float, accelerator: Accelerator) -> Tensor:
    """The sum of what the processes counted."""
    return accelerator.reduce(torch.as_tensor(right, dtype=torch.float32, device=accelerator.device))


# -- batches -------------------------------------------------------------------------------------------


def epoch_batches(half: Half, stage: Stage, key: int, progress: float) -> list[Tensor]:
    """The rows of every step of an epoch."""
    generator = torch.Generator().manual_seed(key)
    batches = stage.sampler(half.y, stage.batch, generator=generator, progress=progress, drop_last=stage.drop_last)
    if not batches:
        raise ValueError(
            f"batch: {stage.batch} is more than the {len(half)} images, and drop_last leaves none: lower it"
        )
    return batches


def batches_from(
    half: Half, stage: Stage, batches: Sequence[Tensor], key: int, first: int, accelerator: Accelerator, workers: int
) -> Iterator[Batch]:
    """This process's part of each step."""
    mine = []
    for step, rows in enumerate(batches, start=first):
        positions = torch.arange(len(rows)).tensor_split(accelerator.num_processes)[accelerator.process_index]
        mine.append(Draw(rows[positions], seeds(address(key, step), positions)))
    images = half.batches(mine, augment=stage.augment, device=accelerator.device, workers=workers)
    for draw, (x, y) in zip(mine, images, strict=True):
        yield Batch(x, y, half.y[draw.rows])


# -- devices and processes -----------------------------------------------------------------------------


def accelerated(device: str | None, precision: str, **how: Any) -> Accelerator:
    """An Accelerator on a device ("cpu", "cuda", "cuda:1", or None for the best one), in fp32, bf16 or fp16."""
    if device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"device: {device!r} is none; choose cpu, cuda, cuda:1 or mps")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: mps was asked for, but torch sees no Apple GPU here: use cpu")
    if device is not None and device.startswith("cuda"):
        number, there = int(device.partition(":")[2] or 0), torch.cuda.device_count()
        if number >= there:
            raise ValueError(f"device: {device} was asked for, but torch sees {there or 'no'} GPUs here: use cpu")
        torch.cuda.set_device(number)
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("precision: fp16 needs a GPU; on the CPU use bf16 or fp32")
    mixed_precision = "no" if precision == "fp32" else precision
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())  # else the first precision stays
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision, kwargs_handlers=[ddp], **how)


def prepared(model: nn.Module, stage: Stage, accelerator: Accelerator, compile: bool) -> nn.Module:
    """The model as the steps call it: compiled if asked, cast, and shared among the processes."""
    if compile:
        compiled(model, stage).compile()
    return accelerator.prepare_model(model)


def compiled(model: nn.Module, stage: Stage) -> nn.Module:
    """What is compiled: the model, or for methods that look inside it the backbone."""
    return model.get_submodule("backbone") if stage.method.where == "head" else model


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """A row as trackers want it: one level, numbers only."""
    plain = {k: v for k, v in row.items() if isinstance(v, (int, float))}
    for name, term in row["terms"].items():
        plain |= {f"{name}/{k}": v for k, v in term.items() if isinstance(v, (int, float))}
    return plain


# -- answers -------------------------------------------------------------------------------------------


@torch.no_grad()
def logits_of(
    model: nn.Module, half: Half, *, device: torch.device | str, batch: int = 512, flip: bool = False, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits `[N, C]` and labels `[N]` of a half, on the host, in evaluation mode; `flip` averages with the mirror."""
    mode = [m.training for m in model.modules()]
    model.eval()
    answers, labels = [], []
    for x, y in half.batches(in_order(len(half), batch), device=device, workers=workers):
        logits = model(x)
        logits = (logits + model(x.flip(-1))) / 2 if flip else logits
        answers.append(logits.float().cpu())
        labels.append(y.cpu())
    for module, was in zip(model.modules(), mode, strict=True):
        module.training = was
    return torch.cat(answers), torch.cat(labels)
