"""Images in one folder per class: `path/train/<class>/…` and `path/test/<class>/…`, or one tree, split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from flattail.data.addressed import address, seeds
from flattail.data.folder_images import Held, Photographs
from flattail.data.longtail import LongTail, assembled
from flattail.data.profile import STRICT, Shots
from flattail.data.reading import Broken

HALVES = ("test", "val", "valid", "validation")  # folders beside train/ that are tested on, the first that is there


@dataclass(frozen=True)
class Folder:
    """Images in one folder per class; the folders' names are the classes, in alphabetical order."""

    path: str  # the tree: absolute, or relative to the data root
    test: float | str = "test"  # the folder beside train/ to test on, or a share of every class of one single tree
    least: int = 1  # of a share: test images of a class at the least, but no more than a third of it
    size: int = 224  # side of the square the network sees, in pixels
    hold: Literal["disk", "memory"] = "disk"  # disk: read anew, cropped at random; memory: read once, whole squares
    broken: Broken = "stop"  # an image on disk that cannot be read: stop, or skip and count it
    shots: Shots = STRICT  # which classes are many, medium and few

    def load(self, root: Path) -> LongTail:
        """The images, streamed from disk or held in memory; upright and in colour, however they were stored.

        A share is taken from every class, one image at the least, and stays the same until files are added.
        FileNotFoundError names the tree that is expected, ValueError classes without images; from memory, also those
        that cannot be read.
        """
        top = Path(root) / self.path
        kind = Held if self.hold == "memory" else Photographs
        (train, y), (test, test_y), names = self.files(root)
        halves = kind(train, y, self.size, broken=self.broken), kind(test, test_y, self.size, broken=self.broken)
        kept = [Path(path).relative_to(top).as_posix() for path in train]
        return assembled(*halves, names=names, shots=self.shots, title=top.name, kept=kept)

    def files(self, root: Path) -> tuple[tuple[list[str], Tensor], tuple[list[str], Tensor], list[str]]:
        """Files and labels [N] of the training half, the same of the test half, and the classes [C]; none is opened."""
        top = Path(root) / self.path
        if isinstance(self.test, str):
            train, y, names = tree(top / "train", f"or set test to a share, e.g. 0.2, to split {top} itself")
            test, test_y, test_names = tree(top / self.test, "or name the test folder that is there")
            if unknown := sorted(set(test_names) - set(names)):
                raise ValueError(
                    f"{top / self.test}: {', '.join(unknown[:5])} not among the {len(names)} classes of "
                    f"{top / 'train'}: rename or remove these folders"
                )
            return (train, y), (test, torch.tensor([names.index(name) for name in test_names])[test_y]), names
        refuse_halves(top)
        paths, y, names = tree(top, "one folder per class")
        aside = split(y, names, self.test, top, self.least)
        train, test = ([paths[i] for i in mask.nonzero()[:, 0].tolist()] for mask in (~aside, aside))
        return (train, y[~aside]), (test, y[aside]), names


def refuse_halves(top: Path) -> None:
    """Raise ValueError for a tree whose folders are halves of a data set, each with folders in it, and no classes."""
    halves = [name for name in ("train", *HALVES) if any(place.is_dir() for place in (top / name).glob("*"))]
    if "train" in halves and len(halves) > 1:
        raise ValueError(
            f"{top} holds {'/, '.join(halves)}/ with folders in them, which a share would take for classes: "
            f"write `test: {halves[1]}`, or the path of train/ to split the training images"
        )


def tree(top: Path, remedy: str) -> tuple[list[str], Tensor, list[str]]:
    """Image files [N], labels [N] and class names [C] of a tree, in alphabetical order; hidden files are left out."""
    if not top.is_dir():
        raise FileNotFoundError(f"{top}: no such folder: expected {top}/<class>/<image>; create it, {remedy}")
    names = sorted(entry.name for entry in top.iterdir() if entry.is_dir() and not hidden(entry))
    if not names:
        raise ValueError(f"{top} has no folders in it: expected {top}/<class>/<image>, {remedy}")
    files = [images(top / name) for name in names]
    if empty := [str(top / name) for name, found in zip(names, files, strict=True) if not found]:
        one = len(empty) == 1
        raise ValueError(
            f"{listed(empty)} {'holds' if one else 'hold'} no image ({', '.join(IMG_EXTENSIONS)}): "
            f"add some, or remove the {'folder' if one else 'folders'}"
        )
    labels = [c for c, found in enumerate(files) for _ in found]
    return [path for found in files for path in found], torch.tensor(labels), names


def images(folder: Path) -> list[str]:
    """The image files at or below a folder, in alphabetical order."""
    return sorted(str(f) for f in folder.rglob("*") if f.suffix.lower() in IMG_EXTENSIONS and not hidden(f))


def hidden(path: Path) -> bool:
    """Whether a file or folder is one that systems and editors put there: `.DS_Store`, `._cat.jpg`."""
    return path.name.startswith((".", "__MACOSX"))


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def split(y: Tensor, names: list[str], share: float, top: Path, least: int = 1) -> Tensor:
    """Mask [N] of the images for the test: a share of each class, at least one, and at least one is left."""
    if not 0 < share < 1:
        raise ValueError(f"test={share}: give a share between 0 and 1, e.g. 0.2, or the name of a folder")
    counts = torch.bincount(y, minlength=len(names)).tolist()
    if small := [str(top / name) for name, n in zip(names, counts, strict=True) if n < 2]:
        raise ValueError(
            f"{listed(small)} {'holds' if len(small) == 1 else 'hold'} one image, which cannot be both trained and "
            "tested on: add another, or move the class out of the tree"
        )
    aside = torch.zeros(len(y), dtype=torch.bool)
    for c, name in enumerate(names):
        rows = (y == c).nonzero()[:, 0]
        shuffled = rows[seeds(address("folder", name), torch.arange(len(rows))).argsort()]
        aside[shuffled[: kept_back(len(rows), share, least)]] = True
    return aside


def kept_back(n: int, share: float, least: int = 1) -> int:
    """How many of the n images of a class (2 or more) are for the test."""
    return min(max(round(share * n), min(least, n // 3), 1), n - 1)
