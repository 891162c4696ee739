"""Two stages as `fit` runs them: what is trained and how fast, starts, selection, and going on after a stop."""

from dataclasses import replace

import pytest
import torch
from small import different, net, same_weights, tail, trained, without_seconds
from torch import nn

from flattail.averages import AVERAGES, EMA, SWA
from flattail.checkpoint import Interrupted, State
from flattail.constraints import CONSTRAINTS, MaxNorm, SpectralNorm
from flattail.data.samplers import Balanced
from flattail.models import Scaled
from flattail.optim import SGD, AdamW, Cosine
from flattail.sharp import CCSAM, METHODS, SAM
from flattail.stage import Stage
from flattail.starts import STARTS, ClassMeans, DisAlign, LogitAdjust, NewHead, Scales, TauNorm
from flattail.train import accelerated, fit

FIRST = Stage(1, batch=16)
MADE_OF_METHODS = ("window", "every")


def data():
    """With a validation part."""
    return tail((24, 12, 8)).carve(0.2, 0)


def a_net():
    return net(norm=nn.BatchNorm1d, dropout=0.2)


def score_of(model):
    return -sum(p.detach().square().sum().item() for p in model.parameters())


# -- what is trained, in which mode, at which rate -----------------------------------------------------------------


def changed(model, before):
    now, was = model.state_dict(), before.state_dict()
    return {n for n in now if n in was and not torch.equal(now[n], was[n])}


def test_a_pattern_says_what_is_trained():
    model, before = a_net(), a_net()
    trained(model, Stage(1, batch=16, train=r"^head\.bias$|^backbone\.1\.weight"))
    moving = {f"backbone.2.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed(model, before) - moving == {"head.bias", "backbone.1.weight"}


def test_statistics_of_a_frozen_backbone_stay_or_move():
    for statistics, moved in (("frozen", set()), ("moving", {"running_mean", "running_var", "num_batches_tracked"})):
        model, before = a_net(), a_net()
        trained(model, Stage(1, batch=16, train="head", statistics=statistics))
        assert changed(model, before) == {"head.weight", "head.bias"} | {f"backbone.2.{n}" for n in moved}


def test_what_is_trained_in_part_is_in_training_mode():
    """A norm whose weights are trained moves; its frozen neighbours have none to move."""
    model, before = a_net(), a_net()
    trained(model, Stage(1, batch=16, train=r"backbone\.2"))
    assert {n.rpartition(".")[2] for n in changed(model, before)} == {
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip


def test_a_pattern_that_matches_nothing_is_refused_with_names():
    with pytest.raises(
        ValueError, match=r"train: no parameter has 'haed' in its name; the last names are .*head\.bias"
    ):
        trained(net(), Stage(1, train="haed"))
    with pytest.raises(ValueError, match=r"rates: 'backbone' is the first to be found in no trained name"):
        trained(net(), Stage(1, train="head", rates=(("backbone", 0.1),)))


def test_rates_are_factors_and_the_first_pattern_counts():
    """One step of plain SGD moves by lr, factor and slope."""
    moves = {}
    for name, rates in (("one", ()), ("two", ((r"head\.bias", 0.0), ("head", 0.5)))):
        model, before = net(), net()
        rows = trained(model, Stage(1, batch=64, optim=SGD(0.1, 0.0, 0.0), rates=rates))
        assert rows[0]["lr"] == 0.1
        pairs = zip(model.named_parameters(), before.parameters(), strict=True)
        moves[name] = {n: (p - q).detach() for (n, p), q in pairs}
    factors = {"head.weight": 0.5, "head.bias": 0.0}
    for n, move in moves["one"].items():
        torch.testing.assert_close(moves["two"][n], factors.get(n, 1.0) * move, rtol=1e-3, atol=1e-7)


# -- stages that are their start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [TauNorm(0.7), TauNorm(), ClassMeans(), LogitAdjust(), LogitAdjust(None)])
def test_no_epochs_and_the_start_does_the_work(start):
    model, before, state = a_net(), a_net(), State()
    trained(before, FIRST, data=data())
    rows = trained(model, [FIRST, Stage(0, start=start)], data=data(), state=state)
    assert len(rows) == 1 and rows[0]["epochs"] == 1
    same_weights(model.backbone, before.backbone)
    assert list(state.found) == [1] and ("tau" in state.found[1]) == hasattr(start, "tau")
    assert all(p.requires_grad for p in model.parameters()) and model.training


def test_schedules_and_clocks_bear_a_stage_without_epochs():
    stages = [FIRST, Stage(0, start=NewHead()), Stage(2, batch=16, train="head", schedule=Cosine())]
    rows = trained(a_net(), stages, data=data())
    assert [(r["epoch"], r["stage"]) for r in rows] == [(0, 0), (1, 2), (2, 2)]
    assert [r["lr"] for r in rows[1:]] == pytest.approx([0.1, 0.05])


def test_a_start_that_is_all_there_is_returns_no_epoch():
    model = a_net()
    assert fit(model, data(), [Stage(0, start=ClassMeans())], accelerator=accelerated("cpu", "fp32")) == -1


def test_what_a_start_found_stands_in_the_first_row_of_its_stage():
    rows = trained(a_net(), [FIRST, Stage(2, batch=16, start=TauNorm(0.5), train="head")], data=data())
    assert [row.get("start") for row in rows] == [None, {"tau": 0.5}, None]


# -- published second stages -------------------------------------------------------------------------------------


def test_crt_draws_its_head_from_the_seed_and_not_from_the_first_stage():
    heads = []
    for seed, rate in ((1, 0.1), (1, 0.2), (2, 0.1)):
        model = a_net()
        first = replace(FIRST, optim=SGD(rate))
        trained(model, [first, Stage(0, start=NewHead())], data=data(), seed=seed)
        heads.append(model.head.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_learnable_weight_scaling_trains_the_scales_alone():
    model, before = a_net(), a_net()
    trained(before, FIRST)
    trained(model, [FIRST, Stage(1, batch=16, start=Scales(), train=r"^head\.scales$", sampler=Balanced())])
    assert type(model.head) is Scaled and different(model.head, Scaled(before.head))
    assert torch.equal(model.head.inner.weight, before.head.weight)
    assert torch.equal(model.head.inner.bias, before.head.bias)


def test_a_head_with_scales_goes_through_the_general_route_of_head_methods():
    rows = trained(a_net(), [FIRST, Stage(1, batch=16, start=Scales(), train="head", method=CCSAM(scale=0.01))])
    assert rows[1]["terms"]["class"]["active"] == 1 and rows[1]["terms"]["class"]["radius"] > 0


# -- selection ---------------------------------------------------------------------------------------------------


def test_a_new_classifier_begins_the_selection_anew():
    scores = iter([0.9, 0.1, 0.3, 0.2])
    model, stages = a_net(), [replace(FIRST, epochs=2), Stage(2, batch=16, start=Scales(), train="head")]
    how = {"accelerator": accelerated("cpu", "fp32"), "score": lambda m: next(scores)}
    assert fit(model, data(), stages, **how) == 2 and type(model.head) is Scaled


def test_a_start_without_epochs_is_scored():
    model, scores = a_net(), iter([0.9, 0.1])
    how = {"accelerator": accelerated("cpu", "fp32"), "score": lambda m: next(scores)}
    assert fit(model, data(), [FIRST, Stage(0, start=TauNorm(1.0))], **how) == 0 and model.head.bias is None


# -- going on after a stop ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9."""


def resumed(stages, where, path, **how):
    """Train, stop before the step at a place (by kill if it is the first of an epoch), and go on with a new model."""
    rows, more = [], []
    given = {"checkpoint": path, "every": 0.0, "seed": 5, "identity": "me"} | how

    def stop(place, steps):
        if tuple(place) == where:
            raise Killed

    def ask(place, steps):
        if tuple(place) == where:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    step = stop if where[2] == 0 else ask
    with pytest.raises((Killed, Interrupted)):
        fit(
            a_net(), data(), stages, accelerator=accelerated("cpu", "fp32"), on_epoch=rows.append, on_step=step, **given
        )
    model, state = a_net(), State()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    if not path.exists():
        model = a_net()
    how = {"accelerator": accelerated("cpu", "fp32"), "on_epoch": more.append, "state": state}
    fit(model, data(), stages, **how, **given)
    return model, [row for row in rows if not more or row["epoch"] < more[0]["epoch"]] + more, state


LAST = {"batch": 16, "schedule": Cosine(), "train": "head", "optim": AdamW()}
SECOND = (
    {f"start {n}": Stage(2, start=STARTS[n](), **LAST) for n in STARTS}
    | {f"average {n}": Stage(2, batch=16, average=AVERAGES[n](), method=SAM(0.1)) for n in AVERAGES}
    | {f"constraint {n}": Stage(2, batch=16, constraint=CONSTRAINTS[n](), method=SAM(0.1)) for n in CONSTRAINTS}
    | {
        "all at once": Stage(
            2, start=Scales(), average=EMA(0.5), constraint=SpectralNorm(), rates=(("inner", 0.5),), **LAST
        ),
        "averaged in a ball": Stage(2, start=DisAlign(), average=SWA(0.0), constraint=MaxNorm(), batch=16),
    }
)


@pytest.mark.parametrize("where", [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", SECOND)
def test_an_interrupted_second_stage_goes_on_bit_for_bit(tmp_path, name, where):
    stages = [FIRST, SECOND[name]]
    whole, state = a_net(), State()
    rows = trained(whole, stages, data=data(), seed=5, score=score_of, state=state)
    model, seen, again = resumed(stages, where, tmp_path / "c.pt", score=score_of)
    same_weights(model, whole)
    assert without_seconds(seen) == without_seconds(rows) and again.found == state.found


@pytest.mark.parametrize("where", [(0, 1, 1), (1, 0, 0), (1, 0, 2), (2, 0, 0), (2, 0, 1)], ids=str)
def test_chains_of_constraints_averages_and_carried_optimisers(tmp_path, where):
    stages = [
        Stage(2, batch=16, constraint=SpectralNorm(), rates=(("head", 0.5),)),
        Stage(1, batch=16, average=EMA(0.5), rates=(("head", 0.5),), carry=True),
        Stage(1, batch=16, start=ClassMeans(), train="head", constraint=SpectralNorm()),
    ]
    whole = a_net()
    rows = trained(whole, stages, data=data(), seed=5)
    model, seen, _ = resumed(stages, where, tmp_path / "c.pt")
    same_weights(model, whole)
    assert without_seconds(seen) == without_seconds(rows)


@pytest.mark.parametrize("name", [n for n in METHODS if hasattr(METHODS[n], "memory") and n not in MADE_OF_METHODS])
def test_what_a_method_remembers_survives_a_stop(tmp_path, name):
    stages = [Stage(2, batch=16, method=METHODS[name]()), Stage(1, batch=16, method=METHODS[name](), carry=True)]
    whole = a_net()
    rows = trained(whole, stages, data=data(), seed=5)
    for number, where in enumerate([(0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1)]):
        model, seen, _ = resumed(stages, where, tmp_path / f"{number}.pt")
        same_weights(model, whole)
        assert without_seconds(seen) == without_seconds(rows), where


def test_seconds_of_all_processes_are_counted(tmp_path):
    state = resumed([replace(FIRST, epochs=2)], (0, 1, 1), tmp_path / "c.pt")[2]
    saved = torch.load(tmp_path / "c.pt")["state"]
    assert state.wall > saved["wall"] > 0


# -- what cannot follow ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([FIRST, Stage(1, start=NewHead(), carry=True)], r"stages\[1\]\.carry: .*a `start` makes the classifier a new"),
        ([Stage(0, start=NewHead()), Stage(1, carry=True)], r"stages\[1\]\.carry"),
        ([FIRST, Stage(1, rates=(("head", 0.5),), carry=True)], r"stages\[1\]\.carry.*which has rates"),
        ([FIRST, Stage(1, init="runs/a/b/0")], r"stages\[1\]\.init: only the first stage takes its weights from a run"),
        ([Stage(1, init="runs/a/b/0")], r"stages\[0\]\.init: `fit` trains the model that it is given"),
    ],
)
def test_stages_that_cannot_follow_are_refused(stages, said):
    with pytest.raises(ValueError, match=said):
        trained(net(), stages)
