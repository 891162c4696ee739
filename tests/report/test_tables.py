"""The tables: every number against NumPy and SciPy on the written files; what must be said is said."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flattail import runs
from flattail.report import Difference, Estimate, latex, markdown, summary
from flattail.report.estimates import difference
from flattail.report.notes import apart_in, headline, notes, warnings
from flattail.report.tables import displaced, terms


def scores(path):
    return json.loads((path / runs.SCORES).read_text())["scores"]


def test_means_and_sds_are_those_of_the_files(make, tmp_path):
    paths = [make("ce", seed) for seed in range(4)]
    (row,) = summary(runs.find([tmp_path]))
    files = [scores(path) for path in paths]
    for name in ("many", "medium", "few"):
        values = [100 * file["groups"][name] for file in files]
        assert row.columns[name].mean == pytest.approx(np.mean(values), abs=1e-12)
        assert row.columns[name].sd == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    for name, unit in (("all", 100), ("balanced", 100), ("worst", 100), ("gmean", 100), ("ece", 100), ("nll", 1)):
        values = [unit * file[name] for file in files]
        assert row.columns[name].mean == pytest.approx(np.mean(values), abs=1e-12)
        assert row.columns[name].sd == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert (row.n, row.name, row.data) == (4, "ce", "digits-LT (IF 16)")
    assert row.sizes == {"many": 1, "medium": 6, "few": 3}
    recomputed = [(logits.argmax(1) == y).mean() for logits, y in (run.logits() for run in row.runs)]
    assert row.columns["all"].mean == pytest.approx(100 * np.mean(recomputed), abs=1e-9)


def test_paired_differences_are_a_paired_t_test_over_common_seeds(make, tmp_path):
    base = {seed: make("ce", seed) for seed in (0, 1, 2, 3)}
    ours = {seed: make("sam", seed, tail=1.9, terms=["flat"]) for seed in (1, 2, 3, 7)}
    first, second = summary(runs.find([tmp_path]))
    assert first.name == "ce" and not first.differences
    a = [100 * scores(ours[s])["groups"]["few"] for s in (1, 2, 3)]
    b = [100 * scores(base[s])["groups"]["few"] for s in (1, 2, 3)]
    test = stats.ttest_rel(a, b)
    low, high = test.confidence_interval(0.95)
    found = second.differences["few"]
    assert found.n == 3 and second.n == 4
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(a) - np.mean(b), low, high), abs=1e-9)
    assert found.clear == (test.pvalue < 0.05)


@given(st.lists(st.floats(0, 100) | st.none(), max_size=6))
def test_an_estimate_leaves_out_what_is_not_known(values):
    found, known = Estimate.of(values), [v for v in values if v is not None]
    assert found.n == len(known)
    if len(known) > 1:
        assert found.sd == pytest.approx(np.std(known, ddof=1), abs=1e-9)
        assert str(found) == f"{np.mean(known):.1f} ± {np.std(known, ddof=1):.1f}"
    else:
        assert math.isnan(found.sd) and str(found) == (f"{known[0]:.1f}" if known else "–")


def test_differences_are_printed_with_signs():
    assert str(Difference(1.25, -0.5, 3.0, 3)) == "+1.2 [−0.5, +3.0]"
    assert str(Difference(-1.0, math.nan, math.nan, 1)) == "−1.0"
    assert str(Difference(math.nan, math.nan, math.nan, 0)) == "–"
    assert not Difference(-1.0, math.nan, math.nan, 1).clear


def test_one_seed_has_no_sd_and_no_interval(make, tmp_path):
    make("ce", 0)
    make("sam", 0, tail=2.0, terms=["flat"])
    first, second = summary(runs.find([tmp_path]))
    assert str(first.columns["all"]) == f"{first.columns['all'].mean:.1f}"
    change = second.differences["all"]
    assert change.n == 1 and math.isnan(change.low) and not change.clear and "[" not in str(change)
    gain = second.columns["all"].mean - first.columns["all"].mean
    assert change.mean == pytest.approx(gain, abs=1e-9)


def test_a_group_without_a_class_is_unknown(make, tmp_path):
    for seed in range(2):
        make("ce", seed, counts=(90, 70, 50, 30))
        make("sam", seed, counts=(90, 70, 50, 30), tail=1.9)
    rows = summary(runs.find([tmp_path]))
    assert [str(row.columns[name]) for row in rows for name in ("many", "few")] == ["–"] * 4
    assert rows[1].differences["few"].n == 0 and rows[1].differences["all"].n == 2
    assert "classes per group many (0), medium (4), few (0)" in " ".join(notes(rows))


def test_the_baseline_is_named_or_the_plain_one_or_the_first(make, tmp_path):
    make("b-sam", 0, terms=["flat"])
    make("c-ce", 0, title="CE")
    make("a-sam", 0, terms=["flat"], tail=2.0)
    found = runs.find([tmp_path])
    assert [row.label for row in summary(found)] == ["runs/c-ce", "runs/a-sam", "runs/b-sam"]
    assert summary(found, baseline="runs/b-sam")[0].label == "runs/b-sam"
    assert summary(found, baseline="CE")[0].label == "runs/c-ce"
    assert [displaced(row) for row in summary(found)] == [False, True, True]
    with pytest.raises(ValueError, match=r"no run is named 'sma': choose from .*runs/c-ce"):
        summary(found, baseline="sma")


def test_differing_recipes_are_never_averaged_and_told_apart(make, tmp_path):
    make("one/sam", 0, title="SAM", method={"name": "sam", "rho": 0.05})
    make("one/sam", 1, title="SAM", method={"name": "sam", "rho": 0.1})
    make("two/sam", 0, title="SAM", method={"name": "sam", "rho": 0.05}, epochs=4)
    rows = summary(runs.find([tmp_path / "runs"]))
    assert [row.n for row in rows] == [1, 1, 1] and len({row.key for row in rows}) == 3
    names = [row.name for row in rows]
    assert len(set(names)) == 3
    assert names[:2] == ["SAM (one/sam) (rho 0.05)", "SAM (one/sam) (rho 0.1)"]


def test_the_same_run_twice_is_refused(make, tmp_path):
    make("ce", 0, title="CE")
    make("copy/ce", 0, title="CE")
    with pytest.raises(ValueError, match="same recipe and seed: give one"):
        summary(runs.find([tmp_path]))


def test_unfinished_runs_are_listed_and_left_out(make, tmp_path):
    make("ce", 0)
    make("ce", 1, done=7)
    make("sam", 0, terms=["flat"], done=0)
    rows = summary(runs.find([tmp_path / "runs"]))
    assert [(row.n, len(row.unfinished)) for row in rows] == [(1, 1), (0, 1)]
    assert rows[1].data == rows[0].data
    assert str(rows[1].columns["all"]) == "–" and rows[1].differences["all"].n == 0
    said = " ".join(notes(rows))
    assert "ce, seed 1 (7 of 20 epochs)" in said and "sam, seed 0 (0 of 20 epochs)" in said


def test_only_unfinished_runs_still_make_a_row(make, tmp_path):
    make("ce", 0, done=2)
    (row,) = summary(runs.find([tmp_path]))
    assert row.n == 0 and row.data == "digits-lt (imbalance 16)"


def test_what_differs_between_rows_is_said(make, tmp_path):
    make("a", 0)
    make("b", 0, fingerprint="other", model={"name": "resnet32", "head": "cosine"}, epochs=8)
    said = notes(summary(runs.find([tmp_path / "runs"])))
    assert "Rows differ in data fingerprint — 5f1c0a9e: a; other: b." in said
    assert "Rows differ in model — resnet20: a; resnet32 (head cosine): b." in said
    assert "Rows differ in epochs — 20: a; 8: b." in said
    same = next(text for text in said if text.startswith("The same"))
    assert "selected epoch last" in same and "model" not in same and "fingerprint" not in same


def test_data_sets_are_compared_apart(make, tmp_path):
    make("ce", 0)
    make("ce-100", 0, data="CIFAR-100-LT", recipe={"data": {"name": "cifar100-lt"}}, tail=2.0)
    rows = summary(runs.find([tmp_path]))
    assert {row.data for row in rows} == {"digits-LT (IF 16)", "CIFAR-100-LT"}
    assert all(not row.differences for row in rows)


def test_warnings_are_gathered_over_seeds(make, tmp_path):
    for seed in range(3):
        make("ccsam", seed, warnings=["perturbation vacuous"] if seed else [])
    assert warnings(summary(runs.find([tmp_path / "runs"]))) == ["ccsam (seed 1, 2): perturbation vacuous"]


def test_terms_report_the_last_epoch_and_the_share_of_steps(make, tmp_path):
    paths = [make("imbsam", seed, terms=["head", "tail"]) for seed in range(3)]
    (row,) = summary(runs.find([tmp_path]))
    head, tail = terms(row)
    logs = [[json.loads(line) for line in (p / runs.LOG).read_text().splitlines()] for p in paths]
    gaps = [log[-1]["terms"]["tail"]["gap"] for log in logs]
    assert tail.gap.mean == pytest.approx(np.mean(gaps)) and tail.gap.sd == pytest.approx(np.std(gaps, ddof=1))
    assert (head.active, tail.active) == pytest.approx((1.0, 0.6))
    assert (head.radius, tail.radius) == pytest.approx((0.004, 0.008)) and not head.remark


def test_what_training_remarked_of_the_last_radius_is_shown_and_nothing_is_judged_anew(make, tmp_path):
    for seed in range(2):
        path = make("sam", seed, terms=["flat"], done=0)
        for epoch, said in enumerate(("perturbation vacuous", "no neighbourhood")):
            term = {"gap": 0.1, "radius": 1e-9, "active": 1.0} | ({"remark": said} if seed else {})
            runs.append_row(path, {"epoch": epoch, "stage": 0, "terms": {"flat": term}})
    (row,) = summary(runs.find([tmp_path]))
    assert [line.remark for line in terms(row)] == ["no neighbourhood"]


PLAIN = {
    "batch": 128, "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4},
    "schedule": {"name": "cosine"}, "sampler": {"name": "uniform"}, "mix": None, "init": None,
}  # fmt: skip
POST_HOC = {"epochs": 0, "start": {"name": "tau-norm"}, "optim": {"name": "sgd", "lr": 0.1}, "batch": 32}


def staged(*changes, epochs=20, **tree):
    """A recipe of stages that are PLAIN with changes."""
    stages = [PLAIN | {"epochs": epochs // len(changes), "method": {"name": "erm"}} | change for change in changes]
    return {"recipe": {"stages": stages} | tree}


@pytest.mark.parametrize(
    ("options", "compared"),
    [
        (staged({"method": {"name": "sam"}}), True),
        (staged({"loss": {"name": "ldam"}}, model={"name": "resnet20", "head": "cosine"}), True),
        (staged({}, {"loss": {"name": "ce", "weights": "effective"}}), True),  # deferred re-weighting
        (staged({"sampler": {"name": "balanced"}}), True),
        (staged({"mix": {"name": "mixup", "alpha": 1.0}}), True),
        (staged({"epochs": 20}, POST_HOC), True),  # nothing is trained in it
        (staged({"optim": PLAIN["optim"] | {"weight_decay": 1e-3}}), False),
        (staged({"optim": PLAIN["optim"] | {"momentum": 0.5}}), False),
        (staged({"init": "runs/ce/{seed}"}), False),
        (staged({}, data={"name": "digits-lt", "imbalance": 16, "shots": {"name": "mislas"}}), True),
        (staged({"batch": 64}), False),
        (staged({"optim": PLAIN["optim"] | {"lr": 0.01}}), False),
        (staged({}, {"optim": PLAIN["optim"] | {"lr": 0.01}}), False),
        (staged({"schedule": {"name": "constant"}}), False),
        (staged({"augment": [{"name": "flip"}]}) , True),  # the baseline's recipe does not say
        (staged({}, epochs=40), False),
        (staged({}, model={"name": "resnet32", "head": "linear"}), False),
        (staged({}, data={"name": "digits-lt", "imbalance": 20}), False),
        (staged({}) | {"fingerprint": "other"}, False),
    ],
)  # fmt: skip
def test_differences_are_taken_within_a_protocol_and_nowhere_else(make, tmp_path, options, compared):
    for seed in range(2):
        make("a", seed, **staged({}, model={"name": "resnet20", "head": "linear"}))
        make("b", seed, tail=2.0, terms=["flat"], **{"model": {"name": "resnet20", "head": "linear"}} | options)
    found = runs.find([tmp_path])
    first, second = summary(found)
    assert (first.label, second.label) == ("runs/a", "runs/b")
    assert bool(second.differences) == compared
    row = next(line for line in markdown(found).splitlines() if line.startswith("| b |"))
    assert row.endswith("| – |") != compared
    said = "No Δ across protocols: b; how they differ is said below."
    assert (said in notes([first, second])) != compared
    if not compared:
        assert headline([first, second]) == "No row shares the protocol of a: nothing is compared."
        assert any(text.startswith("Rows differ in") for text in notes([first, second]))


def test_where_most_rows_agree_those_that_do_not_are_named():
    few, many = {"100": ["a", "b"], "10": ["c"]}, {"10": ["d"], "100": ["a", "b", "c", "e"], "5": ["f", "g"]}
    assert apart_in("epochs", few, 3) == "Rows differ in epochs — 100: a, b; 10: c."
    assert apart_in("epochs", many, 7) == "Rows differ in epochs — 10: d; 5: f, g; 100: all others."
    unknown_of_one, both_of_one = {"100": ["a", "b", "c", "e"], "10": ["d"]}, {"100": ["a", "b", "c"], "10": ["a"]}
    assert apart_in("epochs", unknown_of_one, 6) == "Rows differ in epochs — 100: a, b, c, e; 10: d."
    assert apart_in("epochs", both_of_one, 4) == "Rows differ in epochs — 100: a, b, c; 10: a."


def test_what_else_differs_between_rows_that_are_compared_is_said(make, tmp_path):
    mixed = {"mix": {"name": "mixup", "alpha": 1.0}, "sampler": {"name": "balanced"}, "clip": 2.0}
    for seed in range(2):
        make("a", seed, **staged({}))
        make("b", seed, tail=2.0, **staged(mixed | {"epochs": 20}, POST_HOC))
    found = runs.find([tmp_path])
    said, text = notes(summary(found)), latex(found)
    assert summary(found)[1].differences
    for line in (
        "Rows differ in sampler — uniform: a; balanced: b.",
        "Rows differ in mix — none: a; mixup (alpha 1.0): b.",
        "Rows differ in other settings — none: a; clip 2.0, then start tau-norm: b.",
    ):
        assert line in said and line in markdown(found) and f"% {line}" in text
    same = next(line for line in said if line.startswith("The same"))
    assert (
        "begun from new weights; batch 128; learning rate sgd 0.1; optimiser momentum 0.9, weight_decay 0.0002;" in same
    )


def row_of(name, **differences):
    """A row as the headline sees it."""
    return type("", (), {"name": name, "differences": differences})()


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], ""),
        ([row_of("SAM", all=Difference(1.3, -0.4, 3.1, 3), few=Difference(6.0, -1.0, 13.0, 3))],
         "No method is ahead of CE beyond noise (95 % intervals of paired differences)."),
        ([row_of("SAM", all=Difference(-2.0, -3.0, -1.0, 3), few=Difference(0.0, -1.0, 1.0, 3))],
         "No method is ahead of CE beyond noise (95 % intervals of paired differences)."),
        ([row_of("SAM", all=Difference(1.0, 0.5, 1.5, 3), few=Difference(0.0, -1.0, 1.0, 3)),
          row_of("LDAM", all=Difference(0.0, -0.5, 0.5, 3), few=Difference(4.0, 3.0, 5.0, 3)), row_of("elsewhere")],
         "Ahead of CE beyond noise: on all SAM (+1.0 [+0.5, +1.5]); on few LDAM (+4.0 [+3.0, +5.0])."),
        ([row_of("SAM", all=Difference(5.0, 5.0, 5.0, 2), few=Difference(4.0, 4.0, 4.0, 2))],  # without width
         "No method is ahead of CE beyond noise (95 % intervals of paired differences)."),
        ([row_of("SAM", all=Difference(9.0, math.nan, math.nan, 1), few=Difference(9.0, math.nan, math.nan, 1))],
         "Nobody can be called ahead of CE: an interval over seeds takes two in common."),
    ],
)  # fmt: skip
def test_the_headline_names_those_ahead_beyond_noise_and_no_best(others, said):
    assert headline([row_of("CE"), *others]) == said


def test_facts_are_words(make, tmp_path):
    shots = {"name": "mislas", "many": 3, "medium": 4}
    make("a", 0, recipe={"data": {"name": "digits-lt", "imbalance": 20.0, "shots": shots}})
    (row,) = summary(runs.find([tmp_path]))
    said = " ".join(notes([row]))
    assert "data digits-lt (imbalance 20.0, shots mislas (many 3, medium 4))" in said and "{" not in said


def test_markdown_has_the_numbers_and_escapes_names(make, tmp_path):
    expect = {"accuracy": 80.94, "source": "paper, table 1", "status": "paper-only"}
    for seed in range(3):
        make("ce", seed, title="CE | <b>plain</b>")
        make("sam", seed, title="SAM", terms=["flat"], tail=2.2, expect=expect)
    found = runs.find([tmp_path])
    text, rows = markdown(found), summary(found)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "many (1)" in lines[0] and "CE \\| &lt;b>plain&lt;/b>" in lines[2]
    assert str(rows[1].columns["few"]) in lines[3] and "80.94 (paper-only; paper, table 1)" in lines[3]
    change = rows[1].differences["all"]
    assert (f"**{change}**" if change.clear else str(change)) in lines[3]


def test_best_on_test_appears_only_under_its_name(make, tmp_path):
    path = make("ce", 0)
    document = json.loads((path / runs.SCORES).read_text())
    runs.write_json(path / runs.SCORES, document | {"best_on_test": {"epoch": 3, "all": 0.9}})
    (row,) = summary(runs.find([tmp_path]))
    assert row.columns["best on test"].mean == pytest.approx(90)
    assert row.columns["all"].mean == pytest.approx(100 * document["scores"]["all"])


def test_rows_are_values(make, tmp_path):
    make("ce", 0)
    (row,) = summary(runs.find([tmp_path]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.name = "other"


def test_equal_differences_by_chance_are_no_finding():
    """Two seeds that differ by as many images have an interval without width."""
    assert not difference([(48.0, 48.4), (47.0, 47.4)]).clear
    behind, ahead = (difference(pairs) for pairs in ([(48.0, 58.4), (47.0, 57.41)], [(58.4, 48.0), (57.41, 47.0)]))
    assert behind.clear and ahead.clear
    assert (behind.ahead, ahead.ahead) == (False, True)
