"""What a step minimises: the closure of a batch, plain or mixed, that gives the loss of every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .data.addressed import seeds
from .losses import Loss
from .sharp import Weighted


class Batch(NamedTuple):
    """Images and labels of a (micro-)batch, and the labels once more on the host."""

    x: Tensor  # [B, ch, H, W]
    y: Tensor  # [B]
    labels: Tensor  # [B], host

    def cut(self, pieces: int) -> list[Batch]:
        """As micro-batches, as even as can be."""
        x, y, labels = (t.tensor_split(min(pieces, max(len(self.y), 1))) for t in self)
        return [Batch(*parts) for parts in zip(x, y, labels, strict=True)]


class Objective(NamedTuple):
    """What the engine is given for a batch."""

    losses: Callable[..., Any]
    labels: Tensor  # of each of its losses, host
    hard: Callable[..., Any]  # the losses under first labels alone


def plain(net: nn.Module, loss: Loss, counts: Tensor, batch: Batch) -> Objective:
    """The loss of every image; the closure can run some rows, and returns which answers are right as well."""

    def losses(rows: Tensor | slice = slice(None)) -> tuple[Any, Tensor]:
        logits, y = net(batch.x[rows]), batch.y[rows]
        return loss(logits, y, counts), logits.detach().argmax(1) == y

    return Objective(losses, batch.labels, losses)


def mixed(
    net: nn.Module, loss: Loss, counts: Tensor, batch: Batch, alpha: float, key: int, *, twice: bool
) -> Objective:
    """Mixup (Zhang et al., ICLR 2018): images mixed in pairs, by one share per batch from Beta(alpha, alpha).

    `twice`: 2B virtual samples, each image once with each label, of mass share and 1 - share; exact for methods that
    displace weights. Otherwise B samples of blended losses that go by their first label, as CC-SAM's code has it.
    """
    share = float(np.random.default_rng(key).beta(alpha, alpha))
    order = seeds(key, torch.arange(len(batch.y))).argsort()
    there = order.to(batch.y.device)
    x, first, second = share * batch.x + (1 - share) * batch.x[there], batch.y, batch.y[there]

    def sides() -> tuple[Weighted, Weighted, Tensor]:
        logits = net(x)
        a, b = (with_masses(loss(logits, y, counts)) for y in (first, second))
        right = logits.detach().argmax(1) == first
        return Weighted(a.values, share * a.masses), Weighted(b.values, (1 - share) * b.masses), right

    def virtual() -> tuple[Weighted, Tensor]:
        a, b, right = sides()
        return Weighted(torch.cat([a.values, b.values]), torch.cat([a.masses, b.masses])), right

    def blended() -> tuple[Weighted, Tensor]:
        a, b, right = sides()
        masses = a.masses + b.masses
        return Weighted((a.masses * a.values + b.masses * b.values) / masses, masses), right

    def hard() -> Any:
        return loss(net(x), first, counts)

    if twice:
        return Objective(virtual, torch.cat([batch.labels, batch.labels[order]]), hard)
    return Objective(blended, batch.labels, hard)


def with_masses(out: Tensor | Weighted) -> Weighted:
    """A loss with its masses, ones where it has none."""
    return out if isinstance(out, Weighted) else Weighted(out, torch.ones_like(out))
