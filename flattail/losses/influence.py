"""The influence-balanced loss: samples that pull hard on the classifier count less."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from flattail.losses.contract import focused, posterior_prior, refuse_negative, wide
from flattail.losses.weights import refuse_unknown

EPSILON = 1e-3


@dataclass(frozen=True)
class IB:
    """Influence-balanced loss: every sample divided by its influence on the last layer.

    `l = alpha / (|softmax(logits) - onehot(y)|_1 * |z|_1 + 0.001) * (1 - p)^gamma * v` with `v = W_y * CE` and
    `p = exp(-v)`; Park et al., "Influence-Balanced Loss for Imbalanced Visual Classification", ICCV 2021, as
    released: the factor is differentiated, the class weight is inside, and the objective is the plain mean, so there
    are no masses. gamma > 0 is IB-Focal. z [B, d] are the backbone's features.

    It is meant for training that has settled: the release runs plain cross-entropy for its first 100 of 200
    epochs, which here is a stage before it, and IB a stage with `carry: true`.

    Raises ValueError for unknown weights, and negative constants.
    """

    alpha: float = 1000.0  # size of the loss (released runs: 1000)
    gamma: float = 0.0  # strength of the focus; 0 is IB, 1 the released IB-Focal
    weights: str | None = "inverse"  # class weights by name: effective, inverse, square-root, power:RHO
    features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_unknown(self.weights)
        refuse_negative(alpha=self.alpha, gamma=self.gamma)

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor, *, z: Tensor) -> Tensor:
        """Per-sample losses [B] of logits [B, C], labels [B] and counts [C], class weights inside.

        z [B, d] are the features the logits were made of.
        """
        o = wide(logits)
        miss = -2 * torch.expm1(-F.cross_entropy(o, y, reduction="none"))  # |p - onehot|_1 = 2 (1 - p_y)
        influence = miss * wide(z).flatten(1).abs().sum(1).to(o.dtype)
        return self.alpha / (influence + EPSILON) * focused(o, y, counts, self.weights, self.gamma)

    def log_prior(self, counts: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Log of the class distribution [C] that the logits answer for, W pi; the influence left aside."""
        return posterior_prior(counts, self.weights, drawn=drawn)
