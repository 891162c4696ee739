"""One recipe with one seed: data and model are made, trained and judged, and a run directory holds what came of it."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from warnings import warn

import torch
from accelerate import Accelerator
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn

from . import __version__, runs
from .checkpoint import remove
from .data import LongTail
from .data.halves import Half
from .data.loading import workers_here
from .data.pictures import Preparation
from .data.streamed import told, unread
from .devices import synchronised
from .possible import refuse_impossible
from .rebuilt import begin, load, weights_of
from .recipe import Recipe, Tracker, identity, signed, to_tree
from .scores import evaluate
from .sharp.report import doubt
from .stage import cancelled
from .train import Place, State, accelerated, fit, logits_of

CHECKPOINT = "checkpoint.pt"


def run(
    recipe: Recipe,
    *,
    seed: int = 0,
    out: Path = Path("runs"),
    label: str = "recipe",
    root: Path = Path("data"),
    device: str | None = None,
    resume: bool = False,
    workers: int | None = None,
    every: float = 20.0,
    watch: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    on_step: Callable[[Place, int], None] = lambda place, steps: None,
) -> Path:
    """Train and judge a recipe; a finished run is left as it is. Returns the run directory `out/label/seed`.

    Args:
        recipe: what to do.
        seed: of the model's weights and of everything that is drawn.
        out, label: where the run directory goes.
        root: the folder of the data.
        device: "cpu", "cuda", "cuda:1", or None for the best one here.
        resume: go on from the checkpoint of an interrupted run, bit for bit on the CPU.
        workers: processes that read images that are not in memory; by default as many as there are cores for this one.
        every: seconds between checkpoints.
        watch: log the test accuracy of every epoch as well, for its curve and its best; nothing is chosen by it.
        on_epoch, on_step: see `fit`.

    Raises:
        ValueError: for what the user can mend, naming place and remedy, or the process that trains this run already.
            Nothing has been written then.
    """
    folder = Path(out) / label / str(seed)
    text = signed(recipe)
    workers = workers_here() if workers is None else workers
    refuse_taken(recipe, out=out, label=label, seed=seed, resume=resume)
    if (folder / runs.SCORES).exists():
        return folder
    accelerator = accelerated(device, recipe.precision, **tracked(recipe.tracker, folder))
    if accelerator.is_main_process:
        runs.refuse_held(folder)
    data = load(recipe, root, seed)
    model, begun_at = begin(recipe, data, seed)
    refuse_impossible(recipe, data, model)
    for said in cancelled(recipe.stages, data):
        warn(said, stacklevel=2)
    if recipe.sync_batchnorm:
        model = synchronised(model, accelerator)
    if accelerator.is_main_process:
        runs.create(out, label, seed, recipe=text)
    with runs.locked(folder) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        if not (folder / runs.SCORES).exists():  # else by a process that has let go just now
            start_tracker(recipe, accelerator, label, seed)
            how = {"seed": seed, "accelerator": accelerator, "workers": workers, "every": every, "on_step": on_step}
            state, epoch = train(folder, recipe, data, model, watch=watch, on_epoch=on_epoch, **how)
            for tracker in accelerator.trackers:
                tracker.finish()
            if accelerator.is_main_process:
                finish(folder, recipe, data, model, state, epoch, accelerator, workers=workers, begun_at=begun_at)
    return folder


def train(
    folder: Path,
    recipe: Recipe,
    data: LongTail,
    model: nn.Module,
    *,
    accelerator: Accelerator,
    workers: int,
    watch: bool,
    on_epoch: Callable[[dict[str, Any]], None],
    **how: Any,
) -> tuple[State, int]:
    """All stages, with log and checkpoints in the run directory; the state at the end, and the epoch that is kept."""
    append, groups, state = runs.appender(folder), data.group(), State()

    def keep(row: dict[str, Any]) -> None:
        append(row)
        on_epoch(row)

    def answers(net: nn.Module, half: Half) -> tuple[Tensor, Tensor]:
        return logits_of(net, half, device=accelerator.device, workers=workers)

    judged_half = data.val if recipe.protocol.selection == "best-on-val" else data.test

    def score(net: nn.Module) -> float:
        assert judged_half is not None
        return evaluate(*answers(net, judged_half)).balanced

    def watched(net: nn.Module) -> dict[str, Any]:
        scores = evaluate(*answers(net, data.test), groups=groups)
        return {"test": {"all": scores.all, "balanced": scores.balanced} | scores.groups}

    epoch = fit(
        model, data, (replace(recipe.stages[0], init=None), *recipe.stages[1:]),
        accelerator=accelerator, workers=workers, compile=recipe.compile,
        checkpoint=folder / CHECKPOINT, identity=f"{identity(recipe)}/{how['seed']}",
        score=None if recipe.protocol.selection == "last" else score, watch=watched if watch else None,
        on_epoch=keep, state=state, **how,
    )  # fmt: skip
    return state, epoch


def finish(
    folder: Path,
    recipe: Recipe,
    data: LongTail,
    model: nn.Module,
    state: State,
    epoch: int,
    accelerator: Accelerator,
    *,
    workers: int,
    begun_at: dict[str, Any],
) -> None:
    """Judge a trained model and write all that a run directory holds of it; the checkpoint is not needed any more."""
    ended, rows = time.monotonic(), runs.read_log(folder)
    outcome, logits, y = judged(
        model, recipe, data, accelerator.device,
        epoch=epoch if epoch >= 0 else None, workers=workers,
        said=[*cancelled(recipe.stages, data), *warnings(recipe, rows)],
    )  # fmt: skip
    if state.unread:
        outcome["warnings"].append(told(state.unread, "and others of their class stood in for them in training"))
    env = environment(accelerator, data, state.wall + time.monotonic() - ended, rows) | begun_at
    if found := {str(i): each for i, each in state.found.items() if each}:
        env["starts"] = found
    outcome |= beside(rows, env)
    for part, missed in (("train", state.unread), ("test", unread(data.test))):
        if missed:
            env.setdefault("unread", {})[part] = {"images": len(missed), "first": sorted(missed)[:20]}
    store(folder, model, outcome, logits, y, env)
    remove(folder / CHECKPOINT)


def beside(rows: Sequence[Mapping[str, Any]], env: Mapping[str, Any]) -> dict[str, Any]:
    """What `scores.json` says beside the scores: what starts found, and the best epoch on test, if all were seen."""
    found = env.get("starts") or {str(row["stage"]): row["start"] for row in rows if "start" in row}
    said: dict[str, Any] = {"starts": found} if found else {}
    if rows and all("test" in row for row in rows):
        best = max(rows, key=lambda row: row["test"]["all"])
        said["best_on_test"] = {"epoch": best["epoch"]} | best["test"]
    return said


def refuse_taken(recipe: Recipe, *, out: Path, label: str, seed: int, resume: bool) -> None:
    """Raise ValueError where the run directory holds another recipe, or an unfinished run that is not to go on."""
    folder = Path(out) / label / str(seed)
    if (folder / runs.RECIPE).exists():
        runs.create(out, label, seed, recipe=signed(recipe))
    begun = any((folder / f).exists() for f in (runs.LOG, CHECKPOINT))
    if begun and not resume and not (folder / runs.SCORES).exists():
        runs.refuse_held(folder)
        raise ValueError(f"{folder} holds an unfinished run: add --resume to go on with it, or remove the folder")


def judged(
    model: nn.Module,
    recipe: Recipe,
    data: LongTail,
    device: torch.device,
    *,
    epoch: int | None,
    said: list[str],
    workers: int = 4,
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """What `scores.json` says of a model, its test logits `[N, C]` and labels `[N]`; `said` are warnings to readers."""
    unseen = (torch.bincount(data.test.y, minlength=data.classes) == 0).nonzero()[:, 0].tolist()
    if unseen:
        names = ", ".join(data.names[c] for c in unseen[:10]) + ", ..." * (len(unseen) > 10)
        said.append(f"the test part has no image of {names}: means are over the other classes")
    logits, y = logits_of(model, data.test, device=device, flip=recipe.protocol.views == "flip", workers=workers)
    if lost := int((~logits.isfinite().all(1)).sum()):
        said.append(f"{lost} of {len(y)} test images have logits that are not finite: their answers are none")
    if missed := unread(data.test):
        said.append(told(missed, "and are not among those judged"))
    outcome = {
        "scores": evaluate(logits, y, groups=data.group()).to_json(),
        "selection": recipe.protocol.selection,
        "epoch": epoch,
        "counts": data.counts.tolist(),
        "names": list(data.names),
        "groups": {name: mask.tolist() for name, mask in data.group().items()},
        "images": vars(Preparation.of(data.test)),
        "data": data.title,
        "fingerprint": data.fingerprint,
        "warnings": said,
    }
    return outcome, logits, y


def store(
    folder: Path, model: nn.Module, outcome: dict[str, Any], logits: Tensor, y: Tensor, env: dict[str, Any]
) -> None:
    """Write what a run directory holds of a trained model; the scores, which make it finished, come last."""
    runs.write_logits(folder, logits.numpy(), y.numpy())
    weights = as_safetensors(weights_of(model))
    runs.write_bytes(folder / runs.MODEL, weights)
    runs.write_json(folder / runs.ENV, env)
    runs.write_json(folder / runs.SCORES, outcome)


def tracked(tracker: Tracker | None, folder: Path) -> dict[str, Any]:
    """What an Accelerator is told of a tracker. ImportError, naming the extra, if its package is not installed."""
    if tracker is None:
        return {}
    if find_spec(tracker.name) is None:
        raise ImportError(
            f"recipe.tracker: {tracker.name} is not installed: `pip install 'flattail[{tracker.name}]'`, "
            "or leave the tracker out with --set tracker=null"
        )
    return {"log_with": tracker.name, "project_dir": str(folder)}


def start_tracker(recipe: Recipe, accelerator: Accelerator, label: str, seed: int) -> None:
    """Begin the recipe's tracker, if it names one, with every setting of the recipe."""
    tracker = recipe.tracker
    if tracker is None:
        return
    run_name = tracker.run or f"{label}/{seed}"
    how: dict[str, dict[str, Any]] = {
        "wandb": {"name": run_name, "entity": tracker.entity, "mode": tracker.mode},
        "mlflow": {"run_name": run_name},
        "tensorboard": {},
    }
    said = leaves(to_tree(recipe)) | {"seed": seed}
    accelerator.init_trackers(tracker.project, config=said, init_kwargs={tracker.name: how[tracker.name]})


def leaves(tree: Any, place: str = "") -> dict[str, Any]:
    """The settings of a recipe by their places, as in `--set`: what trackers take for a run's configuration."""
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, inner in items for k, v in leaves(inner, f"{place}.{name}".lstrip(".")).items()}
    return {place: tree if isinstance(tree, bool | int | float | str) else str(tree)}


def warnings(recipe: Recipe, rows: list[dict[str, Any]]) -> list[str]:
    """What a reader of the results should know of the run, from its log."""
    said = []
    for i, stage in enumerate(recipe.stages):
        mine = [row for row in rows if row["stage"] == i]
        method = type(stage.method).__name__
        moved = [t for row in mine for t in row["terms"].values() if t["active"] > 0]
        if method != "ERM" and mine and not moved:
            said.append(f"stage {i}: {method} never moved the weights: it trained as plain ERM")
        if left_out := sum(row.get("skipped", 0) for row in mine):
            said.append(f"stage {i}: {left_out} steps were left out, whose loss or slope was not finite (on_nan: skip)")
        for name in dict.fromkeys(n for row in mine for n in row["terms"]):
            radii = [row["terms"][name]["radius"] for row in mine if name in row["terms"]]
            if remark := doubt(name, sum(radii) / len(radii)):
                said.append(f"stage {i}: {remark}")
    return said


def environment(accelerator: Accelerator, data: LongTail, seconds: float, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What this run ran on."""
    device = accelerator.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    libraries = ("torch", "torchvision", "timm", "accelerate", "numpy")
    return {
        "versions": {"flattail": __version__, "python": platform.python_version()} | {n: version(n) for n in libraries},
        "device": f"{device} ({gpu})",
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "dtype": accelerator.mixed_precision if accelerator.mixed_precision != "no" else "fp32",
        "git": revision(),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "wall": round(seconds, 1),
        "fingerprint": data.fingerprint,
    }


def revision() -> str | None:
    """The commit of the source that runs, if it is a checkout; "+" marks changes beside it."""
    here = Path(__file__).parent
    try:
        said = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "."])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0] + ("+" if said[1] else "")
