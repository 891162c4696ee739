"""Which point of a sweep is best, what cannot be told from it, and the recipe that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..recipe import Recipe
from .ledger import Tried
from .settings import Sweep, told
from .space import names


@dataclass(frozen=True)
class Outcome:
    """The trials of a sweep, the best first."""

    sweep: Sweep
    tried: tuple[Tried, ...]  # by score; those that broke off last

    @staticmethod
    def of(sweep: Sweep, tried: Sequence[Tried]) -> Outcome:
        """From the trials in the order in which they began, which decides between equal scores.

        ValueError if every one broke off.
        """
        if not any(t.score for t in tried):
            raise ValueError(
                f"no trial came to its end, the first not because of this: {tried[0].said[0]}; try smaller values"
            )
        return Outcome(
            sweep, tuple(sorted(tried, key=lambda t: -1.0 if t.score is None else t.score.value, reverse=True))
        )

    @property
    def best(self) -> Tried:
        """The one with the highest score, which is chosen."""
        return self.tried[0]

    @property
    def bar(self) -> float:
        """The best score less its standard error."""
        assert self.best.score is not None
        return self.best.score.value - self.best.score.error

    @property
    def alike(self) -> tuple[Tried, ...]:
        """Those within one standard error of the best, without it: the one-standard-error rule."""
        return tuple(t for t in self.tried[1:] if t.score is not None and t.score.value >= self.bar)

    @property
    def edges(self) -> tuple[str, ...]:
        """What to do where the best lies at an end of what was tried."""
        said = []
        for axis, name in zip(self.sweep.axes, names(self.sweep.axes).values(), strict=True):
            text = self.best.point[axis.place]
            if side := axis.edge(text):
                beyond = "below" if side == "lower" else "above"
                ends = sorted(axis.texts, key=float)
                end = ends[0] if side == "lower" else ends[-1]
                said.append(
                    f"The best {name}, {text}, lies at the {side} edge of what was tried: better ones may lie "
                    f"{beyond} {end}, extend the range."
                )
        return tuple(said)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table should know."""
        best = short(self, self.best)
        if self.alike:
            some = "; ".join(short(self, t) for t in self.alike)
            also = (
                f"{best} is best, and by these images cannot be told from {some}: within one standard error. "
                "Where one of them is cheaper or more usual, it is as good a choice."
            )
        elif len(self.tried) > 1:
            also = f"{best} is best, by more than one standard error."
        else:
            also = f"{best} is all that was tried."
        warned = [f"{short(self, t)}: {said}" for t in self.tried for said in t.said]
        return (also, *self.edges, *warned)

    def recipe(self) -> Recipe:
        """The recipe with what was chosen, on all training images, with a note that says how."""
        recipe = self.sweep.final(self.best.point)
        same = recipe.stages == self.sweep.recipe.stages and recipe.data == self.sweep.recipe.data
        return replace(recipe, notes=(*recipe.notes, self.history()), expect=recipe.expect if same else None)

    def history(self) -> str:
        """How it was chosen, in one sentence."""
        sweep, score = self.sweep, self.best.score
        assert score is not None
        over = "; ".join(f"{a.place} of {a}" for a in sweep.axes)
        kept = (
            f"{100 * sweep.validation:g} % of the training images" if sweep.validation else "the data's validation part"
        )
        seeds = f"seed{'s' * (len(sweep.seeds) > 1)} {', '.join(map(str, sweep.seeds))}"
        alike = (
            f"; within one standard error of it: {'; '.join(short(self, t) for t in self.alike)}" if self.alike else ""
        )
        return (
            f"Chosen by `flattail sweep`: {told(self.best.point)} ({over}), {score_title(sweep)} "
            f"{100 * score.value:.1f} ± {100 * score.error:.1f} % (standard error) on {kept}, {seeds}, "
            f"{len(self.tried)} trials{alike}. Test images were not looked at."
        )


def short(outcome: Outcome, tried: Tried) -> str:
    """A point by the short names of its places: `rho = 0.1`."""
    called = names(outcome.sweep.axes)
    return ", ".join(f"{called[place]} = {text}" for place, text in tried.point.items())


def score_title(sweep: Sweep) -> str:
    """What is measured."""
    return {"balanced": "balanced accuracy", "all": "accuracy"}.get(
        sweep.score, f"accuracy of the {sweep.score} classes"
    )
