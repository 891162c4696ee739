"""ImageNet-LT, Places-LT and iNaturalist 2018, from lists of "path label" lines and images on disk."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import torch
from torch import Tensor

from flattail.data.longtail import LongTail, assembled
from flattail.data.profile import STRICT, Shots
from flattail.data.reading import Broken
from flattail.data.streamed import IMAGENET, Files


@dataclass(frozen=True)
class ImageNetLT:
    """ImageNet-LT: 115,846 images in 1,000 classes, 1,280 to 5 each (Liu et al., CVPR 2019).

    Expected: `lists/ImageNet_LT_{train,test}.txt` (val and open if wanted) and
    `imagenet/{train,val}/n01440764/….JPEG`.
    """

    size: int = 224  # side of the square the network sees, in pixels
    jitter: float = 0.4  # brightness, contrast and saturation jitter of training images
    lists: str = "lists"  # folder of the list files, under the data root
    images: str = "imagenet"  # folder that the lists' paths start from, under the data root
    broken: Broken = "stop"  # an image that cannot be read: stop, or skip and count it
    shots: Shots = STRICT  # which classes are many, medium and few
    remedy: ClassVar[str] = ""  # where a list that is missing comes from

    def load(self, root: Path) -> LongTail:
        """Train, test (the official validation images, 50 a class), val (20 a class) if its list is there."""
        return from_lists(self, Path(root), "ImageNet-LT", "ImageNet_LT_{}.txt", classes=1000)

    def unknown(self, root: Path) -> Files:
        """The open-set images, 18,000 of classes not trained on; their label is -1."""
        return open_list(self, Path(root), "ImageNet_LT_open.txt")


@dataclass(frozen=True)
class PlacesLT:
    """Places-LT: 62,500 scenes in 365 classes, 4,980 to 5 each (Liu et al., CVPR 2019).

    Expected: `lists/Places_LT_{train,test}.txt` (val and open if wanted) and
    `places365/{train,val}/airfield/….jpg`.
    """

    size: int = 224  # side of the square the network sees, in pixels
    jitter: float = 0.4  # brightness, contrast and saturation jitter of training images
    lists: str = "lists"  # folder of the list files, under the data root
    images: str = "places365"  # folder that the lists' paths start from, under the data root
    broken: Broken = "stop"  # an image that cannot be read: stop, or skip and count it
    shots: Shots = STRICT  # which classes are many, medium and few
    remedy: ClassVar[str] = ""  # where a list that is missing comes from

    def load(self, root: Path) -> LongTail:
        """Train, test (36,500 images, 100 a class) and, where its list is there, val (7,300, 20 a class)."""
        return from_lists(self, Path(root), "Places-LT", "Places_LT_{}.txt", classes=365)

    def unknown(self, root: Path) -> Files:
        """The open-set images, 6,600 of classes not trained on; their label is -1."""
        return open_list(self, Path(root), "Places_LT_open.txt")


@dataclass(frozen=True)
class INat18:
    """iNaturalist 2018: 437,513 photographs of 8,142 species, 1,000 to 2 each (Van Horn et al., CVPR 2018).

    The validation images, three a class, are what is tested on.
    Expected: `lists/iNaturalist18_{train,val}.txt` (written by `flattail data prepare inat18`) and
    `inat18/train_val2018/Plantae/7291/….jpg`.
    """

    size: int = 224  # side of the square the network sees, in pixels
    jitter: float = 0.0  # brightness, contrast and saturation jitter of training images (Saddle: 0.4)
    lists: str = "lists"  # folder of the list files, under the data root
    images: str = "inat18"  # folder that the lists' paths start from, under the data root
    broken: Broken = "stop"  # an image that cannot be read: stop, or skip and count it
    shots: Shots = STRICT  # which classes are many, medium and few
    remedy: ClassVar[str] = ", or write it by `flattail data prepare inat18`"

    def load(self, root: Path) -> LongTail:
        """Train and test (24,426 images)."""
        stats = (0.466, 0.471, 0.380), (0.195, 0.194, 0.192)
        return from_lists(
            self,
            Path(root),
            "iNat-18",
            "iNaturalist18_{}.txt",
            classes=8142,
            test="val",
            val=None,
            stats=stats,
        )


Listed = ImageNetLT | PlacesLT | INat18
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def from_lists(
    of: Listed,
    root: Path,
    title: str,
    pattern: str,
    *,
    classes: int,
    test: str = "test",
    val: str | None = "val",
    stats: Statistics = IMAGENET,
) -> LongTail:
    """A long tail from the lists named by ``pattern``; missing images are reported together, beforehand."""
    if val and not (root / of.lists / pattern.format(val)).is_file():
        val = None
    halves = {part: listed(of, root, pattern.format(part), stats) for part in ("train", test, val) if part}
    refuse_missing([path for half in halves.values() for path in half.paths], root / of.images, type(of).__doc__ or "")
    train, top = halves["train"], root / of.images
    relative = [path.removeprefix(f"{top}/") for path in train.paths]
    names = [f"class {c}" for c in range(classes)]
    for path, c in zip(relative, train.y.tolist(), strict=True):
        if 0 <= c < classes:
            names[c] = "/".join(PurePosixPath(path).parts[1:-1]) or names[c]
    return assembled(
        train,
        halves[test],
        names=names,
        shots=of.shots,
        title=title,
        kept=relative,
        val=halves[val] if val else None,
    )


def listed(of: Listed, root: Path, name: str, stats: Statistics) -> Files:
    """The images of one list; whether they exist is not looked at."""
    paths, y = read_list(root / of.lists / name, of.remedy)
    top = root / of.images
    return Files([f"{top}/{path}" for path in paths], y, of.size, of.jitter, *stats, of.broken)


def open_list(of: Listed, root: Path, name: str) -> Files:
    """The images of an open list; missing ones are reported together, beforehand."""
    half = listed(of, root, name, IMAGENET)
    refuse_missing(half.paths, root / of.images, type(of).__doc__ or "")
    return half


def read_list(path: Path, remedy: str = "") -> tuple[list[str], Tensor]:
    """Relative paths [N] and labels [N] (int64; -1: unknown class) of a list without a header.

    FileNotFoundError says where the list belongs, and the ``remedy``; ValueError names a line that is not "path label".
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list: put the official {path.name} there{remedy}")
    paths: list[str] = []
    labels: list[int] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            image, _, label = line.strip().rpartition(" ")
            try:
                labels.append(int(label))
                if not image.strip() or labels[-1] < -1:
                    raise ValueError
            except ValueError:
                raise ValueError(
                    f'{path}, line {number}: {line.strip()[:80]!r} is not "relative/path label": '
                    "correct the line, or get the list again"
                ) from None
            paths.append(image.strip())
    if not paths:
        raise ValueError(f"{path} is empty: get the list again")
    return paths, torch.tensor(labels, dtype=torch.int64)


def not_there(paths: Iterable[str]) -> list[str]:
    """The files that do not exist; a folder is read once, no file is opened."""
    wanted = defaultdict(list)
    for path in paths:
        wanted[os.path.dirname(path)].append(path)  # noqa: PTH120  (pathlib takes seconds for a million paths)
    missing: list[str] = []
    for folder, files in wanted.items():
        try:
            there = {entry.name for entry in os.scandir(folder)}
        except OSError:
            there = set()
        missing += [file for file in files if os.path.basename(file) not in there]  # noqa: PTH119
    return missing


def refuse_missing(paths: Sequence[str], top: Path, expected: str) -> None:
    """One FileNotFoundError for all files that are not there."""
    if missing := not_there(paths):
        first = ", ".join(str(Path(file).relative_to(top)) for file in missing[:3])
        tree = " ".join(expected.split("Expected: ")[-1].split())
        raise FileNotFoundError(
            f"{len(missing):,} of {len(paths):,} images are missing under {top}, the first: {first}. "
            f"Expected under the data root: {tree} Put or link the images there, or name their "
            "folder by images=…"
        )
