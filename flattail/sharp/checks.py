"""What a method's fields may hold, and which models can be displaced; the messages say what to write instead."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ValueError for what is none of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` is one of {', '.join(map(repr, choices))}, not {value!r}")


def check_share(name: str, value: float) -> None:
    """Raise ValueError for what is no share."""
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` is a share in [0, 1], not {value}")


def check_not_negative(**values: float) -> None:
    """Raise ValueError for a negative value."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` must not be negative, and is {value}")


def check_number(name: str, value: Any, least: int) -> None:
    """Raise ValueError for what is no whole number, or too small a one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` is a whole number of at least {least}, not {value!r}")


def bare(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile, whose parameters have the names it has without."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def refuse_wrappers(model: nn.Module) -> None:
    """What is no module, and wrappers that make norms or masses wrong in silence: FSDP, DTensor, a compiled DDP."""
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model is a {type(model).__name__}: the network itself is needed, neither its parameters nor the "
            "optimiser: write SharpnessAware(model, SAM(rho=0.05))"
        )
    sharded = dist.is_available() and any(hasattr(p, "device_mesh") for p in model.parameters())
    if isinstance(getattr(model, "_orig_mod", None), DistributedDataParallel):
        raise ValueError("compile first, then wrap: DistributedDataParallel(torch.compile(model))")
    if sharded or "FullyShardedDataParallel" in {type(m).__name__ for m in model.modules()}:
        raise ValueError(
            "sharded models (FSDP, DTensor) are not supported: each process holds only a part of a weight, and a "
            "climb needs its norm; wrap the model in DistributedDataParallel instead"
        )
