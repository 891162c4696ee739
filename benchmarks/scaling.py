"""Time of an epoch on several processes, by the model of docs/scaling.md: compute measured here, bandwidth as you say.

A step of B images on P processes is a step of ceil(B / P) images, measured on this machine and device, and what the
processes give to each other, counted in weights (tests/sharp/two_processes.py checks these numbers):

    t = t_step(ceil(B / P)) + calls latency + 2 (P - 1) / P bytes / bandwidth

Of DistributedDataParallel's own reduction as much may be hidden behind the backward pass as that takes; both ends are
printed. Nothing but `compute` is measured: bandwidth and latency are arguments. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from flattail.models import ResNet32
from flattail.sharp import CCSAM, ERM, GSAM, SAM, SSESAM, ImbSAM, Method, SharpnessAware

CLASSES = 100
BUCKET = 25 * 2**20  # bytes of a bucket of DistributedDataParallel


@dataclass(frozen=True)
class Row:
    """A method, and how many times all weights a step it gives to the other processes."""

    name: str
    method: Method
    reduced: int = 1  # gradients, whatever the climb
    climbs: int = 0  # slopes, where processes climb together
    gathered: int = 0  # scalars per image that all processes hold then
    overlaps: bool = True  # gradients go while the backward pass runs; those of methods that merge go after it


ROWS = [
    Row("ERM", ERM()),
    Row("SAM", SAM(), climbs=1),
    Row("ImbSAM", ImbSAM(eta=100), climbs=1),
    Row("SSE-SAM, before the switch", SSESAM(), climbs=2),
    Row("GSAM", GSAM(), reduced=2, climbs=1, overlaps=False),
    Row("CC-SAM, head", CCSAM(), gathered=64 + CLASSES + 2),  # feature, slope of the logits, class, weight
]


@dataclass(frozen=True)
class Link:
    """What joins the processes."""

    processes: int
    bandwidth: float  # bytes per second, in each direction, of the slowest link
    latency: float  # seconds of a collective call

    def seconds(self, size: float) -> float:
        """Of all-reducing so many bytes in a ring."""
        return math.ceil(size / BUCKET) * self.latency + 2 * (1 - 1 / self.processes) * size / self.bandwidth

    def gathering(self, size: float) -> float:
        """Seconds until everyone holds so many bytes of everyone, and their number first, in four pieces."""
        return (8 * self.latency + (self.processes - 1) * size / self.bandwidth) if size else 0.0


def measured(method: Method, batch: int, counts: torch.Tensor, device: torch.device, rounds: int) -> float:
    """Seconds of a whole step of so many images, the median."""
    torch.manual_seed(0)
    model: nn.Module = ResNet32().build(len(counts)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=2e-4)
    y = torch.multinomial(counts.float(), batch, True)
    y[-1] = len(counts) - 1  # a process runs every pass, whoever holds the tail
    x, there = torch.randn(batch, 3, 32, 32, device=device), y.to(device)
    flat, taken = SharpnessAware(model, method, counts), []
    for step in range(rounds + 2):
        begun = time.perf_counter()
        optimizer.zero_grad()
        flat.backward(lambda: F.cross_entropy(model(x), there, reduction="none"), y, 0.0, step=step)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken[2:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gigabits", type=float, required=True, help="per second, of the slowest link between processes"
    )
    parser.add_argument("--microseconds", type=float, required=True, help="of one collective call")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--batch", type=int, default=128, help="images per step, over all processes")
    parser.add_argument("--images", type=int, default=10847, help="per epoch; CIFAR-100-LT of imbalance 100 has 10847")
    parser.add_argument("--rounds", type=int, default=7, help="steps measured; a figure is their median")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    counts = torch.tensor([int(500 * 0.01 ** (j / 99)) for j in range(CLASSES)])
    device, steps = torch.device(args.device), math.ceil(args.images / args.batch)
    size = 4 * sum(p.numel() for p in ResNet32().build(len(counts)).parameters())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"ResNet-32, {size / 1e6:.2f} MB of weights, {args.batch} images a step, {steps} steps an epoch")
    print(f"compute: {name}, torch {torch.__version__}, at {args.gigabits:g} Gbit/s, {args.microseconds:g} µs a call\n")
    print("| method | processes | images each | compute, s an epoch | climb apart, s | climb together, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in ROWS:
        for processes in args.processes:
            each = math.ceil(args.batch / processes)
            compute = measured(row.method, each, counts, device, args.rounds)
            link = Link(processes, args.gigabits * 1e9 / 8, args.microseconds * 1e-6)
            gradient, slopes = (link.seconds(n * size) if processes > 1 else 0.0 for n in (row.reduced, row.climbs))
            slopes += link.gathering(4 * each * row.gathered) if processes > 1 else 0.0
            small = link.latency if processes > 1 else 0.0  # the sums of masses
            hidden = min(gradient, compute / 2) if row.overlaps else 0.0  # a backward pass is half a step at the least
            ends = [
                [f"{steps * (compute + small + more + gradient - h):.2f}" for h in (hidden, 0.0)]
                for more in (0.0, slopes)
            ]
            cells = [low if low == high else f"{low} to {high}" for low, high in ends]
            print(f"| {row.name} | {processes} | {each} | {steps * compute:.2f} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
