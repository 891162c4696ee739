"""What a model answers does not depend on how much of a batch fits into memory."""

import pytest
import torch
from small import digits
from torch import nn

from flattail.answers import logits_of
from flattail.rebuilt import build, load


class Full(nn.Module):
    """A network on a device that holds so many images at a time."""

    def __init__(self, net, most):
        super().__init__()
        self.net, self.most, self.seen = net, most, []

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.seen.append(len(x))
        return self.net(x)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("most", [500, 100, 7])
def test_what_does_not_fit_is_answered_in_halves(tmp_path, most, flip):
    recipe = digits()
    data = load(recipe, tmp_path, 0)
    net = build(recipe, data, 0)
    logits, y = logits_of(net, data.test, device="cpu", flip=flip)
    small = Full(net, most)
    again, same = logits_of(small, data.test, device="cpu", flip=flip)
    assert torch.allclose(logits, again, atol=1e-5) and torch.equal(y, same)
    assert max(small.seen) > most // 2 and sum(small.seen) == len(y) * (1 + flip)


def test_an_image_that_does_not_fit_is_an_error(tmp_path):
    recipe = digits()
    data = load(recipe, tmp_path, 0)
    with pytest.raises(torch.OutOfMemoryError):
        logits_of(Full(build(recipe, data, 0), 0), data.test, device="cpu")
