"""A recipe: an experiment as a tree of frozen values. YAML is its spelling; `read` checks it, `run` runs it."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import types
import typing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

import pydantic
import yaml

from .averages import AVERAGES, Average
from .constraints import CONSTRAINTS, Constraint
from .data import AUGMENTS, DATASETS, MIXES, SAMPLERS, SHOTS, LongTail, Shots
from .data.halves import Augment
from .data.mix import Mix
from .data.samplers import Sampler
from .losses import LOSSES, Loss
from .models import ADAPTERS, MODELS, Adapter, Model
from .optim import OPTIMS, SCHEDULES, Optim, Schedule
from .sharp import METHODS, RADII, Method, Radius
from .stage import Stage, refuse_misfits
from .starts import STARTS, Start


class Dataset(Protocol):
    """What a data set is: a frozen value that finds its images under a root."""

    def load(self, root: Path) -> LongTail:
        """The images and labels."""
        ...


@dataclass(frozen=True)
class EvaluationProtocol:
    """How the model is chosen and judged."""

    selection: Literal["last", "best-on-val", "best-on-test"] = "last"  # which epoch's weights are judged
    validation: float = 0.0  # share of each class kept out of training to choose by; 0: none
    views: Literal["one", "flip"] = "one"  # "flip": logits averaged over an image and its mirror

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation: a share in [0, 1), e.g. 0.1, and not {self.validation}")


@dataclass(frozen=True)
class Expect:
    """The result this recipe is meant to give, and where that is known from."""

    accuracy: float | None = None  # percent, over all classes
    source: str = ""  # paper and table, or where it was measured
    status: Literal["paper-only", "smoke", "measured"] = "paper-only"  # measured: by us, under the full protocol


@dataclass(frozen=True)
class Tracker:
    """An experiment tracker, through Accelerate."""

    name: Literal["tensorboard", "wandb", "mlflow"]  # an extra of the package: pip install 'flattail[wandb]'
    project: str = "flattail"  # W&B's project, MLflow's experiment, TensorBoard's folder
    entity: str | None = None  # W&B's team or user
    run: str | None = None  # the run's name; by default recipe and seed
    mode: Literal["online", "offline"] = "online"  # W&B's; offline runs are sent later by `wandb sync`


@dataclass(frozen=True)
class Recipe:
    """Data, a model, stages of training, and how to judge the result.

    Raises ValueError for what cannot be judged as asked.
    """

    data: Dataset  # `flattail list data`
    model: Model  # `flattail list models`
    stages: tuple[Stage, ...]  # one after the other; deferred re-weighting is a second stage
    title: str = ""  # the row's name in tables
    protocol: EvaluationProtocol = EvaluationProtocol()  # how the model is chosen and judged
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of forward and backward passes; fp16 needs a GPU
    compile: bool = False  # torch.compile the model, or for head methods its backbone
    sync_batchnorm: bool = False  # BatchNorm over the batches of all processes at once; needs several GPUs to differ
    tracker: Tracker | None = None  # where rows of the log go as well
    expect: Expect | None = None  # the result that this recipe is meant to give
    notes: tuple[str, ...] = ()  # which settings are the paper's, which the released code's, which ours

    def __post_init__(self) -> None:
        refuse_misfits(self.stages)
        own = head = getattr(self.model, "head", None)
        for i, stage in enumerate(self.stages):
            wanted, head = getattr(stage.loss, "head", None), head and stage.start.kind(head)
            if wanted is not None and head is not None and wanted != head:
                place = "model.head" if head == own else "the one that `start` makes"
                raise ValueError(
                    f"stages[{i}].loss: {type(stage.loss).__name__} needs a {wanted} head, but {place} is {head}: "
                    f"write `head: {wanted}`"
                    + f", or the loss's `cosine: {str(head == 'cosine').lower()}`"
                    * hasattr(stage.loss, "cosine")
                )


# -- the tables ------------------------------------------------------------------------------------------

TABLES: dict[Any, dict[str, Any]] = {
    Dataset: DATASETS,
    Model: MODELS,
    Adapter: ADAPTERS,
    Method: METHODS,
    Loss: LOSSES,
    Sampler: SAMPLERS,
    Optim: OPTIMS,
    Schedule: SCHEDULES,
    Augment: AUGMENTS,
    Mix: MIXES,
    Start: STARTS,
    Average: AVERAGES,
    Constraint: CONSTRAINTS,
    Shots: SHOTS,
    Radius: RADII,
}
NAMES = {cls: name for table in TABLES.values() for name, cls in table.items()}
MOVED = {  # fields that are not, or no longer, where they are looked for, and what to write
    "Stage.mixup": "write `mix: {name: mixup, alpha: ...}` with the number that stood there, or nothing where it was 0",
    "Timm.pretrained": "write `weights: timm` where it was true, or nothing",
} | {f"Recipe.{f.name}": f"it belongs to a stage: stages.0.{f.name}" for f in dataclasses.fields(Stage)}


WORDS = ("title", "notes", "expect", "tracker")  # what a recipe says beside what it does


# -- reading ---------------------------------------------------------------------------------------------


class RecipeError(ValueError):
    """A recipe that says something it cannot mean, with the place and the remedy."""


def read(source: Path | str, sets: typing.Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with `a.b=c` replaced for each of `sets`.

    Raises:
        RecipeError: naming the file and the place, with a guess at what was meant.
    """
    path = Path(source)
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe; `flattail list recipes` names those that come with flattail")
    try:
        recipe = from_tree(yaml.load(path.read_text(), _Loader))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    try:
        return changed(recipe, sets)
    except RecipeError as error:
        raise RecipeError(f"{path} with {', '.join(sets)}: {error}") from error


def changed(recipe: Recipe, sets: typing.Sequence[str]) -> Recipe:
    """The recipe with `a.b=c` replaced for each of `sets`. RecipeError, naming the place, where that cannot be.

    What is expected of a recipe is not expected of one that does something else.
    """
    if not sets:
        return recipe
    tree = to_tree(recipe)
    for assignment in sets:
        tree = replaced(tree, assignment)
    new = from_tree(tree)
    stale = new.expect == recipe.expect and identity(new) != identity(recipe)
    return dataclasses.replace(new, expect=None) if stale else new


class _Loader(yaml.SafeLoader):
    """YAML in which nothing is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(
                    f"line {line}: a name is needed before the colon, and this is no text; quote `{{...}}`"
                )
            if key.value in lines:
                raise RecipeError(
                    f"line {line}: `{key.value}` is there already, in line {lines[key.value]}: remove one of them"
                )
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def from_tree(tree: Any) -> Recipe:
    """The recipe that a tree of plain values spells."""
    recipe: Recipe = built(Recipe, tree, "recipe")
    return recipe


def built(kind: Any, raw: Any, place: str) -> Any:
    """A value of a kind (a dataclass, a choice from a table, a tuple of them, a plain type) from plain values."""
    if kind is Radius and not isinstance(raw, dict) and (not isinstance(raw, str) or is_number(raw)):
        return plain(float, raw, place)
    if kind in TABLES:
        return chosen(TABLES[kind], raw, place)
    if dataclasses.is_dataclass(kind):
        return constructed(kind, raw, place)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if raw is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        return built(inner[0], raw, place) if len(inner) == 1 else plain(kind, raw, place)
    if origin is tuple and args[-1] is Ellipsis:
        if isinstance(raw, dict) and typing.get_origin(args[0]) is tuple:
            raw = list(raw.items())  # a list of pairs
        if not isinstance(raw, (list, tuple)):
            raise RecipeError(f"{place}: a list is needed, not {raw!r}")
        return tuple(built(args[0], item, f"{place}[{i}]") for i, item in enumerate(raw))
    return plain(kind, raw, place)


def chosen(table: dict[str, type], raw: Any, place: str) -> Any:
    """A choice from a table: `name`, `{name: ..., field: ...}`, `name:value of its first field` or `module:Class`."""
    if isinstance(raw, str):
        raw = {"name": raw}
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise RecipeError(f"{place}: a name is needed, one of {', '.join(table)}; this is {raw!r}")
    name, fields = raw["name"], {k: v for k, v in raw.items() if k != "name"}
    if name in table:
        return constructed(table[name], fields, place)
    head, _, tail = name.partition(":")
    if tail and head in table:
        first = dataclasses.fields(table[head])[0].name
        return constructed(table[head], {first: tail} | fields, place)
    if tail:
        try:
            cls = getattr(importlib.import_module(head), tail)
        except (ImportError, AttributeError) as error:
            raise RecipeError(
                f"{place}: {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?"
            ) from error
        if not dataclasses.is_dataclass(cls):
            raise RecipeError(f"{place}: {name!r} is no dataclass, so it has no fields to read")
        return constructed(cls, fields, place)
    raise RecipeError(f"{place}: nothing is called {name!r}; {guess(name, table)}")


def constructed(cls: Any, raw: Any, place: str) -> Any:
    """A dataclass from its fields; unknown and missing ones are refused."""
    if not isinstance(raw, dict):
        raise RecipeError(f"{place}: the fields of a {cls.__name__} are needed, not {raw!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in raw:
        if key not in fields:
            remedy = MOVED.get(f"{cls.__name__}.{key}") or guess(str(key), fields)
            raise RecipeError(f"{place}: {cls.__name__} has no `{key}`; {remedy}")
    for name, f in fields.items():
        if name not in raw and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{place}: {cls.__name__} needs `{name}`")
    hints = typing.get_type_hints(cls)
    given = {name: named_as(fields[name].default, value) for name, value in raw.items()}
    values = {name: built(hints[name], value, f"{place}.{name}") for name, value in given.items()}
    try:
        return cls(**values)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"{place}: {error}") from error


def named_as(default: Any, raw: Any) -> Any:
    """Fields without a name are those of the default choice: `optim: {lr: 0.1}` is an SGD."""
    name = NAMES.get(type(default))
    return {"name": name} | raw if name and isinstance(raw, dict) and "name" not in raw else raw


def plain(kind: Any, raw: Any, place: str) -> Any:
    """A value of a plain type, checked by pydantic."""
    if isinstance(raw, bool) and kind in (int, float):
        raise RecipeError(f"{place}: a number is needed; this is {raw!r}")
    try:
        return pydantic.TypeAdapter(kind).validate_python(raw)
    except pydantic.ValidationError as error:
        said = "; ".join(dict.fromkeys(e["msg"] for e in error.errors()))
        raise RecipeError(f"{place}: {said}; this is {raw!r}") from error


def is_number(text: str) -> bool:
    """Whether a text spells a number, as `1e-4`, which YAML takes for a text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def guess(word: str, known: typing.Iterable[str]) -> str:
    """A guess at what was meant."""
    known = list(known)
    near = difflib.get_close_matches(word, known, 1, 0.5) or [k for k in known if k.replace("_", "") == word][:1]
    return f"did you mean `{near[0]}`?" if near else f"there is {', '.join(known) or 'nothing to set'}"


def replaced(tree: Any, assignment: str, *, option: str = "--set") -> Any:
    """The tree with `a.b.0.c=value` replaced, or `a.b.*.c=value` in every entry of b; values are YAML.

    RecipeError, naming the option that the assignment comes from, for a place that is not there.
    """
    path, equals, value = assignment.partition("=")
    if not equals:
        raise RecipeError(f"{option} {assignment}: write a.b=value, e.g. stages.0.method.rho=0.1")
    node, keys = tree, path.split(".")
    for depth, key in enumerate(keys):
        place = ".".join(["recipe", *keys[:depth]])
        if key == "*" and isinstance(node, list) and node:
            for i in range(len(node)):
                each = ".".join([*keys[:depth], str(i), *keys[depth + 1 :]])
                tree = replaced(tree, f"{each}={value}", option=option)
            return tree
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise RecipeError(
                    f"{option} {assignment}: {place} has {len(node)} entries, counted from 0, and no {key!r}"
                )
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
            if depth < len(keys) - 1 and key not in node:
                raise RecipeError(f"{option} {assignment}: {place} has no `{key}`; {guess(key, node)}")
        else:
            raise RecipeError(f"{option} {assignment}: {place} is {node!r} and has no `{key}`")
        if depth < len(keys) - 1:
            if node[index] is None or isinstance(node[index], str):  # not set yet, or a bare name
                node[index] = {"name": node[index]} if node[index] else {}
            node = node[index]
    old = node[index] if isinstance(node, list) else node.get(index)
    try:
        new = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"{option} {assignment}: {value!r} is not YAML ({' '.join(str(error).split())})") from error
    if index == "name" and isinstance(node, dict) and old != new:
        keep_fields(node, new)
    else:
        node[index] = new
    return tree


def keep_fields(node: dict[str, Any], name: str) -> None:
    """Change what is chosen, keeping the fields that the new choice has as well."""
    head = str(name).partition(":")[0]
    table = next((t for t in TABLES.values() if node.get("name") in t and head in t), None)
    node["name"] = name
    if table is not None:
        known = [f.name for f in dataclasses.fields(table[head])][":" in name :]
        for field in [f for f in node if f != "name" and f not in known]:
            del node[field]


# -- writing ---------------------------------------------------------------------------------------------


def to_tree(value: Any, *, defaults: bool = True) -> Any:
    """The tree of plain values that spells a value; with or without fields that have their defaults."""
    if isinstance(value, (list, tuple)):
        return [to_tree(v, defaults=defaults) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if not dataclasses.is_dataclass(value):
        return value
    cls = type(value)
    own = isinstance(value, (Recipe, Stage, EvaluationProtocol, Expect, Tracker))
    named = {} if own else {"name": NAMES.get(cls, f"{cls.__module__}:{cls.__name__}")}
    fields = {
        f.name: to_tree(getattr(value, f.name), defaults=defaults)
        for f in dataclasses.fields(value)
        if f.init and (defaults or getattr(value, f.name) != f.default)
    }
    spelled = named | fields
    return named["name"] if named and not fields and not defaults else spelled


def write(recipe: Recipe, *, defaults: bool = True) -> str:
    """The YAML of a recipe; `from_tree(yaml.safe_load(write(r))) == r`."""
    tree = to_tree(recipe, defaults=defaults)
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Lists of mappings are indented, as people write them, and sentences stand a line each."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        sentences = any(isinstance(item, str) and " " in item for item in sequence)
        return super().represent_sequence(tag, sequence, False if sentences else flow_style)


def identity(recipe: Recipe) -> str:
    """What tells recipes apart: a hash of what they do.

    Words (`WORDS`) and fields at their defaults are left out, so that neither a better title nor a field that a later
    version brings makes another recipe of it; a float given as 20 is 20.0.
    """
    tree = to_tree(from_tree(to_tree(recipe)), defaults=False)
    text = yaml.safe_dump({name: inner for name, inner in tree.items() if name not in WORDS}, allow_unicode=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def signed(recipe: Recipe) -> str:
    """The resolved recipe below a line with its identity, as run directories hold it."""
    return f"# identity: {identity(recipe)}\n{write(recipe)}"


# -- where recipes live ------------------------------------------------------------------------------------


def shipped() -> Path:
    """The folder of the recipes that come with flattail."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def found(names: typing.Iterable[str]) -> list[Path]:
    """The recipe files that names mean: a file, a folder of them, or the path of one that comes with flattail."""
    paths: list[Path] = []
    for name in names:
        options = [Path(name), shipped() / name, shipped() / f"{name}.yaml"]
        if name.startswith("recipes/"):
            options += [shipped() / name.removeprefix("recipes/")]
        path = next((p for p in options if p.exists()), None)
        if path is None:
            beside = [str(p) for p in Path(name).parent.glob("*.yaml")]
            near = difflib.get_close_matches(name, beside, 1, 0.6)
            known = [label(p) for p in sorted(shipped().rglob("*.yaml"))]
            near += difflib.get_close_matches(name.removeprefix("recipes/").removesuffix(".yaml"), known, 1, 0.5)
            remedy = f"did you mean {near[0]}?" if near else "`flattail list recipes` names those there are"
            raise RecipeError(f"{name}: no such recipe; {remedy}")
        inside = sorted([*path.rglob("*.yaml"), *path.rglob("*.yml")]) if path.is_dir() else [path]
        if not inside:
            raise RecipeError(f"{name}: the folder holds no recipe (*.yaml)")
        paths += inside
    return list(dict.fromkeys(paths))


def label(path: Path) -> str:
    """What a recipe's runs are called: its path below the recipes' folder, or folder and name."""
    path = path.resolve()
    if path.is_relative_to(shipped().resolve()):
        return path.relative_to(shipped().resolve()).with_suffix("").as_posix()
    return f"{path.parent.name}/{path.stem}" if path.parent.name else path.stem
