"""Batches whose images are made of two: which two, how, and what share of the answer each label has.

mixup:   x~ = l x_a + (1 - l) x_b                       share = l,            l ~ Beta(alpha, alpha), one per batch
cutmix:  x~ = x_a, but x_b inside a box of area 1 - l    share = 1 - (area of the box after clipping) / (area)
remix:   the images of either;                          share = 0 or 1 where one class is kappa times rarer

An objective of share * l(y_a) + (1 - share) * l(y_b) per image; every draw has an address, the key.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from flattail.data.addressed import seeds


class Mixture(NamedTuple):
    """A mixed batch: image i answers to the label of row i with its share, to that of row `order[i]` with the rest."""

    x: Tensor  # [B, ch, H, W]
    order: Tensor  # [B], host
    share: Tensor  # [B] float64, host, within 0 and 1


class Mix(Protocol):
    """What a mix is: a frozen value, called with images [B, ch, H, W], labels [B] and training counts [C] (host)."""

    def __call__(self, x: Tensor, labels: Tensor, counts: Tensor, key: int) -> Mixture:
        """The mixed batch; the same key draws the same."""
        ...


def partners(key: int, size: int) -> Tensor:
    """A permutation [B] of the batch: whom each image is mixed with."""
    return seeds(key, torch.arange(size)).argsort()


def _drawn(key: int, alpha: float) -> tuple[float, np.random.Generator]:
    generator = np.random.default_rng(key)
    return float(generator.beta(alpha, alpha)), generator


def _span(side: int, kept: float, generator: np.random.Generator) -> tuple[int, int]:
    """First and last + 1 row (or column) of a box, clipped."""
    cut, centre = int(side * math.sqrt(1 - kept)), int(generator.integers(side))
    return max(centre - cut // 2, 0), min(centre + cut // 2, side)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}: must be more than 0, and is {value}; for no mixing, write `mix: null`")


@dataclass(frozen=True)
class Mixup:
    """Two images blended by one share per batch, from Beta(alpha, alpha) (Zhang et al., ICLR 2018)."""

    alpha: float = 1.0  # both parameters of the Beta distribution; 1 is uniform

    def __post_init__(self) -> None:
        _positive(alpha=self.alpha)

    def __call__(self, x: Tensor, labels: Tensor, counts: Tensor, key: int) -> Mixture:
        """The mixed batch."""
        share, order = float(_drawn(key, self.alpha)[0]), partners(key, len(x))
        blend = share * x + (1 - share) * x[order.to(x.device, non_blocking=True)]
        return Mixture(blend, order, torch.full((len(x),), share, dtype=torch.float64))


@dataclass(frozen=True)
class CutMix:
    """A box of another image pasted in, the same box for the whole batch (Yun et al., ICCV 2019).

    The box has sides sqrt(1 - l) of the image's, l from Beta(alpha, alpha), around a uniform pixel, and is clipped at
    the borders; the labels' shares are those of the areas as they are after clipping.
    """

    alpha: float = 1.0  # both parameters of the Beta distribution; 1 is uniform

    def __post_init__(self) -> None:
        _positive(alpha=self.alpha)

    def __call__(self, x: Tensor, labels: Tensor, counts: Tensor, key: int) -> Mixture:
        """The mixed batch."""
        kept, generator = _drawn(key, self.alpha)
        order = partners(key, len(x))
        (top, bottom), (left, right) = (_span(side, kept, generator) for side in x.shape[-2:])
        pasted = x.clone()
        pasted[..., top:bottom, left:right] = x[order.to(x.device, non_blocking=True), :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (x.shape[-2] * x.shape[-1])
        return Mixture(pasted, order, torch.full((len(x),), share, dtype=torch.float64))


@dataclass(frozen=True)
class Remix:
    """Images mixed as ever, labels in favour of the rarer class (Chou et al., ECCV Workshops 2020).

    share = 0 where n_a / n_b >= kappa and l < tau; 1 where n_a / n_b <= 1 / kappa and 1 - l < tau; l elsewhere.
    """

    kappa: float = 3.0  # how many times rarer a class must be (published: 3)
    tau: float = 0.5  # largest share of the frequent class that is given away (published: 0.5)
    images: Mix = Mixup()  # how the images are mixed, and l drawn: mixup or cutmix

    def __post_init__(self) -> None:
        if not self.kappa >= 1:
            raise ValueError(f"kappa: must be 1 or more, and is {self.kappa}")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau: must be within 0 and 1, and is {self.tau}")

    def __call__(self, x: Tensor, labels: Tensor, counts: Tensor, key: int) -> Mixture:
        """The mixed batch."""
        blend, order, share = self.images(x, labels, counts, key)
        n = counts.cpu().double().clamp(min=1)[labels]  # [B]
        ratio = n / n[order]
        given_away = (ratio >= self.kappa) & (share < self.tau)
        taken_over = (ratio <= 1 / self.kappa) & (1 - share < self.tau)
        return Mixture(blend, order, share.masked_fill(taken_over, 1.0).masked_fill(given_away, 0.0))


MIXES: dict[str, type] = {"mixup": Mixup, "cutmix": CutMix, "remix": Remix}
