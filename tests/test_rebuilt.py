"""Runs that begin where another has ended, models rebuilt with the heads of their stages, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import DIGITS, same_weights

from flattail import runs
from flattail.answers import logits_of
from flattail.checkpoint import Interrupted
from flattail.examine import examine
from flattail.experiment import run
from flattail.imported import import_run
from flattail.models import Aligned, ResNet8, Scaled
from flattail.rebuilt import load, restored
from flattail.recipe import EvaluationProtocol, from_tree, identity
from flattail.rescored import scored

ONE = {"epochs": 1, "batch": 64}
HEAD = ONE | {"train": "head", "sampler": "balanced"}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def recipe(*stages, **changes):
    return from_tree(DIGITS | {"model": {"name": "resnet8", "width": 4}, "stages": list(stages)} | changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Two finished runs of a first stage, with seeds 0 and 1."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        folder = run(recipe(ONE), seed=seed, out=out, label="digits-lt/ce", device="cpu")
    return folder.parent


def second(first, **stage):
    return recipe(HEAD | {"init": f"{first}/{{seed}}"} | stage)


def plain(path):
    return json.loads(path.read_text())


# -- rebuilt -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start", ["keep", "new-head", "scales", "tau-norm:0.5", "class-means", "disalign", "logit-adjust"]
)
def test_a_finished_run_is_rebuilt_with_the_head_of_its_last_stage(tmp_path, start):
    folder = run(recipe(ONE, HEAD | {"start": start}), out=tmp_path, device="cpu")
    _, data, model, _ = restored(folder, tmp_path)
    logits, _ = runs.read(folder).logits()
    assert torch.equal(logits_of(model, data.test, device="cpu")[0], torch.from_numpy(logits))
    assert scored(folder, views="one", device="cpu").to_json() == plain(folder / "scores.json")["scores"]


def test_what_a_start_found_is_kept_with_the_scores(tmp_path):
    protocol = {"validation": 0.2}
    folder = run(recipe(ONE, {"epochs": 0, "start": "tau-norm"}, protocol=protocol), out=tmp_path, device="cpu")
    found = plain(folder / "scores.json")["starts"]["1"]
    assert found["tau"] in [t / 10 for t in range(21)] and 0 < found["validation accuracy"] <= 1


@pytest.mark.parametrize(("start", "name"), [("scales", "radius"), ("disalign", "sharpness")])
def test_a_head_that_is_no_plain_one_can_be_analysed(tmp_path, start, name):
    few = {"name": "digits-lt", "imbalance": 100.0}
    folder = run(recipe(ONE, HEAD | {"start": start, "method": "ccsam"}, data=few), out=tmp_path, device="cpu")
    assert examine(folder, name, root=tmp_path, device="cpu").exists()


# -- imported ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "kind"), [("scales", Scaled), ("disalign", Aligned)])
def test_weights_of_a_head_that_is_no_plain_one_are_imported_in_another_order_of_classes(tmp_path, start, kind):
    value = recipe(ONE, HEAD | {"start": start})
    folder = run(value, out=tmp_path, device="cpu")
    order = [3, 1, 2, 0, 4, 5, 9, 7, 8, 6]
    theirs = load_file(folder / "model.safetensors")
    by_class = [n for n in theirs if n.startswith("head.") and "confidence" not in n]
    save_file(theirs | {n: theirs[n][order].contiguous() for n in by_class}, tmp_path / "w.safetensors")
    again = import_run(tmp_path / "w.safetensors", value, tmp_path / "in" / "0", class_map=order, device="cpu")
    assert type(restored(again, tmp_path)[2].head) is kind
    same_weights(restored(again, tmp_path)[2], restored(folder, tmp_path)[2])


def test_a_plain_head_is_imported_under_a_recipe_that_would_scale_it(tmp_path, first):
    again = import_run(first / "0" / "model.safetensors", second(first, start="scales"), tmp_path / "0", device="cpu")
    assert runs.read(again).scores["scores"] == runs.read(first / "0").scores["scores"]
    assert "a plain head was imported" in " ".join(runs.read(again).scores["warnings"])
    restored(again, tmp_path)


# -- begun from another run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_a_second_stage_in_a_run_of_its_own_begins_with_the_weights_of_its_seed(tmp_path, first, seed):
    value = second(first, start="scales", train=r"^head\.scales$")
    folder = run(value, seed=seed, out=tmp_path, device="cpu")
    weights, before = load_file(folder / "model.safetensors"), load_file(first / str(seed) / "model.safetensors")
    for name, tensor in before.items():
        assert torch.equal(weights[name.replace("head.", "head.inner.")], tensor)
    env = plain(folder / "env.json")["init"]
    assert env["run"] == f"{first}/{seed}" and env["seed"] == seed
    assert env["recipe"] == identity(from_tree(runs.read(first / str(seed)).recipe)) and len(env["sha256"]) == 64
    assert type(restored(folder, tmp_path)[2].head) is Scaled


def test_a_run_may_begin_from_one_that_has_changed_its_head(tmp_path, first):
    scaled = run(second(first, start="scales"), out=tmp_path, label="a/scaled", device="cpu")
    folder = run(second(scaled.parent, start="disalign"), out=tmp_path, label="a/aligned", device="cpu")
    head = restored(folder, tmp_path)[2].head
    assert type(head) is Aligned and type(head.inner) is Scaled
    assert scored(folder, views="one", device="cpu").to_json() == plain(folder / "scores.json")["scores"]


def test_nothing_but_a_start_and_an_init(tmp_path, first):
    folder = run(recipe({"epochs": 0, "start": "tau-norm:1", "init": f"{first}/0"}), out=tmp_path, device="cpu")
    said = plain(folder / "scores.json")
    assert said["epoch"] is None and said["starts"] == {"0": {"tau": 1.0}} and not runs.read(folder).rows


def test_a_run_with_an_init_is_resumed_like_any(tmp_path, first):
    value = second(first, start="scales", epochs=2)
    whole = run(value, out=tmp_path / "whole", device="cpu")

    def stop(place, steps):
        if tuple(place) == (0, 1, 1):
            raise Interrupted(143)

    with pytest.raises(Interrupted):
        run(value, out=tmp_path / "two", device="cpu", every=0.0, on_step=stop)
    folder = run(value, out=tmp_path / "two", device="cpu", resume=True)
    a, b = (load_file(f / "model.safetensors") for f in (whole, folder))
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    env = plain(folder / "env.json")
    assert env["wall"] >= env["seconds"] - 0.1


def test_a_second_stage_without_a_first_says_which_command_makes_it(tmp_path):
    value = recipe(HEAD | {"init": f"{tmp_path}/digits-lt/ce/{{seed}}"})
    with pytest.raises(
        ValueError, match=r"init: the run .* is not there .*train digits-lt/ce\.yaml --seeds 3 --out .* makes it"
    ):
        run(value, seed=3, out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_first_stage_is_refused(tmp_path, first):
    folder = tmp_path / "ce" / "0"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_bytes((first / "0" / "recipe.yaml").read_bytes())
    with pytest.raises(ValueError, match=r"the run .* is not there .*holds no finished run"):
        run(recipe(HEAD | {"init": str(folder)}), out=tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"name": "digits-lt", "imbalance": 5.0}}, "was trained on other images"),
        ({"protocol": {"validation": 0.1}}, "was trained on other images"),
        ({"model": {"name": "resnet8", "width": 8}}, "trained ResNet8.*width=4.*width=8.*write the same"),
    ],
)
def test_an_init_of_other_data_or_another_model_is_refused(tmp_path, first, change, said):
    with pytest.raises(ValueError, match=rf"recipe\.stages\[0\]\.init: .*{said}"):
        run(recipe(HEAD | {"init": f"{first}/0"}, **change), out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


# -- refused before anything is written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([ONE, {"epochs": 0, "start": "tau-norm"}], r"stages\[1\]: start: tau is chosen on a validation part"),
        ([ONE, HEAD | {"train": "haed"}], r"stages\[1\]: train: no parameter has 'haed' in its name"),
        ([ONE, HEAD | {"rates": {"scales": 2.0}}], r"stages\[1\]: rates: 'scales'"),
        (
            [ONE, HEAD | {"start": {"name": "new-head", "head": "cosine"}, "constraint": "max-norm"}],
            r"stages\[1\]: const",
        ),
        ([ONE, HEAD | {"start": "class-means"}, {"epochs": 0, "start": "tau-norm:1"}], r"stages\[2\]: start: tau-norm"),
    ],
)
def test_stages_that_cannot_be_leave_nothing_behind(tmp_path, stages, said):
    with pytest.raises(ValueError, match=said):
        run(recipe(*stages), out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_test_images_do_not_choose_tau(tmp_path):
    value = replace(recipe(ONE, {"epochs": 0, "start": "tau-norm"}), protocol=EvaluationProtocol("best-on-test"))
    with pytest.raises(ValueError, match="never on test images"):
        run(value, out=tmp_path / "out", device="cpu")


def test_rates_are_a_mapping_or_a_list_of_pairs():
    a, b = (recipe(HEAD | {"rates": rates}) for rates in ({"bias": 2.0, "head": 0.5}, [["bias", 2.0], ["head", 0.5]]))
    assert a == b and a.stages[0].rates == (("bias", 2.0), ("head", 0.5)) and a.model == ResNet8(width=4)


def test_data_that_are_not_there_are_told_with_their_root(tmp_path):
    recipe = from_tree(DIGITS | {"data": "places-lt", "stages": [{"epochs": 1}]})
    with pytest.raises(FileNotFoundError, match=r"Places_LT_train.*looked for under .*--root or FLATTAIL_DATA"):
        load(recipe, tmp_path, 0)


def test_a_network_that_cannot_take_the_images_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"cannot take images of \[1, 8, 8\].*choose another `size`"):
        run(recipe(ONE, model="timm:vit_tiny_patch16_224"), out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
