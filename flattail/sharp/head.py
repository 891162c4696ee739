"""The displaced head: every sample goes through the head moved for its own group, in one pass of the backbone.

For a linear head, logits o = z W' + b and r_i = d(sum_j a_j m_j loss_j)/d o_i, the moved logits need no gradient
per group: with q_c the sum of a m over group c and s_c the scale of its climb,

    o_i + s_c / q_c  sum_{j in c} (z_i . z_j + 1) r_j,     ||g_c||^2 = sum_{i,j in c} (z_i . z_j + 1) r_i . r_j / q_c^2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .passes import Look, Processes, coefficients, noise_around, same_noise, treats_rows_apart
from .perturb import TINY, Radial, answering, norm, of_group, recorded
from .terms import Term


class Slopes(NamedTuple):
    """What the climbs of all groups are made from, sample by sample."""

    z: Tensor  # [B, d] the head's input
    r: Tensor  # [B, C] gradient of sum_j a_j m_j loss_j with respect to the logits
    by: Tensor  # [B] group
    a: Tensor  # [B] a m
    by_group: dict[int, dict[str, Tensor]] | None = None  # for heads that are not linear: numerators of each slope


@dataclass
class Sight:
    """What one look from w saw of the head, graph and all."""

    features: Tensor  # what the backbone answered
    z: Tensor  # what the head was given
    logits: Tensor  # what the head answered
    slopes: Slopes
    cast: torch.autocast  # what the head ran under
    before: list[Tensor]  # the state of the generators when the head began
    noise: list[Tensor]  # the same when it was done

    @property
    def still(self) -> Tensor:
        """What is answered with at w."""
        return self.logits


class Head:
    """The displaced head of a model: its slopes, by groups, and its logits from where each group climbed to."""

    def __init__(self, model: Any, place: Sequence[Tensor], *, dropout: str = "same") -> None:
        self.dropout = dropout
        self.backbone: nn.Module = model.backbone
        self.module: nn.Module = model.head
        placed = {id(p) for p in place}
        self.place: dict[str, Tensor] = {n: p for n, p in self.module.named_parameters() if id(p) in placed}
        if not self.place:
            raise ValueError("the head has no trainable parameter to displace")
        self.norm = norm(list(self.place.values()))
        self.size = sum(p.numel() for p in self.place.values())

    def look(self, look: Look, name: str, scale: Tensor | float) -> tuple[Sight, Any]:
        """Run the closure at w, recording what passes through the head; slopes are taken of sums in this scale."""
        device = next(iter(self.place.values())).device
        with (
            recorded(self.backbone) as below,
            recorded(self.module) as calls,
            noise_around(self.module, device) as noise,
        ):
            seen = look.run()
        if len(calls) != 1 or len(below) != 1:
            raise ValueError(
                f"the closure ran the backbone {len(below)} times and the head {len(calls)} times; a method that "
                "displaces the head needs each to run once"
            )
        (z, logits, cast), term = calls[0], look.terms[name]
        by = torch.zeros(len(term.weight), dtype=torch.int64) if term.by is None else term.by
        by, a = by.to(z.device, non_blocking=True), coefficients(term, look.masses)
        if self.is_linear(term):
            (r,) = torch.autograd.grad(look.sum_of(name) * scale, logits, retain_graph=True)
            slopes = Slopes(z.detach().to(a.dtype), r.to(a.dtype) / scale, by, a)
        else:
            slopes = Slopes(z.detach(), logits.detach(), by, a, self.numerators(a * look.values, by, a, scale))
        return Sight(below[0][1], z, logits, slopes, cast, *noise), seen

    @contextmanager
    def answers(self, sight: Sight, logits: Tensor) -> Iterator[None]:
        """Inside, the backbone answers as it did and the head with these logits: neither does any work."""
        with answering(self.backbone, sight.features), answering(self.module, logits):
            yield

    def is_linear(self, term: Term) -> bool:
        """Whether the closed form holds."""
        return type(self.module) is nn.Linear and isinstance(term.climb, Radial)

    def numerators(self, losses: Tensor, by: Tensor, a: Tensor, scale: Tensor | float) -> dict[int, dict[str, Tensor]]:
        """The gradient of each present group's sum, one backward through the head each."""
        slopes = {}
        for group in by[a != 0].unique().tolist():
            total = losses[by == group].sum() * scale
            grads = torch.autograd.grad(total, list(self.place.values()), retain_graph=True, allow_unused=True)
            slopes[group] = {n: g / scale for n, g in zip(self.place, grads, strict=True) if g is not None}
        return slopes

    def joined(self, sights: Sequence[Slopes], processes: Processes) -> Slopes:
        """The slopes of several micro-batches and processes as those of one batch."""
        z, r, by, a = (processes.join(torch.cat(tensors)) for tensors in list(zip(*sights, strict=True))[:4])
        if sights[0].by_group is None:
            return Slopes(z, r, by, a)
        summed: dict[int, dict[str, Tensor]] = {}
        for group in by[a != 0].unique().tolist():
            mine = [s.by_group[group] for s in sights if group in s.by_group]  # type: ignore[index,operator]
            local = [sum((m[n] for m in mine if n in m), torch.zeros_like(p)) for n, p in self.place.items()]
            summed[group] = dict(zip(self.place, processes.add_all(local), strict=True))
        return Slopes(z, r, by, a, summed)

    def climbed(self, sight: Sight, slopes: Slopes, term: Term) -> tuple[Tensor, Tensor]:
        """Logits `[B, C]` from where each sample's group climbed to, and `||e||/||w||` of every group `[G]`."""
        move = self.climbed_linear if slopes.by_group is None else self.climbed_any
        logits, lengths = move(sight, slopes, term)
        own = slopes.a.new_zeros(term.groups).index_add(0, slopes.by, slopes.a)
        return logits, torch.where(own != 0, lengths / (self.norm + TINY), torch.nan)

    def climbed_linear(self, sight: Sight, slopes: Slopes, term: Term) -> tuple[Tensor, Tensor]:
        """The closed form at the top of this file."""
        z, r, by, a, _ = slopes
        q = a.new_zeros(term.groups).index_add(0, by, a).clamp(min=TINY)
        same = (by[:, None] == by[None, :]).to(r.dtype)
        kernels = {"weight": z @ z.T * same, "bias": same}
        names = [n for n in kernels if n in self.place]
        turn = r @ r.T
        squares = torch.stack(
            [a.new_zeros(term.groups).index_add(0, by, (kernels[n] * turn).sum(1)) for n in names]
        )  # [T, G]
        norms = squares.clamp(min=0).sqrt() / q
        assert isinstance(term.climb, Radial)
        scales = term.climb.scales(self.norm, norms, self.size).detach()
        mine = sight.slopes.by
        same = (mine[:, None] == by[None, :]).to(r.dtype)
        pull = torch.zeros_like(same)
        for n, s in zip(names, (scales / q)[:, by], strict=True):
            pull = pull + s * same * (sight.z.to(r.dtype) @ z.T if n == "weight" else 1.0)
        return sight.logits + pull @ r, (scales * norms).norm(dim=0)

    def climbed_any(self, sight: Sight, slopes: Slopes, term: Term) -> tuple[Tensor, Tensor]:
        """Group by group: a head moved for each, and its samples routed through it."""
        lengths, moves = self.norm.new_zeros(term.groups), {}
        own = slopes.a.new_zeros(term.groups).index_add(0, slopes.by, slopes.a)
        with torch.no_grad():
            for group, numerators in (slopes.by_group or {}).items():
                climb = of_group(term.climb, group)
                slope = [numerators.get(n, torch.zeros_like(p)) / own[group] for n, p in self.place.items()]
                move = climb(list(self.place.values()), slope)
                lengths[group] = norm(move)
                moves[group] = dict(zip(self.place, move, strict=True))
        noise = sight.before if self.dropout == "same" else None
        with sight.cast:
            return routed(self.module, sight.z, sight.slopes.by, moves, noise), lengths


def routed(
    head: nn.Module, z: Tensor, groups: Tensor, moves: dict[int, dict[str, Tensor]], noise: Sequence[Tensor] | None
) -> Tensor:
    """Logits `[B, C]` of a head that sees sample i from where its own group `groups[i]` has climbed to.

    `moves` holds a displacement per parameter name for each displaced group; other samples see the head at w.
    Gradients flow to the head's parameters and to `z`; the displacements are constants, and buffers stay as they are.
    Where samples share something (BatchNorm, dropout masks drawn from `noise`), all go through every head.
    """
    params, together = dict(head.named_parameters()), not treats_rows_apart(head)
    pieces, order = [], []
    left = torch.ones_like(groups, dtype=torch.bool)
    for group, move in [*moves.items(), (None, {})]:
        own = left if group is None else groups == group
        left, rows = left & ~own, own.nonzero().squeeze(1)
        moved = {name: p + move[name] if name in move else p for name, p in params.items()}
        buffers = {name: b.clone() for name, b in head.named_buffers()}
        with same_noise(noise if together else None, z.device):
            logits = torch.func.functional_call(head, moved | buffers, (z if together else z[rows],))
        order.append(rows)
        pieces.append(logits[rows] if together else logits)
    return torch.cat(pieces)[torch.cat(order).argsort()]
