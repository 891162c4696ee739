"""Losses on cosines, scaled, with margins or noise by class size: LDAM, GCL."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flattail.losses.contract import (
    cross_entropy,
    fitting,
    of_class,
    posterior_prior,
    refuse_negative,
    refuse_no_cosines,
    wide,
)
from flattail.losses.weights import class_weights, refuse_unknown
from flattail.sharp import Weighted


def ldam_margins(counts: Tensor, max_margin: float) -> Tensor:
    """Margins [C] proportional to n^(-1/4), the largest of them `max_margin` (Cao et al., NeurIPS 2019)."""
    return max_margin * (counts.min() / counts) ** 0.25


@dataclass(frozen=True)
class LDAM:
    """Label-distribution-aware margins: rare classes must win by more.

    `l = -log softmax(s * (logits - m_y * onehot(y)))_y` with `m_c = max_margin * (n_min / n_c)^(1/4)`; Cao et
    al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019. Needs the
    logits of a cosine head, which lie within -1 and 1. With `cosine=False`, the form of SSE-SAM for a linear
    head, s multiplies the margin only: `-log softmax(logits - s * m_y * onehot(y))_y`.
    Raises ValueError on CPU logits that no cosine head can have given.
    """

    s: float = 30.0  # scale of the cosines; with cosine=False of the margins only
    max_margin: float = 0.5  # margin of the rarest class (published: 0.5 on CIFAR, 0.3 on ImageNet-LT and iNat)
    weights: str | None = None  # class weights by name: effective, inverse, square-root, power:RHO
    cosine: bool = True  # logits are cosines; false: they come from a linear head, as in SSE-SAM

    def __post_init__(self) -> None:
        refuse_unknown(self.weights)
        refuse_negative(s=self.s, max_margin=self.max_margin)

    @property
    def head(self) -> str:
        """The head whose logits this form of the loss is meant for: `"cosine"` or `"linear"`."""
        return "cosine" if self.cosine else "linear"

    @property
    def scale(self) -> float:
        """What the logits are multiplied by before the softmax."""
        return self.s if self.cosine else 1.0

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B] of logits [B, C], labels [B] and counts [C], with masses [B] if weighted.

        Raises ValueError for logits on the CPU that are no cosines, where it needs some.
        """
        if self.cosine:
            refuse_no_cosines(logits, "LDAM", ", or choose the form for linear heads, LDAM(cosine=False)")
        z = wide(logits)  # [B, C]
        m = of_class(ldam_margins(fitting(counts, z), self.max_margin), y)  # [B]
        own = torch.arange(z.shape[-1], device=z.device) == y[:, None]  # [B, C]
        z = self.s * (z - m[:, None] * own) if self.cosine else z - self.s * m[:, None] * own
        return cross_entropy(z, y, counts, self.weights)

    def log_prior(self, counts: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Log of the class distribution [C] that `scale * logits` answer for, W pi; margins left aside."""
        return posterior_prior(counts, self.weights, drawn=drawn)


@dataclass(frozen=True)
class GCL:
    """Gaussian clouded logits: cosines of rare classes are lowered by noise, so that these win by more.

    `l = -log softmax(s * (logits - mu * |x| * d / d_max - m * onehot(y)))_y` with `d_c = log n_max - log n_c` and x
    [B, C] normal of standard deviation 1/3 clamped to -1..1, drawn at every call; with gamma, `(1 - p)^gamma` times
    that, p not differentiated. Li et al., "Long-Tailed Visual Recognition via Gaussian Clouded Logit Adjustment",
    CVPR 2022, as released. Its first stage is `GCL()` with mixup, its second `GCL(m=0.1, s=20, gamma=1)` on the
    classifier alone, with balanced batches.

    The noise comes from torch's generator, which `fit` seeds at every step; passes from displaced weights see the
    noise that the pass at w saw. Needs a cosine head; raises ValueError on CPU logits that none can have given.
    """

    m: float = 0.0  # margin of the label (released: 0, second stage 0.1)
    s: float = 30.0  # scale of the cosines (released: 30, second stage 20)
    mu: float = 0.5  # size of the cloud of the rarest class
    gamma: float = 0.0  # strength of the focus; the class weight is then inside, as in `Focal` (second stage: 1)
    weights: str | None = None  # class weights by name: effective, inverse, square-root, power:RHO
    whole: ClassVar[bool] = True
    head: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        refuse_unknown(self.weights)
        refuse_negative(m=self.m, s=self.s, mu=self.mu, gamma=self.gamma)

    @property
    def scale(self) -> float:
        """What the logits are multiplied by before the softmax."""
        return self.s

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B] of logits [B, C], labels [B] and counts [C]; masses [B] if weighted and not focused.

        Raises ValueError for logits on the CPU that are no cosines, where it needs some.
        """
        refuse_no_cosines(logits, "GCL")
        z = wide(logits)
        cloud = (torch.randn_like(z) / 3).clamp(-1, 1).abs() * rarity(fitting(counts, z))
        own = torch.arange(z.shape[-1], device=z.device) == y[:, None]
        z = self.s * (z - self.mu * cloud - self.m * own.to(z))
        if self.gamma == 0:
            return cross_entropy(z, y, counts, self.weights)
        v = F.cross_entropy(z, y, reduction="none")
        v = v if self.weights is None else v * of_class(class_weights(self.weights, fitting(counts, z)), y)
        return (-torch.expm1(-v.detach())) ** self.gamma * v

    def log_prior(self, counts: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Log of the class distribution [C] that `scale * logits` answer for, the cloud at its mean (our reading)."""
        shift = -self.s * self.mu * CLOUD * rarity(counts.double().clamp(min=1))
        return posterior_prior(counts, self.weights, drawn=drawn, shift=shift)


# the mean of |x|, sigma sqrt(2/pi) (1 - exp(-a^2/2)) + erfc(a / sqrt 2): sigma = 1/3, clamped at a = 3 sigma
CLOUD = math.sqrt(2 / math.pi) / 3 * (1 - math.exp(-4.5)) + math.erfc(3 / math.sqrt(2))


def rarity(counts: Tensor) -> Tensor:
    """log(n_max / n_c) relative to the rarest class [C]: 0 for the largest, 1 for the rarest; 0 where all are alike."""
    d = (counts.max() / counts).log()
    return d / d.max().clamp(min=1e-12)
