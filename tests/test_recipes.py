"""The shipped recipes: in step with their table, true to the protocols they name, and able to train.

A test for every file reads and builds it; what trains is one recipe for each structure, whatever the numbers in it.
"""

import importlib.util
import math
import re
import shutil
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator

from flattail.averages import AVERAGES
from flattail.constraints import CONSTRAINTS
from flattail.data import CIFAR10LT, CIFAR100LT, DigitsLT, LongTail, Tensors
from flattail.data.longtail import assembled
from flattail.data.mix import MIXES, Mixup
from flattail.data.profile import Strict, long_tail
from flattail.data.samplers import Balanced
from flattail.losses import LDAM, LOSSES
from flattail.models import ResNet8, ResNet34Cifar
from flattail.optim import Constant, Cosine
from flattail.recipe import Expect, Recipe, from_tree, read, to_tree, write
from flattail.sharp import ASAM, CCSAM, ERM, METHODS, SAM, SSESAM, Every, FocalSAM, ImbSAM, Window
from flattail.stage import Stage, cancelled, freeze
from flattail.starts import STARTS
from flattail.train import fit

FOLDER = Path(__file__).parent.parent / "recipes"
PATHS = sorted(p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.yaml"))
BATCH = 8


def loaded_table(folder: Path):
    spec = importlib.util.spec_from_file_location(f"recipe_table_{len(sys.modules)}", folder / "table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TABLE = loaded_table(FOLDER)


def recipe(path: str) -> Recipe:
    return read(FOLDER / f"{path}.yaml")


# -- the files -----------------------------------------------------------------------------------------


def test_table_and_files_are_in_step():
    assert TABLE.main(check=True) == 0
    assert [one.path for one in TABLE.shipped()] == list(dict.fromkeys(one.path for one in TABLE.shipped()))
    assert sorted(one.path for one in TABLE.shipped()) == PATHS


def test_check_finds_a_changed_a_missing_and_a_surplus_file(tmp_path, capsys):
    shutil.copytree(FOLDER, tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    table = loaded_table(tmp_path / "recipes")
    assert table.main(check=True) == 0
    (tmp_path / "recipes/digits-lt/ce.yaml").open("a").write("# more\n")
    (tmp_path / "recipes/digits-lt/imbsam.yaml").unlink()
    (tmp_path / "recipes/digits-lt/other.yaml").write_text("title: x\n")
    assert table.main(check=True) == 1
    named = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert named == ["digits-lt/ce.yaml", "digits-lt/imbsam.yaml", "digits-lt/other.yaml"]
    assert table.main(check=False) == 0
    assert table.main(check=True) == 0


def test_every_row_of_the_papers_tables_has_its_recipes():
    saddle = [f"{a}{b}" for a in ("ce", "ce-drw", "ldam-drw", "vs", "vs-drw") for b in ("", "-sam")]
    sse = [f"r34-{a}{b}" for a in ("ce", "ldam", "la", "vs") for b in ("", "-sam", "-imbsam", "-ssesam")]
    cc = ["ce-mixup", "ldam-drw", "causal", "mixup-crt", "mislas", "vs-sam", "gcl", "ccsam"]
    with_ccsam = [f"ccsam-{name}" for name in ("ldam-drw", "vs", "crt", "mislas", "gcl")]
    for c in (10, 100):
        hundred = [*saddle, *sse, *cc, *with_ccsam, "ce-drw-pgd", "ce-drw-lpf-sgd", "focalsam", "ccsam-released"]
        assert {f"cifar{c}-lt-100/{name}" for name in hundred} <= set(PATHS)
        for factor in (200, 50):
            assert {f"cifar{c}-lt-{factor}/{name}" for name in [*saddle, *cc, *sse[:4]]} <= set(PATHS)
        assert {f"cifar{c}-lt-step-100/{name}" for name in saddle} <= set(PATHS)
    assert {f"cifar100-lt-100/ablation-{name}" for name in ("dir", "mag", "dir-mag", "dir-mag-stage2")} <= set(PATHS)
    two_stage = [
        f"{a}-{b}" for a in ("crt", "mislas", "gcl") for b in ("swa", *(f"{o}{w}" for o in OPERATIONS for w in STAGES))
    ]
    one_stage = [f"ldam-drw-{b}" for b in ("swa", *(f"{o}1" for o in OPERATIONS))]
    grid = [p.split("/")[1] for p in PATHS if p.startswith("cifar100-lt-100-flattened/")]
    assert sorted(grid) == sorted([*two_stage, *one_stage])


OPERATIONS, STAGES = ("sn", "gp", "mp"), ("1", "2", "12")


def test_everything_there_is_to_choose_is_in_a_recipe():
    def words(tree):
        inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
        return {tree} if isinstance(tree, str) else {word for each in inner for word in words(each)}

    found = {word for path in FIRST.values() for word in words(to_tree(recipe(path).stages))}
    for table in (METHODS, LOSSES, STARTS, AVERAGES, CONSTRAINTS, MIXES):
        assert set(table) - {"every"} <= found


@pytest.mark.parametrize("path", PATHS)
def test_recipe_reads_back_from_what_it_writes(path):
    this = recipe(path)
    for defaults in (False, True):
        assert from_tree(yaml.safe_load(write(this, defaults=defaults))) == this
    about, command = (FOLDER / f"{path}.yaml").read_text().splitlines()[:2]
    assert about.startswith("# ") and len(about) <= 120
    assert command == f"# flattail train recipes/{path}.yaml"
    assert this.title and this.notes and any("ours" in note.lower() for note in this.notes)


def test_no_recipe_has_class_weights_that_its_method_cancels():
    data = DigitsLT().load(Path())
    assert not any(cancelled(recipe(path).stages, data) for path in PATHS)
    both = Stage(epochs=1, method=CCSAM(), loss=LDAM(weights="effective"))
    for method in (CCSAM(), CCSAM(mix=0.5), Window(CCSAM(), 0.2, 0.5), Every(CCSAM(), 3), CCSAM(scope="all")):
        (said,) = cancelled([replace(both, method=method)], data)
        assert said.startswith("stage 0: ") and "average: samples" in said
    for method in (CCSAM(average="samples"), CCSAM(mix=0.0), SAM(), ImbSAM(eta=10, over="members")):
        assert cancelled([replace(both, method=method)], data) == []
    assert cancelled([replace(both, loss=LDAM())], data) == []


def test_titles_are_unique_within_a_folder():
    for folder in {path.split("/")[0] for path in PATHS}:
        titles = [recipe(path).title for path in PATHS if path.startswith(f"{folder}/")]
        assert sorted(set(titles)) == sorted(titles)


def test_expected_figures_are_those_listed_with_a_source():
    rows = importlib.import_module("rows.shipped")
    published = rows.PUBLISHED
    assert published.keys() <= set(PATHS)
    for path in PATHS:
        expect = recipe(path).expect
        if path in published:
            assert (expect.accuracy, expect.source) == published[path]
            assert expect.source and expect.status == "paper-only"
        else:
            assert expect == rows.measured(path)


def test_what_is_called_measured_is_the_mean_of_the_kept_runs(tmp_path, monkeypatch):
    rows = importlib.import_module("rows.shipped")
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    for seed, value in enumerate((0.5, 0.6, 0.731)):
        (tmp_path / "a/b" / str(seed)).mkdir(parents=True)
        (tmp_path / "a/b" / str(seed) / "scores.json").write_text(f'{{"scores": {{"balanced": {value}}}}}')
        assert (rows.measured("a/b") is None) == (seed < 2)
    assert rows.measured("a/b") == Expect(61.0, "results/README.md, mean of 3 seeds", "measured")


# -- the protocols: closed forms of METHODS 1, 3 and 6, by epoch (0-based) -----------------------------------


def rates(this: Recipe) -> list[float]:
    """The learning rate of every epoch of a recipe of one chain."""
    total = sum(s.epochs for s in this.stages)
    stages = [s for s in this.stages for _ in range(s.epochs)]
    return [s.optim.lr * s.schedule(epoch, total) for epoch, s in enumerate(stages)]


NAMES = {
    "saddle": r"(ce|ce-drw|ldam-drw|vs|vs-drw)(-sam)?|ce-asam|ce-drw-(pgd|lpf-sgd)",
    "sse": r"r34-.*",
    "cc": r"ccsam(-strong|-stage1|-released)?",
    "focal": r"focalsam",
}


def of_protocol(protocol: str) -> list[str]:
    papers = re.compile(rf"cifar100?-lt-(step-)?\d+/({NAMES[protocol]})")
    return [p for p in PATHS if papers.fullmatch(p)]


def settings(path: str) -> tuple:
    this = recipe(path)
    stages = [s for s in this.stages if s.train == "all"]
    (shared,) = {(s.batch, s.optim.lr, s.optim.momentum, s.drop_last, s.mix) for s in stages}
    assert sum(s.epochs for s in stages) == 200
    strong = ["AutoAugment", "Cutout"] if path.endswith("strong") else []
    assert all([type(a).__name__ for a in s.augment] == ["Crop", "Flip", *strong] for s in this.stages)
    assert all(a.pad == 4 for s in this.stages for a in s.augment if type(a).__name__ == "Crop")
    both_move = (ASAM, FocalSAM, ImbSAM, SAM, SSESAM)
    assert all((s.buffers == "all") == isinstance(s.method, both_move) for s in this.stages)
    *_, factor = path.split("/")[0].split("-")
    assert this.data.imbalance == int(factor) and (this.data.profile == "step") == ("step" in path)
    return this.data.subset, this.protocol.views, *shared


@pytest.mark.parametrize("path", of_protocol("saddle"))
def test_saddle(path):
    assert settings(path) == ("cao", "one", 128, 0.1, 0.9, False, None)
    this = recipe(path)
    assert {s.optim.weight_decay for s in this.stages} == {2e-4}
    rate = rates(this)
    assert rate[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert rate[159:161] == pytest.approx([0.1, 1e-3]) and rate[179:181] == pytest.approx([1e-3, 1e-5])
    if "-drw" in path:
        early, late = this.stages
        assert (early.epochs, early.carry, early.loss.weights) == (160, False, None)
        assert late == replace(early, epochs=40, carry=True, loss=replace(early.loss, weights="effective"))
    assert all((this.model.head == "cosine") == isinstance(s.loss, LDAM) for s in this.stages)


def test_saddle_s_published_radii():
    for c, radii in (("10", (0.1, 0.5, 0.8)), ("100", (0.2, 0.8, 0.8))):
        for name, rho in zip(("ce", "ce-drw", "ldam-drw"), radii, strict=True):
            assert {s.method.rho for s in recipe(f"cifar{c}-lt-100/{name}-sam").stages} == {rho}


@pytest.mark.parametrize("path", of_protocol("sse"))
def test_ssesam(path):
    assert settings(path) == ("first", "flip", 64, 0.01, 0.9, False, None)
    this = recipe(path)
    assert this.stages[0].optim.weight_decay == 1e-3
    rate = rates(this)
    assert rate[0] == pytest.approx(0.0099994, abs=1e-7) and rate[-1] == pytest.approx(0, abs=1e-12)
    assert isinstance(this.model, ResNet34Cifar) and this.model.head == "linear"
    if hasattr(this.stages[0].method, "eta"):
        base = 5000.0 if "cifar10-" in path else 500.0
        counts = long_tail("exponential", base, 10 if base == 5000 else 100, this.data.imbalance)
        tail = {200: (7, 69), 100: (6, 65), 50: (6, 59)}[int(this.data.imbalance)]  # at 200 one class has just 100
        assert int((counts < this.stages[0].method.eta).sum()) == tail[base == 500]


@pytest.mark.parametrize("path", of_protocol("focal"))
def test_focalsam(path):
    assert settings(path) == ("cao", "one", 64, 0.1, 0.9, False, None)
    (stage,) = recipe(path).stages
    assert stage.schedule == Cosine() and stage.loss.tau == 1
    wanted = (FocalSAM(0.2, 0.5, 3.0), 2e-4) if "cifar10-" in path else (FocalSAM(0.3, 0.8, 3.2), 1e-3)
    assert (stage.method, stage.optim.weight_decay) == wanted


@pytest.mark.parametrize("path", of_protocol("cc"))
def test_ccsam(path):
    assert settings(path) == ("cc", "one", 64, 0.1, 0.9, True, None if path.endswith("strong") else Mixup(1.0))
    this = recipe(path)
    assert this.stages[0].optim.weight_decay == 2e-4
    rate = [r / 0.1 for r in rates(replace(this, stages=this.stages[:1]))]
    assert rate[:6] == pytest.approx([0.4667, 0.6, 0.7333, 0.8667, 1, 1], abs=1e-4)
    assert rate[158:160] == pytest.approx([1, 0.1]) and rate[178:180] == pytest.approx([0.1, 0.01])
    method = this.stages[0].method
    if path.endswith("released"):
        assert (method.scale, method.cap, method.norm, method.labels) == (1e-6, math.inf, "per-tensor", "hard")
        assert method.mix == (0.3 if "cifar10-" in path else 0.5)
    else:
        assert (method.norm, method.mix, method.scope) == ("global", 1.0, "head")
    for second in this.stages[1:]:
        assert (second.epochs, second.train, second.statistics, second.mix) == (30, "head", "moving", None)
        assert (second.optim.lr, second.schedule, second.sampler) == (0.01, Constant(), Balanced(1))
        assert second.method.norm == ("class" if path.endswith("released") else "sample")


# -- every structure trains -----------------------------------------------------------------------------------


def shape(tree):
    """A tree without its numbers: recipes that share it run the same code."""
    if isinstance(tree, dict):
        return {key: shape(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [shape(value) for value in tree]
    return "a number" if type(tree) in (int, float) else tree


def structure(path: str) -> str:
    """What a recipe does, apart from data, magnitudes, and what is tested by itself: networks, schedules, augments."""
    this = recipe(path)
    stages = [{k: v for k, v in stage.items() if k not in ALONE} for stage in to_tree(this.stages)]
    return yaml.safe_dump(shape([to_tree(small(this.model)), stages]))


def small(model):
    """The smallest network under the model's head."""
    return ResNet8(width=8, head=model.head)


ALONE = ("schedule", "augment", "clock", "drop_last", "init")
FIRST = {structure(path): path for path in reversed(PATHS)}  # a recipe for each structure


@dataclass(frozen=True)
class OneBatch:
    """An epoch of one batch: the first images of the classes, from both ends of the tail."""

    def __call__(self, y, batch, *, generator, progress, drop_last=False):
        order = torch.randperm(len(y), generator=generator)
        order = order[y[order].argsort(stable=True)]
        return [torch.cat([order[: BATCH // 2], order[-BATCH // 2 :]])]


@cache
def made_up(classes: int, size: int, channels: int, shots) -> LongTail:
    """Random images under the counts of the real data: eta and the groups mean what they mean there."""
    if classes == 10 and size == 8:
        counts = DigitsLT().load(Path()).counts
    else:
        counts = long_tail("exponential", 50000 / classes, classes, 100)
    y = torch.arange(classes).repeat_interleave(counts)
    pool = torch.randint(
        0, 256, (64, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    stats = (0.5,) * channels, (0.25,) * channels
    train, test = Tensors(pool[torch.arange(len(y)) % 64], y, *stats), Tensors(pool[:10], torch.arange(10), *stats)
    return assembled(train, test, names=[str(c) for c in range(classes)], shots=shots, title="made up")


def shrunk(stage: Stage) -> Stage:
    method = replace(stage.method, start=0.0) if isinstance(stage.method, Window) else stage.method
    return replace(stage, epochs=min(stage.epochs, 2), method=method, sampler=OneBatch(), batch=BATCH, init=None)


def test_recipes_that_differ_in_numbers_or_data_share_a_structure():
    assert structure("cifar10-lt-100/ce-sam") == structure("cifar100-lt-100/ce-sam")
    apart = ("ce", "ce-sam", "ce-asam", "ce-drw", "ldam-drw", "vs", "ccsam", "focalsam")
    assert len({structure(f"cifar10-lt-100/{name}") for name in apart}) == len(apart)


@pytest.mark.parametrize("path", sorted(FIRST.values()))
def test_a_recipe_of_each_structure_trains(path):
    this = recipe(path)
    if isinstance(this.data, DigitsLT):
        data = made_up(10, 8, 1, this.data.shots)
    else:
        own = isinstance(this.data, CIFAR10LT | CIFAR100LT)  # the large sets' slices are of other numbers of classes
        shots = this.data.shots if own else Strict()
        data = made_up(100 if isinstance(this.data, CIFAR100LT) else 10, 32, 3, shots)
    torch.manual_seed(0)
    net, stages = small(this.model).build(data.classes, data.channels), [shrunk(s) for s in this.stages]
    parameters = dict(net.named_parameters())
    same_head = [s for s in stages if s.epochs and s.start == Stage.start]
    trained = {n for s in same_head if freeze(net, s) for n, p in parameters.items() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in parameters.items()}
    rows = []
    fit(net, data, stages, accelerator=Accelerator(cpu=True), on_epoch=rows.append)
    assert len(rows) == sum(s.epochs for s in stages)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())
    assert all(not torch.equal(p, before[n]) for n, p in net.named_parameters() if n in trained)
    moving = {name for row in rows for name, term in row["terms"].items() if term["radius"] > 0}
    assert bool(moving) == any(s.epochs and s.method != ERM() for s in stages)


def test_the_large_network_itself_takes_a_step():
    this = recipe("cifar100-lt-100/r34-ce-ssesam")
    net = this.model.build(100, 3)
    fit(
        net,
        made_up(100, 32, 3, this.data.shots),
        [replace(shrunk(this.stages[0]), epochs=1)],
        accelerator=Accelerator(cpu=True),
    )
    assert all(torch.isfinite(t).all() for t in net.state_dict().values())


def test_the_large_network_has_the_published_size():
    with torch.device("meta"):
        net = ResNet34Cifar().build(100, 3)
        assert net(torch.empty(2, 3, 32, 32)).shape == (2, 100)
    assert 21.2e6 < sum(p.numel() for p in net.parameters()) < 21.4e6
