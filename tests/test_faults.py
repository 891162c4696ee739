"""What goes wrong around a run: kill -9, damaged checkpoints, full disks, data that vanish, NaN, and pickles."""

import json
import os
import random
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from killed import KILLS, LONGER, same_runs
from PIL import Image
from small import digits, net, same_weights, tail, trained, without_seconds
from torch import nn

from flattail import jobs, runs
from flattail.averages import EMA
from flattail.checkpoint import Place, previous, read, refuse_apart
from flattail.devices import accelerated, common_statistics, synchronised
from flattail.experiment import run, warnings
from flattail.imported import import_run
from flattail.optim import SGD
from flattail.recipe import RecipeError, from_tree
from flattail.sharp import CCSAM, ERM, SAM, FriendlySAM, SharpnessAware, sharp_backward
from flattail.sharp.terms import Part, Term
from flattail.stage import Stage
from flattail.train import fit

TREE = {"data": "digits-lt", "model": {"name": "resnet8", "width": 4}, "stages": [{"epochs": 3, "batch": 140}]}
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


class Stopped(BaseException):
    """Stands for the end of the process."""


def a_net():
    return net(norm=nn.BatchNorm1d, dropout=0.2)


# -- kill -9 ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_killed_at_twenty_moments_and_resumed_it_is_the_uninterrupted_run(tmp_path):
    """At any moment, before a step, within the file of a checkpoint, and between the names of two checkpoints."""
    seed = random.Random(os.getpid()).randrange(10**6)
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(tmp_path), str(seed)]
    said = subprocess.run(command, capture_output=True, text=True, env=ENV).stdout
    assert f"ended with 0 after {KILLS} kills" in said, (seed, said)
    same_runs(tmp_path / "killed" / "1", tmp_path / "whole" / "1")
    assert len(runs.read_log(tmp_path / "killed" / "1")) == sum(s["epochs"] for s in LONGER["stages"]), seed


# -- checkpoints -----------------------------------------------------------------------------------------------

STAGE = Stage(4, batch=16, method=FriendlySAM(0.1))


def stopped_after(epochs, path, stage=STAGE, model=None):
    """A run that ends as an epoch begins, with the checkpoints that are then there."""

    def on_step(place, steps):
        if place.epoch == epochs:
            raise Stopped

    with pytest.raises(Stopped):
        trained(model or a_net(), stage, checkpoint=path, every=0.0, on_step=on_step)
    return path


def flipped(content, rng):
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


DAMAGES = {
    "truncated": lambda b: b[: len(b) // 2],
    "one byte short": lambda b: b[:-1],
    "empty": lambda b: b"",
    "another file": lambda b: b"no checkpoint",
    "a weight": None,  # a bit of a tensor, which torch itself would read as it is
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path, damage):
    path, whole, again = stopped_after(3, tmp_path / "c.pt"), a_net(), a_net()
    content = path.read_bytes()
    if damage == "a weight":
        weight = torch.load(path)["model"]["head.weight"].numpy().tobytes()
        assert content.count(weight) == 1
        damaged = content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:])
    else:
        damaged = DAMAGES[damage](content)
    assert damaged != content
    path.write_bytes(damaged)
    with pytest.warns(
        UserWarning, match=r"c\.pt is damaged or gone.*going on from c\.previous\.pt, at stage 0, epoch 2"
    ):
        rows = trained(again, STAGE, checkpoint=path)
    expected = trained(whole, STAGE)
    same_weights(again, whole)
    assert without_seconds(rows) == without_seconds(expected)[2:]


def test_a_checkpoint_that_was_being_renamed_falls_back_as_well(tmp_path):
    path, whole, again = stopped_after(3, tmp_path / "c.pt"), a_net(), a_net()
    path.unlink()
    with pytest.warns(UserWarning, match=r"c\.previous\.pt"):
        trained(again, STAGE, checkpoint=path)
    trained(whole, STAGE)
    same_weights(again, whole)


def test_two_damaged_checkpoints_are_refused_by_name(tmp_path):
    path = stopped_after(3, tmp_path / "c.pt")
    for each in (path, previous(path)):
        each.write_bytes(each.read_bytes()[:-300])
    with pytest.raises(
        ValueError, match=r"c\.pt is no checkpoint.*to start over, with c\.previous\.pt, which is damaged"
    ):
        trained(a_net(), STAGE, checkpoint=path)


def test_no_flipped_bit_goes_unseen(tmp_path):
    """A bit may lie where nothing is read; what is read is what was written, or the file is refused."""
    path, rng, seen = stopped_after(1, tmp_path / "c.pt"), random.Random(0), 0
    content, whole = path.read_bytes(), read(path)[0]
    for _ in range(150):
        path.write_bytes(flipped(content, rng))
        try:
            found = read(path)[0]
        except Exception:
            seen += 1
            continue
        assert torch.equal(found["model"]["head.weight"], whole["model"]["head.weight"])
        assert repr(found) == repr(whole)
    assert seen > 50


def test_both_checkpoints_go_when_the_run_is_done(tmp_path):
    folder = run(from_tree(TREE), out=tmp_path, device="cpu", every=0.0)
    assert not list(folder.glob("checkpoint*")) and (folder / "scores.json").exists()


def test_weights_that_are_not_finite_never_replace_a_good_checkpoint(tmp_path):
    """The last step of an epoch may throw the weights away with a finite slope; the next one says so."""

    def thrown(place, steps):
        if place == (0, 1, steps - 1):
            with torch.no_grad():
                model.head.weight[0, 0] = torch.inf

    model, path = a_net(), tmp_path / "c.pt"
    with pytest.raises(FloatingPointError, match=r"the last good checkpoint is .*c\.pt"):
        trained(model, STAGE, checkpoint=path, every=0.0, on_step=thrown)
    saved, state = read(path)
    assert state.place == (0, 1, 0) and all(torch.isfinite(t).all() for t in saved["model"].values())


# -- disks and data --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
@pytest.mark.parametrize("which", [".checkpoint.pt.partial", ".model.safetensors.partial", ".scores.json.partial"])
def test_a_full_disk_ends_the_run_and_it_goes_on_when_there_is_room(tmp_path, which):
    """The disk itself says it: what is being written is a link to /dev/full."""
    out, recipe = tmp_path / "out", from_tree(TREE)

    def on_step(place, steps):
        link = out / "recipe" / "0" / which
        if place == (0, 1, 0):
            link.symlink_to("/dev/full")

    with pytest.raises(OSError, match="No space left on device"):
        run(recipe, out=out, device="cpu", every=0.0, on_step=on_step)
    folder = out / "recipe" / "0"
    assert not (folder / "scores.json").exists() and not list(folder.glob(".*")), "nothing half written, no lock"
    again = run(recipe, out=out, device="cpu", resume=True)
    same_runs(again, run(recipe, out=tmp_path / "whole", device="cpu"))


READ_ONLY = """import sys
from itertools import pairwise
from pathlib import Path
from flattail.jobs import run_all
from flattail.recipe import from_tree
from flattail import jobs
import functools, os, json
place, tree = Path(sys.argv[1]), json.loads(sys.argv[2])
def closes(step, steps):
    if tuple(step) == (0, 1, 0):
        (place / "later/r/0").chmod(0o555)
for out in (place / "now", place / "later"):
    try:
        jobs.run(from_tree(tree), out=out, label="r", device="cpu", every=0.0, on_step=closes)
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    """From the beginning, or from the second epoch on; root, who may write everywhere, gives up that right first."""
    (tmp_path / "now").mkdir(mode=0o555)
    first = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root, and no setpriv to stop being almighty")
        first = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    command = [*first, sys.executable, "-c", READ_ONLY, str(tmp_path), json.dumps(TREE)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV)
    (tmp_path / "later/r/0").chmod(0o755)
    said = done.stdout.splitlines()
    assert [line.split()[0] for line in said] == ["PermissionError"] * 2, done.stdout + done.stderr
    assert f"{tmp_path}/now/r" in said[0] and f"{tmp_path}/later/r/0/" in said[1]
    assert len(runs.read_log(tmp_path / "later/r/0")) == 2  # the log was there to be written to; its folder was not


def test_an_image_that_vanishes_in_mid_training_is_named_and_the_run_goes_on_with_it(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("test", 3)):
        for c in range(2):
            (tmp_path / "tree" / part / str(c)).mkdir(parents=True)
            for i in range(n):
                shade = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(shade).save(tmp_path / "tree" / part / str(c) / f"{i}.png")
    folder = {"name": "folder", "path": "tree", "test": "test", "size": 8}
    recipe = from_tree(TREE | {"data": folder, "stages": [{"epochs": 3, "batch": 8}]})
    lost = tmp_path / "tree" / "train" / "1" / "7.png"

    def on_step(place, steps):
        if place == (0, 1, 0):
            lost.rename(tmp_path / "aside.png")

    how = {"device": "cpu", "root": tmp_path, "workers": 0, "every": 0.0}
    with pytest.raises((ValueError, OSError), match=str(lost)):
        run(recipe, out=tmp_path / "out", on_step=on_step, **how)
    (tmp_path / "aside.png").rename(lost)
    again = run(recipe, out=tmp_path / "out", resume=True, **how)
    same_runs(again, run(recipe, out=tmp_path / "whole", **how))


# -- NaN -------------------------------------------------------------------------------------------------------

BAD = 5  # the image that is NaN
METHODS = [ERM(), SAM(0.1), FriendlySAM(0.1), CCSAM()]


def spoilt():
    """Data with an image that is NaN."""
    data = tail()
    data.train.x = data.train.x.float()
    data.train.x[BAD] = torch.nan
    return data


def test_a_run_that_stops_names_the_step_its_images_and_the_last_good_checkpoint(tmp_path):
    seen, path = [], tmp_path / "c.pt"
    batches = []

    class Noted:
        def __call__(self, y, batch, *, generator, progress, drop_last=False):
            order = torch.randperm(len(y), generator=generator)
            order = order[order != BAD] if len(batches) == 0 else order  # the first epoch is without it
            batches.append(list(order.split(batch)))
            return batches[-1]

    stage = Stage(3, batch=16, sampler=Noted(), method=SAM(0.1))
    with pytest.raises(FloatingPointError) as said:
        trained(a_net(), stage, data=spoilt(), checkpoint=path, every=0.0, on_step=lambda p, n: seen.append(p))
    step = next(i for i, rows in enumerate(batches[1]) if BAD in rows)
    assert seen[-1] == (0, 1, step)
    rows = ", ".join(map(str, batches[1][step].tolist()))
    assert f"stage 0, epoch 1, step {step}; the last good checkpoint is {path}. The batch is rows {rows} of" in str(
        said.value
    )
    assert read(path)[1].place == (0, 1, 0)


def test_a_slope_that_is_not_finite_stops_a_plain_step_before_it_is_taken():
    """A loss of zero with an infinite slope: no climb of another method sees it first."""

    class Rooted:
        def __call__(self, logits, y, counts):
            return (logits * 0).sum(1).sqrt()

    model, before = a_net(), a_net()
    with pytest.raises(FloatingPointError, match="epoch 0, step 0"):
        trained(model, Stage(1, batch=16, loss=Rooted()))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_step_left_out_leaves_no_trace_and_is_counted(method):
    """Weights, momentum, statistics, the average and what the method remembers: bit for bit what they were."""
    states, held = [], {}

    class Watched(SGD):
        def build(self, groups):
            held["optimizer"] = super().build(groups)
            return held["optimizer"]

    class Kept(EMA):
        def begin(self, model):
            held["average"] = EMA.begin(self, model)
            return held["average"]

    def on_step(place, steps):
        state = [*model.state_dict().values(), *held["average"].state_dict().values()]
        state += [s["momentum_buffer"] for s in held["optimizer"].state.values() if s]
        states.append([t.clone() for t in state])

    model = a_net()
    stage = Stage(2, batch=16, method=method, on_nan="skip", optim=Watched(0.1), average=Kept(0.5))
    rows = trained(model, stage, data=spoilt(), on_step=on_step)
    still = [
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) for a, b in pairwise(states)
    ]
    assert sum(still) in (1, 2), "a step in each epoch, of which the last may be the second's"
    assert [row["skipped"] for row in rows] == [1, 1] and all(row["images"] in (26, 32) for row in rows)
    assert all(np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1 for row in rows)
    assert all(np.isfinite([t["radius"], t["gap"]]).all() for row in rows for t in row["terms"].values())
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_without_a_bad_step_skipping_changes_nothing(method):
    models = [a_net(), a_net()]
    rows = [
        trained(model, Stage(2, batch=16, method=method, on_nan=on_nan))
        for model, on_nan in zip(models, ("stop", "skip"), strict=True)
    ]
    same_weights(*models)
    assert without_seconds(rows[0]) == without_seconds(rows[1])


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("where", [(0, 1, 0), (0, 1, 2)])
def test_a_run_that_leaves_steps_out_resumes_bit_for_bit(tmp_path, method, where):
    stage, path, whole, again = Stage(3, batch=16, method=method, on_nan="skip"), tmp_path / "c.pt", a_net(), a_net()
    rows, some = trained(whole, stage, data=spoilt()), []

    def on_step(place, steps):
        if tuple(place) == where:
            os.kill(os.getpid(), 15)

    with pytest.raises(SystemExit):
        fit(
            a_net(), spoilt(), [stage], accelerator=accelerated("cpu", "fp32"), checkpoint=path, on_step=on_step,
            on_epoch=some.append,
        )  # fmt: skip
    some += trained(again, stage, data=spoilt(), checkpoint=path)
    same_weights(again, whole)
    assert without_seconds(some) == without_seconds(rows) and sum(row["skipped"] for row in some) == 3


def test_an_epoch_without_a_finite_step_ends_the_run():
    data = spoilt()
    data.train.x[:] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"stage 0, epoch 0: no step had a finite loss.*there is no checkpoint"
    ):
        trained(a_net(), Stage(2, batch=16, on_nan="skip"), data=data)


def test_steps_left_out_are_said_in_the_scores_and_the_choice_is_checked():
    recipe = digits(on_nan="skip")
    row = {"stage": 0, "terms": {}, "skipped": 3}
    said = warnings(recipe, [row, row])
    assert said == ["stage 0: 6 steps were left out, whose loss or slope was not finite (on_nan: skip)"]
    assert warnings(recipe, [{"stage": 0, "terms": {}}]) == []
    with pytest.raises(RecipeError, match=r"stages\[0\]\.on_nan.*'stop' or 'skip'"):
        digits(on_nan="go")


# -- pickles ---------------------------------------------------------------------------------------------------


class Evil:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_in_place_of_a_checkpoint_is_refused_and_not_run(tmp_path):
    path = stopped_after(1, tmp_path / "c.pt")
    saved = torch.load(path)
    torch.save(saved | {"identity": Evil(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match=r"c\.pt is no checkpoint"):
        trained(a_net(), STAGE, checkpoint=path)
    with pytest.raises(ValueError, match="would run code when it is read"):
        import_run(path, from_tree(TREE), tmp_path / "out" / "0")
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists(), "it would have run"


def test_pickled_arrays_are_refused_and_not_run(tmp_path):
    evil = np.array([Evil(tmp_path / "ran")], dtype=object)
    arrays = {f"{part}_{k}": evil for part in ("train", "test") for k in ("images", "labels")}
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=r"d\.npz is not a readable \.npz of plain arrays"):
        from_tree(TREE | {"data": "npz:d.npz"}).data.load(tmp_path)
    folder = run(from_tree(TREE), out=tmp_path, device="cpu")
    np.savez(folder / "logits.npz", logits=evil, y=evil)
    with pytest.raises(ValueError, match=r"logits\.npz cannot be read"):
        runs.read(folder).logits()
    assert not (tmp_path / "ran").exists()


# -- processes, without any ------------------------------------------------------------------------------------


def several(device="cpu", others=()):
    """An accelerator of two processes, as far as is asked here; the other one holds `others`."""
    return SimpleNamespace(num_processes=2, device=torch.device(device), reduce=lambda t: t + torch.cat(list(others)))


def test_statistics_are_averaged_over_processes():
    one, two = a_net(), a_net()
    for model, x in ((one, torch.randn(8, 1, 6, 6)), (two, torch.randn(5, 1, 6, 6))):
        model(x)
    moving = [[m.backbone[2].running_mean.clone(), m.backbone[2].running_var.clone()] for m in (one, two)]
    common_statistics(one, several(others=moving[1]))
    for now, a, b in zip((one.backbone[2].running_mean, one.backbone[2].running_var), *moving, strict=True):
        torch.testing.assert_close(now, (a + b) / 2)
    frozen = a_net().eval()
    common_statistics(frozen, several(others=moving[1]))
    same_weights(frozen, a_net())


def test_processes_that_see_different_folders_are_refused():
    """A node whose --out is not the other's would begin anew while the other goes on."""
    for other in ((0, 3, 0), (1, 0, 0)):
        said = several()
        said.gather = lambda t, other=other: torch.cat([t, torch.tensor([other])])
        if other == (0, 3, 0):
            refuse_apart(Place(0, 3, 0), said)
        else:
            with pytest.raises(ValueError, match="put --out on a file system that all nodes share"):
                refuse_apart(Place(0, 3, 0), said)


def test_batchnorm_is_synchronised_over_gpus_alone():
    recipe = from_tree(TREE | {"sync_batchnorm": True})
    assert recipe.sync_batchnorm
    model, before = a_net(), a_net()
    assert synchronised(model, accelerated("cpu", "fp32")) is model and type(model.backbone[2]) is nn.BatchNorm1d
    with pytest.raises(
        ValueError, match="sync_batchnorm: torch's SyncBatchNorm needs GPUs, and these are processes on the cpu"
    ):
        synchronised(model, several())
    same = synchronised(model, several("cuda"))
    assert same is model and type(model.backbone[2]) is nn.SyncBatchNorm
    same_weights(model, before)
    model.train()
    common_statistics(model, several("cuda"))  # nothing is left to average
    same_weights(model, before)


def test_sharded_models_are_refused_wherever_they_come_from(monkeypatch):
    model = net()
    model.head.weight.device_mesh = "a mesh"
    y = torch.zeros(2, dtype=torch.int64)
    losses = lambda: F.cross_entropy(model(torch.zeros(2, 1, 6, 6)), y, reduction="none")  # noqa: E731
    with pytest.raises(ValueError, match="FSDP, DTensor"):
        SharpnessAware(model, SAM())
    with pytest.raises(ValueError, match="FSDP, DTensor"):
        sharp_backward([Part(losses, [Term("plain", torch.ones(2))])], model)
    for kind in ("FSDP", "DEEPSPEED"):
        said = SimpleNamespace(distributed_type=SimpleNamespace(value=kind))
        monkeypatch.setattr("flattail.devices.Accelerator", lambda said=said, **how: said)
        with pytest.raises(ValueError, match=f"Accelerate was configured for {kind}.*Launch with torchrun"):
            accelerated("cpu", "fp32")


def test_only_a_lost_peer_is_told_as_one(monkeypatch):
    def fails(error):
        def one(*a, **k):
            raise error

        monkeypatch.setattr(jobs, "one_by_one", one)
        monkeypatch.setattr(jobs.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(jobs.dist, "get_backend", lambda: "nccl")
        return jobs.run_all({}, (0,), jobs=1, out=Path(), device="cpu", root=Path(), resume=False)

    with pytest.raises(ConnectionError, match=r"another process of this job has ended.*--resume goes on"):
        fails(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]"))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        fails(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
