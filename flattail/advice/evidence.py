"""What the reasons quote: accuracies that this project has measured, and by how many seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Evidence(NamedTuple):
    """Accuracies over all classes of CIFAR-10-LT, imbalance 100, in percent, which reasons quote."""

    epochs: int
    seeds: int  # the first so many, which the accuracies are means of
    accuracy: Mapping[str, float]  # by recipe

    def said(self, mine: str, other: str, rival: str) -> str:
        """Two of them in words."""
        seeds = "one seed" if self.seeds == 1 else f"{self.seeds} seeds"
        numbers = f"{self.accuracy[mine]} % against {self.accuracy[other]} % of {rival}"
        return f"{numbers} on CIFAR-10-LT, {self.epochs} epochs, {seeds}"


EVIDENCE = {  # from results/cifar10-lt-quick, results/cifar10-lt-16px and docs/fine-tuning.md
    "short": Evidence(8, 3, {"ce": 32.4, "la": 47.0, "ce-drw": 45.9, "ce-drw-sam": 41.5}),
    "long": Evidence(100, 3, {"ce": 56.3, "ce-drw": 66.8, "ce-drw-sam": 67.8}),
    "tuned": Evidence(2, 1, {"ce": 53.9, "la": 69.6, "la-sam": 69.1}),
}
