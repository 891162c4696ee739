"""Starts against their closed forms, their shapes, and what they refuse."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from flattail.models import Aligned, Cosine, Scaled, Shifted
from flattail.scores import evaluate
from flattail.starts import (
    STARTS,
    ClassMeans,
    DisAlign,
    Given,
    Keep,
    LogitAdjust,
    NewHead,
    Scales,
    TauNorm,
    class_means,
    refuse_bare,
    shaped,
)

COUNTS, NAMES = torch.tensor([60, 25, 8]), ("cat", "dog", "owl")
D, C = 5, 3


def features(n=40, seed=0):
    """Features [n, D] around a place for each class, and labels [n]; every class occurs."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % C
    return 2 * torch.randn(C, D, generator=g)[y] + torch.randn(n, D, generator=g), y


def head(kind="linear", seed=0):
    torch.manual_seed(seed)
    if kind == "linear":
        return nn.Linear(D, C)
    return Cosine(D, C) if kind == "cosine" else nn.Linear(D, C, bias=False)


def filled(start, before, *, val=True):
    """The head that a start makes of another, and what it found."""
    made = start.shape(before, C)
    train, test = features(), features(30, 1)
    found = start.fill(made, Given(before, COUNTS, NAMES, lambda: train, (lambda: test) if val else None))
    return made, found


# -- closed forms ------------------------------------------------------------------------------------------------


def test_keep_keeps_the_very_head():
    before = head()
    assert Keep().shape(before, C) is before and Keep().fill(before, None) == {}


def test_scales_multiply_the_logits_of_the_head_before_bias_included():
    before = head()
    made, _ = filled(Scales(), before)
    z, _ = features()
    assert torch.equal(made(z), before(z))
    with torch.no_grad():
        made.scales.copy_(torch.tensor([0.5, 2.0, 3.0]))
    o = torch.stack([z @ before.weight[c] + before.bias[c] for c in range(C)], 1)
    torch.testing.assert_close(made(z), o * torch.tensor([0.5, 2.0, 3.0]))
    assert [n for n, _ in made.named_parameters()] == ["scales", "inner.weight", "inner.bias"]


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 2.0])
def test_tau_norm_divides_each_row_by_a_power_of_its_length_and_drops_the_bias(tau):
    before = head()
    made, found = filled(TauNorm(tau), before)
    assert found == {"tau": tau} and made.bias is None
    for row, old in zip(made.weight, before.weight, strict=True):
        torch.testing.assert_close(row, old / old.square().sum().sqrt() ** tau)
    if tau == 1.0:
        torch.testing.assert_close(made.weight.norm(dim=1), torch.ones(C))


def test_tau_is_the_first_of_the_best_on_the_validation_half():
    before = head(seed=3)
    with torch.no_grad():
        before.weight.mul_(torch.tensor([[6.0], [1.0], [0.2]]))  # the rare class is short
    made, found = filled(TauNorm(), before)
    z, y = features(30, 1)
    scores = []
    for step in range(21):
        answers = (z @ (before.weight / before.weight.norm(dim=1, keepdim=True) ** (step / 10)).T).argmax(1)
        scores.append(sum(float((answers[y == c] == c).float().mean()) for c in range(C)) / C)
    assert found["tau"] == scores.index(max(scores)) / 10 and found["tau"] > 0
    assert found["validation accuracy"] == pytest.approx(max(scores))
    assert evaluate(made(z).detach(), y).balanced == pytest.approx(max(scores)) and max(scores) > scores[0]


def test_tau_norm_of_scaled_and_shifted_heads_is_that_of_the_linear_head_they_are():
    before = head()
    wrapped = Scaled(Shifted(deepcopy(before)))
    with torch.no_grad():
        wrapped.scales.copy_(torch.tensor([1.0, 2.0, 3.0]))
    made, _ = filled(TauNorm(1.0), wrapped)
    plain, _ = filled(TauNorm(1.0), before)
    torch.testing.assert_close(made.weight, plain.weight)  # lengths do not matter at tau = 1


def test_class_means_by_angle():
    made, _ = filled(ClassMeans(), head())
    z, y = features()
    means = torch.stack([z[y == c].mean(0) for c in range(C)])
    expected = torch.stack([F.cosine_similarity(z, m[None], dim=1) for m in means], 1)
    torch.testing.assert_close(made(z), expected)
    assert type(made) is Cosine


def test_class_means_by_distance_have_the_softmax_of_minus_the_squared_distances():
    made, _ = filled(ClassMeans("euclidean"), head("cosine"))
    z, y = features()
    means = torch.stack([z[y == c].mean(0) for c in range(C)])
    expected = -torch.stack([(z - m).square().sum(1) for m in means], 1)
    torch.testing.assert_close(made(z).softmax(1), expected.softmax(1), rtol=1e-4, atol=1e-6)
    assert type(made) is nn.Linear


@pytest.mark.parametrize(("kind", "scale"), [("linear", None), ("no bias", None), ("cosine", 30.0)])
def test_logit_adjustment_subtracts_the_log_prior(kind, scale):
    """From cosines a part of it, so that all of it is gone once the loss's scale is multiplied in."""
    before, factor = head(kind), scale or 1.0
    made, found = filled(LogitAdjust(1.5, scale), before)
    z, _ = features()
    torch.testing.assert_close(factor * made(z), factor * before(z) - 1.5 * (COUNTS / 93).log())
    assert found == {"tau": 1.5} and (type(made) is nn.Linear) == (kind != "cosine")


def test_logit_adjustment_of_bare_cosines_needs_their_scale():
    with pytest.raises(ValueError, match=r"write what it multiplies them by, e\.g\. `scale: 30` after LDAM"):
        refuse_bare(LogitAdjust(), head("cosine"))
    refuse_bare(LogitAdjust(scale=30.0), head("cosine"))
    refuse_bare(LogitAdjust(), Cosine(D, C, scale=25.0))
    with pytest.raises(ValueError, match="scale: what a loss multiplies cosines by"):
        LogitAdjust(scale=0.0)


def test_logit_adjustment_at_full_strength_turns_a_posterior_into_that_of_a_uniform_prior():
    """Bayes: p(y|x) / pi_y, normalised."""
    before = head()
    made, _ = filled(LogitAdjust(1.0), before)
    z, _ = features()
    p = before(z).softmax(1) / (COUNTS / COUNTS.sum())
    torch.testing.assert_close(made(z).softmax(1), p / p.sum(1, keepdim=True))


def test_disalign_is_the_papers_mixture_and_changes_nothing_at_first():
    before = head()
    torch.manual_seed(1)
    made, _ = filled(DisAlign(), before)
    z, _ = features()
    torch.testing.assert_close(made(z), before(z))
    with torch.no_grad():
        made.scales.copy_(torch.tensor([0.5, 2.0, 3.0]))
        made.shifts.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    for i in range(4):
        gate = 1 / (1 + torch.exp(-(z[i] @ made.confidence.weight[0] + made.confidence.bias[0])))
        o = before(z[i])
        expected = gate * (made.scales * o + made.shifts) + (1 - gate) * o
        torch.testing.assert_close(made(z[i : i + 1])[0], expected)


@pytest.mark.parametrize(
    ("kind", "asked", "made"),
    [
        ("linear", "same", nn.Linear),
        ("cosine", "same", Cosine),
        ("linear", "cosine", Cosine),
        ("cosine", "linear", nn.Linear),
    ],
)
def test_a_new_head_is_drawn_from_the_generator(kind, asked, made):
    before = head(kind, seed=1)
    heads = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        heads.append(filled(NewHead(asked), before)[0])
    assert all(type(h) is made for h in heads)
    assert torch.equal(heads[0].weight, heads[1].weight) and not torch.equal(heads[0].weight, heads[2].weight)


# -- every start -------------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, kind="linear"):
        super().__init__()
        self.backbone = nn.Identity()
        self.head = head(kind)


@pytest.mark.parametrize("name", STARTS)
def test_the_shape_alone_holds_the_filled_heads_weights(name):
    before = head()
    made, _ = filled(STARTS[name](), before)
    other = shaped(Model(), [STARTS[name]()], C)
    other.head.load_state_dict(made.state_dict())
    z, _ = features()
    assert torch.equal(other.head(z), made(z))


@pytest.mark.parametrize("name", STARTS)
def test_the_head_before_is_left_alone(name):
    before = head()
    was = deepcopy(before.state_dict())
    filled(STARTS[name](), before)
    assert all(torch.equal(t, was[n]) for n, t in before.state_dict().items())


@pytest.mark.parametrize("name", STARTS)
def test_every_start_follows_a_head_with_scales(name):
    before = Scaled(head())
    made, _ = filled(STARTS[name](), before)
    z, _ = features()
    assert made(z).shape == (40, C) and torch.isfinite(made(z)).all()


@pytest.mark.parametrize("name", [n for n in STARTS if n != "keep"])
def test_a_model_without_a_head_is_refused(name):
    with pytest.raises(ValueError, match=r"start: \w+ needs `model.backbone` and `model.head`, which Linear lacks"):
        shaped(nn.Linear(2, 2), [STARTS[name]()], 2)


def test_a_model_without_a_head_may_keep_it():
    model = nn.Linear(2, 2)
    assert shaped(model, [Keep()], 2) is model


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [TauNorm(), LogitAdjust(None)])
def test_tau_is_never_chosen_without_a_validation_half(start):
    assert start.sweeps
    with pytest.raises(ValueError, match=r"chosen on a validation part, never on test images.*validation: 0\.1"):
        filled(start, head(), val=False)


@pytest.mark.parametrize("start", [TauNorm(0.5), LogitAdjust(), ClassMeans()])
def test_what_is_given_needs_no_validation_half(start):
    assert not start.sweeps
    filled(start, head(), val=False)


def test_an_empty_class_has_no_mean():
    z, y = features()
    with pytest.raises(ValueError, match="no training image of dog, owl"):
        class_means(z[y == 0], y[y == 0], NAMES)


def test_tau_norm_of_a_cosine_head_is_refused():
    with pytest.raises(ValueError, match="tau-norm needs a linear head, and this is a Cosine"):
        TauNorm(1.0).shape(Cosine(D, C), C)
    with pytest.raises(ValueError, match="tau-norm needs a linear head, and this is a Aligned"):
        TauNorm(1.0).shape(Aligned(head()), C)


@settings(max_examples=20, deadline=None)
@drawn(st.permutations(list(range(40))))
def test_means_do_not_depend_on_the_order_of_the_images(order):
    z, y = features()
    order = torch.tensor(order)
    torch.testing.assert_close(class_means(z[order], y[order], NAMES), class_means(z, y, NAMES))
