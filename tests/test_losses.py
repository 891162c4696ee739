"""The losses against PyTorch's own, closed forms, published constants, and their invariances."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from flattail.losses import (
    CE,
    GCL,
    IB,
    LA,
    LADE,
    LDAM,
    LOSSES,
    VS,
    WEIGHTS,
    Focal,
    LabelAwareSmoothing,
    class_weights,
    ldam_margins,
    needs,
)
from flattail.sharp import Weighted

C10 = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])  # CIFAR-10-LT, IF 100
C100 = torch.tensor([int(500 * 0.01 ** (j / 99)) for j in range(100)])  # CIFAR-100-LT, IF 100
EVERY = [
    CE(),
    CE(weights="effective"),
    CE(smoothing=0.1),
    Focal(gamma=2.0),
    Focal(weights="inverse"),
    LDAM(),
    LDAM(cosine=False, weights="effective"),
    VS(),
    LA(tau=0.75, weights="power:1.2"),
    LabelAwareSmoothing(0.4, 0.1),
    LabelAwareSmoothing(0.4, 0.1, "power", 2.0, weights="inverse"),
    IB(),
    IB(gamma=1.0, weights=None),
    GCL(m=0.1, mu=0.0),
    GCL(),
    GCL(m=0.1, s=20.0, gamma=1.0, weights="effective"),
    LADE(),
]
DRAWS = [loss for loss in EVERY if isinstance(loss, GCL) and loss.mu]
STEADY = [loss for loss in EVERY if loss not in DRAWS]
APART = [loss for loss in EVERY if not needs(loss, "whole")]
SMOOTH = [loss for loss in STEADY if not (isinstance(loss, GCL) and loss.gamma)]  # without a part that is detached
named = pytest.mark.parametrize("loss", EVERY, ids=repr)
steady = pytest.mark.parametrize("loss", STEADY, ids=repr)


def batch(size=12, *, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.rand(size, 10, generator=g, dtype=torch.float64) * 2 - 1  # cosines, as LDAM wants
    return logits.to(dtype), torch.randint(10, (size,), generator=g)


def features(size, *, seed=0):
    """z [B, d], as a backbone that ends in ReLU gives it."""
    return torch.rand(size, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def called(loss, logits, y, counts, *, z=None):
    """The loss, with features if it needs them, and the same noise if it draws."""
    torch.manual_seed(0)
    if not needs(loss, "features"):
        return loss(logits, y, counts)
    z = features(len(y)) if z is None else z
    return loss(logits, y, counts, z=z.to(logits.device))


def mean(answer):
    if isinstance(answer, Weighted):
        return (answer.values * answer.masses).sum() / answer.masses.sum()
    return answer.mean()


def values(answer):
    return answer.values if isinstance(answer, Weighted) else answer


def test_published_class_balanced_weights():
    found = class_weights("effective", C10)
    expected = [0.0506, 0.0769, 0.1211, 0.1950, 0.3188, 0.5246, 0.8683, 1.4426, 2.4092, 3.9927]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=5e-5)
    hundred = class_weights("effective", C100)[[0, 35, 70, 99]]
    torch.testing.assert_close(hundred, torch.tensor([0.0449, 0.2244, 1.1530, 4.3783]), rtol=0, atol=5e-5)


def test_published_ldam_margins():
    ten = ldam_margins(C10.double(), 0.5)
    assert ten[0].item() == pytest.approx(0.1581, abs=5e-5)
    assert ten[-1].item() == 0.5
    hundred = ldam_margins(C100.double(), 0.5)[[35, 70]]
    torch.testing.assert_close(hundred, torch.tensor([0.2376, 0.3581]).double(), rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_have_mean_one_and_grow_towards_the_tail(name):
    weights = class_weights(name, C10.double())
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    assert (weights.diff() > 0).all()
    torch.testing.assert_close(class_weights(name, torch.full((5,), 7)), torch.ones(5))


def test_weights_in_closed_form():
    n = C10.double()
    torch.testing.assert_close(class_weights("inverse", n), (1 / n) / (1 / n).mean())
    torch.testing.assert_close(
        class_weights("square-root", n) ** 2 * n, (1 / n**-0.5).new_full((10,), 10**2) / n.rsqrt().sum() ** 2
    )
    torch.testing.assert_close(class_weights("power:1", n), class_weights("inverse", n))
    torch.testing.assert_close(class_weights("power:0.5", n), class_weights("square-root", n))
    shares = (n / n.sum()) ** -1.2  # DisAlign's generalised re-weighting: (1 / pi_c)^rho, scaled to sum C
    torch.testing.assert_close(class_weights("power:1.2", n), shares / shares.sum() * 10)
    cui = (1 - 0.9999) / (1 - 0.9999**n)
    torch.testing.assert_close(class_weights("effective", n), cui * 10 / cui.sum(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weighted_mean_is_pytorchs(name):
    logits, y = batch(64)
    weight = class_weights(name, C10.double())
    expected = F.cross_entropy(logits, y, weight=weight)
    torch.testing.assert_close(mean(CE(weights=name)(logits, y, C10)), expected)
    adjusted = logits + (C10.double() / C10.sum()).log()
    expected = F.cross_entropy(adjusted, y, weight=weight)
    torch.testing.assert_close(mean(LA(weights=name)(logits, y, C10)), expected)


def test_micro_batches_divide_by_the_mass_of_the_step():
    logits, y = batch(30)
    whole = CE(weights="effective")(logits, y, C10)
    parts = [CE(weights="effective")(a, b, C10) for a, b in zip(logits.split(7), y.split(7), strict=True)]
    together = sum((p.values * p.masses).sum() for p in parts) / sum(p.masses.sum() for p in parts)
    torch.testing.assert_close(together, mean(whole))


@pytest.mark.parametrize(
    "loss",
    [
        VS(0.0, 0.0),
        LA(0.0),
        Focal(0.0),
        LDAM(max_margin=0, s=1),
        LDAM(max_margin=0, cosine=False),
        CE(smoothing=0),
        LabelAwareSmoothing(0.0, 0.0),
        GCL(mu=0, s=1),
        CE(weights="power:0"),
    ],
    ids=repr,
)
def test_limits_are_cross_entropy(loss):
    logits, y = batch()
    torch.testing.assert_close(values(loss(logits, y, C10)), F.cross_entropy(logits, y, reduction="none"))


def test_equal_counts_leave_logits_alone():
    logits, y = batch()
    even = torch.full((10,), 40)
    plain = CE()(logits, y, even)
    torch.testing.assert_close(VS(0.3, 1.0)(logits, y, even), plain)
    torch.testing.assert_close(CE(weights="effective")(logits, y, even).masses, torch.ones(12).double())


def test_logit_adjustment_is_balanced_softmax_and_vs_without_scaling():
    logits, y = batch()
    softmax = C10 * logits.exp()  # Ren et al.: p_j proportional to n_j exp(logit_j)
    expected = -(softmax / softmax.sum(1, keepdim=True)).gather(1, y[:, None])[:, 0].log()
    torch.testing.assert_close(LA()(logits, y, C10), expected)
    torch.testing.assert_close(VS(0.0, 0.75)(logits, y, C10), LA(0.75)(logits, y, C10))


def test_vs_by_hand():
    counts = torch.tensor([80, 20])
    logits = torch.tensor([[2.0, 1.0]]).double()
    a, b = 2 / 1**0.5 + 1.5 * math.log(0.8), 1 / 4**0.5 + 1.5 * math.log(0.2)
    found = VS(0.5, 1.5)(logits, torch.tensor([1]), counts)
    assert found.item() == pytest.approx(math.log(1 + math.exp(a - b)), abs=1e-12)


@pytest.mark.parametrize("cosine", [True, False])
def test_ldam_is_what_the_paper_writes(cosine):
    logits, y = batch()
    margins = 0.5 * (C10.double() ** -0.25) / (C10.double() ** -0.25).max()
    expected = []
    for row, label in zip(logits, y.tolist(), strict=True):
        z = 30 * row if cosine else row.clone()
        z[label] -= 30 * margins[label]
        expected.append(-z[label] + z.logsumexp(0))
    torch.testing.assert_close(LDAM(cosine=cosine)(logits, y, C10), torch.stack(expected))


def test_focal_has_the_weight_inside_p():
    logits, y = batch()
    v = class_weights("effective", C10.double())[y] * F.cross_entropy(logits, y, reduction="none")
    expected = (1 - (-v).exp()) ** 2 * v
    torch.testing.assert_close(Focal(2.0, "effective")(logits, y, C10), expected)


def test_smoothing_is_pytorchs_and_keeps_the_samples_mass():
    logits, y = batch()
    expected = F.cross_entropy(logits, y, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(CE(smoothing=0.3)(logits, y, C10), expected)
    both = CE("inverse", 0.3)(logits, y, C10)
    torch.testing.assert_close(both.values, expected)
    torch.testing.assert_close(both.masses, class_weights("inverse", C10.double())[y])


@pytest.mark.parametrize("loss", SMOOTH, ids=repr)
def test_gradients_are_those_of_finite_differences(loss):
    logits, y = batch(4)
    logits = (logits * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: values(called(loss, z, y, C10)), logits)
    assert torch.autograd.gradgradcheck(lambda z: values(called(loss, z, y, C10)).sum(), logits)


def test_gradient_of_logit_adjustment_in_closed_form():
    logits, y = batch()
    logits.requires_grad_()
    LA()(logits, y, C10).sum().backward()
    p = (logits.detach() + C10.log()).softmax(1)
    torch.testing.assert_close(logits.grad, p - F.one_hot(y, 10))


@steady
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_computed_in_float32_at_least(loss, dtype):
    logits, y = batch(dtype=dtype)
    answer = called(loss, logits, y, C10)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert values(answer).dtype == wide
    if isinstance(answer, Weighted):
        assert answer.masses.dtype == wide and not answer.masses.requires_grad
    torch.testing.assert_close(values(answer), values(called(loss, logits.to(wide), y, C10)), rtol=0, atol=0)
    exact = values(called(loss, logits.double(), y, C10))
    torch.testing.assert_close(values(answer).double(), exact, rtol=1e-4, atol=1e-5)


@named
def test_an_empty_batch_and_an_absent_class_are_harmless(loss):
    logits, y = batch()
    assert values(called(loss, logits[:0], y[:0], C10)).shape == (0,)
    counts = torch.tensor([5000, 0, 7, 7, 7, 7, 7, 7, 7, 7])
    logits.requires_grad_()
    answer = called(loss, logits, y.clamp(min=2), counts)
    mean(answer).backward()
    assert torch.isfinite(values(answer)).all() and torch.isfinite(logits.grad).all()


@named
def test_no_data_leave_the_device(loss):
    """On the meta device anything that waited for a value would raise."""
    logits = torch.empty(6, 10, device="meta")
    answer = called(loss, logits, torch.empty(6, dtype=torch.int64, device="meta"), torch.empty(10, device="meta"))
    assert values(answer).shape == (6,)


@named
@settings(max_examples=25, deadline=None)
@given(size=st.floats(0, 1e4), sign=st.sampled_from([-1, 1]), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_slopes_are_finite_at_extreme_logits(loss, size, sign, dtype):
    """The label's logit far above or below the others; cosines at their bounds."""
    size = min(size, 1.0) if getattr(loss, "head", None) == "cosine" else size
    y = torch.tensor([0, 9, 4])
    logits = (sign * size * (2 * F.one_hot(y, 10) - 1)).to(dtype).requires_grad_()
    z = torch.tensor([0.0, 1e-3, 1e3]).to(dtype)[:, None].expand(3, 7).clone().requires_grad_()
    answer = called(loss, logits, y, C10, z=z)
    mean(answer).backward()
    assert torch.isfinite(values(answer)).all() and torch.isfinite(logits.grad).all()
    assert not needs(loss, "features") or torch.isfinite(z.grad).all()


@pytest.mark.parametrize("loss", APART, ids=repr)
def test_a_loss_that_does_not_say_whole_treats_rows_apart(loss):
    logits, y = batch()
    z, rows = features(12), torch.tensor([7, 2, 3])
    whole, some = called(loss, logits, y, C10, z=z), called(loss, logits[rows], y[rows], C10, z=z[rows])
    torch.testing.assert_close(values(some), values(whole)[rows], rtol=0, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_is_smooth_where_the_answer_is_certain(gamma):
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    loss = Focal(gamma)(logits, torch.tensor([0]), torch.tensor([5, 5])).sum()
    (slope,) = torch.autograd.grad(loss, logits, create_graph=True)
    (curve,) = torch.autograd.grad(slope[0, 0], logits)
    assert torch.isfinite(slope).all() and torch.isfinite(curve).all()


@steady
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50), size=st.integers(1, 9))
def test_invariances(loss, seed, shift, size):
    logits, y = batch(size, seed=seed)
    z = features(size, seed=seed)
    answer = called(loss, logits, y, C10, z=z)
    order = torch.randperm(size)
    shuffled = called(loss, logits[order], y[order], C10, z=z[order])
    torch.testing.assert_close(values(shuffled), values(answer)[order])
    if isinstance(answer, Weighted):
        torch.testing.assert_close(shuffled.masses, answer.masses[order])
    names = torch.randperm(10)  # class names[c] is renamed c
    renamed = called(loss, logits[:, names], names.argsort()[y], C10[names], z=z)
    torch.testing.assert_close(values(renamed), values(answer))
    if not isinstance(loss, (VS, LADE)) and getattr(loss, "head", None) != "cosine":
        torch.testing.assert_close(values(called(loss, logits + shift, y, C10, z=z)), values(answer))
    assert isinstance(loss, LADE) or (values(answer) >= 0).all()


def test_ldam_refuses_what_is_no_cosine():
    logits, y = batch()
    with pytest.raises(ValueError, match=r"head: cosine.*LDAM\(cosine=False\)"):
        LDAM()(logits * 3, y, C10)
    LDAM(cosine=False)(logits * 3, y, C10)
    edge = torch.full((1, 10), 1.0078, dtype=torch.bfloat16)  # one step of bfloat16 above 1
    LDAM()(edge, y[:1], C10)
    with pytest.raises(ValueError, match="outside"):
        LDAM()(edge.float(), y[:1], C10)


def test_losses_on_cosines_say_which_head_they_need_and_how_they_scale_it():
    assert (LDAM().head, LDAM(cosine=False).head, GCL().head) == ("cosine", "linear", "cosine")
    assert (LDAM(s=20.0).scale, LDAM(s=20.0, cosine=False).scale, GCL(s=20.0).scale) == (20.0, 1.0, 20.0)
    logits, y = batch()
    with pytest.raises(ValueError, match=r"GCL scales cosines.*head: cosine`$"):
        GCL()(logits * 3, y, C10)


def test_ldam_compiles_whole():
    logits, y = batch()
    whole = torch.compile(lambda z: LDAM()(z, y, C10), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(logits), LDAM()(logits, y, C10))


@pytest.mark.parametrize("loss", [cls for cls in LOSSES.values() if cls is not LADE])
def test_weights_are_known_by_name(loss):
    assert loss(weights="effective").weights == "effective"
    assert loss(weights="power:1.2").weights == "power:1.2"
    for wrong, said in {
        "efective": "did you mean 'effective'", "power:": "an exponent, e.g. power:1.2", "zz": "power:RHO, or none",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=said):
            loss(weights=wrong)


def test_every_loss_is_tested_here():
    assert {type(loss) for loss in EVERY} == set(LOSSES.values())


def test_impossible_constants_are_refused():
    for make in (
        lambda: CE(smoothing=1.5), lambda: Focal(gamma=-1), lambda: LDAM(max_margin=-0.1), lambda: IB(alpha=-1),
        lambda: LabelAwareSmoothing(1.5), lambda: LabelAwareSmoothing(0.3, -0.1), lambda: GCL(mu=-1),
        lambda: LADE(alpha=-1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="must be"):
            make()


@pytest.mark.parametrize(
    "loss",
    [CE("inverse"), Focal(weights="inverse"), LDAM(), VS(), LA(), LabelAwareSmoothing(), IB(), GCL(), LADE()],
    ids=repr,
)
def test_counts_of_another_data_set_are_refused(loss):
    logits, y = batch()
    with pytest.raises(ValueError, match="10 classes"):
        called(loss, logits, y, C100)


@pytest.mark.parametrize(
    "loss", [CE(weights="effective"), Focal(weights="effective"), LDAM(cosine=False), LabelAwareSmoothing()], ids=repr
)
def test_labels_of_bytes_are_classes_and_no_mask(loss):
    logits, y = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 1, 2])
    one, other = (loss(logits, labels, torch.tensor([50, 20, 5])) for labels in (y, y.to(torch.uint8)))
    for a, b in zip(*((out if isinstance(out, tuple) else (out,)) for out in (one, other)), strict=True):
        assert torch.equal(a, b)
