"""Several runs: recipes times seeds, one after the other or some at a time, with their progress on the screen."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import runs
from .checkpoint import Place
from .experiment import run
from .recipe import Recipe, from_tree, to_tree


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
) -> list[Path]:
    """Run every recipe with every seed; returns the run directories.

    With several jobs a failing run does not stop the others; its message is raised at the end.
    """
    todo = [Job(label, seed, recipe) for seed in seeds for label, recipe in recipes.items()]
    how = {"out": out, "device": device, "root": root, "resume": resume}
    main = int(os.environ.get("RANK", "0")) == 0
    columns = (
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, disable=not main) as progress:
        task = progress.add_task("epochs of all runs", total=sum(j.epochs for j in todo), said="")
        work = one_by_one if jobs == 1 else some_at_a_time
        return work(todo, jobs, how, progress, task)


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
    """In worker processes that share the cores; progress is read off their logs."""
    folders: dict[str, Path] = {}
    failed: list[str] = []
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    )
    with pool:
        waiting: dict[Future[Path], Job] = {
            pool.submit(run_tree, to_tree(j.recipe), seed=j.seed, label=j.label, **how): j for j in todo
        }
        by_name = {j.name: j for j in todo}
        try:
            while waiting:
                ready, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ready:
                    job = waiting.pop(future)
                    try:
                        folders[job.name] = future.result()
                    except Exception as error:
                        failed.append(f"{job.name}: {error}")
                epochs = {n: j.epochs if n in folders else logged(how["out"] / n) for n, j in by_name.items()}
                now = [n for n, e in epochs.items() if 0 < e < by_name[n].epochs]
                progress.update(task, completed=sum(epochs.values()), said=", ".join(now[:3]))
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failed:
        raise ValueError("; ".join(failed))
    return [folders[j.name] for j in todo]


def run_tree(tree: Any, **how: Any) -> Path:
    """A run from a recipe that travelled to a worker as plain values."""
    return run(from_tree(tree), **how)


def logged(folder: Path) -> int:
    """Epochs in a run's log."""
    log = folder / runs.LOG
    return log.read_bytes().count(b"\n") if log.exists() else 0
