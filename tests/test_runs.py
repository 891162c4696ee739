"""The run directory: whole files or none, a log that survives `kill -9`, damage named with its remedy."""

import json
import os
import stat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flattail import runs

RECIPE = """\
title: CE
data: {name: digits-lt, imbalance: 20}
model: {name: resnet20}
stages:
- {epochs: 3, method: {name: erm}, loss: {name: ce}}
- {epochs: 2, method: {name: erm}, loss: {name: ldam}}
"""
DOCUMENT = {"scores": {"all": 0.5}, "counts": [3, 1], "names": ["a", "b"]}


def row(epoch, **more):
    return {"epoch": epoch, "loss": 1.0 / (1 + epoch), "terms": {}} | more


@pytest.fixture
def run(tmp_path):
    return runs.create(tmp_path / "runs", "digits-lt/ce", 0, recipe=RECIPE)


def test_a_run_comes_back_as_it_was_written(run, tmp_path):
    for epoch in range(5):
        runs.append_row(run, row(epoch))
    assert not runs.read(run).finished
    runs.write_json(run / runs.SCORES, DOCUMENT)
    runs.write_json(run / runs.ENV, {"device": "cpu"})
    found = runs.read(run, root=tmp_path / "runs")
    assert (found.label, found.seed, found.finished, found.epochs) == ("digits-lt/ce", 0, True, 5)
    assert found.recipe["stages"][1]["loss"] == {"name": "ldam"} and found.text == RECIPE
    assert [r["loss"] for r in found.rows] == [1.0 / (1 + e) for e in range(5)]
    assert found.scores == DOCUMENT and found.env == {"device": "cpu"}


def test_the_key_ignores_the_seed_and_nothing_else(run, tmp_path):
    same = runs.create(tmp_path, "other/name", 1, recipe=RECIPE + "seed: 1\n")
    signed = [runs.create(tmp_path, f"s{i}", i, recipe=f"# identity: ab{i // 2}\n{RECIPE}x: {i}\n") for i in range(3)]
    assert runs.create(tmp_path, "s0", 0, recipe=f"# identity: ab0\n{RECIPE}") == signed[0]
    assert len({runs.read(path).key for path in signed[:2]}) == 1 != len({runs.read(path).key for path in signed})
    runs.append_row(signed[2], {"epoch": 0})
    with pytest.raises(ValueError, match="already holds another recipe"):
        runs.create(tmp_path, "s2", 2, recipe=f"# identity: ab0\n{RECIPE}x: 2\n")
    other = runs.create(tmp_path, "third", 1, recipe=RECIPE.replace("epochs: 2", "epochs: 4"))
    assert runs.read(run).key == runs.read(same).key != runs.read(other).key


def test_a_directory_keeps_its_recipe(run, tmp_path):
    assert runs.create(tmp_path / "runs", "digits-lt/ce", 0, recipe=RECIPE + "# a comment\n") == run
    runs.append_row(run, {"epoch": 0})
    with pytest.raises(ValueError, match=r"another recipe.*--out"):
        runs.create(tmp_path / "runs", "digits-lt/ce", 0, recipe=RECIPE.replace("20", "50"))
    assert (run / runs.RECIPE).read_text() == RECIPE


def test_a_recipe_of_which_nothing_came_gives_way(run, tmp_path):
    other = RECIPE.replace("20", "50")
    assert runs.create(tmp_path / "runs", "digits-lt/ce", 0, recipe=other) == run
    assert (run / runs.RECIPE).read_text() == other


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "scores.json"
    runs.write_json(path, {"a": 1})
    with pytest.raises(OSError, match="full"), runs.replacing(path) as partial:
        partial.write_text('{"a": ')
        raise OSError("disk full")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    happened = []
    sync, replace = os.fsync, runs.Path.replace

    def fsync(handle):
        happened.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(runs.Path, "replace", lambda a, b: happened.append("replace") or replace(a, b))
    runs.write_text(tmp_path / "x", "x")
    assert happened == ["file", "replace", "folder"]


def test_paths_that_are_no_utf8_are_written_as_json_spells_them(tmp_path):
    path = os.fsdecode(b"/caf\xe9")
    runs.write_json(tmp_path / "a.json", {"path": path, path: [path, "ä"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": path, path: [path, "ä"]}


def test_json_has_null_for_what_is_not_finite(tmp_path):
    value = {"a": float("nan"), "b": np.array([[1.5, np.inf]]), 3: (np.float32(0.25), np.int64(2)), "c": "ä"}
    runs.write_json(tmp_path / "x.json", value)
    expected = {"a": None, "b": [[1.5, None]], "3": [0.25, 2], "c": "ä"}
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == expected


def test_logits_come_back_exactly(run):
    logits, y = np.random.default_rng(0).standard_normal((7, 3)), np.arange(7) % 3
    runs.write_logits(run, logits, y)
    found, labels = runs.read(run).logits()
    assert found.dtype == np.float32 and labels.dtype == np.int64
    np.testing.assert_array_equal(found, logits.astype(np.float32))
    np.testing.assert_array_equal(labels, y)


@given(cut=st.integers(0, 200))
def test_a_log_cut_at_any_byte_keeps_its_whole_lines(tmp_path_factory, cut):
    run = tmp_path_factory.mktemp("run")
    for epoch in range(4):
        runs.append_row(run, row(epoch))
    whole = (run / runs.LOG).read_bytes()
    torn = whole[: min(cut, len(whole))]
    (run / runs.LOG).write_bytes(torn)
    kept = torn.count(b"\n")
    assert [r["epoch"] for r in runs.read_log(run)] == list(range(kept))
    runs.append_row(run, row(kept))
    assert [r["epoch"] for r in runs.read_log(run)] == list(range(kept + 1))


def test_epochs_are_counted_without_the_torn_line(run):
    assert runs.epochs_logged(run) == 0
    (run / runs.LOG).write_text('{"epoch": 0}\n{"epoch": 1}\n{"ep')
    assert runs.epochs_logged(run) == 2


def test_resuming_keeps_the_first_epochs(run):
    for epoch in range(5):
        runs.append_row(run, row(epoch))
    assert [r["epoch"] for r in runs.truncate_log(run, 3)] == [0, 1, 2]
    runs.append_row(run, row(3, loss=float("inf")))
    assert [(r["epoch"], r["loss"]) for r in runs.read_log(run)][2:] == [(2, 1 / 3), (3, None)]
    assert runs.truncate_log(run, 0) == [] == runs.read_log(run)


def test_find_is_recursive_sorted_and_lists_each_run_once(tmp_path):
    out = tmp_path / "runs"
    for label, seed in (("b/sam", 10), ("b/sam", 2), ("a/ce", 0)):
        runs.create(out, label, seed, recipe=RECIPE + f"# {label}")
    (out / "a" / "ce" / "notes").mkdir()
    found = runs.find([out / "b", out])
    assert [(r.label, r.seed) for r in found] == [("sam", 2), ("sam", 10), ("a/ce", 0)]
    assert [r.label for r in runs.find([out / "b" / "sam", out / "a" / "ce" / "0"])] == ["sam", "sam", "ce"]
    assert runs.find([out / "a" / "ce" / "notes"]) == []
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: give run directories"):
        runs.find([tmp_path / "nowhere"])


def test_find_from_inside_a_run(run, monkeypatch):
    monkeypatch.chdir(run)
    assert [(r.label, r.seed) for r in runs.find(["."])] == [("ce", 0)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (runs.RECIPE, "a: [", "recipe.yaml is not readable YAML; delete the run"),
        (runs.RECIPE, "title: x", "recipe.yaml is no resolved recipe .*data, model, stages"),
        (runs.RECIPE, "- 1", "recipe.yaml is no resolved recipe"),
        (runs.SCORES, '{"scores"', "scores.json is not readable JSON; write it again with `flattail evaluate`"),
        (runs.SCORES, "{}", "scores.json lacks scores, counts, names; write it again"),
        (runs.ENV, "[1]", "env.json holds no JSON object; delete it"),
        (runs.LOG, '{"epoch": 0}\n{"epo\n{"epoch": 2}\n', "log.jsonl, line 2: .*delete the run"),
        (runs.LOG, '{"loss": 0}\n', "log.jsonl, line 1"),
        (runs.LOG, "3\n", "log.jsonl, line 1"),
    ],
)
def test_damage_is_named_with_its_remedy(run, name, content, message):
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        runs.read(run)


def test_damaged_and_absent_logits_are_named(run):
    with pytest.raises(FileNotFoundError, match=r"logits\.npz does not exist: .*--resume"):
        runs.read(run).logits()
    runs.write_logits(run, np.zeros((9, 3)), np.zeros(9))
    whole = (run / runs.LOGITS).read_bytes()
    (run / runs.LOGITS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"logits\.npz cannot be read .*flattail evaluate"):
        runs.read(run).logits()


def test_what_is_no_run_directory_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="<recipe>/<seed>"):
        runs.read(tmp_path)
    moved = run.rename(run.with_name("seed0"))
    with pytest.raises(ValueError, match="named by its seed"):
        runs.read(moved)
