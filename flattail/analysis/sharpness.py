"""The sharpness of a loss, class by class: by how much it rises where the terms of a method look from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flattail.sharp import SAM, Method, displaced
from flattail.sharp.perturb import norm

from .classwise import of
from .parts import Arrays, OnPart, Progress, joined, kept_nowhere, part_by_part, refuse_options, silent
from .samples import Batches, Samples, members_of
from .slopes import Climbed, Seen, climbs, seen_by
from .spectrum import spread
from .subject import DType, Loss, Subject, cross_entropy


@dataclass(frozen=True)
class Sharpness:
    """Rise of each class's loss where a method looks from: its own climb, the climb of all, random directions.

        gap_T = sum_k sum_{i in T} a_ki m_i (loss_i(w + e_k) − loss_i(w)) / sum_{i in T} m_i

    over the terms k of the method; random directions, of the length of the class's own climb, say the average case.

    Raises ValueError for a field out of its range.
    """

    classes: str = ""  # numbers (3 or #3), names and groups (few or @few) of classes with commas between; empty: all
    samples: int = 100  # per class, drawn by the seed
    directions: int = 10  # random moves of the same length, for the average case
    at: float = 0.0  # share of training done, for methods with a schedule
    micro: int = 256  # samples at once
    dtype: DType = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        refuse_options(self, least={"samples": 1, "directions": 1, "micro": 1, "at": 0})

    def __call__(
        self,
        model: nn.Module,
        batches: Batches | Samples,
        counts: Tensor,
        *,
        method: Method | None = None,
        loss: Loss = cross_entropy,
        groups: Mapping[str, Tensor] | None = None,
        names: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        done: Mapping[str, Arrays] | None = None,
        on_part: OnPart = kept_nowhere,
        progress: Progress = silent,
    ) -> Arrays:
        """Named arrays with one row per class or group; see `ClassHessian` for the arguments.

        `method`: any of `flattail.sharp`, or your own; SAM by default. `gap`: each class climbs by its own gradient
        (the worst case to first order). `common`: its loss where the climbs of all samples lead, as in training.
        `random`: the mean over random directions of each move's length, `random_sd` their spread. `radius` and
        `common_radius`: ||e||/||w|| of the longest move.
        """
        method = method or SAM()
        subject = Subject.of(model, counts, loss=loss, dtype=self.dtype, device=device)
        held = of(batches, len(subject.counts), self.samples, self.seed)
        members = members_of(self.classes, held, groups or {}, names)
        few = (groups or {}).get("few", subject.counts.cpu() < 20)
        context = {"few": few, "progress": self.at, "step": 0, "seed": self.seed}
        everyone = held.weights(torch.ones(len(held.total)))
        at_w: Seen | None = None
        rises: list[tuple[Tensor, Tensor, float]] = []  # of the climbs of all: a [M], rise [M], radius

        def look(name: str) -> Arrays:
            nonlocal at_w
            if at_w is None:
                at_w = seen_by(subject, held, self.micro)
                for c in climbs(subject, held, everyone, at_w.masses, method, context, micro=self.micro):
                    if c.move is not None:
                        rises.append((c.weight, self.rise(subject, held, at_w, c.move), self.relative(subject, c.move)))
            a = held.weights(members[name])
            own = [
                c
                for c in climbs(subject, held, a, at_w.masses, method, context, micro=self.micro)
                if c.move is not None
            ]
            progress(name, 0, 1)
            found = self.part(subject, held, a, at_w, own, rises)
            progress(name, 1, 1)
            return found

        return joined(part_by_part(list(members), look, done=done or {}, on_part=on_part))

    def part(
        self, subject: Subject, samples: Samples, a: Tensor, at_w: Seen, own: list[Climbed], rises: list[Any]
    ) -> Arrays:
        """One class or group, of samples that count `a` `[M]`."""
        mine = (a != 0).nonzero().squeeze(1)
        some = Samples(samples.x[mine], samples.y[mine], samples.rows[mine], samples.total)
        here, mass = Seen(at_w.values[mine], at_w.masses[mine]), a[mine] * at_w.masses[mine]

        def gap(weight: Tensor, rise: Tensor) -> float:
            return float((mass * weight * rise).sum() / mass.sum())

        generator = torch.Generator().manual_seed(self.seed)
        worst, random = 0.0, np.zeros(self.directions)
        for c in own:
            assert c.move is not None
            length = norm(c.move)
            worst += gap(c.weight[mine], self.rise(subject, some, here, c.move))
            for d in range(self.directions):
                e = [torch.randn(m.shape, generator=generator).to(m) * (m != 0).any() for m in c.move]
                e = [t * (length / norm(e)) for t in e] if float(length) else e
                random[d] += gap(c.weight[mine], self.rise(subject, some, here, e))
        found = {
            "loss": at_w.mean(a),
            "gap": worst,
            "common": sum(gap(weight[mine], rise[mine]) for weight, rise, _ in rises),
            "random": float(random.mean()),
            "random_sd": spread(random),
            "radius": max((self.relative(subject, c.move) for c in own if c.move is not None), default=0.0),
            "common_radius": max((r for *_, r in rises), default=0.0),
            "samples": len(mine),
            "single": len(mine) == 1,
        }
        return {key: np.asarray(value) for key, value in found.items()}

    def rise(self, subject: Subject, samples: Samples, at_w: Seen, move: list[Tensor]) -> Tensor:
        """`[M]` loss at w + e minus loss at w."""
        with displaced(subject.weights, move):  # type: ignore[arg-type]
            return seen_by(subject, samples, self.micro).values - at_w.values

    def relative(self, subject: Subject, move: list[Tensor]) -> float:
        """||e||/||w||, the norm of w over what moves."""
        moving = [w for w, e in zip(subject.weights, move, strict=True) if bool((e != 0).any())]
        return float(norm(move) / norm(moving)) if moving else 0.0


def gap(model: nn.Module, batches: Batches, method: Method, counts: Tensor, **how: object) -> Arrays:
    """What training with a method minimised, measured on any data: `Sharpness(**options)(..., method=method)`."""
    call = {k: how.pop(k) for k in ("loss", "groups", "names", "device", "done", "on_part", "progress") if k in how}
    return Sharpness(**how)(model, batches, counts, method=method, **call)  # type: ignore[arg-type]
