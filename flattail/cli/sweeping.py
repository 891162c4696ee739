"""`sweep`: values of a recipe chosen on images kept out of training, and the final runs with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Device, One, Out, Root, Sets, mistakes_told, numbers, one_recipe
from .printed import print_table
from .screen import note, table, unbroken

if TYPE_CHECKING:
    from ..sweep.chosen import Outcome


def sweep(
    recipe: One,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="What varies: stages.*.method.rho=0.05,0.1,0.2 or =0.01..1 or =0.01..1:log (repeatable). "
            "* is every stage; whole numbers at both ends (5..30) mean whole numbers."
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Points to try where something is a range.")] = None,
    seeds: Annotated[str, typer.Option(help="Of every trial: 0, 0-2 or 0,3,7.")] = "0",
    validation: Annotated[
        float, typer.Option(help="Share of each class kept out of training to choose by; 0: the data's own part.")
    ] = 0.2,
    score: Annotated[str, typer.Option(help="balanced, all, many, medium or few.")] = "balanced",
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time, and final runs at a time.")] = 1,
    final_seeds: Annotated[str, typer.Option(help="Of the final runs on all training images; none: no runs.")] = "0-2",
    set_: Sets = None,
    out: Out = Path("runs"),
    device: Device = None,
    root: Root = Path("data"),
) -> None:
    """Choose hyper-parameters on validation images, never on test ones; then train on all images with the chosen ones.

    The same command goes on where it was stopped or killed, and in a second shell lends another hand.
    """
    with mistakes_told(again="the same command goes on"):
        finals = [] if final_seeds == "none" else numbers(final_seeds, option="--final-seeds")
        asked = numbers(seeds)
        from ..recipe import label
        from ..sweep.apart import examined
        from ..sweep.settings import swept
        from ..sweep.space import axis

        path, base = one_recipe(recipe, set_)
        value = swept(base, map(axis, over or ()), trials=trials, seeds=asked, validation=validation, score=score)
        apart = examined(value, root=root, device=device, final=bool(finals))
        folder = out / f"{label(path)}-sweep"
        from ..sweep.chosen import Outcome
        from ..sweep.kept import CHOSEN, FIGURE, final_runs, kept
        from ..sweep.ledger import done, started
        from ..sweep.workers import all_done

        started(folder, value)
        typer.echo(f"{path.stem}: {value.trials} trials, {apart}")
        all_done(folder, value, jobs=jobs, root=root, device=device)
        outcome = Outcome.of(value, done(folder, value))
        kept(folder, outcome)
        print_trials(outcome)
        typer.echo(f"kept: {folder / CHOSEN}, {folder / FIGURE}\n")
        if finals:
            how: dict[str, Any] = {"jobs": jobs, "root": root, "device": device}
            folders = final_runs(folder, outcome, finals, waiting=told_to_wait, **how)
            print_table(folders)


def told_to_wait() -> None:
    """Say why nothing happens."""
    typer.echo("the final runs are being made by another process: waiting for it", err=True)


def print_trials(outcome: Outcome) -> None:
    """Every trial by its score, with standard errors, and what follows."""
    from rich.markup import escape

    from ..sweep.chosen import score_title
    from ..sweep.space import names

    sweep, console = outcome.sweep, unbroken()
    several = ["± over seeds", "behind the best"] if len(sweep.seeds) > 1 else []
    heads = [*names(sweep.axes).values(), "score", "± of images", *several, "seconds", ""]
    rows = table(*heads, title=f"{score_title(sweep)} on validation images, percent")
    for tried in outcome.tried:
        values, score = [escape(text) for text in tried.point.values()], tried.score
        if score is None:
            rows.add_row(*values, "–", "–", *("–" for _ in several), "–", "broke off", style="dim")
            continue
        percent = [f"{100 * score.value:.1f}", f"{100 * score.of_images:.1f}"]
        if several and score.of_seeds is not None and outcome.best.score is not None:
            behind = outcome.best.score.less(score)
            paired = f"{100 * behind.value:.1f} ± {100 * (behind.of_seeds or 0):.1f}"
            percent += [f"{100 * score.of_seeds:.1f}", "" if tried is outcome.best else paired]
        said = "chosen" if tried is outcome.best else "within one standard error" if tried in outcome.alike else ""
        rows.add_row(*values, *percent, f"{tried.seconds:.0f}", said, style="bold" if said == "chosen" else "")
    console.print(rows)
    for said in outcome.notes:
        note(console, said)
