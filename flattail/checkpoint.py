"""A checkpoint: tensors and a place, written whole or not at all; the one before; and the signals that ask for one."""

from __future__ import annotations

import signal
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .runs import replacing


class Place(NamedTuple):
    """Where training stands: the step to be done next."""

    stage: int = 0
    epoch: int = 0  # of the stage
    step: int = 0  # of the epoch


@dataclass
class Meters:
    """Sums over the steps of an epoch, on the device."""

    loss: Tensor | float = 0.0
    right: Tensor | float = 0.0
    images: int = 0
    seconds: float = 0.0
    skipped: int = 0  # steps left out, of which nothing is in the other sums


@dataclass
class State:
    """All that a checkpoint holds beside model, optimiser, and what else a stage remembers."""

    place: Place = Place()
    steps: int = 0  # taken in the whole run
    meters: Meters = field(default_factory=Meters)
    report: dict[str, Any] | None = None  # of the epoch that was cut short
    started: int = 0  # stages whose start is done
    found: dict[int, dict[str, float]] = field(default_factory=dict)  # by starts, of stages that change the head
    wall: float = 0.0  # seconds in all processes that trained one after the other
    unread: dict[str, str] = field(default_factory=dict)  # training images skipped as unreadable, and why
    best: float = float("-inf")
    best_epoch: int = -1
    best_model: dict[str, Tensor] | None = None


def save(
    path: Path,
    model: nn.Module,
    tensors: dict[str, Any],
    accelerator: Accelerator,
    state: State,
    identity: str,
    fingerprint: str,
) -> None:
    """Write a checkpoint, with what the stage in progress remembers; the one before is kept, whatever happens."""
    if not accelerator.is_main_process:
        return
    content = {
        "identity": identity,
        "fingerprint": fingerprint,
        "model": model.state_dict(),
        "stage": tensors,
        "threads": torch.get_num_threads(),
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        "state": vars(state) | {"place": tuple(state.place), "meters": vars(state.meters)},
    }
    with replacing(path) as partial:
        with partial.open("wb") as file:
            torch.save(content, file)
        if path.exists():
            path.replace(previous(path))


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at a path is."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove(path: Path) -> None:
    """Both checkpoints of a run that is finished."""
    for each in (path, previous(path)):
        each.unlink(missing_ok=True)


def load(path: Path | None, identity: str, fingerprint: str) -> tuple[dict[str, Any], State] | None:
    """What a checkpoint holds, or None where there is none; of a damaged one, with a warning, the one before.

    Raises:
        ValueError: where both are damaged, or one is of another recipe, of other images, or of an older flattail.
    """
    if path is None or not any(p.exists() for p in (path, previous(path))):
        return None
    try:
        saved, state = read(path)
    except Exception as error:
        if not previous(path).exists():
            raise ValueError(f"{path} is no checkpoint, or is damaged: remove it to start over ({error})") from error
        path, newer, why = previous(path), path, str(error)
        try:
            saved, state = read(path)
        except Exception as again:
            raise ValueError(
                f"{newer} is no checkpoint, or is damaged: remove it to start over, with {path.name}, which is damaged "
                f"as well ({why}; {again})"
            ) from again
        warnings.warn(
            f"{newer} is damaged or gone ({why}): going on from {path.name}, at stage {state.place.stage}, "
            f"epoch {state.place.epoch}, step {state.place.step}",
            stacklevel=3,
        )
    threads = saved["threads"]
    if saved["identity"] != identity:
        raise ValueError(f"{path} is a checkpoint of another recipe: use another --out, or remove it to start over")
    if "fingerprint" not in saved:
        raise ValueError(f"{path} is a checkpoint of an older flattail: finish the run with that, or remove it")
    if saved["fingerprint"] != fingerprint:
        raise ValueError(f"{path} was trained on other images than those here: bring them back, or remove it")
    if threads != (now := torch.get_num_threads()):
        warnings.warn(
            f"{path} was written with {threads} threads, and this process has {now}: bit for bit the same it goes on "
            f"only with as many, e.g. OMP_NUM_THREADS={threads}",
            stacklevel=3,
        )
    return saved, state


def read(path: Path) -> tuple[dict[str, Any], State]:
    """A whole checkpoint; any exception for what is none. Tensors and plain values only: no code in it is run."""
    with zipfile.ZipFile(path) as records:
        if torn := records.testzip():  # torch itself compares no checksums
            raise ValueError(f"the checksum of {torn} is wrong")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    plain = saved["state"]
    return saved, State(**plain | {"place": Place(*plain["place"]), "meters": Meters(**plain["meters"])})


def refuse_apart(place: Place, accelerator: Accelerator) -> None:
    """Raise ValueError, in all processes, where they would go on from different places."""
    mine = torch.tensor([place], device=accelerator.device)
    if bool((accelerator.gather(mine) != mine).any()):
        raise ValueError(
            "the processes found different checkpoints, or some found none: put --out on a file system that all nodes "
            "share"
        )


class Interrupted(SystemExit):
    """SIGTERM or SIGINT came: a checkpoint was written, and the process ends with 128 and the signal's number."""


class Stop:
    """Which signal asked to stop, if one did."""

    signal: int = 0
    since: float = 0.0

    def __call__(self, number: int, frame: Any) -> None:
        """Take note, so that the next step is not begun; asked again after two seconds, end the process at once."""
        if self.signal and time.monotonic() - self.since > 2:
            raise SystemExit(128 + number)
        self.signal, self.since = self.signal or number, self.since or time.monotonic()

    def agreed(self, accelerator: Accelerator, step: int) -> int:
        """The signal to stop for before this step, or 0; processes ask each other at every tenth step."""
        if accelerator.num_processes == 1:
            return self.signal
        if step % 10:
            return 0
        asked = torch.zeros(accelerator.num_processes, device=accelerator.device)
        asked[accelerator.process_index] = self.signal
        return int(accelerator.reduce(asked).max())


@contextmanager
def stopping() -> Iterator[Stop]:
    """SIGTERM and SIGINT are noted inside; only the main thread can."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
