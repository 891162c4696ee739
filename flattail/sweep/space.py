"""What a sweep varies: a place in the recipe, written as for `--set`, and the values that it takes there."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import yaml

from ..recipe import is_number

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Point = dict[str, str]  # what stands at each place, as it is written in YAML
Side = Literal["lower", "upper"]

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?::(log|linear))?")
LIKE_A_RANGE = re.compile(rf"{NUMBER}\.\.|\.\.{NUMBER}(:|$)|:(log|linear)$")
SHARE = 0.05  # of a range: a value this near to an end lies at its edge


def axis(text: str) -> Values | Range:
    """Read `place=0.05,0.1,0.2`, `place=0.01..1`, `place=0.01..1:log` or, with whole numbers, `place=5..30`.

    A list holds anything that YAML writes on one line: numbers, names, `{name: sam, rho: 0.1}`.
    ValueError, naming the text, for what is none of these.
    """
    place, equals, spelled = (part.strip() for part in text.partition("="))
    if not (place and equals and spelled):
        raise ValueError(
            f"--over {text}: write place=values, e.g. stages.*.method.rho=0.05,0.1,0.2 or "
            "stages.*.method.rho=0.01..1:log"
        )
    try:
        if found := RANGE.fullmatch(spelled):
            low, high, scale = found.groups()
            whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (low, high))
            return Range(place, float(low), float(high), whole, scale == "log")
        if LIKE_A_RANGE.search(spelled):
            raise ValueError("a range is two numbers, 0.01..1, and may be spread evenly over decades, 0.01..1:log")
        return Values(place, tuple(entries(spelled)))
    except ValueError as error:
        raise ValueError(f"--over {text}: {error}") from error


def entries(spelled: str) -> list[str]:
    """The entries of a YAML list without its brackets, each as it was written."""
    text = f"[{spelled}]"
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{spelled!r} is no list of YAML values ({' '.join(str(error).split())})") from error
    if not isinstance(node, yaml.SequenceNode) or node.end_mark.index != len(text):
        raise ValueError(f"{spelled!r} is no list of YAML values: write them with commas between")
    return [text[entry.start_mark.index : entry.end_mark.index].strip() for entry in node.value]


def points(axes: Sequence[Values | Range]) -> list[Point]:
    """Every combination of the values; of a range, of its two ends."""
    return [
        dict(zip((a.place for a in axes), texts, strict=True)) for texts in itertools.product(*(a.texts for a in axes))
    ]


def names(axes: Sequence[Values | Range]) -> dict[str, str]:
    """What each place is called in tables: its last word that says something, or all of it where two share that."""
    short = {a.place: re.sub(r"\.name$", "", a.place).rpartition(".")[2] for a in axes}
    return {place: name if [*short.values()].count(name) == 1 else place for place, name in short.items()}


@dataclass(frozen=True)
class Values:
    """Values to be tried one by one."""

    place: str  # in the recipe: stages.*.method.rho
    texts: tuple[str, ...]  # in the order in which they are tried
    log: bool = False

    def __post_init__(self) -> None:
        if not self.texts or not all(self.texts):
            raise ValueError("an entry is empty: write values with commas between")
        known = [str(float(t)) if is_number(t) else t for t in self.texts]
        if twice := [t for t, k in zip(self.texts, known, strict=True) if known.count(k) > 1]:
            raise ValueError(f"{twice[0]} stands there twice: leave one out")

    @property
    def numeric(self) -> bool:
        """Whether all of them are numbers."""
        return all(map(is_number, self.texts))

    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.texts)

    def listed(self) -> BaseDistribution:
        """As Optuna knows it where nothing is drawn: numbers by their range, which may grow."""
        from optuna.distributions import FloatDistribution

        if not self.numeric:
            return self.distribution()
        numbers = list(map(float, self.texts))
        return FloatDistribution(min(numbers), max(numbers))

    def text(self, value: str) -> str:
        """How a value that Optuna suggests is written."""
        return value

    def extends(self, other: Values | Range) -> bool:
        """Whether these are all of another's numbers, and more."""
        numbers = isinstance(other, Values) and self.numeric and other.numeric
        return numbers and {*map(float, self.texts)} >= {*map(float, other.texts)}

    def edge(self, text: str) -> Side | None:
        """Whether a value is the smallest or the largest number that was tried."""
        if not self.numeric or len(self.texts) < 2:
            return None
        ends = [f(map(float, self.texts)) for f in (min, max)]
        return dict(zip(ends, ("lower", "upper"), strict=True)).get(float(text))  # type: ignore[return-value]

    def __str__(self) -> str:
        return ", ".join(self.texts)


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, drawn where earlier ones did well."""

    place: str  # in the recipe: stages.*.method.rho
    low: float  # the smallest value
    high: float  # the largest one
    whole: bool = False  # whole numbers only
    log: bool = False  # every decade is as likely as every other
    numeric: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError("a range goes from a smaller number to a larger one, e.g. 0.01..1")
        if self.log and self.low <= 0:
            raise ValueError("a range over decades begins above 0, e.g. 0.01..1:log")

    @property
    def texts(self) -> tuple[str, ...]:
        """Its two ends."""
        return self.text(self.low), self.text(self.high)

    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def text(self, value: float) -> str:
        """How a value is written: four digits, which YAML reads as a number."""
        if self.whole:
            return str(int(value))
        short = f"{value:.4g}"
        text = short if self.low <= float(short) <= self.high else repr(float(value))
        return text.replace("e", ".0e") if "e" in text and "." not in text else text

    def extends(self, other: Values | Range) -> bool:
        """Whether another range, of the same kind, lies inside."""
        if not isinstance(other, Range) or (self.whole, self.log) != (other.whole, other.log):
            return False
        return self.low <= other.low and other.high <= self.high

    def edge(self, text: str) -> Side | None:
        """Whether a value lies in the outermost twentieth of the range."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, float(text)))
        share = (at - low) / (high - low)
        return "lower" if share <= SHARE else "upper" if share >= 1 - SHARE else None

    def __str__(self) -> str:
        ends = (str(int(v)) if self.whole else repr(float(v)) for v in (self.low, self.high))
        return "..".join(ends) + ":log" * self.log
