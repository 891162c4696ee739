"""A tiny long tail in memory, tiny networks, and `fit` on the CPU: what the tests of training run on."""

import os

import numpy as np
import pytest
import torch
from torch import nn

from flattail.data import LongTail
from flattail.models import Split
from flattail.recipe import from_tree
from flattail.stage import Stage
from flattail.train import accelerated, fit

SIZES = (24, 12, 6)  # two classes are "few"
DIGITS = {"data": "digits-lt", "model": {"name": "resnet8", "width": 8}}


def tail(sizes=SIZES, *, test=8, side=6, seed=0):
    """Images [N, 1, side, side] of bytes: a pattern for each class, and noise."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 128, (len(sizes), 1, side, side), generator=g)

    def half(sizes):
        y = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
        noise = torch.randint(0, 128, (len(y), 1, side, side), generator=g)
        return (patterns[y] + noise).to(torch.uint8), y

    return LongTail.of(half(sizes), half([test] * len(sizes)), title="tiny")


def net(seed=0, *, norm=None, dropout=0.0, classes=3, side=6):
    """A Split of a few hundred weights."""
    torch.manual_seed(seed)
    more = [norm(16)] if norm else []
    more += [nn.Dropout(dropout)] if dropout else []
    return Split(nn.Sequential(nn.Flatten(), nn.Linear(side * side, 16), *more, nn.ReLU()), nn.Linear(16, classes))


def trained(model, stages, *, data=None, **how):
    """Fit on the CPU; returns the rows of the log."""
    rows = []
    stages = stages if isinstance(stages, (list, tuple)) else [stages]
    assert all(isinstance(s, Stage) for s in stages)
    fit(model, data or tail(), stages, accelerator=accelerated("cpu", "fp32"), on_epoch=rows.append, **how)
    return rows


def without_seconds(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same_weights(a, b):
    """Equal bit for bit, buffers too."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def different(a, b):
    """At least one weight differs: guards a comparison against saying nothing."""
    return any(not torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def digits(**stage):
    """A recipe on digits-LT that trains in under a second."""
    return from_tree(DIGITS | {"stages": [{"epochs": 1, "batch": 64} | stage], "title": "tiny"})


def write_npz(path, rng=None, **parts):
    """A `.npz` of noise, [N, 8, 8] bytes, for the labels [N] of each part."""
    rng, arrays = rng or np.random.default_rng(0), {}
    for part, y in parts.items():
        arrays[f"{part}_images"] = rng.integers(0, 255, (len(y), 8, 8), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.array(y)
    np.savez(path, **arrays)


def in_latin(folder):
    """The folder renamed to caf\xe9, whose name is no UTF-8: its path in bytes. Skips where the disk takes none."""
    latin = os.fsencode(folder.parent) + b"/caf\xe9"
    try:
        os.rename(folder, latin)  # noqa: PTH104  (a path of bytes)
    except OSError:
        pytest.skip("this disk takes names in UTF-8 only")
    return latin
