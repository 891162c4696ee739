"""Which trials there are, who does them, and what came of them: an Optuna study in one file, `study.log`.

Every look at the file is taken alone, under the lock of the sweep's folder (lock.py), and so is the decision who does
what: two processes cannot begin one trial twice. A trial's own lock says whether whoever began it is alive; if not, the
next one who asks goes on with it. A process can be killed anywhere: locks of the dead are taken over, and a line that
was cut off is removed before the next one is written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import runs
from .accuracy import Mean, accuracy
from .settings import Sweep
from .space import Point, Values, points
from .trial import Judged, answer

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

STUDY, SETTINGS, TRIALS, BROKEN = "study.log", "sweep.yaml", "trials", "broke-off.json"
BUSY = -1  # the number of no trial: all that are left are being done by others


@dataclass(frozen=True)
class Tried:
    """A trial that is done."""

    number: int  # from 0
    point: Point  # what it tried
    score: Mean | None  # None: training broke off at numbers that are not finite
    seconds: float  # of training, over all seeds
    said: tuple[str, ...]  # warnings, or where it broke off


@contextmanager
def alone(folder: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until no other process is alone with the folder, and keep others waiting meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    told = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(runs.locked(folder))
                break
            except ValueError:
                if not told:
                    waiting()
                told = True
                time.sleep(0.05)
        yield


def place(folder: Path, number: int) -> Path:
    """Where a trial's log, checkpoint and answers are; no name of a run directory."""
    return folder / TRIALS / f"trial-{number}"


def opened(folder: Path) -> Study:
    """The study in a folder, new if there is none. For one who is alone."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / STUDY
    if path.exists():
        with path.open("r+b") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
    lock = path.with_name(f"{STUDY}.lock")  # Optuna's own, which who is alone needs not wait for
    if os.path.lexists(lock):
        lock.unlink()
    storage = JournalStorage(JournalFileBackend(str(path)))
    try:
        study = optuna.load_study(
            storage=storage, study_name="sweep"
        )  # which writes nothing, as whoever waits looks often
    except KeyError:
        study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize")
    study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)))
    return study


def started(folder: Path, sweep: Sweep) -> None:
    """Begin a sweep in a folder, or go on with it. ValueError if another sweep is there."""
    with alone(folder):
        path = folder / SETTINGS
        if path.exists() and (differ := sweep.differs(path.read_text())):
            raise ValueError(
                f"{folder} holds a sweep with another {', '.join(differ)} ({SETTINGS} there says which): "
                "choose another --out, or remove the folder"
            )
        runs.write_text(path, sweep.spelled())
        opened(folder)


def ask(folder: Path, sweep: Sweep, held: ExitStack) -> tuple[int, Point] | None:
    """A trial to be done, its lock entered into `held`: an interrupted one, or a new one; None: all are done.

    (BUSY, {}) while others do what is left.
    """
    from optuna.trial import TrialState

    with alone(folder):
        study, busy, begun = opened(folder), False, 0
        for trial in study.get_trials(deepcopy=False):
            point = trial.user_attrs.get("point")
            if point is None:  # its process was killed before it knew what to try
                if trial.state == TrialState.RUNNING:
                    study.tell(trial.number, state=TrialState.FAIL)
            elif trial.state == TrialState.RUNNING:
                begun += 1
                if locked(place(folder, trial.number), held):
                    return trial.number, point
                busy = True
            elif trial.state != TrialState.WAITING:
                begun += 1
        for _ in range(begun, sweep.trials):
            number, point = added(study, sweep)
            if (twin := done_before(study, point)) is None:
                locked(place(folder, number), held)
                return number, point
            study.tell(number, twin.values, state=twin.state)
        return (BUSY, {}) if busy else None


def done_before(study: Study, point: Point) -> FrozenTrial | None:
    """The trial that is done of a point which was drawn again: the same seeds would give the same answers."""
    there = study.get_trials(deepcopy=False)
    return next((t for t in there if t.state.is_finished() and t.user_attrs.get("point") == point), None)


def locked(folder: Path, held: ExitStack) -> bool:
    """Whether nobody else has the folder; then it is ours until `held` is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held.enter_context(runs.locked(folder))
    except ValueError:
        return False
    return True


def added(study: Study, sweep: Sweep) -> tuple[int, Point]:
    """A new trial of the study: the next point of a grid, or one drawn where earlier ones did well (TPE)."""
    axes = sweep.axes
    if sweep.grid:
        there = [t.user_attrs.get("point") for t in study.get_trials(deepcopy=False)]
        missing = next((p for p in points(axes) if p not in there), None)
        if missing is not None:
            value = {a.place: float(missing[a.place]) if a.numeric else missing[a.place] for a in axes}
            study.enqueue_trial(value, user_attrs={"point": missing})
    trial = study.ask({a.place: a.listed() if sweep.grid and isinstance(a, Values) else a.distribution() for a in axes})
    point = trial.user_attrs.get("point") or {a.place: a.text(trial.params[a.place]) for a in axes}
    trial.set_user_attr("point", point)
    return trial.number, point


def tell(folder: Path, sweep: Sweep, number: int, answers: list[Judged] | str) -> None:
    """Write down what came of a trial: the answers of its seeds, or where training broke off."""
    from optuna.trial import TrialState

    with alone(folder):
        study = opened(folder)
        if isinstance(answers, str):
            runs.write_json(place(folder, number) / BROKEN, {"said": answers})
            study.tell(number, state=TrialState.PRUNED)  # which TPE keeps away from
        else:
            study.tell(number, scored(sweep, answers).value)


def scored(sweep: Sweep, answers: list[Judged]) -> Mean:
    """The score of a trial from its answers."""
    each = [accuracy(j.right, j.images, sweep.score, j.groups.get(sweep.score, range(len(j.images)))) for j in answers]
    return Mean(tuple(each))


def left(folder: Path, sweep: Sweep) -> int:
    """How many trials are not done."""
    with alone(folder):
        trials = opened(folder).get_trials(deepcopy=False)
    return sweep.trials - sum(t.state.is_finished() and "point" in t.user_attrs for t in trials)


def done(folder: Path, sweep: Sweep) -> list[Tried]:
    """Every point whose trial is done, in the order in which they began."""
    with alone(folder):
        trials = opened(folder).get_trials(deepcopy=False)
    first: dict[str, FrozenTrial] = {}  # of each point
    for trial in trials:
        if trial.state.is_finished() and "point" in trial.user_attrs:
            first.setdefault(str(trial.user_attrs["point"]), trial)
    return [tried(place(folder, t.number), t.number, t.user_attrs["point"], sweep) for t in first.values()]


def tried(folder: Path, number: int, point: Point, sweep: Sweep) -> Tried:
    """What is written of a trial that is done. ValueError for one whose folder is gone."""
    try:
        if (folder / BROKEN).exists():
            return Tried(number, point, None, 0.0, (json.loads((folder / BROKEN).read_text())["said"],))
        answers = [answer(folder / f"seed-{seed}") for seed in sweep.seeds]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} does not hold its trial any more ({error}): remove the sweep's folder") from error
    said = tuple(dict.fromkeys(w for j in answers for w in j.warnings))
    return Tried(number, point, scored(sweep, answers), sum(j.seconds for j in answers), said)
