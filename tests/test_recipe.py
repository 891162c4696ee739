"""Recipes: what is written reads back, every mistake is named with its place, and `--set` reaches everything."""

import dataclasses
import typing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flattail.averages import AVERAGES
from flattail.constraints import CONSTRAINTS
from flattail.data import AUGMENTS, DATASETS, SAMPLERS, SHOTS, DigitsLT, Npz
from flattail.data.augment import Crop
from flattail.data.mix import CutMix, Mixup, Remix
from flattail.data.profile import Strict, Thresholds
from flattail.losses import CE, LDAM, LOSSES
from flattail.models import MODELS, AdaptFormer, LoRA, ResNet8, ResNet32, Timm
from flattail.optim import OPTIMS, SCHEDULES, SGD, AdamW, Cosine, Multistep
from flattail.recipe import (
    EvaluationProtocol,
    Expect,
    Recipe,
    RecipeError,
    Tracker,
    found,
    from_tree,
    identity,
    label,
    read,
    to_tree,
    write,
)
from flattail.sharp import CCSAM, ERM, METHODS, SAM, SSESAM, Every, ImbSAM, Linear, Method, Steps, Window
from flattail.stage import Stage
from flattail.starts import STARTS

TREE = {"data": "digits-lt", "model": "resnet8", "stages": [{"epochs": 2}, {"epochs": 1, "method": "sam"}]}


def spelled(**changes):
    return from_tree(TREE | changes)


def stage(**fields):
    return spelled(stages=[{"epochs": 1} | fields]).stages[0]


def one(fields):
    """A recipe's only stage."""
    return {"stages": [{"epochs": 1} | fields]}


def refused(said, tree=None, **changes):
    with pytest.raises(RecipeError, match=said):
        from_tree(TREE | changes if tree is None else tree)


@pytest.fixture
def file(tmp_path):
    """Write a recipe to a file."""

    def write_it(tree=TREE, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
        return path

    return write_it


@dataclasses.dataclass(frozen=True)
class Mine:
    """A method from outside, for `module:Class` entries."""

    rho: float = 0.3
    inner: Method = SAM(0.2)
    where: typing.ClassVar = "weights"

    def terms(self, at):
        return []


MINE = f"{Mine.__module__}:Mine"

# -- read(write(r)) == r ------------------------------------------------------------------------------------

unit = st.floats(0.01, 0.99)
small = st.floats(0, 2)
words = st.text("abc: #-'\"éß∑\n", max_size=12)
radius = st.one_of(
    small,
    st.builds(lambda v, a: Steps(tuple(v), (a,)), st.lists(small, min_size=2, max_size=2), unit),
    st.builds(Linear, small, small, unit),
)
etas = st.one_of(st.just("few"), st.integers(1, 500))
plain_methods = st.one_of(
    st.builds(ERM),
    st.builds(SAM, radius),
    st.builds(METHODS["asam"], radius),
    st.builds(ImbSAM, rho=radius, eta=etas, tail_weight=unit, over=st.sampled_from(["batch", "members"])),
    st.builds(SSESAM, head_rho=radius, tail_rho=radius, switch=unit, eta=etas),
    st.builds(METHODS["focalsam"], radius, unit, small),
    st.builds(CCSAM, scale=small, mix=unit, average=st.sampled_from(["classes", "class-sum", "samples"])),
    st.builds(
        CCSAM, norm=st.just("per-tensor"), labels=st.just("hard"), scope=st.sampled_from(["all", r"layer[34]\."])
    ),
    st.builds(Mine, small, st.builds(SAM, radius)),
)
methods = st.recursive(
    plain_methods,
    lambda inner: st.one_of(
        st.builds(Every, inner, st.integers(1, 9)),
        st.builds(Window, inner, st.just(0.2), unit.map(lambda u: 0.2 + 0.8 * u)),
    ),
    max_leaves=3,
)
weights = st.sampled_from([None, "effective", "inverse", "square-root", "power:1.2"])
losses = st.one_of(
    st.builds(CE, weights, unit),
    st.builds(LOSSES["focal"], small, weights),
    st.builds(LDAM, s=small, weights=weights, cosine=st.just(False)),
    st.builds(LOSSES["vs"], small, small, weights),
    st.builds(LOSSES["la"], small, weights),
    st.builds(LOSSES["las"], unit, unit, st.sampled_from(["concave", "linear", "convex", "power"]), small, weights),
    st.builds(LOSSES["lade"], small, small),
    st.builds(LOSSES["ib"], small, small, weights),
)
alphas = st.floats(0.01, 9)
mixes = st.one_of(st.builds(Mixup, alphas), st.builds(CutMix, alphas))
mixes = st.one_of(mixes, st.builds(Remix, st.floats(1, 9), unit, mixes))
schedules = st.one_of(
    st.builds(SCHEDULES["constant"]),
    st.builds(Cosine, st.integers(0, 1), unit),
    st.builds(
        lambda pairs, w: Multistep(tuple(sorted(p[0] for p in pairs)), tuple(p[1] for p in pairs), w),
        st.lists(st.tuples(unit, unit), max_size=3),
        unit,
    ),
)
optims = st.one_of(
    st.builds(SGD, unit, st.floats(0.1, 0.9), unit, st.booleans()),
    st.builds(AdamW, unit, unit, st.tuples(st.floats(0, 0.99), st.floats(0, 0.99))),
)
taus = st.one_of(st.none(), unit)
starts = st.one_of(
    *[st.builds(STARTS[n]) for n in ("keep", "new-head", "scales", "disalign")],
    st.builds(STARTS["tau-norm"], taus),
    st.builds(STARTS["class-means"], st.just("euclidean")),
    st.builds(STARTS["logit-adjust"], taus),
)
stages = st.builds(
    Stage,
    st.integers(1, 300),
    method=methods,
    loss=losses,
    sampler=st.sampled_from([*[SAMPLERS[n]() for n in SAMPLERS], SAMPLERS["balanced"](4)]),
    optim=optims,
    schedule=schedules,
    batch=st.integers(1, 512),
    augment=st.lists(st.sampled_from([AUGMENTS[n]() for n in AUGMENTS]), max_size=3).map(tuple),
    mix=st.one_of(st.none(), mixes),
    start=starts,
    train=st.sampled_from(["all", "head", r"^head\.scales$"]),
    statistics=st.sampled_from(["frozen", "moving", "kept"]),
    rates=st.lists(st.tuples(st.sampled_from(["head", r"inner\.", "norm"]), unit), max_size=2).map(tuple),
    average=st.one_of(st.none(), st.builds(AVERAGES["ema"], unit), st.builds(AVERAGES["swa"], unit)),
    constraint=st.one_of(
        st.none(), st.builds(CONSTRAINTS["max-norm"], unit, unit), st.builds(CONSTRAINTS["spectral-norm"])
    ),
    clock=st.sampled_from(["epoch", "step"]),
    micro=st.integers(1, 4),
    drop_last=st.booleans(),
    clip=st.one_of(st.none(), unit),
    only=st.one_of(st.none(), st.just(r"^head\.|norm")),
    buffers=st.sampled_from(["keep", "all"]),
    dropout=st.sampled_from(["same", "fresh"]),
    climb=st.sampled_from(["apart", "together"]),
)
datas = st.one_of(
    st.builds(DigitsLT, st.floats(1, 100), shots=st.sampled_from([Strict(), Thresholds(50, 10)])),
    st.builds(Npz, words),
    st.sampled_from([cls() for name, cls in DATASETS.items() if name not in ("npz", "folder")]),
)
adapters = st.one_of(
    st.none(), st.builds(AdaptFormer, st.integers(1, 9), unit | st.just("learnt")), st.builds(LoRA, st.integers(1, 9))
)
models = st.one_of(
    st.builds(ResNet8, st.integers(1, 64), st.sampled_from(["batch", "group"])),
    st.builds(Timm, words, st.none() | words, adapter=adapters),
)
recipes = st.builds(
    Recipe,
    datas,
    models,
    st.lists(stages, min_size=1, max_size=3).map(tuple),
    title=words,
    protocol=st.builds(EvaluationProtocol, st.sampled_from(["last", "best-on-test"]), unit, st.just("flip")),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    compile=st.booleans(),
    tracker=st.one_of(st.none(), st.builds(Tracker, st.sampled_from(["tensorboard", "wandb"]), words, words)),
    expect=st.one_of(st.none(), st.builds(Expect, st.one_of(st.none(), unit), words)),
    notes=st.lists(words, max_size=2).map(tuple),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipes, st.booleans())
def test_what_is_written_reads_back(recipe, defaults):
    again = from_tree(yaml.safe_load(write(recipe, defaults=defaults)))
    assert again == recipe and identity(again) == identity(recipe)


@pytest.mark.parametrize("table", [METHODS, LOSSES, DATASETS, SAMPLERS, AUGMENTS, SHOTS, OPTIMS, SCHEDULES, MODELS])
def test_every_entry_that_has_defaults_is_spelled_by_its_name(table):
    """A bare word is a class with its defaults, and is written as a bare word."""
    for name, cls in table.items():
        try:
            value = cls()
        except TypeError:
            continue
        assert to_tree(value, defaults=False) == name and to_tree(value)["name"] == name


def test_the_identity_is_that_of_the_meaning_not_of_the_type():
    """A whole number for a float, as Python code may give it, is read back as a float: the checkpoint still fits."""
    one, other = DigitsLT(20), DigitsLT(20.0)
    recipes = [Recipe(data, ResNet8(), (Stage(1),)) for data in (one, other)]
    assert identity(recipes[0]) == identity(recipes[1]) == identity(from_tree(to_tree(recipes[0])))
    assert identity(recipes[0]) == identity(dataclasses.replace(recipes[0], title="other", notes=("a word",)))
    assert identity(recipes[0]) != identity(dataclasses.replace(recipes[0], compile=True))


def test_a_recipe_is_the_same_in_python_and_in_yaml(file):
    text = """
data: {name: cifar10-lt, imbalance: 200}
model: resnet32
stages:
  - epochs: 160
    method: {name: sam, rho: {name: steps, values: [0.05, 0.1], at: [0.025]}}
    optim: {lr: 1e-1, nesterov: true}
  - epochs: 40
    carry: true
    method: {name: every, k: 5, method: {name: window, start: 0.9, method: {name: sam, rho: 1e-1}}}
    optim: {name: sgd, nesterov: yes}
    loss: {weights: effective}
    augment: [flip, {name: crop, pad: 2}]
"""
    value = read(file(text))
    schedule = SAM(Steps((0.05, 0.1), (0.025,)))
    assert value == Recipe(
        DATASETS["cifar10-lt"](200.0),
        ResNet32(),
        (
            Stage(160, schedule, optim=SGD(0.1, nesterov=True)),
            Stage(
                40, Every(Window(SAM(0.1), 0.9), 5), CE("effective"), optim=SGD(nesterov=True),
                augment=(AUGMENTS["flip"](), Crop(2)), carry=True,
            ),
        ),
    )  # fmt: skip


# -- ways to write the same ------------------------------------------------------------------------------------


def test_shorthands():
    assert spelled(model="timm:resnext50_32x4d").model == Timm("resnext50_32x4d")
    assert spelled(model={"name": "timm:resnet18", "weights": "timm"}).model == Timm("resnet18", weights="timm")
    assert spelled(data="npz:some/file.npz").data == Npz("some/file.npz")
    assert stage(method=MINE).method == Mine()
    assert stage(method={"name": MINE, "rho": 1, "inner": "asam"}).method == Mine(1.0, METHODS["asam"]())
    assert spelled(data={"name": "digits-lt", "shots": "strict"}).data == DigitsLT(shots=Strict())


def test_fields_without_a_name_are_those_of_the_default():
    assert stage(optim={"lr": 0.5}).optim == SGD(0.5)
    assert stage(loss={"smoothing": 0.1}).loss == CE(smoothing=0.1)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", ".0001"])
def test_numbers_that_yaml_takes_for_texts(text):
    tree = yaml.safe_load(f"{{lr: {text}}}")
    assert stage(optim=tree).optim == SGD(1e-4)
    assert stage(method={"name": "sam", "rho": yaml.safe_load(text)}).method == SAM(1e-4)


def test_radii():
    assert stage(method={"name": "sam", "rho": 1}).method == SAM(1.0)
    linear = {"name": "linear", "start": 0.05, "stop": 0.8}
    assert stage(method={"name": "ssesam", "tail_rho": linear}).method == SSESAM(tail_rho=Linear(0.05, 0.8))
    refused(
        r"stages\[0\].method.rho: nothing is called 'linaer'; did you mean `linear`",
        stages=[{"epochs": 1, "method": {"name": "sam", "rho": "linaer"}}],
    )


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"stagse": []}, r"recipe: Recipe has no `stagse`; did you mean `stages`\?"),
        (
            one({"epoch": 2}),
            r"recipe\.stages\[0\]: Stage has no `epoch`; did you mean `epochs`\?",
        ),
        (
            one({"method": {"name": "ssesam", "tailrho": 0.1}}),
            r"recipe\.stages\[0\]\.method: SSESAM has no `tailrho`; did you mean `tail_rho`\?",
        ),
        (
            {
                "stages": [
                    {"epochs": 1},
                    {"epochs": 1, "method": {"name": "every", "method": {"name": "sam", "rhoo": 1}}},
                ]
            },
            r"recipe\.stages\[1\]\.method\.method: SAM has no `rhoo`; did you mean `rho`\?",
        ),
        (
            {
                "stages": [
                    {
                        "epochs": 1,
                        "method": {"name": "sam", "rho": {"name": "linear", "start": 0, "stop": 1, "untl": 1}},
                    }
                ]
            },
            r"recipe\.stages\[0\]\.method\.rho: Linear has no `untl`; did you mean `until`\?",
        ),
        (
            {"data": {"name": "digits-lt", "imbalence": 3}},
            r"recipe\.data: DigitsLT has no `imbalence`; did you mean `imbalance`",
        ),
        (
            {"data": {"name": "digits-lt", "shots": {"name": "mislas", "mny": 3}}},
            r"recipe\.data\.shots: .* has no `mny`; did you mean `many`",
        ),
        (
            one({"optim": {"momentun": 1}}),
            r"recipe\.stages\[0\]\.optim: SGD has no `momentun`; did you mean `momentum`",
        ),
        (
            one({"augment": ["flip", {"name": "crop", "padd": 1}]}),
            r"recipe\.stages\[0\]\.augment\[1\]: Crop has no `padd`; did you mean `pad`",
        ),
        (one({"mixup": 0.2}), r"recipe\.stages\[0\]: Stage has no `mixup`; write `mix: {name: mixup, alpha"),
        (
            one({"mix": {"name": "remix", "images": {"name": "cutmix", "alpa": 1}}}),
            r"CutMix has no `alpa`; did you mean",
        ),
        (one({"mix": "mixup:0"}), r"recipe\.stages\[0\]\.mix: alpha: must be more than 0, .*`mix: null`"),
        ({"protocol": {"veiws": "flip"}}, r"recipe\.protocol: EvaluationProtocol has no `veiws`; did you mean `views`"),
        (
            {"tracker": {"name": "wandb", "projekt": "x"}},
            r"recipe\.tracker: Tracker has no `projekt`; did you mean `project`",
        ),
        ({"expect": {"acuracy": 1}}, r"recipe\.expect: Expect has no `acuracy`; did you mean `accuracy`"),
        (
            one({"sampler": {"name": "uniform", "x": 1}}),
            r"sampler: Uniform has no `x`; there is nothing to set",
        ),
    ],
)
def test_a_typo_at_every_depth_is_refused_with_a_guess(tree, said):
    refused(said, **tree)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            one({"method": "ssesamm"}),
            r"recipe\.stages\[0\]\.method: nothing is called 'ssesamm'; did you mean `ssesam`",
        ),
        ({"data": "cifar11-lt"}, r"recipe\.data: nothing is called 'cifar11-lt'; did you mean `cifar10"),
        ({"model": "resnet33"}, r"recipe\.model: nothing is called 'resnet33'; did you mean `resnet32`"),
        ({"model": "zzz"}, r"recipe\.model: nothing is called 'zzz'; there is resnet8, resnet20"),
        ({"model": {"width": 3}}, r"recipe\.model: a name is needed, one of resnet8"),
        ({"model": 3}, r"recipe\.model: a name is needed, one of resnet8.*this is 3"),
        ({"model": None}, r"recipe\.model: a name is needed"),
        (
            one({"method": "no.such.module:Thing"}),
            r"method: 'no.such.module:Thing' cannot be imported \(No module.*PYTHONPATH",
        ),
        (
            one({"method": "flattail.sharp:Thing"}),
            r"method: 'flattail.sharp:Thing' cannot be imported",
        ),
        (one({"method": "math:sqrt"}), r"method: 'math:sqrt' is no dataclass"),
        (
            one({"method": {"name": MINE, "roh": 1}}),
            r"method: Mine has no `roh`; did you mean `rho`",
        ),
    ],
)
def test_unknown_names_are_refused_with_a_guess(tree, said):
    refused(said, **tree)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"stages": [{"epochs": "many"}]}, r"recipe\.stages\[0\]\.epochs: .*this is 'many'"),
        ({"stages": [{"epochs": 1.5}]}, r"recipe\.stages\[0\]\.epochs: .*this is 1\.5"),
        ({"stages": [{"epochs": True}]}, r"recipe\.stages\[0\]\.epochs: a number is needed; this is True"),
        (one({"mix": {"name": "mixup", "alpha": [1]}}), r"recipe\.stages\[0\]\.mix\.alpha: .*this is \[1\]"),
        (one({"train": 3}), r"recipe\.stages\[0\]\.train: .*this is 3"),
        (one({"drop_last": 3}), r"recipe\.stages\[0\]\.drop_last: "),
        (one({"augment": "flip"}), r"recipe\.stages\[0\]\.augment: a list is needed, not 'flip'"),
        (
            one({"schedule": {"name": "multistep", "at": [0.5, "x"]}}),
            r"schedule\.at\[1\]: .*this is 'x'",
        ),
        (one({"optim": {"name": "adamw", "betas": [0.9]}}), r"optim\.betas: "),
        (one({"method": {"name": "sam", "rho": [1]}}), r"method\.rho: "),
        (one({"method": {"name": "sam", "rho": None}}), r"method\.rho: "),
        (one({"method": {"name": "imbsam", "eta": "fwe"}}), r"method\.eta: .*this is 'fwe'"),
        ({"stages": [3]}, r"recipe\.stages\[0\]: the fields of a Stage are needed, not 3"),
        ({"stages": {"epochs": 1}}, r"recipe\.stages: a list is needed"),
        ({"precision": "fp8"}, r"recipe\.precision: .*'fp32', 'bf16' or 'fp16'"),
        ({"title": 5}, r"recipe\.title: .*this is 5"),
        ({"tracker": {"name": "comet"}}, r"recipe\.tracker\.name: .*'tensorboard', 'wandb' or 'mlflow'"),
    ],
)
def test_wrong_types_are_refused_where_they_stand(tree, said):
    refused(said, **tree)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"data": "digits-lt", "model": "resnet8"}, r"recipe: Recipe needs `stages`"),
        ({"model": "resnet8", "stages": [{"epochs": 1}]}, r"recipe: Recipe needs `data`"),
        (TREE | {"stages": [{"batch": 1}]}, r"recipe\.stages\[0\]: Stage needs `epochs`"),
        (TREE | {"model": "timm"}, r"recipe\.model: Timm needs `model`"),
        (TREE | one({"method": "window"}), r"method: Window needs `method`"),
        ([1], r"recipe: the fields of a Recipe are needed, not \[1\]"),
        (None, r"recipe: the fields of a Recipe are needed, not None"),
    ],
)
def test_missing_fields_are_named(tree, said):
    with pytest.raises(RecipeError, match=said):
        from_tree(tree)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"stages": []}, r"stages: at least one"),
        (one({"carry": True}), r"stages\[0\]\.carry: there is no stage before the first"),
        ({"stages": [{"epochs": 0}]}, r"recipe\.stages\[0\]: epochs: 0 is for a stage whose `start`"),
        (one({"optim": {"lr": 0}}), r"recipe\.stages\[0\]\.optim: lr: a learning rate is positive"),
        (one({"method": {"name": "sam", "rho": -0.1}}), r"recipe\.stages\[0\]\.method: a radius is a length: -0\.1"),
        (
            one({"method": {"name": "sam", "rho": {"name": "linear", "start": -1, "stop": 1}}}),
            r"recipe\.stages\[0\]\.method\.rho: a radius is a length",
        ),
        (one({"loss": {"weights": "effectiv"}}), r"recipe\.stages\[0\]\.loss: weights: .*did you mean 'effective'"),
        (
            one({"loss": "ldam"}),
            r"stages\[0\]\.loss: LDAM needs a cosine head, but model\.head is linear: write `head: cosine`",
        ),
        (
            one({"loss": {"name": "ldam", "cosine": False}}) | {"model": {"name": "resnet8", "head": "cosine"}},
            r"LDAM needs a linear head, but model\.head is cosine",
        ),
        ({"protocol": {"validation": 1.5}}, r"recipe\.protocol: validation: a share"),
        (
            {"stages": [{"epochs": 1}, {"epochs": 1, "carry": True, "optim": "adamw"}]},
            r"stages\[1\]\.optim: .*only its `lr` may differ",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(tree, said):
    refused(said, **tree)


def test_files_that_are_no_recipes(tmp_path, file):
    with pytest.raises(RecipeError, match=r"nope\.yaml: no such recipe; `flattail list recipes`"):
        read(tmp_path / "nope.yaml")
    with pytest.raises(RecipeError, match=r"mine\.yaml is not YAML: (?s:.*)line 2"):
        read(file("data: digits-lt\nmodel: [1"))
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match=r"b\.yaml is not YAML"):
        read(binary)
    with pytest.raises(RecipeError, match="recipe: the fields of a Recipe are needed, not None"):
        read(file(""))


def test_a_mistake_names_the_file_and_what_was_set(file):
    path = file("data: digits-lt\nmodel: resnet8\nstages: [{epochs: 1, method: samm}]")
    with pytest.raises(RecipeError) as said:
        read(path)
    place = "recipe.stages[0].method: nothing is called 'samm'; did you mean `sam`?"
    assert str(said.value) == f"{path}: {place}"
    path = file("data: digits-lt\nmodel: resnet8\nstages: [{epochs: 1}]")
    with pytest.raises(RecipeError) as said:
        read(path, ["stages.0.method=samm"])
    assert str(said.value) == f"{path} with stages.0.method=samm: {place}"


TOP = "data: digits-lt\nmodel: resnet8\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{TOP}model: resnet20\nstages: [{{epochs: 1}}]", "line 3: `model` .* line 2"),
        (f"{TOP}stages:\n  - epochs: 1\n    batch: 8\n    epochs: 2", "line 6: `epochs` .* line 4"),
        (f"{TOP}stages: [{{epochs: 1}}]\nprotocol: {{views: one, views: flip}}", "line 4: `views` .* line 4"),
    ],
)  # fmt: skip
def test_what_is_written_twice_is_refused_with_its_lines(file, text, said):
    with pytest.raises(RecipeError, match=rf"mine\.yaml: {said}: remove one of them"):
        read(file(text))


# -- --set ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "get", "value"),
    [
        ("title=Mine", lambda r: r.title, "Mine"),
        ("title='5'", lambda r: r.title, "5"),
        ("title=a=b", lambda r: r.title, "a=b"),
        ("data.imbalance=50", lambda r: r.data.imbalance, 50.0),
        ("data.shots.many=2", lambda r: r.data.shots.many, 2),
        ("data=npz:x.npz", lambda r: r.data, Npz("x.npz")),
        ("stages.0.epochs=7", lambda r: r.stages[0].epochs, 7),
        ("stages.1.method.rho=1e-1", lambda r: r.stages[1].method, SAM(0.1)),
        ("stages.1.method.rho={name: linear, start: 0, stop: 1}", lambda r: r.stages[1].method, SAM(Linear(0.0, 1.0))),
        ("stages.0.method=ccsam", lambda r: r.stages[0].method, CCSAM()),
        ("stages.0.optim={lr: 0.5}", lambda r: r.stages[0].optim, SGD(0.5)),
        ("stages.0.augment=[flip]", lambda r: r.stages[0].augment, (AUGMENTS["flip"](),)),
        ("stages=[{epochs: 9}]", lambda r: r.stages, (Stage(9),)),
        ("tracker={name: wandb}", lambda r: r.tracker, Tracker("wandb")),
        ("tracker.name=wandb", lambda r: r.tracker, Tracker("wandb")),
        ("expect.accuracy=50", lambda r: r.expect, Expect(50.0)),
        ("tracker.mode=offline", lambda r: r.tracker and r.tracker.mode, "offline"),
        ("stages.0.clip=null", lambda r: r.stages[0].clip, None),
    ],
)
def test_set_at_every_depth(file, assignment, get, value):
    tree = TREE | ({"tracker": {"name": "wandb"}} if "tracker.mode" in assignment else {})
    assert get(read(file(tree), [assignment])) == value


def test_several_are_set_in_order(file):
    sets = [
        "stages.0.method=sam",
        "stages.0.method.rho=0.3",
        "stages.0.augment=[flip, crop]",
        "stages.0.augment.1.pad=2",
    ]
    first = read(file(), sets).stages[0]
    assert first.method == SAM(0.3) and first.augment == (AUGMENTS["flip"](), Crop(2))


def test_another_name_keeps_the_fields_that_both_have(file):
    tree = TREE | {
        "model": {"name": "resnet32", "head": "cosine", "width": 8},
        "stages": [
            {
                "epochs": 1,
                "method": {"name": "ssesam", "eta": 50, "tail_rho": 0.3},
                "optim": {"lr": 0.02, "momentum": 0.5},
            }
        ],
    }
    value = read(file(tree), ["stages.0.method.name=imbsam", "stages.0.optim.name=adamw", "model.name=timm:resnet18"])
    assert value.stages[0].method == ImbSAM(eta=50) and value.stages[0].optim == AdamW(0.02, 2e-4)
    assert value.model == Timm("resnet18", head="cosine")
    same = read(file(tree), ["model.name=resnet32"])
    assert same.model.width == 8


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("stages", r"--set stages: write a\.b=value"),
        ("stages.2.epochs=1", r"recipe\.stages has 2 entries, counted from 0, and no '2'"),
        ("stages.x.epochs=1", r"recipe\.stages has 2 entries, counted from 0, and no 'x'"),
        ("stages.-1.epochs=1", r"recipe\.stages has 2 entries, counted from 0, and no '-1'"),
        ("stagse.0.epochs=1", r"recipe has no `stagse`; did you mean `stages`"),
        ("stages.0.epoch=1", r"recipe\.stages\[0\]: Stage has no `epoch`; did you mean `epochs`"),
        ("stages.0.epochs.x=1", r"recipe\.stages\.0\.epochs is 2 and has no `x`"),
        ("expect.acuracy=1", r"recipe\.expect: Expect has no `acuracy`; did you mean `accuracy`"),
        ("stages.0.epochs=x", r"recipe\.stages\[0\]\.epochs: .*this is 'x'"),
        ("stages.0.method.name=smm", r"recipe\.stages\[0\]\.method: nothing is called 'smm'; did you mean `sam`"),
        ("title=[1", r"--set title=\[1: '\[1' is not YAML"),
        ("=3", r"recipe: Recipe has no ``"),
    ],
)
def test_paths_and_values_that_cannot_be_set(file, assignment, said):
    with pytest.raises(RecipeError, match=said):
        read(file(), [assignment])


# -- where recipes live --------------------------------------------------------------------------------------------


def test_recipes_are_found_by_file_folder_and_shipped_name(tmp_path, file, monkeypatch):
    mine, other = file(), file(name="other.yaml")
    assert found([str(mine)]) == [mine] and found([str(tmp_path)]) == [mine, other]
    assert found([str(mine), str(tmp_path)]) == [mine, other]  # each once
    monkeypatch.chdir(tmp_path)
    by_name = found(["digits-lt/ce"])
    assert [label(p) for p in by_name] == ["digits-lt/ce"]
    assert found(["recipes/digits-lt/ce.yaml"]) == found(["digits-lt/ce.yaml"]) == by_name
    assert by_name[0] in found(["digits-lt"])
    assert label(mine) == f"{tmp_path.name}/mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [("digits-lt/cee", "did you mean digits-lt/ce"), ("%%%", "`flattail list recipes` names those there are")],
)
def test_a_recipe_that_is_not_there_is_guessed_at(name, said):
    with pytest.raises(RecipeError, match=f"{name}: no such recipe; {said}"):
        found([name])


def test_a_recipe_beside_the_one_asked_for_is_the_first_guess(tmp_path, file):
    file(name="mine.yaml")
    with pytest.raises(RecipeError, match=r"mine\.yml: no such recipe; did you mean .*mine\.yaml\?"):
        found([str(tmp_path / "mine.yml")])


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(Stage)])
def test_what_belongs_to_a_stage_is_sent_there(key):
    with pytest.raises(RecipeError, match=f"Recipe has no `{key}`; it belongs to a stage: stages.0.{key}"):
        from_tree({"data": "digits-lt", "model": "resnet8", key: 1})


def test_a_folder_without_recipes(tmp_path):
    with pytest.raises(RecipeError, match=r"the folder holds no recipe \(\*\.yaml\)"):
        found([str(tmp_path)])


def test_what_is_expected_of_a_recipe_is_not_expected_of_another(file):
    path = file(TOP + "stages: [{epochs: 2}]\nexpect: {accuracy: 70.0, source: a paper, status: paper-only}")
    assert read(path).expect.accuracy == 70.0
    for same in ("title=another", "stages.0.epochs=2", "expect.accuracy=71.0"):
        assert read(path, [same]).expect is not None, same
    assert read(path, ["stages.0.epochs=3"]).expect is None
    assert read(path, ["stages.0.epochs=3", "expect={accuracy: 60.0, source: mine}"]).expect.accuracy == 60.0


def test_a_key_that_is_no_text_is_told_with_its_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("data: digits-lt\nmodel: resnet8\nstages:\n  - {epochs: 1, init: {{seed}}}\n")
    with pytest.raises(RecipeError, match="line 4: a name is needed before the colon"):
        read(path)


def test_a_folder_of_recipes_has_both_suffixes(tmp_path):
    for name in ("a.yaml", "b.yml"):
        (tmp_path / name).write_text("data: digits-lt\nmodel: resnet8\nstages: [{epochs: 1}]\n")
    assert [p.name for p in found([str(tmp_path)])] == ["a.yaml", "b.yml"]


def test_fields_of_one_s_own_may_be_paths_and_enums(tmp_path):
    @dataclass(frozen=True)
    class Mine:
        file: Path = Path("a.csv")
        kind: Enum = Enum("Kind", {"ONE": "one"}).ONE

    assert to_tree(Mine(Path("b") / "c.csv"))["file"] == "b/c.csv" and to_tree(Mine())["kind"] == "one"
