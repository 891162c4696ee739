"""Predictions for image files: those of the run itself, without its data; tables, and what is told of bad files."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import asked, refused
from PIL import Image
from small import DIGITS
from typer.testing import CliRunner

from flattail import runs
from flattail.classifier import classifier
from flattail.cli import app
from flattail.cli.options import mistakes_told
from flattail.data import DigitsLT, Files, Tensors, in_order
from flattail.data.cifar import resized
from flattail.data.folder_images import Held, Photographs
from flattail.data.pictures import Preparation, found
from flattail.experiment import run
from flattail.predict import Answer, Unreadable, predict, processes
from flattail.recipe import from_tree
from flattail.worlds import softmax_of

ONE = {"epochs": 1, "batch": 64}


def logits(of, files, **how):
    return torch.stack([answer.logits for answer in predict(of, files, device="cpu", **how)])


def own_logits(folder):
    return torch.from_numpy(runs.read(folder).logits()[0])


def trained(out, **changes):
    recipe = DIGITS | {"model": {"name": "resnet8", "width": 4}, "stages": [ONE]} | changes
    return run(from_tree(recipe), out=out, device="cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The test images of digits-LT as PNGs."""
    top = tmp_path_factory.mktemp("digits")
    for i, x in enumerate(DigitsLT().load(top).test.x):
        Image.fromarray(x[0].numpy()).save(top / f"{i:03d}.png")
    return top


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("runs"))


def refuse(*args, **how):
    raise AssertionError("the data were asked for")


# -- the run's own logits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_test_images_as_files_get_the_runs_own_logits_and_the_data_are_not_asked(
    home, digits, monkeypatch, workers
):
    monkeypatch.setattr(DigitsLT, "load", refuse)
    of = classifier(home)
    files = found([digits])
    assert len(files) == 500
    torch.testing.assert_close(logits(of, files, workers=workers), own_logits(home), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "resnet8", "width": 4, "head": "causal"}},
        {"model": {"name": "resnet8", "width": 4, "head": "cosine"}, "protocol": {"views": "flip"}},
        {"stages": [ONE, {"epochs": 0, "start": "disalign"}]},
        {"model": {"name": "timm", "model": "test_vit", "size": 32, "adapter": "lora"}},
    ],
    ids=["causal", "two views", "disalign", "an adapted transformer, resized"],
)
def test_any_model_is_rebuilt(tmp_path, digits, changes):
    folder = trained(tmp_path, **changes)
    few = torch.arange(0, 500, 25)
    files = found([digits])
    found_ones = logits(classifier(folder), [files[i] for i in few])
    torch.testing.assert_close(found_ones, own_logits(folder)[few], rtol=0, atol=2e-5)


def test_pretrained_weights_are_not_fetched_again(tmp_path, digits, monkeypatch):
    from flattail.models import Timm

    def fetched(model, **how):
        return replace(model, weights=None, size=None).build(2, 1).backbone

    monkeypatch.setattr(Timm, "fetched", fetched)
    folder = trained(tmp_path, model={"name": "timm", "model": "test_resnet.r160_in1k", "weights": "timm", "size": 32})
    monkeypatch.setattr(Timm, "fetched", refuse)
    of = classifier(folder)
    assert of.images.mean == pytest.approx((0.5,)), "timm's, not the data's"
    torch.testing.assert_close(logits(of, found([digits])[:9]), own_logits(folder)[:9], rtol=0, atol=2e-5)


def pictures(top):
    """Image files of all kinds, in two classes: odd sizes, grey, palette, alpha, EXIF rotation, JPEG."""
    rng = np.random.default_rng(0)
    for name, n in (("ürsus arctos", 12), ("lynx", 5)):
        (top / name).mkdir(parents=True)
        for i in range(n):
            image = Image.fromarray(rng.integers(0, 256, (20 + 3 * i, 44 - 2 * i, 3), dtype=np.uint8))
            kind = ("RGB", "L", "P", "RGBA", "RGB")[i % 5]
            exif = Image.Exif()
            exif[0x0112] = 6 if i % 5 == 4 else 1
            suffix = "jpg" if kind in ("RGB", "L") else "png"
            image.convert(kind).save(top / name / f"{i}.{suffix}", exif=exif)
    return top


@pytest.mark.parametrize("hold", ["disk", "memory"])
def test_a_streamed_folder_gets_the_runs_own_logits_when_its_images_lie_elsewhere(tmp_path, hold):
    pictures(tmp_path / "train"), pictures(tmp_path / "test")
    data = {"name": "folder", "path": str(tmp_path), "size": 24, "hold": hold}
    folder = trained(tmp_path / "runs", data=data)
    shutil.move(tmp_path / "test", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "train")
    of = classifier(folder)
    assert of.names == ("lynx", "ürsus arctos")
    torch.testing.assert_close(logits(of, found([tmp_path / "elsewhere"])), own_logits(folder), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Files, Photographs, Held])
def test_a_file_is_read_as_its_half_reads_it(tmp_path, kind):
    files = found([pictures(tmp_path)])
    half = kind(files, torch.zeros(len(files), dtype=torch.int64), 28)
    x, _ = next(half.batches(in_order(len(files), len(files))))
    prepared = Preparation.of(half)
    assert Preparation.from_json(json.loads(json.dumps(vars(prepared)))) == prepared
    mean, std = (torch.tensor(each)[:, None, None] for each in (half.mean, half.std))
    mine = torch.stack([(prepared.read(file) / 255 - mean) / std for file in files])
    torch.testing.assert_close(mine, x, rtol=0, atol=1e-5)


# -- other images ---------------------------------------------------------------------------------------------------


def memory(channels, height, width):
    return Preparation("memory", (channels, height, width), (0.5,) * channels, (0.25,) * channels)


def test_images_in_memory_are_shrunk_as_the_data_set_shrinks_them(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    expected = resized(images, 16)
    half = Tensors(expected, torch.zeros(4).long(), (0.5,) * 3, (0.25,) * 3)
    for image, x in zip(images, expected, strict=True):
        Image.fromarray(image).save(tmp_path / "a.png")
        assert Preparation.of(half).read(str(tmp_path / "a.png")).equal(x)


def test_an_image_of_the_right_size_stays_as_it_is_whatever_its_mode(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for name, image in {
        "l.png": Image.fromarray(grey),
        "rgb.png": Image.fromarray(grey).convert("RGB"),
        "rgba.png": Image.fromarray(grey).convert("RGBA"),
        "16.png": Image.fromarray(grey.astype(np.uint16) * 257),
    }.items():
        image.save(tmp_path / name)
        assert memory(1, 8, 8).read(str(tmp_path / name))[0].numpy().tolist() == grey.tolist(), name
        assert memory(3, 8, 8).read(str(tmp_path / name)).numpy().tolist() == [grey.tolist()] * 3, name


def test_a_wide_image_is_cut_to_its_centre_and_a_turned_one_set_upright(tmp_path):
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = [10, 20, 30, 40]
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert memory(1, 4, 4).read(str(tmp_path / "wide.png"))[0].tolist() == [[10, 20, 30, 40]] * 4
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(wide[:, 4:8]).save(tmp_path / "turned.png", exif=exif)
    assert memory(1, 4, 4).read(str(tmp_path / "turned.png"))[0].tolist() == [[n] * 4 for n in (10, 20, 30, 40)]


def test_files_folders_and_patterns_each_once(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.png", "deep/._c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [f"{tmp_path}/{name}" for name in ("a.JPG", "b.png", "deep/c.png")]
    assert found([tmp_path]) == names
    assert found([tmp_path / "b.png", tmp_path, f"{tmp_path}/**/*.png"]) == [names[1], names[0], names[2]]
    assert found([tmp_path / "notes.txt"]) == [f"{tmp_path}/notes.txt"], "a file that is named is tried"


def test_few_files_need_no_processes():
    assert processes(255) == 0 < processes(256)


# -- probabilities ----------------------------------------------------------------------------------------------------


def test_probabilities_are_the_softmax_under_the_prior_trained_for_or_asked_for(home, digits, tmp_path):
    of, files = classifier(home), found([digits])[:50]
    o = own_logits(home)[:50].double()
    plain, flat = ([a.probabilities for a in predict(of, files, under=q, device="cpu")] for q in (None, "uniform"))
    torch.testing.assert_close(torch.stack(plain), o.softmax(1), rtol=0, atol=1e-5)
    log_p = softmax_of(of.recipe, of.counts, {})[0].log_prior
    torch.testing.assert_close(torch.stack(flat), (o - log_p).softmax(1), rtol=0, atol=1e-5)
    only = tmp_path / "q.json"
    only.write_text(json.dumps([0] * 9 + [1]))
    assert all(a.probabilities[9] == 1 for a in predict(of, files, under=str(only), device="cpu"))


def test_the_scale_of_a_loss_on_cosines_belongs_to_the_probabilities(tmp_path, digits):
    stage = ONE | {"loss": {"name": "ldam", "s": 20.0}}
    folder = trained(tmp_path, model={"name": "resnet8", "width": 4, "head": "cosine"}, stages=[stage])
    answers = list(predict(classifier(folder), found([digits])[:20], device="cpu"))
    expected = (20 * own_logits(folder)[:20].double()).softmax(1)
    torch.testing.assert_close(torch.stack([a.probabilities for a in answers]), expected, rtol=0, atol=1e-4)


def test_a_softmax_that_is_no_probability_is_corrected_for_no_prior(tmp_path, digits):
    folder = trained(tmp_path, stages=[ONE, {"epochs": 0, "start": {"name": "tau-norm", "tau": 1.0}}])
    of, files = classifier(folder), found([digits])[:3]
    assert of.log_prior is None and len(list(predict(of, files, device="cpu"))) == 3
    with pytest.raises(ValueError, match=r"TauNorm left logits .* nothing to correct for another prior"):
        list(predict(of, files, under="uniform", device="cpu"))


# -- the command -----------------------------------------------------------------------------------------------------


def test_tables(home, digits, tmp_path):
    of = classifier(home)
    p = own_logits(home)[:4].double().softmax(1)
    files = found([digits])[:4]
    rows = list(csv.DictReader(io.StringIO(asked("predict", home, *files, "--device", "cpu"))))
    assert [*rows[0]] == ["file", "label", "probability", "group"] and [row["file"] for row in rows] == files
    for row, own in zip(rows, p, strict=True):
        best = int(own.argmax())
        assert (row["label"], row["group"]) == (of.names[best], of.group(best)) and of.groups[row["group"]][best]
        assert float(row["probability"]) == pytest.approx(float(own.max()), abs=1e-5)

    out = tmp_path / "täglich.json"
    said = asked("predict", home, *files, "--top", 3, "--probabilities", "--out", out, "--device", "cpu")
    assert said == f"4 images: {out}\n"
    plain = json.loads(out.read_text())
    assert len(plain) == 4 and {"label_2", "probability_2", "group_3", "p_0", "p_9"} <= plain[0].keys()
    for row, own in zip(plain, p, strict=True):
        assert [row[f"p_{c}"] for c in range(10)] == pytest.approx(own.tolist(), abs=1e-5)
        order = [row["label"], row["label_2"], row["label_3"]]
        assert order == [of.names[c] for c in own.argsort(descending=True)[:3]]
    asked("predict", home, *files, "--out", tmp_path / "a.csv", "--device", "cpu")
    assert list(csv.DictReader((tmp_path / "a.csv").open())) == rows


def test_a_screen_shows_the_first_answers_and_the_groups_of_all(home, digits, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(Console, "is_terminal", True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", asked("predict", home, digits, "--top", 2, "--device", "cpu"))
    head, *lines, last = text.splitlines()
    assert head.split() == ["file", "label", "group", "probability", "next"] and len(lines) == 20
    fell = [int(word.rstrip(",")) for word in last.split() if word.rstrip(",").isdigit()]
    assert last.startswith("and 480 more") and fell[0] == 480 and sum(fell[1:]) == 500


def test_a_reader_that_has_seen_enough_is_no_mistake():
    with pytest.raises(BrokenPipeError), mistakes_told():
        raise BrokenPipeError


def test_unreadable_files_are_named_at_the_end_and_the_others_predicted(home, digits, tmp_path):
    good = found([digits])[0]
    (tmp_path / "torn.png").write_bytes(Path(good).read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    out = tmp_path / "a.csv"
    words = ("predict", home, tmp_path / "torn.png", good, tmp_path, "--out", out, "--device", "cpu")
    said = asked(*words, code=1)
    assert "3 of 4 files could not be read" in said
    assert all(name in said for name in ("torn.png (", "text.png (Unident", "empty.jpg (Unident"))
    assert [row["file"] for row in csv.DictReader(out.open())] == [good]
    answers = list(predict(classifier(home), [str(tmp_path / "text.png"), good], device="cpu", workers=1))
    assert [type(a) for a in answers] == [Unreadable, Answer]

    out.unlink()
    said = refused("predict", home, tmp_path, "--out", out, "--device", "cpu")
    assert "none of 3 files is a readable image" in said and not list(tmp_path.glob("*.csv*"))


def test_an_older_run_asks_its_data_and_says_so_where_they_are_gone(home, digits, tmp_path, monkeypatch):
    older = tmp_path / "0"
    shutil.copytree(home, older)
    said = json.loads((older / "scores.json").read_text())
    del said["images"]
    runs.write_json(older / "scores.json", said)
    torch.testing.assert_close(logits(classifier(older), found([digits])), own_logits(home), rtol=0, atol=1e-5)
    result = CliRunner().invoke(app, ["predict", str(older), found([digits])[0], "--device", "cpu"])
    assert result.exit_code == 0 and "that was taken from its data" in " ".join(result.stderr.split())

    def gone(*args):
        raise FileNotFoundError("no images here")

    monkeypatch.setattr(DigitsLT, "load", gone)
    message = refused("predict", older, digits)
    assert "does not say how the run sees images" in message and "no images here" in message


def test_images_that_no_file_can_stand_in_for_are_refused(home, digits):
    of = classifier(home)
    own = replace(of, images=Preparation.of(Tensors(torch.rand(2, 1, 8, 8), torch.zeros(2).long(), (0.0,), (1.0,))))
    with pytest.raises(ValueError, match="files cannot be shown to its model"):
        next(predict(own, found([digits])))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing", "a.png"), "nothing holds no recipe.yaml"),
        (("unfinished/0", "a.png"), "holds no finished run"),
        (("RUN", "absent.png"), "absent.png: no such file, folder or pattern"),
        (("RUN", "*.webp"), "*.webp: no such file"),
        (("RUN", "empty"), "empty holds no image"),
        (("RUN", "a.png", "--out", "a.txt"), "ends in .csv or .json"),
        (("RUN", "a.png", "--out", "absent/a.csv"), "there is no folder absent: make it first"),
        (("RUN", "a.png", "--out", "folder.csv"), "is a folder: name a file in it"),
        (("RUN", "a.png", "--top", "11"), "--top 11: this run knows 10 classes"),
        (("RUN", "a.png", "--top", "0"), "--top"),
        (("RUN", "a.png", "--prior", "sideways"), "no prior of that name"),
        (("RUN", "a.png", "--device", "gpu"), "choose cpu, cuda"),
        (("RUN",), "Missing argument"),
    ],
)
def test_a_mistake_is_a_message_and_leaves_nothing_behind(home, digits, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    shutil.copy(found([digits])[0], "a.png")
    (tmp_path / "empty").mkdir(), (tmp_path / "folder.csv").mkdir(), (tmp_path / "unfinished/0").mkdir(parents=True)
    shutil.copy(home / "recipe.yaml", "unfinished/0")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert said in refused("predict", *(home if w == "RUN" else w for w in words))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
