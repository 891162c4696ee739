"""Analyses of finished runs: kept, resumed part by part, recomputed when options change or a file is damaged."""

import json

import numpy as np
import pytest

from flattail import runs
from flattail.analysis import ANALYSES
from flattail.examine import examine, method_of, options_of, plain_values
from flattail.experiment import run
from flattail.losses import GCL, IB, LADE
from flattail.recipe import RecipeError, from_tree
from flattail.sharp import SAM, SSESAM

FAST = {"hessian": ["classes=0,few", "samples=6", "subsets=1", "steps=8", "probes=1"], "radius": ["samples=6"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tree = {
        "data": "digits-lt",
        "model": {"name": "resnet8", "width": 4},
        "stages": [{"epochs": 1, "batch": 64, "loss": {"name": "ce", "weights": "effective"}}],
    }
    return run(from_tree(tree), out=tmp_path_factory.mktemp("runs"), label="digits/tiny", device="cpu")


def counted(monkeypatch):
    """Names of the parts that are computed from now on."""
    parts = []
    write = runs.write_arrays
    monkeypatch.setattr(
        runs, "write_arrays", lambda path, arrays: (parts.append(str(arrays.get("part", ""))), write(path, arrays))[1]
    )
    return parts


def forget(folder, name):
    """Make room for another question."""
    for path in (folder / "analysis").glob(f"{name}.*"):
        path.unlink()


def test_arrays_and_options_are_kept(folder):
    path = examine(folder, "hessian", sets=FAST["hessian"], device="cpu")
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["name"].tolist() == ["0", "few"]
        assert (arrays["lambda_max"] >= arrays["lambda_min"]).all()
    said = json.loads((folder / "analysis/hessian.json").read_text())
    assert said["options"]["samples"] == 6
    assert said["split"] == "train"
    assert not (folder / "analysis/hessian.parts").exists()


def test_the_same_question_is_not_computed_again(folder, monkeypatch):
    examine(folder, "radius", sets=FAST["radius"], device="cpu")
    parts = counted(monkeypatch)
    examine(folder, "radius", sets=FAST["radius"], device="cpu")
    assert parts == []
    with pytest.raises(ValueError, match=r"radius\.npz answers a question with other options: move it"):
        examine(folder, "radius", sets=["samples=5"], device="cpu")
    with pytest.raises(ValueError, match="other options, split: move"):
        examine(folder, "radius", sets=["samples=5"], split="test", device="cpu")
    forget(folder, "radius")
    examine(folder, "radius", sets=["samples=5"], device="cpu")
    assert len(parts) == 11  # ten classes and the whole


def test_an_interrupted_analysis_goes_on_and_a_damaged_part_is_computed_again(folder, monkeypatch):
    sets = ["samples=4"]
    begun = []
    forget(folder, "radius")

    def stop(name, step, steps):
        if name not in begun:
            begun.append(name)
        if len(begun) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(folder, "radius", sets=sets, device="cpu", progress=stop)
    kept = sorted((folder / "analysis/radius.parts").glob("*.npz"))
    assert kept
    kept[0].write_bytes(kept[0].read_bytes()[:50])
    parts = counted(monkeypatch)
    examine(folder, "radius", sets=sets, device="cpu")
    assert len(parts) == 10 - (len(kept) - 1) + 1


@pytest.mark.parametrize(("name", "sets"), [*((name, []) for name in ANALYSES), ("sharpness", ["method=pgd"])])
def test_options_at_their_defaults_are_recognised_when_asked_again(folder, monkeypatch, name, sets):
    """Also 1e-06, which YAML takes for a text, and the threshold of PGD, which is infinite."""
    parts = []

    def found(self, *_, done, on_part, **__):
        for part in [part for part in ("one", "two") if part not in done]:
            on_part(part, {"name": np.array([part])})
            parts.append(part)
            if part == "one":
                raise RuntimeError("stopped")
        return {"name": np.array(["one", "two"])}

    monkeypatch.setattr(ANALYSES[name], "__call__", found)
    forget(folder, name)
    with pytest.raises(RuntimeError, match="stopped"):
        examine(folder, name, sets=sets, device="cpu")
    first, again = (examine(folder, name, sets=sets, device="cpu") for _ in range(2))
    assert first == again
    assert parts == ["one", "two"]
    forget(folder, name)


def test_sharpness_is_that_of_the_run_or_of_any_method():
    plain = from_tree({"data": "digits-lt", "model": "resnet8", "stages": [{"epochs": 1}]})
    sam = from_tree({"data": "digits-lt", "model": "resnet8", "stages": [{"epochs": 1, "method": "ssesam"}]})
    assert method_of(plain, None) == SAM()
    assert method_of(sam, None) == SSESAM()
    assert method_of(sam, {"name": "sam", "rho": 0.3}) == SAM(0.3)


@pytest.mark.parametrize(
    ("name", "sets", "said"),
    [
        ("hessian", ["sample=3"], "did you mean `samples`"),
        ("hessian", ["samples=many"], "hessian.samples"),
        ("hessian", ["samples"], "write option=value"),
        ("radius", ["other=x"], "radius has no `other`"),
    ],
)
def test_wrong_options_are_refused(name, sets, said):
    with pytest.raises(RecipeError, match=said):
        options_of(name, sets)


def test_wrong_questions_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="did you mean `hessian`"):
        examine(folder, "hesian", device="cpu")
    with pytest.raises(ValueError, match="no val images"):
        examine(folder, "radius", split="val", device="cpu")
    forget(folder, "hessian")
    with pytest.raises(ValueError, match="is no class"):
        examine(folder, "hessian", sets=["classes=11"], device="cpu")
    with pytest.raises(FileNotFoundError):
        examine(tmp_path, "radius", device="cpu")


@pytest.mark.parametrize("loss", [IB(), GCL(), LADE()], ids=repr)
def test_a_loss_that_is_no_function_of_a_samples_logits_is_refused(loss):
    with pytest.raises(ValueError, match=r"no function of a sample's logits alone.*`--loss ce`"):
        plain_values(loss)
