"""Losses that know the class frequencies of training and take them out of the logits: VS, LA, LADE."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flattail.losses.contract import cross_entropy, fitting, of_class, posterior_prior, refuse_negative, wide
from flattail.losses.weights import refuse_unknown
from flattail.sharp import Weighted


@dataclass(frozen=True)
class VS:
    """Vector scaling: logits scaled and shifted by class frequency.

    `l = -log softmax(logits / D + i)_y` with `D_c = (n_max / n_c)^gamma` and `i_c = tau * log(n_c / N)`; Kini
    et al., "Label-Imbalanced and Group-Sensitive Classification under Overparameterization", NeurIPS 2021.
    `gamma=0` is logit adjustment, `tau=0` is CDT, both 0 is cross-entropy.

    Raises ValueError for unknown weights.
    """

    gamma: float = 0.3  # exponent of the scaling (SSE-SAM, Focal-SAM: 0.05)
    tau: float = 1.0  # strength of the shift (SSE-SAM, Focal-SAM: 0.75)
    weights: str | None = None  # class weights by name: effective, inverse, square-root, power:RHO

    def __post_init__(self) -> None:
        refuse_unknown(self.weights)

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B] of logits [B, C], labels [B] and counts [C], with masses [B] if weighted."""
        z = wide(logits)
        n = fitting(counts, z)
        z = z * (n / n.max()) ** self.gamma + self.tau * (n / n.sum()).log()
        return cross_entropy(z, y, counts, self.weights)

    def log_prior(self, counts: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Log of the class distribution [C] that the logits answer for, W pi^(1 - tau); exact for gamma = 0 alone."""
        n = counts.double().clamp(min=1)
        return posterior_prior(counts, self.weights, drawn=drawn, shift=self.tau * n.log())


@dataclass(frozen=True)
class LA:
    """Logit adjustment; `tau=1` is balanced softmax, `tau=0.75` what SSE-SAM calls VA.

    `l = -log softmax(logits + tau * log(n_c / N))_y`; Menon et al., "Long-Tail Learning via Logit
    Adjustment", ICLR 2021; Ren et al., "Balanced Meta-Softmax", NeurIPS 2020. The same as `VS(gamma=0)`.

    Raises ValueError for unknown weights.
    """

    tau: float = 1.0  # strength of the shift; 0 is cross-entropy
    weights: str | None = None  # class weights by name: effective, inverse, square-root, power:RHO

    def __post_init__(self) -> None:
        refuse_unknown(self.weights)

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B] of logits [B, C], labels [B] and counts [C], with masses [B] if weighted."""
        return VS(0.0, self.tau, self.weights)(logits, y, counts)

    def log_prior(self, counts: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Log of the class distribution [C] that the logits answer for, W pi^(1 - tau)."""
        return VS(0.0, self.tau, self.weights).log_prior(counts, drawn)


@dataclass(frozen=True)
class LADE:
    """Label distribution disentangling: balanced softmax, and a bound that makes logits log likelihood ratios.

    The objective of a batch, b_c of its B samples in class c and pi_c = n_c / N of training:

        mean_i LA_i + alpha * sum_c pi_c (reg * S_c^2 + S_c - M_c),
        M_c = mean of logits_ic over i in c (0 for a class that is absent),
        S_c = log mean_i exp(logits_ic - log(C pi_c)),   over all i of the batch

    Hong et al., "Disentangling Label Distribution for Long-tailed Visual Recognition", CVPR 2021; the
    regularised Donsker-Varadhan bound in the form of the released code, to which the paper's body was not compared.

    It couples the samples of a batch. Values [B] are `LA_i + alpha * (sum_c pi_c (S_c + reg * S_c^2) - B pi_y / b_y *
    logits_iy)`, whose plain mean is that objective; a term of some samples has their own part of M, and of S their
    share. Micro-batches, processes and the two labels of a mixed batch are regularised each apart.

    Raises ValueError for constants out of their ranges.
    """

    alpha: float = 0.1  # weight of the bound (released: 0.1 CIFAR-100, 0.05 ImageNet-LT and iNat, 0.005 Places-LT)
    reg: float = 0.1  # lambda, of the square (released: 0.01 CIFAR-100, 0.5 ImageNet-LT, 0.1 Places-LT and iNat)
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_negative(alpha=self.alpha, reg=self.reg)

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        """Losses [B] of logits [B, C], labels [B] and counts [C]; their mean is the objective of this batch."""
        z = wide(logits)
        n, size = fitting(counts, z), max(len(y), 1)
        pi = n / n.sum()
        bound = torch.logsumexp(z - (pi * len(n)).log(), 0) - math.log(size)  # S [C]
        here = torch.zeros_like(pi).index_add(0, y, torch.ones_like(z[:, 0])).clamp(min=1)  # b [C]
        own = of_class(size * pi / here, y) * z.gather(1, y[:, None])[:, 0]
        common = (pi * (bound + self.reg * bound**2)).sum()
        return cross_entropy(z + pi.log(), y, counts, None) + self.alpha * (common - own)  # type: ignore[operator]

    def log_prior(self, counts: Tensor, drawn: Tensor | None = None) -> Tensor:
        """Log of the class distribution [C] that the logits answer for: uniform, if batches are as the data are."""
        return LA(1.0).log_prior(counts, drawn)
