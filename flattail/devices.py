"""Devices, processes and precision, and the model as the steps of a stage call it there."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import KwargsHandler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .stage import Stage

SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")  # as Accelerate calls them


def refuse_absent(device: str | None) -> None:
    """Raise ValueError for a device that is none, or that this machine does not have."""
    if device is not None and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise ValueError(f"device: {device!r} is none; choose cpu, cuda, cuda:1 or mps")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: mps was asked for, but torch sees no Apple GPU here: use cpu")
    if device is not None and device.startswith("cuda"):
        number, there = int(device.partition(":")[2] or 0), torch.cuda.device_count()
        if number >= there:
            raise ValueError(f"device: {device} was asked for, but torch sees {there or 'no'} GPUs here: use cpu")


def accelerated(device: str | None, precision: str, *, patience: timedelta | None = None, **how: Any) -> Accelerator:
    """An Accelerator on a device ("cpu", "cuda", "cuda:1", or None for the best one), in fp32, bf16 or fp16.

    `patience`: how long processes that meet here wait for each other; without it, as long as torch lets them.
    """
    refuse_absent(device)
    if device is not None and device.startswith("cuda"):
        several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
        if several and device != "cuda":
            raise ValueError(f"device: each of several processes has a GPU of its own; write cuda, not {device}")
        if not several:
            torch.cuda.set_device(int(device.partition(":")[2] or 0))
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("precision: fp16 needs a GPU; on the CPU use bf16 or fp32")
    mixed_precision = "no" if precision == "fp32" else precision
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())  # else the first precision stays
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    if patience is not None:
        handlers.append(InitProcessGroupKwargs(timeout=patience))
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision, kwargs_handlers=handlers, **how)
    if (kind := accelerator.distributed_type.value) in SHARDED:
        raise ValueError(
            f"processes: Accelerate was configured for {kind}, and sharded models are not supported: a climb needs the "
            "norm of whole weights. Launch with torchrun, which shares the batch and not the model"
        )
    return accelerator


def synchronised(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model with SyncBatchNorm in place of BatchNorm, where several processes share a step; weights as they are.

    ValueError on the CPU, for which torch has none.
    """
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type != "cuda":
        raise ValueError(
            "sync_batchnorm: torch's SyncBatchNorm needs GPUs, and these are processes on the "
            f"{accelerator.device.type}: write `sync_batchnorm: false`, or choose `norm: group`, which needs no peers"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


@torch.no_grad()
def common_statistics(model: nn.Module, accelerator: Accelerator) -> None:
    """BatchNorm's moving means and variances, averaged over the processes, each of which has seen batches of its own.

    A moving average is linear in what it was given, so it does not matter when, or how often, this is done.
    """
    if accelerator.num_processes == 1 or not (own := list(statistics_of(model))):
        return
    total = accelerator.reduce(torch.cat([t.flatten() for t in own])) / accelerator.num_processes
    for t, mean in zip(own, total.split([t.numel() for t in own]), strict=True):
        t.copy_(mean.view_as(t))


def statistics_of(model: nn.Module) -> Iterable[Tensor]:
    """Means and variances that move, and apart in every process."""
    for m in model.modules():
        if isinstance(m, _BatchNorm) and m.training and not isinstance(m, nn.SyncBatchNorm):
            yield from (t for t in (m.running_mean, m.running_var) if t is not None)


def prepared(model: nn.Module, stage: Stage, accelerator: Accelerator, compile: bool) -> nn.Module:
    """The model as the steps call it: compiled if asked, cast, and shared among the processes."""
    if compile:
        compiled(model, stage).compile()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # Accelerate knows no other name
        return accelerator.prepare_model(model)


def released(net: nn.Module, accelerator: Accelerator) -> None:
    """Take casts off again, and forget the model, so that the next stage can prepare it for itself."""
    model = accelerator.unwrap_model(net, keep_fp32_wrapper=False)
    vars(model).pop("_is_accelerate_prepared", None)  # else what is prepared next stays without its casts
    accelerator._models.clear()


def compiled(model: nn.Module, stage: Stage) -> nn.Module:
    """What is compiled: the model, or for methods that look inside it the backbone."""
    return model.get_submodule("backbone") if stage.method.where != "weights" else model
