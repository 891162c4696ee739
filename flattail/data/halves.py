"""What a half of a data set answers (`Half`), and the one for images in memory (`Tensors`).

A step names rows and one seed per row, the only source of that image's randomness; so the number of workers,
processes or batches changes nothing that is drawn.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor


class Draw(NamedTuple):
    """One step's samples: rows [B] of a half, and a seed [B] for each; both int64 on the host."""

    rows: Tensor
    seeds: Tensor


class Augment(Protocol):
    """Every image of a batch drawn anew from its own seed."""

    def __call__(self, x: Tensor, seeds: Tensor) -> Tensor:
        """Images [B, ch, H, W] and seeds [B] (host) to images of the same type and size."""


class Half(Protocol):
    """One half of a data set, train or test, as training and evaluation see it."""

    y: Tensor  # labels [N], int64, host

    def __len__(self) -> int:
        """Number of samples N."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (ch, H, W)."""

    def take(self, rows: Tensor) -> Self:
        """The half made of these rows."""

    def batches(
        self,
        steps: Iterable[Draw],
        *,
        augment: Sequence[Augment] | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images [B, ch, H, W] (float32) and labels [B], on the device, one pair per step.

        ``augment=None`` shows the images as for evaluation; a sequence, even an empty one, as for training. A
        step without rows yields tensors of size zero.
        """


def in_order(n: int, batch: int) -> Iterator[Draw]:
    """Every row once, in order: the steps of an evaluation."""
    for rows in torch.arange(n).split(batch):
        yield Draw(rows, torch.zeros_like(rows))


def statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of images [N, ch, …], of x/255 if they are uint8."""
    columns = x.transpose(0, 1).flatten(1)
    if x.dtype == torch.uint8:
        shades = torch.stack([torch.bincount(c, minlength=256) for c in columns]).double()
        values, share = torch.arange(256) / 255.0, shades / shades.sum(1, keepdim=True)
        mean = share @ values.double()
        std = (share @ values.double().square() - mean.square()).clamp(min=0).sqrt()
    else:
        mean, std = columns.double().mean(1), columns.double().std(1, correction=0)
    std = torch.where(std > 0, std, 1.0)
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())


def normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x/255 − mean)/std for uint8 images, (x − mean)/std for others, in two operations."""
    top = 255.0 if x.dtype == torch.uint8 else 1.0
    size = (1, len(mean)) + (1,) * (x.ndim - 2)
    scale = torch.tensor([1 / (top * s) for s in std]).view(size)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(size)
    return torch.mul(x, scale.to(x.device, non_blocking=True)).add_(shift.to(x.device, non_blocking=True))


def augmented(x: Tensor, seeds: Tensor, augment: Sequence[Augment] | None) -> Tensor:
    """The images of a batch after every augmentation in turn."""
    for each in augment or ():
        x = each(x, seeds)
    return x


class Labelled(Protocol):
    """What normalises a half's images, and its labels."""

    y: Tensor  # [N]
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]  # likewise


def shown(
    half: Labelled, x: Tensor, rows: Tensor, seeds: Tensor, augment: Sequence[Augment] | None
) -> tuple[Tensor, Tensor]:
    """Images [B, ch, H, W] of these rows, augmented and normalised, and their labels on the same device."""
    x = normalised(augmented(x, seeds, augment), half.mean, half.std)
    return x, half.y[rows].to(x.device, non_blocking=True)


class Resident:
    """Images in memory; they move to a device once, and batches are gathered and augmented there."""

    x: Tensor  # [N, ch, H, W], uint8 or float32
    y: Tensor  # [N], int64
    mean: tuple[float, ...]  # per channel, of x/255 if x is uint8
    std: tuple[float, ...]  # likewise
    _there: dict[str, Tensor]  # by device

    def batches(
        self,
        steps: Iterable[Draw],
        *,
        augment: Sequence[Augment] | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Half.batches`; nothing is left for workers to do."""
        if str(device) not in self._there:
            self._there[str(device)] = self.x.to(device)
        home = self._there[str(device)]
        for rows, seeds in steps:
            yield shown(self, home[rows.to(home.device, non_blocking=True)], rows, seeds, augment)


@dataclass(eq=False)
class Tensors(Resident):
    """A half that is given as tensors."""

    x: Tensor  # [N, ch, H, W], uint8 or float32
    y: Tensor  # [N], int64
    mean: tuple[float, ...]  # per channel, of x/255 if x is uint8
    std: tuple[float, ...]  # likewise
    _there: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (ch, H, W)."""
        return tuple(self.x.shape[1:])

    def take(self, rows: Tensor) -> Self:
        """The half made of these rows."""
        return replace(self, x=self.x[rows], y=self.y[rows], _there={})
