"""Every benchmark as one table, with medians and quartiles: `make bench`. Processor time, on one thread.

Long ones have more to say on their own: step.py, training.py, streaming.py, curvature.py, scaling.py.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import step
import streaming
import torch
import training

from flattail.data import Files

Line = tuple[str, str, float, tuple[float, float], str]  # where, what, median, quartiles, what to compare it with


def steps(rounds: int) -> Iterator[Line]:
    """Ratios to a plain step."""
    for classes, batch, only in ((100, 128, ""), (1000, 256, "CC-SAM, head")):
        found, _ = step.rows(classes=classes, batch=batch, rounds=rounds, only=only)
        where = f"step, {classes} classes, batch {batch}"
        for case, middle, quartiles, bound in found:
            passes = f"{case.forwards:.3g}F + {case.backwards:.3g}B"
            yield where, case.name, middle, quartiles, f"times a plain step; {passes} allow {bound:.2f}"


def loops(rounds: int) -> Iterator[Line]:
    """Images per second of training."""
    for name, rate, quartiles, ratio in training.rows("resnet32", 32, steps=4, rounds=rounds):
        yield "training, ResNet-32", name, rate, quartiles, f"images/s; {ratio:.2f} times the straightforward loop"


def streams(rounds: int) -> Iterator[Line]:
    """Images per second that a worker makes ready."""
    with tempfile.TemporaryDirectory() as folder:
        paths = streaming.grow(Path(folder), 256, 400, 300)
        half = Files(paths, torch.zeros(len(paths)).long(), jitter=0.4)
        pictures = streaming.plain(Path(folder), 64, 0, 0.4, "cpu").dataset
        for name, rate, quartiles, ratio in streaming.rows(pictures, half, 64, rounds):
            yield "streaming, 400x300 JPEG", name, rate, quartiles, f"images/s; {ratio:.2f} times ImageFolder"


def commands(rounds: int) -> Iterator[Line]:
    """Seconds of processor time until a command has said what it can do."""
    for words in (["--help"], ["train", "--help"], ["list", "methods"]):
        taken = []
        for _ in range(rounds + 1):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-m", "flattail", *words], check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        low, middle, high = statistics.quantiles(taken[1:], n=4)
        yield "command line", f"flattail {' '.join(words)}", middle, (low, high), "seconds"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="interleaved; a row is their median")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one CPU thread, medians of {rounds} rounds, quartiles\n")
    print("| where | what | median | spread | |\n| --- | --- | ---: | ---: | --- |")
    for part in (commands, streams, loops, steps):
        for where, what, middle, (low, high), beside in part(rounds):
            digits = 0 if middle >= 100 else 2
            said = f"{middle:.{digits}f} | {low:.{digits}f}…{high:.{digits}f}"
            print(f"| {where} | {what} | {said} | {beside} |", flush=True)


if __name__ == "__main__":
    main()
