"""One analysis over the runs of a recipe: means over seeds, with what is known of their error.

error² = sd over seeds² + mean over seeds of (standard error over samples² + spread over probes²)
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..runs import Run
from .notes import apart_in
from .panels import mean_of
from .tables import SHARES, Row

HEAVY = ("direction",)  # [T, weights]: nothing here shows it
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """The same analysis, under the same options, of runs of one recipe."""

    runs: tuple[Run, ...]
    arrays: tuple[Arrays, ...]  # of each run
    asked: Mapping[str, Any]  # options, split and loss
    left: tuple[Run, ...]  # analysed under other options: in no number

    @cached_property
    def names(self) -> list[str]:
        """The classes (by number) and groups, `[T]`."""
        return [str(name) for name in self.arrays[0]["name"]]

    @cached_property
    def shown(self) -> list[str]:
        """The same, with the names of the classes."""
        own = (self.runs[0].scores or {}).get("names", [])
        return [own[int(n)] if n.isdigit() and int(n) < len(own) else n for n in map(str, self.names)]

    @cached_property
    def counts(self) -> np.ndarray:
        """Training images `[T]`; NaN where they are not known."""
        if "count" in self.arrays[0]:
            return np.asarray(self.arrays[0]["count"], dtype=float)
        own = (self.runs[0].scores or {}).get("counts", [])
        known = [own[int(n)] if n.isdigit() and int(n) < len(own) else math.nan for n in self.names]
        return np.array(known, dtype=float)

    @property
    def classes(self) -> list[int]:
        """Which entries are single classes, the most frequent first."""
        found = [i for i, name in enumerate(self.names) if name.isdigit()]
        return sorted(found, key=lambda i: -np.nan_to_num(self.counts[i]))

    @property
    def groups(self) -> dict[str, int]:
        """Which entries are groups, by name: many, medium, few, all, then others."""
        found = {name: i for i, name in enumerate(self.names) if not name.isdigit()}
        return {name: found[name] for name in [*SHARES, *found] if name in found}

    @property
    def order(self) -> list[int]:
        """All entries: classes by falling frequency, then groups."""
        return [*self.classes, *self.groups.values()]

    def has(self, key: str) -> bool:
        """Whether the analysis found such an array."""
        return all(key in arrays for arrays in self.arrays)

    def stack(self, key: str) -> np.ndarray:
        """An array of every run, `[runs, T, ...]`, NaN where there is nothing finite."""
        found = np.stack([np.asarray(arrays[key], dtype=float) for arrays in self.arrays])
        return np.where(np.isfinite(found), found, np.nan)

    def mean(self, key: str) -> np.ndarray:
        """The mean over seeds `[T, ...]`."""
        return mean_of(self.stack(key), axis=0)

    def seeds(self, key: str) -> np.ndarray:
        """The sd over seeds; NaN for a single run."""
        found = self.stack(key)
        return found.std(axis=0, ddof=1) if len(found) > 1 else np.full(found.shape[1:], np.nan)

    def within(self, key: str, kind: str) -> np.ndarray:
        """The error of a run over its `samples` or `probes`, root mean square over seeds; NaN where it is not known."""
        if not self.has(f"{key}_{kind}"):
            return np.full(self.stack(key).shape[1:], np.nan)
        return np.sqrt(mean_of(self.stack(f"{key}_{kind}") ** 2, axis=0))

    def error(self, key: str) -> np.ndarray:
        """Everything that is known of the error, in quadrature; NaN where nothing is."""
        parts = np.stack([self.seeds(key), self.within(key, "samples"), self.within(key, "probes")])
        return np.where(np.isfinite(parts).any(axis=0), np.sqrt(np.nansum(parts**2, axis=0)), np.nan)

    def everywhere(self, key: str) -> np.ndarray:
        """Whether something holds in all runs, `[T]` bool."""
        return np.all([np.asarray(arrays[key], dtype=bool) for arrays in self.arrays], axis=0)


def measured(runs: Sequence[Run], name: str) -> Measured | None:
    """The analysis of runs of one recipe, under the options that most of them share; None if none has it."""
    found = [(run, *run.analysis(name, without=HEAVY)) for run in runs if name in run.analyses]
    if not found:
        return None
    keys = [json.dumps([_asked(said), [str(n) for n in arrays["name"]]], sort_keys=True) for _, arrays, said in found]
    most = max(keys, key=keys.count)
    same = [entry for entry, key in zip(found, keys, strict=True) if key == most]
    left = tuple(entry[0] for entry, key in zip(found, keys, strict=True) if key != most)
    return Measured(tuple(e[0] for e in same), tuple(e[1] for e in same), _asked(same[0][2]), left)


def analysed(rows: Sequence[Row], name: str) -> list[tuple[Row, Measured]]:
    """The rows whose runs have an analysis, each with what was found."""
    found = [(row, measured(row.every, name)) for row in rows]
    return [(row, m) for row, m in found if m]


def said(found: Sequence[tuple[Row, Measured]]) -> list[str]:
    """How the numbers were made: the options that all rows share, those that differ, and the runs left out."""
    flat = {row.name: _flat(m.asked) for row, m in found}
    keys = dict.fromkeys(key for asked in flat.values() for key in asked)
    same, notes = [], []
    for key in keys:
        values: dict[str, list[str]] = {}
        for name, asked in flat.items():
            values.setdefault(asked.get(key, "–"), []).append(name)
        if len(values) == 1:
            same.append(f"{key} {next(iter(values))}")
        else:
            notes.append(apart_in(key, values, len(flat)))
    several = [f"{row.name} ({len(m.runs)} seeds)" for row, m in found if len(m.runs) > 1]
    if several:
        notes.append(f"Means over seeds: {', '.join(several)}.")
    for row, m in found:
        for run in m.left:
            notes.append(f"Analysed under other options, left out: {row.name}, seed {run.seed}.")
    return [f"Made with {', '.join(same)}.", *notes]


def random_error(m: Measured) -> np.ndarray:
    """The spread over random directions, and over seeds."""
    return np.sqrt(np.nansum([m.mean("random_sd") ** 2, m.seeds("random") ** 2], axis=0))


def directions(m: Measured, reach: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd `[T, R]` of the losses along a line, over directions and seeds together."""
    losses = m.stack(f"{reach}_losses")  # [runs, T, D, R]
    pooled = np.concatenate(list(losses), axis=1)
    sd = pooled.std(axis=1, ddof=1) if pooled.shape[1] > 1 else np.full_like(pooled[:, 0], np.nan)
    return pooled.mean(axis=1), sd


def amplification_error(m: Measured, kind: str) -> np.ndarray:
    """`[T, M]`: the standard error of the second moment over the plain one, and the sd over seeds."""
    plain = m.stack(f"{kind}_second")[..., :1]
    batches = np.sqrt(np.mean((m.stack(f"{kind}_second_error") / plain) ** 2, axis=0))
    return np.sqrt(np.nansum([batches**2, m.seeds(f"{kind}_amplification") ** 2], axis=0))


def _asked(said: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in dict(said.get("options") or {}).items() if key != "name"}
    return {"split": said.get("split"), "loss": said.get("loss"), "options": options}


def _flat(asked: Mapping[str, Any]) -> dict[str, str]:
    """Options by name, as text; what was left empty is not told."""
    options = {"split": asked["split"], "loss": asked["loss"], **asked["options"]}
    return {key: _spelled(value) for key, value in options.items() if value not in (None, "")}


def _spelled(value: Any) -> str:
    if isinstance(value, Mapping):
        rest = ", ".join(f"{k} {v}" for k, v in value.items() if k != "name" and v is not None)
        return f"{value.get('name', '')} ({rest})" if rest else str(value.get("name", ""))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
