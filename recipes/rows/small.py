"""Ours, for small machines: scanned digits in seconds, CIFAR-10-LT at 16 pixels in minutes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flattail.data import DigitsLT
from flattail.data.augment import Crop, Flip
from flattail.losses import CE, LDAM, VS
from flattail.models import ResNet8
from flattail.optim import SGD, Cosine, Multistep
from flattail.recipe import Recipe
from flattail.sharp import CCSAM, ERM, SAM, SSESAM, FocalSAM, ImbSAM, Method
from flattail.train import Stage

from .shipped import CC, FOCAL, SIXTEEN, SSE, Shipped, said, ten

# -- digits: ours --------------------------------------------------------------------------------------------


def digits() -> Iterator[Shipped]:
    """Seconds on a laptop: every method on scanned digits, IF 20."""
    stage = Stage(
        epochs=30, batch=64, optim=SGD(0.1, weight_decay=5e-4), schedule=Cosine(), augment=(Crop(1),)
    )  # fmt: skip
    methods: dict[str, tuple[str, Method, str]] = {
        "ce": ("CE", ERM(), "Cross-entropy"),
        "ce-sam": ("CE + SAM", SAM(0.05), "SAM (Foret et al., ICLR 2021)"),
        "imbsam": ("ImbSAM", ImbSAM(0.05, eta="few"), "ImbSAM (Zhou et al., ICCV 2023)"),
        "ssesam": ("SSE-SAM", SSESAM(0.02, 0.05, 0.7, eta="few"), f"SSE-SAM ({SSE})"),
        "focalsam": ("Focal-SAM", FocalSAM(0.05, 0.8, 3.0), f"Focal-SAM ({FOCAL})"),
        "ccsam": ("CC-SAM", CCSAM(), f"CC-SAM, stage 1 ({CC})"),
    }
    for name, (title, method, about) in methods.items():
        yield Shipped(
            f"digits-lt/{name}",
            f"{about} on scanned digits made long-tailed, imbalance 20",
            Recipe(
                DigitsLT(), ResNet8(), (replace(stage, method=method),), title=title,
                notes=(
                    "Ours throughout: no paper trains on digits-LT. Radii and the cap were chosen from a few on 30 % "
                    "of the training images, kept apart, with 3 seeds: so few that only gross differences show.",
                ),
            ),
        )  # fmt: skip


# -- sixteen pixels: ours, minutes a run on one core of a laptop -------------------------------------------------


def sixteen() -> Iterator[Shipped]:
    """Saddle's schedule at half the length, on CIFAR-LT shrunk to 16 pixels, with a three-block network."""
    for where in SIXTEEN:
        yield from of_sixteen(where)


def of_sixteen(where: str) -> Iterator[Shipped]:
    """The rows of one data set."""
    eta = 1000 if ten(where) else 100
    plain = Stage(
        epochs=100, batch=128, optim=SGD(0.1, 0.9, 2e-4), augment=(Crop(2), Flip()),
        schedule=Multistep((0.8, 0.9), (0.01, 0.0001), warmup=0.05),
    )  # fmt: skip
    losses: dict[str, Any] = {"ce": CE(), "ldam": LDAM(), "vs": VS(0.2, 1.2) if ten(where) else VS(0.05, 0.75)}
    rows: dict[str, tuple[str, Method]] = {
        f"{scheme}{suffix}": (f"{scheme.upper().replace('-', ' + ')}{more}", method)
        for scheme in ("ce", "ce-drw", "ldam-drw", "vs")
        for suffix, more, method in (("", "", ERM()), ("-sam", " + SAM", SAM(0.1)))
    }
    rows |= {
        "imbsam": ("CE + ImbSAM", ImbSAM(0.1, eta=eta)),
        "ssesam": ("CE + SSE-SAM", SSESAM(0.05, 0.1, 0.7, eta=eta)),
        "focalsam": ("CE + Focal-SAM", FocalSAM(0.1, 0.8, 3.0)),
        "ccsam": ("CE + CC-SAM", CCSAM()),
        "ce-classes": ("CE, mean over classes", CCSAM(scale=0.0)),
    }
    for name, (title, method) in rows.items():
        loss = losses.get(name.split("-")[0], CE())
        stage = replace(plain, loss=loss, method=method)
        late = replace(stage, epochs=20, loss=replace(loss, weights="effective"), carry=True)
        yield Shipped(
            f"{where}/{name}",
            f"{title} on {said(where)}: a protocol for small machines",
            Recipe(
                SIXTEEN[where], ResNet8(head="cosine" if isinstance(loss, LDAM) else "linear"),
                (replace(stage, epochs=80), late) if "-drw" in name else (stage,), title=title,
                notes=(
                    "Ours throughout: no paper trains so small. The same network, batch, rate, schedule and length in "
                    f"every row; classes with fewer than {eta:,} images are tail to ImbSAM and SSE-SAM.",
                ),
            ),
        )  # fmt: skip


SMALL = (digits, sixteen)
