"""One recipe with one seed: data and model are made, trained and judged, and a run directory holds what came of it."""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn

from . import __version__, runs
from .closures import plain
from .data import LongTail
from .recipe import Recipe, Tracker, from_tree, identity, write
from .scores import Scores, evaluate
from .sharp import SharpnessAware
from .sharp.report import LARGEST, SMALLEST
from .stage import clock, freeze, set_mode
from .train import Place, accelerated, batches_from, epoch_batches, fit, logits_of

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
    workers: int = 4,
    every: float = 20.0,
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
        workers: processes that read images that are not in memory.
        every: seconds between checkpoints.
        on_epoch, on_step: see `fit`.

    Raises:
        ValueError: for what the user can mend, naming place and remedy. Nothing has been written then.
    """
    folder = Path(out) / label / str(seed)
    text = write(recipe)
    if (folder / runs.RECIPE).exists():
        runs.create(out, label, seed, recipe=text)
    if (folder / runs.SCORES).exists():
        return folder
    if folder.exists() and not resume and any((folder / f).exists() for f in (runs.LOG, CHECKPOINT)):
        raise ValueError(f"{folder} holds an unfinished run: add --resume to go on with it, or remove the folder")
    accelerator = accelerated(device, recipe.precision, **tracked(recipe.tracker, folder))
    data = load(recipe, root, seed)
    model = build(recipe, data, seed)
    refuse_impossible(recipe, data, model)
    if accelerator.is_main_process:
        runs.create(out, label, seed, recipe=text)
    accelerator.wait_for_everyone()
    start_tracker(recipe, accelerator, f"{label}/{seed}")

    first = True

    def keep(row: dict[str, Any]) -> None:
        nonlocal first
        if first:
            runs.truncate_log(folder, row["epoch"])
        first = False
        runs.append_row(folder, row)
        on_epoch(row)

    judged_half = data.val if recipe.protocol.selection == "best-on-val" else data.test

    def score(net: nn.Module) -> float:
        assert judged_half is not None
        logits, y = logits_of(net, judged_half, device=accelerator.device, workers=workers)
        return evaluate(logits, y).balanced

    began = time.monotonic()
    epoch = fit(
        model, data, recipe.stages,
        seed=seed, accelerator=accelerator, workers=workers, compile=recipe.compile,
        checkpoint=folder / CHECKPOINT, every=every, identity=f"{identity(recipe)}/{seed}",
        score=None if recipe.protocol.selection == "last" else score, on_epoch=keep, on_step=on_step,
    )  # fmt: skip
    for tracker in accelerator.trackers:
        tracker.finish()
    if not accelerator.is_main_process:
        return folder
    rows = runs.read_log(folder)
    outcome = judged(model, recipe, data, accelerator.device, epoch=epoch, said=warnings(recipe, rows), workers=workers)
    store(folder, model, *outcome, environment(accelerator, data, time.monotonic() - began, rows))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return folder


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
    logits, y = logits_of(model, data.test, device=device, flip=recipe.protocol.views == "flip", workers=workers)
    outcome = {
        "scores": evaluate(logits, y, groups=data.group()).to_json(),
        "selection": recipe.protocol.selection,
        "epoch": epoch,
        "counts": data.counts.tolist(),
        "names": list(data.names),
        "groups": {name: mask.tolist() for name, mask in data.group().items()},
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
    weights = as_safetensors({n: t.contiguous().cpu() for n, t in model.state_dict().items()})
    runs.write_bytes(folder / runs.MODEL, weights)
    runs.write_json(folder / runs.ENV, env)
    runs.write_json(folder / runs.SCORES, outcome)


def load(recipe: Recipe, root: Path, seed: int) -> LongTail:
    """The recipe's data; with a validation half carved out of train if the protocol asks for one.

    Raises ValueError if the protocol selects on a validation half, and there is none.
    """
    data = recipe.data.load(Path(root))
    share = recipe.protocol.validation
    if share:
        return data.carve(share, seed)
    if recipe.protocol.selection == "best-on-val" and data.val is None:
        raise ValueError(
            f"protocol.selection: best-on-val needs a validation half, which {data.title} lacks: "
            "write a share of the training images, e.g. `validation: 0.1`"
        )
    return data


def build(recipe: Recipe, data: LongTail, seed: int) -> nn.Module:
    """The recipe's model, its weights drawn from the seed."""
    torch.manual_seed(seed)
    return recipe.model.build(data.classes, data.channels)


def refuse_impossible(recipe: Recipe, data: LongTail, model: nn.Module) -> None:
    """Raise ValueError for a stage that could not train this model on these data, before anything is written."""
    names = [n for n, _ in model.named_parameters()]
    for i, stage in enumerate(recipe.stages):
        place = f"recipe.stages[{i}]"
        try:
            flat = SharpnessAware(model, stage.method, data.counts, few=data.group().get("few"), only=stage.only)
            epoch_batches(data.train, stage, 0, 0.0)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        only = flat.how["only"]
        if only is not None and not any(re.search(only, n) for n in names):
            raise ValueError(f"{place}: no parameter has {only!r} in its name; the first names are {names[:3]}")


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


def start_tracker(recipe: Recipe, accelerator: Accelerator, name: str) -> None:
    """Begin the recipe's tracker, if it names one."""
    tracker = recipe.tracker
    if tracker is None:
        return
    run_name = tracker.run or name
    how: dict[str, dict[str, Any]] = {
        "wandb": {"name": run_name, "entity": tracker.entity, "mode": tracker.mode},
        "mlflow": {"run_name": run_name},
        "tensorboard": {},
    }
    accelerator.init_trackers(tracker.project, init_kwargs={tracker.name: how[tracker.name]})


def warnings(recipe: Recipe, rows: list[dict[str, Any]]) -> list[str]:
    """What a reader of the results should know of the run, from its log."""
    said = []
    for i, stage in enumerate(recipe.stages):
        mine = [row for row in rows if row["stage"] == i]
        method = type(stage.method).__name__
        moved = [t for row in mine for t in row["terms"].values() if t["active"] > 0]
        if method != "ERM" and mine and not moved:
            said.append(f"stage {i}: {method} never moved the weights: it trained as plain ERM")
        for name in dict.fromkeys(n for row in mine for n in row["terms"]):
            radii = [row["terms"][name]["radius"] for row in mine if name in row["terms"]]
            mean = sum(radii) / len(radii)
            if 0 < mean < SMALLEST:
                said.append(f"stage {i}: perturbation vacuous: '{name}' moves the weights by {mean:.1e} of their norm")
            if mean > LARGEST:
                said.append(f"stage {i}: '{name}' moves the weights by {mean:.2f} of their norm: no neighbourhood")
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


# -- looking again -------------------------------------------------------------------------------------


def restored(folder: Path, root: Path) -> tuple[Recipe, LongTail, nn.Module, int]:
    """A finished run's recipe, data, trained model and seed."""
    done = runs.read(Path(folder))
    path = done.path / runs.MODEL
    if not path.exists():
        raise ValueError(f"{folder} holds no finished run: `flattail train ... --resume` finishes it")
    recipe = from_tree(done.recipe)
    data = load(recipe, root, done.seed)
    model = build(recipe, data, done.seed)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold this run's weights: train it again ({error})") from error
    return recipe, data, model, done.seed


def scored(folder: Path, *, views: str | None = None, root: Path = Path("data"), device: str | None = None) -> Scores:
    """The scores of a finished run, anew from its logits; or, with `views`, from its model and the test images."""
    done = runs.read(Path(folder))
    if done.scores is None:
        raise ValueError(f"{folder} holds no finished run: `flattail train ... --resume` finishes it")
    groups = {n: torch.tensor(mask) for n, mask in done.scores["groups"].items()}
    if views is None:
        logits, y = (torch.from_numpy(a) for a in done.logits())
        return evaluate(logits, y, groups=groups)
    _, data, model, _ = restored(folder, root)
    accelerator = accelerated(device, "fp32")
    logits, y = logits_of(model.to(accelerator.device), data.test, device=accelerator.device, flip=views == "flip")
    return evaluate(logits, y, groups=groups)


@dataclass(frozen=True)
class Probe:
    """One real step of a stage, looked into."""

    stage: int
    method: str
    forwards: int
    backwards: int
    loss: float
    rows: list[tuple[str, int, float, str, float]]  # term, members, mass, radius in words, objective


def probe(recipe: Recipe, data: LongTail, seed: int = 0) -> list[Probe]:
    """The first batch of every stage through its method: passes, and the terms with members, mass and radius."""
    accelerator = accelerated("cpu", "fp32")
    model = build(recipe, data, seed)
    probes = []
    for i, stage in enumerate(recipe.stages):
        freeze(model, stage)
        set_mode(model, stage)
        begun, epochs = clock(recipe.stages, i)
        progress = begun / epochs
        rows = epoch_batches(data.train, stage, seed, progress)[:1]
        batch = next(batches_from(data.train, stage, rows, seed, 0, accelerator, 0))
        flat = SharpnessAware(model, stage.method, data.counts, few=data.group().get("few"), only=stage.only)
        losses, labels, hard = plain(model, stage.loss, data.counts, batch)
        terms = flat.terms(labels, progress=progress, step=0, hard=hard)
        model.zero_grad()
        flat.backward(losses, labels, progress, step=0, hard=hard)
        out = flat.outcome
        assert out is not None
        lines = []
        for t in terms:
            names = [t.name] if t.name in out.values else [n for n in out.values if n.startswith(f"{t.name} ")]
            radii = [out.radii[n].reshape(-1) for n in names if n in out.radii]
            finite = torch.cat(radii) if radii else torch.zeros(0)
            finite = finite[torch.isfinite(finite)]
            words = "at w" if not len(finite) else f"{float(finite.min()):.3g}"
            if len(finite) > 1:
                words += f" to {float(finite.max()):.3g}"
            value = sum(float(out.values[n]) for n in names)
            lines.append((t.name, int((t.weight != 0).sum()), float(t.weight.sum()), words, value))
        probes.append(Probe(i, type(stage.method).__name__, out.forwards, out.backwards, float(out.loss), lines))
    return probes
