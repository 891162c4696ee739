"""Colour jitter of a whole batch on a device, byte for byte what torchvision's does to Pillow images one by one.

An enhanced pixel is ⌊a + f·(x − a)⌋ within 0…255, in single precision as Pillow's blending has it, with a = 0 for
brightness, the image's mean grey for contrast, and the pixel's own grey for saturation.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2


def drawn(jitter: v2.ColorJitter) -> Tensor:
    """What torchvision draws for one image: the order of its operations, and three factors; float32 [7]."""
    params = jitter.make_params([])
    factors = [params[f"{name}_factor"] for name in ("brightness", "contrast", "saturation")]
    return torch.tensor([*params["fn_idx"].tolist(), *factors], dtype=torch.float32)


def jittered(x: Tensor, drawn: Tensor) -> Tensor:
    """Images [B, 3, H, W] (uint8) after the operations that were drawn for each, [B, 7] on the host."""
    order, factors = drawn[:, :4].long(), drawn[:, 4:].to(x.device, non_blocking=True)
    x = x.clone(memory_format=torch.preserve_format)
    for turn in range(4):
        for k, degenerate in enumerate((black, mean_gray, gray)):
            rows = (order[:, turn] == k).nonzero()[:, 0].to(x.device, non_blocking=True)
            if len(rows):
                some = x[rows]
                x[rows] = blended(degenerate(some), some, factors[rows, k, None, None, None])
    return x


def blended(a: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """From a to x, and as far beyond as the factor says, truncated to bytes."""
    a = a.float()
    return ((x - a) * factor + a).clamp_(0, 255).to(torch.uint8)


def black(x: Tensor) -> Tensor:
    """Zeros."""
    return torch.zeros_like(x[:, :1])


def gray(x: Tensor) -> Tensor:
    """The grey of every pixel, [B, 1, H, W]: ITU-R 601 in whole numbers, as Pillow rounds it."""
    r, g, b = x.int().unbind(1)
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16)[:, None]


def mean_gray(x: Tensor) -> Tensor:
    """The mean grey of every image, rounded, [B, 1, 1, 1]."""
    return (gray(x).double().mean((1, 2, 3), keepdim=True) + 0.5).floor()
