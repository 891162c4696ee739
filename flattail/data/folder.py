"""Images in one folder per class: `path/train/<class>/…` and `path/test/<class>/…`, or one tree, split."""

import os
from collections.abc import Iterator, Sequence
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
from flattail.data.reading import Broken, printable

TRAINED = ("train", "training")  # folders that are halves of a data set in whatever case, the first that is there
TESTED = ("test", "testing", "val", "valid", "validation", "eval", "dev")  # beside them


@dataclass(frozen=True)
class Folder:
    """Images in one folder per class; the folders' names are the classes, in alphabetical order.

    Raises ValueError for a size below one pixel.
    """

    path: str  # the tree: absolute, or relative to the data root
    test: float | str = "test"  # the folder beside train/ to test on, or a share of every class of one single tree
    least: int = 1  # of a share: test images of a class at the least, but no more than a third of it
    size: int = 224  # side of the square the network sees, in pixels
    hold: Literal["disk", "memory"] = "disk"  # disk: read anew, cropped at random; memory: read once, whole squares
    broken: Broken = "stop"  # an image on disk that cannot be read: stop, or skip and count it
    shots: Shots = STRICT  # which classes are many, medium and few

    def __post_init__(self) -> None:
        if self.size < 1 or self.least < 0:
            raise ValueError(f"size is a side in pixels and least a number of images, not {self.size} and {self.least}")

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
        return assembled(*halves, names=names, shots=self.shots, title=printable(top.name), kept=kept)

    def files(self, root: Path) -> tuple[tuple[list[str], Tensor], tuple[list[str], Tensor], list[str]]:
        """Files and labels [N] of the training half, the same of the test half, and the classes [C]; none is opened.

        Raises ValueError or FileNotFoundError for a tree that holds no classes, or others in its test part.
        """
        top = Path(root) / self.path
        if isinstance(self.test, str):
            trained_on = next(iter(called(top, TRAINED)), top / "train")
            tested_on = next(iter(called(top, (self.test, self.test.lower()))), top / self.test)
            train, y, names = tree(trained_on, f"or set test to a share, e.g. 0.2, to split {top} itself")
            test, test_y, test_names = tree(tested_on, "or name the test folder that is there")
            if unknown := sorted(set(test_names) - set(names)):
                raise ValueError(
                    f"{tested_on}: {', '.join(unknown[:5])} not among the {len(names)} classes of "
                    f"{trained_on}: rename or remove these folders"
                )
            return (train, y), (test, torch.tensor([names.index(name) for name in test_names])[test_y]), names
        refuse_halves(top)
        paths, y, names = tree(top, "one folder per class")
        aside = split(y, names, self.test, top, self.least)
        train, test = ([paths[i] for i in mask.nonzero()[:, 0].tolist()] for mask in (~aside, aside))
        return (train, y[~aside]), (test, y[aside]), names


def refuse_halves(top: Path) -> None:
    """Raise ValueError for a tree whose folders are parts of a data set by their names, and no classes."""
    train, test = ([half.name for half in called(top, names) if folders(half)] for names in (TRAINED, TESTED))
    if train and test:
        raise ValueError(
            f"{top} holds {'/, '.join([*train, *test])}/ with folders in them, which a share would take for classes: "
            f"write `test: {test[0]}`, or the path of {train[0]}/ to split the training images"
        )


def refuse_parts(top: Path) -> None:
    """Raise ValueError for a tree whose folders hold the same folders of images, as parts of a data set do."""
    parts = folders(top)
    if len(parts) > 1 and len(same := inside(parts[0])) > 1 and all(inside(part) == same for part in parts[1:]):
        raise ValueError(
            f"{top}: {listed([printable(part.name) for part in parts])} hold folders of the same names, "
            f"{listed(sorted(map(printable, same)))}, as parts of a data set do: call them train/ and test/, or give "
            "the path of one; if they are the classes, take the images out of the folders in them, or write a recipe "
            "with `data: {name: folder, path: ..., test: 0.2}`"
        )


def called(top: Path, names: Sequence[str]) -> list[Path]:
    """The folders of a tree with these names, in their order; a name in lower case means any case."""
    found = folders(top) if top.is_dir() else []
    there = {folder.name.lower(): folder for folder in found} | {folder.name: folder for folder in found}
    return [there[name] for name in names if name in there]


def inside(top: Path) -> set[str]:
    """Names of the folders in a folder that images lie in; none where some lie beside them."""
    places = {Path(image).parent for image in images(top)}
    return set() if top in places else {place.relative_to(top).parts[0] for place in places}


def tree(top: Path, remedy: str) -> tuple[list[str], Tensor, list[str]]:
    """Image files [N], labels [N] and class names [C] of a tree, in alphabetical order; hidden files are left out."""
    if not top.is_dir():
        raise FileNotFoundError(f"{top}: no such folder: expected {top}/<class>/<image>; create it, {remedy}")
    classes = folders(top)
    if not classes:
        raise ValueError(f"{top} has no folders in it: expected {top}/<class>/<image>, {remedy}")
    files = [images(folder) for folder in classes]
    if empty := [str(folder) for folder, found in zip(classes, files, strict=True) if not found]:
        one = len(empty) == 1
        raise ValueError(
            f"{listed(empty)} {'holds' if one else 'hold'} no image ({', '.join(IMG_EXTENSIONS)}): "
            f"add some, or remove the {'folder' if one else 'folders'}"
        )
    labels = [c for c, found in enumerate(files) for _ in found]
    names = [printable(folder.name) for folder in classes]
    return [path for found in files for path in found], torch.tensor(labels), names


def folders(top: Path) -> list[Path]:
    """The folders in a folder, in alphabetical order; hidden ones are left out."""
    return sorted(top / entry.name for entry in os.scandir(top) if entry.is_dir() and not hidden(entry.name))


def images(top: Path) -> list[str]:
    """The image files at or below a folder, in alphabetical order."""
    return sorted(str(file) for file in visible(top) if file.suffix.lower() in IMG_EXTENSIONS)


def visible(top: Path) -> Iterator[Path]:
    """All files at or below a folder; hidden ones, and those in hidden folders, are left out."""
    for place, inner, names in os.walk(top):
        inner[:] = [name for name in inner if not hidden(name)]
        yield from (Path(place, name) for name in names if not hidden(name))


def hidden(name: str) -> bool:
    """Whether a file or folder is one that systems and editors put there: `.DS_Store`, `._cat.jpg`, `@eaDir`."""
    return name.startswith((".", "__MACOSX", "@eaDir"))


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
