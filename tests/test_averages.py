"""Averages against their recursions written by hand, and BatchNorm's statistics of the averaged weights."""

from copy import deepcopy

import pytest
import torch
from small import net, same_weights, tail, trained
from torch import nn
from torch.optim.swa_utils import update_bn

from flattail.averages import AVERAGES, EMA, SWA, recompute_statistics
from flattail.batches import whole_batches
from flattail.data import address
from flattail.optim import SGD
from flattail.stage import Stage, set_mode


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


class Noted(SGD):
    """SGD that notes the weights after every step."""

    seen = None

    def build(self, parameters):
        optimizer = super().build(parameters)
        tensors = [p for g in optimizer.param_groups for p in g["params"]]
        optimizer.register_step_post_hook(lambda *_: Noted.seen.append([p.detach().clone() for p in tensors]))
        return optimizer


def along(stage, **how):
    """The weights after every step of a stage on its own, and the model with the stage's average."""
    Noted.seen = []
    model = net(**how)
    trained(model, stage)
    return Noted.seen, model


def test_the_moving_average_is_its_recursion():
    path, model = along(Stage(2, batch=16, optim=Noted(0.1), average=EMA(0.9)))
    assert len(path) == 6
    average = path[0]
    for w in path[1:]:
        average = [0.9 * a + 0.1 * b for a, b in zip(average, w, strict=True)]
    for a, p in zip(average, model.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), a)


def test_without_memory_the_moving_average_is_the_last_step():
    path, model = along(Stage(1, batch=16, optim=Noted(0.1), average=EMA(0.0)))
    for a, p in zip(path[-1], model.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), a)


@pytest.mark.parametrize(
    ("start", "epochs"), [(0.0, [0, 1, 2, 3]), (0.5, [2, 3]), (0.75, [3]), (0.9, [3]), (0.6, [2, 3])]
)
def test_stochastic_weight_averaging_is_the_mean_over_the_last_epochs(start, epochs):
    path, model = along(Stage(4, batch=16, optim=Noted(0.1), average=SWA(start)))
    kept = [path[3 * e + 2] for e in epochs]
    for i, p in enumerate(model.parameters()):
        torch.testing.assert_close(p.detach(), torch.stack([w[i] for w in kept]).mean(0))


@pytest.mark.parametrize("average", [EMA(0.5), SWA(0.5)])
def test_statistics_of_the_averaged_weights_are_one_pass_of_torchs_update_bn(average):
    data, stage = tail(), Stage(2, batch=16, average=average)
    model = net(norm=nn.BatchNorm1d)
    trained(model, stage, data=data, seed=3)
    theirs = deepcopy(model)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.fill_(9.0)
    key = address(3, 0, "statistics")
    update_bn(whole_batches(data.train, stage, key, 0.0, torch.device("cpu"), 0), theirs)
    same_weights(model, theirs)
    assert model.backbone[2].momentum == 0.1 and model.backbone[2].num_batches_tracked == 3


def test_a_frozen_backbone_keeps_its_statistics():
    first = Stage(1, batch=16)
    model, before = net(norm=nn.BatchNorm1d), net(norm=nn.BatchNorm1d)
    trained(before, first)
    trained(model, [first, Stage(2, batch=16, train="head", average=EMA(0.5))])
    same_weights(model.backbone, before.backbone)


def test_only_what_trains_is_recomputed():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    for p in model[:2].parameters():
        p.requires_grad_(False)
    set_mode(model, Stage(1))
    before = deepcopy(model.state_dict())
    recompute_statistics(model, [torch.randn(8, 4) for _ in range(3)])
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"3.running_mean", "3.running_var", "3.num_batches_tracked"}


@pytest.mark.parametrize("name", AVERAGES)
def test_the_score_is_that_of_the_average(name):
    """What selection judges after the last epoch is what is left in the model."""
    seen = []

    def score(model):
        seen.append(deepcopy(model.state_dict()))
        return float(len(seen))

    model = net(norm=nn.BatchNorm1d)
    trained(model, Stage(2, batch=16, average=AVERAGES[name]()), score=score)
    plain = net(norm=nn.BatchNorm1d)
    trained(plain, Stage(2, batch=16, average=AVERAGES[name]()))
    same_weights(model, plain)
    assert all(torch.equal(t, seen[-1][n]) for n, t in plain.state_dict().items())


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda: EMA(1.0), r"decay: a share in \[0, 1\)"),
        (lambda: SWA(1.0), r"start: a share of the stage in \[0, 1\)"),
        (lambda: SWA(-0.1), r"start: a share of the stage in \[0, 1\)"),
    ],
)
def test_what_averages_refuse(bad, said):
    with pytest.raises(ValueError, match=said):
        bad()


def test_the_moving_average_is_torchs_to_the_last_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours, theirs = EMA(0.9).begin(model), EMA(0.9).begin(model)
    for _ in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn_like(p)
        model(torch.randn(8, 3))
        EMA(0.9).after_step(ours, model)
        theirs.update_parameters(model)
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert a.equal(b), name
