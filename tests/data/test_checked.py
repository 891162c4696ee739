"""`flattail data check` and `prepare`: whole sets, every way of not being whole, and the lists of iNaturalist."""

import json
import re

import numpy as np
import pytest
import torch
import yaml
from trees import photograph, scaled_places
from typer.testing import CliRunner

from flattail.cli import app
from flattail.data import CIFAR10LT, DATASETS, Folder, ImageNetLT, INat18, Npz, PlacesLT
from flattail.data.checked import OFFICIAL, check, published
from flattail.data.inat import prepare
from flattail.data.profile import Strict


def asked(*words, code=0):
    result = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout if code < 2 else result.stderr


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A scaled Places-LT, not to be changed."""
    root = tmp_path_factory.mktemp("scenes")
    return root, scaled_places(root, 0.002, (12, 10))


def official(root, kind=PlacesLT):
    """The official number of lines of each class, no images."""
    _, classes, lists = OFFICIAL[kind]
    (root / "lists").mkdir(parents=True, exist_ok=True)
    for one in lists:
        counts = published(kind).tolist() if one.part == "train" else [one.each or 0] * classes
        text = "".join(f"{one.part}/{c}/{i}.jpg {c}\n" for c, n in enumerate(counts) for i in range(n))
        text = text or "".join(f"{one.part}/{i}.jpg -1\n" for i in range(one.images))
        (root / "lists" / one.file).write_text(text)
    return root / "lists"


def test_published_counts_are_the_published_ones():
    places, imagenet = published(PlacesLT), published(ImageNetLT)
    assert (len(places), int(places.sum()), int(places.max()), int(places.min())) == (365, 62_500, 4980, 5)
    assert (len(imagenet), int(imagenet.sum()), int(imagenet.max()), int(imagenet.min())) == (1000, 115_846, 1280, 5)
    assert [int(m.sum()) for m in Strict().group(places).values()] == [131, 163, 71]
    assert [int(m.sum()) for m in Strict().group(imagenet).values()] == [385, 479, 136]
    assert published(INat18) is None


@pytest.mark.parametrize("kind", [PlacesLT, ImageNetLT])
def test_official_lists_without_images(tmp_path, kind):
    official(tmp_path, kind)
    found = check(kind(), tmp_path)
    assert {part.remark for part in found.parts} == {"as published"} and len(found.parts) == 4
    (one,) = found.wrong
    files = sum(each.images for each in OFFICIAL[kind][2] if each.part != "open")
    assert one.number == found.missing == found.files == files and len(one.first) == 20
    assert one.first[0] == f"{kind().images}/train/0/0.jpg"
    assert re.search(r"none of the [\d,]+ open-set images is there", found.notes[0])
    assert found.decoded == 0 and check(kind(), tmp_path, images=False).decoded is None
    assert sum(found.groups.values()) == OFFICIAL[kind][1] and len(found.fingerprint) == 12


def test_the_fingerprint_is_that_of_a_run(scenes):
    root, counts = scenes
    found, data = check(PlacesLT(), root, images=False), PlacesLT().load(root)
    assert found.fingerprint == data.fingerprint
    assert found.parts[0].counts.tolist() == counts == data.counts.tolist()


def test_counts_that_differ_are_named_class_by_class(tmp_path):
    lists = official(tmp_path)
    train = lists / "Places_LT_train.txt"
    lines = train.read_text().splitlines()
    train.write_text("\n".join([line for line in lines if line != "train/3/0.jpg 3"] + ["train/4/x.jpg 4"] * 2) + "\n")
    said = [(one.what, one.first) for one in check(PlacesLT(), tmp_path, images=False).wrong]
    n = published(PlacesLT).tolist()
    off = (
        f"class 3: {n[3] - 1:,} images, published {n[3]:,}",
        f"class 4: {n[4] + 2:,} images, published {n[4]:,}",
    )
    assert ("lists/Places_LT_train.txt names 62,501 images, the published list 62,500", ()) in said
    assert ("classes of lists/Places_LT_train.txt do not have the published number of images", off) in said
    assert ("images are named more than once in lists/Places_LT_train.txt", ("train/4/x.jpg",)) in said


def test_renumbered_classes_are_no_mistake_but_labels_outside_and_leaks_are(tmp_path):
    lists = official(tmp_path)
    train = lists / "Places_LT_train.txt"
    lines = [line.rpartition(" ") for line in train.read_text().splitlines()]
    train.write_text("".join(f"{path} {364 - int(c)}\n" for path, _, c in lines))
    found = check(PlacesLT(), tmp_path, images=False)
    assert found.parts[0].remark == "classes in another order than the published" and len(found.wrong) == 1
    with train.open("a") as file:
        file.write("test/0/0.jpg 365\n")
    said = {one.what: one.first for one in check(PlacesLT(), tmp_path, images=False).wrong}
    assert said["labels of lists/Places_LT_train.txt are outside 0…364"] == ("label 365: 1 images",)
    assert said["images are trained and tested on"] == ("test/0/0.jpg",)


def test_unreadable_images_are_named_with_the_reason(tmp_path):
    scaled_places(tmp_path, 0.0002, (12, 10))
    images = tmp_path / "places365" / "train"
    (images / "scene0" / "00000000.jpg").write_text("no image")
    (images / "scene1" / "00000000.jpg").unlink()
    seen = []
    found = check(PlacesLT(), tmp_path, told=lambda done, of: seen.append((done, of)))
    said = {one.what: one for one in found.wrong}
    assert said["images listed are not below " + str(tmp_path)].first == ("places365/train/scene1/00000000.jpg",)
    broken = said["images cannot be read"]
    assert broken.number == 1 and broken.first[0].startswith(
        "places365/train/scene0/00000000.jpg (UnidentifiedImageErr"
    )
    assert found.decoded == found.files - 1 and seen[0] == (0, found.decoded) and seen[-1] == (found.decoded,) * 2
    assert not any("cannot be read" in one.what for one in check(PlacesLT(), tmp_path, images=False).wrong)


def made(name, root):
    """A data set of every kind, whole, and as a recipe has it."""
    if name == "npz":
        arrays = {"train_images": np.zeros((6, 8, 8), np.uint8), "train_labels": np.array([0, 0, 0, 0, 1, 1])}
        arrays |= {"test_images": np.zeros((2, 8, 8), np.uint8), "test_labels": np.array([0, 1])}
        np.savez(root / "a.npz", **arrays)
        return Npz("a.npz")
    if name == "folder":
        for part, n in (("train", 3), ("test", 1)):
            for c in "ab":
                for i in range(n):
                    photograph(root / "pets" / part / c / f"{i}.jpg", i)
        return Folder("pets")
    return DATASETS[name]()


@pytest.mark.parametrize("name", ["digits-lt", "npz", "folder"])
def test_every_other_kind_of_data_set_is_whole_or_says_why(tmp_path, name):
    dataset = made(name, tmp_path)
    found = check(dataset, tmp_path)
    assert found.wrong == [] and found.fingerprint == dataset.load(tmp_path).fingerprint
    assert [part.source for part in found.parts] == ["train", "test"]
    assert found.decoded == (8 if name == "folder" else None)


@pytest.mark.parametrize("name", ["cifar10-lt", "cifar100-lt", "imagenet-lt", "places-lt", "inat18"])
def test_what_is_not_there_is_said_and_nothing_is_downloaded(tmp_path, name, monkeypatch):
    def never(*args, **how):
        raise AssertionError("a download")

    monkeypatch.setattr("flattail.data.cifar.download_url", never)
    found = check(DATASETS[name](), tmp_path)
    assert found.wrong and not any(tmp_path.iterdir())


def test_cifar_from_a_prepared_file(tmp_path):
    from flattail.data.profile import long_tail, ranks

    counts = long_tail("exponential", 5000, 10, 200)
    y = torch.arange(10).repeat_interleave(counts).numpy()
    index = np.concatenate([order[:n] for order, n in zip(ranks([5000] * 10, "cao"), counts.tolist(), strict=True)])
    images = np.zeros((len(y), 32, 32, 3), np.uint8)
    np.savez(
        tmp_path / "cifar10-lt200.npz",
        train_images=images, train_labels=y, train_index=index, test_images=images[:10], test_labels=np.arange(10),
    )  # fmt: skip
    found = check(CIFAR10LT(200), tmp_path)
    assert found.wrong == [] and found.parts[0].remark == "as published" and found.parts[0].images == 11_203
    assert check(CIFAR10LT(100), tmp_path).wrong


def test_a_broken_image_of_a_folder_held_in_memory_is_found_as_well(tmp_path):
    made("folder", tmp_path)
    (tmp_path / "pets/train/a/1.jpg").write_text("no image")
    found = check(Folder("pets", hold="memory"), tmp_path)
    assert [(one.what, one.number) for one in found.wrong] == [("images cannot be read", 1)]


# -- the commands ----------------------------------------------------------------------------------------------


def test_the_command_says_what_is_there_and_exits_with_1_if_it_is_not_whole(tmp_path, scenes):
    assert asked("data", "check", "digits-lt/ce").endswith("whole\n")
    root, counts = scenes
    said = asked("data", "check", "places-lt/ldam-drw-sam", "--root", root, "--quick", code=1)
    assert f"lists/Places_LT_train.txt  {sum(counts):>6,}" in said and "none decoded" in said
    assert "the published list 62,500" in said and said.endswith("not whole\n")
    assert "images cannot be read" not in asked("data", "check", "places-lt/ce", "--root", root, code=1)
    official(tmp_path)
    said = asked("data", "check", "places-lt/ce", "--no-images", "--root", tmp_path, code=1)
    assert said.count("  places365/") == 20 and "and 106,280 more" in said


def test_mistakes_are_messages(tmp_path):
    assert "did you mean" in asked("data", "check", "places-lt/cee", code=2)
    assert "folder of 12 recipes" in asked("data", "check", "places-lt", code=2)
    assert "nothing to prepare for 'cifar'" in asked("data", "prepare", "cifar", code=2)
    said = asked("data", "prepare", "inat18", "--root", tmp_path, code=2)
    assert said.startswith("flattail: train2018.json is in none of ") and "--json" in said
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"data": "npz:none.npz", "model": "resnet8", "stages": [{"epochs": 1}]}))
    assert "none.npz: no such file" in asked("data", "check", recipe, "--root", tmp_path, code=1)


# -- iNaturalist -----------------------------------------------------------------------------------------------


def annotations(folder, part, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    tree = {
        "images": [{"id": i, "file_name": f"train_val2018/Aves/{i}.jpg", "width": 800} for i in images],
        "annotations": [{"id": 1000 + i, "image_id": i, "category_id": c} for i, c in labels.items()],
    }
    path = folder / f"{part}2018.json"
    path.write_text(json.dumps(tree))
    return path


@pytest.mark.parametrize("place", ["inat18", "lists", "."])
def test_lists_of_inaturalist_pair_images_and_annotations_by_their_number(tmp_path, place):
    annotations(tmp_path / place, "train", [7, 2, 5], {2: 0, 5: 1, 7: 1})  # in another order than the images
    annotations(tmp_path / place, "val", [9], {9: 0})
    said = asked("data", "prepare", "inat18", "--root", tmp_path)
    assert said.splitlines() == [
        f"{tmp_path}/lists/iNaturalist18_train.txt: 3 images",
        f"{tmp_path}/lists/iNaturalist18_val.txt: 1 images",
    ]
    train = tmp_path / "lists" / "iNaturalist18_train.txt"
    lines = ["train_val2018/Aves/7.jpg 1", "train_val2018/Aves/2.jpg 0", "train_val2018/Aves/5.jpg 1"]
    assert train.read_text().splitlines() == lines
    assert list(prepare(tmp_path).values()) == [3, 1], "once more is the same"
    train.write_text("something else\n")
    with pytest.raises(ValueError, match="says otherwise than the JSON files"):
        prepare(tmp_path)
    assert train.read_text() == "something else\n"


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        ([1, 2], {1: 0}, "image 2 has no entry or no label"),
        ([1], {1: 0, 3: 0}, "image 3 has no entry or no label"),
        ([1, 1], {1: 0}, "two entries or two labels"),
        ([], {}, "names no image"),
        ([1], {1: "bird"}, "no whole numbers"),
    ],
)
def test_annotations_that_do_not_fit(tmp_path, images, labels, said):
    annotations(tmp_path, "train", images, labels)
    annotations(tmp_path, "val", [9], {9: 0})
    with pytest.raises(ValueError, match=rf"train2018.json is not an annotation file of iNaturalist 2018.*{said}"):
        prepare(tmp_path)
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}'])
def test_json_that_is_none_of_inaturalist_s(tmp_path, text):
    (tmp_path / "train2018.json").write_text(text)
    annotations(tmp_path, "val", [9], {9: 0})
    with pytest.raises(ValueError, match="is not an annotation file of iNaturalist 2018"):
        prepare(tmp_path, source=tmp_path)


def test_a_list_of_inaturalist_that_is_missing_names_what_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="or write it by `flattail data prepare inat18`"):
        INat18().load(tmp_path)
    assert "data prepare inat18" in check(INat18(), tmp_path).wrong[0].what


def test_inaturalist_s_extremes_are_compared(tmp_path):
    (tmp_path / "lists").mkdir()
    text = "".join(f"a/{c}.jpg {c}\n" for c in range(8142))
    for part in ("train", "val"):
        (tmp_path / "lists" / f"iNaturalist18_{part}.txt").write_text(text)
    said = [one.what for one in check(INat18(), tmp_path, images=False).wrong]
    assert "lists/iNaturalist18_train.txt: the classes have 1 to 1 images, published are 1,000 to 2" in said
    assert "lists/iNaturalist18_val.txt names 8,142 images, the published list 24,426" in said
    assert "images are trained and tested on" in said


def test_options_are_these():
    import click
    import typer

    group = typer.main.get_command(app).commands["data"]
    found = {n: {o for p in c.get_params(click.Context(c)) for o in p.opts} for n, c in group.commands.items()}
    assert found == {
        "check": {"recipe", "--set", "--root", "--quick", "--no-images", "--help"},
        "prepare": {"name", "--root", "--json", "--help"},
    }
