"""What lies in somebody's folder of photographs, and what the machine before it can do."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..data.folder import TESTED, TRAINED, Folder, called, folders, images, listed, refuse_parts, visible
from ..data.folder_images import read, upright
from ..data.reading import printable
from .pretrained import Pretrained, there


@dataclass(frozen=True)
class Found:
    """A folder of photographs, looked at."""

    name: str  # of the folder: what its runs are called
    path: str  # of the tree, absolute
    classes: tuple[str, ...]  # [C]
    counts: tuple[int, ...]  # [C] images per class: of train/, or of the whole tree if no test folder is there
    test: str | None  # the folder beside train/ to test on; None: a share is to be set apart
    side: int  # pixels, the shorter side of the image in the middle
    reading: float  # seconds to read and decode one image
    ignored: tuple[tuple[str, int], ...] = ()  # files that are no images, by suffix: how many

    @property
    def images(self) -> int:
        """Of all classes."""
        return sum(self.counts)


@dataclass(frozen=True)
class Machine:
    """What training runs on."""

    device: str  # cpu, cuda, cuda:1 or mps
    title: str  # in words
    memory: int  # bytes that are free on the host
    weights: tuple[Pretrained, ...] = ()  # networks whose ImageNet weights are here, the best for the device first


def place(data: Path) -> tuple[str, Path, str | None]:
    """Name, tree and test folder of what the user calls the data.

    FileNotFoundError or ValueError for what is no folder of class folders, or has a single class.
    """
    top = data.expanduser().resolve()
    if top.is_file():
        raise ValueError(f"--data {data} is a file: give the folder that holds a folder of images for each class")
    if not top.is_dir():
        raise FileNotFoundError(f"--data {data}: no such folder")
    if not top.name:
        raise ValueError(f"--data {data} has no name: give the folder that holds a folder of images for each class")
    name, test, classes = printable(top.name), None, folders(top)
    if train := [half for half in called(top, TRAINED) if folders(half)]:
        test = next((half.name for half in called(top, TESTED)), None)
        if test is None and len(classes) == 1:
            top = train[0]
        classes = folders(train[0] if test else top)
    else:
        refuse_parts(top)
    if not classes:
        loose = len(images(top))
        said = (
            f"{loose:,} images lie in it, but no folders" if loose else "there is neither a folder nor an image in it"
        )
        raise ValueError(f"--data {data}: {said}: expected {data}/<class>/<image>, one folder for each class")
    if len(classes) == 1:
        raise ValueError(
            f"--data {data} has one class, {classes[0].name!r}, and nothing to tell it from: "
            "add a folder for each other class"
        )
    return name, top, test


def look(data: Path, told: Callable[[int, int], None] = lambda done, n: None) -> Found:
    """Every file opened and decoded once: classes, counts, sizes, and what cannot be read; `told` of the progress.

    FileNotFoundError or ValueError for what cannot be trained on: see `place`, `Folder.files` and `read`.
    """
    name, top, test = place(data)
    (paths, y), (aside, aside_y), classes = Folder(str(top), test=test or 0.5).files(Path())
    everything, counted = paths + aside, torch.cat([y, aside_y]) if test is None else y
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        told(done, len(everything))

    begun = time.perf_counter()
    sides = read(everything, shorter_side, one_more)
    seconds = (time.perf_counter() - begun) / len(everything)
    return Found(
        name=name,
        path=str(top),
        classes=tuple(classes),
        counts=tuple(torch.bincount(counted, minlength=len(classes)).tolist()),
        test=test,
        side=round(statistics.median(sides)),
        reading=seconds,
        ignored=strangers(top),
    )


def shorter_side(path: str) -> int:
    """Of the image in a file, in pixels as they are stored; the image is decoded, so that a damaged one is found."""
    upright(path)
    with Image.open(path) as image:
        return min(image.size)


def strangers(top: Path) -> tuple[tuple[str, int], ...]:
    """Files at or below a folder that are no images that can be read: how many of each suffix, most frequent first."""
    others = (f.suffix.lower() for f in visible(top) if f.suffix.lower() not in IMG_EXTENSIONS)
    return tuple(Counter(printable(suffix) or "no suffix" for suffix in others).most_common())


def machine(device: str | None, *, fetch: bool = False) -> Machine:
    """The device that training will run on, free memory, and the pretrained weights here; with `fetch` also others."""
    if device is None:
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind = device.partition(":")[0]
    title = torch.cuda.get_device_name(device) if kind == "cuda" and torch.cuda.is_available() else kind.upper()
    if kind == "cpu":
        threads = torch.get_num_threads()
        title += f", {threads} thread{'s' * (threads > 1)} of {os.cpu_count()} cores"
    free = psutil.virtual_memory().available
    if kind == "cuda" and torch.cuda.is_available():
        free = min(free, torch.cuda.mem_get_info(device)[0])  # images that are held are held there
    return Machine(device, title, free, there(device, fetch=fetch))


def described(found: Found) -> list[str]:
    """The folder in plain words, a sentence each."""
    most, fewest = (f(zip(found.counts, found.classes, strict=True)) for f in (max, min))
    said = [
        f"{found.name}: {found.images:,} images in {len(found.classes)} classes, "
        f"{most[0]:,} of {most[1]!r} to {fewest[0]:,} of {fewest[1]!r}; the shorter side has {found.side} pixels"
    ]
    if found.ignored:
        some = listed([f"{n:,} {suffix}" for suffix, n in found.ignored])
        said.append(f"left out, because they are no images that can be read here: {some}")
    return said
