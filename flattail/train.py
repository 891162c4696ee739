"""Training: stages in, records out. The only training loop.

What a step draws (order, augmentation, mixup, dropout) has an address, (seed, stage, epoch, step, position in the
batch), and no state: a checkpoint is tensors and a place, and workers or processes change nothing that is drawn.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from .data.addressed import address, seeds
from .data.halves import Augment, Draw, Half, in_order
from .data.longtail import LongTail
from .data.samplers import Sampler, Uniform
from .losses import CE, Loss
from .optim import SGD, Constant, Optim, Schedule
from .runs import replacing
from .sharp import ERM, Method, SharpnessAware, Weighted


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
        if self.mixup < 0:
            raise ValueError(f"mixup: must be 0 or more, and is {self.mixup}")


@dataclass
class Meters:
    """Sums over the steps of an epoch, on the device."""

    loss: Tensor | float = 0.0
    right: Tensor | float = 0.0
    images: int = 0
    seconds: float = 0.0


class Place(NamedTuple):
    """Where training stands: the step to be done next."""

    stage: int
    epoch: int  # of the stage
    step: int  # of the epoch


@dataclass
class State:
    """All that a checkpoint holds beside the model."""

    place: Place = Place(0, 0, 0)
    steps: int = 0  # taken in the whole run
    meters: Meters = field(default_factory=Meters)
    report: dict[str, Any] | None = None
    best: float = float("-inf")
    best_epoch: int = -1
    best_model: dict[str, Tensor] | None = None


class Interrupted(SystemExit):
    """SIGTERM or SIGINT came: a checkpoint was written, and the process ends with 128 + its number."""


class Stop:
    """Which signal asked to stop, if one did."""

    signal: int = 0

    def __call__(self, number: int, frame: Any) -> None:
        """Take note; the next step will not be begun. A second signal ends the process at once."""
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number


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
        data: the training half is learnt from.
        stages: what to do, in order; a carried stage goes on with the optimiser and the clock before it.
        seed: addresses everything that is drawn.
        accelerator: device, processes and precision; by default what Accelerate finds here.
        workers: processes that read images that are not in memory.
        compile: compile the model, or for head methods its backbone.
        checkpoint: a file; what it holds is continued bit for bit, and it is rewritten as training goes.
        every: seconds between checkpoints, which are written at epoch borders (and anywhere on SIGTERM or SIGINT).
        identity: what the checkpoint must have been made by, e.g. the text of the recipe.
        score: of the model after each epoch; the weights with the highest score are left in the model.
        on_epoch: receives a row of plain values after each epoch.
        on_step: receives the place and the number of steps of the epoch, before each step.

    Returns:
        The epoch (0-based, over the whole run) whose weights the model holds.

    Raises:
        ValueError: for a checkpoint of another recipe.
        FloatingPointError: at a loss that is not finite, naming the step and the last good checkpoint.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint written.
    """
    accelerator = accelerator or Accelerator()
    state, optimizer = State(), None
    saved = load_checkpoint(checkpoint, identity)
    model.to(accelerator.device)
    if saved is not None:
        model.load_state_dict(saved["model"])
        state = restored(saved)
    total = sum(s.epochs for s in stages)
    written = time.monotonic()
    counts, few = data.counts, data.group().get("few")

    with torch.random.fork_rng(), stopping() as stop:
        for i in range(state.place.stage, len(stages)):
            stage, before = stages[i], chain_before(stages, i)
            chain = before + stage.epochs + chain_after(stages, i)
            trained = freeze(model, stage)
            if not (stage.carry and optimizer):
                optimizer = stage.optim.build(trained)
            if saved is not None:
                optimizer.load_state_dict(saved["optimizer"])
                if accelerator.scaler is not None and saved["scaler"]:
                    accelerator.scaler.load_state_dict(saved["scaler"])
                saved = None
            net = prepared(model, stage, accelerator, compile)
            for epoch in range(state.place.epoch, stage.epochs):
                flat = SharpnessAware(
                    net, stage.method, counts, few=few, only=stage.only, buffers=stage.buffers,
                    dropout=stage.dropout, climb_together=stage.climb == "together",
                )  # fmt: skip
                if state.report is not None:
                    vars(flat.report).update(state.report)
                set_mode(model, stage)
                began = time.monotonic()
                batches = epoch_batches(data.train, stage, address(seed, i, epoch), (before + epoch) / chain)
                first = state.place.step
                for step, (x, y, labels) in enumerate(
                    loaded(data.train, stage, batches[first:], address(seed, i, epoch), first, accelerator, workers),
                    start=first,
                ):
                    state.place = Place(i, epoch, step)
                    if number := stop_agreed(stop, accelerator, step):
                        state.meters.seconds += time.monotonic() - began
                        state.report = vars(flat.report)
                        save_checkpoint(checkpoint, model, optimizer, accelerator, state, identity)
                        raise Interrupted(128 + number)
                    on_step(state.place, len(batches))
                    torch.manual_seed(address(seed, i, epoch, step, accelerator.process_index, "noise"))
                    now = before + epoch + (step / len(batches) if stage.clock == "step" else 0)
                    set_rate(optimizer, stage, now, chain)
                    mixing = mixed_with(stage, len(y), address(seed, i, epoch, step, "mixup"))
                    optimizer.zero_grad()
                    loss, right = one_step(flat, net, stage, counts, x, y, labels, mixing, now / chain, state, accelerator)
                    if (x.device.type == "cpu" or step % 50 == 0) and accelerator.scaler is None:
                        must_be_finite(loss, state.place, before + epoch, checkpoint)
                    if accelerator.scaler is not None:
                        accelerator.scaler.unscale_(optimizer)
                    if stage.clip is not None:
                        nn.utils.clip_grad_norm_(trained, stage.clip)
                    if accelerator.scaler is None:
                        optimizer.step()
                    else:
                        accelerator.scaler.step(optimizer)
                        accelerator.scaler.update()
                    state.steps += 1
                    state.meters.loss = state.meters.loss + loss * len(batches[step])
                    state.meters.right = state.meters.right + right
                    state.meters.images += len(batches[step])
                state.meters.seconds += time.monotonic() - began
                done = sum(s.epochs for s in stages[:i]) + epoch
                row = record(state, flat, stage, optimizer, done, total, i, accelerator)
                if accelerator.scaler is None:
                    must_be_finite(torch.tensor(row["loss"]), state.place, done, checkpoint)
                if score is not None:
                    row["score"] = value = score(accelerator.unwrap_model(net))
                    if value > state.best:
                        state.best, state.best_epoch = value, done
                        state.best_model = {n: t.detach().cpu().clone() for n, t in model.state_dict().items()}
                state.meters, state.report = Meters(), None
                state.place = Place(i, epoch + 1, 0) if epoch + 1 < stage.epochs else Place(i + 1, 0, 0)
                if accelerator.is_main_process:
                    on_epoch(row)
                    accelerator.log(flat_row(row), step=done)
                if checkpoint is not None and time.monotonic() - written >= every and done + 1 < total:
                    save_checkpoint(checkpoint, model, optimizer, accelerator, state, identity)
                    written = time.monotonic()
            accelerator.unwrap_model(net, keep_fp32_wrapper=False)
            accelerator._models.clear()
    for p in model.parameters():
        p.requires_grad_(True)
    if state.best_model is not None:
        model.load_state_dict(state.best_model)
    return total - 1 if state.best_model is None else state.best_epoch


# -- a step ------------------------------------------------------------------------------------------


def one_step(
    flat: SharpnessAware,
    net: nn.Module,
    stage: Stage,
    counts: Tensor,
    x: Tensor,
    y: Tensor,
    labels: Tensor,
    mixing: tuple[float, Tensor] | None,
    progress: float,
    state: State,
    accelerator: Accelerator,
) -> tuple[Tensor, Tensor]:
    """The gradient of a step; returns the loss at w and the number of images that were classified rightly."""
    pieces = [slice(*b) for b in borders(len(y), stage.micro)]
    closures, all_labels, hard = [], [], []
    for piece in pieces:
        part = x[piece], y[piece], labels[piece]
        if mixing is None:
            closures.append(plain_losses(net, stage.loss, counts, *part[:2]))
            all_labels.append(part[2])
        else:
            share, order = mixing[0], rearranged(mixing[1], piece, len(y))
            mix = virtual_losses if stage.method.where == "weights" else blended_losses
            f, seen_labels = mix(net, stage.loss, counts, *part, share, order)
            closures.append(f)
            all_labels.append(seen_labels)
            hard.append(hard_losses(net, stage.loss, counts, part[0], part[1], share, order))
    if mixing is None:
        hard = closures
    loss = flat.backward(
        closures, all_labels, progress, step=state.steps, hard=hard, scaler=accelerator.scaler
    )
    seen = flat.outcome.seen if flat.outcome else []
    return loss, sum((s.sum() for s in seen), torch.zeros((), device=x.device))


def plain_losses(net: nn.Module, loss: Loss, counts: Tensor, x: Tensor, y: Tensor) -> Callable[..., Any]:
    """The closure of a batch; it can run some rows."""

    def losses(rows: Tensor | slice = slice(None)) -> tuple[Any, Tensor]:
        logits = net(x[rows])
        return loss(logits, y[rows], counts), logits.detach().argmax(1) == y[rows]

    return losses


def virtual_losses(
    net: nn.Module, loss: Loss, counts: Tensor, x: Tensor, y: Tensor, labels: Tensor, share: float, order: Tensor
) -> tuple[Callable[..., Any], Tensor]:
    """Mixup in weight space: 2B virtual samples, an image once with each of its labels, of mass `share` and 1 - share."""
    other = y[order.to(y.device)]
    mixture = share * x + (1 - share) * x[order.to(x.device)]

    def losses() -> tuple[Weighted, Tensor]:
        logits = net(mixture)
        sides = [weighted(loss(logits, t, counts)) for t in (y, other)]
        masses = torch.cat([share * sides[0].masses, (1 - share) * sides[1].masses])
        return Weighted(torch.cat([s.values for s in sides]), masses), logits.detach().argmax(1) == y

    return losses, torch.cat([labels, labels[order]])


def blended_losses(
    net: nn.Module, loss: Loss, counts: Tensor, x: Tensor, y: Tensor, labels: Tensor, share: float, order: Tensor
) -> tuple[Callable[..., Any], Tensor]:
    """Mixup for the head: B samples, each with a blend of two losses and the group of its first label."""
    other = y[order.to(y.device)]
    mixture = share * x + (1 - share) * x[order.to(x.device)]

    def losses() -> tuple[Weighted, Tensor]:
        logits = net(mixture)
        a, b = (weighted(loss(logits, t, counts)) for t in (y, other))
        masses = share * a.masses + (1 - share) * b.masses
        blend = (share * a.masses * a.values + (1 - share) * b.masses * b.values) / masses
        return Weighted(blend, masses), logits.detach().argmax(1) == y

    return losses, labels


def hard_losses(
    net: nn.Module, loss: Loss, counts: Tensor, x: Tensor, y: Tensor, share: float, order: Tensor
) -> Callable[..., Any]:
    """The same mixed images under their first labels alone."""
    mixture = share * x + (1 - share) * x[order.to(x.device)]
    return lambda: loss(net(mixture), y, counts)


def weighted(out: Tensor | Weighted) -> Weighted:
    """A loss with its masses, ones where it has none."""
    return out if isinstance(out, Weighted) else Weighted(out, torch.ones_like(out))


def borders(n: int, pieces: int) -> list[tuple[int, int]]:
    """Borders of micro-batches, as even as can be."""
    at = [round(k * n / pieces) for k in range(pieces + 1)]
    return [(a, b) for a, b in zip(at, at[1:], strict=False) if b > a] or [(0, n)]


def mixed_with(stage: Stage, n: int, key: int) -> tuple[float, Tensor] | None:
    """The share of the first image and the order of the second ones (Zhang et al., ICLR 2018), or None."""
    if not stage.mixup:
        return None
    share = float(np.random.default_rng(key).beta(stage.mixup, stage.mixup))
    return share, seeds(key, torch.arange(n)).argsort()


def rearranged(order: Tensor, piece: slice, n: int) -> Tensor:
    """Mixing partners within a micro-batch, of a batch's order."""
    size = piece.stop - piece.start
    return order if size == n else order[piece].argsort()


# -- an epoch ------------------------------------------------------------------------------------------


def epoch_batches(half: Half, stage: Stage, key: int, progress: float) -> list[Tensor]:
    """The rows of every step of an epoch."""
    generator = torch.Generator().manual_seed(key)
    batches = stage.sampler(half.y, stage.batch, generator=generator, progress=progress, drop_last=stage.drop_last)
    if not batches:
        raise ValueError(
            f"batch: {stage.batch} images are more than the {len(half)} of an epoch, and drop_last leaves nothing; "
            "choose a smaller batch"
        )
    return batches


def loaded(
    half: Half, stage: Stage, batches: Sequence[Tensor], key: int, first: int, accelerator: Accelerator, workers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images and labels of this process's part of each step, and the labels again on the host."""
    rank, world = accelerator.process_index, accelerator.num_processes
    mine = []
    for step, rows in enumerate(batches, start=first):
        positions = torch.arange(len(rows)).tensor_split(world)[rank]
        mine.append(Draw(rows[positions], seeds(address(key, step), positions)))
    images = half.batches(mine, augment=stage.augment, device=accelerator.device, workers=workers)
    for draw, (x, y) in zip(mine, images, strict=True):
        yield x, y, half.y[draw.rows]


def record(
    state: State,
    flat: SharpnessAware,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    done: int,
    total: int,
    i: int,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The row of an epoch, in plain values."""
    m = state.meters
    right = accelerator.reduce(torch.as_tensor(m.right, dtype=torch.float32, device=accelerator.device))
    return {
        "epoch": done,
        "stage": i,
        "epochs": total,
        "loss": float(m.loss) / m.images,
        "accuracy": float(right) / m.images,
        "lr": optimizer.param_groups[0]["lr"],
        "seconds": round(m.seconds, 3),
        "images": m.images,
        "terms": flat.report.row(),
        "cosines": flat.report.cosines,
    }


def flat_row(row: dict[str, Any]) -> dict[str, float]:
    """A row as trackers want it: one level, numbers only."""
    plain = {k: v for k, v in row.items() if isinstance(v, (int, float))}
    for name, term in row["terms"].items():
        plain |= {f"{name}/{k}": v for k, v in term.items() if isinstance(v, (int, float))}
    return plain


# -- stages --------------------------------------------------------------------------------------------


def chain_before(stages: Sequence[Stage], i: int) -> int:
    """Epochs that the clock of stage i already shows: those of the stages that it carries on."""
    return stages[i - 1].epochs + chain_before(stages, i - 1) if stages[i].carry and i else 0


def chain_after(stages: Sequence[Stage], i: int) -> int:
    """Epochs of the stages that carry stage i on."""
    more = i + 1 < len(stages) and stages[i + 1].carry
    return stages[i + 1].epochs + chain_after(stages, i + 1) if more else 0


def freeze(model: nn.Module, stage: Stage) -> list[nn.Parameter]:
    """Leave trainable what the stage trains, and return it."""
    for p in model.parameters():
        p.requires_grad_(stage.train == "all")
    if stage.train == "head":
        for p in model.head.parameters():
            p.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]


def set_mode(model: nn.Module, stage: Stage) -> None:
    """Training mode; a frozen backbone stays in evaluation mode, BatchNorm included."""
    model.train()
    if stage.train == "head":
        model.backbone.eval()


def set_rate(optimizer: torch.optim.Optimizer, stage: Stage, epoch: float, epochs: int) -> None:
    """The learning rate of this moment."""
    for group in optimizer.param_groups:
        group["lr"] = stage.optim.lr * stage.schedule(epoch, epochs)


def prepared(model: nn.Module, stage: Stage, accelerator: Accelerator, compile: bool) -> nn.Module:
    """The model as the steps call it: compiled if asked, cast, and shared among the processes."""
    if compile and stage.method.where == "head":
        model.backbone.compile()
    elif compile:
        model.compile()
    return accelerator.prepare_model(model)


def accelerated(device: str | None, precision: str, **how: Any) -> Accelerator:
    """An Accelerator on a device ("cpu", "cuda", "cuda:1" or None for the best one), in fp32, bf16 or fp16."""
    if device is not None and device.startswith("cuda:"):
        torch.cuda.set_device(device)
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: {device} was asked for, but torch sees no GPU here; use cpu")
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("precision: fp16 needs a GPU; on the CPU use bf16 or fp32")
    kwargs = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision={"fp32": "no"}.get(precision, precision),
        kwargs_handlers=[kwargs],
        **how,
    )


# -- checkpoints -----------------------------------------------------------------------------------------


def save_checkpoint(
    path: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    state: State,
    identity: str,
) -> None:
    """Write a checkpoint whole or not at all; the one before survives a full disk."""
    if path is None or not accelerator.is_main_process:
        return
    content = {
        "identity": identity,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        "state": vars(state) | {"place": tuple(state.place), "meters": vars(state.meters)},
    }
    with replacing(path) as partial:
        torch.save(content, partial)


def load_checkpoint(path: Path | None, identity: str) -> dict[str, Any] | None:
    """What a checkpoint holds, or None where there is none."""
    if path is None or not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}): remove it to start over") from error
    if saved["identity"] != identity:
        raise ValueError(f"{path} was written by another recipe: use another output folder, or remove it")
    return saved


def restored(saved: dict[str, Any]) -> State:
    """The state that a checkpoint holds."""
    plain = saved["state"]
    return State(**plain | {"place": Place(*plain["place"]), "meters": Meters(**plain["meters"])})


@contextmanager
def stopping() -> Iterator[Stop]:
    """SIGTERM and SIGINT are noted inside, in the main thread, where alone they can be."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_agreed(stop: Stop, accelerator: Accelerator, step: int) -> int:
    """The signal to stop for before this step, or 0; processes must agree, and ask each other at every tenth step."""
    if accelerator.num_processes == 1:
        return stop.signal
    if step % 10:
        return 0
    asked = torch.zeros(accelerator.num_processes, device=accelerator.device)
    asked[accelerator.process_index] = stop.signal
    return int(accelerator.reduce(asked).max())


def must_be_finite(loss: Tensor, place: Place, epoch: int, checkpoint: Path | None) -> None:
    """Stop at a loss that is not finite."""
    if torch.isfinite(loss):
        return
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint and checkpoint.exists() else "no checkpoint yet"
    raise FloatingPointError(
        f"the loss is {float(loss)} in stage {place.stage}, epoch {epoch}, step {place.step}; {kept}. "
        "Lower the learning rate or rho, add warm-up, or clip the gradient"
    )


# -- answers ---------------------------------------------------------------------------------------------


@torch.no_grad()
def logits_of(
    model: nn.Module, half: Half, *, device: torch.device | str, batch: int = 512, flip: bool = False, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits `[N, C]` and labels `[N]` of a half, on the host, in evaluation mode; `flip` averages with the mirror."""
    mode = model.training
    model.eval()
    answers, labels = [], []
    for x, y in half.batches(in_order(len(half), batch), device=device, workers=workers):
        logits = model(x)
        logits = (logits + model(x.flip(-1))) / 2 if flip else logits
        answers.append(logits.float().cpu())
        labels.append(y.cpu())
    model.train(mode)
    return torch.cat(answers), torch.cat(labels)
