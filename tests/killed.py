"""Runs to be killed: `python killed.py OUT EVERY SECONDS [--resume]` by others, `python killed.py OUT SEED` by itself.

The first takes that many seconds for each step. The second trains a run to its end in OUT/whole, and the same one in
OUT/killed, which `kill -9` ends at twenty moments: any, between steps, and in the middle of writing a checkpoint. If
it comes to its end before, it is compared, and begun again.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from flattail import checkpoint as checkpoints
from flattail.experiment import run
from flattail.recipe import from_tree

RECIPE = {
    "data": "digits-lt",
    "model": {"name": "resnet8", "width": 4},
    "stages": [
        {"epochs": 2, "batch": 64, "method": "sam", "mix": "mixup:0.4", "augment": ["flip"], "schedule": "cosine"},
        {"epochs": 2, "batch": 64, "loss": {"name": "ce", "weights": "effective"}, "carry": True, "schedule": "cosine"},
        {"epochs": 1, "batch": 64, "method": "ccsam", "train": "head", "sampler": "balanced"},
    ],
}
LONGER = RECIPE | {"stages": [stage | {"epochs": 3, "batch": 140} for stage in RECIPE["stages"]]}
KILLS = 20


def same_runs(a, b):
    """Equal bit for bit: weights, scores, log, and what lies in the folders."""
    weights = [load_file(f / "model.safetensors") for f in (a, b)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    scores = [json.loads((f / "scores.json").read_text()) for f in (a, b)]
    assert scores[0] == scores[1]
    logs = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (a, b)]
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in rows] for rows in logs]
    assert strip[0] == strip[1]
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())


def die():
    """What nobody can catch."""
    os.kill(os.getpid(), signal.SIGKILL)


def trains(out, label, **how):
    """A child that does the run, or goes on with it; None is returned in the parent, by the number of its process."""
    if child := os.fork():
        return child
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        run(from_tree(LONGER), out=out, label=label, seed=1, device="cpu", every=0.0, resume=True, **how)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)


class Torn:
    """A file that dies with the process once so many pieces were written to it."""

    def __init__(self, file, pieces):
        self.file, self.left = file, pieces

    def write(self, piece):
        """A piece, half of it if it is the last."""
        self.left -= 1
        if self.left <= 0:
            self.file.write(bytes(piece)[: len(piece) // 2])
            self.file.flush()
            die()
        return self.file.write(piece)

    def __getattr__(self, name):
        return getattr(self.file, name)


def dies_in_a_step(steps):
    left = [steps]

    def on_step(place, n):
        left[0] -= 1
        if left[0] <= 0:
            die()

    return on_step


def dies_in_a_checkpoint(which, pieces):
    """In the middle of a file, or with `pieces` 0 between the renaming of the old one and that of the new."""
    save, rename, left = torch.save, Path.replace, [which]

    def torn(content, file):
        left[0] -= 1
        save(content, Torn(file, pieces) if left[0] == 0 and pieces else file)

    def renamed(self, target):
        done = rename(self, target)
        if left[0] <= 0 and not pieces and Path(target).name == "checkpoint.previous.pt":
            die()
        return done

    torch.save = checkpoints.torch.save = torn
    Path.replace = renamed


def killed_twenty_times(out, seed):
    rng, how = random.Random(seed), Counter()
    begun = time.monotonic()
    os.waitpid(trains(out, "whole"), 0)
    whole = time.monotonic() - begun
    while sum(how.values()) < KILLS:
        kind = ["any moment", "step", "checkpoint", "rename"][rng.choice((0, 0, 1, 2, 2, 3))]
        delay, steps, which = rng.uniform(0, whole / 6), rng.randint(1, 5), rng.randint(1, 2)
        pieces = rng.randint(1, 300) if kind == "checkpoint" else 0
        if kind == "any moment":
            child = trains(out, "killed")
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        elif kind == "step":
            child = trains(out, "killed", on_step=dies_in_a_step(steps))
        else:
            child = os.fork()
            if not child:
                dies_in_a_checkpoint(which, pieces)
                os._exit(os.waitstatus_to_exitcode(os.waitpid(trains(out, "killed"), 0)[1]) != -signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if (out / "killed" / "1" / "scores.json").exists():  # it was quicker: another one is begun
            same_runs(out / "killed" / "1", out / "whole" / "1")
            shutil.rmtree(out / "killed")
        if code == -signal.SIGKILL or (kind in ("checkpoint", "rename") and code == 0):
            how[kind] += 1
    code = os.waitstatus_to_exitcode(os.waitpid(trains(out, "killed"), 0)[1])
    print(f"ended with {code} after {sum(how.values())} kills: {dict(how)}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        killed_twenty_times(Path(sys.argv[1]), int(sys.argv[2]))
        raise SystemExit
    out, every, seconds, *more = sys.argv[1:]

    def slowly(place, steps):
        print(*place, flush=True)
        time.sleep(float(seconds))

    run(
        from_tree(RECIPE), out=Path(out), label="killed", seed=1, device="cpu", every=float(every),
        resume="--resume" in more, on_step=slowly,
    )  # fmt: skip
