"""The scores of a finished run once more: of its logits, or of its model and the test images as they are now."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import runs
from .answers import logits_of
from .devices import accelerated
from .experiment import beside, judged, warnings
from .rebuilt import restored
from .scores import Scores, evaluate
from .stage import Stage


def mended(folder: Path, root: Path, device: str | None) -> None:
    """Write the scores and test logits of a finished run again where they cannot be read: from its trained model."""
    try:
        done = runs.read(folder)
        if done.scores is not None:
            done.logits()
        return
    except (ValueError, FileNotFoundError):
        path, aside = folder / runs.SCORES, folder / f".{runs.SCORES}.damaged"
        if not path.exists() or not (folder / runs.MODEL).exists():
            raise
    try:
        whole = runs.read(folder).scores is not None
    except (ValueError, FileNotFoundError):
        whole = False
        path.rename(aside)
    try:
        recipe, data, model, _ = restored(folder, root)
        accelerator = accelerated(device, "fp32")
        done = runs.read(folder)
        imported = "imported" in done.env
        last = max((i for i, stage in enumerate(recipe.stages) if stage.start != Stage.start), default=0)
        chosen = [row for row in done.rows if "score" in row and row["stage"] >= last]
        epoch = max(chosen, key=lambda row: row["score"])["epoch"] if chosen else len(done.rows) - 1
        outcome, logits, y = judged(
            model.to(accelerator.device), recipe, data, accelerator.device,
            epoch=None if imported or epoch < 0 else epoch, said=warnings(recipe, [dict(row) for row in done.rows]),
        )  # fmt: skip
        outcome |= {"selection": "imported"} if imported else {}
        outcome |= beside(done.rows, done.env)
        runs.write_logits(folder, logits.numpy(), y.numpy())
        if not whole:
            runs.write_json(folder / runs.SCORES, outcome)
    finally:
        if path.exists():
            aside.unlink(missing_ok=True)
        else:
            aside.rename(path)


def scored(folder: Path, *, views: str | None = None, root: Path = Path("data"), device: str | None = None) -> Scores:
    """The scores of a finished run, anew from its logits; or, with `views`, from its model and the test images.

    What is damaged of its scores or logits is written again, from its model and the test images.
    """
    mended(Path(folder), root, device)
    done = runs.read(Path(folder))
    if done.scores is None:
        raise ValueError(f"{folder} holds no finished run: `flattail train ... --resume` finishes it")
    groups = {n: torch.tensor(mask) for n, mask in done.scores["groups"].items()}
    return evaluate(*judged_again(done, views, root, device), groups=groups)


def judged_again(done: runs.Run, views: str | None, root: Path, device: str | None) -> tuple[Tensor, Tensor]:
    """Test logits [N, C] and labels [N] of a finished run: those kept, or with `views` anew from its model."""
    if views is None:
        logits, y = (torch.from_numpy(a) for a in done.logits())
        return logits, y
    _, data, model, _ = restored(done.path, root)
    accelerator = accelerated(device, "fp32")
    return logits_of(model.to(accelerator.device), data.test, device=accelerator.device, flip=views == "flip")
