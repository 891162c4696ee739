"""The baselines of the papers' tables as rows of one table: losses, mixtures, averages, methods and second stages.

A row is a function of the setting (data, network, the first and the second stage), so that the full protocols and the
short one for small machines hold the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flattail.averages import EMA, SWA
from flattail.constraints import MaxNorm, SpectralNorm
from flattail.data.mix import CutMix, Mix, Mixup, Remix
from flattail.data.samplers import Balanced
from flattail.losses import CE, GCL, IB, LA, LADE, LDAM, Focal
from flattail.optim import SGD, Constant, Cosine
from flattail.sharp import (
    CCSAM,
    GSAM,
    LPFSGD,
    MSAM,
    PGD,
    SAM,
    WSAM,
    AdversarialFeatures,
    FriendlySAM,
    GradientNormPenalty,
    LookSAM,
    Method,
    ModelPerturbation,
    SAMNorms,
    Window,
)
from flattail.starts import ClassMeans, DisAlign, LogitAdjust, NewHead, Scales, TauNorm
from flattail.train import Stage

from .settings import Setting
from .shipped import CC, WEIGHED

RATE = "Rate of CC-SAM's second stage: a constant 0.01, as released."
HELD = (
    "The rate stays at 0.1, and at 0.05 in the last fifth, which is averaged: as released, but for a line between.",
)
KANG = "Kang et al., ICLR 2020"
MISLAS = "Zhong et al., CVPR 2021"
GCL_PAPER = "Li et al., CVPR 2022"


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
            *(replace(stage, method=CCSAM(average="samples")) for stage in deferred(s, LDAM())),
            adversarial(s, loss=LDAM()),
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
    notes = {"ccsam-ldam-drw": (WEIGHED,)}
    return {
        name: Row(
            title,
            f"{title}, both stages ({CC})",
            stages,
            head,
            (*notes.get(name, ()), *((RATE,) if stages[-1].optim.lr == 0.01 else ())),
        )
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


# -- what rows are made of -------------------------------------------------------------------------------------


def deferred(s: Setting, loss: Any) -> tuple[Stage, Stage]:
    """A loss, and from four fifths of training on the same with class weights."""
    early = replace(s.first, epochs=s.first.epochs * 4 // 5, loss=loss)
    return early, replace(
        early, epochs=s.first.epochs - early.epochs, loss=replace(loss, weights="effective"), carry=True
    )


def begun_from(row: Row, source: str) -> Row:
    """The row with its first stage taken from a run."""
    stage, *rest = row.stages[1:]
    note = f"The first stage is that of `{source}`: train it before, into `runs`."
    return replace(row, stages=(replace(stage, init=f"runs/{source}/{{seed}}"), *rest), notes=(*row.notes, note))
