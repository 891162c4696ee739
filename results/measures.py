"""What the pages of results are written with: the kept runs, accuracies, differences seed by seed, passes a step."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import nn

from flattail import SharpnessAware, Split
from flattail.recipe import built
from flattail.report.estimates import Difference, difference, signed
from flattail.runs import Run, find
from flattail.sharp import Method

HERE = Path(__file__).parent
GROUPS = ("many", "medium", "few", "all")


@cache
def kept() -> tuple[Run, ...]:
    """The finished runs under `results/`, read once; `kept.cache_clear()` after adding some."""
    return tuple(run for run in find([HERE]) if run.finished)


def accuracy(run: Run, group: str) -> float:
    """In percent, of a group of classes, or the mean over all classes."""
    assert run.scores is not None
    scores = run.scores["scores"]
    return 100 * (scores["balanced"] if group == "all" else scores["groups"][group])


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation; – for nothing."""
    if not values:
        return "–"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def cells(runs: Iterable[Run]) -> list[str]:
    """Many, medium, few and all of a row's runs, mean ± sd over seeds."""
    several = list(runs)
    return [spread([accuracy(run, group) for run in several]) for group in GROUPS]


def paired(ours: Mapping[int, Run], theirs: Mapping[int, Run], group: str) -> Difference:
    """The difference over the seeds (the keys) that both have."""
    common = [seed for seed in ours if seed in theirs]
    return difference([(accuracy(ours[seed], group), accuracy(theirs[seed], group)) for seed in common])


def change(found: Difference) -> str:
    """A difference with half its interval, where two seeds or more give one."""
    if not found.n:
        return "–"
    return signed(found.mean) + (f" ± {found.high - found.mean:.1f}" if found.n > 1 else "")


def marked(found: Difference) -> str:
    """The same, in bold where the interval leaves out zero."""
    return f"**{change(found)}**" if found.clear else change(found)


@cache
def passes(method: str, progress: tuple[float, ...]) -> tuple[tuple[int, int], ...]:
    """(forwards, backwards) of steps at these shares of a small training of ten classes, of a method's tree as JSON."""
    torch.manual_seed(0)
    net = Split(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()), nn.Linear(6, 10))
    flat = SharpnessAware(net, built(Method, json.loads(method), "method"), [5000 >> c for c in range(10)])
    x, y, taken = torch.randn(40, 4), torch.arange(40) % 10, []
    for step, now in enumerate(progress):
        flat.backward(lambda: F.cross_entropy(net(x), y, reduction="none"), y, now, step=step)
        assert flat.outcome is not None
        taken.append((flat.outcome.forwards, flat.outcome.backwards))
    return tuple(taken)


def average(taken: Sequence[tuple[int, int]]) -> str:
    """Passes of a step, on average over training."""
    forwards, backwards = (mean(each) for each in zip(*taken, strict=True))
    return f"{forwards:.3g}F + {backwards:.3g}B"
