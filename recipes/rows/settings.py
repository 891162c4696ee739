"""Where baselines are trained: the papers' length on CIFAR-LT, and two short protocols for small machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flattail.averages import SWA
from flattail.data.augment import Crop, Flip
from flattail.data.profile import Inclusive, Slices
from flattail.losses import VS, LabelAwareSmoothing
from flattail.models import ResNet8, ResNet32
from flattail.optim import SGD, Cosine, Multistep
from flattail.train import Stage

from .shipped import CIFARS, CROP_FLIP, SIXTEEN, said, ten


@dataclass(frozen=True)
class Setting:
    """Where the rows are trained."""

    folder: str  # of its recipes
    said: str  # of the data, in the line above a recipe
    data: Any
    network: Callable[..., Any]
    first: Stage  # the representation, plainly trained
    second: Stage  # the classifier alone, on the frozen backbone
    vs: VS
    smooth: LabelAwareSmoothing
    slower: float  # MiSLAS's factor on the classifier's rate in the second stage
    moving: str  # BatchNorm in MiSLAS's second stage
    causal: str  # the head of De-confound-TDE
    rho: float
    clouded: Mapping[str, Any]  # of GCL's second stage, beside what every setting has
    averaged: Mapping[str, Any]  # of a last stage under SWA
    notes: tuple[str, ...]  # whose the setting is


def full(where: str) -> Setting:
    """The length of the papers, on CIFAR-LT."""
    small = ten(where)
    return Setting(
        where,
        said(where),
        replace(CIFARS[where], shots=Slices(3, 4, 3) if small else Inclusive()),
        ResNet32,
        Stage(
            epochs=200, batch=128, optim=SGD(0.1, 0.9, 2e-4), augment=CROP_FLIP,
            schedule=Multistep((0.8, 0.9), (0.1, 0.01), warmup=0.025),
        ),
        Stage(epochs=10, batch=128, train="head", optim=SGD(0.1, 0.9, 2e-4), schedule=Cosine(), augment=CROP_FLIP),
        VS(0.2, 1.2) if small else VS(0.05, 0.75),
        LabelAwareSmoothing(0.3, 0.0) if small else LabelAwareSmoothing(0.4, 0.1),
        0.5 if small else 0.2,
        "frozen" if small else "moving",
        "causal-cifar10" if small else "causal-cifar100",
        0.1 if small else 0.2,
        {"epochs": 30, "batch": 64},
        {"average": SWA(0.8), "schedule": Multistep((0.8,), (0.5,), warmup=0.025)},
        (
            "Batch, rate, schedule and weight decay of the first stage: those of MiSLAS's code for CIFAR-LT, unless a "
            "note says otherwise; so are the second stage's 10 epochs at 0.1 and a cosine. The rest is ours.",
        ),
    )  # fmt: skip


def quick() -> Setting:
    """Eight epochs at 16 pixels: a minute a run, and the same for every row."""
    first = Stage(epochs=8, batch=128, optim=SGD(0.1, 0.9, 5e-4), schedule=Cosine(), augment=(Crop(2), Flip()))
    return replace(
        full("cifar10-lt-100"),
        folder="cifar10-lt-quick",
        said="CIFAR-10-LT at 16 pixels, imbalance 100, in 8 epochs",
        data=replace(CIFARS["cifar10-lt-100"], size=16, shots=Slices(3, 4, 3)),
        network=ResNet8,
        first=first,
        second=replace(first, epochs=3, train="head"),
        rho=0.1,
        clouded={},
        averaged={"average": SWA()},
        notes=("Ours throughout: the same short training in every row, to see what each does, not how far it goes.",),
    )


def long(where: str) -> Setting:
    """A hundred epochs at 16 pixels, the schedule of `sixteen`; second stages of ten epochs."""
    first = Stage(
        epochs=100, batch=128, optim=SGD(0.1, 0.9, 2e-4), augment=(Crop(2), Flip()),
        schedule=Multistep((0.8, 0.9), (0.01, 0.0001), warmup=0.05),
    )  # fmt: skip
    return replace(
        full(where.replace("16px", "100")),
        folder=where,
        said=f"{said(where)}, in 100 epochs",
        data=SIXTEEN[where],
        network=ResNet8,
        first=first,
        second=replace(first, epochs=10, train="head", schedule=Cosine()),
        rho=0.1,
        clouded={},
        notes=("Ours throughout: no paper trains so small. The same network, batch, rate and length in every row.",),
    )
