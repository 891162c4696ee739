"""The layering: who may import whom, over the syntax trees of `flattail/`. To change it, edit MAY, in the open."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flattail"
TORCH = {"torch", "torchvision", "timm", "accelerate"}

# room -> rooms of flattail and libraries it may import; the standard library is free
MAY: dict[str, set[str]] = {
    "sharp": {"torch"},
    "losses": {"torch", "sharp"},
    "scores": {"torch"},
    "openset": {"torch", "sklearn"},
    "priors": {"torch", "numpy", "yaml", "scores"},
    "analysis": {"torch", "numpy", "scipy", "sharp"},
    "optim": {"torch"},
    "data": {"torch", "torchvision", "sklearn", "numpy", "PIL"},
    "models": {"torch", "torchvision", "timm"},
    "lock": {"psutil"},
    "runs": {"lock", "numpy", "safetensors", "yaml"},
    "report": {"runs", "numpy", "scipy", "matplotlib", "jinja2", "yaml", "markupsafe"},
    "starts": {"torch", "models", "scores"},
    "averages": {"torch"},
    "constraints": {"torch", "models"},
    "stage": {"torch", "sharp", "losses", "data", "optim", "starts", "averages", "constraints"},
    "closures": {"torch", "sharp", "losses", "data", "stage"},
    "checkpoint": {"torch", "accelerate", "runs"},
    "answers": {"torch", "data"},
    "devices": {"torch", "accelerate", "stage"},
    "batches": {"torch", "accelerate", "data", "stage", "closures"},
    "epoch": {"torch", "accelerate", "sharp", "data", "stage", "closures", "checkpoint", "batches", "devices"},
    "train": {
        "torch", "accelerate", "data", "stage", "starts", "averages", "checkpoint", "answers", "batches", "devices",
        "epoch",
    },
    "recipe": {
        "pydantic", "yaml", "sharp", "losses", "data", "models", "optim", "stage", "starts", "averages",
        "constraints",
    },
    "rebuilt": {"torch", "safetensors", "data", "recipe", "runs", "starts"},
    "probe": {"torch", "batches", "closures", "data", "devices", "rebuilt", "recipe", "stage", "starts"},
    "possible": {"torch", "batches", "data", "recipe", "sharp", "stage", "starts"},
    "experiment": {
        "torch", "accelerate", "safetensors", "possible", "rebuilt", "recipe", "runs", "scores", "train", "sharp",
        "data", "checkpoint", "devices", "flattail", "stage",
    },
    "rescored": {"torch", "answers", "devices", "experiment", "rebuilt", "runs", "scores", "stage"},
    "examine": {
        "torch", "accelerate", "numpy", "yaml", "analysis", "devices", "rebuilt", "recipe", "runs", "data", "losses",
        "sharp",
    },
    "worlds": {
        "torch", "yaml", "openset", "priors", "answers", "devices", "rebuilt", "recipe", "rescored", "runs", "sharp",
        "starts", "data", "losses",
    },
    "classifier": {"torch", "data", "rebuilt", "recipe", "runs", "worlds"},
    "predict": {"torch", "classifier", "data", "devices", "priors"},
    "export": {
        "torch", "safetensors", "yaml", "jinja2", "onnx", "onnxruntime", "onnxscript", "classifier", "data", "models",
        "rebuilt", "recipe", "runs", "starts",
    },
    "imported": {
        "torch", "safetensors", "recipe", "rebuilt", "runs", "experiment", "models", "stage", "starts", "train",
    },
    "catalogue": {"yaml", "recipe", "sharp", "data", "models", "stage"},
    "advice": {
        "torch", "torchvision", "timm", "huggingface_hub", "accelerate", "psutil", "PIL", "answers", "batches",
        "closures", "data", "devices", "losses", "models", "optim", "rebuilt", "recipe", "sharp", "stage", "starts",
    },
    "jobs": {"torch", "rich", "devices", "recipe", "experiment", "runs", "checkpoint"},
    "sweep": {
        "torch", "yaml", "optuna", "matplotlib", "checkpoint", "data", "devices", "experiment", "jobs",
        "possible", "rebuilt", "recipe", "report", "runs", "scores", "train",
    },
    "cli": {
        "typer", "rich", "catalogue", "recipe", "rebuilt", "possible", "rescored", "probe", "experiment", "jobs",
        "examine", "imported", "worlds", "priors", "scores", "report", "runs", "classifier", "predict", "export",
        "data", "flattail", "sweep", "advice", "devices",
    },
    "__main__": {"cli"},
    "flattail": set(),  # flattail/__init__.py imports nothing: its names come on first use
}  # fmt: skip


def room(path: Path) -> str:
    """The room a file is in: its folder or its own name below flattail/."""
    inside = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "flattail" if inside == "__init__" else inside


def imported(path: Path) -> set[str]:
    """Rooms and libraries that a file imports, in functions as well; those under TYPE_CHECKING too."""
    at = ("flattail", *path.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = at[: len(at) - node.level + 1] if node.level else ()
            whole = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{whole}.{alias.name}" for alias in node.names] if whole == "flattail" else [whole]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            inside = first == "flattail" and rest and not rest[0].startswith("__")
            found.add(rest[0] if inside else first)
    return found - set(sys.stdlib_module_names) - {room(path)}


def edges() -> dict[str, set[str]]:
    all_of: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        all_of.setdefault(room(path), set()).update(imported(path))
    return all_of


def test_who_imports_whom():
    assert {r: names - MAY.get(r, set()) for r, names in edges().items() if names - MAY.get(r, set())} == {}


def test_the_rooms_are_those_there_are_and_have_no_cycle():
    found = edges()
    assert found.keys() <= MAY.keys()
    rooms = {r: {n for n in MAY[r] if n in MAY} for r in MAY}
    order = list(TopologicalSorter(rooms).static_order())  # raises CycleError
    assert order.index("sharp") < order.index("train") < order.index("experiment") < order.index("cli")


def test_no_file_is_a_drawer():
    drawers = {"utils", "util", "base", "common", "helpers", "helper", "misc", "core", "lib"}
    names = {
        p.stem
        for folder in ("flattail", "tests", "recipes", "examples", "benchmarks")
        for p in (ROOT / folder).rglob("*.py")
    }
    assert not names & drawers


def test_a_methods_name_occurs_where_methods_live_and_nowhere_else():
    compares = PACKAGE / "analysis" / "escape.py"  # an experiment on a saddle, which names what it compares
    for path in PACKAGE.rglob("*.py"):
        if room(path) in ("sharp", "flattail") or path == compares:
            continue
        tree = ast.parse(path.read_text())
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
            n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
        }
        names |= {a.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
        docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
        texts = {
            n.value
            for n in ast.walk(tree)
            if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs
        }
        for word in ("ssesam", "imbsam", "ccsam", "focalsam"):
            assert not any(word in text.lower() for text in names | texts), f"{path.name}: {word}"


COMMAND = """import sys; sys.argv = ["flattail", "{}", "-h"]
try: import flattail.__main__
except SystemExit: pass"""
IMPORTS = [
    ("import flattail", TORCH | {"numpy", "typer", "yaml"}),
    ("import flattail; dir(flattail)", TORCH),
    ("import flattail.runs", TORCH),
    ("import flattail.report, flattail.runs", TORCH),
    ("import flattail.cli", TORCH | {"numpy", "matplotlib"}),
    (f"{COMMAND.format('--help')}", TORCH),
    (f"{COMMAND.format('train')}", TORCH),
    ("import flattail.sharp", {"torchvision", "timm", "accelerate", "sklearn", "flattail.losses", "flattail.data"}),
]


@pytest.mark.parametrize(("code", "never"), IMPORTS, ids=lambda v: v if isinstance(v, str) else "")
def test_what_an_import_loads(code, never):
    ask = f"{code}\nimport sys; print([m for m in {sorted(never)} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_resolves():
    import flattail

    for name in flattail.NAMES:
        assert getattr(flattail, name) is not None
    promised = {
        "SharpnessAware", "ERM", "SAM", "ASAM", "ImbSAM", "SSESAM", "FocalSAM", "CCSAM", "Split", "CE", "Focal", "LDAM",
        "VS", "LA", "LongTail", "Recipe", "fit", "evaluate",
    }  # fmt: skip
    assert promised <= set(dir(flattail))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        flattail.nothing  # noqa: B018
