"""When a method acts: `Window` for a part of training, `Every` for some steps; methods made of a method.

SAM late in training finds flat minima nearly as well (Zhou et al., ICLR 2025, arXiv 2410.10373); every k-th step costs
a fraction of it (Liu et al., CVPR 2022, arXiv 2203.02714). Where the method rests, its memory rests as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from .checks import check_number
from .erm import ERM
from .perturb import Tensors
from .radius import SLACK
from .terms import Context, Gradients, Memory, Method, Term, pattern_of


class Timed(ABC):
    """What a method made of a method has of it."""

    method: Method

    @abstractmethod
    def acts(self, at: Context) -> bool:
        """Whether the inner method acts in this step."""

    @property
    def where(self) -> Literal["weights", "head", "features"]:
        """Where the inner method looks."""
        return self.method.where

    @property
    def labels(self) -> str:
        """Which labels of a mixed image the inner method's displaced loss has."""
        return getattr(self.method, "labels", "mixed")

    def pattern(self, model: nn.Module) -> str | None:
        """What the inner method displaces."""
        return pattern_of(self.method, model)

    def check(self, at: Context) -> None:
        """Raise ValueError where the inner method does."""
        if hasattr(self.method, "check"):
            self.method.check(at)

    @property
    def memory(self) -> Callable[[list[Tensor]], Memory] | None:
        """What the inner method remembers."""
        return getattr(self.method, "memory", None)

    @property
    def merge(self) -> Callable[[Context, Gradients, Gradients], tuple[Tensors, Memory]] | None:
        """How the inner method merges, where it acts; elsewhere there is one gradient, and the memory stays."""
        inner: Callable[..., tuple[Tensors, Memory]] | None = getattr(self.method, "merge", None)

        def merged(at: Context, gradients: Gradients, slopes: Gradients) -> tuple[Tensors, Memory]:
            if inner is not None and self.acts(at):
                return inner(at, gradients, slopes)
            return gradients["plain"], {} if self.memory is None else at.memory

        return None if inner is None else merged

    def terms(self, at: Context) -> list[Term]:
        """The inner method's terms where it acts, plain ones elsewhere."""
        return (self.method if self.acts(at) else ERM()).terms(at)


def refuse_no_method(method: Any) -> None:
    """Raise ValueError for a name or a class in place of a method."""
    if isinstance(method, (type, str)) or not hasattr(method, "terms"):
        raise ValueError(f"method={method!r}: an instance of a method is needed, e.g. SAM(rho=0.05)")


@dataclass(frozen=True)
class Window(Timed):
    """A method from one share of training to another, plain steps outside (Zhou et al., ICLR 2025): late SAM.

    The terms of `method` while start <= progress < stop, else (all ; w). Raises ValueError for no such window, and
    for what is no method.
    """

    method: Method  # what is done inside
    start: float = 0.0  # share of training at which it begins
    stop: float = 1.0  # share of training at which it ends

    def __post_init__(self) -> None:
        refuse_no_method(self.method)
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"a window runs from one share of training to a later one, not {self.start} to {self.stop}"
            )

    def acts(self, at: Context) -> bool:
        """Whether training is inside the window."""
        return self.start - SLACK <= at.progress < self.stop - SLACK


@dataclass(frozen=True)
class Every(Timed):
    """A method in every k-th step, plain steps between.

    One that counts steps itself, as LookSAM, sees the same count: k of both together.

    Raises ValueError for a k below one, and for what is no method.
    """

    method: Method  # what is done in those steps
    k: int = 2  # steps from one to the next

    def __post_init__(self) -> None:
        refuse_no_method(self.method)
        check_number("k", self.k, 1)

    def acts(self, at: Context) -> bool:
        """Whether the step is a multiple of k."""
        return at.step % self.k == 0
