"""Every method and kind of stage through `fit` on four gloo processes and on two, its weights written to be compared.

`python many_processes.py FOLDER`: rank 0 writes 4.pt and 2.pt; that all hold the same weights is seen to here.
Imported, it says what the cases are, and runs them on one process.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from cases import COUNTS, EVERY
from forked import forked
from small import net, tail
from torch import nn

from flattail.averages import EMA, SWA
from flattail.checkpoint import Interrupted
from flattail.constraints import MaxNorm, SpectralNorm
from flattail.data.samplers import SAMPLERS, Balanced
from flattail.losses import LOSSES, LabelAwareSmoothing
from flattail.optim import SGD, AdamW, Cosine
from flattail.sharp import CCSAM, GSAM, METHODS, SAM, SSESAM, AdversarialFeatures, SAMNorms
from flattail.stage import Stage
from flattail.starts import ClassMeans, DisAlign, LogitAdjust, NewHead, Scales, TauNorm
from flattail.train import accelerated, fit

NOISY = {"gcl"}  # each process draws for its own images
COUPLED = {"lade"}  # a mean over the images of a class in the batch
ALIKE = {
    "sam-steps", "wsam-weak", "look-sam-often", "every-gsam", "lpf-rising", "perturbation-3", "window-friendly",
    "features-batch", "features-rarity", "ccsam-random-all", "ccsam-unit", "imbsam-x2", "ccsam-layers",
}  # fmt: skip  # these are in sharp/two_processes.py alone
step = partial(Stage, batch=229, climb="together", clock="step", optim=SGD(0.05), schedule=Cosine())
FIRST = step(1, method=SAM(0.1))
LAS = LabelAwareSmoothing()


def losses_of(name):
    """A loss, where the linear head of these cases suits it."""
    cls = LOSSES[name]
    return cls(cosine=False) if hasattr(cls, "cosine") else cls()


# 918 images in steps of 229, the last of 2: two of four processes hold none of it
STAGES = {
    **{f"method {n}": [step(1, method=m, sampler=Balanced())] for n, m in EVERY.items() if n not in ALIKE},
    "method sam-norms": [step(1, method=SAMNorms(rho=0.1))],
    **{f"loss {n}": [step(1, loss=losses_of(n), method=SSESAM())] for n in LOSSES if n not in NOISY | COUPLED},
    **{f"sampler {n}": [step(1, sampler=cls(), method=CCSAM())] for n, cls in SAMPLERS.items()},
    "drw": [FIRST, step(1, method=SAM(0.1), loss=losses_of("ldam"), carry=True)],
    "crt": [FIRST, step(1, start=NewHead(), train="head", sampler=Balanced(4))],
    "lws": [FIRST, step(1, start=Scales(), train=r"^head\.scales", sampler=Balanced(4))],
    "las": [FIRST, step(1, start=Scales(), train="head", sampler=Balanced(), rates=(("inner", 0.1),), loss=LAS)],
    "second of cc-sam": [
        step(1, method=CCSAM(mix=0.5)),
        step(1, method=AdversarialFeatures(norm="class", rarity=2.0, limit=0.3), train="head", sampler=Balanced()),
    ],
    "disalign": [FIRST, step(1, start=DisAlign(), train=r"^head\.(scales|shifts|confidence)")],
    "class means": [FIRST, step(1, start=ClassMeans(by="euclidean"), train="head")],
    "tau-norm": [FIRST, Stage(0, start=TauNorm(0.7))],
    "logit-adjust": [FIRST, Stage(0, start=LogitAdjust())],
    "ema": [step(1, average=EMA(0.5), method=GSAM(rho=0.1))],
    "swa": [step(2, average=SWA(0.4))],
    "max-norm": [step(1, constraint=MaxNorm())],
    "spectral-norm": [step(1, constraint=SpectralNorm())],
    "micro-batches, clip, adamw": [step(1, method=CCSAM(), micro=3, clip=0.5, optim=AdamW(0.01))],
    "frozen backbone": [FIRST, step(1, method=CCSAM(), train="head", sampler=Balanced())],
    "on_nan: skip": [step(2, on_nan="skip", method=GSAM(rho=0.1), average=EMA(0.5), drop_last=True)],
}
assert {type(s.method) for stages in STAGES.values() for s in stages} == set(METHODS.values())


def a_net():
    """Smooth, in double precision, and no sample sees another of its batch."""
    model = net(norm=lambda n: nn.GroupNorm(4, n), classes=len(COUNTS))
    model.backbone[-1] = nn.Tanh()
    return model.double()


def images(case):
    """The images in double precision; in one case one of them is NaN, in a batch of one process."""
    data = tail(tuple(COUNTS.tolist()))
    data.train.x = data.train.x.double()
    if "nan" in case:
        data.train.x[7] = torch.nan
    return data


SHORT = partial(step, batch=80)  # 12 steps an epoch: processes ask each other at every tenth
RESUMED = {
    "sam": [SHORT(2, method=SAM(0.1))],
    "friendly, ema": [SHORT(2, method=EVERY["friendly"], average=EMA(0.5), sampler=Balanced())],
    "ccsam, micro-batches": [SHORT(2, method=CCSAM(), micro=3)],
    "drw": [SHORT(1), SHORT(1, loss=losses_of("ldam"), carry=True)],
}


def resumed(case, accelerator, checkpoint=None, stop=False):
    """The weights after a case that goes on from a checkpoint; or nothing, if it is to be stopped in mid-epoch."""

    def on_step(place, steps):
        if stop and place.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    model = a_net()
    try:
        fit(model, images(case), RESUMED[case], seed=3, accelerator=accelerator, checkpoint=checkpoint, on_step=on_step)
    except Interrupted:
        return None
    return model.state_dict()


def ended(case, accelerator):
    """The weights after a case, and the log."""
    model, rows = a_net(), []
    fit(model, images(case), STAGES[case], seed=3, accelerator=accelerator, on_epoch=rows.append)
    return model.state_dict(), rows


def with_batchnorm(accelerator, micro=1):
    """A model after epochs in which a process, or a micro-batch, normalises by what it sees alone."""
    model = net(norm=nn.BatchNorm1d, classes=len(COUNTS)).double()
    stage = step(2, method=SAM(0.1), drop_last=True, micro=micro)
    fit(model, images("batchnorm"), [stage], accelerator=accelerator)
    return model


def on_one_process():
    """Every case in this process."""
    accelerator = accelerated("cpu", "fp32")
    return {case: ended(case, accelerator) for case in STAGES}


def on_processes(folder, world, rank):
    """Every case on this process and the others; rank 0 writes what came of it."""
    accelerator = accelerated("cpu", "fp32")
    assert accelerator.num_processes == dist.get_world_size() == world
    found = {}
    for case in STAGES:
        found[case] = weights, _ = ended(case, accelerator)
        mine = torch.cat([t.flatten().double() for t in weights.values()])
        first = mine.clone()
        dist.broadcast(first, 0)
        assert torch.equal(mine, first), f"{case}: rank {rank} ends with other weights than rank 0"
    model = with_batchnorm(accelerator)
    found["batchnorm"] = {n: p.detach() for n, p in model.named_parameters()}
    statistics = torch.cat([model.backbone[2].running_mean, model.backbone[2].running_var])
    every = accelerator.gather(statistics[None])
    assert (every == every[0]).all() and len(every) == world, "rank 0's are saved, and every rank is judged by its own"
    for case in RESUMED:
        assert resumed(case, accelerator, folder / f"{case}-{world}.pt", stop=True) is None
    if rank == 0:
        torch.save({"world": dist.get_world_size(), "found": found}, folder / f"{world}.pt")


if __name__ == "__main__":
    for world in (4, 2):
        forked(world, partial(on_processes, Path(sys.argv[1]), world))
