"""The other formats: CSV line by line, LaTeX to be pasted, and the suffix that chooses."""

import csv
import re

import pytest

from flattail import runs
from flattail.report import comma_separated, latex, summary, write
from flattail.report.written import COLUMNS


@pytest.fixture
def found(make, tmp_path):
    for seed in range(3):
        make("ce", seed, title="CE & <50%_#1>")
        make("sam", seed, title="SAM ρ", tail=3.0, terms=["flat"])
    make("late", 0, done=4)
    return runs.find([tmp_path / "runs"])


def test_a_line_per_run_with_documented_columns(found):
    lines = list(csv.DictReader(comma_separated(found).splitlines()))
    assert list(lines[0]) == list(COLUMNS) and len(lines) == 7
    assert [(line["label"], line["seed"]) for line in lines[:4]] == [
        ("ce", "0"),
        ("ce", "1"),
        ("ce", "2"),
        ("late", "0"),
    ]
    for line in lines:
        run = next(r for r in found if (r.label, str(r.seed)) == (line["label"], line["seed"]))
        if not run.finished:
            assert line["all"] == line["few"] == line["fingerprint"] == "" and line["finished"] == "0"
            continue
        scores = run.scores["scores"]
        assert float(line["all"]) == scores["all"] and float(line["few"]) == scores["groups"]["few"]
        assert float(line["worst"]) == scores["worst"] and float(line["seconds"]) == run.env["seconds"]
        assert (line["fingerprint"], line["classes_few"], line["test_images"]) == ("5f1c0a9e", "3", "360")


def test_lines_that_may_be_compared_share_a_protocol(make, tmp_path):
    def stage(**options):
        return {"recipe": {"stages": [{"epochs": 20, "optim": {"name": "sgd", "lr": 0.1}, "mix": None} | options]}}

    make("ce", 0, **stage())
    make("mixed", 0, **stage(mix={"name": "mixup"}))
    make("decayed", 0, **stage(optim={"name": "sgd", "lr": 0.1, "weight_decay": 1e-3}))
    make("second", 0, fingerprint="other", **stage(init="runs/ce/{seed}"))
    found = csv.DictReader(comma_separated(runs.find([tmp_path / "runs"])).splitlines())
    shared = {line["label"]: line["protocol"] for line in found}
    assert shared["mixed"] == shared["ce"]
    assert len({shared["ce"], shared["decayed"], shared["second"]}) == 3


def test_latex_is_booktabs_escaped_and_bold_only_beyond_noise(found):
    text = latex(found)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    for word in (r"\begin{tabular}", r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}", r"SAM $\rho$"):
        assert word in body
    assert r"CE \& \textless{}50\%\_\#1\textgreater{}" in body
    assert not re.search(r"(?<!\\)[%#_]|[^\x00-\x7f]", body)
    columns = re.search(r"\{@\{\}(l r*|lr*)@\{\}\}", body)[1]
    cells = [line.count(" & ") for line in body.splitlines() if line.endswith("\\\\")]
    assert set(cells) == {len(columns) - 1}
    rows = summary(found)
    (sam,) = (row for row in rows if row.label == "sam")
    for name in ("many", "medium", "few", "all"):
        best = max((row for row in rows if row.n), key=lambda row: row.columns[name].mean)
        bold = rf"\mathbf{{{sam.columns[name].mean:.1f}}} \pm {sam.columns[name].sd:.1f}"
        assert (bold in body) == (best is sam and sam.differences[name].ahead)
    assert r"\mathbf" in body and "--" in body


def test_without_a_clear_difference_nothing_is_bold(make, tmp_path):
    for seed in range(2):
        make("ce", seed)
        make("sam", seed, tail=1.25, terms=["flat"])
    assert not summary(runs.find([tmp_path]))[1].differences["all"].clear
    assert r"\mathbf" not in latex(runs.find([tmp_path]))


def test_equal_differences_by_chance_are_not_bold(make, tmp_path):
    for seed, base in enumerate((0.80, 0.78)):
        make("ce", seed, all=base, groups={"many": base, "medium": base, "few": base})
        ahead = base + 0.05
        make("sam", seed, terms=["flat"], all=ahead, groups={"many": ahead, "medium": ahead, "few": ahead})
    change = summary(runs.find([tmp_path]))[1].differences["all"]
    assert change.low > 0 and not change.clear
    assert r"\mathbf" not in latex(runs.find([tmp_path]))


@pytest.mark.parametrize(
    ("name", "begins"), [("a.html", "<!doctype"), ("b/a.md", "### digits"), ("a.csv", "label,"), ("a.TEX", "% digits")]
)
def test_the_suffix_chooses(found, tmp_path, name, begins):
    path = write(found, tmp_path / "out" / name)
    assert path.read_text(encoding="utf-8").startswith(begins)


def test_another_suffix_and_no_runs_are_refused_and_write_nothing(found, tmp_path):
    with pytest.raises(ValueError, match=r"a\.pdf: a report ends in \.html, \.md, \.csv, \.tex"):
        write(found, tmp_path / "out" / "a.pdf")
    with pytest.raises(ValueError, match="no run to report on"):
        write([], tmp_path / "out" / "a.csv")
    with pytest.raises(ValueError, match="no run is named"):
        write(found, tmp_path / "out" / "a.tex", baseline="nobody")
    assert not [p for p in (tmp_path / "out").glob("**/*") if p.is_file()]
