"""The three papers' own protocols, ImbSAM's and Focal-SAM's among them: their losses and methods on CIFAR-LT.

What a protocol says (network, batch, rate, schedule, subset) is stated once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flattail.data.augment import AutoAugment, Crop, Cutout, Flip
from flattail.data.mix import Mixup
from flattail.data.profile import Inclusive, Slices, Strict, Thresholds
from flattail.data.samplers import Balanced
from flattail.losses import CE, LA, LDAM, VS, Loss
from flattail.models import ResNet30, ResNet32, ResNet34Cifar
from flattail.optim import SGD, Cosine, Multistep
from flattail.recipe import EvaluationProtocol, Recipe
from flattail.sharp import (
    ASAM,
    CCSAM,
    ERM,
    LPFSGD,
    PGD,
    SAM,
    SSESAM,
    AdversarialFeatures,
    FocalSAM,
    ImbSAM,
    Method,
)
from flattail.train import Stage

from .shipped import CC, CIFARS, CROP_FLIP, FOCAL, SADDLE, SSE, STEPS, Shipped, expected, said, ten

# -- Saddle's protocol: ResNet-32, 200 epochs, DRW from epoch 160 -------------------------------------------------


def saddle() -> Iterator[Shipped]:
    """{CE, CE+DRW, LDAM+DRW, VS, VS+DRW} x {SGD, SAM}."""
    plain = Stage(
        epochs=200, batch=128, optim=SGD(0.1, 0.9, 2e-4), augment=CROP_FLIP,
        schedule=Multistep((0.8, 0.9), (0.01, 0.0001), warmup=0.025),
    )  # fmt: skip
    of_ten = {"ce": 0.1, "ce-drw": 0.5, "ldam-drw": 0.8, "vs": 0.5, "vs-drw": 0.5}
    of_hundred = {"ce": 0.2, "ce-drw": 0.8, "ldam-drw": 0.8, "vs": 0.8, "vs-drw": 0.8}
    for where, data in (CIFARS | STEPS).items():
        rho = of_ten if ten(where) else of_hundred
        losses: dict[str, Any] = {"ce": CE(), "ldam": LDAM(), "vs": VS(0.2, 1.2) if ten(where) else VS(0.05, 0.75)}
        shots = Slices(3, 4, 3) if ten(where) else Slices(36, 35, 29)
        if where in STEPS:
            shots = Thresholds(1000, 200) if ten(where) else Strict()
        for scheme in rho:
            loss, drw = losses[scheme.removesuffix("-drw")], scheme.endswith("-drw")
            methods: dict[str, tuple[str, Method]] = {"": ("", ERM()), "-sam": (" + SAM", SAM(rho[scheme]))}
            if scheme == "ce-drw" and where in ("cifar10-lt-100", "cifar100-lt-100"):
                methods |= {"-pgd": (" + PGD", PGD(0.05)), "-lpf-sgd": (" + LPF-SGD", LPFSGD())}
            for suffix, (added, method) in methods.items():
                stage = replace(plain, loss=loss, method=method, buffers="all" if suffix == "-sam" else "keep")
                late = replace(stage, epochs=40, loss=replace(loss, weights="effective"), carry=True)
                path = f"{where}/{scheme}{suffix}"
                title = scheme.upper().replace("-", " + ") + added
                yield Shipped(
                    path,
                    f"{title} on {said(where)}, in Saddle's protocol ({SADDLE})",
                    Recipe(
                        replace(data, shots=shots),
                        ResNet32(head="cosine" if isinstance(loss, LDAM) else "linear"),
                        (replace(stage, epochs=160), late) if drw else (stage,),
                        title=title,
                        expect=expected(path),
                        notes=tuple(saddle_notes(where, scheme, suffix)),
                    ),
                )


def asam() -> Iterator[Shipped]:
    """CE + ASAM, beside CE + SAM in Saddle's protocol."""
    for shipped in saddle():
        if shipped.path in ("cifar10-lt-100/ce-sam", "cifar100-lt-100/ce-sam"):
            recipe = shipped.recipe
            notes = (
                *recipe.notes[:1],
                "Ours: ASAM with its authors' radius; Saddle's paper has SAM.",
                *recipe.notes[2:],
            )
            stages = tuple(replace(s, method=ASAM()) for s in recipe.stages)
            yield Shipped(
                shipped.path.replace("ce-sam", "ce-asam"),
                shipped.about.replace("CE + SAM", "CE + ASAM"),
                replace(recipe, stages=stages, title="CE + ASAM", notes=notes, expect=None),
            )


def saddle_notes(where: str, scheme: str, suffix: str) -> Iterator[str]:
    """Where the settings are from."""
    yield "Network, batch, rate, schedule, weight decay, subset and augmentation: the released code's."
    if scheme.endswith("-drw"):
        yield "DRW is the second stage: effective-number weights, beta 0.9999, from epoch 160 as in the released code."
    if scheme.startswith("vs"):
        if ten(where):
            yield "VS's gamma and tau: the example of the VS authors' code for this set; we chose them."
        else:
            yield "VS's gamma and tau: those of SSE-SAM's and Focal-SAM's code; we chose them."
    if suffix == "-sam" and scheme.startswith("vs"):
        yield "rho: ours, that of CE + DRW + SAM; no command with VS and SAM was released."
    elif suffix == "-sam" and where.endswith("lt-100"):
        yield "rho: the released commands'."
    elif suffix == "-sam":
        yield "rho: ours, that of the released commands for exponential imbalance 100."
    elif suffix:
        yield "The method's settings: ours; the paper names it, and released neither code nor settings for it."
    if suffix == "-sam":
        yield "BatchNorm moves in both passes, as in the released code."
    if f"{where}/{scheme}{suffix}" in ("cifar10-lt-100/ce", "cifar100-lt-100/ce"):
        yield "The expected figure is a quoted baseline; that run's settings may differ from these."
    yield "Ours: the last epoch is judged; the released code reports the best epoch on the test set."


# -- SSE-SAM's protocol: ResNet-34, 200 epochs, the rate 0 in the last ---------------------------------------------


def ssesam() -> Iterator[Shipped]:
    """{CE, LDAM, LA, VS} x {SGD, SAM, ImbSAM, SSE-SAM}; at other imbalances than 100, CE alone."""
    plain = Stage(
        epochs=200, batch=64, optim=SGD(0.01, 0.9, 1e-3), schedule=Cosine(ahead=1), augment=CROP_FLIP,
    )  # fmt: skip
    losses: dict[str, Loss] = {"ce": CE(), "ldam": LDAM(cosine=False), "la": LA(0.75), "vs": VS(0.05, 0.75)}
    for where in CIFARS:
        eta = 1000 if ten(where) else 100
        shots = Thresholds(1000, 200) if ten(where) else Strict()
        methods: dict[str, tuple[str, Method]] = {
            "": ("", ERM()),
            "-sam": (" + SAM", SAM(0.05)),
            "-imbsam": (" + ImbSAM", ImbSAM(0.05, eta=eta, over="members")),
            "-ssesam": (" + SSE-SAM", SSESAM(0.05, 0.10, 0.7, eta=eta)),
        }
        for loss in losses if where.endswith("-100") else ("ce",):
            for method, (added, value) in methods.items():
                path = f"{where}/r34-{loss}{method}"
                stage = replace(plain, loss=losses[loss], method=value, buffers="all" if method else "keep")
                yield Shipped(
                    path,
                    f"{loss.upper()}{added} on {said(where)}, in SSE-SAM's protocol ({SSE})",
                    Recipe(
                        replace(CIFARS[where], subset="first", shots=shots), ResNet34Cifar(), (stage,),
                        title=f"{loss.upper()}{added} (R34)", protocol=EvaluationProtocol(views="flip"),
                        expect=expected(path), notes=tuple(ssesam_notes(where, loss, method)),
                    ),
                )  # fmt: skip


def ssesam_notes(where: str, loss: str, method: str) -> Iterator[str]:
    """Where the settings are from."""
    yield "Network, batch, rate, schedule, weight decay, subset and mirrored views: the released code's."
    if loss != "ce":
        yield {
            "ldam": "LDAM in the released code's form, which scales the margins and has a linear head.",
            "la": "tau: the released code's.",
            "vs": "gamma and tau: the released code's.",
        }[loss]
    if method == "-sam":
        yield "rho: the default of the released code; the README gives none for SAM."
    if method == "-imbsam":
        yield "ImbSAM as SSE-SAM's code has it, each group divided by its own size; rho: that code's default."
    if method == "-ssesam" and (where, loss) == ("cifar100-lt-100", "ce"):
        yield "Both radii, switch and eta: the command of the README."
    elif method == "-ssesam":
        yield "Both radii and the switch: ours, those of the README's command for CE on CIFAR-100-LT."
    if method in ("-imbsam", "-ssesam") and ten(where):
        yield "eta: ours; medium and few are tail, as 100 makes them on CIFAR-100-LT. The default 20 leaves no tail."
    elif method == "-imbsam" or (method == "-ssesam" and loss != "ce"):
        yield "eta: ours, that of the README's command for CE + SSE-SAM."
    if method == "-ssesam":
        yield "BatchNorm moves in every pass; there are fewer here than in the released code, with the same gradient."
    elif method:
        yield "BatchNorm moves in both passes, as in the released code."
    yield "Ours: the last epoch is judged; the released code reports the best of every tenth epoch on the test set."


# -- Focal-SAM's protocol: ResNet-32, cosine ------------------------------------------------------------------------


def focalsam() -> Iterator[Shipped]:
    """Focal-SAM with logit adjustment, by the released commands."""
    how: dict[str, tuple[FocalSAM, float, Any]] = {
        "cifar10-lt-100": (FocalSAM(0.2, 0.5, 3.0), 2e-4, Thresholds(1000, 200)),
        "cifar100-lt-100": (FocalSAM(0.3, 0.8, 3.2), 1e-3, Strict()),
    }
    for where, (method, decay, shots) in how.items():
        stage = Stage(
            epochs=200, batch=64, method=method, loss=LA(1.0), optim=SGD(0.1, 0.9, decay), schedule=Cosine(),
            augment=CROP_FLIP, buffers="all",
        )  # fmt: skip
        yield Shipped(
            f"{where}/focalsam",
            f"Focal-SAM with logit adjustment on {said(where)} ({FOCAL})",
            Recipe(
                replace(CIFARS[where], shots=shots), ResNet32(), (stage,), title="LA + Focal-SAM",
                notes=(
                    "Method, loss, batch, schedule and weight decay: the released commands'; they are silent about the "
                    "rate, so it is their code's default.",
                    "The released script does not start as it is; nothing was compared with it.",
                    "BatchNorm moves in both passes, as in the released code.",
                    "Ours: the last epoch is judged. No figure is expected: we could not read the paper's tables.",
                ),
            ),
        )  # fmt: skip


# -- CC-SAM's protocol, stage 1: ResNet-32, mixup -------------------------------------------------------------------


def ccsam() -> Iterator[Shipped]:
    """CC-SAM in the paper's form and in that of the released code, its stages together and the first alone."""
    first = Stage(
        epochs=200, batch=64, drop_last=True, optim=SGD(0.1, 0.9, 2e-4), augment=CROP_FLIP, mix=Mixup(1.0),
        schedule=Multistep((0.795, 0.895), (0.1, 0.01), warmup=0.025, start=1 / 3),
    )  # fmt: skip
    second = Stage(
        epochs=30, batch=64, train="head", statistics="moving", sampler=Balanced(1), optim=SGD(0.01, 0.9, 2e-4),
        augment=CROP_FLIP,
    )  # fmt: skip
    strong = (Crop(4), Flip(), AutoAugment(), Cutout(16))
    plain = "Network: a plain ResNet-32; the released code has the BBN variant, 30 layers deep in effect."
    shared = (
        "Batch, rate, warm-up, schedule, weight decay, subset and mixup: the released code's.",
        "Ours: the last epoch is judged, and starts stage 2; the released code takes the best on the test set.",
    )
    paper = (
        "Radii: the paper's equations 8 and 9 for the head alone, as its efficient version and its code have it.",
        "Ours: a factor of 0.03 on them and the cap, as the formula alone goes as far as the weights are long, both "
        "chosen on validation splits of digits-LT; and the mean over the classes of a batch, where equation 11 sums "
        "over them, with a regulariser that is left out here as in the code.",
    )
    released = (
        "scale and mix, mean over samples, norm per tensor and hard labels under mixup: the released code's. This "
        "scale moves next to nothing, and `perturbation vacuous` will be reported: that is what it shows.",
        "They are the code's present settings, for imbalance 200; its first public version had others, for 100.",
        "cap: the released code has none.",
        "Network: the BBN variant, 30 layers deep in effect.",
    )
    features = (
        "Second stage: 30 epochs at a constant rate of 0.01, a sample per class in turn, BatchNorm moving on: the "
        "released code's; its equations 12 to 14 are the paper's, the norm per sample our reading.",
    )
    for where in CIFARS:
        limit, mix = (1.0, 0.3) if ten(where) else (0.3, 0.5)
        data = replace(CIFARS[where], subset="cc", shots=Slices(3, 4, 3) if ten(where) else Inclusive())
        loose = CCSAM(1e-6, float("inf"), mix=mix, average="samples", norm="per-tensor", labels="hard")
        adversarial = replace(second, method=AdversarialFeatures())
        by_class = AdversarialFeatures(limit=limit, norm="class", rarity=2.0, ahead=1 / 30)
        plainly = replace(first, method=CCSAM())
        strongly = [replace(s, augment=strong, mix=None) for s in (plainly, adversarial)]
        forms: dict[str, tuple[str, str, tuple[Stage, ...], tuple[str, ...]]] = {
            "ccsam": ("CC-SAM", "both stages in the paper's form", (plainly, adversarial), (*paper, *features, plain)),
            "ccsam-strong": (
                "CC-SAM, strong augmentation", "both stages, AutoAugment and Cutout, no mixup",
                tuple(strongly), (*paper, *features, plain),
            ),
            "ccsam-stage1": ("CC-SAM, stage 1", "the first stage in the paper's form", (plainly,), (*paper, plain)),
            "ccsam-released": (
                "CC-SAM, released form", "both stages as its code has them",
                (replace(first, method=loose), replace(second, method=by_class)), released,
            ),
        }  # fmt: skip
        for name, (title, form, stages, notes) in forms.items():
            if name == "ccsam-stage1" and not where.endswith("-100"):
                continue
            network = ResNet30() if name == "ccsam-released" else ResNet32()
            yield Shipped(
                f"{where}/{name}",
                f"CC-SAM, {form}, on {said(where)} ({CC})",
                Recipe(
                    data, network, stages, title=title, expect=expected(f"{where}/{name}"),
                    notes=(*notes, *shared),
                ),
            )  # fmt: skip


PAPERS = (saddle, asam, ssesam, focalsam, ccsam)
