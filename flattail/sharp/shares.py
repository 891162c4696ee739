"""How much each class counts in a method's objective, and so for which class prior a classifier is trained."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from .passes import Look, Processes
from .sums import Sums
from .terms import Context, Method, Weighted

BATCHES = 256  # that are drawn to see


def cancels(method: Method, counts: Tensor, few: Tensor) -> bool:
    """Whether a term is a mean over each class alone, where the masses of a weighted loss cancel."""
    if getattr(method, "memory", None) is not None:
        return False
    y = torch.arange(len(counts))
    given = {"counts": counts, "few": few, "hard": lambda: torch.zeros(len(y))}
    looks = [(progress, step) for progress in (0.001, 0.25, 0.5, 0.75, 0.999) for step in range(8)]
    each = (method.terms(Context(y, lambda: 0, progress=p, step=s, **given)) for p, s in looks)
    return any(t.over != "batch" and t.by is not None and bool((t.weight != 0).any()) for terms in each for t in terms)


def class_shares(
    method: Method, drawn: Tensor, batch: int, *, counts: Tensor, few: Tensor, masses: Tensor | None = None
) -> Tensor:
    """The shares [C] that classes have in the objective late in training, of batches with shares `drawn` [C].

    Those drawn, for a method whose samples all count alike; for CC-SAM's mean over classes, about how often a batch
    has the class at all. Found from the terms of `batch` labels drawn again and again; `counts` [C] and `few` [C] as
    for SharpnessAware. `masses` [C], those of a weighted loss, are left aside: the share of a class is what is here
    times its mass, also where a mean over each class makes that cancel.
    """
    if getattr(method, "memory", None) is not None:  # what is remembered is of gradients, and weighs no class
        return drawn
    draw, seen, weight = torch.Generator().manual_seed(0), torch.zeros_like(drawn), torch.zeros_like(drawn)
    nothing = torch.zeros(batch, dtype=torch.float64)
    mass = torch.ones_like(drawn)
    for step in range(BATCHES):
        y = torch.multinomial(drawn, batch, replacement=True, generator=draw)
        given = {"counts": counts, "few": few, "progress": 0.999, "step": step, "hard": lambda: nothing}
        terms = method.terms(Context(y, lambda: 0, **given))
        if masses is not None and any(t.over != "batch" for t in terms):
            mass = masses.to(drawn)  # where one mean is over everybody, they are a factor of the share
        look = Look(partial(Weighted, nothing, mass[y]), {t.name: t for t in terms}, 0)
        look.run()
        sums = Sums(look.terms)
        sums.add(look)
        sums.divide(Processes(nn.Module()))
        seen.index_add_(0, y, torch.ones_like(nothing))
        for name in look.terms:
            weight.index_add_(0, y, sums.share(name, look))
    each = weight / seen  # of a sample
    shares = drawn * torch.where(seen > 0, each, each[seen > 0].max()) / mass
    return shares / shares.sum()
