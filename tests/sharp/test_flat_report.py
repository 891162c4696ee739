"""`flat.report`: whether a method is doing anything."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import CLASSES, COUNTS, SAMPLES, closure, data, flat, mlp

from flattail.sharp import CCSAM, ERM, LPFSGD, SAM, SSESAM, Every, ImbSAM, Window


def steps(method, n=4, *, present=None, **how):
    model = mlp()
    aware = flat(model, method, **how)
    seen = []
    for step in range(n):
        x, y = data(step)
        if present is not None:
            y = torch.tensor(present)[y % len(present)]
        aware.backward(closure(model, x, y), y, progress=step / n, step=step)
        seen.append(aware.outcome)
    return aware, seen


def norm(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).norm()


def test_radius_is_that_of_the_ball_and_gap_the_mean():
    aware, seen = steps(SAM(rho=0.2))
    (name, row), *rest = aware.report.terms.items()
    assert (name, rest, row.active) == ("flat", [], 1.0)
    assert row.radius == pytest.approx(float(0.2 / norm(aware.model)), rel=1e-9)
    assert row.radii == pytest.approx([row.radius])
    assert row.gap == pytest.approx(sum(float(o.gaps["flat"]) for o in seen) / 4, rel=1e-9)
    assert aware.report.warnings == [] and aware.report.steps == 4


def test_the_cosine_between_head_and_tail_is_that_of_their_gradients():
    for method in (SSESAM(head_rho=0.1), ImbSAM(eta=100)):
        model, (x, y) = mlp(), data()
        aware = flat(model, method)
        aware.backward(closure(model, x, y), y, progress=0.0)
        loss = closure(model, x, y)()
        tail = (COUNTS < 100)[y]
        over = list(model.parameters())
        a, b = (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss[rows].sum(), over, retain_graph=True)])
            for rows in (~tail, tail)
        )
        ((pair, cosine),) = aware.report.cosines.items()
        assert set(pair.split(" ~ ")) == {"head", "tail"}
        assert cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-9)


def test_active_is_the_share_of_steps():
    aware, _ = steps(Every(SAM(rho=0.2), 2))
    assert aware.report.terms["flat"].active == 0.5
    assert aware.report.terms["flat"].radius == pytest.approx(float(0.2 / norm(aware.model)), rel=1e-9)
    aware, _ = steps(SSESAM(switch=0.5))
    assert {n: r.active for n, r in aware.report.terms.items()} == {"head": 0.5, "tail": 1.0}
    aware, _ = steps(ImbSAM(eta=100), present=[0, 1, 2])
    assert aware.report.warnings and not aware.report.terms.get("tail", None)


@pytest.mark.parametrize("method", [SAM(rho=0.0), Window(SAM(), 0.9, 1.0), ImbSAM(rho=0, eta=100), CCSAM(scale=0.0)])
def test_a_method_that_never_moved_is_told(method):
    aware, _ = steps(method)
    assert any("never moved" in w and type(method).__name__ in w for w in aware.report.warnings)
    assert "warning" in str(aware.report)


def test_erm_need_not_move():
    aware, _ = steps(ERM())
    assert aware.report.warnings == [] and aware.report.terms == {} and "ERM" in str(aware.report)


@pytest.mark.parametrize("rho, words", [(1e-5, "vacuous"), (1e-3, None), (0.1, None), (5.0, "no neighbourhood")])
def test_outside_of_what_is_sensible_it_warns(rho, words):
    aware, _ = steps(SAM(rho=rho))
    assert [w for w in aware.report.warnings if words and words in w] == aware.report.warnings
    assert bool(aware.report.warnings) == bool(words)


def test_the_released_ccsam_is_vacuous_and_the_uncapped_paper_no_neighbourhood():
    """METHODS trap 36: kappa of 1e-6 moves nothing; kappa of 1 moves by as much as the weights."""
    small, _ = steps(SAMPLES(scale=1e-6, cap=math.inf, mix=0.5, norm="per-tensor"))
    assert any("vacuous" in w for w in small.report.warnings)
    large, _ = steps(SAMPLES(scale=1.0, cap=math.inf))
    assert any("no neighbourhood" in w for w in large.report.warnings)


def test_ccsam_has_a_radius_per_class_and_none_for_a_class_never_seen():
    aware, seen = steps(CCSAM(scale=0.02, cap=math.inf), present=[0, 1, 3, 5])
    row = aware.report.terms["class"]
    assert len(row.radii) == CLASSES
    assert [math.isnan(r) for r in row.radii] == [False, False, True, False, True, False]
    head = torch.cat([p.detach().flatten() for p in aware.model.head.parameters()]).norm()
    expected = torch.stack([o.radii["class"] for o in seen]).mean(0)
    torch.testing.assert_close(torch.tensor(row.radii).double(), expected, rtol=1e-6, atol=0, equal_nan=True)
    assert row.radius == pytest.approx(float(torch.nanmean(torch.stack([o.radii["class"] for o in seen]))), rel=1e-9)
    assert row.radii[5] * head > 0 and "radii" in aware.report.row()["class"]


def test_the_cap_is_a_share_of_the_weights():
    aware, _ = steps(CCSAM(scale=1.0, cap=0.03))
    assert aware.report.terms["class"].radii == pytest.approx([0.03] * CLASSES, rel=1e-6)
    aware, _ = steps(CCSAM(scale=1.0, cap=0.03, norm="per-tensor"))
    assert aware.report.terms["class"].radii == pytest.approx([0.03] * CLASSES, rel=1e-6)
    aware, _ = steps(CCSAM(scale=1.0, cap=0.03, scope="all"))
    assert [r.radius for r in aware.report.terms.values()] == pytest.approx([0.03] * CLASSES, rel=1e-6)


def test_a_step_that_is_not_finite_leaves_the_report_readable():
    model, (x, y) = mlp(), data()
    for method in (SAM(rho=0.2), SSESAM(), CCSAM()):
        aware = flat(model, method)
        aware.backward(closure(model, x, y), y, progress=0.0)
        before = {n: (r.radius, r.gap) for n, r in aware.report.terms.items()}
        aware.backward(lambda: closure(model, x, y)() * torch.nan, y, progress=0.0)
        for n, row in aware.report.terms.items():
            assert math.isfinite(row.radius) and math.isfinite(row.gap)
            assert row.active == 0.5
            assert row.gap == pytest.approx(before[n][1], rel=1e-9)
        assert aware.report.steps == 2


def test_gaps_and_seen_are_empty_before_the_first_step():
    aware = flat(mlp(), SAM())
    assert aware.gaps == {} and aware.seen == [] and aware.report.steps == 0 and aware.report.warnings == []


def test_steps_that_are_not_finite_are_no_steps_that_never_moved():
    model, (x, y) = mlp(), data()
    aware = flat(model, SAM(rho=0.1))
    for _ in range(2):
        aware.backward(lambda: closure(model, x, y)() * torch.nan, y)
    assert aware.report.warnings == [
        "2 of 2 steps were not finite: a loss, at w or displaced, or a slope was NaN or infinite"
    ]
    aware.backward(closure(model, x, y), y)
    assert aware.report.warnings == [
        "2 of 3 steps were not finite: a loss, at w or displaced, or a slope was NaN or infinite"
    ]


def test_a_term_that_nobody_looks_at_from_w_has_no_gap():
    aware, _ = steps(LPFSGD())
    (row,) = aware.report.terms.values()
    assert math.isnan(row.gap) and row.active == 1 and "gap –, active" in str(aware.report)


def test_the_cosine_of_a_pair_has_one_name():
    """Whichever of the two climbs, as before and after SSE-SAM's switch."""
    model, (x, y) = mlp(), data()
    aware = flat(model, SSESAM(eta=100, switch=0.5))
    for progress in (0.1, 0.9):
        aware.backward(closure(model, x, y), y, progress=progress)
    assert [*aware.report.cosines] == ["head ~ tail"]


@pytest.mark.parametrize("method", [SAM(0.5), CCSAM(scale=1.0, cap=math.inf)])
def test_a_loss_that_is_not_finite_away_from_w_is_seen(method):
    """At w all is well; the report counts the step as lost, and `check` raises."""
    model, (x, y) = mlp(), data()
    at_w = [p.detach().clone() for p in model.head.parameters()]

    def losses():
        z = model(x)
        there = (z - still).abs().max() > 0
        return F.cross_entropy(z, y, reduction="none") * torch.where(there, torch.nan, 1.0)

    still = model(x).detach()
    aware = flat(model, method)
    aware.backward(losses, y)
    assert not aware.outcome.finite and torch.isfinite(aware.outcome.loss)
    assert "1 of 1 steps were not finite" in aware.report.warnings[0]
    (row,) = aware.report.terms.values()
    assert math.isnan(row.gap) and row.active == 1
    assert all(torch.equal(p, w) for p, w in zip(model.head.parameters(), at_w, strict=True))
    with pytest.raises(FloatingPointError, match="a loss, at w or displaced, or a slope is not finite"):
        flat(model, method, check=True).backward(losses, y)
