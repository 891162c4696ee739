"""Augmentations of whole batches in which every image draws its own, from its own seed.

A batch is [B, ch, H, W], uint8 or float before normalisation; seeds are [B] int64 on the host. What an image
becomes depends on its pixels and its seed, not on its neighbours in the batch, nor on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

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

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"pad: pixels on every side, not negative, and not {self.pad}")

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, ch, H, W] to images of the same size."""
        h, w = x.shape[-2:]
        top, left = (uniform(seeds, 2, salt=1) * (2 * self.pad + 1)).long().to(x.device, non_blocking=True).unbind(1)
        windows = F.pad(x, [self.pad] * 4).unfold(2, h, 1).unfold(3, w, 1)  # [B, ch, 2p+1, 2p+1, H, W], a view
        return windows[torch.arange(len(x), device=x.device), :, top, left]


@dataclass(frozen=True)
class Flip:
    """A horizontal mirror image, half of the time."""

    p: float = 0.5  # probability

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"p: a probability in [0, 1], and not {self.p}")

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, ch, H, W] to images of the same size."""
        mirrored = (uniform(seeds, 1, salt=2) < self.p).to(x.device, non_blocking=True)
        return torch.where(mirrored[:, :, None, None], x.flip(-1), x)


@dataclass(frozen=True)
class Cutout:
    """A square of zeros around a random pixel, clipped at the borders (DeVries & Taylor 2017)."""

    size: int = 16  # side of the square, in pixels

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size: the side of the square in pixels, not negative, and not {self.size}")

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, ch, H, W] to images of the same size."""
        draws = uniform(seeds, 2, salt=3).to(x.device, non_blocking=True)
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
            raise ValueError(f"autoaugment works on uint8 images, these are {x.dtype}: place it first")
        operation, p, magnitude, signed = policy(*x.shape[-2:])  # [25, 2] each
        u = uniform(seeds, 5, salt=4)
        chosen = (u[:, 0] * len(p)).long()
        negative = signed[chosen] & (u[:, 3:] < 0.5)
        magnitudes = torch.where(negative, -magnitude[chosen], magnitude[chosen])  # [B, 2]
        drawn = torch.where(u[:, 1:3] <= p[chosen], operation[chosen], -1)  # [B, 2]
        x = x.clone()
        for turn in (0, 1):
            for k in drawn[:, turn].unique().tolist():
                if k >= 0:
                    rows = (drawn[:, turn] == k).nonzero()[:, 0]
                    m = magnitudes[rows, turn].to(x.device, non_blocking=True)
                    rows = rows.to(x.device, non_blocking=True)
                    x[rows] = OPERATIONS[NAMES[k]](x[rows], m[:, None, None, None])
        return x


AUGMENTS = {"crop": Crop, "flip": Flip, "autoaugment": AutoAugment, "cutout": Cutout}


@cache
def policy(height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Operation (its place in `NAMES`), probability, magnitude and signed [25, 2], as torchvision has them."""
    published = Published(AutoAugmentPolicy.CIFAR10)
    space = published._augmentation_space(10, (height, width))
    rows = [
        [
            (NAMES.index(name), p, float(space[name][0][m]) if m is not None else 0.0, space[name][1])
            for name, p, m in sub
        ]
        for sub in published.policies
    ]
    table = torch.tensor(rows, dtype=torch.float64)  # [25, 2, 4]
    return table[..., 0].long(), table[..., 1].float(), table[..., 2].float(), table[..., 3].bool()


def moved(x: Tensor, dx: Tensor | float, dy: Tensor | float) -> Tensor:
    """Images whose pixel (row, column) is taken ``dy`` below and ``dx`` to the right of it; black comes in.

    Both are [b, 1, H, W] or broadcast to it, and are rounded to the nearest pixel.
    """
    h, w = x.shape[-2:]
    down, right = torch.arange(h, device=x.device)[:, None] + dy, torch.arange(w, device=x.device) + dx
    down, right = torch.broadcast_tensors(down.round().long(), right.round().long())  # [b, 1, H, W]
    inside = (down >= 0) & (down < h) & (right >= 0) & (right < w)
    at = (down.clamp(0, h - 1) * w + right.clamp(0, w - 1)).flatten(2).expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, at).view_as(x) * inside


def middles(n: int, x: Tensor) -> Tensor:
    """The middles of the pixels of a side, from its beginning."""
    return torch.arange(n, device=x.device) + 0.5


def turned(x: Tensor, degrees: Tensor) -> Tensor:
    """Images [b, ch, H, W] rotated about their centres, counter-clockwise."""
    h, w = x.shape[-2:]
    down, right = middles(h, x)[:, None] - h / 2, middles(w, x) - w / 2
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    return moved(x, (cos - 1) * right - sin * down, sin * right + (cos - 1) * down)


def blended(x: Tensor, plain: Tensor, m: Tensor) -> Tensor:
    """Away from a plain version of the images for m > 0, towards it for m < 0."""
    return (x * (1 + m) - plain * m).clamp_(0, 255).to(torch.uint8)


def softened(x: Tensor) -> Tensor:
    """Images without sharpness, the border as it is: torchvision's, whose kernel is made on the host and waited for."""
    if min(x.shape[-2:]) <= 2:
        return x
    kernel = x.new_full((x.shape[1], 1, 3, 3), 1 / 13, dtype=torch.float32)
    kernel[..., 1, 1] = 5 / 13
    soft = x.float()
    soft[..., 1:-1, 1:-1] = F.conv2d(soft, kernel, groups=x.shape[1]).round_()
    return soft.to(torch.uint8)


def gray(x: Tensor) -> Tensor:
    """The brightness of images, [b, 1, H, W]."""
    return T.rgb_to_grayscale(x) if x.shape[1] == 3 else x


# Images [b, ch, H, W] (uint8) and magnitudes [b, 1, 1, 1] to images; torchvision's, but each with its own magnitude.
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ShearX": lambda x, m: moved(x, m * middles(x.shape[-2], x)[:, None], 0.0),
    "ShearY": lambda x, m: moved(x, 0.0, m * middles(x.shape[-1], x)),
    "TranslateX": lambda x, m: moved(x, -m.trunc(), 0.0),
    "TranslateY": lambda x, m: moved(x, 0.0, -m.trunc()),
    "Rotate": turned,
    "Brightness": lambda x, m: blended(x, torch.zeros_like(x), m),
    "Color": lambda x, m: blended(x, gray(x), m) if x.shape[1] == 3 else x,
    "Contrast": lambda x, m: blended(x, gray(x).float().mean((1, 2, 3), keepdim=True), m),
    "Sharpness": lambda x, m: blended(x, softened(x), m),
    "Posterize": lambda x, m: x & (256 - 2 ** (8 - m.int())).to(torch.uint8),
    "Solarize": lambda x, m: torch.where(x >= m, 255 - x, x),
    "AutoContrast": lambda x, m: T.autocontrast(x),
    "Equalize": lambda x, m: T.equalize(x),
    "Invert": lambda x, m: T.invert(x),
}
NAMES = list(OPERATIONS)
