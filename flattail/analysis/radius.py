"""CC-SAM's characteristic radius of each class, and whether the bound behind it says anything (CVPR 2023)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flattail.sharp import displaced
from flattail.sharp.perturb import norm

from .classwise import of
from .parts import Arrays, OnPart, Progress, joined, kept_nowhere, part_by_part, refuse_options, silent
from .samples import Batches, Samples, members_of
from .slopes import seen_by, slope
from .subject import DType, Loss, Subject, cross_entropy, head_of


def characteristic(weight: float, gradient: float, size: int, count: int) -> float:
    """rho*_c (eq. 8) from ||w||, ||g_c||, the number of scalars and of training samples; infinite for no gradient."""
    if gradient == 0:
        return math.inf
    return math.sqrt(weight / (2 * gradient)) * size**-0.25 * max(count - 1, 1) ** -0.25


def square_root(weight: float, rho: float, count: int, delta: float) -> float:
    """The term of eq. 1: sqrt((||w||²/(4 rho²) + log(n/delta)) / (n − 1)); above 1 the bound says nothing."""
    return math.sqrt((weight**2 / (4 * rho**2) + math.log(max(count, 1) / delta)) / max(count - 1, 1))


@dataclass(frozen=True)
class ClassRadius:
    """Per class: gradient norm, characteristic radius and bound of CC-SAM, for all weights and for the head.

        rho_c = (||w|| / (2 ||g_c||))^(1/2) k^(-1/4) (n_c − 1)^(-1/4)                                     (eq. 8)
        max_{||e|| <= sqrt(k) rho_c} L_c(w + e) + ||w|| / (2 rho_c sqrt(n_c − 1))                         (eqs. 5, 7)
                                                ~ L_c + (2 ||w|| ||g_c||)^(1/2) k^(1/4) (n_c − 1)^(-1/4)

    of Zhou et al., CVPR 2023, with g_c the slope of the class's mean loss and k scalars in w.

    Raises ValueError for a field out of its range.
    """

    classes: str = ""  # class numbers (3 or #3) or names with commas between; empty: every class with samples
    samples: int = 500  # per class, drawn by the seed
    delta: float = 0.05  # the bound holds with probability 1 - delta
    head: str | None = None  # a pattern on the names of the head's parameters; None: `model.head` or the last layer
    micro: int = 128  # samples differentiated at once
    dtype: DType = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_options(self, least={"samples": 1, "micro": 1}, positive=["delta"], patterns=["head"])
        if self.delta >= 1:
            raise ValueError(f"delta: a probability below 1, and not {self.delta}")

    def __call__(
        self,
        model: nn.Module,
        batches: Batches | Samples,
        counts: Tensor,
        *,
        loss: Loss = cross_entropy,
        names: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        done: Mapping[str, Arrays] | None = None,
        on_part: OnPart = kept_nowhere,
        progress: Progress = silent,
    ) -> Arrays:
        """Named arrays with one row per class; `_all` and `_head` tell the scope. See `ClassHessian` for arguments.

        `weight_norm`, `gradient_norm`, `size`: ||w||, ||g_c||, k. `rho`: eq. 8. `displacement`: sqrt(k) rho.
        `gap`: L_c at the end of eq. 9's climb minus L_c at w. `complexity`: the second term of eq. 5, `bound` its sum,
        `first_order` eq. 7 with L_c added. `square_root` of eq. 1 and whether it is below 1: `says_something`.
        """
        subject = Subject.of(model, counts, loss=loss, dtype=self.dtype, device=device)
        held = of(batches, len(subject.counts), self.samples, self.seed)
        present = ",".join(map(str, (held.held > 0).nonzero().squeeze(1).tolist()))
        members = members_of(self.classes or present, held, {}, names)
        pattern = self.head or head_of(subject.model)
        scopes = {
            "all": list(range(len(subject.names))),
            "head": [i for i, n in enumerate(subject.names) if re.search(pattern, n)],
        }
        if not scopes["head"]:
            raise ValueError(f"no parameter has {pattern!r} in its name: set head to a pattern on {subject.names[-2:]}")

        def look(name: str) -> Arrays:
            progress(name, 0, 1)
            found = self.part(subject, held, members[name], scopes)
            progress(name, 1, 1)
            return found

        return joined(part_by_part(list(members), look, done=done or {}, on_part=on_part))

    def part(self, subject: Subject, samples: Samples, member: Tensor, scopes: Mapping[str, list[int]]) -> Arrays:
        """One class: `member` is `[C]` bool, the class alone."""
        a, n = samples.weights(member), int(subject.counts.cpu()[member].sum())
        mine = (a != 0).nonzero().squeeze(1)
        own = Samples(samples.x[mine], samples.y[mine], samples.rows[mine], samples.total)
        value, g = slope(subject, samples.batches(a, self.micro))
        out: dict[str, float | int | bool] = {"loss": value, "count": n, "samples": len(mine), "single": len(mine) == 1}
        for scope, place in scopes.items():
            weights, slopes = [subject.weights[i] for i in place], [g[i] for i in place]
            k, w, s = sum(p.numel() for p in weights), float(norm(weights)), float(norm(slopes))
            rho = characteristic(w, s, k, n)
            reach, gap = math.sqrt(k) * rho, math.nan
            complexity = w / (2 * rho * math.sqrt(max(n - 1, 1)))
            if math.isfinite(reach):
                with displaced(weights, [d * (reach / s) for d in slopes]):
                    gap = seen_by(subject, own, self.micro).mean(a[mine]) - value
            root = square_root(w, rho, n, self.delta)
            out |= {
                f"{key}_{scope}": number
                for key, number in {
                    "size": k, "weight_norm": w, "gradient_norm": s, "rho": rho, "displacement": reach,
                    "relative": reach / w, "gap": gap, "complexity": complexity, "bound": value + gap + complexity,
                    "first_order": value + math.sqrt(k) * rho * s + complexity if s else math.nan,
                    "square_root": root, "says_something": root < 1,
                }.items()
            }  # fmt: skip
        return {key: np.asarray(number) for key, number in out.items()}
