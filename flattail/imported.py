"""Foreign checkpoints as run directories: names of weights in released code, mapped onto a recipe's model."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from . import runs
from .experiment import environment, judged, store
from .models import Cosine, ResNet30, ResNet32
from .models.heads import innermost, sizes
from .rebuilt import build, load
from .recipe import Recipe, signed
from .stage import Stage
from .starts import Keep, shaped
from .train import accelerated

CONTAINERS = ("state_dict_best", "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # DataParallel, torch.compile
HEAD = re.compile(r"(?:linear|fc|classifier(?:\.fc|\.\d+)?|heads?(?:\.fc|\.head|\.\d+)?)\.(weight|bias)")
BLOCK = re.compile(r"(backbone\.stages\.\d+)\.(conv|norm)(\d\..+)")
BBN = "state dict of BBN's ResNet, without its two last blocks"
SPARE = re.compile(r"[cr]b_block\.")  # two blocks of the BBN code that CC-SAM's forward pass leaves out


def import_run(
    checkpoint: Path,
    recipe: Recipe,
    folder: Path,
    *,
    class_map: Sequence[int] | None = None,
    root: Path = Path("data"),
    device: str | None = None,
) -> Path:
    """A finished run directory from a checkpoint, judged on the recipe's test images; no code in the file is run.

    Its title ends in "(imported)", so that it is not averaged with runs that were trained here. A ResNet-32 of CC-SAM's
    release becomes a `ResNet30`, which is what it computes.

    Args:
        checkpoint: a state dict, or what usually surrounds one, by `torch.save` or safetensors.
        recipe: data and model of the checkpoint, and, as far as it is known, how it was trained.
        folder: the run directory to be; its name is the seed.
        class_map: entry c is the checkpoint's index of the recipe's class c; by default the checkpoint's own
            "class_map", or the same order.
        root: the folder of the data.
        device: where the test images are looked at; None for the best one here.

    Raises:
        ValueError: for a file that cannot be read safely, and for weights that do not fit the model, with names and
            shapes. Nothing has been written then.
        FileNotFoundError: without the checkpoint or the data.
    """
    began, folder = time.monotonic(), Path(folder).absolute()
    if not folder.name.isdecimal():
        raise ValueError(f"{folder}: a run directory is named by its seed, a number: write {folder.name}/0")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another --out, or remove it")
    seed, found = int(folder.name), opened(checkpoint)
    order = found.class_map if class_map is None else list(class_map)
    recipe = replace(recipe, title=f"{recipe.title or folder.parent.name} (imported)")
    said = [f"weights imported from {checkpoint.name}, not trained here"]
    if isinstance(recipe.model, ResNet32) and found.format == BBN:
        recipe = replace(recipe, model=ResNet30(**vars(recipe.model)))
        said.append("the last stage has 4 blocks, those of the released forward pass: ResNet30, and not ResNet-32")
    data = load(recipe, root, seed)
    starts, name = [stage.start for stage in recipe.stages], checkpoint.name
    model = shaped(build(recipe, data, seed), starts, data.classes)
    try:
        model.load_state_dict(fitted(found, model, name, class_map=order))
    except ValueError:
        if all(start == Keep() for start in starts):
            raise
        model = build(recipe, data, seed)
        model.load_state_dict(fitted(found, model, name, class_map=order))
        kept = tuple(replace(s, start=Keep(), init=None) for s in recipe.stages if s.epochs)
        recipe = replace(recipe, stages=kept or (Stage(1),))
        said.append("a plain head was imported: what the recipe's stages make of it is left out")
    accelerator = accelerated(device, "fp32")
    model.to(accelerator.device)
    outcome, logits, y = judged(model, recipe, data, accelerator.device, epoch=None, said=said)
    if outcome["scores"]["balanced"] < 1.5 / data.classes:
        said.append("accuracy near chance: are the classes in another order, or the images normalised in another way?")
    with checkpoint.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"file": checkpoint.name, "sha256": sha256, "format": found.format, "class_map": order}
    env = environment(accelerator, data, time.monotonic() - began, []) | {"imported": about}
    folder = runs.create(folder.parent, "", seed, recipe=signed(recipe))
    store(folder, model, outcome | {"selection": "imported"}, logits, y, env)
    return folder


# -- reading -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Found:
    """What a checkpoint holds."""

    weights: dict[str, Any]  # without the prefixes of wrappers
    format: str  # whose names these are
    class_map: list[int] | None  # entry c: the checkpoint's index of class c


def opened(path: Path) -> Found:
    """The state dict in a checkpoint file, read without running any code that it carries."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            raw = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # plain values, often saved beside weights
                raw = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} would run code when it is read ({code[1]}), so it is not read. Where you trust it, save its "
                "state dict alone: torch.save(torch.load(path, weights_only=False)['state_dict'], 'weights.pt')"
            ) from error
        said = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no checkpoint that torch.load or safetensors can read ({said})") from error
    return taken(raw, str(path))


def taken(raw: Any, path: str) -> Found:
    """The state dict inside what was loaded: the parts joined, prefixes and unused blocks off."""
    order = None
    while isinstance(raw, Mapping):
        order = permutation(raw["class_map"], f"{path}: class_map") if "class_map" in raw else order
        raw = {name: value for name, value in raw.items() if name != "class_map"}
        if isinstance(raw.get("feat_model"), Mapping):
            head = {f"classifier.{n}": t for n, t in bare(raw.get("classifier", {})).items()}
            return Found(bare(raw["feat_model"]) | scaled(head), "feature model and classifier", order)
        inner = next((raw[name] for name in CONTAINERS if isinstance(raw.get(name), Mapping)), None)
        if inner is None:
            break
        raw = inner
    if not isinstance(raw, Mapping) or not any(isinstance(value, Tensor) for value in raw.values()):
        seen = f"entries {first_ten(list(map(str, raw)))}" if isinstance(raw, Mapping) else type(raw).__name__
        raise ValueError(f"{path} holds no state dict ({seen}): save model.state_dict()")
    weights, form = bare(raw), "state dict"
    for prefix in ("encoder.", "model.", "net."):
        if all(name.startswith(prefix) for name in weights):
            weights, form = {n.removeprefix(prefix): t for n, t in weights.items()}, f"state dict of {prefix[:-1]}"
    if "classifier.fc.weight" in weights and any(map(SPARE.match, weights)):
        weights, form = {n: t for n, t in weights.items() if not SPARE.match(n)}, BBN
    return Found(weights, form, order)


def bare(weights: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without the prefixes of DataParallel and torch.compile."""
    return {WRAPPERS.sub("", str(name)): value for name, value in weights.items()}


def scaled(head: dict[str, Tensor]) -> dict[str, Tensor]:
    """A linear head with a learnt scale per class (LWS; Kang et al., ICLR 2020) as the linear head that it is."""
    if "classifier.scales" not in head:
        return head
    scales = head.pop("classifier.scales")
    return {name: t * (scales[:, None] if t.ndim == 2 else scales) for name, t in head.items()}


def permutation(value: Any, place: str) -> list[int]:
    """A class map as a list of ints. ValueError if it is no permutation."""
    value = value.tolist() if isinstance(value, Tensor) else value
    whole = isinstance(value, list | tuple) and all(type(c) is int for c in value)
    if not whole or sorted(value) != list(range(len(value))):
        raise ValueError(f"{place}: a permutation of 0...C-1 is needed, whose entry c is the checkpoint's class c")
    return list(value)


def read_class_map(path: Path) -> list[int]:
    """The class map in a JSON file."""
    try:
        return permutation(json.loads(path.read_text()), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON: write a list, e.g. [2, 0, 1]") from error


# -- fitting -------------------------------------------------------------------------------------------


def theirs(ours: Mapping[str, Tensor]) -> dict[str, str]:
    """What released code calls the backbone's entries, to what a model of ours calls them.

    Our ResNets for small images number their blocks through; elsewhere `layer2.0` is the first block of stage 2, and
    norms are `bn`. All other networks have their library's own names behind `backbone.`
    """
    firsts = {m[1]: t.shape[0] for n, t in ours.items() if (m := BLOCK.fullmatch(n)) and m[2] + m[3] == "conv1.weight"}
    widths, places, blocks = sorted(set(firsts.values())), Counter[int](), {}
    for block, width in firsts.items():
        blocks[block] = f"layer{widths.index(width) + 1}.{places[width]}"
        places[width] += 1
    names = {}
    for name in ours:
        if m := BLOCK.fullmatch(name):
            names[f"{blocks[m[1]]}.{'bn' if m[2] == 'norm' else m[2]}{m[3]}"] = name
        elif name.startswith("backbone."):
            inside = name.removeprefix("backbone.")
            if blocks:
                inside = re.sub(r"^norm\.", "bn1.", re.sub(r"^stem\.", "conv1.", inside))
            names[inside] = name
    return names


def fitted(found: Found, model: nn.Module, path: str, *, class_map: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The state dict of our model with a checkpoint's weights, in our names, shapes and order of classes.

    A cosine head's weight may be [d, C] or [C, d]: its shape decides, and [d, C] where both fit.

    Raises ValueError with everything that is unknown, missing or of another shape.
    """
    ours, called = model.state_dict(), theirs(model.state_dict())
    cosine = isinstance(innermost(model.get_submodule("head")), Cosine)
    spelled = {name: foreign for foreign, name in called.items()}
    new: dict[str, Tensor] = {}
    unknown, shapes = [], []
    for name, value in found.weights.items():
        head = HEAD.fullmatch(name)
        target = name if name in ours else called.get(name, f"head.{head[1]}" if head else "")
        if target not in ours or target in new or not isinstance(value, Tensor):
            unknown.append(f"{name} {shape(value)}")
            continue
        if (
            cosine
            and target.startswith("head.")
            and target.endswith("weight")
            and value.ndim == 2
            and value.shape != ours[target].shape
        ):
            value = value.T
        if value.shape != ours[target].shape:
            shapes.append(f"{name} {shape(value)}, the model's is {shape(ours[target])}")
        new[target] = value.to(ours[target].dtype)
    missing = [n for n in ours if n not in new and not n.endswith("num_batches_tracked")]
    listed = [f"{n if n in found.weights else spelled.get(n, n)} {shape(ours[n])}" for n in missing]
    if unknown or missing or shapes:
        what = {"unknown": unknown, "missing": listed, "of another shape": shapes}
        lines = [f"  {len(some)} {kind}: {first_ten(some)}" for kind, some in what.items() if some]
        raise ValueError("\n".join([f"{path} does not fit the recipe's model:", *lines, f"  {remedy(found, model)}"]))
    if class_map is not None:
        classes = sizes(model.get_submodule("head"))[1]
        if len(class_map) != classes:
            raise ValueError(f"the class map has {len(class_map)} entries, and the recipe {classes} classes")
        rows = torch.tensor(list(class_map))
        by_class = {n: t for n, t in new.items() if n.startswith("head.") and ".confidence." not in n}
        new |= {n: t.index_select(1 if cosine and t.ndim == 2 else 0, rows) for n, t in by_class.items()}
    return ours | new


def remedy(found: Found, model: nn.Module) -> str:
    """What to try where weights do not fit."""
    heads = {m[1] for n in found.weights if (m := HEAD.fullmatch(n))}
    if isinstance(model.head, Cosine) and "bias" in heads:
        return "A bias belongs to a linear head: --set model.head=linear"
    if isinstance(model.head, nn.Linear) and heads == {"weight"}:
        return "A head without bias is a cosine head, as LDAM has it: --set model.head=cosine"
    return "Is the recipe's model the network that was trained? --set model=NAME changes it; `flattail list models`"


def first_ten(lines: list[str]) -> str:
    """At most ten of them in one line."""
    return "; ".join(lines[:10]) + ("; ..." if len(lines) > 10 else "")


def shape(value: Any) -> str:
    """A tensor's shape, or what else it is."""
    return str(list(value.shape)) if isinstance(value, Tensor) else f"({type(value).__name__})"
