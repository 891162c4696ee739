"""Optimisers are torch's; schedules follow the published factors."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from flattail.optim import OPTIMS, SCHEDULES, SGD, AdamW, Constant, Cosine, Multistep
from flattail.stage import Stage, set_rate

SADDLE = Multistep(at=(0.8, 0.9), factors=(0.01, 0.0001), warmup=5 / 200)


def test_the_tables_name_them():
    assert {"sgd": SGD, "adamw": AdamW} == OPTIMS
    assert {"constant": Constant, "multistep": Multistep, "cosine": Cosine} == SCHEDULES


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_torchs(nesterov):
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    ours = SGD(0.3, 0.8, 0.01, nesterov).build([a])
    theirs = torch.optim.SGD([b], 0.3, momentum=0.8, weight_decay=0.01, nesterov=nesterov)
    for step in range(3):
        a.grad, b.grad = torch.full((3,), 1.0 + step), torch.full((3,), 1.0 + step)
        ours.step()
        theirs.step()
    assert torch.equal(a, b) and not torch.equal(a, torch.ones(3))


def test_adamw_is_torchs():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    ours, theirs = (
        AdamW(0.3, 0.1, (0.8, 0.9)).build([a]),
        torch.optim.AdamW([b], 0.3, weight_decay=0.1, betas=(0.8, 0.9)),
    )
    for step in range(3):
        a.grad, b.grad = torch.full((3,), 1.0 + step), torch.full((3,), 1.0 + step)
        ours.step()
        theirs.step()
    assert torch.equal(a, b) and not torch.equal(a, torch.ones(3))


@pytest.mark.parametrize("make", [SGD, AdamW])
@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan])
def test_a_rate_is_positive(make, lr):
    with pytest.raises(ValueError, match="lr: a learning rate is positive"):
        make(lr=lr)


def test_saddles_factors():
    """METHODS 6: e1/5 up to e1 = 5; x.01 for e1 > 160, so from e = 160; x.0001 for e1 > 180."""
    factors = [SADDLE(e, 200) for e in range(200)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(factors[5:160]) == {1.0} and set(factors[160:180]) == {0.01} and set(factors[180:]) == {0.0001}


def test_ccsams_factors():
    """METHODS 6: .4667 .6 .7333 .8667 1, then x.1 from e = 159 and x.01 from e = 179, of 200."""
    ccsam = Multistep(at=(159 / 200, 179 / 200), factors=(0.1, 0.01), warmup=5 / 200, start=1 / 3)
    factors = [ccsam(e, 200) for e in range(200)]
    assert factors[:5] == pytest.approx([0.4667, 0.6, 0.7333, 0.8667, 1.0], abs=5e-5)
    assert factors[158] == 1.0 and factors[159] == 0.1 and factors[178] == 0.1 and factors[179] == 0.01


def test_ssesams_cosine_runs_an_epoch_ahead():
    """METHODS 6: with lr .01 over 200 epochs the first rate is .0099994 and the last exactly 0."""
    rates = [0.01 * Cosine(ahead=1)(e, 200) for e in range(200)]
    assert rates[0] == pytest.approx(0.0099994, abs=5e-8) and rates[-1] == 0.0


def test_a_plain_cosine_is_torchs():
    p = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], 0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for epoch in range(30):
        assert 0.1 * Cosine()(epoch, 30) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("share", "epochs", "border"), [(0.55, 200, 110), (0.7, 10, 7), (0.75, 10, 8), (0.8, 200, 160)]
)
def test_shares_meet_their_epoch_in_spite_of_rounding(share, epochs, border):
    schedule = Multistep(at=(share,), factors=(0.5,))
    assert [schedule(e, epochs) for e in (border - 1, border)] == [1.0, 0.5]


def test_a_warmed_up_cosine_reaches_the_full_rate_and_then_falls():
    factors = [Cosine(warmup=0.1)(e, 50) for e in range(50)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and factors[5] == 1.0
    assert all(a > b for a, b in pairwise(factors[5:])) and factors[-1] > 0


def test_within_an_epoch_the_factor_moves_on():
    assert Cosine()(3.5, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.35)))
    assert SADDLE(159.999, 200) == 1.0 and SADDLE(160.0, 200) == 0.01


def test_drops_and_factors_come_in_pairs():
    with pytest.raises(ValueError, match="2 drops need as many factors, not 1"):
        Multistep(at=(0.5, 0.8), factors=(0.1,))


def test_every_group_gets_the_rate_times_its_factor():
    stage = Stage(10, optim=SGD(0.2), schedule=Cosine())
    groups = [{"params": [nn.Parameter(torch.ones(1))], "factor": f} for f in (1.0, 0.5, 0.0)]
    optimizer = stage.optim.build(groups)
    assert set_rate(optimizer, stage, 5, 10) == pytest.approx(0.1)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.05, 0.0])


@pytest.mark.parametrize("schedule", [Cosine(warmup=0.1), Multistep(warmup=0.1)])
def test_a_warm_up_by_the_step_runs_from_nothing_to_the_full_rate(schedule):
    """And one by the epoch gives an epoch the rate of its end."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.param_groups[0]["factor"] = 1.0

    def rates(clock, *epochs):
        stage = Stage(20, optim=SGD(1.0), schedule=schedule, clock=clock)
        return [set_rate(optimizer, stage, epoch, 20) for epoch in epochs]

    assert rates("step", 0, 0.5, 1, 1.5, 2) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0], abs=1e-12)
    assert rates("epoch", 0, 1, 2) == pytest.approx([0.5, 1.0, 1.0])


def test_a_schedule_of_ones_own_is_asked_as_it_is():
    @dataclass(frozen=True)
    class Own:
        warmup: int = 5  # epochs here, and no share

        def __call__(self, epoch, epochs):
            return 1 - epoch / epochs

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.param_groups[0]["factor"] = 1.0
    stage = replace(Stage(20, optim=SGD(1.0), clock="step"), schedule=Own())
    assert set_rate(optimizer, stage, 10, 20) == 0.5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Multistep((2, 3), (0.1, 0.01)),
            r"at: shares of training in \[0, 1\] \(epoch 160 of 200 is 0.8\), and",
        ),
        (lambda: Multistep((0.75, 0.5), (0.01, 0.1)), "at: none before the one before it"),
        (lambda: Multistep(warmup=5), "warmup: shares of training"),
        (lambda: Cosine(warmup=-0.1), "warmup: shares of training"),
        (lambda: SGD(momentum=1.5), r"momentum is in \[0, 1\)"),
        (lambda: SGD(weight_decay=-1), "weight_decay not negative"),
        (lambda: SGD(momentum=0.0, nesterov=True), "nesterov looks ahead along the momentum"),
        (lambda: SGD(lr=math.inf), "lr: a learning rate is positive"),
        (lambda: AdamW(betas=(1.5, 2.0)), "betas are in"),
    ],
)
def test_what_no_training_can_be_made_of_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
