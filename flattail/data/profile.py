"""How long the tail is: class counts, which images are kept, and which classes are many, medium and few.

exponential   n_j = ⌊n_max · f^{j/(C−1)}⌋          f = 1/IF, class 0 the largest
step          n_j = ⌊n_max⌋ for j < C/2, else ⌊n_max · f⌋
pareto        n_j = ⌊n_max · (1 + (IF^{1/6} − 1)·j/(C−1))^{−6}⌋
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


def exponential(largest: float, classes: int, factor: float) -> list[int]:
    """Counts that fall by one ratio from class to class (Cui et al., CVPR 2019; Cao et al., NeurIPS 2019)."""
    return [int(largest * factor ** (j / (classes - 1))) for j in range(classes)]


def step(largest: float, classes: int, factor: float) -> list[int]:
    """Two sizes only: the first half of the classes is large, the rest small (Buda et al., 2018)."""
    return [int(largest if j < classes // 2 else largest * factor) for j in range(classes)]


def pareto(largest: float, classes: int, factor: float) -> list[int]:
    """A Pareto curve of power 6 through both ends: a steeper head and a longer tail than the exponential."""
    reach = factor ** (-1 / 6) - 1
    return [int(largest * (1 + reach * j / (classes - 1)) ** -6) for j in range(classes)]


Profile = Literal["exponential", "step", "pareto"]
Subset = Literal["cao", "cc", "first"]

PROFILES: dict[str, Callable[[float, int, float], list[int]]] = {
    "exponential": exponential,
    "step": step,
    "pareto": pareto,
}

SUBSETS: dict[str, int | None] = {
    "cao": 0,  # LDAM's shuffle with seed 0: LDAM, Saddle, VS, MiSLAS, GCL, Focal-SAM, IB
    "cc": 42,  # the same shuffle with seed 42: CC-SAM
    "first": None,  # no shuffle, the first of each class: SSE-SAM, ImbSAM, LTR weight balancing
}


def factor_of(imbalance: float) -> float:
    """f = 1/IF from either convention: IF ≥ 1 (100) or f itself, in (0, 1) (0.01). ValueError otherwise."""
    if imbalance >= 1:
        return 1 / imbalance
    if 0 < imbalance < 1:
        return float(imbalance)
    raise ValueError(
        f"imbalance={imbalance}: give the largest count over the smallest, e.g. 100 "
        "(its inverse, 0.01, is understood too)"
    )


def long_tail(profile: str, largest: float, classes: int, imbalance: float) -> Tensor:
    """Counts [C] (int64) of a profile by name; class 0 has ``largest`` images, truncated to whole numbers."""
    if profile not in PROFILES:
        raise ValueError(f"profile={profile!r}: choose one of {', '.join(PROFILES)}")
    counts = torch.tensor(PROFILES[profile](largest, classes, factor_of(imbalance)))
    if (empty := (counts < 1).nonzero()).numel():
        raise ValueError(
            f"imbalance={imbalance} leaves class {int(empty[0])} without an image (the largest has "
            f"{int(largest)}): choose an imbalance of at most {int(largest)}"
        )
    return counts


def subset(labels: Sequence[int] | np.ndarray, counts: Tensor, rule: str = "cao") -> np.ndarray:
    """Positions [N] of the kept images, class by class, under a published rule of ``SUBSETS``.

    The shuffled rules draw from NumPy's legacy generator, as the released code does: seeded once, then for
    each class its positions are shuffled in place and the first ``counts[c]`` are kept.
    """
    labels = np.asarray(labels)
    kept = []
    order = ranks(np.bincount(labels, minlength=len(counts)), rule)
    for c, n in enumerate(counts.tolist()):
        positions = np.flatnonzero(labels == c)
        if len(positions) < n:
            raise ValueError(f"class {c} has {len(positions)} images, {n} are asked for: lower the largest")
        kept.append(positions[order[c][:n]])
    return np.concatenate(kept)


def ranks(sizes: Sequence[int] | np.ndarray, rule: str) -> list[np.ndarray]:
    """For each class the order in which its images are taken, as ranks among its ``sizes[c]`` images."""
    if rule not in SUBSETS:
        raise ValueError(f"subset={rule!r}: choose one of {', '.join(SUBSETS)}")
    order = [np.arange(n) for n in sizes]
    if (seed := SUBSETS[rule]) is not None:
        generator = np.random.RandomState(seed)
        for positions in order:
            generator.shuffle(positions)
    return order


def fingerprint(*parts: np.ndarray | Tensor | Sequence[int] | Sequence[str]) -> str:
    """Twelve hex digits that tell one subset from another: sha256 over index arrays, counts or names."""
    digest = hashlib.sha256()
    for part in parts:
        array = np.asarray(part)
        if array.dtype.kind in "US":
            digest.update("\n".join(array.tolist()).encode("utf-8", "surrogateescape"))
        else:
            digest.update(array.astype("<i8").tobytes())
        digest.update(b"|")
    return digest.hexdigest()[:12]


def by_bounds(many: Tensor, few: Tensor) -> dict[str, Tensor]:
    """The three groups from two of them."""
    return {"many": many, "medium": ~(many | few), "few": few}


@dataclass(frozen=True)
class Strict:
    """Many n > 100, few n < 20 (Kang et al., ICLR 2020; SSE-SAM, ImbSAM, Focal-SAM)."""

    def group(self, counts: Tensor) -> dict[str, Tensor]:
        """Masks [C] of the classes that are many, medium and few."""
        return by_bounds(counts > 100, counts < 20)


@dataclass(frozen=True)
class Inclusive:
    """Many n >= 100, few n <= 20 (OLTR's code, CC-SAM's code)."""

    def group(self, counts: Tensor) -> dict[str, Tensor]:
        """Masks [C] of the classes that are many, medium and few."""
        return by_bounds(counts >= 100, counts <= 20)


@dataclass(frozen=True)
class Slices:
    """A given number of classes in each group, by falling count, ties by label (MiSLAS, Saddle).

    Raises ValueError for a negative number.
    """

    many: int = 36  # classes in the head
    medium: int = 35  # classes in the middle
    few: int = 29  # classes in the tail

    def __post_init__(self) -> None:
        if min(self.many, self.medium, self.few) < 0:
            raise ValueError(f"many, medium and few are numbers of classes, not {self.many}, {self.medium}, {self.few}")

    def group(self, counts: Tensor) -> dict[str, Tensor]:
        """Masks [C] of the classes that are many, medium and few."""
        if self.many + self.medium + self.few != len(counts):
            raise ValueError(
                f"shots {self.many}/{self.medium}/{self.few} do not make the {len(counts)} classes "
                "of the data: give three numbers with that sum"
            )
        place = torch.empty_like(counts)
        place[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts), device=counts.device)
        return by_bounds(place < self.many, place >= self.many + self.medium)


@dataclass(frozen=True)
class Thresholds:
    """Many n > `many`, few n < `few` (SSE-SAM and Focal-SAM on CIFAR-10: 1000 and 200)."""

    many: int = 1000  # more samples than this: many
    few: int = 200  # fewer samples than this: few

    def group(self, counts: Tensor) -> dict[str, Tensor]:
        """Masks [C] of the classes that are many, medium and few."""
        if self.few > self.many + 1:
            raise ValueError(f"shots: few={self.few} overlaps many={self.many}; few must not be above many")
        return by_bounds(counts > self.many, counts < self.few)


STRICT = Strict()
HEAD_3_4_3 = Slices(3, 4, 3)  # CIFAR-10 and digits: 3 many, 4 medium, 3 few
Shots = Strict | Inclusive | Slices | Thresholds
SHOTS = {"strict": Strict, "inclusive": Inclusive, "mislas": Slices, "thresholds": Thresholds}
