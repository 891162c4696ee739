"""Samplers against the probabilities of Kang et al. (ICLR 2020)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flattail.data.profile import long_tail
from flattail.data.samplers import SAMPLERS, Balanced, EffectiveNumber, Progressive, Reversed, SquareRoot, Uniform

COUNTS = long_tail("exponential", 3000, 6, 50)
Y = torch.arange(6).repeat_interleave(COUNTS)[torch.randperm(int(COUNTS.sum()))]


def epoch(sampler, y, batch=128, *, progress=0.0, seed=0, drop_last=False):
    generator = torch.Generator().manual_seed(seed)
    return sampler(y, batch, generator=generator, progress=progress, drop_last=drop_last)


def shares(sampler, *, progress=0.0):
    drawn = torch.cat([Y[torch.cat(epoch(sampler, Y, progress=progress, seed=s))] for s in range(20)])
    return torch.bincount(drawn).double() / len(drawn), len(drawn)


@pytest.mark.parametrize("name", SAMPLERS)
@given(y=st.lists(st.integers(0, 5), min_size=1, max_size=60), batch=st.integers(1, 70), progress=st.floats(0, 1))
def test_an_epoch_is_n_draws_in_batches(name, y, batch, progress):
    y = torch.tensor(y)
    batches = epoch(SAMPLERS[name](), y, batch, progress=progress)
    assert sum(map(len, batches)) == len(y)
    assert all(len(b) == batch for b in batches[:-1])
    assert all(b.dtype == torch.int64 and b.min() >= 0 and b.max() < len(y) for b in batches)
    whole = epoch(SAMPLERS[name](), y, batch, progress=progress, drop_last=True)
    assert [len(b) for b in whole] == [batch] * (len(y) // batch)
    assert all(a.equal(b) for a, b in zip(whole, batches, strict=False))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_generator_is_the_only_randomness(name):
    first, again, other = (torch.cat(epoch(SAMPLERS[name](), Y, seed=s)) for s in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_uniform_is_a_permutation():
    assert torch.cat(epoch(Uniform(), Y)).sort().values.equal(torch.arange(len(Y)))


@pytest.mark.parametrize("per_class", [1, 4])
def test_balanced_cycles_through_classes_and_within_them(per_class):
    order = torch.cat(epoch(Balanced(per_class), Y))
    drawn = torch.bincount(Y[order])
    assert drawn.max() - drawn.min() <= per_class
    turn = 6 * per_class
    for start in range(0, len(Y) - turn, turn):  # every round shows each class per_class times, in a row
        labels = Y[order[start : start + turn]].view(6, per_class)
        assert (labels == labels[:, :1]).all()
        assert labels[:, 0].sort().values.equal(torch.arange(6))
    for c in range(6):  # no sample of a class again before all others of it
        seen = torch.bincount(order[Y[order] == c], minlength=len(Y))[c == Y]
        assert seen.max() - seen.min() <= 1


@pytest.mark.parametrize(
    ("sampler", "progress", "expected"),
    [
        (SquareRoot(), 0.3, COUNTS.double().sqrt() / COUNTS.double().sqrt().sum()),
        (Reversed(), 0.3, (1 / COUNTS) / (1 / COUNTS).sum()),
        (Progressive(), 0.0, COUNTS / COUNTS.sum()),
        (Progressive(), 1.0, torch.full((6,), 1 / 6)),
        (Progressive(), 0.25, 0.75 * COUNTS / COUNTS.sum() + 0.25 / 6),
    ],
)
def test_class_probabilities(sampler, progress, expected):
    share, n = shares(sampler, progress=progress)
    assert (share - expected).abs().max() < 5 * (0.25 / n) ** 0.5


def test_samples_of_a_class_are_alike():
    order = torch.cat([torch.cat(epoch(SquareRoot(), Y, seed=s)) for s in range(30)])
    seen = torch.bincount(order, minlength=len(Y))[Y == 5].double()  # the rarest class, drawn often
    assert seen.min() > 0
    assert seen.var() / seen.mean() < 2  # Poisson: 1


def test_effective_numbers_stand_between_the_data_and_equal_classes():
    counts = torch.tensor([5000, 500, 50, 0])
    n, beta = counts.double()[:3], 0.9999
    expected = n * (1 - beta) / (1 - beta**n)
    found = EffectiveNumber().shares(counts, 0.0)
    assert torch.allclose(found[:3], expected / expected.sum()) and found[3] == 0
    assert torch.allclose(EffectiveNumber(0.0).shares(counts, 0.0), counts / counts.sum().double())
    near = EffectiveNumber(1 - 1e-9).shares(counts, 0.0)
    assert torch.allclose(near[:3], torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-4)
    with pytest.raises(ValueError, match="beta: a share"):
        EffectiveNumber(1.0)
