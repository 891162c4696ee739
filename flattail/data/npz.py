"""Any MedMNIST-style `.npz`: images and labels of the train, test and perhaps val parts in one file."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from flattail.data.halves import Tensors, statistics
from flattail.data.longtail import LongTail, arrays, assembled
from flattail.data.profile import STRICT, Shots


@dataclass(frozen=True)
class Npz:
    """A `.npz` of train_images, train_labels, test_*, perhaps val_*: uint8 [N, H, W] or [N, H, W, 3]."""

    file: str  # absolute, or relative to the data root
    shots: Shots = STRICT  # which classes are many, medium and few

    def load(self, root: Path) -> LongTail:
        """The data as they are in the file.

        Raises FileNotFoundError or ValueError, which name the file and the key.
        """
        path = Path(root) / self.file
        parts = ("train", "val", "test")
        keys = [f"{p}_{k}" for p in parts for k in ("images", "labels")]
        found = read(path, [key for key in keys if "val" not in key], [*keys, "train_index"])
        pairs = {p: pair(found, p, path) for p in parts if f"{p}_images" in found}
        stats = statistics(pairs["train"][0])
        shapes = {p: list(x.shape[1:]) for p, (x, _) in pairs.items()}
        if len({tuple(shape) for shape in shapes.values()}) > 1:
            raise ValueError(f"{path}: images differ in shape, {shapes}: store all parts at one size")
        halves = {p: Tensors(x, y, *stats) for p, (x, y) in pairs.items()}
        return assembled(
            halves["train"],
            halves["test"],
            shots=self.shots,
            title=path.name,
            kept=found.get("train_index"),
            val=halves.get("val"),
        )


def read(path: Path, keys: Sequence[str], also: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays ``keys`` of a `.npz`, and ``also`` those that are in it; no pickled object is ever loaded.

    FileNotFoundError if there is no such file; ValueError if it is unreadable, cut short or lacks a key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: put it there, or give its folder as the data root")
    try:
        with np.load(path, allow_pickle=False) as file:
            there = list(file.files)
            found = {key: file[key] for key in {*keys, *also} if key in there}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is not a readable .npz of plain arrays ({type(error).__name__}: {error}): "
            "it may be cut short; copy or download it again"
        ) from error
    if missing := [key for key in keys if key not in found]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)} (it holds {', '.join(there) or 'nothing'}): "
            "save it by numpy.savez(file, train_images=…, train_labels=…, test_images=…, test_labels=…)"
        )
    return found


def pair(found: Mapping[str, np.ndarray], part: str, path: Path) -> tuple[Tensor, Tensor]:
    """Images [N, ch, H, W] (uint8) and labels [N] of one part; ValueError naming the file and the key."""
    for key in (f"{part}_images", f"{part}_labels"):
        if key not in found:
            raise ValueError(f"{path} lacks {key}: add it, or leave {part}_* out altogether")
    if found[f"{part}_images"].dtype != np.uint8:
        raise ValueError(f"{path}: {part}_images are {found[f'{part}_images'].dtype}: store them as uint8 (0…255)")
    return arrays((found[f"{part}_images"], found[f"{part}_labels"]), f"{path}: {part}")
