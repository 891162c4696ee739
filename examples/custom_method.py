"""A method of one's own: classes grouped by size, every group seen from its own climb, the rarest from furthest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from flattail import SharpnessAware, Term
from flattail.sharp import Context, l2_ball


@dataclass(frozen=True)
class GroupSAM:
    """sum over groups g of max_{||e|| <= radii[g]} L_g(w + e): one group is SAM, two are SSE-SAM before its switch."""

    radii: tuple[float, ...] = (0.2, 0.1, 0.05)  # of the groups, from the rarest classes to the most frequent
    borders: tuple[int, ...] = (20, 100)  # classes with fewer samples than a border lie below it
    where: ClassVar = "weights"  # what is displaced; "head" and "features" are the others

    def __post_init__(self) -> None:
        if len(self.radii) != len(self.borders) + 1:
            raise ValueError(f"{len(self.borders)} borders need {len(self.borders) + 1} radii, not {len(self.radii)}")

    def terms(self, at: Context) -> list[Term]:
        """A group's share of the batch, at w + e of its own."""
        group = torch.bucketize(at.counts, torch.tensor(self.borders, device=at.counts.device), right=True)[at.y]
        return [
            Term(f"group {g}", (group == g).to(at.ones), l2_ball(rho))  # who; from where
            for g, rho in enumerate(self.radii)
        ]


if __name__ == "__main__":
    # In a recipe, with no registration: method: {name: 'examples.custom_method:GroupSAM', borders: [20, 100]}
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(digits.target)
    counts = torch.tensor([120 // 2 ** (c // 2) for c in range(10)])  # 120 120 60 60 ... 7 7
    rows = torch.cat([(y == c).nonzero().squeeze(1)[:n] for c, n in enumerate(counts.tolist())])
    x, y = x[rows], y[rows]

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    flat = SharpnessAware(model, GroupSAM(), counts)
    for _ in range(60):
        optimizer.zero_grad()
        loss = flat.backward(lambda: F.cross_entropy(model(x), y, reduction="none"), y)
        optimizer.step()
    print(flat.report)
    print(f"loss {loss:.4f}, {flat.outcome.forwards} forward and {flat.outcome.backwards} backward passes a step")
