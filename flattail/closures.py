"""What a step minimises: the closure of a batch, plain or mixed, that gives the loss of every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .data.mix import Mix
from .losses import Loss, needs
from .sharp import Weighted
from .sharp.perturb import recorded
from .stage import Stage


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


def objective(net: nn.Module, stage: Stage, counts: Tensor, batch: Batch, key: int) -> Objective:
    """What a stage minimises on a batch, its partners and shares drawn from the key where it mixes images."""
    if stage.mix is None:
        return plain(net, stage.loss, counts, batch)
    return mixed(net, stage.loss, counts, batch, stage.mix, key, twice=stage.method.where == "weights")


def plain(net: nn.Module, loss: Loss, counts: Tensor, batch: Batch) -> Objective:
    """The loss of every image; the closure returns which answers are right as well.

    It can run some rows alone, unless the loss is one of the batch as a whole.
    """

    def losses(rows: Tensor | slice = slice(None)) -> tuple[Any, Tensor]:
        rows = rows.to(batch.x.device, non_blocking=True) if isinstance(rows, Tensor) else rows
        logits, more = answered(net, loss, batch.x[rows])
        y = batch.y[rows]
        return loss(logits, y, counts, **more), logits.detach().argmax(1) == y

    def whole() -> tuple[Any, Tensor]:
        return losses()

    closure = whole if needs(loss, "whole") else losses
    return Objective(closure, batch.labels, closure)


def mixed(net: nn.Module, loss: Loss, counts: Tensor, batch: Batch, mix: Mix, key: int, *, twice: bool) -> Objective:
    """The loss of images that are made of two, each with two labels and a share.

    `twice`: 2B virtual samples, each image once with each label, of mass share and 1 - share; exact for methods that
    displace weights. Otherwise B samples of blended losses that go by their first label, as CC-SAM's code has it.
    A loss that draws noise draws it for either label apart.
    """
    x, order, shares = mix(batch.x, batch.labels, counts, key)
    first, second = batch.y, batch.y[order.to(batch.y.device, non_blocking=True)]
    ours, theirs = (s.to(first.device, non_blocking=True) for s in (shares, 1 - shares))

    def sides() -> tuple[Weighted, Weighted, Tensor]:
        logits, more = answered(net, loss, x)
        a, b = (with_masses(loss(logits, y, counts, **more)) for y in (first, second))
        right = logits.detach().argmax(1) == first
        return shared(a, ours), shared(b, theirs), right

    def virtual() -> tuple[Weighted, Tensor]:
        a, b, right = sides()
        return Weighted(torch.cat([a.values, b.values]), torch.cat([a.masses, b.masses])), right

    def blended() -> tuple[Weighted, Tensor]:
        a, b, right = sides()
        masses = a.masses + b.masses
        return Weighted((a.masses * a.values + b.masses * b.values) / masses, masses), right

    def hard() -> Any:
        logits, more = answered(net, loss, x)
        return loss(logits, first, counts, **more)

    def hard_twice() -> Weighted:
        own, there = with_masses(hard()), order.to(first.device, non_blocking=True)
        return Weighted(*(torch.cat([t, t[there]]) for t in own))  # second labels are the partners' first

    if twice:
        return Objective(virtual, torch.cat([batch.labels, batch.labels[order]]), hard_twice)
    return Objective(blended, batch.labels, hard)


def answered(net: nn.Module, loss: Loss, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits [B, C] of images, and what else the loss is called with: `z`, the backbone's features, if it needs them.

    Raises ValueError for a model without a backbone.
    """
    if not needs(loss, "features"):
        return net(x), {}
    inner = getattr(net, "module", net)
    backbone = getattr(inner, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"loss: {type(loss).__name__} needs the features of a Split(backbone, head), and {type(inner).__name__} "
            "has no backbone: choose a model of flattail.models, or another loss"
        )
    with recorded(backbone) as calls:
        logits = net(x)
    return logits, {"z": calls[-1][1]}


def shared(out: Weighted, share: Tensor) -> Weighted:
    """A loss of which a share [B] counts."""
    return Weighted(out.values, share.to(out.masses.dtype) * out.masses)


def with_masses(out: Tensor | Weighted) -> Weighted:
    """A loss with its masses, ones where it has none."""
    return out if isinstance(out, Weighted) else Weighted(out, torch.ones_like(out))
