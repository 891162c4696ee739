"""The step of a method that displaces the head: every sample goes through the head moved for its own group.

For a linear head, logits o = z W' + b and r_i = d(sum_j a_j m_j loss_j)/d o_i, the moved logits need no gradient
per group: with q_c the sum of a m over group c and s_c the scale of its climb,

    o_i + s_c / q_c  sum_{j in c} (z_i . z_j + 1) r_j,     ||g_c||^2 = sum_{i,j in c} (z_i . z_j + 1) r_i . r_j / q_c^2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .passes import Look, Processes, call, coefficients, noise_state, same_noise, unit_of
from .perturb import TINY, Radial, answering, kept_buffers, norm, recorded, routed
from .sums import Sums, accumulate, add_to_grad, positive
from .terms import Part, Term


def head_step(
    parts: Sequence[Part],
    model: nn.Module,
    place: list[Tensor],
    out: Any,
    *,
    scale: Tensor | float,
    together: bool,
    buffers: str,
    dropout: str,
) -> Any:
    """One step of a method that displaces the head: one pass of the backbone, however many groups climb.

    Micro-batches climb each by their own slopes, and means over members are means over the micro-batch;
    `together` sweeps twice and is exact over micro-batches and processes.
    """
    processes, device = Processes(model), place[0].device
    unit = unit_of(parts)
    head = Head(model.module if isinstance(model, DistributedDataParallel) else model, place, scale * unit)
    trained = [p for p in model.parameters() if p.requires_grad]
    looks = [Look(p.losses, {t.name: t for t in p.terms}, i) for i, p in enumerate(parts)]
    name = the_climbing(looks[0].terms)
    together = together and (len(looks) > 1 or processes.count > 1)
    noise: dict[int, list[Tensor]] = {}

    def look_from_w(look: Look, last: bool) -> tuple[Sight, Any]:
        replay = noise.get(look.part)
        if dropout == "same" and replay is None:
            noise[look.part] = noise_state(device)
        with processes.quiet(last), same_noise(replay, device):
            out.forwards += 1
            return head.look(look, name)

    # a first sweep, where all micro-batches and processes climb by their common slopes
    sums, common = Sums(looks[0].terms), None
    if together:
        with kept_buffers([model], keep=buffers == "keep"):
            sights = []
            for look in looks:
                sights.append(look_from_w(look, last=False)[0].slopes)
                sums.add(look)
        sums.divide(processes)
        common = head.joined(sights, processes)

    carried: dict[str, list[Tensor | None]] = {}
    finite, mass = torch.ones((), dtype=torch.bool, device=device), torch.zeros((), device=device)
    values: dict[str, Tensor] = {}
    gap, own, radii = torch.zeros_like(mass), torch.zeros_like(mass), []
    with processes.heard():
        for look in looks:
            last, term = look is looks[-1], look.terms[name]

            # 1. look from w
            sight, seen = look_from_w(look, last)
            out.seen.append(seen)
            if not together:
                sums = Sums(look.terms)
                sums.add(look)
                sums.divide(processes)

            # 2. climb
            moved, radius = head.climbed(sight, common or sight.slopes, term)
            radii.append(radius)
            finite = finite & torch.isfinite(sums.loss) & torch.isfinite(moved.detach().sum())

            # 3. look from the moved head, the backbone answering what it answered before
            with kept_buffers([model], keep=buffers == "keep"):
                state = noise.get(look.part)
                with processes.quiet(last), answering(head.backbone, sight.features), same_noise(state, device):
                    with answering(head.module, moved):
                        there, _, _ = call(term.losses or look.losses, None, len(term.weight))
                    here = look.values
                    if term.losses is not None:
                        with torch.no_grad(), answering(head.module, sight.logits.detach()):
                            here, _, _ = call(term.losses, None, len(term.weight))
                objective = {n: sums.share(n, look) @ (there if n == name else look.values) for n in look.terms}
                gap = gap + coefficients(term, look.masses) @ (there - here).detach()
                own = sums.own[name].sum() + (0 if together else own)

                # micro-batches that climb apart are averaged by their mass
                own_mass = torch.ones_like(sums.mass) if together else sums.mass * unit
                mass = own_mass if together else mass + own_mass
                for n, value in objective.items():
                    values[n] = values.get(n, torch.zeros_like(own_mass)) + value.detach() * own_mass
                poison = torch.where(finite, 1.0, torch.nan)
                total = torch.stack(list(objective.values())).sum() * own_mass * (scale * processes.count * poison)
                if together or last:
                    for grads in carried.values():
                        add_to_grad(trained, grads, 1 / mass)
                    with processes.quiet(last):
                        (total / mass).backward()
                else:
                    accumulate(carried, "all", torch.autograd.grad(total, trained, allow_unused=True))
            out.backwards += 1
            look.values = look.values.detach()
            if not together or last:
                out.loss = out.loss + sums.loss * own_mass
    out.loss, out.finite = out.loss / mass, finite
    out.gaps[name], out.radii[name] = gap / positive(own), torch.stack(radii).nanmean(0)
    out.values = {n: value / mass for n, value in values.items()}
    return out


def the_climbing(terms: dict[str, Term]) -> str:
    """The one climbing term of a head method: groups within it share no sample."""
    names = [n for n, t in terms.items() if t.climb is not None]
    if len(names) != 1:
        raise ValueError(f"a method that displaces the head has one climbing term, grouped with `by`; this has {names}")
    return names[0]


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


class Head:
    """The displaced head of a model: its slopes, by groups, and its logits from where each group climbed to."""

    def __init__(self, model: Any, place: Sequence[Tensor], scale: Tensor | float) -> None:
        self.backbone: nn.Module = model.backbone
        self.module: nn.Module = model.head
        self.scale = scale  # of the sums that slopes are taken of
        placed = {id(p) for p in place}
        self.place: dict[str, Tensor] = {n: p for n, p in self.module.named_parameters() if id(p) in placed}
        if not self.place:
            raise ValueError("the head has no trainable parameter to displace")
        self.norm = norm(list(self.place.values()))
        self.size = sum(p.numel() for p in self.place.values())

    def look(self, look: Look, name: str) -> tuple[Sight, Any]:
        """Run the closure at w, recording what passes through the head."""
        with recorded(self.backbone) as below, recorded(self.module) as calls:
            seen = look.run()
        if len(calls) != 1 or len(below) != 1:
            raise ValueError(
                f"the closure ran the backbone {len(below)} times and the head {len(calls)} times; a method that "
                "displaces the head needs each to run once"
            )
        (z, logits, cast), term = calls[0], look.terms[name]
        by = torch.zeros(len(term.weight), dtype=torch.int64) if term.by is None else term.by
        by, a = by.to(z.device), coefficients(term, look.masses)
        if self.is_linear(term):
            (r,) = torch.autograd.grad(look.sum_of(name) * self.scale, logits, retain_graph=True)
            slopes = Slopes(z.detach().to(a.dtype), r.to(a.dtype) / self.scale, by, a)
        else:
            slopes = Slopes(z.detach(), logits.detach(), by, a, self.numerators(a * look.values, by, a))
        return Sight(below[0][1], z, logits, slopes, cast), seen

    def is_linear(self, term: Term) -> bool:
        """Whether the closed form holds."""
        return type(self.module) is nn.Linear and isinstance(term.climb, Radial)

    def numerators(self, losses: Tensor, by: Tensor, a: Tensor) -> dict[int, dict[str, Tensor]]:
        """The gradient of each present group's sum, one backward through the head each."""
        slopes = {}
        for group in by[a != 0].unique().tolist():
            total = losses[by == group].sum() * self.scale
            grads = torch.autograd.grad(total, list(self.place.values()), retain_graph=True, allow_unused=True)
            slopes[group] = {n: g / self.scale for n, g in zip(self.place, grads, strict=True) if g is not None}
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
                climb = term.climb.of_group(group) if isinstance(term.climb, Radial) else term.climb
                slope = [numerators.get(n, torch.zeros_like(p)) / own[group] for n, p in self.place.items()]
                move = climb(list(self.place.values()), slope)  # type: ignore[misc]
                lengths[group] = norm(move)
                moves[group] = dict(zip(self.place, move, strict=True))
        with sight.cast:
            return routed(self.module, sight.z, sight.slopes.by, moves), lengths
