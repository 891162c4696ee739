"""`train --data`: a recipe chosen for a folder of photographs, trained beside a plain one, and what it gained."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .gained import print_gained
from .printed import print_table
from .screen import table, unbroken

if TYPE_CHECKING:
    from ..advice import Found, Reason
    from ..recipe import Recipe

CHOSEN, PLAIN, PAGE = "chosen", "plain", "report.html"


def train_photos(data: Path, sets: Sequence[str], seeds: list[int], *, minutes: float, fetch: bool, **how: Any) -> None:
    """Choose a recipe, or take the one chosen before; train it and the plain one; say which classes gained.

    ValueError for a folder that cannot be trained on, for other settings than were chosen before, or other images.
    """
    from ..advice import compared, place, plain
    from ..jobs import run_all
    from ..report import build
    from ..runs import find

    name, top, _ = place(data)
    folder = how["out"] / name
    path = folder / f"{CHOSEN}.yaml"
    if path.exists():
        recipe = chosen_before(path, top, sets, how["root"])
    else:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "--data chooses by timing a few steps in one process: begin without torchrun, then give it the recipe"
            )
        recipe = choose(data, sets, minutes, fetch, len(seeds), how["device"])
        write_recipe(path, recipe, f"chosen for {name}")
    values, both = {f"{name}/{CHOSEN}": recipe}, compared(recipe)
    if both:
        values = {f"{name}/{PLAIN}": plain(recipe)} | values
        if not (folder / f"{PLAIN}.yaml").exists():
            write_recipe(folder / f"{PLAIN}.yaml", plain(recipe), f"the plain baseline for {name}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* no test image of")  # said before, and beside the scores
        folders = run_all(values, seeds, **how)
    if not folders:
        return
    print_table(folders)
    if both:
        print_gained([(folder / PLAIN / str(seed), folder / CHOSEN / str(seed)) for seed in seeds])
    page = build(find([folder]), folder / PAGE, baseline=PLAIN if both else None)
    typer.echo(f"report: {page.resolve()}")


def choose(data: Path, sets: Sequence[str], minutes: float, fetch: bool, seeds: int, device: str | None) -> Recipe:
    """Look, choose, time a few steps, choose the rest, and print why."""
    from dataclasses import replace

    from ..advice import compared, described, machine, pace, plain, planned, recipe_of, seconds, settled
    from ..devices import accelerated
    from ..possible import refuse_impossible
    from ..rebuilt import build, load
    from ..recipe import changed

    if not minutes > 0:
        raise ValueError(f"--minutes {minutes:g}: give the minutes that all runs may take, e.g. 30")
    accelerated(device, "fp32")  # refuses devices that are not here
    found, here = looked_at(data), machine(device, fetch=fetch)
    plan, console = planned(found, here), unbroken()
    for said in [*described(found), f"machine: {here.title}, {here.memory / 2**30:.1f} GB of memory free"]:
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    own = [each for each in sets if each.startswith(("data.", "model.", "model="))]
    draft = changed(recipe_of(plan, [plan.stage], ""), own)
    if plan.tuned and type(draft.model) is not type(plan.model):  # for which there are no pretrained weights
        plan = planned(found, replace(here, weights=()))
        plan = replace(plan, reasons=tuple(each for each in plan.reasons if each.what != "network"))
        draft = changed(recipe_of(plan, [plan.stage], ""), own)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        images = load(draft, Path(), 0)
    for said in dict.fromkeys(str(warning.message) for warning in heard):
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    counts = tuple(images.counts.tolist())
    plan = replace(plan, data=draft.data, model=draft.model, counts=counts, images=sum(counts))  # type: ignore[arg-type]
    with console.status("timing a few steps"):
        advice = settled(plan, pace(plan, images, device, found.reading), minutes / seeds)
        recipe, needed = advice.recipe, advice.minutes
        if sets:
            recipe = named(changed(recipe, sets), recipe, sets)
            refuse_impossible(recipe, images, build(recipe, images, 0))
            both = [recipe, plain(recipe)] if compared(recipe) else [recipe]
            needed = sum(seconds(each, images, device, found.reading) for each in both) / 60
    print_reasons(advice.reasons, sets)
    trained = "this recipe and the plain baseline" if compared(recipe) else "this recipe"
    trained += f", {seeds} seeds" * (seeds > 1)
    console.print(f"training {trained}: about {spelled(needed * seeds)}", highlight=False)
    return recipe


def looked_at(data: Path) -> Found:
    """The folder, with progress where it is large."""
    from rich.console import Console
    from rich.progress import Progress

    from ..advice import look

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("looking at every image", total=None)
        return look(data, lambda done, n: progress.update(bar, completed=done, total=n))


def chosen_before(path: Path, top: Path, sets: Sequence[str], root: Path) -> Recipe:
    """The recipe of an earlier call, if it is still of this folder, these settings and these images."""
    from dataclasses import replace

    from ..rebuilt import load
    from ..recipe import changed, read
    from ..runs import find

    recipe, again = read(path), f"remove {path.parent} to choose anew, or choose another --out"
    if getattr(recipe.data, "path", None) != str(top):
        raise ValueError(f"{path} is for {getattr(recipe.data, 'path', 'other data')}, not for {top}: {again}")
    if sets and changed(recipe, sets) != recipe:
        raise ValueError(f"{path} was chosen before, without {' '.join(f'--set {s}' for s in sets)}: {again}")
    lazily = replace(recipe, data=replace(recipe.data, hold="disk"))  # type: ignore[type-var]
    for run in find([path.parent]):
        if run.scores is not None and run.scores["fingerprint"] != load(lazily, root, run.seed).fingerprint:
            raise ValueError(f"{run.path} was trained on other images than are in {top} now: {again}")
    typer.echo(f"recipe: {path}, chosen before ({again})")
    return recipe


def named(recipe: Recipe, before: Recipe, sets: Sequence[str]) -> Recipe:
    """The recipe with what was set by hand in its title and notes."""
    from dataclasses import replace

    title = (
        f"{recipe.title}, changed" if recipe.stages != before.stages and recipe.title == before.title else recipe.title
    )
    return replace(recipe, title=title, notes=(*recipe.notes, *(f"set by hand: {each}" for each in sets)))


def write_recipe(path: Path, recipe: Recipe, what: str) -> None:
    """Keep a recipe, without its defaults, and say where."""
    from ..recipe import write
    from ..runs import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"# {what}\n# flattail train {path}\n{write(recipe, defaults=False)}")
    typer.echo(f"recipe: {path}")


def print_reasons(reasons: Sequence[Reason], sets: Sequence[str]) -> None:
    """A line for each choice: what, its value, why."""
    from rich.markup import escape

    rows, console = table(), unbroken()
    rows.show_header = False
    rows.add_column(style="bold")
    rows.add_column()
    rows.add_column(style="dim", overflow="fold")
    for each in reasons:
        rows.add_row(*map(escape, each))
    for assignment in sets:
        rows.add_row("--set", escape(assignment), "by hand, whatever stands above")
    console.print()
    console.print(rows)
    console.print()


def spelled(minutes: float) -> str:
    """A duration in words."""
    if minutes < 1:
        return f"{max(60 * minutes, 1):.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
