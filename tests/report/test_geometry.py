"""The loss geometry of runs: averaged rightly, said plainly, drawn in every case; damaged files are named."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from test_page import Page, built

from flattail import runs
from flattail.report import frequency, spectra
from flattail.report.geometry import TITLES, geometry, summary_lines
from flattail.report.geometry_tables import LINES, number, plus_minus, tail_against_head
from flattail.report.landscapes import LEVELS, planes
from flattail.report.measured import HEAVY, amplification_error, analysed, directions, measured
from flattail.report.tables import summary

ALL = tuple(TITLES)


@pytest.fixture
def rows(make, analyse, tmp_path):
    """Two recipes by two seeds, with every analysis."""
    for label, tail in (("ce", 1.2), ("sam", 1.8)):
        for seed in range(2):
            path = make(label, seed, tail=tail)
            for name in ALL:
                analyse(path, name, seed=seed)
    return summary(runs.find([tmp_path / "runs"]))


# ---- the run directory ---------------------------------------------------------------------------------------


def test_a_run_knows_its_finished_analyses(make, analyse):
    path = make("ce", 0)
    assert runs.read(path).analyses == ()
    analyse(path, "hessian", lambda_min=np.arange(14.0))
    analyse(path, "escape")
    (path / runs.ANALYSIS / "radius.npz").write_bytes(b"half")  # its .json comes last
    (path / runs.ANALYSIS / ".sharpness.npz.partial").write_bytes(b"half")
    run = runs.read(path)
    assert run.analyses == ("escape", "hessian")
    arrays, said = run.analysis("hessian")
    assert arrays["lambda_min"].tolist() == list(range(14)) and arrays["name"][-1] == "all"
    assert said["options"]["samples"] == 60 and said["split"] == "train"
    assert "direction" in run.analysis("escape")[0] and "direction" not in run.analysis("escape", without=HEAVY)[0]
    with pytest.raises(FileNotFoundError, match=r"flattail analyse .* radius"):
        run.analysis("radius")
    with pytest.raises(FileNotFoundError, match=r"flattail analyse .* radius"):
        summary_lines(run, "radius")


@pytest.mark.parametrize("file", ["hessian.npz", "hessian.json"])
@pytest.mark.parametrize("damage", [b"", b"not one", "half"])
def test_a_damaged_analysis_is_named_with_the_remedy(make, analyse, tmp_path, file, damage):
    path = make("ce", 0)
    analyse(path, "hessian")
    place = path / runs.ANALYSIS / file
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2] if damage == "half" else damage)
    for look in (lambda: runs.read(path).analysis("hessian"), lambda: built(tmp_path)):
        with pytest.raises(ValueError, match=rf"{re.escape(file)}.*delete it .*flattail analyse .* hessian"):
            look()


# ---- numbers -------------------------------------------------------------------------------------------------


def test_means_over_seeds_and_errors_in_quadrature(make, analyse):
    values = [np.arange(14.0), np.arange(14.0) + 2, np.arange(14.0) + 4]
    for seed, value in enumerate(values):
        path = make("ce", seed)
        analyse(path, "hessian", lambda_min=value, lambda_min_samples=np.full(14, 3.0 + seed))
    found = measured(runs.find([path.parent]), "hessian")
    assert found.mean("lambda_min") == pytest.approx(np.mean(values, axis=0))
    probes = [np.asarray(a["lambda_min_probes"]) for a in found.arrays]
    expected = np.sqrt(4 + np.mean([9, 16, 25]) + np.mean(np.square(probes), axis=0))
    assert found.error("lambda_min") == pytest.approx(expected)


def test_one_run_without_error_bars_has_none(make, analyse):
    path = make("ce", 0)
    unknown = {f"lambda_min_{kind}": np.full(14, np.nan) for kind in ("samples", "probes")}
    analyse(path, "hessian", **unknown)
    assert np.isnan(measured([runs.read(path)], "hessian").error("lambda_min")).all()
    columns, lines = summary_lines(runs.read(path), "hessian")
    assert all("±" not in line[columns.index("λ min")] for line in lines)


def test_runs_under_other_options_are_left_out_and_named(make, analyse, tmp_path):
    for seed in range(3):
        analyse(make("ce", seed), "hessian", options={"samples": 9 if seed == 1 else 60})
    (row,) = summary(runs.find([tmp_path / "runs"]))
    (_, found), *_ = analysed([row], "hessian")
    assert [run.seed for run in found.runs] == [0, 2] and [run.seed for run in found.left] == [1]
    (part,) = geometry([row])
    assert any("left out: ce, seed 1" in note for note in part.notes)


def test_classes_come_by_frequency_and_then_the_groups(make, analyse):
    path = make("ce", 0, counts=(5, 50, 20), names=["ant", "bee", "cow"])
    analyse(path, "sharpness", names=["0", "1", "2", "all", "few"], counts=(5, 50, 20))
    assert [line[0] for line in summary_lines(runs.read(path), "sharpness")[1]] == ["bee", "cow", "ant", "few", "all"]


@pytest.mark.parametrize("name", ALL)
def test_the_terminal_gets_plain_strings(rows, name):
    columns, lines = summary_lines(rows[0].runs[0], name)
    assert columns[0] == "class" and len(lines) == 14
    assert all(isinstance(cell, str) and cell for line in lines for cell in line)
    assert {len(line) for line in lines} == {len(columns)}
    assert {"many", "few", "all"} <= {line[0] for line in lines}


def test_a_run_without_scores_is_summed_up_too(make, analyse):
    path = make("ce", 0, done=3)
    analyse(path, "sharpness")
    _, lines = summary_lines(runs.read(path), "sharpness")
    assert lines[0][:2] == ["0", "–"]


def test_marks(make, analyse):
    path = make("ce", 0)
    flags = np.zeros(14, bool)
    analyse(path, "hessian", converged=~flags, single=np.arange(14) == 9)
    analyse(path, "radius")
    lines = summary_lines(runs.read(path), "hessian")[1]
    assert [line[-1] for line in lines][8:11] == ["yes", "yes, one image", "yes"]
    columns, lines = summary_lines(runs.read(path), "radius")
    assert all(line[columns.index("√ (* vacuous) all")].endswith(" *") for line in lines)
    assert not any("*" in line[columns.index("√ (* vacuous) head")] for line in lines)


@pytest.mark.parametrize(
    ("few", "error", "said"),
    [(-1.0, 0.1, "more negative on few"), (-0.2, 0.1, "no clear difference"), (0.4, 0.1, "less negative on few")],
)
def test_whether_the_tail_differs_needs_twice_the_error(make, analyse, few, error, said):
    path = make("ce", 0)
    ends, nothing = np.full(14, -0.1), np.zeros(14)
    ends[12] = few  # the row of `few`; many has -0.1
    analyse(path, "hessian", lambda_min=ends, lambda_min_samples=np.full(14, error), lambda_min_probes=nothing)
    assert said in tail_against_head(measured([runs.read(path)], "hessian")).text


def test_lines_pool_directions_and_seeds(rows):
    (_, found), *_ = analysed(rows, "landscape")
    mean, sd = directions(found, "near")
    every = np.concatenate([a["near_losses"] for a in found.arrays], axis=1)
    assert every.shape[1] == 6
    assert mean == pytest.approx(every.mean(1)) and sd == pytest.approx(every.std(1, ddof=1))


def test_the_error_of_an_amplification_is_relative_to_the_plain_moment(rows):
    (_, found), *_ = analysed(rows, "escape")
    assert amplification_error(found, "own") == pytest.approx(np.broadcast_to([0.1, 0.12, 0.4], (14, 3)))


@given(st.floats(-9e3, 9e3), st.floats(1e-3, 9e3))
def test_a_value_is_rounded_to_its_error(value, error):
    text = plus_minus(value, error).replace("−", "-")
    left, right = (float(part) for part in text.split(" ± "))
    assert abs(left - value) <= max(0.26 * error, 0.501) and abs(right - error) <= max(0.26 * error, 1e-12)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-0.6953, 0.1531, "−0.70 ± 0.15"),
        (53.9, 4.3, "54 ± 4"),
        (0.5, math.nan, "0.5"),
        (math.nan, 1.0, "–"),
        (1.2e10, math.nan, "1.2e10"),
        (3.1e-5, 2e-6, "3.1e−5 ± 2e−6"),
        (0.0, 0.01, "0.000 ± 0.010"),
    ],
)
def test_how_numbers_are_written(value, error, text):
    assert plus_minus(value, error) == text
    assert number(math.inf) == "–"


def test_a_density_integrates_to_one_whatever_the_nodes(rows):
    for _, found in analysed(rows, "hessian"):
        for i in range(14):
            nodes, _ = spectra._known(found, i)
            unit = 0.1
            low, high = np.arcsinh(np.array([nodes.min(), nodes.max()]) / unit)
            grid = np.linspace(low - 1, high + 1, 4000)
            values = spectra._density(found, i, grid, unit, 0.05)
            assert trapezoid(values, grid) == pytest.approx(1, abs=1e-6)


# ---- figures and page ----------------------------------------------------------------------------------------


def test_the_page_takes_up_every_analysis(rows, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("flattail.report.page.geometry", lambda rows: drawn.append(geometry(rows)) or drawn[-1])
    text = built(tmp_path)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|https?:|<link|url\((?!#)", text)
    for title in ("Loss geometry", *TITLES.values()):
        assert title in page.text
    for word in ("few against many", "vacuous", "Made with split train, loss ce, samples 60", "ce, class by class"):
        assert word in page.text
    assert text.count("<details><summary>ce, class by class") == len(ALL)
    parts = {part.key: part for part in drawn[0]}
    assert [len(figure.panels) for figure in parts["hessian"].figures] == [3, 14]
    assert [len(figure.panels) for figure in parts["landscape"].figures] == [8, 8]
    assert [len(figure.panels) for figure in parts["escape"].figures] == [2, 2]
    assert len(parts["radius"].figures[0].panels) == 6 and len(parts["sharpness"].figures[0].panels) == 3


def test_methods_keep_their_colours(rows):
    for part in geometry(rows[1:] + rows[:1]):
        for figure in part.figures:
            if figure.legend:
                assert all("var(--c0)" in panel and "var(--c1)" in panel for panel in figure.panels)
    only = [row for row, _ in analysed(rows, "hessian")][1:]
    (figure,) = frequency.extremes(analysed(only, "hessian"), rows)
    assert all("var(--c1)" in panel and "var(--c0)" not in panel for panel in figure.panels)


def test_no_analysis_no_section(make, tmp_path):
    make("ce", 0)
    assert "Loss geometry" not in Page(built(tmp_path)).text


def test_one_of_two_recipes_is_analysed(make, analyse, tmp_path):
    make("ce", 0)
    analyse(make("sam", 0, tail=2.0), "radius")
    text = Page(built(tmp_path)).text
    assert TITLES["radius"] in text and TITLES["hessian"] not in text
    assert "sam, class by class" in text and "ce, class by class" not in text


@pytest.mark.parametrize("names", [["3"], ["0", "9"], ["few"], [str(c) for c in range(10)]])
def test_any_choice_of_classes_is_drawn(make, analyse, tmp_path, names):
    path = make("ce", 0)
    for name in ALL:
        analyse(path, name, names=names)
    assert "Loss geometry" in Page(built(tmp_path)).text


def test_recipes_may_differ_in_classes_and_options(make, analyse, tmp_path):
    analyse(make("ce", 0), "hessian", names=["0", "1"])
    analyse(make("sam", 0, tail=2.0), "hessian", names=["1", "few"], options={"samples": 5})
    text = Page(built(tmp_path)).text
    assert "Rows differ in samples — 60: ce; 5: sam" in text


def test_many_classes_show_both_ends(make, analyse, tmp_path):
    counts = tuple(int(500 * 0.01 ** (i / 29)) for i in range(30))
    path = make("ce", 0, counts=counts)
    for name in ("hessian", "sharpness"):
        analyse(path, name, counts=counts)
    part, _ = geometry(summary([runs.read(path)]))
    assert "three rarest" in part.figures[1].reading
    assert len(part.figures[1].panels) == 3 + 3 + 4


def test_values_that_are_not_finite_or_alike(make, analyse, tmp_path):
    path, flat, bad = make("ce", 0), np.zeros(14), np.where(np.arange(14) < 3, np.inf, 1.0)
    analyse(path, "hessian", lambda_min=flat, lambda_max=flat, ratio=np.full(14, np.nan), trace=flat)
    analyse(path, "radius", rho_all=bad, bound_all=bad * np.nan, gradient_norm_all=flat)
    analyse(path, "sharpness", gap=flat, random=flat, random_sd=np.full(14, np.nan))
    analyse(path, "escape", own_amplification=np.full((14, 3), np.nan))
    analyse(path, "landscape", near_losses=np.ones((14, 1, 5)), plane_losses=np.full((14, 7, 7), 2.0))
    built(tmp_path)


def test_all_planes_share_one_scale_and_two_models_are_marked(make, analyse, tmp_path):
    x = np.linspace(-0.5, 1.5, 7)
    analyse(make("ce", 0), "landscape", plane_x=x, options={"other": "runs/sam/0"})
    found = analysed(summary(runs.find([tmp_path / "runs"])), "landscape")
    (figure,) = planes(found, [row for row, _ in found])
    assert [colour for colour, _ in figure.scale] == list(LEVELS)
    bounds = [float(text.split("–")[-1].split()[-1]) for _, text in figure.scale[:-1]]
    assert bounds == sorted(bounds) and len(set(bounds)) == len(bounds)
    assert "two trained models" in figure.reading
    assert all(panel.count("other") for panel in figure.panels)


def test_names_of_classes_and_recipes_are_escaped(make, analyse, tmp_path):
    evil = '<script>alert("x")</script>'
    path = make("ce", 0, title=evil, names=[f"<b>{i}&$" for i in range(10)])
    for name in ALL:
        analyse(path, name)
    text = built(tmp_path)
    assert text.count("<script") == 1 and "<b>" not in text and "&lt;b&gt;9&amp;$" in text


def test_the_same_runs_give_the_same_page(make, analyse, tmp_path):
    path = make("ce", 0)
    for name in ("sharpness", "landscape"):
        analyse(path, name, names=["0", "few"])
    assert built(tmp_path) == built(tmp_path)


def test_every_analysis_has_its_table():
    assert set(LINES) == set(TITLES)
