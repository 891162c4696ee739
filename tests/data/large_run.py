"""The Places-LT recipe on a small tree, to be killed: `python large_run.py ROOT OUT PROCESSES [--resume]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from forked import forked

from flattail.experiment import run
from flattail.recipe import read, shipped

SETS = (
    "model={name: resnet8, width: 4, norm: group}",  # no sample sees another of its batch
    "data.size=16",
    "data.broken=skip",
    *(f"stages.{i}.{change}" for i in (0, 1) for change in ("epochs=1", "batch=64")),
)
RECIPE = read(shipped() / "places-lt" / "ce-drw.yaml", SETS)


def trained(root: Path, out: Path, *, resume: bool = False, on_step=lambda place, steps: None) -> Path:
    """A whole run, with a checkpoint after every epoch."""
    return run(
        RECIPE, out=out, label="scenes", root=root, device="cpu", resume=resume, workers=1, every=0.0, on_step=on_step
    )


def told(place, steps):
    """A line for every step."""
    print(*place, flush=True)


if __name__ == "__main__":
    root, out, processes, *more = sys.argv[1:]
    forked(int(processes), lambda rank: trained(Path(root), Path(out), resume="--resume" in more, on_step=told))
