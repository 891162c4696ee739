"""The model contract, `Split(backbone, head)`, and the heads: linear and cosine."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HeadName = Literal["linear", "cosine"]


class Split(nn.Module):
    """A classifier in two parts: images -> backbone -> features [B, d] -> head -> logits [B, C]."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, channels, H, W]."""
        return self.head(self.backbone(x))


class Cosine(nn.Module):
    """Cosines [B, C] between features [B, d] and class directions, the columns of `weight` [d, C].

    No bias and no scale (LDAM has the scale); Cao et al., NeurIPS 2019. Entries start uniform in -1..1, and
    columns at length 1; later lengths do not matter, as every forward pass normalises both sides.
    """

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.empty(features, classes).uniform_(-1, 1), dim=0))

    def forward(self, z: Tensor) -> Tensor:
        """Cosines [B, C] of features [B, d]; all 0 for a feature of length 0."""
        return F.normalize(z, dim=1, eps=1e-6) @ F.normalize(self.weight, dim=0, eps=1e-6)

    def extra_repr(self) -> str:
        """Sizes, as `nn.Linear` prints them."""
        return f"features={self.weight.shape[0]}, classes={self.weight.shape[1]}"


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"linear": nn.Linear, "cosine": Cosine}
