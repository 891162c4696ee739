"""Resuming equals not having stopped, at borders, in mid-epoch, after kill -9; a checkpoint is whole or not there."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from killed import RECIPE, same_runs
from small import net, same_weights, tail, trained, without_seconds
from torch import nn

from flattail import checkpoint as checkpoints
from flattail.checkpoint import Interrupted, Place, Stop, stopping
from flattail.data.augment import Crop, Flip
from flattail.data.mix import Mixup
from flattail.experiment import run
from flattail.losses import CE
from flattail.optim import AdamW, Cosine
from flattail.recipe import from_tree
from flattail.sharp import CCSAM, SAM, Every
from flattail.stage import Stage
from flattail.train import accelerated, fit

HARD = Stage(4, batch=16, method=Every(SAM(0.1), 2), mix=Mixup(0.5), augment=(Crop(1), Flip()), schedule=Cosine())
FIRST = Stage(2, batch=16, method=SAM(0.1), mix=Mixup(0.5), schedule=Cosine())
CHAINS = {
    "one stage": [HARD],
    "adamw": [Stage(3, batch=16, optim=AdamW(), method=CCSAM())],
    "carried": [FIRST, Stage(2, batch=16, loss=CE("effective"), schedule=Cosine(), carry=True)],
    "not carried": [FIRST, Stage(2, batch=16, method=CCSAM())],
    "head last": [FIRST, Stage(1, batch=16), Stage(2, batch=16, method=CCSAM(), train="head", schedule=Cosine())],
    "head carried": [
        Stage(1, batch=16),
        Stage(1, batch=16, train="head"),
        Stage(1, batch=16, train="head", carry=True),
    ],
}


class Killed(BaseException):
    """Stands for kill -9: nothing in the loop may catch it."""


def a_net():
    return net(norm=nn.BatchNorm1d, dropout=0.2)


def score_of(model):
    return -sum(p.detach().square().sum().item() for p in model.parameters())  # any deterministic number


def stopped_at(where, how):
    """on_step that ends the run before a step: as a kill, or asked by SIGTERM."""

    def on_step(place, steps):
        if tuple(place) == where:
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step


def in_two(stages, where, how, path, *, score=None, every=0.0):
    """Train, stop at a place, and go on with a model and data made anew; returns the model and all rows."""
    rows, given = [], {"checkpoint": path, "every": every, "seed": 5, "score": score, "identity": "me"}
    with pytest.raises(Killed if how == "kill" else Interrupted) as stopped:
        fit(
            a_net(), tail(), stages, accelerator=accelerated("cpu", "fp32"),
            on_epoch=rows.append, on_step=stopped_at(where, how), **given,
        )  # fmt: skip
    if how == "sigterm":
        assert stopped.value.code == 143
    again, more = a_net(), []
    with torch.no_grad():
        for p in again.parameters():
            p.add_(1.0)  # whatever it was before, it is what the checkpoint says
    if not path.exists():
        again = a_net()
    begun = []
    epoch = fit(
        again, tail(), stages, accelerator=accelerated("cpu", "fp32"), on_epoch=more.append,
        on_step=lambda place, steps: begun.append(place), **given,
    )  # fmt: skip
    kept = [row for row in rows if not more or row["epoch"] < more[0]["epoch"]]
    return again, kept + more, epoch, begun[0] if begun else None


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("how", ["kill", "sigterm"])
def test_stopped_anywhere_and_resumed_equals_uninterrupted(tmp_path, name, how):
    stages = CHAINS[name]
    whole, total = a_net(), sum(s.epochs for s in stages)
    rows = trained(whole, stages, seed=5, score=score_of)
    assert len(rows) == total
    places = [(i, e, s) for i, stage in enumerate(stages) for e in range(stage.epochs) for s in range(3)]
    for number, where in enumerate(places[1::2]):
        model, seen, _, begun = in_two(stages, where, how, tmp_path / f"{number}.pt", score=score_of)
        same_weights(model, whole)
        assert without_seconds(seen) == without_seconds(rows), where
        if how == "sigterm":
            assert begun == Place(*where[:2], where[2] + 1) or where[2] == 2, "no step is done twice"


def test_two_and_two_epochs_are_four(tmp_path):
    """The sentence of the issue, alone: momentum, mixup, dropout, augmentation, the log and the scores."""
    whole = a_net()
    rows = trained(whole, HARD, seed=5)
    model, seen, epoch, begun = in_two([HARD], (0, 2, 0), "kill", tmp_path / "c.pt")
    same_weights(model, whole)
    assert without_seconds(seen) == without_seconds(rows) and epoch == 3 and begun == Place(0, 2, 0)


def test_the_best_model_so_far_survives_a_stop(tmp_path):
    falling = [Stage(4, batch=16)]

    def score(model):
        return -model.backbone[2].num_batches_tracked.item()  # the first epoch is best

    model, rows, epoch, _ = in_two(falling, (0, 3, 1), "kill", tmp_path / "c.pt", score=score)
    whole = a_net()
    assert epoch == 0 and [row["score"] for row in rows] == [-3, -6, -9, -12]
    trained(whole, falling, seed=5, score=score)
    same_weights(model, whole)
    assert model.backbone[2].num_batches_tracked == 3


def test_a_signal_in_the_very_last_step_is_heard(tmp_path):
    """Otherwise the next of several runs would begin in spite of it."""
    model, rows, _, begun = in_two([HARD], (0, 3, 2), "sigterm", tmp_path / "c.pt")
    whole = a_net()
    assert without_seconds(rows) == without_seconds(trained(whole, HARD, seed=5)) and begun is None
    same_weights(model, whole)


def test_checkpoints_are_as_rare_as_asked(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(checkpoints, "save", lambda *a: written.append(a))
    trained(net(), Stage(3, batch=16), checkpoint=tmp_path / "c.pt", every=1e9)
    assert written == []
    trained(net(), Stage(3, batch=16), checkpoint=tmp_path / "c.pt", every=0.0)
    assert len(written) == 2  # none after the last epoch: the run is judged then


# -- what a checkpoint refuses --------------------------------------------------------------------------------


def a_checkpoint(path, identity="me"):
    with pytest.raises(Killed):
        fit(
            net(), tail(), [Stage(2, batch=16)], accelerator=accelerated("cpu", "fp32"), checkpoint=path, every=0.0,
            identity=identity, on_step=stopped_at((0, 1, 0), "kill"),
        )  # fmt: skip
    return path


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path):
    path = a_checkpoint(tmp_path / "c.pt", "another")
    content = path.read_bytes()
    with pytest.raises(ValueError, match=f"{path} is a checkpoint of another recipe: use another --out"):
        trained(net(), Stage(2, batch=16), checkpoint=path, identity="me")
    assert path.read_bytes() == content


DAMAGES = [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no checkpoint", lambda b: b[:-1]]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_where_there_is_none_before(tmp_path, damage):
    path = a_checkpoint(tmp_path / "c.pt")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"c\.pt is no checkpoint, or is damaged: remove it to start over"):
        trained(net(), Stage(2, batch=16), checkpoint=path, identity="me")


def test_a_foreign_file_of_torch_is_no_checkpoint(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="is no checkpoint"):
        trained(net(), Stage(1), checkpoint=tmp_path / "c.pt")


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path, monkeypatch):
    path = a_checkpoint(tmp_path / "c.pt")
    content = path.read_bytes()

    def half(content, file):
        file.write(b"the first half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(OSError, match="No space left"):
            trained(net(), Stage(3, batch=16), checkpoint=path, every=0.0, identity="me")
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    trained(net(), Stage(2, batch=16), checkpoint=path, identity="me")  # and it can still be gone on from


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_torch_says_that_a_disk_is_full(tmp_path):
    """By a file object it is the OSError of the system; by a path it would be a RuntimeError about positions."""
    with pytest.raises(OSError) as said, Path("/dev/full").open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)
    assert said.value.errno == errno.ENOSPC


def test_another_number_of_threads_is_told(tmp_path):
    path, threads = a_checkpoint(tmp_path / "c.pt"), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=rf"written with {threads} threads.*OMP_NUM_THREADS={threads}"):
            trained(net(), Stage(2, batch=16), checkpoint=path, identity="me")
    finally:
        torch.set_num_threads(threads)


# -- signals ---------------------------------------------------------------------------------------------------


def test_signals_are_noted_inside_and_restored_outside():
    before = signal.getsignal(signal.SIGTERM)
    with stopping() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # a moment later: the same wish, as from a terminal and its parent
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_asked_again_after_a_while_it_ends_at_once():
    stop = Stop()
    stop(signal.SIGTERM, None)
    stop.since -= 10
    with pytest.raises(SystemExit) as ended:
        stop(signal.SIGINT, None)
    assert ended.value.code == 130


def test_other_threads_train_without_signals():
    said = []

    def work():
        with stopping() as stop:
            said.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert said == [0]


# -- whole processes ---------------------------------------------------------------------------------------------


def begun(out, every, seconds, *more):
    here = Path(__file__).parent
    command = [sys.executable, str(here / "killed.py"), str(out), str(every), str(seconds), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def until(process, steps):
    """Wait for so many steps to have begun."""
    lines = []
    for line in process.stdout:
        lines.append(line.split())
        if len(lines) == steps:
            break
    return lines


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = run(from_tree(RECIPE), out=out, label="killed", seed=1, device="cpu")
    torch.set_num_threads(threads)
    return folder


def test_sigterm_saves_in_mid_epoch_and_exits_143(tmp_path, uninterrupted):
    process = begun(tmp_path, 1e9, 0.05)
    until(process, 10)  # the third step of the second epoch
    process.terminate()
    rest = process.stdout.read().splitlines()
    assert process.wait(60) == 143 and len(rest) < 5
    folder = tmp_path / "killed" / "1"
    saved = torch.load(folder / "checkpoint.pt")["state"]
    assert saved["place"][:2] == (0, 1) and 0 < saved["place"][2] < 7
    assert not (folder / "scores.json").exists()
    with pytest.raises(
        ValueError, match=r"holds an unfinished run: add --resume to go on with it, or remove the folder"
    ):
        run(from_tree(RECIPE), out=tmp_path, label="killed", seed=1, device="cpu")
    run(from_tree(RECIPE), out=tmp_path, label="killed", seed=1, device="cpu", resume=True)
    same_runs(folder, uninterrupted)


def test_a_checkpoint_of_other_stages_or_another_seed_is_refused_by_fit(tmp_path):
    path = str(tmp_path / "checkpoint.pt")
    trained(net(), Stage(2), checkpoint=path, every=0.0)
    for stages, how in ((Stage(3, method=SAM(0.1)), {}), (Stage(2), {"seed": 1})):
        with pytest.raises(ValueError, match="another recipe"):
            trained(net(), stages, checkpoint=path, **how)
    assert [row["epoch"] for row in trained(net(), Stage(2), checkpoint=path)] == [1]  # the same goes on
