"""Several runs: recipes times seeds, one after the other or some at a time, with their progress on the screen."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import runs
from .checkpoint import Interrupted, Place, stopping
from .devices import refuse_absent
from .experiment import refuse_taken, run
from .recipe import Recipe, from_tree, to_tree

MINUTE = 60.0  # seconds between lines of progress in a file
PATIENCE = 60.0  # seconds that an orphan has for its last step and checkpoint
PEER = re.compile(r"gloo|nccl|peer|TCPStore", re.IGNORECASE)  # what torch's errors name when another process is gone


class Job(NamedTuple):
    """One recipe with one seed."""

    label: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """`recipe/seed`."""
        return f"{self.label}/{self.seed}"

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(s.epochs for s in self.recipe.stages)


def run_all(
    recipes: Mapping[str, Recipe],
    seeds: Sequence[int],
    *,
    jobs: int,
    out: Path,
    device: str | None,
    root: Path,
    resume: bool,
    watch: bool = False,
) -> list[Path]:
    """Run every recipe with every seed; returns the run directories, in the main process alone.

    With several jobs a failing run does not stop the others; its message is raised at the end.

    Raises ValueError, before anything is trained, for a device that is not there (`refuse_absent`) and where a run
    directory is taken (`refuse_taken`), and ConnectionError where another process that shares the steps has ended.
    """
    todo = [Job(label, seed, recipe) for seed in seeds for label, recipe in recipes.items()]
    how = {"out": out, "device": device, "root": root, "resume": resume, "watch": watch}
    main = int(os.environ.get("RANK", "0")) == 0
    refuse_absent(device)
    for job in todo:
        refuse_taken(job.recipe, out=out, label=job.label, seed=job.seed, resume=resume)
    with bar(disable=not main) as progress:
        task = progress.add_task("epochs of all runs", total=sum(j.epochs for j in todo), said="")
        work = one_by_one if jobs == 1 else some_at_a_time
        try:
            folders = work(todo, jobs, how, progress, task)
        except RuntimeError as error:
            if not dist.is_initialized() or not PEER.search(f"{type(error).__name__} {error}"):
                raise
            if dist.get_backend() == "gloo":
                dist.destroy_process_group()  # another backend might wait for the one that is gone
            reason = str(error).partition("\n")[0]
            raise ConnectionError(
                "another process of this job has ended, so this one stops too; the same command with --resume goes on "
                f"from the last checkpoint, with any number of processes ({reason})"
            ) from error
    if dist.is_initialized():
        dist.destroy_process_group()  # its threads may abort a process that ends with them running
    return folders if main else []


def bar(*, disable: bool = False) -> Progress:
    """What is done of all there is, and, in the field `said`, what is being done; on the error output.

    Where that is no terminal but a file, it is a line a minute.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[said]}"),
    )  # fmt: skip
    screen = Console(stderr=True)
    if screen.is_terminal:
        return Progress(*columns, console=screen, disable=disable)
    return Lines(*columns, console=Console(stderr=True, width=200), disable=disable)


class Lines(Progress):
    """Progress for a log file."""

    written = -math.inf  # when the last line was, by the monotonic clock

    def update(self, task_id: Any, **fields: Any) -> None:
        """See `Progress.update`."""
        super().update(task_id, **fields)
        if not self.disable and time.monotonic() - self.written >= MINUTE:
            self.written = time.monotonic()
            self.console.print(self.make_tasks_table(self.tasks))


def one_by_one(todo: Sequence[Job], jobs: int, how: dict[str, Any], progress: Progress, task: Any) -> list[Path]:
    """In this process."""
    folders, done = [], 0
    for job in todo:

        def told(row: dict[str, Any], job: Job = job, done: int = done) -> None:
            said = f"{job.name}  loss {row['loss']:.3f}, train {100 * row['accuracy']:.1f} %"
            progress.update(task, completed=done + row["epoch"] + 1, said=said)

        def begun(place: Place, steps: int, job: Job = job) -> None:
            if steps > 20:
                progress.update(task, said=f"{job.name}  epoch {place.epoch}, step {place.step} of {steps}")

        folders.append(run(job.recipe, seed=job.seed, label=job.label, on_epoch=told, on_step=begun, **how))
        done += job.epochs
        progress.update(task, completed=done)
    return folders


def some_at_a_time(todo: Sequence[Job], jobs: int, how: dict[str, Any], progress: Progress, task: Any) -> list[Path]:
    """In processes that share the cores; progress is read off their logs. SIGTERM and SIGINT stop all of them."""
    waiting, running, failed = list(todo), dict[str, Worker](), list[str]()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with stopping() as stop:
        while waiting or running:
            while waiting and len(running) < jobs:
                job = waiting.pop(0)
                told = {"seed": job.seed, "label": job.label, **how}
                running[job.name] = start(run_tree, to_tree(job.recipe), threads=threads, **told)
            wait([w.process.sentinel for w in running.values()], timeout=0.5)
            if stop.signal:
                for worker in running.values():
                    worker.process.terminate()
                for worker in running.values():
                    worker.process.join()
                raise Interrupted(128 + stop.signal)
            for name in [n for n, w in running.items() if not w.process.is_alive()]:
                process, said = running.pop(name)
                if process.exitcode:
                    failed.append(f"{name}: {heard(said) or f'ended with code {process.exitcode}'}")
            epochs = {j.name: min(runs.epochs_logged(how["out"] / j.name), j.epochs) for j in todo}
            progress.update(task, completed=sum(epochs.values()), said=", ".join(running))
    if failed:
        raise ValueError("; ".join(failed))
    return [how["out"] / j.name for j in todo]


class Worker(NamedTuple):
    """A process that trains, and where it says what went wrong."""

    process: BaseProcess
    said: Connection


def start(target: Callable[..., None], *what: Any, **how: Any) -> Worker:
    """Begin a function in a process of its own, forked from one that has imported torch already where there is fork.

    It is called with `what`, with `how`, and with `tell`, the end of a pipe for what went wrong.
    """
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(kind)
    context.set_forkserver_preload([target.__module__])
    said, tell = context.Pipe(duplex=False)
    process = context.Process(target=target, args=what, kwargs={"tell": tell, **how})
    if kind == "forkserver":
        resource_tracker.ensure_running()  # by itself, since it lets signals through when it has begun
    with held_back(signal.SIGINT):
        process.start()
    tell.close()
    return Worker(process, said)


@contextmanager
def held_back(number: signal.Signals) -> Iterator[None]:
    """A signal that comes meanwhile comes later, and processes begun inside never see it: Ctrl-C is their parent's.

    Else it would be a traceback of whichever was just importing. Where there are no masks of signals, nothing is done.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heard(said: Connection) -> str | None:
    """What a process told before it ended, if it did."""
    try:
        return str(said.recv())
    except EOFError:
        return None


def run_tree(tree: Any, *, threads: int, tell: Connection, **how: Any) -> None:
    """A run from a recipe that travelled as plain values."""
    with apart(threads, tell):
        run(from_tree(tree), workers=threads, **how)


@contextmanager
def apart(threads: int, tell: Connection) -> Iterator[None]:
    """What a process that was begun by `start` does: it ends with its parent, and tells the user's mistakes."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        yield
    except (ValueError, FloatingPointError, OSError, ImportError, MemoryError) as error:
        tell.send(str(error))
        raise SystemExit(2) from error


def end_with_parent() -> None:
    """Wait for the process that began this one; when it dies, as by `kill -9`, stop here with a checkpoint as well.

    The end of its pipe tells, on every system. A step that takes longer than the patience is given up.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(128 + signal.SIGTERM)
