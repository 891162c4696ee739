"""The tables and figures of measured results say what the kept runs say."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from flattail.recipe import from_tree, identity, read, shipped

HERE = Path(__file__).parent.parent / "results"


@pytest.fixture(scope="module")
def collect():
    spec = importlib.util.spec_from_file_location("collect", HERE / "collect.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(HERE))


def test_the_pages_are_made_from_the_runs_beside_it(collect):
    assert (HERE / "README.md").read_text() == collect.page()
    assert collect.PAGE.read_text() == collect.docs()
    assert collect.README.read_text() == collect.front()


def test_what_is_kept_was_trained_by_the_recipes_that_are_shipped(collect):
    """Or the numbers beside a recipe would be another's."""
    there = {run.label: shipped() / f"{run.label}.yaml" for run in collect.kept()}
    known = {label: identity(read(path)) for label, path in there.items() if path.exists()}
    others = {run.label for run in collect.kept() if known.get(run.label, identity(from_tree(run.recipe)))
              != identity(from_tree(run.recipe))}  # fmt: skip
    assert len(known) > 60 and others == set()


def test_the_figures_are_made_from_the_runs_beside_it(collect, tmp_path):
    """Where its dots are, whatever version of Matplotlib draws them."""
    drawn = [where for where in collect.LONGS if collect.by_row(collect.kept(), where)]
    for where in drawn:
        collect.figure(collect.by_row(collect.kept(), where), tmp_path / "again.svg")
        same_places(HERE / f"{where}.svg", tmp_path / "again.svg")
    assert collect.LONG in drawn
    collect.draw_spectra(collect.kept(), tmp_path / "again.svg")
    same_places(collect.SPECTRA, tmp_path / "again.svg")


def same_places(*paths):
    """The dots of two drawings of one figure, in shares of its width and height."""
    dots = [np.array(re.findall(r'<use .*?x="([\d.]+)" y="([\d.]+)"', path.read_text()), float) for path in paths]
    shares = [(each - each.min(0)) / np.ptp(each, axis=0) for each in dots]
    np.testing.assert_allclose(*shares, rtol=0, atol=5e-3)  # layouts differ by version


def test_a_difference_is_that_of_seeds_in_common(collect):
    def run(value):
        return type("Run", (), {"scores": {"scores": {"balanced": value, "groups": {}}}})()

    ours, theirs = {0: run(0.5), 1: run(0.6), 2: run(0.9)}, {0: run(0.4), 1: run(0.4)}
    found = collect.paired(ours, theirs, "all")
    assert (round(found.mean, 9), found.n) == (15.0, 2)
    assert found.high - found.mean == pytest.approx(
        12.7062047364 * 5.0
    )  # t of one degree of freedom, sd of 10 and 20 over √2
    assert collect.marked(found) == "+15.0 ± 63.5"
    assert collect.marked(collect.paired({0: run(0.5)}, {1: run(0.5)}, "all")) == "–"
    behind = {seed: run(value) for seed, value in enumerate((0.3, 0.301, 0.299))}
    ahead = {seed: run(0.5) for seed in range(3)}
    assert collect.marked(collect.paired(behind, ahead, "all")) == "**−20.0 ± 0.2**"
