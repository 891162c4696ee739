"""First-order looks: a weighted mean loss and its gradient, the loss of every sample, where a method's terms go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flattail.sharp import Context, Method, Term, pattern_of
from flattail.sharp.perturb import of_group

from .samples import Samples
from .subject import Subject, enough_memory, head_of


def slope(subject: Subject, pieces: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, list[Tensor]]:
    """The loss and its gradient, over micro-batches (x, y, a).

    Raises:
        ValueError: where no sample counts.
    """
    total, loss, mass = [torch.zeros_like(w) for w in subject.weights], 0.0, 0.0
    for x, y, a in pieces:
        with enough_memory(len(y)):
            values, masses = subject.losses(x, y)
            share = a.to(masses) * masses
            grads = torch.autograd.grad((share * values).sum(), subject.weights, allow_unused=True)
        torch._foreach_add_(total, [torch.zeros_like(t) if g is None else g for g, t in zip(grads, total, strict=True)])
        loss, mass = loss + float((share * values).detach().double().sum()), mass + float(share.double().sum())
    if not mass:
        raise ValueError("no sample counts: the weight of every sample is zero")
    torch._foreach_mul_(total, 1 / mass)
    return loss / mass, total


class Seen(NamedTuple):
    """What was seen of every sample, float64 on the host."""

    values: Tensor  # [M]
    masses: Tensor  # [M]

    def mean(self, a: Tensor) -> float:
        """The mean loss under weights `[M]`."""
        share = a * self.masses
        return float((share * self.values).sum() / share.sum())


@torch.no_grad()
def seen_by(subject: Subject, samples: Samples, micro: int) -> Seen:
    """The loss and mass of every sample, in one pass; infinite where the model has gone too far."""
    found = [
        subject.scored(subject.logits(x), y)
        for x, y in zip(samples.x.split(micro), samples.y.split(micro), strict=True)
    ]
    values, masses = (torch.cat(column).double().cpu() for column in zip(*found, strict=True))
    return Seen(values, masses)


# -- a method's terms over data ------------------------------------------------------------------


@dataclass
class Climbed:
    """A term at its own place: who is in it, its gradient, and its move; None for one that stays at w."""

    name: str
    weight: Tensor  # [M] a of the term, without the weights of the look
    share: float  # of its mean in the objective
    slope: list[Tensor]
    move: list[Tensor] | None


def climbs(
    subject: Subject,
    samples: Samples,
    a: Tensor,
    masses: Tensor,
    method: Method,
    context: dict[str, Any],
    *,
    micro: int,
) -> Iterator[Climbed]:
    """Every term that has members among samples of weight `a` and mass `m` `[M]`, climbing by their gradient alone.

    A method that remembers earlier steps is looked at as in its first: it remembers nothing yet.
    """
    place, everyone = placed(subject, method), a * masses
    memory = getattr(method, "memory", None)
    begun = memory and memory([subject.weights[i] for i in place])
    at = Context(samples.y, counts=subject.counts.cpu(), memory=begun, hard=subject.losses, **context)
    for term in method.terms(at):
        for name, weight, climb in apart(term):
            counting = weight * a.to(weight)
            if not bool((counting != 0).any()):
                continue
            _, g = slope(subject, samples.batches(counting, micro))
            own = everyone[weight != 0].sum()
            divisor = everyone.sum() if term.over == "batch" else own
            if term.over == "groups" and term.by is not None:
                divisor = own * len(term.by[everyone != 0].unique())
            share = float((weight * everyone).sum() / divisor)
            if climb is None:
                yield Climbed(name, weight, share, g, None)
                continue
            with torch.no_grad():
                there = climb([subject.weights[i] for i in place], [g[i].clone() for i in place])
            move = [torch.zeros_like(w) for w in subject.weights]
            for i, e in zip(place, there, strict=True):
                move[i] = e
            yield Climbed(name, weight, share, g, move)


def apart(term: Term) -> Iterator[tuple[str, Tensor, Any]]:
    """A term, or one for each group of a grouped one: name, weight `[M]`, climb."""
    if term.by is None:
        yield term.name, term.weight.double(), term.climb
        return
    for g in term.by.unique().tolist():
        climb = None if term.climb is None else of_group(term.climb, g)
        yield f"{term.name} {g}", (term.weight * (term.by == g)).double(), climb


def placed(subject: Subject, method: Method) -> list[int]:
    """Which of the subject's parameters the method displaces.

    Raises:
        ValueError: if none of them.
    """
    if method.where == "features":
        raise ValueError(f"{type(method).__name__} displaces features, and this looks at the geometry of weights")
    pattern = head_of(subject.model) if method.where == "head" else pattern_of(method, subject.model)
    found = [i for i, n in enumerate(subject.names) if pattern is None or re.search(pattern, n)]
    if not found:
        raise ValueError(
            f"{type(method).__name__} displaces {pattern!r}, which is no parameter looked at: {subject.names[:3]}"
        )
    return found
