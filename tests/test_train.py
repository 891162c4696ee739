"""The training loop against hand-written ones, and what it must not depend on."""

import math

import pytest
import torch
import torch.nn.functional as F
from small import different, net, same_weights, tail, trained, without_seconds
from torch import nn

from flattail.data import LongTail, address
from flattail.data.augment import Crop, Flip
from flattail.data.halves import Draw
from flattail.data.mix import Mixup
from flattail.data.samplers import Balanced
from flattail.losses import CE
from flattail.optim import SGD, AdamW, Constant, Cosine, Multistep
from flattail.sharp import CCSAM, ERM, SAM, SSESAM, Every, ImbSAM, Window
from flattail.stage import Stage
from flattail.train import accelerated, epoch_batches, fit, logits_of

PLAIN = Stage(2, batch=16, optim=SGD(0.1, 0.9, 1e-3), schedule=Cosine())


def images(data, stage, seed, i, epoch):
    """The batches of an epoch, by the address of its order."""
    for rows in epoch_batches(data.train, stage, address(seed, i, epoch), 0.0):
        yield next(data.train.batches([Draw(rows, torch.zeros_like(rows))], augment=()))


# -- hand-written loops -----------------------------------------------------------------------------------


def test_an_epoch_of_erm_is_the_loop_one_would_write():
    data, ours, theirs = tail(), net(), net()
    rows = trained(ours, PLAIN, data=data, seed=7)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * epoch / 2))
        total = right = 0.0
        for x, y in images(data, PLAIN, 7, 0, epoch):
            optimizer.zero_grad()
            logits = theirs(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            total, right = total + loss.item() * len(y), right + (logits.argmax(1) == y).sum().item()
        assert rows[epoch]["loss"] == pytest.approx(total / 42, rel=1e-5)
        assert rows[epoch]["accuracy"] == pytest.approx(right / 42)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_deferred_reweighting_is_one_optimiser_through_two_losses():
    data, ours, theirs = tail(), net(), net()
    schedule, counts = Multistep(at=(0.5,), factors=(0.1,)), data.counts.float()
    first = Stage(2, batch=16, optim=SGD(0.1), schedule=schedule)
    second = Stage(2, batch=16, loss=CE("inverse"), optim=SGD(0.1), schedule=schedule, carry=True)
    trained(ours, [first, second], data=data)
    weight = (1 / counts) / (1 / counts).mean()
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 if epoch < 2 else 0.01
        for x, y in images(data, first, 0, epoch // 2, epoch % 2):
            optimizer.zero_grad()
            F.cross_entropy(theirs(x), y, weight=weight if epoch >= 2 else None).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    fresh = net()
    trained(fresh, [first, Stage(2, batch=16, loss=CE("inverse"), optim=SGD(0.1), schedule=schedule)], data=data)
    assert different(ours, fresh)  # without carry the clock and the momentum begin anew


def test_clipping_bounds_the_step():
    """Plain SGD moves by lr times a gradient of norm `clip` at most, and here exactly so."""
    model, before = net(), net()
    trained(model, Stage(1, batch=64, optim=SGD(1.0, 0.0, 0.0), clip=1e-3))
    moved = sum((a - b).square().sum() for a, b in zip(model.parameters(), before.parameters(), strict=True)).sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


# -- stages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ERM(), SAM(0.1), SSESAM(eta=20, switch=0.5), CCSAM()])
def test_equal_stages_that_carry_are_one_stage(method):
    """Bit for bit, but for what has a stage in its address: so the order is that of the rows here."""

    class InOrder:
        def __call__(self, y, batch, *, generator, progress, drop_last=False):
            return list(torch.arange(len(y)).flip(0).split(batch))

    def stage(epochs, **how):
        return Stage(epochs, method=method, sampler=InOrder(), batch=16, schedule=Cosine(), **how)

    one, many = net(norm=nn.BatchNorm1d), net(norm=nn.BatchNorm1d)
    rows_one = trained(one, stage(4))
    rows_many = trained(many, [stage(1), stage(2, carry=True), stage(1, carry=True)])
    same_weights(one, many)
    strip = [{k: v for k, v in row.items() if k != "stage"} for row in without_seconds(rows_one)]
    assert strip == [{k: v for k, v in row.items() if k != "stage"} for row in without_seconds(rows_many)]
    assert [row["stage"] for row in rows_many] == [0, 1, 1, 2]


@pytest.mark.parametrize("method", [ERM(), SAM(0.1), CCSAM()])
def test_training_the_head_leaves_the_backbone_alone(method):
    model, before = net(norm=nn.BatchNorm1d), net(norm=nn.BatchNorm1d)
    trained(model, Stage(2, method=method, sampler=Balanced(), batch=16, train="head"))
    same_weights(model.backbone, before.backbone)  # running statistics and counters as well
    assert different(model.head, before.head)
    assert all(p.requires_grad for p in model.parameters())
    assert model.training


def test_a_head_stage_after_a_whole_one_and_back():
    model, after_first = net(norm=nn.BatchNorm1d), net(norm=nn.BatchNorm1d)
    stages = [Stage(1, batch=16), Stage(1, batch=16, train="head"), Stage(1, batch=16)]
    trained(after_first, stages[0])
    two = net(norm=nn.BatchNorm1d)
    trained(two, stages[:2])
    same_weights(two.backbone, after_first.backbone)
    trained(model, stages)
    assert different(model.backbone, after_first.backbone)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (Stage(1, train="head", carry=True), r"stages\[1\]\.carry.*trains `all`, not `head`"),
        (Stage(1, optim=SGD(0.1, 0.5), carry=True), r"stages\[1\]\.optim.*only its `lr` may differ"),
        (Stage(1, optim=AdamW(0.1), carry=True), r"stages\[1\]\.optim.*only its `lr` may differ"),
    ],
)
def test_what_a_carried_optimiser_cannot_do_is_refused(second, said):
    with pytest.raises(ValueError, match=said):
        trained(net(), [Stage(1), second])


def test_no_stage_and_a_carry_from_nowhere_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        trained(net(), [])
    with pytest.raises(ValueError, match=r"stages\[0\]\.carry"):
        trained(net(), Stage(1, carry=True))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"epochs": -1}, "epochs: must be at least 0"),
        ({"epochs": 0}, "epochs: 0 is for a stage whose `start` does the whole work, and this has none"),
        ({"train": "("}, "train: .* no regular expression"),
        ({"rates": (("(", 0.5),)}, "rates: .* no regular expression"),
        ({"rates": (("head", -0.5),)}, "rates: a factor is 0 or more, and that of 'head' is -0.5"),
        ({"batch": 0}, "batch: must be at least 1"),
        ({"micro": 0}, "micro: must be at least 1"),
        ({"clip": 0.0}, "clip: must be positive"),
        ({"only": "("}, "only: .* no regular expression"),
    ],
)
def test_a_stage_refuses_what_it_cannot_mean(bad, said):
    with pytest.raises(ValueError, match=said):
        Stage(**{"epochs": 1} | bad)


# -- what is drawn has an address ---------------------------------------------------------------------------


class Coloured(torch.utils.data.Dataset):
    """A torch data set that is streamed by a DataLoader."""

    def __init__(self, n=24):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randint(0, 256, (n, 3, 8, 8), generator=g, dtype=torch.uint8)
        self.targets = [i % 3 for i in range(n)]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.targets[i]


def test_workers_change_nothing():
    data = LongTail.of(Coloured(), Coloured(12))
    models = []
    for workers in (0, 2):
        torch.manual_seed(workers)  # the state of the generator is nobody's business
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
        fit(
            model, data, [Stage(2, batch=8, augment=(Flip(),))],
            accelerator=accelerated("cpu", "fp32"), workers=workers,
        )  # fmt: skip
        models.append(model)
    same_weights(*models)


def test_the_generators_state_changes_nothing_and_is_left_alone():
    stage = Stage(2, batch=16, augment=(Crop(1), Flip()), mix=Mixup(0.5), method=SAM(0.1))
    models = []
    for junk in (0, 1):
        model = net(dropout=0.3)
        torch.manual_seed(junk)
        state = torch.get_rng_state()
        trained(model, stage, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        models.append(model)
    same_weights(*models)
    other = net(dropout=0.3)
    trained(other, stage, seed=4)
    assert different(models[0], other)


@pytest.mark.parametrize("method", [ERM(), SAM(0.1), ImbSAM(0.1, eta=20), SSESAM(eta=20)])
def test_micro_batches_are_one_batch(method):
    models = []
    for micro in (1, 4):
        model, data = net().double(), tail()
        data.train.x = data.train.x.double()  # the network is in double precision, so the images are
        trained(model, Stage(2, batch=16, method=method, loss=CE("effective"), micro=micro), data=data)
        models.append(model)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)
    assert different(models[0], net().double())


# -- records -----------------------------------------------------------------------------------------------


def test_a_row_says_everything():
    rows = trained(net(), [Stage(2, batch=16, method=SAM(0.1)), Stage(1, batch=16, method=CCSAM())])
    assert [row["epoch"] for row in rows] == [0, 1, 2] and [row["stage"] for row in rows] == [0, 0, 1]
    for row in rows:
        assert row.keys() == {
            "epoch", "stage", "epochs", "loss", "accuracy", "lr", "seconds", "images", "forwards", "backwards", "terms",
            "cosines",
        }  # fmt: skip
        assert row["epochs"] == 3 and row["images"] == 42 and row["lr"] == 0.1 and row["seconds"] >= 0
        assert 0 <= row["accuracy"] <= 1 and row["loss"] > 0
    flat, by_class = rows[0]["terms"]["flat"], rows[2]["terms"]["class"]
    assert flat["active"] == 1.0 and flat["gap"] > 0 and 1e-4 < flat["radius"] < 0.5
    assert len(by_class["radii"]) == 3 and all(0 < r <= 0.05 + 1e-6 for r in by_class["radii"])


def test_the_share_of_active_steps_is_logged():
    rows = trained(net(), Stage(4, batch=16, method=Every(Window(SAM(0.1), 0.5), 3)))
    assert [row["terms"] == {} for row in rows] == [True, True, False, False]
    assert rows[2]["terms"]["flat"]["active"] == pytest.approx(1 / 3)  # steps 6, 7, 8


def test_the_clock_moves_at_epochs_or_at_steps():
    def rates(clock):
        seen = []

        class Noted(SGD):
            def build(self, parameters):
                optimizer = super().build(parameters)
                optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
                return optimizer

        trained(net(), Stage(2, batch=16, optim=Noted(1.0), schedule=Cosine(), clock=clock))
        return seen

    assert rates("epoch") == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5])
    assert rates("step") == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)])


def test_places_are_told_before_each_step():
    places = []
    trained(net(), Stage(2, batch=16), on_step=lambda place, steps: places.append((*place, steps)))
    assert places == [(0, e, s, 3) for e in range(2) for s in range(3)]


# -- selection ---------------------------------------------------------------------------------------------


def test_the_best_epoch_is_the_one_whose_score_is_highest_and_the_first_of_equals():
    scores, kept = iter([0.1, 0.7, 0.3, 0.7]), []

    def score(model):
        kept.append({n: t.clone() for n, t in model.state_dict().items()})
        return next(scores)

    model, rows = net(norm=nn.BatchNorm1d), []
    epoch = fit(
        model, tail(), [Stage(4, batch=16)],
        accelerator=accelerated("cpu", "fp32"), score=score, on_epoch=rows.append,
    )  # fmt: skip
    assert epoch == 1 and [row["score"] for row in rows] == [0.1, 0.7, 0.3, 0.7]
    assert all(torch.equal(t, kept[1][n]) for n, t in model.state_dict().items())
    assert any(not torch.equal(kept[1][n], kept[3][n]) for n in kept[1])


def test_without_a_score_the_last_epoch_stays():
    model = net()
    assert fit(model, tail(), [Stage(2, batch=16), Stage(1, batch=16)], accelerator=accelerated("cpu", "fp32")) == 2


def test_validation_images_are_never_trained_on():
    data = tail().carve(0.25, seed=0)
    seen = []

    class Watching:
        def __call__(self, x, seeds):
            seen.append(x.clone())
            return x

    trained(net(), Stage(2, batch=16, augment=(Watching(),)), data=data)
    seen = {tuple(x.flatten().tolist()) for batch in seen for x in batch}
    assert seen == {tuple(x.flatten().tolist()) for x in data.train.x} and len(seen) == 42 - len(data.val)
    assert not seen & {tuple(x.flatten().tolist()) for x in data.val.x} and len(data.val) == 11


# -- what stops it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ERM(), SAM(0.1)])
def test_a_loss_that_is_not_finite_stops_with_the_place_and_the_checkpoint(tmp_path, method):
    stages = [Stage(1, batch=16), Stage(2, batch=16, method=method, optim=SGD(1e30), schedule=Constant())]
    checkpoint = tmp_path / "c.pt"
    with pytest.raises(
        FloatingPointError, match=r"not finite in stage 1, epoch 0, step \d; there is no checkpoint yet"
    ):
        trained(net(), stages, checkpoint=checkpoint, every=1e9)
    (tmp_path / "c.pt").unlink(missing_ok=True)
    stages = [Stage(2, batch=16), stages[1]]
    with pytest.raises(FloatingPointError, match=rf"the last good checkpoint is {checkpoint}.*Lower the learning rate"):
        trained(net(), stages, checkpoint=checkpoint, every=0.0)
    weights = torch.load(checkpoint)["model"].values()
    assert all(torch.isfinite(w).all() for w in weights)


def test_a_slope_that_is_not_finite_is_never_stepped_on(tmp_path):
    """The square root of a loss of zero: finite itself, its slope is not."""

    class Rooted:
        def __call__(self, logits, y, counts):
            return (logits * 0).sum(1).sqrt() if len(steps) == 4 else F.cross_entropy(logits, y, reduction="none")

    steps, model = [], net()
    with pytest.raises(FloatingPointError, match="stage 0, epoch 1, step 0"):
        trained(model, Stage(3, batch=16, loss=Rooted(), method=SAM(0.1)), on_step=lambda place, n: steps.append(place))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_batch_larger_than_the_data_with_drop_last_is_refused():
    with pytest.raises(ValueError, match="batch: 64 is more than the 42 images, and drop_last leaves none: lower it"):
        trained(net(), Stage(1, batch=64, drop_last=True))


def test_drop_last_leaves_the_short_batch_out():
    rows = trained(net(), [Stage(1, batch=16, drop_last=True), Stage(1, batch=16)])
    assert [row["images"] for row in rows] == [32, 42]


# -- precision and compilation --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ERM(), SAM(0.1), CCSAM()])
def test_bf16_on_the_cpu_trains_and_its_climbs_are_seen(method):
    model, rows = net(norm=nn.BatchNorm1d), []
    stages, kinds = [Stage(2, batch=16, method=method), Stage(1, batch=16, method=method)], []
    linear = next(m for m in model.modules() if isinstance(m, nn.Linear))
    linear.register_forward_hook(lambda module, args, out: kinds.append(out.dtype))
    for _ in range(2):  # the same model may be trained again
        fit(model, tail(), stages, accelerator=accelerated("cpu", "bf16"), on_epoch=rows.append)
    assert set(kinds) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
    assert rows[1]["loss"] < rows[0]["loss"] * 1.5 and all(math.isfinite(row["loss"]) for row in rows)
    for row in rows:
        assert all(term["gap"] != 0 and term["radius"] > 0 for term in row["terms"].values())
    x = torch.rand(4, 1, 6, 6)
    assert model(x).dtype == torch.float32  # nothing of autocast is left in the model


def test_precisions_may_follow_each_other_in_one_process():
    for precision in ("fp32", "bf16", "fp32"):
        wanted = "no" if precision == "fp32" else precision
        assert accelerated("cpu", precision).mixed_precision == wanted


def test_fp16_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="fp16 needs a GPU; on the CPU use bf16 or fp32"):
        accelerated("cpu", "fp16")


@pytest.mark.parametrize("device", ["gpu", "cudaa", "cuda:x", "cpu:0"])
def test_unknown_devices_are_refused(device):
    with pytest.raises(ValueError, match="choose cpu, cuda, cuda:1 or mps"):
        accelerated(device, "fp32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="torch sees no GPUs here: use cpu"):
        accelerated("cuda", "fp32")


def compiled_is_plain():
    """A weight method (the whole model is compiled) and then a head method (its backbone), against no compilation."""
    stages = [
        Stage(1, batch=14, method=SAM(0.1)),
        Stage(1, batch=14, method=CCSAM()),
        Stage(1, batch=14, method=SAM(0.1)),
    ]
    models = []
    for compile in (False, True):
        model = net(norm=nn.BatchNorm1d)
        trained(model, stages, compile=compile)
        assert model._compiled_call_impl is None and model.backbone._compiled_call_impl is None
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_compiled_stages_of_weight_and_head_methods_follow_each_other(monkeypatch):
    compile, backends = torch.compile, []

    def traced(model=None, **how):
        backends.append(how)
        return compile(model, **how | {"backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    compiled_is_plain()
    assert len(backends) == 3


@pytest.mark.slow
def test_compiled_by_inductor():
    torch._dynamo.reset()
    compiled_is_plain()


# -- answers -----------------------------------------------------------------------------------------------


def test_logits_are_those_of_evaluation_in_order_and_flipped_views_are_averaged():
    model, data = net(norm=nn.BatchNorm1d, dropout=0.5), tail()
    model.backbone.eval()
    modes = [m.training for m in model.modules()]
    logits, y = logits_of(model, data.test, device="cpu", batch=5)
    flipped, _ = logits_of(model, data.test, device="cpu", batch=100, flip=True)
    assert [m.training for m in model.modules()] == modes
    model.eval()
    x = torch.cat([x for x, _ in data.test.batches([Draw(torch.arange(24), torch.zeros(24).long())])])
    assert torch.equal(y, data.test.y) and torch.allclose(logits, model(x), atol=1e-6)
    assert torch.allclose(flipped, (model(x) + model(x.flip(3))) / 2, atol=1e-6)


def test_a_process_among_several_takes_the_gpu_that_is_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="write cuda, not cuda:1"):
        accelerated("cuda:1", "fp32")
