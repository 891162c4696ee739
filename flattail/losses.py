"""Losses of long-tailed recognition, one value per sample, and the class weights they may carry.

A loss maps logits [B, C], labels [B] and training counts [C] to values [B], or to `Weighted` values and
masses [B]. The objective is `sum(masses * values) / sum(masses)`, with masses 1 where none are given: for
masses W[y] this is PyTorch's weighted mean. Values carry no class weight (but see `Focal`), so that whoever
adds up micro-batches and processes can divide once by the mass of the whole step.

Every loss computes in float32 at least (float64 logits stay float64), on the device of the logits, and never
waits for that device. A class without samples counts as a class of one. Class-balanced cross-entropy is
`CE(weights="effective")`, label smoothing is `CE(smoothing=0.1)`, balanced softmax is `LA(tau=1)`.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from flattail.sharp import Weighted

COSINE_SLACK = {torch.float32: 1e-3, torch.float64: 1e-3}  # how far beyond 1 rounding may carry a cosine
HALF_SLACK = 2e-2  # the same in float16 and bfloat16


def effective(counts: Tensor) -> Tensor:
    """Inverse effective number of samples, (1 - beta) / (1 - beta^n) with beta = 0.9999 [C].

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019. The constant
    numerator falls out of the normalisation that `class_weights` does.
    """
    return 1 / -torch.expm1(counts * math.log(0.9999))


def inverse(counts: Tensor) -> Tensor:
    """Inverse class frequency, 1 / n [C]."""
    return 1 / counts


def square_root(counts: Tensor) -> Tensor:
    """Inverse square root of the class frequency, n^(-1/2) [C]."""
    return counts.rsqrt()


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "effective": effective,
    "inverse": inverse,
    "square-root": square_root,
}


def class_weights(name: str, counts: Tensor) -> Tensor:
    """Weights [C] of the classes by a name of `WEIGHTS`, scaled to mean 1; integer counts give float32."""
    counts = counts if counts.is_floating_point() else counts.to(torch.float32)
    weights = WEIGHTS[name](counts.clamp(min=1))
    return weights / weights.mean()


def ldam_margins(counts: Tensor, max_margin: float) -> Tensor:
    """Margins [C] proportional to n^(-1/4), the largest of them `max_margin` (Cao et al., NeurIPS 2019)."""
    return max_margin * (counts.min() / counts) ** 0.25


def _checked(weights: str | None) -> None:
    if weights is not None and weights not in WEIGHTS:
        guess = difflib.get_close_matches(str(weights), WEIGHTS, 1)
        hint = f"did you mean {guess[0]!r}?" if guess else f"choose one of {', '.join(WEIGHTS)}, or none"
        raise ValueError(f"weights: no class weights are called {weights!r}; {hint}")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}: must be 0 or more, and is {value}")


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _counts(counts: Tensor, logits: Tensor) -> Tensor:
    """The counts [C] as a tensor that may be computed with beside (wide) logits."""
    if counts.shape != logits.shape[-1:]:
        raise ValueError(
            f"counts: {tuple(counts.shape)} does not fit logits of {logits.shape[-1]} classes; "
            "give one training count per class, and build the model with as many classes"
        )
    return counts.to(logits).clamp(min=1)


def _cross_entropy(
    z: Tensor, y: Tensor, counts: Tensor, weights: str | None, *, smoothing: float = 0.0
) -> Tensor | Weighted:
    """Cross-entropy [B] of the final logits z [B, C], with masses W_y [B] if weighted."""
    values = F.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)
    if weights is None:
        return values
    return Weighted(values, class_weights(weights, _counts(counts, z))[y])


class Loss(Protocol):
    """What a loss is: a frozen value, called with logits [B, C], labels [B] and training counts [C]."""

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B], with masses [B] if the loss is weighted."""
        ...


@dataclass(frozen=True)
class CE:
    """Cross-entropy, by choice with class weights (class-balanced loss) and label smoothing.

    `l = (1 - e) * -log p_y + e * mean_j(-log p_j)`, p = softmax(logits). Weights: Cui et al., CVPR 2019; they
    weigh samples, so the smoothed part of a sample has its own label's weight (torch's `label_smoothing` with
    `weight` uses those of all classes there). Smoothing: Szegedy et al., CVPR 2016.
    """

    weights: str | None = None  # class weights by name: effective, inverse, square-root
    smoothing: float = 0.0  # share of the target spread over all classes

    def __post_init__(self) -> None:
        _checked(self.weights)
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing: must be within 0 and 1, and is {self.smoothing}")

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B], with masses [B] if weighted."""
        return _cross_entropy(_wide(logits), y, counts, self.weights, smoothing=self.smoothing)


@dataclass(frozen=True)
class Focal:
    """Focal loss: well-classified samples count less.

    `l = (1 - p)^gamma * v` with `v = W_y * -log softmax(logits)_y` and `p = exp(-v)`; Lin et al., "Focal Loss
    for Dense Object Detection", ICCV 2017, in the form that long-tailed benchmarks run: the class weight is
    inside p, and the objective is the plain mean, so values are weighted and there are no masses.
    """

    gamma: float = 1.0  # strength of the focus; 0 is cross-entropy
    weights: str | None = None  # class weights by name: effective, inverse, square-root

    def __post_init__(self) -> None:
        _checked(self.weights)
        _not_negative(gamma=self.gamma)

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        """Per-sample losses [B], class weights inside."""
        z = _wide(logits)
        v = F.cross_entropy(z, y, reduction="none")
        if self.weights is not None:
            v = v * class_weights(self.weights, _counts(counts, z))[y]
        miss = -torch.expm1(-v)  # 1 - p without cancellation
        return miss.clamp(min=torch.finfo(v.dtype).eps) ** self.gamma * v  # the clamp keeps slopes finite at p = 1


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
    weights: str | None = None  # class weights by name: effective, inverse, square-root
    cosine: bool = True  # logits are cosines; false: they come from a linear head, as in SSE-SAM

    def __post_init__(self) -> None:
        _checked(self.weights)
        _not_negative(s=self.s, max_margin=self.max_margin)

    @property
    def head(self) -> str:
        """The head whose logits this form of the loss is meant for: `"cosine"` or `"linear"`."""
        return "cosine" if self.cosine else "linear"

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B], with masses [B] if weighted."""
        if self.cosine and logits.device.type == "cpu" and not torch.compiler.is_compiling():
            _refuse_no_cosines(logits.detach())
        z = _wide(logits)  # [B, C]
        m = ldam_margins(_counts(counts, z), self.max_margin)[y]  # [B]
        own = torch.arange(z.shape[-1], device=z.device) == y[:, None]  # [B, C]
        z = self.s * (z - m[:, None] * own) if self.cosine else z - self.s * m[:, None] * own
        return _cross_entropy(z, y, counts, self.weights)


def _refuse_no_cosines(logits: Tensor) -> None:
    slack = COSINE_SLACK.get(logits.dtype, HALF_SLACK)
    if logits.numel() and (largest := logits.abs().amax().item()) > 1 + slack:
        raise ValueError(
            f"loss: LDAM scales cosines, but a logit of size {largest:.3g} lies outside -1..1; build the "
            "model with `head: cosine`, or choose the form for linear heads, LDAM(cosine=False)"
        )


@dataclass(frozen=True)
class VS:
    """Vector scaling: logits scaled and shifted by class frequency.

    `l = -log softmax(logits / D + i)_y` with `D_c = (n_max / n_c)^gamma` and `i_c = tau * log(n_c / N)`; Kini
    et al., "Label-Imbalanced and Group-Sensitive Classification under Overparameterization", NeurIPS 2021.
    `gamma=0` is logit adjustment, `tau=0` is CDT, both 0 is cross-entropy.
    """

    gamma: float = 0.3  # exponent of the scaling (SSE-SAM, Focal-SAM: 0.05)
    tau: float = 1.0  # strength of the shift (SSE-SAM, Focal-SAM: 0.75)
    weights: str | None = None  # class weights by name: effective, inverse, square-root

    def __post_init__(self) -> None:
        _checked(self.weights)

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B], with masses [B] if weighted."""
        z = _wide(logits)
        n = _counts(counts, z)
        z = z * (n / n.max()) ** self.gamma + self.tau * (n / n.sum()).log()
        return _cross_entropy(z, y, counts, self.weights)


@dataclass(frozen=True)
class LA:
    """Logit adjustment; `tau=1` is balanced softmax, `tau=0.75` what SSE-SAM calls VA.

    `l = -log softmax(logits + tau * log(n_c / N))_y`; Menon et al., "Long-Tail Learning via Logit
    Adjustment", ICLR 2021; Ren et al., "Balanced Meta-Softmax", NeurIPS 2020. The same as `VS(gamma=0)`.
    """

    tau: float = 1.0  # strength of the shift; 0 is cross-entropy
    weights: str | None = None  # class weights by name: effective, inverse, square-root

    def __post_init__(self) -> None:
        _checked(self.weights)

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B], with masses [B] if weighted."""
        return VS(0.0, self.tau, self.weights)(logits, y, counts)


LOSSES: dict[str, type] = {"ce": CE, "focal": Focal, "ldam": LDAM, "vs": VS, "la": LA}
