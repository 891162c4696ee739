"""Residual networks for small images: the CIFAR family of He et al., and the widened ResNet-34 of SSE-SAM.

The family has a 3x3 stem, three stages of basic blocks at w, 2w, 4w channels and strides 1, 2, 2, shortcuts
without parameters ("option A": every second pixel, new channels of zeros) and a global average: any image
size works. Its depth is 6 * blocks + 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flattail.models.heads import HEADS, HeadName, Split

NormName = Literal["batch", "group"]
Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of at most 8 groups: no sample sees another one of its batch."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": group_norm}


def shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Option A of He et al. (CVPR 2016): every `stride`-th pixel, new channels of zeros on both sides."""
    extra = (channels - x.shape[1]) // 2
    return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, extra, extra)) if extra else x


class Block(nn.Module):
    """Two 3x3 convolutions beside an option-A shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm):
        super().__init__()
        self.channels, self.stride = channels, stride
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, channels, H / stride, W / stride]."""
        z = F.relu(self.norm1(self.conv1(x)), inplace=True)
        z = self.norm2(self.conv2(z))
        return F.relu(z + shortcut(x, self.channels, self.stride), inplace=True)


class Backbone(nn.Module):
    """Stem, three stages, global average: [B, channels, H, W] -> [B, 4 * width]."""

    def __init__(self, blocks: int, width: int, norm: Norm, channels: int):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = norm(width)
        self.stages = nn.Sequential(
            *(
                Block(
                    width * 2 ** max(stage - (place == 0), 0),
                    width * 2**stage,
                    2 if stage and place == 0 else 1,
                    norm,
                )
                for stage in range(3)
                for place in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 4 * width] of images [B, channels, H, W]."""
        if x.device.type == "cpu":  # a quarter faster there
            x = x.contiguous(memory_format=torch.channels_last)
        z = F.relu(self.norm(self.stem(x)), inplace=True)
        return self.stages(z).mean((2, 3))


def cifar_resnet(blocks: int, classes: int, channels: int, *, width: int, norm: NormName, head: HeadName) -> Split:
    """The network of `blocks` blocks a stage; convolutions and linear head start Kaiming-normal (fan-in)."""
    if width < 1:
        raise ValueError(f"model.width: must be 1 or more, and is {width}")
    net = Split(Backbone(blocks, width, NORMS[norm], channels), HEADS[head](4 * width, classes))
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return net


@dataclass(frozen=True)
class ResNet8:
    """ResNet-8, one block a stage: 75 thousand parameters, enough for 8x8 digits."""

    width: int = 16  # channels of the first stage; features have 4 times as many
    norm: NormName = "batch"  # group: samples of a batch do not see each other
    head: HeadName = "linear"  # cosine: for LDAM

    def build(self, classes: int, channels: int = 3) -> Split:
        """A new network for `classes` classes of images with `channels` channels."""
        return cifar_resnet(1, classes, channels, width=self.width, norm=self.norm, head=self.head)


@dataclass(frozen=True)
class ResNet20:
    """ResNet-20 for CIFAR, option A, 0.27 million parameters (He et al., CVPR 2016)."""

    width: int = 16  # channels of the first stage; features have 4 times as many
    norm: NormName = "batch"  # group: samples of a batch do not see each other
    head: HeadName = "linear"  # cosine: for LDAM

    def build(self, classes: int, channels: int = 3) -> Split:
        """A new network for `classes` classes of images with `channels` channels."""
        return cifar_resnet(3, classes, channels, width=self.width, norm=self.norm, head=self.head)


@dataclass(frozen=True)
class ResNet32:
    """ResNet-32 for CIFAR, option A, 0.46 million parameters: the standard of CIFAR-LT tables."""

    width: int = 16  # channels of the first stage; features have 4 times as many
    norm: NormName = "batch"  # group: samples of a batch do not see each other
    head: HeadName = "linear"  # cosine: for LDAM

    def build(self, classes: int, channels: int = 3) -> Split:
        """A new network for `classes` classes of images with `channels` channels."""
        return cifar_resnet(5, classes, channels, width=self.width, norm=self.norm, head=self.head)


@dataclass(frozen=True)
class ResNet30:
    """What CC-SAM's released ResNet-32 computes, BBN's without its last block: stages of 5, 5 and 4 blocks.

    Its linear head starts as PyTorch's own, since there it is made after the convolutions were drawn.

    The code takes its network from BBN, whose last block exists twice, and its forward pass goes through neither. A
    fifth block that copies its input would give the same logits, but not the same loss geometry: its idle
    convolutions and its norm's scale of 0 are a saddle of their own.
    """

    width: int = 16  # channels of the first stage; features have 4 times as many
    norm: NormName = "batch"  # group: samples of a batch do not see each other
    head: HeadName = "linear"  # cosine: for LDAM

    def build(self, classes: int, channels: int = 3) -> Split:
        """A new network for `classes` classes of images with `channels` channels."""
        net = ResNet32(self.width, self.norm, self.head).build(classes, channels)
        backbone: Any = net.backbone
        del backbone.stages[-1]
        return Split(backbone, HEADS[self.head](4 * self.width, classes))


@dataclass(frozen=True)
class ResNet34Cifar:
    """ResNet-34 for 32x32 images as in ImbSAM and SSE-SAM: 3x3 stem, no max-pooling, 21 million parameters.

    Its results cannot be compared with those of ResNet-32, which has 0.46 million.
    """

    norm: NormName = "batch"  # group: samples of a batch do not see each other
    head: HeadName = "linear"  # cosine: for LDAM

    def build(self, classes: int, channels: int = 3) -> Split:
        """A new network for `classes` classes of images with `channels` channels."""
        from torchvision.models import resnet34

        net = resnet34(norm_layer=NORMS[self.norm])
        net.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's others
        net.maxpool = nn.Identity()
        head = HEADS[self.head](net.fc.in_features, classes)
        net.fc = nn.Identity()
        return Split(net, head)
