"""Writes what is known from the code into the pages of methods: passes, fields, what was measured, BibTeX.

python docs/methods.py   writes the blocks between the markers anew; the prose around them is by hand
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from flattail import SAM
from flattail.catalogue import fields
from flattail.recipe import to_tree
from flattail.runs import Run
from flattail.sharp import METHODS, Method

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "results"))

from measures import average, cells, change, kept, paired, passes  # noqa: E402

PAGES = HERE / "methods"
SOURCES: dict[str, Any] = yaml.safe_load((PAGES / "sources.yaml").read_text())
BLOCK = re.compile(r"(<!-- docs/methods.py: (\w+) -->\n).*?(<!-- to here -->\n)", re.S)
# passes that the defaults do not show: page -> (what it is, fields)
VARIANTS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "ccsam": [("`scope: all`, 10 classes in the batch", {"scope": "all"})],
    "lpf-sgd": [("`draws: 8`", {"draws": 8})],
    "model-perturbation": [("`draws: 3`", {"draws": 3})],
    "pgd": [("`threshold: 1.0`", {"threshold": 1.0})],
    "window": [("`start: 0.8`", {"start": 0.8})],
}
ALIKE = (  # of a stage
    "epochs", "loss", "sampler", "optim", "schedule", "batch", "augment", "mix", "init", "train", "carry",
)  # fmt: skip


def page(name: str) -> str:
    """A page with its generated blocks as they should be."""
    blocks = {"cost": cost, "fields": table_of_fields, "measured": measured, "bibtex": bibtex}
    return BLOCK.sub(lambda m: f"{m[1]}\n{blocks[m[2]](name)}\n\n{m[3]}", path(name).read_text())


def path(name: str) -> Path:
    """Where a page lies: that of a method, or one on several papers."""
    return (PAGES if name in METHODS else HERE) / f"{name}.md"


# ---- passes ------------------------------------------------------------------------------------------------


def made(name: str, given: dict[str, Any]) -> Method:
    """A method with its defaults, SAM inside where one is needed."""
    cls = METHODS[name]
    inner = {"method": SAM()} if any(f.name == "method" for f in fields(cls)) else {}
    return cls(**(inner | given))


def counted(method: Method) -> Sequence[tuple[int, int]]:
    """(forwards, backwards) of every step of a small training."""
    return passes(json.dumps(to_tree(method)), tuple(step / 20 for step in range(20)))


def said(taken: Sequence[tuple[int, int]]) -> str:
    """Passes a step, with the share of steps where there are several kinds."""
    kinds = list(dict.fromkeys(taken))
    if len(kinds) == 1:
        return "{}F + {}B".format(*kinds[0])
    parts = [f"{f}F + {b}B in {100 * taken.count((f, b)) / len(taken):.0f} %" for f, b in kinds]
    return f"{', '.join(parts)} of the steps; on average {average(taken)}"


def cost(name: str) -> str:
    """The passes of the method's defaults and of what differs from them."""
    rows = [("with its defaults", {}), *VARIANTS.get(name, [])]
    lines = [f"| {what} | {said(counted(made(name, given)))} |" for what, given in rows]
    return "\n".join(["| | passes a step |", "| --- | --- |", *lines])


# ---- fields ------------------------------------------------------------------------------------------------


def table_of_fields(name: str) -> str:
    """The dataclass's fields: default, comment, source."""
    found = fields(METHODS[name])
    if not found:
        return "None."
    lines = ["| field | default | what it is | where the default comes from |", "| --- | --- | --- | --- |"]
    for f in found:
        shown = f"`{f.default}`" if f.default else "–"
        lines.append(f"| `{f.name}` | {shown} | {cell(f.comment)} | {cell(SOURCES[name]['fields'][f.name])} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text as it may stand in a table."""
    return text.replace("|", "\\|")


# ---- what was measured -------------------------------------------------------------------------------------


def names(method: Any) -> Iterator[str]:
    """The name of a method in a recipe, and of one inside it."""
    yield method["name"]
    if "method" in method:
        yield from names(method["method"])


def plain(recipe: Mapping[str, Any]) -> str:
    """What a recipe trains, whatever its methods: equal for a recipe and its plain partner."""
    stages = [{k: s.get(k) for k in ALIKE} | {"start": s.get("start", {"name": "keep"})} for s in recipe["stages"]]
    return json.dumps([recipe["data"], recipe["model"], stages], sort_keys=True, default=str)


def only_in(recipe: Mapping[str, Any], name: str) -> bool:
    """Whether a recipe uses the method, beside plain steps and what contains it."""
    used = {each for stage in recipe["stages"] for each in names(stage["method"])}
    return name in used and (name != "erm" or used == {"erm"})


def measured(name: str) -> str:
    """Every kept recipe with the method, and its difference to the same recipe with plain steps, seed by seed."""
    by_label: dict[str, dict[int, Run]] = defaultdict(dict)
    partners: dict[str, dict[int, Run]] = {}
    for run in kept():
        by_label[run.label][run.seed] = run
    for seeds in by_label.values():
        recipe = next(iter(seeds.values())).recipe
        if only_in(recipe, "erm"):
            partners.setdefault(plain(recipe), seeds)
    lines = []
    for label, seeds in sorted(by_label.items()):
        recipe = next(iter(seeds.values())).recipe
        if name == "erm" or not only_in(recipe, name):
            continue
        partner = partners.get(plain(recipe), {})
        delta = change(paired(seeds, partner, "all"))
        lines.append(
            f"| {recipe['title']} (`{label}`) | {' | '.join(cells(seeds.values()))} | {delta} | {len(seeds)} |"
        )
    if not lines:
        return "Nothing yet: [results](../../results/README.md) has no run of it."
    head = [
        "| recipe | many | medium | few | all | Δ all to the same with plain steps | n |",
        f"| --- |{' ---: |' * 6}",
    ]
    note = (
        "Accuracy in percent, mean ± sd over n seeds; Δ with half its 95 % t interval over common seeds, – where no\n"
        "such run is kept. Protocols, and what they cannot say: [results](../../results/README.md)."
    )
    return "\n".join([*head, *lines, "", note])


# ---- BibTeX ------------------------------------------------------------------------------------------------


def bibtex(name: str) -> str:
    """The entries that the page cites."""
    entries = {
        m[1]: m[0] for m in re.finditer(r"@\w+\{(\w+),.*?^\}", (PAGES / "references.bib").read_text(), re.S | re.M)
    }
    cited = "\n\n".join(entries[key] for key in SOURCES[name]["cites"])
    return f"```bibtex\n{cited}\n```"


if __name__ == "__main__":
    for each in SOURCES:
        path(each).write_text(page(each))
