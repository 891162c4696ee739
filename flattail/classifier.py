"""A finished run as a classifier: its model, its classes, how it sees images; the training data are not needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import runs
from .data.pictures import Preparation
from .rebuilt import finished, load, trained
from .recipe import Recipe, from_tree
from .worlds import softmax_of


@dataclass(frozen=True, eq=False)
class Classifier:
    """What answers for a run. The model gives the logits of `logits.npz` for images as `images` prepares them."""

    run: runs.Run  # the run directory, as it was read
    recipe: Recipe  # of the run
    model: nn.Module  # in evaluation mode, on the host
    images: Preparation  # how it sees images
    names: tuple[str, ...]  # [C]
    counts: Tensor  # [C] training images
    groups: dict[str, Tensor]  # masks [C] of many, medium and few
    scale: float  # what the loss multiplied logits by: 1, but for losses on cosines
    flip: bool  # whether logits are averaged over an image and its mirror
    log_prior: Tensor | None  # [C] of the class prior that the scaled logits are calibrated for; None: for none
    doubts: tuple[str, ...]  # what is not known for certain of that prior
    older: bool  # whether the run does not say how it sees images, so that its data were asked

    def group(self, c: int) -> str:
        """The group of a class; nothing, if it is in none."""
        return next((name for name, mask in self.groups.items() if mask[c]), "")

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, C] of normalised images [B, ch, H, W], as the run was judged by, not scaled."""
        return viewed(self.model, x, flip=self.flip)


def viewed(model: nn.Module, x: Tensor, *, flip: bool) -> Tensor:
    """Logits [B, C] of normalised images [B, ch, H, W]; with `flip` averaged over them and their mirrors."""
    return (model(x) + model(x.flip(-1))) / 2 if flip else model(x)


class Sizes(NamedTuple):
    """What a model is built for."""

    classes: int
    channels: int


def classifier(folder: Path, root: Path = Path("data")) -> Classifier:
    """The classifier that a finished run has made.

    A run that does not say how it sees images, being older than this, takes that from its data, below `root`.
    Raises ValueError for a run that is not finished, FileNotFoundError for a folder that is none.
    """
    done = finished(Path(folder))
    if done.scores is None:
        raise ValueError(f"{folder} holds no finished run: `flattail train ... --resume` finishes it")
    recipe = from_tree(done.recipe)
    stated = done.scores.get("images")
    images = asked(done, recipe, root) if stated is None else Preparation.from_json(stated)
    names, counts = tuple(done.scores["names"]), torch.tensor(done.scores["counts"])
    model = trained(done, recipe, Sizes(len(names), images.shape[0])).eval()
    (scale, log_prior), doubts = softmax_of(recipe, counts, done.scores.get("starts", {}))
    return Classifier(
        run=done,
        recipe=recipe,
        model=model,
        images=images,
        names=names,
        counts=counts,
        groups={name: torch.tensor(mask) for name, mask in done.scores["groups"].items()},
        scale=scale,
        flip=recipe.protocol.views == "flip",
        log_prior=None if log_prior is None else log_prior.double().log_softmax(0),
        doubts=tuple(doubts),
        older=stated is None,
    )


def asked(done: runs.Run, recipe: Recipe, root: Path) -> Preparation:
    """How a run sees images, from its data."""
    try:
        return Preparation.of(load(recipe, root, done.seed).test)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{done.path / runs.SCORES} does not say how the run sees images, being older than that, and the data "
            f"cannot be asked: {error}"
        ) from error
