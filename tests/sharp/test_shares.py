"""The class shares of an objective are those that its gradient has."""

import pytest
import torch
from cases import COUNTS, WEIGHTS
from hypothesis import given, settings
from hypothesis import strategies as st

from flattail.sharp import CCSAM, ERM, SAM, FocalSAM, ImbSAM, Window
from flattail.sharp.shares import class_shares

FEW = COUNTS < 20


@pytest.mark.parametrize(
    "label", [n for n in WEIGHTS if n.split("-")[0] in ("erm", "sam", "asam", "focalsam", "wsam", "gsam")]
)
def test_where_all_samples_count_alike_they_are_those_drawn(label):
    drawn = COUNTS.double() / COUNTS.sum()
    torch.testing.assert_close(
        class_shares(WEIGHTS[label], drawn, 32, counts=COUNTS, few=FEW), drawn, rtol=1e-12, atol=0
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(5, 500), min_size=2, max_size=6, unique=True), st.integers(4, 64))
def test_a_mean_over_classes_counts_a_class_as_often_as_it_is_there(n, batch):
    counts = torch.tensor(sorted(n, reverse=True))
    drawn = counts.double() / counts.sum()
    found = class_shares(CCSAM(average="class-sum"), drawn, batch, counts=counts, few=counts < 20)
    there = 1 - (1 - drawn) ** batch
    torch.testing.assert_close(found, there / there.sum(), rtol=0.5, atol=0.02)
    assert class_shares(Window(CCSAM(), 0.5), drawn, batch, counts=counts, few=counts < 20).tolist() != drawn.tolist()


def test_a_factor_of_the_tail_is_in_its_shares():
    drawn, tail = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), torch.tensor([1.0, 1.0, 2.0])
    counts = torch.tensor([60, 30, 10])
    found = class_shares(ImbSAM(eta=20, tail_weight=2.0), drawn, 64, counts=counts, few=counts < 20)
    torch.testing.assert_close(found, drawn * tail / (drawn * tail).sum())
    for method in (ERM(), SAM(), FocalSAM(), CCSAM(average="samples")):
        torch.testing.assert_close(class_shares(method, drawn, 64, counts=counts, few=counts < 20), drawn)


def test_nothing_is_drawn_from_torchs_generator():
    before = torch.get_rng_state()
    class_shares(CCSAM(direction="random"), COUNTS.double() / COUNTS.sum(), 32, counts=COUNTS, few=FEW)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("average", ["classes", "class-sum", "samples"])
def test_masses_cancel_in_a_mean_over_each_class_and_nowhere_else(average):
    """Shares times masses are those of the bias's gradient, whatever became of the masses."""
    drawn, counts = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), torch.tensor([60, 30, 10])
    masses, method = torch.tensor([1.0, 3.0, 9.0]), CCSAM(average=average)
    plain = class_shares(method, drawn, 64, counts=counts, few=counts < 20)
    weighed = class_shares(method, drawn, 64, counts=counts, few=counts < 20, masses=masses) * masses
    expected = plain * masses if average == "samples" else plain
    torch.testing.assert_close(weighed / weighed.sum(), expected / expected.sum())


def test_masses_cancel_for_classes_that_are_never_drawn_too():
    counts = torch.cat([torch.full((50,), 1000), torch.ones(200, dtype=torch.int64)])
    drawn, masses = counts.double() / counts.sum(), 1 / counts
    how = {"counts": counts, "few": counts < 20}
    plain = class_shares(CCSAM(), drawn, 8, **how)
    weighed = class_shares(CCSAM(), drawn, 8, **how, masses=masses) * masses
    torch.testing.assert_close(weighed / weighed.sum(), plain)
