"""`evaluate` and `import`: the scores of a run, and of other people's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Device, Root, Sets, mistakes_told, one_recipe
from .printed import print_open, print_priors, print_scores, print_table


def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run directory.")],
    views: Annotated[str | None, typer.Option(help="one or flip: look at the test images again.")] = None,
    open_: Annotated[
        str | None,
        typer.Option("--open", help="Meet unknown classes: a data set as in a recipe, or a folder, .npz or list."),
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="With --open: 0.1 (the default), softmax=0.1,logit=8 or val.")
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(help="Class prior: forward, uniform, backward, forward:50 or a file (repeatable)."),
    ] = None,
    root: Root = Path("data"),
    device: Device = None,
) -> None:
    """Every score of a run, anew from its logits; with --views or --open from its weights and the images."""
    with mistakes_told():
        if views not in (None, "one", "flip"):
            raise ValueError(f"--views is one or flip, not {views}")
        if threshold is not None and open_ is None:
            raise ValueError("--threshold is for images of unknown classes: add --open DATA")
        from ..rescored import scored
        from ..worlds import met, under_priors

        how: dict[str, Any] = {"views": views, "root": root, "device": device}
        scores = scored(run, **how)
        outcome = None if open_ is None else met(run, open_, threshold=threshold or "0.1", **how)
        worlds = under_priors(run, prior, **how) if prior else None
        print_scores(run, scores)
        if outcome is not None and open_ is not None:
            print_open(run, outcome, open_, threshold or "0.1")
        if worlds is not None:
            print_priors(*worlds)


def import_(
    checkpoint: Annotated[Path, typer.Argument(help="A state dict, by torch.save or safetensors.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose data and model these are: a file, or a shipped name.")],
    out: Annotated[Path, typer.Option(help="The run directory to make; its name is the seed: runs/theirs/0.")],
    set_: Sets = None,
    class_map: Annotated[
        Path | None, typer.Option(help="JSON list: entry c is the checkpoint's index of the recipe's class c.")
    ] = None,
    root: Root = Path("data"),
    device: Device = None,
) -> None:
    """A run directory from someone's trained weights, to evaluate, analyse and report; no code in the file is run."""
    with mistakes_told():
        from ..imported import import_run, read_class_map

        _, value = one_recipe(recipe, set_)
        order = None if class_map is None else read_class_map(class_map)
        run = import_run(checkpoint, value, out, class_map=order, root=root, device=device)
        print_table([run])
        typer.echo(f"run: {run}")
