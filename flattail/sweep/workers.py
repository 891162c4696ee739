"""Processes that do the trials of a sweep: this one, or some, and whoever gives the same command elsewhere."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .. import runs
from ..checkpoint import Interrupted
from ..data.loading import workers_here
from ..jobs import apart, bar, heard, start
from .ledger import BROKEN, BUSY, TRIALS, ask, left, place, tell
from .settings import Sweep, told
from .space import Point
from .trial import VALIDATION, Judged, validated

LOOK = 0.5  # seconds between looks at what others do


def all_done(folder: Path, sweep: Sweep, *, jobs: int, root: Path, device: str | None) -> None:
    """Return when every trial is done, by this process (one job), by several, or by others that share the folder.

    Raises:
        ValueError: what a trial could not be done for, which is the user's to mend; the same call goes on.
        Interrupted: after SIGTERM or SIGINT; the same call goes on.
    """
    with bar() as progress, leaving():
        task = progress.add_task("epochs of all trials", total=epochs(sweep), said="")

        def shown(said: str = "") -> None:
            progress.update(task, completed=logged(folder, sweep))
            if said:
                progress.update(task, said=said)

        some = max(min(jobs, left(folder, sweep)), 1)
        how: dict[str, Any] = {"root": root, "device": device, "workers": workers_here(some)}
        if some == 1:
            work(folder, sweep, on=shown, **how)
        else:
            several(folder, sweep, some, shown, how)
        progress.update(task, completed=epochs(sweep), said="done")


def work(folder: Path, sweep: Sweep, *, on: Callable[[str], None], **how: Any) -> None:
    """Do trials until there is none left to do, and none that others do; `how`: see `validated`."""
    while True:
        with ExitStack() as held:
            found = ask(folder, sweep, held)
            if found is None:
                return
            number, point = found
            if number == BUSY:
                on("others do the rest")
            else:
                on(f"trial {number}: {told(point)}")
                tell(folder, sweep, number, answers(place(folder, number), sweep, point, on, how))
        if number == BUSY:
            time.sleep(LOOK)


def answers(
    folder: Path, sweep: Sweep, point: Point, on: Callable[[str], None], how: dict[str, Any]
) -> list[Judged] | str:
    """What a trial's models answer to their validation images, seed by seed, or where training broke off."""
    found = []
    for seed in sweep.seeds:
        here = folder / f"seed-{seed}"
        try:
            found.append(validated(sweep.at(point), seed, here, on_epoch=lambda row: on(""), **how))
        except FloatingPointError as error:
            return f"seed {seed}: {error}"
    return found


def epochs(sweep: Sweep) -> int:
    """Of all trials and seeds, were they all as long as the recipe is."""
    return sweep.trials * len(sweep.seeds) * sum(s.epochs for s in sweep.recipe.stages)


def logged(folder: Path, sweep: Sweep) -> int:
    """Epochs that trials have behind them; a trial that is done counts whole, however long it was."""
    whole = sum(s.epochs for s in sweep.recipe.stages)
    total = 0
    for trial in (folder / TRIALS).glob("trial-*"):
        for seed in sweep.seeds:
            here = trial / f"seed-{seed}"
            over = (here / VALIDATION).exists() or (trial / BROKEN).exists()
            total += whole if over else min(whole, runs.epochs_logged(here))
    return total


@contextmanager
def leaving() -> Iterator[None]:
    """SIGTERM and SIGINT end what is inside wherever it is; training replaces this and writes a checkpoint first.

    Only the main thread can.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise Interrupted(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- several processes -------------------------------------------------------------------------------------


def several(folder: Path, sweep: Sweep, jobs: int, on: Callable[[str], None], how: dict[str, Any]) -> None:
    """Processes that share the cores; a failing one does not stop the others. SIGTERM and SIGINT stop all of them."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    workers = [start(work_apart, folder, sweep, threads=threads, **how) for _ in range(jobs)]
    on(f"{len(workers)} at a time")
    try:
        while alive := [w.process.sentinel for w in workers if w.process.is_alive()]:
            wait(alive, timeout=LOOK)
            on("")
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
    said = [heard(w.said) or f"a worker ended with code {w.process.exitcode}" for w in workers if w.process.exitcode]
    if said:
        raise ValueError("; ".join(dict.fromkeys(said)))


def work_apart(folder: Path, sweep: Sweep, *, threads: int, tell: Connection, **how: Any) -> None:
    """`work` in a process of its own."""
    with apart(threads, tell), leaving():
        work(folder, sweep, on=lambda said: None, **how)
