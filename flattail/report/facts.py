"""Facts of a run in words: what a footnote states when all rows agree, and names when not."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..runs import Run


def protocol(runs: Sequence[Run]) -> dict[str, set[str]]:
    """What runs must share to be compared: every fact's values, without those that say what is compared."""
    return {what: {str(v) for run in runs if (v := pick(run)) is not None} for what, pick in PROTOCOL.items()}


def shared(ours: Sequence[Run], theirs: Sequence[Run]) -> bool:
    """Whether two rows share a protocol, as far as it is known of both; seeds may differ in their validation images."""
    a, b = protocol(ours), protocol(theirs)
    return not any(a[what].isdisjoint(b[what]) for what in PROTOCOL if a[what] and b[what])


def protocol_hash(run: Run) -> str:
    """Of what a run must share with others to be compared, beside the fingerprint of its data."""
    said = {what: pick(run) for what, pick in PROTOCOL.items() if what != "data fingerprint"}
    return hashlib.sha256(text(said).encode()).hexdigest()[:12]


def spelled(value: Any) -> str:
    """`{name: x, a: 1}` as `x (a 1)`, and what is inside likewise; a list as its entries."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(spelled, value))
    if not isinstance(value, Mapping):
        return str(value)
    rest = ", ".join(f"{k} {spelled(inner)}" for k, inner in value.items() if k != "name" and inner is not None)
    name = spelled(value.get("name", ""))
    return f"{name} ({rest})" if name and rest else name or rest


def flat(tree: Any, place: str = "") -> dict[str, Any]:
    """The leaves of a recipe by their dotted place, as in `stages.0.method.rho`."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, (list, tuple)):
        items = list(enumerate(tree))
    else:
        return {place: tree}
    return {k: v for name, inner in items for k, v in flat(inner, f"{place}.{name}".lstrip(".")).items()}


def text(value: Any) -> str:
    """A value as text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def _without(value: Any, key: str) -> Any:
    return {k: v for k, v in value.items() if k != key} if isinstance(value, Mapping) else value


def _score(name: str) -> Callable[[Run], Any]:
    return lambda run: run.scores[name] if run.scores else None


def _fingerprint(run: Run) -> Any:
    """Of the training data; None where a validation part, carved by the seed, makes each seed's another."""
    return None if (run.recipe.get("protocol") or {}).get("validation") else _score("fingerprint")(run)


def _tested(run: Run) -> str | None:
    """How many test images there are."""
    n = run.scores["scores"].get("n") if run.scores else None
    return None if n is None else f"{n:,}"


def _sizes(run: Run) -> str | None:
    sizes = run.scores["scores"]["sizes"] if run.scores else {}
    return ", ".join(f"{name} ({size})" for name, size in sizes.items()) or None


def _staged(pick: Callable[[Mapping[str, Any]], Any]) -> Callable[[Run], str | None]:
    """What the stages say one after the other, each change once."""

    def said(run: Run) -> str | None:
        each = [spelled(found) for stage in run.recipe["stages"] if (found := pick(stage)) is not None]
        changes = [value for i, value in enumerate(each) if i == 0 or value != each[i - 1]]
        return ", then ".join(value or "none" for value in changes) or None

    return said


def _weights(run: Run) -> str | None:
    return "pretrained weights" if run.recipe["model"].get("weights") else None


def _trained(name: str) -> Callable[[Run], str | None]:
    """A setting of the stages that train; null is none."""
    return _staged(lambda stage: (stage[name] or {}) if stage["epochs"] and name in stage else None)


def _rate(stage: Mapping[str, Any]) -> str | None:
    optim = stage.get("optim", {})
    return f"{optim.get('name', 'sgd')} {optim['lr']}" if stage["epochs"] and "lr" in optim else None


def _momentum(stage: Mapping[str, Any]) -> dict[str, Any] | None:
    """What else an optimiser has, where it does something."""
    optim = {name: value for name, value in stage.get("optim", {}).items() if name not in ("name", "lr") and value}
    return optim if stage["epochs"] and "optim" in stage else None


def _others(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Further settings of a stage, where they do something."""
    names = ("start", "train", "rates", "clip", "average", "constraint", "only")
    return {name: stage[name] for name in names if stage.get(name) not in (None, [], "all", {"name": "keep"})}


FACTS: dict[str, Callable[[Run], Any]] = {
    "classes per group": _sizes,
    "data fingerprint": _fingerprint,
    "test images": _tested,
    "data": lambda run: spelled(run.recipe["data"]),
    "model": lambda run: spelled(run.recipe["model"]),
    "epochs": lambda run: run.epochs,
    "begun from": lambda run: run.recipe["stages"][0].get("init") or _weights(run) or "new weights",
    "batch": _trained("batch"),
    "learning rate": _staged(_rate),
    "optimiser": _staged(_momentum),
    "schedule": _trained("schedule"),
    "augmentation": _trained("augment"),
    "sampler": _trained("sampler"),
    "mix": _trained("mix"),
    "other settings": _staged(_others),
    "selected epoch": _score("selection"),
    "device": lambda run: run.env.get("device"),
    "dtype": lambda run: run.env.get("dtype"),
    "torch": lambda run: run.env.get("versions", {}).get("torch"),
}
SHARED = (
    "test images", "epochs", "begun from", "batch", "learning rate", "optimiser", "schedule", "augmentation",
)  # fmt: skip
PROTOCOL: dict[str, Callable[[Run], Any]] = {what: FACTS[what] for what in SHARED} | {
    "data": lambda run: spelled(_without(run.recipe["data"], "shots")),  # groups are only how results are told
    "model": lambda run: spelled(_without(run.recipe["model"], "head")),  # a cosine head belongs to its loss
    "data fingerprint": _score("fingerprint"),
    "judging": lambda run: spelled(run.recipe["protocol"]) if run.recipe.get("protocol") else None,
}
