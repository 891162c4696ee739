"""Constraints against the projection and the singular values they promise, and plain models at the end."""

from copy import deepcopy

import pytest
import torch
from small import different, net, tail, trained
from torch import nn

from flattail.answers import logits_of
from flattail.constraints import CONSTRAINTS, MaxNorm, SpectralNorm
from flattail.models import Cosine, Scaled, Split
from flattail.optim import SGD
from flattail.sharp import CCSAM, SAM
from flattail.stage import Stage


def sigma(weight):
    return float(torch.linalg.svdvals(weight.detach().double().flatten(1))[0])


# -- max-norm ----------------------------------------------------------------------------------------------------


def test_the_projection_shortens_what_is_long_and_leaves_the_rest():
    model = net()
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(3, 16) * torch.tensor([[0.1], [1.0], [4.0]]))
    before = model.head.weight.detach().clone()
    lengths = before.norm(dim=1)
    limit = MaxNorm(0.25)
    memory = limit.begin(model)
    expected = lengths.min() + 0.25 * (lengths.max() - lengths.min())
    assert float(memory["radius"]) == pytest.approx(float(expected))
    limit.after_step(model, memory)
    for row, old in zip(model.head.weight.detach(), before, strict=True):
        torch.testing.assert_close(row, old * min(1.0, float(expected / old.norm())))
    once = model.head.weight.detach().clone()
    limit.after_step(model, memory)
    torch.testing.assert_close(model.head.weight.detach(), once)  # a projection


def test_training_stays_in_the_ball_of_the_stages_beginning():
    model = net()
    radius = float(MaxNorm(0.5).begin(model)["radius"])
    trained(model, Stage(3, batch=16, optim=SGD(0.5), train="head", constraint=MaxNorm(0.5)))
    free = net()
    trained(free, Stage(3, batch=16, optim=SGD(0.5), train="head"))
    assert float(model.head.weight.norm(dim=1).max()) <= radius * (1 + 1e-6)
    assert float(free.head.weight.norm(dim=1).max()) > radius


def test_a_radius_may_be_given_and_a_scaled_head_is_bounded_inside():
    model = Split(nn.Flatten(), Scaled(nn.Linear(36, 3)))
    trained(model, Stage(1, batch=16, constraint=MaxNorm(radius=0.2)))
    assert float(model.head.inner.weight.norm(dim=1).max()) <= 0.2 * (1 + 1e-6)


def test_a_cosine_head_is_refused():
    with pytest.raises(ValueError, match="max-norm bounds the weights of a linear head, and this is a Cosine"):
        MaxNorm().begin(Split(nn.Flatten(), Cosine(4, 3)))


def test_a_classifier_that_is_not_trained_is_not_shortened():
    model = Split(nn.Linear(36, 4), nn.Linear(4, 3))
    model.head.requires_grad_(False)
    with pytest.raises(ValueError, match="this stage does not train them"):
        MaxNorm().begin(model)


# -- spectral norm -----------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """A convolution and a head, with singular values far apart, so that power iteration has converged."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            for layer in (self.backbone[0], self.head):
                u, _, v = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
                layer.weight.copy_((u * torch.tensor([5.0, 0.5, 0.2, 0.1][: u.shape[1]]) @ v).view_as(layer.weight))

    def forward(self, x):
        return self.head(self.backbone(x))


def test_layers_have_norm_one_when_the_stage_begins():
    model = Conv()
    assert sigma(model.head.weight) == pytest.approx(5, rel=1e-5)
    SpectralNorm().shape(model)
    for layer in (model.backbone[0], model.head):
        assert sigma(layer.weight) == pytest.approx(1, rel=1e-5)


def test_the_model_is_plain_at_the_end_with_the_same_answers():
    model = Conv()
    names = list(model.state_dict())
    SpectralNorm().shape(model)
    x = torch.randn(6, 1, 6, 6)
    for _ in range(3):
        model(x)
    model.eval()
    constrained = model(x)
    model.train()
    weights = SpectralNorm().plain(model)
    SpectralNorm().end(model)
    model.load_state_dict(weights)
    assert model.training and list(model.state_dict()) == names
    model.eval()
    assert torch.equal(model(x), constrained)
    assert type(model.head) is nn.Linear and type(model.backbone[0]) is nn.Conv2d


def test_only_what_the_stage_trains_is_normalised():
    model, before = net(), net()
    trained(model, Stage(1, batch=16, train="head", constraint=SpectralNorm()))
    assert torch.equal(model.backbone[1].weight, before.backbone[1].weight)
    assert sigma(model.head.weight) == pytest.approx(1, rel=0.1)  # one step of power iteration behind the weights


@pytest.mark.parametrize("method", [SAM(0.1), CCSAM(scale=0.01)])
def test_methods_climb_what_the_constraint_has_made_of_the_weights(method):
    model, plain = net(), net()
    rows = trained(model, Stage(2, batch=16, method=method, constraint=SpectralNorm()))
    assert all(t["active"] == 1 and t["gap"] > 0 for t in rows[-1]["terms"].values() if t["radius"])
    trained(plain, Stage(2, batch=16, method=method))
    assert different(model, plain)


# -- every constraint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_what_is_scored_is_what_is_left(name):
    seen, data = [], tail()

    def score(model):
        seen.append(logits_of(model, data.test, device="cpu")[0])
        return float(len(seen))

    model = net(norm=nn.BatchNorm1d)
    names = list(model.state_dict())
    trained(model, Stage(2, batch=16, constraint=CONSTRAINTS[name]()), data=data, score=score)
    assert list(model.state_dict()) == names
    assert torch.equal(logits_of(model, data.test, device="cpu")[0], seen[-1])


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_beginning_changes_no_plain_model(name):
    model = net()
    was = deepcopy(model.state_dict())
    CONSTRAINTS[name]().begin(model)
    assert all(torch.equal(t, was[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda: MaxNorm(1.5), "share: within 0 and 1"),
        (lambda: MaxNorm(radius=0.0), "radius: must be positive"),
        (lambda: SpectralNorm(0), "iterations: must be at least 1"),
    ],
)
def test_what_constraints_refuse(bad, said):
    with pytest.raises(ValueError, match=said):
        bad()
