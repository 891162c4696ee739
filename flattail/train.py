"""Training: stages in, records out. The only training loop; the steps of its epochs are in epoch.py.

What a step draws (order, augmentation, mixup, dropout) has an address, (seed, stage, epoch, step, place in it), and no
state: a checkpoint is tensors and a place. Order and augmentation are drawn image by image, so workers, micro-batches
and processes change nothing of them; partners of a mixture, dropout and noise are drawn by each of these for itself.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from . import checkpoint as checkpoints
from .answers import features_of, logits_of
from .averages import recompute_statistics
from .batches import batches_from, epoch_batches, whole_batches
from .checkpoint import Interrupted, Place, State, Stop, stopping
from .data.addressed import address
from .data.longtail import LongTail
from .devices import accelerated, compiled, prepared, released
from .epoch import Training, Work, train_epoch
from .stage import Stage, freeze, grouped, refuse_misfits, set_mode, sharpness_aware
from .starts import Given, begun, shaped

__all__ = [
    "Interrupted", "Place", "Stage", "State", "accelerated", "batches_from", "epoch_batches", "features_of", "fit",
    "logits_of",
]  # fmt: skip


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
    watch: Callable[[nn.Module], dict[str, Any]] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    on_step: Callable[[Place, int], None] = lambda place, steps: None,
    state: State | None = None,
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
        watch: of the model after each epoch; what it returns stands in the row, and nothing goes by it.
        on_epoch: receives a row of plain values after each epoch, in the main process.
        on_step: receives the place and the number of steps of the epoch, before each step.
        state: kept up to date: where training stands, what starts have found, how long it took.

    Returns:
        The epoch (0-based, over the whole run) whose weights the model holds; -1 if there is none.

    Raises:
        ValueError: for stages that do not fit each other, or a checkpoint of another recipe.
        FloatingPointError: at a loss or slope that is not finite, naming the step, its images and the last good
            checkpoint; where stages say `on_nan="skip"`, at an epoch that has no other.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint written.
    """
    refuse_misfits(stages)
    if isinstance(stages, Stage):
        raise ValueError("stages: a list of them, [Stage(...)]")
    checkpoint = None if checkpoint is None else Path(checkpoint)
    identity = identity or re.sub(r" at 0x\w+", "", f"{tuple(stages)!r}, seed {seed}")
    if stages[0].init is not None:
        raise ValueError("stages[0].init: `fit` trains the model that it is given; `flattail.run` reads `init`")
    accelerator = accelerator or Accelerator()
    model.to(accelerator.device)
    run = Training(
        model, data, stages, seed, accelerator, workers, compile, checkpoint, every, identity, score, watch, on_epoch,
        on_step, state or State(),
    )  # fmt: skip
    state, last, weights = run.state, None, None
    if (saved := checkpoints.load(checkpoint, identity, data.fingerprint)) is not None:
        tensors, loaded = saved
        vars(state).update(vars(loaded))
        run.before, last = state.wall, tensors["stage"]
        shaped(model, [s.start for s in stages[: state.started]], data.classes)
        if state.started > state.place.stage and state.place.stage < len(stages):
            weights = tensors["model"]  # of the middle of a stage, in the structure that its constraint gives
        else:
            model.load_state_dict(tensors["model"])
        if accelerator.scaler is not None and tensors["scaler"]:
            accelerator.scaler.load_state_dict(tensors["scaler"])
        if not accelerator.is_main_process:
            state.meters.right = 0.0  # it is the sum over processes that was saved
    checkpoints.refuse_apart(state.place, accelerator)
    trainable = {n: p.requires_grad for n, p in model.named_parameters()}
    work: Work | None = None
    device = accelerator.device
    drawn = {"cpu": [], "cuda": [device]}.get(device.type)  # None: whatever else there is
    with torch.random.fork_rng(drawn), stopping() as stop:
        for i in range(state.place.stage, len(stages)):
            start_stage(run, i)
            if stages[i].epochs:
                work = work_of(run, i, work, last, weights)
                train_stage(run, i, work, stop)
            else:
                work = None
                keep_if_best(run, model, sum(s.epochs for s in stages[:i]) - 1)
                state.place = Place(i + 1)
            last = weights = None
        if number := stop.agreed(accelerator, 0):
            run.save(work)
            raise Interrupted(128 + number)
    for name, p in model.named_parameters():
        p.requires_grad_(trainable.get(name, True))
    state.wall = run.wall
    if state.best_model is not None:
        model.load_state_dict(state.best_model)
        return state.best_epoch
    return run.epochs - 1


def start_stage(run: Training, i: int) -> None:
    """The classifier as the stage wants it, unless that was done before; a new one begins the selection anew."""
    state, data, device = run.state, run.data, run.accelerator.device
    if state.started > i:
        return
    how: dict[str, Any] = {"device": device, "workers": run.workers}

    def given(before: nn.Module) -> Given:
        def features(half: Any) -> Callable[[], tuple[Tensor, Tensor]]:
            return lambda: features_of(run.model, half, **how)

        return Given(
            before, data.counts, data.names, features(data.train), None if data.val is None else features(data.val)
        )

    torch.manual_seed(address(run.seed, i, "start"))
    found = begun(run.model, run.stages[i].start, given, data.classes)
    if found is not None:
        state.found[i] = found
        state.best, state.best_epoch, state.best_model = State.best, State.best_epoch, None
    state.started = i + 1


def work_of(
    run: Training, i: int, before: Work | None, last: dict[str, Any] | None, weights: dict[str, Tensor] | None
) -> Work:
    """A stage about to begin, or in the middle; a carried one goes on with what the one before has.

    `last`: what a checkpoint has of the stage in progress or, at its border, the one before; `weights`: the model's, if
    it was in progress.
    """
    stage, model, device = run.stages[i], run.model, run.accelerator.device
    freeze(model, stage)
    groups, bounds = grouped(model, stage), dict[str, Tensor]()
    looked_at = run.score is not None or run.watch is not None
    apart = looked_at and (stage.average is not None or stage.constraint is not None)
    copy = deepcopy(model) if apart else None
    if stage.constraint is not None:
        torch.manual_seed(address(run.seed, i, "constraint"))
        stage.constraint.shape(model)
    if weights is not None:
        model.load_state_dict(weights)
    if stage.constraint is not None:
        bounds = stage.constraint.begin(model)
    average = None if stage.average is None else stage.average.begin(model)
    optimizer = before.optimizer if before is not None and stage.carry else stage.optim.build(groups)
    net = prepared(model, stage, run.accelerator, run.compile)
    flat = sharpness_aware(net, stage, run.data)
    if last is not None:
        optimizer.load_state_dict(last["optimizer"])
    if weights is not None and last is not None:
        bounds = {n: t.to(device) for n, t in last["bounds"].items()}
        if average is not None:
            average.load_state_dict(last["average"])
    if weights is not None or (stage.carry and stage.method == run.stages[i - 1].method):
        flat.load_state_dict(last["method"] if last is not None else before.flat.state_dict())  # type: ignore[union-attr]
    return Work(net, optimizer, flat, average, bounds, copy)


def train_stage(run: Training, i: int, work: Work, stop: Stop) -> None:
    """Every epoch of a stage, from where training stands."""
    stage, state, accelerator = run.stages[i], run.state, run.accelerator
    before = sum(s.epochs for s in run.stages[:i])
    carries = i + 1 < len(run.stages) and run.stages[i + 1].carry
    for epoch in range(state.place.epoch, stage.epochs):
        try:
            row = train_epoch(run, i, epoch, work, stop)
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"recipe.stages[{i}]: {str(error).partition('. ')[0]}: `--set stages.{i}.micro={2 * stage.micro}` cuts "
                "its steps into smaller pieces, a smaller `batch` makes smaller steps"
            ) from error
        row = {"epoch": before + epoch, "stage": i, "epochs": run.epochs} | row
        if epoch == 0 and state.found.get(i):
            row["start"] = state.found[i]
        if work.average is not None and stage.average is not None:
            stage.average.after_epoch(work.average, run.model, (epoch + 1) / stage.epochs)
        if run.score is not None or run.watch is not None:
            now = judged(run, i, work)
            row |= {} if run.score is None else {"score": keep_if_best(run, now, before + epoch)}
            row |= {} if run.watch is None else run.watch(now)
        more = epoch + 1 < stage.epochs
        state.place = Place(i, epoch + 1) if more else Place(i + 1)
        if not more:
            released(work.net, accelerator)
            if run.compile:
                compiled(run.model, stage)._compiled_call_impl = None
            weights = weights_of(run, stage, work)
            if stage.constraint is not None:
                stage.constraint.end(run.model)
            become(run, i, work, run.model, weights)
        if accelerator.is_main_process:
            run.on_epoch(row)
            accelerator.log(numbers_of(row), step=before + epoch)
        if time.monotonic() - run.written >= run.every and (more or carries):
            run.save(work)


def judged(run: Training, i: int, work: Work) -> nn.Module:
    """The model that the stage would end with, if it ended now."""
    if work.copy is None:
        return run.model
    become(run, i, work, work.copy, weights_of(run, run.stages[i], work))
    return work.copy


def weights_of(run: Training, stage: Stage, work: Work) -> dict[str, Tensor]:
    """The weights of the plain model that the stage ends with: averaged ones if it averages."""
    averaged = work.average is not None and int(work.average.n_averaged)
    source = work.average.module if work.average is not None and averaged else run.model
    weights = source.state_dict() if stage.constraint is None else stage.constraint.plain(source)
    return {n: t.clone() for n, t in weights.items()}


def become(run: Training, i: int, work: Work, model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give a model the weights that the stage ends with, and averaged ones statistics of their own."""
    model.load_state_dict(weights)
    if work.average is not None and int(work.average.n_averaged):
        stage, device = run.stages[i], run.accelerator.device
        set_mode(model, stage)
        key = address(run.seed, i, "statistics")
        torch.manual_seed(key)
        images = whole_batches(run.data.train, stage, key, 0.0, device, run.workers)
        recompute_statistics(model, images if stage.on_nan == "stop" else (x for x in images if x.isfinite().all()))


def keep_if_best(run: Training, model: nn.Module, epoch: int) -> float | None:
    """The score of a model, which is remembered if it is the best so far."""
    if run.score is None:
        return None
    state, value = run.state, run.score(model)
    if value > state.best:
        state.best, state.best_epoch = value, epoch
        state.best_model = {n: t.detach().cpu().clone() for n, t in model.state_dict().items()}
    return value


def numbers_of(row: dict[str, Any]) -> dict[str, float]:
    """A row as trackers want it: one level, numbers only."""
    plain = {k: v for k, v in row.items() if isinstance(v, (int, float))}
    for name, term in (row["terms"] | ({"test": row["test"]} if "test" in row else {})).items():
        plain |= {f"{name}/{k}": v for k, v in term.items() if isinstance(v, (int, float))}
    return plain
