"""The models: frozen values whose `build(classes, channels)` gives a `Split(backbone, head)`."""

from typing import Protocol

from flattail.models.heads import HEADS, Cosine, HeadName, Split
from flattail.models.resnet import ResNet8, ResNet20, ResNet32, ResNet34Cifar
from flattail.models.timm_nets import Timm
from flattail.models.torchvision_nets import Torchvision

__all__ = [
    "HEADS",
    "MODELS",
    "Cosine",
    "HeadName",
    "Model",
    "ResNet8",
    "ResNet20",
    "ResNet32",
    "ResNet34Cifar",
    "Split",
    "Timm",
    "Torchvision",
]


class Model(Protocol):
    """What a model is: a frozen value that builds networks."""

    def build(self, classes: int, channels: int = 3) -> Split:
        """A new network for `classes` classes of images with `channels` channels."""
        ...


MODELS: dict[str, type] = {
    "resnet8": ResNet8,
    "resnet20": ResNet20,
    "resnet32": ResNet32,
    "resnet34-cifar": ResNet34Cifar,
    "torchvision": Torchvision,
    "timm": Timm,
}
