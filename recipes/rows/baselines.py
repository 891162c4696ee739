"""The baselines of the papers' tables as rows of one table: losses, mixtures, averages, methods and second stages.

A row is a function of the setting (data, network, the first and the second stage), so that the full protocols and the
short one for small machines hold the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flattail.averages import EMA, SWA
from flattail.constraints import MaxNorm, SpectralNorm
from flattail.data.augment import AutoAugment, Crop, Cutout, Flip
from flattail.data.mix import CutMix, Mix, Mixup, Remix
from flattail.data.profile import Inclusive, Slices
from flattail.data.samplers import Balanced
from flattail.losses import CE, GCL, IB, LA, LADE, LDAM, VS, Focal, LabelAwareSmoothing
from flattail.models import ResNet8, ResNet32
from flattail.optim import SGD, Constant, Cosine, Multistep
from flattail.recipe import Recipe
from flattail.sharp import (
    CCSAM,
    GSAM,
    LPFSGD,
    MSAM,
    PGD,
    SAM,
    SSESAM,
    WSAM,
    AdversarialFeatures,
    FocalSAM,
    FriendlySAM,
    GradientNormPenalty,
    ImbSAM,
    LookSAM,
    Method,
    ModelPerturbation,
    SAMNorms,
    Window,
)
from flattail.starts import ClassMeans, DisAlign, LogitAdjust, NewHead, Scales, TauNorm
from flattail.train import Stage

from .shipped import CC, CIFARS, CROP_FLIP, SIXTEEN, Shipped, expected, said, ten

RATE = "Rate of CC-SAM's second stage: a constant 0.01, as released."
HELD = (
    "The rate stays at 0.1, and at 0.05 in the last fifth, which is averaged: as released, but for a line between.",
)
KANG = "Kang et al., ICLR 2020"
MISLAS = "Zhong et al., CVPR 2021"
GCL_PAPER = "Li et al., CVPR 2022"


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


@dataclass(frozen=True)
class Row:
    """A baseline in a setting."""

    title: str
    about: str
    stages: tuple[Stage, ...]
    head: str = "linear"
    notes: tuple[str, ...] = ()


# -- one stage -----------------------------------------------------------------------------------------------


def losses(s: Setting) -> dict[str, Row]:
    """Another loss, or another batch, in place of cross-entropy on images as they are."""
    half = replace(s.first, epochs=s.first.epochs // 2)
    mixes: dict[str, tuple[str, str, Mix]] = {
        "ce-mixup": ("CE + mixup", "Mixup (Zhang et al., ICLR 2018)", Mixup(1.0)),
        "ce-cutmix": ("CE + CutMix", "CutMix (Yun et al., ICCV 2019)", CutMix(1.0)),
        "ce-remix": ("CE + Remix", "Remix (Chou et al., ECCV workshops 2020)", Remix()),
    }
    return {
        "focal": Row("Focal", "Focal loss (Lin et al., ICCV 2017)", (replace(s.first, loss=Focal()),)),
        "la": Row("LA", "Logit adjustment: balanced softmax (Menon et al., ICLR 2021)",
                  (replace(s.first, loss=LA()),)),
        "lade": Row("LADE", "LADE (Hong et al., CVPR 2021)", (replace(s.first, loss=LADE()),)),
        "ib": Row("IB", "Influence-balanced loss (Park et al., ICCV 2021)",
                  (half, replace(half, loss=IB(), carry=True)),
                  notes=("IB begins at half of training, as released; the released cuts of the rate are left out.",)),
        "cosine": Row("CE, cosine head", "Cross-entropy on scaled cosines", (s.first,), "scaled-cosine"),
        "causal": Row("De-confound-TDE", "De-confound-TDE (Tang et al., NeurIPS 2020)", (s.first,), s.causal),
        **{name: Row(title, about, (replace(s.first, mix=mix),)) for name, (title, about, mix) in mixes.items()},
    }  # fmt: skip


def flattened(s: Setting) -> dict[str, Row]:
    """Cross-entropy with every flattening operation and every way of leaving saddles."""
    methods: dict[str, tuple[str, str, Method]] = {
        "ce-wsam": ("WSAM", "WSAM (Yue et al., KDD 2023)", WSAM(s.rho, 0.6)),
        "ce-gradient-norm": ("gradient-norm penalty", "Gradient-norm penalty (Zhao et al., ICML 2022)",
                             GradientNormPenalty(s.rho)),
        "ce-gsam": ("GSAM", "GSAM (Zhuang et al., ICLR 2022)", GSAM(s.rho)),
        "ce-friendly-sam": ("Friendly-SAM", "Friendly-SAM (Li et al., CVPR 2024)", FriendlySAM(s.rho)),
        "ce-look-sam": ("LookSAM", "LookSAM (Liu et al., CVPR 2022)", LookSAM(s.rho)),
        "ce-m-sam": ("Momentum-SAM", "Momentum-SAM (Becker et al., 2024)", MSAM()),
        "ce-sam-norms": ("SAM on norms", "SAM-ON (Mueller et al., NeurIPS 2023)", SAMNorms(s.rho)),
        "ce-late-sam": ("late SAM", "SAM in the last fifth (Zhou et al., ICLR 2025)", Window(SAM(s.rho), 0.8, 1.0)),
        "ce-model-perturbation": ("model perturbation", "Model perturbation (Shi et al., NeurIPS 2021)",
                                  ModelPerturbation()),
        "ce-lpf-sgd": ("LPF-SGD", "LPF-SGD (Bisla et al., AISTATS 2022)", LPFSGD()),
        "ce-pgd": ("PGD", "Perturbed gradient descent (Jin et al., ICML 2017)", PGD(s.rho)),
    }  # fmt: skip
    rows = {
        name: Row(f"CE + {title}", about, (replace(s.first, method=method),))
        for name, (title, about, method) in methods.items()
    }
    return rows | {
        "ce-ema": Row("CE + EMA", "Exponential moving average of the weights", (replace(s.first, average=EMA(0.99)),)),
        "ce-swa": Row("CE + SWA", "Stochastic weight averaging (Izmailov et al., UAI 2018)",
                      (replace(s.first, **s.averaged),), notes=HELD if "schedule" in s.averaged else ()),
        "ce-spectral-norm": Row("CE + spectral norm", "Spectral normalisation (Miyato et al., ICLR 2018)",
                                (replace(s.first, constraint=SpectralNorm()),)),
    }  # fmt: skip


# -- two stages ------------------------------------------------------------------------------------------------


def second_stages(s: Setting) -> dict[str, Row]:
    """What is done to the classifier after plain cross-entropy; the last stage of each row is the second."""
    moving = replace(s.second, sampler=Balanced(4), statistics="moving")
    rebalanced = replace(s.second, loss=CE(weights="effective"))
    seconds: dict[str, tuple[str, str, Stage, str]] = {
        "crt": ("cRT", f"cRT ({KANG})", replace(moving, start=NewHead()), ""),
        "lws": ("LWS", f"LWS ({KANG})", replace(moving, start=Scales(), train=r"^head\.scales"), ""),
        "tau-norm": ("τ-norm", f"tau-normalisation ({KANG})", Stage(0, start=TauNorm(1.0)),
                     "tau: 1; its authors sweep it, which `tau: null` does on a validation half."),
        "ncm": ("NCM", f"Nearest class mean ({KANG})", Stage(0, start=ClassMeans()), ""),
        "logit-adjust": ("post-hoc LA", "Post-hoc logit adjustment (Menon et al., ICLR 2021)",
                         Stage(0, start=LogitAdjust()), ""),
        "disalign": ("DisAlign", "DisAlign (Zhang et al., CVPR 2021)",
                     replace(s.second, start=DisAlign(), train=r"^head\.(?!inner)", loss=CE(weights="power:1.2")),
                     "Class weights n^-1.2: the released configuration for ImageNet-LT."),
        "los": ("LOS", "Label over-smoothing (Sun et al., ICLR 2025)",
                replace(s.second, loss=CE(smoothing=0.98), optim=SGD(5e-4, 0.9, 0.0)),
                "Smoothing, rate and weight decay: the released command's; it runs 20 epochs of batch 64."),
        "max-norm": ("MaxNorm", "Weight balancing, second stage (Alshammari et al., CVPR 2022)",
                     replace(rebalanced, constraint=MaxNorm()),
                     "Without the strong weight decay that its authors give the first stage."),
        "ce-ccsam-2": ("CE + CC-SAM stage 2", f"CC-SAM's second stage alone ({CC})", adversarial(s), RATE),
    }  # fmt: skip
    return {
        name: Row(title, about, (s.first, stage), notes=(note,) if note else ())
        for name, (title, about, stage, note) in seconds.items()
    }


def adversarial(s: Setting, **how: Any) -> Stage:
    """CC-SAM's second stage in the paper's form, at the constant rate of the released code."""
    return replace(
        s.second, method=AdversarialFeatures(), sampler=Balanced(1), statistics="moving",
        optim=replace(s.second.optim, lr=0.01), schedule=Constant(), **how,
    )  # fmt: skip


def mixed_up(s: Setting) -> dict[str, Row]:
    """Second stages on a representation trained with mixup."""
    mixed = replace(s.first, mix=Mixup(1.0))
    smoothed = replace(
        s.second, start=Scales(), loss=s.smooth, sampler=Balanced(4), rates=((r"^head\.inner", s.slower),),
        optim=SGD(0.1, 0.9, s.second.optim.weight_decay), schedule=Cosine(), mix=Mixup(1.0), statistics=s.moving,
    )  # fmt: skip
    crt = replace(s.second, start=NewHead(), sampler=Balanced(4), statistics="moving")
    return {
        "mixup-crt": Row("CE + mixup + cRT", f"Mixup and cRT ({KANG})", (mixed, crt)),
        "mislas": Row("MiSLAS", f"MiSLAS ({MISLAS})", (mixed, smoothed),
                      notes=("Smoothing, rates and BatchNorm of the second stage: the released code's.",)),
    }  # fmt: skip


def clouded(s: Setting, **first: Any) -> tuple[Stage, Stage]:
    """Both stages of GCL."""
    one = replace(s.first, loss=GCL(), mix=Mixup(1.0), **first)
    two = replace(
        s.second, loss=GCL(m=0.1, s=20.0, gamma=1.0), sampler=Balanced(1), mix=Mixup(1.0),
        optim=SGD(0.002, 0.9, 2e-4), schedule=Cosine(), **s.clouded,
    )  # fmt: skip
    return one, two


def gcl(s: Setting) -> dict[str, Row]:
    """GCL, a cosine head throughout."""
    same = "epochs, batch and rate" if s.clouded else "rate"
    note = (
        f"Noise, scales, margin and the second stage's {same}: the released code's; its mapping of groups is left out."
    )
    return {"gcl": Row("GCL", f"GCL ({GCL_PAPER})", clouded(s), "cosine", notes=(note,))}


def class_conditional(s: Setting) -> dict[str, Row]:
    """CC-SAM's two stages, alone and with what the paper says that they go with."""
    first = replace(s.first, method=CCSAM())
    mislas = mixed_up(s)["mislas"].stages
    with_what: dict[str, tuple[str, tuple[Stage, ...], str]] = {
        "ccsam": ("CC-SAM", (first, adversarial(s)), "linear"),
        "ccsam-ldam-drw": ("LDAM + DRW + CC-SAM", (
            *(replace(stage, method=CCSAM()) for stage in deferred(s, LDAM())), adversarial(s, loss=LDAM()),
        ), "cosine"),
        "ccsam-vs": ("VS + CC-SAM", (replace(first, loss=s.vs), adversarial(s)), "linear"),
        "ccsam-crt": ("cRT + CC-SAM", (first, adversarial(s, start=NewHead())), "linear"),
        "ccsam-mislas": ("MiSLAS + CC-SAM", (
            replace(mislas[0], method=CCSAM()), replace(mislas[1], method=AdversarialFeatures()),
        ), "linear"),
        "ccsam-gcl": ("GCL + CC-SAM", (
            clouded(s, method=CCSAM())[0], replace(clouded(s)[1], method=AdversarialFeatures()),
        ), "cosine"),
    }  # fmt: skip
    return {
        name: Row(title, f"{title}, both stages ({CC})", stages, head, (RATE,) if stages[-1].optim.lr == 0.01 else ())
        for name, (title, stages, head) in with_what.items()
    }


# -- the grid of CC-SAM's figure 2 -----------------------------------------------------------------------------


def grid(s: Setting) -> dict[str, Row]:
    """Flattening operations in the first stage, the second, or both, of cRT, LDAM + DRW, MiSLAS and GCL."""
    plain: dict[str, tuple[str, tuple[Stage, ...], int, str]] = {  # title, stages, those of the first stage, head
        "crt": ("cRT", second_stages(s)["crt"].stages, 1, "linear"),
        "ldam-drw": ("LDAM + DRW", deferred(s, LDAM()), 2, "cosine"),
        "mislas": ("MiSLAS", mixed_up(s)["mislas"].stages, 1, "linear"),
        "gcl": ("GCL", clouded(s), 1, "cosine"),
    }
    operations: dict[str, tuple[str, dict[str, Any]]] = {
        "sn": ("SN", {"constraint": SpectralNorm()}),
        "gp": ("GP", {"method": GradientNormPenalty(s.rho)}),
        "mp": ("MP", {"method": ModelPerturbation()}),
    }
    rows = {}
    for name, (title, stages, one, head) in plain.items():
        about = f"of the grid of CC-SAM's figure 2 ({CC})"
        held = [replace(t, schedule=s.averaged["schedule"]) for t in stages[:one]]
        held[-1] = replace(held[-1], average=SWA(0.8 if one == 1 else 0.0))  # the last fifth
        rows[f"{name}-swa"] = Row(f"{title}, SWA", f"{title} with SWA, {about}", (*held, *stages[one:]), head, HELD)
        for short, (letters, change) in operations.items():
            for when, which in (("1", range(one)), ("2", range(one, len(stages))), ("12", range(len(stages)))):
                if when != "1" and one == len(stages):
                    continue
                changed = tuple(replace(t, **change) if i in which else t for i, t in enumerate(stages))
                label = f"{letters}.{'.'.join(when)}"
                rows[f"{name}-{short}{when}"] = Row(
                    f"{title}, {label}", f"{title} with {label}, {about}", changed, head,
                    notes=("The operation's settings: ours; the paper's are in an appendix that we could not read.",),
                )  # fmt: skip
    return rows


# -- the ablation of CC-SAM's table 2 --------------------------------------------------------------------------


def ablation(s: Setting) -> dict[str, Row]:
    """Direction and length of the class-wise climb, apart and together, before the second stage."""
    crt = second_stages(s)["crt"].stages[1]
    note = "The paper ablates on Places-LT; its length of 1 for `dir` is here cut to the cap."
    forms: dict[str, tuple[str, CCSAM]] = {
        "ablation-dir": ("cRT + dir", CCSAM(scale=1.0, length="unit")),
        "ablation-mag": ("cRT + mag", CCSAM(direction="random")),
        "ablation-dir-mag": ("cRT + dir + mag", CCSAM()),
    }
    rows = {
        name: Row(title, f"{title}, of CC-SAM's table 2 ({CC})", (replace(s.first, method=method), crt), notes=(note,))
        for name, (title, method) in forms.items()
    }
    both = (replace(s.first, method=CCSAM()), adversarial(s, start=NewHead()))
    name = "ablation-dir-mag-stage2"
    about = f"CC-SAM whole, of its table 2 ({CC})"
    return rows | {name: Row("cRT + dir + mag + stage 2", about, both, notes=(note, RATE))}


# -- the settings --------------------------------------------------------------------------------------------


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


def shipped(s: Setting, name: str, row: Row, path: str | None = None) -> Shipped:
    """A row as a recipe."""
    path = path or f"{s.folder}/{name}"
    return Shipped(
        path,
        f"{row.about}, on {s.said}",
        Recipe(
            s.data, s.network(head=row.head), row.stages, title=row.title, expect=expected(path),
            notes=(*row.notes, *s.notes),
        ),
    )  # fmt: skip


def table_rows() -> Iterator[Shipped]:
    """Rows of the papers' tables, on CIFAR-10-LT and CIFAR-100-LT at imbalance 200, 100 and 50."""
    always = ("ce-mixup", "mixup-crt", "mislas", "gcl", "causal")
    for where in CIFARS:
        s = full(where)
        for group in (losses, flattened, second_stages, mixed_up, gcl, class_conditional):
            for name, row in group(s).items():
                if (where.endswith("-100") and name != "ccsam") or name in always:
                    yield shipped(s, name, row)


def figure_2() -> Iterator[Shipped]:
    """CC-SAM's figure 2, on CIFAR-100-LT at imbalance 100."""
    s = full("cifar100-lt-100")
    for name, row in grid(s).items():
        yield shipped(s, name, row, f"cifar100-lt-100-flattened/{name}")


def table_2() -> Iterator[Shipped]:
    """CC-SAM's table 2, on CIFAR-100-LT at imbalance 100."""
    s = full("cifar100-lt-100")
    for name, row in ablation(s).items():
        yield shipped(s, name, row)


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


def longer() -> Iterator[Shipped]:
    """Second stages, MiSLAS and GCL beside the rows of `sixteen`, from whose runs they begin where they can."""
    for where in SIXTEEN:
        yield from of_longer(long(where))


def of_longer(s: Setting) -> Iterator[Shipped]:
    """Those of one data set."""
    mixed, cc = mixed_up(s), class_conditional(s)["ccsam"]
    strong = (*s.first.augment, AutoAugment(), Cutout(8))
    strongly = replace(
        cc, title="CC-SAM, strong augmentation", stages=tuple(replace(t, augment=strong) for t in cc.stages)
    )
    yield shipped(s, "ce-mixup", losses(s)["ce-mixup"])
    yield shipped(s, "gcl", gcl(s)["gcl"])
    yield shipped(s, "ccsam-strong", strongly)
    second = {
        "crt": (second_stages(s)["crt"], "ce"),
        "mislas": (mixed["mislas"], "ce-mixup"),
        "ccsam-2": (replace(cc, title="CC-SAM, both stages"), "ccsam"),
        "ccsam-crt": (class_conditional(s)["ccsam-crt"], "ccsam"),
    }
    for name, (row, source) in second.items():
        yield shipped(s, name, begun_from(row, f"{s.folder}/{source}"), f"{s.folder}-2/{name}")


def begun_from(row: Row, source: str) -> Row:
    """The row with its first stage taken from a run."""
    stage, *rest = row.stages[1:]
    note = f"The first stage is that of `{source}`: train it before, into `runs`."
    return replace(row, stages=(replace(stage, init=f"runs/{source}/{{seed}}"), *rest), notes=(*row.notes, note))


def quickly() -> Iterator[Shipped]:
    """Every row once more, short; second stages take the first from a run of `cifar10-lt-quick`."""
    s = quick()
    plain = {
        "ce": Row("CE", "Cross-entropy", (s.first,)),
        "ce-drw": Row("CE + DRW", "Deferred re-weighting (Cao et al., NeurIPS 2019)", deferred(s, CE())),
        "ce-drw-sam": Row("CE + DRW + SAM", "SAM and deferred re-weighting (Rangwani et al., NeurIPS 2022)",
                          tuple(replace(stage, method=SAM(s.rho)) for stage in deferred(s, CE()))),
        "ldam-drw": Row("LDAM + DRW", "LDAM and DRW (Cao et al., NeurIPS 2019)", deferred(s, LDAM()), "cosine"),
        "vs": Row("VS", "Vector scaling (Kini et al., NeurIPS 2021)", (replace(s.first, loss=s.vs),)),
        "ce-sam": Row("CE + SAM", "SAM (Foret et al., ICLR 2021)", (replace(s.first, method=SAM(s.rho)),)),
        "ce-imbsam": Row("CE + ImbSAM", "ImbSAM (Zhou et al., ICCV 2023)",
                         (replace(s.first, method=ImbSAM(s.rho, eta=1000)),)),
        "ce-ssesam": Row("CE + SSE-SAM", "SSE-SAM (Lyu et al., AAAI 2025)",
                         (replace(s.first, method=SSESAM(s.rho / 2, s.rho, 0.7, eta=1000)),)),
        "ce-focalsam": Row("CE + Focal-SAM", "Focal-SAM (Li et al., ICML 2025)",
                           (replace(s.first, method=FocalSAM(s.rho, 0.8, 3.0)),)),
        "ce-ccsam": Row("CE + CC-SAM stage 1", f"CC-SAM, stage 1 ({CC})", (replace(s.first, method=CCSAM()),)),
    }  # fmt: skip
    for group in (plain, losses(s), flattened(s), gcl(s)):
        for name, row in group.items():
            yield shipped(s, name, row)
    seconds = second_stages(s) | mixed_up(s) | class_conditional(s)
    for name, row in seconds.items():
        one = row.stages[0]
        source = next((f"{s.folder}/{n}" for n, r in (plain | losses(s)).items() if r.stages == (one,)), None)
        if source is None or row.head != "linear":
            yield shipped(s, name, row)
            continue
        yield shipped(s, name, begun_from(row, source), f"{s.folder}-2/{name}")


def deferred(s: Setting, loss: Any) -> tuple[Stage, Stage]:
    """A loss, and from four fifths of training on the same with class weights."""
    early = replace(s.first, epochs=s.first.epochs * 4 // 5, loss=loss)
    return early, replace(
        early, epochs=s.first.epochs - early.epochs, loss=replace(loss, weights="effective"), carry=True
    )


BASELINES = (table_rows, figure_2, table_2, longer, quickly)
