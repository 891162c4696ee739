"""A method of one's own: WSAM, the loss plus a multiple of its sharpness (Yue et al., KDD 2023), in two terms."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from flattail import SharpnessAware, Term
from flattail.sharp import Context, l2_ball


@dataclass(frozen=True)
class WSAM:
    """L + gamma/(1-gamma) (max L - L): the share of the climbed loss may exceed one."""

    rho: float = 0.05  # radius of the ball
    gamma: float = 0.9  # weight of the sharpness; 1/2 is SAM
    where: ClassVar = "weights"

    def terms(self, at: Context) -> list[Term]:
        """1 - a at w, a at w + e."""
        a = self.gamma / (1 - self.gamma)
        return [Term("plain", (1 - a) * at.ones), Term("flat", a * at.ones, l2_ball(self.rho))]


if __name__ == "__main__":
    # In a recipe, with no registration: method: {name: examples.custom_method:WSAM, gamma: 0.8}
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    flat = SharpnessAware(model, WSAM(gamma=0.8))
    flat.backward(lambda: F.cross_entropy(model(x), y, reduction="none"), y)
    print(flat.report)
