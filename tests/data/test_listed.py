"""The large sets: official lists with the published counts, generated lists and images, missing images."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from flattail.data import ImageNetLT, INat18, PlacesLT, in_order
from flattail.data.listed import from_lists, read_list, refuse_missing
from flattail.data.profile import Inclusive, Strict

REAL = Path(os.environ.get("FLATTAIL_DATA", "nowhere")) / "lists"
OFFICIAL = {  # name: lines, classes, of each class in a balanced list
    "Places_LT_train.txt": (62500, 365, None),
    "Places_LT_val.txt": (7300, 365, 20),
    "Places_LT_test.txt": (36500, 365, 100),
    "Places_LT_open.txt": (6600, 0, None),
    "ImageNet_LT_val.txt": (20000, 1000, 20),
    "ImageNet_LT_test.txt": (50000, 1000, 50),
    "ImageNet_LT_open.txt": (18000, 0, None),
    "iNaturalist18_val.txt": (24426, 8142, 3),
}


def needs(name):
    return pytest.mark.skipif(
        not (REAL / name).is_file(),
        reason=f"lists/{name} is not here: set FLATTAIL_DATA to the folder that holds lists/",
    )


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in OFFICIAL])
def test_the_official_lists_have_the_published_counts(name):
    lines, classes, each = OFFICIAL[name]
    paths, y = read_list(REAL / name)
    assert len(paths) == len(y) == len(set(paths)) == lines
    if not classes:
        assert y.eq(-1).all()
        return
    counts = torch.bincount(y)
    assert len(counts) == classes and counts.min() >= 1
    if each:
        assert counts.eq(each).all()


@needs("Places_LT_train.txt")
def test_places_has_the_published_groups():
    counts = torch.bincount(read_list(REAL / "Places_LT_train.txt")[1])
    assert (int(counts.max()), int(counts.min())) == (4980, 5)
    assert [int(m.sum()) for m in Strict().group(counts).values()] == [131, 163, 71]
    assert [int(m.sum()) for m in Inclusive().group(counts).values()] == [132, 156, 77]


@needs("Places_LT_train.txt")
def test_the_real_lists_without_images_are_one_message():
    with pytest.raises(FileNotFoundError, match=r"106,300 of 106,300 images are missing under \S+places365, "):
        PlacesLT().load(REAL.parent)


def grow(root, images, pattern, parts, *, write=True):
    """Generated lists ``{part: {relative path: label}}``, and a small JPEG for every line."""
    (root / "lists").mkdir(parents=True)
    for part, lines in parts.items():
        text = "".join(f"{path} {label}\n" for path, label in lines.items())
        (root / "lists" / pattern.format(part)).write_text(text)
        for path in lines if write else ():
            file = root / images / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (len(path), 90, 200)).save(file)
    return root


def scenes(classes=365):
    """A Places-LT of its real number of classes: one train image each, class 3 two more."""
    train = {f"train/scene{c}/1.jpg": c for c in range(classes)} | {f"train/scene3/{i}.jpg": 3 for i in (2, 3)}
    return {
        "train": train,
        "test": {"val/scene0/7.jpg": 0, "val/scene364/8.jpg": 364},
        "val": {"train/scene5/9.jpg": 5},
        "open": {"extra_1.jpg": -1, "extra_2.jpg": -1},
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_generated_lists_and_images(tmp_path, workers):
    data = PlacesLT(size=16).load(grow(tmp_path, "places365", "Places_LT_{}.txt", scenes()))
    assert data.classes == 365 and data.counts[3] == 3 and data.counts.sum() == 367
    assert data.names[3] == "scene3" and data.title == "Places-LT"
    assert (data.train.jitter, data.train.mean) == (0.4, (0.485, 0.456, 0.406))
    assert data.test.y.tolist() == [0, 364] and data.val.y.tolist() == [5]
    (x, y), *_ = data.test.batches(in_order(2, 2), workers=workers)
    assert x.shape == (2, 3, 16, 16) and y.tolist() == [0, 364]
    unknown = PlacesLT(size=16).unknown(tmp_path)
    assert unknown.y.tolist() == [-1, -1]
    assert [y.tolist() for _, y in unknown.batches(in_order(2, 1), workers=workers)] == [[-1], [-1]]


def test_val_is_optional_and_inat_tests_on_its_val(tmp_path):
    parts = scenes()
    del parts["val"]
    assert PlacesLT().load(grow(tmp_path / "a", "places365", "Places_LT_{}.txt", parts)).val is None
    lines = {f"train_val2018/Plantae/{c}/{i}.jpg": c for c in range(4) for i in range(c + 1)}
    root = grow(tmp_path / "b", "inat18", "iNaturalist18_{}.txt", {"train": lines, "val": lines})
    with pytest.raises(ValueError, match=r"iNat-18: class 4 .* has no training sample"):
        INat18().load(root)
    data = from_lists(INat18(), root, "small", "iNaturalist18_{}.txt", classes=4, test="val", val=None)
    assert data.counts.tolist() == [1, 2, 3, 4] and data.names[2] == "Plantae/2" and len(data.test) == 10


def test_missing_images_are_counted_and_the_first_named(tmp_path):
    root = grow(tmp_path, "places365", "Places_LT_{}.txt", scenes())
    gone = [root / "places365" / path for path in ("train/scene1/1.jpg", "train/scene9/1.jpg", "val/scene0/7.jpg")]
    for file in gone:
        file.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        PlacesLT().load(root)
    message = str(caught.value)
    assert message.startswith(f"3 of 370 images are missing under {root / 'places365'}, the first: ")
    for part in ("train/scene1/1.jpg, train/scene9/1.jpg, val/scene0/7.jpg", "Places_LT_{train,test}.txt", "images="):
        assert part in message


def test_missing_lists_are_named_with_their_place(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lists/ImageNet_LT_train.txt: no such list: put the official"):
        ImageNetLT().load(tmp_path)


def test_nothing_missing_is_silent(tmp_path):
    (tmp_path / "a.jpg").touch()
    refuse_missing([str(tmp_path / "a.jpg")] * 3, tmp_path, "")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a/b.jpg 0\nc/d.jpg one\n", 2),
        ("a/b.jpg 0\n\nc/d.jpg 1\n", 2),
        ("a/b.jpg\n", 1),
        ("a/b.jpg 0\nc/d.jpg 1\n 7\n", 3),
        ("a/b.jpg -2\n", 1),
        ("a/b.jpg 0\nc/d.jp", 2),  # cut short
    ],
)
def test_a_line_that_is_no_line_is_numbered(tmp_path, text, line):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=rf'list.txt, line {line}: .* is not "relative/path label"'):
        read_list(tmp_path / "list.txt")


def test_paths_with_spaces_and_empty_lists(tmp_path):
    (tmp_path / "list.txt").write_text("a b/c d.jpg 12\r\n")
    paths, y = read_list(tmp_path / "list.txt")
    assert paths == ["a b/c d.jpg"] and y.tolist() == [12]
    (tmp_path / "list.txt").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_list(tmp_path / "list.txt")
