"""The run directory `<out>/<recipe path>/<seed>/`: each file written whole or not at all, read as one value.

recipe.yaml        the resolved recipe, defaults included
log.jsonl          one JSON row per epoch
scores.json        the test scores; it exists once the run is finished
logits.npz         test logits [N, C] and labels [N]
model.safetensors  the trained weights
env.json           versions, device, git, seconds, dtype
open.json          scores beside images of unknown classes, by open set and threshold, if any were asked for
analysis/          <name>.npz and <name>.json of every finished analysis: its arrays, its options
export/            the model for use elsewhere, if it was exported: safetensors, torch.export, ONNX, and a card
.lock.<n>          who is training it, while someone does (lock.py)
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .lock import locked as locked
from .lock import refuse_held as refuse_held

RECIPE, LOG, SCORES, ENV = "recipe.yaml", "log.jsonl", "scores.json", "env.json"
LOGITS, MODEL, ANALYSIS, OPEN = "logits.npz", "model.safetensors", "analysis", "open.json"


# ---- writing -----------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; it replaces `path` when the block ends well, otherwise it is removed.

    Whatever happens (an exception, a full disk, `kill -9`), `path` holds its old content or the new one.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a text file (UTF-8) whole or not at all; bytes of a path that are no UTF-8 are spelled as in JSON."""
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; numbers that are not finite become null, arrays become lists."""
    write_text(path, _spelled(_plain(value)) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz` whole or not at all."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_logits(run: Path, logits: np.ndarray, y: np.ndarray) -> None:
    """Write `logits.npz` of a run directory: logits [N, C] as float32, y [N] as int64."""
    write_arrays(run / LOGITS, {"logits": logits.astype(np.float32), "y": y.astype(np.int64)})


def create(out: Path, label: str, seed: int, *, recipe: str) -> Path:
    """Make, or open again, the run directory `out/label/seed` of a recipe's text; return its path.

    Raises ValueError if the directory already holds another recipe: one of another identity, where both texts begin
    with theirs. A directory in which nothing has come of its recipe takes the new one.
    """
    run = Path(out) / label / str(seed)
    run.mkdir(parents=True, exist_ok=True)
    path = run / RECIPE
    if not path.exists() or not _same(path, recipe):
        if {entry.name for entry in run.iterdir()} > {RECIPE}:
            raise ValueError(f"{run} already holds another recipe: choose another --out, or delete the directory")
        write_text(path, recipe)
    return run


def append_row(run: Path, row: Mapping[str, Any]) -> None:
    """Append one epoch's row to `log.jsonl`, on the disk on return; a torn last line is cut off first."""
    line = json.dumps(_plain(row), allow_nan=False, ensure_ascii=False) + "\n"
    with (run / LOG).open("a+b") as file:
        file.seek(0)
        written = file.read()
        file.truncate(written.rfind(b"\n") + 1)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def appender(run: Path) -> Callable[[Mapping[str, Any]], None]:
    """What appends rows to `log.jsonl`; before the first, the rows of its epoch and of later ones are cut off."""
    first = True

    def append(row: Mapping[str, Any]) -> None:
        nonlocal first
        if first:
            truncate_log(run, row["epoch"])
        first = False
        append_row(run, row)

    return append


def truncate_log(run: Path, epochs: int) -> list[dict[str, Any]]:
    """Keep the rows of the first `epochs` epochs in `log.jsonl` (to resume from there); return them."""
    rows = [row for row in read_log(run) if row["epoch"] < epochs]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(run / LOG, text)
    return rows


# ---- reading -----------------------------------------------------------------------------------------------


def read_log(run: Path) -> list[dict[str, Any]]:
    """The rows of `log.jsonl`, one per epoch; a torn last line (from `kill -9`) is dropped.

    Raises ValueError naming the line if any other line is damaged.
    """
    path, rows = run / LOG, []
    for number, line in enumerate(_lines(path), start=1):
        try:
            row = json.loads(line)
            row["epoch"] + 0
        except (ValueError, TypeError, KeyError) as error:
            remedy = "delete the run directory and train again"
            raise ValueError(f"{path}, line {number}: not the JSON row of an epoch; {remedy}") from error
        rows.append(row)
    return rows


def epochs_logged(run: Path) -> int:
    """How many epochs `log.jsonl` has, without looking into them."""
    return len(_lines(run / LOG))


def read_logits(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """The test logits [N, C] (float32) and labels [N] (int64) of a run directory.

    Raises FileNotFoundError if there are none, ValueError naming the file if they are damaged.
    """
    path = run / LOGITS
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: finish the run with `flattail train --resume`")
    try:
        with np.load(path) as arrays:
            return arrays["logits"], arrays["y"]
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}); write it again with `flattail evaluate`") from error


def read(path: Path, *, root: Path | None = None) -> "Run":
    """Read one run directory; its label is the recipe's path below `root`, else the recipe directory's name.

    Raises FileNotFoundError if it is no run directory, ValueError naming the file if one is damaged.
    """
    path, place = Path(path), Path(path).absolute().parent
    if not (path / RECIPE).is_file():
        raise FileNotFoundError(f"{path} holds no {RECIPE}: give a run directory, <recipe>/<seed>")
    if not path.absolute().name.isdigit():
        raise ValueError(f"{path}: a run directory is named by its seed, a number; rename it")
    top = Path(root).absolute() if root else place
    return Run(
        path=path,
        label=place.relative_to(top).as_posix() if top in place.parents else place.name,
        seed=int(path.absolute().name),
        text=(path / RECIPE).read_text(encoding="utf-8", errors="replace"),
        recipe=_recipe(path / RECIPE),
        rows=tuple(read_log(path)),
        scores=_scores(path / SCORES) if (path / SCORES).exists() else None,
        env=_json(path / ENV, "delete it") if (path / ENV).exists() else {},
    )


def find(paths: Iterable[Path | str]) -> list["Run"]:
    """All runs at or below the paths, each once: in the order of the paths, then by label, then by seed.

    Raises FileNotFoundError for a path that does not exist.
    """
    found: dict[Path, Run] = {}
    for root in map(Path, paths):
        if not root.exists():
            raise FileNotFoundError(f"{root} does not exist: give run directories, or folders that hold some")
        places = (path.parent for path in root.rglob(RECIPE) if path.parent.absolute().name.isdigit())
        runs = [read(place, root=root) for place in places if place.resolve() not in found]
        found |= {run.path.resolve(): run for run in sorted(runs, key=lambda r: (r.label, r.seed))}
    return list(found.values())


@dataclass(frozen=True)
class Run:
    """One run directory, as it was read."""

    path: Path  # the directory
    label: str  # the recipe's path, as in `digits-lt/ce`
    seed: int  # the seed, which is the directory's name
    text: str  # the resolved recipe as written
    recipe: Mapping[str, Any]  # the same, parsed
    rows: tuple[Mapping[str, Any], ...]  # `log.jsonl`, a row per epoch
    scores: Mapping[str, Any] | None  # `scores.json`; None until the run is finished
    env: Mapping[str, Any]  # `env.json`

    @property
    def finished(self) -> bool:
        """Whether the run has its test scores."""
        return self.scores is not None

    @property
    def epochs(self) -> int:
        """The epochs that the recipe asks for, over all stages."""
        return sum(int(stage["epochs"]) for stage in self.recipe["stages"])

    @property
    def key(self) -> str:
        """A hash of the recipe's identity and title, else of all but its seed: runs that share it may be averaged."""
        told = _identity(self.text)
        recipe: Any = {name: value for name, value in self.recipe.items() if name != "seed"}
        text = json.dumps([told, self.recipe.get("title")] if told else recipe, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def logits(self) -> tuple[np.ndarray, np.ndarray]:
        """The test logits [N, C] (float32) and labels [N] (int64); see `read_logits`."""
        return read_logits(self.path)

    @property
    def opened(self) -> dict[str, Any]:
        """What `open.json` holds, by open set and threshold; nothing if the run never met one."""
        path = self.path / OPEN
        return _json(path, "delete it, and write it again with `flattail evaluate --open`") if path.exists() else {}

    @property
    def analyses(self) -> tuple[str, ...]:
        """The names of the finished analyses, in alphabetical order."""
        arrays = (self.path / ANALYSIS).glob("[!.]*.npz")
        return tuple(sorted(path.stem for path in arrays if path.with_suffix(".json").exists()))

    def analysis(self, name: str, *, without: Collection[str] = ()) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A finished analysis: its arrays, a row per class or group, and what was asked (options, split, loss, …).

        `without`: arrays that are not wanted, and so not read. Raises FileNotFoundError if the analysis has not been
        made, ValueError naming the file if one is damaged.
        """
        path = self.path / ANALYSIS / f"{name}.npz"
        if name not in self.analyses:
            raise FileNotFoundError(f"{path} is not finished: make it with `flattail analyse {self.path} {name}`")
        remedy = f"delete it and make it again with `flattail analyse {self.path} {name}`"
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files if key not in without}
            if "name" not in arrays or not arrays["name"].ndim:
                raise ValueError("it names no class")
        except Exception as error:
            raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
        return arrays, _json(path.with_suffix(".json"), remedy)


# ---- details -----------------------------------------------------------------------------------------------


def _spelled(value: Any, margin: str = "") -> str:
    """JSON with a line for every entry of an object, and lists in one line."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    inner = margin + " "
    lines = [f"{inner}{json.dumps(name)}: {_spelled(entry, inner)}" for name, entry in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{margin}}}"


def _plain(value: Any) -> Any:
    """The value in JSON's own types, with null for every number that is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _lines(log: Path) -> list[bytes]:
    """The whole lines of a log; what comes after the last line's end was torn off."""
    return log.read_bytes().rpartition(b"\n")[0].splitlines() if log.exists() else []


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _identity(text: str) -> str | None:
    """What the first line of a recipe calls it, if it does."""
    found = re.match(r"# identity: (\w+)\n", text)
    return found and found.group(1)


def _same(path: Path, recipe: str) -> bool:
    """Whether a recipe file holds what a text says."""
    there, asked = _recipe(path), yaml.safe_load(recipe)
    known = _identity(path.read_text(encoding="utf-8")), _identity(recipe)
    return known[0] == known[1] if all(known) else there == asked


def _recipe(path: Path) -> dict[str, Any]:
    remedy = "delete the run directory and train again"
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML; {remedy}") from error
    missing = [name for name in ("data", "model", "stages") if name not in (recipe or {})]
    if not isinstance(recipe, dict) or missing:
        raise ValueError(f"{path} is no resolved recipe (it lacks {', '.join(missing) or 'keys'}); {remedy}")
    return recipe


def _json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON; {remedy}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; {remedy}")
    return value


def _scores(path: Path) -> dict[str, Any]:
    remedy = "write it again with `flattail evaluate`, or delete it and resume the run"
    value = _json(path, remedy)
    missing = [name for name in ("scores", "counts", "names") if name not in value]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {remedy}")
    return value
