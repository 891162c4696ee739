"""CIFAR-10-LT and CIFAR-100-LT, from torchvision's folder, its archive, a prepared `.npz`, or a download."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity, download_url

from flattail.data import npz
from flattail.data.halves import Tensors
from flattail.data.longtail import LongTail, assembled
from flattail.data.profile import HEAD_3_4_3, STRICT, Profile, Shots, Subset, factor_of, long_tail, ranks, subset

MIRROR = "FLATTAIL_CIFAR_MIRROR"  # environment variable: the address of a folder that holds the archive
PATIENCE = 30  # seconds to wait for a silent host
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

Images = tuple[np.ndarray, np.ndarray]  # uint8 [N, 32, 32, 3] and labels [N]

NAMES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES_100 = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
    seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
    tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
    worm
    """.split()  # noqa: SIM905
)
NAMES = {CIFAR10: NAMES_10, CIFAR100: NAMES_100}


@dataclass(frozen=True)
class CIFAR10LT:
    """CIFAR-10-LT: small photographs in 10 classes (Krizhevsky 2009; Cao et al., NeurIPS 2019)."""

    imbalance: float = 100.0  # largest class over smallest (in (0, 1): its inverse)
    profile: Profile = "exponential"  # exponential, step or pareto; class 0 is the largest
    subset: Subset = "cao"  # which images are kept: cao (seed 0), cc (seed 42) or first (unshuffled)
    size: int = 32  # side of the images in pixels; others than 32 are made once, by area averaging
    shots: Shots = HEAD_3_4_3  # which classes are many, medium and few

    def load(self, root: Path) -> LongTail:
        """The long-tailed training images and all 10,000 test images; see `load`."""
        return load(self, CIFAR10, "cifar10-lt", Path(root))


@dataclass(frozen=True)
class CIFAR100LT:
    """CIFAR-100-LT: small photographs in 100 classes (Krizhevsky 2009; Cao et al., NeurIPS 2019)."""

    imbalance: float = 100.0  # largest class over smallest (in (0, 1): its inverse)
    profile: Profile = "exponential"  # exponential, step or pareto; class 0 is the largest
    subset: Subset = "cao"  # which images are kept: cao (seed 0), cc (seed 42) or first (unshuffled)
    size: int = 32  # side of the images in pixels; others than 32 are made once, by area averaging
    shots: Shots = STRICT  # which classes are many, medium and few

    def load(self, root: Path) -> LongTail:
        """The long-tailed training images and all 10,000 test images; see `load`."""
        return load(self, CIFAR100, "cifar100-lt", Path(root))


def load(of: CIFAR10LT | CIFAR100LT, source: type[CIFAR10], stem: str, root: Path) -> LongTail:
    """Find the images under ``root`` and keep those of the profile and subset that ``of`` asks for.

    In this order: torchvision's extracted folder; its archive, md5 checked; a prepared ``{stem}{IF}.npz`` of
    exactly this subset; a download from the mirror or else from torchvision's own address.
    """
    names = NAMES[source]
    inverse = 1 / factor_of(of.imbalance)
    prepared = prepared_at(of, stem, root)
    if prepared.is_file() and not unpacked_or_packed(source, root):
        train, test, kept = from_npz(prepared, of, len(names))
    else:
        train, test = (whole(source, root, part) for part in (True, False))
        counts = long_tail(of.profile, len(train[1]) / len(names), len(names), of.imbalance)
        kept = subset(train[1], counts, of.subset)
        train = train[0][kept], train[1][kept]
    halves = [Tensors(resized(x, of.size), torch.from_numpy(y).long(), MEAN, STD) for x, y in (train, test)]
    title = f"{stem.upper()}, IF {inverse:g}, {of.profile}, subset {of.subset}"
    if of.size != 32:
        title += f", {of.size} px"
    return assembled(*halves, names=names, shots=of.shots, title=title, kept=kept)


def prepared_at(of: CIFAR10LT | CIFAR100LT, stem: str, root: Path) -> Path:
    """Where a prepared file of this imbalance would be."""
    return root / f"{stem}{round(1 / factor_of(of.imbalance), 6):g}.npz"


def unpacked_or_packed(source: type[CIFAR10], root: Path) -> bool:
    """Whether torchvision's folder or archive is there."""
    return (root / source.base_folder).is_dir() or (root / source.filename).is_file()


def local(of: CIFAR10LT | CIFAR100LT, root: Path) -> bool:
    """Whether the images are there, in any form, so that nothing will be downloaded."""
    source, stem = (CIFAR10, "cifar10-lt") if isinstance(of, CIFAR10LT) else (CIFAR100, "cifar100-lt")
    return prepared_at(of, stem, root).is_file() or unpacked_or_packed(source, root)


def whole(source: type[CIFAR10], root: Path, train: bool) -> Images:
    """The full official train or test part, in the official order, read by torchvision."""
    if not (root / source.base_folder).is_dir():
        archive(source, root)
        source(str(root), download=True)  # the archive is here and verified: this only unpacks it
    try:
        part = source(str(root), train=train)
    except RuntimeError as error:
        raise ValueError(
            f"{root / source.base_folder} is incomplete or damaged: remove the folder and put "
            f"{source.filename} (md5 {source.tgz_md5}) beside it"
        ) from error
    return part.data, np.asarray(part.targets)


def archive(source: type[CIFAR10], root: Path) -> Path:
    """The verified archive under ``root``, downloaded if need be; FileNotFoundError if it cannot be."""
    path = root / source.filename
    if path.is_file():
        if not check_integrity(str(path), source.tgz_md5):
            raise ValueError(
                f"{path} is damaged or cut short: its md5 is not {source.tgz_md5}; remove it or get it again"
            )
        return path
    mirror = os.environ.get(MIRROR)
    url = f"{mirror.rstrip('/')}/{source.filename}" if mirror else source.url
    part = path.with_name(path.name + ".part")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with patience(PATIENCE):
            download_url(url, str(root), part.name, source.tgz_md5)
        part.replace(path)
    except (OSError, RuntimeError, ValueError) as error:
        part.unlink(missing_ok=True)
        raise FileNotFoundError(
            f"{source.__name__} is not at {path}, and it could not be downloaded ({error}). Either put "
            f"{source.filename} (md5 {source.tgz_md5}) at {path}, or set the environment variable {MIRROR} "
            "to the address of a folder that holds it"
        ) from error
    return path


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """New connections give up after this long without an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def from_npz(path: Path, of: CIFAR10LT | CIFAR100LT, classes: int) -> tuple[Images, Images, np.ndarray]:
    """Train, test and the official positions of the train images, from a prepared file of this very subset.

    The official labels are not in such a file, but the order of the kept positions within a class is that of
    the rule's shuffle; a file made by another rule, profile or imbalance is refused with ValueError.
    """
    keys = [f"{part}_{what}" for part in ("train", "test") for what in ("images", "labels")]
    found = npz.read(path, [*keys, "train_index"])
    train, test = (
        (found[f"{part}_images"], found[f"{part}_labels"].reshape(-1).astype(np.int64)) for part in ("train", "test")
    )
    for part, (x, y) in (("train", train), ("test", test)):
        if x.dtype != np.uint8 or x.shape != (len(y), 32, 32, 3):
            raise ValueError(
                f"{path}: {part}_images are {x.dtype} {list(x.shape)} for {len(y)} labels: expected uint8 "
                f"[{len(y)}, 32, 32, 3]; read other images with the data set npz"
            )
    kept = found["train_index"].reshape(-1)
    counts = long_tail(of.profile, 50000 / classes, classes, of.imbalance).numpy()
    if not np.array_equal(np.bincount(train[1], minlength=classes), counts):
        raise ValueError(
            f"{path} does not hold the counts of imbalance {of.imbalance:g}, {of.profile} "
            f"({counts[0]} … {counts[-1]}, {counts.sum()} images): put torchvision's archive under the data "
            "root, or read the file as it is with the data set npz"
        )
    for c, order in enumerate(ranks([50000 // classes] * classes, of.subset)):
        if not np.array_equal(kept[train[1] == c].argsort(), order[: counts[c]].argsort()):
            raise ValueError(
                f"{path} was not made by the subset rule {of.subset!r} (class {c} is in another order): name "
                "the rule it was made by, or put torchvision's archive under the data root"
            )
    return train, test, kept


def resized(images: np.ndarray, size: int) -> Tensor:
    """Images [N, 32, 32, 3] as uint8 [N, 3, size, size], by area averaging."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    if size == x.shape[-1]:
        return x
    parts = (F.interpolate(part.float(), size=(size, size), mode="area") for part in x.split(4096))
    return torch.cat([part.round_().to(torch.uint8) for part in parts])
