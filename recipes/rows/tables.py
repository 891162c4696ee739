"""The baselines as recipes: the papers' tables and figures at full length, and all of them once more, short."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flattail.data.augment import AutoAugment, Cutout
from flattail.losses import CE, LDAM
from flattail.recipe import Recipe
from flattail.sharp import CCSAM, SAM, SSESAM, FocalSAM, ImbSAM

from .baselines import (
    Row,
    ablation,
    begun_from,
    class_conditional,
    deferred,
    flattened,
    gcl,
    grid,
    losses,
    mixed_up,
    second_stages,
)
from .settings import Setting, full, long, quick
from .shipped import CC, CIFARS, SIXTEEN, Shipped, expected


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


BASELINES = (table_rows, figure_2, table_2, longer, quickly)
