"""The classes of a run's data set: training images, names, order by frequency and group."""

from dataclasses import dataclass

import numpy as np

from ..runs import Run
from .tables import GROUPS


@dataclass(frozen=True, eq=False)
class Classes:
    """C classes, by number."""

    counts: np.ndarray  # training images [C]
    names: tuple[str, ...]
    order: np.ndarray  # the classes by falling count [C]
    groups: dict[str, np.ndarray]  # the members [C] of each of GROUPS that has any, then of all


def classes(run: Run) -> Classes:
    """The classes of a finished run; where only the sizes of groups are known, these follow each other by count."""
    scores = run.scores or {}
    counts = np.array(scores["counts"])
    order = np.argsort(-counts, kind="stable")
    masks = {name: np.array(mask, dtype=bool) for name, mask in scores.get("groups", {}).items()}
    sizes = scores["scores"]["sizes"]
    if not masks and sum(sizes.get(name, 0) for name in GROUPS) == len(counts):
        ends = np.cumsum([sizes.get(name, 0) for name in GROUPS])
        masks = {
            name: np.isin(np.arange(len(counts)), part)
            for name, part in zip(GROUPS, np.split(order, ends), strict=False)
        }
    groups = {name: masks[name] for name in GROUPS if name in masks and masks[name].any()}
    return Classes(counts, tuple(map(str, scores["names"])), order, groups | {"all": np.ones(len(counts), bool)})
