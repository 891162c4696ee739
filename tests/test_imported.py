"""Checkpoints of released code: the imported model answers as the foreign one, and what does not fit is named."""

import argparse
import hashlib
import json
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small import DIGITS, digits
from torch import nn
from torchvision.models import get_model

from flattail import runs
from flattail.experiment import run
from flattail.imported import fitted, import_run, opened, read_class_map, taken
from flattail.models import ResNet8, ResNet20, ResNet30, ResNet32, ResNet34Cifar, Split, Torchvision
from flattail.recipe import from_tree
from flattail.report import build as report
from flattail.rescored import scored


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# -- networks with the names that released code uses ---------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.stride, self.extra = (1, 0) if inputs == outputs else (2, inputs // 2)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        z = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        beside = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(z + beside)


class Cosine(nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, classes))

    def forward(self, z):
        return F.normalize(z, dim=1) @ F.normalize(self.weight, dim=0)


class Fc(nn.Module):
    def __init__(self, features, classes, scales=False):
        super().__init__()
        self.fc = nn.Linear(features, classes)
        if scales:
            self.scales = nn.Parameter(torch.rand(classes) + 0.5)

    def forward(self, z):
        return self.fc(z) * getattr(self, "scales", 1)


class Family(nn.Module):
    """Saddle-LongTail, LDAM-DRW, VS: a ResNet for CIFAR with `linear`; or BBN's, with branches and `classifier`."""

    def __init__(self, blocks, *, width=4, channels=3, classes=10, head=nn.Linear, bbn=False):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage, many in enumerate(blocks):
            sizes = [width * 2 ** max(stage - 1, 0)] + [width * 2**stage] * many
            stack = nn.Sequential(*(Block(a, b) for a, b in pairwise(sizes)))
            setattr(self, f"layer{stage + 1}", stack)
        if bbn:
            self.cb_block, self.rb_block = Block(4 * width, 4 * width), Block(4 * width, 4 * width)
        self.name = "classifier" if bbn else "linear"
        setattr(self, self.name, Fc(4 * width, classes) if bbn else head(4 * width, classes))

    def forward(self, x):
        z = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return getattr(self, self.name)(z.mean((2, 3)))


class Encoder(nn.Module):
    """ImbSAM, SSE-SAM: torchvision's ResNet-34 as `encoder`, 3x3 stem, no pooling before the end."""

    def __init__(self, classes):
        super().__init__()
        self.encoder = get_model("resnet34", weights=None)
        self.encoder.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.encoder.fc = nn.Linear(512, classes)

    def forward(self, x):
        e = self.encoder
        z = e.layer4(e.layer3(e.layer2(e.layer1(F.relu(e.bn1(e.conv1(x)))))))
        return e.fc(F.avg_pool2d(z, 4).flatten(1))


class Parts(nn.Module):
    """classifier-balancing: a feature model and a classifier, saved apart."""

    def __init__(self, name, classes, scales=False):
        super().__init__()
        self.feat_model = get_model(name, weights=None)
        features, self.feat_model.fc = self.feat_model.fc.in_features, nn.Identity()
        self.classifier = Fc(features, classes, scales)

    def forward(self, x):
        return self.classifier(self.feat_model(x))

    def saved(self):
        return {name: nn.DataParallel(net).state_dict() for name, net in self.named_children()}


def lived(net, seed=0):
    """A network in evaluation mode whose norms have seen something."""
    g = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = torch.rand(tensor.shape, generator=g) * 0.5 + 0.5
    return net.eval()


def onto(weights, model, *, channels=3, classes=10, **how):
    net = model.build(classes, channels)
    net.load_state_dict(fitted(taken(weights, "x.pt"), net, "x.pt", **how))
    return net.eval()


def same(a, b, *, size=16, channels=3):
    x = torch.randn(4, channels, size, size)
    with torch.no_grad():
        assert a(x).std(0).min() > 1e-6  # the answers depend on the image
        assert torch.allclose(a(x), b(x), rtol=1e-4, atol=1e-5)


# -- the architectures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "model"), [((5, 5, 5), ResNet32(4)), ((3, 3, 3), ResNet20(4)), ((1, 1, 1), ResNet8(8))]
)
def test_a_resnet_for_cifar(blocks, model):
    net = lived(Family(blocks, width=model.width))
    same(net, onto(net.state_dict(), model))


def test_a_cosine_head_either_way_round():
    net = lived(Family((5, 5, 5), head=Cosine))
    weights, model = net.state_dict(), ResNet32(4, head="cosine")
    same(net, onto(weights, model))
    same(net, onto(weights | {"linear.weight": weights["linear.weight"].T}, model))


def test_ccsams_resnet_is_what_its_forward_pass_computes():
    net = lived(Family((5, 5, 4), bbn=True))
    weights = net.state_dict()
    assert any(name.startswith("rb_block.") for name in weights)
    same(net, onto(weights, ResNet30(4)))
    with pytest.raises(ValueError, match=r"10 missing: layer3\.4\.conv1\.weight \[16, 16, 3, 3\]; layer3\.4\.bn1\."):
        onto(weights, ResNet32(4))
    del weights["classifier.fc.bias"]
    with pytest.raises(ValueError, match=r"missing: head\.bias \[10\]"):
        onto(weights, ResNet30(4))


def test_branches_of_who_uses_them_are_not_dropped():
    weights = lived(Family((5, 5, 4), bbn=True)).state_dict()
    weights = {name.replace("classifier.fc", "classifier"): t for name, t in weights.items()}
    with pytest.raises(ValueError, match=r"24 unknown: cb_block\.conv1\.weight"):
        onto(weights, ResNet30(4))


def test_an_encoder():
    net = lived(Encoder(7))
    same(net, onto(net.state_dict(), ResNet34Cifar(), classes=7), size=32)


@pytest.mark.parametrize(("name", "scales"), [("resnet18", False), ("resnet18", True), ("resnext50_32x4d", False)])
def test_feature_model_and_classifier(name, scales):
    net = lived(Parts(name, 6, scales))
    same(net, onto({"epoch": 3, "state_dict_best": net.saved()}, Torchvision(name), classes=6), size=64)


def test_a_plain_torchvision_model_with_a_cosine_fc():
    net = lived(get_model("resnet18", weights=None))
    net.fc = Cosine(512, 9)
    same(net, onto(net.state_dict(), Torchvision("resnet18", head="cosine"), classes=9), size=64)


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "vit_b_32", "convnext_tiny"])
def test_whole_classifiers_of_torchvision(name):
    with torch.device("meta"):
        foreign, ours = get_model(name, weights=None), Torchvision(name).build(1000)
    weights = fitted(taken(foreign.state_dict(), "x.pt"), ours, "x.pt")
    assert weights.keys() == ours.state_dict().keys() and len(weights) == len(foreign.state_dict())


@pytest.mark.parametrize("model", [ResNet8(4), ResNet8(4, "group", "cosine"), ResNet30(4)], ids=str)
def test_our_own_names(model):
    net = lived(model.build(5, 3))
    same(net, onto(net.state_dict(), model, classes=5))


# -- what surrounds a state dict -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "around",
    [
        lambda s: {"epoch": 1, "arch": "resnet32", "best_acc1": torch.tensor(40.0), "state_dict": s, "optimizer": {}},
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"net": s, "acc": 0.4},
        lambda s: {"state_dict": {"model": s}},
        lambda s: {f"module.{name}": t for name, t in s.items()},
        lambda s: {f"module._orig_mod.{name}": t for name, t in s.items()},
        lambda s: {"state_dict_best": {f"module.{name}": t for name, t in s.items()}, "state_dict": {}},
        lambda s: {name: t for name, t in s.items() if "num_batches" not in name},
        lambda s: {name: t.double() for name, t in s.items()},
    ],
)
def test_containers_and_prefixes(around, tmp_path):
    net = lived(Family((1, 1, 1)))
    torch.save(around(net.state_dict()), tmp_path / "c.pt")
    ours = ResNet8(4).build(10)
    ours.load_state_dict(fitted(opened(tmp_path / "c.pt"), ours, "c.pt"))
    same(net, ours.eval())


def test_safetensors(tmp_path):
    net = lived(Family((1, 1, 1)))
    save_file(net.state_dict(), tmp_path / "c.safetensors")
    assert opened(tmp_path / "c.safetensors").weights.keys() == net.state_dict().keys()
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:99])
    with pytest.raises(ValueError, match=r"c\.safetensors is no checkpoint that torch\.load or safetensors can read"):
        opened(tmp_path / "c.safetensors")


class Harm:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('harm').touch()",)


@pytest.mark.parametrize("content", [lambda: {"state_dict": Harm()}, lambda: Family((1, 1, 1))])
def test_code_in_a_checkpoint_is_not_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content(), "c.pt")
    with pytest.raises(
        ValueError, match=r"c\.pt would run code when it is read \(\S+\), so it is not read\. Where you"
    ):
        opened(tmp_path / "c.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no checkpoint that"),
        (b"hello", "is no checkpoint that"),
        ({"epoch": 1, "weight": "w"}, r"holds no state dict \(entries epoch; weight\): save model\.state_dict\(\)"),
        ([torch.ones(2)], r"holds no state dict \(list\)"),
        ({"state_dict": {}, "class_map": [0, 2]}, "class_map: a permutation of 0...C-1 is needed"),
    ],
)
def test_no_state_dict(content, said, tmp_path):
    path = tmp_path / "c.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=said):
        opened(path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        opened(tmp_path / "absent.pt")


# -- what does not fit ---------------------------------------------------------------------------------------------


def test_all_that_does_not_fit_is_named_with_shapes():
    weights = lived(Family((5, 5, 5), classes=100)).state_dict() | {"alpha": torch.ones(2, 3), "note": "text"}
    weights["conv1.weight"] = weights["conv1.weight"][:, :1]
    del weights["layer2.0.bn1.bias"]
    with pytest.raises(ValueError) as caught:
        onto(weights, ResNet32(4))
    for said in (
        "x.pt does not fit the recipe's model",
        "2 unknown: alpha [2, 3]; note (str)",
        "1 missing: layer2.0.bn1.bias [8]",
        "3 of another shape: conv1.weight [4, 1, 3, 3], the model's is [4, 3, 3, 3]; "
        "linear.weight [100, 16], the model's is [10, 16]; linear.bias [100], the model's is [10]",
        "Is the recipe's model the network that was trained?",
    ):
        assert said in str(caught.value)


def test_the_first_ten_and_the_count():
    with pytest.raises(ValueError) as caught:
        onto(lived(Family((3, 3, 3))).state_dict(), ResNet32(4))
    (line,) = (line for line in str(caught.value).splitlines() if "missing" in line)
    assert line.strip().startswith("60 missing: layer1.3.conv1.weight") and line.count(";") == 10


@pytest.mark.parametrize(("theirs", "ours", "said"), [(Cosine, "linear", "cosine"), (nn.Linear, "cosine", "linear")])
def test_the_other_head_is_recognised(theirs, ours, said):
    with pytest.raises(ValueError, match=f"--set model.head={said}"):
        onto(Family((1, 1, 1), head=theirs).state_dict(), ResNet8(4, head=ours))


# -- classes in another order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [nn.Linear, Cosine])
def test_a_class_map_reorders_the_answers(head):
    net, order = lived(Family((1, 1, 1), classes=5, head=head)), [3, 0, 4, 1, 2]
    model = ResNet8(4, head="linear" if head is nn.Linear else "cosine")
    ours = onto(net.state_dict(), model, classes=5, class_map=order)
    same(lambda x: net(x)[:, order], ours)
    with pytest.raises(ValueError, match="the class map has 4 entries, and the recipe 5 classes"):
        onto(net.state_dict(), model, classes=5, class_map=[0, 1, 2, 3])


@pytest.mark.parametrize("text", ["[0, 0, 1]", "[1, 2]", "{}", "[0.0, 1.0]", "[0, 1", "3"])
def test_a_class_map_that_is_none(text, tmp_path):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=r"m\.json"):
        read_class_map(tmp_path / "m.json")


# -- run directories -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe = digits(epochs=6)
    return recipe, run(recipe, out=tmp_path_factory.mktemp("out"), label="mine/r", device="cpu")


def plain(path):
    return json.loads(path.read_text())


def test_a_run_that_leaves_and_comes_back_has_the_same_scores(trained, tmp_path):
    recipe, home = trained
    order = [7, 2, 9, 0, 1, 3, 8, 4, 6, 5]  # elsewhere, class c was called order[c]
    weights, places = load_file(home / "model.safetensors"), torch.tensor(order)
    weights |= {n: torch.empty_like(t).index_copy(0, places, t) for n, t in weights.items() if n.startswith("head.")}
    torch.save({"epoch": 1, "state_dict": OrderedDict(weights)}, tmp_path / "c.pth")
    away = import_run(tmp_path / "c.pth", recipe, tmp_path / "theirs/4", class_map=order, device="cpu")
    assert away == tmp_path / "theirs/4"
    ours, said = plain(home / "scores.json"), plain(away / "scores.json")
    assert {n for n in ours if ours[n] != said[n]} == {"selection", "epoch", "warnings"}
    assert said["selection"] == "imported" and said["warnings"] == ["weights imported from c.pth, not trained here"]
    assert scored(away).to_json() == scored(away, views="one", device="cpu").to_json() == ours["scores"]
    env = plain(away / "env.json")
    digest = hashlib.sha256((tmp_path / "c.pth").read_bytes()).hexdigest()
    assert env["imported"] == {"file": "c.pth", "sha256": digest, "format": "state dict", "class_map": order}
    done = runs.read(away)
    assert done.finished and done.seed == 4 and done.label == "theirs"
    assert from_tree(done.recipe) == replace(recipe, title="tiny (imported)")
    page = report(runs.find([home.parents[2], tmp_path / "theirs"]), tmp_path / "r.html").read_text()
    assert "tiny (imported)" in page and "not trained here" in page

    torch.save({"state_dict": weights, "class_map": torch.tensor(order)}, tmp_path / "own.pth")
    own = import_run(tmp_path / "own.pth", recipe, tmp_path / "own/4", device="cpu")
    assert plain(own / "scores.json")["scores"] == ours["scores"]

    other = import_run(tmp_path / "c.pth", recipe, tmp_path / "unordered/0", device="cpu")
    assert plain(other / "scores.json")["scores"]["all"] < 0.5 * ours["scores"]["all"]


def test_ccsams_resnet_becomes_a_run_of_resnet30_that_can_be_read_again(tmp_path):
    net = lived(Family((5, 5, 4), channels=1, bbn=True))
    torch.save(net.state_dict(), tmp_path / "c.pth")
    recipe = from_tree(DIGITS | {"model": {"name": "resnet32", "width": 4}, "stages": [{"epochs": 1}]})
    folder = import_run(tmp_path / "c.pth", recipe, tmp_path / "cc/0", device="cpu")
    done = runs.read(folder)
    assert from_tree(done.recipe).model == ResNet30(4) and done.recipe["title"] == "cc (imported)"
    assert any("ResNet30, and not ResNet-32" in w for w in done.scores["warnings"])
    assert scored(folder, views="one", device="cpu").to_json() == done.scores["scores"]
    blocks = ResNet32(4).build(10, 1).backbone.stages, ResNet30(4).build(10, 1).backbone.stages
    assert [len(b) for b in blocks] == [15, 14] and isinstance(ResNet30().build(3), Split)


def test_answers_by_chance_are_pointed_out(tmp_path):
    torch.save(Family((1, 1, 1), width=8, channels=1).state_dict(), tmp_path / "c.pth")
    said = plain(import_run(tmp_path / "c.pth", digits(), tmp_path / "0", device="cpu") / "scores.json")
    assert any("in another order" in w for w in said["warnings"]) == (said["scores"]["balanced"] < 0.15)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out": "theirs"}, "a run directory is named by its seed, a number: write theirs/0"),
        ({"out": "full/0"}, "is not empty: choose another --out, or remove it"),
        ({"file": "absent.pth"}, "no such checkpoint"),
        ({"weights": {"conv1.weight": torch.ones(1)}}, "does not fit the recipe's model"),
        ({"class_map": [0, 1]}, "the class map has 2 entries, and the recipe 10 classes"),
        ({"data": "places-lt"}, "no such list"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing_behind(change, said, tmp_path):
    weights = Family((1, 1, 1), width=8, channels=1).state_dict()
    torch.save(change.get("weights", weights), tmp_path / "c.pth")
    (tmp_path / "full/0").mkdir(parents=True)
    (tmp_path / "full/0/mine").touch()
    before = set(tmp_path.rglob("*"))
    recipe = from_tree(DIGITS | {"data": change.get("data", "digits-lt"), "stages": [{"epochs": 1}]})
    with pytest.raises((ValueError, OSError), match=said):
        import_run(
            tmp_path / change.get("file", "c.pth"), recipe, tmp_path / change.get("out", "theirs/0"),
            class_map=change.get("class_map"), root=tmp_path, device="cpu",
        )  # fmt: skip
    assert set(tmp_path.rglob("*")) == before
