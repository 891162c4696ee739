"""Several runs: one after the other or some at a time, equal results, and failures that do not stop the others."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file
from small import DIGITS, digits

from flattail import jobs as jobs_
from flattail import runs
from flattail.experiment import run
from flattail.jobs import Job, run_all
from flattail.recipe import from_tree, read


@dataclasses.dataclass(frozen=True)
class Broken:
    """Data with a bug."""

    def load(self, root):
        return {}["nothing"]


def all_of(recipes, out, *, seeds=(0,), jobs=1, resume=False, root=Path("data")):
    return run_all(recipes, seeds, jobs=jobs, out=out, device="cpu", root=root, resume=resume)


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_recipes_times_seeds_in_order_and_again_for_nothing(tmp_path, monkeypatch):
    recipes = {"a/x": digits(), "b/y": digits(epochs=2)}
    folders = all_of(recipes, tmp_path, seeds=(0, 3))
    assert folders == [tmp_path / n for n in ("a/x/0", "b/y/0", "a/x/3", "b/y/3")]
    assert all(runs.read(f).finished for f in folders)
    monkeypatch.setattr("flattail.experiment.fit", lambda *a, **k: pytest.fail("a finished run was trained again"))
    assert all_of(recipes, tmp_path, seeds=(0, 3)) == folders
    assert Job("a/x", 3, digits()).name == "a/x/3" and Job("b", 0, recipes["b/y"]).epochs == 2


def test_two_at_a_time_give_the_same_and_a_failure_stops_nobody(tmp_path):
    good = {"good": digits(epochs=2, method="sam"), "other": digits()}
    bad = from_tree(DIGITS | {"data": "npz:absent.npz", "stages": [{"epochs": 1}]})
    alone = all_of(good, tmp_path / "alone")
    with pytest.raises(ValueError, match=r"bad/0: .*absent\.npz: no such file") as said:
        all_of({"bad": bad} | good, tmp_path / "both", jobs=2)
    assert "good" not in str(said.value) and not (tmp_path / "both" / "bad").exists()
    for folder in alone:
        twin = tmp_path / "both" / folder.relative_to(tmp_path / "alone")
        assert scores(twin)["groups"] == scores(folder)["groups"] and scores(twin)["epoch"] == scores(folder)["epoch"]
        weights = [load_file(f / "model.safetensors") for f in (twin, folder)]
        assert all((weights[0][n] - weights[1][n]).abs().max() < 1e-3 for n in weights[0])  # threads may differ


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_directory_that_is_taken_is_told_before_anything_is_trained(tmp_path, jobs):
    all_of({"taken": digits()}, tmp_path)
    recipes = {"first": digits(), "taken": digits(epochs=2)}
    with pytest.raises(ValueError, match="0 already holds another recipe"):
        all_of(recipes, tmp_path, jobs=jobs)
    (tmp_path / "taken" / "0" / "scores.json").unlink()
    with pytest.raises(ValueError, match="0 holds an unfinished run: add --resume"):
        all_of(recipes | {"taken": digits()}, tmp_path, jobs=jobs)
    assert not (tmp_path / "first").exists()


def test_an_error_of_ours_is_no_message(tmp_path):
    """A bug in a worker leaves its traceback and its exit code, not a sentence that blames the user."""
    broken = from_tree(DIGITS | {"data": {"name": f"{__name__}:Broken"}, "stages": [{"epochs": 1}]})
    with pytest.raises(ValueError, match=r"^r/0: ended with code 1$"):
        all_of({"r": broken}, tmp_path, jobs=2)


def test_only_the_main_process_returns_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_, "run", lambda *a, **k: tmp_path)
    assert all_of({"a": digits()}, tmp_path) == [tmp_path]
    monkeypatch.setenv("RANK", "1")
    assert all_of({"a": digits()}, tmp_path) == []


def started(tmp_path, names, epochs=400, **how):
    """`flattail train` on recipes of these names, side by side, and their run directories."""
    for name in names:
        tree = DIGITS | {"stages": [{"epochs": epochs, "method": "sam"}]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "flattail", "train", *(str(tmp_path / f"{n}.yaml") for n in names)]
    command += [
        "--jobs",
        str(max(2, os.cpu_count())),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]  # a thread each
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **how
    )
    return process, [tmp_path / "out" / tmp_path.name / n / "0" for n in names]


def until(true, seconds=120):
    """Wait for it; whether it came."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def test_the_workers_of_a_killed_parent_stop_with_a_checkpoint_and_their_runs_go_on(tmp_path):
    process, folders = started(tmp_path, "ab")
    assert until(lambda: all(runs.epochs_logged(f) for f in folders))
    workers = [json.loads(path.read_text())["pid"] for f in folders for path in f.glob(".lock.*")]
    assert len(workers) == 2 and process.pid not in workers and all(map(psutil.pid_exists, workers))
    with pytest.raises(ValueError, match=rf"is being trained by process {workers[0]} on this machine"):
        run(read(tmp_path / "a.yaml"), out=tmp_path / "out", label=f"{tmp_path.name}/a", device="cpu", resume=True)
    process.kill()
    process.wait()
    assert until(lambda: not any(map(psutil.pid_exists, workers)), 30), "orphans go on training"
    assert all((f / "checkpoint.pt").exists() and not list(f.glob(".lock.*")) for f in folders)
    done = [runs.epochs_logged(f) for f in folders]
    time.sleep(0.5)
    assert [runs.epochs_logged(f) for f in folders] == done
    process.stderr.close()


def test_killed_with_its_workers_at_some_moment_it_goes_on_to_the_same_weights(tmp_path):
    """A power cut: parent and workers die together, at a moment that a test cannot choose exactly."""
    wait = 1.5 * random.random()
    process, folders = started(tmp_path, "a", epochs=12)
    assert until(lambda: list(folders[0].glob(".lock.*")) or process.poll() is not None)
    time.sleep(wait)
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.kill()
    process.communicate()
    all_of({f"{tmp_path.name}/a": read(tmp_path / "a.yaml")}, tmp_path / "out", resume=True)
    twin = run(read(tmp_path / "a.yaml"), out=tmp_path / "twin", label="a", device="cpu")
    theirs, ours = load_file(folders[0] / "model.safetensors"), load_file(twin / "model.safetensors")
    assert all((theirs[n] - ours[n]).abs().max() == 0 for n in ours), f"killed after {wait} s"
    assert [row["epoch"] for row in runs.read_log(folders[0])] == list(range(12))
    assert not list(folders[0].glob(".*"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_sigterm_stops_every_run_with_its_checkpoint_and_begins_no_other(tmp_path, jobs):
    for name in ("a", "b", "c"):
        tree = DIGITS | {"stages": [{"epochs": 400, "method": "sam"}]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "flattail", "train", *(str(tmp_path / f"{n}.yaml") for n in "abc")]
    command += ["--jobs", str(jobs), "--out", str(tmp_path / "out"), "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wanted = [tmp_path / "out" / tmp_path.name / n / "0" / "log.jsonl" for n in "abc"[:jobs]]
    deadline = time.monotonic() + 120
    while not all(log.exists() for log in wanted) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "stopped, with a checkpoint; the same command with --resume goes on" in said and "Traceback" not in said
    assert sorted(p.parent.parent.name for p in (tmp_path / "out").rglob("checkpoint.pt")) == list("abc"[:jobs])
    assert not (tmp_path / "out" / tmp_path.name / "c").exists()


def test_ctrl_c_while_the_workers_begin_is_told_once(tmp_path):
    process, _ = started(tmp_path, ["a", "b"], start_new_session=True)
    children = psutil.Process(process.pid).children
    until(lambda: any("forkserver" in " ".join(p.cmdline()) for p in children()))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group has it
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in said and "--resume goes on" in said, said


def test_progress_in_a_file_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(jobs_, "MINUTE", 0.2)
    with jobs_.bar() as progress:
        task = progress.add_task("epochs of all runs", total=400, said="")
        for done in range(400):
            time.sleep(0.001)
            progress.update(task, completed=done + 1, said=f"runs/a rather long name/{done}")
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) < 100 and all("epochs of all runs" in line for line in lines)
    assert "1/400" in lines[0] and "400/400" in lines[-1] and lines[-1].rstrip().endswith("runs/a rather long name/399")
