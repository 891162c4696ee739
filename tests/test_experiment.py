"""A run directory: what is in it, that its numbers agree with each other, and what is refused before it is made."""

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import DIGITS, digits, write_npz
from torch import nn

from flattail import evaluate, runs
from flattail.experiment import judged, run, start_tracker, tracked, warnings
from flattail.models import Split
from flattail.possible import refuse_impossible
from flattail.probe import probe
from flattail.rebuilt import build, load
from flattail.recipe import EvaluationProtocol, Recipe, Tracker, from_tree, signed
from flattail.rescored import scored
from flattail.sharp import CCSAM, SAM, SSESAM, Every, ImbSAM, Window
from flattail.stage import Stage
from flattail.starts import TauNorm


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of two stages."""
    torch.set_num_threads(1)
    recipe = from_tree(
        DIGITS | {"title": "two", "stages": [{"epochs": 1, "method": "sam"}, {"epochs": 1, "method": "ccsam"}]}
    )
    rows = []
    folder = run(
        recipe, seed=3, out=tmp_path_factory.mktemp("out"), label="mine/two", device="cpu", on_epoch=rows.append
    )
    return recipe, folder, rows


def plain(path):
    return json.loads(path.read_text())


def test_the_directory_holds_what_its_page_says(done):
    recipe, folder, rows = done
    names = {"recipe.yaml", "log.jsonl", "scores.json", "logits.npz", "model.safetensors", "env.json"}
    assert {p.name for p in folder.iterdir()} == names and folder.parts[-3:] == ("mine", "two", "3")
    assert (folder / "recipe.yaml").read_text() == signed(recipe)
    assert [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] == rows
    read = runs.read(folder)
    assert read.finished and read.seed == 3 and read.epochs == 2 == len(read.rows)
    assert from_tree(read.recipe) == recipe


def test_scores_are_those_of_the_logits_and_of_the_weights(done):
    recipe, folder, _ = done
    said = plain(folder / "scores.json")
    logits, y = runs.read(folder).logits()
    data = load(recipe, folder, 3)
    again = evaluate(torch.from_numpy(logits), torch.from_numpy(y), groups=data.group()).to_json()
    assert again == said["scores"] == scored(folder).to_json()
    assert scored(folder, views="one", device="cpu").to_json() == again
    flipped = scored(folder, views="flip", device="cpu").to_json()
    assert flipped["nll"] != again["nll"] and flipped["n"] == 500
    model = build(recipe, data, 3)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    x, _ = next(data.test.batches(iter([(torch.arange(500), torch.zeros(500).long())])))
    assert np.allclose(model(x).detach().numpy(), logits, atol=1e-5)
    assert said["selection"] == "last" and said["epoch"] == 1 and said["warnings"] == []
    assert (
        said["counts"] == data.counts.tolist()
        and said["fingerprint"] == data.fingerprint
        and said["data"] == data.title
    )
    assert said["groups"] == {n: m.tolist() for n, m in data.group().items()} and said["names"] == list(data.names)


def test_the_environment_is_recorded(done):
    _, folder, rows = done
    env = plain(folder / "env.json")
    assert {"flattail", "python", "torch", "torchvision", "timm", "accelerate", "numpy"} == env["versions"].keys()
    assert env["versions"]["torch"] == torch.__version__.split("+")[0] and env["device"].startswith("cpu")
    assert env["processes"] == 1 and env["threads"] == 1 and env["dtype"] == "fp32"
    assert env["fingerprint"] == plain(folder / "scores.json")["fingerprint"] and "git" in env
    assert (
        env["seconds"] == pytest.approx(sum(row["seconds"] for row in rows), abs=0.06)
        and env["wall"] >= env["seconds"] - 0.2
    )


def test_a_finished_run_is_left_as_it_is(done):
    recipe, folder, _ = done
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    how = {"seed": 3, "out": folder.parents[2], "label": "mine/two", "device": "cpu"}
    assert run(recipe, **how, on_epoch=pytest.fail) == folder
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before
    with pytest.raises(ValueError, match="already holds another recipe: choose another --out, or delete the directory"):
        run(replace(recipe, compile=True), **how)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before


@pytest.mark.parametrize("resume", [False, True])
def test_an_unfinished_run_of_another_recipe_is_that_first_of_all(tmp_path, resume):
    folder = tmp_path / "r" / "0"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(signed(digits(epochs=5)))
    (folder / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="already holds another recipe"):
        run(digits(), out=tmp_path, label="r", device="cpu", resume=resume)
    with pytest.raises(
        ValueError, match="holds an unfinished run: add --resume to go on with it, or remove the folder"
    ):
        run(digits(epochs=5), out=tmp_path, label="r", device="cpu")


def test_a_damaged_log_line_of_a_killed_run_is_cut_off(tmp_path):
    folder = tmp_path / "r" / "0"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(signed(digits()))
    (folder / "log.jsonl").write_text('{"epoch": 0, "stage": 0}\n{"epoch": 1, "st')
    run(digits(), out=tmp_path, label="r", device="cpu", resume=True)
    assert [row["epoch"] for row in runs.read(folder).rows] == [0] and "loss" in runs.read(folder).rows[0]


# -- selection -----------------------------------------------------------------------------------------------


def test_the_last_epoch_is_judged_unless_another_is_asked_for_by_name(tmp_path):
    assert (
        EvaluationProtocol().selection == "last"
        and from_tree(DIGITS | {"stages": [{"epochs": 1}]}).protocol.validation == 0
    )
    recipe = digits(epochs=4, optim={"lr": 0.2}, schedule="constant")
    results = {}
    for name, share in (("last", 0.0), ("best-on-test", 0.0), ("best-on-val", 0.3)):
        one = replace(recipe, protocol=EvaluationProtocol(name, share))
        folder = run(one, out=tmp_path, label=name, device="cpu")
        rows, said = runs.read(folder).rows, plain(folder / "scores.json")
        results[name] = said
        assert said["selection"] == name
        if name == "last":
            assert said["epoch"] == 3 and not any("score" in row for row in rows)
        else:
            best = [row["score"] for row in rows]
            assert said["epoch"] == best.index(max(best))
        if name == "best-on-test":
            assert said["scores"]["balanced"] == pytest.approx(max(best))
        if name == "best-on-val":
            data = load(one, tmp_path, 0)
            model = build(one, data, 0)
            model.load_state_dict(load_file(folder / "model.safetensors"))
            logits = model.eval()(
                next(data.val.batches(iter([(torch.arange(len(data.val)), torch.zeros(len(data.val)).long())])))[0]
            )
            assert evaluate(logits.detach(), data.val.y).balanced == pytest.approx(max(best))
    assert results["best-on-test"]["scores"]["balanced"] >= results["last"]["scores"]["balanced"]
    assert results["best-on-val"]["counts"] != results["last"]["counts"]
    assert results["best-on-val"]["fingerprint"] != results["last"]["fingerprint"]


@pytest.mark.parametrize("average", [None, {"name": "ema", "decay": 0.5}])
def test_a_watched_run_is_the_same_run_with_the_best_epoch_beside_the_last(tmp_path, average):
    recipe, found = digits(epochs=3, optim={"lr": 0.2}, average=average), {}
    for watch in (False, True):
        folder = run(recipe, out=tmp_path, label=f"watch-{watch}", device="cpu", watch=watch)
        found[watch] = plain(folder / "scores.json"), load_file(folder / "model.safetensors"), runs.read(folder).rows
    assert all(torch.equal(found[True][1][n], t) for n, t in found[False][1].items())
    (last, _, unseen), (said, _, rows) = found[False], found[True]
    best = said.pop("best_on_test")
    assert said == last and not any("test" in row for row in unseen)
    curve = [row["test"]["all"] for row in rows]
    assert best["all"] == max(curve) == curve[best["epoch"]] and curve[-1] == said["scores"]["all"]
    assert rows[-1]["test"]["few"] == said["scores"]["groups"]["few"]


def test_a_validation_half_that_the_data_bring_is_used(tmp_path):
    write_npz(tmp_path / "d.npz", train=[0] * 20 + [1] * 10, val=[0, 1] * 4, test=[0, 1] * 6)
    tree = DIGITS | {
        "data": "npz:d.npz",
        "stages": [{"epochs": 2, "batch": 16}],
        "protocol": {"selection": "best-on-val"},
    }
    folder = run(from_tree(tree), out=tmp_path, root=tmp_path, device="cpu")
    assert all("score" in row for row in runs.read(folder).rows) and plain(folder / "scores.json")["counts"] == [20, 10]


# -- refused before anything is written -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """Data whose labels leave the classes."""

    def load(self, root):
        from flattail.data import LongTail

        x, y = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
        return LongTail.of((x, y), (x, y + 1))


@pytest.mark.parametrize(
    ("recipe", "how", "said"),
    [
        (digits(method={"name": "imbsam", "eta": 3}), {}, r"recipe\.stages\[0\]: .*eta=3"),
        (digits(method={"name": "ssesam", "eta": 4}), {}, r"recipe\.stages\[0\]: .*eta=4"),
        (digits(batch=1000, drop_last=True), {}, r"recipe\.stages\[0\]: batch: 1000 is more than the 417 images"),
        (
            digits(method="sam", only="nothing"),
            {},
            r"recipe\.stages\[0\]: no trainable parameter has 'nothing' in its name; the first",
        ),
        (
            digits(method={"name": "ccsam", "scope": "layer9"}),
            {},
            r"recipe\.stages\[0\]: no trainable parameter has 'layer9'",
        ),
        (replace(digits(), precision="fp16"), {}, "fp16 needs a GPU"),
        (
            replace(digits(), protocol=EvaluationProtocol("best-on-val")),
            {},
            r"protocol\.selection: best-on-val needs a validation part.*validation: 0\.1",
        ),
        (replace(digits(), data=Unlabelled()), {}, "test label 2 .* is outside 0…1"),
        (digits(), {"device": "gpu"}, "choose cpu, cuda"),
        (from_tree(DIGITS | {"data": "places-lt", "stages": [{"epochs": 1}]}), {}, "no such list"),
        (from_tree(DIGITS | {"data": "npz:x.npz", "stages": [{"epochs": 1}]}), {}, "no such file"),
        (
            from_tree(DIGITS | {"model": "timm:resnet99", "stages": [{"epochs": 1}]}),
            {},
            "timm has no 'resnet99'; did you mean",
        ),
    ],
)
def test_what_cannot_be_done_leaves_nothing_behind(tmp_path, recipe, how, said):
    with pytest.raises((ValueError, OSError), match=said):
        run(recipe, out=tmp_path / "out", root=tmp_path, **{"device": "cpu"} | how)
    assert list(tmp_path.iterdir()) == []


# -- is it doing anything? ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (SAM(1e-7), "stage 0: perturbation vacuous: 'flat' moves by"),
        (CCSAM(scale=1e-6), "stage 0: perturbation vacuous: 'class' moves by"),
        (Window(SAM(0.1), 0.9), "stage 0: Window never moved the weights: it trained as plain ERM"),
        (SAM(0.0), "stage 0: SAM never moved the weights: it trained as plain ERM"),
        (SAM(500.0), "of the norm of what it displaces: no neighbourhood"),
        (Every(SAM(0.05), 3), None),
        (SSESAM(eta="few"), None),
    ],
)
def test_a_method_that_does_nothing_is_reported(tmp_path, method, said):
    recipe = digits(epochs=2, optim={"lr": 1e-3})
    recipe = replace(recipe, stages=(replace(recipe.stages[0], method=method),))
    found = plain(run(recipe, out=tmp_path, device="cpu") / "scores.json")["warnings"]
    assert [said in w for w in found] == [True] if said else found == []


def test_erm_is_not_asked_to_move(tmp_path):
    assert warnings(digits(), [{"stage": 0, "terms": {}}]) == []


# -- one step, looked into ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "passes", "terms"),
    [
        ({"name": "erm"}, (1, 1), None),
        ({"name": "sam", "rho": 0.3}, (2, 2), ["flat"]),
        ({"name": "imbsam", "eta": "few"}, (2, 3), ["head", "tail"]),
        ({"name": "ssesam", "eta": "few"}, (3, 4), ["head", "tail"]),
        ({"name": "focalsam"}, (2, 3), None),
        ({"name": "ccsam", "mix": 0.5}, (1, 1), ["plain", "class"]),
    ],
)
def test_probe_numbers_agree_with_each_other(method, passes, terms):
    recipe = digits(method=method, batch=64)
    data = load(recipe, ".", 0)
    (seen,) = probe(recipe, data)
    assert (seen.forwards, seen.backwards) == passes and seen.stage == 0
    if terms:
        assert [row[0] for row in seen.rows] == terms
    name, *_ = seen.method, seen
    for _, members, mass, radius, objective in seen.rows:
        assert 0 < members <= 64 and 0 < mass <= 64 and math.isfinite(objective)
        assert radius == "at w" or 1e-5 < float(radius.split(" to ")[0]) < 0.5
    masses, values = sum(row[2] for row in seen.rows), sum(row[4] for row in seen.rows)
    assert masses == pytest.approx(64)
    assert (
        values > seen.loss
        if any(row[3] != "at w" for row in seen.rows)
        else values == pytest.approx(seen.loss, rel=1e-5)
    )
    if method["name"] in ("imbsam", "ssesam"):
        few = data.group()["few"]
        assert 0 < seen.rows[1][1] < 64 * float(data.counts[few].sum()) / 417 * 4
        assert seen.rows[0][1] + seen.rows[1][1] == 64
    assert name


def test_probe_looks_into_every_stage_and_leaves_the_gradient_to_nobody():
    recipe = from_tree(
        DIGITS | {"stages": [{"epochs": 1, "method": "sam"}, {"epochs": 1, "method": "ccsam", "train": "head"}]}
    )
    first, second = probe(recipe, load(recipe, ".", 0))
    assert (first.method, second.method, second.stage) == ("SAM", "CCSAM", 1)


def test_probe_mixes_images_where_the_stage_does():
    how = {"method": {"name": "imbsam", "eta": "few"}, "batch": 64}
    data = load(digits(), ".", 0)
    (alone,), (pairs,) = probe(digits(**how), data), probe(digits(**how, mix="mixup"), data)
    assert sum(row[1] for row in pairs.rows) == 128 == 2 * sum(row[1] for row in alone.rows)  # each with both labels
    assert pairs.loss != alone.loss


# -- trackers ----------------------------------------------------------------------------------------------------------


def test_tensorboard_is_told_every_epoch(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = replace(digits(epochs=3, method="sam"), tracker=Tracker("tensorboard", project="mine"))
    folder = run(recipe, out=tmp_path, device="cpu")
    events = next(folder.rglob("events.out.tfevents*"))
    seen = EventAccumulator(str(events.parent))
    seen.Reload()
    rows = runs.read(folder).rows
    assert [e.step for e in seen.Scalars("loss")] == [0, 1, 2]
    assert [e.value for e in seen.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
    assert [e.value for e in seen.Scalars("flat/radius")] == pytest.approx(
        [row["terms"]["flat"]["radius"] for row in rows]
    )


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_is_told_every_setting_and_the_runs_name(name):
    told = {}

    class Ears:
        def init_trackers(self, project, **how):
            told.update(how, project=project)

    recipe = replace(digits(method="sam"), tracker=Tracker(name, project="mine", mode="offline"))
    start_tracker(recipe, Ears(), "a/b", 3)
    config = told["config"]
    assert config["stages.0.method.name"] == "sam" and config["stages.0.method.rho"] == 0.05
    assert config["data.name"] == "digits-lt" and config["seed"] == 3 and config["expect"] == "None"
    assert all(isinstance(v, bool | int | float | str) for v in config.values())
    assert told["project"] == "mine" and told["init_kwargs"].keys() == {name}
    assert "a/b/3" in told["init_kwargs"][name].values() or name == "tensorboard"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, name):
    monkeypatch.setattr("flattail.experiment.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"{name} is not installed: `pip install 'flattail\[{name}\]'`"):
        run(replace(digits(), tracker=Tracker(name)), out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists() and tracked(None, tmp_path) == {}


# -- precision and compilation of a whole run ------------------------------------------------------------------


def test_runs_of_both_precisions_in_one_process(tmp_path):
    for precision in ("bf16", "fp32"):
        folder = run(
            replace(digits(epochs=2, method="sam"), precision=precision), out=tmp_path, label=precision, device="cpu"
        )
        assert plain(folder / "env.json")["dtype"] == precision
        for row in runs.read(folder).rows:
            assert math.isfinite(row["loss"]) and row["terms"]["flat"]["gap"] > 0


def test_a_compiled_run_is_judged_as_a_plain_one(tmp_path, monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model=None, **how: compile(model, **how | {"backend": "aot_eager"}))
    torch._dynamo.reset()
    tree = DIGITS | {
        "model": {"name": "resnet8", "width": 4},
        "stages": [{"epochs": 1, "method": "sam"}, {"epochs": 1, "method": "ccsam"}],
    }
    folders = [run(from_tree(tree | {"compile": c}), out=tmp_path, label=str(c), device="cpu") for c in (True, False)]
    losses = [[row["loss"] for row in runs.read(f).rows] for f in folders]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_model_from_outside_and_a_recipe_in_python(tmp_path):
    recipe = Recipe(from_tree(DIGITS | {"stages": [{"epochs": 1}]}).data, Outside(), (Stage(1, ImbSAM(eta="few")),))
    folder = run(recipe, out=tmp_path, device="cpu")
    assert from_tree(runs.read(folder).recipe) == recipe
    assert scored(folder, views="one", device="cpu").to_json() == plain(folder / "scores.json")["scores"]


@dataclasses.dataclass(frozen=True)
class Outside:
    """A model of one's own."""

    hidden: int = 8

    def build(self, classes, channels=3):
        from torch import nn

        return Split(
            nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, self.hidden), nn.ReLU()),
            nn.Linear(self.hidden, classes),
        )


def test_damaged_weights_are_named(tmp_path, done):
    _, folder, _ = done
    copy = tmp_path / "0"
    copy.mkdir()
    for name in ("recipe.yaml", "scores.json", "log.jsonl"):
        (copy / name).write_bytes((folder / name).read_bytes())
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold this run's weights: train it again"):
        scored(copy, views="one", device="cpu")


# -- mended ------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path, done):
    """A finished run to damage."""
    folder = tmp_path / "3"
    folder.mkdir()
    for path in done[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["scores.json", "logits.npz"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"{}"])
def test_damaged_scores_and_logits_are_made_again_from_the_model(tmp_path, copied, name, damage):
    before = {p.name: p.read_bytes() for p in copied.iterdir()}
    (copied / name).write_bytes(damage(before[name]))
    with pytest.raises(ValueError, match="write it again with `flattail evaluate`"):
        runs.read(copied).logits()
    assert scored(copied, root=tmp_path, device="cpu").to_json() == json.loads(before["scores.json"])["scores"]
    assert {p.name for p in copied.iterdir()} == before.keys()
    assert plain(copied / "scores.json") == json.loads(before["scores.json"])
    assert all(np.array_equal(a, b) for a, b in zip(runs.read(copied).logits(), arrays(before, tmp_path), strict=True))


def test_logits_are_mended_beside_whole_scores_that_stay_as_they_are(tmp_path, copied):
    said = json.loads((copied / "scores.json").read_text()) | {"starts": {"1": {"tau": 0.3}}}
    runs.write_json(copied / "scores.json", said)
    (copied / "logits.npz").write_bytes(b"no archive")
    scored(copied, root=tmp_path, device="cpu")
    assert plain(copied / "scores.json") == said and len(runs.read(copied).logits()) == 2


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"train": "^head|stem", "only": "blocks", "method": "sam"}, "no trainable parameter has 'blocks'"),
        ({"train": "head", "start": "new-head"}, "the backbone is new and stays so"),
        ({"epochs": 0, "start": {"name": "tau-norm", "tau": 0.5}}, "the backbone is new and stays so"),
        ({"train": "backbone", "method": "ccsam"}, "the head has no trainable parameter"),
    ],
)
def test_what_cannot_be_displaced_is_refused_before_anything_is_written(tmp_path, stage, said):
    tree = {"data": "digits-lt", "model": {"name": "resnet8", "width": 4}, "stages": [{"epochs": 1} | stage]}
    with pytest.raises(ValueError, match=rf"recipe\.stages\[0\]: {said}"):
        run(from_tree(tree), out=tmp_path, label="x", device="cpu")
    assert not any(tmp_path.iterdir())


def arrays(files, tmp_path):
    (tmp_path / "l.npz").write_bytes(files["logits.npz"])
    with np.load(tmp_path / "l.npz") as found:
        return found["logits"], found["y"]


def test_lost_logits_are_made_again(tmp_path, copied):
    (copied / "logits.npz").unlink()
    assert scored(copied, root=tmp_path, device="cpu").to_json() == plain(copied / "scores.json")["scores"]


def test_what_cannot_be_mended_is_left_as_it_was(tmp_path, copied):
    (copied / "scores.json").write_bytes(b"{")
    (copied / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="does not hold this run's weights"):
        scored(copied, root=tmp_path, device="cpu")
    assert (copied / "scores.json").read_bytes() == b"{" and not list(copied.glob(".*"))


def test_a_test_half_without_images_of_a_class_is_told(tmp_path):
    write_npz(tmp_path / "d.npz", train=[0] * 20 + [1] * 10 + [2] * 5, val=[0, 1, 2], test=[0, 2] * 6)
    tree = DIGITS | {"data": "npz:d.npz", "stages": [{"epochs": 1, "batch": 16}]}
    folder = run(from_tree(tree), out=tmp_path, root=tmp_path, device="cpu")
    assert plain(folder / "scores.json")["warnings"] == [
        "the test part has no image of 1: means are over the other classes"
    ]


def test_mended_scores_keep_what_starts_found_and_the_best_on_test(tmp_path):
    stages = [{"epochs": 1}, {"epochs": 0, "start": {"name": "tau-norm", "tau": 0.7}}]
    folder = run(from_tree(DIGITS | {"stages": stages}), out=tmp_path, device="cpu", watch=True)
    before = plain(folder / "scores.json")
    assert before["starts"] == {"1": {"tau": 0.7}} and before["best_on_test"]["epoch"] == 0
    (folder / "scores.json").write_text("{")
    scored(folder, root=tmp_path, device="cpu")
    assert plain(folder / "scores.json") == before


# -- data that have changed since ----------------------------------------------------------------------------------


def test_images_that_changed_since_training_are_refused(tmp_path):
    """Else what a model was trained on would stand among what it is tested on."""
    rng = np.random.default_rng(0)

    def written(n):
        write_npz(tmp_path / "d.npz", rng, train=[0] * n + [1] * 10, test=[0, 1] * 6)

    written(20)
    recipe = from_tree(DIGITS | {"data": "npz:d.npz", "stages": [{"epochs": 2, "batch": 16}]})
    folder = run(recipe, out=tmp_path, root=tmp_path, device="cpu")

    def stopped(row):
        if row["epoch"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, out=tmp_path, label="stopped", root=tmp_path, device="cpu", on_epoch=stopped, every=0)
    written(21)
    assert scored(folder, root=tmp_path).to_json() == plain(folder / "scores.json")["scores"]  # of its logits
    with pytest.raises(ValueError, match="was trained on other images than those that are there now"):
        scored(folder, views="one", root=tmp_path, device="cpu")
    with pytest.raises(ValueError, match="was trained on other images than those here"):
        run(recipe, out=tmp_path, label="stopped", root=tmp_path, device="cpu", resume=True)
    (folder / "scores.json").write_text("{")
    with pytest.raises(ValueError, match="was trained on other images than those that are there now"):
        scored(folder, root=tmp_path, device="cpu")  # by what env.json says


# -- models with ways of their own ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tied:
    """Two convolutions that share a weight."""

    head = "linear"

    def build(self, classes, channels=1):
        one, two = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        two.weight = one.weight
        return Split(nn.Sequential(one, two, nn.Flatten()), nn.Linear(64 * channels, classes))


def test_a_model_that_shares_a_weight_is_kept_and_read_again(tmp_path):
    recipe = Recipe(digits().data, Tied(), (Stage(1),))
    folder = run(recipe, out=tmp_path, device="cpu")
    state = load_file(folder / "model.safetensors")
    assert torch.equal(state["backbone.0.weight"], state["backbone.1.weight"])
    again = Tied().build(10)
    again.load_state_dict(state)


@dataclass(frozen=True)
class Pooled:
    """BatchNorm on a single value per image and channel."""

    head = "linear"

    def build(self, classes, channels=1):
        backbone = nn.Sequential(nn.Conv2d(channels, 4, 8), nn.BatchNorm2d(4), nn.Flatten())
        return Split(backbone, nn.Linear(4, classes))


def test_a_last_batch_of_one_image_is_refused_where_batchnorm_cannot_take_it(tmp_path):
    def recipe(**how):  # 417 images
        return Recipe(digits().data, Pooled(), (Stage(1, batch=104, **how),))

    with pytest.raises(ValueError, match=r"recipe\.stages\[0\]: a batch.*has a single image.*drop_last: true"):
        run(recipe(), out=tmp_path, device="cpu")
    assert not any(tmp_path.iterdir())
    assert run(recipe(drop_last=True), out=tmp_path, device="cpu").exists()
    untrained = Stage(0, batch=104, start=TauNorm(1.0))
    data = load(recipe(), tmp_path, 0)
    refuse_impossible(Recipe(data, Pooled(), (Stage(1, batch=100), untrained)), data, Pooled().build(10))


def test_a_pattern_that_spectral_norm_hides_is_refused_before_anything_is_written(tmp_path):
    stage = {"epochs": 1, "method": "sam", "only": r"^head\.weight$", "constraint": "spectral-norm"}
    with pytest.raises(ValueError, match=r"recipe\.stages\[0\]: no trainable parameter has .*parametrizations"):
        run(from_tree(DIGITS | {"stages": [stage]}), out=tmp_path, device="cpu")
    assert not any(tmp_path.iterdir())


def test_logits_that_are_not_finite_are_told(tmp_path):
    """Class 0 would be their answer."""
    value = from_tree(DIGITS | {"stages": [{"epochs": 1}]})
    data = load(value, Path(), 0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    torch.nn.init.constant_(net[1].bias, math.nan)
    outcome, _, y = judged(net, value, data, torch.device("cpu"), epoch=None, said=[])
    assert outcome["warnings"] == [
        f"{len(y)} of {len(y)} test images have logits that are not finite: their answers are none"
    ]
