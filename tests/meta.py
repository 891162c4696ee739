"""A GPU's stand-in: the meta device, whose tensors have no content, and a mode that finds waiting."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NEED_CLASSES = {  # the methods that do wait, and why
    "ccsam-all": "one pass for each class that the batch holds, so the host has to know them",
    "ccsam-layers": "as above",
    "ccsam-class-sum-all": "as above",
    "ccsam-random-all": "as above",
    "ccsam-random": "each class goes through a head of its own, and so the rows are sorted by class",
}
COPY, COPY_INTO = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class Waits(TorchDispatchMode):
    """While it is `on`, what touches both host and device fails, but for a copy to the device that does not block.

    `item`, `bool` and shapes that depend on values fail on this device by themselves.
    """

    on = True

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        """The operation, if no host would wait for it."""
        kwargs = kwargs or {}
        if self.on:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            copies = op in (COPY, COPY_INTO)  # a number on the host may enter arithmetic, but not be copied
            places = {t.device.type for t in tensors if t.ndim or copies}
            if op is COPY:
                places |= {torch.device(kwargs.get("device") or args[0].device).type}
            to_device = (op is COPY and not args[0].is_meta) or (op is COPY_INTO and args[0].is_meta)
            free = to_device and (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            there = [(t.device.type, list(t.shape)) for t in tensors]
            assert len(places) < 2 or free, f"{op} waits for the device: {there}"
        return op(*args, **kwargs)


def take_meta_for_a_gpu(monkeypatch):
    """The meta device has no autocast and no generators to ask for; the CPU's stand in."""
    kind, state = torch.Generator, torch.zeros(16, dtype=torch.uint8)  # a GPU's, too, is held by the host
    monkeypatch.setattr(torch, "Generator", lambda device=None: kind())
    monkeypatch.setattr(
        torch,
        "get_device_module",
        lambda device: SimpleNamespace(
            is_available=lambda: False, get_rng_state=lambda d: state, set_rng_state=lambda s, d: None
        ),
    )
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float32)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=None: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **how: nullcontext())
