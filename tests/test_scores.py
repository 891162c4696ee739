"""The scores against scikit-learn, tables made by hand, and their invariances."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from flattail.scores import NUMBERS, Scores, calibration_error, evaluate


def problem(n=400, classes=7, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(classes), torch.randint(classes, (n - classes,), generator=g)])
    logits = torch.randn(n, classes, generator=g)
    logits[torch.arange(n), y] += 1.5
    return logits, y


def same(a: Scores, b: Scores):
    for name in NUMBERS:
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-12, nan_ok=True)
    assert a.n == b.n and a.sizes == b.sizes
    assert a.groups == pytest.approx(b.groups, nan_ok=True)
    torch.testing.assert_close(a.per_class, b.per_class, equal_nan=True)
    assert torch.equal(a.confusion, b.confusion)


def test_scikit_learn_agrees():
    logits, y = problem()
    found, answers = evaluate(logits, y), logits.argmax(1)
    assert found.n == 400
    assert found.all == pytest.approx(metrics.accuracy_score(y, answers))
    assert found.balanced == pytest.approx(metrics.balanced_accuracy_score(y, answers))
    recall = metrics.recall_score(y, answers, average=None)
    np.testing.assert_allclose(found.per_class.numpy(), recall)
    assert found.worst == pytest.approx(recall.min())
    assert found.gmean == pytest.approx(recall.prod() ** (1 / 7))
    assert found.nll == pytest.approx(metrics.log_loss(y, logits.double().softmax(1).numpy()))
    np.testing.assert_array_equal(found.confusion.numpy(), metrics.confusion_matrix(y, answers))


def test_calibration_error_of_a_slow_loop():
    logits, y = problem(1000)
    p = logits.double().softmax(1)
    confidence, right = p.amax(1), (p.argmax(1) == y).double()
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = right[inside].mean() - confidence[inside].mean()
            expected += inside.double().mean().item() * abs(gap.item())
    assert evaluate(logits, y).ece == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand():
    found = calibration_error(torch.tensor([0.5, 0.5, 0.9, 0.9]).double(), torch.tensor([1.0, 0, 1, 1]).double())
    assert found == pytest.approx(0.5 * 0 + 0.5 * 0.1)
    third = torch.tensor([1 / 3, 1 / 3 + 0.01], dtype=torch.float64)  # an edge belongs to the bin below it
    assert calibration_error(third, torch.tensor([1.0, 0.0]).double()) == pytest.approx(
        0.5 * (2 / 3) + 0.5 * (1 / 3 + 0.01)
    )


def test_a_table_made_by_hand():
    """Class 0: 3 of 4 right, class 1: 1 of 2, class 2: none of 1, class 3: no samples."""
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    answers = torch.tensor([0, 0, 0, 1, 1, 3, 0])
    groups = {
        "many": torch.tensor([True, True, False, False]),
        "few": torch.tensor([False, False, True, True]),
        "gone": torch.tensor([False, False, False, True]),
        "none": torch.zeros(4, dtype=torch.bool),
    }
    found = evaluate(torch.nn.functional.one_hot(answers, 4).float() * 9, y, groups=groups)
    assert found.all == pytest.approx(4 / 7)
    assert found.balanced == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert (found.worst, found.gmean) == (0, 0)
    assert found.per_class[:3].tolist() == [0.75, 0.5, 0] and found.per_class[3].isnan()
    assert found.groups["many"] == pytest.approx(0.625)
    assert found.groups["few"] == 0
    assert math.isnan(found.groups["gone"]) and math.isnan(found.groups["none"])
    assert found.sizes == {"many": 2, "few": 2, "gone": 1, "none": 0}
    assert found.confusion.tolist() == [[3, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_no_samples_score_nan():
    found = evaluate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), groups={"few": torch.ones(3).bool()})
    assert found.n == 0 and found.confusion.sum() == 0
    assert all(math.isnan(getattr(found, name)) for name in NUMBERS)
    assert math.isnan(found.groups["few"])


def test_json_round_trip():
    logits, y = problem(60, 5)
    y = y.clamp(max=3)  # class 4 has no sample: NaN
    groups = {"many": torch.tensor([1, 1, 0, 0, 0]).bool(), "few": torch.tensor([0, 0, 0, 0, 1]).bool()}
    scores = evaluate(logits, y, groups=groups)
    text = json.dumps(scores.to_json(), allow_nan=False)
    same(Scores.from_json(json.loads(text)), scores)
    assert json.loads(text)["per_class"][4] is None and json.loads(text)["groups"]["few"] is None


def test_chunks_and_dtypes_do_not_show():
    logits, y = problem(9000, 3)
    same(evaluate(logits, y), evaluate(logits.double(), y.to(torch.int32)))
    half = evaluate(logits.bfloat16(), y)
    same(half, evaluate(logits.bfloat16().double(), y))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(9, 60), shift=st.floats(-30, 30), scale=st.floats(0.1, 10))
def test_invariances(seed, n, shift, scale):
    logits, y = problem(n, 5, seed=seed)
    logits = logits.double()
    groups = {"a": torch.tensor([1, 0, 1, 0, 0]).bool(), "b": torch.tensor([0, 1, 0, 1, 1]).bool()}
    scores = evaluate(logits, y, groups=groups)
    order = torch.randperm(n)
    same(evaluate(logits[order], y[order], groups=groups), scores)
    moved = evaluate(logits * scale + shift, y, groups=groups)
    assert torch.equal(moved.confusion, scores.confusion)
    names = torch.randperm(5)
    renamed = evaluate(logits[:, names], names.argsort()[y], groups={k: m[names] for k, m in groups.items()})
    torch.testing.assert_close(renamed.per_class, scores.per_class[names])
    assert renamed.groups == pytest.approx(scores.groups)
    assert renamed.ece == pytest.approx(scores.ece, abs=1e-9)
    assert scores.worst <= scores.gmean + 1e-12 and scores.gmean <= scores.balanced + 1e-12
    assert 0 <= scores.ece <= 1 and scores.nll >= 0
    sizes = scores.sizes
    assert sum(scores.groups[k] * sizes[k] for k in sizes) / 5 == pytest.approx(scores.balanced)


def test_a_balanced_test_set_has_one_accuracy():
    logits, _ = problem(700, 7)
    scores = evaluate(logits, torch.arange(7).repeat(100))
    assert scores.all == pytest.approx(scores.balanced)


def test_misfits_are_refused():
    logits, y = problem(20, 3)
    with pytest.raises(ValueError, match="do not fit"):
        evaluate(logits, y[:-1])
    with pytest.raises(ValueError, match="labels run from 0 to 3"):
        evaluate(logits, y + (y == 2))
    with pytest.raises(ValueError, match=r"group 'few' has shape \(2,\)"):
        evaluate(logits, y, groups={"few": torch.ones(2).bool()})
