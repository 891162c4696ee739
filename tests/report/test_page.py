"""The page: one file, nothing outside it, all text escaped, every case drawn."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from flattail import report, runs

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced; gathers text, attributes and ids."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.words, self.ids = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def built(tmp_path, **options):
    path = report.build(runs.find([tmp_path / "runs"]), tmp_path / "out" / "report.html", **options)
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b", Page(text).text, re.IGNORECASE)
    return text


@pytest.fixture
def fifteen(make):
    """Five recipes by three seeds, as the demonstration has them."""
    methods = {"ce": (), "sam": ("flat",), "imbsam": ("head", "tail"), "ssesam": ("head", "tail")}
    methods["ccsam"] = tuple(f"class {i}" for i in range(10))
    for i, (label, terms) in enumerate(methods.items()):
        for seed in range(3):
            make(f"digits-lt/{label}", seed, tail=1 + 0.2 * i, terms=terms, title=label.upper(), epochs=40)


def test_the_page_is_one_small_file_without_anything_outside(fifteen, tmp_path):
    text = built(tmp_path)
    assert len(text.encode()) < 1.5e6
    page = Page(text)
    for tag, name, value in page.attributes:
        assert name not in ("src", "srcset", "action"), (tag, name, value)
        if name.endswith("href"):
            assert value.startswith("#")
    assert not re.search(r"@import|https?:|<link|<iframe|url\((?!#)", text)
    targets = set(re.findall(r"url\(#([^)]+)\)", text)) | {v[1:] for _, n, v in page.attributes if n == "href"}
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_table_on_the_page_is_the_summary(fifteen, tmp_path):
    page = Page(built(tmp_path)).text
    rows = report.summary(runs.find([tmp_path / "runs"]))
    for row in rows:
        for name in ("many", "medium", "few", "all"):
            assert str(row.columns[name]) in page
        for name in ("all", "few"):
            if row.differences:
                assert row.differences[name].interval in page
    assert "few (3)" in page and "No term was ever active for CE" in page


def test_everything_that_a_user_wrote_is_escaped(make, tmp_path):
    evil = '<script>alert("x")</script>'
    for label in ("ce", "sam"):
        make(
            f"{label}<i>",
            0,
            title=f"{label} {evil} $x_",
            names=[f"<b>{i}&$" for i in range(10)],
            data=f"data {evil}",
            fingerprint=evil,
            warnings=[evil],
            terms=[f"term {evil} $"],
            tail=1.0 if label == "ce" else 2.0,
            expect={"accuracy": 1.0, "source": evil, "status": "paper-only"},
        )
    text = built(tmp_path)
    assert text.count("<script") == 1 and "<i>" not in text and "<b>" not in text
    assert Page(text).text.count(evil) >= 8


def test_single_run(make, tmp_path):
    make("ce", 0)
    text = Page(built(tmp_path)).text
    assert "1 recipe, 1 finished run" in text
    assert "± –" not in text, "one seed has no sd, and none is hinted at"
    assert "baseline" not in text and "Δ" not in text


def test_missing_groups(make, tmp_path):
    make("ce", 0, counts=(90, 70, 50, 30))
    text = Page(built(tmp_path)).text
    assert "few (0)" in text and "medium (4)" in text


@pytest.mark.parametrize("n", [5, 30])
def test_a_class_without_test_images(make, tmp_path, n):
    for seed in range(2):
        make("ce", seed, counts=tuple(range(200, 200 - n, -1)), per_class=[None, *[0.5] * (n - 1)])
    assert "class by class" in built(tmp_path)


def test_unfinished_runs_only(make, tmp_path):
    make("ce", 0, done=3)
    make("sam", 0, done=0, terms=["flat"])
    text = Page(built(tmp_path)).text
    assert "0 finished runs, 2 unfinished" in text and "sam, seed 0 (0 of 20 epochs)" in text
    assert "Training" in text and "class by class" not in text


def test_an_unfinished_run_beside_finished_ones(make, tmp_path):
    make("ce", 0)
    make("ce", 1, done=5)
    assert "Unfinished, left out of every number: ce, seed 1 (5 of 20 epochs)" in Page(built(tmp_path)).text


def test_published_numbers_stand_beside_ours(make, tmp_path):
    make("ce", 0, expect={"accuracy": 70.5, "source": "Cao et al., table 2", "status": "smoke"})
    text = Page(built(tmp_path)).text
    assert "expected" in text and "70.5" in text and "smoke · Cao et al., table 2" in text


def test_rows_of_another_protocol_have_no_difference_and_the_headline_names_no_best(make, tmp_path):
    for seed in range(2):
        make("ce", seed)
        make("sam", seed, epochs=40, tail=3.0, terms=["flat"])
    page = Page(built(tmp_path)).text
    assert "No row shares the protocol of ce: nothing is compared." in page and "Highest" not in page
    assert "Rows differ in epochs — 20: ce; 40: sam." in page


def test_how_the_numbers_were_made(make, tmp_path):
    make("digits-lt/ce", 0)
    text = Page(built(tmp_path)).text
    for word in ("torch 2.15.0", "cpu (2 threads)", "0123abc dirty", "flattail train recipes/digits-lt/ce.yaml"):
        assert word in text
    assert "name: resnet20" in text and "18 s" in text


def test_two_data_sets_are_two_sections(make, tmp_path):
    make("digits-lt/ce", 0)
    counts = tuple(int(300 * 0.02 ** (i / 29)) for i in range(30))
    recipe = {"data": {"name": "thirty"}}
    make("thirty/ce", 0, counts=counts, data="Thirty-LT", recipe=recipe, test=True, stages=2)
    make("thirty/sam", 0, counts=counts, data="Thirty-LT", recipe=recipe, tail=2.0, terms=["flat"])
    text = built(tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", text)[:2] == ["digits-LT (IF 16)", "Thirty-LT"]
    assert "borders of stages" in text and "running mean" in text and "test accuracy (%)" in text


def test_many_classes_are_binned(make, tmp_path):
    counts = tuple(int(1000 * 0.004 ** (i / 499)) for i in range(500))
    make("ce", 0, counts=counts, terms=[f"class {i}" for i in range(500)], epochs=3)
    text = built(tmp_path)
    assert "means of about 5 neighbouring classes" in text and "median of 500" in text
    assert len(text.encode()) < 600_000


def test_more_recipes_than_colours(make, tmp_path):
    for i in range(10):
        make(f"m{i}", 0, tail=1 + 0.1 * i)
    assert "10 recipes" in built(tmp_path)


def test_building_twice_gives_the_same_file(make, tmp_path):
    make("ce", 0)
    make("sam", 0, terms=["flat"])
    assert built(tmp_path) == built(tmp_path)


def test_nothing_to_report_is_an_error_and_writes_nothing(make, tmp_path):
    with pytest.raises(ValueError, match="no run to report on"):
        report.build([], tmp_path / "report.html")
    make("ce", 0)
    with pytest.raises(ValueError, match="no run is named"):
        built(tmp_path, baseline="nothing")
    assert not list(tmp_path.glob("**/*.html"))


def test_importing_the_report_is_light():
    code = "import sys, flattail.report as r; print([m for m in ('torch', 'matplotlib', 'scipy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
