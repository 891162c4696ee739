"""Training in gloo processes, forked or launched: equal to one, uneven batches, and processes that stop or die."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import many_processes
import psutil
import pytest
import torch
import yaml
from many_processes import RESUMED, STAGES
from safetensors.torch import load_file

from flattail.experiment import run
from flattail.recipe import label, read

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
            "optim": {"lr": 0.01},
        },
        {"epochs": 1, "batch": 75, "optim": {"lr": 0.01}, "loss": {"weights": "effective"}, "carry": True},
    ],
}  # batches of 75 and, at the end of an epoch of 417, of 42: 38 + 37 and 21 + 21 for two
STEP = {"batch": 75, "optim": {"lr": 0.01}, "epochs": 1}
SECOND_STAGES = {
    "scales": [STEP | {"start": "scales", "train": "head", "rates": {"inner": 0.5}, "average": "ema:0.5"}],
    "means": [
        STEP | {"start": "class-means", "average": "swa"},
        {"epochs": 0, "start": {"name": "logit-adjust", "scale": 1.0}},
    ],
    "norms": [STEP | {"constraint": "spectral-norm"}, {"epochs": 0, "start": "tau-norm"}],
    "align": [STEP | {"start": "disalign", "constraint": "max-norm"}],
}
EPOCHS = 12  # of runs that are stopped after the first
HERE = Path(__file__).parent
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
OFTEN = """import functools, sys
from flattail import cli, jobs
jobs.run = functools.partial(jobs.run, every=0.0)
sys.argv[0] = "flattail"
cli.app()
"""  # the command line, with a checkpoint at the end of every epoch


def launcher(processes):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def command(*recipes, out):
    return ["train", *map(str, recipes), "--out", str(out), "--device", "cpu"]


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


def close_weights(one, two, tolerance):
    weights = [load_file(f / "model.safetensors") for f in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for n in weights[0]:
        assert (weights[0][n] - weights[1][n]).abs().max() < tolerance, (two, n)


# -- every method, every kind of stage, in double precision ------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What four processes, and two of them, have written."""
    folder = tmp_path_factory.mktemp("ends")
    done = subprocess.run(
        [sys.executable, str(HERE / "many_processes.py"), str(folder)],
        capture_output=True, text=True, timeout=280, env=ENV,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return folder


@pytest.fixture(scope="module")
def ends(folder):
    """Weights and logs by the number of processes and case."""
    torch.set_num_threads(1)
    found = {1: many_processes.on_one_process()}
    for world in (2, 4):
        said = torch.load(folder / f"{world}.pt")
        assert said["world"] == world
        found[world] = said["found"]
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", STAGES)
def test_one_two_and_four_processes_end_with_the_same_weights(ends, case):
    one, log = ends[1][case]
    begun = many_processes.a_net().state_dict()
    assert any(n not in begun or (one[n] - begun[n]).abs().max() > 1e-3 for n in one), "nothing was trained"
    for world in (2, 4):
        weights, rows = ends[world][case]
        assert weights.keys() == one.keys()
        for n, w in one.items():
            assert (weights[n].double() - w.double()).abs().max() < 1e-6, (world, n)
        for a, b in zip(log, rows, strict=True):
            assert b["images"] == a["images"] and b["accuracy"] == pytest.approx(a["accuracy"], abs=1e-6)
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-6) and b.get("skipped") == a.get("skipped")


def test_the_step_that_all_processes_leave_out_is_counted(ends):
    for world in (1, 2, 4):
        assert [row["skipped"] for row in ends[world]["on_nan: skip"][1]] == [1, 1]
        assert [row["images"] for row in ends[world]["on_nan: skip"][1]] == [3 * 229] * 2


@pytest.mark.parametrize("world", [2, 4])
def test_processes_with_batchnorm_are_micro_batches_of_one_process(ends, world):
    """Each normalises by what it sees; nothing else tells them apart."""
    alone = many_processes.with_batchnorm(many_processes.accelerated("cpu", "fp32"), micro=world)
    for n, p in alone.named_parameters():
        assert (ends[world]["batchnorm"][n] - p).abs().max() < 1e-12, n


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", RESUMED)
def test_what_several_processes_began_one_ends(folder, tmp_path, case, world):
    """Stopped in mid-epoch; the rest on one process gives the weights of one process that did it all."""
    checkpoint = shutil.copy(folder / f"{case}-{world}.pt", tmp_path / "c.pt")
    place = torch.load(checkpoint)["state"]["place"]
    assert place == (0, 0, 10), "in mid-epoch"
    alone = many_processes.accelerated("cpu", "fp32")
    whole, rest = many_processes.resumed(case, alone), many_processes.resumed(case, alone, checkpoint)
    for n, w in whole.items():
        assert (rest[n] - w).abs().max() < 1e-6, n


# -- the command line -------------------------------------------------------------------------------------------


@pytest.mark.timeout(200)
def test_two_processes_equal_one_recipe_after_recipe(tmp_path, recipe):
    sam = STEP | {"batch": 417, "method": "sam", "climb": "together"}
    paths = [recipe("first"), recipe("second", stages=[sam])]
    paths += [recipe(n, stages=[STEP, *end], protocol={"validation": 0.2}) for n, end in SECOND_STAGES.items()]
    torch.set_num_threads(1)
    for path in paths:
        run(read(path), out=tmp_path / "one", label=label(path), device="cpu")
    both = subprocess.run(
        [*launcher(2), "-m", "flattail", *command(*paths, out=tmp_path / "two")],
        env=ENV, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("Accuracy in percent") == 1, "one process prints the table"
    assert "deprecated" not in both.stderr
    for path in paths:
        one, two = (tmp_path / n / "mine" / path.stem / "0" for n in ("one", "two"))
        assert [json.loads((f / "env.json").read_text())["processes"] for f in (one, two)] == [1, 2]
        first = path.stem in ("first", "second")
        close_weights(one, two, 2e-6 if first else 1e-5)
        for a, b in zip(rows(one), rows(two), strict=True) if first else ():
            assert a["images"] == b["images"] == 417 and a["accuracy"] == pytest.approx(b["accuracy"], abs=0.005)
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def begun(tmp_path, path, *more):
    """The command line on two processes, once the first epoch is logged and saved; and the run directory."""
    script, folder = tmp_path / "often.py", tmp_path / "out" / "mine" / path.stem / "0"
    script.write_text(OFTEN)
    process = subprocess.Popen(
        [*launcher(2), str(script), *command(path, out=tmp_path / "out"), *more],
        env=ENV,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return process, folder


def test_a_launcher_told_to_stop_ends_with_a_checkpoint_and_one_process_goes_on(tmp_path, recipe):
    path = recipe(stages=[TREE["stages"][0] | {"epochs": EPOCHS}])
    process, folder = begun(tmp_path, path)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and "stopped, with a checkpoint" in said
    assert (folder / "checkpoint.pt").exists() and not (folder / "scores.json").exists()
    before = rows(folder)
    assert all(0 < row["accuracy"] <= 1 and row["images"] == 417 for row in before)
    saved = torch.load(folder / "checkpoint.pt")["state"]
    assert saved["place"][1] == len(before) and saved["meters"]["right"] <= saved["meters"]["images"]
    goes_on_alone(tmp_path, path, folder)


def test_a_killed_rank_ends_the_job_with_a_message_and_one_process_goes_on(tmp_path, recipe):
    path = recipe(stages=[TREE["stages"][0] | {"epochs": EPOCHS}])
    process, folder = begun(tmp_path, path)
    (holder,) = (json.loads(lock.read_text())["pid"] for lock in folder.glob(".lock.*"))
    ranks = psutil.Process(process.pid).children()
    (other,) = (rank for rank in ranks if rank.pid != holder)
    other.kill()
    since = time.monotonic()
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and time.monotonic() - since < 60 and not psutil.pid_exists(holder)
    assert "flattail: another process of this job has ended" in said and "--resume goes on" in said
    assert not (folder / "scores.json").exists()
    goes_on_alone(tmp_path, path, folder)


def goes_on_alone(tmp_path, path, folder):
    """One process ends what two began, and what it logs is what one process alone logs, in single precision."""
    done = len(rows(folder))
    assert 0 < done < EPOCHS
    torch.set_num_threads(1)
    again = run(read(path), out=tmp_path / "out", label="mine/r", device="cpu", resume=True)
    whole = run(read(path), out=tmp_path / "whole", label="mine/r", device="cpu")
    assert len(rows(again)) == EPOCHS and not (again / "checkpoint.previous.pt").exists()
    for a, b in zip(rows(whole), rows(again), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3) and b["images"] == a["images"]
