"""A sweep as a value: what is trained, what varies, which images are kept apart, and by which score is chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ..recipe import Recipe, RecipeError, from_tree, identity, replaced, to_tree
from .accuracy import SCORES
from .space import Point, Range, Values, axis, points

MOST = 10_000  # points of a grid


@dataclass(frozen=True)
class Sweep:
    """What is to be chosen, and how."""

    recipe: Recipe  # all that does not vary
    axes: tuple[Values | Range, ...]  # what does
    trials: int  # how many points are tried
    seeds: tuple[int, ...] = (0,)  # of which every trial trains one model each
    validation: float = 0.2  # share of each class kept out of training; 0: the validation part that the data bring
    score: str = "balanced"  # one of SCORES

    def at(self, point: Point) -> Recipe:
        """The recipe that a trial trains. RecipeError, naming the place, for one that cannot be."""
        return from_tree(placed(to_tree(held_out(self.recipe, self.validation)), point))

    def final(self, point: Point) -> Recipe:
        """The same on all training images."""
        recipe = from_tree(placed(to_tree(self.recipe), point))
        return replace(recipe, protocol=replace(recipe.protocol, validation=0.0))

    def spelled(self) -> str:
        """What must not change while a sweep goes on, as YAML; more trials may be asked for."""
        said = {
            "over": {a.place: str(a) for a in self.axes},
            "seeds": list(self.seeds),
            "validation": self.validation,
            "score": self.score,
            "recipe": to_tree(self.recipe),
        }
        return yaml.safe_dump(said, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)

    def differs(self, spelled: str) -> list[str]:
        """Which settings are others in the text of an earlier sweep; numbers may have been added."""
        theirs, ours = yaml.safe_load(spelled), yaml.safe_load(self.spelled())
        theirs["recipe"] = to_tree(from_tree(theirs["recipe"]))  # fields that are new since then have their defaults
        before = [axis(f"{place}={text}") for place, text in theirs["over"].items()]
        if [a.place for a in before] == [a.place for a in self.axes] and all(map(self.grown, self.axes, before)):
            theirs["over"] = ours["over"]
        return [name for name in ours if theirs.get(name) != ours[name]]

    @property
    def grid(self) -> bool:
        """Whether every point is tried."""
        return not any(isinstance(a, Range) for a in self.axes)

    def grown(self, axis: Values | Range, before: Values | Range) -> bool:
        """Whether an axis is what it was, or more that the trials so far fit into."""
        return axis == before or (axis.extends(before) and (self.grid or isinstance(axis, Range)))


def swept(
    recipe: Recipe, axes: Iterable[Values | Range], *, trials: int | None, seeds: Iterable[int], validation: float,
    score: str,
) -> Sweep:  # fmt: skip
    """A sweep whose every point is a recipe; of ranges, every corner.

    Raises ValueError for what cannot be swept, before any data are read.
    """
    axes, seeds = tuple(axes), tuple(seeds)
    places = [a.place for a in axes]
    if not axes:
        raise ValueError("nothing varies: write --over stages.*.method.rho=0.05,0.1,0.2")
    if twice := [p for p in places if places.count(p) > 1]:
        raise ValueError(f"--over {twice[0]} is there twice: write all its values in one")
    if score not in SCORES:
        raise ValueError(f"--score {score}: choose one of {', '.join(SCORES)}")
    if not 0 <= validation < 1:
        raise ValueError(f"--validation {validation}: a share of the training images in [0, 1), e.g. 0.2")
    if recipe.protocol.selection != "last":
        raise ValueError(
            f"protocol.selection: {recipe.protocol.selection} chooses an epoch, on images that the final runs "
            "train on or are judged by; a sweep compares last epochs: add --set protocol.selection=last"
        )
    for place in places:
        if place.split(".")[0] in ("protocol", "expect", "notes", "title", "tracker"):
            raise ValueError(f"--over {place}: that is no part of training")
    corners = math.prod(len(a.texts) for a in axes)
    if corners > MOST:
        raise ValueError(f"these are {corners:,} points: write fewer values, or ranges (0.01..1:log) and --trials")
    sweep = Sweep(recipe, axes, trials or corners, seeds, validation, score)
    if not sweep.grid:
        if trials is None:
            raise ValueError("a range has no end of values: add --trials, e.g. --trials 20")
    elif trials is not None and trials != corners:
        raise ValueError(f"a grid has every point tried, and this has {corners}: leave out --trials, or write ranges")
    seen: dict[str, Point] = {}
    for point in points(axes):
        try:
            same = seen.setdefault(identity(sweep.at(point)), point)
        except RecipeError as error:
            where = " ".join(f"--over {place}={text}" for place, text in point.items())
            raise RecipeError(str(error) if str(error).startswith("--over") else f"{where}: {error}") from error
        if same != point:
            raise ValueError(f"{told(same)} and {told(point)} are the same recipe: vary something else")
    return sweep


def held_out(recipe: Recipe, share: float) -> Recipe:
    """The recipe with this share of the training images kept apart, and without a tracker."""
    return replace(recipe, protocol=replace(recipe.protocol, validation=share), tracker=None)


def placed(tree: Any, point: Point) -> Any:
    """The tree with every value of a point at its place; what is chosen by name comes before its fields."""
    for place, text in sorted(point.items(), key=lambda item: item[0].count(".") - item[0].endswith(".name")):
        tree = replaced(tree, f"{place}={text}", option="--over")
    return tree


def told(point: Point) -> str:
    """A point in words: `stages.*.method.rho = 0.1, ...`."""
    return ", ".join(f"{place} = {text}" for place, text in point.items())
