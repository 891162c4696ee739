"""The vocabulary: a method is a function from labels to terms, and a term is who is in it and from where one looks.

minimise  sum_k  max_{e in N_k(w)} L_k(w + e),    L_k(w) = sum_i a_ki m_i loss_i(w) / sum_i m_i
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .perturb import Blind, Climb, Tensors


class Weighted(NamedTuple):
    """Per-sample losses and the mass of each in the mean: the objective is `sum(masses * values) / sum(masses)`."""

    values: Tensor  # [B]
    masses: Tensor  # [B]


Memory = dict[str, Any]  # by name: a tensor, or a list of tensors with an entry for each parameter
Gradients = dict[str, Tensors]  # by term
Losses = Callable[..., Any]  # one forward pass -> [B] | Weighted | (either, anything); may take `rows`


@dataclass(frozen=True)
class Term:
    """One summand of the objective: who is in it, and from where it is looked at."""

    name: str  # "head", "class": appears in logs and reports
    weight: Tensor  # [B]
    climb: Climb | None = None  # None: at w itself
    over: Literal["batch", "members", "groups"] = "batch"  # what divides the sum: the mass of the step; that of the
    # members (of each group, whose means are then added); the same and the number of groups present
    by: Tensor | None = None  # [B] int64; samples of one group climb together, apart from other groups
    groups: int = 1  # how many groups `by` can name
    family: str = ""  # the grouped term of which this is one group
    losses: Losses | None = None  # a closure of the term's own for the displaced pass

    @property
    def blind(self) -> bool:
        """Whether its climb asks for no slope."""
        return isinstance(self.climb, Blind)


class Part(NamedTuple):
    """A (micro-)batch of the step."""

    losses: Losses
    terms: Sequence[Term]


class Context:
    """All that a method may look at. Reading what was not given says how to give it."""

    y: Tensor  # [B] int64
    counts: Tensor  # [C] training samples per class
    few: Tensor  # [C] bool, the classes that `eta="few"` means
    progress: float  # share of training done, in [0, 1)
    step: int  # steps taken
    hard: Losses  # the losses under hard labels, where the closure mixes two
    seed: int  # for the noise of this step; drawn from torch's generator when first read, if it was not given
    memory: Memory  # what the method remembers; in `terms` the lists hold the displaced parameters' entries alone

    def __init__(self, y: Tensor, draw: Callable[[], int] | None = None, **given: Any) -> None:
        self.y, self._draw = y, draw or drawn
        self.__dict__.update({name: value for name, value in given.items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        if name == "seed":
            self.seed = self._draw()
            return self.seed
        remedies = {
            "counts": "SharpnessAware(model, method, counts)",
            "few": "SharpnessAware(model, method, counts)",
            "progress": "backward(losses, y, progress=step / total)",
            "step": "backward(losses, y, step=step)",
            "hard": "backward(losses, y, hard=closure_with_hard_labels)",
            "memory": "`memory(params)` beside `terms(at)`, and step through SharpnessAware",
        }
        if name in remedies:
            raise ValueError(f"this method needs `{name}`, which was not given: write {remedies[name]}")
        raise AttributeError(name)

    @property
    def ones(self) -> Tensor:
        """`[B]` ones: everybody. In double precision, where the device has it: shares are exact for any model."""
        dtype = torch.float32 if self.y.device.type == "mps" else torch.float64
        return torch.ones(self.y.shape, dtype=dtype, device=self.y.device)


def drawn() -> int:
    """A seed from torch's generator."""
    return int(torch.randint(2**63 - 1, ()))


class Method(Protocol):
    """Hyperparameters in, terms out.

    More members are optional:
    `check(at)` raises ValueError for class counts that make the method meaningless.
    `only` is a pattern on the names of the parameters that it displaces; `pattern(model)` one made for a model.
    `memory(params)` is what it remembers to begin with: tensors, and lists with a tensor per trained parameter.
    `merge(at, gradients, slopes)` returns the gradient of the step and the new memory, from each term's gradient where
    it looks from and, for terms that asked for one, the gradient of the same term at w. The gradients are those of
    the whole step: of all micro-batches and processes, unscaled. Without `merge`, they are added.
    """

    @property
    def where(self) -> Literal["weights", "head", "features"]:
        """What is displaced."""
        ...

    def terms(self, at: Context) -> list[Term]:
        """The objective of this batch."""
        ...


def pattern_of(method: Method, model: nn.Module) -> str | None:
    """The pattern on the names of the parameters that a method displaces; None for all of them."""
    pattern = getattr(method, "pattern", None)
    return getattr(method, "only", None) if pattern is None else pattern(model)
