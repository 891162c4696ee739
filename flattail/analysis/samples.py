"""The samples looked at, and who counts in what: a class or a group of classes is a weight per sample, nothing else.

L_a = sum_i a_i m_i loss_i / sum_i a_i m_i,   a_i = member(y_i) N_{y_i} / M_{y_i}   (M of the N samples of a class held)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Batches = Iterable[Any] | Callable[[], Iterable[Any]]  # of (x [B, ...], y [B]); readable again and again


@dataclass(frozen=True, eq=False)
class Samples:
    """Some of the samples of a split, in memory."""

    x: Tensor  # [M, ...]
    y: Tensor  # [M]
    rows: Tensor  # [M] their positions in the split
    total: Tensor  # [C] samples of each class in the split

    @classmethod
    def of(cls, batches: Batches, *, classes: int, per_class: int | None = None, seed: int = 0) -> Samples:
        """At most `per_class` samples of every class, drawn by a seed.

        Args:
            batches: pairs (x, y), in an order that does not change; a loader, a list, or a function that gives one.
            classes: how many there are.
            per_class: None keeps all.
            seed: of the choice.

        Raises:
            ValueError: for batches that differ when read again, labels beyond the classes, or no samples at all.
        """
        if per_class is not None and per_class < 1:
            raise ValueError(f"samples: 1 or more of each class, and not {per_class}")
        generator = torch.Generator().manual_seed(seed)
        held: list[tuple[Tensor, ...]] = []  # key, row, label, image
        start, total = 0, torch.zeros(classes, dtype=torch.int64)
        for x, y in reading(batches):
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
                raise ValueError(f"labels run from {int(y.min())} to {int(y.max())}, but there are {classes} classes")
            y = y.cpu()
            total += torch.bincount(y, minlength=classes)
            held.append((torch.rand(len(y), generator=generator), torch.arange(start, start + len(y)), y, x))
            start += len(y)
            if per_class is not None:
                held = [lowest(held, per_class)]
        if not start:
            raise ValueError("there are no samples: the batches are empty, or a generator that was read before")
        _, rows, y, x = lowest(held, per_class or start)
        must_repeat(batches, rows, x)
        return cls(x, y, rows, total)

    @property
    def held(self) -> Tensor:
        """`[C]` samples of each class that are here."""
        return torch.bincount(self.y, minlength=len(self.total))

    def weights(self, member: Tensor) -> Tensor:
        """`[M]` float64: what each sample counts, for the classes `[C]` that are members (or for weights of them)."""
        return (member.double() * self.total / self.held.clamp(min=1))[self.y]

    def batches(self, a: Tensor, micro: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The samples that count, as micro-batches (x, y, a)."""
        rows = (a != 0).nonzero().squeeze(1)
        return [(self.x[r], self.y[r], a[r]) for r in rows.split(micro)]

    def half(self, seed: int) -> Samples:
        """A random half of every class, rounded up.

        The spread of a mean over such parts of h of M samples, times sqrt(h/(M − h)), is the standard error of the mean
        over all: (s²/h) (1 − h/M) h/(M − h) = s²/M.
        """
        order = torch.rand(len(self.y), generator=torch.Generator().manual_seed(seed)).argsort()
        rank = torch.empty_like(order)
        for c in self.y.unique():
            mine = order[self.y[order] == c]
            rank[mine] = torch.arange(len(mine))
        rows = (rank < (self.held[self.y] + 1) // 2).nonzero().squeeze(1)
        return replace(self, x=self.x[rows], y=self.y[rows], rows=self.rows[rows])


def reading(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs of images and labels, from the start."""
    for x, y, *_ in batches() if callable(batches) else batches:
        yield x, y


def lowest(pieces: Sequence[tuple[Tensor, ...]], per_class: int) -> tuple[Tensor, ...]:
    """Of every class the samples with the lowest keys, in the order of the split."""
    key, row, y, x = (torch.cat(column) for column in zip(*pieces, strict=True))
    order = key.argsort()
    order = order[y[order].argsort(stable=True)]  # by class, by key
    counts = torch.bincount(y)
    first = (counts.cumsum(0) - counts)[y[order]]
    chosen = order[torch.arange(len(order)) - first < per_class].sort().values
    return key[chosen], row[chosen], y[chosen], x[chosen.to(x.device)]


def must_repeat(batches: Batches, rows: Tensor, x: Tensor) -> None:
    """Read again what was chosen: the images must be the same."""
    start, seen = 0, 0
    for again, _ in reading(batches):
        mine = (rows >= start) & (rows < start + len(again))
        here = again[(rows[mine] - start).to(again.device)]
        if not torch.equal(here, x[mine.to(x.device)]):
            raise ValueError(
                "the batches differ when they are read again: random augmentation, or a loader with shuffle=True. "
                "Curvature and landscapes need fixed samples: use evaluation transforms and shuffle=False"
            )
        seen, start = seen + int(mine.sum()), start + len(again)
    if seen != len(rows):
        raise ValueError(
            "the batches can be read only once: give a list, a DataLoader, or a function that returns a new generator"
        )


def members_of(
    chosen: Sequence[str | int] | str,
    samples: Samples,
    groups: Mapping[str, Tensor],
    names: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """What is looked at: a name each, and the classes `[C]` bool that count.

    Args:
        chosen: class numbers, class names and group names, or these with commas between; `#3` is a class by its number
            and `@few` a group, whatever classes are called; empty: all there is.
        samples: a class must have some.
        groups: sets of classes by name; "all" is added. Those without samples are left out, unless chosen.
        names: of the classes, beside their numbers.

    Raises:
        ValueError: for a name that is none or could mean several, or a class without samples.
    """
    classes = len(samples.total)
    one = torch.eye(classes, dtype=torch.bool)
    wide = {n: m.to("cpu", torch.bool) for n, m in groups.items()} | {"all": torch.ones(classes, dtype=torch.bool)}
    sets = {f"#{c}": one[c] for c in range(classes)} | {f"@{n}": m for n, m in wide.items()}
    called = list(names or map(str, range(classes)))
    several = [s.strip() for s in chosen.split(",") if s.strip()] if isinstance(chosen, str) else chosen
    asked = [each if isinstance(each, str) else f"#{each}" for each in several]
    here = samples.held > 0
    if not asked:
        asked = [key for key, m in sets.items() if key.startswith("#") or bool((m & here).any())]
    found = {}
    for each in asked:
        key = meaning(each, sets, called)
        if not bool((sets[key] & here).any()):
            there = ", ".join(map(str, here.nonzero().squeeze(1).tolist()))
            raise ValueError(
                f"class {key[1:]!r} has no samples in this split: choose others (classes={there}), or another split"
            )
        found[key[1:]] = sets[key]
    return found


def meaning(said: str, sets: Mapping[str, Tensor], called: Sequence[str]) -> str:
    """Which of the sets (`#3` a class, `@few` a group) a number, a name of a class or of a group means."""
    if said in sets:
        return said
    meant = [f"#{said}", f"@{said}", *(f"#{c}" for c, name in enumerate(called) if name == said)]
    readings = {
        key: "the group" if key[0] == "@" else f"class number {key[1:]} ({called[int(key[1:])]!r})"
        for key in meant
        if key in sets
    }
    if not readings:
        groups = [key[1:] for key in sets if key[0] == "@"]
        raise ValueError(f"{said!r} is no class: choose numbers from 0 to {len(called) - 1}, or {', '.join(groups)}")
    if len(readings) > 1:
        ways = " or ".join(f"{key} for {reading}" for key, reading in readings.items())
        raise ValueError(f"{said!r} has more than one meaning: write {ways}")
    return next(iter(readings))
