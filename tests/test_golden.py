"""The final loss of short trainings, to twelve digits: a refactor that changes numbers is seen here.

A change that means to change them says so in the changelog, and renews GOLDEN with what `python tests/test_golden.py`
prints.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flattail import CCSAM, SAM, SSESAM, SharpnessAware, Split

COUNTS, STEPS = [400, 60, 8], 8
GOLDEN = {
    SAM(0.1): 1.149531956005,
    CCSAM(): 1.309732106771,
    SSESAM(head_rho=0.05, tail_rho=0.1, eta=100, switch=0.5): 1.181485267902,
}


def made_up(*shape):
    """Numbers between -1 and 1 that no generator draws."""
    return torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64).square().mul(0.7).sin().view(shape)


def final_loss(method):
    model = Split(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh()), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(made_up(*p.shape))
    x, y = made_up(24, 4), torch.arange(24) % 7 % 3
    flat = SharpnessAware(model, method, COUNTS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        flat.backward(lambda: F.cross_entropy(model(x), y, reduction="none"), y, progress=step / STEPS, step=step)
        optimizer.step()
    return F.cross_entropy(model(x), y).item()


@pytest.mark.parametrize("method", GOLDEN, ids=lambda method: type(method).__name__)
def test_the_final_loss_is_what_it_was(method):
    assert final_loss(method) == pytest.approx(GOLDEN[method], rel=1e-10)


if __name__ == "__main__":
    for method in GOLDEN:
        print(f"    {method!r}: {final_loss(method):.12f},")
