"""The docs site: it builds strictly and asks nobody for anything, pages are complete, generated parts up to date."""

import ast
import dataclasses
import importlib.util
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import flattail
from flattail.analysis import ANALYSES
from flattail.averages import AVERAGES
from flattail.catalogue import fields
from flattail.constraints import CONSTRAINTS
from flattail.data import DATASETS, SAMPLERS
from flattail.data.profile import SHOTS
from flattail.losses import LOSSES
from flattail.models import MODELS
from flattail.sharp import METHODS, RADII, SharpnessAware
from flattail.starts import STARTS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SECTIONS = [
    "Objective", "Equations", "Cost", "Hyper-parameters", "In a loop", "In a recipe", "When it helps",
    "What papers and released code disagree on", "BibTeX",
]  # fmt: skip
TABLES = [METHODS, LOSSES, STARTS, AVERAGES, CONSTRAINTS, DATASETS, SAMPLERS, MODELS, RADII, ANALYSES]
NAMED = {name: getattr(flattail, name) for name in flattail.NAMES}
PUBLIC = NAMED | {cls.__name__: cls for table in TABLES for cls in table.values()}


def loaded(path: Path):
    """A script of the docs as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def methods():
    return loaded(DOCS / "methods.py")


def text_of(name: str) -> str:
    return (DOCS / "methods" / f"{name}.md").read_text()


# ---- a page per method -------------------------------------------------------------------------------------


def test_every_method_has_a_page_and_no_page_is_without_a_method():
    pages = {p.stem for p in (DOCS / "methods").glob("*.md")} - {"index"}
    assert pages == set(METHODS)
    assert set(re.findall(r"\((\S+)\.md\)", (DOCS / "methods" / "index.md").read_text())) >= pages


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_page_is_complete(name):
    text = text_of(name)
    assert re.findall(r"^## (.*)$", text, re.M) == SECTIONS
    parts = dict(zip(SECTIONS, re.split(r"^## .*$", text, flags=re.M)[1:], strict=True))
    assert all(len(part.strip()) > 20 for title, part in parts.items() if title != "Hyper-parameters")
    assert "$$" in parts["Equations"]
    assert METHODS[name].__name__ in parts["In a loop"]
    assert name in {each for stage in yaml.safe_load(block(parts["In a recipe"]))["stages"] for each in used(stage)}
    assert parts["BibTeX"].count("@") >= 1


def block(text: str) -> str:
    return re.search(r"^```yaml\n(.*?)^```", text, re.S | re.M)[1]


def used(stage: dict) -> set[str]:
    """The names of a stage's method and of those inside it."""
    method, names = stage.get("method"), set()
    while method:
        names.add(method if isinstance(method, str) else method["name"])
        method = None if isinstance(method, str) else method.get("method")
    return names


@pytest.mark.parametrize("name", METHODS)
def test_the_generated_parts_are_what_the_code_says(name, methods):
    assert text_of(name) == methods.page(name), "run `python docs/methods.py`"


@pytest.mark.parametrize("name", METHODS)
def test_every_default_has_a_source(name, methods):
    assert set(methods.SOURCES[name]["fields"]) == {f.name for f in fields(METHODS[name])}
    assert set(methods.SOURCES) == {*METHODS, *SEVERAL}


@pytest.mark.parametrize("name", METHODS)
def test_the_cost_on_a_page_is_counted_by_the_engine(name, methods):
    said = re.search(r"\| with its defaults \| (.*?) \|", text_of(name))[1]
    counted = methods.counted(methods.made(name, {}))
    for f, b in set(counted):
        assert f"{f}F + {b}B" in said
    assert len(re.findall(r"\dF \+ \dB", said.partition(";")[0])) == len(set(counted))


def test_the_protocols_name_recipes_subsets_and_rules_that_are_there():
    text = (DOCS / "protocols.md").read_text()
    for row in re.findall(r"^\|.*\| (`[a-z0-9`, -]+`) \|$", text.partition("## Which recipe")[2], re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", row):
            assert (ROOT / "recipes" / "cifar10-lt-100" / f"{name}.yaml").exists(), name
    images = text.partition("## Which classes")[0]
    assert {"cao", "cc", "first"} == set(re.findall(r"^\| `(\w+)`", images, re.MULTILINE)) - {"subset"}
    rules = text.partition("## Which classes")[2].partition("## How")[0]
    assert set(SHOTS) == set(re.findall(r"^\| `(\w+)` \|", rules, re.MULTILINE)) - {"shots"}


SEVERAL = ("losses", "stages")  # pages on more than one paper


@pytest.mark.parametrize("name", SEVERAL)
def test_a_page_on_several_papers_cites_them_all(name, methods):
    text = (DOCS / f"{name}.md").read_text()
    assert text == methods.page(name), "run `python docs/methods.py`"
    entries = (DOCS / "methods" / "references.bib").read_text()
    for key in methods.SOURCES[name]["cites"]:
        author = re.search(rf"{key},.*?author\s*= {{(\w+)", entries, re.S)[1]
        assert author in text.partition("## BibTeX")[0], f"{author} is cited and not spoken of"


def test_every_reference_is_cited_and_has_what_a_citation_needs(methods):
    text = (DOCS / "methods" / "references.bib").read_text()
    entries = dict(re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", text, re.S | re.M))
    assert set(entries) == {key for source in methods.SOURCES.values() for key in source["cites"]}
    for key, entry in entries.items():
        assert {"title", "author", "year"} <= set(re.findall(r"^  (\w+)\s*=", entry, re.M)), key


# ---- figures -----------------------------------------------------------------------------------------------


def test_the_figures_are_what_the_script_draws(tmp_path):
    draw = loaded(DOCS / "figures" / "draw.py")
    draw.main(tmp_path)
    drawn = sorted(p.name for p in tmp_path.iterdir())
    others = {"spectra.svg"}  # of measured results: tests/test_results.py
    assert drawn == sorted(p.name for p in (DOCS / "figures").glob("*.svg") if p.name not in others)
    made_by = re.compile(r"Matplotlib v[\d.]+")
    for name in drawn:
        new, kept = (tmp_path / name).read_text(), (DOCS / "figures" / name).read_text()
        assert "prefers-color-scheme: dark" in kept
        assert not set(re.findall(r"#[0-9a-f]{6}", kept.partition("</style>")[2])) & set(draw.DARK)
        if made_by.search(new)[0] == made_by.search(kept)[0]:
            assert new == kept, f"run `python docs/figures/draw.py`: {name}"
    idea = (DOCS / "idea.md").read_text()
    assert all(f"figures/{name}" in idea for name in drawn)


# ---- the site ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for needed in ("mkdocs", "material", "latex2mathml"):
        pytest.importorskip(needed, reason="the docs extra is not installed: pip install 'flattail[docs]'")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    told = [
        line for line in done.stderr.splitlines() if line.startswith(("WARNING", "ERROR"))
    ]  # --quiet would lose them
    assert done.returncode == 0, "\n".join(told) or done.stderr
    return out


def test_the_site_asks_nobody_for_anything(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    loads = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)", re.S)
    for page in pages:
        assert not loads.findall(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_formulas_are_mathml_and_none_is_left(site):
    for name in METHODS:
        text = (site / "methods" / f"{name}.html").read_text()
        assert text.count("<math") >= 1
        assert "arithmatex" not in text
        assert "\\lVert" not in text


def test_every_page_is_in_the_navigation(site):
    home = (site / "index.html").read_text()
    for page in DOCS.rglob("*.md"):
        there = page.relative_to(DOCS).with_suffix(".html")
        assert f'href="{there}"' in home or there.name == "index.html", page
    assert 'href="repository/results.html"' in home


def test_links_out_of_the_docs_lead_to_pages_of_the_site(site):
    text = (site / "coverage.html").read_text()
    assert 'href="repository/results.html"' in text
    results = (site / "repository" / "results.html").read_text()
    assert "cifar10-lt-16px" in results
    for image in re.findall(r'<img [^>]*src="([^"]+)"', results):
        assert (site / "repository" / image).is_file(), image


def test_the_api_page_has_every_public_name(site):
    text = (site / "api.html").read_text()
    for name in flattail.NAMES:
        assert f'id="{name.lower()}"' in text, name


def test_lines_can_be_read_as_text():
    for page in DOCS.rglob("*.md"):
        for i, line in enumerate(page.read_text().splitlines(), 1):
            assert len(line) <= 140 or line.startswith("|"), f"{page.relative_to(ROOT)}, line {i}"


def test_no_page_says_where_it_was_written():
    for page in [*DOCS.rglob("*.md"), ROOT / "mkdocs.yml"]:
        assert not re.search(r"(?<![\w.])/(?:work|tmp|root|home)/", page.read_text()), page


# ---- docstrings --------------------------------------------------------------------------------------------


def functions_of(name: str, thing) -> dict:
    """A public thing and its public functions."""
    found = {name: thing}
    if inspect.isclass(thing):
        for key, value in vars(thing).items():
            plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            plain = plain.fget if isinstance(plain, property) else plain
            if not key.startswith("_") and inspect.isfunction(plain) and plain.__module__ == thing.__module__:
                found[f"{name}.{key}"] = plain
    return found


EVERYTHING = {
    name: each for top, thing in PUBLIC.items() if not isinstance(thing, dict)
    for name, each in functions_of(top, thing).items()
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_public_name_has_a_docstring(name):
    thing = EVERYTHING[name]
    said = inspect.getdoc(thing)
    assert said, name
    assert not (dataclasses.is_dataclass(thing) and said.startswith(f"{thing.__name__}(")), f"{name}: generated"


def takes_tensors(thing) -> bool:
    """Whether a parameter is a tensor, by its annotation."""
    if not inspect.isfunction(thing):
        return False
    said = [str(p.annotation) for p in inspect.signature(thing).parameters.values()]
    return any(re.search(r"\bTensor\b(?!\])", each) for each in said)  # parameters' lists have any shapes


OUTSIDE = {name: thing for name, thing in EVERYTHING.items() if takes_tensors(thing)}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_takes_tensors_says_their_shapes(name):
    assert re.search(r"\[[A-Za-z0-9_, .+*-]+\]", inspect.getdoc(OUTSIDE[name]) or ""), name


@pytest.mark.parametrize("name", [*METHODS, *ANALYSES])
def test_a_method_and_an_analysis_say_their_equation(name):
    """Where `help` and the API page show it: in the class's own docstring, as a line of its own."""
    said = inspect.getdoc((METHODS | ANALYSES)[name])
    assert name in ("erm", "window", "every") or re.search(r"^ {4}\S.*", said, re.MULTILINE), name


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_its_shapes_and_its_formula(name):
    kind = LOSSES[name] if inspect.isclass(LOSSES[name]) else type(LOSSES[name])
    assert "logits [B, C], labels [B] and counts [C]" in inspect.getdoc(kind.__call__), name
    assert re.search(r"`l = |^ {4}mean_i", inspect.getdoc(kind), re.MULTILINE), name


def raising(thing) -> bool:
    """Whether a public thing refuses something by itself: a function's body, a class's making."""
    making = "__post_init__" if dataclasses.is_dataclass(thing) else "__init__"
    own = vars(thing).get(making) if inspect.isclass(thing) else thing
    code = ast.parse(textwrap.dedent(inspect.getsource(own)) if inspect.isfunction(own) else "")
    called = [n.func.id for n in ast.walk(code) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return any(isinstance(n, ast.Raise) for n in ast.walk(code)) or any(
        name.startswith(("check_", "refuse_")) for name in called
    )


REFUSING = {name: thing for name, thing in EVERYTHING.items() if raising(thing)}


@pytest.mark.parametrize("name", REFUSING)
def test_what_refuses_something_says_so(name):
    assert re.search("[Rr]aise", inspect.getdoc(REFUSING[name])), name


def test_the_drop_in_says_its_shapes():
    assert "`[C]`" in SharpnessAware.__doc__
    assert "`[B]`" in SharpnessAware.backward.__doc__
