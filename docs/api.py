"""A hook of the docs site: the API page, every public name with its fields and docstring, as the code says them."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import flattail
from flattail.analysis import ANALYSES
from flattail.catalogue import TABLES, entries, fields

HEAD = """# API

Every public name, as its docstring says. `[B]` is a batch, `[C]` are classes, `[N]` samples. Names are imported from
`flattail` itself; `import flattail` alone loads no torch. The tables behind recipes come after: `flattail list` prints
them too.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The page, made when the site is built."""
    files.append(File.generated(config, "api.md", content=page()))
    return files


def page() -> str:
    """The page's Markdown."""
    lines = [HEAD]
    for home, names in flattail.HOMES.items():
        lines += [f"## {home}", ""]
        for name in names:
            lines += described(name, getattr(flattail, name))
    lines += ["## flattail.analysis", ""]
    for cls in ANALYSES.values():
        lines += described(cls.__name__, cls)
    lines += ["## What a recipe can name", ""]
    for kind in TABLES:
        lines += [f"### {kind}", "", "| name | what it is | fields |", "| --- | --- | --- |"]
        for entry in entries(kind):
            said = ", ".join(f"`{f.name}`" for f in entry.fields)
            lines.append(f"| `{entry.name}` | {entry.sentence.replace('|', '&#124;')} | {said} |")
        lines.append("")
    return "\n".join(lines)


def described(name: str, thing: Any) -> list[str]:
    """A class, a function or a table: signature, docstring, public methods."""
    if isinstance(thing, dict):
        return [f"### {name}", "", f"A table: {', '.join(f'`{key}`' for key in thing)}.", ""]
    lines = [f"### {name}", "", "```python", signature(name, thing), "```", "", *said(thing)]
    if not inspect.isclass(thing):
        return lines
    if dataclasses.is_dataclass(thing) and fields(thing):
        lines += ["| field | default | |", "| --- | --- | --- |"]
        lines += [
            f"| `{f.name}` | {f'`{f.default}`' if f.default else ''} | {f.comment.replace('|', '&#124;')} |"
            for f in fields(thing)
        ]
        lines.append("")
    for method, function in vars(thing).items():
        plain = function.__func__ if isinstance(function, (classmethod, staticmethod)) else function
        if not method.startswith("_") and inspect.isfunction(plain) and inspect.getdoc(plain):
            lines += [f"#### {name}.{method}", "", "```python", signature(method, plain), "```", "", *said(plain)]
    return lines


def said(thing: Any) -> list[str]:
    """A docstring: its first sentence as text, the rest as it is written."""
    first, _, rest = (inspect.getdoc(thing) or "").partition("\n")
    return [first, "", *(["```text", rest.strip("\n"), "```", ""] if rest.strip() else [])]


def signature(name: str, thing: Any) -> str:
    """A signature on as many lines as it needs."""
    try:
        found = inspect.signature(thing)
    except ValueError:
        return name
    parts, star = [], False
    for p in found.parameters.values():
        star_before = p.kind is p.KEYWORD_ONLY and not star
        star = star or p.kind in (p.VAR_POSITIONAL, p.KEYWORD_ONLY)
        said = ("*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else "") + p.name
        said += "" if p.annotation is p.empty else f": {spelled(p.annotation)}"
        said += "" if p.default is p.empty else f" = {p.default!r}"
        parts += [*(["*"] if star_before else []), *([] if p.name == "self" else [said])]
    gives = found.return_annotation
    end = "" if inspect.isclass(thing) or gives is found.empty else f" -> {spelled(gives)}"
    whole = f"{name}({', '.join(parts)}){end}"
    return whole if len(whole) <= 88 else "\n    ".join([f"{name}(", *(f"{part}," for part in parts)]) + f"\n){end}"


def spelled(annotation: Any) -> str:
    """A type as its author wrote it."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
