"""An accuracy measured on few images, and its standard error.

The accuracy of a class on n images is a binomial share: its variance is p (1 − p) / n. With one image p is 0 or 1 and
that would be zero, so p is estimated as (k + 1) / (n + 2) for k right ones (Laplace's rule of succession), which is
exact in the limit and errs on the large side where images are few. A mean over C classes has the variance
Σ_c p_c (1 − p_c) / n_c / C².
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SCORES = ("balanced", "all", "many", "medium", "few")


class Measured(NamedTuple):
    """An accuracy, as a fraction, and the variance of measuring it."""

    accuracy: float
    variance: float


def share(right: int, images: int) -> Measured:
    """Of `images` images `right` were recognised."""
    p = (right + 1) / (images + 2)
    return Measured(right / images, p * (1 - p) / images)


def accuracy(right: Sequence[int], images: Sequence[int], score: str, classes: Iterable[int]) -> Measured:
    """A score from the right answers [C] and the images [C] of every class.

    `all`: the share of all images; else the mean over `classes`, leaving out those without images.
    """
    if score == "all":
        return share(sum(right), sum(images))
    each = [share(right[c], images[c]) for c in classes if images[c]]
    return Measured(sum(m.accuracy for m in each) / len(each), sum(m.variance for m in each) / len(each) ** 2)


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, each with its own model and its own validation images."""

    each: tuple[Measured, ...]  # by seed

    @property
    def value(self) -> float:
        """The mean."""
        return sum(m.accuracy for m in self.each) / len(self.each)

    @property
    def of_images(self) -> float:
        """Its standard error by the number of images alone: binomial, as if no two seeds shared an image."""
        return math.sqrt(sum(m.variance for m in self.each)) / len(self.each)

    @property
    def of_seeds(self) -> float | None:
        """Its standard error by how the seeds differ, sd / √S; None for one seed."""
        n = len(self.each)
        if n < 2:
            return None
        return math.sqrt(sum((m.accuracy - self.value) ** 2 for m in self.each) / (n - 1) / n)

    def less(self, other: Mean) -> Mean:
        """How much it is ahead of another on the same seeds, and so on the same images; `of_seeds` is its error."""
        pairs = zip(self.each, other.each, strict=True)
        return Mean(tuple(Measured(a.accuracy - b.accuracy, a.variance + b.variance) for a, b in pairs))

    @property
    def error(self) -> float:
        """The larger of the two: that of few seeds is itself a guess, that of images leaves out training's noise."""
        return max(self.of_images, self.of_seeds or 0.0)
