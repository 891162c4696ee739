"""The model contract, `Split(backbone, head)`, and the heads: linear, cosine, and cosine times a scale."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flattail.models.causal import Causal, causal_cifar10, causal_cifar100

HeadName = Literal["linear", "cosine", "scaled-cosine", "causal", "causal-cifar100", "causal-cifar10"]


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
    """Cosines [B, C] between features [B, d] and class directions, the columns of `weight` [d, C], times `scale`.

    No bias, and by default no scale (LDAM has the scale); Cao et al., NeurIPS 2019. Entries start uniform in -1..1, and
    columns at length 1; later lengths do not matter, as every forward pass normalises both sides.
    """

    def __init__(self, features: int, classes: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(F.normalize(torch.empty(features, classes).uniform_(-1, 1), dim=0))
        self.weight.filters = 1  # type: ignore[attr-defined]  # a filter is a column: `sharp.perturb.filters_of`

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weight.filters = 1  # type: ignore[attr-defined]  # a copied parameter has forgotten

    def forward(self, z: Tensor) -> Tensor:
        """Cosines [B, C] of features [B, d]; all 0 for a feature of length 0."""
        cosines = F.normalize(z, dim=1, eps=1e-6) @ F.normalize(self.weight, dim=0, eps=1e-6)
        return cosines if self.scale == 1.0 else self.scale * cosines

    def extra_repr(self) -> str:
        """Sizes, as `nn.Linear` prints them."""
        return f"features={self.weight.shape[0]}, classes={self.weight.shape[1]}, scale={self.scale:g}"


def linear(features: int, classes: int) -> nn.Linear:
    """A weight per feature and class, and a bias per class."""
    return nn.Linear(features, classes)


def scaled_cosine(features: int, classes: int) -> Cosine:
    """Cosines times 25, for losses without a scale of their own: what LIFT fine-tunes with (Shi et al., ICML 2024)."""
    return Cosine(features, classes, scale=25.0)


class Scaled(nn.Module):
    """Logits of a head times a scale per class, `scales` [C], which starts at 1: learnable weight scaling.

    Kang et al., ICLR 2020, section 4.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.scales = nn.Parameter(torch.ones(sizes(inner)[1]))

    def forward(self, z: Tensor) -> Tensor:
        """Logits [B, C] of features [B, d]."""
        return self.scales * self.inner(z)


class Shifted(nn.Module):
    """Logits of a head plus a shift per class, `shifts` [C], which starts at 0."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.shifts = nn.Parameter(torch.zeros(sizes(inner)[1]))

    def forward(self, z: Tensor) -> Tensor:
        """Logits [B, C] of features [B, d]."""
        return self.inner(z) + self.shifts


class Aligned(nn.Module):
    """Logits of a head, scaled and shifted per class as far as a confidence in the feature says (DisAlign).

    Zhang et al., CVPR 2021. Scales [C] start at 1 and shifts [C] at 0, so logits are the inner head's at first; the
    confidence starts at nearly 1/2 everywhere (weights of standard deviation 0.01), as in the released code for boxes.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        features, classes = sizes(inner)
        self.inner = inner
        self.scales = nn.Parameter(torch.ones(classes))
        self.shifts = nn.Parameter(torch.zeros(classes))
        self.confidence = nn.Linear(features, 1)
        nn.init.normal_(self.confidence.weight, std=0.01)
        nn.init.zeros_(self.confidence.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Logits [B, C] of features [B, d]."""
        logits, gate = self.inner(z), self.confidence(z).sigmoid()
        return gate * (self.scales * logits + self.shifts) + (1 - gate) * logits


def sizes(head: nn.Module) -> tuple[int, int]:
    """How many features a head takes and how many classes it knows; ValueError for a head of another kind."""
    core = innermost(head)
    if isinstance(core, nn.Linear):
        return core.in_features, core.out_features
    if isinstance(core, Cosine):
        return core.weight.shape[0], core.weight.shape[1]
    raise ValueError(f"a linear or a cosine head is needed here, and this is a {type(core).__name__}")


def innermost(head: nn.Module) -> nn.Module:
    """The linear or cosine head within scales and shifts."""
    while isinstance(head, (Scaled, Shifted, Aligned)):
        head = head.inner
    return head


def like(head: nn.Module, classes: int) -> nn.Module:
    """A new head of the kind that the innermost one is: linear, or cosine with its scale."""
    core, features = innermost(head), sizes(head)[0]
    return Cosine(features, classes, scale=core.scale) if isinstance(core, Cosine) else nn.Linear(features, classes)


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": linear,
    "cosine": Cosine,
    "scaled-cosine": scaled_cosine,
    "causal": Causal,
    "causal-cifar100": causal_cifar100,
    "causal-cifar10": causal_cifar10,
}
