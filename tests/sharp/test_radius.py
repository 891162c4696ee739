"""Radii over training: Saddle's schedules, the epoch borders of SSE-SAM, windows."""

import pytest
import torch
from cases import COUNTS
from hypothesis import given
from hypothesis import strategies as st

from flattail.sharp import RADII, SAM, SSESAM, Context, Linear, Steps, Window

Y = torch.arange(len(COUNTS))


def climbing(method, progress):
    at = Context(Y, counts=COUNTS, few=COUNTS < 20, progress=progress)
    return [t.name for t in method.terms(at) if t.climb is not None]


def radius(rho, progress):
    """The length of SAM's climb at a share of training."""
    (term,) = SAM(rho=rho).terms(Context(Y, progress=progress))
    w, g = [torch.ones(3).double()], [torch.tensor([1.0, 2.0, 2.0]).double()]
    return float(term.climb(w, g)[0].norm())


@pytest.mark.parametrize(
    "e1, rho", [(1, 0.05), (5, 0.05), (6, 0.1), (60, 0.1), (61, 0.5), (75, 0.5), (76, 0.2), (90, 0.2)]
)
def test_saddles_steps_on_large_sets(e1, rho):
    """`--rho_steps .05 .1 .5 .2` of 90 epochs: borders after epochs 5, 60 and 75 (1-based e1 = e + 1)."""
    steps = Steps((0.05, 0.1, 0.5, 0.2), (5 / 90, 60 / 90, 75 / 90))
    assert radius(steps, (e1 - 1) / 90) == pytest.approx(rho, rel=1e-9)


@pytest.mark.parametrize("e1, rho", [(5, 0.05), (6, 0.1), (160, 0.1), (161, 0.5), (180, 0.5), (181, 0.6), (200, 0.6)])
def test_saddles_steps_on_cifar(e1, rho):
    steps = Steps((0.05, 0.1, 0.5, 0.6), (5 / 200, 160 / 200, 180 / 200))
    assert radius(steps, (e1 - 1) / 200) == pytest.approx(rho, rel=1e-9)


@pytest.mark.parametrize("epochs", [2, 90, 200])
def test_saddles_line(epochs):
    """From .05 at e1 = 1 to .8 at e1 = epochs."""
    line = Linear(0.05, 0.8, until=(epochs - 1) / epochs)
    for e1 in (1, (epochs + 1) // 2, epochs):
        expected = 0.05 + (0.8 - 0.05) * (e1 - 1) / (epochs - 1)
        assert radius(line, (e1 - 1) / epochs) == pytest.approx(expected, rel=1e-9)
    assert radius(Linear(0.8, 0.05), 1.0) == pytest.approx(0.05)


@given(a=st.floats(0, 1), b=st.floats(0, 1), t=st.floats(0, 1), until=st.floats(0.01, 1))
def test_a_line_stays_between_its_ends(a, b, t, until):
    value = Linear(a, b, until)(t)
    assert min(a, b) - 1e-12 <= value <= max(a, b) + 1e-12


@given(total=st.integers(2, 400), border=st.integers(1, 399))
def test_a_border_at_an_epoch_is_met_exactly(total, border):
    border = min(border, total - 1)
    steps = Steps((1.0, 2.0), (border / total,))
    assert [steps(e / total) for e in (border - 1, border)] == [1.0, 2.0]


@pytest.mark.parametrize(
    "gamma, epochs, active",
    [(0.7, 10, 7), (0.75, 10, 8), (0.0, 10, 0), (0.0, 200, 0), (0.55, 200, 110), (1.0, 10, 10), (0.1, 30, 3)],
)
def test_the_head_climbs_for_the_published_epochs(gamma, epochs, active):
    """rho_H is active for e < ceil(gamma T); .55 * 200 is 110.00000000000001 and must not make it 111."""
    method = SSESAM(switch=gamma)
    heads = ["head" in climbing(method, e / epochs) for e in range(epochs)]
    assert heads == [e < active for e in range(epochs)]
    assert all("tail" in climbing(method, e / epochs) for e in range(epochs))


@given(epochs=st.integers(1, 400), k=st.integers(0, 400))
def test_a_switch_at_an_epoch_is_at_that_epoch_whatever_the_rounding(epochs, k):
    k = min(k, epochs)
    method = SSESAM(switch=k / epochs)
    assert sum("head" in climbing(method, e / epochs) for e in range(epochs)) == k


def test_radii_of_head_and_tail_may_be_schedules():
    method = SSESAM(head_rho=Linear(0.0, 1.0), tail_rho=Steps((0.1, 0.2), (0.5,)), switch=1.0)
    at = Context(Y, counts=COUNTS, few=COUNTS < 20, progress=0.5)
    lengths = [float(t.climb([torch.ones(2)], [torch.ones(2)])[0].norm()) for t in method.terms(at)]
    assert lengths == pytest.approx([0.5, 0.2])


def test_windows_meet_without_overlap():
    first, second = Window(SAM(), 0.0, 0.55), Window(SAM(), 0.55, 1.0)
    for e in range(200):
        assert bool(climbing(first, e / 200)) != bool(climbing(second, e / 200))
    assert sum(bool(climbing(first, e / 200)) for e in range(200)) == 110


def test_the_table_names_them():
    assert {"steps": Steps, "linear": Linear} == RADII


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SAM(rho=-0.1), "-0.1"),
        (lambda: SAM(rho=float("nan")), "nan"),
        (lambda: SSESAM(head_rho=-1), "length"),
        (lambda: Steps((0.1, -0.2), (0.5,)), "-0.2"),
        (lambda: Steps((0.1, 0.2), (0.5, 0.6)), "2 borders need 3 values"),
        (lambda: Steps((0.1, 0.2, 0.3), (0.6, 0.5)), "rise"),
        (lambda: Linear(-0.1, 0.2), "-0.1"),
        (lambda: Linear(0.1, 0.2, until=0), "until"),
        (lambda: SSESAM(switch=1.2), "switch"),
        (lambda: Window(SAM(), 0.5, 0.5), "window"),
    ],
)
def test_what_is_no_radius_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
