"""Images per second of CPU: `fit` beside a straightforward loop with the same maths, plain and SAM, in one run.

The straightforward loop: PIL images, torchvision's transforms in a DataLoader, the contiguous format, float32, and for
SAM two backward passes with the weights moved in between. `fit` trains what the recipe's fields make of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from flattail.data import LongTail
from flattail.data.augment import Crop, Flip
from flattail.devices import accelerated
from flattail.models import MODELS
from flattail.optim import SGD
from flattail.sharp import ERM, SAM, Method
from flattail.train import Stage, fit

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
RHO, BATCH = 0.1, 128


class Pictures(Dataset):
    """Images as PIL has them, transformed one by one."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.images, self.y = [v2.functional.to_pil_image(image) for image in x], y.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(x.shape[-1], padding=x.shape[-1] // 8), v2.RandomHorizontalFlip(), v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
            ]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), self.y[i]


def straightforward(net: nn.Module, loader: DataLoader, *, rho: float | None) -> None:
    """An epoch of a loop as one writes it, with SAM if there is a radius."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=2e-4)
    weights = list(net.parameters())
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        if rho is not None:
            scale = rho / torch.stack([p.grad.norm() for p in weights]).norm()
            moves = [p.grad * scale for p in weights]
            with torch.no_grad():
                for p, e in zip(weights, moves, strict=True):
                    p.add_(e)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            with torch.no_grad():
                for p, e in zip(weights, moves, strict=True):
                    p.sub_(e)
        optimizer.step()


def cases(network: str, steps: int, size: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Every way to train an epoch, by name."""
    n, generator = steps * BATCH, torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    y = torch.arange(n) % 10
    data = LongTail.of((x, y), (x[:10], y[:10]), mean=MEAN, std=STD)
    loader = DataLoader(Pictures(x, y), BATCH, shuffle=True)
    methods: dict[str, tuple[float | None, Method]] = {"plain": (None, ERM()), "SAM": (RHO, SAM(RHO))}
    for name, (rho, method) in methods.items():
        net = MODELS[network]().build(10)
        yield f"{name}, straightforward loop", lambda net=net, rho=rho: straightforward(net, loader, rho=rho)
        for precision, compile in (("fp32", False), ("fp32", True), ("bf16", False)):
            said = f"{name}, fit, {precision}" + ", compiled" * compile
            yield said, epoch(MODELS[network]().build(10), data, method, precision, compile)


def epoch(net: nn.Module, data: LongTail, method: Method, precision: str, compile: bool) -> Callable[[], None]:
    """An epoch of `fit`."""
    stage = Stage(1, method=method, batch=BATCH, optim=SGD(1e-3), augment=(Crop(data.train.shape[-1] // 8), Flip()))

    def run() -> None:
        fit(net, data, [stage], accelerator=accelerated("cpu", precision), compile=compile)

    return run


def rows(network: str, size: int, *, steps: int, rounds: int) -> list[tuple[str, float, tuple[float, float], float]]:
    """Name, images per CPU second (median, quartiles), ratio to the straightforward loop of the same method."""
    runs = dict(cases(network, steps, size))
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            if i:
                taken[name].append(time.process_time() - begun)
    found = []
    for name, times in taken.items():
        base = taken[f"{name.partition(',')[0]}, straightforward loop"]
        rates = sorted(steps * BATCH / t for t in times)
        ratio = statistics.median(b / t for b, t in zip(base, times, strict=True))
        quartiles = rates[len(rates) // 4], rates[-1 - len(rates) // 4]
        found.append((name, statistics.median(rates), quartiles, ratio))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved; a row is their median")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{args.model}, {args.size} px, batch {BATCH}, {threads} CPU threads, torch {torch.__version__}\n")
    print("| | images per CPU second | spread | to the straightforward loop |\n| --- | ---: | ---: | ---: |")
    for name, rate, (low, high), ratio in rows(args.model, args.size, steps=args.steps, rounds=args.rounds):
        print(f"| {name} | {rate:.0f} | {low:.0f}…{high:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
