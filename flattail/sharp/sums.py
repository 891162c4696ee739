"""Sums over samples, and what they are divided by: one mass for all micro-batches and processes of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .passes import Look, Processes, coefficients
from .terms import Term


class Sums:
    """Running sums of a step: of the loss and its mass, and of every term's value, weights and members' mass."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        self.terms = terms
        self.total = torch.zeros(())  # [2] once something was added: sum of m loss, sum of m
        self.value: dict[str, Tensor] = {}  # sum of a m loss
        self.own: dict[str, Tensor] = {}  # sum of a m; [G] for a grouped term
        self.members: dict[str, Tensor] = {}  # sum of m over members; [G] for a grouped term
        self.divisor: dict[str, Tensor] = {}

    def add(self, look: Look) -> None:
        """Take in what a look saw from w."""
        values, masses = look.values.detach(), look.masses
        self.total = self.total + torch.stack([(masses * values).sum(), masses.sum()])
        for n, term in look.terms.items():
            a = coefficients(term, masses)
            new = {
                "value": (a * values).sum(),
                "own": grouped(term, a),
                "members": grouped(term, masses * (a != 0)),
            }
            for kept, sum_ in new.items():
                kept_sums = getattr(self, kept)
                kept_sums[n] = kept_sums[n] + sum_ if n in kept_sums else sum_

    def divide(self, processes: Processes) -> None:
        """Fix what every term's sum is divided by, and the loss and mass of the whole step."""
        total, *members = processes.add_all([self.total, *(self.members[n] for n in self.terms)])
        self.mass = positive(total[1])
        self.loss = total[0] / self.mass
        present: dict[str, Tensor] = {}  # groups with any mass, of a grouped term or of a family of terms
        for (n, term), own_mass in zip(self.terms.items(), members, strict=True):
            if term.over == "groups":
                present[term.family or n] = (own_mass != 0).sum() + present.get(term.family or n, 0)
        for (n, term), own_mass in zip(self.terms.items(), members, strict=True):
            groups = present[term.family or n].clamp(min=1) if term.over == "groups" else 1
            self.divisor[n] = self.mass if term.over == "batch" else positive(own_mass) * groups

    def share(self, name: str, look: Look) -> Tensor:
        """What multiplies the loss of each sample in this term, `[B]`."""
        term, divisor = look.terms[name], self.divisor[name]
        if divisor.ndim and term.by is not None:
            divisor = divisor[term.by.to(divisor.device, non_blocking=True)]
        return coefficients(term, look.masses) / divisor


def grouped(term: Term, per_sample: Tensor) -> Tensor:
    """The sum over samples; by group `[G]` for a grouped term."""
    if term.by is None:
        return per_sample.sum()
    return per_sample.new_zeros(term.groups).index_add(0, term.by.to(per_sample.device, non_blocking=True), per_sample)


def positive(mass: Tensor) -> Tensor:
    """A mass to divide by: an empty sum over it is zero."""
    return torch.where(mass == 0, torch.finfo(mass.dtype).tiny ** 0.5, mass)


def accumulate(into: dict[str, list[Tensor | None]], name: str, grads: Sequence[Tensor | None]) -> None:
    """Add gradients to those kept under a name; None stays for a parameter that no loss used."""
    new = unshared(grads)
    old = into.setdefault(name, [None] * len(new))
    into[name] = [g if k is None else k if g is None else k.add_(g) for k, g in zip(old, new, strict=True)]


def unshared(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same gradients, each in memory of its own: autograd may hand out one tensor twice, or an expanded one."""
    taken: set[int] = set()
    own: list[Tensor | None] = []
    for g in grads:
        if g is not None and (g.untyped_storage().data_ptr() in taken or 0 in g.stride()):
            g = g.clone(memory_format=torch.contiguous_format)
        if g is not None:
            taken.add(g.untyped_storage().data_ptr())
        own.append(g)
    return own


def zeros_if_none(grad: Tensor | None, parameter: Tensor) -> Tensor:
    """A gradient, also for a parameter that the loss did not use."""
    return torch.zeros_like(parameter) if grad is None else grad


def add_to_grad(parameters: Sequence[Tensor], grads: Sequence[Tensor | None], factor: Tensor) -> None:
    """`.grad += factor * grads`; what was not used keeps no gradient, as with `loss.backward()`."""
    for p, g in zip(parameters, grads, strict=True):
        if g is None:
            continue
        if p.grad is None:
            p.grad = torch.mul(g, factor, out=torch.empty_like(p))  # in the parameter's own memory layout
        else:
            p.grad.add_(g * factor)
