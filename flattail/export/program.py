"""The exported program: images in [0, 1] in, logits out; and how to build it again from what was exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..classifier import Classifier, viewed
from ..models import Model
from ..rebuilt import starts
from ..recipe import built, to_tree
from ..starts import Start, shaped

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Program(nn.Module):
    """Images [B, ch, H, W], floats in [0, 1], to logits [B, C]: normalised, seen, scaled as the loss did.

    Where the run was judged by two views, logits are averaged over an image and its mirror here as well. The softmax of
    the logits are probabilities under the class prior that the run was trained for, if it has one (`class_prior`).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 1.0,
        flip: bool = False,
    ):
        super().__init__()
        self.model = model
        self.scale = scale
        self.flip = flip
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C]."""
        logits = viewed(self.model, (images - self.mean) / self.std, flip=self.flip)
        return logits if self.scale == 1.0 else self.scale * logits


def program(of: Classifier) -> Program:
    """The program of a run, in evaluation mode."""
    images = of.images
    return Program(of.model, mean=images.mean, std=images.std, scale=of.scale, flip=of.flip).eval()


def config(of: Classifier) -> dict[str, Any]:
    """What `config.json` says: everything that the weights do not."""
    model = to_tree(of.recipe)["model"]
    return {
        "library": "flattail",
        "model": model | ({"weights": None} if "weights" in model else {}),  # those of the run take their place
        "starts": [to_tree(start) for start in starts(of.run, of.recipe)],
        "images": vars(of.images),
        "scale": of.scale,
        "views": of.recipe.protocol.views,
        "classes": list(of.names),
        "counts": of.counts.tolist(),
        "groups": {name: mask.nonzero()[:, 0].tolist() for name, mask in of.groups.items()},
        "class_prior": None if of.log_prior is None else of.log_prior.exp().tolist(),
    }


def load_export(folder: str | Path) -> Program:
    """The program that `flattail export` wrote to a folder, from its `config.json` and `model.safetensors`.

    Raises FileNotFoundError for a folder without them.
    """
    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{Path(folder) / name}: no such file: write it with `flattail export RUN`")
    said = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    images, shapes = said["images"], [built(Start, tree, f"{CONFIG}: starts") for tree in said["starts"]]
    value: Model = built(Model, said["model"], f"{CONFIG}: model")
    model = shaped(value.build(len(said["classes"]), images["shape"][0]), shapes, len(said["classes"]))
    model.load_state_dict(load_file(Path(folder) / WEIGHTS))
    how = {"mean": images["mean"], "std": images["std"], "scale": said["scale"]}
    return Program(model, **how, flip=said["views"] == "flip").eval()
