"""An analysis of a finished run, kept in its directory part by part: `analysis/<name>.npz`, and `.json` beside it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from torch import Tensor

from . import runs
from .analysis import ANALYSES, cross_entropy
from .data.halves import in_order
from .devices import accelerated
from .losses import Loss, needs
from .rebuilt import restored
from .recipe import Recipe, RecipeError, built, guess, to_tree
from .sharp import ERM, SAM, Method, Weighted

BATCH = 512  # images read at a time
PATIENCE = timedelta(days=1)  # a group of classes takes many times as long as a class: who is done waits


def examine(
    folder: Path,
    name: str,
    *,
    sets: Sequence[str] = (),
    split: Literal["train", "test", "val"] = "train",
    loss: Literal["ce", "own"] = "ce",
    root: Path = Path("data"),
    device: str | None = None,
    progress: Callable[[str, int, int], None] = lambda name, step, steps: None,
) -> Path:
    """Analyse a finished run; what was found before under the same options is not computed again.

    Args:
        folder: the run directory.
        name: of the analysis: hessian, landscape, sharpness, radius or escape.
        sets: `option=value` for fields of the analysis; for sharpness also `method`, for landscape `other` (a run).
        split: whose images, with evaluation transforms.
        loss: plain cross-entropy, on which methods can be compared, or that of the run's last stage.
        root, device: of the data, and to compute on.
        progress: receives a part's name, the steps taken and the steps at most.

    Returns:
        `analysis/<name>.npz`: one row per class or group, in the order of `name`.

    Raises:
        ValueError: for options that are none, a split without samples, or where another question was answered before.
    """
    if name not in ANALYSES:
        raise ValueError(f"there is no analysis {name!r}; {guess(name, ANALYSES)}")
    recipe, data, model, seed = restored(folder, root)
    options, extras = options_of(name, sets)
    half = getattr(data, split)
    if half is None:
        raise ValueError(f"split: this run kept no {split} images apart; choose train or test")
    how: dict[str, Any] = {"loss": cross_entropy if loss == "ce" else plain_values(recipe.stages[-1].loss)}
    if name != "radius":  # a radius is a class's own
        how["groups"] = data.group()
    if name == "sharpness":
        how["method"] = method_of(recipe, extras.get("method"))
        extras["method"] = to_tree(how["method"])
    if "other" in extras:
        how["other"] = restored(Path(extras["other"]), root)[2]
    said = as_kept({"options": to_tree(options) | extras, "split": split, "loss": loss, "seed": seed})

    out = Path(folder) / "analysis"
    final, parts = out / f"{name}.npz", out / f"{name}.parts"
    if (before := kept(out / f"{name}.json")) is not None and final.exists():
        if before == said:
            return final
        other = ", ".join(what for what in said if said[what] != before.get(what))
        raise ValueError(f"{final} answers a question with other {other}: move it and its .json away, or remove them")
    alone = accelerated(device, "fp32", patience=PATIENCE)
    if alone.is_main_process and kept(parts / "options.json") != said:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        runs.write_json(parts / "options.json", said)
    alone.wait_for_everyone()
    begun = time.monotonic()
    arrays = options(
        model.to(alone.device),
        lambda: half.batches(in_order(len(half), BATCH)),  # on the host: a micro-batch at a time goes to the device
        data.counts,
        **how,
        names=data.names,
        done=found_in(parts),
        on_part=lambda part, found: runs.write_arrays(
            parts / f"{len(part)}-{part}.npz", found | {"part": np.array(part)}
        ),
        progress=progress,
    )
    if alone.is_main_process:
        runs.write_arrays(final, arrays)
        runs.write_json(out / f"{name}.json", said | {"seconds": round(time.monotonic() - begun, 2)})
        shutil.rmtree(parts)
    alone.wait_for_everyone()
    return final


def options_of(name: str, sets: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The analysis with its options, and what else was set for it."""
    cls = ANALYSES[name]
    fields = {f.name for f in dataclasses.fields(cls)}
    more = {"sharpness": {"method"}, "landscape": {"other"}}.get(name, set())
    given: dict[str, Any] = {}
    for assignment in sets:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment}: write option=value, e.g. samples=50")
        if key not in fields | more:
            raise RecipeError(f"--set {assignment}: {name} has no `{key}`; {guess(key, fields | more)}")
        try:
            given[key] = str(value) if key in ("classes", "other") else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {assignment}: no value that YAML can read: quote it") from error
    extras = {k: given.pop(k) for k in list(given) if k in more}
    return built(cls, given, name), extras


def method_of(recipe: Recipe, raw: Any) -> Method:
    """Whose sharpness: the method that was asked for, the last of the run's that displaces weights, or else SAM."""
    if raw is not None:
        return built(Method, raw, "method")
    own = (stage.method for stage in reversed(recipe.stages))
    return next((m for m in own if not isinstance(m, ERM) and m.where != "features"), SAM())


def plain_values(loss: Loss) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A loss per sample without its class weights: within a class they cancel.

    Raises ValueError for one that is no function of a sample's own logits, and so has no curvature of its own.
    """
    if needs(loss, "features") or needs(loss, "whole"):
        raise ValueError(
            f"loss: {type(loss).__name__} is no function of a sample's logits alone (it looks at features, couples a "
            "batch or draws noise): analyse plain cross-entropy, `--loss ce`"
        )

    def values(logits: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        out = loss(logits, y, counts)
        return out.values if isinstance(out, Weighted) else out

    return values


def as_kept(said: dict[str, Any]) -> dict[str, Any]:
    """The same as a file gives it back: tuples are lists, and what is not finite is null."""
    plain: dict[str, Any] = json.loads(json.dumps(said), parse_constant=lambda _: None)
    return plain


def kept(path: Path) -> dict[str, Any] | None:
    """What a file beside an analysis says, without its time; None where there is none, or half of one."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return {k: v for k, v in said.items() if k != "seconds"} if isinstance(said, dict) else None


def found_in(parts: Path) -> dict[str, dict[str, np.ndarray]]:
    """The parts of an interrupted analysis; one that cannot be read is computed again."""
    found = {}
    for path in sorted(parts.glob("*.npz")):
        try:
            with np.load(path) as file:
                arrays = {k: file[k] for k in file.files}
        except Exception:  # whatever is wrong with it, it will be replaced
            continue
        found[str(arrays.pop("part"))] = arrays
    return found
