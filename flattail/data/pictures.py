"""Image files of any size and mode, brought to what the test half of a data set looks like, and read by workers."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from flattail.data.folder import images
from flattail.data.folder_images import Held, Photographs, upright
from flattail.data.halves import Half, Tensors
from flattail.data.streamed import Files, Wrapped

STREAMED: dict[str, type[Files]] = {"files": Files, "photographs": Photographs, "held": Held}
MEMORY, OWN = "memory", "own"


@dataclass(frozen=True)
class Preparation:
    """How an image file becomes what a network was tested on.

    `files`, `photographs` and `held` read a file as these halves of data sets do. `memory` is for sets that never
    were files: the image is turned upright (EXIF), made grey or coloured, cut to the proportions of `shape` around its
    centre, and brought to `shape` as CIFAR is to other sizes: by area averaging, or enlarged bilinearly. `own` images
    come out of a data set with transforms of its own, or as floats, and no file can stand in for them.
    """

    reading: str  # files, photographs, held, memory or own: what the test half does
    shape: tuple[int, ...]  # (ch, H, W) of an image
    mean: tuple[float, ...]  # per channel, of x/255 where images are bytes
    std: tuple[float, ...]  # likewise

    @classmethod
    def of(cls, half: Half) -> Self:
        """That of a half."""
        streamed = {kind: name for name, kind in STREAMED.items()}
        whole = isinstance(half, Tensors) and half.x.dtype == torch.uint8 and half.shape[0] in (1, 3)
        reading = streamed.get(type(half), MEMORY if whole else OWN)  # type: ignore[arg-type]
        plain = (0.0,) * half.shape[0], (1.0,) * half.shape[0]
        mean, std = (half.mean, half.std) if isinstance(half, Files | Tensors | Wrapped) else plain
        return cls(reading, tuple(half.shape), tuple(mean), tuple(std))

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """What `vars` made plain."""
        return cls(plain["reading"], *(tuple(plain[name]) for name in ("shape", "mean", "std")))

    def read(self, path: str) -> Tensor:
        """The image in a file, bytes [ch, H, W]; an exception of Pillow's, or OSError, for what is none."""
        if self.reading in STREAMED:
            half = STREAMED[self.reading]([], torch.zeros(0), self.shape[-1])
            return v2.functional.pil_to_tensor(half.eval_transform()(half.loader(path)))
        channels, height, width = self.shape
        image = upright(path)
        x = v2.functional.pil_to_tensor(image.convert("L") if channels == 1 else image)
        scale = min(x.shape[1] / height, x.shape[2] / width)
        x = v2.functional.center_crop(x, [max(round(height * scale), 1), max(round(width * scale), 1)])
        return brought(x[None].float(), self.shape)[0].round().to(torch.uint8)


def brought(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Float images [B, ch, H, W] brought to `shape`, (channels, H, W)."""
    if x.shape[1] != shape[0]:
        x = v2.functional.rgb_to_grayscale(x) if shape[0] == 1 else x.expand(-1, shape[0], -1, -1)
    if x.shape[2:] == (*shape[1:],):
        return x
    size = (shape[1], shape[2])
    smaller = size[0] <= x.shape[2]
    return F.interpolate(x, size, mode="area") if smaller else F.interpolate(x, size, mode="bilinear")


# ---- which files -------------------------------------------------------------------------------------------


def found(sources: Sequence[str | Path]) -> list[str]:
    """The image files that paths, folders (all images below them) and patterns (`photos/**/*.png`) mean, each once.

    Raises FileNotFoundError for what leads nowhere, ValueError for a folder without images.
    """
    files: dict[str, None] = {}
    for source in map(str, sources):
        if Path(source).is_dir():
            there = images(Path(source))
            if not there:
                raise ValueError(f"{source} holds no image ({', '.join(IMG_EXTENSIONS)}): give another folder")
        elif Path(source).exists():
            there = [source]
        else:
            there = sorted(file for file in glob.glob(source, recursive=True) if Path(file).is_file())  # noqa: PTH207
            if not there:
                raise FileNotFoundError(f"{source}: no such file, folder or pattern: give images, or folders of them")
        files |= dict.fromkeys(there)
    return list(files)


# ---- reading -----------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What was read of some files."""

    rows: list[int]  # [b] those that are images
    x: Tensor  # bytes [b, ch, H, W]
    broken: dict[int, str]  # why others could not be read


def read(
    paths: Sequence[str], like: Preparation, *, batch: int = 64, workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """The images of all files, in order, read by so many processes; `pin`: to memory that a GPU copies from at once."""
    pictures = _Pictures(tuple(paths), like)
    yield from DataLoader(
        pictures,
        batch_size=batch,
        collate_fn=pictures.together,
        num_workers=workers,
        pin_memory=pin,  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class _Pictures(Dataset):
    """What a `DataLoader` indexes: the image of a file, or why it cannot be read."""

    paths: tuple[str, ...]
    like: Preparation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            return row, self.like.read(self.paths[row])
        except Exception as error:  # Pillow's plug-ins raise what they like at damaged files
            return row, f"{type(error).__name__}: {error}"

    def together(self, items: list[tuple[int, Tensor | str]]) -> Batch:
        images = {row: x for row, x in items if isinstance(x, Tensor)}
        stacked = torch.stack([*images.values()]) if images else torch.zeros((0, *self.like.shape), dtype=torch.uint8)
        return Batch([*images], stacked, {row: said for row, said in items if isinstance(said, str)})
