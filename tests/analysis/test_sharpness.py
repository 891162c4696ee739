"""Gaps over data: those that the engine reports in training, closed forms, and the average case."""

import numpy as np
import pytest
import torch
from cases import COUNTS, EVERY, closure, data, mlp
from torch import nn

from flattail.analysis import Escape, Sharpness, escape, gap
from flattail.sharp import CCSAM, ERM, LPFSGD, PGD, SAM, ImbSAM, ModelPerturbation, SharpnessAware

HOW = {"dtype": "float64", "directions": 3, "micro": 5, "at": 0.1}


@pytest.mark.parametrize("label", ["sam", "asam", "imbsam", "ssesam-before", "focalsam", "ccsam", "ccsam-all"])
def test_the_gap_of_everybody_is_what_the_engine_minimises(label):
    model, (x, y), method = mlp(), data(), EVERY[label]
    found = gap(model, [(x, y)], method, COUNTS, classes="all", **HOW)
    flat = SharpnessAware(model, method, COUNTS)
    flat.backward(closure(model, x, y), y, 0.1, step=0)
    terms = {t.name: t for t in flat.terms(y, progress=0.1, step=0)}
    expected = 0.0
    for name, own in flat.gaps.items():
        if name in terms:
            expected += float(own * terms[name].weight.sum()) / len(y)
        else:  # a term per class
            weight = terms["class"].weight * (y == int(name.split()[1]))
            expected += float(own * weight.sum()) / len(y)
    assert found["gap"][0] == pytest.approx(expected, rel=1e-9)
    assert found["common"][0] == pytest.approx(expected, rel=1e-9)


def test_a_quadratic_has_its_closed_form():
    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))

        def forward(self, x):
            return (0.5 * self.w.square().sum()).expand(len(x), 2)

    x, y = torch.zeros(4, 1), torch.tensor([0, 0, 1, 1])
    found = gap(
        Bowl(), [(x, y)], SAM(0.1), torch.tensor([9, 9]), loss=lambda z, y, n: z[:, 0], dtype="float64", directions=400
    )
    np.testing.assert_allclose(found["gap"], 0.1 * 5 + 0.1**2 / 2)
    np.testing.assert_allclose(found["radius"], 0.1 / 5)
    np.testing.assert_allclose(found["random"], 0.1**2 / 2, atol=4 * 0.5 / np.sqrt(2 * 400))
    assert found["random_sd"][0] == pytest.approx(0.5 / np.sqrt(2), rel=0.2)


def test_the_worst_case_is_worse_than_the_common_and_the_average():
    model, (x, y) = mlp(), data(n=40)
    found = gap(model, [(x, y)], SAM(0.05), COUNTS, groups={"few": COUNTS < 20}, dtype="float64", directions=5)
    assert found["name"].tolist() == ["0", "1", "2", "3", "4", "5", "few", "all"]
    assert (found["gap"] >= found["common"] - 1e-12).all()
    assert (found["gap"] > found["random"]).all()
    np.testing.assert_allclose(found["common"][-1], found["gap"][-1])


def test_who_does_not_climb_has_no_gap():
    model, (x, y) = mlp(), data()
    found = gap(model, [(x, y)], ImbSAM(rho=0.1, eta=100), COUNTS, **HOW)
    tail = (COUNTS < 100).numpy()
    assert (found["gap"][:6][tail] > 0).all()
    assert (found["gap"][:6][~tail] == 0).all()
    assert not gap(model, [(x, y)], ERM(), COUNTS, **HOW)["gap"].any()


def test_head_methods_move_the_last_layer_of_any_network():
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6))
    x, y = data(dtype=torch.float32)
    found = gap(net, [(x, y)], CCSAM(cap=0.1), COUNTS, classes="5")
    assert 0 < found["radius"][0] <= 0.1001


@pytest.mark.parametrize("method", [LPFSGD(0.3), ModelPerturbation(0.3), PGD(0.5)], ids=lambda m: type(m).__name__)
def test_noise_is_that_of_the_seed_and_a_resumed_analysis_is_the_whole_one(method):
    model, (x, y) = mlp(), data()
    parts = {}
    whole = Sharpness(seed=3)(model, [(x, y)], COUNTS, method=method, on_part=parts.__setitem__)
    torch.manual_seed(99)
    some = dict(list(parts.items())[:3])
    again = Sharpness(seed=3)(model, [(x, y)], COUNTS, method=method, done=some)
    np.testing.assert_array_equal(whole["gap"], again["gap"])
    other = Sharpness(seed=4)(model, [(x, y)], COUNTS, method=method)
    assert not np.array_equal(whole["gap"], other["gap"])


def test_what_is_predicted_of_a_noisy_method_has_the_noise_that_was_measured(monkeypatch):
    """Batch by batch one seed, for the gradient and for its first order; and the same again."""
    seeds = {"gradient_of": [], "first_order": []}

    def noting(inner, kept):
        def noted(subject, some, method, context, *more):
            kept.append(context["seed"])
            return inner(subject, some, method, context, *more)

        return noted

    for name, kept in seeds.items():
        monkeypatch.setattr(escape, name, noting(getattr(escape, name), kept))
    model, (x, y) = mlp(), data()
    how = {"methods": {"plain": ERM(), "noise": LPFSGD(1e-3)}}
    one, two = (Escape(classes="0", batches=4, seed=1)(model, [(x, y)], COUNTS, **how) for _ in range(2))
    assert seeds["gradient_of"] == seeds["first_order"] and len(set(seeds["first_order"])) == 4
    for key in ("mixed_second", "mixed_predicted"):
        np.testing.assert_array_equal(one[key], two[key])
