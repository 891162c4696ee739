"""One real step of every stage, looked into: its passes, and the terms with members, mass and radius."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .batches import batches_from, epoch_batches
from .closures import objective
from .data import LongTail
from .devices import accelerated
from .rebuilt import begin
from .recipe import Recipe
from .stage import clock, freeze, set_mode, sharpness_aware
from .starts import shaped


@dataclass(frozen=True)
class Probe:
    """One real step of a stage, looked into."""

    stage: int
    method: str
    forwards: int
    backwards: int
    loss: float
    rows: list[tuple[str, int, float, str, float]]  # term, members, mass, radius in words, objective


def probe(recipe: Recipe, data: LongTail, seed: int = 0) -> list[Probe]:
    """The first batch of every stage through its method: passes, and the terms with members, mass and radius.

    The model is new, or that of the run it begins from if it is there; its head has the structure of the stage, and
    stages without epochs have no step.
    """
    accelerator = accelerated("cpu", "fp32")
    init = recipe.stages[0].init
    if init is not None and not Path(init.replace("{seed}", str(seed))).exists():
        recipe = replace(recipe, stages=(replace(recipe.stages[0], init=None), *recipe.stages[1:]))
    model = begin(recipe, data, seed).model
    probes = []
    for i, stage in enumerate(recipe.stages):
        shaped(model, [stage.start], data.classes)
        if stage.epochs == 0:
            continue
        freeze(model, stage)
        set_mode(model, stage)
        begun, epochs = clock(recipe.stages, i)
        progress = begun / epochs
        rows = epoch_batches(data.train, stage, seed, progress)[:1]
        batch = next(batches_from(data.train, stage, rows, seed, 0, accelerator, 0))
        flat = sharpness_aware(model, stage, data)
        losses, labels, hard = objective(model, stage, data.counts, batch, seed)
        model.zero_grad()
        flat.backward(losses, labels, progress, step=0, hard=hard)
        out = flat.outcome
        assert out is not None
        terms = flat.terms(labels, progress=progress, step=0, hard=hard)
        lines = []
        for t in terms:
            names = [t.name] if t.name in out.values else [n for n in out.values if n.startswith(f"{t.name} ")]
            radii = [out.radii[n].reshape(-1) for n in names if n in out.radii]
            finite = torch.cat(radii) if radii else torch.zeros(0)
            finite = finite[torch.isfinite(finite)]
            words = "at w" if not len(finite) else f"{float(finite.min()):.3g}"
            if len(finite) > 1:
                words += f" to {float(finite.max()):.3g}"
            value = sum(float(out.values[n]) for n in names)
            lines.append((t.name, int((t.weight != 0).sum()), float(t.weight.sum()), words, value))
        probes.append(Probe(i, type(stage.method).__name__, out.forwards, out.backwards, float(out.loss), lines))
    return probes
