"""Whether a data set is whole: lists, files, class counts against the published ones, and every image decoded."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flattail.data.cifar import CIFAR10LT, CIFAR100LT, local
from flattail.data.folder import Folder
from flattail.data.listed import ImageNetLT, INat18, Listed, PlacesLT, not_there, read_list
from flattail.data.longtail import LongTail
from flattail.data.profile import factor_of, fingerprint
from flattail.data.reading import opened, printable
from flattail.data.streamed import Files

NAMED = 20  # files and classes that a finding names


class List(NamedTuple):
    """An official list, as published."""

    part: str
    file: str
    images: int
    each: int | None = None  # images of every class, where they are as many
    optional: bool = False  # training goes without


OFFICIAL: dict[type, tuple[str, int, tuple[List, ...]]] = {  # title, classes, lists
    ImageNetLT: ("ImageNet-LT", 1000, (
        List("train", "ImageNet_LT_train.txt", 115_846), List("test", "ImageNet_LT_test.txt", 50_000, 50),
        List("val", "ImageNet_LT_val.txt", 20_000, 20, optional=True),
        List("open", "ImageNet_LT_open.txt", 18_000, optional=True),
    )),
    PlacesLT: ("Places-LT", 365, (
        List("train", "Places_LT_train.txt", 62_500), List("test", "Places_LT_test.txt", 36_500, 100),
        List("val", "Places_LT_val.txt", 7_300, 20, optional=True),
        List("open", "Places_LT_open.txt", 6_600, optional=True),
    )),
    INat18: ("iNat-18", 8142, (
        List("train", "iNaturalist18_train.txt", 437_513), List("test", "iNaturalist18_val.txt", 24_426, 3),
    )),
}  # fmt: skip
COUNTED: dict[type, str] = {ImageNetLT: "imagenet-lt", PlacesLT: "places-lt"}  # keys of published.json
EXTREMES: dict[type, tuple[int, int]] = {INat18: (1000, 2)}  # largest and smallest class, where not all are known
CIFARS: dict[Any, dict[int, int]] = {  # training images under the exponential profile, by imbalance
    CIFAR10LT: {10: 20_431, 50: 13_996, 100: 12_406, 200: 11_203},
    CIFAR100LT: {10: 19_573, 50: 12_608, 100: 10_847, 200: 9_502},
}


class Finding(NamedTuple):
    """Something that is wrong."""

    what: str
    number: int = 0
    first: tuple[str, ...] = ()  # the first of so many


class Part(NamedTuple):
    """A half of the data, as found."""

    source: str  # a list, or what the half is called
    images: int
    counts: Tensor  # [C]; empty where no image has a known class
    remark: str = ""


@dataclass
class Checked:
    """What was found."""

    title: str
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)
    files: int = 0  # images on disk that are named
    missing: int = 0  # of them
    decoded: int | None = None  # images that were opened; None: none was looked into
    fingerprint: str = ""
    wrong: list[Finding] = field(default_factory=list)


def check(
    dataset: Any, root: Path, *, images: bool = True, told: Callable[[int, int], None] = lambda done, of: None
) -> Checked:
    """Look at everything that a data set needs under ``root``; nothing is downloaded and no error ends it.

    Without ``images`` none is opened. ``told`` is called with the number decoded and their total.
    """
    found = Checked(type(dataset).__name__)
    if isinstance(dataset, Listed):
        paths, load = listed(dataset, Path(root), found), Files.loader
    else:
        paths, load = loaded(dataset, Path(root), found)
    paths = list(dict.fromkeys(paths))
    gone = set(not_there(paths))
    found.files, found.missing = len(paths), len(gone)
    if gone:
        where = f"images listed are not below {Path(root)}"
        found.wrong.append(finding(where, [path for path in paths if path in gone], root))
    if images and paths:
        decode([path for path in paths if path not in gone], load, root, found, told)
    return found


def listed(of: Listed, root: Path, found: Checked) -> list[str]:
    """What the lists of a large set say; returns the paths of their images."""
    found.title, classes, lists = OFFICIAL[type(of)]
    paths: dict[str, list[str]] = {}
    for one in lists:
        where = f"{of.lists}/{one.file}"
        if one.optional and not (root / where).is_file():
            found.notes.append(f"{where} is not there; training goes without")
            continue
        try:
            lines, y = read_list(root / where, of.remedy)
        except (ValueError, OSError) as error:
            found.wrong.append(Finding(str(error)))
            continue
        paths[one.part] = lines
        counts = torch.bincount(y[y >= 0], minlength=classes) if one.part != "open" else torch.zeros(0).long()
        remark = compared(of, one, counts, found, len(lines))
        found.parts.append(Part(where, len(lines), counts, remark))
        if twice := [line for line, n in tally(lines).items() if n > 1]:
            found.wrong.append(finding(f"images are named more than once in {where}", twice))
        if one.part == "train":
            found.groups = grouped(of, counts, found) if len(counts) == classes else {}
            found.fingerprint = fingerprint(lines, counts)
    if both := sorted(set(paths.get("train", ())) & set(paths.get("test", ()))):
        found.wrong.append(finding("images are trained and tested on", both))
    top = root / of.images
    whole = {part: [f"{top}/{line}" for line in lines] for part, lines in paths.items()}
    if "open" in whole and len(not_there(whole["open"])) == len(whole["open"]):
        n = len(whole.pop("open"))
        found.notes.append(f"none of the {n:,} open-set images is there; `flattail evaluate --open` alone needs them")
    return [path for each in whole.values() for path in each]


def compared(of: Listed, one: List, counts: Tensor, found: Checked, images: int) -> str:
    """A list beside the published one: a remark, and findings where they differ."""
    before, where = len(found.wrong), f"{of.lists}/{one.file}"
    classes = OFFICIAL[type(of)][1]
    known = published(type(of)) if one.part == "train" else None
    if one.each is not None:
        known = torch.full((classes,), one.each)
    if images != one.images:
        found.wrong.append(Finding(f"{where} names {images:,} images, the published list {one.images:,}"))
    if len(counts) > classes:
        outside = [f"label {c}: {int(counts[c])} images" for c in range(classes, len(counts)) if counts[c]]
        found.wrong.append(finding(f"labels of {where} are outside 0…{classes - 1}", outside))
    elif one.part != "open" and known is not None and not counts.equal(known):
        if counts.sort().values.equal(known.sort().values):
            return "classes in another order than the published"
        off = (counts != known).nonzero()[:, 0].tolist()
        said = [f"class {c}: {int(counts[c]):,} images, published {int(known[c]):,}" for c in off]
        found.wrong.append(finding(f"classes of {where} do not have the published number of images", said))
    elif one.part == "train" and known is None and (int(counts.max()), int(counts.min())) != EXTREMES[type(of)]:
        largest, smallest = EXTREMES[type(of)]
        found.wrong.append(
            Finding(
                f"{where}: the classes have {int(counts.max()):,} to {int(counts.min()):,} images, "
                f"published are {largest:,} to {smallest:,}"
            )
        )
    return "as published" if len(found.wrong) == before else ""


def loaded(dataset: Any, root: Path, found: Checked) -> tuple[list[str], Callable[[str], Any]]:
    """What any other data set gives when it is loaded; returns the paths of its images, and what opens them."""
    if isinstance(dataset, CIFAR10LT | CIFAR100LT) and not local(dataset, root):
        name = type(dataset).__name__
        found.wrong.append(Finding(f"{name}: neither folder, archive nor .npz is in {root}; training downloads it"))
        return [], Files.loader
    if isinstance(dataset, Folder):
        dataset = replace(dataset, hold="disk")
    try:
        data: LongTail = dataset.load(root)
    except (ValueError, OSError) as error:
        found.wrong.append(Finding(str(error)))
        return [], Files.loader
    halves = {"train": data.train, "test": data.test} | ({} if data.val is None else {"val": data.val})
    for part, half in halves.items():
        counts = torch.bincount(half.y, minlength=data.classes)
        found.parts.append(Part(part, len(half), counts, of_cifar(dataset, counts) if part == "train" else ""))
    found.title, found.fingerprint = data.title, data.fingerprint
    found.groups = grouped(dataset, data.counts, found)
    paths = [path for half in halves.values() if isinstance(half, Files) for path in half.paths]
    return paths, getattr(data.train, "loader", Files.loader)


def of_cifar(dataset: Any, counts: Tensor) -> str:
    """Whether the size is a published one."""
    sizes = CIFARS.get(type(dataset), {})
    imbalance = round(1 / factor_of(dataset.imbalance)) if sizes else 0
    exponential = sizes and dataset.profile == "exponential"
    return "as published" if exponential and sizes.get(imbalance) == int(counts.sum()) else ""


def decode(
    paths: Sequence[str], load: Callable[[str], Any], root: Path, found: Checked, told: Callable[[int, int], None]
) -> None:
    """Open every image, on all cores; decoders let threads run beside each other."""
    broken: dict[str, str] = {}
    told(0, len(paths))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (path, reason) in enumerate(batched(pool, paths, load), start=1):
            if reason is not None:
                broken[path] = reason
            told(done, len(paths))
    found.decoded = len(paths)
    if broken:
        said = [f"{relative(path, root)} ({reason})" for path, reason in broken.items()]
        found.wrong.append(finding("images cannot be read", said))


def batched(pool: ThreadPoolExecutor, paths: Sequence[str], load: Callable[[str], Any]) -> Iterable[tuple[str, Any]]:
    """Every path, in order, and why it cannot be read, or None; a thousand at a time wait."""

    def one(path: str) -> tuple[str, str | None]:
        image = opened(path, load)
        return path, image if isinstance(image, str) else None

    rest = iter(paths)
    while some := list(islice(rest, 1024)):
        yield from pool.map(one, some)


def published(kind: Any) -> Tensor | None:
    """The published number of training images of every class [C], where all are known."""
    name = COUNTED.get(kind)
    if name is None:
        return None
    return torch.tensor(json.loads((Path(__file__).parent / "published.json").read_text())[name])


def grouped(dataset: Any, counts: Tensor, found: Checked) -> dict[str, int]:
    """Classes that are many, medium and few by the data set's rule."""
    try:
        return {name: int(mask.sum()) for name, mask in dataset.shots.group(counts).items()}
    except ValueError as error:
        found.wrong.append(Finding(str(error)))
    except AttributeError:  # a data set of someone else's, without a rule
        pass
    return {}


def tally(lines: Iterable[str]) -> Mapping[str, int]:
    """How often each is there."""
    seen: dict[str, int] = {}
    for line in lines:
        seen[line] = seen.get(line, 0) + 1
    return seen


def finding(what: str, which: Sequence[str], root: Path | None = None) -> Finding:
    """So many things of a kind, the first of them named, below ``root`` if they are paths."""
    first = [relative(each, root) if root is not None else each for each in which[:NAMED]]
    return Finding(what, len(which), tuple(first))


def relative(path: str, root: Path) -> str:
    """A path as seen from the root of the data."""
    return printable(path.removeprefix(f"{root}/"))
