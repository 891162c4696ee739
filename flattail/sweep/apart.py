"""The images that a sweep keeps out of training, and whether its data, models and points can be trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from ..data import LongTail
from ..devices import accelerated
from ..possible import refuse_impossible
from ..rebuilt import begin, load
from ..recipe import Recipe, RecipeError
from .settings import Sweep, told
from .space import Point, points


@dataclass(frozen=True)
class Apart:
    """The images that are kept out of training, with the first seed."""

    train: int  # images left to train on
    images: tuple[int, ...]  # kept apart of each class [C]

    def __str__(self) -> str:
        one, n = self.images.count(1), sum(self.images)
        tail = f"; {one} classes have a single one" if one > 1 else "; one class has a single one" if one else ""
        some = [k for k in self.images if k]
        return f"{n} validation images beside {self.train} to train on, {min(some)} to {max(some)} a class{tail}"


def examined(sweep: Sweep, *, root: Path, device: str | None, final: bool) -> Apart:
    """What is kept apart with the first seed, and of the first point where the data vary; nothing is written.

    Raises ValueError for a device, data, a model or a point that cannot be trained, ImportError without Optuna.
    """
    if find_spec("optuna") is None:
        raise ImportError("`flattail sweep` needs Optuna: pip install 'flattail[sweep]'")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a trial is one process: run `flattail sweep` without torchrun, and with --jobs")
    accelerated(device, sweep.recipe.precision)
    init, seed = sweep.recipe.stages[0].init, sweep.seeds[0]
    if init is not None and final and sweep.validation:
        raise ValueError(
            f"recipe.stages[0].init: {init} was trained on a part of the images, and the final runs need one "
            "that was trained on all of them: write both stages into one recipe, or add --final-seeds none"
        )
    alike: dict[str, list[Point]] = {}  # points that share data and model
    for point in points(sweep.axes):
        recipe = sweep.at(point)
        alike.setdefault(repr((recipe.data, recipe.model, recipe.stages[0].init)), []).append(point)
    first, *_ = [possible(sweep, some, root, seed) for some in alike.values()]
    return first


def possible(sweep: Sweep, alike: Sequence[Point], root: Path, seed: int) -> Apart:
    """What is kept apart where all of these points, which share data and model, can be trained; else ValueError."""
    first = sweep.at(alike[0])
    data = halves(first, root, seed)
    there = torch.bincount(data.test.y, minlength=data.classes)
    if not there[list(groups(first, data).get(sweep.score, range(data.classes)))].any():
        raise ValueError(f"--score {sweep.score}: {data.title} has no such classes, or no validation image of them")
    with torch.random.fork_rng(devices=[]):
        model = begin(first, data, seed).model
    for point in alike:
        for i, stage in enumerate(sweep.at(point).stages):
            if stage.start.sweeps:
                raise ValueError(
                    f"recipe.stages[{i}].start: chooses tau on the images that a sweep judges by: let the sweep choose "
                    f"it (--over stages.{i}.start.tau=0,0.5,1), or write one"
                )
        try:
            refuse_impossible(sweep.at(point), data, model)
        except RecipeError:
            raise
        except ValueError as error:
            raise ValueError(f"{told(point)}: {error}") from error
    return Apart(len(data.train), tuple(torch.bincount(data.test.y, minlength=data.classes).tolist()))


def halves(recipe: Recipe, root: Path, seed: int) -> LongTail:
    """The recipe's data with the validation part in the test half's place: test images cannot be looked at.

    ValueError where there is no validation part.
    """
    data = load(recipe, root, seed)
    if data.val is None:
        raise ValueError(
            f"--validation 0 asks for the validation part of the data, and {data.title} have none: e.g. 0.2"
        )
    return replace(data, test=data.val)


def groups(recipe: Recipe, data: LongTail) -> dict[str, list[int]]:
    """The classes that are many, medium and few by all training images, those kept apart too, as in the final runs."""
    assert data.val is not None
    kept = torch.bincount(data.val.y, minlength=data.classes) if recipe.protocol.validation else 0
    return {name: mask.nonzero()[:, 0].tolist() for name, mask in data.shots.group(data.counts + kept).items()}
