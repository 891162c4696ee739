"""Cross-entropy, plain, weighted, smoothed and focused."""

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from flattail.losses.contract import (
    fitting,
    focused,
    of_class,
    posterior_prior,
    refuse_negative,
    refuse_no_share,
    weighed,
    wide,
)
from flattail.losses.weights import refuse_unknown
from flattail.sharp import Weighted


@dataclass(frozen=True)
class CE:
    """Cross-entropy, by choice with class weights (class-balanced loss) and label smoothing.

    `l = (1 - e) * -log p_y + e * mean_j(-log p_j)`, p = softmax(logits). Weights: Cui et al., CVPR 2019; they
    weigh samples, so the smoothed part of a sample has its own label's weight (torch's `label_smoothing` with
    `weight` uses those of all classes there). Smoothing: Szegedy et al., CVPR 2016; 0.98 on the classifier alone is
    label over-smoothing, LOS (Sun et al., ICLR 2025), whose released code is this loss.

    Raises ValueError for unknown weights, and for a smoothing outside of [0, 1].
    """

    weights: str | None = None  # class weights by name: effective, inverse, square-root, power:RHO
    smoothing: float = 0.0  # share of the target spread over all classes (LOS: 0.98)

    def __post_init__(self) -> None:
        refuse_unknown(self.weights)
        refuse_no_share(smoothing=self.smoothing)

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B] of logits [B, C], labels [B] and counts [C], with masses [B] if weighted."""
        z = wide(logits)
        values = F.cross_entropy(z, y, reduction="none", label_smoothing=self.smoothing)
        return weighed(values, z, y, counts, self.weights)

    def log_prior(self, counts: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Log of the class distribution [C] that the logits answer for, W pi; smoothing left aside."""
        return posterior_prior(counts, self.weights, drawn=drawn)


@dataclass(frozen=True)
class Focal:
    """Focal loss: well-classified samples count less.

    `l = (1 - p)^gamma * v` with `v = W_y * -log softmax(logits)_y` and `p = exp(-v)`; Lin et al., "Focal Loss
    for Dense Object Detection", ICCV 2017, in the form that long-tailed benchmarks run: the class weight is
    inside p, and the objective is the plain mean, so values are weighted and there are no masses.

    Raises ValueError for unknown weights and a negative gamma.
    """

    gamma: float = 1.0  # strength of the focus; 0 is cross-entropy
    weights: str | None = None  # class weights by name: effective, inverse, square-root, power:RHO

    def __post_init__(self) -> None:
        refuse_unknown(self.weights)
        refuse_negative(gamma=self.gamma)

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        """Per-sample losses [B] of logits [B, C], labels [B] and counts [C], class weights inside."""
        return focused(wide(logits), y, counts, self.weights, self.gamma)

    def log_prior(self, counts: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Log of the class distribution [C] that the logits answer for, W pi; the focus left aside."""
        return posterior_prior(counts, self.weights, drawn=drawn)


@dataclass(frozen=True)
class LabelAwareSmoothing:
    """Label-aware smoothing, MiSLAS's second stage: targets of frequent classes are softer.

    `l = (1 - e_y) * -log p_y + e_y * mean_j(-log p_j)` with `e_c = smooth_tail + (smooth_head - smooth_tail) * f(t_c)`
    and `t_c = (n_c - n_min) / (n_max - n_min)`; f(t) = sin(pi t / 2) (concave), t (linear), 1 - cos(pi t / 2) (convex)
    or t^power. Zhong et al., "Improving Calibration for Long-Tailed Recognition", CVPR 2021. Where all classes are of
    one size, t = 0 (the release divides by zero).

    Raises ValueError for unknown weights, smoothings out of their ranges and a negative power.
    """

    smooth_head: float = 0.3  # of the largest class (released: 0.3; 0.4 CIFAR-100 and Places-LT)
    smooth_tail: float = 0.0  # of the smallest class (released: 0; 0.1 CIFAR-100 and Places-LT)
    shape: Literal["concave", "linear", "convex", "power"] = "concave"  # of f
    power: float = 1.0  # exponent of the shape "power"
    weights: str | None = None  # class weights by name: effective, inverse, square-root, power:RHO

    def __post_init__(self) -> None:
        refuse_unknown(self.weights)
        refuse_no_share(smooth_head=self.smooth_head, smooth_tail=self.smooth_tail)
        refuse_negative(power=self.power)

    def smoothing(self, counts: Tensor) -> Tensor:
        """e_c of every class [C]."""
        n = counts if counts.is_floating_point() else counts.float()
        t = (n - n.min()) / (n.max() - n.min()).clamp(min=1e-12)
        f = {
            "concave": (t * (math.pi / 2)).sin(),
            "linear": t,
            "convex": 1 - (t * (math.pi / 2)).cos(),
            "power": t**self.power,
        }[self.shape]
        return self.smooth_tail + (self.smooth_head - self.smooth_tail) * f

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B] of logits [B, C], labels [B] and counts [C], with masses [B] if weighted."""
        z = wide(logits)
        e = of_class(self.smoothing(fitting(counts, z)), y)
        log_p = z.log_softmax(1)
        values = (1 - e) * F.nll_loss(log_p, y, reduction="none") - e * log_p.mean(1)
        return weighed(values, z, y, counts, self.weights)

    def log_prior(self, counts: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Log of the class distribution [C] that the logits answer for, W pi; smoothing left aside."""
        return posterior_prior(counts, self.weights, drawn=drawn)
