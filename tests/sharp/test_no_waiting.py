"""No step waits for a GPU: on the meta device, whose tensors have no content, every method runs to its end.

What makes a host wait, or breaks a CUDA graph (`item`, `bool`, a shape that depends on values), fails there.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.tensor
import torch.nn.functional as F
from cases import CLASSES, COUNTS, EVERY
from torch import nn

from flattail import SharpnessAware, Split

WAIT = {  # and why
    "ccsam-all": "one pass for each class that the batch holds, so the host has to know them",
    "ccsam-layers": "as above",
    "ccsam-class-sum-all": "as above",
    "ccsam-random-all": "as above",
    "ccsam-random": "each class goes through a head of its own, and so the rows are sorted by class",
}


@pytest.fixture
def autocast_off(monkeypatch):
    """The meta device has no autocast and no generators to ask for; the CPU's stand in."""
    kind = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: kind())
    monkeypatch.setattr(
        torch,
        "get_device_module",
        lambda device: SimpleNamespace(get_rng_state=lambda d: 0, set_rng_state=lambda s, d: None),
    )
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float32)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=None: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **how: nullcontext())


@pytest.mark.usefixtures("autocast_off")
@pytest.mark.parametrize("label", EVERY)
def test_a_step_waits_for_nothing(label):
    with torch.device("meta"):
        model = Split(
            nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 7)), nn.Linear(7, CLASSES)
        )
        x, y = torch.empty(22, 5), torch.empty(22, dtype=torch.int64)
    flat = SharpnessAware(model, EVERY[label], COUNTS)

    def step():
        return flat.backward(lambda: F.cross_entropy(model(x), y, reduction="none"), y, 0.5, step=0)

    if label in WAIT:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            step()
    else:
        loss = step()
        assert loss.is_meta and all(p.grad.is_meta for p in model.parameters())
