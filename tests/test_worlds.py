"""A finished run in other worlds: meeting an open set, thresholds, the priors that stages train for, bad input."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from small import DIGITS

from flattail import evaluate, runs
from flattail.answers import features_of, logits_of
from flattail.data import SAMPLERS, Tensors
from flattail.experiment import run
from flattail.losses import LA, LDAM, VS
from flattail.openset import RULES, OpenScores, Seen, open_scores, prototypes, thresholds_of
from flattail.priors import under
from flattail.rebuilt import restored
from flattail.recipe import from_tree
from flattail.worlds import entry, fixed_thresholds, found, met, softmax_of, under_priors


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def finished(out, label, **changes):
    tree = DIGITS | {"title": label, "stages": [{"epochs": 2, "batch": 64}]} | changes
    return run(from_tree(tree), out=out, label=label, device="cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    torch.set_num_threads(1)
    return finished(tmp_path_factory.mktemp("out"), "a/ce", protocol={"validation": 0.2})


@pytest.fixture
def done(original, tmp_path):
    return shutil.copytree(original, tmp_path / "a/ce/0")


@pytest.fixture
def noise(tmp_path):
    """An open set: 60 images of noise, in the closed ones' size."""
    path = tmp_path / "noise.npz"
    np.savez(path, test_images=np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8))
    return path


# -- meeting an open set ----------------------------------------------------------------------------------------------


def by_parts(folder, noise):
    """Seen closed, open and validation images, labels and prototypes, put together from the run's own parts."""
    _, data, model, _ = restored(folder, folder)
    x = torch.from_numpy(np.load(noise)["test_images"])[:, None]
    other = Tensors(x, torch.full((60,), -1), data.test.mean, data.test.std)
    pairs = [
        Seen(logits_of(model, half, device="cpu")[0], features_of(model, half, device="cpu")[0])
        for half in (data.test, other, data.val)
    ]
    at = prototypes(*features_of(model, data.train, device="cpu"), 10)
    return pairs, data, at


def test_a_run_meets_an_open_set(done, noise):
    outcome = met(done, str(noise), root=done, device="cpu")
    (closed, opened, _), data, at = by_parts(done, noise)
    expected = open_scores(closed, data.test.y, opened, at, groups=data.group())
    assert [each.to_json() for each in outcome.scores] == [each.to_json() for each in expected]
    first = outcome.scores[0]
    scores = runs.read(done).scores["scores"]
    assert first.before["all"] == scores["all"] and first.before["few"] == scores["groups"]["few"]
    assert outcome.n == 60 and outcome.threshold == "fixed (0.1)"
    kept = json.loads((done / "open.json").read_text())[entry(str(noise), "0.1")]
    assert kept == json.loads(json.dumps(outcome.to_json()))
    assert OpenScores.from_json(kept["scores"][0]).to_json() == first.to_json()


def test_a_threshold_from_validation_images(done, noise):
    outcome = met(done, str(noise), threshold="val", root=done, device="cpu")
    (_, _, val), data, at = by_parts(done, noise)
    assert {each.rule: each.threshold for each in outcome.scores} == thresholds_of(val, at)
    assert outcome.threshold == f"keeps 95% of {len(data.val)} validation images"
    assert all(each.f_new <= each.f_old for each in outcome.scores)
    again = met(done, str(noise), threshold="val", root=done, device="cpu")
    assert again == outcome and len(runs.read(done).opened) == 1  # entries are replaced, not multiplied
    met(done, str(noise), threshold="0.5", root=done, device="cpu")
    assert [*runs.read(done).opened] == [entry(str(noise), "val"), entry(str(noise), "0.5")]


def test_views_of_the_protocol_and_those_asked_for(done, noise):
    one, flip = (met(done, str(noise), views=views, root=done, device="cpu").scores[0] for views in ("one", "flip"))
    assert one == met(done, str(noise), root=done, device="cpu").scores[0] != flip


def test_losses_on_cosines_are_met_at_their_scale(tmp_path, noise):
    stage = {"epochs": 1, "batch": 64, "loss": "ldam"}
    folder = finished(tmp_path / "o", "a/ldam", stages=[stage], model={**DIGITS["model"], "head": "cosine"})
    cosines = torch.from_numpy(runs.read(folder).logits()[0])
    half = f"logit={30 * cosines.amax(1).median():.6f}"
    scores = met(folder, str(noise), threshold=half, root=folder, device="cpu").scores
    assert scores[1].rule == "logit" and scores[1].lost == pytest.approx(0.5, abs=0.01)
    assert scores[1].before["all"] == runs.read(folder).scores["scores"]["all"]


def test_a_warning_where_a_threshold_rejects_nothing(done, noise):
    outcome = met(done, str(noise), threshold="softmax=0.0", root=done, device="cpu")
    assert outcome.warnings == ["no image fell below the threshold of softmax: choose a higher one"]
    assert math.isnan(outcome.scores[1].threshold)


def test_what_an_open_set_can_be_called(done, noise, tmp_path):
    _, data, _, _ = restored(done, done)
    assert found("digits-lt", tmp_path, data).title == "digits-LT, IF 20, exponential, test images"
    assert len(found("{name: digits-lt, imbalance: 5}", tmp_path, data).half) == 500
    assert (
        len(found("digits-lt:5", tmp_path, data).half)
        == len(found("flattail.data:DigitsLT", tmp_path, data).half)
        == 500
    )
    assert len(found(noise.name, noise.parent, data).half) == len(found(str(noise), done, data).half) == 60


def test_images_of_the_closed_classes_are_warned_of(tmp_path, noise):
    """A closed set whose classes have names: the same names in the folders of the open one."""
    from PIL import Image

    for part in ("train", "test"):
        for c, name in enumerate(("ant", "bee")):
            for i in range(4):
                path = tmp_path / "closed" / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.random.default_rng([c, i]).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    data = {"name": "folder", "path": "closed", "size": 8}
    tree = DIGITS | {"data": data, "stages": [{"epochs": 1, "batch": 4}]}
    folder = run(from_tree(tree), out=tmp_path / "o", label="a/f", root=tmp_path, device="cpu", workers=0)
    outcome = met(folder, "closed/test", root=tmp_path, device="cpu", workers=0)
    assert outcome.warnings[0].startswith("2 open classes have the name of a closed one (ant, bee)")
    assert outcome.n == 8 and outcome.scores[0].auroc == 0.5  # the very same images


def test_bad_input_is_refused_and_nothing_is_kept(done, noise, tmp_path):
    def refusal(opened, **how):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            met(done, opened, root=done, device="cpu", **how)
        assert not (done / "open.json").exists()
        return str(caught.value)

    assert "one that is chosen on test images says nothing of new ones" in refusal(str(noise), threshold="test")
    assert "'high' is no number; write a number (0.1), numbers by rule" in refusal(str(noise), threshold="high")
    assert "no rule is called 'msp': choose from softmax" in refusal(str(noise), threshold="msp=0.1")
    assert "softmax compares probabilities, which 1.5 is not" in refusal(str(noise), threshold="1.5")
    assert "open: nothing is called 'cifar1-lt'; did you mean" in refusal("cifar1-lt")
    assert "or give the path of a folder of images, a .npz or a list" in refusal("nowhere")
    assert "is neither a path nor YAML" in refusal("{a: [")
    np.savez(tmp_path / "wide.npz", images=np.zeros((3, 8, 12), np.uint8))
    assert "another shape: crop them" in refusal(str(tmp_path / "wide.npz"))


def test_val_without_validation_images_is_refused(tmp_path, noise):
    folder = finished(tmp_path / "o", "a/plain")
    with pytest.raises(ValueError, match=r"val needs validation images, .* test images must not choose it"):
        met(folder, str(noise), threshold="val", root=folder, device="cpu")


def test_thresholds_as_they_are_written():
    probabilities = [name for name, rule in RULES.items() if rule.probability]
    assert fixed_thresholds("0.25") == dict.fromkeys(probabilities, 0.25)
    assert fixed_thresholds("softmax=0.3, logit=8,euclidean=-2.5") == {"softmax": 0.3, "logit": 8, "euclidean": -2.5}


# -- class priors -----------------------------------------------------------------------------------------------------


def test_priors_of_a_run(done):
    (uniform, backward), said = under_priors(done, ["uniform", "backward"])
    read = runs.read(done)
    logits, y = (torch.from_numpy(a) for a in read.logits())
    counts = torch.tensor(read.scores["counts"])
    groups = {name: torch.tensor(mask) for name, mask in read.scores["groups"].items()}
    assert said == [] and uniform.plain["all"] == pytest.approx(evaluate(logits, y).balanced)
    assert uniform.plain["few"] == pytest.approx(read.scores["scores"]["groups"]["few"])
    q = counts.flip(0).double() / counts.sum()  # digits fall by class
    log_p = (counts.double() / counts.sum()).log()
    assert backward.to_json() == under(logits, y, q, log_p, groups=groups, name="backward").to_json()
    assert under_priors(done, ["uniform", "backward"], views="one", root=done, device="cpu")[0] == [uniform, backward]


def prior_of(*stages, counts=(70, 20, 10)):
    data = {"name": "digits-lt", "shots": "strict"}  # a rule for any number of classes
    recipe = from_tree(DIGITS | {"data": data, "stages": [{"epochs": 1} | stage for stage in stages]})
    (_, log_p), said = softmax_of(recipe, torch.tensor(counts), {})
    return log_p.exp().tolist(), said


def test_the_prior_that_logits_are_calibrated_for():
    pi = [0.7, 0.2, 0.1]
    assert prior_of({}) == (pytest.approx(pi), [])
    assert prior_of({"sampler": "balanced"}) == (pytest.approx([1 / 3] * 3), [])
    root = [n**0.5 for n in pi]
    assert prior_of({"sampler": "square-root"})[0] == pytest.approx([n / sum(root) for n in root])
    assert prior_of({"loss": "la"})[0] == pytest.approx([1 / 3] * 3)  # balanced softmax: log p(x | c)
    inverse = [1 / n for n in pi]
    assert prior_of({"loss": "la", "sampler": "balanced"})[0] == pytest.approx([n / sum(inverse) for n in inverse])
    assert prior_of({"loss": {"name": "ce", "weights": "inverse"}})[0] == pytest.approx([1 / 3] * 3)
    assert prior_of({}, {"sampler": "balanced", "train": "head"})[0] == pytest.approx([1 / 3] * 3)  # the last stage's


def test_the_prior_of_a_method_that_weighs_classes():
    """CC-SAM's sum over classes counts a class as often as a batch has it; ImbSAM's groups count alike."""
    there = [1 - (1 - p) ** 8 for p in (0.7, 0.2, 0.1)]
    found = prior_of({"method": {"name": "ccsam", "average": "class-sum"}, "batch": 8})[0]
    assert found == pytest.approx([p / sum(there) for p in there], rel=0.1)
    groups = prior_of({"method": {"name": "imbsam", "eta": 15, "over": "members"}, "batch": 64})[0]
    assert groups == pytest.approx([0.7 / 0.9 / 2, 0.2 / 0.9 / 2, 0.5], rel=0.05)
    assert prior_of({"method": "sam"})[0] == pytest.approx([0.7, 0.2, 0.1], rel=1e-12)


def test_weights_that_a_mean_over_classes_cancels_are_in_no_prior():
    loss, batch = {"name": "ce", "weights": "inverse"}, {"batch": 64}
    plain = prior_of({"method": "ccsam"} | batch)[0]
    assert prior_of({"method": "ccsam", "loss": loss} | batch)[0] == pytest.approx(plain)
    samples = {"method": {"name": "ccsam", "average": "samples"}}
    assert prior_of(samples | {"loss": loss} | batch)[0] == pytest.approx([1 / 3] * 3)


def test_the_prior_under_a_mixture():
    """A second label is anybody's, with half of the answer; where that is not so, it is said."""
    method, pi = {"name": "ccsam", "average": "class-sum"}, (0.7, 0.2, 0.1)
    plain = prior_of({"method": method, "batch": 8})[0]
    mixed, said = prior_of({"method": method, "batch": 8, "mix": "mixup"})
    assert mixed == pytest.approx([(a + b) / 2 for a, b in zip(plain, pi, strict=True)]) and not said
    for mix in ("mixup", "cutmix"):
        assert prior_of({"mix": mix}) == (pytest.approx(pi), [])
    weighed = {"loss": {"name": "ce", "weights": "inverse"}}
    groups = {"method": {"name": "imbsam", "eta": 15, "over": "members"}, "batch": 64}
    for stage in (weighed, groups):  # in weight space each label is a sample of its own
        assert prior_of(stage | {"mix": "mixup"}) == (pytest.approx(prior_of(stage)[0]), [])
    hard = {"name": "ccsam", "labels": "hard"}
    for stage in (
        {"mix": "remix"}, {"mix": "cutmix", "method": method}, {"mix": "mixup", "method": method} | weighed,
        {"mix": "mixup", "method": hard}, {"mix": "mixup", "method": {"name": "window", "method": hard}},
    ):  # fmt: skip
        assert prior_of(stage)[1][-1].endswith("gives images second labels: the prior is taken without them")


@pytest.mark.parametrize(
    ("first", "start", "expected"),
    [
        ("ce", {"name": "logit-adjust", "tau": 1.0}, (1, [1 / 3] * 3)),
        ("ce", {"name": "logit-adjust", "tau": 0.0}, (1, [0.7, 0.2, 0.1])),
        ("ce", "scales", (1, [0.7, 0.2, 0.1])),
        ("ce", "disalign", (1, [0.7, 0.2, 0.1])),
        ("ce", {"name": "tau-norm", "tau": 1.0}, (1, None)),
        ("ce", "class-means", (1, None)),
        ("ldam", "class-means", (30, None)),
        ("ldam", {"name": "class-means", "by": "euclidean"}, (1, None)),
        ("ldam", {"name": "logit-adjust", "scale": 30.0}, (30, [1 / 3] * 3)),
        ("ldam", {"name": "logit-adjust", "tau": 0.5, "scale": 15.0}, (30, [1 / 3] * 3)),
        ("ce", {"name": "logit-adjust", "tau": None}, (1, None)),  # chosen, and not kept
    ],
)
def test_what_a_start_without_epochs_makes_of_the_softmax(first, start, expected):
    data, head = {"name": "digits-lt", "shots": "strict"}, {"ldam": "cosine"}.get(first, "linear")
    stages = [{"epochs": 1, "loss": first}, {"epochs": 0, "start": start}]
    recipe = from_tree({"data": data, "model": {"name": "resnet8", "head": head}, "stages": stages})
    (scale, log_p), said = softmax_of(recipe, torch.tensor([70, 20, 10]), {})
    assert (scale, log_p is None) == (expected[0], expected[1] is None)
    if log_p is None:
        assert said[-1].endswith("left logits whose softmax is no probability that is known")
    else:
        assert log_p.exp().tolist() == pytest.approx(expected[1])


def test_a_tau_that_was_found_is_that_of_the_prior():
    recipe = from_tree(
        DIGITS | {"stages": [{"epochs": 1}, {"epochs": 0, "start": {"name": "logit-adjust", "tau": None}}]}
    )
    counts = torch.tensor([70, 20, 10] + [1] * 7)
    (_, log_p), _ = softmax_of(recipe, counts, {"1": {"tau": 0.5}})
    expected = (0.5 * (counts / counts.sum()).log()).softmax(0)
    assert log_p.exp().tolist() == pytest.approx(expected.tolist())


def test_other_priors_need_a_softmax_that_is_a_probability(done, tmp_path):
    tree = yaml.safe_load((done / "recipe.yaml").read_text())
    tree["stages"].append({"epochs": 0, "start": "class-means"})
    (done / "recipe.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=r"ClassMeans left logits .*, so there is nothing"):
        under_priors(done, ["uniform"])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_samplers_draw_the_shares_they_say(name, progress):
    counts = torch.tensor([600, 150, 50])
    y = torch.arange(3).repeat_interleave(counts)
    sampler, g = SAMPLERS[name](), torch.Generator().manual_seed(0)
    drawn = torch.zeros(3)
    for _ in range(40):
        rows = torch.cat(sampler(y, 64, generator=g, progress=progress))
        drawn += torch.bincount(y[rows], minlength=3)
    shares = sampler.shares(counts, progress)
    assert shares.sum().item() == pytest.approx(1) and shares.dtype == torch.float64
    n = drawn.sum()
    assert ((drawn / n - shares).abs() < 4 * (shares * (1 - shares) / n).sqrt() + 1e-3).all()  # four standard errors


def test_scales_of_losses():
    assert [getattr(loss, "scale", 1.0) for loss in (LDAM(), LDAM(cosine=False), VS(), LA())] == [30, 1, 1, 1]


def test_an_unfinished_run_and_a_wrong_prior_are_refused(done, tmp_path):
    (tmp_path / "q.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"shape \[2\]: the run has 10 classes"):
        under_priors(done, ["uniform", str(tmp_path / "q.json")])
    (done / "scores.json").unlink()
    with pytest.raises(ValueError, match="holds no finished run"):
        under_priors(done, ["uniform"])


class Halved:
    """A start of one's own, which does not say what it leaves."""

    sweeps = False

    def kind(self, head):
        return head


def test_a_start_that_does_not_say_what_it_leaves():
    recipe = from_tree(DIGITS | {"stages": [{"epochs": 1}, {"epochs": 0, "start": {"name": "tau-norm", "tau": 1.0}}]})
    silent = dataclasses.replace(recipe.stages[1], start=Halved())
    recipe = dataclasses.replace(recipe, stages=(recipe.stages[0], silent))
    (scale, log_p), said = softmax_of(recipe, torch.tensor([70, 20, 10] + [1] * 7), {})
    assert (scale, log_p) == (1.0, None) and said[-1].startswith("Halved left logits")
