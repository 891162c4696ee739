"""Photographs as cameras and browsers leave them, made upright RGB: streamed (`Photographs`) or held (`Held`)."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from flattail.data.halves import Resident
from flattail.data.reading import in_bytes, printable
from flattail.data.streamed import Files

DRAFT = 1024  # pixels: a JPEG is decoded at half, a quarter ... of its size while both sides keep as many
NAMED = 10  # unreadable images that a message names


def upright(path: str) -> Image.Image:
    """The image in a file, turned as its EXIF data say, as 8-bit RGB whatever it was: grey, palette, alpha, 16-bit."""
    with Image.open(path) as file:
        file.draft("RGB", (DRAFT, DRAFT))
        image = in_bytes(ImageOps.exif_transpose(file))
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")


@dataclass(eq=False)
class Photographs(Files):
    """Images on disk, read by workers, each turned upright; see `Half.batches`."""

    loader = staticmethod(upright)


@dataclass(eq=False)
class Held(Resident, Photographs):
    """Images of files, read once and held in memory at the size the network sees; augmented as those of `Tensors`."""

    x: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False)  # [N, 3, size, size], uint8; else to be read
    _there: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.x.shape[-1] != self.size:
            self._there = {}
            images = read(self.paths, self.shape_up)
            self.x = torch.stack(images) if images else torch.zeros(0, *self.shape, dtype=torch.uint8)

    def eval_transform(self) -> Callable[[Any], Any]:
        """The shorter side to the size, then the centre."""
        return v2.Compose([v2.Resize(self.size, antialias=True), v2.CenterCrop(self.size)])

    def shape_up(self, path: str) -> Tensor:
        """The image of a file, [3, size, size], uint8."""
        return v2.functional.pil_to_tensor(self.eval_transform()(self.loader(path)))

    def take(self, rows: Tensor) -> Self:
        """The half made of these rows."""
        paths = [self.paths[i] for i in rows.tolist()]
        return replace(self, paths=paths, y=self.y[rows], x=self.x[rows], _loaders={}, _there={})


def read(paths: Sequence[str], how: Callable[[str], Any], told: Callable[[], None] = lambda: None) -> list[Any]:
    """What `how` makes of every file, on all cores, in order; `told` after each.

    Raises ValueError for files that are no readable images: how many, and the first of them.
    """

    def one(path: str) -> tuple[Any, str | None]:
        try:
            return how(path), None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            said = str(error).replace(f" '{path}'", "").replace(path, "file")
            return None, f"{printable(path)} ({type(error).__name__}: {said})"

    results, broken = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for value, message in pool.map(one, paths):
            results.append(value)
            broken += [message] if message else []
            told()
    if broken:
        refuse_broken(broken, len(paths))
    return results


def refuse_broken(broken: Sequence[str], n: int) -> None:
    """Raise ValueError: how many of n files are no readable images, and the first of them."""
    more = f"\n  and {len(broken) - NAMED:,} more" if len(broken) > NAMED else ""
    named = "".join(f"\n  {message}" for message in broken[:NAMED])
    one = len(broken) == 1
    raise ValueError(
        f"{len(broken):,} of {n:,} image files cannot be read: restore {'it' if one else 'them'}, "
        f"or move {'it' if one else 'them'} out of the folder{named}{more}"
    )
