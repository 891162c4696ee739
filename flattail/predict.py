"""What a finished run says of image files: the class, its probability and group, one answer after another."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from .classifier import Classifier
from .data.halves import normalised
from .data.loading import workers_here
from .data.pictures import read
from .devices import accelerated
from .priors import corrected, prior

BATCH = 64  # images at a time


@dataclass(frozen=True, eq=False)
class Answer:
    """What is said of one image."""

    file: str
    logits: Tensor  # [C], as those of `logits.npz`
    probabilities: Tensor  # [C], float64


@dataclass(frozen=True)
class Unreadable:
    """A file that is no image, or a damaged one."""

    file: str
    reason: str


@torch.no_grad()
def predict(
    of: Classifier,
    files: list[str],
    *,
    under: str | None = None,
    device: str | None = None,
    workers: int | None = None,
) -> Iterator[Answer | Unreadable]:
    """Answers for image files, in order.

    Probabilities are the softmax of the logits (times the loss's scale, for losses on cosines), under the class prior
    that the run was trained for; or under another, by o_c − log p_c + log q_c.

    Args:
        of: the run.
        files: see `data.pictures.found`.
        under: the class prior q of these images: uniform, forward:50, a file (see `priors.prior`); None: as trained.
        device: "cpu", "cuda", "cuda:1", or None for the best one here.
        workers: processes that read files; by default one per core, and none for a few files.

    Raises:
        ValueError: for a prior or a device that is none, and a run whose images never were files. At the first answer.
    """
    if of.images.reading == "own":
        raise ValueError(
            f"{of.run.path}: this run's images went through transforms of a data set of its own, or were no bytes, so "
            "files cannot be shown to its model: give it tensors (flattail.classifier), or export it"
        )
    own = of.log_prior
    if under is not None and own is None:
        raise ValueError(f"{of.run.path}: {of.doubts[-1]}, so there is nothing to correct for another prior")
    q = None if under is None else prior(under, of.counts, of.names)
    place = accelerated(device, "fp32").device
    of.model.to(place)
    for batch in read(
        files, of.images, batch=BATCH, workers=processes(len(files)) if workers is None else workers,
        pin=place.type == "cuda",
    ):  # fmt: skip
        logits = torch.zeros(0, len(of.names))
        if batch.rows:
            x = batch.x.to(place, non_blocking=True)
            logits = of.logits(normalised(x, of.images.mean, of.images.std)).float().cpu()
        fixed = of.scale * logits.double()
        fixed = fixed if q is None or own is None else corrected(fixed, own, q)
        told: dict[int, Answer | Unreadable] = {
            row: Answer(files[row], o, p) for row, o, p in zip(batch.rows, logits, fixed.softmax(1), strict=True)
        }
        told |= {row: Unreadable(files[row], reason) for row, reason in batch.broken.items()}
        yield from (told[row] for row in sorted(told))


def processes(files: int) -> int:
    """How many processes read so many files: one per core, but none where starting them takes longer than reading."""
    return 0 if files < 4 * BATCH else workers_here()


# ---- as tables ---------------------------------------------------------------------------------------------


def columns(of: Classifier, answer: Answer, *, top: int, all_classes: bool) -> dict[str, Any]:
    """One answer as a row: file, label, probability, group, the next best, and every class's probability."""
    values, classes = answer.probabilities.topk(top)
    row: dict[str, Any] = {"file": answer.file}
    for k, (p, c) in enumerate(zip(values.tolist(), classes.tolist(), strict=True), start=1):
        more = f"_{k}" if k > 1 else ""
        row |= {f"label{more}": of.names[c], f"probability{more}": plain(p), f"group{more}": of.group(c)}
    if all_classes:
        row |= {f"p_{name}": plain(p) for name, p in zip(of.names, answer.probabilities.tolist(), strict=True)}
    return row


def plain(p: float) -> float:
    """A probability to six digits."""
    return float(f"{p:.6g}")


def write_csv(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """A header and a line per answer, each as soon as it is there."""
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, [*row], lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)


def write_json(file: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """A list of objects, an answer in a line."""
    before = "[\n"
    for row in rows:
        file.write(before + json.dumps(row, ensure_ascii=False))
        before = ",\n"
    file.write("\n]\n" if before != "[\n" else "[]\n")


WRITERS = {".csv": write_csv, ".json": write_json}


def writable(out: Path) -> Path:
    """The file that answers go to; ValueError for a suffix that is none of ours, or a folder that is not there."""
    if out.suffix not in WRITERS:
        raise ValueError(f"--out {out}: write a file name that ends in {' or '.join(WRITERS)}")
    if out.is_dir() or not out.parent.is_dir():
        remedy = "is a folder: name a file in it" if out.is_dir() else f"there is no folder {out.parent}: make it first"
        raise ValueError(f"--out {out}: {remedy}")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out}: nothing can be written to {out.parent}: choose another folder")
    return out
