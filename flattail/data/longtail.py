"""A long-tailed data set as everyone downstream sees it: two halves, counts of the classes, and groups."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from flattail.data.addressed import address, seeds
from flattail.data.halves import Half, Tensors, statistics
from flattail.data.profile import STRICT, Shots, fingerprint
from flattail.data.streamed import Wrapped, as_tensor


@dataclass(frozen=True)
class LongTail:
    """Train and test halves with what is known of their classes. Built by `assembled` or `LongTail.of`.

    Raises ValueError when a label lies outside the classes or a class has no training sample.
    """

    train: Half  # the long tail
    test: Half  # usually balanced
    counts: Tensor  # [C] int64, samples of each class in train
    names: tuple[str, ...]  # [C]
    shots: Shots  # which classes are many, medium and few
    title: str  # for tables: "CIFAR-10-LT, IF 100, exponential, subset cao"
    fingerprint: str  # twelve hex digits, the same for the same kept samples
    val: Half | None = None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.counts):
            raise ValueError(f"{self.title}: {len(self.names)} names for {len(self.counts)} classes: give one each")
        for part, half in (("train", self.train), ("test", self.test), ("val", self.val)):
            if half is None:
                continue
            if len(half) == 0:
                raise ValueError(f"{self.title}: the {part} half is empty: give it at least one sample")
            wrong = ((half.y < 0) | (half.y >= len(self.counts))).nonzero()
            if len(wrong):
                row = int(wrong[0])
                raise ValueError(
                    f"{self.title}: {part} label {int(half.y[row])} (sample {row}) is outside "
                    f"0…{len(self.counts) - 1}: number the {len(self.counts)} classes from 0"
                )
        counted = torch.bincount(self.train.y, minlength=len(self.counts))
        if (empty := (counted == 0).nonzero()).numel():
            c = int(empty[0])
            raise ValueError(
                f"{self.title}: class {c} ({self.names[c]}) has no training sample: add some, "
                "or leave the class out and number the others from 0 without a gap"
            )
        assert counted.equal(self.counts), "counts are those of the training half"
        untested = [self.names[c] for c in (torch.bincount(self.test.y, minlength=len(counted)) == 0).nonzero()[:, 0]]
        if untested:
            some = ", ".join(untested[:5]) + (", ..." if len(untested) > 5 else "")
            warnings.warn(
                f"{self.title}: no test image of {len(untested)} of {len(counted)} classes ({some}): "
                "their accuracy is unknown, and means over classes leave them out",
                stacklevel=3,
            )

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.counts)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.shape[0]

    def group(self) -> dict[str, Tensor]:
        """Masks [C] of the classes that are many, medium and few, by their training counts."""
        return self.shots.group(self.counts)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> "LongTail":
        """The same images, normalised by this mean and deviation per channel (of x/255 if they are uint8)."""
        how = {"mean": tuple(mean), "std": tuple(std)}
        halves: dict[str, Any] = {"train": self.train, "test": self.test, "val": self.val}
        return replace(self, **{part: replace(half, **how) for part, half in halves.items() if half is not None})

    def carve(self, share: float, seed: int) -> "LongTail":
        """The same data with a validation part out of train: a share of each class, one image at least.

        Which images go depends on ``seed`` alone. Raises ValueError if a class has a single image, or ``share`` is
        not in (0, 1).
        """
        if not 0 < share < 1:
            raise ValueError(f"share={share}: give the part of each class to validate on, e.g. 0.1")
        if (single := (self.counts < 2).nonzero()).numel():
            c = int(single[0])
            raise ValueError(
                f"{self.title}: class {c} ({self.names[c]}) has one training image, which cannot be both "
                "trained and validated on: add images, or train without a validation split"
            )
        order = seeds(address(seed, "carve"), torch.arange(len(self.train))).argsort()
        order = order[self.train.y[order].argsort(stable=True)]  # by class, shuffled within
        place = torch.arange(len(order)) - (self.counts.cumsum(0) - self.counts).repeat_interleave(self.counts)
        out = (self.counts * share).round().long().clamp(min=1).minimum(self.counts - 1)
        gone = place < out.repeat_interleave(self.counts)
        kept = order[~gone].sort().values
        return replace(
            self,
            train=self.train.take(kept),
            val=self.train.take(order[gone].sort().values),
            counts=self.counts - out,
            title=f"{self.title}, {share:.0%} for validation",
            fingerprint=fingerprint([self.fingerprint], kept, self.counts - out),
        )

    @staticmethod
    def of(
        train: Any,
        test: Any,
        *,
        names: Sequence[str] | None = None,
        shots: Shots = STRICT,
        title: str = "custom",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "LongTail":
        """A long tail from two torch data sets of (image, label) pairs, or two pairs (x, y) of arrays.

        Arrays: x is [N, H, W], [N, ch, H, W] or [N, H, W, ch], uint8 or float; y is [N] or [N, 1]. Without
        ``mean`` and ``std`` images are normalised by those of the training images; floats that come from a
        torch data set are taken as they are.
        """
        halves = [
            Tensors(*arrays(half, f"{title}: {part}"), (), ()) if isinstance(half, tuple | list) else wrapped(half)
            for part, half in (("train", train), ("test", test))
        ]
        first = halves[0]
        stats = statistics(first.x) if isinstance(first, Tensors) else sampled(first)
        for half in halves:
            half.mean, half.std = tuple(mean or stats[0]), tuple(std or stats[1])
        return assembled(*halves, names=names, shots=shots, title=title)


def assembled(
    train: Half,
    test: Half,
    *,
    names: Sequence[str] | None = None,
    shots: Shots,
    title: str,
    kept: Any = None,
    val: Half | None = None,
) -> LongTail:
    """A `LongTail` from its halves; ``kept`` tells this subset from others (default: the labels in order)."""
    classes = len(names) if names else int(train.y.max()) + 1 if len(train) else 0
    counts = torch.bincount(train.y.clamp(min=0), minlength=classes)[:classes] if len(train) else torch.zeros(0).long()
    return LongTail(
        train,
        test,
        counts,
        tuple(names or map(str, range(classes))),
        shots,
        title,
        fingerprint(train.y if kept is None else kept, counts),
        val,
    )


def arrays(pair: Any, place: str) -> tuple[Tensor, Tensor]:
    """Images [N, ch, H, W] (uint8 or float32) and labels [N] from arrays; ValueError naming ``place``."""
    if len(pair) != 2:
        raise ValueError(f"{place}: expected images and labels, got {len(pair)} arrays: give (x, y)")
    x, y = (torch.as_tensor(np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a) for a in pair)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(
            f"{place} labels are {y.dtype} of shape {list(y.shape)}: give one whole number per image, [N] or [N, 1]"
        )
    if len(x) != len(y):
        raise ValueError(f"{place}: {len(x)} images but {len(y)} labels: give one label per image")
    if x.dtype != torch.uint8:
        if not x.is_floating_point():
            raise ValueError(f"{place} images are {x.dtype}: store them as uint8 (0…255) or float")
        x = x.float()
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3) and (x.shape[1] not in (1, 3) or isinstance(pair[0], np.ndarray)):
        x = x.permute(0, 3, 1, 2).contiguous()
    if x.dtype == torch.uint8 and (x.ndim != 4 or x.shape[1] not in (1, 3)):
        raise ValueError(
            f"{place} images have shape {list(pair[0].shape)}: give [N, H, W], [N, H, W, 3] or [N, 3, H, W]"
        )
    return x, y.long()


def wrapped(dataset: Dataset) -> Wrapped:
    """A torch data set as a half; labels come from ``targets`` or ``labels``, else from one pass over it."""
    n = len(dataset)  # type: ignore[arg-type]
    known = labels_of(dataset)
    y = known if known is not None else torch.tensor([int(dataset[i][1]) for i in range(n)], dtype=torch.int64)
    shape = tuple(as_tensor(dataset[0][0]).shape) if n else (3, 1, 1)
    return Wrapped(dataset, y, (), (), shape, torch.arange(n))


def labels_of(dataset: Dataset) -> Tensor | None:
    """Labels [N] that a data set states without opening its images, if it does: a whole number for each item."""
    if isinstance(dataset, Subset):
        inner = labels_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    stated = getattr(dataset, "targets", None)
    stated = getattr(dataset, "labels", None) if stated is None else stated
    if stated is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        y = np.asarray(stated)
    except (ValueError, TypeError):  # of different lengths, or on another device
        return None
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    fits = y.dtype.kind in "iu" and y.shape == (len(dataset),)  # type: ignore[arg-type]
    return torch.as_tensor(y.astype(np.int64)) if fits else None


def sampled(half: Wrapped) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Statistics of up to 512 evenly spaced images; (0, 1) for images that come as floats, so as they are."""
    channels = half.shape[0]
    rows = torch.linspace(0, len(half) - 1, min(len(half), 512)).long().unique().tolist() if len(half) else []
    images = [as_tensor(half.dataset[i][0]) for i in rows]
    if not images or images[0].dtype != torch.uint8:
        return (0.0,) * channels, (1.0,) * channels
    return statistics(torch.cat([image.flatten(1) for image in images], 1)[None])
