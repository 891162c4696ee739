"""Where the time of a step goes, operator by operator, and how near it comes to what the processor can do.

The limit: the step's floating-point operations, as torch counts them, at the rate that a large convolution reaches on
the same thread in the same precision.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from flattail.models import ResNet32
from flattail.sharp import ERM, SAM, Method, SharpnessAware

KINDS = {
    "convolution": "convolutions", "batch_norm": "BatchNorm", "threshold": "ReLU", "clamp": "ReLU", "add": "sums",
    "foreach": "the engine and the optimiser", "norm": "the engine and the optimiser",
}  # fmt: skip


def attainable(dtype: torch.dtype) -> float:
    """Floating-point operations per second of processor time in a large convolution, or a matrix product if faster."""
    a = torch.randn(1024, 1024).to(dtype)
    x, w = torch.randn(32, 256, 28, 28).to(dtype), torch.randn(256, 256, 3, 3).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    works: list[tuple[Callable[[], object], int]] = [
        (lambda: a @ a, 2 * 1024**3), (lambda: F.conv2d(x, w, padding=1), 2 * 9 * 256**2 * 32 * 28**2),
    ]  # fmt: skip
    return max(operations / seconds(work) for work, operations in works)


def seconds(work: Callable[[], object], times: int = 8) -> float:
    """Of the processor's time, of one call."""
    work()
    begun = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begun) / times


def step_of(method: Method, batch: int, precision: str) -> Callable[[], None]:
    """A step of training."""
    torch.manual_seed(0)
    net = ResNet32().build(10)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    flat = SharpnessAware(net, method, [10] * 10)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            flat.backward(lambda: F.cross_entropy(net(x), y, reduction="none"), y, 0.5)
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    limit = attainable(torch.bfloat16 if args.precision == "bf16" else torch.float32)
    methods: dict[str, Method] = {"plain": ERM(), "SAM": SAM(0.1)}
    for name, method in methods.items():
        step = step_of(method, args.batch, args.precision)
        with FlopCounterMode(display=False) as counted:
            step()
        spent, shares = seconds(step, args.steps), Counter[str]()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(args.steps):
                step()
        for event in seen.key_averages():
            kind = next((said for part, said in KINDS.items() if part in event.key.lower()), "other")
            shares[kind] += event.self_cpu_time_total
        rate = counted.get_total_flops() / spent
        print(f"{name}, {args.precision}: {1e3 * spent:.0f} ms, {rate / 1e9:.0f} GFLOP/s", end=" ")
        print(f"of {limit / 1e9:.0f} that a large convolution reaches ({100 * rate / limit:.0f} %)")
        for kind, part in shares.most_common():
            print(f"  {kind:30} {100 * part / shares.total():5.1f} %")


if __name__ == "__main__":
    main()
