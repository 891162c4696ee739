"""Workers that read samples and put them together to batches, kept from epoch to epoch."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flattail.data.halves import Draw
from flattail.data.reading import Sample, said_of

MOST_WORKERS = 32  # one process does not keep up with more


def workers_here(jobs: int = 1) -> int:
    """Workers for each of the processes on this machine: the cores that it may use, shared among them and ``jobs``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(cores // (processes * jobs), 1), MOST_WORKERS)


class Together(NamedTuple):
    """The samples of a step."""

    rows: Tensor  # [B]
    seeds: Tensor  # [B]
    x: Tensor  # [B, ch, H, W], images of three channels with these last in memory
    drawn: Tensor | None  # see `jitter.drawn`
    unread: tuple[tuple[str, str], ...]  # the files that could not be read, and why


class Stopped(NamedTuple):
    """Why a step's samples cannot be shown."""

    message: str


@dataclass(frozen=True)
class Items(Dataset):
    """What a `DataLoader` indexes by (row, seed)."""

    read: Callable[[int, int], Sample]
    shape: tuple[int, ...]

    def __getitem__(self, pair: tuple[int, int]) -> Sample:
        return self.read(*pair)

    def together(self, items: list[Sample]) -> Together | Stopped:
        """The samples as tensors, without those that are dropped."""
        otherwise = getattr(self.read, "otherwise", "stop")
        unread = tuple(each for item in items for each in item.unread)
        shown = [item for item in items if item.x is not None]
        if len(shown) < len(items) and otherwise != "drop":
            missing = next(item for item in items if item.x is None)
            message = said_of(*missing.unread[0])
            if otherwise == "stand-in":
                message = f"no image of the class can be read, {len(missing.unread)} were tried: {message}"
            return Stopped(message)
        for row, _, x, *_ in shown:
            if x is not None and x.shape != self.shape:
                return Stopped(
                    f"sample {row} has shape {list(x.shape)}, others {list(self.shape)}: bring all images to one size"
                )
        rows, seeds = (torch.tensor([item[k] for item in shown], dtype=torch.int64) for k in (0, 1))
        drawn = [item.drawn for item in shown if item.drawn is not None]
        x = stacked([item.x for item in shown if item.x is not None], self.shape)
        return Together(rows, seeds, x, torch.stack(drawn) if drawn else None, unread)


def stacked(images: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Images [ch, H, W] as [B, ch, H, W] that lie in memory as they did, so that nothing but bytes is copied."""
    if not images:
        return torch.zeros((0, *shape))
    if len(shape) == 3 and not images[0].is_contiguous():
        return torch.stack([x.movedim(0, -1) for x in images]).movedim(-1, 1)
    return torch.stack(images)


class _Steps:
    """The batch sampler of a loader that outlives an epoch."""

    draws: Iterable[Draw] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for rows, seeds in self.draws:
            yield list(zip(rows.tolist(), seeds.tolist(), strict=True))


def loader_of(items: Items, workers: int, kind: str) -> DataLoader:
    """A loader that is kept from epoch to epoch, and its workers with it."""
    return DataLoader(
        items,
        batch_sampler=_Steps(),  # type: ignore[arg-type]
        collate_fn=items.together,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=kind == "cuda",
        generator=torch.Generator(),
    )


def streamed(loaders: dict, key: tuple, steps: Iterable[Draw]) -> Iterator[Together]:
    """Rows, seeds and images of every step. ValueError, without the workers, for images that stop the run."""
    loaders[key].batch_sampler.draws = steps  # type: ignore[union-attr]
    stopped = None
    for batch in loaders[key]:
        if isinstance(batch, Stopped):
            stopped = batch
            break
        yield batch
    if stopped:
        del loaders[key]  # and with it the workers, before an exception keeps this frame alive
        raise ValueError(stopped.message)
