"""The engine: any list of terms, executed in place of `loss.backward()`.

minimise  sum_k  max_{e in N_k(w)} L_k(w + e),    L_k(w) = sum_i a_ki m_i loss_i(w) / sum_i m_i
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch

from .checks import bare, refuse_wrappers
from .features import Features
from .head import Head
from .inside import inside_step
from .passes import (
    Processes,
    call,
    looks_of,
    members,
    moved,
    noise_state,
    same_noise,
    seen_whole,
    takes_rows,
    treats_rows_apart,
    under,
    unit_of,
)
from .perturb import TINY, Tensors, displaced, dot, kept_buffers, norm, of_group
from .report import Outcome
from .sums import Sums, accumulate, add_to_grad, positive, zeros_if_none
from .terms import Gradients, Memory, Part, Term

Merge = Callable[[Gradients, Gradients], tuple[Tensors, Memory]]


def sharp_backward(
    parts: Sequence[Part],
    model: nn.Module,
    where: Literal["weights", "head", "features"] = "weights",
    *,
    only: str | None = None,
    scale: Tensor | float = 1.0,
    climb_together: bool = False,
    buffers: Literal["keep", "all"] = "keep",
    dropout: Literal["same", "fresh"] = "same",
    merge: Merge | None = None,
) -> Outcome:
    """Add the gradient of the terms' objective to `.grad`, as `loss.backward()` would.

    Args:
        parts: the micro-batches of one step; terms are matched across them by name.
        model: its trainable parameters receive gradients; a DistributedDataParallel reduces them once.
        where: displace "weights", or the "head" alone or its "features" (`model.backbone` and `model.head` are then
            needed).
        only: a regular expression; what is displaced is the parameters in whose names it is found.
        scale: the loss scale: gradients come out scaled, climbs see unscaled slopes.
        climb_together: processes (and, for the head, micro-batches) climb by their common slope.
        buffers: "keep" restores BatchNorm after displaced passes; "all" lets them move it, as the releases do.
        dropout: the "same" masks in all passes of a micro-batch, or "fresh" ones.
        merge: from each term's gradient, and the slopes at w of those that asked, to the gradient of the step and what
            the method remembers of it (`Outcome.memory`, to be kept where `Outcome.whole` holds). By default they add.

    Raises:
        ValueError: for a closure that returns no loss per sample or goes around a DistributedDataParallel, and for a
            sharded model (FSDP, DTensor).
    """
    refuse_wrappers(model)
    place = placed(model, only)
    if where != "weights" and merge is not None:
        raise ValueError(f"a method that merges displaces weights, not the {where}")
    how: dict[str, Any] = {"scale": scale, "together": climb_together, "buffers": buffers, "dropout": dropout}
    kind = place[0].device.type
    precise: AbstractContextManager[Any] = nullcontext()
    if torch.is_autocast_enabled(kind):
        # autocast is for the closures' forward passes: sums, climbs and backward passes keep their precision
        cast, precise = torch.autocast(kind, torch.get_autocast_dtype(kind)), torch.autocast(kind, enabled=False)
        parts = [
            Part(under(cast, p.losses), [replace(t, losses=t.losses and under(cast, t.losses)) for t in p.terms])
            for p in parts
        ]
    # a graph compiled here must bear a second backward, on this thread: a GPU's own would not know of the patch
    with precise, functorch.patch(donated_buffer=False), torch.autograd.set_multithreading_enabled(False):
        out = Outcome(torch.zeros(()))
        if where == "weights" or not any(t.climb is not None for p in parts for t in p.terms):
            return weights_step(parts, model, place, out, merge=merge, **how)
        inner = bare(model)
        inside = Head(inner, place, dropout=dropout) if where == "head" else Features(inner)
        return inside_step(parts, model, inside, out, **how)


def placed(model: nn.Module, only: str | None) -> list[Tensor]:
    """The trainable parameters in whose names, those of the bare model, a pattern is found."""
    try:
        re.compile(only or "")
    except re.error as error:
        raise ValueError(f"only={only!r} is no regular expression: {error}") from error
    names = dict(bare(model).named_parameters())
    place: list[Tensor] = [p for n, p in names.items() if p.requires_grad and (only is None or re.search(only, n))]
    if not place and not any(p.requires_grad for p in names.values()):
        raise ValueError("the model has no trainable parameter: requires_grad is False for all of them")
    if not place:
        first = [n for n, p in names.items() if p.requires_grad][:3]
        raise ValueError(f"no trainable parameter has {only!r} in its name; the first names are {first}")
    return place


def weights_step(
    parts: Sequence[Part],
    model: nn.Module,
    place: list[Tensor],
    out: Outcome,
    *,
    scale: Tensor | float,
    together: bool,
    buffers: str,
    dropout: str,
    merge: Merge | None,
) -> Outcome:
    """One step of a method that displaces weights."""
    processes, device = Processes(model), place[0].device
    trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    apart = treats_rows_apart(model)
    looks = looks_of(present(ungrouped(parts, processes, device), processes), apart)
    terms: dict[str, Term] = {}
    for look in looks:
        terms |= look.terms
    climbing = [n for n, t in terms.items() if t.climb is not None]
    asking = [n for n in climbing if not terms[n].blind]
    untouched, reach = all(p.grad is None for p in trained), norm(place) if climbing else torch.zeros(())

    # 0. where no term asks for anything at w, nobody looks from there: the first look is from where the first leads
    start: AbstractContextManager[Any] = nullcontext()
    base, finite = None, torch.ones((), dtype=torch.bool, device=device)
    if climbing and all(t.blind for t in terms.values()):
        base = climbing.pop(0)
        move, finite = climbed(terms[base], place, [])
        out.radii[base], start = norm(move) / (reach + TINY), displaced(place, move)
        del move

    # 1. look from w. Everything is a sum over samples, divided once, by the mass of the whole step.
    sums, unit = Sums(terms), unit_of(parts)
    alone = not climbing and merge is None  # nothing follows: the last backward is the one to reduce
    sought = place if merge is None else trained  # what slopes are taken of
    noise: list[list[Tensor] | None] = []  # of each look: where the generators stood
    drew: list[bool] = []  # whether it moved them
    slopes: dict[str, list[Tensor | None]] = {}
    plain: dict[str, list[Tensor | None]] = {}
    with start, processes.heard():
        for look in looks:
            last = look is looks[-1]
            noise.append(noise_state(device) if dropout == "same" and climbing else None)
            with processes.quiet(last and alone):
                out.seen.append(look.run())
            drew.append(moved(noise[-1], device))
            out.forwards += 1
            sums.add(look)
            here = [n for n in look.terms if n in asking or n not in climbing]
            waiting = [n for n in here if n in asking or merge is not None or not last]
            rest = [n for n in here if n not in waiting]
            for n in waiting:
                into, over = (slopes, sought) if n in asking else (plain, trained)
                keep = bool(rest) or n != waiting[-1]
                accumulate(into, n, gradients(look.sum_of(n) * (scale * unit), over, keep))
            if last:
                sums.divide(processes)
                for n in list(plain) if merge is None else []:
                    add_to_grad(trained, plain.pop(n), processes.count / (unit * sums.divisor[n]))
            if rest:
                share = torch.stack([sums.share(n, look) for n in rest]).sum(0)
                with processes.quiet(alone):
                    ((share * look.values).sum() * (scale * processes.count)).backward()
            out.backwards += len(waiting) + bool(rest)
            look.values = look.values.detach()
    out.loss, out.seen = sums.loss, seen_whole(looks, out.seen)
    out.values = {n: sums.value[n] / sums.divisor[n] for n in terms if n not in climbing}

    # 2. climb. All moves come from the one look at w, before anything moves.
    out.finite = finite = finite & torch.isfinite(sums.loss)
    if alone:
        return out
    if asking and all(g is None for n in asking for g in slopes[n]):
        raise ValueError(
            "the closure's loss uses no parameter that is displaced: call the model given to SharpnessAware"
        )
    moves = {n: [zeros_if_none(g, p) for g, p in zip(slopes[n], sought, strict=True)] for n in asking}
    ids = {id(p) for p in place}
    for n in asking:
        own = sums.own[n]
        if merge is None:
            del slopes[n]
        else:
            moves[n] = [g.clone() for g, p in zip(moves[n], trained, strict=True) if id(p) in ids]
        torch._foreach_div_(moves[n], torch.as_tensor(scale * unit))
        if together:
            *moves[n], own = processes.add_all([*moves[n], own.clone()])
        torch._foreach_mul_(moves[n], 1 / positive(own))
    at_w = dict(moves)
    if untouched and merge is None and asking and len(climbing) < len(terms):
        at_w["+".join(n for n in terms if n not in climbing)] = [zeros_if_none(p.grad, p) for p in place]
    out.cosines = cosines(at_w) if len(at_w) <= 3 else {}
    del at_w
    for n in climbing:
        moves[n], ok = climbed(terms[n], place, moves.get(n, []))
        out.radii[n], finite = norm(moves[n]) / (reach + TINY), finite & ok
    out.finite = finite
    poison = torch.where(finite, 1.0, torch.nan)  # a step that saw a non-finite slope must not be taken

    # 3. look from w + e, and add up.
    there: dict[str, list[Tensor | None]] = {}
    with kept_buffers([model], keep=buffers == "keep"):
        for n in climbing:
            holders = [(i, look) for i, look in enumerate(looks) if n in look.terms]
            value = torch.zeros_like(sums.loss)
            with displaced(place, moves.pop(n)):
                for i, look in holders:
                    term, last = look.terms[n], n == climbing[-1] and look is holders[-1][1]
                    share, rows = sums.share(n, look), look.rows
                    if rows is None and apart and not drew[i] and takes_rows(term.losses or look.losses):
                        rows = members(term)
                        share = share[rows.to(share.device, non_blocking=True)]
                    with processes.quiet(last and merge is None), same_noise(noise[i], device):
                        values, _, _ = call(term.losses or look.losses, rows, len(share))
                        total = (share * values).sum()
                        if merge is None:
                            (total * (scale * processes.count * poison)).backward()
                        else:
                            accumulate(there, n, gradients(total * (scale * poison), trained, False))
                    value = value + total.detach()
                    out.forwards, out.backwards = out.forwards + 1, out.backwards + 1
            out.values[n], out.finite = value, out.finite & torch.isfinite(value)
            if base is not None:
                continue  # nobody looked from w
            gap = (value * sums.divisor[n] - sums.value[n]) / positive(sums.own[n])
            out.gaps[n] = gap if terms[n].losses is None else gap * torch.nan  # at w it was seen under other labels
    if merge is not None:
        at_once = {n: scale * unit * sums.divisor[n] for n in terms}
        raw = plain | there
        used = [processes.count > 1 or any(grads[i] is not None for grads in raw.values()) for i in range(len(trained))]
        found = divided(raw, at_once | dict.fromkeys(there, scale), trained)
        raised = divided(slopes, at_once, trained)
        merged, out.memory, whole = merge_terms(merge, found, raised, processes)
        out.whole = whole & torch.isfinite(sums.loss)
        result = [g if seen else None for g, seen in zip(merged, used, strict=True)]
        add_to_grad(trained, result, torch.as_tensor(scale * poison))
    return out


def divided(grads: dict[str, list[Tensor | None]], by: dict[str, Any], like: Sequence[Tensor]) -> Gradients:
    """Every term's gradients over its divisor, in place; zeros for what was not used."""
    found = {n: [zeros_if_none(g, p) for g, p in zip(some, like, strict=True)] for n, some in grads.items()}
    for n, some in found.items():
        torch._foreach_div_(some, torch.as_tensor(by[n]))
    return found


def merge_terms(
    merge: Merge, gradients: Gradients, slopes: Gradients, processes: Processes
) -> tuple[Tensors, Memory, Tensor]:
    """The merged gradient, the new memory, and whether all was finite; processes meet once, in one flat buffer."""
    flat = processes.add_all([g for some in (gradients, slopes) for grads in some.values() for g in grads])
    pieces = iter(flat)
    gradients, slopes = (
        {n: [next(pieces) for _ in grads] for n, grads in some.items()} for some in (gradients, slopes)
    )
    with torch.no_grad():
        whole = torch.isfinite(norm(flat))
        return *merge(gradients, slopes), whole


def gradients(total: Tensor, over: list[Tensor], keep: bool) -> tuple[Tensor | None, ...]:
    """Gradients that touch no `.grad` and fire no hook; None for what was not used. The graph is let go, or kept."""
    return torch.autograd.grad(total, over, retain_graph=keep, allow_unused=True)


def climbed(term: Term, place: list[Tensor], slope: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """A term's move, made of its slope, and whether the slope was finite; one that was not moves by zero."""
    assert term.climb is not None
    with torch.no_grad():
        ok = torch.isfinite(norm(slope or place))
        move = term.climb(place, slope)
        if ok.is_cpu and bool(ok):
            return move, ok
        return [torch.where(ok, e, torch.zeros_like(e)) for e in move], ok


def cosines(at_w: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """The cosine between every two gradients."""
    norms = {n: norm(g) for n, g in at_w.items()}
    return {
        f"{a} ~ {b}": dot(at_w[a], at_w[b]) / (norms[a] * norms[b] + TINY) for a, b in combinations(sorted(at_w), 2)
    }


# -- terms as the weight step needs them -------------------------------------------------------------


def ungrouped(parts: Sequence[Part], processes: Processes, device: torch.device) -> list[Part]:
    """A grouped term as one term per group that occurs anywhere in the step: each is a pass of its own."""
    occurs: dict[str, Tensor] = {}
    for part in parts:
        for t in part.terms:
            if t.by is not None:
                here = t.weight.new_zeros(t.groups).index_add_(0, t.by, (t.weight != 0).to(t.weight.dtype))
                occurs[t.name] = occurs.get(t.name, 0) + here
    if processes.count > 1:
        occurs = {n: processes.add(here.to(device)) for n, here in occurs.items()}
    groups = {n: here.nonzero().squeeze(1).tolist() or [0] for n, here in occurs.items()}

    def spread(term: Term) -> list[Term]:
        if term.by is None:
            return [term]
        return [
            replace(
                term,
                name=f"{term.name} {g}",
                weight=term.weight * (term.by == g),
                climb=None if term.climb is None else of_group(term.climb, g),
                by=None,
                family=term.name,
            )
            for g in groups[term.name]
        ]

    return [Part(p.losses, [s for t in p.terms for s in spread(t)]) for p in parts]


def present(parts: Sequence[Part], processes: Processes) -> list[Part]:
    """The parts without terms that nobody is in: known for free on the host, never asked of a device or of peers."""

    def empty(name: str) -> bool:
        weights = [t.weight for p in parts for t in p.terms if t.name == name]
        return all(w.is_cpu and not bool(w.any()) for w in weights)

    names = dict.fromkeys(t.name for p in parts for t in p.terms)
    gone = {n for n in names if processes.count == 1 and empty(n)}
    if gone == set(names):
        return list(parts)
    return [Part(p.losses, [t for t in p.terms if t.name not in gone]) for p in parts]
