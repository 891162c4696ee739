"""Which samples are looked at: seeded quotas, weights that keep the classes' shares, batches that must repeat."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from flattail.analysis import Samples, members_of

Y = torch.cat([torch.full((n,), c) for c, n in enumerate((40, 9, 1, 0))])[torch.randperm(50)]
X = torch.arange(50.0)[:, None]
PIECES = [(X[:20], Y[:20]), (X[20:], Y[20:])]


def test_quotas_are_kept_seeded_and_recorded():
    held = Samples.of(PIECES, classes=4, per_class=5, seed=3)
    assert held.held.tolist() == [5, 5, 1, 0]
    assert held.total.tolist() == [40, 9, 1, 0]
    assert torch.equal(X[held.rows], held.x)
    assert torch.equal(Y[held.rows], held.y)
    assert torch.equal(held.rows, held.rows.sort().values)
    again, another = (Samples.of(PIECES, classes=4, per_class=5, seed=s) for s in (3, 4))
    assert torch.equal(again.rows, held.rows)
    assert not torch.equal(another.rows, held.rows)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 50), st.integers(0, 100))
def test_the_choice_does_not_depend_on_the_batches(size, seed):
    cut = list(zip(X.split(size), Y.split(size), strict=True))
    held = Samples.of(cut, classes=4, per_class=3, seed=seed)
    assert torch.equal(held.rows, Samples.of([(X, Y)], classes=4, per_class=3, seed=seed).rows)


def test_everything_without_a_quota():
    held = Samples.of(lambda: iter(PIECES), classes=4)
    assert torch.equal(held.rows, torch.arange(50))


def test_weights_keep_the_shares_of_classes():
    held = Samples.of(PIECES, classes=4, per_class=5)
    a = held.weights(torch.ones(4))
    shares = torch.zeros(4, dtype=a.dtype).index_add(0, held.y, a)
    torch.testing.assert_close(shares, torch.tensor([40.0, 9, 1, 0]).double())
    one = held.weights(torch.eye(4)[1])
    assert one[held.y == 1].unique().numel() == 1
    assert not one[held.y != 1].any()


def test_a_half_keeps_half_of_each_class_rounded_up():
    held = Samples.of(PIECES, classes=4)
    half = held.half(0)
    assert half.held.tolist() == [20, 5, 1, 0]
    assert set(half.rows.tolist()) < set(held.rows.tolist())
    assert not torch.equal(half.rows, held.half(1).rows)


def test_the_spread_over_halves_is_the_standard_error_of_a_mean():
    torch.manual_seed(0)
    x = torch.randn(400, 1)
    held = Samples.of([(x, torch.zeros(400, dtype=torch.int64))], classes=1)
    means = torch.stack([held.half(s).x.mean() for s in range(300)])
    assert float(means.std()) == pytest.approx(float(x.std()) / 20, rel=0.15)


def test_batches_must_repeat():
    class Augmented:
        def __iter__(self):
            yield X + torch.randn_like(X), Y

    shuffled = DataLoader(TensorDataset(X, Y), batch_size=10, shuffle=True)
    for batches in (Augmented(), shuffled):
        with pytest.raises(ValueError, match="random augmentation, or a loader with shuffle=True"):
            Samples.of(batches, classes=4, per_class=5)
    with pytest.raises(ValueError, match="read only once"):
        Samples.of(iter(PIECES), classes=4)
    with pytest.raises(ValueError, match="no samples"):
        Samples.of([], classes=4)
    with pytest.raises(ValueError, match="labels run from 0 to 2, but there are 2"):
        Samples.of(PIECES, classes=2)
    held = Samples.of(DataLoader(TensorDataset(X, Y), batch_size=10), classes=4)
    assert len(held.y) == 50


def test_classes_and_groups_by_name():
    held = Samples.of(PIECES, classes=4)
    groups = {"many": torch.tensor([True, False, False, False]), "none": torch.tensor([False, False, False, True])}
    found = members_of(
        "1, few, dog, all", held, {"few": torch.tensor([0, 0, 1, 1]).bool()}, ["cat", "cow", "dog", "eel"]
    )
    assert {n: m.tolist() for n, m in found.items()} == {
        "1": [False, True, False, False],
        "few": [False, False, True, True],
        "2": [False, False, True, False],
        "all": [True] * 4,
    }
    some = Samples.of([(X[Y != 1], Y[Y != 1])], classes=2 + 2)
    with pytest.raises(ValueError, match=r"class '1' has no samples in this split: choose others \(classes=0, 2\)"):
        members_of("1", some, groups)
    with pytest.raises(ValueError, match="'eel' is no class: choose numbers from 0 to 3, or many, none, all"):
        members_of(("eel",), held, groups)


def test_what_could_mean_several_classes_is_refused_and_can_be_written():
    held, few = Samples.of(PIECES, classes=4), {"few": torch.tensor([0, 0, 1, 1]).bool()}
    names = ["1", "2", "few", "#1"]
    for said, ways in (
        ("1", r"write #1 for class number 1 \('2'\) or #0 for class number 0 \('1'\)"),
        ("few", r"write @few for the group or #2 for class number 2 \('few'\)"),
    ):
        with pytest.raises(ValueError, match=rf"'{said}' has more than one meaning: {ways}$"):
            members_of(said, held, few, names)
    found = members_of("#1, @few, 0, #2, @all", held, few, names)
    assert list(found) == ["1", "few", "0", "2", "all"]
    assert found["1"].tolist() == [False, True, False, False]
    assert found["few"].tolist() == [False, False, True, True]
    assert list(members_of((1, 2), held, few, names)) == ["1", "2"]
    assert list(members_of("2", held, few, ["0", "1", "2", "3"])) == ["2"]  # the same class either way
    with pytest.raises(ValueError, match=r"more than one meaning: write #0 .* or #1"):
        members_of("cat", held, few, ["cat", "cat", "dog", "eel"])


def test_by_default_all_classes_and_no_silent_gaps():
    held = Samples.of(PIECES, classes=4)
    with pytest.raises(ValueError, match="class '3' has no samples"):
        members_of("", held, {})
