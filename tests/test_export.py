"""Exports: every format gives the run's logits, the card tells the truth, its snippets run; what cannot be is told."""

import json
import re
import shutil
import sys
from dataclasses import dataclass

import pytest
import torch
import yaml
from commands import asked, refused
from small import DIGITS
from torch import nn

from flattail import export as exporting
from flattail import runs
from flattail.classifier import classifier
from flattail.data import DigitsLT
from flattail.experiment import run
from flattail.export import FORMATS, export, load_export
from flattail.export.card import front_matter
from flattail.models import Split, Timm
from flattail.recipe import from_tree

ONE = {"epochs": 1, "batch": 64}


def trained(out, **changes):
    recipe = DIGITS | {"title": "tiny", "model": {"name": "resnet8", "width": 4}, "stages": [ONE]} | changes
    return run(from_tree(recipe), out=out, label="digits-lt/tiny", device="cpu")


def images(n=500):
    """The test images of digits-LT, as floats in [0, 1]."""
    return DigitsLT().load(None).test.x[:n] / 255


def own_logits(folder):
    return torch.from_numpy(runs.read(folder).logits()[0])


def agree(run, folder, *, scale=1.0):
    """The logits of a program are those of a run, in batches of several sizes."""
    x, expected = images(), scale * own_logits(folder)
    with torch.no_grad():
        for n in (1, 3, 500):
            torch.testing.assert_close(run(x[:n]), expected[:n], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def done(home):
    """What the command wrote, and what it printed; the data are not asked for."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DigitsLT, "load", lambda *args: pytest.fail("the data were asked for"))
        return home / "export", asked("export", home)


# -- every format --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_runs_own_logits_for_any_number_of_images(home, done, name):
    folder, said = done
    agree(FORMATS[name].read(folder / FORMATS[name].file), home)
    (line,) = (line.split() for line in said.splitlines() if line.startswith(FORMATS[name].file))
    assert float(line[1]) < 1e-4, "the largest difference is printed"
    assert f"| `{FORMATS[name].file}` | {line[1]} |" in (folder / "README.md").read_text(), "and on the card"


def test_the_run_is_still_one_run(home, done):
    assert [each.path for each in runs.find([home.parents[1]])] == [home]
    assert {p.name for p in done[0].iterdir()} == {"config.json", "README.md", *(f.file for f in FORMATS.values())}


def test_the_onnx_file_says_what_goes_in_and_out(done):
    import onnx

    model = onnx.load(done[0] / "model.onnx")
    onnx.checker.check_model(model)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", 1, 8, 8], "logits": ["batch", 10]}


def test_what_the_config_says(home, done):
    said, scores = json.loads((done[0] / "config.json").read_text()), runs.read(home).scores
    assert said["classes"] == scores["names"] and said["counts"] == scores["counts"]
    assert said["images"] == scores["images"] and said["images"]["shape"] == [1, 8, 8]
    assert said["groups"] == {"many": [0, 1, 2], "medium": [3, 4, 5, 6], "few": [7, 8, 9]}
    assert said["class_prior"] == pytest.approx([n / sum(said["counts"]) for n in said["counts"]])


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"model": {"name": "resnet8", "width": 4, "head": "causal"}}, 1.0),
        (
            {
                "model": {"name": "resnet8", "width": 4, "head": "cosine"},
                "protocol": {"views": "flip"},
                "stages": [ONE | {"loss": {"name": "ldam", "s": 20.0}}],
            },
            20.0,
        ),
        ({"model": {"name": "timm", "model": "test_vit", "size": 32, "adapter": "lora"}}, 1.0),
    ],
    ids=["causal", "cosines in two views", "an adapted transformer, resized"],
)
def test_any_model_is_exported(tmp_path, changes, scale):
    folder = trained(tmp_path, **changes)
    out = export(folder, formats=["safetensors", "torch"])
    assert out.refused == {} and out.differences["safetensors"] == 0
    agree(load_export(out.folder), folder, scale=scale)
    agree(FORMATS["torch"].read(out.folder / "model.pt2"), folder, scale=scale)


def test_a_loaded_export_can_be_trained_on(done):
    model = load_export(done[0])
    assert not model.training and all(p.requires_grad for p in model.parameters())
    model(images(4)).sum().backward()


# -- the card --------------------------------------------------------------------------------------------------------


def test_the_hub_reads_the_card_and_its_numbers_are_the_runs(home, done):
    from huggingface_hub import ModelCard

    card, scores = ModelCard.load(done[0] / "README.md"), runs.read(home).scores["scores"]
    assert card.data.license is None and "long-tailed-recognition" in card.data.tags and "onnx" in card.data.tags
    found = {each.metric_name: each.metric_value for each in card.data.eval_results}
    assert found["accuracy"] == pytest.approx(scores["all"]) and len(found) == 5
    assert found["accuracy, few classes"] == pytest.approx(scores["groups"]["few"])
    text = card.text
    assert f"| worst class | {100 * scores['worst']:.1f} |" in text and "On 500 test images" in text
    assert "| 0 | 0 | 124 | many |" in text and "few 3 classes of 6 to 12 images" in text
    assert "(Vapnik, NIPS 1991)" in text
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", text, re.S | re.M)
    assert from_tree(yaml.safe_load(recipe)) == from_tree(runs.read(home).recipe)


def test_the_hub_is_told_which_model_was_tuned(home, monkeypatch):
    of = classifier(home)
    assert "base_model" not in front_matter(of, "a name", [])
    monkeypatch.setattr(type(of.recipe.model), "base", Timm("resnet50.a1_in1k", weights="timm").base, raising=False)
    assert front_matter(of, "a name", [])["base_model"] == "timm/resnet50.a1_in1k"
    assert Timm("resnet50.a1_in1k").base is None and Timm("resnet50", weights="weights.pth").base is None


def test_the_snippets_of_the_card_run(home, done, monkeypatch):
    monkeypatch.chdir(done[0])
    snippets = re.findall(r"^```python\n(.*?)^```", (done[0] / "README.md").read_text(), re.S | re.M)
    expected = own_logits(home)[:5]
    assert len(snippets) == 3
    for snippet in snippets:
        names = {"images": images(5)}
        exec(compile(snippet, "card", "exec"), names)
        if "probabilities" in names:
            torch.testing.assert_close(names["probabilities"], expected.softmax(1), rtol=0, atol=1e-4)
        else:
            torch.testing.assert_close(torch.as_tensor(names["logits"]), expected, rtol=0, atol=1e-4)


# -- what cannot be ----------------------------------------------------------------------------------------------------


def test_without_the_extra_its_name_is_told_and_the_others_are_written(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    said = asked("export", home, "--out", tmp_path / "x", "--format", "onnx,safetensors", code=1)
    assert "onnxscript is not installed: `pip install 'flattail[export]'`" in said
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"config.json", "README.md", "model.safetensors"}
    assert "onnx" not in (tmp_path / "x" / "README.md").read_text()
    assert "flattail[export]" in refused("export", home, "--out", tmp_path / "y", "--format", "onnx")


class Choosy(nn.Module):
    """A part that looks at its values to decide what to do."""

    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else x.flatten(1) + 1


@dataclass(frozen=True)
class Stubborn:
    """A model with a part that no graph can hold."""

    def build(self, classes, channels=3):
        first = nn.Conv2d(channels, 4, 3)
        return Split(nn.Sequential(first, nn.Sequential(nn.ReLU(), Choosy())), nn.Linear(144, classes))


def test_the_part_that_cannot_be_exported_is_named(tmp_path):
    folder = trained(tmp_path, model="test_export:Stubborn")
    out = export(folder, formats=["torch", "safetensors"])
    assert "torch.export cannot follow `backbone.1.1`, a Choosy" in out.refused["torch"]
    assert [*out.differences] == ["safetensors"] and not (folder / "export" / "model.pt2").exists()
    agree(load_export(out.folder), folder)


def test_a_format_that_answers_otherwise_is_not_left_behind(home, tmp_path, monkeypatch):
    lies = FORMATS["torch"]._replace(read=lambda path: lambda x: torch.zeros(len(x), 10))
    monkeypatch.setitem(exporting.FORMATS, "torch", lies)
    out = export(home, tmp_path / "x", formats=["torch", "safetensors"])
    assert re.search(r"its logits differ from torch's by .* in a batch of 1, more than", out.refused["torch"])
    assert not (tmp_path / "x" / "model.pt2").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "nothing holds no recipe.yaml"),
        (("unfinished/0",), "holds no finished run"),
        (("RUN", "--format", "tflite"), "--format tflite: choose from safetensors, torch, onnx"),
        (("RUN", "--format", ""), "choose from safetensors, torch, onnx"),
        (("RUN", "--out", "file"), "--out file is a file: name a folder"),
        (("RUN", "--out", "file/deep"), "file"),
    ],
)
def test_a_mistake_is_a_message_and_leaves_nothing_behind(home, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch(), (tmp_path / "unfinished/0").mkdir(parents=True)
    shutil.copy(home / "recipe.yaml", "unfinished/0")
    before = sorted(tmp_path.rglob("*"))
    assert said in refused("export", *(home if w == "RUN" else w for w in words))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_no_export(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file: write it with `flattail export RUN`"):
        load_export(tmp_path)


def test_a_softmax_that_is_no_probability_is_not_called_one(tmp_path):
    folder = trained(tmp_path, stages=[ONE, {"epochs": 0, "start": {"name": "tau-norm", "tau": 1.0}}])
    out = export(folder, tmp_path / "out", formats=["safetensors"]).folder
    card = (out / "README.md").read_text()
    assert "Their softmax is no probability" in card and "calibration error" not in card
    assert json.loads((out / "config.json").read_text())["class_prior"] is None
    agree(load_export(out), folder)
