"""What there is to choose from: the tables, each entry with its sentence, its fields, their defaults and comments."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from .data import Shots
from .models import HEADS
from .recipe import NAMES, Dataset, EvaluationProtocol, Expect, Recipe, Tracker, label, shipped
from .recipe import TABLES as CHOICES
from .sharp import Radius
from .stage import Stage

IRREGULAR: dict[Any, str] = {Dataset: "data", Shots: "shots", Radius: "radii"}


def plural(kind: Any) -> str:
    """What a listing of a kind is called: losses of Loss."""
    return IRREGULAR.get(kind) or kind.__name__.lower() + ("es" if kind.__name__.endswith(("s", "x")) else "s")


KEYS = {"recipe": Recipe, "stage": Stage, "protocol": EvaluationProtocol, "expect": Expect, "tracker": Tracker}
TABLES: dict[str, Mapping[str, Any]] = {
    "keys": KEYS, **{plural(kind): table for kind, table in CHOICES.items()}, "heads": HEADS,
}  # fmt: skip


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
    return [
        Entry(name, (inspect.getdoc(one) or "").split("\n")[0], tuple(fields(one)) if kind != "heads" else ())
        for name, one in TABLES[kind].items()
    ]


def fields(cls: type) -> list[Field]:
    """The fields of a dataclass with the comments beside them, inherited ones as well."""
    said: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        said |= comments(each) if dataclasses.is_dataclass(each) else {}
    return [Field(f.name, default(f), said.get(f.name, "")) for f in dataclasses.fields(cls) if f.init]


def comments(cls: type) -> dict[str, str]:
    """Name -> what stands beside it, of the fields in a class's own source."""
    source = textwrap.dedent(inspect.getsource(cls))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    (top,) = ast.parse(source).body
    assert isinstance(top, ast.ClassDef)
    rows = {n.target.id: n for n in top.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    return {
        name: " ".join(beside[line] for line in range(n.lineno, (n.end_lineno or n.lineno) + 1) if line in beside)
        for name, n in rows.items()
    }


def default(field: dataclasses.Field) -> str:
    """A field's default as one would write it; "" where a value must be given."""
    if field.default_factory is not dataclasses.MISSING:
        return spelled(field.default_factory())
    return "" if field.default is dataclasses.MISSING else spelled(field.default)


def spelled(value: Any) -> str:
    """A value as one would write it, without the fields of a choice."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(spelled, value))}]"
    if dataclasses.is_dataclass(value):
        return NAMES.get(type(value), "{}")
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


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
