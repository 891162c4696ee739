"""The command line as a user meets it: verbs, options, what is printed, and messages instead of tracebacks."""

import json
import re
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import typer
import yaml
from commands import asked, refused
from small import DIGITS
from typer.testing import CliRunner

from flattail.cli import app
from flattail.cli.options import numbers

VERBS = {
    "list": ({"kind"}, {"--help"}),
    "show": ({"recipe"}, {"--set", "--root", "--help"}),
    "train": (
        {"recipes"},
        {
            "--data",
            "--minutes",
            "--pretrained",
            "--set",
            "--seeds",
            "--jobs",
            "--out",
            "--device",
            "--root",
            "--resume",
            "--watch",
            "--help",
        },
    ),
    "sweep": (
        {"recipe"},
        {
            "--over",
            "--trials",
            "--seeds",
            "--validation",
            "--score",
            "--jobs",
            "--final-seeds",
            "--set",
            "--out",
            "--device",
            "--root",
            "--help",
        },
    ),
    "evaluate": ({"run"}, {"--views", "--open", "--threshold", "--prior", "--root", "--device", "--help"}),
    "import": ({"checkpoint"}, {"--recipe", "--out", "--set", "--class-map", "--root", "--device", "--help"}),
    "analyse": ({"run", "what"}, {"--set", "--split", "--loss", "--root", "--device", "--help"}),
    "report": ({"runs"}, {"--out", "--baseline", "--quiet", "--help"}),
    "data": (set(), {"--help"}),  # check and prepare: tests/data/test_checked.py
    "predict": (
        {"run", "images"},
        {"--out", "--top", "--probabilities", "--prior", "--workers", "--root", "--device", "--help"},
    ),
    "export": ({"run"}, {"--out", "--format", "--root", "--help"}),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_at(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(DIGITS | {"title": path.stem, "stages": [{"epochs": 1}]} | changes))
    return path


def test_verbs_and_options_are_these():
    group = typer.main.get_command(app)
    context = click.Context(group)
    found = {}
    for name, command in group.commands.items():
        params = command.get_params(context)
        arguments = {p.name for p in params if p.param_type_name == "argument"}
        found[name] = (arguments, {o for p in params if p.param_type_name == "option" for o in p.opts})
    assert found == VERBS


@pytest.mark.parametrize("words", [("--help",), ("-h",), *((v, "-h") for v in VERBS)])
def test_help_is_there(words):
    said = asked(*words)
    assert "Usage" in said
    if words[0] == "-h":
        assert all(verb in said for verb in VERBS)


# -- list and show ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("methods", ["ssesam", "tail_rho = 0.1", "classes with fewer samples are tail", "kappa"]),
        ("losses", ["ldam", "max_margin = 0.5", "smoothing"]),
        ("data", ["places-lt", "digits-lt", "imbalance", "file"]),
        ("models", ["resnet32", "timm", "weights = none"]),
        ("heads", ["linear", "scaled-cosine", "Cosines times 25", "causal-cifar100"]),
        ("samplers", ["square-root", "per_class = 1"]),
        ("mixes", ["cutmix", "alpha = 1.0", "kappa = 3.0"]),
        ("recipes", ["cifar10-lt-100/ldam-drw-sam", "81.9 (paper-only", "digits-lt/ccsam"]),
    ],
)
def test_list_names_everything_with_fields_defaults_and_meanings(kind, said):
    text = asked("list", kind)
    assert all(word in text for word in said)


def test_every_method_of_a_paper_names_it():
    from flattail import catalogue

    unnamed = [
        m.name for m in catalogue.entries("methods") if not re.search(r"\(.* (\d{4}|\d{4}\.\d{5})\)\.$", m.sentence)
    ]
    assert unnamed == ["erm", "window", "every"]


def test_list_alone_is_an_overview():
    text = asked("list")
    assert all(kind in text for kind in ("methods", "losses", "data", "models", "samplers", "mixes", "recipes"))
    assert "tail_rho" not in text


def test_every_table_of_a_recipe_is_listed():
    from flattail import catalogue, recipe

    assert [*catalogue.TABLES.values()][1:-1] == [*recipe.TABLES.values()]
    named = {"keys", "optims", "schedules", "augments", "shots", "radii", "methods", "losses", "data", "samplers"}
    assert named <= catalogue.TABLES.keys()
    text = asked("list")
    assert all(f"\n{kind}" in f"\n{text}" for kind in catalogue.TABLES)
    assert "momentum = 0.9" in asked("list", "optims") and "optim = sgd" in asked("list", "keys")


def test_every_field_of_every_entry_has_a_comment_and_every_entry_a_sentence():
    from flattail import catalogue

    every = [(kind, entry) for kind in catalogue.TABLES for entry in catalogue.entries(kind)]
    assert [(kind, entry.name) for kind, entry in every if not entry.sentence] == []
    assert [(kind, entry.name, f.name) for kind, entry in every for f in entry.fields if not f.comment] == []


@pytest.mark.parametrize("kind", ["recipes", "methods"])
def test_nothing_is_cut_off_where_the_screen_is_narrow_or_there_is_none(kind):
    wide = asked("list", kind)
    narrow = CliRunner(env={"COLUMNS": "30", "FORCE_COLOR": "1", "TERM": "xterm"}).invoke(app, ["list", kind]).stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", narrow)
    assert max(map(len, plain.splitlines())) <= 30
    piped = CliRunner(env={"COLUMNS": "30"}).invoke(app, ["list", kind]).stdout
    assert piped == wide, "a pipe has no border"
    letters = [sorted("".join(text.split())) for text in (plain, wide)]
    assert letters[0] == letters[1]


def test_the_version():
    from flattail import __version__

    assert asked("--version") == f"flattail {__version__}\n"


def test_show_prints_a_recipe_that_can_be_read_again(place):
    from flattail.recipe import from_tree, read

    text = asked("show", "digits-lt/ssesam", "--set", "stages.0.batch=32")
    document, _, rest = text.partition("\n\n")
    assert from_tree(yaml.safe_load(document)).stages[0].batch == 32  # nothing is cut off at the screen's border
    path = place / "again.yaml"
    path.write_text(document)
    assert read(path).title == "SSE-SAM"
    assert "10 classes (many 3, medium 4, few 3), 417 images: 124 88 63 45 32 23 16 12 8 6" in rest
    assert "stage 0, SSESAM: 3 forward and 4 backward passes a step" in rest
    rows = [line.split() for line in rest.splitlines()]
    assert ["term", "members", "mass", "‖e‖/‖w‖", "objective"] in rows
    head, tail = (next(r for r in rows if r and r[0] == name) for name in ("head", "tail"))
    assert int(head[1]) + int(tail[1]) == 32


def test_show_on_a_narrow_screen_cuts_nothing_off(place):
    result = CliRunner(env={"COLUMNS": "60"}).invoke(app, ["show", "digits-lt/ce"])
    assert yaml.safe_load(result.stdout.partition("\n\n")[0])["stages"][0]["optim"]["nesterov"] is False


def test_show_of_a_large_set_without_its_images_prints_the_recipe_and_what_is_missing(place):
    path = recipe_at(place / "r.yaml", data="places-lt")
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["show", str(path)])
    assert result.exit_code == 2 and yaml.safe_load(result.stdout)["data"]["name"] == "places-lt"
    assert "Places_LT_train.txt" in result.stderr


# -- train, evaluate, report ------------------------------------------------------------------------------------


def test_a_table_from_a_folder_and_a_file_and_the_report_of_it(place):
    recipe_at(place / "table" / "ce.yaml")
    recipe_at(place / "table" / "sam.yaml", stages=[{"epochs": 1, "method": "sam"}])
    other = recipe_at(place / "other" / "more.yaml", stages=[{"epochs": 2}])
    command = [
        "train",
        "table",
        other,
        "--seeds",
        "0-1",
        "--set",
        "stages.0.optim.lr=5e-2",
        "--out",
        "out",
        "--device",
        "cpu",
    ]
    said = asked(*command)
    found = sorted(p.parent.relative_to(place / "out").as_posix() for p in place.rglob("scores.json"))
    assert found == [f"{n}/{s}" for n in ("other/more", "table/ce", "table/sam") for s in (0, 1)]
    assert all(word in said for word in ("many (3)", "medium (4)", "few (3)", "all", "ce ", "sam ", "more", "±"))
    resolved = yaml.safe_load((place / "out/table/ce/0/recipe.yaml").read_text())
    assert resolved["stages"][0]["optim"]["lr"] == 0.05
    times = {p: p.stat().st_mtime_ns for p in place.rglob("scores.json")}
    (place / "out/table/sam/1/scores.json").unlink()
    (place / "out/table/sam/1/log.jsonl").unlink()
    assert asked(*command) == said  # the same command completes the table
    changed = {p.parent.as_posix() for p, t in times.items() if p.stat().st_mtime_ns != t}
    assert changed == {(place / "out/table/sam/1").as_posix()}

    scores = json.loads((place / "out/table/ce/0/scores.json").read_text())["scores"]
    text = asked("evaluate", "out/table/ce/0")
    assert f"{100 * scores['all']:.2f} %" in text and f"{scores['nll']:.4f}" in text
    assert "many (3 classes)" in text and "train images" in text and "124" in text
    assert asked("evaluate", "out/table/ce/0", "--views", "one", "--device", "cpu") == text
    assert asked("evaluate", "out/table/ce/0", "--views", "flip", "--device", "cpu") != text

    text = asked("report", "out", "--out", "pages/r.html")
    page = (place / "pages/r.html").read_text()
    assert f"report: {place / 'pages/r.html'}" in text and page.lstrip().lower().startswith("<!doctype html")
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="http' not in page
    assert asked("report", "out/table/ce/0", "--out", "one.html")
    assert asked("report", "out", "--quiet") == f"report: {place / 'report.html'}\n"
    text = asked("report", "out", "--quiet", "--out", "t.csv", "--out", "p/t.tex", "--baseline", "table/sam")
    assert text == f"report: {place / 't.csv'}\nreport: {place / 'p/t.tex'}\n"
    assert (place / "t.csv").read_text().splitlines()[1].startswith("table/sam,sam,0,")
    message = refused("report", "out", "--quiet", "--out", "x.csv", "--out", "x.pdf")
    assert "x.pdf: a report ends in .html, .md, .csv, .tex" in message and not (place / "x.csv").exists()
    assert "no run is named 'nobody'" in refused("report", "out", "--quiet", "--baseline", "nobody")


def test_the_table_has_the_paired_difference_and_says_who_is_ahead(place):
    from flattail.report import summary
    from flattail.runs import find

    recipe_at(place / "t" / "ce.yaml")
    recipe_at(place / "t" / "sam.yaml", stages=[{"epochs": 1, "method": "sam"}])
    recipe_at(place / "t" / "slow.yaml", stages=[{"epochs": 1, "optim": {"lr": 0.01}}])
    said = asked("train", "t", "--seeds", "0-1", "--device", "cpu")
    _, sam, slow = summary(find([place / "runs"]))
    assert sam.differences["all"].n == 2 and not slow.differences
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert lines["method"].split()[-2:] == ["Δ", "all"] and lines["sam"].rstrip().endswith(str(sam.differences["all"]))
    assert lines["ce"].split()[-1] == lines["slow"].split()[-1] == "–"
    assert "ahead of ce beyond noise" in said.lower() and "No Δ across protocols: slow" in said
    assert "Rows differ in learning rate — sgd 0.1: ce, sam; sgd 0.01: slow." in said


def test_the_demonstration_prints_its_table_once():
    demo = (Path(__file__).parents[1] / "Makefile").read_text().partition("demo:")[2].partition("\n\n")[0]
    assert demo.count("flattail train") == 1 and demo.count("flattail report") == demo.count("--quiet") == 1


def test_a_run_in_other_worlds(place):
    recipe_at(place / "r.yaml", protocol={"validation": 0.2})
    asked("train", "r.yaml", "--out", "out", "--device", "cpu")
    (home,) = (path.parent for path in place.rglob("model.safetensors"))
    np.savez(place / "noise.npz", images=np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8))
    plain = asked("evaluate", home)
    text = asked("evaluate", home, "--open", "noise.npz", "--threshold", "val", "--device", "cpu")
    assert text.startswith(plain) and "open set: noise.npz, 40 images" in text
    lines = [line.split() for line in text.splitlines()]
    (columns,) = (line for line in lines if line[:2] == ["rule", "threshold"])
    assert columns == ["rule", "threshold", "AUROC", "FPR95", "OSCR", "F", "old", "F", "new", "rejected"]
    kept = json.loads((home / "open.json").read_text())["noise.npz, threshold val"]["scores"]
    assert len(kept) == 7
    for score in kept:
        first, second = (line for line in lines if line and line[0] == score["rule"])
        assert first[2] == f"{100 * score['auroc']:.1f}" and first[6] == f"{100 * score['f_new']:.1f}"
        assert second[-3:] == [f"{100 * score['before']['all']:.1f}", "→", f"{100 * score['after']['all']:.1f}"]
    assert "keeps 95% of" in text and "differ from the closed ones in colour" in text and "open.json" in text

    (place / "q.json").write_text(json.dumps([0, 0, 0, 0, 0, 0, 0, 1, 1, 1]))
    text = asked("evaluate", home, "--prior", "uniform", "--prior", "backward:50", "--prior", "q.json")
    assert text.startswith(plain) and "accuracy under class priors: plain → corrected" in text
    (uniform,) = (line.split() for line in text.splitlines() if line.startswith("uniform"))
    scores = json.loads((home / "scores.json").read_text())["scores"]
    assert uniform[10] == f"{100 * scores['balanced']:.1f}" and uniform[11] == "→"
    (only_few,) = (line.split() for line in text.splitlines() if line.startswith("q.json"))
    assert only_few[1:4] == ["–", "→", "–"] and only_few[7:] == only_few[10:13] * 2  # all the weight is on few

    page = asked("report", "out", "--out", "r.html") and (place / "r.html").read_text()
    assert "<h2>Open set</h2>" in page and "noise.npz" in page and "euclidean-product" in page


def test_weights_from_elsewhere_become_a_run(place):
    import torch
    from safetensors.torch import load_file

    recipe_at(place / "r.yaml")
    asked("train", "r.yaml", "--device", "cpu", "--out", "out")
    home = next(place.rglob("model.safetensors")).parent
    torch.save({"state_dict": {f"module.{n}": t for n, t in load_file(home / "model.safetensors").items()}}, "c.pth")
    (place / "m.json").write_text(json.dumps(list(range(10))))
    command = ["import", "c.pth", "--recipe", "r.yaml", "--class-map", "m.json", "--device", "cpu"]
    said = asked(*command, "--out", "theirs/saddle/3")
    assert "r (imported)" in said and "not trained here" in said and "theirs/saddle/3" in said
    assert asked("evaluate", "theirs/saddle/3") == asked("evaluate", home)
    assert "r (imported)" in asked("report", "out", "theirs")
    message = refused(*command, "--out", "a/0", "--set", "model.head=cosine")
    assert "1 unknown: head.bias [10]" in message and "--set model.head=linear" in message
    assert not (place / "a").exists()


def test_two_jobs_at_a_time(place):
    for name in ("a", "b"):
        recipe_at(place / "t" / f"{name}.yaml")
    assert "many (3)" in asked("train", "t", "--jobs", "2", "--device", "cpu")
    assert len(list((place / "runs").rglob("scores.json"))) == 2


# -- mistakes -------------------------------------------------------------------------------------------------------


def npz(path, *, cut=None, labels=(0, 1, 0, 1)):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 255, (4, 8, 8), dtype=np.uint8), np.array(labels)
    np.savez(path, train_images=x, train_labels=y, test_images=x, test_labels=y)
    if cut:
        path.write_bytes(path.read_bytes()[:cut])


TRAIN = ("train", "r.yaml", "--out", "out", "--device", "cpu", "--root", ".")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "nothing.yaml"), "nothing.yaml: no such recipe"),
        (("train", "digits-lt/ssesma"), "did you mean digits-lt/ssesam?"),
        (
            (*TRAIN, "--set", "stages.0.epoch=2"),
            "r.yaml with stages.0.epoch=2: recipe.stages[0]: Stage has no `epoch`; did you mean `epochs`?",
        ),
        ((*TRAIN, "--set", "stages.0.method=samm"), "nothing is called 'samm'; did you mean `sam`?"),
        ((*TRAIN, "--set", "stages.0.epochs=many"), "recipe.stages[0].epochs"),
        ((*TRAIN, "--set", "stages.0.method={name: sam, rho: -1}"), "a radius is a length: -1"),
        ((*TRAIN, "--set", "stages.0.method={name: imbsam, eta: 2}"), "recipe.stages[0]"),
        ((*TRAIN, "--set", "stages.0.epochs=[1"), "is not YAML"),
        ((*TRAIN, "--set", "data=places-lt"), "no such list: put the official"),
        ((*TRAIN, "--set", "data=npz:absent.npz"), "absent.npz: no such file"),
        ((*TRAIN, "--set", "data=npz:cut.npz"), "cut.npz is not a readable .npz"),
        ((*TRAIN, "--set", "data=npz:gap.npz"), "class 1 (1) has no training sample"),
        ((*TRAIN, "--set", "data={name: folder, train: a, test: b}"), "a"),
        ((*TRAIN, "--set", "model=timm:resnet99"), "timm has no 'resnet99'"),
        ((*TRAIN, "--set", "precision=fp16"), "fp16 needs a GPU"),
        ((*TRAIN, "--set", "tracker={name: mlflow}"), "pip install 'flattail[mlflow]'"),
        ((*TRAIN, "--seeds", "1-"), "--seeds 1-: write 0, 0-2 or 0,3,7"),
        ((*TRAIN, "--seeds", "3-1"), "--seeds 3-1: 3-1 runs backwards"),
        ((*TRAIN, "--seeds", "x"), "--seeds x: write 0, 0-2 or 0,3,7"),
        ((*TRAIN, "--jobs", "0"), "--jobs"),
        ((*TRAIN[:-2], "--device", "gpu"), "flattail: device: 'gpu' is none; choose cpu, cuda, cuda:1 or mps"),
        (("train", "empty", "--out", "out"), "empty: the folder holds no recipe"),
        (("train", "a/same/r.yaml", "b/same/r.yaml", "--out", "out"), "the same folder and name"),
        (("train",), "nothing to train: give a recipe"),
        (("trian",), "No such command"),
        (("list", "method"), "there is no list of 'method'; did you mean methods?"),
        (("list", "zzz"), "choose one of keys, data, models, "),
        (("show", "nothing"), "nothing: no such recipe"),
        (("show", "digits-lt"), "is a folder of"),
        (("evaluate", "nothing"), "nothing holds no recipe.yaml"),
        (("evaluate", "out0/r/0"), "holds no finished run"),
        (("evaluate", "out0/r/0", "--views", "two"), "--views is one or flip, not two"),
        (
            ("evaluate", "out0/r/0", "--threshold", "0.2"),
            "--threshold is for images of unknown classes: add --open DATA",
        ),
        (("evaluate", "out0/r/0", "--open", "digits-lt"), "holds no finished run"),
        (("evaluate", "out0/r/0", "--prior", "uniform"), "holds no finished run"),
        (("import", "absent.pt", "--recipe", "r.yaml", "--out", "out/0"), "absent.pt: no such checkpoint"),
        (("import", "cut.npz", "--recipe", "r.yaml", "--out", "out/0"), "is no checkpoint that torch.load"),
        (("import", "cut.npz", "--recipe", "r.yaml", "--out", "out"), "is named by its seed, a number: write out/0"),
        (("import", "cut.npz", "--recipe", "digits-lt", "--out", "out/0"), "is a folder of"),
        (("import", "cut.npz", "--recipe", "r.yaml", "--out", "out/0", "--class-map", "r.yaml"), "not readable JSON"),
        (("report", "nothing"), "nothing does not exist"),
        (("report", "empty"), "no run directory lies at or below empty"),
    ],
)
def test_a_mistake_is_a_message_and_leaves_nothing_behind(place, words, said):
    recipe_at(place / "r.yaml")
    recipe_at(place / "a/same/r.yaml"), recipe_at(place / "b/same/r.yaml")
    npz(place / "cut.npz", cut=500)
    npz(place / "gap.npz", labels=(0, 2, 0, 2))
    (place / "empty").mkdir()
    unfinished = place / "out0/r/0"
    unfinished.mkdir(parents=True)
    (unfinished / "recipe.yaml").write_text(asked("show", "r.yaml").partition("\n\n")[0])
    before = {p.relative_to(place) for p in place.rglob("*")}
    if "mlflow" in str(words):
        try:
            import mlflow  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("mlflow is installed here")
    message = refused(*words)
    assert said in message
    assert {p.relative_to(place) for p in place.rglob("*")} == before


def test_an_unfinished_run_says_how_to_go_on_and_goes_on(place):
    recipe_at(place / "mine" / "r.yaml")
    folder = place / "out/mine/r/0"
    asked("train", "mine/r.yaml", "--out", "out", "--device", "cpu")
    (folder / "scores.json").unlink()
    message = refused("train", "mine/r.yaml", "--out", "out", "--device", "cpu")
    assert "holds an unfinished run: add --resume to go on with it, or remove the folder" in message
    assert "already holds another recipe" in refused(
        "train", "mine/r.yaml", "--out", "out", "--set", "stages.0.epochs=7", "--resume"
    )
    asked("train", "mine/r.yaml", "--out", "out", "--device", "cpu", "--resume")
    assert (folder / "scores.json").exists()


def test_a_loss_that_is_not_finite_is_a_message(place):
    recipe_at(place / "r.yaml", stages=[{"epochs": 1, "optim": {"lr": 1e30}}])
    message = refused("train", "r.yaml", "--device", "cpu")
    assert "not finite in stage 0, epoch 0, step" in message and "Lower the learning rate" in message


def test_a_full_disk_is_a_message(place, monkeypatch):
    recipe_at(place / "r.yaml")

    def full(*args, **how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flattail.runs.write_logits", full)
    assert "the disk is full, and what was written before is whole" in refused("train", "r.yaml", "--device", "cpu")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            r"stages\[0\]: CUDA out of memory: `--set stages.0.micro=2`",
        ),
        (MemoryError(), "flattail: too little memory"),
    ],
)
def test_too_little_memory_is_a_message(place, monkeypatch, error, said):
    recipe_at(place / "r.yaml")

    def full(*args, **how):
        raise error

    monkeypatch.setattr("flattail.train.train_epoch", full)
    assert re.search(said, refused("train", "r.yaml", "--device", "cpu"))


def test_our_own_errors_keep_their_traceback(place, monkeypatch):
    monkeypatch.setattr("flattail.recipe.found", lambda names: {}["bug"])
    result = CliRunner().invoke(app, ["train", "x"])
    assert isinstance(result.exception, KeyError)


@pytest.mark.parametrize(
    ("text", "seeds"), [("0", [0]), ("0-2", [0, 1, 2]), ("0,3,7", [0, 3, 7]), ("1-2, 2-3", [1, 2, 3]), ("5,0", [5, 0])]
)
def test_seeds(text, seeds):
    assert numbers(text) == seeds
