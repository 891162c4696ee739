"""Mistakes of users: a ValueError that names the place and the remedy."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import COUNTS, EVERY, closure, data, gradient, mlp
from torch import nn

from flattail.sharp import (
    ASAM,
    CCSAM,
    GSAM,
    LPFSGD,
    MSAM,
    PGD,
    SAM,
    SSESAM,
    WSAM,
    Every,
    FocalSAM,
    FriendlySAM,
    GradientNormPenalty,
    ImbSAM,
    Linear,
    LookSAM,
    ModelPerturbation,
    SharpnessAware,
    Steps,
    Weighted,
    Window,
)


def step(method, losses, y, counts=COUNTS, model=None, how=None, **given):
    return SharpnessAware(model or mlp(), method, counts, **(how or {})).backward(losses, y, **given)


LOSSES = {
    "mean": (lambda m, x, y: F.cross_entropy(m(x), y), r'shape \[\].*reduction="none"'),
    "matrix": (lambda m, x, y: m(x), r"shape \[22, 6\].*\[B\]"),
    "short": (lambda m, x, y: F.cross_entropy(m(x), y, reduction="none")[:5], "5 losses for 22 labels"),
    "weighted mean": (
        lambda m, x, y: Weighted(F.cross_entropy(m(x), y), torch.ones(())),
        r'shape \[\].*reduction="none"',
    ),
    "short masses": (
        lambda m, x, y: Weighted(F.cross_entropy(m(x), y, reduction="none"), torch.ones(5)),
        r"masses of shape \[5\].*\[22\]",
    ),
    "backwards": (lambda m, x, y: None, "NoneType.*one loss per sample"),
}


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("method", [SAM(), SSESAM(), CCSAM()])
def test_a_closure_that_returns_no_loss_per_sample(kind, method):
    make, words = LOSSES[kind]
    model, (x, y) = mlp(), data()
    with pytest.raises(ValueError, match=words):
        step(method, lambda: make(model, x, y), y, model=model, progress=0.1)


def test_labels_outside_the_counts():
    model, (x, y) = mlp(), data()
    for wrong in (y + 1, y - 1):
        with pytest.raises(ValueError, match=r"labels run from .* `counts` has 6 classes"):
            step(SAM(), closure(model, x, y), wrong, model=model)


@pytest.mark.parametrize(
    "method", [ImbSAM(eta=8), SSESAM(eta=5), Window(ImbSAM(eta=8)), Every(SSESAM(eta=5)), Every(Window(ImbSAM(eta=1)))]
)
def test_eta_without_a_tail_is_refused_before_training(method):
    with pytest.raises(ValueError, match=r"leaves no tail class.*8 to 500.*choose eta above 8"):
        SharpnessAware(mlp(), method, COUNTS)


def test_eta_few_without_few_shot_classes():
    with pytest.raises(ValueError, match="eta='few' leaves no tail"):
        SharpnessAware(mlp(), ImbSAM(eta="few"), COUNTS + 20)
    SharpnessAware(mlp(), ImbSAM(eta="few"), COUNTS + 20, few=COUNTS < 100)


@pytest.mark.parametrize(
    "method, words",
    [
        (FocalSAM(), r"`counts`.*SharpnessAware\(model, method, counts\)"),
        (CCSAM(), r"`counts`.*SharpnessAware\(model, method, counts\)"),
    ],
)
def test_missing_counts_are_asked_for_in_the_step(method, words):
    model, (x, y) = mlp(), data()
    with pytest.raises(ValueError, match=words):
        step(method, closure(model, x, y), y, counts=None, model=model)


@pytest.mark.parametrize("method", [ImbSAM(), SSESAM(), ImbSAM(eta="few"), Window(ImbSAM())])
def test_missing_counts_are_asked_for_at_once(method):
    with pytest.raises(ValueError, match=r"`counts`.*SharpnessAware\(model, method, counts\)"):
        SharpnessAware(mlp(), method)


@pytest.mark.parametrize(
    "method", [SSESAM(), Window(SAM()), SAM(rho=Linear(0.1, 0.2)), ImbSAM(eta=100, rho=Steps((0.1,), ()))]
)
def test_missing_progress_names_the_remedy(method):
    model, (x, y) = mlp(), data()
    with pytest.raises(ValueError, match=r"`progress`.*progress=step / total"):
        step(method, closure(model, x, y), y, model=model)


def test_missing_step_and_hard_name_the_remedy():
    model, (x, y) = mlp(), data()
    with pytest.raises(ValueError, match=r"`step`.*step=step"):
        step(Every(SAM()), closure(model, x, y), y, model=model)
    with pytest.raises(ValueError, match=r"`hard`.*hard=closure_with_hard_labels"):
        step(CCSAM(labels="hard"), closure(model, x, y), y, model=model)


def test_what_a_step_does_not_need_need_not_be_given():
    model, (x, y) = mlp(), data()
    step(SAM(), closure(model, x, y), y, counts=None, model=model)
    step(EVERY["asam"], closure(model, x, y), y, counts=None, model=model)


def test_micro_batches_of_other_numbers():
    model, (x, y) = mlp(), data()
    one = closure(model, x, y)
    for losses, labels in (([one, one], [y]), ([one], [y, y]), ([one, one], y), (one, [y, y]), ([], [])):
        with pytest.raises(ValueError, match=r"closures.*batches of labels.*per micro-batch"):
            step(SAM(), losses, labels, model=model)
    with pytest.raises(ValueError, match="hard closures"):
        step(SAM(), [one, one], [y, y], model=model, hard=[one])


def test_labels_that_are_no_labels():
    model, (x, y) = mlp(), data()
    for wrong in (F.one_hot(y, 6), y.double()):
        with pytest.raises(ValueError, match=r"labels.*\[B\].*int64"):
            step(ImbSAM(eta=100), closure(model, x, y), wrong, model=model)


class Sharded(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.w.device_mesh = "a mesh"


def test_sharded_models_are_refused():
    with pytest.raises(ValueError, match=r"FSDP, DTensor.*DistributedDataParallel"):
        SharpnessAware(Sharded(), SAM())

    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(ValueError, match="FSDP"):
        SharpnessAware(nn.Sequential(FullyShardedDataParallel()), SAM())


@pytest.mark.parametrize("what", [mlp().parameters(), torch.optim.SGD(mlp().parameters()), list(mlp().parameters())])
def test_the_network_is_needed_and_not_what_other_wrappers_take(what):
    with pytest.raises(ValueError, match="the network itself is needed, neither its parameters nor the optimiser"):
        SharpnessAware(what, SAM())


def test_a_real_dtensor_is_refused():
    from torch.distributed.tensor import DTensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        net = nn.Linear(4, 4)
        net.weight = nn.Parameter(DTensor.from_local(torch.ones(2, 4), mesh))
        with pytest.raises(ValueError, match="DTensor"):
            SharpnessAware(net, SAM())
    finally:
        torch.distributed.destroy_process_group()


def test_data_parallel_is_no_model_for_head_methods():
    with pytest.raises(ValueError, match=r"backbone.*DataParallel.*Split"):
        SharpnessAware(nn.DataParallel(mlp()), CCSAM(), COUNTS)


@pytest.mark.parametrize("method", [CCSAM(), Window(CCSAM()), Every(CCSAM())])
def test_a_head_method_needs_a_head(method):
    for net in (nn.Linear(5, 6), nn.Sequential(nn.Linear(5, 6))):
        with pytest.raises(ValueError, match=r"`model.backbone` and `model.head`.*lacks.*Split\(backbone, head\)"):
            SharpnessAware(net, method, COUNTS)
    SharpnessAware(nn.Linear(5, 6), CCSAM(scope="all"), COUNTS)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SAM(rho="0.1"), r"a radius is a number, or a schedule such as Linear\(0.05, 0.8\), not '0.1'"),
        (lambda: ASAM(rho=None), "a radius is a number"),
        (lambda: CCSAM(scale=-1.0), "scale"),
        (lambda: CCSAM(cap=0.0), "cap"),
        (lambda: CCSAM(mix=1.5), "mix"),
        (lambda: Every(SAM(), 0), "whole number of at least 1"),
        (lambda: Every(SAM(), 1.5), "whole number of at least 1, not 1.5"),
        (lambda: Window("sam"), r"an instance of a method is needed, e\.g\. SAM"),
        (lambda: Every(SAM), "an instance of a method is needed"),
        (lambda: ImbSAM(over="foo"), "`over` is one of 'batch', 'members', not 'foo'"),
        (lambda: ImbSAM(eta="many"), "`eta` is one of 'few'"),
        (lambda: SSESAM(eta=-1), "`eta` is a whole number of at least 1"),
        (lambda: SSESAM(switch=2.0), "`switch` is a share"),
        (lambda: FocalSAM(strength=-0.1), "`strength` must not be negative"),
        (lambda: FocalSAM(gamma=-1.0), "`gamma` must not be negative"),
        (lambda: ASAM(floor=-1.0), "`floor` must not be negative"),
        (lambda: CCSAM(average="mean"), "`average` is one of 'samples', 'classes', 'class-sum'"),
        (lambda: CCSAM(norm="l1"), "`norm` is one of"),
        (lambda: CCSAM(labels="soft"), "`labels` is one of"),
        (lambda: CCSAM(length="paper"), "`length` is one of"),
        (lambda: CCSAM(direction="up"), "`direction` is one of"),
        (lambda: WSAM(gamma=1.0), r"`gamma` is in \[0, 1\)"),
        (lambda: GradientNormPenalty(alpha=-1.0), "`alpha`"),
        (lambda: GSAM(alpha=-1.0), "`alpha`"),
        (lambda: FriendlySAM(decay=1.1), "`decay` is a share"),
        (lambda: LookSAM(k=0), "`k` is a whole number"),
        (lambda: MSAM(momentum=1.1), "`momentum` is a share"),
        (lambda: LPFSGD(draws=0), "`draws` is a whole number"),
        (lambda: ModelPerturbation(draws=1.5), "`draws` is a whole number"),
        (lambda: PGD(pause=-1), "`pause` must not be negative"),
    ],
)
def test_values_that_mean_nothing(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_unknown_policy_is_refused():
    model, (x, y) = mlp(), data()
    for how in ({"buffers": "first"}, {"dropout": "new"}):
        with pytest.raises(ValueError, match=r"buffers|dropout"):
            step(SAM(), closure(model, x, y), y, model=model, how=how)


def test_a_model_without_anything_to_train():
    model, (x, y) = mlp(), data()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="the model has no trainable parameter: requires_grad is False"):
        step(SAM(), closure(model, x, y), y, model=model)


def test_a_closure_that_does_not_use_the_model():
    model, other, (x, y) = mlp(), mlp(), data()
    for method in (SAM(), ImbSAM(eta=100), CCSAM()):
        with pytest.raises(ValueError, match="closure"):
            step(method, closure(other, x, y), y, model=model)


@pytest.mark.parametrize(
    "counts, words",
    [
        (torch.arange(6)[data()[1]], r"22 entries, and the head answers for 6 classes.*bincount"),
        ([0.5, 0.2, 0.1, 0.1, 0.05, 0.05], r"no whole numbers \(frequencies\?\).*bincount"),
        ([0] * 6, "some class has some"),
        ([10, -1, 3, 3, 3, 3], "some class has some"),
        ([100, 10, 1], "3 entries, and the head answers for 6"),
        ([[1, 2, 3, 4, 5, 6]], r"\[C\], not the shape \[1, 6\]"),
        (5, r"\[C\], not the shape \[\]"),
        ([], r"not the shape \[0\]"),
    ],
)
def test_counts_that_are_none(counts, words):
    with pytest.raises(ValueError, match=words):
        SharpnessAware(mlp(), FocalSAM(), counts)


def test_counts_and_labels_may_be_arrays_and_lists():
    model, (x, y) = mlp(), data()
    for counts in (COUNTS.numpy(), COUNTS.tolist(), COUNTS.double(), COUNTS.int()):
        SharpnessAware(model, FocalSAM(), counts).backward(closure(model, x, y), y)
    for labels in (y.numpy(), y.tolist(), [y], (y.numpy(),)):
        model.zero_grad()
        step(ImbSAM(eta=100), closure(model, x, y), labels, model=model)
    got = model.head.weight.grad.clone()
    model.zero_grad()
    step(ImbSAM(eta=100), closure(model, x, y), y, model=model)
    assert torch.equal(got, model.head.weight.grad)


@pytest.mark.parametrize("progress", [-0.1, 1.5, 80, float("nan")])
def test_progress_is_a_share(progress):
    model, (x, y) = mlp(), data()
    with pytest.raises(ValueError, match=r"progress=.* is no share.*step / total"):
        step(SAM(), closure(model, x, y), y, model=model, progress=progress)


def test_a_tensor_instead_of_a_closure():
    model, (x, y) = mlp(), data()
    with pytest.raises(ValueError, match=r"write backward\(lambda: F\.cross_entropy"):
        step(SAM(), F.cross_entropy(model(x), y, reduction="none"), y, model=model)


@pytest.mark.parametrize("before", [False, True])
def test_a_closure_that_calls_backward(before):
    """Gradients that were there, or not."""
    model, (x, y) = mlp(), data()
    if before:
        closure(model, x, y)().sum().backward()

    def losses():
        loss = F.cross_entropy(model(x), y, reduction="none")
        loss.mean().backward()
        return loss

    for method in (SAM(), CCSAM(), PGD()):
        with pytest.raises(ValueError, match=r"the closure changed `\.grad`.*leave backward\(\)"):
            step(method, losses, y, model=model)


def test_where_every_class_is_tail_it_is_said_once():
    for method in (ImbSAM(eta=1000), SSESAM(eta=1000), Window(ImbSAM(eta=1000))):
        with pytest.warns(UserWarning, match="eta=1000 makes every class tail: the largest has 500"):
            SharpnessAware(mlp(), method, COUNTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SharpnessAware(mlp(), ImbSAM(eta=100), COUNTS)


def test_a_method_that_remembers_is_stepped_by_what_holds_its_memory():
    from flattail.sharp import Context

    with pytest.raises(ValueError, match=r"`memory`.*step through SharpnessAware"):
        FriendlySAM().terms(Context(torch.zeros(1).long()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@pytest.mark.parametrize("method", [SSESAM(), ImbSAM(eta=100), CCSAM()], ids=repr)
def test_labels_of_any_whole_type_are_those_of_int64(method, dtype):
    """As data sets keep them: indexing by bytes would be a mask."""
    model, (x, y) = mlp(), data()
    expected = gradient(model, method, x, y, progress=0.1)
    aware = SharpnessAware(model, method, COUNTS)
    model.zero_grad()
    aware.backward(closure(model, x, y), y.to(dtype), progress=0.1)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=0)


def test_counts_of_other_classes_and_mappings_are_refused():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match="answers for 3 classes"):
        SharpnessAware(net, SAM(), [500, 120, 30, 10])
    with pytest.raises(ValueError, match="not a mapping"):
        SharpnessAware(net, SAM(), {0: 500, 1: 120, 2: 30})


def test_an_optimiser_that_steps_inside_the_pass_is_noticed():
    """The weights would be put back, and nothing be trained, in silence."""
    model, (x, y) = mlp(), data()
    for p in model.parameters():
        one = torch.optim.SGD([p], lr=0.1)
        p.register_post_accumulate_grad_hook(lambda p, one=one: one.step())
    with pytest.raises(RuntimeError, match=r"changed while they were displaced.*step after flat\.backward"):
        step(SAM(0.1), closure(model, x, y), y, model=model)


def test_a_state_of_something_else_is_refused():
    flat = SharpnessAware(mlp(), FriendlySAM(0.1))
    with pytest.raises(ValueError, match=r"holds `memory` alone, and this \['model'\]"):
        flat.load_state_dict({"model": 1})


def test_freezing_below_a_method_that_remembers_is_refused():
    model, (x, y) = mlp(), data()
    flat = SharpnessAware(model, MSAM(0.1))
    flat.backward(closure(model, x, y), y)
    model.backbone.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"MSAM remembers 6 parameters, and 2 are trained now: .* a new SharpnessAware"
    ):
        flat.backward(closure(model, x, y), y)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: SharpnessAware(m, nn.CrossEntropyLoss()), "has no `terms`: a method is needed"),
        (lambda m: SharpnessAware(m, SAM(0.1), COUNTS, few=[True, False]), "`few` says of each class"),
        (lambda m: SharpnessAware(m, SAM(0.1), few=[True]), "give both, of one length"),
    ],
)
def test_other_things_in_place_of_methods_and_classes_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make(mlp())


def test_patterns_and_returned_values_are_looked_at():
    model, (x, y) = mlp(), data()
    with pytest.raises(ValueError, match=r"only='\[' is no regular expression"):
        step(SAM(0.1), closure(model, x, y), y, model=model, how={"only": "["})
    with pytest.raises(ValueError, match="returned 3 things: losses, or a pair"):
        step(SAM(0.1), lambda: (closure(model, x, y)(), 1, 2), y, model=model)
    flags = SharpnessAware(model, ImbSAM(0.1, eta="few"), COUNTS, few=[False] * 5 + [True])
    flags.backward(closure(model, x, y), [*y.numpy()])  # labels as numbers of NumPy
