"""What must be said beside the numbers: who is ahead beyond noise, the protocol, and everything that differs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .estimates import signed
from .facts import FACTS

if TYPE_CHECKING:
    from .swaps import Swap
    from .tables import Row


def headline(rows: Sequence["Row"], moved: Sequence["Swap"] = ()) -> str:
    """Who is ahead of the baseline of these rows by more than the seeds differ, in a sentence or two.

    `moved`: what changed on the test images; where no two seeds are there to compare, that is what can be told.
    """
    if len(rows) < 2:
        return ""
    base, others = rows[0], [row for row in rows[1:] if row.differences]
    if not others:
        return f"No row shares the protocol of {base.name}: nothing is compared."
    if all(row.differences["all"].n < 2 for row in others):
        nobody = f"Nobody can be called ahead of {base.name}: an interval over seeds takes two in common."
        told = [f"{swap.row.name} ({', '.join(found)})" for swap in moved if (found := _on_images(swap))]
        return nobody + (f" Of these very models, over test images: {'; '.join(told)}." if told else "")
    said = []
    for name in ("all", "few"):
        ahead = [row for row in others if row.differences[name].ahead]
        said += [f"on {name} {', '.join(f'{row.name} ({row.differences[name]})' for row in ahead)}"] if ahead else []
    if not said:
        return f"No method is ahead of {base.name} beyond noise (95 % intervals of paired differences)."
    return f"Ahead of {base.name} beyond noise: {'; '.join(said)}."


def notes(rows: Sequence["Row"]) -> list[str]:
    """Footnotes for the rows of one data set: the protocol, and everything that differs between rows."""
    said = ["Accuracy in percent on the test set, mean ± sample sd over n seeds; – is for what is not known."]
    if len(rows) > 1:
        said.append(
            f"Δ: mean difference to {rows[0].name} over common seeds, in points, with its 95 % t interval "
            "(two pairs or more); marked where the interval leaves out zero, without correction for many rows."
        )
        if apart := [row.name for row in rows[1:] if not row.differences]:
            said.append(f"No Δ across protocols: {', '.join(apart)}; how they differ is said below.")
    same, differing = [], []
    for what, pick in FACTS.items():
        found = _differing(rows, pick)
        if len(found) == 1:
            same += [f"{what} {value}" for value in found if value != "none"]
        elif found:
            differing.append(apart_in(what, found, len(rows)))
    for row in rows:
        for what in ("data fingerprint", "test images"):
            if len(values := {str(v) for run in row.runs if (v := FACTS[what](run)) is not None}) > 1:
                differing.append(f"{row.name} averages runs that differ in {what}: {', '.join(sorted(values))}.")
        for run in row.unfinished:
            at = f"{len(run.rows)} of {run.epochs} epochs"
            differing.append(f"Unfinished, left out of every number: {row.name}, seed {run.seed} ({at}).")
    return [*said, f"The same for all rows: {'; '.join(same)}.", *differing]


def apart_in(what: str, found: Mapping[str, Sequence[str]], rows: int) -> str:
    """That rows differ in something, and which have which value; where each has one, most of them go unnamed."""
    names = [name for each in found.values() for name in each]
    commonest = max(found, key=lambda value: len(found[value]))
    most = len(set(names)) == len(names) == rows and len(found[commonest]) > max(2, rows / 2)
    said = [f"{value}: {', '.join(each)}" for value, each in found.items() if not most or value != commonest]
    said += [f"{commonest}: all others"] if most else []
    return f"Rows differ in {what} — {'; '.join(said)}."


def warnings(rows: Sequence["Row"]) -> list[str]:
    """The warnings that the runs recorded, each once, with the seeds that have it."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        for run in row.runs:
            for text in dict.fromkeys((run.scores or {}).get("warnings", [])):
                seeds.setdefault((row.name, text), []).append(run.seed)
    return [f"{name} (seed {', '.join(map(str, found))}): {text}" for (name, text), found in seeds.items()]


def _on_images(swap: "Swap") -> list[str]:
    """On few and on all: the change over test images, where its interval leaves out zero."""
    groups = {flip.name: flip for flip in swap.groups}
    clear = [flip for name in ("few", "all") if (flip := groups.get(name)) and flip.clear]
    return [f"{flip.name} {signed(flip.points)} [{signed(flip.low)}, {signed(flip.high)}]" for flip in clear]


def _differing(rows: Sequence["Row"], pick: Any) -> dict[str, list[str]]:
    """Value -> the names of the rows that have it; runs without one are left out."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for run in row.every:
            said = pick(run)
            if said is not None and row.name not in found.setdefault(str(said), []):
                found[str(said)].append(row.name)
    return found
