"""A recipe's data and model: new, or as a finished run has left the model."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from . import runs
from .data import LongTail
from .recipe import Recipe, built, from_tree, identity, to_tree
from .starts import Start, shaped


def load(recipe: Recipe, root: Path, seed: int) -> LongTail:
    """The recipe's data, normalised as the model wants them; with a validation part if the protocol asks for one.

    Raises FileNotFoundError, with the root, for data that are not there, and ValueError if the protocol selects on a
    validation part, and there is none.
    """
    try:
        data = recipe.data.load(Path(root))
    except FileNotFoundError as error:
        where = f". Data are looked for under {root}: --root or FLATTAIL_DATA says where"
        fixed = Path(str(getattr(recipe.data, "path", ""))).is_absolute()  # no root has a say in that
        raise FileNotFoundError(f"{error}{'' if fixed else where}") from error
    wanted = getattr(recipe.model, "normalisation", None)
    if wanted is not None and (statistics := wanted(data.channels)) is not None:
        data = data.normalised(*statistics)
    share = recipe.protocol.validation
    if share:
        return data.carve(share, seed)
    if recipe.protocol.selection == "best-on-val" and data.val is None:
        raise ValueError(
            f"protocol.selection: best-on-val needs a validation part, which {data.title} lacks: "
            "write a share of the training images, e.g. `validation: 0.1`"
        )
    return data


class Sizes(Protocol):
    """What a model is built for: a data set, or what is known of one that is not there."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        ...

    @property
    def channels(self) -> int:
        """Channels of an image."""
        ...


def build(recipe: Recipe, data: Sizes, seed: int) -> nn.Module:
    """The recipe's model, its weights drawn from the seed."""
    torch.manual_seed(seed)
    return recipe.model.build(data.classes, data.channels)


def restored(folder: Path, root: Path) -> tuple[Recipe, LongTail, nn.Module, int]:
    """A finished run's recipe, data, trained model and seed.

    Raises ValueError where the training images are others than then, by number, labels and names; pixels and test
    images are not compared.
    """
    done = finished(Path(folder))
    recipe = from_tree(done.recipe)
    data = load(recipe, root, done.seed)
    then = (done.scores or done.env).get("fingerprint", data.fingerprint)
    if then != data.fingerprint:
        raise ValueError(
            f"{folder} was trained on other images than those that are there now (fingerprint {then}, now "
            f"{data.fingerprint}), and may have seen what it would be tested on: bring those back, or train anew"
        )
    return recipe, data, trained(done, recipe, data), done.seed


def finished(folder: Path) -> runs.Run:
    """A run that has its weights; ValueError for one that has none."""
    done = runs.read(folder)
    if not (folder / runs.MODEL).exists():
        raise ValueError(f"{folder} holds no finished run: `flattail train ... --resume` finishes it")
    return done


def trained(done: runs.Run, recipe: Recipe, data: Sizes) -> nn.Module:
    """The model of a finished run: built, its head shaped by the starts of all stages, its weights read."""
    path = done.path / runs.MODEL
    if getattr(recipe.model, "weights", None):  # those of the run take their place
        recipe = replace(recipe, model=replace(recipe.model, weights=None))  # type: ignore[type-var]
    model = shaped(build(recipe, data, done.seed), starts(done, recipe), data.classes)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold this run's weights: train it again ({error})") from error
    return model


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model as files hold it: on the host, contiguous, and apart where modules share a weight."""
    return {n: t.cpu().clone(memory_format=torch.contiguous_format) for n, t in model.state_dict().items()}


def starts(done: runs.Run, recipe: Recipe) -> list[Start]:
    """Every start that a run's classifier went through, those of the run that it began from first."""
    before = done.env.get("init", {}).get("starts", [])
    return [built(Start, tree, "env.json: init") for tree in before] + [s.start for s in recipe.stages]


# -- from another run --------------------------------------------------------------------------------------


class Begun(NamedTuple):
    """A model to train, and what `env.json` says of where it comes from."""

    model: nn.Module
    said: dict[str, Any]


def begin(recipe: Recipe, data: LongTail, seed: int) -> Begun:
    """The model that training begins with: that of the run which the first stage names, or else a new one."""
    init = recipe.stages[0].init
    return Begun(build(recipe, data, seed), {}) if init is None else begun_from(init, recipe, data, seed)


def begun_from(init: str, recipe: Recipe, data: LongTail, seed: int) -> Begun:
    """The trained model of the run that `init` names, `{seed}` in it replaced.

    Raises ValueError for a directory that is no finished run, with the command that makes it, and for one of another
    model or other training images.
    """
    folder, place = Path(init.replace("{seed}", str(seed))), "recipe.stages[0].init"
    try:
        done = finished(folder)
    except (FileNotFoundError, ValueError) as error:
        *out, name, its_seed = ("OUT", "FOLDER/RECIPE", *folder.parts)[-max(3, len(folder.parts)) :]
        label = f"{out.pop()}/{name}" if len(out) > 1 else name
        command = f"flattail train {label}.yaml --seeds {its_seed} --out {Path(*out)} --resume"
        raise ValueError(
            f"{place}: the run {folder} is not there ({error}); `{command}` makes it, if its recipe lies there: a "
            "run is called OUT/FOLDER/RECIPE/SEED, after the file FOLDER/RECIPE.yaml"
        ) from error
    before = from_tree(done.recipe)
    if before.model != recipe.model:
        raise ValueError(f"{place}: {folder} trained {before.model}, here it is {recipe.model}: write the same")
    fingerprint = (done.scores or {}).get("fingerprint")
    if fingerprint != data.fingerprint:
        raise ValueError(
            f"{place}: {folder} was trained on other images (fingerprint {fingerprint}, here {data.fingerprint}): "
            "write the same `data` and `protocol.validation`, and with a validation part `{seed}` in `init`"
        )
    said = {
        "run": str(folder),
        "recipe": identity(before),
        "seed": done.seed,
        "sha256": hashlib.sha256((folder / runs.MODEL).read_bytes()).hexdigest(),
        "starts": [to_tree(start) for start in starts(done, before)],
    }
    return Begun(trained(done, before, data), {"init": said})
