"""Training in two gloo processes: equal to one, uneven batches, and a launcher that is told to stop."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from safetensors.torch import load_file

TREE = {
    "data": "digits-lt",
    "model": {"name": "resnet8", "width": 4, "norm": "group"},  # no sample sees another of its batch
    "stages": [
        {
            "epochs": 1,
            "batch": 75,
            "method": {"name": "ssesam", "eta": "few"},
            "climb": "together",
            "augment": ["flip"],
        },
        {"epochs": 1, "batch": 75, "loss": {"weights": "effective"}, "carry": True},
    ],
}  # batches of 75 and, at the end of an epoch of 417, of 42: 38 + 37 and 21 + 21 for two
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def command(*recipes, out):
    return ["-m", "flattail", "train", *map(str, recipes), "--out", str(out), "--device", "cpu"]


@pytest.fixture
def recipe(tmp_path):
    def write(name="r", **changes):
        path = tmp_path / "mine" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(TREE | changes))
        return path

    return write


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_processes_equal_one_recipe_after_recipe(tmp_path, recipe):
    paths = (
        recipe("first"),
        recipe("second", stages=[{"epochs": 1, "batch": 417, "method": "sam", "climb": "together"}]),
    )
    alone = subprocess.run(
        [sys.executable, *command(*paths, out=tmp_path / "one")], env=ENV, capture_output=True, text=True
    )
    both = subprocess.run([*LAUNCHER, *command(*paths, out=tmp_path / "two")], env=ENV, capture_output=True, text=True)
    assert alone.returncode == 0 == both.returncode, alone.stderr + both.stderr
    assert both.stdout.count("many (3)") == 1, "one process prints the table"
    for name in ("first", "second"):
        one, two = (tmp_path / n / "mine" / name / "0" for n in ("one", "two"))
        said = [json.loads((f / "env.json").read_text()) for f in (one, two)]
        assert [env["processes"] for env in said] == [1, 2]
        weights = [load_file(f / "model.safetensors") for f in (one, two)]
        for n in weights[0]:
            assert (weights[0][n] - weights[1][n]).abs().max() < 5e-6, n
        for a, b in zip(rows(one), rows(two), strict=True):
            assert a["images"] == b["images"] == 417 and a["accuracy"] == pytest.approx(b["accuracy"], abs=0.005)
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_a_launcher_told_to_stop_ends_and_the_run_goes_on_in_one_process(tmp_path, recipe):
    path = recipe(stages=[{"epochs": 300, "batch": 64}])
    process = subprocess.Popen(
        [*LAUNCHER, *command(path, out=tmp_path / "out")], env=ENV, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "out" / "mine" / "r" / "0"
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "stopped, with a checkpoint" in said
    assert (folder / "checkpoint.pt").exists() and not (folder / "scores.json").exists()
    stopped = rows(folder)
    assert all(0 < row["accuracy"] <= 1 and row["images"] == 417 for row in stopped)
