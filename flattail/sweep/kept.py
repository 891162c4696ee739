"""What a sweep leaves in its folder: the recipe that was chosen, a figure, and the final runs with that recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from .. import runs
from ..jobs import run_all
from ..recipe import read, write
from .chosen import Outcome
from .figure import drawn
from .ledger import alone

CHOSEN, FIGURE, FINAL = "chosen.yaml", "sweep.svg", "chosen"


def kept(folder: Path, outcome: Outcome) -> None:
    """Write `chosen.yaml` and `sweep.svg`."""
    with alone(folder):
        runs.write_text(folder / CHOSEN, write(outcome.recipe()))
        runs.write_text(folder / FIGURE, drawn(outcome))


def final_runs(
    folder: Path, outcome: Outcome, seeds: Sequence[int], *, jobs: int, root: Path, device: str | None,
    waiting: Callable[[], None],
) -> list[Path]:  # fmt: skip
    """The chosen recipe on all training images: run directories `folder/chosen/<seed>`, finished ones left alone.

    Another process that makes them is waited for. ValueError if there are some with other values.
    """
    with alone(folder / FINAL, waiting=waiting):
        recipe = outcome.recipe()
        for path in sorted((folder / FINAL).glob(f"*/{runs.RECIPE}")):
            before = read(path)
            if replace(before, notes=recipe.notes) != recipe:
                raise ValueError(
                    f"{path.parent} was trained with what was chosen before: move {path.parent.parent} away to train "
                    "with what is chosen now"
                )
            recipe = before  # as it was told then, of fewer trials maybe
        label = f"{folder.name}/{FINAL}"
        return run_all({label: recipe}, seeds, jobs=jobs, out=folder.parent, device=device, root=root, resume=True)
