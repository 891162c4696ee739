"""CC-SAM's radius of each class: the paper's formulas, and what the method itself does with them."""

import math

import numpy as np
import pytest
import torch
from cases import COUNTS, data, mlp
from hypothesis import given
from hypothesis import strategies as st

from flattail.analysis import ClassRadius
from flattail.analysis.radius import characteristic, square_root
from flattail.sharp import CCSAM, SharpnessAware


@given(st.floats(0.1, 100), st.floats(1e-3, 100), st.integers(2, 10**6), st.integers(2, 5000))
def test_the_radius_minimises_the_bound(w, g, k, n):
    def bound(rho):
        return math.sqrt(k) * rho * g + w / (2 * rho * math.sqrt(n - 1))

    rho = characteristic(w, g, k, n)
    assert bound(rho) == pytest.approx(math.sqrt(2 * w * g) * k**0.25 * (n - 1) ** -0.25)  # eq. 7
    assert bound(rho) < min(bound(1.01 * rho), bound(0.99 * rho))


def test_the_square_root_of_equation_1():
    assert square_root(2.0, 1.0, 101, 0.05) == pytest.approx(math.sqrt((1 + math.log(101 / 0.05)) / 100))
    assert square_root(1.0, 100.0, 10**6, 0.05) < 1 < square_root(1.0, 0.01, 10, 0.05)


@pytest.mark.parametrize("scope", ["all", "head"])
def test_ccsam_goes_as_far_as_this_says(scope):
    model, (x, y) = mlp(), data()
    found = ClassRadius(dtype="float64")(model, [(x, y)], COUNTS)
    method = CCSAM(scale=1.0, cap=float("inf"), scope=scope)
    flat = SharpnessAware(model, method, COUNTS)
    flat.backward(lambda: torch.nn.functional.cross_entropy(model(x), y, reduction="none"), y)
    radii = flat.outcome.radii
    for c in range(len(COUNTS)):
        done = radii["class"][c] if scope == "head" else radii[f"class {c}"]
        assert found[f"relative_{scope}"][c] == pytest.approx(float(done), rel=1e-6)


def test_the_bound_is_the_loss_there_and_its_complexity():
    model, (x, y) = mlp(), data()
    found = ClassRadius(dtype="float64")(model, [(x, y)], COUNTS)
    assert found["name"].tolist() == [str(c) for c in range(len(COUNTS))]
    for scope, size in (("all", sum(p.numel() for p in model.parameters())), ("head", 48)):
        get = {k.removesuffix(f"_{scope}"): v for k, v in found.items() if k.endswith(scope)}
        assert (get["size"] == size).all()
        np.testing.assert_allclose(get["bound"], found["loss"] + get["gap"] + get["complexity"])
        np.testing.assert_allclose(get["displacement"], np.sqrt(size) * get["rho"])
        first = np.sqrt(2 * get["weight_norm"] * get["gradient_norm"]) * size**0.25 * (COUNTS.numpy() - 1) ** -0.25
        np.testing.assert_allclose(get["first_order"] - found["loss"], first)
        np.testing.assert_array_equal(get["says_something"], get["square_root"] < 1)
    assert (found["gap_head"] > 0).all()


def test_a_class_of_one_and_a_class_without_gradient():
    model, (x, y) = mlp(), data()
    counts = COUNTS.clone()
    counts[5] = 1
    found = ClassRadius(dtype="float64")(
        model, [(x, y)], counts, loss=lambda z, y, n: z.sum(1) * 0 + (y == 5) * z[:, 5]
    )
    assert np.isinf(found["rho_all"][0])
    assert np.isnan(found["gap_all"][0])
    assert np.isfinite(found["rho_all"][5])


def test_the_head_of_a_plain_network_is_its_last_layer():
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6))
    x, y = data(dtype=torch.float32)
    found = ClassRadius(classes="0,5")(net, [(x, y)], COUNTS)
    assert found["size_head"].tolist() == [54, 54]
    with pytest.raises(ValueError, match="no parameter has 'neck'"):
        ClassRadius(head="neck")(net, [(x, y)], COUNTS)
