"""The recipes of the large sets: all there, every network built on `meta`, true to the protocols they name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flattail.data import ImageNetLT, INat18, PlacesLT
from flattail.data.checked import OFFICIAL, published
from flattail.data.profile import Slices, Strict
from flattail.data.samplers import Balanced
from flattail.losses import CE, LDAM
from flattail.optim import Cosine
from flattail.recipe import read
from flattail.sharp import CCSAM, ERM, SAM, SSESAM, AdversarialFeatures, Steps

FOLDER = Path(__file__).parent.parent / "recipes"
SETS = {
    "imagenet-lt-r50": (ImageNetLT, "resnet50", None, 2048),
    "imagenet-lt-rx50": (ImageNetLT, "resnext50_32x4d", None, 2048),
    "places-lt": (PlacesLT, "resnet152", "IMAGENET1K_V1", 2048),
    "inat18": (INat18, "resnet50", None, 2048),
}
SCHEMES = ("ce", "ce-drw", "ldam-drw")
METHODS = {"": ERM, "-sam": SAM, "-ssesam": SSESAM, "-ccsam": CCSAM}
PATHS = [f"{where}/{scheme}{method}" for where in SETS for scheme in SCHEMES for method in METHODS]


def recipe(path):
    return read(FOLDER / f"{path}.yaml")


def test_these_are_all():
    found = {
        p.relative_to(FOLDER).with_suffix("").as_posix() for where in SETS for p in (FOLDER / where).rglob("*.yaml")
    }
    assert found == set(PATHS) and len(PATHS) == 48


@pytest.mark.parametrize("path", PATHS)
def test_its_parts_are_what_its_name_says(path):
    where, name = path.split("/")
    kind, network, weights, _ = SETS[where]
    scheme, _, method = name.partition("-drw" if "-drw" in name else "ce")
    scheme = scheme or "ce"
    this = recipe(path)
    assert isinstance(this.data, kind) and this.data.broken == "stop"
    assert (this.model.model, this.model.weights) == (network, weights)
    first = [s for s in this.stages if s.train == "all"]
    assert all(type(s.method) is METHODS[method] for s in first)
    assert all(isinstance(s.loss, LDAM if scheme == "ldam" else CE) for s in this.stages)
    assert this.model.head == ("cosine" if scheme == "ldam" else "linear")
    weighted = [s.loss.weights for s in first]
    assert weighted == ([None, "effective"] if "-drw" in name else [None])
    if "-drw" in name:
        early, late = first
        assert early.epochs == 2 * late.epochs and late.carry
        assert late == replace(early, epochs=late.epochs, carry=True, loss=replace(early.loss, weights="effective"))
    if scheme == "ldam":
        assert {s.loss.max_margin for s in this.stages} == {0.3}
    assert len(this.stages) == len(first) + (method == "-ccsam")
    assert any("ours" in note.lower() for note in this.notes)


@pytest.mark.parametrize("path", PATHS)
def test_its_network_is_built_on_meta(path):
    this = recipe(path)
    _, _, _, width = SETS[path.split("/")[0]]
    classes = OFFICIAL[type(this.data)][1]
    with torch.device("meta"):
        net = replace(this.model, weights=None).build(classes, 3).eval()
        assert net(torch.empty(2, 3, 64, 64)).shape == (2, classes)
    head = {tuple(p.shape) for n, p in net.named_parameters() if n.startswith("head.")}
    assert any({classes, width} == set(shape) for shape in head)


def rates(this):
    """The learning rate of every epoch of the first stage's chain."""
    first = [s for s in this.stages if s.train == "all"]
    total = sum(s.epochs for s in first)
    return [first[0].optim.lr * first[0].schedule(epoch, total) for epoch in range(total)]


@pytest.mark.parametrize("path", [p for p in PATHS if p.startswith(("imagenet-lt-r50", "inat18")) and "ccsam" not in p])
def test_saddle_s_protocol(path):
    this, inat = recipe(path), path.startswith("inat18")
    first = this.stages[0]
    assert (first.batch, first.optim.lr, first.optim.momentum) == (256, 0.1 if inat else 0.2, 0.9)
    assert first.optim.weight_decay == (1e-4 if inat and "ldam" in path else 2e-4)
    rate = rates(this)
    assert len(rate) == 90 and rate[0] == first.optim.lr and rate[45] == pytest.approx(first.optim.lr / 2)
    assert this.data.jitter == 0.4
    assert this.data.shots == (Slices(842, 3701, 3599) if inat else Slices(390, 445, 165))


@pytest.mark.parametrize("path", [p for p in PATHS if p.endswith("-sam")])
def test_the_radius_steps_where_saddle_s_does(path):
    this = recipe(path)
    inat = path.startswith("inat18") and "ldam" not in path
    r0, r1, r2, r3 = (0.05, 0.1, 0.1, 0.2) if inat else (0.05, 0.1, 0.5, 0.5)
    (rho,) = {s.method.rho for s in this.stages}
    assert isinstance(rho, Steps)
    by_epoch = [rho(epoch / 90) for epoch in range(90)]
    assert by_epoch == [r0] * 5 + [r1] * 55 + [r2] * 15 + [r3] * 15
    assert all(s.buffers == "all" for s in this.stages)


@pytest.mark.parametrize("path", [p for p in PATHS if p.endswith("-ccsam")])
def test_ccsam_has_the_paper_s_batch_and_two_stages(path):
    this = recipe(path)
    batch = {"imagenet": 256, "places": 128, "inat18": 512}[path.split("/")[0].split("-")[0]]
    assert {s.batch for s in this.stages} == {batch}
    *first, second = this.stages
    assert all(s.method.scope == "head" and s.buffers == "keep" for s in first)
    assert second.method == AdversarialFeatures() and second.sampler == Balanced(1)
    assert (second.train, second.statistics, second.schedule) == ("head", "moving", Cosine())
    assert second.optim.lr == pytest.approx(0.2 * first[0].optim.lr)
    assert this.data.shots == Strict()


def test_the_tail_of_ssesam_is_medium_and_few():
    for where, tail in (("imagenet-lt-r50", 609), ("places-lt", 233)):
        (stage,) = recipe(f"{where}/ce-ssesam").stages
        assert int((published(SETS[where][0]) < stage.method.eta).sum()) == tail


def test_kang_s_protocol_for_resnext():
    (stage,) = recipe("imagenet-lt-rx50/ce").stages
    assert (stage.epochs, stage.batch, stage.optim.lr, stage.optim.weight_decay) == (90, 512, 0.2, 5e-4)
    assert stage.schedule == Cosine() and recipe("imagenet-lt-rx50/ce").data == ImageNetLT()
