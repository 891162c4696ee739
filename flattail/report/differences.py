"""What sets the recipe of a row apart from another's, setting by setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .facts import spelled, text
from .tables import Row

ASIDE = {"title", "notes", "expect", "seed", "tracker"}  # what trains nothing


@dataclass(frozen=True)
class Change:
    """One setting that differs."""

    place: str  # as in `stages.0.method.rho`, which is what --set takes
    theirs: str  # – where it is not there
    ours: str


def changes(row: Row, base: Row) -> list[Change]:
    """From the recipe of `base` to that of `row`, in the order of the recipe; a part of another kind is told whole."""
    theirs, ours = ({k: v for k, v in each.every[0].recipe.items() if k not in ASIDE} for each in (base, row))
    return _between(theirs, ours, "")


def _between(theirs: Any, ours: Any, place: str) -> list[Change]:
    if text(theirs) == text(ours):
        return []
    both = [theirs, ours]
    if all(isinstance(each, Mapping) for each in both) and theirs.get("name") == ours.get("name"):
        names = [*theirs, *(name for name in ours if name not in theirs)]
        return [c for name in names for c in _between(theirs.get(name), ours.get(name), f"{place}.{name}".lstrip("."))]
    if all(_parts(each) for each in both):
        common = min(map(len, both))
        found = [c for i in range(common) for c in _between(theirs[i], ours[i], f"{place}.{i}")]
        for i in range(common, max(map(len, both))):
            said = [_beside(each[i - 1], each[i], f"{place}.{i - 1}") if i < len(each) else "–" for each in both]
            found.append(Change(f"{place}.{i}", *said))
        return found
    return [Change(place, _told(theirs), _told(ours))]


def _beside(before: Mapping[str, Any], part: Mapping[str, Any], place: str) -> str:
    """A part of a list by what it changes of the one before it."""
    changed = [f"{c.place.lstrip('.')} {c.ours}" for c in _between(before, part, "")]
    return f"as {place}, but {', '.join(changed)}" if changed else f"as {place}"


def _parts(value: Any) -> bool:
    """Whether it is a list of mappings, which have places of their own."""
    return isinstance(value, Sequence) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _told(value: Any) -> str:
    return "–" if value is None else "no" if value is False else "yes" if value is True else spelled(value) or "none"
