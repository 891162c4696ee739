"""One recipe with one seed, trained without its validation images and judged on them. Test images are not looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import runs
from ..checkpoint import remove
from ..data.longtail import LongTail
from ..experiment import CHECKPOINT, warnings
from ..rebuilt import begin
from ..recipe import Recipe, identity
from ..scores import evaluate
from ..train import accelerated, fit, logits_of
from .apart import groups, halves

VALIDATION = "validation.json"


@dataclass(frozen=True)
class Judged:
    """What a model answers to its validation images."""

    right: list[int]  # [C], right answers of each class
    images: list[int]  # [C], validation images of each class
    train: list[int]  # [C], images that were trained on
    groups: dict[str, list[int]]  # classes that are many, medium and few
    seconds: float  # of training
    warnings: list[str]  # what its log says of the method


def validated(
    recipe: Recipe,
    seed: int,
    folder: Path,
    *,
    root: Path,
    device: str | None,
    workers: int = 0,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Judged:
    """Train a recipe whose protocol keeps images apart, and judge its last epoch on them.

    `folder` keeps the log, the checkpoint from which an interrupted training goes on, and the answer, which is returned
    at once if it is there. Neither weights nor trackers. `workers`: processes that read images not held in memory.

    Raises:
        FloatingPointError: at a loss or slope that is not finite.
        Interrupted: after SIGTERM or SIGINT, with a checkpoint written.
    """
    path = folder / VALIDATION
    if path.exists():
        return answer(folder)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = accelerated(device, recipe.precision)
    data: LongTail = halves(recipe, root, seed)
    model = begin(recipe, data, seed).model
    append = runs.appender(folder)

    def keep(row: dict[str, Any]) -> None:
        append(row)
        on_epoch(row)

    fit(
        model, data, (replace(recipe.stages[0], init=None), *recipe.stages[1:]),
        seed=seed, accelerator=accelerator, workers=workers, compile=recipe.compile,
        checkpoint=folder / CHECKPOINT, identity=f"{identity(recipe)}/{seed}", on_epoch=keep,
    )  # fmt: skip
    flip = recipe.protocol.views == "flip"
    logits, y = logits_of(model, data.test, device=accelerator.device, flip=flip, workers=workers)
    table, rows = evaluate(logits, y).confusion, runs.read_log(folder)
    judged = Judged(
        right=table.diagonal().tolist(),
        images=table.sum(1).tolist(),
        train=data.counts.tolist(),
        groups=groups(recipe, data),
        seconds=round(sum(row["seconds"] for row in rows), 1),
        warnings=warnings(recipe, rows),
    )
    runs.write_json(path, asdict(judged))
    remove(folder / CHECKPOINT)
    return judged


def answer(folder: Path) -> Judged:
    """What `validated` has found in a folder. FileNotFoundError if it has not."""
    return Judged(**json.loads((folder / VALIDATION).read_text()))
