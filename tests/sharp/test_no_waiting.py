"""No step waits for a GPU: on the meta device, whose tensors have no content, every method runs to its end.

What makes a host wait, or breaks a CUDA graph (`item`, `bool`, a shape that depends on values), fails there.
"""

import pytest
import torch
import torch.distributed.tensor
import torch.nn.functional as F
from cases import CLASSES, COUNTS, EVERY
from meta import NEED_CLASSES, Waits, take_meta_for_a_gpu
from torch import nn

from flattail import SharpnessAware, Split


@pytest.mark.parametrize("label", EVERY)
def test_a_step_waits_for_nothing(label, monkeypatch):
    take_meta_for_a_gpu(monkeypatch)
    with torch.device("meta"):
        model = Split(
            nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 7)), nn.Linear(7, CLASSES)
        )
        x, y = torch.empty(22, 5), torch.empty(22, dtype=torch.int64)
    flat = SharpnessAware(model, EVERY[label], COUNTS)

    def step():
        return flat.backward(lambda: F.cross_entropy(model(x), y, reduction="none"), y, 0.5, step=0)

    if label in NEED_CLASSES:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            step()
    else:
        step()  # what stays on the device goes there once
        with Waits():
            loss = step()
        assert loss.is_meta and all(p.grad.is_meta for p in model.parameters())
