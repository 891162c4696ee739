"""The step of a method that displaces what lies inside the model: the head, or the features that it is given.

Either way the backbone runs once; a displaced look has it answer again what it answered before, moved or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .passes import Look, Processes, call, coefficients, noise_state, same_noise, unit_of
from .perturb import kept_buffers
from .report import Outcome
from .sums import Sums, accumulate, add_to_grad, positive
from .terms import Part, Term


def inside_step(
    parts: Sequence[Part],
    model: nn.Module,
    inside: Any,
    out: Outcome,
    *,
    scale: Tensor | float,
    together: bool,
    buffers: str,
    dropout: str,
) -> Outcome:
    """One step of a method that displaces a Head or its Features: one pass of the backbone, however many groups climb.

    Micro-batches climb each by their own slopes, and means over members are means over the micro-batch;
    `together` is exact over micro-batches and processes; with several micro-batches it sweeps twice.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    processes, device, unit = Processes(model), trained[0].device, unit_of(parts)
    looks = [Look(p.losses, {t.name: t for t in p.terms}, i) for i, p in enumerate(parts)]
    name = the_climbing(looks[0].terms)
    together = together and (len(looks) > 1 or processes.count > 1)
    twice = together and len(looks) > 1
    noise: dict[int, list[Tensor]] = {}

    def look_from_w(look: Look, last: bool) -> tuple[Any, Any]:
        replay = noise.get(look.part)
        if twice and dropout == "same" and replay is None:
            noise[look.part] = noise_state(device)
        with processes.quiet(last), same_noise(replay, device):
            out.forwards += 1
            sight: tuple[Any, Any] = inside.look(look, name, scale * unit)
            return sight

    def look_again(losses: Any, sight: Any, answer: Tensor, expected: int) -> Tensor:
        state = sight.noise if dropout == "same" else None
        with processes.still(), same_noise(state, device), inside.answers(sight, answer):
            return call(losses, None, expected)[0]

    # a first sweep, where several micro-batches climb by their common slopes
    sums, common = Sums(looks[0].terms), None
    if twice:
        with kept_buffers([model], keep=buffers == "keep"):
            sights = []
            for look in looks:
                sights.append(look_from_w(look, last=False)[0].slopes)
                sums.add(look)
        sums.divide(processes)
        common = inside.joined(sights, processes)

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
            if not twice:
                sums = Sums(look.terms)
                sums.add(look)
                sums.divide(processes)
                common = inside.joined([sight.slopes], processes) if together else None

            # 2. climb
            moved, radius = inside.climbed(sight, common or sight.slopes, term)
            radii.append(radius)
            finite = finite & torch.isfinite(sums.loss) & torch.isfinite(moved.detach().sum())

            # 3. look from there, the backbone doing no work
            with kept_buffers([model], keep=buffers == "keep"):
                with processes.quiet(last):
                    there = look_again(term.losses or look.losses, sight, moved, len(term.weight))
                here = look.values
                if term.losses is not None:
                    with torch.no_grad():
                        here = look_again(term.losses, sight, sight.still.detach(), len(term.weight))
                objective = {n: sums.share(n, look) @ (there if n == name else look.values) for n in look.terms}
                gap = gap + coefficients(term, look.masses) @ (there - here).detach()
                finite = finite & torch.isfinite(gap)
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
    """The one climbing term of a method that displaces the head or its features: groups within it share no sample."""
    names = [n for n, t in terms.items() if t.climb is not None]
    if len(names) != 1:
        raise ValueError(
            "a method that displaces the head or its features has one climbing term, grouped with `by`; "
            f"this has {names}"
        )
    return names[0]
