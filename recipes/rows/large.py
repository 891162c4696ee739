"""ImageNet-LT, Places-LT and iNaturalist 2018: cross-entropy and LDAM, plain and deferred, under four methods.

A setting is a set, a network and a protocol of the first stage; what its source leaves open is ours, and said so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from flattail.data import ImageNetLT, INat18, PlacesLT
from flattail.data.profile import Slices, Strict
from flattail.data.samplers import Balanced
from flattail.losses import CE, LDAM
from flattail.models import Torchvision
from flattail.optim import SGD, Cosine
from flattail.recipe import Recipe
from flattail.sharp import CCSAM, ERM, SAM, SSESAM, AdversarialFeatures, Method, Steps
from flattail.train import Stage

from .shipped import CC, SADDLE, SSE, WEIGHED, Shipped, expected

SCHEMES = {"ce": "CE", "ce-drw": "CE + DRW", "ldam-drw": "LDAM + DRW"}
METHODS = {"": "", "-sam": " + SAM", "-ssesam": " + SSE-SAM", "-ccsam": " + CC-SAM"}
PAPERS = {"": SADDLE, "-sam": SADDLE, "-ssesam": SSE, "-ccsam": CC}


@dataclass(frozen=True)
class Protocol:
    """How the first stage is trained, and where that is from."""

    epochs: int
    batch: int
    rate: float
    decay: float  # weight decay
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """A set and a network."""

    folder: str
    said: str
    data: Any
    model: Torchvision
    plain: Protocol
    conditional: Protocol  # under CC-SAM, whose paper gives the batch
    steps: dict[str, tuple[float, float, float, float]]  # SAM's radius by scheme: warm-up, main part, and twice DRW
    of_steps: str  # whose they are
    second: int  # epochs of CC-SAM's second stage
    shots: Any  # which classes are many, medium and few, by the rule of the protocol's source
    decay_of_ldam: float | None = None  # where it differs
    notes: tuple[str, ...] = ()


EARLY, DRW = 5 / 90, 60 / 90  # shares of training: Saddle's warm-up of the radius, and where re-weighting begins
BORDERS = (EARLY, DRW, 75 / 90)
SADDLES = "Batch, rate, cosine, weight decay, 90 epochs and jitter: the released code's."
BATCH = "Batch: the paper's. Rate, weight decay, schedule and epochs were not released: ours, "

IMAGENET_50 = Setting(
    "imagenet-lt-r50", "ImageNet-LT, ResNet-50", ImageNetLT(shots=Slices(390, 445, 165)), Torchvision("resnet50"),
    Protocol(90, 256, 0.2, 2e-4, (SADDLES,)),
    Protocol(90, 256, 0.2, 2e-4, (BATCH + "those of Saddle's code, which has the same batch.",)),
    {scheme: (0.05, 0.1, 0.5, 0.5) for scheme in SCHEMES}, "the released commands'",
    10, Slices(390, 445, 165),
)  # fmt: skip
IMAGENET_X50 = Setting(
    "imagenet-lt-rx50", "ImageNet-LT, ResNeXt-50", ImageNetLT(), Torchvision("resnext50_32x4d"),
    Protocol(
        90, 512, 0.2, 5e-4,
        ("Batch, rate, cosine, weight decay and 90 epochs: the first stage in the code of Kang et al. (ICLR 2020).",),
    ),
    Protocol(
        90, 256, 0.1, 5e-4, (BATCH + "those of Kang et al. (ICLR 2020) for a batch of 512, with half the rate.",)
    ),
    {scheme: (0.05, 0.1, 0.5, 0.5) for scheme in SCHEMES}, "ours, those of Saddle's commands for ResNet-50",
    10, Strict(),
)  # fmt: skip
OURS_FOR_PLACES = (
    "Batch: CC-SAM's. Ours: 30 epochs at 0.01 and a cosine, weight decay 5e-4 (that of MiSLAS's code), and that every "
    "layer is trained."
)
PLACES = Setting(
    "places-lt", "Places-LT, pretrained ResNet-152", PlacesLT(), Torchvision("resnet152", "IMAGENET1K_V1"),
    Protocol(30, 128, 0.01, 5e-4, (OURS_FOR_PLACES,)),
    Protocol(30, 128, 0.01, 5e-4, (OURS_FOR_PLACES,)),
    {scheme: (0.05, 0.1, 0.5, 0.5) for scheme in SCHEMES}, "ours, those of Saddle's commands for ImageNet-LT",
    10, Strict(),
    notes=("Weights: torchvision's of ImageNet-1k, downloaded at the first run; OLTR's code has others.",),
)  # fmt: skip
INAT = Setting(
    "inat18", "iNaturalist 2018, ResNet-50", INat18(jitter=0.4), Torchvision("resnet50"),
    Protocol(90, 256, 0.1, 2e-4, (SADDLES,)),
    Protocol(90, 512, 0.2, 2e-4, (BATCH + "those of Saddle's code for a batch of 256, with twice the rate.",)),
    {"ce": (0.05, 0.1, 0.1, 0.2), "ce-drw": (0.05, 0.1, 0.1, 0.2), "ldam-drw": (0.05, 0.1, 0.5, 0.5)},
    "the released commands'", 30, Slices(842, 3701, 3599), decay_of_ldam=1e-4,
)  # fmt: skip


def large() -> Iterator[Shipped]:
    """Every setting under every scheme and method."""
    for setting in (IMAGENET_50, IMAGENET_X50, PLACES, INAT):
        for scheme, title in SCHEMES.items():
            for suffix, added in METHODS.items():
                path = f"{setting.folder}/{scheme}{suffix}"
                yield Shipped(
                    path,
                    f"{title}{added} on {setting.said} ({PAPERS[suffix]})",
                    Recipe(
                        replace(setting.data, shots=Strict() if suffix == "-ccsam" else setting.shots),
                        replace(setting.model, head="cosine" if scheme == "ldam-drw" else "linear"),
                        stages(setting, scheme, suffix),
                        title=title + added, expect=expected(path), notes=tuple(notes(setting, scheme, suffix)),
                    ),
                )  # fmt: skip


def stages(s: Setting, scheme: str, suffix: str) -> tuple[Stage, ...]:
    """The first stage, cut in two where weights are deferred, and CC-SAM's second."""
    methods: dict[str, Method] = {
        "": ERM(),
        "-sam": SAM(Steps(s.steps[scheme], BORDERS)),
        "-ssesam": SSESAM(0.05, 0.10, 0.7, eta=100),
        "-ccsam": CCSAM() if scheme == "ce" else CCSAM(average="samples"),
    }
    protocol = s.conditional if suffix == "-ccsam" else s.plain
    decay = s.decay_of_ldam if scheme == "ldam-drw" and s.decay_of_ldam is not None else protocol.decay
    loss: Any = LDAM(max_margin=0.3) if scheme == "ldam-drw" else CE()
    first = Stage(
        epochs=protocol.epochs, batch=protocol.batch, method=methods[suffix], loss=loss, schedule=Cosine(),
        optim=SGD(protocol.rate, 0.9, decay), buffers="all" if suffix in ("-sam", "-ssesam") else "keep",
    )  # fmt: skip
    chain: tuple[Stage, ...] = (first,)
    if scheme.endswith("-drw"):
        early = round(DRW * protocol.epochs)
        chain = (
            replace(first, epochs=early),
            replace(first, epochs=protocol.epochs - early, loss=replace(loss, weights="effective"), carry=True),
        )
    if suffix != "-ccsam":
        return chain
    second = Stage(
        epochs=s.second, batch=protocol.batch, method=AdversarialFeatures(), loss=loss, train="head",
        statistics="moving", sampler=Balanced(1), optim=SGD(0.2 * protocol.rate, 0.9, decay), schedule=Cosine(),
    )  # fmt: skip
    return (*chain, second)


def notes(s: Setting, scheme: str, suffix: str) -> Iterator[str]:
    """Where the settings are from."""
    yield from (s.conditional if suffix == "-ccsam" else s.plain).notes
    yield from s.notes
    released = s in (IMAGENET_50, INAT)
    if scheme.endswith("-drw"):
        ours = "the released code's" if released else "ours, the released code's share for ImageNet-LT"
        yield f"DRW: effective-number weights, beta 0.9999, from two thirds of training on: {ours}."
    if scheme == "ldam-drw":
        whose = "the released code's" if released else "ours, the released code's for ResNet-50 on ImageNet-LT"
        yield f"LDAM's largest margin 0.3, scale 30 and cosine head: {whose}."
    if suffix == "-sam":
        near = "ours, those of the released command for CE + DRW" if scheme == "ce" and released else s.of_steps
        yield f"rho, in steps at epochs 5, 60 and 75 of 90 or the same shares: {near}."
    if suffix == "-ssesam":
        yield (
            "Radii, switch and eta: ours, those of the README's command for CIFAR-100-LT. The protocol around it is "
            "that of the rows beside it; the paper's for this set was not released."
        )
    if suffix in ("-sam", "-ssesam"):
        yield "BatchNorm moves in every pass, as in the released code."
    if suffix == "-ccsam":
        mean = "the mean over the classes of a batch" if scheme == "ce" else "the mean over samples"
        yield (
            f"Radii: the paper's equations 8 and 9 for the head alone; their factor of 0.03, the cap and {mean}: ours. "
            "No large-scale settings were released."
        )
        if scheme.endswith("-drw"):
            yield WEIGHED
        if s is INAT:
            yield "Jitter: that of the rows beside it; CC-SAM's code has none on iNaturalist."
        yield (
            "Second stage: a sample per class in turn, BatchNorm moving, a fifth of the rate on a cosine: the released "
            f"code's for sets other than CIFAR; its {s.second} epochs: ours, those of cRT in Kang et al. (ICLR 2020)."
        )
        if scheme == "ce":
            yield "The paper adds tricks of Balanced Softmax, which it does not name; they are left out here."
    if scheme == "ce" and suffix == "" and s is not IMAGENET_50:
        yield "The expected figure is a quoted baseline; that run's settings may differ from these."
    yield "Ours: the last epoch is judged. Never run here."


LARGE = (large,)
