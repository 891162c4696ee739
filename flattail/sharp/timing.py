"""When a method acts: `Window` for a part of training, `Every` for some steps; methods made of a method.

SAM late in training finds flat minima nearly as well (Zhou et al., ICLR 2025, arXiv 2410.10373); every k-th step costs
a fraction of it (Liu et al., CVPR 2022, arXiv 2203.02714).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .erm import ERM
from .radius import SLACK
from .terms import Context, Method, Term


@dataclass(frozen=True)
class Window:
    """A method from one share of training to another, plain steps outside."""

    method: Method
    start: float = 0.0  # share of training at which it begins
    stop: float = 1.0  # share of training at which it ends

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"a window runs from one share of training to a later one, not {self.start} to {self.stop}"
            )

    @property
    def where(self) -> Literal["weights", "head"]:
        """Where the inner method looks."""
        return self.method.where

    @property
    def only(self) -> str | None:
        """What the inner method displaces."""
        return getattr(self.method, "only", None)

    def check(self, at: Context) -> None:
        """Raise ValueError where the inner method does."""
        if hasattr(self.method, "check"):
            self.method.check(at)

    def terms(self, at: Context) -> list[Term]:
        """The inner method's terms inside the window."""
        inside = self.start - SLACK <= at.progress < self.stop - SLACK
        return (self.method if inside else ERM()).terms(at)


@dataclass(frozen=True)
class Every:
    """A method in every k-th step, plain steps between."""

    method: Method
    k: int = 2  # steps from one to the next

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"every k-th step needs k of at least 1, not {self.k}")

    @property
    def where(self) -> Literal["weights", "head"]:
        """Where the inner method looks."""
        return self.method.where

    @property
    def only(self) -> str | None:
        """What the inner method displaces."""
        return getattr(self.method, "only", None)

    def check(self, at: Context) -> None:
        """Raise ValueError where the inner method does."""
        if hasattr(self.method, "check"):
            self.method.check(at)

    def terms(self, at: Context) -> list[Term]:
        """The inner method's terms when the step is a multiple of k."""
        return (self.method if at.step % self.k == 0 else ERM()).terms(at)
