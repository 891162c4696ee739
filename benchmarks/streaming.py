"""Images per second beside a plain `ImageFolder` and `DataLoader`: `python benchmarks/streaming.py`.

A tree of JPEG files is made up (blurred noise with grain, so that a file has the size of a photograph's), and the same
images are read by both in turn, in rounds, with the same number of workers, batch, crop, flip and colour jitter. The
first table is the processor's own time in one process, which others on the machine hardly change; the second is by the
clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms
from torchvision.datasets import ImageFolder

from flattail.data import Files, in_order
from flattail.data.loading import Items, workers_here
from flattail.data.streamed import IMAGENET


def grow(top: Path, images: int, width: int, height: int, classes: int = 8) -> list[str]:
    """JPEG files in folders."""
    rng, paths = np.random.default_rng(0), []
    for i in range(images):
        path = top / f"class{i % classes}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        grain = rng.integers(-8, 9, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(str(path))
    return paths


def plain(top: Path, batch: int, workers: int, jitter: float, device: str) -> DataLoader:
    """What a published training script has."""
    colour = [transforms.ColorJitter(jitter, jitter, jitter)] if jitter else []
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *colour, transforms.ToTensor()]
    folder = ImageFolder(str(top), transforms.Compose([*steps, transforms.Normalize(*IMAGENET)]))
    return DataLoader(
        folder, batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0, pin_memory=device == "cuda"
    )


def epoch_of(loader: DataLoader, device: str) -> Iterator[torch.Tensor]:
    for x, _ in loader:
        yield x.to(device, non_blocking=True)


def rate(batches: Iterator[torch.Tensor], device: str) -> float:
    """Images per second, the first batch left out."""
    next(batches)
    begun, n = time.perf_counter(), 0
    for x in batches:
        n += len(x)
    if device == "cuda":
        torch.cuda.synchronize()
    return n / (time.perf_counter() - begun)


def of_one_core(folder: ImageFolder, half: Files, batch: int) -> dict[str, float]:
    """Images per second of processor time that a worker makes ready, batches included."""
    here, there = (Items(half._reader(False, kind), half.shape) for kind in ("cpu", "cuda"))

    def ours(items: Items, rows: list[int]) -> None:
        items.together([items[row, row] for row in rows])

    ways = {
        "plain": lambda rows: default_collate([folder[row] for row in rows]),
        "flattail": lambda rows: ours(here, rows),
        "flattail, for a GPU": lambda rows: ours(there, rows),
    }
    spent = dict.fromkeys(ways, 0.0)
    batches = torch.arange(len(half)).split(batch)
    for rows in batches:
        for name, way in ways.items():
            begun = time.process_time()
            way(rows.tolist())
            spent[name] += time.process_time() - begun
    return {name: len(half) / seconds for name, seconds in spent.items()}


def rows(
    folder: ImageFolder, half: Files, batch: int, rounds: int
) -> list[tuple[str, float, tuple[float, float], float]]:
    """Name, images per second of one core (median, quartiles), ratio to the plain way."""
    taken = [of_one_core(folder, half, batch) for _ in range(rounds)]
    found = []
    for name in taken[0]:
        low, middle, high = statistics.quantiles([each[name] for each in taken], n=4)
        found.append((name, middle, (low, high), statistics.median(each[name] / each["plain"] for each in taken)))
    return found


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--images", type=int, default=1024)
    asked.add_argument("--size", default="400x300", help="width and height of the files")
    asked.add_argument("--batch", type=int, default=64)
    asked.add_argument("--workers", default="", help="e.g. 0,1,2; by default one per core; none: no second table")
    asked.add_argument("--jitter", type=float, default=0.4)
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    how = asked.parse_args()
    torch.set_num_threads(1)
    width, height = map(int, how.size.split("x"))
    counts = [int(w) for w in how.workers.split(",") if w.isdigit()] if how.workers else [workers_here()]
    with tempfile.TemporaryDirectory() as folder:
        paths = grow(Path(folder), how.images, width, height)
        kilobytes = statistics.mean(Path(path).stat().st_size for path in paths) / 1000
        print(f"{how.images} files of {how.size} pixels, {kilobytes:.0f} kB each; batch {how.batch}, to {how.device}")
        loader = plain(Path(folder), how.batch, 0, how.jitter, how.device)
        half = Files(paths, torch.zeros(len(paths)).long(), jitter=how.jitter)
        print("one core, images per second of its own time: median (quartiles), ratio")
        for name, middle, (low, high), ratio in rows(loader.dataset, half, how.batch, how.rounds):
            print(f"  {name:20} {middle:6.0f} ({low:.0f} to {high:.0f})  {ratio:.2f}")
        if counts:
            print("by the clock: workers  plain img/s  flattail img/s  ratio (quartiles)")
        for workers in counts:
            half = Files(paths, torch.zeros(len(paths)).long(), jitter=how.jitter)
            loader, rates = plain(Path(folder), how.batch, workers, how.jitter, how.device), []
            for _ in range(how.rounds + 1):
                ours = (
                    x
                    for x, _ in half.batches(
                        in_order(len(half), how.batch), augment=(), device=how.device, workers=workers
                    )
                )
                rates.append((rate(epoch_of(loader, how.device), how.device), rate(ours, how.device)))
            theirs, mine = (statistics.median(each) for each in zip(*rates[1:], strict=True))
            low, middle, high = statistics.quantiles([b / a for a, b in rates[1:]], n=4)
            print(f"{workers:7}  {theirs:11.0f}  {mine:14.0f}  {middle:.2f} ({low:.2f} to {high:.2f})")
            del loader, half


if __name__ == "__main__":
    main()
