"""Augmentations of whole batches in which every image draws its own, from its own seed.

A batch is [B, ch, H, W], uint8 or float before normalisation; seeds are [B] int64 on the host. What an image
becomes depends on its pixels and its seed, not on its neighbours in the batch, nor on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import atan, degrees

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import AutoAugment as Published
from torchvision.transforms import AutoAugmentPolicy
from torchvision.transforms.v2 import functional as T

from flattail.data.addressed import uniform


@dataclass(frozen=True)
class Crop:
    """A random crop of the image's own size out of the zero-padded image."""

    pad: int = 4  # zeros on every side, in pixels

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, ch, H, W] to images of the same size."""
        h, w = x.shape[-2:]
        top, left = (uniform(seeds, 2, salt=1) * (2 * self.pad + 1)).long().to(x.device).unbind(1)
        windows = (
            F.pad(x, [self.pad] * 4).unfold(2, h, 1).unfold(3, w, 1)
        )  # [B, ch, 2p+1, 2p+1, H, W], a view
        return windows[torch.arange(len(x), device=x.device), :, top, left]


@dataclass(frozen=True)
class Flip:
    """A horizontal mirror image, half of the time."""

    p: float = 0.5  # probability

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, ch, H, W] to images of the same size."""
        mirrored = (uniform(seeds, 1, salt=2) < self.p).to(x.device)
        return torch.where(mirrored[:, :, None, None], x.flip(-1), x)


@dataclass(frozen=True)
class Cutout:
    """A square of zeros around a random pixel, clipped at the borders (DeVries & Taylor 2017)."""

    size: int = 16  # side of the square, in pixels

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, ch, H, W] to images of the same size."""
        draws = uniform(seeds, 2, salt=3).to(x.device)
        inside = []
        for draw, side in zip(draws.unbind(1), x.shape[-2:], strict=True):
            first = (draw * side).long()[:, None] - self.size // 2
            at = torch.arange(side, device=x.device)
            inside.append((at >= first) & (at < first + self.size))
        return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)


@dataclass(frozen=True)
class AutoAugment:
    """The CIFAR-10 policy of AutoAugment, on uint8 images (Cubuk et al., CVPR 2019)."""

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, ch, H, W] to images of the same size."""
        if x.dtype != torch.uint8:
            raise ValueError(
                f"autoaugment works on uint8 images, these are {x.dtype}: place it before any that is not"
            )
        u = uniform(seeds, 5, salt=4)
        chosen = (u[:, 0] * 25).long().tolist()
        x = x.clone()
        for turn in (0, 1):
            groups: dict[tuple[str, float], list[int]] = {}
            for i, sub in enumerate(chosen):
                name, p, magnitude, signed = policy(x.shape[-2], x.shape[-1])[sub][turn]
                if u[i, 1 + turn] <= p:
                    sign = -1 if signed and u[i, 3 + turn] < 0.5 else 1
                    groups.setdefault((name, sign * magnitude), []).append(i)
            for (name, magnitude), members in groups.items():
                rows = torch.tensor(members).to(x.device, non_blocking=True)
                x[rows] = OPERATIONS[name](x[rows], magnitude)
        return x


AUGMENTS = {"crop": Crop, "flip": Flip, "autoaugment": AutoAugment, "cutout": Cutout}


@cache
def policy(height: int, width: int) -> list[list[tuple[str, float, float, bool]]]:
    """The 25 sub-policies as torchvision has them: twice (name, probability, magnitude, signed)."""
    published = Published(AutoAugmentPolicy.CIFAR10)
    space = published._augmentation_space(10, (height, width))
    return [
        [(name, p, float(space[name][0][m]) if m is not None else 0.0, space[name][1]) for name, p, m in sub]
        for sub in published.policies
    ]


def affine(x: Tensor, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Images moved by pixels, or sheared about their upper left corner as in the paper; black comes in."""
    slant = [degrees(atan(s)) for s in shear]
    return T.affine(x, 0.0, list(shift), 1.0, slant, center=[0, 0] if any(shear) else None)


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "ShearX": lambda x, m: affine(x, shear=(m, 0.0)),
    "ShearY": lambda x, m: affine(x, shear=(0.0, m)),
    "TranslateX": lambda x, m: affine(x, shift=(int(m), 0)),
    "TranslateY": lambda x, m: affine(x, shift=(0, int(m))),
    "Rotate": lambda x, m: T.rotate(x, m),
    "Brightness": lambda x, m: T.adjust_brightness(x, 1 + m),
    "Color": lambda x, m: T.adjust_saturation(x, 1 + m),
    "Contrast": lambda x, m: T.adjust_contrast(x, 1 + m),
    "Sharpness": lambda x, m: T.adjust_sharpness(x, 1 + m),
    "Posterize": lambda x, m: T.posterize(x, int(m)),
    "Solarize": lambda x, m: T.solarize(x, m),
    "AutoContrast": lambda x, m: T.autocontrast(x),
    "Equalize": lambda x, m: T.equalize(x),
    "Invert": lambda x, m: T.invert(x),
}
