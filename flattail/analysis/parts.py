"""An analysis part by part: what is done is not done again, and processes share the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

Arrays = dict[str, np.ndarray]
OnPart = Callable[[str, Arrays], None]  # (name of a part, what was found): called as soon as it is found
Progress = Callable[[str, int, int], None]  # (name of a part, steps taken, steps at most)


def silent(name: str, step: int, steps: int) -> None:
    """No progress shown."""


def kept_nowhere(name: str, arrays: Arrays) -> None:
    """Nothing written."""


def refuse_options(
    options: Any, *, least: Mapping[str, int], positive: Sequence[str] = (), patterns: Sequence[str] = ()
) -> None:
    """Raise ValueError for options that are too small, not positive (or not finite), or no regular expression."""
    for name, value in least.items():
        if getattr(options, name) < value:
            raise ValueError(f"{name}: at least {value}, and not {getattr(options, name)}")
    for name in positive:
        if not 0 < getattr(options, name) < float("inf"):
            raise ValueError(f"{name}: a positive number, and not {getattr(options, name)}")
    for name in patterns:
        try:
            re.compile(getattr(options, name) or "")
        except re.error as error:
            raise ValueError(f"{name}: {getattr(options, name)!r} is no regular expression: {error}") from error


@contextmanager
def in_full() -> Iterator[None]:
    """Float32 is that in a GPU's convolutions too: TensorFloat-32, the default, leaves three digits of curvature."""
    try:
        before = torch.backends.cudnn.allow_tf32
    except RuntimeError:  # set operation by operation, by somebody who means it
        yield
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def part_by_part(
    names: Sequence[str], compute: Callable[[str], Arrays], *, done: Mapping[str, Arrays], on_part: OnPart
) -> dict[str, Arrays]:
    """Every part, from `done` or computed; under torchrun each process computes its share and all get everything."""
    together = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    found = {n: dict(done[n]) for n in names if n in done}
    for name in [n for n in names if n not in done][rank::world]:
        with in_full():
            found[name] = compute(name)
        on_part(name, found[name])
    if together:
        shares: list[dict[str, Arrays]] = [{}] * world
        dist.all_gather_object(shares, found)
        found = {n: a for share in shares for n, a in share.items()}
    return {n: found[n] for n in names}


def joined(parts: Mapping[str, Arrays]) -> Arrays:
    """Parts as named arrays with one row per part; shorter rows are filled up with NaN. `name` names the rows."""
    columns = {}
    for key in dict.fromkeys(k for arrays in parts.values() for k in arrays):
        rows = [np.asarray(arrays[key]) for arrays in parts.values()]
        size = tuple(max(r.shape[i] for r in rows) for i in range(rows[0].ndim))
        if any(r.shape != size for r in rows):
            wide = [np.full(size, np.nan) for _ in rows]
            for w, r in zip(wide, rows, strict=True):
                w[tuple(slice(n) for n in r.shape)] = r
            rows = wide
        columns[key] = np.stack(rows)
    return {"name": np.array(list(parts))} | columns
