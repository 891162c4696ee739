"""`list` and `show`: what there is to choose from, and what a recipe will do."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from .options import One, Root, Sets, mistakes_told, one_recipe
from .screen import table, unbroken


def list_(
    kind: Annotated[str | None, typer.Argument(help="One of the lists, as methods, losses, recipes.")] = None,
) -> None:
    """What there is to choose from, with every field, default and meaning."""
    with mistakes_told():
        from rich.markup import escape

        from .. import catalogue

        kinds = [*catalogue.TABLES, "recipes"]
        if kind is not None and kind not in kinds:
            near = get_close_matches(kind, kinds, 1)
            remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(kinds)}"
            raise ValueError(f"there is no list of {kind!r}; {remedy}")
        console = unbroken()
        for each in [kind] if kind else kinds:
            rows = table(title=each)
            rows.title_style = "bold"
            if each == "recipes":
                for column in ("recipe", "what", "accuracy, published or measured"):
                    rows.add_column(column, overflow="fold")
                for line in catalogue.recipes():
                    rows.add_row(line.label, line.title, line.expect)
            else:
                rows.add_column("name", style="bold", overflow="fold")
                rows.add_column("what" if kind is None else "what, and its fields", overflow="fold")
                for entry in catalogue.entries(each):
                    rows.add_row(entry.name, escape(entry.sentence))
                    for f in entry.fields if kind else ():
                        value = f" = {escape(f.default)}" if f.default else ""
                        rows.add_row("", f"  [cyan]{f.name}[/cyan]{value}  [dim]{escape(f.comment)}[/dim]")
            console.print(rows)
            console.print()


def show(
    recipe: One,
    set_: Sets = None,
    root: Root = Path("data"),
) -> None:
    """The recipe with all defaults, the class counts, and the passes and terms of one real step."""
    with mistakes_told():
        from rich.syntax import Syntax

        from ..probe import probe
        from ..rebuilt import load
        from ..recipe import write

        console, (_, value) = unbroken(), one_recipe(recipe, set_)
        text = Syntax("", "yaml", theme="ansi_dark", background_color="default").highlight(write(value))
        console.print(text, soft_wrap=True)
        data = load(value, root, 0)
        console.print(f"[bold]{data.title}[/bold], fingerprint {data.fingerprint}")
        groups = ", ".join(f"{name} {int(mask.sum())}" for name, mask in data.group().items())
        counts = data.counts.tolist()
        some = counts if len(counts) <= 20 else [*counts[:8], "...", *counts[-8:]]
        console.print(f"{data.classes} classes ({groups}), {sum(counts)} images: {' '.join(map(str, some))}\n")
        for p in probe(value, data):
            terms = table("term", "members", "mass", "‖e‖/‖w‖", "objective")
            for name, members, mass, radius, objective in p.rows:
                terms.add_row(name, str(members), f"{mass:g}", radius, f"{objective:.4f}")
            console.print(
                f"stage {p.stage}, {p.method}: {p.forwards} forward and {p.backwards} backward passes a step; "
                f"one batch at its start, loss {p.loss:.4f}"
            )
            console.print(terms)
            console.print()
