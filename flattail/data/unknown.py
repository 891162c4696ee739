"""Images of unknown classes, label −1: the open half beside a closed one, brought to its size and normalisation."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from flattail.data import npz
from flattail.data.folder import images
from flattail.data.folder_images import read
from flattail.data.halves import Augment, Draw, Half, Tensors, shown
from flattail.data.listed import read_list, refuse_missing
from flattail.data.longtail import LongTail, arrays
from flattail.data.pictures import MEMORY, OWN, STREAMED, Preparation, brought
from flattail.data.reading import printable
from flattail.data.streamed import Files, Wrapped, as_tensor

SUFFIXES = (".npz", ".txt")  # of the files that `from_path` reads

Images = Tensors | Files | Wrapped


class Unknown(NamedTuple):
    """Images of classes that were not trained on."""

    half: Half  # its labels are -1
    names: tuple[str, ...]  # classes of these images, as far as they are known
    title: str  # for tables
    warnings: tuple[str, ...]  # what a reader of the numbers should know


def from_dataset(dataset: Any, root: Path, like: LongTail) -> Unknown:
    """The open list of a data set that has one (`unknown`), else the test images of the data set."""
    if hasattr(dataset, "unknown"):
        return _beside(dataset.unknown(Path(root)), (), f"{type(dataset).__name__}, open list", like)
    data = dataset.load(Path(root))
    there = torch.bincount(data.test.y, minlength=data.classes) > 0
    names = tuple(name for name, some in zip(data.names, there.tolist(), strict=True) if some)
    return _beside(data.test, names, f"{data.title}, test images", like)


def from_path(path: Path, root: Path, like: LongTail) -> Unknown:
    """All images below a folder, the `test_images` (or `images`) of a `.npz`, or those that a list names.

    A folder's subfolders name the classes. A list holds `relative/path label` lines, whose labels are not looked at;
    its paths start from the data root. FileNotFoundError or ValueError names what is missing or cannot be read.
    """
    path = Path(path)
    title = printable(path.name)
    if path.suffix == ".npz":
        return _beside(_npz(path), (), title, like)
    if path.suffix == ".txt":
        listed = [f"{root}/{line}" for line in read_list(path)[0]]
        refuse_missing(listed, Path(root), "the paths of the list.")
        return _beside(_files(listed), (), title, like)
    found = images(path)
    if not found:
        raise ValueError(f"{path} holds no image ({', '.join(IMG_EXTENSIONS)}): give a folder of open-set images")
    inside = [Path(file).relative_to(path).parts for file in found]
    names = sorted({printable(parts[0]) for parts in inside if parts[1:]})
    return _beside(_files(found), tuple(names), title, like)


def overlapping(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The names that both have, whatever their case and separators; bare numbers name nothing."""
    spelled = {_spelled(name) for name in others}
    return [name for name in names if (word := _spelled(name)) and not word.isdigit() and word in spelled]


@dataclass(eq=False)
class Fitted:
    """A half whose images are brought to another size and number of channels, for evaluation; see `Half.batches`.

    Larger images are averaged by area, smaller ones enlarged bilinearly; grey ones are repeated over the channels,
    coloured ones made grey by luminance. Bytes stay bytes, so that a data set shrunk here equals one shrunk when read.
    """

    half: Images  # its mean and standard deviation are not used
    y: Tensor  # [N], int64
    shape: tuple[int, ...]  # of one sample, (ch, H, W)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole: bool  # whether the images are bytes, 0…255

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> Self:
        """The half made of these rows."""
        return replace(self, half=self.half.take(rows), y=self.y[rows])

    def batches(
        self,
        steps: Iterable[Draw],
        *,
        augment: Sequence[Augment] | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Half.batches`; augmentations, if any, come last."""
        channels = self.half.shape[0]
        top = 255.0 if self.whole else 1.0
        raw = replace(self.half, mean=(0.0,) * channels, std=(1 / top,) * channels)
        steps = list(steps)
        for step, (x, _) in zip(steps, raw.batches(steps, device=device, workers=workers), strict=True):
            x = brought(x, self.shape)
            yield shown(self, x.round().to(torch.uint8) if self.whole else x, step.rows, step.seeds, augment)


def _beside(half: Images, names: tuple[str, ...], title: str, like: LongTail) -> Unknown:
    """The half with labels -1, as images of the closed data look; ValueError where that cannot be."""
    closed = like.test
    if not isinstance(closed, Images) or not isinstance(half, Images):
        raise ValueError(f"{title}: only data sets of images in memory, in files or in torch data sets can be compared")
    channels, *size = closed.shape
    whole = _bytes(half)
    if whole != _bytes(closed):
        kind, other = ("bytes", "floats") if whole else ("floats", "bytes")
        raise ValueError(f"{title}: its images are {kind}, the closed ones {other}: give both as bytes (0…255)")
    if (half.shape[0], channels) not in ((1, 1), (3, 3), (1, 3), (3, 1)):
        raise ValueError(f"{title}: its images have {half.shape[0]} channels, the closed ones {channels}: give as many")
    said = []
    if isinstance(half, Files):
        how = Preparation.of(closed)
        if how.reading == OWN:
            how = replace(how, reading=MEMORY)
            said.append("the closed images have transforms of their own, the open ones none: they may be told by that")
        half = _read(half.paths, how)
    half = replace(half, y=torch.full_like(half.y, -1))
    if half.shape[1] * size[1] != half.shape[2] * size[0]:
        raise ValueError(
            f"{title}: its images are {half.shape[1]}×{half.shape[2]} pixels, the closed ones {size[0]}×{size[1]}, "
            "another shape: crop them to that of the closed ones"
        )
    if same_names := overlapping(names, like.names):
        more = ", …" if len(same_names) > 5 else ""
        said.append(
            f"{len(same_names)} open classes have the name of a closed one ({', '.join(same_names[:5])}{more}): "
            "their images may not be unknown"
        )
    if half.shape[1] < size[0]:
        said.append(
            f"the open images were enlarged from {half.shape[1]} to {size[0]} pixels: they may be told by their blur"
        )
    if half.shape[0] != channels:
        said.append("the open images differ from the closed ones in colour: they may be told by that")
    mean, std = closed.mean, closed.std
    same = half.shape == closed.shape
    fit: Half = replace(half, mean=mean, std=std) if same else Fitted(half, half.y, closed.shape, mean, std, whole)
    return Unknown(fit, names, title, tuple(said))


def _bytes(half: Images) -> bool:
    if isinstance(half, Tensors):
        return half.x.dtype == torch.uint8
    return isinstance(half, Files) or as_tensor(half.dataset[int(half.rows[0])][0]).dtype == torch.uint8


def _files(paths: list[str]) -> Files:
    return Files(paths, torch.full((len(paths),), -1))


def _read(paths: Sequence[str], how: Preparation) -> Files | Tensors:
    """The images of files, streamed or held as those are that they are prepared like."""
    y = torch.full((len(paths),), -1)
    if how.reading in STREAMED:
        return STREAMED[how.reading](paths, y, how.shape[-1])
    return Tensors(torch.stack(read(paths, how.read)), y, (), ())


def _npz(path: Path) -> Tensors:
    found = npz.read(path, [], ["test_images", "images"])
    if not found:
        raise ValueError(f"{path} has neither test_images nor images: save it by numpy.savez(file, images=…)")
    images = found.get("test_images", found.get("images"))
    x, y = arrays((images, torch.full((len(images),), -1)), f"{path}: open")  # type: ignore[arg-type]
    return Tensors(x, y, (), ())


def _spelled(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
