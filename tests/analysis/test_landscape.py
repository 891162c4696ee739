"""Landscapes: directions that keep to their rules, lines and planes that are losses at those places."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import COUNTS, Pair, data, mlp
from torch import nn

from flattail.analysis import Landscape, filter_normalised, line, plane
from flattail.models.heads import Cosine
from flattail.sharp.lpfsgd import by_filter
from flattail.sharp.noise import gaussian

SMALL = {"dtype": "float64", "samples": 100}


def bn_net(seed):
    torch.manual_seed(seed)
    net = Pair(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 6)).double()
    net(torch.randn(64, 5, dtype=torch.float64) * (1 + seed))
    return net.eval()


def test_directions_have_the_norms_of_the_filters_and_spare_small_tensors():
    w = [torch.randn(4, 3, 3, 3), torch.randn(4), torch.zeros(2, 5), torch.randn(6, 5)]
    d = filter_normalised(w, torch.Generator().manual_seed(0))
    for a, b in ((w[0], d[0]), (w[2], d[2]), (w[3], d[3])):
        torch.testing.assert_close(a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1))
    assert not d[1].any()


def test_a_filter_of_a_cosine_head_is_the_column_of_a_class():
    head = copy.deepcopy(Cosine(7, 4)).double()
    weight = head.weight.detach().mul_(torch.arange(1.0, 5.0))  # columns of length 1, 2, 3, 4
    (d,) = filter_normalised([head.weight], torch.Generator().manual_seed(0))
    torch.testing.assert_close(d.norm(dim=0), weight.norm(dim=0))
    noise, (e,) = gaussian([weight], 3)[0], by_filter([head.weight], 0.1, 3)
    torch.testing.assert_close(e, 0.1 * noise * weight.norm(dim=0))


def test_a_plane_scales_a_cosine_head_by_classes():
    torch.manual_seed(0)
    model, (x, y) = Pair(nn.Linear(5, 7), Cosine(7, 6)).double(), data()
    found = plane(model, [(x, y)], COUNTS, side=3, extent=0.5, **SMALL)
    g = torch.Generator().manual_seed(0)
    u, v = (filter_normalised(list(model.parameters()), g) for _ in range(2))
    with torch.no_grad():
        for p, a, b in zip(model.parameters(), u, v, strict=True):
            p.add_(0.5 * a - 0.5 * b)
    np.testing.assert_allclose(found["losses"][-1, 0, 2], F.cross_entropy(model(x), y).item())


@pytest.mark.parametrize("scope", ["head", "all", r"backbone\.0"])
def test_a_line_starts_at_the_model_and_has_exact_ratios(scope):
    model, (x, y) = mlp(), data()
    found = line(model, [(x, y)], COUNTS, scope=scope, directions=3, points=4, reach=1.5, **SMALL)
    values = F.cross_entropy(model(x), y, reduction="none").detach()
    np.testing.assert_allclose(found["ratio"], [0, 0.5, 1, 1.5])
    assert found["losses"].shape == (7, 3, 4)
    for c in range(6):
        np.testing.assert_allclose(found["losses"][c, :, 0], values[y == c].mean())
    np.testing.assert_allclose(found["mean"], found["losses"].mean(1))
    assert (found["sd"][:, 1:] > 0).all()
    weights = [p for n, p in model.named_parameters() if scope == "all" or n.startswith(scope.replace("\\", ""))]
    g = torch.Generator().manual_seed(1)
    d = [torch.randn(p.shape, generator=g).double() for p in weights]
    reach = torch.cat([p.flatten() for p in weights]).norm() / torch.cat([t.flatten() for t in d]).norm()
    with torch.no_grad():
        for p, t in zip(weights, d, strict=True):
            p.add_(t * reach)
    np.testing.assert_allclose(found["losses"][-1, 1, 2], F.cross_entropy(model(x), y).item())


def test_the_head_alone_is_the_same_without_running_the_backbone():
    model, (x, y) = mlp(), data()
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    seen = line(model, [(x, y)], COUNTS, scope="head", directions=2, points=5, micro=11, **SMALL)
    assert len(calls) == 2  # once for each micro-batch, not for each place
    twice = Pair(model.backbone, nn.Sequential(model.head, nn.Hardtanh(-1e9, 1e9)))
    through = line(twice, [(x, y)], COUNTS, scope="head", directions=2, points=5, **SMALL)
    assert len(calls) > 10
    np.testing.assert_allclose(seen["losses"], through["losses"])


def test_a_plane_is_the_loss_at_those_places_and_batchnorm_stays():
    net, (x, y) = bn_net(0), data()
    before = copy.deepcopy(net.state_dict())
    found = plane(net, [(x, y)], COUNTS, side=3, extent=0.5, **SMALL)
    assert found["losses"].shape == (7, 3, 3)
    np.testing.assert_allclose(found["losses"][-1, 1, 1], F.cross_entropy(net(x), y).item())
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    g = torch.Generator().manual_seed(0)
    u, v = (filter_normalised([p.detach() for p in net.parameters()], g) for _ in range(2))
    with torch.no_grad():
        for p, a, b in zip(net.parameters(), u, v, strict=True):
            p.add_(0.5 * a - 0.5 * b)
    np.testing.assert_allclose(found["losses"][-1, 0, 2], F.cross_entropy(net(x), y).item())


def test_a_plane_through_two_models_meets_both():
    a, b, (x, y) = bn_net(0), bn_net(1), data()
    found = plane(a, [(x, y)], COUNTS, other=b, side=5, **SMALL)
    np.testing.assert_allclose(found["x"], [-0.5, 0, 0.5, 1, 1.5])
    for column, net in ((1, a), (3, b)):
        np.testing.assert_allclose(found["losses"][-1, 2, column], F.cross_entropy(net(x), y).item())
    with pytest.raises(ValueError, match="same parameters"):
        plane(a, [(x, y)], COUNTS, other=mlp(), side=3, **SMALL)


def test_all_classes_share_their_directions():
    model, (x, y) = mlp(), data(n=40)
    found = line(model, [(x, y)], COUNTS, directions=3, points=3, **SMALL)
    shares = torch.bincount(y, minlength=6) / len(y)
    np.testing.assert_allclose(np.tensordot(shares.numpy(), found["losses"][:6], 1), found["losses"][-1], rtol=1e-6)


def test_the_whole_landscape_resumes_part_by_part():
    model, (x, y) = mlp(), data()
    options = Landscape(points=3, directions=2, side=3, dtype="float64")
    parts = {}
    whole = options(model, [(x, y)], COUNTS, on_part=lambda n, a: parts.update({n: a}))
    assert list(parts) == ["near 0", "near 1", "far 0", "far 1", "plane 0", "plane 1", "plane 2"]
    assert {"name", "near_mean", "far_sd", "plane_losses", "plane_x"} <= set(whole)
    new = []
    half = {n: a for n, a in parts.items() if n in ("near 0", "plane 1")}
    again = options(model, [(x, y)], COUNTS, done=half, on_part=lambda n, _: new.append(n))
    assert new == ["near 1", "far 0", "far 1", "plane 0", "plane 2"]
    for key, array in whole.items():
        np.testing.assert_array_equal(again[key], array)


def test_beyond_either_model_the_statistics_stay_theirs():
    """A line through two variances leads below zero; the loss there is finite, and that of the nearer model's."""
    one, other, (x, y) = bn_net(0), bn_net(5), data()
    one.backbone[1].running_var.fill_(0.5)
    other.backbone[1].running_var.fill_(8.0)
    found = plane(one, [(x, y)], COUNTS, other=other, side=5, **SMALL)
    assert found["x"][0] < 0 and found["x"][-1] > 1 and np.isfinite(found["losses"]).all()
    y0, x0 = int(np.abs(found["y"]).argmin()), 0
    with torch.no_grad():
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            p.add_(found["x"][x0] * (q - p))
        expected = F.cross_entropy(one(x), y).item()
    assert found["y"][y0] == 0
    np.testing.assert_allclose(found["losses"][-1, y0, x0], expected)
