"""Whether the stages of a recipe can be trained on a model and data, before anything is written."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from .batches import epoch_batches
from .data import LongTail
from .data.pictures import Preparation
from .recipe import Recipe
from .sharp.engine import placed
from .sharp.head import Head
from .stage import Stage, freeze, grouped, set_mode, sharpness_aware
from .starts import NO_VALIDATION, head_of, refuse_bare, shaped


def refuse_impossible(recipe: Recipe, data: LongTail, model: nn.Module) -> None:
    """Raise ValueError for a stage that could not train this model on these data, before anything is written."""
    model = deepcopy(model)
    for i, stage in enumerate(recipe.stages):
        try:
            if stage.start.sweeps and data.val is None:
                raise ValueError(NO_VALIDATION)
            refuse_bare(stage.start, head_of(model, stage.start))
            shaped(model, [stage.start], data.classes)
            trained = freeze(model, stage)
            if groups := grouped(model, stage):
                stage.optim.build(groups)
            if i == 0:
                refuse_unfit(model, data)
            if i == 0 and not (stage.init or getattr(recipe.model, "weights", None)):
                refuse_random_backbone(model, trained if stage.epochs else [])
            if stage.constraint is not None:
                stage.constraint.shape(model)
                stage.constraint.begin(model)
            least = min(map(len, epoch_batches(data.train, stage, 0, 0.0)), default=0)
            if stage.epochs and least and least // min(stage.micro, least) == 1:
                refuse_single(model, stage, data)
            place = placed(model, sharpness_aware(model, stage, data).how["only"])
            if stage.method.where == "head":
                Head(model, place)
            if stage.constraint is not None:
                stage.constraint.end(model)
        except ValueError as error:
            raise ValueError(f"recipe.stages[{i}]: {error}") from error


def refuse_unfit(model: nn.Module, data: LongTail) -> None:
    """Raise ValueError where the network cannot take images of this shape."""
    shape, modes = Preparation.of(data.test).shape, {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(2, *shape))
    except Exception as error:  # networks refuse by assertions, shapes, indices
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"this network cannot take images of {list(shape)} ({type(error).__name__}: {said}): choose another `size` "
            "of the data, or another network"
        ) from error
    for module, mode in modes.items():
        module.training = mode


def refuse_single(model: nn.Module, stage: Stage, data: LongTail) -> None:
    """Raise ValueError where the network, in training, cannot take a single image."""
    set_mode(model, stage)
    try:
        with torch.no_grad():
            model(torch.zeros(1, *Preparation.of(data.test).shape))
    except ValueError as error:
        raise ValueError(
            f"a batch, or a micro-batch of one, has a single image, which this network cannot train on ({error}): "
            "write `drop_last: true`, another `batch`, or fewer `micro`"
        ) from error


def refuse_random_backbone(model: nn.Module, trained: list[nn.Parameter]) -> None:
    """Raise ValueError for a first stage that leaves a new backbone as it is: a second stage without a first."""
    ids, backbone = {id(p) for p in trained}, list(getattr(model, "backbone", model).parameters())
    if backbone and not any(id(p) in ids for p in backbone):
        raise ValueError(
            "the backbone is new and stays so: put a stage that trains it before this one, or take its weights from a "
            "run, `init: runs/FOLDER/RECIPE/{seed}`"
        )
