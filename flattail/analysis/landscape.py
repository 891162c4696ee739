"""The loss around a model: along lines of growing noise, and on planes; one set of directions for all classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flattail.sharp import displaced
from flattail.sharp.perturb import filter_norms, filters_of, norm, recorded

from .classwise import of
from .parts import Arrays, OnPart, Progress, joined, kept_nowhere, part_by_part, refuse_options, silent
from .samples import Batches, Samples, members_of
from .slopes import Seen, seen_by
from .subject import DType, Loss, Subject, cross_entropy, head_of, plain_copy


def filter_normalised(weights: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """A random direction with the norm of every filter (Li et al., NeurIPS 2018); zero for biases and norms.

    d_f <- d_f ||w_f|| / (||d_f|| + 1e-10), a filter being a slice of the first axis; of a cosine head, a column.
    """
    direction = []
    for w in weights:
        if w.ndim <= 1:
            direction.append(torch.zeros_like(w))
            continue
        d = torch.randn(w.shape, generator=generator).to(w)
        size, own = (filter_norms(t, filters_of(w)) for t in (w.detach(), d))
        direction.append(d * (size / (own + 1e-10)))
    return direction


def along_lines(
    subject: Subject, samples: Samples, members: Mapping[str, Tensor], ratios: np.ndarray, *,
    directions: int, seed: int, micro: int, label: str = "line",
    done: Mapping[str, Arrays] | None = None, on_part: OnPart = kept_nowhere, progress: Progress = silent,
) -> Arrays:  # fmt: skip
    """Losses at Gaussian noise of exact norm ratios ||e||/||w||, as in CC-SAM's figure 1.

    Returns `ratio` `[R]`, `losses` `[T, D, R]`, `mean` and `sd` over directions `[T, R]`. Parts are directions.
    """
    look = looker(subject, samples, micro)
    shares = {name: samples.weights(m) for name, m in members.items()}
    reach = norm(subject.weights)  # type: ignore[arg-type]
    generators = [torch.Generator().manual_seed(seed * 1000 + d) for d in range(directions)]

    def along(name: str) -> Arrays:
        generator = generators[int(name.rpartition(" ")[2])]
        d = [torch.randn(w.shape, generator=generator).to(w) for w in subject.weights]
        length, rows = norm(d), []
        for i, ratio in enumerate(ratios):
            with displaced(subject.weights, [t * (float(ratio) * reach / length) for t in d]):
                seen = look()
            rows.append([seen.mean(a) for a in shares.values()])
            progress(name, i + 1, len(ratios))
        return {"losses": np.array(rows).T}

    names = [f"{label} {d}" for d in range(directions)]
    losses = joined(part_by_part(names, along, done=done or {}, on_part=on_part))["losses"].transpose(1, 0, 2)
    sd = losses.std(1, ddof=1) if directions > 1 else np.full_like(losses[:, 0], np.nan)
    return {"ratio": ratios, "losses": losses, "mean": losses.mean(1), "sd": sd}


def on_plane(
    subject: Subject, samples: Samples, members: Mapping[str, Tensor], xs: np.ndarray, ys: np.ndarray, *,
    seed: int, micro: int, other: nn.Module | None = None, label: str = "plane",
    done: Mapping[str, Arrays] | None = None, on_part: OnPart = kept_nowhere, progress: Progress = silent,
) -> Arrays:  # fmt: skip
    """Losses at w + x u + y v, `losses` `[T, Y, X]`, with `x` and `y`; parts are rows of one y.

    u and v are random and filter-normalised, BatchNorm fixed. With `other`, x goes from this model (0) to the other
    (1), BatchNorm statistics included (beyond either model they stay as they are there: a variance has no other side),
    and v is orthogonal to u.

    Raises:
        ValueError: if the other model has other parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    moved: list[Tensor] = list(subject.weights)
    if other is None:
        u = filter_normalised(subject.weights, generator)
        v = filter_normalised(subject.weights, generator)
    else:
        v = filter_normalised(subject.weights, generator)
        here, there = dict(subject.model.state_dict(keep_vars=True)), plain_copy(other).state_dict()
        if {n: t.shape for n, t in here.items()} != {n: t.shape for n, t in there.items()}:
            raise ValueError(
                "the two models of a plane must have the same parameters: compare runs of one architecture"
            )
        rest = [n for n, t in here.items() if t.is_floating_point() and n not in subject.names]
        moved = [here[n] for n in [*subject.names, *rest]]
        u = [there[n].to(here[n]) - here[n].detach() for n in [*subject.names, *rest]]
        along = norm(u[: len(v)])
        share = float(sum((a * b).sum() for a, b in zip(u, v, strict=False)) / along**2) if float(along) else 0.0
        v = [b - share * a for a, b in zip(u, v, strict=False)] + [torch.zeros_like(t) for t in u[len(v) :]]
    shares = {name: samples.weights(m) for name, m in members.items()}
    statistics = {id(buffer) for buffer in subject.model.buffers()}

    def row(name: str) -> Arrays:
        y = float(ys[int(name.rpartition(" ")[2])])
        found = []
        for i, x in enumerate(xs):
            within = [min(max(x, 0.0), 1.0) if id(t) in statistics else x for t in moved]
            with displaced(moved, [float(s) * a + y * b for s, a, b in zip(within, u, v, strict=True)]):
                seen = seen_by(subject, samples, micro)
            found.append([seen.mean(a) for a in shares.values()])
            progress(name, i + 1, len(xs))
        return {"losses": np.array(found).T}

    names = [f"{label} {j}" for j in range(len(ys))]
    losses = joined(part_by_part(names, row, done=done or {}, on_part=on_part))["losses"]
    return {"x": xs, "y": ys, "losses": losses.transpose(1, 0, 2)}


def looker(subject: Subject, samples: Samples, micro: int) -> Callable[[], Seen]:
    """A look at all samples from where the weights are; through the last layer alone, where nothing else moves."""
    layer = {n.rpartition(".")[0] for n in subject.names}
    module = subject.model.get_submodule(layer.pop()) if len(layer) == 1 else None
    if module is None or module is subject.model:
        return lambda: seen_by(subject, samples, micro)
    stored = []
    with torch.no_grad():
        for x, y in zip(samples.x.split(micro), samples.y.split(micro), strict=True):
            with recorded(module) as calls:
                logits = subject.logits(x)
            if len(calls) != 1 or calls[0][1] is not logits:
                return lambda: seen_by(subject, samples, micro)
            stored.append((calls[0][0], y))

    @torch.no_grad()
    def look() -> Seen:
        found = [subject.scored(module(z), y) for z, y in stored]
        return Seen(*(torch.cat(column).double().cpu() for column in zip(*found, strict=True)))

    return look


@dataclass(frozen=True)
class Landscape:
    """Loss along lines of growing noise (near and far) and on a plane, overall and by class.

        L_c(w + t ||w|| n/||n||),   n normal;      L_c(w + x u + y v),   u, v with the norms of w's filters

    The lines are those of CC-SAM's figure 1 (Zhou et al., CVPR 2023), the plane as in Li et al., NeurIPS 2018.

    Raises ValueError for a field out of its range.
    """

    classes: str = ""  # numbers (3 or #3), names and groups (few or @few) of classes with commas between; empty: all
    samples: int = 50  # per class, drawn by the seed
    scope: str = "head"  # what the lines move: "head", "all", or a pattern on parameter names
    near: float = 0.5  # the largest ||e||/||w|| of the near line
    far: float = 5.0  # the same of the far line
    points: int = 21  # on each line
    directions: int = 10  # lines; their spread is an error bar
    side: int = 21  # points along each side of the plane
    extent: float = 1.0  # half the side of the plane, in norms of the weights' own filters
    micro: int = 256  # samples at once
    dtype: DType = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"samples": 1, "points": 2, "directions": 1, "side": 2, "micro": 1}
        refuse_options(self, least=least, positive=["near", "far", "extent"], patterns=["scope"])

    def __call__(
        self,
        model: nn.Module,
        batches: Batches | Samples,
        counts: Tensor,
        *,
        other: nn.Module | None = None,
        loss: Loss = cross_entropy,
        groups: Mapping[str, Tensor] | None = None,
        names: tuple[str, ...] | None = None,
        device: torch.device | str | None = None,
        done: Mapping[str, Arrays] | None = None,
        on_part: OnPart = kept_nowhere,
        progress: Progress = silent,
    ) -> Arrays:
        """`name` `[T]` and the arrays of `line` and `plane` behind `near_`, `far_` and `plane_`.

        `other`: a second model; the plane then goes through both, x from -0.5 to 1.5. Other arguments: `ClassHessian`.
        Parts are single directions of a line, and rows of the plane.
        """
        how: dict[str, Any] = {
            "loss": loss, "groups": groups, "names": names, "device": device, "classes": self.classes,
            "seed": self.seed, "micro": self.micro, "dtype": self.dtype, "done": done, "on_part": on_part,
            "progress": progress,
        }  # fmt: skip
        held = of(batches, len(counts), self.samples, self.seed)
        out: Arrays = {}
        for label, reach in (("near", self.near), ("far", self.far)):
            found = line(
                model, held, counts, label=label, reach=reach, points=self.points, directions=self.directions,
                scope=self.scope, **how,
            )  # fmt: skip
            out |= {key if key == "name" else f"{label}_{key}": array for key, array in found.items()}
        found = plane(model, held, counts, other=other, side=self.side, extent=self.extent, **how)
        return out | {key if key == "name" else f"plane_{key}": array for key, array in found.items()}


def line(
    model: nn.Module, batches: Batches | Samples, counts: Tensor, *,
    reach: float = 0.5, points: int = 21, directions: int = 10, scope: str = "head", label: str = "line",
    samples: int = 50, seed: int = 0, micro: int = 256, dtype: DType = "float32", **look: Any,
) -> Arrays:  # fmt: skip
    """Losses at Gaussian noise of exact norm ratios ||e||/||w|| up to `reach`; options and arrays of `Landscape`.

    Returns `name` `[T]`, `ratio` `[R]`, `losses` `[T, D, R]`, and over directions `mean` and `sd` `[T, R]`.
    """
    only = {"head": head_of(plain_copy(model)), "all": None}.get(scope, scope)
    subject, held, members, hooks = looked(model, batches, counts, only, samples, seed, dtype, **look)
    ratios = np.linspace(0, reach, points)
    how: dict[str, Any] = {"directions": directions, "seed": seed, "micro": micro, "label": label}
    found = along_lines(subject, held, members, ratios, **how, **hooks)
    return {"name": np.array(list(members))} | found


def plane(
    model: nn.Module, batches: Batches | Samples, counts: Tensor, *,
    other: nn.Module | None = None, side: int = 21, extent: float = 1.0,
    samples: int = 50, seed: int = 0, micro: int = 256, dtype: DType = "float32", **look: Any,
) -> Arrays:  # fmt: skip
    """Losses on a plane, filter-normalised or through an `other` model; options and arrays of `Landscape`.

    Returns `name` `[T]`, `x` `[X]`, `y` `[Y]` and `losses` `[T, Y, X]`.
    """
    subject, held, members, hooks = looked(model, batches, counts, None, samples, seed, dtype, **look)
    ys = np.linspace(-extent, extent, side)
    xs = ys if other is None else np.linspace(-0.5, 1.5, side)
    found = on_plane(subject, held, members, xs, ys, seed=seed, micro=micro, other=other, **hooks)
    return {"name": np.array(list(members))} | found


def looked(
    model: nn.Module, batches: Batches | Samples, counts: Tensor, only: str | None, samples: int, seed: int,
    dtype: DType, *, classes: str = "", loss: Loss = cross_entropy, groups: Mapping[str, Tensor] | None = None,
    names: tuple[str, ...] | None = None, device: torch.device | str | None = None, **hooks: Any,
) -> tuple[Subject, Samples, dict[str, Tensor], dict[str, Any]]:  # fmt: skip
    """What is looked at, and the hooks that are left."""
    subject = Subject.of(model, counts, loss=loss, only=only, dtype=dtype, device=device)
    held = of(batches, len(subject.counts), samples, seed)
    return subject, held, members_of(classes, held, groups or {}, names), hooks
