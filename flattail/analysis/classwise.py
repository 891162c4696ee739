"""The Hessian class by class: is the loss of this class at a saddle here? (Rangwani et al., NeurIPS 2022)"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .hessian import Hessian
from .parts import Arrays, OnPart, Progress, joined, kept_nowhere, part_by_part, refuse_options, silent
from .samples import Batches, Samples, members_of
from .spectrum import Spectrum, spectrum, spread
from .subject import DType, Loss, Subject, cross_entropy

ENDS = ("lambda_max", "lambda_min", "ratio", "trace", "negative_mass", "negative_share")


@dataclass(frozen=True)
class ClassHessian:
    """Spectrum of the Hessian of each class's mean loss, and of groups of classes (Rangwani et al., NeurIPS 2022).

        H_c = d²L_c/dw²,   L_c(w) = sum_{i in c} m_i loss_i(w) / sum_{i in c} m_i

    Both ends by Lanczos; trace and density from probes. A saddle of class c: lambda_min(H_c) < 0 at a small gradient.

    Raises ValueError for a field out of its range.
    """

    classes: str = ""  # numbers (3 or #3), names and groups (few or @few) of classes with commas between; empty: all
    samples: int = 50  # per class, drawn by the seed
    steps: int = 100  # Lanczos steps of a probe, at most
    probes: int = 2  # Lanczos runs; their spread is an error bar
    draws: int = 2  # further probes of the trace, layer by layer, on what Lanczos has not seen
    subsets: int = 4  # half-samples of each class; the spread over them is the standard error over samples
    tolerance: float = 1e-6  # relative error of both ends at which a run stops; 0: all steps
    micro: int = 64  # samples differentiated at once
    only: str | None = None  # a pattern on parameter names; others are held fixed
    dtype: DType = "float32"  # of the products; scalars are float64 in any case
    seed: int = 0  # of samples, probes and subsets

    def __post_init__(self) -> None:
        refuse_options(
            self, least={"samples": 1, "steps": 1, "probes": 1, "draws": 0, "subsets": 0, "micro": 1, "tolerance": 0},
            patterns=["only"],
        )  # fmt: skip

    def __call__(
        self,
        model: nn.Module,
        batches: Batches | Samples,
        counts: Tensor,
        *,
        loss: Loss = cross_entropy,
        groups: Mapping[str, Tensor] | None = None,
        names: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        done: Mapping[str, Arrays] | None = None,
        on_part: OnPart = kept_nowhere,
        progress: Progress = silent,
    ) -> Arrays:
        """Named arrays with one row per class or group, in the order of `name`.

        Args:
            model: any module from inputs to logits; a copy of it is analysed, in evaluation mode.
            batches: see `Samples.of`; evaluation transforms, no shuffling.
            counts: `[C]` training samples per class.
            loss: (logits, y, counts) -> `[B]`.
            groups: sets of classes `[C]` by name, e.g. many, medium, few; "all" is added.
            names: of the classes.
            device: where; by default where the model is.
            done: parts found before, by name; they are not computed again.
            on_part: receives each part as soon as it is found.
            progress: receives a part's name, its products so far, and its products at most.

        Raises:
            ValueError: for classes without samples, inputs that change when read again, a model that does not fit.
            FloatingPointError: for losses that are not finite.
            MemoryError: saying what to make smaller.
        """
        subject = Subject.of(model, counts, loss=loss, only=self.only, dtype=self.dtype, device=device)
        held = of(batches, len(subject.counts), self.samples, self.seed)
        members = members_of(self.classes, held, groups or {}, names)
        checked = False

        def look(name: str) -> Arrays:
            nonlocal checked
            if not checked:
                self.operator(subject, held, members[name]).check(self.seed)
                checked = True
            return self.part(subject, held, members[name], lambda k, most: progress(name, k, most))

        return joined(part_by_part(list(members), look, done=done or {}, on_part=on_part))

    def operator(self, subject: Subject, samples: Samples, member: Tensor) -> Hessian:
        """The Hessian of the mean loss of some classes: `member` is `[C]` bool."""
        pieces = samples.batches(samples.weights(member), self.micro)
        return Hessian(subject.losses, pieces, subject.weights, micro=self.micro, model=subject.model)

    def part(self, subject: Subject, samples: Samples, member: Tensor, progress: Any) -> Arrays:
        """Everything about one class or group: `member` is `[C]` bool, the classes that it has."""
        begun, own = time.monotonic(), int(member[samples.y].sum())
        subsets = self.subsets if own > 1 else 0
        most, spent = (self.probes + subsets) * self.steps, 0

        def of_samples(some: Samples, probes: int, draws: int) -> tuple[Hessian, Spectrum]:
            nonlocal spent
            H = self.operator(subject, some, member)
            found = spectrum(
                H, steps=self.steps, probes=probes, draws=draws, tolerance=self.tolerance, seed=self.seed,
                on_step=lambda k: progress(spent + k, most),
            )  # fmt: skip
            spent += found.products
            return H, found

        H, whole = of_samples(samples, self.probes, self.draws)
        value, g = H.gradient()
        halves = [of_samples(samples.half(self.seed + 1 + s), 1, 1)[1] for s in range(subsets)]
        progress(most, most)
        arrays = {k: np.asarray(v) for k, v in vars(whole).items() if not isinstance(v, Tensor)}
        taken = int(member[samples.half(0).y].sum())
        scale = (taken / max(own - taken, 1)) ** 0.5  # 1 for exact halves, see `Samples.half`
        arrays |= {f"{k}_samples": np.asarray(scale * spread([getattr(h, k) for h in halves])) for k in ENDS}
        return arrays | {
            "converged": np.asarray(whole.converged),
            "loss": np.asarray(value),
            "gradient_norm": np.asarray(float(g.double().norm())),
            "samples": np.asarray(own),
            "single": np.asarray(own == 1),
            "count": np.asarray(int(subject.counts.cpu()[member].sum())),
            "products": np.asarray(spent),
            "seconds": np.asarray(time.monotonic() - begun),
        }


def of(batches: Batches | Samples, classes: int, per_class: int | None, seed: int) -> Samples:
    """The samples of batches, or those given."""
    return (
        batches
        if isinstance(batches, Samples)
        else Samples.of(batches, classes=classes, per_class=per_class, seed=seed)
    )


def class_hessian(
    model: nn.Module, batches: Batches, counts: Tensor, *, loss: Loss = cross_entropy, **options: Any
) -> Arrays:
    """The spectrum of every class of any model and loader, without a run: `ClassHessian(**options)(...)`.

    `groups`, `names`, `device`, `done`, `on_part` and `progress` go to the call, everything else to the options.
    """
    call = {k: options.pop(k) for k in ("groups", "names", "device", "done", "on_part", "progress") if k in options}
    return ClassHessian(**options)(model, batches, counts, loss=loss, **call)
