"""Which parameters move: frozen, unused, tied, some by name, and some that a later pass no longer uses."""

import copy
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from cases import CLASSES, COUNTS, EVERY, WEIGHTS, Pair, apart, close, closure, data, flat, gradient, gradients, mlp
from torch import nn

from flattail.sharp import CCSAM, ERM, SAM, SSESAM, ImbSAM, SAMNorms, SharpnessAware, Weighted
from flattail.sharp.engine import placed


def halves(model, x, y):
    parts = [(x[:9], y[:9]), (x[9:], y[9:])]
    return [closure(model, a, b) for a, b in parts], [b for _, b in parts]


@pytest.mark.parametrize("micro", [False, True])
@pytest.mark.parametrize("label", EVERY)
def test_an_unused_parameter_has_no_gradient_as_with_loss_backward(label, micro):
    """A gradient of zero instead of none would let weight decay and momentum act on it."""
    model, (x, y) = mlp(), data()
    model.backbone.unused = nn.Linear(2, 2).double()
    model.backbone.forward = lambda x: nn.Sequential(*list(model.backbone)[:4])(x)
    aware = flat(model, EVERY[label])
    losses, labels = halves(model, x, y) if micro else (closure(model, x, y), y)
    aware.backward(losses, labels, progress=0.1, step=0)
    assert model.backbone.unused.weight.grad is None and model.backbone.unused.bias.grad is None
    assert all(p.grad is not None for n, p in model.named_parameters() if "unused" not in n)


@pytest.mark.parametrize("frozen", ["backbone.0", "backbone.2.bias", "head.weight", "backbone"])
@pytest.mark.parametrize("label", EVERY)
def test_a_frozen_parameter_neither_moves_nor_counts(label, frozen):
    model, (x, y) = mlp(), data()
    for n, p in model.named_parameters():
        p.requires_grad_(not n.startswith(frozen))
    versions = {n: p._version for n, p in model.named_parameters()}
    got = gradient(model, EVERY[label], x, y)
    for n, g in got.items():
        assert (g is None) == n.startswith(frozen)
        assert not n.startswith(frozen) or model.get_parameter(n)._version == versions[n], "written to"


def test_frozen_parameters_are_constants_of_a_smaller_model():
    whole, (x, y) = mlp(), data()
    whole.backbone.requires_grad_(False)
    z = whole.backbone(x).detach()
    head = copy.deepcopy(whole.head)
    for method in (SAM(rho=0.3), SSESAM(), EVERY["asam"], CCSAM(scope="all")):
        got = gradient(whole, method, x, y)
        SharpnessAware(head, method, COUNTS).backward(closure(head, z, y), y, progress=0.1)
        close({n: got[f"head.{n}"] for n in gradients(head)}, gradients(head), 1e-13)
        head.zero_grad()


class Tied(nn.Module):
    """An autoencoder with one matrix for both ways."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(5, 5), nn.Linear(5, 5)
        self.outer.weight = self.inner.weight
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.head(torch.tanh(self.outer(torch.tanh(self.inner(x)))))


class Untied(nn.Module):
    """The same function, written with one parameter used twice."""

    def __init__(self, tied):
        super().__init__()
        self.w, self.a, self.b = (
            nn.Parameter(t.detach().clone()) for t in (tied.inner.weight, tied.inner.bias, tied.outer.bias)
        )
        self.head = copy.deepcopy(tied.head)

    def forward(self, x):
        return self.head(torch.tanh(F.linear(torch.tanh(F.linear(x, self.w, self.a)), self.w, self.b)))


@pytest.mark.parametrize("label", WEIGHTS)
def test_a_tied_parameter_moves_once(label):
    x, y = data()
    tied = Tied().double()
    plain = Untied(tied)
    a = gradient(tied, WEIGHTS[label], x, y)
    b = gradient(plain, WEIGHTS[label], x, y)
    names = {
        "inner.weight": "w",
        "inner.bias": "a",
        "outer.bias": "b",
        "head.weight": "head.weight",
        "head.bias": "head.bias",
    }
    if label == "ccsam-layers":  # its pattern means other layers here
        return
    close({names[n]: g for n, g in a.items()}, b, 1e-13)


class Branch(nn.Module):
    """Uses its second branch in the first pass only, as stochastic depth or a mixture of experts may."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.branch, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, CLASSES)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        z = torch.tanh(self.trunk(x))
        return self.head(z + self.branch(z) if self.calls == 1 else z)


@pytest.mark.parametrize("label", WEIGHTS)
def test_a_parameter_without_a_gradient_in_the_second_pass_is_restored(label):
    if label == "ccsam-layers":
        return
    net, (x, y) = Branch().double(), data()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    for _ in range(3):
        net.calls = 0
        optimizer.zero_grad()
        flat(net, WEIGHTS[label]).backward(closure(net, x, y), y, progress=0.1, step=0)
        optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


# -- only --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [False, True])
@pytest.mark.parametrize("pattern", [r"bias$", r"^head\.", r"backbone\.0|head", "."])
def test_only_displaces_what_it_names_and_trains_everything(pattern, micro):
    model, (x, y) = mlp(), data()
    seen = []

    def look(a, b):
        def losses():
            seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
            return F.cross_entropy(model(a), b, reduction="none")

        return losses

    parts = [(x[:9], y[:9]), (x[9:], y[9:])] if micro else [(x, y)]
    aware = flat(model, SAM(rho=0.3), only=pattern)
    aware.backward([look(*p) for p in parts], [b for _, b in parts])
    for n in seen[0]:
        assert torch.equal(seen[-1][n], seen[0][n]) != bool(re.search(pattern, n))
    assert all(p.grad is not None for p in model.parameters())
    place = torch.cat([p.flatten() for n, p in model.named_parameters() if re.search(pattern, n)])
    torch.testing.assert_close(aware.outcome.radii["flat"], 0.3 / place.norm().detach(), rtol=1e-9, atol=0)


def test_only_everything_is_everything():
    model, (x, y) = mlp(), data()
    for method in (SAM(rho=0.3), SSESAM(), ImbSAM(eta=100)):
        close(gradient(model, method, x, y, how={"only": "."}), gradient(model, method, x, y), 0)
        assert apart(gradient(model, method, x, y, how={"only": "bias"}), gradient(model, method, x, y))


def test_only_that_matches_nothing_says_what_there_is():
    model, (x, y) = mlp(), data()
    for method in (SAM(), CCSAM(scope="layer4")):
        with pytest.raises(ValueError, match=r"layer4.*backbone\.0\.weight"):
            flat(model, method, only="layer4").backward(closure(model, x, y), y)
    model.head.requires_grad_(False)
    with pytest.raises(ValueError, match="head"):
        flat(model, SAM(), only="head").backward(closure(model, x, y), y)
    with pytest.raises(ValueError, match="head has no trainable parameter"):
        flat(model, CCSAM()).backward(closure(model, x, y), y)


# -- shapes that models come in ----------------------------------------------------------------------------


def test_parameters_of_one_scalar_and_of_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.empty = nn.Parameter(torch.tensor(0.5).double()), nn.Parameter(torch.empty(0, 3).double())
            self.w = nn.Parameter(torch.randn(5, CLASSES).double())

        def forward(self, x):
            return self.a * x @ self.w + self.empty.sum()

    net, (x, y) = Net(), data()
    for label in WEIGHTS:
        if label != "ccsam-layers":
            got = gradient(net, WEIGHTS[label], x, y)
            assert all(torch.isfinite(g).all() for g in got.values())


def test_a_loss_that_is_a_view_of_a_larger_graph_and_labels_of_other_kinds():
    model, (x, y) = mlp(), data()
    expected = gradient(model, EVERY["imbsam"], x, y)
    close(gradient(model, EVERY["imbsam"], x, y.to(torch.int32), losses=closure(model, x, y)), expected, 0)


def test_weights_kept_by_others_are_still_the_same_tensors():
    """EMA copies, flat views and optimisers hold parameters by storage."""
    model, (x, y) = mlp(), data()
    views = [p.detach().view(-1) for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradient(model, SAM(rho=0.3), x, y)
    optimizer.step()
    assert all(torch.equal(v, p.detach().view(-1)) for v, p in zip(views, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=5),
    ],
)
def test_schedulers_act_on_the_optimiser_of_the_user(scheduler):
    """No optimiser is wrapped: lr of each step is the scheduler's, and so is the length of a step of ERM."""
    a, b = mlp(), mlp()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (a, b)]
    schedulers = [scheduler(o) for o in optimizers]
    for step in range(4):
        x, y = data(step)
        flat(a, ERM()).backward(closure(a, x, y), y)
        closure(b, x, y)().mean().backward()
        for o, s in zip(optimizers, schedulers, strict=True):
            o.step()
            s.step()
            o.zero_grad()
    assert all(torch.allclose(p, q, rtol=1e-14, atol=0) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_model_that_is_its_own_head_and_backbone_is_no_problem_for_weights():
    model = Pair(nn.Identity(), nn.Linear(5, CLASSES)).double()
    x, y = data()
    close(gradient(model, CCSAM(), x, y), gradient(model, CCSAM(scope="all"), x, y), 1e-12)


@pytest.fixture
def alone(tmp_path):
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("pattern", [r"^(?!head\.)", r"^head\.", r"^backbone\.0\.weight$"])
def test_a_pattern_is_matched_on_the_names_that_the_bare_model_has(alone, pattern):
    """Whatever is wrapped around it: DistributedDataParallel puts `module.` before every name."""
    bare = mlp()
    compiled = copy.copy(bare)
    inside = nn.Module()
    inside.add_module("_orig_mod", compiled)
    expected = [id(p) for n, p in bare.named_parameters() if re.search(pattern, n)]
    for model in (bare, nn.parallel.DistributedDataParallel(bare), inside):
        assert [id(p) for p in placed(model, pattern)] == expected
    norms = mlp(norm=nn.BatchNorm1d)
    wrapped = SharpnessAware(nn.parallel.DistributedDataParallel(norms), SAMNorms())
    assert wrapped.how["only"] == SharpnessAware(norms, SAMNorms()).how["only"]


@pytest.mark.parametrize("scope", ["head", "all"])
def test_a_class_whose_samples_have_no_mass_is_not_in_the_mean_over_classes(scope):
    model, (x, y) = mlp(), data()
    masses, there = (y != 2).double(), y != 2

    def masked():
        return Weighted(F.cross_entropy(model(x), y, reduction="none"), masses)

    found = []
    for losses, labels in ((masked, y), (closure(model, x[there], y[there]), y[there])):
        model.zero_grad()
        SharpnessAware(model, CCSAM(scope=scope), COUNTS).backward(losses, labels, 0.1, step=0)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*found)
