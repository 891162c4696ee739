"""Counts, subsets and groups against the published numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flattail.data.profile import (
    HEAD_3_4_3,
    PROFILES,
    SHOTS,
    Inclusive,
    Slices,
    Strict,
    Thresholds,
    factor_of,
    fingerprint,
    long_tail,
    ranks,
    subset,
)

EXPONENTIAL_10 = {
    10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
    200: [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25],
}


@pytest.mark.parametrize("imbalance", EXPONENTIAL_10)
def test_cifar10_exponential_counts_in_both_conventions(imbalance):
    assert long_tail("exponential", 5000, 10, imbalance).tolist() == EXPONENTIAL_10[imbalance]
    assert long_tail("exponential", 5000, 10, 1 / imbalance).tolist() == EXPONENTIAL_10[imbalance]


@pytest.mark.parametrize(
    ("profile", "imbalance", "total", "least"),
    [
        ("exponential", 10, 19573, 50),
        ("exponential", 50, 12608, 10),
        ("exponential", 100, 10847, 5),
        ("exponential", 200, 9502, 2),
        ("step", 10, 27500, 50),
        ("step", 50, 25500, 10),
        ("step", 100, 25250, 5),
        ("step", 200, 25100, 2),
    ],
)
def test_cifar100_totals(profile, imbalance, total, least):
    counts = long_tail(profile, 500, 100, imbalance)
    assert (int(counts.sum()), int(counts.min())) == (total, least)


def test_cifar100_counts_at_the_borders_of_the_groups():
    counts = long_tail("exponential", 500, 100, 100).tolist()
    assert counts[:6] == [500, 477, 455, 434, 415, 396]
    assert counts[-8:] == [6, 6, 6, 6, 5, 5, 5, 5]
    assert [counts[j] for j in (34, 35, 69, 70)] == [102, 98, 20, 19]


@pytest.mark.parametrize(
    ("imbalance", "total", "least"), [(10, 27500, 500), (50, 25500, 100), (100, 25250, 50), (200, 25125, 25)]
)
def test_cifar10_step_totals(imbalance, total, least):
    counts = long_tail("step", 5000, 10, imbalance)
    assert (int(counts.sum()), int(counts[4]), int(counts[5])) == (total, 5000, least)


@given(st.sampled_from(list(PROFILES)), st.integers(2, 200), st.floats(1, 100), st.integers(200, 5000))
def test_every_profile_falls_from_the_largest_to_its_share(profile, classes, imbalance, largest):
    counts = long_tail(profile, largest, classes, imbalance)
    assert counts[0] == largest
    assert (counts.diff() <= 0).all()
    assert abs(int(counts[-1]) - largest / imbalance) <= 1 + 1e-6


def test_pareto_has_a_steeper_head_than_the_exponential():
    pareto, exponential = (long_tail(name, 5000, 10, 100) for name in ("pareto", "exponential"))
    assert pareto[0] == exponential[0] == 5000
    assert (pareto[1:-1] < exponential[1:-1]).all()
    # log counts of a Pareto curve are convex, those of an exponential straight
    assert (pareto.double().log().diff().diff() > -1e-2).all()


@pytest.mark.parametrize("wrong", [0, -1, -100, float("nan")])
def test_an_imbalance_without_meaning_is_refused(wrong):
    with pytest.raises(ValueError, match="largest count over the smallest"):
        factor_of(wrong)


def test_an_imbalance_that_empties_a_class_is_refused():
    with pytest.raises(ValueError, match=r"class 9 without an image.*at most 124"):
        long_tail("exponential", 124, 10, 200)
    with pytest.raises(ValueError, match="exponential, step, pareto"):
        long_tail("linear", 124, 10, 2)


RANKS = {  # rule, classes -> class -> ranks of the first five kept
    ("cao", 10): {
        0: [398, 3833, 4836, 4572, 636],
        1: [597, 332, 521, 3935, 4800],
        9: [2204, 3816, 2206, 2507, 1926],
    },
    ("cao", 100): {0: [90, 254, 283, 445, 461], 1: [277, 307, 436, 88, 261], 99: [348, 153, 363, 361, 299]},
    ("cc", 10): {0: [1501, 2586, 2653, 1055, 705]},
    ("cc", 100): {0: [361, 73, 374, 155, 104]},
    ("first", 10): {0: [0, 1, 2, 3, 4], 9: [0, 1, 2, 3, 4]},
}


@pytest.mark.parametrize(("rule", "classes"), RANKS)
def test_the_published_shuffles(rule, classes):
    order = ranks([50000 // classes] * classes, rule)
    assert {c: order[c][:5].tolist() for c in RANKS[rule, classes]} == RANKS[rule, classes]


@pytest.mark.parametrize("rule", ["cao", "cc", "first"])
def test_a_subset_keeps_those_ranks_of_mixed_labels(rule):
    labels = np.random.RandomState(5).permutation(np.repeat(np.arange(10), 5000))
    kept = subset(labels, long_tail("exponential", 5000, 10, 100), rule)
    assert np.bincount(labels[kept]).tolist() == EXPONENTIAL_10[100]
    assert len(set(kept.tolist())) == len(kept) == 12406
    assert (np.diff(labels[kept]) >= 0).all()
    for c, expected in RANKS[rule, 10].items():
        positions = np.flatnonzero(labels == c)
        assert np.searchsorted(positions, kept[labels[kept] == c][:5]).tolist() == expected


def test_a_smaller_subset_is_a_beginning_of_a_larger_one():
    labels = np.repeat(np.arange(10), 5000)
    large, small = (subset(labels, long_tail("exponential", 5000, 10, i), "cao") for i in (50, 200))
    for c in range(10):
        ours = small[labels[small] == c]
        assert ours.tolist() == large[labels[large] == c][: len(ours)].tolist()


def test_fingerprints_tell_subsets_apart():
    labels = np.repeat(np.arange(10), 5000)
    counts = long_tail("exponential", 5000, 10, 100)
    prints = {rule: fingerprint(subset(labels, counts, rule), counts) for rule in ("cao", "cc", "first")}
    assert len(set(prints.values())) == 3
    assert all(len(p) == 12 and int(p, 16) >= 0 for p in prints.values())
    assert fingerprint(counts) == fingerprint(counts.tolist()) == fingerprint(counts.numpy().astype(np.int32))
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
    with pytest.raises(ValueError, match="cao, cc, first"):
        subset(labels, counts, "seed 0")


def test_asking_for_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="class 1 has 2 images, 3 are asked for"):
        subset([0, 0, 0, 1, 1], torch.tensor([3, 3]))


def sizes(shots, counts):
    return [int(mask.sum()) for mask in shots.group(counts).values()]


@pytest.mark.parametrize(
    ("imbalance", "strict", "inclusive"),
    [(100, [35, 35, 30], [35, 34, 31]), (50, [41, 41, 18], [41, 40, 19]), (200, [30, 31, 39], [31, 29, 40])],
)
def test_group_sizes_of_cifar100(imbalance, strict, inclusive):
    counts = long_tail("exponential", 500, 100, imbalance)
    assert sizes(Strict(), counts) == strict
    assert sizes(Inclusive(), counts) == inclusive
    assert sizes(Slices(), counts) == [36, 35, 29]


def test_group_sizes_of_cifar10():
    counts = long_tail("exponential", 5000, 10, 100)
    assert sizes(HEAD_3_4_3, counts) == [3, 4, 3]
    assert sizes(Thresholds(1000, 200), counts) == [4, 3, 3]
    assert sizes(Inclusive(), counts) == [8, 2, 0]  # the empty group is kept, as an empty mask
    assert sizes(Thresholds(2319, 835), long_tail("exponential", 5000, 10, 10)) == [4, 3, 3]
    assert sizes(Thresholds(265, 99), long_tail("exponential", 500, 100, 10)) == [28, 42, 30]


@given(st.lists(st.integers(1, 300), min_size=3, max_size=40), st.sampled_from(list(SHOTS)))
def test_groups_partition_the_classes(counts, name):
    counts = torch.tensor(counts)
    shots = Slices(1, len(counts) - 2, 1) if name == "mislas" else SHOTS[name]()
    groups = shots.group(counts)
    assert list(groups) == ["many", "medium", "few"]
    assert sum(mask.long() for mask in groups.values()).eq(1).all()
    if groups["many"].any() and groups["few"].any():
        assert counts[groups["many"]].min() >= counts[groups["few"]].max()


def test_slices_go_by_count_not_by_label():
    groups = Slices(1, 1, 2).group(torch.tensor([5, 9, 5, 7]))
    assert {k: v.nonzero()[:, 0].tolist() for k, v in groups.items()} == {
        "many": [1],
        "medium": [3],
        "few": [0, 2],
    }
    with pytest.raises(ValueError, match=r"36/35/29.*10 classes"):
        Slices().group(torch.arange(10))
    with pytest.raises(ValueError, match="few=50 overlaps many=10"):
        Thresholds(10, 50).group(torch.arange(10))
