"""A finished run in other worlds than its test set: with images of unknown classes, and under other class priors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from . import runs
from .answers import features_of, logits_of
from .data import DATASETS, Half, LongTail
from .data.mix import CutMix, Mixup
from .data.unknown import SUFFIXES, Unknown, from_dataset, from_path
from .devices import accelerated
from .losses.contract import masses_of
from .openset import (
    KEPT,
    OLTR,
    RULES,
    OpenScores,
    Seen,
    open_scores,
    prototypes,
    refuse_unknown,
    thresholds_of,
)
from .priors import PriorScores, prior, under
from .rebuilt import restored
from .recipe import Dataset, Recipe, built, from_tree
from .rescored import judged_again
from .sharp.shares import class_shares
from .starts import Softmax

# ---- images of unknown classes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Met:
    """What came of a run that met an open set."""

    title: str  # of the open images
    n: int  # open images
    threshold: str  # how θ was set
    scores: list[OpenScores]  # a rule each
    warnings: list[str]  # what a reader of the numbers should know

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return {**vars(self), "scores": [each.to_json() for each in self.scores]}


def met(
    folder: Path,
    opened: str,
    *,
    threshold: str = str(OLTR),
    views: str | None = None,
    root: Path = Path("data"),
    device: str | None = None,
    workers: int = 4,
) -> Met:
    """Score a finished run on its test images and those of an open set, and keep it in the run's `open.json`.

    Args:
        folder: the run directory.
        opened: the open set, whose test images (or open list) are met: a data set as a recipe spells it, or the path
            of a folder, a `.npz` or a list (see `from_path`).
        threshold: θ of the rules that compare probabilities (`0.1`), or of rules by name (`softmax=0.1,logit=8`), or
            `val`: of every rule, so that it keeps 95 % of the run's validation images. Never chosen on test images.
        views: "one" or "flip" for the logits; by default as the recipe's protocol says. Features are of one view.
        root: the folder of the data.
        device: as for `run`.
        workers: processes that read images that are not in memory.

    Raises:
        ValueError: for a threshold that is none, a run without validation images, and images that do not fit.
    """
    fixed = None if threshold == "val" else fixed_thresholds(threshold)
    recipe, data, model, _ = restored(folder, root)
    if fixed is None and data.val is None:
        raise ValueError(
            f"threshold: val needs validation images, which {data.title} lacks: train with a validation share "
            "(`protocol: {validation: 0.1}`), or give a number; test images must not choose it"
        )
    unknown = found(opened, Path(root), data)
    accelerator = accelerated(device, "fp32")
    model.to(accelerator.device)
    flip = (views or recipe.protocol.views) == "flip"
    (scale, _), _ = softmax_of(recipe, data.counts, (runs.read(folder).scores or {}).get("starts", {}))

    def seen(half: Half) -> tuple[Seen, Tensor]:
        logits, y = logits_of(model, half, device=accelerator.device, flip=flip, workers=workers)
        features, _ = features_of(model, half, device=accelerator.device, workers=workers)
        return Seen(scale * logits, features), y

    at = prototypes(*features_of(model, data.train, device=accelerator.device, workers=workers), data.classes)
    closed, y = seen(data.test)
    if fixed is None:
        assert data.val is not None
        thresholds, how = thresholds_of(seen(data.val)[0], at), f"keeps {KEPT:.0%} of {len(data.val)} validation images"
    else:
        thresholds, how = fixed, f"fixed ({threshold})"
    scores = open_scores(closed, y, seen(unknown.half)[0], at, groups=data.group(), thresholds=thresholds)
    said = [*unknown.warnings, *idle(scores)]
    outcome = Met(unknown.title, len(unknown.half), how, scores, said)
    runs.write_json(Path(folder) / runs.OPEN, runs.read(folder).opened | {entry(opened, threshold): outcome.to_json()})
    return outcome


def entry(opened: str, threshold: str) -> str:
    """Under which name `open.json` keeps what came of an open set and a threshold."""
    return f"{opened}, threshold {threshold}"


def fixed_thresholds(text: str) -> dict[str, float]:
    """Thresholds by rule from `0.1` (all rules that compare probabilities) or `softmax=0.1,logit=8`."""
    remedy = "write a number (0.1), numbers by rule (softmax=0.1,logit=8), or val"
    if text == "test":
        raise ValueError(f"threshold: one that is chosen on test images says nothing of new ones; {remedy}")
    named = dict(piece.strip().partition("=")[::2] for piece in text.split(",")) if "=" in text else {}
    refuse_unknown(named)
    try:
        values = {name: float(number) for name, number in named.items()}
        values = values or {name: float(text) for name, rule in RULES.items() if rule.probability}
    except ValueError as error:
        raise ValueError(f"threshold: {text!r} is no number; {remedy}") from error
    for name, value in values.items():
        if not math.isfinite(value) or (RULES[name].probability and not 0 <= value <= 1):
            raise ValueError(f"threshold: {name} compares probabilities, which {value:g} is not; {remedy}")
    return values


def found(opened: str, root: Path, like: LongTail) -> Unknown:
    """The open set that `opened` means, as images that look like those of the closed data."""
    for path in (Path(opened), root / opened):
        if opened not in DATASETS and (path.is_dir() or (path.suffix in SUFFIXES and path.is_file())):
            return from_path(path, root, like)
    try:
        spelled = yaml.safe_load(opened)
    except yaml.YAMLError as error:
        raise ValueError(f"open: {opened!r} is neither a path nor YAML ({' '.join(str(error).split())})") from error
    try:
        dataset = built(Dataset, spelled, "open")
    except ValueError as error:
        raise ValueError(f"{error}; or give the path of a folder of images, a .npz or a list (.txt)") from error
    return from_dataset(dataset, root, like)


def idle(scores: Sequence[OpenScores]) -> list[str]:
    """A warning where no image at all fell under a threshold, so that nothing was judged but ranking."""
    names = [each.rule for each in scores if each.rejected == 0 == each.lost]
    return [f"no image fell below the threshold of {', '.join(names)}: choose a higher one"] if names else []


# ---- other class priors ------------------------------------------------------------------------------------


def under_priors(
    folder: Path,
    specs: Sequence[str],
    *,
    views: str | None = None,
    root: Path = Path("data"),
    device: str | None = None,
) -> tuple[list[PriorScores], list[str]]:
    """Score a finished run under class priors (see `priors.prior`), from its logits; and what to know of the numbers.

    With `views` ("one" or "flip") the logits are computed anew from the weights and the test images.
    Raises ValueError for a run that is not finished, or a prior that is none.
    """
    done = runs.read(folder)
    if done.scores is None:
        raise ValueError(f"{folder} holds no finished run: `flattail train ... --resume` finishes it")
    counts = torch.tensor(done.scores["counts"])
    asked = [prior(spec, counts, done.scores["names"]) for spec in specs]
    recipe = from_tree(done.recipe)
    softmax, said = softmax_of(recipe, counts, done.scores.get("starts", {}))
    if softmax.log_prior is None:
        raise ValueError(f"{folder}: {said[-1]}, so there is nothing to correct for another prior: train it further")
    log_p = softmax.log_prior
    logits, y = judged_again(done, views, root, device)
    groups = {name: torch.tensor(mask) for name, mask in done.scores["groups"].items()}
    logits = softmax.scale * logits
    scores = [under(logits, y, q, log_p, groups=groups, name=spec) for spec, q in zip(specs, asked, strict=True)]
    return scores, said


def softmax_of(recipe: Recipe, counts: Tensor, found: Mapping[str, Mapping[str, float]]) -> tuple[Softmax, list[str]]:
    """What the softmax of a run's logits is a probability of, and what is not known of it.

    That of the loss of the last stage that trains, given the class shares that the stage's sampler draws and its method
    weighs; then what starts have made of it since. `found`: what starts have found, by stage, as in `scores.json`.
    """
    last = max((i for i, stage in enumerate(recipe.stages) if stage.epochs), default=-1)
    stage, said = recipe.stages[max(last, 0)], []
    if last < 0:
        said.append(
            "nothing was trained here: the correction is for the loss of this recipe, not of the run it begins from"
        )
    log_prior = getattr(stage.loss, "log_prior", None)
    shares = getattr(stage.sampler, "shares", None)
    for value, known in ((stage.loss, log_prior), (stage.sampler, shares)):
        if known is None:
            said.append(f"{type(value).__name__} does not say which class prior it trains for: the data's is taken")
    data = counts.double() / counts.sum()
    drawn = data if shares is None else shares(counts, 1.0)
    shots = getattr(recipe.data, "shots", None)
    few = counts < 20 if shots is None else shots.group(counts).get("few", counts < 20)
    first = drawn
    masses = masses_of(stage.loss, counts)
    drawn = class_shares(stage.method, first, stage.batch, counts=counts, few=few, masses=masses)
    if stage.mix is not None and not (stage.method.where == "weights" and isinstance(stage.mix, (Mixup, CutMix))):
        # an image of two is one sample, by its first label; the second is anybody's, with half of the answer
        if isinstance(stage.mix, Mixup) and masses is None and getattr(stage.method, "labels", "mixed") == "mixed":
            drawn = (drawn + first) / 2
        else:
            said.append(f"{type(stage.mix).__name__} gives images second labels: the prior is taken without them")
    softmax = Softmax(
        getattr(stage.loss, "scale", 1.0),
        (drawn if masses is None else drawn * masses).log() if log_prior is None else log_prior(counts, drawn=drawn),
    )
    for i, later in enumerate(recipe.stages[last + 1 :], last + 1):
        after = getattr(later.start, "after", lambda before, *_: before._replace(log_prior=None))
        before, softmax = softmax, after(softmax, data.log(), found.get(str(i), {}))
        if softmax.log_prior is None and before.log_prior is not None:
            said.append(f"{type(later.start).__name__} left logits whose softmax is no probability that is known")
    return softmax, said
