"""Processes that do the trials of a sweep: this one, or some, and whoever gives the same command elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import runs
from ..checkpoint import Interrupted
from ..jobs import Worker, end_with_parent, heard
from .ledger import BROKEN, BUSY, TRIALS, left, place, taken, told
from .settings import Sweep
from .settings import told as spelled
from .trial import VALIDATION, validated

LOOK = 0.5  # seconds between looks at what others do


def all_done(folder: Path, sweep: Sweep, *, jobs: int, root: Path, device: str | None) -> None:
    """Return when every trial is done, by this process (one job), by several, or by others that share the folder.

    Raises:
        ValueError: what a trial could not be done for, which is the user's to mend; the same call goes on.
        Interrupted: after SIGTERM or SIGINT; the same call goes on.
    """
    columns = (
        TextColumn("epochs of all trials"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[said]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress, leaving():
        task = progress.add_task("", total=epochs(sweep), said="")

        def shown(said: str = "") -> None:
            progress.update(task, completed=logged(folder, sweep))
            if said:
                progress.update(task, said=said)

        how: dict[str, Any] = {"root": root, "device": device}
        if (some := min(jobs, left(folder, sweep))) <= 1:
            work(folder, sweep, on=shown, **how)
        else:
            several(folder, sweep, some, shown, how)
        shown("done")


def work(folder: Path, sweep: Sweep, *, root: Path, device: str | None, on: Callable[[str], None]) -> None:
    """Do trials until there is none left to do, and none that others do."""
    while True:
        with ExitStack() as held:
            found = taken(folder, sweep, held)
            if found is None:
                return
            number, point = found
            if number == BUSY:
                on("others do the rest")
            else:
                on(f"trial {number}: {spelled(point)}")
                told(folder, sweep, number, answers(folder, sweep, number, point, root=root, device=device, on=on))
        if number == BUSY:
            time.sleep(LOOK)


def answers(
    folder: Path, sweep: Sweep, number: int, point: dict[str, str], *, root: Path, device: str | None,
    on: Callable[[str], None],
) -> Any:  # fmt: skip
    """What a trial's models answer to their validation images, seed by seed, or where training broke off."""
    found = []
    for seed in sweep.seeds:
        here = place(folder, number) / f"seed-{seed}"
        try:
            found.append(validated(sweep.at(point), seed, here, root=root, device=device, on_epoch=lambda row: on("")))
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
    workers = [begun(folder, sweep, threads, how) for _ in range(jobs)]
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


def begun(folder: Path, sweep: Sweep, threads: int, how: dict[str, Any]) -> Worker:
    """A process that works, forked from one that has imported torch already where there is fork."""
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(kind)
    context.set_forkserver_preload(["flattail.sweep.workers"])
    said, tell = context.Pipe(duplex=False)
    process = context.Process(target=work_apart, args=(folder, sweep, threads, tell), kwargs=how)
    process.start()
    tell.close()
    return Worker(process, said)


def work_apart(folder: Path, sweep: Sweep, threads: int, tell: Connection, **how: Any) -> None:
    """`work` in a process of its own; the user's mistakes are told, others are tracebacks."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        with leaving():
            work(folder, sweep, on=lambda said: None, **how)
    except (ValueError, OSError, ImportError) as error:
        tell.send(str(error))
        sys.exit(2)
