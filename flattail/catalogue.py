"""What there is to choose from: the tables, each entry with its sentence, its fields, their defaults and comments."""

from __future__ import annotations

import dataclasses
import inspect
import re
from dataclasses import dataclass
from typing import Any

import yaml

from .data import DATASETS, SAMPLERS
from .losses import LOSSES
from .models import MODELS
from .recipe import label, shipped
from .sharp import METHODS

TABLES: dict[str, dict[str, type]] = {
    "methods": METHODS,
    "losses": LOSSES,
    "data": DATASETS,
    "models": MODELS,
    "samplers": SAMPLERS,
}


@dataclass(frozen=True)
class Field:
    """A field as a recipe's author sees it."""

    name: str
    default: str  # "" where a value must be given
    comment: str


@dataclass(frozen=True)
class Entry:
    """One thing to choose."""

    name: str
    sentence: str
    fields: tuple[Field, ...]


def entries(kind: str) -> list[Entry]:
    """What a table holds."""
    table = TABLES[kind].items()
    return [Entry(name, (inspect.getdoc(cls) or "").split("\n")[0], tuple(fields(cls))) for name, cls in table]


def fields(cls: type) -> list[Field]:
    """The fields of a dataclass with the comments beside them."""
    source = inspect.getsource(cls)
    found = []
    for f in dataclasses.fields(cls):
        beside = re.search(rf"^    {f.name}: [^#]*?(?:#\s*(.+))?$", source, re.M)
        comment = (beside.group(1) if beside else "") or ""
        found.append(Field(f.name, "" if f.default is dataclasses.MISSING else spelled(f.default), comment))
    return found


def spelled(value: Any) -> str:
    """A default as one would write it."""
    return type(value).__name__ if dataclasses.is_dataclass(value) else "none" if value is None else str(value)


@dataclass(frozen=True)
class RecipeLine:
    """A recipe in a listing."""

    label: str
    title: str
    expect: str


def recipes() -> list[RecipeLine]:
    """The recipes that come with flattail."""
    lines = []
    for path in sorted(shipped().rglob("*.yaml")):
        tree = yaml.safe_load(path.read_text())
        expect = tree.get("expect") or {}
        said = f"{expect['accuracy']:.1f}" if expect.get("accuracy") is not None else ""
        if expect:
            said = f"{said} ({expect.get('status', 'paper-only')}; {expect.get('source', '')})"
        lines.append(RecipeLine(label(path), tree.get("title", ""), said))
    return lines
