"""`evaluate` and `import`: the scores of a run, and of other people's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Root, Sets, mistakes_told
from .printed import print_open, print_priors, print_table


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
        from rich.console import Console
        from rich.table import Table

        from ..experiment import scored
        from ..runs import read

        if views not in (None, "one", "flip"):
            raise ValueError(f"--views is one or flip, not {views}")
        if threshold is not None and open_ is None:
            raise ValueError("--threshold is for images of unknown classes: add --open DATA")
        scores, done = scored(run, views=views, root=root, device=device), read(run)
        console = Console()
        table = Table("score", "value", box=None, padding=(0, 2, 0, 0))
        for name in ("all", "balanced", "worst", "gmean", "ece"):
            table.add_row(name, f"{100 * getattr(scores, name):.2f} %")
        table.add_row("nll", f"{scores.nll:.4f}")
        for name, value in scores.groups.items():
            table.add_row(f"{name} ({scores.sizes[name]} classes)", f"{100 * value:.2f} %")
        console.print(table)
        if len(scores.per_class) <= 20 and done.scores is not None:
            classes = Table("class", "train images", "accuracy", box=None, padding=(0, 2, 0, 0))
            for name, n, value in zip(
                done.scores["names"], done.scores["counts"], scores.per_class.tolist(), strict=True
            ):
                classes.add_row(name, str(n), f"{100 * value:.1f} %")
            console.print(classes)
        for stage, found in (done.scores or {}).get("starts", {}).items():
            said = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            console.print(f"the start of stage {stage} found {said}")
        if open_ is not None:
            print_open(run, open_, threshold or "0.1", views=views, root=root, device=device)
        if prior:
            print_priors(run, prior, views=views, root=root, device=device)


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
        from ..recipe import found, read

        (path, *more) = found([recipe])
        if more:
            raise ValueError(f"{recipe} is a folder of {len(more) + 1} recipes: choose one of them")
        order = None if class_map is None else read_class_map(class_map)
        run = import_run(checkpoint, read(path, set_ or ()), out, class_map=order, root=root, device=device)
        print_table([run])
        typer.echo(f"run: {run}")
