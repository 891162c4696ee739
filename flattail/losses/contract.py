"""What a loss is, and what all of them are made of: wide logits, counts that fit, a cross-entropy with masses."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from flattail.losses.weights import class_weights
from flattail.sharp import Weighted

COSINE_SLACK = {torch.float32: 1e-3, torch.float64: 1e-3}  # how far beyond 1 rounding may carry a cosine
ROWS = 256  # of logits that are asked for at once
HALF_SLACK = 2e-2  # the same in float16 and bfloat16


class Loss(Protocol):
    """What a loss is: a frozen value, called with logits [B, C], labels [B] and training counts [C].

    Three more members are optional. `features = True` (a ClassVar): it is called with `z=`, the backbone's features
    [B, d]. `whole = True`: its values are those of the whole batch. `head`: the head whose logits it is meant for.
    """

    def __call__(self, logits: Tensor, y: Tensor, counts: Tensor) -> Tensor | Weighted:
        """Per-sample losses [B] of logits [B, C], labels [B] and counts [C]; with masses [B] if it is weighted."""
        ...


def needs(loss: Any, what: str) -> bool:
    """Whether a loss declares a need: "features" or "whole"."""
    return bool(getattr(loss, what, False))


def wide(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def fitting(counts: Tensor, logits: Tensor) -> Tensor:
    """The counts [C] as a tensor that may be computed with beside (wide) logits."""
    if counts.shape != logits.shape[-1:]:
        raise ValueError(
            f"counts: {tuple(counts.shape)} does not fit logits of {logits.shape[-1]} classes; "
            "give one training count per class, and build the model with as many classes"
        )
    return counts.to(logits, non_blocking=True).clamp(min=1)


def of_class(each: Tensor, y: Tensor) -> Tensor:
    """The entries [B] of a value per class [C] for labels [B] of any whole type; as an index, bytes would be a mask."""
    return each[y.long()]


def cross_entropy(z: Tensor, y: Tensor, counts: Tensor, weights: str | None) -> Tensor | Weighted:
    """Cross-entropy [B] of the final logits z [B, C], with masses W_y [B] if weighted."""
    return weighed(F.cross_entropy(z, y, reduction="none"), z, y, counts, weights)


def weighed(values: Tensor, z: Tensor, y: Tensor, counts: Tensor, weights: str | None) -> Tensor | Weighted:
    """Values [B], with masses W_y [B] if weighted."""
    if weights is None:
        return values
    return Weighted(values, of_class(class_weights(weights, fitting(counts, z)), y))


def focused(z: Tensor, y: Tensor, counts: Tensor, weights: str | None, gamma: float) -> Tensor:
    """Focal values [B], `(1 - p)^gamma * v`, with the class weight inside: `v = W_y * CE` and `p = exp(-v)`."""
    v = F.cross_entropy(z, y, reduction="none")
    if weights is not None:
        v = v * of_class(class_weights(weights, fitting(counts, z)), y)
    miss = -torch.expm1(-v)  # 1 - p without cancellation
    return miss.clamp(min=torch.finfo(v.dtype).eps) ** gamma * v  # the clamp keeps slopes finite at p = 1


def masses_of(loss: Any, counts: Tensor) -> Tensor | None:
    """The mass [C] (float64) of a sample of each class, as the loss gives it; None for a loss without masses."""
    if needs(loss, "features"):
        return None
    found = []
    with torch.random.fork_rng(devices=[]):
        for y in torch.arange(len(counts)).split(ROWS):
            out = loss(torch.zeros(len(y), len(counts)), y, counts)
            if not isinstance(out, Weighted):
                return None
            found.append(out.masses.double())
    return torch.cat(found)


def posterior_prior(
    counts: Tensor, weights: str | None = None, *, drawn: Tensor | None = None, shift: Tensor | float = 0.0
) -> Tensor:
    """Log probabilities [C] (float64) of the class distribution that logits trained with `shift` [C] on top answer for.

    softmax(logits + shift) is trained to be p(c | x) proportional to W_c d_c p(x | c), d the frequencies in the batches
    (`drawn`, by default the counts); so the logits are log p(x | c) + log W_c + log d_c - shift_c, but for a constant
    of x.
    """
    n = counts.double().clamp(min=1)
    log_prior = (n if drawn is None else drawn.to(n)).log() - shift
    if weights is not None:
        log_prior = log_prior + class_weights(weights, n).log()
    return log_prior.log_softmax(0)


def refuse_negative(**values: float) -> None:
    """Raise ValueError for a constant below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}: must be 0 or more, and is {value}")


def refuse_no_share(**values: float) -> None:
    """Raise ValueError for a share outside 0 and 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: must be within 0 and 1, and is {value}")


def refuse_no_cosines(logits: Tensor, loss: str, remedy: str = "") -> None:
    """Raise ValueError for CPU logits that no cosine head can have given; of other devices nothing is asked."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return
    slack = COSINE_SLACK.get(logits.dtype, HALF_SLACK)
    if logits.numel() and (largest := logits.detach().abs().amax().item()) > 1 + slack:
        raise ValueError(
            f"loss: {loss} scales cosines, but a logit of size {largest:.3g} lies outside -1..1; build the "
            f"model with `head: cosine`{remedy}"
        )
