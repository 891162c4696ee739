"""What the README and the docs claim runs: their Python, their recipes, their commands, their links."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from typer.main import get_command

from flattail import SSESAM, SharpnessAware
from flattail.cli import app
from flattail.recipe import found, from_tree

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list:
    """Every fenced block of a language, named by page and number."""
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}-{i}")
        for page in PAGES
        for i, text in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M))
    ]


@pytest.mark.parametrize("source", blocks("python"))
def test_python_runs(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "block", "exec"), {"__name__": "block"})


def test_the_two_lines_of_the_readme_run_before_and_after():
    """Its diff, as it is before and as it becomes, around a loop of four steps."""
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    for sign in "-+":
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 3)
        given = {"model": model, "F": torch.nn.functional, "SharpnessAware": SharpnessAware, "SSESAM": SSESAM}
        given |= {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "counts": [500, 120, 12], "steps": 4}
        given |= {"loader": [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(4)], "step": 1}
        before = model.weight.clone()
        exec("\n".join(line[2:] for line in diff.splitlines() if line[0] in f" {sign}"), given)
        assert bool((model.weight != before).all()) and ("flat" in given) == (sign == "+")


@pytest.mark.parametrize("source", blocks("yaml"))
def test_recipes_parse(source):
    assert from_tree(yaml.safe_load(source)).stages


@pytest.mark.parametrize("source", blocks("sh"))
def test_commands_exist(source):
    group = get_command(app)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    lines = source.replace("\\\n", " ").splitlines()
    for line in filter(None, (line.partition("#")[0].strip() for line in lines)):
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets
        else:
            words = words[words.index("flattail") + 1 :]
            command = group.commands[words[0]]
            while hasattr(command, "commands"):  # `flattail data check`
                words = words[1:]
                command = command.commands[words[0]]
            given = command.make_context(words[0], words[1:], resilient_parsing=False).params
            recipes = given.get("recipes") or ([given["recipe"]] if "recipe" in given else [])
            assert not recipes or found(recipes)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / target).exists(), target
