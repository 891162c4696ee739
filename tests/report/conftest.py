"""Made-up run directories whose numbers agree with each other: log, scores, logits, environment and analyses."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from flattail import runs

COUNTS = (130, 96, 71, 52, 38, 28, 21, 15, 11, 8)
SIZES = {"many": 1, "medium": 6, "few": 3}


def scores_of(logits, y, counts):
    """Scores by NumPy, as scores.json holds them."""
    n = len(counts)
    confusion = np.zeros((n, n), int)
    np.add.at(confusion, (y, logits.argmax(1)), 1)
    recall = confusion.diagonal() / confusion.sum(1)
    counts = np.array(counts)
    members = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    sure, hit = p.max(1), logits.argmax(1) == y
    bins = np.minimum((sure * 15).astype(int), 14)
    ece = sum(abs(hit[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins))
    return {
        "n": len(y),
        "all": float((logits.argmax(1) == y).mean()),
        "per_class": recall,
        "groups": {g: float(recall[m].mean()) if m.any() else float("nan") for g, m in members.items()},
        "sizes": {g: int(m.sum()) for g, m in members.items()},
        "balanced": float(recall.mean()),
        "worst": float(recall.min()),
        "gmean": float(np.exp(np.log(np.maximum(recall, 1e-9)).mean())),
        "ece": float(ece),
        "nll": float(-np.log(p[np.arange(len(y)), y]).mean()),
        "confusion": confusion,
    }


@pytest.fixture
def make(tmp_path):
    """`make("ce", 0, tail=…)` writes a run directory below tmp_path/runs and returns its path."""
    return lambda label, seed, **options: write(tmp_path / "runs", label, seed, **options)


@pytest.fixture
def analyse():
    """`analyse(path, "hessian", lambda_min=…)` writes an analysis of a run, its arrays made up but for those given."""
    return write_analysis


@pytest.fixture(scope="session")
def written():
    """What writes a run and an analysis, for a page that a whole module shares."""
    return write, write_analysis


METHODS = ("plain", "sam 0.1", "other")


def made_up(name, names, counts, rng):
    """Arrays as the analyses return them, one row per name."""
    n = len(names)
    steep = 200.0 / np.maximum(np.array(counts), 1)
    yes, no = np.ones(n, bool), np.zeros(n, bool)
    if name == "hessian":
        low, high = -0.02 * steep, 0.5 * steep
        nodes = np.sort(rng.uniform(low[:, None, None], high[:, None, None], (n, 2, 12)), axis=2)
        nodes[:, 1, -1] = np.nan  # stopped early
        masses = np.where(np.isnan(nodes), np.nan, 1 / 12)
        base = {"lambda_max": high, "lambda_min": low, "ratio": -low / high, "trace": 3 * high}
        base |= {"negative_mass": np.full(n, 0.1), "negative_share": np.full(n, 0.05)}
        arrays = dict(base) | {f"{key}_samples": 0.1 * abs(value) for key, value in base.items()}
        arrays |= {f"{key}_probes": 0.01 * abs(value) for key, value in base.items() if key != "ratio"}
        return arrays | {
            "nodes": nodes, "masses": masses, "converged": yes, "single": no, "count": np.array(counts),
            "samples": np.array(counts), "gradient_norm": 0.1 * steep, "loss": 0.01 * steep,
        }  # fmt: skip
    if name == "radius":
        arrays = {"count": np.array(counts), "samples": np.array(counts), "single": no, "loss": 0.01 * steep}
        for scope, size in (("all", 1.0), ("head", 0.1)):
            for key in ("gradient_norm", "rho", "bound", "first_order", "square_root"):
                arrays[f"{key}_{scope}"] = size * steep * (1 + rng.random(n))
            arrays[f"says_something_{scope}"] = yes if scope == "head" else no
        return arrays
    if name == "sharpness":
        arrays = {key: 0.01 * steep * (1 + rng.random(n)) for key in ("loss", "gap", "common", "radius")}
        return arrays | {"random": 1e-5 * rng.standard_normal(n), "random_sd": np.full(n, 1e-5), "single": no}
    if name == "landscape":
        arrays = {}
        for reach, most in (("near", 0.5), ("far", 5.0)):
            ratio = np.linspace(0, most, 5)
            arrays[f"{reach}_ratio"] = ratio
            arrays[f"{reach}_losses"] = 0.1 + steep[:, None, None] * ratio**2 * rng.uniform(0.5, 1.5, (n, 3, 1))
        x = np.linspace(-1, 1, 7)
        bowl = 0.01 + (x**2 + x[:, None] ** 2) * steep[:, None, None]
        return arrays | {"plane_x": x, "plane_y": x, "plane_losses": bowl}
    arrays = {"lambda_min": -0.02 * steep, "direction": np.zeros((n, 9)), "method": np.array(METHODS)}
    for kind in ("own", "mixed"):
        second = steep[:, None] * np.array([1.0, 1.2, 4.0])
        arrays |= {f"{kind}_second": second, f"{kind}_second_error": 0.1 * second}
        arrays |= {f"{kind}_amplification": second / second[:, :1], f"{kind}_predicted": second / second[:, :1]}
    return arrays


def write_analysis(run, name, *, names=None, counts=COUNTS, options=None, seed=0, **arrays):
    """One finished analysis of a run directory."""
    groups = {"many": 130, "medium": 306, "few": 34, "all": 470}
    names = [*map(str, range(len(counts))), *groups] if names is None else names
    known = dict(enumerate(counts))
    of = [known.get(int(each)) if each.isdigit() else groups[each] for each in names]
    found = {"name": np.array(names)} | made_up(name, names, of, np.random.default_rng(seed)) | arrays
    folder = run / runs.ANALYSIS
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", **found)
    asked = {"name": "made up", "samples": 60, "seed": 0} | (options or {})
    runs.write_json(folder / f"{name}.json", {"options": asked, "split": "train", "loss": "ce", "seconds": 1.5})


def write(
    out: Path,
    label: str,
    seed: int,
    *,
    title: str | None = None,
    counts=COUNTS,
    names=None,
    head: float = 3.2,
    tail: float = 1.2,
    terms=(),
    method=None,
    loss="ce",
    epochs: int = 20,
    stages: int = 1,
    done: int | None = None,
    data="digits-LT (IF 16)",
    fingerprint="5f1c0a9e",
    expect=None,
    warnings=(),
    model=None,
    test: bool = False,
    recipe=None,
    **scores,
) -> Path:
    """One run: class margins fall from `head` to `tail` along the counts; with `done` it is unfinished."""
    n = len(counts)
    tree = {
        "title": title or label,
        "data": {"name": "digits-lt", "imbalance": 16},
        "model": model or {"name": "resnet20"},
        "stages": [
            {"epochs": epochs // stages, "method": method or {"name": "erm"}, "loss": {"name": loss}}
            for _ in range(stages)
        ],
        "expect": expect,
    } | (recipe or {})
    run = runs.create(out, label, seed, recipe=yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    rng = np.random.default_rng([seed, n, round(1000 * tail), round(1000 * head)])
    final = 0.03 + 0.05 * rng.random()
    for epoch in range(epochs if done is None else done):
        t = (epoch + 1) / epochs
        row = {
            "epoch": epoch,
            "stage": epoch * stages // epochs,
            "epochs": epochs,
            "loss": float((2.3 + 0.4 * tail) * np.exp(-(5 - tail) * t) + final + 0.03 * rng.random()),
            "accuracy": float(1 - 0.85 * np.exp(-(5 - tail) * t) - 0.02 * rng.random()),
            "lr": 0.1 * (1 - t),
            "seconds": 0.8 + 0.1 * rng.random(),
            "images": int(sum(counts)),
            "terms": {"plain": {"gap": None, "radius": None, "active": 1.0}} if not terms else {},
        }
        for i, term in enumerate(terms):
            gap = (0.1 + 0.06 * (i % 5)) * np.exp(-2 * t) * (1 + 0.2 * rng.random())
            row["terms"][term] = {"gap": gap, "radius": 0.004 * (1 + i % 7), "active": 1.0 if i == 0 else 0.6}
        if test:
            row["test"] = {"all": float(0.8 - 0.6 * np.exp(-3 * t))}
        runs.append_row(run, row)
    env = {
        "versions": {"python": "3.11.2", "torch": "2.15.0", "flattail": "0.1.0"},
        "device": "cpu (2 threads)",
        "git": {"commit": "0123abc", "dirty": True},
        "seconds": 18.5 + seed,
        "dtype": "float32",
        "command": f"flattail train recipes/{label}.yaml --seeds 0-2",
    }
    runs.write_json(run / runs.ENV, env)
    if done is not None:
        return run
    y = np.repeat(np.arange(n), 36 if n <= 100 else 10)
    margin = np.empty(n)
    margin[np.argsort(-np.array(counts))] = np.linspace(head, tail, n) + 0.15 * rng.standard_normal(n)
    logits = rng.standard_normal((len(y), n)).astype(np.float32)
    logits[np.arange(len(y)), y] += margin[y].astype(np.float32)
    runs.write_logits(run, logits, y)
    document = {
        "scores": scores_of(logits, y, counts) | scores,
        "selection": "last",
        "epoch": epochs - 1,
        "counts": list(counts),
        "names": list(names or (f"{i}" for i in range(n))),
        "data": data,
        "fingerprint": fingerprint,
        "warnings": list(warnings),
    }
    runs.write_json(run / runs.SCORES, document)
    return run
