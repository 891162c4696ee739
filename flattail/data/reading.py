"""One image file: opened and told about where it cannot be, with a stand-in of its class where the data set says so."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import v2

Broken = Literal["stop", "skip"]
Otherwise = Literal["stop", "stand-in", "drop"]  # what is done about an image that cannot be read


class Sample(NamedTuple):
    """What reading a row gave."""

    row: int
    seed: int
    x: Tensor | None  # [ch, H, W]; None: there is no image to show
    drawn: Tensor | None = None  # what is left for the device to do, see `jitter.drawn`
    unread: tuple[tuple[str, str], ...] = ()  # the files that could not be read, and why


class Paths:
    """Paths in one piece of memory, which worker processes share; a list of strings is copied into each of them."""

    def __init__(self, paths: Sequence[str]):
        spelled = [path.encode("utf-8", "surrogateescape") for path in paths]
        self.text = b"".join(spelled)
        self.ends = np.cumsum([0, *map(len, spelled)])

    def __getitem__(self, row: int) -> str:
        return self.text[self.ends[row] : self.ends[row + 1]].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Reader:
    """An image file, opened, checked and transformed."""

    paths: Paths
    y: Tensor  # [N]
    load: Callable[[str], Image.Image]
    transform: Callable[[Any], Any]
    draw: Callable[[], Tensor] | None  # what is drawn here, after the transform, and done on the device
    otherwise: Otherwise

    def __call__(self, row: int, seed: int) -> Sample:
        """The image of a row, or what the data set puts in its place."""
        unread = []
        for each in self.candidates(row):
            image = opened(self.paths[each], self.load)
            if isinstance(image, str):
                unread.append((printable(self.paths[each]), image))
                continue
            with drawn_from(seed, others=False):
                x = v2.functional.pil_to_tensor(self.transform(image))
                drawn = self.draw() if self.draw is not None else None
            return Sample(row, seed, x, drawn, tuple(unread))
        return Sample(row, seed, None, None, tuple(unread))

    def candidates(self, row: int) -> Iterator[int]:
        """The row itself, and those of its class that may stand in, in turn from there on."""
        yield row
        if self.otherwise == "stand-in":
            same = (self.y == self.y[row]).nonzero()[:, 0]
            place = int(torch.searchsorted(same, row))
            yield from same.roll(-place)[1:].tolist()


def opened(path: str, load: Callable[[str], Image.Image] = pil_loader) -> Image.Image | str:
    """A file as an image of three channels, wholly decoded; or why that cannot be."""
    try:
        return load(path)
    except FileNotFoundError:
        return "it is gone"
    except Exception as error:  # decoders raise all there is: struct.error, zlib.error, DecompressionBombError, …
        return f"{type(error).__name__}: {error}"


def in_bytes(image: Image.Image) -> Image.Image:
    """An image of one deep channel (modes I;16, I, F) as 8-bit grey, any other as it is.

    Whole numbers are of 0…65535, or of 0…255 where mode I has none above; fractions are of 0…1. An image with values
    outside is stretched over its own range.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    x = np.asarray(image, dtype=np.float64)
    known = x[np.isfinite(x)]
    low, high = 0.0, 1.0 if image.mode == "F" else 65535.0
    if image.mode == "I" and known.size and known.min() >= 0 and known.max() <= 255:
        high = 256.0
    if known.size and (known.min() < low or known.max() > high):
        low, high = known.min(), known.max()
    x = np.nan_to_num(x, nan=low, posinf=high, neginf=low)
    return Image.fromarray(((x - low) * (256 / ((high - low) or 1))).clip(0, 255).astype(np.uint8))


def printable(name: str) -> str:
    """A file's name as text that can be printed and written: bytes that are no UTF-8 are spelled out (`caf\\xe9`)."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def said_of(path: str, reason: str) -> str:
    """The message about an image that stops a run."""
    if reason == "it is gone":
        return f"{path} is gone; it was there when the data were loaded: restore it"
    return f"{path} is not a readable image ({reason}): restore it, or drop it from the data"


@contextmanager
def drawn_from(seed: int, *, others: bool = True) -> Iterator[None]:
    """Torch's global generator, and the ``others``', seeded for one sample, and put back afterwards."""
    state = torch.get_rng_state()
    more = (np.random.get_state(), random.getstate()) if others else None
    torch.default_generator.manual_seed(seed)
    if more:
        np.random.seed(seed % 2**32)
        random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if more:
            np.random.set_state(more[0])
            random.setstate(more[1])
