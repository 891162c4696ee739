"""The steps of an epoch wait for no GPU, whatever a stage asks for; those of the engine alone are in sharp/."""

from types import SimpleNamespace

import pytest
import torch
from cases import EVERY
from meta import NEED_CLASSES, Waits, take_meta_for_a_gpu
from small import net, tail
from torch import nn

from flattail import epoch
from flattail.averages import EMA, SWA
from flattail.checkpoint import Place, State, Stop
from flattail.constraints import MaxNorm, SpectralNorm
from flattail.data.augment import AutoAugment, Crop, Cutout, Flip
from flattail.data.jitter import jittered
from flattail.data.mix import CutMix, Mixup, Remix
from flattail.losses import LDAM, LOSSES
from flattail.optim import AdamW
from flattail.sharp import CCSAM, SAM
from flattail.stage import Stage, grouped, sharpness_aware

STEPS = 4


class Enough(Exception):
    """The steps that were to be watched are done."""


@pytest.fixture
def watch(monkeypatch):
    """Take steps of a stage on the meta device, watched from the second on: the first may bring what stays there."""
    take_meta_for_a_gpu(monkeypatch)
    gpu = torch.device("meta")
    accelerator = SimpleNamespace(device=gpu, num_processes=1, process_index=0, scaler=None)

    def steps(stage, norm=nn.BatchNorm1d):
        waits, asked = Waits(), []

        def on_step(place, of):
            assert of > STEPS
            waits.on = place.step > 0
            if place.step == STEPS:
                raise Enough

        monkeypatch.setattr(epoch, "must_be_finite", lambda bad, batches, run: asked.append(run.state.place.step))
        data, model = tail((120, 30, 10)), net(norm=norm).to(gpu)
        run = epoch.Training(
            model, data, [stage], 0, accelerator, 0, False, None, 20.0, "", None, None, lambda row: None, on_step,
            State(),
        )  # fmt: skip
        average = None if stage.average is None else stage.average.begin(model)
        if stage.constraint is not None:
            stage.constraint.shape(model)
        bounds = {} if stage.constraint is None else stage.constraint.begin(model)
        optimizer, flat = stage.optim.build(grouped(model, stage)), sharpness_aware(model, stage, data)
        waits.on = False
        with waits, pytest.raises(Enough):
            epoch.train_epoch(run, 0, 0, epoch.Work(model, optimizer, flat, average, bounds, None), Stop())
        assert run.state.place == Place(0, 0, STEPS) and run.state.meters.loss.is_meta
        assert asked == [0], "whether all was finite is asked at every fiftieth step"

    return steps


PARTS = {
    "augment": {"augment": (Crop(), Flip(), Cutout(2))},
    "autoaugment": {"augment": (AutoAugment(),)},
    "mixup": {"mix": Mixup()},
    "cutmix": {"mix": CutMix()},
    "remix": {"mix": Remix()},
    "clip, adamw": {"clip": 0.5, "optim": AdamW(0.01)},
    "ema": {"average": EMA(0.5)},
    "swa": {"average": SWA(0.4)},
    "max-norm": {"constraint": MaxNorm()},
    "spectral-norm": {"constraint": SpectralNorm()},
    "micro-batches": {"micro": 2},
    "class weights": {"loss": LDAM(weights="effective")},
    **{f"loss {name}": {"loss": kind()} for name, kind in LOSSES.items()},
}


PAIRS = [(part, kind) for part in PARTS for kind in (SAM, CCSAM)]
PAIRS.remove(("spectral-norm", CCSAM))  # a head that is not plain has each class go through one of its own


@pytest.mark.parametrize(("part", "method"), PAIRS)
def test_no_part_of_a_stage_waits(watch, part, method):
    watch(Stage(1, method=method(), batch=16, **PARTS[part]))


@pytest.mark.parametrize("rows", ["together", "apart"])
@pytest.mark.parametrize("label", [label for label in EVERY if label not in NEED_CLASSES])
def test_no_method_waits_where_labels_are_on_the_host(watch, label, rows):
    watch(Stage(1, method=EVERY[label], batch=16), norm=nn.BatchNorm1d if rows == "together" else None)


def test_jitter_of_streamed_images_waits_for_nothing():
    drawn = torch.tensor([[0, 1, 2, 3, 0.8, 1.1, 1.2], [3, 2, 1, 0, 0.8, 1.1, 1.2]])
    with Waits():
        assert jittered(torch.zeros(2, 3, 4, 4, dtype=torch.uint8, device="meta"), drawn).is_meta
