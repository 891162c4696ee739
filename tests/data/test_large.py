"""Places-LT end to end without its images: a small tree of its classes, on one process and two, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from large_run import trained
from safetensors.torch import load_file
from trees import scaled_places

SCRIPT = str(Path(__file__).with_name("large_run.py"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The tree, with two images that cannot be read, and an uninterrupted run on it."""
    root = tmp_path_factory.mktemp("scenes")
    counts = scaled_places(root, 0.003, (24, 20))
    most = counts.index(max(counts))
    broken = (
        root / f"places365/train/scene{most}/00000001.jpg",
        root / "places365/val/scene7/Places365_val_00000007.jpg",
    )
    for file in broken:
        file.write_text("no image")
    torch.set_num_threads(1)
    return root, counts, broken, trained(root, root / "one")


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def of(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def killed(root, out, *, processes):
    """Start a run in a process group of its own, and kill all of it in the middle of the second epoch."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, SCRIPT, str(root), str(out), str(processes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,
    )
    said = []
    for line in process.stdout:
        said.append(line)
        if line.endswith("1 0 3\n"):
            break
    forked = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(forked, timeout=20)  # who holds the lock has to be gone, too
    assert process.returncode == -signal.SIGKILL, "".join(said)


def test_the_recipe_trains_and_says_what_it_skipped(scenes):
    _, counts, (train, test), folder = scenes
    scores, env = of(folder, "scores"), of(folder, "env")
    assert scores["counts"] == counts and (len(counts), max(counts), min(counts)) == (365, 15, 1)
    assert [row["unread"] for row in rows(folder)] == [1, 1] and rows(folder)[0]["images"] == sum(counts)
    said = [warning for warning in scores["warnings"] if "could not be read" in warning]
    assert len(said) == 2 and str(test) in said[0] and "not among those judged" in said[0]
    assert str(train) in said[1] and "others of their class stood in" in said[1]
    assert env["unread"] == {part: {"images": 1, "first": [str(p)]} for part, p in (("train", train), ("test", test))}
    assert env["processes"] == 1


def test_killed_and_resumed_is_bit_for_bit_the_same(scenes, tmp_path):
    root, _, _, one = scenes
    killed(root, tmp_path, processes=1)
    half = tmp_path / "scenes" / "0"
    assert (half / "checkpoint.pt").exists() and not (half / "scores.json").exists()
    torch.set_num_threads(1)
    again = trained(root, tmp_path, resume=True)
    for a, b in zip(rows(one), rows(again), strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    weights = [load_file(f / "model.safetensors") for f in (one, again)]
    assert all(weights[0][n].equal(weights[1][n]) for n in weights[0])
    assert of(one, "scores") == of(again, "scores") and of(again, "env")["unread"] == of(one, "env")["unread"]


@pytest.mark.timeout(240)
def test_two_processes_killed_and_resumed_give_what_one_gives(scenes, tmp_path):
    root, _, _, one = scenes
    killed(root, tmp_path, processes=2)
    done = subprocess.run(
        [sys.executable, SCRIPT, str(root), str(tmp_path), "2", "--resume"], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    two = tmp_path / "scenes" / "0"
    assert of(two, "env")["processes"] == 2
    assert of(two, "env")["unread"] == of(one, "env")["unread"]
    weights = [load_file(f / "model.safetensors") for f in (one, two)]
    for n in weights[0]:  # a ReLU that is at zero in float32 may fall either way: the layers below it feel one sample
        assert (weights[0][n] - weights[1][n]).abs().max() < (1e-6 if n.startswith("head.") else 5e-5), n
    for a, b in zip(rows(one), rows(two), strict=True):
        assert (a["images"], a["unread"]) == (b["images"], b["unread"]) and a["loss"] == pytest.approx(
            b["loss"], rel=1e-5
        )
