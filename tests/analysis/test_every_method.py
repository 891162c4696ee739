"""Every method that displaces weights can be looked at after training, where nothing is remembered."""

import math

import pytest
import torch
from torch import nn

from flattail import CCSAM, METHODS, Split
from flattail.analysis import ClassHessian, ClassRadius, Escape, Landscape, Sharpness
from flattail.examine import method_of
from flattail.recipe import from_tree
from flattail.sharp import SAM, FriendlySAM

WEIGHTS = [name for name, method in METHODS.items() if getattr(method, "where", "") != "features"]


@pytest.mark.parametrize("name", [*WEIGHTS, "hard"])
def test_sharpness_of_every_method(name):
    torch.manual_seed(0)
    model = Split(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh()), nn.Linear(8, 3)).double().eval()
    inner = {"method": SAM(0.1)} if name in ("window", "every") else {}
    method = CCSAM(labels="hard") if name == "hard" else METHODS[name](**inner)
    batch = (torch.randn(30, 6).double(), torch.arange(30) % 3)
    found = Sharpness(samples=10, dtype="float64")(model, [batch], torch.tensor([500, 50, 5]), method=method)
    assert all((found[key] == found[key]).all() for key in ("gap", "common", "radius"))
    climbs = name not in ("erm", "m-sam")  # at rest, momentum leads nowhere
    assert (found["radius"].max() > 0) == climbs


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (["friendly-sam"], FriendlySAM()),
        (["erm"], SAM()),
        (["ccsam", "adversarial-features"], CCSAM()),
        (["adversarial-features"], SAM()),
        (["sam", "erm"], SAM()),
    ],
)
def test_whose_sharpness_a_run_is_asked_for(methods, expected):
    stages = [{"epochs": 1, "method": name} for name in methods]
    assert method_of(from_tree({"data": "digits-lt", "model": "resnet8", "stages": stages}), None) == expected


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ClassHessian(micro=0), "micro: at least 1"),
        (lambda: ClassHessian(only="["), r"only: '\[' is no regular expression"),
        (lambda: Landscape(directions=0), "directions: at least 1"),
        (lambda: Landscape(near=math.nan), "near: a positive number"),
        (lambda: ClassRadius(delta=0.0), "delta: a positive number"),
        (lambda: ClassRadius(delta=1.0), "delta: a probability below 1"),
        (lambda: Escape(batch=0), "batch: at least 1"),
        (lambda: Sharpness(samples=0), "samples: at least 1"),
    ],
)
def test_options_that_nothing_can_be_found_with_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
