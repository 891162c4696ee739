"""The model card of an export, as the Hugging Face Hub reads it: what the model is, was trained on, and scores."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..classifier import Classifier
from ..recipe import to_tree

READINGS = {
    "files": "the shorter side to 8/7 of that, then the centre",
    "photographs": "turned upright, the shorter side to 8/7 of that, then the centre",
    "held": "turned upright, the shorter side to that, then the centre",
    "memory": "the centre in these proportions, shrunk by area",
    "own": "by transforms of the data set's own, whose values are taken as they are",
}
CHOSEN = {
    "last": "the last epoch",
    "best-on-val": "the epoch that did best on validation images",
    "best-on-test": "the epoch that did best on these very images, which makes the scores too good",
    "imported": "someone else's training",
}


def card(of: Classifier, written: Mapping[str, tuple[str, float]]) -> str:
    """The card of a run, in Markdown; `written`: by format, its file and how far its logits are from torch's."""
    said, counts = of.run.scores, of.counts
    assert said is not None
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    page.filters |= {"percent": percent, "cell": cell}
    name = f"{of.recipe.title or of.run.label}, {said['data']}"
    ranges = {group: counts[mask] for group, mask in of.groups.items() if mask.any()}
    return page.get_template("card.md.j2").render(
        front=yaml.safe_dump(front_matter(of, name, list(written)), sort_keys=False, allow_unicode=True),
        title=name,
        data=said["data"],
        images=int(counts.sum()),
        groups=[
            {"name": group, "classes": len(n), "least": int(n.min()), "most": int(n.max())}
            for group, n in ranges.items()
        ],
        shape=of.images.shape,
        colour={1: "grey", 3: "RGB"}.get(of.images.shape[0], "in the channels of the data"),
        mean=list(of.images.mean),
        std=list(of.images.std),
        reading=READINGS[of.images.reading],
        flip=of.flip,
        scale=of.scale,
        doubts=of.doubts,
        calibrated=of.log_prior is not None,
        written=written,
        scores=said["scores"],
        chosen=CHOSEN.get(said.get("selection", ""), CHOSEN["imported"]),
        warnings=said.get("warnings", ()),
        classes=[
            {"name": each, "count": n, "group": of.group(c), "accuracy": accuracy}
            for c, (each, n, accuracy) in enumerate(
                zip(of.names, counts.tolist(), said["scores"]["per_class"], strict=True)
            )
        ],
        used=used(of),
        ran=ran(of),
        recipe=of.run.text.rstrip(),
    )


def front_matter(of: Classifier, name: str, formats: list[str]) -> dict[str, Any]:
    """What the Hub reads; the licence is left to whoever publishes."""
    assert of.run.scores is not None
    found = of.run.scores["scores"]
    values = {"accuracy": found["all"], "balanced accuracy": found["balanced"]}
    values |= {f"accuracy, {group} classes": value for group, value in found["groups"].items()}
    results = {
        "task": {"type": "image-classification"},
        "dataset": {"name": of.run.scores["data"], "type": to_tree(of.recipe)["data"]["name"], "split": "test"},
        "metrics": [{"type": "accuracy", "name": n, "value": round(v, 6)} for n, v in values.items() if v is not None],
    }
    more = ["onnx"] if "onnx" in formats else []
    base = getattr(of.recipe.model, "base", None)
    return {
        "library_name": "flattail",
        **({"base_model": base} if base else {}),
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "long-tailed-recognition", "class-imbalance", *more],
        "metrics": ["accuracy"],
        "model-index": [{"name": name, "results": [results]}],
    }


def used(of: Classifier) -> list[str]:
    """The methods and losses of all stages, and what they say of themselves."""
    stages = of.recipe.stages
    kinds = dict.fromkeys([*(type(s.method) for s in stages), *(type(s.loss) for s in stages)])
    return [f"{kind.__name__}: {cited(kind).removeprefix(f'{kind.__name__}: ')}" for kind in kinds]


def cited(kind: type) -> str:
    """The first paragraph of a class's module, where the module is about that class, and of the class."""
    module, own = (inspect.getdoc(each) or "" for each in (sys.modules[kind.__module__], kind))
    alone = kind.__module__.rpartition(".")[2] == kind.__name__.lower()
    paragraphs = [*([module.split("\n\n")[0]] if alone else []), *own.split("\n\n")[: 1 if alone else 2]]
    return " ".join(" ".join(paragraphs).split())


def ran(of: Classifier) -> str:
    """Device, precision, versions, seed."""
    env = of.run.env
    versions = [f"{name} {version}" for name, version in env.get("versions", {}).items()]
    return ", ".join([*(env[key] for key in ("device", "dtype") if key in env), *versions, f"seed {of.run.seed}"])


def percent(value: float | None) -> str:
    """A fraction as percent; a dash for what is not known."""
    return "–" if value is None else f"{100 * value:.1f}"


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
