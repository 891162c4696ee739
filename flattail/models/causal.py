"""The causal head of De-confound-TDE: cosines in training; in evaluation without what the mean feature brings.

training:    o_c = (tau / K) sum_k  w_ck . x_k / ((||w_ck|| + gamma) ||x_k||),   x_k, w_ck: K equal parts of x, w_c
evaluation:  the same of  x_k/||x_k|| - alpha cos(x_k, d_k) d_k,    d_k = dbar_k/||dbar_k||
             dbar <- mu dbar + mean of the batch's features, at every step
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Causal(nn.Module):
    """De-confound-TDE: normalised weights, and in evaluation the total direct effect (Tang et al., NeurIPS 2020).

    Logits [B, C] of features [B, d] by weights [C, d].

    Tang et al., "Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum Causal Effect", NeurIPS
    2020, with the released code's constants: alpha is 3 on ImageNet-LT and Places-LT, 1.5 on CIFAR-100-LT and 1 on
    CIFAR-10-LT, and acts in evaluation alone, so `model.head.alpha` may be set after training. The direction is a
    buffer: moved in training mode by every batch (each micro-batch, in every process its own), kept by displaced
    passes. The release ties mu to the learning rate on large sets; here it is constant, as there on CIFAR.
    Raises ValueError for features that cannot be parted into `heads`.
    """

    direction: Tensor  # [d] moving sum of mean features
    coupled = True  # a batch, and no part of it, moves the direction once

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        heads: int = 2,
        tau: float = 16.0,
        alpha: float = 3.0,
        gamma: float = 1 / 32,
        mu: float = 0.9,
    ):
        super().__init__()
        if features % heads:
            raise ValueError(f"head: causal parts features into {heads}, and {features} is no multiple of that")
        self.heads, self.tau, self.alpha, self.gamma, self.mu = heads, tau, alpha, gamma, mu
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-(features**-0.5), features**-0.5))
        self.register_buffer("direction", torch.zeros(features))

    def forward(self, z: Tensor) -> Tensor:
        """Logits [B, C] of features [B, d]."""
        x, w = self.parts(z), self.parts(self.weight)  # [., K, d/K]
        x = F.normalize(x, dim=2)
        w = w / (w.norm(dim=2, keepdim=True) + self.gamma)
        if self.training:
            self.move(z.detach())
        else:
            d = F.normalize(self.parts(self.direction[None].to(x.dtype)), dim=2)
            x = x - self.alpha * (x * d).sum(2, keepdim=True) * d
        return self.tau / self.heads * x.flatten(1) @ w.flatten(1).to(x.dtype).T

    def parts(self, rows: Tensor) -> Tensor:
        """Rows [., d] as [., K, d/K]."""
        return rows.unflatten(1, (self.heads, -1))

    def move(self, z: Tensor) -> None:
        """One step of the moving direction."""
        with torch.no_grad():
            mean = z.sum(0, dtype=self.direction.dtype) / max(len(z), 1)
            self.direction.mul_(self.mu).add_(mean)

    def extra_repr(self) -> str:
        """Sizes and constants."""
        classes, features = self.weight.shape
        return f"features={features}, classes={classes}, heads={self.heads}, tau={self.tau:g}, alpha={self.alpha:g}"


def causal_cifar100(features: int, classes: int) -> Causal:
    """`causal` with alpha = 1.5, as released for CIFAR-100-LT."""
    return Causal(features, classes, alpha=1.5)


def causal_cifar10(features: int, classes: int) -> Causal:
    """`causal` with alpha = 1, as released for CIFAR-10-LT."""
    return Causal(features, classes, alpha=1.0)
