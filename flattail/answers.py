"""What a model answers to a half of the data, in evaluation mode: its logits, and the features its head is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .data.halves import Half, in_order


@torch.no_grad()
def logits_of(
    model: nn.Module, half: Half, *, device: torch.device | str, batch: int = 512, flip: bool = False, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits `[N, C]` and labels `[N]` of a half, on the host, in evaluation mode; `flip` averages with the mirror."""
    mode = [m.training for m in model.modules()]
    model.eval()
    answers, labels = [], []
    for x, y in half.batches(in_order(len(half), batch), device=device, workers=workers):
        logits = answered(model, x)
        logits = (logits + answered(model, x.flip(-1))) / 2 if flip else logits
        answers.append(logits.float().cpu())
        labels.append(y.cpu())
    for module, was in zip(model.modules(), mode, strict=True):
        module.training = was
    return torch.cat(answers), torch.cat(labels)


def answered(model: nn.Module, x: Tensor) -> Tensor:
    """The answers to a batch [B, ...]; to its halves one by one, where the device cannot hold what the whole needs."""
    try:
        return model(x)
    except torch.OutOfMemoryError:
        if len(x) == 1:
            raise
    return torch.cat([answered(model, half) for half in x.chunk(2)])


@torch.no_grad()
def features_of(
    model: nn.Module, half: Half, *, device: torch.device | str, batch: int = 512, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Features `[N, d]` that a `Split`'s head is given, and labels `[N]`, of a half, on the host; in evaluation mode.

    Raises ValueError for a model without a backbone and a head.
    """
    if not (hasattr(model, "backbone") and hasattr(model, "head")):
        raise ValueError(
            f"features are what a backbone gives a head, and {type(model).__name__} has no `backbone` and `head`: "
            "Split(backbone, head) makes any pair of modules so"
        )
    return logits_of(model.get_submodule("backbone"), half, device=device, batch=batch, workers=workers)
