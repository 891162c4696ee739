"""How far to climb, as a number or as a function of the share of training done."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

SLACK = 1e-9  # a share like 0.55 of 200 epochs is 110.00000000000001 epochs: borders are met with this tolerance


@dataclass(frozen=True)
class Steps:
    """A radius that is constant between borders: Saddle's schedule (Rangwani et al., NeurIPS 2022).

    Raises ValueError for borders that do not rise within [0, 1], or values that do not fit them.
    """

    values: tuple[float, ...]  # one radius more than there are borders
    at: tuple[float, ...]  # borders, as shares of training; a border belongs to what follows it

    def __post_init__(self) -> None:
        if len(self.values) != len(self.at) + 1:
            raise ValueError(f"{len(self.at)} borders need {len(self.at) + 1} values, not {len(self.values)}")
        if list(self.at) != sorted(self.at) or not all(0 <= border <= 1 for border in self.at):
            raise ValueError(f"the borders are shares of training in [0, 1], not epochs, and rise; this is {self.at}")
        _not_negative(*self.values)

    def __call__(self, progress: float) -> float:
        """The radius at a share of training."""
        return self.values[bisect_right([b - SLACK for b in self.at], progress)]


@dataclass(frozen=True)
class Linear:
    """A radius that grows (or shrinks) in a line; Saddle's: from .05 in the first epoch to .8 in the last.

    Raises ValueError for a negative radius, and an `until` outside of (0, 1].
    """

    start: float  # radius at the beginning
    stop: float  # radius at `until`
    until: float = 1.0  # the share of training at which `stop` is reached; (T - 1) / T for the last of T epochs

    def __post_init__(self) -> None:
        _not_negative(self.start, self.stop)
        if not 0 < self.until <= 1:
            raise ValueError(f"`until` is a share of training in (0, 1], not {self.until}")

    def __call__(self, progress: float) -> float:
        """The radius at a share of training."""
        return self.start + (self.stop - self.start) * min(progress / self.until, 1.0)


Radius = float | Steps | Linear
RADII = {"steps": Steps, "linear": Linear}


def _not_negative(*values: float) -> None:
    for v in values:
        if not v >= 0:
            raise ValueError(f"a radius is a length: {v} is not one; use 0 to switch a climb off")


def check_radius(radius: Radius) -> None:
    """Raise ValueError for a negative radius, and for what is neither a number nor a schedule."""
    if not isinstance(radius, (int, float)) and not callable(radius):
        raise ValueError(f"a radius is a number, or a schedule such as Linear(0.05, 0.8), not {radius!r}")
    if isinstance(radius, (int, float)):
        _not_negative(radius)


def radius_at(radius: Radius, at: object) -> float:
    """The radius of this step; a schedule reads `at.progress`."""
    return radius if isinstance(radius, (int, float)) else radius(at.progress)  # type: ignore[attr-defined]
