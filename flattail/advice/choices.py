"""Loss, method and epochs for somebody's photographs, once a step was timed; and the plain recipe to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..losses import CE, LA
from ..optim import Multistep
from ..recipe import Recipe
from ..sharp import ERM, SAM
from ..stage import Stage
from .evidence import EVIDENCE
from .plan import Plan, Reason

LONG = 3000  # steps from which SAM is taken, a guess: at 776 it was behind, at 9,700 ahead in the rare classes
RHO = 0.1  # as in the runs that are quoted
SHORTEST, LONGEST = {"scratch": 8, "tuned": 2}, {"scratch": 200, "tuned": 20}  # epochs
STEPS = {"scratch": 10_000, "tuned": 400}  # that are enough: about as many as, and twice those of, the runs quoted


class Pace(NamedTuple):
    """Measured seconds."""

    plain: float  # of an epoch by plain steps
    sharp: float  # of an epoch by steps of SAM
    beside: float = 0.0  # of a run, for what is no epoch: a start from class means, the test


@dataclass(frozen=True)
class Advice:
    """A recipe, and why it is so."""

    recipe: Recipe
    reasons: tuple[Reason, ...]
    minutes: float  # of one run of the recipe and, unless the classes are balanced, one of the plain recipe


def settled(plan: Plan, pace: Pace, minutes: float) -> Advice:
    """Loss, method and epochs for so many minutes of both runs, the recipe's and the plain one's."""
    kind = "tuned" if plan.tuned else "scratch"
    wanted = min(max(math.ceil(STEPS[kind] / plan.steps), SHORTEST[kind]), LONGEST[kind])
    runs = 1 if plan.balanced else 2
    left = max(60 * minutes - runs * pace.beside, 0.0)

    def affordable(seconds: float) -> int:
        return max(int(min(wanted, left / max(seconds, 1e-9))), SHORTEST[kind])

    sharp = affordable(pace.plain + pace.sharp)
    long = kind == "scratch" and not plan.balanced and sharp * plan.steps >= LONG
    epochs = sharp if long else affordable(runs * pace.plain)
    seconds = epochs * ((pace.plain + pace.sharp) if long else runs * pace.plain) + runs * pace.beside
    recipe, reasons = balanced(plan, epochs) if plan.balanced else drw_sam(plan, epochs) if long else la(plan, epochs)
    if epochs == SHORTEST[kind] and seconds > 60 * minutes:
        why = "the fewest that make sense, though they take longer than --minutes"
    elif epochs < wanted:
        why = "more would take longer than --minutes"
    elif epochs == LONGEST[kind]:
        why = f"no image is shown more often than {epochs} times"
    else:
        why = f"about {STEPS[kind]:,} steps are taken for enough"
    why = f"{epochs * plan.steps:,} steps; {why}"
    reasons = [*plan.reasons, *reasons, Reason("epochs", str(epochs), why)]
    notes = tuple(f"{r.what}: {r.choice}: {r.why}" for r in reasons)
    return Advice(replace(recipe, notes=notes), tuple(reasons), seconds / 60)


def balanced(plan: Plan, epochs: int) -> tuple[Recipe, list[Reason]]:
    """Plain training."""
    said = f"the largest class is {plan.imbalance:.2g} times the smallest: balanced, so nothing is done about it"
    return recipe_of(plan, [replace(plan.stage, epochs=epochs)], "CE"), [Reason("loss", "cross-entropy", said)]


def la(plan: Plan, epochs: int) -> tuple[Recipe, list[Reason]]:
    """Logit adjustment without a climb: for fine-tuning, and for short training."""
    found = EVIDENCE["tuned" if plan.tuned else "short"]
    sam, without, rival = ("la-sam", "la", "LA") if plan.tuned else ("ce-drw-sam", "ce-drw", "DRW")
    why = f"{imbalanced(plan)} → {found.said('la', 'ce', 'cross-entropy')}"
    no = f"SAM takes two passes a step and was not ahead: {found.said(sam, without, rival)}"
    if not plan.tuned:
        most = LONGEST["scratch"] * plan.steps
        how = "--minutes" if most >= LONG else f"so few images make {most:,}"
        no += f"; it needs long training, {LONG:,} steps by our guess ({how})"
    stages = [replace(plan.stage, epochs=epochs, loss=LA())]
    return recipe_of(plan, stages, "LA"), [
        Reason("loss", "logit adjustment", why),
        Reason("method", "plain (no SAM)", no),
    ]


def drw_sam(plan: Plan, epochs: int) -> tuple[Recipe, list[Reason]]:
    """Deferred re-weighting with SAM: for long training from new weights."""
    found, late = EVIDENCE["long"], max(round(0.2 * epochs), 1)
    first = replace(
        plan.stage, epochs=epochs - late, method=SAM(RHO), schedule=Multistep(warmup=0.05)
    )  # the schedule of the runs that are quoted
    stages = [first, replace(first, epochs=late, loss=CE(weights="effective"), carry=True)]
    return recipe_of(plan, stages, "CE + DRW + SAM"), [
        Reason(
            "loss",
            f"cross-entropy, re-weighted in the last {late} epochs",
            f"{imbalanced(plan)} → {found.said('ce-drw', 'ce', 'cross-entropy')}",
        ),
        Reason("method", f"SAM, ρ = {RHO}", found.said("ce-drw-sam", "ce-drw", "the same without it")),
    ]


def recipe_of(plan: Plan, stages: Sequence[Stage], title: str) -> Recipe:
    """The recipe of a plan with these stages."""
    return Recipe(plan.data, plan.model, tuple(stages), title=title)


def plain(recipe: Recipe) -> Recipe:
    """The plain baseline of a recipe: cross-entropy without a climb, the same images, network, rates and epochs."""
    first = recipe.stages[0]
    stage = replace(first, epochs=sum(s.epochs for s in recipe.stages), loss=CE(), method=ERM())
    return replace(
        recipe, stages=(stage,), title="CE", notes=("the plain baseline: the same in all but loss and method",)
    )


def compared(recipe: Recipe) -> bool:
    """Whether a recipe differs from its plain baseline."""
    return plain(recipe).stages != recipe.stages


def imbalanced(plan: Plan) -> str:
    """The imbalance in words."""
    (most, large), (fewest, small) = (f(zip(plan.counts, plan.names, strict=True)) for f in (max, min))
    return f"imbalance {plan.imbalance:.0f}: {most:,} training images of {large!r}, {fewest:,} of {small!r}"
