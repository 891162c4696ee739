"""Sweeps: what may vary, who does which trial, which is chosen and on which images, and what is left in the folder."""

import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from commands import asked, refused
from hypothesis import given
from hypothesis import strategies as st
from small import DIGITS, write_npz

from flattail import runs
from flattail.data import DigitsLT, LongTail
from flattail.jobs import Worker
from flattail.recipe import RecipeError, from_tree, label, read, replaced, to_tree, write
from flattail.scores import evaluate
from flattail.sweep import ledger, workers
from flattail.sweep.accuracy import Mean, Measured, accuracy, share
from flattail.sweep.apart import examined, halves
from flattail.sweep.chosen import Outcome
from flattail.sweep.figure import drawn
from flattail.sweep.kept import final_runs
from flattail.sweep.ledger import BUSY, Tried, ask, done, left, opened, place, started, tell
from flattail.sweep.settings import swept
from flattail.sweep.space import Range, Values, axis, names, points
from flattail.sweep.trial import Judged, validated

RHO = "stages.*.method.rho"


def recipe(**stage):
    return from_tree(DIGITS | {"stages": [{"epochs": 1, "batch": 64, "method": "sam"} | stage], "title": "tiny"})


def sweep(*over, recipe_=None, trials=None, seeds=(0,), validation=0.2, score="balanced"):
    return swept(
        recipe_ or recipe(), map(axis, over or [f"{RHO}=0.05,0.1"]), trials=trials, seeds=seeds, validation=validation,
        score=score,
    )  # fmt: skip


def judged(right, images=(10, 10), groups=None):
    return Judged(list(right), list(images), [20, 20], groups or {}, 1.0, [])


def tried(number, score, *, images=100, **point):
    answers = None if score is None else Mean((share(round(score * images), images),))
    return Tried(number, point, answers, 1.0, () if score is not None else ("seed 0: loss is nan",))


# -- what may vary ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=0.05, 0.1,2e-1", Values("a.b", ("0.05", "0.1", "2e-1"))),
        ("a=sam,imbsam", Values("a", ("sam", "imbsam"))),
        ("a={name: sam, rho: 0.1}, erm", Values("a", ("{name: sam, rho: 0.1}", "erm"))),
        ("a=[crop, flip],[]", Values("a", ("[crop, flip]", "[]"))),
        ("a='x, y',null,true", Values("a", ("'x, y'", "null", "true"))),
        ("a=0.01..1", Range("a", 0.01, 1.0)),
        ("a=.01..1.:log", Range("a", 0.01, 1.0, log=True)),
        ("a=1e-4..1e-2:log", Range("a", 1e-4, 1e-2, log=True)),
        ("a=5..30", Range("a", 5, 30, whole=True)),
        ("a=1..64:log", Range("a", 1, 64, whole=True, log=True)),
        ("a=-1..1:linear", Range("a", -1, 1, whole=True)),
        ("a=-1.0..1", Range("a", -1, 1)),
    ],
)
def test_how_axes_are_written(text, value):
    assert axis(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "write place=values"),
        ("a=", "write place=values"),
        ("=1,2", "write place=values"),
        ("a=1,,2", "no list of YAML values|an entry is empty"),
        ("a=0.1,0.10", "0.1 stands there twice"),
        ("a=x], [y", "no list of YAML values"),
        ("a={b", "no list of YAML values"),
        ("a=0.01..x", "a range is two numbers"),
        ("a=0.1,0.2:log", "a range is two numbers"),
        ("a=1..0.1", "from a smaller number to a larger"),
        ("a=1..1", "from a smaller number to a larger"),
        ("a=0..1:log", "begins above 0"),
        ("a=0..1e999", "from a smaller number to a larger"),
    ],
)
def test_what_is_no_axis_is_refused_with_its_text(text, said):
    with pytest.raises(ValueError, match=said) as told:
        axis(text)
    assert str(told.value).startswith(f"--over {text}: ")


@given(st.floats(1e-9, 1e6), st.floats(1.001, 1e6), st.floats(0, 1), st.booleans())
def test_a_drawn_number_is_written_short_inside_the_range_and_as_yaml_reads_it(low, factor, share, log):
    r = Range("a", low, low * factor, log=log)
    value = min(max(low * factor**share, r.low), r.high)
    written = yaml.safe_load(r.text(value))
    assert isinstance(written, float | int) and r.low <= written <= r.high
    assert math.isclose(written, value, rel_tol=1e-3)


def test_a_star_is_every_entry_of_a_list():
    tree = to_tree(from_tree(DIGITS | {"stages": [{"epochs": 1, "method": "sam"}, {"epochs": 2, "method": "asam"}]}))
    assert [s["method"]["rho"] for s in replaced(tree, f"{RHO}=0.3")["stages"]] == [0.3, 0.3]
    for bad, said in (("stages.*.metod.rho=1", "recipe.stages.0 has no `metod`; did you mean `method`?"),
                      ("stages.*.augment.*.pad=1", r"recipe.stages.0.augment has 0 entries"),
                      ("model.*.x=1", r"recipe.model has no `\*`")):  # fmt: skip
        with pytest.raises(RecipeError, match=f"^--set {'.*' if '*' in bad else ''}{said}|^--set .*{said}"):
            replaced(tree, bad)


def test_names_of_places_are_short_unless_two_share_them():
    axes = [axis(t) for t in ("stages.0.method.rho=1,2", "stages.0.method.name=sam,asam", "model.width=8,16")]
    assert list(names(axes).values()) == ["rho", "method", "width"]
    axes.append(axis("stages.1.method.rho=1,2"))
    assert list(names(axes).values()) == ["stages.0.method.rho", "method", "width", "stages.1.method.rho"]


def test_a_grid_is_every_combination_and_names_bring_their_fields():
    s = sweep("stages.*.method.head_rho=0.1,0.2", "stages.*.method.name=ssesam")
    assert s.trials == 2 and [p["stages.*.method.head_rho"] for p in points(s.axes)] == ["0.1", "0.2"]
    found = [s.at(p) for p in points(s.axes)]
    assert [(type(r.stages[0].method).__name__, r.stages[0].method.head_rho) for r in found] == [
        ("SSESAM", 0.1), ("SSESAM", 0.2),
    ]  # fmt: skip
    assert all(r.protocol.validation == 0.2 for r in found)
    assert [s.final(p).protocol.validation for p in points(s.axes)] == [0, 0]
    several = sweep("stages.*.method=sam,{name: asam, rho: 1.0}", "stages.*.optim.lr=0.1,0.05")
    assert [type(several.at(p).stages[0].method).__name__ for p in points(several.axes)] == [
        "SAM",
        "SAM",
        "ASAM",
        "ASAM",
    ]


@pytest.mark.parametrize(
    ("over", "how", "said"),
    [
        ([], {}, "nothing varies"),
        ([f"{RHO}=0.1,-1"], {}, r"^--over stages\.\*\.method\.rho=-1: recipe.*a radius is a length: -1"),
        (["stages.*.method.rh=0.1,1"], {}, r"recipe\.stages\[0\]\.method: SAM has no `rh`; did you mean `rho`"),
        (["stages.3.epochs=1,2"], {}, r"^--over stages\.3\.epochs=1: recipe\.stages has 1 entries"),
        (["stages.*.method.name=sam,nothing"], {}, "nothing is called 'nothing'"),
        (["stages.*.method.name=sam,erm", f"{RHO}=0.1,0.2"], {}, "ERM has no `rho`"),
        (["stages.*.epochs=1.5..3"], {"trials": 2}, r"recipe\.stages\[0\]\.epochs"),
        ([f"{RHO}=0.05..1"], {}, "add --trials"),
        ([f"{RHO}=-1..1"], {"trials": 3}, r"^--over stages\.\*\.method\.rho=-1: .*a radius is a length"),
        ([f"{RHO}=0.1,0.2"], {"trials": 3}, "this has 2: leave out --trials"),
        ([f"{RHO}=0.1,0.2", f"{RHO}=0.3"], {}, "is there twice"),
        ([f"{RHO}=0.1,0.2", "stages.0.method.rho=0.3"], {}, "are the same recipe: vary something else"),
        (["protocol.views=one,flip"], {}, "no part of training"),
        ([f"{RHO}=0.1,0.2"], {"score": "tail"}, "--score tail: choose one of balanced, all"),
        ([f"{RHO}=0.1,0.2"], {"validation": 1.0}, "--validation 1.0: a share"),
        ([f"stages.*.optim.lr={','.join(str(i) for i in range(1, 200))}",
          f"stages.*.batch={','.join(str(i) for i in range(1, 100))}"], {}, "19,701 points"),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_before_any_data_are_read(over, how, said, monkeypatch):
    monkeypatch.setattr(DigitsLT, "load", lambda *a: pytest.fail("data were read"))
    with pytest.raises(ValueError, match=said):
        swept(
            recipe(), map(axis, over), **{"trials": None, "seeds": (0,), "validation": 0.2, "score": "balanced"} | how
        )


@pytest.mark.parametrize("selection", ["best-on-val", "best-on-test"])
def test_epochs_chosen_on_images_that_the_final_runs_use_are_refused(selection):
    tree = to_tree(recipe()) | {"protocol": {"selection": selection, "validation": 0.1}}
    with pytest.raises(ValueError, match=rf"protocol\.selection: {selection} .* --set protocol\.selection=last"):
        sweep(recipe_=from_tree(tree))


# -- an accuracy and its standard error ---------------------------------------------------------------------


def test_scores_are_those_of_the_library():
    logits, y = torch.randn(60, 4), torch.arange(60) % 3  # no image of the last class
    groups = {"many": [0], "few": [1, 2, 3]}
    masks = {n: torch.tensor([c in cs for c in range(4)]) for n, cs in groups.items()}
    scores = evaluate(logits, y, groups=masks)
    right, images = scores.confusion.diagonal().tolist(), scores.confusion.sum(1).tolist()
    assert accuracy(right, images, "balanced", range(4)).accuracy == pytest.approx(scores.balanced)
    assert accuracy(right, images, "all", range(4)).accuracy == pytest.approx(scores.all)
    for name, classes in groups.items():
        assert accuracy(right, images, name, classes).accuracy == pytest.approx(scores.groups[name])


def test_the_standard_error_is_binomial_in_the_limit_and_never_zero():
    for p in (0.1, 0.5, 0.9):
        assert share(round(p * 10**6), 10**6).variance == pytest.approx(p * (1 - p) / 10**6, rel=1e-4)
    assert share(0, 1) == (0, pytest.approx(2 / 9)) and share(1, 1) == (1, pytest.approx(2 / 9))
    m = accuracy([50, 1], [100, 1], "balanced", range(2))
    assert m.variance == pytest.approx((0.25 / 100 + 2 / 9) / 4)  # one image of the tail decides it
    assert accuracy([50, 1], [100, 1], "all", range(2)) == share(51, 101)


def test_it_is_how_much_the_balanced_accuracy_of_fresh_images_varies():
    rng, p, images = np.random.default_rng(0), np.array([0.9, 0.6, 0.4]), np.array([40, 20, 10])
    right = rng.binomial(images, p, (20_000, 3))
    spread = (right / images).mean(1).std()
    each = [math.sqrt(accuracy(row, images.tolist(), "balanced", range(3)).variance) for row in right[:500].tolist()]
    assert np.mean(each) == pytest.approx(spread, rel=0.03)


def test_seeds_are_averaged_and_the_larger_error_counts():
    values = [0.5, 0.7, 0.6]
    mean = Mean(tuple(Measured(v, 0.0004) for v in values))
    assert mean.value == pytest.approx(0.6) and mean.of_images == pytest.approx(0.02 / math.sqrt(3))
    assert mean.of_seeds == pytest.approx(np.std(values, ddof=1) / math.sqrt(3)) == pytest.approx(mean.error)
    less = Mean(tuple(Measured(v - d, 0.0004) for v, d in zip(values, (0.1, 0.3, 0.2), strict=True)))
    behind = mean.less(less)
    assert behind.value == pytest.approx(0.2) and behind.of_seeds == pytest.approx(0.1 / math.sqrt(3))
    assert Mean((Measured(0.5, 0.01),)).of_seeds is None and Mean((Measured(0.5, 0.01),)).error == pytest.approx(0.1)


# -- which one is chosen ------------------------------------------------------------------------------------


def outcome(*scores, over=f"{RHO}=0.05,0.1,0.2,0.4", images=100):
    s = sweep(over)
    return Outcome.of(
        s, [tried(i, v, images=images, **p) for i, (v, p) in enumerate(zip(scores, points(s.axes), strict=True))]
    )


def test_the_best_is_chosen_and_what_is_within_one_standard_error_is_named():
    found = outcome(0.60, 0.70, 0.66, 0.50)
    assert found.best.point == {RHO: "0.1"} and [t.point[RHO] for t in found.alike] == ["0.2"]
    assert found.bar == pytest.approx(0.7 - math.sqrt(share(70, 100).variance)) and not found.edges
    assert "rho = 0.1 is best, and by these images cannot be told from rho = 0.2" in found.notes[0]
    assert "by more than one standard error" in outcome(0.5, 0.9, 0.6, 0.5).notes[0]


def test_equal_scores_go_to_the_first():
    assert outcome(0.6, 0.7, 0.7, 0.7).best.point == {RHO: "0.1"}


@pytest.mark.parametrize(("best", "said"), [(0, "lower edge .* below 0.05"), (3, "upper edge .* above 0.4")])
def test_the_edge_of_what_was_tried_is_told(best, said):
    (edge,) = outcome(*(0.7 if i == best else 0.5 for i in range(4))).edges
    assert re.search(said, edge)


def test_edges_of_ranges_and_of_what_has_none():
    assert axis("a=0.01..1:log").edge("0.012") == "lower" and axis("a=0.01..1:log").edge("0.9") == "upper"
    assert axis("a=0.01..1:log").edge("0.1") is None and axis("a=0.0..1.0").edge("0.1") is None
    assert axis("a=0.0..1.0").edge("0.04") == "lower" and axis("a=1..9").edge("9") == "upper"
    assert axis("a=sam,asam").edge("sam") is None and axis("a=0.1").edge("0.1") is None
    assert axis("a=0.2,0.1,0.4").edge("0.1") == "lower"


def test_what_broke_off_is_last_and_all_of_it_is_a_message():
    found = outcome(0.6, None, 0.5, 0.4)
    assert found.tried[-1].point == {RHO: "0.1"} and "rho = 0.1: seed 0: loss is nan" in found.notes
    with pytest.raises(ValueError, match=r"no trial came to its end.*loss is nan"):
        outcome(None, None, None, None)


def test_the_chosen_recipe_is_read_again_and_says_how_it_was_chosen(tmp_path):
    found = outcome(0.60, 0.70, 0.66, 0.50)
    chosen = found.recipe()
    (tmp_path / "chosen.yaml").write_text(write(chosen))
    assert read(tmp_path / "chosen.yaml") == chosen and chosen.stages[0].method.rho == 0.1
    assert chosen.protocol.validation == 0
    (note,) = chosen.notes
    for said in (
        "rho = 0.1",
        "of 0.05, 0.1, 0.2, 0.4",
        "70.0 ± 4.6 %",
        "20 % of the training",
        "4 trials",
        "rho = 0.2",
    ):
        assert said in note
    expected = replace(recipe(), expect=from_tree(to_tree(recipe()) | {"expect": {"accuracy": 80}}).expect)
    s = replace(found.sweep, recipe=expected)
    assert replace(found, sweep=s).recipe().expect is None, "the number was of other values"
    same = replace(found, sweep=s, tried=(tried(0, 0.7, **{RHO: "0.05"}),))
    assert same.recipe().expect == expected.expect


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ([f"{RHO}=0.05,0.1,0.2,0.4"], ["rho", "0.05", "0.4", "balanced accuracy, validation, %"]),
        (["stages.*.method.name=sam,asam"], ["method", "sam", "asam"]),
        ([f"{RHO}=0.1,0.2", "stages.*.optim.lr=0.1,0.05"], ["rho", "lr"]),
    ],
)
def test_the_figure_is_an_svg_with_a_panel_for_each_place(over, words):
    s = sweep(*over)
    found = Outcome.of(s, [tried(i, 0.5 + i / 50, **p) for i, p in enumerate(points(s.axes))])
    svg = drawn(found)
    texts = [e.text.strip() for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text") if e.text]
    assert all(any(word in text for text in texts) for word in words)
    assert svg == drawn(found) and svg.count('id="axes_') == len(over)


# -- who does which trial -----------------------------------------------------------------------------------


def finished(folder, s, number, answers):
    """What a worker does when a trial is over."""
    for seed, each in zip(s.seeds, answers if isinstance(answers, list) else [], strict=False):
        here = place(folder, number) / f"seed-{seed}"
        here.mkdir(parents=True, exist_ok=True)
        runs.write_json(here / "validation.json", vars(each))
    tell(folder, s, number, answers)


def test_a_trial_has_one_process_and_goes_to_another_when_that_is_gone(tmp_path):
    s = sweep(f"{RHO}=0.05,0.1")
    started(tmp_path, s)
    first, second, third = ExitStack(), ExitStack(), ExitStack()
    assert ask(tmp_path, s, first) == (0, {RHO: "0.05"}) and ask(tmp_path, s, second) == (1, {RHO: "0.1"})
    before = (tmp_path / "study.log").read_bytes()
    assert ask(tmp_path, s, third) == (BUSY, {}) and left(tmp_path, s) == 2
    assert (tmp_path / "study.log").read_bytes() == before, "who waits looks twice a second, for hours"
    first.close()  # it ended without a word
    assert ask(tmp_path, s, third) == (0, {RHO: "0.05"})
    finished(tmp_path, s, 0, [judged((9, 5))])
    finished(tmp_path, s, 1, [judged((9, 8))])
    assert ask(tmp_path, s, ExitStack()) is None
    found = [(t.number, t.point[RHO], round(t.score.value, 9)) for t in done(tmp_path, s)]
    assert found == [(0, "0.05", 0.7), (1, "0.1", 0.85)]
    second.close()
    third.close()


def test_killed_between_any_two_lines_of_the_study_every_point_is_tried_once(tmp_path):
    s = sweep(f"{RHO}=0.05,0.1,0.2")
    started(tmp_path, s)
    study = opened(tmp_path)
    study.enqueue_trial({RHO: 0.05}, user_attrs={"point": {RHO: "0.05"}})  # not asked for any more
    with ExitStack() as held:
        assert ask(tmp_path, s, held)[0] == 0
    opened(tmp_path).ask()  # it never knew what to try
    with (tmp_path / "study.log").open("ab") as file:
        file.write(b'{"op_code": 4, "worker_')  # a power cut
    (tmp_path / "study.log.lock").symlink_to("study.log")  # its holder is dead
    seen = []
    began = time.monotonic()
    while True:
        with ExitStack() as held:
            if (found := ask(tmp_path, s, held)) is None:
                break
            seen.append(found[1][RHO])
            finished(tmp_path, s, found[0], [judged((5, 5))])
    assert sorted(seen) == ["0.05", "0.1", "0.2"] and len(done(tmp_path, s)) == 3
    assert time.monotonic() - began < 20, "nobody waits for the lock of the dead"


def hands(folder, s, seed):
    """A worker that trains nothing, and writes down what it was given."""
    rng = random.Random(seed)
    while True:
        with ExitStack() as held:
            if (found := ask(folder, s, held)) is None:
                return
            if found[0] != BUSY:
                with (folder / f"hand-{seed}").open("a") as file:
                    file.write(f"{found[0]}\n")
                time.sleep(rng.random() / 50)
                finished(folder, s, found[0], [judged((5, 5))])
        time.sleep(0.01)


def test_three_processes_share_the_trials_and_do_none_twice(tmp_path):
    s = sweep(f"{RHO}={','.join(f'0.{i:02d}' for i in range(1, 10))}")
    started(tmp_path, s)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=hands, args=(tmp_path, s, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    numbers = [int(n) for path in tmp_path.glob("hand-*") for n in path.read_text().split()]
    assert sorted(numbers) == list(range(9))
    assert sorted(t.point[RHO] for t in done(tmp_path, s)) == sorted(s.axes[0].texts)
    assert not list(tmp_path.rglob(".lock.*"))


def forked(target, *what, **how):
    """`jobs.start`, but for a process that has what this one has, where the real one would import it anew."""
    context = multiprocessing.get_context("fork")
    said, tell = context.Pipe(duplex=False)
    process = context.Process(target=target, args=what, kwargs={"tell": tell, **how})
    process.start()
    tell.close()
    return Worker(process, said)


def test_several_workers_do_all_and_tell_what_they_could_not(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "start", forked)
    fake(monkeypatch, lambda r, seed: r.stages[0].method.rho)
    s, how = sweep(f"{RHO}=0.1,0.2,0.3,0.4", seeds=(0, 1)), {"jobs": 2, "root": Path(), "device": "cpu"}
    started(tmp_path / "a", s)
    workers.all_done(tmp_path / "a", s, **how)
    found = done(tmp_path / "a", s)
    assert [t.point[RHO] for t in found] == ["0.1", "0.2", "0.3", "0.4"] and ledger.left(tmp_path / "a", s) == 0
    assert [t.score.value for t in found] == pytest.approx([(rho + 0.5) / 2 for rho in (0.1, 0.2, 0.3, 0.4)])
    fake(monkeypatch, lambda r, seed: int("x"))
    started(tmp_path / "b", s)
    with pytest.raises(ValueError, match=r"^invalid literal"):
        workers.all_done(tmp_path / "b", s, **how)
    assert ledger.left(tmp_path / "b", s) == 4 and not list(tmp_path.rglob(".lock.*"))


def fake(monkeypatch, accuracy_of):
    """Trials that are judged by a function of their recipe."""

    def answer(recipe, seed, folder, **how):
        value = accuracy_of(recipe, seed)
        folder.mkdir(parents=True, exist_ok=True)
        found = judged((round(1000 * value), 500), (1000, 1000))
        runs.write_json(folder / "validation.json", vars(found))
        return found

    monkeypatch.setattr(workers, "validated", answer)


def rhos(folder, s):
    workers.all_done(folder, s, jobs=1, root=Path(), device="cpu")
    return [float(t.point[RHO]) for t in done(folder, s)]


def test_a_range_is_searched_where_it_went_well_and_the_same_each_time(tmp_path, monkeypatch):
    fake(monkeypatch, lambda r, seed: math.exp(-(math.log(r.stages[0].method.rho / 0.1) ** 2)))
    s = sweep(f"{RHO}=0.001..1:log", trials=16)
    started(tmp_path / "a", s)
    found = rhos(tmp_path / "a", s)
    assert len(found) == len(set(found)) == 16 and all(0.001 <= rho <= 1 for rho in found)
    late = np.abs(np.log(np.array(found[10:]) / 0.1))
    assert np.median(late) < 0.8 < np.median(np.abs(np.log(np.array(found[:10]) / 0.1)))
    started(tmp_path / "b", s)
    assert rhos(tmp_path / "b", s) == found
    more = replace(s, trials=17)
    started(tmp_path / "a", more)
    assert rhos(tmp_path / "a", more)[:16] == found and len(done(tmp_path / "a", more)) == 17


def test_whole_numbers_and_names_in_one_search(tmp_path, monkeypatch):
    fake(monkeypatch, lambda r, seed: r.stages[0].epochs / 10)
    s = sweep("stages.*.epochs=1..9", "stages.*.method.name=sam,asam", trials=12)
    started(tmp_path, s)
    workers.all_done(tmp_path, s, jobs=1, root=Path(), device="cpu")
    found = done(tmp_path, s)
    assert {t.point["stages.*.epochs"] for t in found} <= set(map(str, range(1, 10)))
    assert {t.point["stages.*.method.name"] for t in found} == {"sam", "asam"}
    assert Outcome.of(s, found).recipe().stages[0].epochs == max(int(t.point["stages.*.epochs"]) for t in found)


def test_what_is_drawn_again_is_not_trained_again(tmp_path, monkeypatch):
    trained = []
    fake(monkeypatch, lambda r, seed: trained.append(r.stages[0].epochs) or r.stages[0].epochs / 10)
    s = sweep("stages.*.epochs=1..3", trials=9)
    started(tmp_path, s)
    workers.all_done(tmp_path, s, jobs=1, root=Path(), device="cpu")
    found = done(tmp_path, s)
    assert len(trained) == len(set(trained)) == len(found) <= 3 and ledger.left(tmp_path, s) == 0
    assert [int(t.point["stages.*.epochs"]) for t in found] == trained


def test_numbers_may_be_added_and_what_was_tried_stays(tmp_path, monkeypatch):
    fake(monkeypatch, lambda r, seed: r.stages[0].method.rho)
    small, large = sweep(f"{RHO}=0.1,0.2"), sweep(f"{RHO}=0.05,0.1,0.2,0.4")
    started(tmp_path / "a", small)
    assert rhos(tmp_path / "a", small) == [0.1, 0.2]
    started(tmp_path / "a", large)
    assert rhos(tmp_path / "a", large) == [0.1, 0.2, 0.05, 0.4]
    for other in (small, sweep(f"{RHO}=0.05,0.1,0.2,0.4", score="few"), sweep(f"{RHO}=0.01..1", trials=5)):
        with pytest.raises(ValueError, match=r"holds a sweep with another (over|score)"):
            started(tmp_path / "a", other)
    a, b = sweep(f"{RHO}=0.0..1.0", trials=3), sweep(f"{RHO}=0.0..2.0", trials=6)
    started(tmp_path / "b", a)
    assert max(rhos(tmp_path / "b", a)) <= 1
    started(tmp_path / "b", b)
    assert len(rhos(tmp_path / "b", b)) == 6
    for over in (f"{RHO}=0.0..1.0", f"{RHO}=0..2", f"{RHO}=0.01..2.0:log"):
        with pytest.raises(ValueError, match="holds a sweep with another over"):
            started(tmp_path / "b", sweep(over, trials=6))


def test_a_trial_at_infinity_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    def value(r, seed):
        if r.stages[0].method.rho > 0.2:
            raise FloatingPointError("loss is nan in step 3")
        return 0.5

    fake(monkeypatch, value)
    s = sweep(f"{RHO}=0.1,0.4,0.2", seeds=(0, 3))
    started(tmp_path, s)
    workers.all_done(tmp_path, s, jobs=1, root=Path(), device="cpu")
    found = done(tmp_path, s)
    assert [t.score is None for t in found] == [False, True, False]
    assert found[1].said == ("seed 0: loss is nan in step 3",) and len(found[0].score.each) == 2


def test_a_mistake_in_a_trial_stops_the_sweep_and_the_trial_is_done_next_time(tmp_path, monkeypatch):
    fake(monkeypatch, lambda r, seed: int("x"))
    s = sweep()
    started(tmp_path, s)
    with pytest.raises(ValueError, match="invalid literal"):
        rhos(tmp_path, s)
    fake(monkeypatch, lambda r, seed: 0.5)
    assert rhos(tmp_path, s) == [0.05, 0.1]


# -- on which images ----------------------------------------------------------------------------------------


class Sealed:
    """A test half that nobody may look at."""

    def __init__(self, half):
        self.half, self.y, self.shape = half, half.y, half.shape

    def __len__(self):
        return len(self.half)

    def take(self, rows):
        return self

    def batches(self, *args, **how):
        raise AssertionError("test images were looked at")


@dataclass(frozen=True)
class Trap:
    """Digits whose test labels are all one off: who learns best on them scores worst; or sealed ones."""

    sealed: bool = False

    def load(self, root):
        data = DigitsLT().load(root)
        test = data.test.take(torch.arange(len(data.test)))
        test.y = (test.y + 1) % 10
        return replace(data, test=Sealed(test) if self.sealed else test)


def trapped(sealed):
    tree = to_tree(recipe(epochs=2, method="erm")) | {"data": {"name": f"{__name__}:Trap", "sealed": sealed}}
    return from_tree(tree)


def test_test_scores_that_disagree_choose_nothing(tmp_path):
    s = sweep("stages.*.optim.lr=1e-6,0.1", recipe_=trapped(False))
    started(tmp_path, s)
    workers.all_done(tmp_path, s, jobs=1, root=Path(), device="cpu")
    found = Outcome.of(s, done(tmp_path, s))
    assert found.best.point == {"stages.*.optim.lr": "0.1"}
    by_test = []
    for lr in s.axes[0].texts:
        one = s.final({"stages.*.optim.lr": lr})
        from flattail.experiment import run

        by_test.append(runs.read(run(one, out=tmp_path / lr, device="cpu")).scores["scores"]["balanced"])
    assert by_test[0] > by_test[1], "the trap is one: by test scores the other would have been chosen"


def test_test_images_are_not_looked_at_by_a_sweep(tmp_path):
    s = sweep("stages.*.optim.lr=0.1", recipe_=trapped(True), validation=0.3)
    examined(s, root=Path(), device="cpu", final=False)
    found = validated(s.at(points(s.axes)[0]), 0, tmp_path / "t", root=Path(), device="cpu")
    whole = DigitsLT().load(Path())
    assert sum(found.images) + sum(found.train) == len(whole.train) and min(found.images) >= 1 <= min(found.train)
    masks = whole.group()
    assert found.groups == {n: m.nonzero()[:, 0].tolist() for n, m in masks.items()}, "groups are those of all images"
    data = halves(s.at(points(s.axes)[0]), Path(), 0)
    assert data.test is data.val
    assert not (tmp_path / "t" / "model.safetensors").exists() and runs.find([tmp_path]) == []


@dataclass(frozen=True)
class Rare:
    """A long tail that ends with a class of so many images."""

    least: int = 1

    def load(self, root):
        g = torch.Generator().manual_seed(0)
        y = torch.tensor([0] * 20 + [1] * 10 + [2] * self.least)
        x = torch.randint(0, 255, (len(y), 1, 8, 8), generator=g, dtype=torch.uint8)
        return LongTail.of((x, y), (x, y), title="rare")


def test_classes_of_one_and_of_two_images():
    def of(least, **how):
        tree = to_tree(recipe()) | {"data": {"name": f"{__name__}:Rare", "least": least}}
        return examined(sweep(recipe_=from_tree(tree), **how), root=Path(), device="cpu", final=True)

    with pytest.raises(ValueError, match=r"class 2 \(2\) has one training image, which cannot be both"):
        of(1)
    apart = of(2)
    assert apart.images == (4, 2, 1) and apart.train == 25 and "one class has a single one" in str(apart)
    assert of(2, validation=0.9).images == (18, 9, 1)
    with pytest.raises(ValueError, match="--validation 0 asks for the validation part of the data, and rare have none"):
        of(2, validation=0.0)
    with pytest.raises(ValueError, match=r"--score many: rare.* has no such classes"):
        of(2, score="many")


def test_a_validation_half_that_the_data_bring(tmp_path):
    write_npz(tmp_path / "d.npz", train=[0] * 20 + [1] * 10, val=[0, 1] * 4, test=[0, 1] * 6)
    s = sweep(recipe_=from_tree(to_tree(recipe()) | {"data": "npz:d.npz"}), validation=0.0)
    apart = examined(s, root=tmp_path, device="cpu", final=True)
    assert apart.images == (4, 4) and apart.train == 30


def test_stages_that_begin_from_a_run_need_one_on_all_images():
    first = to_tree(recipe()) | {"stages": [{"epochs": 1, "method": "sam", "init": "runs/a/b/{seed}"}]}
    with pytest.raises(ValueError, match="write both stages into one recipe, or add --final-seeds none"):
        examined(sweep(recipe_=from_tree(first)), root=Path(), device="cpu", final=True)


def test_a_start_that_chooses_by_itself_is_refused():
    """Its tau would be chosen on the images that judge the trial."""
    stages = [{"epochs": 1}, {"epochs": 0, "start": {"name": "tau-norm", "tau": None}}]
    tau = sweep("stages.0.optim.lr=0.05,0.1", recipe_=from_tree(to_tree(recipe()) | {"stages": stages}))
    with pytest.raises(
        ValueError, match=r"recipe\.stages\[1\]\.start: chooses tau .*--over stages\.1\.start\.tau=0,0\.5,1"
    ):
        examined(tau, root=Path(), device="cpu", final=True)
    chosen = sweep("stages.1.start.tau=0,1", recipe_=from_tree(to_tree(recipe()) | {"stages": stages}))
    assert examined(chosen, root=Path(), device="cpu", final=True).images


def test_a_score_without_validation_images_is_refused(tmp_path):
    write_npz(tmp_path / "d.npz", train=[0] * 120 + [1] * 60 + [2] * 8, val=[0, 1] * 4, test=[0, 1, 2])
    few = sweep(recipe_=from_tree(to_tree(recipe()) | {"data": "npz:d.npz"}), validation=0.0, score="few")
    with pytest.raises(ValueError, match=r"--score few: .* no validation image of them"):
        examined(few, root=tmp_path, device="cpu", final=True)


def test_points_that_the_model_cannot_train_and_processes_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"stages\.\*\.only = nothing: .*no trainable parameter has 'nothing'"):
        examined(sweep("stages.*.only=null,nothing"), root=Path(), device="cpu", final=True)
    with pytest.raises(ValueError, match="choose cpu, cuda"):
        examined(sweep(), root=Path(), device="gpu", final=True)
    monkeypatch.setattr("flattail.sweep.apart.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'flattail\[sweep\]'"):
        examined(sweep(), root=Path(), device="cpu", final=True)
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without torchrun"):
        examined(sweep(), root=Path(), device="cpu", final=True)


def test_a_trial_that_is_stopped_goes_on_from_its_checkpoint_to_the_same_answer(tmp_path):
    one = sweep(recipe_=recipe(epochs=4)).at({RHO: "0.1"})
    epochs = []

    def stop(row):
        epochs.append(row["epoch"])
        if len(epochs) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    how = {"root": Path(), "device": "cpu"}
    with pytest.raises(SystemExit) as ended:
        validated(one, 0, tmp_path / "a", on_epoch=stop, **how)
    assert ended.value.code == 143 and (tmp_path / "a" / "checkpoint.pt").exists()
    found = validated(one, 0, tmp_path / "a", on_epoch=stop, **how)
    assert epochs == [0, 1, 2, 3] and not list((tmp_path / "a").glob("checkpoint*"))
    twin = validated(one, 0, tmp_path / "b", **how)
    assert replace(found, seconds=0) == replace(twin, seconds=0)
    assert validated(one, 0, tmp_path / "a", on_epoch=lambda row: pytest.fail("trained again"), **how) == found


# -- the command --------------------------------------------------------------------------------------------


def words(tmp_path, *more):
    path = tmp_path / "set" / "tiny.yaml"
    if not path.exists():
        path.parent.mkdir(parents=True)
        path.write_text(write(recipe(), defaults=False))
    return ["sweep", path, "--over", f"{RHO}=0.05,0.2", "--out", tmp_path / "out", "--device", "cpu", *more]


def test_a_sweep_from_the_command_line(tmp_path, monkeypatch):
    said = asked(*words(tmp_path, "--seeds", "0-1", "--final-seeds", "0,2"))
    folder = tmp_path / "out" / "set" / "tiny-sweep"
    assert "84 validation images beside 333 to train on, 1 to 25 a class" in said
    lines = [line.split() for line in said.splitlines()]
    head = next(i for i, line in enumerate(lines) if line[:2] == ["rho", "score"])
    assert {lines[head + 1][0], lines[head + 2][0]} == {"0.05", "0.2"} and lines[head + 1][-1] == "chosen"
    assert float(lines[head + 1][1]) >= float(lines[head + 2][1]) and float(lines[head + 1][2]) > 0
    assert "edge of what was tried" in said and "tiny" in said.split("kept: ")[1]
    chosen = read(folder / "chosen.yaml")
    assert str(chosen.stages[0].method.rho) == lines[head + 1][0] and "2 trials" in chosen.notes[-1]
    assert (folder / "sweep.svg").read_text().startswith("<?xml") and label(
        folder / "chosen.yaml"
    ) == "tiny-sweep/chosen"
    finals = runs.find([tmp_path / "out"])
    assert [(r.label, r.seed) for r in finals] == [("set/tiny-sweep/chosen", 0), ("set/tiny-sweep/chosen", 2)]
    whole = DigitsLT().load(Path())
    for run in finals:
        assert run.scores["counts"] == whole.counts.tolist() and run.scores["fingerprint"] == whole.fingerprint
        assert from_tree(run.recipe) == chosen, "the notes say how it was chosen"
    monkeypatch.setattr("flattail.sweep.trial.fit", lambda *a, **k: pytest.fail("a trial was trained again"))
    monkeypatch.setattr("flattail.experiment.fit", lambda *a, **k: pytest.fail("a final run was trained again"))
    assert asked(*words(tmp_path, "--seeds", "0-1", "--final-seeds", "0,2")) == said
    for more, what in ((["--seeds", "0"], "seeds"), (["--seeds", "0-1", "--score", "few"], "score"),
                       (["--seeds", "0-1", "--set", "stages.0.batch=32"], "recipe")):  # fmt: skip
        assert f"holds a sweep with another {what} (sweep.yaml there says which)" in asked(
            *words(tmp_path, *more), code=2
        )
    (folder / "trials" / "trial-1" / "seed-1" / "validation.json").unlink()
    assert "remove the sweep's folder" in refused(*words(tmp_path, "--seeds", "0-1"))


def test_final_runs_of_another_choice_are_left_alone(tmp_path, monkeypatch):
    found = outcome(0.6, 0.7, 0.6, 0.5)
    monkeypatch.setattr("flattail.sweep.kept.run_all", lambda recipes, seeds, **how: [recipes, how["out"]])
    how = {"jobs": 1, "root": Path(), "device": "cpu", "waiting": lambda: None}
    recipes, out = final_runs(tmp_path / "x-sweep", found, [0], **how)
    assert recipes == {"x-sweep/chosen": found.recipe()} and out == tmp_path
    runs.create(tmp_path, "x-sweep/chosen", 0, recipe=write(replace(found.recipe(), notes=("of fewer trials",))))
    assert final_runs(tmp_path / "x-sweep", found, [0], **how)[0]["x-sweep/chosen"].notes == ("of fewer trials",)
    with pytest.raises(ValueError, match=r"was trained with what was chosen before: move .*x-sweep/chosen away"):
        final_runs(tmp_path / "x-sweep", outcome(0.6, 0.5, 0.9, 0.5), [0], **how)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--final-seeds", "all"], "--final-seeds all: write 0, 0-2 or 0,3,7"),
        (["--seeds", "x"], "--seeds x: write 0"),
        (["--over", "stages.0.metod.rho=1,2"], "--over stages.0.metod.rho=1: recipe.stages.0 has no `metod`"),
        (["--over", "stages.*.augment=[crop],[nothing]"], "nothing is called 'nothing'"),
        (["--validation", "-1"], "--validation -1.0: a share"),
        (["--device", "gpu"], "choose cpu, cuda"),
    ],
)
def test_mistakes_are_messages_and_nothing_is_written(tmp_path, more, said):
    assert said in refused(*words(tmp_path, *more))
    assert not (tmp_path / "out").exists()


def test_killed_with_all_its_processes_the_same_command_goes_on(tmp_path, monkeypatch):
    """Two workers and their parent, `kill -9` for the whole group, while one trial at least is done and two are not."""
    more, trials = ["--over", "stages.*.epochs=1,8", "--final-seeds", "none"], tmp_path / "out/set/tiny-sweep/trials"
    monkeypatch.setattr(workers, "start", forked)

    def whole():
        return {p.parents[1]: p.stat().st_mtime_ns for p in trials.glob("*/*/validation.json")}

    def held():
        return {p for p in trials.glob("*/.lock.*") if p.parent not in whole()}

    child = os.fork()
    if not child:
        os.setsid()
        try:
            asked(*words(tmp_path, *more, "--jobs", "2"))
        finally:
            os._exit(0)
    while not (whole() and len(held()) == 2):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it came to its end"
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kept, dead = whole(), held()
    assert 1 <= len(kept) < 4 and dead
    said = asked(*words(tmp_path, *more))
    assert len(whole()) == 4 and whole().items() >= kept.items(), "what was done was done again"
    assert "chosen" in said and not any(lock.exists() for lock in dead)
    assert sorted(p.name for p in trials.iterdir()) == [f"trial-{i}" for i in range(4)]


def test_the_same_command_in_two_shells_shares_the_trials(tmp_path):
    """Real processes: a shell with two workers of its own, and another shell beside it."""
    more = ["--over", "stages.*.epochs=1,2", "--final-seeds", "none"]
    command = [sys.executable, "-m", "flattail", *map(str, words(tmp_path, *more))]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    shells = [subprocess.Popen([*command, *jobs], **quiet) for jobs in (["--jobs", "2"], [])]
    ended = [shell.communicate(timeout=300)[0] for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], ended
    trials = tmp_path / "out/set/tiny-sweep/trials"
    assert sorted(p.name for p in trials.iterdir()) == [f"trial-{i}" for i in range(4)]
    assert len(list(trials.glob("*/*/validation.json"))) == 4 and not list(trials.rglob(".lock.*"))
    assert all("chosen" in said for said in ended)
