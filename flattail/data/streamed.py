"""Halves that stream: images on disk (`Files`) and any torch data set (`Wrapped`), read by workers.

While a sample is read, the global generators are seeded by that sample's own seed, so that torchvision's
transforms draw the same with any number of workers. Images travel as bytes, channels last, and are normalised on the
device; on a GPU colour jitter is done there as well, to whole batches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import v2

from flattail.data.halves import Augment, Draw, Half, shown
from flattail.data.jitter import drawn, jittered
from flattail.data.loading import Items, loader_of, streamed
from flattail.data.reading import Broken, Otherwise, Paths, Reader, Sample, drawn_from, in_bytes

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(eq=False)
class Files:
    """Images on disk, read and transformed by workers; see `Half.batches`.

    Where ``broken`` is "skip", the next readable image of its class stands in for one that cannot be read, in training:
    a batch has the sizes, classes and masses that it would have had. In evaluation there is no such image at all, and
    the batch is so much shorter. Both are written down in ``unread``.
    """

    paths: Sequence[str]  # one file per sample
    y: Tensor  # [N], int64
    size: int = 224  # side of the square the network sees, in pixels
    jitter: float = 0.0  # brightness, contrast and saturation jitter of training images
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    broken: Broken = "stop"  # what an image that cannot be read does
    unread: dict[str, str] = field(default_factory=dict)  # path -> why it could not be read, of those skipped so far
    _loaders: dict[Any, DataLoader] = field(default_factory=dict, repr=False)
    loader = staticmethod(pil_loader)  # opens a file as an image of three channels; no field

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (3, size, size)."""
        return (3, self.size, self.size)

    def take(self, rows: Tensor) -> Self:
        """The half made of these rows."""
        return replace(self, paths=[self.paths[i] for i in rows.tolist()], y=self.y[rows], unread={}, _loaders={})

    def crop_and_flip(self) -> list[Callable[[Any], Any]]:
        """Random crop of 8–100 % of the area, and flip."""
        return [v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip()]

    def colour(self) -> v2.ColorJitter | None:
        """Jitter of brightness, contrast and saturation, if there is any."""
        return v2.ColorJitter(*[self.jitter] * 3) if self.jitter else None

    def train_transform(self) -> Callable[[Any], Any]:
        """Random crop of 8–100 % of the area, flip, and colour jitter if there is any."""
        colour = self.colour()
        return v2.Compose(self.crop_and_flip() + ([colour] if colour else []))

    def eval_transform(self) -> Callable[[Any], Any]:
        """The shorter side to 8/7 of the size (256 for 224), then the centre."""
        return v2.Compose([v2.Resize(round(self.size * 8 / 7), antialias=True), v2.CenterCrop(self.size)])

    def batches(
        self,
        steps: Iterable[Draw],
        *,
        augment: Sequence[Augment] | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Half.batches`; augmentations, if any, come after the data set's own training transform."""
        kind = torch.device(device).type
        key = (augment is None, workers, kind)
        if key not in self._loaders:
            self._loaders[key] = loader_of(Items(self._reader(augment is None, kind), self.shape), workers, kind)
        for batch in streamed(self._loaders, key, steps):
            self.unread.update(batch.unread)
            x = batch.x.to(device, non_blocking=True)
            x = x if batch.drawn is None else jittered(x, batch.drawn)
            yield shown(self, x, batch.rows, batch.seeds, augment)

    def _reader(self, judged: bool, kind: str) -> Reader:
        """What reads an image for evaluation or training, on a kind of device."""
        otherwise: Otherwise = "stop" if self.broken == "stop" else "drop" if judged else "stand-in"
        colour = None if judged else self.colour()
        transform, draw = self.eval_transform() if judged else self.train_transform(), None
        if kind == "cuda" and colour is not None:
            transform, draw = v2.Compose(self.crop_and_flip()), _Drawn(colour)
        return Reader(Paths(self.paths), self.y, self.loader, transform, draw, otherwise)


@dataclass(eq=False)
class Wrapped:
    """Any torch data set of (image, label) pairs, its own transforms included; see `Half.batches`."""

    dataset: Dataset  # yields PIL images or tensors [ch, H, W] with a label
    y: Tensor  # [N], int64
    mean: tuple[float, ...]  # 0 and 1 where the data set normalises by itself
    std: tuple[float, ...]
    shape: tuple[int, ...]
    rows: Tensor  # [N], which samples of the data set these are
    _loaders: dict[Any, DataLoader] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> Self:
        """The half made of these rows."""
        return replace(self, y=self.y[rows], rows=self.rows[rows], _loaders={})

    def batches(
        self,
        steps: Iterable[Draw],
        *,
        augment: Sequence[Augment] | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Half.batches`; the data set transforms all images as it was built to."""
        kind = torch.device(device).type
        if (workers, kind) not in self._loaders:
            items = Items(_Picked(self.dataset, self.rows), self.shape)
            self._loaders[workers, kind] = loader_of(items, workers, kind)
        for batch in streamed(self._loaders, (workers, kind), steps):
            yield shown(self, batch.x.to(device, non_blocking=True), batch.rows, batch.seeds, augment)


def as_tensor(image: Any) -> Tensor:
    """A PIL image, array or tensor as a tensor [ch, H, W], uint8 or float32; 16-bit PIL images as bytes."""
    if isinstance(image, Image.Image) and image.mode.startswith("I"):
        image = in_bytes(image)
    x = image if isinstance(image, Tensor) else v2.functional.to_image(image)
    return x if x.dtype == torch.uint8 else x.float()


def unread(half: Half | None) -> dict[str, str]:
    """The images of a half that could not be read and were skipped so far, and why."""
    return getattr(half, "unread", {})


def may_skip(half: Half) -> bool:
    """Whether images of a half that cannot be read are skipped; the same in every process."""
    return getattr(half, "broken", "stop") == "skip"


def told(unread: Mapping[str, str], what: str) -> str:
    """The sentence about unread images, the first of them named; ``what`` was done about them."""
    names = "; ".join(f"{path} ({unread[path]})" for path in sorted(unread)[:5])
    more = f"; and {len(unread) - 5} more" if len(unread) > 5 else ""
    return f"{len(unread)} {'image' if len(unread) == 1 else 'images'} could not be read, {what}: {names}{more}"


@dataclass(frozen=True)
class _Drawn:
    """What a colour jitter draws for an image, for the device to do."""

    jitter: v2.ColorJitter

    def __call__(self) -> Tensor:
        return drawn(self.jitter)


@dataclass(frozen=True)
class _Picked:
    """A sample of a torch data set."""

    dataset: Dataset
    rows: Tensor

    def __call__(self, row: int, seed: int) -> Sample:
        with drawn_from(seed):
            return Sample(row, seed, as_tensor(self.dataset[int(self.rows[row])][0]))
