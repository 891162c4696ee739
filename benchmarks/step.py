"""What a step of every method costs: ratios to a plain step of the same model and batch, in one interleaved run.

The bound of a method is its passes at the price of a forward (F) and a backward (B) measured in the same run:
(f F + b B + rest) / (F + B + rest), `rest` being the optimiser. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from flattail.data import Draw, Tensors
from flattail.data.augment import Crop, Flip
from flattail.models import ResNet32
from flattail.sharp import (
    ASAM,
    CCSAM,
    GSAM,
    LPFSGD,
    MSAM,
    PGD,
    SAM,
    SSESAM,
    WSAM,
    AdversarialFeatures,
    FocalSAM,
    FriendlySAM,
    GradientNormPenalty,
    ImbSAM,
    LookSAM,
    Method,
    ModelPerturbation,
    SAMNorms,
    SharpnessAware,
)


@dataclass
class Case:
    """A method, where in training it stands, and the passes it should cost."""

    name: str
    method: Method
    forwards: float
    backwards: float
    progress: float = 0.0
    norm: str = "batch"
    step: int = 0


def cases(tail: float) -> list[Case]:
    """Every method of the table; `tail` is the share of tail samples in the batch."""
    return [
        Case("SAM", SAM(), 2, 2),
        Case("ASAM", ASAM(), 2, 2),
        Case("ImbSAM", ImbSAM(eta=100), 2, 3),
        Case("Focal-SAM", FocalSAM(), 2, 3),
        Case("SSE-SAM, before the switch", SSESAM(), 3, 4),
        Case("SSE-SAM, after the switch", SSESAM(), 2, 3, progress=0.9),
        Case("CC-SAM, head", CCSAM(), 1, 1),
        Case("CC-SAM, random direction", CCSAM(direction="random"), 1, 1),
        Case("Adversarial features", AdversarialFeatures(), 1, 1, progress=0.5),
        Case("WSAM", WSAM(), 2, 3),
        Case("Gradient norm penalty", GradientNormPenalty(), 2, 3),
        Case("GSAM", GSAM(), 2, 2),
        Case("Friendly-SAM", FriendlySAM(), 2, 2),
        Case("LookSAM, a step that looks", LookSAM(k=1), 2, 2),
        Case("LookSAM, a step between", LookSAM(k=2), 1, 1, step=1),
        Case("Momentum-SAM", MSAM(), 1, 1),
        Case("SAM, normalisation layers", SAMNorms(), 2, 2),
        Case("LPF-SGD", LPFSGD(), 1, 1),
        Case("Model perturbation", ModelPerturbation(), 1, 1),
        Case("PGD", PGD(), 1, 1),
        Case("PGD with a threshold", PGD(threshold=1.0), 2, 2),
        Case("ImbSAM, rows apart", ImbSAM(eta=100), 1 + tail, 1 + tail, norm="group"),
        Case("SSE-SAM, rows apart, before", SSESAM(), 2, 2, norm="group"),
        Case("SSE-SAM, rows apart, after", SSESAM(), 1 + tail, 1 + tail, progress=0.9, norm="group"),
    ]


class Bench:
    """One model with its optimiser, and steps of it."""

    def __init__(self, norm: str, x: Tensor, y: Tensor, counts: Tensor) -> None:
        torch.manual_seed(0)
        self.model = ResNet32(norm=norm).build(len(counts))  # type: ignore[arg-type]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=2e-4)
        self.x, self.y, self.counts = x, y, counts

    def losses(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """The closure of the batch."""
        return F.cross_entropy(self.model(self.x[rows]), self.y[rows], reduction="none")

    def plain(self) -> None:
        """The step of a plain loop."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()

    def step(self, case: Case) -> Callable[[], None]:
        """The step of a method."""
        flat = SharpnessAware(self.model, case.method, self.counts)

        def run() -> None:
            self.optimizer.zero_grad()
            flat.backward(self.losses, self.y, case.progress, step=case.step)
            self.optimizer.step()

        return run

    def parts(self) -> tuple[float, float, float]:
        """Seconds of a forward, a backward and an optimiser's step."""
        times = [time.process_time()]
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.y)
        times.append(time.process_time())
        loss.backward()
        times.append(time.process_time())
        self.optimizer.step()
        times.append(time.process_time())
        forward, backward, rest = (b - a for a, b in pairwise(times))
        return forward, backward, rest


def seconds(run: Callable[[], None]) -> float:
    """Of one call, of the processor's time, which others on the machine hardly change."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


Ratio = tuple[Case, float, tuple[float, float], float]  # median and quartiles of its ratio to a plain step, its bound


def rows(*, classes: int = 100, batch: int = 128, rounds: int = 15, only: str = "") -> tuple[list[Ratio], list[str]]:
    """Every case whose name contains `only`, beside what was found of the parts of a plain step."""
    counts = torch.tensor([int(500 * 0.01 ** (j / (classes - 1))) for j in range(classes)])
    generator = torch.Generator().manual_seed(0)
    y = torch.multinomial(counts.float(), batch, True, generator=generator)
    x = torch.randn(batch, 3, 32, 32, generator=generator)
    chosen = [case for case in cases(float((counts < 100)[y].float().mean())) if only in case.name]
    benches = {norm: Bench(norm, x, y, counts) for norm in dict.fromkeys(case.norm for case in chosen)}
    steps = {case.name: benches[case.norm].step(case) for case in chosen}
    taken: dict[str, list[float]] = {name: [] for name in [*steps, *benches, "data"]}
    parts: dict[str, list[tuple[float, float, float]]] = {norm: [] for norm in benches}

    images = torch.randint(0, 256, (10847, 3, 32, 32), dtype=torch.uint8)
    half = Tensors(images, torch.zeros(len(images), dtype=torch.int64), (0.5,) * 3, (0.25,) * 3)
    draw = Draw(torch.arange(batch), torch.arange(batch))
    for i in range(rounds + 2):
        for norm, bench in benches.items():
            parts[norm].append(bench.parts())
            taken[norm].append(seconds(bench.plain))
        for name, step in steps.items():
            taken[name].append(seconds(step))
        taken["data"].append(seconds(lambda: list(half.batches([draw], augment=(Crop(), Flip())))))
        if i == 1:  # warmed up
            taken, parts = {name: [] for name in taken}, {norm: [] for norm in parts}

    said, found = [], []
    for norm in benches:
        f, b, rest = (statistics.median(p) for p in zip(*parts[norm], strict=True))
        share = statistics.median(d / p for d, p in zip(taken["data"], taken[norm], strict=True))
        said.append(
            f"{norm} norm: forward {1e3 * f:.0f} ms, backward {1e3 * b:.0f} ms, optimiser {1e3 * rest:.1f} ms; "
            f"data (crop, flip, normalise) {100 * share:.1f} % of a plain step"
        )
    for case in chosen:
        f, b, rest = (statistics.median(p) for p in zip(*parts[case.norm], strict=True))
        bound = (case.forwards * f + case.backwards * b + rest) / (f + b + rest)
        ratios = sorted(t / p for t, p in zip(taken[case.name], taken[case.norm], strict=True))
        quartiles = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        found.append((case, statistics.median(ratios), quartiles, bound))
    return found, said


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds; a row is their median")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found, said = rows(classes=args.classes, batch=args.batch, rounds=args.rounds, only=args.only)
    print(f"ResNet-32, batch {args.batch}, {args.classes} classes, one CPU thread, torch {torch.__version__}")
    print(*said, sep="\n", end="\n\n")
    print("| step | passes | bound | measured | spread | measured / bound |\n| --- | --- | --- | --- | --- | --- |")
    for case, middle, (low, high), bound in found:
        passes = f"{case.forwards:.3g}F + {case.backwards:.3g}B"
        print(f"| {case.name} | {passes} | {bound:.2f} | {middle:.2f} | {low:.2f}…{high:.2f} | {middle / bound:.3f} |")


if __name__ == "__main__":
    main()
